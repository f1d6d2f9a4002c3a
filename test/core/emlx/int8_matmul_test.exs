# Products with matrices of 8-bit integers, against integers that are rounded and added up here.
defmodule EMLX.Int8MatmulTest do
  use ExUnit.Case, async: true

  alias EMLX.{Array, Error, Golden, Kernels, Ops, Program}

  # The example of the documentation.
  doctest EMLX.Kernels

  defp numbers(shape, dtype, seed) do
    key = Ops.run({:random_key, %{seed: seed}}, [])
    bounds = [Array.scalar(-2.0, :f32), Array.scalar(2.0, :f32)]
    Ops.run({:random_uniform, %{shape: shape, dtype: :f32}}, bounds ++ [key]) |> Ops.astype(dtype)
  end

  defp integers(shape, seed), do: numbers(shape, :f32, seed) |> Ops.multiply(60) |> Ops.astype(:s8)

  defp rows(array, columns),
    do: array |> Ops.astype(:f64) |> Array.to_list() |> List.flatten() |> Enum.chunk_every(columns)

  # x {m, k} and w {n, k}, as lists of rows: sums of products of integers and their scales, {m, n} in f64.
  defp product(x, w, scales, bias) do
    for row <- x do
      most = row |> Enum.map(&abs/1) |> Enum.max()
      # The factor is one of f32, and so is the product that is rounded.
      factor = if most < 1.0e-30, do: 0.0, else: f32(127 / most)
      codes = Enum.map(row, &half_to_even(f32(&1 * factor)))

      for {column, scale, bias} <- Enum.zip([w, scales, bias]) do
        sum = codes |> Enum.zip_with(column, &(&1 * trunc(&2))) |> Enum.sum()
        sum * most / 127 * scale + bias
      end
    end
  end

  defp f32(number), do: (<<rounded::float-32>> = <<number::float-32>>) && rounded

  defp half_to_even(number) do
    below = number |> Float.floor() |> trunc()

    case number - below do
      half when half < 0.5 -> below
      half when half > 0.5 -> below + 1
      _ -> if rem(below, 2) == 0, do: below, else: below + 1
    end
  end

  defp check(label, x, w, scales, bias) do
    {n, k} = Array.shape(w)
    lead = x |> Array.shape() |> Tuple.to_list() |> Enum.drop(-1)
    given = if bias, do: hd(rows(bias, n)), else: List.duplicate(0.0, n)
    want = product(rows(x, k), rows(w, k), hd(rows(scales, n)), given) |> List.flatten()
    want = want |> Array.from_list(:f64) |> Ops.reshape(lead ++ [n])

    for w <- [w, packed(w), Golden.scattered(packed(w))] do
      have = Kernels.int8_matmul(x, w, scales, bias)
      assert Array.dtype(have) == Array.dtype(x)
      assert :ok == Golden.compare(label, have, want, :rounded)
    end
  end

  # As the documentation says.
  defp packed(w) do
    {n, k} = Array.shape(w)
    w = w |> Array.to_list() |> Enum.map(&List.to_tuple/1) |> List.to_tuple()
    at = fn i, j -> if i < n and j < k, do: w |> elem(i) |> elem(j), else: 0 end

    elements =
      for a <- 0..(div(n + 15, 16) - 1),
          b <- 0..(div(k + 3, 4) - 1),
          c <- 0..15,
          d <- 0..3,
          do: at.(16 * a + c, 4 * b + d)

    elements |> Array.from_list(:s8) |> Ops.reshape([div(n + 15, 16), div(k + 3, 4), 16, 4])
  end

  for dtype <- [:f32, :f16, :bf16] do
    test "products of #{dtype} are sums of integers, for few and many rows, batches and views" do
      for lead <- [[], [1], [3], [4], [5], [13], [2, 3, 7]], {k, n} <- [{1, 1}, {7, 33}, {64, 5}, {130, 70}] do
        x = numbers(lead ++ [k], unquote(dtype), 1)
        {w, scales, bias} = {integers([n, k], 2), numbers([n], :f32, 3), numbers([n], unquote(dtype), 4)}
        label = "#{inspect(lead)}, #{k} terms, #{n} columns"
        check(label, x, w, scales, bias)
        check("#{label}, scattered", Golden.scattered(x), Golden.scattered(w), Golden.scattered(scales), nil)
      end
    end
  end

  test "an array without rows, columns or terms has the result's shape and the bias" do
    product = fn lead, k, n ->
      {x, w} = {Ops.zeros(lead ++ [k], :f32), Ops.zeros([n, k], :s8)}
      Kernels.int8_matmul(x, w, Ops.ones([n], :f32), Ops.ones([n], :f32))
    end

    assert Array.shape(product.([0], 3, 4)) == {0, 4}
    assert Array.shape(product.([2, 3], 3, 0)) == {2, 3, 0}
    without_terms = product.([2], 0, 3)
    assert Array.shape(without_terms) == {2, 3}
    assert List.flatten(Array.to_list(without_terms)) == List.duplicate(1.0, 6)
  end

  test "a row with NaN or an infinity becomes NaN and leaves the others" do
    for rows <- [2, 9], odd <- [:nan, :infinity, :neg_infinity] do
      x = Ops.concatenate([Array.from_list([[1.0, odd, 2.0]], :f32), Ops.ones([rows - 1, 3], :f32)])
      w = Array.from_list([[1, 2, 3], [4, 5, 6]], :s8)
      result = Kernels.int8_matmul(x, w, Ops.ones([2], :f32), nil) |> Array.to_list() |> List.flatten()
      assert [:nan, :nan | rest] = result
      for [a, b] <- Enum.chunk_every(rest, 2), do: assert_in_delta(a, 6.0, 1.0e-5) && assert_in_delta(b, 15.0, 1.0e-5)
    end
  end

  test "a program returns what the calls return" do
    x = numbers([6, 40], :f32, 1)
    {w, scales, bias} = {integers([9, 40], 2), numbers([9], :f32, 3), numbers([9], :f32, 4)}
    inputs = [x, w, scales, bias, Array.scalar(1.0, :f32)]
    program = Program.new(5, [{:int8_matmul, [0, 1, 2, 3], 1}, {:add, [5, 4], 1}], [6])
    [have] = Program.run(program, inputs)
    want = Ops.add(Kernels.int8_matmul(x, w, scales, bias), 1.0)
    assert Array.to_list(have) == Array.to_list(want)
  end

  test "arguments that do not fit are refused with their shapes and types" do
    {x, w, ones} = {Ops.zeros([2, 3], :f32), Ops.zeros([4, 3], :s8), Ops.ones([4], :f32)}

    for {inputs, reason} <- [
          {[Ops.zeros([2, 5], :f32), w, ones, nil], ~r/int8_matmul.*x is \[2, 5\], w is \[4, 3\]/s},
          {[Array.scalar(1.0, :f32), w, ones, nil], ~r/x is \[\], w is \[4, 3\]/},
          {[x, Ops.zeros([3], :s8), ones, nil], ~r/x is \[2, 3\], w is \[3\]/},
          {[x, Ops.zeros([1, 2, 16, 4], :s8), ones, nil], ~r/w is \[1, 2, 16, 4\], scales is \[4\].*packed/},
          {[x, Ops.zeros([1, 1, 16, 4], :s8), Ops.ones([17], :f32), nil], ~r/w is \[1, 1, 16, 4\], scales is \[17\]/},
          {[x, Ops.astype(w, :u8), ones, nil], ~r/w must be s8, got u8/},
          {[Ops.astype(x, :s32), w, ones, nil], ~r/x must be f32, f16 or bf16, got s32/},
          {[x, w, Ops.ones([3], :f32), nil],
           ~r/w is \[4, 3\], scales is \[3\]: scales must have one number for each row/},
          {[x, w, Ops.ones([4], :s8), nil], ~r/scales must be f32, f16 or bf16, got s8/},
          {[x, w, ones, Ops.ones([1, 4], :f32)], ~r/bias is \[1, 4\]: bias must have one number for each row/},
          {[Ops.zeros([1, 132_105], :f32), Ops.zeros([1, 132_105], :s8), Ops.ones([1], :f32), nil],
           ~r/x is \[1, 132105\].*sums of 132105 products may not fit 32 bits, k is at most 132104/}
        ] do
      assert_raise Error, reason, fn -> apply(Kernels, :int8_matmul, inputs) end
    end

    assert_raise ArgumentError, ~r/unknown keys \[:bits\]/, fn -> Kernels.int8_matmul(x, w, ones, nil, bits: 8) end
  end

  test "the most terms that there may be are added up exactly" do
    k = 132_104
    x = Ops.multiply(Ops.ones([1, k], :f32), -1.0)
    w = Ops.multiply(Ops.ones([2, k], :f32), -128.0) |> Ops.astype(:s8)
    [a, b] = Kernels.int8_matmul(x, w, Array.from_list([1.0, 0.5], :f32), nil) |> Array.to_list() |> List.flatten()
    assert_in_delta a, 128.0 * k, 16.0
    assert_in_delta b, 64.0 * k, 16.0
  end
end
