# Loops over small arrays on the CPU, whose step is recorded once and repeated.
defmodule EMLX.ProgramRecordedTest do
  use ExUnit.Case, async: true

  import EMLX.Loops

  alias EMLX.{Array, Ops, Program, Queue}

  @moduletag skip: if(EMLX.Golden.device() == :gpu, do: "recorded steps are the CPU's")

  defp run(program, state, steps) do
    [Array.scalar(0, :s64) | state]
    |> Kernel.++([Array.scalar(steps, :s64)])
    |> then(&Program.run(program, &1, device: :cpu))
    |> Enum.map(&Array.to_list/1)
  end

  defp recorded?(program), do: Program.explain(program, device: :cpu) =~ ~r/recorded step \(\d+ runs\)/

  test "a recorded loop computes what its steps compute one by one, for any number of steps and type" do
    for dtype <- [:f32, :f16, :bf16, :f64, :s32, :u8, :s64], steps <- [0, 1, 2, 3, 10, 1_000] do
      program = counted(1, [constant(3, dtype), {:add, [1, 3], 1}], [4])
      x = Array.from_list([1, 2, 5], dtype)
      three = Array.scalar(3, dtype)
      expected = Enum.reduce(List.duplicate(three, steps), x, &Ops.add(&2, &1)) |> Array.to_list()
      assert run(program, [x], steps) == [expected]
      assert recorded?(program)
    end
  end

  test "values of the state that change places, stay, or are views of others are the next step's" do
    # {a, b, c} becomes {b, a + b, c}.
    program = counted(3, [{:add, [1, 2], 1}], [2, 5, 3])
    one = Array.scalar(1, :s64)
    c = Array.from_list([7, 8], :s64)
    assert run(program, [one, one, c], 50) == [20_365_011_074, 32_951_280_099, [7, 8]]
    assert recorded?(program)

    # A matrix becomes its transposed one, another one its first row repeated.
    program =
      counted(
        2,
        [
          {{:transpose, %{axes: [1, 0]}}, [1], 1},
          {{:slice, %{start: [0, 0], stop: [1, 2], strides: [1, 1]}}, [2], 1},
          {{:broadcast_to, %{shape: [2, 2]}}, [5], 1}
        ],
        [4, 6]
      )

    m = Array.from_list([[1.0, 2.0], [3.0, 4.0]], :f32)
    assert run(program, [m, m], 3) == [[[1.0, 3.0], [2.0, 4.0]], [[1.0, 2.0], [1.0, 2.0]]]
    assert run(program, [m, m], 4) == [[[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [1.0, 2.0]]]
    assert recorded?(program)
  end

  test "a recorded loop leaves its inputs as they are, and its results when it runs again" do
    program = counted(1, [{:add, [1, 1], 1}], [3])
    x = Array.from_list([1.0, 2.0], :f32)
    inputs = &[Array.scalar(0, :s64), x, Array.scalar(&1, :s64)]
    [first] = Program.run(program, inputs.(3), device: :cpu)
    [second] = Program.run(program, inputs.(5), device: :cpu)
    assert Enum.map([x, first, second], &Array.to_list/1) == [[1.0, 2.0], [8.0, 16.0], [32.0, 64.0]]
  end

  test "slices, updates, sums and searches at places that the state names are computed anew each step" do
    body = [
      constant(8, :s64),
      {:remainder, [0, 3], 1},
      {{:reshape, %{shape: [1]}}, [4], 1},
      {{:sum, %{axes: nil, keepdims: false}}, [1], 1},
      {{:reshape, %{shape: [1]}}, [6], 1},
      {{:slice_update_dynamic, %{axes: [0]}}, [1, 7, 5], 1}
    ]

    program = counted(1, body, [8])
    x = Enum.map(1..8, &(&1 * 1.0))

    expected =
      Enum.reduce(0..20, x, fn i, x -> List.replace_at(x, rem(i, 8), Enum.sum(x)) end)

    [have] = run(program, [Array.from_list(x, :f32)], 21)
    for {have, want} <- Enum.zip(have, expected), do: assert_in_delta(have / want, 1.0, 1.0e-5)
    assert recorded?(program)
  end

  test "a loop with large arrays or with an operation without a kernel runs without a recording, and says so" do
    large = counted(1, [{:add, [1, 1], 1}], [3])
    assert [list] = run(large, [Ops.ones({20_000}, :f32)], 3)
    assert Enum.uniq(list) == [8.0]
    refute recorded?(large)

    inverse = counted(1, [{:inv, [1], 1}], [3])
    m = Array.from_list([[2.0, 0.0], [0.0, 4.0]], :f32)
    for _ <- 1..4, do: assert([[[0.5, _], [_, 0.25]]] = run(inverse, [m], 3))
    refute recorded?(inverse)
  end

  test "a state that changes its type or shape is refused as in other loops" do
    program = counted(1, [{{:reshape, %{shape: [1, 2]}}, [1], 1}], [3])

    assert_raise EMLX.Error, ~r/value 1 of the state is f32\[2\] and becomes f32\[1\]\[2\]/, fn ->
      run(program, [Ops.ones({2}, :f32)], 2)
    end
  end

  test "a loop inside a loop is recorded with it, and begins anew in each outer step" do
    inner = {3, [{:less, [0, 2], 1}], [3]}
    step = {3, [constant(1, :s64), {:add, [0, 3], 1}, {:add, [1, 1], 1}], [4, 5]}
    body = [constant(0, :s64), constant(2, :s64), loop(2, [3, 1, 4], inner, step)]
    program = counted(1, body, [6])
    assert run(program, [Array.scalar(1.0, :f32)], 5) == [1024.0]
    assert Program.explain(program, device: :cpu) =~ "recorded step (1 runs)"
  end

  test "a loop inside that takes another number of steps each time, or none" do
    # x becomes x + i, by i steps of one: 0 + 0 + 1 + 2 + ….
    inner = {3, [{:less, [0, 2], 1}], [3]}
    step = {3, [constant(1, :s64), {:add, [0, 3], 1}, {:add, [1, 3], 1}], [4, 5]}
    body = [constant(0, :s64), loop(2, [3, 1, 0], inner, step)]
    program = counted(1, body, [5])

    for steps <- [0, 1, 2, 10],
        do: assert(run(program, [Array.scalar(7, :s64)], steps) == [7 + div(steps * (steps - 1), 2)])

    assert recorded?(program)
  end

  defp branch(inputs, then, otherwise, outputs), do: {{:if, %{then: then, else: otherwise}}, inputs, outputs}

  test "a step takes the branch that its values say" do
    # Collatz: {n, steps} until n is 1.
    even = {1, [constant(2, :s64), {:quotient, [0, 1], 1}], [2]}
    odd = {1, [constant(3, :s64), {:multiply, [0, 1], 1}, constant(1, :s64), {:add, [2, 3], 1}], [4]}

    body =
      {2,
       [
         constant(2, :s64),
         {:remainder, [0, 2], 1},
         constant(0, :s64),
         {:equal, [3, 4], 1},
         branch([5, 0], even, odd, 1),
         constant(1, :s64),
         {:add, [1, 7], 1}
       ], [6, 8]}

    condition = {2, [constant(1, :s64), {:not_equal, [0, 2], 1}], [3]}
    program = Program.new(2, [loop(2, [0, 1], condition, body)], [2, 3])

    for {n, steps} <- [{1, 0}, {6, 8}, {27, 111}] do
      outputs = Program.run(program, [Array.scalar(n, :s64), Array.scalar(0, :s64)], device: :cpu)
      assert Enum.map(outputs, &Array.to_list/1) == [1, steps]
    end

    assert recorded?(program)
  end

  test "branches exchange values, leave them, read views and have loops inside" do
    # {a, b} over three columns: where i is odd {b, a}, else {a turned round, b doubled i times}.
    exchange = {3, [], [1, 0]}
    inner = {3, [{:less, [0, 2], 1}], [3]}
    double = {3, [constant(1, :s64), {:add, [0, 3], 1}, {:add, [1, 1], 1}], [4, 5]}

    other =
      {3,
       [
         {{:slice, %{start: [2], stop: [-4], strides: [-1]}}, [0], 1},
         constant(0, :s64),
         loop(2, [4, 1, 2], inner, double)
       ], [3, 6]}

    body = [
      constant(2, :s64),
      {:remainder, [0, 4], 1},
      branch([5, 1, 2, 0], exchange, other, 2)
    ]

    program = counted(2, body, [6, 7])

    expected = fn steps ->
      Enum.reduce(0..(steps - 1)//1, {[1, 2, 3], [4, 5, 6]}, fn
        i, {a, b} when rem(i, 2) == 1 -> {b, a}
        i, {a, b} -> {Enum.reverse(a), Enum.map(b, &(&1 * 2 ** i))}
      end)
    end

    for steps <- 0..6 do
      state = [Array.from_list([1, 2, 3], :s64), Array.from_list([4, 5, 6], :s64)]
      assert {steps, run(program, state, steps)} == {steps, Tuple.to_list(expected.(steps))}
      assert recorded?(program)
    end
  end

  test "values that steps leave as they are may be large, also through branches and loops inside" do
    # The sum of every element of a table, one each step, read at the place i; {sum, table} with a table of 20,000.
    pick =
      {3,
       [
         {{:reshape, %{shape: [1]}}, [2], 1},
         {{:slice_dynamic, %{axes: [0], sizes: [1]}}, [1, 3], 1},
         {{:reshape, %{shape: []}}, [4], 1},
         {:add, [0, 5], 1}
       ], [6, 1]}

    none = {3, [], [0, 1]}
    body = [constant(10_000, :s64), {:less, [0, 4], 1}, branch([5, 1, 2, 0], pick, none, 2)]
    program = counted(2, body, [6, 7])
    table = Ops.arange(0, 20_000, dtype: :s64)
    [sum, same] = run(program, [Array.scalar(0, :s64), table], 12_000)
    assert sum == div(9_999 * 10_000, 2)
    assert same == Enum.to_list(0..19_999)
    assert recorded?(program)
  end

  test "a loop after an operation that can fail late is recorded, and the failure is the run's" do
    body = {3, [constant(1, :s64), {:add, [0, 3], 1}, {:add, [1, 1], 1}], [4, 5]}
    condition = {3, [{:less, [0, 2], 1}], [3]}
    instructions = [{:inv, [2], 1}, loop(2, [0, 3, 1], condition, body)]
    program = Program.new(3, instructions, [5])
    counters = [Array.scalar(0, :s64), Array.scalar(3, :s64)]
    m = Array.from_list([[2.0, 0.0], [0.0, 4.0]], :f32)
    [out] = Program.run(program, counters ++ [m], device: :cpu)
    assert Array.to_list(out) == [[4.0, 0.0], [0.0, 2.0]]
    assert recorded?(program)

    assert_raise EMLX.Error, ~r/inv|singular|inverse/i, fn ->
      Program.run(program, counters ++ [Ops.zeros({2, 2}, :f32)], device: :cpu) |> EMLX.eval()
    end

    assert [_] = Program.run(program, counters ++ [m], device: :cpu) |> EMLX.eval()
  end

  test "an endless recorded loop lets other jobs of its queue run, and ends with its caller" do
    queue = Queue.start()
    endless = loop(1, [0], {1, [constant(1, :s64)], [1]}, {1, [constant(1, :s64), {:add, [0, 1], 1}], [2]})
    program = Program.new(1, [endless], [1])
    caller = spawn(fn -> Program.run(program, [Array.scalar(0, :s64)], queue: queue) end)
    EMLX.Poll.until(fn -> recorded?(program) end)
    assert Ops.add(Array.scalar(1, :s64), 1) |> EMLX.eval(queue: queue) |> Array.to_list() == 2
    Process.exit(caller, :kill)
    finite = counted(1, [{:add, [1, 1], 1}], [3])
    inputs = [Array.scalar(0, :s64), Array.scalar(1.0, :f32), Array.scalar(4, :s64)]
    assert [sixteen] = Program.run(finite, inputs, queue: queue)
    assert Array.to_list(sixteen) == 16.0
  end
end
