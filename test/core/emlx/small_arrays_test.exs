defmodule EMLX.SmallArraysTest do
  # Computed arrays of less than 4 KiB are held by their handles, and operations on them are recorded and repeated (ADR
  # 58).
  use ExUnit.Case, async: true

  alias EMLX.{Array, Error, Ops, Program, Queue}

  defp vector(numbers, dtype \\ :f32), do: Array.from_list(numbers, dtype)

  test "arrays of any size around the limit are added alike" do
    for size <- [0, 1, 1022, 1023, 1024, 1025, 5000], _ <- 1..4 do
      numbers = for _ <- 1..size//1, do: :rand.uniform(1000)
      sum = Ops.add(vector(numbers), vector(numbers))
      assert Array.to_list(sum) == Enum.map(numbers, &(&1 * 2.0))
      assert {Array.shape(sum), Array.dtype(sum), Array.bytes(sum)} == {{size}, :f32, size * 4}
    end
  end

  test "empty arrays and arrays without axes stay what they are" do
    for _ <- 1..4 do
      empty = Array.from_binary(<<>>, [2, 0], :s32)
      assert Array.to_list(Ops.add(empty, empty)) == [[], []]
      assert Array.to_list(Ops.sum(empty)) == 0
      assert Array.to_list(Ops.transpose(empty, [1, 0])) == []
      assert Array.to_list(Ops.concatenate([empty, Ops.ones({2, 1}, :s32)], axis: 1)) == [[1], [1]]
      assert Array.to_list(Ops.add(Array.scalar(2, :s64), Array.scalar(3, :s64))) == 5
      assert Array.to_list(Ops.broadcast_to(Array.scalar(2, :s64), {2, 2})) == [[2, 2], [2, 2]]
      assert Array.to_list(Ops.reshape(Array.scalar(2, :s64), {1, 1})) == [[2]]
    end
  end

  test "calls that differ in attributes, types, shapes or absent arrays are different calls" do
    x = vector([1.5, -2.5, 0.25])
    sixteenth = vector([0.0625])

    for _ <- 1..4 do
      assert Array.to_list(Ops.round(x, decimals: 0)) == [2.0, -2.0, 0.0]
      assert Array.to_list(Ops.full(sixteenth, {1}, :f32)) == [0.0625]
      assert Array.to_list(Ops.full(sixteenth, {2}, :f64)) == [0.0625, 0.0625]
      assert Array.to_list(Ops.run_and_cast(:greater, [x, x], :u8)) == [0, 0, 0]
      assert Array.to_list(Ops.run_and_cast(:greater, [x, x], :f32)) == [0.0, 0.0, 0.0]
      assert Array.to_list(Ops.run(:greater, [x, x])) == [false, false, false]
      assert Array.to_list(Ops.clip(x, nil, 1.0)) == [1.0, -2.5, 0.25]
      assert Array.to_list(Ops.clip(x, 0.0, nil)) == [1.5, 0.0, 0.25]
      assert Array.to_list(Ops.clip(x, 0.0, 1.0)) == [1.0, 0.0, 0.25]
      assert Array.to_list(Ops.sum(x)) == -0.75
      assert Array.to_list(Ops.sum(Ops.reshape(x, {3, 1}), axes: [1])) == [1.5, -2.5, 0.25]
    end
  end

  test "more calls than a thread remembers return the right values" do
    x = Ops.iota({900}, dtype: :s32)

    for _ <- 1..3, start <- 0..799, length <- [1, 2, 3] do
      slice = Ops.run({:slice, %{start: [start], stop: [start + length], strides: [1]}}, [x])
      assert Array.to_list(slice) == Enum.to_list(start..(start + length - 1))
    end
  end

  test "processes that repeat one call at the same time get their own results" do
    tasks =
      for i <- 1..16 do
        Task.async(fn ->
          for j <- 1..300 do
            sum = Ops.add(vector([i, j], :s64), vector([1000, i], :s64))
            Array.to_list(Ops.flip(Ops.multiply(sum, vector([2, 3], :s64)), [0])) == [(j + i) * 3, (i + 1000) * 2]
          end
        end)
      end

    assert tasks |> Task.await_many(60_000) |> List.flatten() |> Enum.all?()
  end

  test "a small array serves whatever needs MLX's array" do
    a = Ops.add(vector([1, 2]), vector([3, 4]))
    assert EMLX.eval(a) == a
    assert Array.strides(a) == [1]
    {address, 8} = Array.to_pointer(a)
    assert Array.to_list(Array.from_pointer(address, {2}, :f32)) == [4.0, 6.0]
    assert [b] = Program.run(Program.new(1, [{:negative, [0], 1}], [1]), [a])
    assert Array.to_list(b) == [-4.0, -6.0]
    assert Array.to_list(Ops.add(Ops.ones({5000}, :f32), Ops.reshape(a, {2, 1}))) |> Enum.map(&hd/1) == [5.0, 7.0]
    queue = Queue.start()
    assert Array.to_list(Queue.with(queue, fn -> Ops.add(a, a) end)) == [8.0, 12.0]
    assert Array.to_list(Ops.inv(vector([[2.0, 0.0], [0.0, 4.0]]))) == [[0.5, 0.0], [0.0, 0.25]]
  end

  test "a deallocated array raises although its call was recorded" do
    [a, b] = [vector([1, 2]), vector([3, 4])]
    for _ <- 1..3, do: Ops.add(a, b)
    assert Array.deallocate(a) == :ok
    assert Array.deallocate(a) == :already_deallocated
    error = assert_raise Error, fn -> Ops.add(a, b) end
    assert %{kind: :deallocated, op: "add"} = error
    assert_raise Error, fn -> Array.to_binary(a) end
    assert Array.to_list(Ops.add(b, b)) == [6.0, 8.0]
  end

  test "a call that is refused is refused each time, and says the same" do
    messages = for _ <- 1..4, do: Exception.message(catch_error(Ops.add(vector([1, 2]), vector([1, 2, 3]))))
    assert [message] = Enum.uniq(messages)
    assert message =~ "add"
    assert catch_error(Ops.run(:nothing, [vector([1])])) |> Exception.message() =~ "nothing"
  end

  test "numbers that are not finite, and both zeros, are kept" do
    numbers = [:nan, :infinity, :neg_infinity, 0.0, -0.0, 1.0]

    for dtype <- [:f16, :bf16, :f32, :f64], _ <- 1..3 do
      x = vector(numbers, dtype)
      assert Array.to_binary(Ops.reshape(x, {2, 3})) == Array.to_binary(x)
      flipped = Ops.flip(Ops.flip(x, [0]), [0])
      assert Array.to_binary(flipped) == Array.to_binary(x)
      assert Array.to_list(Ops.isnan(x)) == [true, false, false, false, false, false]
      assert [:nan, :infinity, :neg_infinity, _, _, 2.0] = Array.to_list(Ops.add(x, x))
    end
  end
end
