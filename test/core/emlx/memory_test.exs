defmodule EMLX.MemoryTest do
  # Bounds on the memory use of EMLX and its arrays. Not async: memory is counted for the whole VM.
  use ExUnit.Case, async: false

  alias EMLX.{Array, Memory, Ops, Poll}

  @moduletag :timing
  @mib 1_048_576

  setup do
    :erlang.garbage_collect()
    Memory.clear_cache()
    :ok
  end

  test "the memory figures follow what is allocated and freed" do
    before = Poll.settled_memory()
    array = EMLX.eval(Ops.iota({1024, 1024}, dtype: :f32))
    assert (Memory.active() - before) in (4 * @mib)..(4 * @mib + 65_536)
    Memory.reset_peak()
    big = EMLX.eval(Ops.add(Ops.tile(array, [4, 1]), 1.0))
    assert Memory.peak() >= Array.bytes(big)
    assert Array.size(big) == 4 * @mib
  end

  test "limits are set, and the previous ones are returned" do
    limit = Memory.limit()
    assert Memory.set_limit(64 * @mib) == limit
    assert Memory.limit() == 64 * @mib
    a = Ops.ones({1024}, :f32)

    assert %{kind: :out_of_memory} =
             assert_raise(EMLX.Error, fn ->
               Ops.add(Ops.broadcast_to(a, {32_768, 1024}), 1.0)
             end)

    assert Memory.set_limit(limit) == 64 * @mib
    cache = Memory.set_cache_limit(0)
    assert Memory.set_cache_limit(cache) == 0
    assert Memory.clear_cache() == :ok
    assert Memory.cached() == 0
  end

  # Nothing else is allocated: no copy of an operand, no cast, no number between.
  test "an elementwise operation, a reduction or a copy allocates no more than its result" do
    on_cpu = [device: :cpu]
    i = EMLX.eval(Ops.iota({1024, 1024}, [dtype: :s32] ++ on_cpu))
    x = EMLX.eval(Ops.multiply(Ops.astype(i, :f32), 1.0e-6))
    y = EMLX.eval(Ops.add(x, 0.5))
    u = EMLX.eval(Ops.astype(Ops.bitwise_and(i, 1), :u8))
    row = EMLX.eval(Ops.iota({1024}, [dtype: :f32] ++ on_cpu))
    turned = EMLX.eval(Ops.transpose(x, [1, 0]))
    part = EMLX.eval(Ops.slice(x, [1, 1], [1023, 1023], [1, 1]))

    operations = [
      negative: fn -> Ops.negative(x) end,
      exp: fn -> Ops.exp(x) end,
      floor: fn -> Ops.floor(x) end,
      round_away: fn -> Ops.round_away(x) end,
      sign: fn -> Ops.sign(x) end,
      isnan: fn -> Ops.run_and_cast(:isnan, [x], :u8) end,
      astype: fn -> Ops.astype(x, :s32) end,
      astype: fn -> Ops.astype(u, :f32) end,
      add: fn -> Ops.add(x, y) end,
      add: fn -> Ops.add(x, i) end,
      add: fn -> Ops.add(x, turned) end,
      add: fn -> Ops.add(part, part) end,
      maximum: fn -> Ops.maximum(x, row) end,
      power: fn -> Ops.power(x, y) end,
      left_shift: fn -> Ops.left_shift(i, u) end,
      less: fn -> Ops.run_and_cast(:less, [x, y], :u8) end,
      logical_and: fn -> Ops.logical_and(u, u) end,
      logical_and: fn -> Ops.logical_and(u, x) end,
      where: fn -> Ops.where(u, x, y) end,
      clip: fn -> Ops.clip(x, 0.25, 0.5) end,
      sum: fn -> Ops.sum(x) end,
      sum: fn -> Ops.sum(x, axes: [0]) end,
      sum: fn -> Ops.sum(turned, axes: [0]) end,
      sum: fn -> Ops.sum(i) end,
      mean: fn -> Ops.mean(x, axes: [1]) end,
      var: fn -> Ops.var(x) end,
      var: fn -> Ops.var(x, axes: [0]) end,
      max: fn -> Ops.max(x, axes: [1]) end,
      argmax: fn -> Ops.argmax(x, axis: 1) end,
      all: fn -> Ops.all(u) end,
      logsumexp: fn -> Ops.logsumexp(x, axes: [1]) end,
      concatenate: fn -> Ops.concatenate([x, y], axis: 1) end,
      tile: fn -> Ops.tile(x, [2, 2]) end,
      reshape: fn -> Ops.reshape(turned, {1_048_576}) end
    ]

    # Of what has been kept before nothing counts.
    for {{name, run}, number} <- Enum.with_index(operations), clear? <- [true, false] do
      if clear?, do: Memory.clear_cache()
      before = Poll.settled_memory()
      Memory.reset_peak()
      bytes = Array.bytes(EMLX.eval(run.()))
      more = Memory.peak() - before
      assert more <= bytes + 65_536, "#{name} (operation #{number}) allocates #{more} bytes for a result of #{bytes}"
      :erlang.garbage_collect()
    end
  end

  test "memory of large arrays is kept when they are freed, is not active, and is used again" do
    x = EMLX.eval(Ops.zeros({1024, 1024}, :f32, device: :cpu))
    Memory.clear_cache()
    before = Poll.settled_memory()
    Memory.reset_peak()

    for _ <- 1..5 do
      array = EMLX.eval(Ops.negative(x))
      assert Memory.cached() == 0
      assert Memory.active() >= before + 4 * @mib
      Array.deallocate(array)
      assert Poll.until(fn -> Memory.cached() >= 4 * @mib end)
      assert Memory.active() < before + @mib
    end

    # One buffer has served all of them.
    assert Memory.peak() - before < 5 * @mib
    Memory.clear_cache()
    assert Memory.cached() == 0
    assert Memory.active() < before + @mib
  end

  test "no more memory is kept than the cache limit says" do
    x = EMLX.eval(Ops.zeros({1024, 1024}, :f32, device: :cpu))
    limit = Memory.set_cache_limit(48 * @mib)
    on_exit(fn -> Memory.set_cache_limit(limit) end)
    many = fn -> for i <- 1..40, do: EMLX.eval(Ops.add(x, i * 1.0)) end
    # MLX's allocator for CUDA keeps a buffer as long as the others are below the limit.
    most = if EMLX.device_available?(:gpu), do: 52 * @mib, else: 48 * @mib

    Enum.each(many.(), fn array ->
      Array.deallocate(array)
      assert Memory.cached() <= most
    end)

    assert Poll.until(fn -> Memory.cached() > 0 end)
    assert Memory.set_cache_limit(0) == 48 * @mib
    assert Memory.cached() == 0
    Enum.each(many.(), &Array.deallocate/1)
    assert Memory.cached() == 0
    # A buffer larger than the limit is freed. For MLX's allocator for CUDA it is the one beyond the limit.
    Memory.set_cache_limit(64 * @mib)
    Array.deallocate(EMLX.eval(Ops.broadcast_to(x, {32, 1024, 1024}) |> Ops.add(1.0)))
    assert Memory.cached() <= if(EMLX.device_available?(:gpu), do: 128 * @mib, else: 64 * @mib)
  end

  test "the default device is the configured one, else a GPU if one is available" do
    expected = if EMLX.device_available?(:gpu), do: :gpu, else: :cpu
    assert EMLX.default_device() == expected
    on_exit(fn -> Application.delete_env(:emlx, :default_device) end)
    Application.put_env(:emlx, :default_device, :cpu)
    assert EMLX.default_device() == :cpu
    assert EMLX.device_info() == EMLX.device_info(device: :cpu)
    Application.put_env(:emlx, :default_device, :metal)
    assert_raise ArgumentError, ~r/default_device: is :cpu or :gpu, got: :metal/, fn -> EMLX.default_device() end
  end

  test "the functions with the C++ EMLX's names return the same figures and limits" do
    array = EMLX.eval(Ops.iota({1024, 1024}, dtype: :f32))
    assert EMLX.memory_info().active_memory >= Array.bytes(array)
    assert EMLX.reset_peak_memory() == :ok
    limit = EMLX.set_memory_limit(64 * @mib)
    assert Memory.limit() == 64 * @mib
    assert EMLX.set_memory_limit(limit) == 64 * @mib
    cache = EMLX.set_cache_limit(0)
    assert EMLX.set_cache_limit(cache) == 0
    assert EMLX.clear_cache() == :ok
    assert EMLX.memory_info().cache_memory == 0
  end

  test "to_binary shares the array's memory, which lives as long as the binary" do
    a = EMLX.eval(Ops.iota({1024, 1024}, dtype: :s32))
    before = Poll.settled_memory()
    binary = Array.to_binary(a)
    assert Memory.active() - before < @mib
    sum = for(<<n::32-native <- binary>>, do: n) |> Enum.sum()
    assert sum == div(1_048_576 * 1_048_575, 2)
  end

  # `EMLX_LONG=1` raises the number to the 100,000 arrays that the bound is meant for; the bound does not depend on it.
  for {arrays, slow?} <- [{200, false}, {if(System.get_env("EMLX_LONG"), do: 100_000, else: 2_000), true}] do
    if slow?, do: @tag(:slow)
    @tag timeout: :infinity
    test "the garbage collector sees the size of arrays: #{arrays} of 8 MiB in turn take at most 512 MiB" do
      task =
        Task.async(fn ->
          Memory.reset_peak()
          one = EMLX.eval(Ops.zeros({2 * @mib}, :f32))
          Enum.each(1..unquote(arrays), fn i -> EMLX.eval(Ops.add(one, i * 1.0)) end)
          Memory.peak()
        end)

      assert Task.await(task, :infinity) < 512 * @mib
    end
  end

  # Its heap alone would let it be collected after thousands of arrays.
  test "a process with a large heap is collected for the arrays that it drops: at most 128 MiB of 8 MiB each" do
    one = EMLX.eval(Ops.zeros({2 * @mib}, :f32))
    before = Poll.settled_memory()
    test = self()

    work = fn ->
      for i <- 1..60, do: one |> Ops.add(i * 1.0) |> EMLX.eval() |> Array.shape()
      send(test, {:peak, Memory.peak()})
    end

    Memory.reset_peak()
    Process.spawn(work, [:link, min_heap_size: 4_000_000])
    assert_receive {:peak, peak}, 60_000
    assert peak - before < 128 * @mib
  end

  test "the garbage collector sees the size of arrays from binaries: 500 of 8 MiB take at most 512 MiB" do
    binary = :binary.copy(<<0>>, 8 * @mib)

    task =
      Task.async(fn ->
        Memory.reset_peak()
        Enum.each(1..500, fn _ -> Array.from_binary(binary, {2 * @mib}, :f32) end)
        Memory.peak()
      end)

    assert Task.await(task, :infinity) < 512 * @mib
  end

  @tag :slow
  @tag timeout: 300_000
  test "a chain of 3 million operations with no read between runs in bounded memory" do
    one = Array.scalar(1, :s64)
    before = EMLX.Resident.bytes()
    last = Enum.reduce(1..3_000_000, one, fn _, acc -> Ops.add(acc, one) end)
    grown = EMLX.Resident.bytes() - before
    assert Array.to_list(last) == 3_000_001

    # At most half a million nodes of 500 bytes are pending, and the C library keeps 64 MiB. Without the bound, 3
    # million nodes take 1.5 GB.
    assert grown < 768 * @mib
  end

  test "a graph that keeps large inputs alive is evaluated before they pile up" do
    binary = :binary.copy(<<1::64-native>>, @mib)
    Memory.reset_peak()

    total =
      Enum.reduce(1..200, Array.scalar(0, :s64), fn i, total ->
        # Only the unread total refers to these 8 MiB.
        large = Array.from_binary(binary, {@mib}, :s64)
        Ops.add(total, Ops.multiply(Ops.sum(large), i))
      end)

    assert Array.to_list(total) == @mib * div(200 * 201, 2)
    assert Memory.peak() < 768 * @mib
  end

  @tag timeout: 300_000
  test "10,000 cycles of create, compute and read leak no memory" do
    cycles = fn count ->
      Task.await(
        Task.async(fn ->
          for i <- 1..count do
            a = Array.from_binary(<<i::32-native, i + 1::32-native>>, {2}, :s32)
            assert Array.to_list(Ops.multiply(a, 2)) == [2 * i, 2 * i + 2]
          end
        end),
        :infinity
      )
    end

    cycles.(100)
    before = Poll.settled_memory()
    cycles.(10_000)
    assert Poll.until(fn -> Poll.settled_memory() <= before + 65_536 end)
  end
end
