defmodule EMLX.Compiler.GraphTest do
  use EMLX.NxCase, async: true

  import EMLX.Random

  # Random expression graphs: compiled, eager and binary-backend results are the same. A graph is a list of steps over a
  # pool of tensors; a step takes tensors of the pool by number and adds its result. Values stay small, and nothing
  # depends on comparisons of floats, so that rounding does not look like an error.

  defmodule Control do
    @moduledoc false
    import Nx.Defn

    defn branch(number, a, b, opts \\ []) do
      if Nx.remainder(number, 2) == 0, do: opts[:then].(a, b), else: opts[:else].(a, b)
    end

    defn choose(number, a, b, opts \\ []) do
      cond do
        Nx.remainder(number, 3) == 0 -> opts[:then].(a, b)
        Nx.remainder(number, 3) == 1 -> opts[:else].(b, a)
        true -> Nx.tanh(a + b)
      end
    end

    # `a` changes from step to step, `b` does not.
    defn loop(number, a, b, opts \\ []) do
      {a, _, _, _} =
        while {a, b, i = 0, number}, i < Nx.remainder(number, 4) do
          {opts[:then].(a, b), b, i + 1, number}
        end

      a
    end

    # A loop in a branch, a branch in a loop.
    defn nested(number, a, b, opts \\ []) do
      {a, b, _, _} =
        while {a, b, i = 0, number}, i < 3 do
          {branch(i + number, a, b, opts), loop(number, b, a, opts), i + 1, number}
        end

      a + b
    end
  end

  @unary [:sin, :cos, :tanh, :sigmoid, :negate, :abs, :erf, :atan]
  @binary [:add, :subtract, :multiply, :max, :min]
  @shape {3, 4}

  # A step keeps the shape: {name, numbers of the pool, data}.
  defp step(size, depth) do
    pick = fn -> integer(0..(size - 1)) end

    kinds = [:unary, :binary, :unary, :binary, :axes, :reduce, :compare, :slice, :matrix, :type, :integer, :constant]
    kinds = if depth > 0, do: kinds ++ [:branch, :choose, :loop, :nested], else: kinds

    case one_of(kinds) do
      :unary ->
        {:unary, [pick.()], one_of(@unary)}

      :binary ->
        {:binary, [pick.(), pick.()], one_of(@binary)}

      :axes ->
        {:axes, [pick.()], one_of([:transpose, :reverse, :reshape, :pad, :concatenate, :tile])}

      :reduce ->
        {:reduce, [pick.()], {one_of([:sum, :mean, :reduce_max, :cumulative_sum, :window_sum]), integer(0..1)}}

      :compare ->
        {:compare, [pick.(), pick.()], integer(0..6)}

      :slice ->
        {:slice, [pick.()], {integer(0..3), integer(0..4)}}

      :matrix ->
        {:matrix, [pick.(), pick.()], nil}

      :type ->
        {:type, [pick.()], one_of([{:f, 64}, {:f, 32}])}

      :integer ->
        {:integer, [pick.()], integer(1..5)}

      :constant ->
        {:constant, [pick.()], integer(1..4)}

      control ->
        {control, [pick.(), pick.()], {graph(integer(1..4), depth - 1), graph(integer(1..4), depth - 1), integer(0..5)}}
    end
  end

  defp graph(steps, depth), do: for(i <- 1..steps, do: step(i + 1, depth))

  # The same without changes of type.
  defp plain(graph) do
    Enum.map(graph, fn
      {:type, from, _type} -> {:unary, from, :cos}
      {kind, from, {left, right, n}} when is_list(left) -> {kind, from, {plain(left), plain(right), n}}
      step -> step
    end)
  end

  # Applies a graph to its two inputs; `number` is an integer tensor that control flow depends on.
  defp apply_graph(graph, a, b, number) do
    pool =
      Enum.reduce(graph, %{0 => a, 1 => b}, fn {kind, from, data}, pool ->
        result = perform(kind, Enum.map(from, &Map.fetch!(pool, &1)), data, number)
        Map.put(pool, map_size(pool), Nx.as_type(result, {:f, 32}))
      end)

    Map.fetch!(pool, map_size(pool) - 1)
  end

  defp perform(:unary, [a], name, _number), do: apply(Nx, name, [a])
  defp perform(:binary, [a, b], name, _number), do: Nx.multiply(apply(Nx, name, [a, b]), 0.5)
  defp perform(:axes, [a], :transpose, _number), do: a |> Nx.transpose() |> Nx.reshape(@shape)
  defp perform(:axes, [a], :reverse, _number), do: Nx.reverse(a, axes: [1])
  defp perform(:axes, [a], :reshape, _number), do: a |> Nx.reshape({4, 3}) |> Nx.transpose()
  defp perform(:axes, [a], :pad, _number), do: Nx.pad(a, 0.25, [{1, -1, 0}, {-1, 1, 0}])

  defp perform(:axes, [a], :concatenate, _number),
    do: Nx.concatenate([a[[0..-1//1, 2..3]], a[[0..-1//1, 0..1]]], axis: 1)

  defp perform(:axes, [a], :tile, _number), do: Nx.tile(a[[0..0, 0..1]], [3, 2])
  defp perform(:reduce, [a], {:cumulative_sum, axis}, _number), do: Nx.multiply(Nx.cumulative_sum(a, axis: axis), 0.25)

  defp perform(:reduce, [a], {:window_sum, _axis}, _number),
    do: Nx.multiply(Nx.window_sum(a, {2, 2}, padding: :same), 0.25)

  defp perform(:reduce, [a], {name, axis}, _number),
    do: a |> then(&apply(Nx, name, [&1, [axes: [axis], keep_axes: true]])) |> Nx.multiply(0.25) |> Nx.broadcast(@shape)

  defp perform(:compare, [a, b], n, number),
    do: Nx.select(Nx.greater(Nx.remainder(Nx.add(Nx.iota(@shape), number), 7), n), a, b)

  defp perform(:slice, [a], {i, j}, number) do
    slice = Nx.slice(a, [Nx.remainder(number, 3), i], [1, 2])
    Nx.put_slice(a, [i, Nx.add(Nx.remainder(number, 2), j)], slice)
  end

  defp perform(:matrix, [a, b], nil, _number), do: Nx.multiply(Nx.dot(Nx.dot(a, Nx.transpose(b)), a), 0.05)
  defp perform(:type, [a], type, _number), do: a |> Nx.as_type(type) |> Nx.cos()
  defp perform(:integer, [a], n, number), do: Nx.multiply(a, Nx.divide(Nx.remainder(number, n), n))

  defp perform(:constant, [a], n, _number),
    do: Nx.add(Nx.multiply(a, Nx.eye(@shape)), Nx.divide(Nx.iota(@shape), 10 * n))

  defp perform(control, [a, b], {left, right, n}, number) do
    opts = [then: &apply_graph(left, &1, &2, n), else: &apply_graph(right, &1, &2, n)]
    apply(Control, control, [Nx.add(number, n), a, b, opts])
  end

  for {depth, times} <- [{0, 150}, {1, 150}, {2, 60}] do
    if depth == 2, do: @tag(:slow)

    test "random graphs with control flow nested #{depth} deep match the binary backend" do
      for_all(unquote(times), {:graph, unquote(depth)}, fn ->
        graph = graph(integer(3..12), unquote(depth))
        inputs = [tensor(@shape, {:f, 32}, range: {-2, 2}), tensor(@shape, {:f, 32}, range: {-2, 2})]
        number = tensor({}, {:s, 32}, range: {0, 20})
        same(&apply_graph(graph, &1, &2, &3), inputs ++ [number], rtol: 1.0e-3, atol: 1.0e-4)
      end)
    end
  end

  test "gradients of random graphs match the binary backend" do
    for_all(60, :graph_gradient, fn ->
      # Nx's gradients through a loop have the wrong type if the body has other types than the state.
      graph = plain(graph(integer(2..6), 1))
      inputs = [tensor(@shape, {:f, 32}, range: {-2, 2}), tensor(@shape, {:f, 32}, range: {-2, 2})]
      number = tensor({}, {:s, 32}, range: {0, 20})

      gradient = fn a, b, n ->
        {a, b, _n} = Nx.Defn.grad({a, b, n}, fn {a, b, n} -> Nx.sum(apply_graph(graph, a, b, n)) end)
        {a, b}
      end

      same(gradient, inputs ++ [number], rtol: 2.0e-3, atol: 1.0e-3)
    end)
  end
end
