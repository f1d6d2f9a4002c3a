defmodule EMLX.DebugTest do
  # Not async: the settings apply to the whole VM.
  use ExUnit.Case, async: false

  import EMLX.DebugSettings

  alias EMLX.{Array, Debug, Kernels, Ops}

  doctest Debug

  defp f32(list), do: Array.from_list(list, :f32)
  defp s32(list), do: Array.from_list(list, :s32)

  test "refresh/0 reads the settings and refuses values that are no booleans" do
    assert Debug.refresh() == []
    turn_on(:detect_non_finites)
    assert Debug.refresh() == [:detect_non_finites]
    Application.put_env(:emlx, :detect_non_finites, :yes)
    message = ~r/config :emlx, detect_non_finites: is true or false, got: :yes/
    assert_raise ArgumentError, message, &Debug.refresh/0
    Application.put_env(:emlx, :detect_non_finites, nil)
    assert Debug.refresh() == []
  end

  test "without settings nothing is checked" do
    assert f32([0.0]) |> Ops.log() |> Array.to_list() == [:neg_infinity]
    assert f32([1.0, 2.0]) |> Ops.take(s32([5])) |> Array.to_list() == [2.0]
  end

  describe "detect_non_finites" do
    setup do: turn_on(:detect_non_finites)

    test "detect_non_finites names the operation and the first non-finite element" do
      a = f32([[1.0, 2.0], [0.0, -1.0]])

      assert message(fn -> Ops.log(a) end) =~
               "log produced NaN or Inf: element {1, 0} of its result f32[2][2] is -Inf " <>
                 "(config :emlx, detect_non_finites: true)"

      assert message(fn -> Ops.sqrt(a) end) =~ "sqrt produced NaN or Inf: element {1, 1} of its result f32[2][2] is NaN"
      assert message(fn -> Ops.divide(a, f32([1.0, 0.0])) end) =~ "element {0, 1} of its result f32[2][2] is Inf"
      assert message(fn -> Ops.exp(Array.scalar(1000.0, :f32)) end) =~ "element {} of its result f32 is Inf"
      assert Ops.add(a, a) |> Array.to_list() == [[2.0, 4.0], [0.0, -2.0]]
    end

    test "detect_non_finites checks every float type and each of several results" do
      for dtype <- [:f16, :bf16, :f32, :f64] do
        assert message(fn -> Ops.log(Array.scalar(0, dtype)) end) =~ "of its result #{dtype} is -Inf"
      end

      assert message(fn -> Ops.log(Array.scalar({0.0, 0.0}, :c64)) end) =~
               ~r/log produced NaN or Inf: .* is \{-Inf, .*\}/

      assert message(fn -> Ops.astype(f32([1.0, 1.0e6]), :f16) end) =~ "astype produced NaN or Inf: element {1}"
      assert message(fn -> Ops.slogdet(Ops.zeros({2, 2}, :f32)) end) =~ "slogdet produced NaN or Inf"
      assert Ops.log(Ops.zeros({0}, :f32)) |> Array.to_list() == []
    end

    test "detect_non_finites reports what an operation produces, not what its operands contain" do
      nan = f32([:nan, 1.0])
      infinite = f32([:infinity, 1.0])
      assert [_, 2.0] = nan |> Ops.add(1) |> Array.to_list()
      assert infinite |> Ops.multiply(2) |> Array.to_list() == [:infinity, 2.0]
      assert Ops.max(f32([:neg_infinity, :neg_infinity])) |> Array.to_list() == :neg_infinity
      # A NaN computed from infinities is reported.
      assert message(fn -> Ops.subtract(infinite, infinite) end) =~ "subtract produced NaN or Inf: element {0}"
      assert message(fn -> Ops.sin(infinite) end) =~ "is NaN"
    end

    test "detect_non_finites reports products and fused kernels whatever their operands contain" do
      nan = f32([[:nan, 1.0]])
      for call <- [fn -> Ops.matmul(nan, f32([[1.0], [1.0]])) end, fn -> Ops.inner(nan, nan) end], do: message(call)
      assert message(fn -> Kernels.rms_norm(nan, nil) end) =~ "rms_norm produced NaN or Inf: element {0, 0}"
      assert message(fn -> Kernels.layer_norm(nan, nil, nil) end) =~ "layer_norm produced NaN or Inf"
      input = Ops.reshape(f32([:nan, 1.0, 1.0]), [1, 3, 1])

      assert message(fn -> Ops.conv(input, Ops.ones({1, 2, 1}, :f32)) end) =~
               "conv produced NaN or Inf: element {0, 0, 0}"
    end

    test "detect_non_finites does not report constants and reinterpreted bits" do
      assert f32([:infinity]) |> Array.to_list() == [:infinity]
      assert Array.scalar(:nan, :f32) |> Array.to_list() == :nan
      assert Ops.full(Array.scalar(:infinity, :f32), {2}, :f32) |> Array.to_list() == [:infinity, :infinity]
      assert Ops.view(Array.from_list([0x7F800000], :u32), :f32) |> Array.to_list() == [:infinity]
    end

    test "the reported index is row-major, whatever the array's memory layout" do
      a = Ops.transpose(f32([[1.0, 0.0], [2.0, 3.0]]), [1, 0])
      assert message(fn -> Ops.log(a) end) =~ "element {1, 0}"
      large = Ops.where(Ops.equal(Ops.iota({1000, 1000}), 123_456), 0.0, 1.0)
      assert message(fn -> Ops.log(large) end) =~ "element {123, 456} of its result f32[1000][1000] is -Inf"
    end

    test "detect_non_finites stops when its setting is deleted" do
      assert_raise ArgumentError, fn -> Ops.log(f32([0.0])) end
      Application.delete_env(:emlx, :detect_non_finites)
      assert Ops.log(f32([0.0])) |> Array.to_list() == [:neg_infinity]
    end
  end

  describe "warn_cross_device" do
    setup do: turn_on(:warn_cross_device)

    import ExUnit.CaptureLog

    test "a warning names the operation, the input and both devices, except for scalars" do
      log = capture_log(fn -> Debug.crossed("add", 1, f32([1.0, 2.0]), :gpu) end)
      assert log =~ "[EMLX] cross-device: input 1 of add, f32[2] on :cpu, is copied to :gpu"
      assert capture_log(fn -> Debug.crossed("add", 1, f32([1.0, 2.0]), :cpu) end) == ""
      assert capture_log(fn -> Debug.crossed("add", 1, f32([1.0]), :gpu) end) == ""
    end

    test "operands on one device do not warn" do
      Debug.refresh()
      assert capture_log(fn -> Ops.add(f32([1.0, 2.0]), f32([1.0, 2.0])) end) == ""
    end

    if EMLX.device_available?(:gpu) do
      test "an operand on another device warns" do
        Debug.refresh()
        there = Array.to_device(f32([1.0, 2.0]), :gpu)
        log = capture_log(fn -> Ops.add(there, f32([1.0, 2.0])) end)
        assert log =~ "[EMLX] cross-device: input 1 of add, f32[2] on :cpu, is copied to :gpu"
      end
    end
  end

  describe "enable_bounds_check" do
    setup do: turn_on(:enable_bounds_check)

    test "the error names the operation, the first index out of bounds, its position and the range" do
      a = f32([1.0, 2.0, 3.0])

      assert message(fn -> Ops.take(a, s32([[0, 2], [5, 7]])) end) ==
               "index out of bounds: take takes index 5 at {1, 0} of its indices, along axis 0 of shape {3}, " <>
                 "where -3 to 2 are possible (config :emlx, enable_bounds_check: true)"

      assert message(fn -> Ops.take(a, s32([-4])) end) =~ "takes index -4 at {0}"
      assert Ops.take(a, s32([-3, 2])) |> Array.to_list() == [1.0, 3.0]
      assert Ops.take(a, s32([])) |> Array.to_list() == []
    end

    test "every operation with indices is checked" do
      m = Ops.reshape(Ops.iota({6}), [2, 3])
      one = s32([[[1]]])

      for {call, words} <- [
            {fn -> Ops.take_along_axis(m, s32([[0], [3]]), axis: 1) end, "take_along_axis takes index 3"},
            {fn -> Ops.put_along_axis(m, s32([[2, 0, 0]]), s32([[1, 1, 1]]), axis: 0) end,
             "along axis 0 of shape {2, 3}"},
            {fn -> Ops.scatter_add_axis(m, s32([[4], [0]]), s32([[1], [1]])) end, "scatter_add_axis takes index 4"},
            {fn -> Ops.gather(m, [s32([0]), s32([3])], [0, 1], [1, 1]) end, "gather takes index 3"},
            # A slice of two columns fits at 0 and 1.
            {fn -> Ops.gather(m, [s32([2])], [1], [2, 2]) end, "where -3 to 1 are possible"},
            {fn -> Ops.scatter(m, [s32([2]), s32([0])], one, [0, 1]) end, "scatter takes index 2"},
            {fn -> Ops.scatter_add(m, [s32([0]), s32([-4])], one, [0, 1]) end, "scatter_add takes index -4"},
            {fn -> Ops.scatter_max(m, [s32([9]), s32([0])], one, [0, 1]) end, "scatter_max takes index 9"},
            {fn -> Ops.gather_mm(Ops.ones({2, 1, 1}, :f32), Ops.ones({2, 1, 1}, :f32), nil, s32([2])) end,
             "gather_mm takes index 2"},
            {fn -> Ops.cross_entropy(Ops.ones({1, 3}, :f32), s32([3])) end, "cross_entropy takes index 3"}
          ] do
        assert message(call) =~ words
      end

      assert m |> Ops.scatter([s32([1]), s32([-1])], s32([[[9]]]), [0, 1]) |> Array.to_list() == [[0, 1, 2], [3, 4, 9]]
    end

    test "indices of every type are checked, also if the axis is longer than the type's range" do
      long = Ops.iota({300})

      for dtype <- [:u8, :u16, :u32, :u64, :s8, :s16, :s32, :s64] do
        assert Ops.take(long, Array.from_list([100], dtype)) |> Array.to_list() == [100]
        short = Ops.iota({4})

        assert message(fn -> Ops.take(short, Array.from_list([1, 100], dtype)) end) =~
                 "takes index 100 at {1}"
      end

      assert message(fn -> Ops.take(Ops.iota({4}), Array.from_list([2 ** 64 - 1], :u64)) end) =~
               "takes index #{2 ** 64 - 1}"
    end
  end
end
