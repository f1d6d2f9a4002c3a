defmodule EMLX.Safetensors do
  @moduledoc """
  Loads and saves arrays in [safetensors](https://huggingface.co/docs/safetensors) files.
  """

  alias EMLX.{Array, Native, Options, Queue}

  @load Options.schema([only: [type: {:or, [{:list, :string}, nil]}]] ++ Options.place())
  @save Options.schema(Options.place())

  @doc """
  Loads a file. Returns a map from names to arrays. Arrays are read one after another, so the peak memory is that of all
  arrays and the largest one again. 8-bit floats are loaded as their bytes, of type `:u8` (see `EMLX.Ops.from_fp8/2`).

  Options: `:only`, a list of the names to read, by default all; `:device`, `:queue`.

  Raises `EMLX.Error` of kind `:file` for a file that is absent, truncated, or not exactly what its header says.
  """
  @spec load(Path.t(), keyword) :: %{String.t() => Array.t()}
  def load(path, opts \\ []) do
    {only, opts} = opts |> Options.validate!(@load, "EMLX.Safetensors.load") |> Keyword.pop(:only)
    Map.new(Native.call!(Native.load_safetensors(to_string(path), only, Queue.target(opts))))
  end

  @doc """
  Writes arrays to a file, by name. Returns `:ok`. The write is atomic: the file appears under its name only when it is
  complete. `arrays` is a map, or a list of `{name, array}`. Options: `:device`, `:queue`, where arrays that are not
  computed yet are evaluated.

  Raises `EMLX.Error` of kind `:file` if the file cannot be written, if two arrays have the same name, or if a name is
  `"__metadata__"`, which the format reserves. Raises `ArgumentError` for a value that is no `EMLX.Array`.

      iex> path = Path.join(System.tmp_dir!(), "weights.safetensors")
      iex> EMLX.Safetensors.save(path, %{"w" => EMLX.Array.from_list([1, 2], :u8)})
      :ok
      iex> %{"w" => w} = EMLX.Safetensors.load(path)
      iex> {EMLX.Array.to_list(w), File.rm(path)}
      {[1, 2], :ok}
  """
  @spec save(Path.t(), %{String.t() => Array.t()} | [{String.t(), Array.t()}], keyword) :: :ok
  def save(path, arrays, opts \\ []) do
    opts = Options.validate!(opts, @save, "EMLX.Safetensors.save")
    entries = for entry <- arrays, do: entry(entry)
    target = Queue.target(opts)
    Native.await!(:save, [], opts, &Native.save_safetensors(to_string(path), Enum.sort(entries), target, &1))
  end

  defp entry({name, array}) when is_binary(name), do: {name, Array.ref!(array, "save_safetensors, #{inspect(name)}")}

  defp entry(other) do
    raise ArgumentError,
          "save_safetensors: expected arrays by name, the name a string, got: #{inspect(other, limit: 5)}"
  end
end
