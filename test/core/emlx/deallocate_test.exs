defmodule EMLX.DeallocateTest do
  # Not async: memory is counted for the whole VM.
  use ExUnit.Case, async: false

  alias EMLX.{Array, Error, Memory, Ops, Poll, Program, Queue}

  @mib 1_048_576

  # The active memory, without pending work and garbage.
  defp active do
    :erlang.garbage_collect()
    Memory.active()
  end

  defp large, do: EMLX.eval(Ops.iota({4 * @mib}, dtype: :f32))

  defp deallocated?(fun), do: match?(%Error{kind: :deallocated}, catch_error(fun.()))

  test "deallocate/1 frees memory immediately, although the array is still referenced" do
    before = active()
    array = large()
    # Small arrays of before may be freed meanwhile.
    assert active() - before >= 16 * @mib - 65_536
    assert Array.deallocate(array) == :ok
    assert active() - before < @mib
    assert Array.deallocate(array) == :already_deallocated
    assert Array.shape(array) == {4 * @mib}
  end

  test "every use of a deallocated array's elements raises, and the error names the operation" do
    array = Ops.iota({4}, dtype: :f32)
    other = Ops.ones({4}, :f32)
    program = Program.new(1, [{:exp, [0], 1}], [1])
    :ok = Array.deallocate(array)

    for use <- [
          fn -> Array.to_binary(array) end,
          fn -> Array.to_pointer(array) end,
          fn -> Array.strides(array) end,
          fn -> EMLX.eval([other, array]) end,
          fn -> EMLX.async_eval(array) end,
          fn -> Program.run(program, [array]) end,
          fn -> Program.new(0, [], [], constants: [array]) end,
          fn -> EMLX.SharedMemory.create(array) end
        ],
        do: assert(deallocated?(use))

    error = assert_raise Error, fn -> Ops.add(other, array) end
    assert %{kind: :deallocated, op: "add", inputs: [{[4], :f32}, {[4], :f32}]} = error
    assert Exception.message(error) =~ "add: the array was deallocated, so it has no elements any more"
  end

  test "pending results of a deallocated array are computed before its memory is freed" do
    before = active()
    array = large()
    largest = Ops.max(Ops.add(array, 1))
    :ok = Array.deallocate(array)
    # Another test may have freed a few bytes.
    assert active() - before >= 16 * @mib - 4096
    assert Array.to_list(largest) == 4.0 * @mib
    # The stream's thread drops the memory after it has told of the result.
    assert Poll.until(fn -> active() - before < @mib end)
  end

  test "views, binaries and pointers keep a deallocated array's memory" do
    before = active()
    array = large()
    view = EMLX.eval(Ops.reshape(array, {2, 2 * @mib}))
    :ok = Array.deallocate(array)
    # Another test may have freed a few bytes.
    assert active() - before >= 16 * @mib - 4096
    assert [[+0.0], [first]] = view |> Ops.slice([0, 0], [2, 1], [1, 1]) |> Array.to_list()
    assert first == 2.0 * @mib
    :ok = Array.deallocate(view)
    assert active() - before < @mib

    array = Array.from_list(Enum.to_list(1..1000), :s32)
    binary = Array.to_binary(array)
    {address, bytes} = Array.to_pointer(array)
    :ok = Array.deallocate(array)
    for _ <- 1..10, do: EMLX.eval(Ops.zeros({1000}, :s32))
    assert binary == for(i <- 1..1000, into: <<>>, do: <<i::32-native>>)
    assert bytes == 4000 and Array.to_binary(Array.from_pointer(address, {1000}, :s32)) == binary
    assert %Array{} = array
  end

  test "a program's constants and results stay usable when the arrays they came from are deallocated" do
    weight = Array.from_list([1.0, 2.0], :f32)
    input = Array.from_list([3.0, 4.0], :f32)
    add = Program.new(1, [{:add, [0, 1], 1}], [2, 0, 1], constants: [weight])
    branch = {:if, %{then: {1, [], [0]}, else: {1, [{:negative, [0], 1}], [1]}}}
    choose = Program.new(2, [{branch, [0, 1], 1}], [2])
    [sum, same, constant] = Program.run(add, [input])
    [chosen] = Program.run(choose, [Array.scalar(1, :s32), input])
    for array <- [weight, input, constant], do: assert(Array.deallocate(array) == :ok)
    assert Array.to_list(sum) == [4.0, 6.0]
    assert Array.to_list(same) == [3.0, 4.0]
    assert Array.to_list(chosen) == [3.0, 4.0]
    assert [twice, _, _] = Program.run(add, [same])
    assert Array.to_list(twice) == [4.0, 6.0]
  end

  test "arrays that are deallocated before any evaluation do not affect later ones" do
    for _ <- 1..200 do
      a = Ops.iota({100}, dtype: :f32)
      b = Ops.add(a, 1)
      :ok = Array.deallocate(b)
      :ok = Array.deallocate(a)
    end

    :erlang.garbage_collect()
    assert Array.to_list(EMLX.eval(Ops.ones({2}, :f32))) == [1.0, 1.0]
    assert Memory.clear_cache() == :ok
  end

  test "a process that reads an array during its deallocation gets the value or the error" do
    queues = for _ <- 1..2, do: Queue.start()

    for round <- 1..60 do
      array = EMLX.eval(Ops.full(Array.scalar(round, :f32), {1000}, :f32))

      users =
        for i <- 1..4 do
          Task.async(fn ->
            opts = if queue = Enum.at(queues, rem(i, 3)), do: [queue: queue], else: []

            for _ <- 1..20 do
              try do
                sum = Ops.run({:sum, %{axes: nil, keepdims: false}}, [Ops.run(:add, [array, array], opts)], opts)
                Array.to_binary(sum, opts)
              rescue
                error in Error -> error.kind
              end
            end
          end)
        end

      Array.deallocate(array)
      # Other arrays reuse the memory.
      for _ <- 1..5, do: EMLX.eval(Ops.full(Array.scalar(-1, :f32), {1000}, :f32))
      expected = <<2000.0 * round::float-32-native>>
      for results <- Task.await_many(users, 60_000), result <- results, do: assert(result in [expected, :deallocated])
    end
  end
end
