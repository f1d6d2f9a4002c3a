# An optimizer's step: chains of several parameters run as one kernel, and the gradient of a single row is a link of a
# chain. Against the same operations one by one.
defmodule EMLX.ProgramTogetherTest do
  use ExUnit.Case, async: true

  alias EMLX.{Array, Golden, Ops, Program}

  @moduletag if(Golden.device() == :gpu, do: [skip: "the pass together is for the CPU"], else: [])

  defp numbers(shape, dtype, seed) do
    key = Ops.run({:random_key, %{seed: seed}}, [])
    bounds = [Array.scalar(0.5, :f32), Array.scalar(2.0, :f32)]

    Ops.run({:random_uniform, %{shape: shape, dtype: :f32}}, bounds ++ [key])
    |> Ops.multiply(Array.scalar(4, :f32))
    |> Ops.astype(dtype)
  end

  defp named(arrays), do: for({array, i} <- Enum.with_index(arrays), do: {"#{i}", sizes(array), Array.dtype(array)})
  defp sizes(array), do: array |> Array.shape() |> Tuple.to_list()
  defp shown(arrays), do: for(array <- arrays, do: {Array.shape(array), Array.dtype(array), Array.to_list(array)})

  # Instructions on values, each of which gets the next number: `{number, state}`.
  defp put({known, instructions}, operation, inputs), do: {known, {known + 1, [{operation, inputs, 1} | instructions]}}

  # m ← 0.9 · m + g, w ← w - 0.1 · m
  defp momentum(state, gradient, [w, m], [factor, rate]) do
    {a, state} = put(state, :multiply, [m, factor])
    {m, state} = put(state, :add, [a, gradient])
    {step, state} = put(state, :multiply, [m, rate])
    {w, state} = put(state, :subtract, [w, step])
    {[w, m], state}
  end

  # As momentum, and w decays before (AdamW without its second moment).
  defp decayed(state, gradient, [w, m], [factor, rate]) do
    {decay, state} = put(state, :multiply, [w, factor])
    {square, state} = put(state, :multiply, [gradient, gradient])
    {a, state} = put(state, :multiply, [m, factor])
    {m, state} = put(state, :add, [a, square])
    {step, state} = put(state, :divide, [gradient, m])
    {scaled, state} = put(state, :multiply, [step, rate])
    {w, state} = put(state, :subtract, [decay, scaled])
    {[w, m], state}
  end

  # A gradient for each parameter: a product of a column and a row, one of more terms, or a sum over rows.
  defp step(update, parameters, type) do
    arrays =
      for {{shape, gradient}, i} <- Enum.with_index(parameters) do
        given =
          case {gradient, shape} do
            {:sum, shape} -> [[50 | shape]]
            {:single, shape} -> [[1 | shape], [1 | shape]]
            {terms, [rows, columns]} -> [[rows, terms], [terms, columns]]
          end

        for {shape, j} <- Enum.with_index([shape, shape] ++ given), do: numbers(shape, type, 10 * i + j)
      end

    inputs = [numbers([], type, 100), numbers([], type, 101)] ++ List.flatten(arrays)

    {outputs, {_, _, {_, instructions}}} =
      Enum.map_reduce(Enum.zip(parameters, arrays), {2, nil, {length(inputs), []}}, fn {{_, gradient}, arrays},
                                                                                       {first, _, state} ->
        [w, m | given] = Enum.to_list(first..(first + length(arrays) - 1))

        {g, state} =
          case {gradient, given} do
            {:sum, [x]} ->
              put(state, {:sum, %{axes: [0], keepdims: false}}, [x])

            {:single, [x, y]} ->
              {product, state} = put(state, :multiply, [x, y])
              put(state, {:sum, %{axes: [0], keepdims: false}}, [product])

            {_, [a, b]} ->
              put(state, :matmul, [a, b])
          end

        {outputs, state} = update.(state, g, [w, m], [0, 1])
        {outputs, {first + length(arrays), nil, state}}
      end)

    {inputs, Enum.reverse(instructions), List.flatten(outputs)}
  end

  @parameters [
    {[300, 200], 1},
    {[200], :sum},
    {[200, 90], 3},
    {[90, 64], 1},
    {[4, 3000], 1},
    {[3000, 4], 1},
    {[90], :sum},
    {[7], :sum},
    {[5000], :single},
    {[1, 700], :sum}
  ]

  test "a step of many parameters computes the same bits as single operations" do
    for type <- [:f32, :bf16, :f16, :f64], {update, i} <- Enum.with_index([&momentum/4, &decayed/4]) do
      {inputs, instructions, outputs} = step(update, @parameters, type)
      EMLX.eval(inputs)
      before = shown(inputs)
      want = Program.run(Program.new(length(inputs), instructions, outputs), inputs)
      program = Program.new(named(inputs), instructions, outputs)
      assert Program.explain(program) =~ ~r/chains: \d+ operations/
      for _ <- 1..2, do: assert(shown(Program.run(program, inputs)) == shown(want), "#{type}, optimizer #{i}")
      assert shown(inputs) == before
    end
  end

  test "steps in a loop write over the state that the loop alone has" do
    {inputs, instructions, outputs} = step(&momentum/4, Enum.take(@parameters, 4), :f32)
    count = length(inputs)
    # The counter comes first, and the weights and moments come back in their places.
    shift = fn values -> Enum.map(values, &(&1 + 1)) end
    body = for {operation, values, 1} <- instructions, do: {operation, shift.(values), 1}
    one = {{:constant, %{value: 1, dtype: :f32}}, [], 1}
    known = 1 + count + length(body)
    places = [3, 4, 7, 8, 10, 11, 14, 15]
    state = Enum.map(1..count, fn i -> Map.get(Map.new(Enum.zip(places, shift.(outputs))), i, i) end)
    body = {1 + count, body ++ [one, {:subtract, [0, known], 1}], [known + 1 | state]}
    loop = {{:while, %{condition: {1 + count, [], [0]}, body: body}}, Enum.to_list(0..count), 1 + count}
    inputs = [Array.scalar(3.0, :f32) | inputs]
    results = for place <- places, do: 1 + count + place
    want = Program.run(Program.new(1 + count, [loop], results), inputs)
    got = Program.run(Program.new(named(inputs), [loop], results), inputs)
    assert shown(got) == shown(want)
  end

  test "the product of a column and a row is that of the matrices" do
    for type <- [:f32, :bf16, :s32, :u8, :f64],
        {a, b, turns} <- [{[40, 1], [1, 70], false}, {[40, 1], [1, 70], true}, {[3, 1, 40, 1], [2, 1, 70], false}] do
      inputs = for {shape, seed} <- [{a, 1}, {b, 2}], do: numbers(shape, type, seed)
      transpose = if turns, do: [{{:transpose, %{axes: [1, 0]}}, [2], 1}], else: []
      product = 2 + length(transpose)
      instructions = [{:matmul, [0, 1], 1}] ++ transpose ++ [{:multiply, [product, product], 1}]
      [want] = Program.run(Program.new(2, instructions, [product + 1]), inputs)
      [got] = Program.run(Program.new(named(inputs), instructions, [product + 1]), inputs)
      assert shown([got]) == shown([want])
    end
  end
end
