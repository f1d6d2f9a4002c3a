defmodule EMLX.Safetensors do
  @moduledoc """
  Arrays in [safetensors](https://huggingface.co/docs/safetensors) files.
  """

  alias EMLX.{Array, Native, Queue}

  @doc """
  The arrays of a file, by name. The header is read and checked at once, each array's data when the array is first used, so
  that a large file costs only what is taken from it.

  Raises `EMLX.Error` of kind `:file` for a file that is absent, truncated or not what its header says.
  Options: `:device`, `:queue`.
  """
  @spec load(Path.t(), keyword) :: %{String.t() => Array.t()}
  def load(path, opts \\ []) do
    Map.new(Native.call!(Native.load_safetensors(to_string(path), Queue.target(opts))))
  end

  @doc """
  Writes arrays to a file, by name. The file appears under its name only once it is whole.
  """
  @spec save(Path.t(), %{String.t() => Array.t()}, keyword) :: :ok
  def save(path, arrays, opts \\ []) do
    entries = for {name, %Array{ref: ref}} <- Enum.sort(arrays), do: {name, ref}
    target = Queue.target(opts)
    Native.await!(&Native.save_safetensors(to_string(path), entries, target, &1))
  end
end
