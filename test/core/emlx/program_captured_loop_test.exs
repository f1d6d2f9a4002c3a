defmodule EMLX.ProgramCapturedLoopTest do
  # Loops whose step is captured as a CUDA graph. CUDA needs EMLX_TEST_DEVICE=gpu. Elsewhere other engines run them, the
  # results have to be the same, and tests that look at graphs are skipped. Not async: graphs and memory are counted.
  use ExUnit.Case, async: false

  import EMLX.Loops

  alias EMLX.{Array, Golden, Memory, Ops, Poll, Program, Queue, Skip}

  @device Golden.device()

  setup do
    Memory.clear_cache()
    :ok
  end

  defp run(program, state, steps, read \\ [], opts \\ [device: @device]) do
    inputs = [scalar(0, :s64)] ++ state ++ [scalar(steps, :s64)] ++ read
    Enum.map(Program.run(program, inputs, opts), &Array.to_list/1)
  end

  defp scalar(value, dtype), do: Array.scalar(value, dtype, device: @device)
  defp list(values, dtype), do: Array.from_list(values, dtype, device: @device)

  # On CUDA a loop of five steps and more is captured.
  defp assert_captured(program) do
    unless Skip.no_cuda(), do: assert(Program.explain(program, device: @device) =~ ~r/captured step \(\d captured\)/)
  end

  test "a loop computes what its steps compute one by one, for any number of steps and type" do
    for dtype <- [:f32, :f16, :bf16, :s32, :u8, :s64], steps <- [0, 1, 4, 5, 100] do
      program = counted(1, [constant(3, dtype), {:add, [1, 3], 1}], [4])
      expected = Enum.reduce(1..steps//1, list([1, 2, 5], dtype), fn _, x -> Ops.add(x, scalar(3, dtype)) end)
      for _ <- 1..2, do: assert(run(program, [list([1, 2, 5], dtype)], steps) == [Array.to_list(expected)])
      if steps > 4, do: assert_captured(program)
    end
  end

  test "a loop ends when a condition on what it computes says so" do
    # Doubles x until its sum is 1,000 or more.
    sum = {{:sum, %{axes: nil, keepdims: false}}, [0], 1}
    condition = {2, [sum, {:less, [2, 1], 1}], [3]}
    program = Program.new(2, [loop(1, [0, 1], condition, {2, [{:add, [0, 0], 1}], [2]})], [2])

    for x <- [[1.0, 2.0], [0.25, 0.5], [400.0, 599.0], [400.0, 600.0], [1000.0, 0.0], [1.0, 1.0]] do
      wanted = Enum.find(Stream.iterate(x, fn x -> Enum.map(x, &(2 * &1)) end), &(Enum.sum(&1) >= 1000))
      [result] = Program.run(program, [list(x, :f32), scalar(1000.0, :f32)], device: @device)
      assert Array.to_list(result) == wanted
    end

    assert_captured(program)
  end

  test "values of the state that change places, stay, or are views of others are the next step's" do
    # {a, b, c} becomes {b, a + b, c}.
    program = counted(3, [{:add, [1, 2], 1}], [2, 5, 3])

    for _ <- 1..2 do
      one = scalar(1, :s64)
      assert run(program, [one, one, list([7, 8], :s64)], 50) == [20_365_011_074, 32_951_280_099, [7, 8]]
    end

    assert_captured(program)

    # A matrix becomes its transposed one, another one its first row repeated.
    turned = {{:transpose, %{axes: [1, 0]}}, [1], 1}
    row = {{:slice, %{start: [0, 0], stop: [1, 2], strides: [1, 1]}}, [2], 1}
    program = counted(2, [turned, row, {{:broadcast_to, %{shape: [2, 2]}}, [5], 1}], [4, 6])
    m = list([[1.0, 2.0], [3.0, 4.0]], :f32)
    assert run(program, [m, m], 5) == [[[1.0, 3.0], [2.0, 4.0]], [[1.0, 2.0], [1.0, 2.0]]]
    assert run(program, [m, m], 6) == [[[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [1.0, 2.0]]]

    # All values are rotated by one, and so is each of four elements.
    first = {{:slice, %{start: [0], stop: [1], strides: [1]}}, [1], 1}
    rest = {{:slice, %{start: [1], stop: [4], strides: [1]}}, [1], 1}
    program = counted(3, [first, rest, {{:concatenate, %{axis: 0}}, [6, 5], 1}], [2, 3, 7])
    values = for from <- [0, 4, 8], do: list(Enum.map(1..4, &(&1 + from)), :s32)
    assert run(program, values, 7) == [[7, 8, 5, 6], [11, 12, 9, 10], [4, 1, 2, 3]]
  end

  test "an array that others read in the same step is not written over before" do
    # x becomes x + 1 in one place, and y the sum of what x was and of what it is.
    body = [
      constant(0, :s64),
      {{:reshape, %{shape: [1]}}, [4], 1},
      constant(1.0, :f32),
      {{:slice, %{start: [0], stop: [1], strides: [1]}}, [1], 1},
      {:add, [7, 6], 1},
      {{:slice_update_dynamic, %{axes: [0]}}, [1, 8, 5], 1},
      {:add, [1, 9], 1},
      {:add, [10, 2], 1}
    ]

    program = counted(2, body, [9, 11])
    zeros = list([0.0, 0.0, 0.0], :f32)
    # x is 0, 1, …; y is the sum of 2x + 1: the square of the number of steps.
    assert run(program, [zeros, zeros], 20) == [[20.0, 0.0, 0.0], [400.0, 0.0, 0.0]]
    assert_captured(program)
  end

  # Writes i to place i mod 2¹⁸ of a megabyte.
  defp update do
    body = [
      constant(262_144, :s64),
      {:remainder, [0, 3], 1},
      {{:reshape, %{shape: [1]}}, [4], 1},
      {{:astype, %{dtype: :f32}}, [5], 1},
      {{:slice_update_dynamic, %{axes: [0]}}, [1, 6, 5], 1}
    ]

    counted(1, body, [7])
  end

  test "a large array of which a step writes an element is the same again" do
    program = update()
    x = Ops.ones({262_144}, :f32, device: @device)

    for steps <- [50, 7] do
      [result] = run(program, [x], steps)
      assert Enum.take(result, 51) == Enum.take(Enum.map(0..(steps - 1), &(&1 * 1.0)) ++ List.duplicate(1.0, 51), 51)
      assert Enum.uniq(Enum.drop(result, 51)) == [1.0]
    end

    assert Enum.uniq(Array.to_list(x)) == [1.0]
    assert_captured(program)
  end

  test "what a loop reads may be other arrays in each run, small and large" do
    # x becomes x · w + b.
    program = counted(1, [{:matmul, [1, 3], 1}, {:add, [5, 4], 1}], [6], 2)
    size = 300

    for {scale, bias} <- [{1.0, 1}, {1.0, 2}, {-1.0, 2}, {-1.0, 3}, {1.0, 4}] do
      w = Ops.multiply(Ops.eye(size, dtype: :f32, device: @device), scalar(scale, :f32))
      b = Ops.multiply(Ops.ones({size}, :f32, device: @device), scalar(bias * 1.0, :f32))
      [result] = run(program, [Ops.ones({1, size}, :f32, device: @device)], 6, [w, b])
      wanted = Enum.reduce(1..6, 1.0, fn _, x -> x * scale + bias end)
      assert Enum.uniq(hd(result)) == [wanted]
    end

    assert_captured(program)
  end

  test "one loop runs on two queues, for several processes at once" do
    program = counted(1, [{:sin, [1], 1}, {:add, [1, 3], 1}], [4])
    wanted = Enum.reduce(1..40, 0.5, fn _, x -> x + :math.sin(x) end)
    queues = for _ <- 1..2, do: Queue.start(device: @device)

    tasks =
      for queue <- queues, _ <- 1..3 do
        Task.async(fn ->
          for _ <- 1..10 do
            [[result]] = run(program, [list([0.5], :f32)], 40, [], queue: queue)
            assert_in_delta(result, wanted, 1.0e-4)
          end
        end)
      end

    Task.await_many(tasks, 60_000)
  end

  test "a loop that asks the calling process, has a branch or an operation of the CPU's runs on the host" do
    branch = {{:if, %{then: {1, [{:sin, [0], 1}], [1]}, else: {1, [{:cos, [0], 1}], [1]}}}, [3, 1], 1}
    program = counted(1, [{:less, [1, 1], 1}, branch], [4])
    [x] = run(program, [scalar(0.5, :f32)], 6)
    assert_in_delta(x, Enum.reduce(1..6, 0.5, fn _, x -> :math.cos(x) end), 1.0e-5)

    inverse = counted(1, [{:inv, [1], 1}], [3])
    m = list([[2.0, 0.0], [0.0, 4.0]], :f32)
    assert run(inverse, [m], 6) == [[[2.0, 0.0], [0.0, 4.0]]]
    for program <- [program, inverse], do: refute(Program.explain(program, device: @device) =~ "captured step")
  end

  test "a state that changes its shape is refused" do
    program = counted(1, [{{:reshape, %{shape: [1, 2]}}, [1], 1}], [3])

    assert_raise EMLX.Error, ~r/value 1 of the state is f32\[2\] and becomes f32\[1\]\[2\]/, fn ->
      run(program, [list([1.0, 2.0], :f32)], 9)
    end
  end

  test "a loop ends with the process that waits for it, and the queue serves others" do
    program = counted(1, [{:sin, [1], 1}], [3])
    queue = Queue.start(device: @device)
    {pid, monitor} = spawn_monitor(fn -> run(program, [list([0.5], :f32)], 1_000_000_000_000, [], queue: queue) end)
    Process.sleep(50)
    Process.exit(pid, :kill)
    assert_receive {:DOWN, ^monitor, :process, ^pid, :killed}
    assert [[_]] = run(program, [list([0.5], :f32)], 10, [], queue: queue)
  end

  @tag skip: Skip.no_cuda()
  test "a captured step is kept for the next run, and given up with the cache" do
    program = update()
    x = Ops.ones({262_144}, :f32, device: @device)
    for _ <- 1..3, do: run(program, [x], 10)
    assert %{count: 1, bytes: bytes} = Memory.graphs()
    # The state once, and little beside it.
    assert bytes in 1_048_576..1_200_000
    Memory.clear_cache()
    assert Memory.graphs() == %{count: 0, bytes: 0}
    assert [_] = run(program, [x], 10)
    assert Memory.graphs().count == 1, Program.explain(program, device: @device)
  end

  @tag :timing
  test "runs of a loop leave no memory behind" do
    program = update()
    x = Ops.ones({262_144}, :f32, device: @device)
    for _ <- 1..3, do: run(program, [x], 20)
    before = Poll.settled_memory()
    for _ <- 1..30, do: run(program, [x], 20)
    assert Poll.until(fn -> Poll.settled_memory() <= before + 100_000 end)
  end
end
