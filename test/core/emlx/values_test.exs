# Regressions of wrong values caused by layouts, types or padding, each with a small input. EMLX.DifferentialTest
# searches for more.
defmodule EMLX.ValuesTest do
  use ExUnit.Case, async: true

  alias EMLX.{Array, Error, Golden, Ops}

  defp array(list, dtype), do: Array.from_list(list, dtype, device: Golden.device())
  defp back(array), do: Array.to_list(array)

  test "results computed from parts of a reversed array read these parts" do
    reversed = Ops.flip(array([[1, 2], [3, 4], [5, 6]], :s32), [0, 1])
    [left, right] = Ops.split(reversed, [1], axis: 1)
    assert back(Ops.multiply(left, right)) == [[30], [12], [2]]
    assert back(Ops.maximum(left, left)) == [[6], [4], [2]]
  end

  test "the cube root of an infinite complex number has no part that is NaN" do
    infinite = [{:infinity, 1.0}, {:infinity, -1.0}, {:neg_infinity, 3.0}, {1.0, :infinity}, {1.0, :neg_infinity}]

    assert back(Ops.cbrt(array(infinite, :c64))) == [
             {:infinity, 0.0},
             {:infinity, -0.0},
             {:infinity, :infinity},
             {:infinity, :infinity},
             {:infinity, :neg_infinity}
           ]

    assert back(Ops.cbrt(array([{0.0, 0.0}, {8.0, 0.0}], :c64))) == [{0.0, 0.0}, {2.0, 0.0}]
    assert [{re, im}] = back(Ops.cbrt(array([{0.0, 27.0}], :c64)))
    assert_in_delta re, 3 * :math.cos(:math.pi() / 6), 1.0e-5
    assert_in_delta im, 1.5, 1.0e-5
  end

  test "a cross product takes reversed arrays" do
    a = Ops.flip(array([[3], [2], [1]], :s32), [0])
    b = Ops.flip(array([[6], [5], [4]], :s32), [0])
    assert back(Ops.cross(a, b, axis: 0)) == [[-3], [6], [-3]]
  end

  test "a scatter by windows never chooses padding that equals the array's own extreme" do
    op = fn reduction ->
      ones = %{window: [3], strides: [1], padding_low: [1], padding_high: [1]}
      {:window_scatter, Map.put(ones, :reduction, reduction)}
    end

    source = array([1, 1, 1], :u8)
    zeros = array([0, 0, 0], :u8)
    assert back(Ops.run(op.(:max), [zeros, source, array(0, :u8)])) == [2, 1, 0]
    assert back(Ops.run(op.(:min), [array([255, 255, 255], :u8), source, array(0, :u8)])) == [2, 1, 0]
    infinities = array(List.duplicate(:neg_infinity, 3), :f32)
    assert back(Ops.run(op.(:max), [infinities, array([1.0, 1.0, 1.0], :f32), array(0.0, :f32)])) == [2.0, 1.0, 0.0]
  end

  test "addmm without terms returns the scaled addend, also for a strided one" do
    wide = array([[1, 9, 2, 9], [3, 9, 4, 9]], :bf16)
    c = Ops.slice(wide, [0, 0], [2, 4], [1, 2])
    [a, b] = for shape <- [[2, 0], [0, 2]], do: Ops.zeros(shape, :bf16, device: Golden.device())
    assert back(Ops.addmm(c, a, b, alpha: 0.5, beta: -2.0)) == [[-2.0, -4.0], [-6.0, -8.0]]
  end

  test "products of 16-bit vectors are summed in f32" do
    for dtype <- [:bf16, :f16] do
      ones = Ops.ones([10_000], dtype, device: Golden.device())
      assert_in_delta back(Ops.vecdot(ones, ones)), 10_000, 100
    end
  end

  test "16-bit products with matrices of any number of bits are summed in f32" do
    for bits <- [2, 3, 5, 6, 8], dtype <- [:bf16, :f16] do
      x = Ops.ones([1, 4096], dtype, device: Golden.device())
      w = Ops.ones([2, 4096], dtype, device: Golden.device())
      attributes = %{mode: :affine, group_size: 64, bits: bits}
      parts = Ops.run({:quantize, attributes}, [w, nil])
      product = Ops.run({:quantized_matmul, Map.put(attributes, :transpose, true)}, [x | parts])
      for number <- List.flatten(back(product)), do: assert_in_delta(number, 4096, 64)
    end
  end

  if Golden.device() == :cpu do
    test "f64 becomes 8-bit floats as f32 does" do
      numbers = [-250.0, -1.0, 0.0, 0.3, 300.0]
      assert back(Ops.to_fp8(array(numbers, :f64))) == back(Ops.to_fp8(array(numbers, :f32)))
    end

    test "a Hadamard transform of f64 is refused when it is built" do
      assert_raise Error, ~r/takes numbers of up to 32 bits, got f64/, fn ->
        Ops.hadamard_transform(array([1.0, 2.0], :f64))
      end
    end
  end

  test "linspace between integers with an integer step returns integers" do
    for {start, stop, num} <- [{0, 650, 651}, {-3, 300, 304}, {10, 0, 11}, {0, 10, 4}] do
      wanted = for i <- 0..(num - 1), do: div(start * (num - 1) + (stop - start) * i, num - 1)
      assert back(Ops.linspace(start, stop, num, dtype: :s32, device: Golden.device())) == wanted
    end
  end
end
