defmodule EMLX.CompilerTest do
  # Not async: telemetry, memory and the compile cache are shared by all processes.
  use EMLX.NxCase, async: false

  import EMLX.TelemetryRecorder, only: [record: 1, record_blocks: 1]
  import Nx.Defn

  alias EMLX.Compiler.Cache

  @moduletag :capture_log

  setup do
    {_, device} = backend()
    %{opts: [compiler: EMLX] ++ device}
  end

  # Returns the number of traces during `fun`, and its result.
  defp traces(fun) do
    id = make_ref()
    counter = :counters.new(1, [])
    :telemetry.attach(id, [:emlx, :trace, :stop], fn _, _, _, _ -> :counters.add(counter, 1, 1) end, nil)
    result = fun.()
    :telemetry.detach(id)
    {:counters.get(counter, 1), result}
  end

  # Returns the calls of native functions that `fun` makes in this process, and its result.
  defp native_calls(fun) do
    me = self()

    tracer =
      spawn_link(fn ->
        collect = fn collect, calls ->
          receive do
            {:trace, ^me, :call, {_module, name, _args}} -> collect.(collect, [name | calls])
            {:finish, from} -> send(from, {:calls, Enum.reverse(calls)})
          end
        end

        collect.(collect, [])
      end)

    :erlang.trace_pattern({EMLX.Native, :_, :_}, true, [:local])
    :erlang.trace(me, true, [:call, {:tracer, tracer}])
    result = fun.()
    :erlang.trace(me, false, [:call])
    :erlang.trace_pattern({EMLX.Native, :_, :_}, false, [:local])
    # The trace messages have arrived when the tracer confirms it.
    ref = :erlang.trace_delivered(me)
    receive do: ({:trace_delivered, ^me, ^ref} -> :ok)
    send(tracer, {:finish, me})
    receive do: ({:calls, calls} -> {Enum.reject(calls, &(&1 in [:call!, :await!])), result})
  end

  defn(polynomial(x, w), do: Nx.sum(x * w + Nx.exp(x) * w))

  describe "the cache" do
    test "the cache traces a function once for each signature", %{opts: opts} do
      fun = jit(fn x, w -> Nx.add(x, Nx.sum(w)) end, opts)
      x = Nx.tensor([1.0, 2.0])

      assert {1, a} = traces(fn -> fun.(x, 3) end)
      assert {0, b} = traces(fn -> fun.(Nx.tensor([4.0, 5.0]), 3) end)
      assert_same(a, Nx.tensor([4.0, 5.0]))
      assert_same(b, Nx.tensor([7.0, 8.0]))
      # Another shape, another type, other names, other vectorized axes.
      assert {1, _} = traces(fn -> fun.(Nx.tensor([1.0]), 3) end)
      assert {1, _} = traces(fn -> fun.(Nx.tensor([1, 2]), 3) end)
      assert {1, named} = traces(fn -> fun.(Nx.tensor([1.0, 2.0], names: [:a]), 3) end)
      assert named.names == [:a]
      assert {1, vectorized} = traces(fn -> fun.(Nx.vectorize(x, :b), 3) end)
      assert vectorized.vectorized_axes == [b: 2]
      assert {0, _} = traces(fn -> fun.(x, 7) end)
    end

    test "the cache distinguishes functions by the terms they close over", %{opts: opts} do
      make = fn n -> jit(fn x -> Nx.multiply(x, n) end, opts) end
      assert {1, a} = traces(fn -> make.(2).(10) end)
      assert {1, b} = traces(fn -> make.(3).(10) end)
      assert {0, c} = traces(fn -> make.(2).(11) end)
      assert Enum.map([a, b, c], &Nx.to_number/1) == [20, 30, 22]
    end

    test "the cache distinguishes containers by their structure", %{opts: opts} do
      fun = jit(fn map -> map |> Map.values() |> Enum.reduce(&Nx.add/2) end, opts)
      assert {1, _} = traces(fn -> fun.(%{a: 1, b: 2}) end)
      assert {1, c} = traces(fn -> fun.(%{a: 1, b: 2, c: 4}) end)
      assert Nx.to_number(c) == 7
    end

    test "Nx.Defn.compile/3 and jit_apply/3 share the cache", %{opts: opts} do
      template = Nx.template({3}, :f32)
      {1, compiled} = traces(fn -> Nx.Defn.compile(&polynomial/2, [template, template], opts) end)
      x = Nx.tensor([0.5, -1.0, 2.0])
      assert {0, result} = traces(fn -> compiled.(x, x) end)
      assert_same(result, Nx.Defn.jit_apply(&polynomial/2, [x, x], compiler: Nx.Defn.Evaluator))
      assert {0, again} = traces(fn -> Nx.Defn.jit_apply(&polynomial/2, [x, x], opts) end)
      assert_same(again, result)
    end

    test "the cache keeps the most recently used functions", %{opts: opts} do
      Application.put_env(:emlx, :compiler_cache, 20)
      on_exit(fn -> Application.delete_env(:emlx, :compiler_cache) end)
      EMLX.clear_compiler_cache()
      make = fn n -> jit_apply(fn x -> Nx.add(x, n) end, [1], opts) end
      for n <- 1..100, do: make.(n)
      assert EMLX.compiler_cache().entries <= 20
      assert {0, _} = traces(fn -> make.(100) end)
      assert {1, _} = traces(fn -> make.(1) end)
    end

    test "a call raises if the application is not started", %{opts: opts} do
      :ok = Supervisor.terminate_child(EMLX.Supervisor, Cache)
      on_exit(fn -> Supervisor.restart_child(EMLX.Supervisor, Cache) end)
      assert_raise RuntimeError, ~r/:emlx is not started/, fn -> jit_apply(&Nx.exp/1, [1], opts) end
      {:ok, _pid} = Supervisor.restart_child(EMLX.Supervisor, Cache)
      assert Nx.to_number(jit_apply(&Nx.negate/1, [1], opts)) == -1
    end

    test "cache: false traces at each call", %{opts: opts} do
      fun = jit(fn x -> Nx.add(x, 41) end, [cache: false] ++ opts)
      assert {2, _} = traces(fn -> {fun.(1), fun.(1)} end)
    end
  end

  describe "a run" do
    test "a run is one native call", %{opts: opts} do
      fun = fn x, w -> Enum.reduce(1..50, x, fn _, x -> Nx.tanh(Nx.add(Nx.multiply(x, w), 1)) end) end
      x = Nx.tensor([0.5, 0.25])
      compiled = Nx.Defn.compile(fun, [x, x], opts)
      assert {[call], result} = native_calls(fn -> compiled.(x, x) end)
      assert call in [:program_run, :program_run_dirty]
      assert_same(result, jit_apply(fun, [x, x], compiler: Nx.Defn.Evaluator), rtol: 1.0e-4)
    end

    test "a run with control flow is one native call", %{opts: opts} do
      x = Nx.tensor(0.5)
      compiled = Nx.Defn.compile(&iterate/2, [x, Nx.tensor(100)], opts)
      n = Nx.tensor(100)
      assert {[call], result} = native_calls(fn -> compiled.(x, n) end)
      assert call in [:program_run, :program_run_dirty]
      assert_same(result, jit_apply(&iterate/2, [x, 100], compiler: Nx.Defn.Evaluator), rtol: 1.0e-4)
    end

    test "a run does not wait for the previous one", %{opts: opts} do
      # Ten runs of a product, each on the previous result, are submitted while the first one is computed.
      a = Nx.eye(512, type: :f32)
      compiled = Nx.Defn.compile(fn a, b -> Nx.dot(a, b) end, [a, a], opts)
      compiled.(a, a) |> Nx.to_binary()
      {calls, result} = native_calls(fn -> Enum.reduce(1..10, a, fn _, b -> compiled.(a, b) end) end)
      # Only the runs were called, and no call waits for a message.
      assert length(calls) == 10
      assert_same(result, a)
    end

    test "a run takes tensors of any backend, and ignores unused ones", %{opts: opts} do
      fun = jit(fn a, _b, c -> Nx.subtract(a, c) end, opts)
      a = Nx.tensor([5, 6], backend: Nx.BinaryBackend)
      assert_same(fun.(a, Nx.tensor([1.0]), 2), Nx.tensor([3, 4]))
    end

    test "a run returns containers, inputs and constants unchanged", %{opts: opts} do
      x = Nx.tensor([1, 2])
      result = jit_apply(fn x -> %{same: x, pair: {Nx.add(x, 1), 7}} end, [x], opts)
      assert_same(result, %{same: x, pair: {Nx.tensor([2, 3]), Nx.tensor(7)}})
      assert %Nx.Tensor{data: %EMLX.Backend{}} = result.same
    end

    test "a run with fuse: true computes the same as without", %{opts: opts} do
      fun = fn x, n ->
        {y, _} = grown(Nx.multiply(Nx.sigmoid(Nx.add(Nx.sin(x), 1)), Nx.tanh(x)), n)
        Nx.sum(Nx.exp(Nx.negate(y)), axes: [1])
      end

      args = [Nx.iota({8, 16}, type: :f32) |> Nx.divide(100), Nx.tensor(3)]
      fused = jit_apply(fun, args, [fuse: true] ++ opts)
      assert_same(fused, jit_apply(fun, args, [fuse: false] ++ opts), rtol: 1.0e-5)
    end

    test "a run keeps names and vectorized axes", %{opts: opts} do
      x = Nx.vectorize(Nx.iota({2, 3}, names: [:rows, :columns], type: :f32), :rows)
      fun = fn x -> Nx.sum(Nx.sin(x), axes: [:columns], keep_axes: true) end
      assert_same(jit_apply(fun, [x], opts), fun.(x))
    end
  end

  defn grown(x, n) do
    while {x, n}, n > 0 do
      {Nx.cos(x) * 2 + 1, n - 1}
    end
  end

  defn iterate(x, n) do
    {x, _, _} =
      while {x, i = 0, n}, i < n do
        {Nx.sin(x) + 0.5, i + 1, n}
      end

    x
  end

  describe "captured tensors" do
    @tag :timing
    test "captured tensors are constants of the program, copied once", %{opts: opts} do
      captured = Nx.iota({1024, 256}, type: :f32, backend: Nx.BinaryBackend)
      compiled = Nx.Defn.compile(fn x -> Nx.sum(Nx.multiply(x, captured)) end, [Nx.template({}, :f32)], opts)
      Nx.to_number(compiled.(Nx.tensor(1.0)))
      :erlang.garbage_collect()
      before = EMLX.Memory.active()
      results = for i <- 1..20, do: compiled.(Nx.tensor(i / 1))

      for {result, i} <- Enum.with_index(results, 1),
          do: assert_in_delta(Nx.to_number(result), i * 3.4359e10, i * 1.0e7)

      assert EMLX.Memory.active() - before < 1_000_000
    end
  end

  describe "the program" do
    defp instructions(fun, args, opts) do
      {result, events} = record(fn -> jit_apply(fun, args, [cache: false] ++ opts) end)
      [count] = for {[:trace, :stop], measurements, _} <- events, do: measurements.instructions
      {count, result}
    end

    test "a program computes common subexpressions once", %{opts: opts} do
      x = Nx.tensor([1.0, 2.0])
      once = fn x -> Nx.add(Nx.exp(x), 2) end
      twice = fn x -> Nx.multiply(Nx.add(Nx.exp(x), 2), Nx.add(Nx.exp(x), 2)) end
      {n, _} = instructions(once, [x], opts)
      {m, result} = instructions(twice, [x], opts)
      assert m == n + 1
      assert_same(result, twice.(x))
    end

    test "a program has no dead code", %{opts: opts} do
      fun = fn x ->
        {q, _r} = Nx.LinAlg.qr(x)
        _ = Nx.exp(x)
        q
      end

      x = Nx.tensor([[1.0, 2.0], [3.0, 4.0]])
      {n, _} = instructions(fn x -> Nx.LinAlg.qr(x) end, [x], opts)
      {m, result} = instructions(fun, [x], opts)
      assert m < n
      assert_same(result, fun.(x))
    end

    test "operations without inputs become constants of the program", %{opts: opts} do
      fun = fn x -> Nx.add(x, Nx.sum(Nx.exp(Nx.divide(Nx.iota({4}), 3)))) end
      assert {1, result} = instructions(fun, [Nx.tensor(1.0)], opts)
      assert_same(result, fun.(Nx.tensor(1.0)))
    end

    test "large tensors are computed by the program and not stored as constants", %{opts: opts} do
      fun = fn x -> Nx.sum(Nx.add(Nx.iota({1024, 1024}, type: :f32), x)) end
      assert {3, _} = instructions(fun, [Nx.tensor(1.0)], opts)
    end
  end

  describe "control flow" do
    defn lazy(x) do
      cond do
        x > 10 -> x
        x > 5 -> told(x, 5)
        x > 0 -> told(x, 0)
        true -> told(x, -1)
      end
    end

    deftransformp(told(x, n), do: Nx.Defn.Kernel.hook(Nx.multiply(x, n), String.to_atom("branch#{n}")))

    test "cond runs only the branch that is taken", %{opts: opts} do
      me = self()
      hooks = for n <- [5, 0, -1], into: %{}, do: {:"branch#{n}", fn value -> send(me, {n, Nx.to_number(value)}) end}
      fun = jit(&lazy/1, [hooks: hooks] ++ opts)

      for {x, expected} <- [{20, 20}, {7, 35}, {3, 0}, {-4, 4}] do
        assert Nx.to_number(fun.(x)) == expected
      end

      assert_received {5, 35}
      assert_received {0, 0}
      assert_received {-1, 4}
      refute_received _
    end

    defn branches_of_several(x, y) do
      {a, %{b: b}} =
        if Nx.sum(x) > 0 do
          {x + y, %{b: Nx.as_type(y, {:s, 32})}}
        else
          {Nx.exp(x) * 1.0, %{b: Nx.as_type(Nx.sum(x), {:s, 32}) + Nx.broadcast(0, {2})}}
        end

      a + b
    end

    test "branches return containers", %{opts: opts} do
      for x <- [[1.0, 2.0], [-1.0, -2.0]] do
        args = [Nx.tensor(x), Nx.tensor([0.5, 1.5])]
        assert_same(jit_apply(&branches_of_several/2, args, opts), apply(&branches_of_several/2, args))
      end
    end

    defn shared(x) do
      a = Nx.exp(x)
      b = if x > 0, do: a + 1, else: a - 1
      c = if x > 1, do: Nx.sin(x) + a, else: Nx.sin(x)
      d = if x > 2, do: Nx.sin(x), else: b
      {a, b + c, d}
    end

    test "branches share common subexpressions with the enclosing scope", %{opts: opts} do
      for x <- [-0.5, 0.5, 1.5, 2.5] do
        assert_same(jit_apply(&shared/1, [x], opts), shared(x))
      end
    end

    test "cond takes any number of clauses", %{opts: opts} do
      # The expression that Nx's macro builds from its clauses.
      number = fn x, count ->
        clauses = for i <- 0..(count - 1), do: {Nx.equal(x, i), Nx.add(x, 100 * i)}
        Nx.Defn.Expr.cond(clauses, Nx.negate(x))
      end

      for count <- [1, 12, 13, 14, 100] do
        fun = jit(&number.(&1, count), opts)

        for x <- [0, 1, 5, count - 1, count, 1000] do
          expected = if x in 0..(count - 1), do: x + 100 * x, else: -x
          assert Nx.to_number(fun.(x)) == expected
        end
      end
    end

    @tag :slow
    @tag :timing
    test "a loop of 100,000 steps runs in constant memory", %{opts: opts} do
      compiled = Nx.Defn.compile(&iterate/2, [Nx.template({64}, :f32), Nx.template({}, :s32)], opts)
      x = Nx.broadcast(Nx.tensor(0.5), {64})
      Nx.to_binary(compiled.(x, Nx.tensor(10)))
      EMLX.Memory.reset_peak()
      before = EMLX.Memory.active()
      result = compiled.(x, Nx.tensor(100_000))
      assert_in_delta Nx.to_number(result[0]), 1.4973, 0.001
      assert EMLX.Memory.peak() - before < 1_000_000
    end
  end

  @tag :slow
  @tag :timing
  test "10,000 runs leak no memory", %{opts: opts} do
    x = Nx.broadcast(Nx.tensor(0.5), {1024})
    compiled = Nx.Defn.compile(fn x -> {Nx.add(Nx.sin(x), 1), Nx.sum(x)} end, [x], opts)
    run = fn n -> Enum.each(1..n, fn _ -> x |> compiled.() |> elem(1) |> Nx.to_number() end) end
    run.(100)
    :erlang.garbage_collect()
    before = EMLX.Memory.active()
    memory = :erlang.memory(:total)
    run.(10_000)
    :erlang.garbage_collect()
    assert EMLX.Memory.active() - before < 200_000
    assert :erlang.memory(:total) - memory < 20_000_000
  end

  describe "the calling process" do
    def double(value, opts) do
      send(opts[:pid], {:called, self(), value})
      Nx.multiply(value, 2)
    end

    defn calling(x, opts \\ []) do
      y = Nx.runtime_call(x, Nx.sin(x), opts, &__MODULE__.double/2)
      y + 1
    end

    test "a runtime call runs in the calling process", %{opts: opts} do
      me = self()
      fun = jit(fn x -> calling(x, pid: me) end, opts)
      x = Nx.tensor([0.5, 1.5])
      assert_same(fun.(x), Nx.add(Nx.multiply(Nx.sin(x), 2), 1))
      assert_received {:called, ^me, %Nx.Tensor{data: %EMLX.Backend{}}}
    end

    defn calling_in_loop(x, opts \\ []) do
      {x, _} =
        while {x, i = 0}, i < 3 do
          {Nx.runtime_call(x, x, opts, &__MODULE__.double/2), i + 1}
        end

      x
    end

    test "a runtime call in a loop runs in every step", %{opts: opts} do
      me = self()
      fun = jit(fn x -> calling_in_loop(x, pid: me) end, opts)
      assert Nx.to_number(fun.(5)) == 40
      assert_received {:called, ^me, _}
      assert_received {:called, ^me, _}
      assert_received {:called, ^me, _}
    end

    test "an exception of a runtime call reaches the caller, and the queue keeps running", %{opts: opts} do
      callback = fn _value, _opts -> raise "out of luck" end
      fun = jit(fn x -> Nx.runtime_call(x, x, [], callback) end, opts)
      assert_raise RuntimeError, "out of luck", fn -> fun.(1) end
      assert Nx.to_number(jit_apply(fn x -> Nx.add(x, 1) end, [1], opts)) == 2
    end

    test "a runtime call whose result does not fit its template raises", %{opts: opts} do
      fun = jit(fn x -> Nx.runtime_call(Nx.template({2}, :f32), x, [], fn x, _ -> x end) end, opts)
      assert_raise RuntimeError, ~r/to match the given output template/, fn -> fun.(1) end
    end

    test "a runtime call that never returns does not block other processes", %{opts: opts} do
      me = self()

      stuck =
        spawn(fn ->
          callback = fn x, _ ->
            send(me, :stuck)
            Process.sleep(:infinity)
            x
          end

          jit_apply(fn x -> Nx.runtime_call(x, x, [], callback) end, [1], opts)
        end)

      assert_receive :stuck, 5_000
      assert Nx.to_number(jit_apply(fn x -> Nx.add(x, 1) end, [1], opts)) == 2
      assert Nx.to_number(jit_apply(&iterate/2, [0.5, 10], opts)) > 0
      Process.exit(stuck, :kill)
      assert Nx.to_number(jit_apply(fn x -> Nx.add(x, 2) end, [1], opts)) == 3
    end

    test "a runtime call may compute with tensors", %{opts: opts} do
      callback = fn %{a: a, b: {b}}, _ -> {Nx.dot(a, b), Nx.tensor(Nx.to_number(Nx.sum(a)))} end

      fun =
        jit(
          fn a, b ->
            {c, d} = Nx.runtime_call({Nx.template({}, :f32), Nx.template({}, :f32)}, %{a: a, b: {b}}, [], callback)
            Nx.add(c, d)
          end,
          opts
        )

      assert Nx.to_number(fun.(Nx.tensor([1.0, 2.0]), Nx.tensor([3.0, 4.0]))) == 14.0
    end

    defn hooked(x) do
      y = hook(x * 2, :first)
      z = hook(%{a: y + 1, b: {x}}, :second, &Function.identity/1)
      z.a
    end

    test "hooks run in the calling process", %{opts: opts} do
      me = self()
      hooks = %{first: &send(me, {:first, &1}), second: &send(me, {:second, &1})}
      assert Nx.to_number(jit_apply(&hooked/1, [5], [hooks: hooks] ++ opts)) == 11
      assert_received {:first, first}
      assert Nx.to_number(first) == 10
      assert_received {:second, %{a: a, b: {b}}}
      assert {Nx.to_number(a), Nx.to_number(b)} == {11, 5}
      assert Nx.to_number(jit_apply(&hooked/1, [5], opts)) == 11
    end

    test "hooks receive names and vectorized axes", %{opts: opts} do
      me = self()
      fun = fn x -> Nx.Defn.Kernel.hook(Nx.multiply(x, 2), :hooked, &send(me, {:hooked, &1})) end
      x = Nx.iota({2, 3}, names: [:rows, :columns]) |> Nx.vectorize(:rows)
      jit_apply(fun, [x], opts)
      assert_received {:hooked, hooked}
      assert_same(hooked, Nx.multiply(x, 2))
    end

    test "an exception of a hook reaches the caller", %{opts: opts} do
      hooks = %{first: fn _ -> raise "no" end}
      assert_raise RuntimeError, "no", fn -> jit_apply(&hooked/1, [5], [hooks: hooks] ++ opts) end
      assert Nx.to_number(jit_apply(&hooked/1, [5], opts)) == 11
    end

    defn(printed(x), do: print_value(x * 2, label: "twice") + 1)

    test "print_value prints values", %{opts: opts} do
      output = ExUnit.CaptureIO.capture_io(fn -> assert Nx.to_number(jit_apply(&printed/1, [4], opts)) == 9 end)
      assert output =~ "twice"
      assert output =~ "8"
    end

    test "a process that is killed during a run does not affect the compiled function", %{opts: opts} do
      compiled = Nx.Defn.compile(&iterate/2, [Nx.template({}, :f32), Nx.template({}, :s32)], opts)
      {pid, monitor} = spawn_monitor(fn -> compiled.(Nx.tensor(0.5), Nx.tensor(1_000_000_000)) end)
      Process.sleep(100)
      Process.exit(pid, :kill)
      assert_receive {:DOWN, ^monitor, _, _, _}
      assert_in_delta Nx.to_number(compiled.(Nx.tensor(0.5), Nx.tensor(1))), 0.979, 0.01
    end
  end

  describe "blocks" do
    defp peek(x, how), do: EMLX.TestBlock.double(%EMLX.TestBlock.Peek{how: how}, x)

    defp reading, do: fn x -> if Nx.to_number(Nx.sum(x)) > 0, do: x, else: Nx.negate(x) end

    test "a block that reads a value cannot be compiled", %{opts: opts} do
      error = assert_raise EMLX.Error, fn -> jit_apply(&peek(&1, reading()), [Nx.tensor([1.0, 2.0])], opts) end
      assert error.kind == :traced
      message = Exception.message(error)
      assert message =~ "EMLX.TestBlock.Peek"
      assert message =~ "compiler_test.exs:"
      assert message =~ "on_unsupported: :evaluate"
    end

    test "a block that reads a value runs in the evaluator with on_unsupported: :evaluate", %{opts: opts} do
      opts = [on_unsupported: :evaluate] ++ opts
      {result, events} = record(fn -> jit_apply(&peek(&1, reading()), [Nx.tensor([-1.0])], opts) end)
      assert_same(result, Nx.tensor([1.0]))
      assert [reason] = for({[:trace, :stop], _, metadata} <- events, do: metadata.reason)
      assert reason =~ "Peek"
      # The process is not tracing any more.
      refute EMLX.Trace.active?()
      assert_same(jit_apply(&peek(&1, :composes), [Nx.tensor([-1.0])], opts), Nx.tensor([-2.0]))
    end

    test "an implementation of a block may call compiled functions", %{opts: opts} do
      assert_same(jit_apply(&peek(&1, :jits), [Nx.tensor([1.0, 2.0])], opts), Nx.tensor([3.0, 4.0]))
      assert_same(jit_apply(&peek(&1, :jits), [Nx.tensor([1.0, 200.0])], opts), Nx.tensor([1.0, 200.0]))
    end

    test "an implementation may call the composed function with other shapes", %{opts: opts} do
      assert_same(jit_apply(&peek(&1, :other_shape), [Nx.tensor([1.0, 2.0])], opts), Nx.tensor([2.0, 4.0]))
    end

    test "a block emits one event per trace", %{opts: opts} do
      fun = jit(fn x -> EMLX.Fast.rms_norm(x, Nx.tensor([1.0, 1.0]), eps: 1.0e-5) end, opts)
      x = Nx.tensor([[1.0, 2.0]])
      assert {_, [%{block: EMLX.Fast.RMSNorm, path: :fused}]} = record_blocks(fn -> for _ <- 1..3, do: fun.(x) end)
      assert_same(fun.(x), EMLX.Fast.rms_norm(x, Nx.tensor([1.0, 1.0]), eps: 1.0e-5))
    end
  end

  describe "errors" do
    test "an invalid option raises and is named", %{opts: opts} do
      assert_raise ArgumentError, ~r/:on_unsupported/, fn -> jit_apply(& &1, [1], [on_unsupported: :x] ++ opts) end
      assert_raise ArgumentError, ~r/:fuse/, fn -> jit_apply(& &1, [1], [fuse: 1] ++ opts) end
      assert_raise ArgumentError, ~r/:queue/, fn -> jit_apply(& &1, [1], [queue: 1] ++ opts) end
      assert_raise ArgumentError, ~r/:cache of .* got: 1/, fn -> jit_apply(& &1, [1], [cache: 1] ++ opts) end
      assert_raise ArgumentError, ~r/:cpu or :gpu/, fn -> jit_apply(& &1, [1], compiler: EMLX, device: :tpu) end
    end

    test "an unknown option raises, and options of Nx.Serving and Axon do not", %{opts: opts} do
      message = ~r/:client is no option of compiler: EMLX; its options are :cache, :command_queue, :device/
      assert_raise ArgumentError, message, fn -> jit_apply(& &1, [1], [client: :host] ++ opts) end

      assert_raise ArgumentError, message, fn ->
        Nx.Defn.compile(& &1, [Nx.template({}, :f32)], [client: :host] ++ opts)
      end

      passed = [batch_keys: [:default], mode: :train, debug: false, print_values: false, seed: 1, raise_on_none: true]
      assert Nx.to_number(jit_apply(&Nx.add(&1, 1), [1], passed ++ opts)) == 2
    end

    test "a matrix that is not positive definite has the same result as eagerly", %{opts: opts} do
      fun = fn x -> Nx.LinAlg.cholesky(x) end
      result = jit_apply(fun, [Nx.tensor([[1.0, 2.0], [2.0, 1.0]])], opts)
      assert_same(result, fun.(Nx.tensor([[1.0, 2.0], [2.0, 1.0]])))
    end

    test "an array of a trace cannot be used outside of the trace", %{opts: opts} do
      jit_apply(fn x -> EMLX.TestBlock.double(%EMLX.TestBlock.Peek{how: :leaks}, x) end, [1], opts)
      assert_received {:leaked, leaked}
      assert_raise EMLX.Error, ~r/inside of that function only/, fn -> Nx.add(leaked, 1) end
      assert_raise EMLX.Error, ~r/no elements to read/, fn -> Nx.to_number(leaked) end
      assert inspect(leaked) =~ "a value of a function that is being compiled"
    end
  end

  describe "compile_to_program" do
    test "compile_to_program/3 fuses with fuse: true only", %{opts: opts} do
      fun = fn x -> x |> Nx.exp() |> Nx.add(1) end
      opts = Keyword.take(opts, [:device])
      program = fn more -> EMLX.compile_to_program(fun, [Nx.template({2}, :f32)], opts ++ more) end
      assert program.([]).straight?
      refute program.(fuse: true).straight?
    end

    test "compile_to_program/3 and explain/3 refuse unknown options" do
      assert_raise ArgumentError, ~r/unknown keys \[:nmes\]/, fn ->
        EMLX.compile_to_program(&Nx.exp/1, [Nx.template({2}, :f32)], nmes: ["x"])
      end

      assert_raise ArgumentError, ~r/EMLX.explain: unknown keys \[:nmes\].*:names/, fn ->
        EMLX.explain(&Nx.exp/1, [Nx.template({2}, :f32)], nmes: ["x"])
      end
    end

    if EMLX.Options.types?() do
      test "compile_to_program/3 and explain/3 name themselves in errors for wrong types" do
        args = [&Nx.exp/1, [Nx.template({2}, :f32)], [merge: 1]]

        assert_raise ArgumentError, ~r/^EMLX.compile_to_program: .*:merge/, fn ->
          apply(EMLX, :compile_to_program, args)
        end

        assert_raise ArgumentError, ~r/^EMLX.explain: .*:merge/, fn -> apply(EMLX, :explain, args) end
      end
    end
  end

  describe "queues and partitions" do
    test "a run uses the given queue, else a default one", %{opts: opts} do
      queue = EMLX.Queue.start(device: opts[:device])
      funs = for name <- [:queue, :command_queue], do: jit(fn x -> Nx.add(x, 1) end, [{:compiler, EMLX}, {name, queue}])
      for fun <- funs, do: assert(Nx.to_number(fun.(1)) == 2)
      EMLX.Queue.close(queue)
      for fun <- funs, do: assert_raise(EMLX.Error, ~r/the queue is closed/, fn -> fun.(2) end)
      assert Nx.to_number(jit_apply(fn x -> Nx.add(x, 1) end, [1], opts)) == 2
    end

    test "each partition has a queue", %{opts: opts} do
      partitions = EMLX.__partitions_options__(max_concurrency: 3, device: opts[:device])
      assert [%EMLX.Queue{}, %EMLX.Queue{}, %EMLX.Queue{}] = queues = Enum.map(partitions, & &1[:queue])
      assert queues |> Enum.uniq() |> length() == 3

      # The C++ EMLX's option has the same queues.
      for partition <- partitions do
        assert partition[:device] == opts[:device]
        assert %EMLX.CommandQueue{ref: ref} = partition[:command_queue]
        assert ref == partition[:queue].ref
      end

      assert [[_ | _]] = EMLX.__partitions_options__(device: opts[:device])

      for count <- [0, -1, "3", nil] do
        assert_raise ArgumentError, ~r/:max_concurrency of compiler: EMLX is a number of partitions/, fn ->
          EMLX.__partitions_options__(max_concurrency: count, device: opts[:device])
        end
      end
    end

    test "__to_backend__/1 returns the backend of the results", %{opts: opts} do
      assert EMLX.__to_backend__(Keyword.take(opts, [:device])) == backend()
    end
  end

  describe "Nx.Serving" do
    defp serving(opts), do: Nx.Serving.jit(fn x -> Nx.multiply(Nx.exp(x), 2) end, opts)

    test "Nx.Serving runs inline", %{opts: opts} do
      batch = Nx.Batch.stack([Nx.tensor([1.0, 2.0]), Nx.tensor([3.0, 4.0])])
      result = Nx.Serving.run(serving(opts), batch)
      assert_same(result, Nx.multiply(Nx.exp(Nx.tensor([[1.0, 2.0], [3.0, 4.0]])), 2))
    end

    for partitions <- [false, true] do
      test "Nx.Serving runs batches of many processes, partitions: #{partitions}", %{opts: opts} do
        name = :"serving_#{unquote(partitions)}"
        opts = [max_concurrency: 2] ++ opts

        start_supervised!(
          {Nx.Serving,
           serving: serving(opts), name: name, batch_size: 4, batch_timeout: 10, partitions: unquote(partitions)}
        )

        1..40
        |> Task.async_stream(
          fn n ->
            batch = Nx.Batch.stack([Nx.tensor([n / 10])])
            {n, name |> Nx.Serving.batched_run(batch) |> Nx.squeeze() |> Nx.to_number()}
          end,
          max_concurrency: 8
        )
        |> Enum.each(fn {:ok, {n, value}} -> assert_in_delta value, 2 * :math.exp(n / 10), 1.0e-3 * value end)
      end
    end

    test "Nx.Serving streams", %{opts: opts} do
      name = :streaming_serving
      serving = serving(opts) |> Nx.Serving.streaming()
      start_supervised!({Nx.Serving, serving: serving, name: name, batch_size: 2})
      batch = Nx.Batch.concatenate([Nx.iota({5, 1}, type: :f32)])
      parts = name |> Nx.Serving.batched_run(batch) |> Enum.map(fn {:batch, part, _info} -> Nx.to_flat_list(part) end)
      assert length(parts) == 3

      for {value, n} <- parts |> List.flatten() |> Enum.with_index(),
          do: assert_in_delta(value, 2 * :math.exp(n), 1.0e-3 * value)
    end
  end
end
