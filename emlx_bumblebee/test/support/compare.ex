defmodule EMLXBumblebee.Compare do
  @moduledoc false
  # Helpers of the tests: the ways to run a function on EMLX, and comparisons with the results of Nx.BinaryBackend.

  import ExUnit.Assertions

  @doc "Returns the compilers that run on EMLX.Backend: the evaluator, which is eager, and EMLX if it is a compiler."
  def compilers do
    compiled? = Code.ensure_loaded?(EMLX) and function_exported?(EMLX, :__jit__, 5)
    [Nx.Defn.Evaluator] ++ if(compiled?, do: [EMLX], else: [])
  end

  @doc "Returns the options of a compiler. EMLX's cache is off: a cached program dispatches no blocks."
  def options(EMLX), do: [compiler: EMLX, cache: false]
  # The options for the GPU, which merge operations.
  def options({EMLX, opts}), do: options(EMLX) ++ opts
  def options(compiler), do: [compiler: compiler]

  @doc "Returns the tolerance of a type, for results whose largest element is about 1."
  def tolerance({:f, 64}), do: 1.0e-6
  def tolerance({:f, 32}), do: 2.0e-5
  def tolerance({:f, 16}), do: 1.0e-2
  # bf16 has eight significant bits.
  def tolerance({:bf, 16}), do: 6.0e-2
  def tolerance(_integer), do: 0

  @doc "Copies a container of tensors to a backend."
  def on(container, backend), do: Nx.backend_copy(container, backend)

  @doc "Asserts equal structures, types and shapes of two containers, and equal elements up to the type's tolerance."
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
  Asserts what `assert_alike/4` does. If the difference exceeds the tolerance, asserts that `actual` is at most twice as
  far from the result of the function `exact` as `expected` is.
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

  @doc "Returns the largest absolute difference between the elements of two tensors."
  def distance(one, other) do
    [one, other] = Enum.map([one, other], &Nx.as_type(&1, :f64))
    one |> Nx.subtract(other) |> Nx.abs() |> Nx.reduce_max() |> Nx.to_number()
  end

  @doc "Returns the largest absolute value of a tensor."
  def largest(tensor), do: tensor |> Nx.as_type(:f64) |> Nx.abs() |> Nx.reduce_max() |> Nx.to_number()

  @doc "Returns the blocks of models."
  def blocks, do: [Bumblebee.Block.SDPA, Bumblebee.Block.RotaryEmbedding, Axon.Block.RMSNorm, Axon.Block.LayerNorm]

  @doc "Returns the number of dispatched blocks of each kind, in the order of `blocks/0`."
  def counts(dispatched) do
    frequencies = Enum.frequencies_by(dispatched, & &1.block)
    blocks() |> Enum.map(&Map.get(frequencies, &1, 0)) |> List.to_tuple()
  end

  @doc "Returns `{result of fun, metadata of each dispatched block of one of the modules}`."
  def record_blocks(modules, fun), do: EMLX.TelemetryRecorder.record_blocks(fun, modules)
end
