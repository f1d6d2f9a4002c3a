defmodule EMLXAxon.Case do
  @moduledoc """
  The case template for tests of rewritten models. The reference is the original model in the evaluator on
  Nx.BinaryBackend. The tests count telemetry events, and therefore do not run concurrently.
  """

  use ExUnit.CaseTemplate

  using do
    quote do
      import EMLX.NxCase, only: [assert_same: 2, assert_same: 3, backend: 0, for_all: 3]
      import EMLXAxon.Case
    end
  end

  setup do
    Nx.default_backend(Nx.BinaryBackend)
    :ok
  end

  @doc "Returns the compilers under test: the evaluator, and EMLX if it is a compiler."
  def compilers do
    emlx = if Code.ensure_loaded?(EMLX) and function_exported?(EMLX, :__jit__, 5), do: [EMLX], else: []
    [Nx.Defn.Evaluator | emlx]
  end

  @doc "Returns the prediction of a model on a backend with a compiler."
  def predict(model, state, input, backend, compiler \\ Nx.Defn.Evaluator, opts \\ []) do
    on(backend, fn ->
      {_init, predict} = Axon.build(model, [compiler: compiler, cache: false] ++ opts)
      predict.(copy(state, backend), copy(input, backend))
    end)
  end

  @doc """
  Asserts that the rewritten model predicts on the backend under test, in every compiler, what the model itself predicts
  on the binary backend, and that blocks took the paths named in `paths`, such as `[{Axon.Block.RMSNorm, :fused}]`.
  """
  def assert_rewritten(model, state, input, paths, opts \\ []) do
    expected = predict(model, state, input, Nx.BinaryBackend)
    rewritten = EMLXAxon.rewrite(model)
    EMLX.NxCase.assert_same(predict(rewritten, state, input, Nx.BinaryBackend), expected, rtol: 0, atol: 0)

    for compiler <- compilers() do
      {actual, dispatched} = record_blocks(fn -> predict(rewritten, state, input, EMLX.NxCase.backend(), compiler) end)
      EMLX.NxCase.assert_same(actual, expected, opts)
      assert {compiler, Enum.map(dispatched, &{&1.block, &1.path})} == {compiler, paths}
    end

    expected
  end

  @doc "Returns `{result of fun, metadata of each block of Axon or Bumblebee that was dispatched}`."
  def record_blocks(fun) do
    {result, dispatched} = EMLX.TelemetryRecorder.record_blocks(fun)
    {result, Enum.filter(dispatched, &(hd(Module.split(&1.block)) in ["Axon", "Bumblebee"]))}
  end

  @doc "Runs `fun` with `backend` as the default backend."
  def on(backend, fun) do
    before = Nx.default_backend(backend)

    try do
      fun.()
    after
      Nx.default_backend(before)
    end
  end

  @doc "Copies a tensor or container to a backend."
  def copy(container, backend), do: Nx.backend_copy(container, backend)

  @doc "Returns a tensor of normally distributed random values with a mean of 0.3."
  def random(shape, type \\ {:f, 32}) do
    values = for _ <- 1..Tuple.product(shape)//1, do: :rand.normal(0.3, 1.5)
    Nx.tensor(values, type: {:f, 64}, backend: Nx.BinaryBackend) |> Nx.reshape(shape) |> Nx.as_type(type)
  end
end
