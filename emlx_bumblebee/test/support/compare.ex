defmodule EMLXBumblebee.Compare do
  @moduledoc false
  # What the tests share: the ways to run a function on EMLX, and the comparison with what Nx.BinaryBackend gives.

  import ExUnit.Assertions

  @doc "The compilers that run on EMLX.Backend: the evaluator, which is eager, and EMLX's own where it is built."
  def compilers do
    compiled? = Code.ensure_loaded?(EMLX) and function_exported?(EMLX, :__jit__, 5)
    [Nx.Defn.Evaluator] ++ if(compiled?, do: [EMLX], else: [])
  end

  @doc "The options that run a function with a compiler. EMLX compiles anew, since what it has compiled dispatches no blocks."
  def options(EMLX), do: [compiler: EMLX, cache: false]
  # As functions are compiled for the GPU, with operations merged.
  def options({EMLX, opts}), do: options(EMLX) ++ opts
  def options(compiler), do: [compiler: compiler]

  @doc "How far numbers of a type may lie apart, for results whose largest is about 1."
  def tolerance({:f, 64}), do: 1.0e-6
  def tolerance({:f, 32}), do: 2.0e-5
  def tolerance({:f, 16}), do: 1.0e-2
  # Eight bits.
  def tolerance({:bf, 16}), do: 6.0e-2
  def tolerance(_integer), do: 0

  @doc "A container of tensors on another backend."
  def on(container, backend), do: Nx.backend_copy(container, backend)

  @doc "Asserts that two containers of tensors have the same structure, types, shapes and, up to the type's tolerance, numbers."
  def assert_alike(actual, expected, path \\ "output", tolerance \\ nil)

  def assert_alike(%Nx.Tensor{} = actual, %Nx.Tensor{} = expected, path, tolerance) do
    assert {path, actual.type, actual.shape} == {path, expected.type, expected.shape}
    actual = on(actual, Nx.BinaryBackend)
    assert_close(actual, expected, tolerance || tolerance(expected.type), path)
  end

  def assert_alike(%Axon.None{}, %Axon.None{}, _path, _tolerance), do: :ok

  def assert_alike(actual, expected, path, tolerance) when is_tuple(expected) do
    assert tuple_size(actual) == tuple_size(expected), "#{path}: a tuple of #{tuple_size(actual)}"

    for {{one, other}, index} <- Enum.with_index(Enum.zip(Tuple.to_list(actual), Tuple.to_list(expected))),
        do: assert_alike(one, other, "#{path}.#{index}", tolerance)
  end

  def assert_alike(%{} = actual, %{} = expected, path, tolerance) do
    assert {path, Map.keys(actual)} == {path, Map.keys(expected)}
    for {key, other} <- expected, do: assert_alike(actual[key], other, "#{path}.#{key}", tolerance)
  end

  defp assert_close(actual, expected, 0, path),
    do: assert({path, Nx.to_binary(actual)} == {path, Nx.to_binary(expected)})

  defp assert_close(actual, expected, tolerance, path) do
    far = distance(actual, expected)
    largest = largest(expected)

    assert is_number(far) and is_number(largest) and far <= tolerance * max(largest, 1.0),
           "#{path}: #{inspect(far)} apart, the largest number is #{inspect(largest)}"
  end

  @doc """
  Asserts what `assert_alike/4` does, but where numbers lie apart the result only may not lie further from that of `exact`, a
  function, than `expected` does.
  """
  def assert_as_near(actual, expected, exact, path) do
    assert_alike(actual, expected, path)
  rescue
    ExUnit.AssertionError -> as_near(actual, expected, exact.(), path)
  end

  defp as_near(%Nx.Tensor{} = actual, %Nx.Tensor{} = expected, exact, path) do
    assert {path, actual.type, actual.shape} == {path, expected.type, expected.shape}
    actual = on(actual, Nx.BinaryBackend)
    {ours, theirs} = {distance(actual, exact), distance(expected, exact)}
    limit = max(2 * theirs, tolerance(expected.type) * max(largest(exact), 1.0))

    assert is_number(ours) and is_number(theirs) and ours <= limit,
           "#{path}: #{inspect(ours)} from the exact result, the original is #{inspect(theirs)} from it"
  end

  defp as_near(actual, expected, exact, path) when is_tuple(expected) do
    assert tuple_size(actual) == tuple_size(expected), "#{path}: a tuple of #{tuple_size(actual)}"
    [actual, expected, exact] = Enum.map([actual, expected, exact], &Tuple.to_list/1)

    for {{one, other, exact}, index} <- Enum.with_index(Enum.zip([actual, expected, exact])),
        do: as_near(one, other, exact, "#{path}.#{index}")
  end

  defp as_near(%Axon.None{}, %Axon.None{}, _exact, _path), do: :ok

  defp as_near(%{} = actual, %{} = expected, exact, path) do
    assert {path, Map.keys(actual)} == {path, Map.keys(expected)}
    for {key, other} <- expected, do: as_near(actual[key], other, exact[key], "#{path}.#{key}")
  end

  @doc "The largest difference between numbers of two tensors."
  def distance(one, other) do
    [one, other] = Enum.map([one, other], &Nx.as_type(&1, :f64))
    one |> Nx.subtract(other) |> Nx.abs() |> Nx.reduce_max() |> Nx.to_number()
  end

  @doc "The largest number of a tensor, without its sign."
  def largest(tensor), do: tensor |> Nx.as_type(:f64) |> Nx.abs() |> Nx.reduce_max() |> Nx.to_number()

  @doc "The blocks that models have."
  def blocks, do: [Bumblebee.Block.SDPA, Bumblebee.Block.RotaryEmbedding, Axon.Block.RMSNorm, Axon.Block.LayerNorm]

  @doc "How many blocks of each kind were dispatched, in the order of `blocks/0`."
  def counts(dispatched) do
    frequencies = Enum.frequencies_by(dispatched, & &1.block)
    blocks() |> Enum.map(&Map.get(frequencies, &1, 0)) |> List.to_tuple()
  end

  @doc "Returns `{result of fun, metadata of each dispatched block of one of the modules}`."
  def record_blocks(modules, fun), do: EMLX.TelemetryRecorder.record_blocks(fun, modules)
end
