defmodule EMLXBumblebee.Compare do
  @moduledoc false
  # What the tests share: the ways to run a function on EMLX, and the comparison with what Nx.BinaryBackend gives.

  import ExUnit.Assertions

  @doc "The compilers that run on EMLX.Backend: the evaluator, which is eager, and EMLX's own where it is built."
  def compilers do
    compiled? = Code.ensure_loaded?(EMLX) and function_exported?(EMLX, :__jit__, 5)
    [Nx.Defn.Evaluator] ++ if(compiled?, do: [EMLX], else: [])
  end

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
    [actual, wanted] = Enum.map([actual, expected], &Nx.as_type(&1, :f64))
    largest = wanted |> Nx.abs() |> Nx.reduce_max() |> Nx.to_number()
    far = wanted |> Nx.subtract(actual) |> Nx.abs() |> Nx.reduce_max() |> Nx.to_number()

    assert is_number(far) and is_number(largest) and far <= tolerance * max(largest, 1.0),
           "#{path}: #{inspect(far)} apart, the largest number is #{inspect(largest)}"
  end

  @doc "Runs a function and gives `{result, paths}`: what telemetry told of each block with a name that `modules` has."
  def told(modules, fun) do
    id = make_ref()
    :telemetry.attach(id, [:emlx, :block, :dispatch], &__MODULE__.tell/4, {self(), id, modules})

    try do
      result = fun.()
      {result, received(id)}
    after
      :telemetry.detach(id)
    end
  end

  def tell(_event, %{count: 1}, told, {pid, id, modules}) do
    if told.block in modules, do: send(pid, {id, told})
  end

  defp received(id) do
    receive do
      {^id, told} -> [told | received(id)]
    after
      0 -> []
    end
  end
end
