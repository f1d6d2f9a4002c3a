# Chains, the element-wise operations that a program runs in one pass on the CPU, against the same operations one by
# one.
defmodule EMLX.ProgramChainTest do
  # Not async: memory is counted for the whole VM.
  use ExUnit.Case, async: false

  alias EMLX.{Array, Error, Golden, Memory, Ops, Poll, Program}

  @unary [:exp, :sigmoid, :tanh, :erf, :sqrt, :rsqrt, :negative, :abs, :square]
  @binary [:add, :subtract, :multiply, :divide, :maximum, :minimum, :power]

  # `EMLX_SEED=n` selects the programs, `EMLX_TIMES=10` runs ten times as many; a failure names its seed.
  defp seeds do
    [seed, times] =
      for name <- ["EMLX_SEED", "EMLX_TIMES"], do: name |> System.get_env("1") |> String.to_integer()

    seed..(seed + 60 * times - 1)
  end

  defp numbers(shape, dtype, seed) do
    key = Ops.run({:random_key, %{seed: seed}}, [])
    bounds = [Array.scalar(-2.0, :f32), Array.scalar(2.0, :f32)]
    Ops.run({:random_uniform, %{shape: shape, dtype: :f32}}, bounds ++ [key]) |> Ops.astype(dtype)
  end

  defp pick(list), do: Enum.random(list)

  # Arrays that broadcast to the shape, contiguous ones and views, and scalars of integers.
  defp inputs(shape, dtype, seed) do
    repeated = for shape <- [shape, tl(shape), [List.last(shape)], Enum.map(shape, fn _ -> 1 end)], do: shape
    partly = [hd(shape) | Enum.map(tl(shape), fn _ -> 1 end)]

    floats =
      for {shape, i} <- Enum.with_index([shape, shape, pick([partly | repeated]), pick([partly | repeated]), []]) do
        array = numbers(shape, dtype, seed * 10 + i)
        if :rand.uniform() < 0.3, do: Golden.scattered(array), else: array
      end

    floats ++ [Array.scalar(pick([2, 3, -1]), :s32), Array.scalar(1, :u8)]
  end

  defp instructions(inputs, count) do
    Enum.map_reduce(1..count, inputs, fn _, known ->
      # Recent values are used more often, so that chains arise.
      value = fn -> if :rand.uniform() < 0.6, do: known - 1, else: :rand.uniform(known) - 1 end

      instruction =
        case :rand.uniform(10) do
          1 -> {{:sum, %{axes: [-1], keepdims: true}}, [pick(0..1)], 1}
          2 -> {:cos, [value.()], 1}
          n when n < 6 -> {pick(@unary), [value.()], 1}
          _ -> {pick(@binary), [value.(), value.()], 1}
        end

      {instruction, known + 1}
    end)
    |> elem(0)
  end

  # Without shapes, a program has no chains.
  defp named(arrays), do: for({array, i} <- Enum.with_index(arrays), do: {"#{i}", sizes(array), Array.dtype(array)})
  defp sizes(array), do: array |> Array.shape() |> Tuple.to_list()
  defp shown(arrays), do: for(array <- arrays, do: {Array.shape(array), Array.dtype(array), Array.to_list(array)})

  test "random programs with chains compute the same bits as single operations" do
    for seed <- seeds() do
      :rand.seed(:exsss, {seed, 1, 2})
      dtype = pick([:f32, :bf16, :f16])
      inputs = inputs(pick([[3, 40], [2, 5, 17], [7], [1, 1], [4, 3], [33, 1030], [0, 20], [2, 1, 24]]), dtype, seed)
      instructions = instructions(length(inputs), pick(2..40))
      known = length(inputs) + length(instructions)

      outputs =
        Enum.uniq([known - 1 | for(_ <- 1..pick(1..3), do: length(inputs) + :rand.uniform(length(instructions)) - 1)])

      plain = Program.new(length(inputs), instructions, outputs)
      chained = Program.new(named(inputs), instructions, outputs)
      want = shown(Program.run(plain, inputs))
      for _ <- 1..2, do: assert(shown(Program.run(chained, inputs)) == want, "EMLX_SEED=#{seed} gives something else")
    end
  end

  # Rounds of two values that each take both, and scalars among them; the last two values are sorted or concatenated.
  defp rounds(count, inputs) do
    {rounds, {a, b, known}} =
      Enum.flat_map_reduce(1..count, {0, 1, inputs}, fn _, {a, b, known} ->
        scalar = {pick([:bitwise_xor, :add]), [pick(2..3), pick(3..(inputs - 1))], 1}
        first = {pick([:add, :subtract, :multiply]), [a, pick([b, known])], 1}
        second = {pick([:bitwise_xor, :bitwise_or, :left_shift]), [known + 1, pick([b, known])], 1}
        {[scalar, first, second], {known + 1, known + 2, known + 3}}
      end)

    case pick([:concatenate, :mirrored, :sort, :output]) do
      :concatenate -> {rounds ++ [{{:concatenate, %{axis: 0}}, [a, b], 1}], [known]}
      :mirrored -> {rounds ++ [{{:concatenate, %{axis: -1}}, [b, a], 1}], [known]}
      :sort -> {rounds ++ for(v <- [a, b], do: {{:sort, %{axis: 0}}, [v], 1}), [known, known + 1]}
      :output -> {rounds, [a, b]}
    end
  end

  test "chains of several results compute the same bits as single operations" do
    for seed <- seeds() do
      :rand.seed(:exsss, {seed, 3, 4})
      shape = pick([[1], [2], [7], [40], [3, 5], [33, 1030], [5000], [0], [20_000]])
      dtype = pick([:u32, :s32, :u8, :s64])

      whole =
        for i <- 0..1,
            do: numbers(shape, :f32, seed * 2 + i) |> Ops.multiply(Array.scalar(50, :f32)) |> Ops.astype(dtype)

      whole = if :rand.uniform() < 0.3, do: Enum.map(whole, &Golden.scattered/1), else: whole
      inputs = whole ++ for(number <- [3, 7, 1], do: Array.scalar(number, dtype))
      EMLX.eval(inputs)
      {instructions, outputs} = rounds(pick(4..40), length(inputs))
      want = shown(Program.run(Program.new(length(inputs), instructions, outputs), inputs))
      chained = Program.new(named(inputs), instructions, outputs)
      for _ <- 1..2, do: assert(shown(Program.run(chained, inputs)) == want, "EMLX_SEED=#{seed} gives something else")
    end
  end

  test "chains in loops and branches compute the same bits as single operations" do
    # x ← tanh(x · y + 1), then its square or its cube, n times.
    one = {{:constant, %{value: 1, dtype: :f32}}, [], 1}
    steps = [one, {:subtract, [0, 3], 1}, {:multiply, [1, 2], 1}, {:add, [5, 3], 1}, {:tanh, [6], 1}]
    power = fn times -> {2, [{:multiply, [0, 0], 1} | times], [1 + length(times)]} end
    branch = {:if, %{then: power.([]), else: power.([{:multiply, [2, 0], 1}])}}
    body = {3, steps ++ [{{:sum, %{axes: [0], keepdims: false}}, [7], 1}, {branch, [8, 7, 2], 1}], [4, 9]}
    loop = {{:while, %{condition: {3, [], [0]}, body: body}}, [2, 0, 1], 2}
    instructions = [loop, {:exp, [4], 1}, {:negative, [5], 1}]
    inputs = [numbers([40], :f32, 1), numbers([40], :f32, 2), Array.scalar(5.0, :f32)]
    want = shown(Program.run(Program.new(3, instructions, [6]), inputs))
    assert shown(Program.run(Program.new(named(inputs), instructions, [6]), inputs)) == want
  end

  test "moments and weights of a loop's steps are those of single operations" do
    # A step of an optimizer: the gradient lies transposed, m ← (m + g) / 2, v ← (v + g²) / 2, w ← w - m / (√v + 1).
    # The loop alone holds its state, so that results may be written over it.
    step = [
      {{:transpose, %{axes: [1, 0]}}, [4], 1},
      {{:constant, %{value: 0.5, dtype: :f32}}, [], 1},
      {{:constant, %{value: 1, dtype: :f32}}, [], 1},
      {:matmul, [5, 4], 1},
      {{:transpose, %{axes: [1, 0]}}, [8], 1},
      {:add, [1, 9], 1},
      {:multiply, [10, 6], 1},
      {:multiply, [9, 9], 1},
      {:add, [2, 12], 1},
      {:multiply, [13, 6], 1},
      {:sqrt, [14], 1},
      {:add, [15, 7], 1},
      {:divide, [11, 16], 1},
      {:subtract, [3, 17], 1},
      {:subtract, [0, 7], 1}
    ]

    body = {5, step, [19, 11, 14, 18]}
    loop = {{:while, %{condition: {5, [], [0]}, body: body}}, [0, 1, 2, 3, 4], 4}
    x = numbers([20, 300], :f32, 1)
    inputs = [Array.scalar(5.0, :f32) | for(seed <- 2..4, do: numbers([300, 300], :f32, seed) |> Ops.abs())] ++ [x]
    EMLX.eval(inputs)
    before = shown(inputs)
    plain = Program.run(Program.new(5, [loop], [6, 7, 8]), inputs)
    chained = Program.run(Program.new(named(inputs), [loop], [6, 7, 8]), inputs)
    assert shown(chained) == shown(plain)
    # The caller's arrays are as they were.
    assert shown(inputs) == before
    assert Program.explain(Program.new(named(inputs), [loop], [6, 7, 8])) =~ "chain: 9 operations"
  end

  if EMLX.Golden.device() == :gpu, do: @tag(skip: "the pass turned is for the CPU")

  test "a product whose rows and columns are exchanged is that of exchanged operands" do
    for {left, right, axes} <- [
          {[3, 5], [5, 4], [1, 0]},
          {[70, 1], [1, 90], [1, 0]},
          {[2, 40, 30], [2, 30, 50], [0, 2, 1]},
          {[2, 1, 40, 30], [3, 30, 50], [0, 1, 3, 2]},
          {[0, 5], [5, 4], [1, 0]}
        ],
        dtype <- [:f32, :bf16, :f64, :s32] do
      inputs = for {shape, seed} <- [{left, 1}, {right, 2}], do: numbers(shape, :f32, seed) |> Ops.astype(dtype)
      instructions = [{:matmul, [0, 1], 1}, {{:transpose, %{axes: axes}}, [2], 1}]
      [want] = Program.run(Program.new(2, instructions, [3]), inputs)
      program = Program.new(named(inputs), instructions, [3])
      assert Program.explain(program) =~ "turned matmul"
      [got] = Program.run(program, inputs)
      assert {Array.shape(got), Array.dtype(got)} == {Array.shape(want), Array.dtype(want)}

      for {a, b} <- Enum.zip(flat(got), flat(want)),
          do: assert_in_delta(a, b, if(dtype == :bf16, do: 0.25, else: 1.0e-4))
    end
  end

  defp flat(array), do: array |> Array.to_list() |> List.wrap() |> List.flatten()

  @tag :timing
  test "a chain allocates nothing but its result" do
    x = numbers([512, 2048], :f32, 1)
    EMLX.eval(x)
    # y · sigmoid(y + 1) of y = x², which is used twice.
    one = {{:constant, %{value: 1, dtype: :f32}}, [], 1}
    instructions = [one, {:multiply, [0, 0], 1}, {:add, [2, 1], 1}, {:sigmoid, [3], 1}, {:multiply, [4, 2], 1}]

    [plain, chained] =
      for inputs <- [1, named([x])] do
        program = Program.new(inputs, instructions, [5])
        before = Poll.settled_memory()
        Memory.reset_peak()
        EMLX.eval(Program.run(program, [x]))
        Memory.peak() - before
      end

    bytes = Array.bytes(x)
    assert_in_delta chained, bytes, div(bytes, 10)
    assert_in_delta plain, 2 * bytes, div(bytes, 10)
  end

  test "a chain overwrites a value that is not used any more, and no other" do
    x = numbers([64, 1024], :f32, 1)
    kept = Array.to_list(x)
    instructions = [{:cos, [0], 1}, {:exp, [1], 1}, {:add, [2, 1], 1}, {:add, [3, 0], 1}]
    [once] = Program.run(Program.new(named([x]), instructions, [4]), [x])
    [both, cos] = Program.run(Program.new(named([x]), instructions, [4, 1]), [x])
    assert Array.to_list(both) == Array.to_list(once)
    assert Array.to_list(cos) == Array.to_list(Ops.cos(x))
    assert Array.to_list(x) == kept
  end

  test "a program with chains is inspected as it was written, and an error names the instruction that does not fit" do
    x = {"x", [3, 20], :f32}
    program = Program.new([x], [{:abs, [0], 1}, {:exp, [1], 1, "Layer"}, {:add, [2, 0], 1}], [3])
    text = Program.inspect(program)
    Program.run(program, [Ops.ones({3, 20}, :f32)])
    assert Program.inspect(program) == text
    assert text =~ "exp(%1) f32[3][20] [Layer]"

    program = Program.new([x, {"y", [7], :f32}], [{:abs, [0], 1}, {:exp, [2], 1}, {:add, [3, 1], 1, "Sum"}], [4])

    assert_raise Error, ~r/instruction 2, add \[Sum\]/, fn ->
      Program.run(program, [Ops.ones({3, 20}, :f32), Ops.ones({7}, :f32)])
    end
  end
end
