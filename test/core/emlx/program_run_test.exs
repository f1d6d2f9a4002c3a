defmodule EMLX.ProgramRunTest do
  # Runs that take long, wait, fail or lose their caller. Not async: memory is counted.
  use ExUnit.Case, async: false

  alias EMLX.{Array, Error, Memory, Native, Ops, Poll, Program, Queue}

  @mib 1_048_576

  defp scalar(number, dtype \\ :s32), do: Array.scalar(number, dtype)
  defp constant(value, dtype \\ :s32), do: {{:constant, %{value: value, dtype: dtype}}, [], 1}

  # Over {i, x}, up to n steps: i + 1, x + 1.
  defp counting do
    body = {3, [constant(1), constant(1.0, :f32), {:add, [0, 3], 1}, {:add, [1, 4], 1}], [5, 6]}
    loop = {:while, %{condition: {3, [{:less, [0, 2], 1}], [3]}, body: body}}
    Program.new(3, [{loop, [0, 1, 2], 2}], [3, 4])
  end

  # An endless loop.
  defp endless(opts \\ []) do
    loop = {:while, %{condition: {1, [constant(1)], [1]}, body: {1, [constant(1), {:add, [0, 1], 1}], [2]}}}
    Program.new(1, [{loop, [0], 1}], [1], opts)
  end

  # A loop over {i, x}, up to n steps, with operations around it: {i, x + y / 2 after each, the loop's x a second time}.
  # Since i is compared as a float, the trip count is not known in advance.
  defp adding(opts) do
    body = {4, [constant(1), constant(0.5, :f32), {:multiply, [3, 5], 1}, {:add, [0, 4], 1}, {:add, [1, 6], 1}], [7, 8]}
    asked = [{{:astype, %{dtype: :f32}}, [0], 1}, {:less, [4, 2], 1}]
    below = if opts[:counts?], do: {4, [{:less, [0, 2], 1}], [4]}, else: {4, asked, [5]}
    loop = {:while, %{condition: below, body: body}}
    opts = Keyword.delete(opts, :counts?)
    Program.new(4, [{loop, [0, 1, 2, 3], 2}, {:add, [5, 3], 1}], [5, 6], opts)
  end

  defp asking(outputs, more \\ [], results \\ [1]) do
    Program.new(1, [{{:call, %{id: 0, outputs: outputs}}, [0], length(outputs)} | more], results)
  end

  # Returns a process in the middle of an endless run. The run has started once a later job on the queue has been
  # served.
  defp start_endless(queue) do
    state = fn -> Ops.broadcast_to(scalar(0), [@mib]) end
    pid = spawn(fn -> Program.run(endless(), [state.()], queue: queue) end)
    assert Poll.until(fn -> waits?(pid) end)
    assert serves?(queue)
    pid
  end

  defp waits?(pid), do: Process.info(pid, :status) == {:status, :waiting}

  defp serves?(queue), do: number(Ops.add(scalar(1), 1), queue) == 2

  # Reads a value through the queue.
  defp number(array, queue), do: array |> EMLX.eval(queue: queue) |> Array.to_list()

  # Bytes that schedulers keep of small operations, to repeat them.
  @kept 65_536

  # The active memory returns to its previous value after a garbage collection of every process.
  defp assert_given_back(before), do: assert(Poll.until(fn -> Poll.settled_memory() <= before + @kept end))

  describe "a loop that runs ahead" do
    for steps <- [0, 1, 2, 3, 9, 40], ahead <- [0, 1, 8] do
      test "a loop of #{steps} steps that runs #{ahead} steps ahead computes what it computes step by step" do
        run = fn opts ->
          x = Array.from_list([0.0, 1.0], :f32)
          y = Array.from_list([1.0, 4.0], :f32)
          for array <- Program.run(adding(opts), [scalar(0), x, scalar(unquote(steps)), y]), do: Array.to_list(array)
        end

        [x, sum] = run.(run_ahead: unquote(ahead))
        assert x == [unquote(steps) * 0.5, 1.0 + unquote(steps) * 2.0]
        assert [x, sum] == run.([])
      end
    end

    test "a loop that runs ahead does not change its inputs, and runs again" do
      program = adding(run_ahead: 0)
      x = Array.from_list([0.0, 1.0], :f32)
      for _ <- 1..3, do: Program.run(program, [scalar(0), x, scalar(5), x])
      assert Array.to_list(x) == [0.0, 1.0]
    end

    test "a loop that runs ahead runs inside one whose steps are taken one by one" do
      asked = [constant(3.0, :f32), {:less, [0, 2], 1}]
      inner = {:while, %{condition: {2, asked, [3]}, body: {2, [{:add, [0, 1], 1}], [2]}}}
      body = {1, [constant(0), constant(1), {inner, [1, 2], 1}, {:add, [0, 3], 1}], [4]}
      outer = {:while, %{condition: {1, [constant(30), {:less, [0, 1], 1}], [2]}, body: body}}
      program = Program.new(1, [{outer, [0], 1}], [1], run_ahead: 0)
      [result] = Program.run(program, [scalar(0)])
      assert Array.to_list(result) == 30
    end

    test "a loop with a large state does not run ahead, and computes the same" do
      body = {1, [constant(1.0, :f32), {:add, [0, 1], 1}], [2]}
      below = [{{:max, %{axes: nil, keepdims: false}}, [0], 1}, constant(5.0, :f32), {:less, [1, 2], 1}]
      loop = {:while, %{condition: {1, below, [3]}, body: body}}
      program = Program.new(1, [{loop, [0], 1}], [1], run_ahead: 0)
      [result] = Program.run(program, [Ops.zeros([1024, 1024], :f32)])
      assert result |> Ops.min() |> Array.to_list() == 5.0
    end

    test "a loop that runs ahead ends with its process" do
      queue = Queue.start(device: :cpu)
      pid = spawn(fn -> Program.run(endless(run_ahead: 0), [scalar(0)], queue: queue) end)
      assert Poll.until(fn -> waits?(pid) end)
      assert serves?(queue)
      Process.exit(pid, :kill)
      assert serves?(queue)
    end

    test "the number of steps to run ahead has to be a number" do
      # Without NimbleOptions, the native library refuses it.
      error = if EMLX.Options.types?(), do: ArgumentError, else: Error
      assert_raise error, ~r/run_ahead/, fn -> adding(run_ahead: :always) end
    end
  end

  describe "a loop that counts" do
    for steps <- [0, 1, 2, 3, 9, 1_000] do
      test "a loop of #{steps} steps whose trip count is known computes what it computes with its condition read" do
        run = fn opts ->
          inputs = [
            scalar(0),
            Array.from_list([0.0, 1.0], :f32),
            scalar(unquote(steps)),
            Array.from_list([1.0, 4.0], :f32)
          ]

          for array <- Program.run(adding(opts), inputs), do: Array.to_list(array)
        end

        assert [[x, y], _sum] = run.(counts?: true)
        assert [x, y] == [unquote(steps) * 0.5, 1.0 + unquote(steps) * 2.0]
        assert run.(counts?: true) == run.([])
        assert run.(counts?: true, run_ahead: 1) == run.([])
      end
    end

    test "the counter of a loop whose trip count is known wraps around as its type does" do
      # Counts by 100 from 100 up to 250 in 8 bits: 100, 200, 44, 144, 244, 88, 188, 32, 132, 232, 76, 176, 20, 120,
      # 220, 64, 164, 8, …
      steps = Stream.iterate(100, &rem(&1 + 100, 256)) |> Enum.find_index(&(&1 >= 250))
      body = {3, [constant(100, :u8), constant(1), {:add, [0, 3], 1}, {:add, [1, 4], 1}], [5, 6]}
      loop = {:while, %{condition: {3, [{:less, [0, 2], 1}], [3]}, body: body}}
      program = Program.new(3, [{loop, [0, 1, 2], 2}], [3, 4])
      outputs = Program.run(program, [scalar(100, :u8), scalar(0), scalar(250, :u8)])
      assert [last, ^steps] = Enum.map(outputs, &Array.to_list/1)
      assert last >= 250
    end

    test "a loop whose trip count is known may have loops, branches and calls in its steps" do
      # Three steps: x grows by the n steps of an inner loop, is doubled if even, and then passed to the caller's
      # function.
      inner = {:while, %{condition: {3, [{:less, [0, 1], 1}], [3]}, body: {3, [{:add, [0, 2], 1}], [3]}}}
      branch = {:if, %{then: {1, [], [0]}, else: {1, [{:add, [0, 0], 1}], [1]}}}

      body =
        {4,
         [
           {inner, [1, 2, 3], 1},
           constant(2),
           {:remainder, [4, 5], 1},
           {branch, [6, 4], 1},
           {{:call, %{id: 0, outputs: [{[], :s32}]}}, [7], 1},
           {:add, [0, 3], 1}
         ], [9, 8]}

      three = constant(3)
      loop = {:while, %{condition: {4, [three, {:less, [0, 4], 1}], [5]}, body: body}}
      program = Program.new(4, [{loop, [0, 1, 2, 3], 2}], [5])
      caller = fn [x] -> [Ops.subtract(x, scalar(1))] end
      [x] = Program.run(program, [scalar(0), scalar(1), scalar(4), scalar(1)], calls: %{0 => caller})
      # 1 → 4 → 8 → 7; 7 is not below 4, and odd → 6; 6 → 12 → 11.
      assert Array.to_list(x) == 11
    end

    test "a loop whose trip count is known lets other work of its queue pass, and ends with its process" do
      queue = Queue.start(device: :cpu)
      x = EMLX.eval(Ops.zeros({16_384}, :f32))
      pid = spawn(fn -> Program.run(counting(), [scalar(0), x, scalar(500_000)], queue: queue) end)
      assert Poll.until(fn -> waits?(pid) end)
      assert serves?(queue)
      assert Process.alive?(pid)
      Process.exit(pid, :kill)
      assert serves?(queue)
    end
  end

  describe "memory" do
    @describetag :timing

    for {steps, slow?} <- [{10_000, false}, {100_000, true}] do
      if slow?, do: @tag(:slow)

      test "a loop of #{steps} steps takes the memory of one step" do
        program = counting()
        x = EMLX.eval(Ops.zeros({16_384}, :f32))
        before = Poll.settled_memory()
        Memory.reset_peak()
        [i, x] = Program.run(program, [scalar(0), x, scalar(unquote(steps))])
        assert Array.to_list(i) == unquote(steps)
        assert Array.to_list(Ops.min(x)) == unquote(steps) * 1.0
        # The state is 64 KiB: the previous one, the new one, and states that are not freed yet.
        assert Memory.peak() - before < @mib
      end
    end

    for {times, slow?} <- [{500, false}, {10_000, true}] do
      if slow?, do: @tag(:slow)

      test "#{times} runs of programs leave no memory behind" do
        count = counting()
        branch = {:if, %{then: {1, [{:negative, [0], 1}], [1]}, else: {1, [], [0]}}}
        other = asking([{[256], :f32}], [{branch, [0, 1], 1}, {:add, [2, 1], 1}], [3])
        straight = Program.new(2, [{:divmod, [0, 1], 2}, {:add, [2, 3], 1}], [4])
        x = EMLX.eval(Ops.ones({256}, :f32))

        runs = fn times ->
          for n <- 1..times do
            [_, y] = Program.run(count, [scalar(0), x, scalar(rem(n, 3))])
            [z] = Program.run(other, [scalar(rem(n, 2))], calls: %{0 => fn [_] -> [y] end})
            [s] = Program.run(straight, [z, x])
            EMLX.eval(s)
          end

          :ok
        end

        Task.await(Task.async(fn -> runs.(100) end), :infinity)
        {active, resident} = {Poll.settled_memory(), EMLX.Resident.bytes()}
        Task.await(Task.async(fn -> runs.(unquote(times)) end), :infinity)
        assert_given_back(active)
        assert EMLX.Resident.bytes() - resident < 64 * @mib
      end
    end

    test "a program that is dropped frees its constants" do
      before = Poll.settled_memory()

      Task.await(
        Task.async(fn ->
          big = EMLX.eval(Ops.ones({2 * @mib}, :f32))

          program =
            Program.new(0, [{:sum |> then(&{&1, %{axes: nil, keepdims: false}}), [0], 1}], [1], constants: [big])

          assert [sum] = Program.run(program, [])
          assert Array.to_list(sum) == 2.0 * @mib
        end)
      )

      assert_given_back(before)
    end
  end

  describe "a caller that dies" do
    test "a caller that dies in a loop ends the loop, and the queue serves others" do
      queue = Queue.start()
      before = Poll.settled_memory()
      pid = start_endless(queue)
      Process.exit(pid, :kill)
      assert serves?(queue)
      assert Array.to_list(hd(Program.run(counting(), [scalar(0), scalar(0.0, :f32), scalar(10)], queue: queue))) == 10
      # The queue's thread holds nothing of the loop any more.
      assert_given_back(before)
    end

    test "a caller that dies in a call frees what the run held, and the queue serves others meanwhile" do
      queue = Queue.start()
      # The run holds 8 MiB during the call.
      big = {{:full, %{shape: [2 * @mib], dtype: :f32}}, [0], 1}
      program = Program.new(1, [big, {{:call, %{id: 0, outputs: []}}, [1], 0}, {:add, [1, 0], 1}], [2])
      before = Poll.settled_memory()
      me = self()

      forever = fn [array] ->
        EMLX.eval(array)
        send(me, {:holds, Memory.active()})
        Process.sleep(:infinity)
      end

      pid = spawn(fn -> Program.run(program, [scalar(1.0, :f32)], calls: %{0 => forever}, queue: queue) end)
      assert_receive {:holds, holds}, 5_000
      assert holds - before > 7 * @mib
      for _ <- 1..10, do: assert(serves?(queue))
      Process.exit(pid, :kill)
      assert_given_back(before)
    end
  end

  describe "a call that fails" do
    test "a call that fails ends the run, and its exception passes on with its stacktrace" do
      queue = Queue.start()
      program = asking([{[], :s32}])
      before = Poll.settled_memory()

      for {kind, fail} <- [
            {:error, fn _ -> raise(ArithmeticError, "no") end},
            {:throw, fn _ -> throw(:no) end},
            {:exit, fn _ -> exit(:no) end}
          ] do
        caught =
          try do
            Program.run(program, [scalar(1)], calls: %{0 => fail}, queue: queue)
          catch
            kind, reason -> {kind, reason, __STACKTRACE__}
          end

        assert {^kind, reason, stacktrace} = caught
        assert reason in [:no, %ArithmeticError{message: "no"}]
        assert Enum.any?(stacktrace, fn {module, _, _, _} -> module == __MODULE__ end)
      end

      assert serves?(queue)
      refute_received _
      assert_given_back(before)
    end

    test "a call's answer is taken once, and an invalid one ends the run" do
      program = asking([{[], :s32}])

      question = fn ->
        tag = make_ref()
        :ok = Native.program_run(program.ref, [scalar(1).ref], nil, tag)
        assert_receive {^tag, {:call, 0, [%Array{} = array], suspended}}, 5_000
        {tag, array, suspended}
      end

      {tag, array, suspended} = question.()
      assert {:ok, :ok} = Native.program_resume(suspended, {:ok, [array.ref]})
      assert_receive {^tag, {:ok, [result]}}, 5_000
      assert Array.to_list(result) == 1
      assert {:error, %{reason: "the run was already answered"}} = Native.program_resume(suspended, {:ok, [array.ref]})
      assert {:error, %{reason: "the run was already answered"}} = Native.program_resume(suspended, :error)

      # An invalid answer ends the run, too, since no other one would follow.
      for bad <- [:maybe, {:ok, :array}, {:ok, [1]}, {:no, []}, {:ok, [array.ref | 1]}, 1] do
        {_tag, _array, suspended} = question.()
        assert {:error, %{kind: kind}} = Native.program_resume(suspended, bad)
        assert kind in [:bad_argument, :invalid_argument]
        assert {:error, %{reason: "the run was already answered"}} = Native.program_resume(suspended, :error)
      end

      for bad <- [make_ref(), program.ref, array.ref, nil], do: assert({:error, _} = Native.program_resume(bad, :error))
    end
  end

  describe "late failures" do
    setup do
      %{singular: Ops.zeros({2, 2}, :f32), regular: Ops.eye(2)}
    end

    test "a late failure of an input or a constant is raised before the run computes", %{
      singular: singular,
      regular: regular
    } do
      program = asking([{[2, 2], :f32}], [{:add, [1, 0], 1}], [2])
      run = fn x -> Program.run(program, [x], calls: %{0 => fn [x] -> [Ops.multiply(x, 2)] end}) end
      assert_raise Error, ~r/Inverse/, fn -> run.(Ops.inv(singular)) end
      assert Array.to_list(hd(run.(Ops.inv(regular)))) == [[3.0, 0.0], [0.0, 3.0]]

      constant =
        Program.new(1, [{{:if, %{then: {0, [], []}, else: {0, [], []}}}, [0], 0}], [1], constants: [Ops.inv(singular)])

      assert_raise Error, ~r/Inverse/, fn -> Program.run(constant, [scalar(1)]) end
    end

    test "a late failure that a call's inputs depend on ends the run", %{singular: singular, regular: regular} do
      program = Program.new(1, [{:inv, [0], 1}, {{:call, %{id: 0, outputs: []}}, [1], 0}, {:square, [1], 1}], [2])
      me = self()

      run = fn x ->
        Program.run(program, [x], calls: %{0 => fn [_] -> send(me, :asked) && [] end})
      end

      assert_raise Error, ~r/Inverse/, fn -> run.(singular) end
      refute_received :asked
      assert Array.to_list(hd(run.(regular))) == [[1.0, 0.0], [0.0, 1.0]]
      assert_received :asked
    end

    test "a late failure that only outputs depend on reaches their readers", %{singular: singular, regular: regular} do
      # The call is between the inverse and its use, and does not depend on it.
      program = Program.new(1, [{:inv, [0], 1}, {{:call, %{id: 0, outputs: []}}, [0], 0}, {:square, [1], 1}], [2, 0])
      run = fn x -> Program.run(program, [x], calls: %{0 => fn [_] -> [] end}) end
      [bad, same] = run.(singular)
      assert_raise Error, ~r/Inverse/, fn -> Array.to_list(bad) end
      assert_raise Error, ~r/Inverse/, fn -> Array.to_list(Ops.add(bad, 1)) end
      assert Array.to_list(same) == [[0.0, 0.0], [0.0, 0.0]]
      assert Array.to_list(hd(run.(regular))) == [[1.0, 0.0], [0.0, 1.0]]
    end

    test "a late failure of what a call returns ends the run", %{singular: singular} do
      program = asking([{[2, 2], :f32}], [{:square, [1], 1}], [2])

      assert_raise Error, ~r/Inverse/, fn ->
        Program.run(program, [singular], calls: %{0 => fn [x] -> [Ops.inv(x)] end})
      end

      answer = %{0 => fn [x] -> [Ops.add(x, 3)] end}
      assert Array.to_list(hd(Program.run(program, [singular], calls: answer))) == [[9.0, 9.0], [9.0, 9.0]]
    end

    test "a late failure in a loop's body ends the run, one after the loop does not", %{
      singular: singular,
      regular: regular
    } do
      body = {3, [constant(1), {:subtract, [0, 3], 1}, {:inv, [1], 1}], [4, 5, 2]}
      loop = {{:while, %{condition: {3, [], [0]}, body: body}}, [0, 1, 1], 3}
      program = Program.new(2, [loop, {:inv, [1], 1}], [3, 5])
      assert_raise Error, ~r/instruction 0, while.*Inverse/s, fn -> Program.run(program, [scalar(2), singular]) end
      [x, y] = Program.run(program, [scalar(0), singular])
      # The loop had no step, so the state is the initial one.
      assert Array.to_list(x) == [[0.0, 0.0], [0.0, 0.0]]
      assert_raise Error, ~r/Inverse/, fn -> Array.to_list(y) end
      assert [[[1.0, _], _], [[1.0, _], _]] = Enum.map(Program.run(program, [scalar(3), regular]), &Array.to_list/1)
    end

    test "a late failure does not affect other runs and arrays", %{singular: singular, regular: regular} do
      good = Ops.inv(regular)
      program = Program.new(2, [{{:if, %{then: {1, [{:inv, [0], 1}], [1]}, else: {1, [], [0]}}}, [0, 1], 1}], [2])

      results =
        1..40
        |> Enum.map(fn i ->
          Task.async(fn ->
            input = if rem(i, 2) == 0, do: singular, else: good

            [x] = Program.run(program, [scalar(1), input])

            try do
              Array.to_list(x)
            rescue
              error in Error -> error.kind
            end
          end)
        end)
        |> Task.await_many(30_000)

      for {result, i} <- Enum.with_index(results, 1) do
        assert result == if(rem(i, 2) == 0, do: :mlx, else: [[1.0, 0.0], [0.0, 1.0]])
      end

      assert Array.to_list(good) == [[1.0, 0.0], [0.0, 1.0]]
    end
  end

  describe "a queue" do
    test "a queue that is closed ends the runs on it" do
      queue = Queue.start()

      tasks =
        for _ <- 1..2 do
          Task.async(fn -> catch_error(Program.run(endless(), [scalar(0)], queue: queue)) end)
        end

      assert Poll.until(fn -> Enum.all?(tasks, &waits?(&1.pid)) end)
      assert serves?(queue)
      Queue.close(queue)
      for error <- Task.await_many(tasks, 10_000), do: assert(%Error{kind: :queue_closed} = error)
      error = catch_error(Program.run(endless(), [scalar(0)], queue: queue))
      assert %Error{kind: :queue_closed} = error
    end

    test "a queue that is closed during a call ends the run at the call's answer" do
      queue = Queue.start()

      close = fn [x] ->
        Queue.close(queue)
        [x]
      end

      error = catch_error(Program.run(asking([{[], :s32}]), [scalar(1)], calls: %{0 => close}, queue: queue))
      assert %Error{kind: :queue_closed} = error
    end

    test "a queue that only a run refers to lives until the run's end" do
      program = counting()
      run = fn -> Program.run(program, [scalar(0), scalar(0.0, :f32), scalar(3_000)], queue: Queue.start()) end
      task = Task.async(run)
      for _ <- 1..20, do: :erlang.garbage_collect(task.pid) && Process.sleep(2)
      assert [i, _] = Task.await(task, 30_000)
      assert Array.to_list(i) == 3_000
    end

    test "long runs share a queue" do
      queue = Queue.start()
      # Two endless loops: other jobs run between them.
      pids = for _ <- 1..2, do: start_endless(queue)

      results =
        for _ <- 1..2 do
          Task.async(fn -> Program.run(counting(), [scalar(0), scalar(0.0, :f32), scalar(2_000)], queue: queue) end)
        end
        |> Task.await_many(60_000)

      for [i, x] <- results do
        assert {number(i, queue), number(x, queue)} == {2_000, 2_000.0}
      end

      assert Enum.all?(pids, &Process.alive?/1)
      for pid <- pids, do: Process.exit(pid, :kill)
      assert serves?(queue)
    end
  end

  # MLX is torn down when the process exits; a queue's thread must not run in it then.
  test "the VM exits cleanly in the middle of runs" do
    paths = Enum.flat_map(:code.get_path(), &["-pa", to_string(&1)])

    code = """
    one = {{:constant, %{value: 1, dtype: :s32}}, [], 1}
    loop = {:while, %{condition: {1, [one], [1]}, body: {1, [one, {:add, [0, 1], 1}], [2]}}}
    program = EMLX.Program.new(1, [{loop, [0], 1}], [1])
    run = fn -> EMLX.Program.run(program, [EMLX.Array.scalar(0, :s32)], queue: EMLX.Queue.start()) end
    for _ <- 1..2, do: spawn(run)
    Process.sleep(50)
    """

    for _ <- 1..3 do
      assert {"", 0} = System.cmd("elixir", paths ++ ["-e", code], stderr_to_stdout: true)
    end
  end
end
