defmodule EMLX.Differential.Fused do
  @moduledoc "Fused kernels, for the differential suite: by their formulas in f64."

  alias EMLX.{Array, Ops}
  alias EMLX.Differential.{Case, Draw, Input, Reductions, Shapes}
  alias EMLX.Differential.Reference, as: R

  @types [:f16, :bf16, :f32]

  def build(:softmax, %{dtype: :c64}), do: :skip

  def build(:softmax, draw) do
    draw = Shapes.lined(draw)
    rank = length(draw.shape)
    axes = Enum.random([nil, [rank - 1], Input.some(Reductions.all(rank))])
    reduced = axes || Reductions.all(rank)
    n = reduced |> Enum.map(&Enum.at(draw.shape, &1)) |> R.size()
    precise = n > 31 or Draw.coin()
    op = {:softmax, %{axes: axes && Enum.map(axes, &Draw.written(&1, rank)), precise: precise}}
    kept = Reductions.all(rank) -- reduced
    rows = for axis <- Enum.take(Enum.shuffle(kept), 1), do: {:rows, {axis, axis}}
    domain = if draw.dtype in [:f64 | @types], do: {-4, 4}, else: {0, 3}

    Case.values(
      op,
      [Draw.input(draw, domain)],
      # Elements are small where there are many.
      :tail,
      fn [x] ->
        {lines, _} = R.rows(x, reduced)
        sizes = for axis <- kept ++ reduced, do: Enum.at(draw.shape, axis)

        if R.size(draw.shape) == 0,
          do: x,
          else: R.f64(lines) |> softmax() |> R.shaped(sizes) |> R.permute(R.inverse(kept ++ reduced))
      end,
      rows
    )
  end

  def build(_name, %{dtype: dtype}) when dtype not in @types, do: :skip

  def build(name, draw) when name in [:rms_norm, :layer_norm] do
    draw = Shapes.lined(draw)
    n = List.last(draw.shape)
    eps = Enum.random([1.0e-6, 1.0e-3])
    weight = Enum.random([nil, Draw.other(draw, [n], {-2, 2})])
    bias = if name == :layer_norm, do: [Enum.random([nil, Draw.other(draw, [n], {-2, 2})])], else: []
    range = if draw.dtype == :f32, do: Enum.random([{-2, 2}, {9, 11}]), else: {-2, 2}
    x = Draw.input(draw, range)
    rows = for axis <- Enum.take(Enum.shuffle(Reductions.all(length(draw.shape) - 1)), 1), do: {:rows, {axis, axis}}

    # What is left of equal numbers is their mean's rounding, which a small eps makes large. The numbers of a short row
    # may be nearly equal.
    near? = draw.layout == :broadcast or (range == {9, 11} and n <= 16)
    equal = name == :layer_norm and draw.dtype == :f32 and near?
    tolerance = if equal, do: EMLX.Tolerance.scaled(:fused, :f32, 1 / :math.sqrt(eps)), else: :fused

    Case.values(
      {name, %{eps: eps}},
      [x, weight | bias],
      tolerance,
      fn [x, weight | bias] ->
        if R.size(draw.shape) == 0 do
          x
        else
          lines = R.f64(R.shaped(x, [div(R.size(draw.shape), n), n]))
          lines = if name == :layer_norm, do: Ops.subtract(lines, R.column(Reductions.mean(lines))), else: lines
          lines = normed(lines, eps)
          lines = if weight, do: Ops.multiply(lines, R.shaped(R.f64(weight), [1, n])), else: lines
          lines = if bias in [[], [nil]], do: lines, else: Ops.add(lines, R.shaped(R.f64(hd(bias)), [1, n]))
          R.shaped(lines, draw.shape)
        end
      end,
      rows
    )
  end

  def build(:rope, draw) do
    [batch, length, size] =
      Draw.by_size(draw,
        small: [[1, 1, 2], [2, 7, 8], [3, 31, 64], [1, 5, 80]],
        large: [[1, 1025, 64], [1025, 3, 64], [3, 257, 128], [1, 8193, 8]]
      )

    heads = Enum.random([[], [1], [3]])
    shape = [batch] ++ heads ++ [length, size]
    part = Enum.random([1, 2])
    part = if rem(div(size, part), 2) == 0, do: part, else: 1
    rotated = div(size, part)
    half = div(rotated, 2)
    traditional = Draw.coin()
    scale = Enum.random([1.0, 0.5])
    starts = for _ <- 1..batch, do: Enum.random([0, 3, 60])
    offset = Enum.random([Array.scalar(hd(starts), :s32), Array.from_list(starts, :s32)])
    freqs = Enum.random([nil, Input.new([half], :f32, {1.0, 100.0}, Enum.random([:contiguous, :sliced]))])
    base = if freqs, do: nil, else: 10_000.0
    op = {:rope, %{dims: rotated, traditional: traditional, base: base, scale: scale}}
    inputs = [Draw.input(draw, {-2, 2}, shape), Input.of(offset, :contiguous), freqs]

    Case.values(op, inputs, turned_by(length + Enum.max(starts), draw), fn [x, offset, freqs] ->
      frequencies = frequencies(freqs, base, half)
      rope(R.f64(x), R.f64(offset), frequencies, half, traditional, scale)
    end)
  end

  def build(:scaled_dot_product_attention, draw) do
    {batch, heads, kv_heads, queries, keys, size} =
      Draw.by_size(draw,
        small: [
          {1, 1, 1, 1, 1, 64},
          {2, 4, 2, 7, 31, 64},
          {1, 8, 8, 1, 1025, 64},
          {1, 2, 1, 65, 129, 80},
          {3, 2, 2, 31, 31, 32}
        ],
        large: [{1, 8, 2, 1, 8193, 64}, {2, 2, 2, 257, 257, 64}, {33, 4, 1, 31, 31, 64}]
      )

    mode = Enum.random([:none, :causal, :array])
    layout = Enum.random([nil, :bhsd, :bshd])

    laid_out = fn count, length ->
      if layout == :bshd, do: [batch, length, count, size], else: [batch, count, length, size]
    end

    q = Draw.input(draw, {-2, 2}, laid_out.(heads, queries))
    [k, v] = for _ <- 1..2, do: Draw.other(draw, laid_out.(kv_heads, keys), {-2, 2})
    mask = mask(mode, draw, [Enum.random([1, batch]), Enum.random([1, heads]), Enum.random([1, queries]), keys])
    sinks = if Draw.coin(), do: Draw.other(draw, [heads], {-1, 1})
    scale = 1 / :math.sqrt(size)
    op = {:scaled_dot_product_attention, %{scale: scale, mask: mode, layout: layout}}
    swapped = &if(layout == :bshd, do: R.permute(&1, [0, 2, 1, 3]), else: &1)

    Case.values(op, [q, k, v, mask, sinks], :fused, fn [q, k, v, mask, sinks] ->
      [q, k, v] = Enum.map([q, k, v], swapped)
      swapped.(attention(q, k, v, seen(mode, mask, queries, keys), sinks, scale))
    end)
  end

  def build(:cross_entropy, draw) do
    draw = Shapes.lined(draw)
    {lead, [classes]} = Enum.split(draw.shape, -1)

    targets =
      Input.new(
        lead,
        Enum.random([:s32, :s64, :u32]),
        {0, max(classes - 1, 0)},
        Enum.random([:contiguous, :sliced, :reversed])
      )

    Case.values(:cross_entropy, [Draw.input(draw, {-4, 4}), targets], :summed, fn [x, targets] ->
      {lines, _} = R.rows(R.f64(x), [length(draw.shape) - 1])
      chosen = R.gather(lines, R.column(R.flat(targets)))
      R.shaped(Ops.subtract(Reductions.logsumexp(lines), R.flat(chosen)), lead)
    end)
  end

  # ---- what stands for several ----

  def build(:products, draw) do
    {rows, k, columns} = few(draw)
    gated = Draw.coin()
    count = if gated, do: 2, else: Enum.random(1..3)
    columns = if gated, do: [hd(columns), hd(columns)], else: Enum.take(columns, count)
    x = Draw.input(draw, {-1, 1}, [1, rows, k])
    matrices = for n <- columns, do: Draw.other(draw, [k, n], {-2 / :math.sqrt(k), 2 / :math.sqrt(k)})
    merged(:products, draw, x, matrices, columns, gated, %{}, &R.f64/1)
  end

  def build(:rope_heads, draw) do
    {rows, size, heads, kv_heads} =
      Draw.by_size(draw,
        small: [{1, 64, 4, 2}, {3, 16, 2, 2}, {6, 64, 4, 1}, {31, 8, 1, 1}],
        large: [{257, 64, 4, 2}, {1025, 16, 4, 4}]
      )

    repeat = div(heads, kv_heads)
    eps = Enum.random([nil, 1.0e-6])

    [q, k, v] = [
      Draw.input(draw, {-2, 2}, [rows, heads * size])
      | for(_ <- 1..2, do: Draw.other(draw, [rows, kv_heads * size], {-2, 2}))
    ]

    norms = for _ <- 1..2, do: if(eps, do: Draw.other(draw, [size], {0.5, 2}))
    offsets = Input.new([rows], :s32, {0, 60}, Enum.random([:contiguous, :sliced]))
    freqs = if Draw.coin(), do: Input.new([div(size, 2)], :f32, {1.0, 100.0}, :contiguous)
    base = if freqs, do: nil, else: 10_000.0
    lead = Enum.random([[rows], [1, rows]])
    op = {:rope_heads, %{lead: lead, size: size, repeat: repeat, eps: eps, base: base, scale: 1.0}}
    dtype = draw.dtype

    Case.values(op, [q, k, v, offsets] ++ norms ++ [freqs], :product, fn [q, k, v, offsets, q_norm, k_norm, freqs] ->
      frequencies = frequencies(freqs, base, div(size, 2))

      turned = fn x, weight, n ->
        x = R.shaped(R.f64(x), [rows * n, size])
        x = if eps, do: rounded(Ops.multiply(normed(x, eps), R.shaped(R.f64(weight), [1, size])), dtype), else: x
        rope(R.shaped(x, [rows, n, 1, size]), R.f64(offsets), frequencies, div(size, 2), false, 1.0)
      end

      repeated = fn x -> R.spread(R.shaped(x, [rows, kv_heads, 1, size]), [rows, kv_heads, repeat, size]) end
      wants = [turned.(q, q_norm, heads), repeated.(turned.(k, k_norm, kv_heads)), repeated.(v)]
      Enum.map(wants, &R.shaped(&1, lead ++ [heads, size]))
    end)
  end

  def build(:cache_attention, draw) do
    {batch, length, heads, kv_heads, size} =
      Draw.by_size(draw,
        small: [{1, 1, 4, 4, 64}, {2, 70, 4, 2, 24}, {3, 31, 2, 1, 128}],
        large: [{1, 8193, 4, 2, 64}, {33, 129, 2, 2, 64}]
      )

    q = Draw.input(draw, {-2, 2}, [batch, 1, heads, size])
    [k, v] = for _ <- 1..2, do: Draw.other(draw, [batch, length, kv_heads, size], {-2, 2})
    mask = if Draw.coin(), do: boolean([Enum.random([1, batch]), Enum.random([1, heads]), 1, length])
    scale = 1 / :math.sqrt(size)
    op = {:cache_attention, %{scale: scale, shape: [batch, heads * size]}}

    Case.values(op, [q, k, v, mask], :product, fn [q, k, v, mask] ->
      [q, k, v] = for x <- [q, k, v], do: R.permute(x, [0, 2, 1, 3])
      R.shaped(attention(q, k, v, mask, nil, scale), [batch, heads * size])
    end)
  end

  def build(_name, _draw), do: nil

  @doc "How many rows, their size, and columns of three matrices."
  def few(draw) do
    Draw.by_size(draw,
      small: [{1, 64, [64, 32, 96]}, {2, 200, [64, 7, 33]}, {4, 64, [5, 64, 1]}, {5, 128, [31, 31, 31]}],
      large: [{4, 1024, [257, 65, 129]}, {1, 4096, [129, 31, 65]}, {65, 256, [65, 64, 31]}]
    )
  end

  @doc """
  A case of `:products` or `:quantized_products`: `matrix` makes {k, n} in f64 of what a matrix is. Rounded where the
  operations that it stands for round.
  """
  def merged(name, %{dtype: dtype} = draw, x, matrices, columns, gated, attributes, matrix) do
    [1, rows, k] = Tuple.to_list(Array.shape(x.values))
    single = gated or length(columns) == 1
    eps = Enum.random([nil, 1.0e-5])
    norm = if eps, do: Draw.other(draw, [k], {0.5, 2})
    residual = if single and not gated and Draw.coin(), do: Draw.other(draw, [1, rows, hd(columns)], {-1, 1})
    shape = if single and Draw.coin(), do: [rows, 1, hd(columns)]
    op = {name, Map.merge(%{eps: eps, gated: gated, shape: shape}, attributes)}
    each = div(length(matrices), length(columns))

    Case.values(op, [x, norm, residual | matrices], :product, fn [x, norm, residual | matrices] ->
      lines = R.shaped(R.f64(x), [rows, k])
      lines = if norm, do: rounded(Ops.multiply(normed(lines, eps), R.shaped(R.f64(norm), [1, k])), dtype), else: lines
      matrices = if each == 1, do: matrices, else: Enum.chunk_every(matrices, each)

      products =
        for {m, n} <- Enum.zip(matrices, columns) do
          R.shaped(R.multiply(R.shaped(lines, [1, rows, k]), R.shaped(matrix.(m), [1, k, n])), [rows, n])
        end

      results =
        case {products, gated, residual} do
          {[gate, up], true, nil} ->
            [gate, up] = for x <- [gate, up], do: rounded(x, dtype)
            silu = Ops.divide(gate, Ops.add(Ops.exp(Ops.negative(gate)), 1.0))
            [Ops.multiply(silu, up)]

          {[product], false, %Array{}} ->
            [Ops.add(product, R.shaped(R.f64(residual), [rows, hd(columns)]))]

          _ ->
            products
        end

      if shape, do: Enum.map(results, &R.shaped(&1, shape)), else: results
    end)
  end

  # Angles are computed in f32, and are as exact as that is for the last position.
  defp turned_by(positions, draw), do: EMLX.Tolerance.scaled(:fused, draw.dtype, max(1.0, positions / 60))

  # ---- formulas ----

  defp rounded(x, dtype), do: R.f64(Ops.astype(x, dtype))

  defp softmax(rows) do
    powers = Ops.exp(Ops.subtract(rows, R.column(R.max(rows))))
    Ops.divide(powers, R.column(R.sum(powers)))
  end

  # Rows divided by their root mean square.
  defp normed(rows, eps) do
    mean = Reductions.mean(Ops.square(rows))
    Ops.divide(rows, R.column(Ops.sqrt(Ops.add(mean, eps))))
  end

  defp frequencies(nil, base, half),
    do: Array.from_list(for(i <- 0..(half - 1), do: :math.pow(base, -i / half)), :f64)

  defp frequencies(freqs, _base, _half), do: Ops.reciprocal(R.f64(freqs))

  # {batch, …, length, size}: pairs of the first 2·half numbers are turned by (offset + position) · scale · frequency.
  defp rope(x, offset, frequencies, half, traditional, scale) do
    [batch | rest] = dims = R.dims(x)
    [length, size] = Enum.take(rest, -2)
    between = div(R.size(rest), max(length * size, 1))
    x = R.shaped(x, [batch, between, length, size])
    starts = R.spread(R.shaped(offset, [Array.size(offset)]), [batch])
    positions = Ops.multiply(Ops.add(R.along(starts, 0, 4), R.along(R.f64(R.affine(length, 0, 1)), 2, 4)), scale)
    angles = Ops.multiply(positions, R.along(frequencies, 3, 4))
    {cos, sin} = {Ops.cos(angles), Ops.sin(angles)}

    {first, second} =
      if traditional,
        do: {R.affine(half, 0, 2), R.affine(half, 1, 2)},
        else: {R.affine(half, 0, 1), R.affine(half, half, 1)}

    [a, b] = for places <- [first, second], do: Shapes.cut(x, 3, places)

    turned = [
      Ops.subtract(Ops.multiply(a, cos), Ops.multiply(b, sin)),
      Ops.add(Ops.multiply(a, sin), Ops.multiply(b, cos))
    ]

    rest = Shapes.cut(x, 3, R.affine(size - 2 * half, 2 * half, 1))
    joined = Ops.concatenate(turned ++ [rest], axis: 3)
    # Where each of the result's numbers is among them.
    order =
      if traditional, do: for(i <- 0..(half - 1), j <- [0, 1], do: j * half + i), else: Enum.to_list(0..(2 * half - 1))

    order = order ++ Enum.to_list((2 * half)..(size - 1)//1)
    R.shaped(Shapes.cut(joined, 3, R.table(order)), dims)
  end

  defp mask(:array, draw, shape), do: if(Draw.coin(), do: boolean(shape), else: Draw.other(draw, shape, {-2, 2}))
  defp mask(_mode, _draw, _shape), do: nil

  # The first key is seen by all.
  defp boolean(shape) do
    %{values: values} = Input.new(shape, :bool, {0, 1}, :contiguous)
    first = R.along(Ops.equal(R.affine(List.last(shape), 0, 1), Array.scalar(0, :s64)), 3, 4)
    Input.of(Ops.logical_or(values, first), Enum.random([:contiguous, :sliced, :transposed]))
  end

  defp seen(:causal, _mask, queries, keys) do
    [row, column] = R.coordinates([queries, keys])
    R.shaped(Ops.less_equal(column, Ops.add(row, Array.scalar(keys - queries, :s64))), [1, 1, queries, keys])
  end

  defp seen(_mode, mask, _queries, _keys), do: mask

  # {batch, heads, length, size} each, f64.
  defp attention(q, k, v, mask, sinks, scale) do
    [batch, heads, queries, size] = R.dims(q)
    [_, kv_heads, keys, _] = R.dims(k)
    repeat = div(heads, kv_heads)
    all = batch * heads

    [k, v] =
      for x <- [k, v] do
        x = R.shaped(R.f64(x), [batch, kv_heads, 1, keys, size])
        R.shaped(R.spread(x, [batch, kv_heads, repeat, keys, size]), [all, keys, size])
      end

    scores = R.contract(R.shaped(R.f64(q), [all, queries, size]), k)
    scores = R.shaped(Ops.multiply(scores, scale), [batch, heads, queries, keys])

    scores =
      cond do
        mask == nil ->
          scores

        Array.dtype(mask) == :bool ->
          Ops.where(R.spread(mask, R.dims(scores)), scores, Array.scalar(:neg_infinity, :f64))

        true ->
          Ops.add(scores, R.spread(R.f64(mask), R.dims(scores)))
      end

    lines = R.shaped(scores, [all * queries, keys])

    lines =
      if sinks do
        sinks = R.spread(R.shaped(R.f64(sinks), [1, heads, 1]), [batch, heads, queries])
        Ops.concatenate([lines, R.column(R.flat(sinks))], axis: 1)
      else
        lines
      end

    weights = R.columns(softmax(lines), 0, keys)
    R.shaped(R.multiply(R.shaped(weights, [all, queries, keys]), v), [batch, heads, queries, size])
  end
end
