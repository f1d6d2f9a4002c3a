defmodule EMLX.Differential.Quantized do
  @moduledoc "Matrices in few bits and their products, for the differential suite."

  alias EMLX.{Array, Ops}
  alias EMLX.Differential.{Case, Draw, Fused, Input, Shapes}
  alias EMLX.Differential.Reference, as: R

  @types [:f16, :bf16, :f32]
  @affine for bits <- [2, 3, 4, 5, 6, 8], group <- [32, 64, 128], do: {:affine, group, bits}
  @others [{:mxfp4, 32, 4}, {:mxfp8, 32, 8}, {:nvfp4, 16, 4}]

  def build(_name, %{dtype: dtype}) when dtype not in @types, do: :skip

  def build(:quantize, draw) do
    {mode, group, bits} = Enum.random(@affine ++ @others)
    shape = matrix(draw)
    w = Draw.input(draw, {-1, 1}, shape)
    op = {:quantize, attributes(mode, group, bits)}
    # A step between neighbours in affine, and what is left of 8 or 4 bits in floats of a group.
    Case.checked(op, [w, nil], :exact, fn [w, nil] ->
      fn
        [words, scales, biases] ->
          back = affine(words, scales, biases, group, bits)
          steps = Ops.divide(Ops.subtract(back, R.f64(w)), Ops.abs(repeated(scales, group)))
          [{"distance in steps", steps, R.full(0, shape, :f64), {if(draw.dtype == :f32, do: 1.0, else: 1.5), 0.0}}]

        [words, scales] ->
          back = Ops.run({:dequantize, Map.put(attributes(mode, group, bits), :dtype, :f32)}, [words, scales, nil, nil])
          allowed = if bits == 8, do: {0.1, 0.0}, else: {0.4, 0.0}
          [{"what it stands for", R.f64(back), R.f64(w), allowed}]
      end
    end)
  end

  def build(:dequantize, draw) do
    {mode, group, bits} = how = Enum.random(@affine ++ @others)
    [_, columns] = shape = matrix(draw)
    parts = packed(shape, draw.dtype, how)
    dtype = if mode == :affine, do: nil, else: draw.dtype
    op = {:dequantize, Map.put(attributes(mode, group, bits), :dtype, dtype)}
    inputs = laid(parts, draw) ++ if(mode == :affine, do: [nil], else: [nil, nil])

    Case.values(op, inputs, :summed, fn
      [words, scales, biases, nil] when biases != nil -> affine(words, scales, biases, group, bits)
      [words, scales, nil, nil] -> few_rows(op, [words, scales], [nil, nil], columns)
    end)
  end

  def build(:quantized_matmul, draw) do
    {mode, group, bits} = how = Enum.random(@affine ++ @others)
    transpose = Draw.coin()
    [n, columns] = shape = matrix(draw, 70_000)
    m = Enum.random([1, 3, if(R.size(shape) > 30_000, do: 7, else: 65)])
    parts = packed(shape, draw.dtype, how)
    x = Draw.input(draw, {-1, 1}, if(transpose, do: [m, columns], else: [m, n]))
    op = {:quantized_matmul, Map.put(attributes(mode, group, bits), :transpose, transpose)}
    inputs = [x | laid(parts, draw)] ++ if(mode == :affine, do: [], else: [nil])

    Case.values(op, inputs, :quantized, fn [x | parts] ->
      w = R.shaped(plain(parts, how, columns), [1, n, columns])
      x = R.shaped(R.f64(x), [1, m, if(transpose, do: columns, else: n)])
      R.shaped(if(transpose, do: R.contract(x, w), else: R.multiply(x, w)), [m, if(transpose, do: n, else: columns)])
    end)
  end

  def build(:int8_matmul, draw) do
    [n, columns] = shape = matrix(draw, 70_000)
    m = Enum.random([1, 3, 5, if(R.size(shape) > 30_000, do: 7, else: 65)])
    x = Draw.input(draw, {-1, 1}, [m, columns])
    w = Draw.other(draw, shape, {-128, 127}, :s8)
    vector = fn domain -> Draw.other(draw, [n], domain, Enum.random([draw.dtype, :f32])) end
    inputs = [x, w, vector.({-0.02, 0.02}), if(Draw.coin(), do: vector.({-1, 1}))]

    Case.values(:int8_matmul, inputs, :quantized, fn [x, w, scales, bias] ->
      # Rows are rounded in f32, to the same integers.
      x = Ops.astype(x, :f32)
      most = Ops.run({:max, %{axes: [-1], keepdims: true}}, [Ops.abs(x)])
      factor = Ops.divide(Array.scalar(127.0, :f32), most)
      integers = R.f64(Ops.run({:round, %{decimals: 0}}, [Ops.multiply(x, factor)]))
      sums = R.contract(R.shaped(integers, [1, m, columns]), R.shaped(R.f64(w), [1, n, columns]))
      of_rows = Ops.divide(R.f64(most), Array.scalar(127.0, :f64))
      product = Ops.multiply(Ops.multiply(R.shaped(sums, [m, n]), of_rows), R.f64(scales))
      if bias, do: Ops.add(product, R.f64(bias)), else: product
    end)
  end

  def build(:gather_qmm, draw) do
    {mode, group, bits} = how = Enum.random([{:affine, 64, 4}, {:affine, 32, 8} | @others])
    [n, columns] = shape = matrix(draw, 20_000)
    {count, picked, m} = {Enum.random(1..3), Enum.random(1..4), Enum.random([1, 5])}
    stacks = for _ <- 1..count, do: packed(shape, draw.dtype, how)
    parts = for list <- Enum.zip_with(stacks, & &1), do: Ops.stack(list)
    sorted = Draw.coin()
    right = for _ <- 1..picked, do: :rand.uniform(count) - 1
    right = if sorted, do: Enum.sort(right), else: right
    x = Draw.input(draw, {-1, 1}, [picked, m, columns])
    op = {:gather_qmm, Map.merge(attributes(mode, group, bits), %{transpose: true, sorted: sorted})}
    biases = if mode == :affine, do: [], else: [nil]
    inputs = [x | laid(parts, draw)] ++ biases ++ [nil, Input.of(Array.from_list(right, :u32), :contiguous)]

    Case.values(op, inputs, :quantized, fn [x | _] ->
      w = for i <- right, do: R.shaped(plain(Enum.at(stacks, i), how, columns), [1, n, columns])
      R.contract(R.f64(x), Ops.concatenate(w))
    end)
  end

  def build(:qqmm, draw) do
    {mode, group, bits} = how = Enum.random([{:mxfp8, 32, 8}, {:nvfp4, 16, 4}])
    [n, columns] = shape = matrix(draw, 70_000)
    [words, scales] = packed(shape, draw.dtype, how)
    x = Draw.input(draw, {-1, 1}, [1, columns])
    inputs = [x | laid([words, scales], draw)] ++ [nil, nil]

    # Half-way between two of the few numbers, where those of 16 bits often are, either is the nearest.
    tolerance = if draw.dtype == :f32, do: :quantized, else: EMLX.Tolerance.scaled(:quantized, :f16, 20)

    Case.values({:qqmm, attributes(mode, group, bits)}, inputs, tolerance, fn [x | _] ->
      # Both are rounded to the few bits.
      x = plain(Ops.run({:quantize, attributes(mode, group, bits)}, [Ops.astype(x, :f32), nil]), how, columns)
      w = plain([words, scales], how, columns)
      R.shaped(R.contract(R.shaped(x, [1, 1, columns]), R.shaped(w, [1, n, columns])), [1, n])
    end)
  end

  def build(:quantized_products, draw) do
    {rows, _, columns} = Fused.few(draw)
    k = if Draw.size(draw) == :large, do: 1024, else: Enum.random([128, 384])
    {group, bits} = Enum.random(for(g <- [32, 64, 128], b <- [4, 8], do: {g, b}))
    gated = Draw.coin()
    columns = if gated, do: [hd(columns), hd(columns)], else: Enum.take(columns, Enum.random(1..3))
    x = Draw.input(draw, {-1, 1}, [1, rows, k])

    matrices =
      for n <- columns do
        w = Input.new([n, k], draw.dtype, {-2 / :math.sqrt(k), 2 / :math.sqrt(k)}, :contiguous).values
        laid(Ops.run({:quantize, attributes(:affine, group, bits)}, [w, nil]), draw)
      end

    Fused.merged(
      :quantized_products,
      draw,
      x,
      Enum.concat(matrices),
      columns,
      gated,
      %{bits: bits, group_size: group},
      fn parts ->
        # {n, k} to {k, n}
        R.permute(plain(parts, {:affine, group, bits}, k), [1, 0])
      end
    )
  end

  def build(_name, _draw), do: nil

  # ---- what they share ----

  defp attributes(mode, group, bits), do: %{mode: mode, group_size: group, bits: bits}

  # Rows, and columns that every group divides.
  defp matrix(draw, most \\ 4_000_000) do
    shapes = [[1, 128], [3, 256], [31, 128], [7, 1024], [65, 384], [1025, 128], [8193, 128], [3, 65_536], [513, 512]]
    fits = for shape <- shapes, R.size(shape) <= most, do: shape
    {large, small} = Enum.split_with(fits, &(R.size(&1) > 60_000))
    Enum.random(if Draw.size(draw) == :large and large != [], do: large, else: small)
  end

  defp packed(shape, dtype, {mode, group, bits}) do
    w = Input.new(shape, dtype, {-1, 1}, :contiguous).values
    Ops.run({:quantize, attributes(mode, group, bits)}, [w, nil])
  end

  defp laid(parts, draw) do
    for part <- parts, do: Input.of(part, Enum.random([:contiguous, :contiguous, draw.layout]))
  end

  # {n, columns} in f64.
  defp plain(parts, {:affine, group, bits}, _columns) do
    [words, scales, biases] = parts
    affine(words, scales, biases, group, bits)
  end

  defp plain([words, scales | _], {mode, group, bits}, columns) do
    op = {:dequantize, Map.put(attributes(mode, group, bits), :dtype, :f32)}
    R.f64(few_rows(op, [words, scales], [nil, nil], columns))
  end

  # An operation on a few contiguous rows after the other.
  defp few_rows(op, arrays, more, columns) do
    [n | _] = R.dims(hd(arrays))
    step = max(1, div(1024, columns))

    for from <- 0..(n - 1)//step do
      rows = for array <- arrays, do: Shapes.cut(array, 0, R.affine(min(step, n - from), from, 1))
      Ops.run(op, rows ++ more)
    end
    |> Ops.concatenate()
  end

  # Integers of so many bits from the lowest of each row's words up, times a scale, plus a bias.
  defp affine(words, scales, biases, group, bits) do
    [_, per_row] = R.dims(words)
    columns = div(per_row * 32, bits)
    places = for j <- 0..(columns - 1), do: j * bits
    [low, high] = for next <- [0, 1], do: R.table(for place <- places, do: min(div(place, 32) + next, per_row - 1))
    shifts = R.table(for place <- places, do: rem(place, 32))
    [low, high] = for table <- [low, high], do: Ops.astype(Shapes.cut(words, 1, table), :s64)
    both = Ops.add(low, Ops.left_shift(high, Array.scalar(32, :s64)))
    codes = Ops.bitwise_and(Ops.right_shift(both, R.shaped(shifts, [1, columns])), Array.scalar(2 ** bits - 1, :s64))
    Ops.add(Ops.multiply(R.f64(codes), repeated(scales, group)), repeated(biases, group))
  end

  defp repeated(array, group) do
    [_, groups] = R.dims(array)
    R.f64(Shapes.cut(array, 1, Ops.quotient(R.affine(groups * group, 0, 1), Array.scalar(group, :s64))))
  end
end
