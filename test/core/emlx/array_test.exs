defmodule EMLX.ArrayTest do
  use ExUnit.Case, async: true

  alias EMLX.{Array, Error, Ops}

  doctest EMLX
  doctest EMLX.Array
  doctest EMLX.Ops

  @dtypes [:bool, :u8, :u16, :u32, :u64, :s8, :s16, :s32, :s64, :f16, :bf16, :f32, :f64, :c64]

  describe "from_binary and to_binary" do
    for dtype <- @dtypes do
      test "to_binary returns the bytes of #{dtype} that from_binary was given" do
        dtype = unquote(dtype)
        size = Array.dtype_size(dtype)
        # Bytes that are valid elements of every type, bool included.
        binary = for i <- 1..(6 * size), into: <<>>, do: <<rem(i, 2)>>

        for shape <- [{6}, {2, 3}, {1, 6, 1}] do
          array = Array.from_binary(binary, shape, dtype)
          assert Array.shape(array) == shape
          assert Array.dtype(array) == dtype
          assert Array.bytes(array) == byte_size(binary)
          assert Array.to_binary(array) == binary
        end
      end
    end

    test "from_binary and to_binary take scalars and empty arrays" do
      scalar = Array.from_binary(<<7::32-native>>, {}, :s32)
      assert {Array.shape(scalar), Array.to_list(scalar)} == {{}, 7}

      for shape <- [{0}, {3, 0}, {0, 2}] do
        empty = Array.from_binary(<<>>, shape, :f32)
        assert Array.to_binary(empty) == <<>>
        assert Array.shape(empty) == shape
      end
    end

    test "from_binary takes a part of a larger binary, wherever it begins" do
      <<_::8, part::binary-size(8), _::binary>> = <<0, 1::64-native, 2, 3>>
      assert Array.to_list(Array.from_binary(part, {1}, :s64)) == [1]
    end

    test "from_binary refuses a binary of another length and names both lengths" do
      error = assert_raise Error, fn -> Array.from_binary(<<1, 2, 3>>, {2, 2}, :f32) end
      assert %{kind: :binary_size, op: "from_binary"} = error
      assert error.reason =~ "3 bytes"
      assert error.reason =~ "16 bytes"
    end

    test "from_binary refuses sizes that are negative or too large to count" do
      for shape <- [{-1}, {-1, -1}, {1 <<< 40}, {1 <<< 31, 1 <<< 31, 1 <<< 31, 1 <<< 31}] do
        assert_raise Error, fn -> Array.from_binary(<<0, 0, 0, 0>>, shape, :f32) end
      end
    end

    test "to_list reads a view that is not contiguous in row-major order" do
      a = Array.from_list([[1, 2, 3], [4, 5, 6]], :s32)
      assert a |> Ops.transpose([1, 0]) |> Array.to_list() == [[1, 4], [2, 5], [3, 6]]
      assert a |> Ops.broadcast_to({2, 2, 3}) |> Array.to_list() |> hd() == [[1, 2, 3], [4, 5, 6]]
      assert a |> Ops.slice([0, 2], [2, -4], [1, -1]) |> Array.to_list() == [[3, 2, 1], [6, 5, 4]]
    end
  end

  describe "from_list" do
    test "from_list refuses nested lists of different shapes" do
      for list <- [[[1, 2], [3]], [[1, 2], [3], [4, 5, 6]], [1, [2]], [[1], 2], [[[1]], [2]], [[], [1]]] do
        assert_raise ArgumentError, ~r/differ in shape/, fn -> Array.from_list(list, :f32) end
      end
    end

    test "from_list refuses terms that are no numbers of the type" do
      for {number, dtype} <-
            [a: :f32, nan: :s32] ++ [{1.5, :u8}, {nil, :f32}, {"1", :f32}, {true, :f32}, {{1, 2}, :f32}] do
        assert_raise ArgumentError, ~r/from_list: .* is no number of type #{inspect(dtype)}/, fn ->
          Array.from_list([number], dtype)
        end
      end

      for dtype <- [:f16, :bf16, :f32, :f64, :c64] do
        assert_raise ArgumentError, ~r/is no number/, fn -> Array.from_list([10 ** 400], dtype) end
      end

      assert_raise ArgumentError, ~r/a type is an atom such as :f32/, fn -> Array.from_list([1], {:f, 32}) end
    end

    test "from_list takes complex numbers with parts that are not finite" do
      list = [{:nan, 1.0}, {-2.0, :infinity}]
      assert list |> Array.from_list(:c64) |> Array.to_list() == list
      assert Array.to_list(Array.scalar({1, :neg_infinity}, :c64)) == {1.0, :neg_infinity}
    end
  end

  test "to_list returns :nan, :infinity and :neg_infinity for numbers that are not finite" do
    list = [1.5, :nan, :infinity, :neg_infinity, -0.5]

    for dtype <- [:f16, :bf16, :f32, :f64] do
      assert list |> Array.from_list(dtype) |> Array.to_list() == list
    end
  end

  test "a scalar keeps every number that its type can hold" do
    assert Array.to_list(Array.scalar(0xFFFF_FFFF_FFFF_FFFF, :u64)) == 0xFFFF_FFFF_FFFF_FFFF
    assert Array.to_list(Array.scalar(-0x8000_0000_0000_0000, :s64)) == -0x8000_0000_0000_0000
    assert Array.to_list(Array.scalar(9_007_199_254_740_993, :s64)) == 9_007_199_254_740_993
    assert Array.to_list(Array.scalar({1.0, -2.0}, :c64)) == {1.0, -2.0}
    assert Array.to_list(Array.scalar(:nan, :bf16)) == :nan
  end

  test "other processes can read and use an array" do
    a = Ops.add(Array.from_list([1, 2, 3], :s32), 1)
    tasks = for _ <- 1..8, do: Task.async(fn -> Array.to_list(Ops.multiply(a, a)) end)
    assert Enum.uniq(Task.await_many(tasks)) == [[4, 9, 16]]
  end

  @tag skip: EMLX.device_available?(:gpu) and "there is a GPU"
  test "an absent device is named in the error, and the next call works" do
    assert %{kind: :no_device} = assert_raise(Error, fn -> Ops.zeros({2}, :f32, device: :gpu) end)
    a = Array.scalar(1.0, :f32)
    assert_raise Error, fn -> Array.to_device(a, :gpu) end
    assert Array.to_list(Array.to_device(a, :cpu)) == 1.0
  end

  test "inspect shows an array's type, shape and device" do
    assert inspect(Array.from_list([[1, 2]], :s32)) == "#EMLX.Array<s32[1][2] on :cpu>"
  end

  defp n <<< by, do: Bitwise.bsl(n, by)
end
