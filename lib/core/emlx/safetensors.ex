defmodule EMLX.Safetensors do
  @moduledoc """
  Arrays in [safetensors](https://huggingface.co/docs/safetensors) files.
  """

  alias EMLX.{Array, Native, Queue}

  @doc """
  The arrays of a file, by name. Arrays are read one after another, so that no more memory is needed than the arrays take and
  the largest once more. 8-bit floats come as the bytes they are, of type `:u8` (see `EMLX.Ops.from_fp8/2`).

  Options: `:only`, a list of the names to read; `:device`, `:queue`.

  Raises `EMLX.Error` of kind `:file` for a file that is absent, truncated, or not exactly what its header says.
  """
  @spec load(Path.t(), keyword) :: %{String.t() => Array.t()}
  def load(path, opts \\ []) do
    {only, opts} = Keyword.pop(opts, :only)
    Map.new(Native.call!(Native.load_safetensors(to_string(path), only, Queue.target(opts))))
  end

  @doc """
  Writes arrays to a file, by name. The file appears under its name only once it is whole.
  """
  @spec save(Path.t(), %{String.t() => Array.t()}, keyword) :: :ok
  def save(path, arrays, opts \\ []) do
    entries = for {name, %Array{ref: ref}} <- Enum.sort(arrays), do: {name, ref}
    target = Queue.target(opts)
    Native.await!(:save, opts, &Native.save_safetensors(to_string(path), entries, target, &1))
  end
end
