defmodule EMLX.Compiler.CacheTest do
  # Not async: the cache and the memory are shared by all processes.
  use EMLX.NxCase, async: false

  import Nx.Defn

  alias EMLX.Compiler.Cache
  alias EMLX.{Memory, TestBlock}

  @moduletag :capture_log

  @kib 1024
  @mib 1024 * 1024

  setup do
    {_, device} = backend()
    EMLX.clear_compiler_cache()
    on_exit(fn -> Application.delete_env(:emlx, :compiler_cache) end)
    %{opts: [compiler: EMLX] ++ device}
  end

  defp limit(limits), do: Application.put_env(:emlx, :compiler_cache, limits)
  defp entries, do: EMLX.compiler_cache().entries
  defp bytes, do: EMLX.compiler_cache().bytes

  # Returns the number of traces during `fun`, and its result.
  defp traces(fun) do
    id = make_ref()
    counter = :counters.new(1, [])
    :telemetry.attach(id, [:emlx, :trace, :stop], fn _, _, _, _ -> :counters.add(counter, 1, 1) end, nil)
    result = fun.()
    :telemetry.detach(id)
    {:counters.get(counter, 1), result}
  end

  # Runs a function in a process that exits afterwards, which frees its heap.
  defp elsewhere(fun), do: Task.await(Task.async(fun), :infinity)

  # The VM frees garbage at a time of its choice, so the condition is checked repeatedly, up to a limit.
  defp eventually(fun, attempts \\ 200) do
    :erlang.garbage_collect()

    cond do
      fun.() ->
        true

      attempts == 0 ->
        false

      true ->
        Process.sleep(25)
        eventually(fun, attempts - 1)
    end
  end

  # A tensor of `bytes` bytes filled with `n`.
  defp full(n, bytes, backend),
    do: Nx.from_binary(:binary.copy(<<n::float-32-native>>, div(bytes, 4)), :f32, backend: backend)

  # Ways to close over a tensor, as functions that build such a function. Inside of a function, Nx only accepts tensors
  # of the binary backend; others are copied there, or belong to a block, a hook or a runtime call.
  defp ways do
    binary = &full(&1, &2, Nx.BinaryBackend)
    device = &full(&1, &2, backend())
    weigh = fn t -> fn x -> Nx.sum(Nx.multiply(x, t)) end end

    %{
      binary: fn n, bytes -> weigh.(binary.(n, bytes)) end,
      # A binary of the array's own memory, as Nx.backend_transfer/2 returns it.
      read: fn n, bytes -> weigh.(device.(n, bytes) |> Nx.add(0) |> Nx.backend_copy(Nx.BinaryBackend)) end,
      part: fn n, bytes ->
        all = :binary.copy(<<n::float-32-native>>, div(bytes, 2))
        weigh.(Nx.from_binary(binary_part(all, 16, bytes), :f32, backend: Nx.BinaryBackend))
      end,
      copied: fn n, bytes ->
        t = device.(n, bytes)
        fn x -> Nx.sum(Nx.multiply(x, Nx.backend_copy(t, Nx.BinaryBackend))) end
      end,
      inner: fn n, bytes ->
        inner = weigh.(binary.(n, bytes))
        fn x -> Nx.add(inner.(x), 1) end
      end,
      block: fn n, bytes ->
        t = device.(n, bytes)
        fn x -> TestBlock.double(%TestBlock.Peek{how: &Nx.reduce_max(Nx.multiply(&1, t))}, x) end
      end,
      runtime_call: fn n, bytes ->
        t = binary.(n, bytes)
        fn x -> Nx.runtime_call(Nx.template({}, :f32), Nx.sum(Nx.multiply(x, t)), [], fn x, _ -> Nx.add(x, 1) end) end
      end,
      hook: fn n, bytes ->
        t = binary.(n, bytes)
        fn x -> x |> Nx.multiply(t) |> Nx.Defn.Kernel.hook(:hooked, fn _ -> :ok end) |> Nx.sum() end
      end,
      evaluated: fn n, bytes ->
        t = binary.(n, bytes)

        fn x ->
          TestBlock.double(%TestBlock.Peek{how: &Nx.multiply(&1, Nx.to_number(&1))}, Nx.sum(Nx.multiply(x, t)))
        end
      end
    }
  end

  defp call(fun, opts),
    do: Nx.Defn.jit_apply(fun, [Nx.tensor(1.0, backend: backend())], [on_unsupported: :evaluate] ++ opts)

  for way <- ~w(binary read part copied inner block runtime_call hook evaluated)a do
    describe "a function that closes over a tensor, as by #{way}," do
      test "the compiled function is freed with the last reference to the function", %{opts: opts} do
        make = ways()[unquote(way)]
        elsewhere(fn -> call(make.(0, 64 * @kib), opts) end)
        assert eventually(fn -> entries() == 0 end)
        before = Memory.active()

        elsewhere(fn ->
          for n <- 1..16, do: call(make.(n, @mib), opts)
        end)

        assert eventually(fn -> entries() == 0 end)
        assert bytes() == 0
        assert eventually(fn -> Memory.active() <= before + @mib end)
      end

      test "the compiled function is freed while the process that created the function lives", %{opts: opts} do
        make = ways()[unquote(way)]
        for n <- 1..16, do: call(make.(n, 64 * @kib), opts)
        # A register may still hold the last one.
        assert eventually(fn -> entries() <= 1 end)
      end

      test "the compiled function is kept while referenced, and found by a copy of the function", %{opts: opts} do
        fun = ways()[unquote(way)].(3, 64 * @kib)
        assert {1, result} = traces(fn -> call(fun, opts) end)
        agent = start_supervised!({Agent, fn -> fun end})
        for _ <- 1..3, do: assert(entries() == 1)

        for _ <- 1..3 do
          assert {0, same} = traces(fn -> elsewhere(fn -> call(Agent.get(agent, & &1), opts) end) end)
          assert_same(same, result)
        end
      end

      test "the function returns its own result, also in reused memory", %{opts: opts} do
        make = ways()[unquote(way)]

        for n <- 1..100 do
          fun = make.(n, 8 * @kib)
          expected = Nx.Defn.jit_apply(fun, [Nx.tensor(1.0)], compiler: Nx.Defn.Evaluator)
          assert_same(call(fun, opts), expected, rtol: 1.0e-4)
          assert_same(call(fun, opts), expected, rtol: 1.0e-4)
        end
      end
    end
  end

  @literal Nx.BinaryBackend.from_binary(
             %Nx.Tensor{shape: {1024}, type: {:f, 32}, names: [nil]},
             :binary.copy(<<2.0::float-32-native>>, 1024),
             []
           )

  test "a function over a module's literal is kept", %{opts: opts} do
    make = fn t -> fn x -> Nx.sum(Nx.multiply(x, t)) end end
    assert {1, result} = traces(fn -> call(make.(@literal), opts) end)
    assert Nx.to_number(result) == 2048.0
    :erlang.garbage_collect()
    assert entries() == 1
    assert {0, _} = traces(fn -> call(make.(@literal), opts) end)
  end

  test "a function in a persistent term is kept until the term is erased", %{opts: opts} do
    elsewhere(fn ->
      t = full(5, 64 * @kib, Nx.BinaryBackend)
      :persistent_term.put(__MODULE__, fn x -> Nx.sum(Nx.multiply(x, t)) end)
    end)

    on_exit(fn -> :persistent_term.erase(__MODULE__) end)
    assert {1, _} = traces(fn -> elsewhere(fn -> call(:persistent_term.get(__MODULE__), opts) end) end)
    assert entries() == 1
    assert {0, _} = traces(fn -> elsewhere(fn -> call(:persistent_term.get(__MODULE__), opts) end) end)
    :persistent_term.erase(__MODULE__)
    assert eventually(fn -> entries() == 0 end)
  end

  test "only the garbage ones of functions that share a tensor are freed", %{opts: opts} do
    t = full(1, 64 * @kib, Nx.BinaryBackend)
    alone = fn x -> Nx.sum(Nx.multiply(x, t)) end
    call(alone, opts)

    elsewhere(fn ->
      other = full(2, 64 * @kib, Nx.BinaryBackend)
      call(fn x -> Nx.sum(Nx.multiply(x, Nx.add(t, other))) end, opts)
    end)

    assert eventually(fn -> entries() == 1 end)
    assert {0, _} = traces(fn -> call(alone, opts) end)
  end

  describe "a function of a container that keeps a tensor," do
    for place <- [:argument, :inside] do
      test "a container as #{place} identifies its compiled function, which is freed with it", %{opts: opts} do
        wrap = fn kept -> if unquote(place) == :argument, do: kept, else: %{a: {kept, 1}} end
        unwrap = fn %{a: {kept, _}} -> kept end
        unwrap = if unquote(place) == :argument, do: &Function.identity/1, else: unwrap
        weigh = fn container -> container |> unwrap.() |> then(&Nx.sum(Nx.multiply(&1.x, &1.by))) end
        run = fn by -> Nx.Defn.jit_apply(weigh, [wrap.(%EMLX.Kept{x: Nx.tensor(2.0), by: by})], opts) end

        by = full(3, 64 * @kib, Nx.BinaryBackend)
        assert {1, result} = traces(fn -> run.(by) end)
        assert Nx.to_number(result) == 6.0 * 16 * @kib
        assert {0, _} = traces(fn -> run.(by) end)
        elsewhere(fn -> run.(full(4, 64 * @kib, Nx.BinaryBackend)) end)
        assert eventually(fn -> entries() == 1 end)
        assert {0, _} = traces(fn -> run.(by) end)
        # Small tensors are compared by value.
        assert {1, _} = traces(fn -> for _ <- 1..2, do: run.(full(5, 64, Nx.BinaryBackend)) end)
      end
    end
  end

  defn(exponential(x), do: Nx.exp(x))

  test "a function that closes over nothing stays in the cache", %{opts: opts} do
    elsewhere(fn -> call(&exponential/1, opts) end)
    elsewhere(fn -> for n <- 1..5, do: call(fn x -> Nx.add(x, n) end, opts) end)
    :erlang.garbage_collect()
    assert entries() == 6
    assert {0, _} = traces(fn -> call(&exponential/1, opts) end)
  end

  # The program holds the hook, and thereby the terms that the hook closes over.
  defp hooked(t), do: fn x -> Nx.Defn.Kernel.hook(x, :hooked, fn _ -> Nx.shape(t) end) end

  test "a function whose hook closes over its tensor is removed by the limits only", %{opts: opts} do
    limit(bytes: 8 * @mib)
    for n <- 1..16, do: elsewhere(fn -> call(hooked(full(n, @mib, backend())), opts) end)
    assert entries() in 7..8
    assert bytes() in (7 * @mib)..(8 * @mib)
    assert :ok = EMLX.clear_compiler_cache()
    assert %{entries: 0, bytes: 0} = EMLX.compiler_cache()
  end

  test "the lookup of a function over an expression takes time linear in its nodes", %{opts: opts} do
    # 60 nodes, and 2^60 paths to the parameter. Nx.Defn.Graph runs its stages with such functions.
    double = fn x -> Enum.reduce(1..60, x, fn _, x -> Nx.add(x, x) end) end
    expr = Nx.Defn.debug_expr(double).(Nx.tensor(1.0))
    fun = fn _ -> expr end
    assert {1, result} = traces(fn -> call(fun, opts) end)
    assert Nx.to_number(result) == 2.0 ** 60
    assert {0, _} = traces(fn -> call(fun, opts) end)
  end

  test "functions over equal numbers of different types are different", %{opts: opts} do
    add = fn n -> fn x -> Nx.add(x, Nx.tensor(n)) end end
    x = Nx.tensor(1)

    for _ <- 1..2,
        {n, type} <- [{2, {:s, 32}}, {2.0, {:f, 32}}],
        do: assert(Nx.type(Nx.Defn.jit_apply(add.(n), [x], opts)) == type)

    assert {0, _} = traces(fn -> for n <- [2, 2.0], do: Nx.Defn.jit_apply(add.(n), [x], opts) end)
    assert entries() == 2
  end

  describe "the bytes of an entry" do
    # A function with its own constant of `bytes` bytes; the function itself closes over a number.
    defp own(n, bytes), do: fn x -> Nx.multiply(x, Nx.tensor(List.duplicate(n * 1.0, div(bytes, 4)))) end

    test "the bytes of an entry are those of its constants", %{opts: opts} do
      call(own(1, 64 * @kib), opts)
      assert bytes() in (64 * @kib)..(65 * @kib)
    end

    test "the bytes of an entry count an array of several functions once", %{opts: opts} do
      fun = hooked(full(1, @mib, backend()))
      for shape <- [{1}, {2}, {3}], do: Nx.Defn.jit_apply(fun, [Nx.iota(shape)], opts)
      assert entries() == 3
      assert bytes() in @mib..(@mib + @kib)
    end

    test "the bytes of an entry do not count an array that the function closes over", %{opts: opts} do
      fun = ways().block.(3, @mib)
      assert Nx.to_number(call(fun, opts)) == 3.0
      assert bytes() < @kib
      assert byte_size(inspect(fun)) > 0
    end
  end

  describe "the limit" do
    test "the limit of bytes removes the least recently used functions", %{opts: opts} do
      limit(bytes: 10 * 65 * @kib)
      [first | rest] = for n <- 1..10, do: own(n, 64 * @kib)
      for fun <- [first | rest], do: call(fun, opts)
      assert entries() == 10
      call(first, opts)
      call(own(11, 64 * @kib), opts)
      assert bytes() <= 10 * 65 * @kib
      assert {0, _} = traces(fn -> call(first, opts) end)
      assert {1, _} = traces(fn -> call(hd(rest), opts) end)
      assert {0, _} = traces(fn -> call(List.last(rest), opts) end)
    end

    test "the limit of bytes keeps the most recently used function, whatever its size", %{opts: opts} do
      limit(bytes: 0)
      fun = own(1, 64 * @kib)
      assert {1, _} = traces(fn -> call(fun, opts) end)
      assert {0, _} = traces(fn -> call(fun, opts) end)
      assert {1, _} = traces(fn -> call(own(2, 64 * @kib), opts) end)
      assert entries() == 1
      assert {1, _} = traces(fn -> call(fun, opts) end)
    end

    test "the limit of entries is a number, alone or together with the limit of bytes", %{opts: opts} do
      for limits <- [20, [entries: 20], [entries: 20, bytes: 1_000_000]] do
        limit(limits)
        EMLX.clear_compiler_cache()
        add = fn n -> fn x -> Nx.add(x, n) end end
        for n <- 1..50, do: call(add.(n), opts)
        assert entries() in 18..20
        assert {0, _} = traces(fn -> call(add.(50), opts) end)
        assert {1, _} = traces(fn -> call(add.(1), opts) end)
      end

      limit(0)
      call(fn x -> Nx.add(x, 51) end, opts)
      assert entries() == 0
    end

    test "an invalid limit is refused", %{opts: opts} do
      for limits <- [-1, 1.5, :all, [entries: -1], [bytes: nil], [size: 1], %{entries: 1}] do
        limit(limits)
        error = assert_raise ArgumentError, fn -> call(fn x -> Nx.add(x, 52) end, opts) end
        assert Exception.message(error) =~ "config :emlx, compiler_cache:"
        assert Exception.message(error) =~ inspect(limits)
      end
    end
  end

  test "a function that many processes compile concurrently is kept once", %{opts: opts} do
    t = full(1, 64 * @kib, Nx.BinaryBackend)
    fun = fn x -> Nx.sum(Nx.multiply(x, t)) end
    results = 1..8 |> Enum.map(fn _ -> Task.async(fn -> Nx.to_number(call(fun, opts)) end) end) |> Task.await_many()
    assert Enum.uniq(results) == [16384.0]
    assert entries() == 1
  end

  test "a process that is killed while it compiles leaves no entry", %{opts: opts} do
    me = self()

    {pid, monitor} =
      spawn_monitor(fn ->
        t = full(1, 64 * @kib, Nx.BinaryBackend)

        call(
          fn x ->
            send(me, :tracing)
            Process.sleep(:infinity)
            Nx.sum(Nx.multiply(x, t))
          end,
          opts
        )
      end)

    assert_receive :tracing, 5000
    Process.exit(pid, :kill)
    assert_receive {:DOWN, ^monitor, _, _, :killed}
    assert EMLX.compiler_cache() == %{entries: 0, bytes: 0}
    assert Nx.to_number(call(&exponential/1, opts)) > 2.7
  end

  test "a function that raises while it is traced leaves no entry", %{opts: opts} do
    t = full(1, 64 * @kib, Nx.BinaryBackend)

    for _ <- 1..2,
        do: assert_raise(RuntimeError, "no", fn -> call(fn _ -> raise(if(Nx.size(t) > 0, do: "no")) end, opts) end)

    assert entries() == 0
  end

  test "compiled functions outlive the cache", %{opts: opts} do
    fun = fn x -> Nx.multiply(x, 3) end
    compiled = Nx.Defn.compile(fun, [Nx.template({}, :f32)], opts)
    assert :ok = EMLX.clear_compiler_cache()
    assert {0, result} = traces(fn -> compiled.(Nx.tensor(2.0)) end)
    assert Nx.to_number(result) == 6.0
    assert {1, _} = traces(fn -> call(fun, opts) end)
  end

  test "with cache: false nothing is cached", %{opts: opts} do
    fun = fn x -> Nx.multiply(x, 3) end
    assert {2, _} = traces(fn -> for _ <- 1..2, do: call(fun, [cache: false] ++ opts) end)
    assert entries() == 0
  end

  test "the process is restarted with an empty cache", %{opts: opts} do
    t = full(1, 64 * @kib, Nx.BinaryBackend)
    fun = fn x -> {Nx.sum(Nx.multiply(x, t)), 1} end
    call(fun, opts)
    monitor = Process.monitor(Cache)
    Process.exit(Process.whereis(Cache), :kill)
    assert_receive {:DOWN, ^monitor, _, _, _}
    assert eventually(fn -> is_pid(Process.whereis(Cache)) end)
    assert entries() == 0
    assert {1, _} = traces(fn -> call(fun, opts) end)
    assert {0, _} = traces(fn -> call(fun, opts) end)
  end
end
