Code.require_file("../../../bench/suite/models/small.ex", __DIR__)

defmodule EMLX.BenchSmallTest do
  use EMLX.NxCase, async: true

  alias EMLX.Bench.Small
  alias Nx.Defn.{Composite, Expr}
  alias Nx.Tensor, as: T

  @peers Path.expand("../../../bench/peers/small.py", __DIR__)

  # mix emlx.bench compiles the module itself.
  setup_all do
    on_exit(fn ->
      :code.delete(Small)
      :code.purge(Small)
    end)
  end

  # The nodes of an expression that are operations.
  defp operations(expression) do
    expression |> Composite.flatten_list() |> Enum.reduce(%{}, &visit/2) |> Map.values() |> Enum.count(& &1)
  end

  defp visit(%T{data: %Expr{id: id, op: op, args: args}}, seen) when not is_map_key(seen, id) do
    seen = Map.put(seen, id, op not in [:parameter, :constant, :tensor, :metadata])
    args |> List.flatten() |> Enum.filter(&is_struct(&1, T)) |> Enum.reduce(seen, &visit/2)
  end

  defp visit(_, seen), do: seen

  defp while(%T{data: %Expr{op: :elem, args: [tuple, _]}}), do: while(tuple)
  defp while(%T{data: %Expr{op: :while, args: [_initial, _parameters, condition, body]}}), do: {condition, body}

  test "a step of a counted loop has as many operations as its name says, and the counter's two" do
    for {count, {type, shape}} <- Small.counted() do
      expression = Nx.Defn.debug_expr(Small.counted(count, 100)).(Nx.template(shape, type))
      {condition, body} = while(expression)
      # The state is passed on, and so is the limit.
      assert {count, operations([body])} == {count, count + 1}
      assert operations([condition]) == 1
    end
  end

  test "loops on EMLX return what the evaluator returns on Nx.BinaryBackend" do
    for {count, type} <- Small.counted() do
      [x] = Nx.with_default_backend(Nx.BinaryBackend, fn -> Small.inputs([type]) end)
      loop = Small.counted(count, 10)

      expected =
        Nx.with_default_backend(Nx.BinaryBackend, fn -> Nx.Defn.jit(loop, compiler: Nx.Defn.Evaluator).(x) end)

      result = Nx.Defn.jit(loop, compiler: EMLX).(Nx.backend_copy(x, backend())) |> Nx.backend_copy(Nx.BinaryBackend)
      assert Nx.type(result) == Nx.type(x)
      assert Nx.shape(result) == Nx.shape(x)
      assert Nx.to_number(Nx.all_close(result, expected, rtol: 1.0e-4, atol: 1.0e-5)) == 1, "a loop of #{count}"
    end
  end

  test "loops with a condition of data end after thousands of steps" do
    for {name, type, function} <- Small.conditional() do
      [x] = Small.inputs([type])
      assert Nx.to_number(Nx.Defn.jit(function, compiler: EMLX).(x)) in 1_000..20_000, name
    end
  end

  test "operations have results on Nx.BinaryBackend, and the peers in Python have their names" do
    python = File.read!(@peers)

    for {name, types, function} <- Small.operations() do
      assert %T{} = Nx.with_default_backend(Nx.BinaryBackend, fn -> apply(function, Small.inputs(types)) end)
      assert python =~ ~s("#{name}")
    end

    for {name, _, _} <- Small.conditional(), do: assert(python =~ ~s("#{name}"))
    assert Small.text({:f32, {4, 4}}) == "f32[4][4]"
  end
end
