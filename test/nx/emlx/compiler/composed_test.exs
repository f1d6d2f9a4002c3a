defmodule EMLX.Compiler.ComposedTest do
  # A softmax that is composed of Nx's operations is one operation of the program on the CPU, and computes what Nx does.
  use EMLX.NxCase, async: true

  import EMLX.Random

  @moduletag skip: EMLX.Golden.device() == :gpu and "the pass is the CPU's"

  defp softmax(x, axis) do
    exps = Nx.exp(Nx.subtract(x, Nx.reduce_max(x, axes: [axis], keep_axes: true)))
    Nx.divide(exps, Nx.sum(exps, axes: [axis], keep_axes: true))
  end

  defp composed?(fun, args), do: explained(fun, args) =~ "subtract, exp, sum, divide as softmax"
  defp explained(fun, args), do: EMLX.explain(fun, Enum.map(args, &Nx.to_template/1), device: :cpu)

  test "a softmax along the last axis is one operation" do
    for_all(30, :softmax, fn ->
      shape = shape(1..3, 2..40)
      x = tensor(shape, one_of([{:f, 32}, {:f, 16}, {:bf, 16}]), range: {-9, 9})
      fun = &softmax(Nx.multiply(&1, 2), tuple_size(shape) - 1)
      same(fun, [x])
      assert composed?(fun, [x])
    end)
  end

  test "what is not finite goes through it as through its operations" do
    rows = [
      [1.0, :infinity, 0.0],
      [:neg_infinity, 0.0, 1.0],
      [:nan, 0.0, 1.0],
      [:neg_infinity, :neg_infinity, :neg_infinity]
    ]

    same(&softmax(&1, 1), [Nx.tensor(rows, type: :f32)])
  end

  test "a softmax along another axis, or whose exponentials are needed too, stays as it is" do
    x = tensor({5, 6}, {:f, 32})
    both = fn x -> {softmax(x, 1), Nx.exp(Nx.subtract(x, Nx.reduce_max(x, axes: [1], keep_axes: true)))} end

    for fun <- [&softmax(&1, 0), both] do
      same(fun, [x])
      refute composed?(fun, [x])
    end
  end
end
