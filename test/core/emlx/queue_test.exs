defmodule EMLX.QueueTest do
  use ExUnit.Case, async: false

  alias EMLX.{Array, Error, Ops, Program, Queue}

  doctest EMLX.Queue
  doctest EMLX.CommandQueue

  # A computation of a few nodes with a known result: 3n + 2 + … of n elements.
  defp work(n) do
    x = Ops.full(Array.scalar(n, :s64), {8192}, :s64)
    Enum.reduce(1..20, x, fn i, acc -> Ops.add(acc, Ops.multiply(x, i)) end) |> Ops.sum()
  end

  defp answer(n), do: 8192 * n * (1 + div(20 * 21, 2))

  test "an array that was created on one queue is read on another" do
    [first, second] = for _ <- 1..2, do: Queue.start()
    a = Queue.with(first, fn -> work(3) end)
    b = Queue.with(second, fn -> Ops.add(a, work(4)) end)
    assert Array.to_list(b) == answer(3) + answer(4)
    assert Queue.with(second, fn -> Array.to_list(a) end) == answer(3)
  end

  test "with/2 sets the queue of the calling process until its function returns" do
    queue = Queue.start()

    catch_error(Queue.with(queue, fn -> raise "out" end))
    assert Process.get(Queue) == nil

    Queue.with(queue, fn ->
      assert Process.get(Queue) == queue
      assert Task.await(Task.async(fn -> Process.get(Queue) end)) == nil
    end)
  end

  test "unknown options are refused" do
    a = Array.scalar(1.0, :f32)

    for {call, words} <- [
          {fn -> Queue.start(devise: :gpu) end, ~r/unknown keys \[:devise\]/},
          {fn -> EMLX.eval(a, qeue: 1) end, ~r/unknown keys \[:qeue\]/},
          {fn -> EMLX.device_info(devise: :gpu) end, ~r/unknown keys \[:devise\]/},
          {fn -> Ops.run(:abs, [a], devise: :cpu) end, ~r/unknown keys \[:devise\]/},
          {fn -> Ops.run(:abs, [a], queue: :cpu) end, ~r/:queue must be an EMLX.Queue/},
          {fn -> Ops.run(:abs, [a], queue: Queue.start(), device: :gpu) end, ~r/on the same device as :device/},
          {fn -> Ops.run(:abs, [a], %{device: :cpu}) end, ~r/options are a keyword list/}
        ] do
      assert_raise ArgumentError, words, call
    end

    assert Array.to_list(Ops.run(:abs, [a], queue: Queue.start(), device: :cpu)) == 1.0
  end

  test "a closed queue returns an error, and its arrays stay usable" do
    queue = Queue.start()
    a = Queue.with(queue, fn -> work(5) end)
    assert Queue.close(queue) == :ok
    assert Queue.close(queue) == :ok
    error = assert_raise Error, fn -> EMLX.eval(a, queue: queue) end
    assert error.kind == :queue_closed
    assert_raise Error, fn -> EMLX.async_eval(a, queue: queue) end
    assert_raise Error, fn -> Queue.with(queue, fn -> Array.to_binary(work(1)) end) end
    assert Array.to_list(a) == answer(5)
  end

  test "synchronize/1 waits for all jobs that were submitted before" do
    queue = Queue.start()
    heavy = Ops.matmul(Ops.ones({1500, 1500}, :f64), Ops.ones({1500, 1500}, :f64))
    EMLX.async_eval(heavy, queue: queue)
    assert Queue.synchronize(queue) == :ok

    # Computed arrays are returned immediately, without a job on a queue, except while a thread holds the graph.
    given? = fn -> match?({:ok, binary} when is_binary(binary), EMLX.Native.read(heavy.ref, nil, make_ref())) end
    assert Enum.any?(1..20, fn _ -> given?.() or Process.sleep(1) != :ok end)

    Queue.close(queue)
    assert %{kind: :queue_closed} = assert_raise(Error, fn -> Queue.synchronize(queue) end)
  end

  test "the C++ EMLX's functions return a queue, or an error for an absent device" do
    assert {:ok, %EMLX.CommandQueue{ref: ref, device: :cpu} = queue} = EMLX.CommandQueue.new(:cpu)
    assert EMLX.CommandQueue.with_queue(queue, fn -> Process.get(Queue) end) == %Queue{ref: ref, device: :cpu}

    if not EMLX.device_available?(:gpu) do
      assert {:error, words} = EMLX.CommandQueue.new(:gpu)
      assert words =~ "there is no device :gpu"
      error = assert_raise EMLX.NIFError, fn -> EMLX.CommandQueue.new!(:gpu) end
      assert %Error{kind: :no_device} = error.error
    end
  end

  test "callers that wait when a queue closes receive an error" do
    for _ <- 1..20 do
      queue = Queue.start()
      heavy = Ops.matmul(Ops.ones({300, 300}, :f32), Ops.ones({300, 300}, :f32))

      tasks =
        for _ <- 1..8 do
          Task.async(fn ->
            try do
              EMLX.eval(Ops.add(heavy, 1.0), queue: queue)
              :done
            rescue
              error in Error -> error.kind
            end
          end)
        end

      Queue.close(queue)
      assert Enum.all?(Task.await_many(tasks, 30_000), &(&1 in [:done, :queue_closed]))
    end
  end

  @tag :timing
  test "the thread of a queue ends when nothing refers to the queue" do
    threads = fn -> length(File.ls!("/proc/self/task")) end

    if File.dir?("/proc/self/task") do
      rounds = fn count ->
        for _ <- 1..count do
          Task.await(Task.async(fn -> Queue.with(Queue.start(), fn -> Array.to_list(work(1)) end) end))
        end
      end

      # Streams are reused by later queues; after the first rounds no new ones are created.
      rounds.(20)
      Process.sleep(100)
      before = threads.()
      rounds.(200)
      assert EMLX.Poll.until(fn -> threads.() <= before + 4 end)
    end
  end

  describe "small graphs, which their callers submit" do
    # MLX refuses this length when it is submitted.
    defp refused, do: Ops.run({:hadamard_transform, %{scale: 1.0}}, [Ops.ones({17}, :f32)])

    test "a small graph that cannot be submitted fails for its waiting callers only" do
      for queue <- [nil, Queue.start()], _ <- 1..20 do
        run = fn ->
          EMLX.async_eval(refused())
          assert %Error{op: "eval"} = assert_raise(Error, ~r/hadamard/, fn -> EMLX.eval(refused()) end)
          assert %Error{op: "to_binary"} = assert_raise(Error, ~r/hadamard/, fn -> Array.to_binary(refused()) end)
          assert Array.to_list(Ops.add(Array.scalar(1, :s64), 2)) == 3
        end

        if queue, do: Queue.with(queue, run), else: run.()
      end
    end

    test "a small graph's result is read in row-major order, whatever its memory layout" do
      for _ <- 1..50 do
        a = Array.from_list([[0, 1, 2], [3, 4, 5]], :s32)
        assert Array.to_list(Ops.transpose(a, [1, 0])) == [[0, 3], [1, 4], [2, 5]]
        assert Array.to_list(Ops.broadcast_to(Array.scalar(7, :s32), {2, 2})) == [[7, 7], [7, 7]]
        assert Array.to_list(Ops.zeros({0, 3}, :f32)) == []
      end
    end

    test "a small graph runs after the jobs that its queue received before" do
      queue = Queue.start()

      for _ <- 1..20 do
        # A graph too large to be submitted by its caller, and operations that depend on it.
        last = Enum.reduce(1..500, Array.scalar(0, :s64), fn _, sum -> Ops.add(sum, 1) end)
        EMLX.async_eval(last, queue: queue)
        assert Array.to_list(Ops.add(last, 1)) == 501
        assert Queue.with(queue, fn -> Array.to_list(Ops.add(last, 2)) end) == 502
      end
    end

    test "a killed caller does not block the queue" do
      for _ <- 1..200 do
        pid = spawn(fn -> for(_ <- 1..10, do: EMLX.eval(work(3))) end)
        Process.exit(pid, :kill)
      end

      assert Array.to_list(work(2)) == answer(2)
    end

    test "small graphs and computations that fail late do not affect each other" do
      queues = [nil, Queue.start()]
      singular = Ops.zeros({2, 2}, :f32)

      results =
        1..200
        |> Enum.map(fn i ->
          Task.async(fn ->
            opts = if queue = Enum.at(queues, rem(i, 2)), do: [queue: queue], else: []

            if rem(i, 5) == 0 do
              inverse = Ops.run(:inv, [singular], opts)
              assert_raise(Error, ~r/Inverse/, fn -> Array.to_binary(inverse, opts) end).kind
            else
              Ops.run(:add, [Array.scalar(i, :s32), Array.scalar(1, :s32)], opts) |> Array.to_binary(opts)
            end
          end)
        end)
        |> Task.await_many(30_000)

      for {result, i} <- Enum.with_index(results, 1),
          do: assert(result == if(rem(i, 5) == 0, do: :mlx, else: <<i + 1::32-native>>))
    end
  end

  test "a computed array is returned immediately, even on a busy queue" do
    queue = Queue.start()
    a = EMLX.eval(work(3))
    heavy = Ops.matmul(Ops.ones({1500, 1500}, :f32), Ops.ones({1500, 1500}, :f32))
    EMLX.async_eval(heavy, queue: queue)
    # On the queue, both would run after the product.
    assert EMLX.eval([a], queue: queue) == [a]
    assert Array.to_binary(a, queue: queue) == <<answer(3)::64-native>>
    EMLX.eval(heavy)
    Queue.close(queue)
    assert_raise Error, fn -> EMLX.eval(a, queue: queue) end
  end

  test "async_eval does not wait, and callers that run far ahead are throttled" do
    a = Array.scalar(1, :s64)

    last =
      Enum.reduce(1..2_000, a, fn _, acc -> EMLX.async_eval(Ops.add(acc, 1)) end)

    assert Array.to_list(last) == 2_001
  end

  @tag :slow
  @tag :timing
  @tag timeout: 300_000
  test "64 processes, killed at random, get right results on shared and own queues, and leak nothing" do
    seed = "EMLX_SEED" |> System.get_env("1") |> String.to_integer()
    :rand.seed(:exsss, seed)
    EMLX.eval(work(1))
    settle()
    before = EMLX.Memory.active()

    for queues <- [[nil], [nil | for(_ <- 1..5, do: Queue.start())]], _round <- 1..3 do
      shared = work(7)
      parent = self()

      workers =
        for i <- 1..64 do
          queue = Enum.random(queues)

          run = fn ->
            for n <- 1..12 do
              assert Array.to_list(work(i * n)) == answer(i * n)
              # All of them also evaluate one shared graph.
              assert Array.to_list(Ops.add(shared, n)) == answer(7) + n
            end

            send(parent, {:done, i})
          end

          {i, spawn_monitor(fn -> if queue, do: Queue.with(queue, run), else: run.() end)}
        end

      {killed, kept} = Enum.split(Enum.shuffle(workers), 24)

      for {_, {pid, _}} <- killed do
        Process.sleep(:rand.uniform(4))
        Process.exit(pid, :kill)
      end

      for {i, {_, monitor}} <- kept do
        assert_receive {:DOWN, ^monitor, :process, _, :normal}, 60_000, "seed #{seed}: worker #{i}"
        assert_receive {:done, ^i}
      end

      for {_, {_, monitor}} <- killed, do: assert_receive({:DOWN, ^monitor, _, _, _}, 60_000)
      assert Array.to_list(work(2)) == answer(2)
    end

    settle()
    assert EMLX.Memory.active() - before < 1_000_000
  end

  test "failures of many computations do not block later ones" do
    singular = Array.from_list([[1.0, 2.0], [2.0, 4.0]], :f32)

    for _ <- 1..8 do
      queue = Queue.start()

      for _ <- 1..40 do
        failed =
          Enum.reduce(1..25, Ops.run(:inv, [singular], queue: queue), fn _, a -> Ops.run(:add, [a, a], queue: queue) end)

        assert_raise EMLX.Error, fn -> Array.to_binary(failed, queue: queue) end
      end
    end

    work = fn ->
      sum = Enum.reduce(1..5_000, Array.scalar(0, :s64), fn _, sum -> Ops.add(sum, 1) end)
      Array.to_list(sum)
    end

    assert 1..20 |> Enum.map(fn _ -> Task.await(Task.async(work), 30_000) end) |> Enum.uniq() == [5_000]
  end

  test "results and errors of linear algebra reach their own callers under load" do
    good = Ops.eye(3)
    bad = Ops.zeros({3, 3}, :f32)

    results =
      1..64
      |> Enum.map(fn i ->
        Task.async(fn ->
          matrix = if rem(i, 3) == 0, do: bad, else: good

          try do
            Array.to_list(Ops.sum(Ops.inv(matrix)))
          rescue
            error in Error -> error.kind
          end
        end)
      end)
      |> Task.await_many(30_000)

    for {result, i} <- Enum.with_index(results, 1) do
      assert result == if(rem(i, 3) == 0, do: :mlx, else: 3.0)
    end
  end

  describe "programs" do
    test "a program replays its instructions and returns its outputs" do
      program =
        Program.new(2, [{:add, [0, 1], 1}, {:divmod, [2, 1], 2}, {{:sum, %{axes: nil, keepdims: false}}, [3], 1}], [
          5,
          4
        ])

      a = Array.from_list([10, 20, 30], :s32)
      b = Array.scalar(7, :s32)
      assert [sum, remainder] = Program.run(program, [a, b])
      assert Array.to_list(sum) == 2 + 3 + 5
      assert Array.to_list(remainder) == [3, 6, 2]
    end

    test "an error of a program names the instruction that does not fit" do
      assert_raise Error, ~r/instruction 0 \(add\) takes value 5/, fn ->
        Program.new(1, [{:add, [0, 5], 1}], [1])
      end

      assert_raise Error, ~r/output 9/, fn -> Program.new(1, [{:abs, [0], 1}], [9]) end
      assert_raise Error, ~r/unknown operation/, fn -> Program.new(1, [{:nope, [0], 1}], [1]) end

      program = Program.new(2, [{:abs, [0], 1}, {:matmul, [2, 1], 1}], [3])
      a = Ops.ones({2, 3}, :f32)
      assert_raise Error, ~r/instruction 1, matmul/, fn -> Program.run(program, [a, a]) end
      assert_raise Error, ~r/takes 2 inputs, got 1/, fn -> Program.run(program, [a]) end
    end

    test "a late failure in a program reaches the readers of its outputs" do
      program = Program.new(1, [{:inv, [0], 1}, {:square, [1], 1}], [2])
      [bad] = Program.run(program, [Ops.zeros({2, 2}, :f32)])
      [good] = Program.run(program, [Ops.eye(2)])
      assert_raise Error, ~r/Inverse/, fn -> Array.to_list(bad) end
      assert_raise Error, ~r/Inverse/, fn -> Array.to_list(Ops.add(bad, 1)) end
      assert Array.to_list(good) == [[1.0, 0.0], [0.0, 1.0]]
    end
  end

  # Collects the garbage of all processes.
  defp settle do
    for _ <- 1..5 do
      for pid <- Process.list(), do: :erlang.garbage_collect(pid)
      Process.sleep(20)
    end
  end
end
