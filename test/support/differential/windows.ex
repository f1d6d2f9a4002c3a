defmodule EMLX.Differential.Windows do
  @moduledoc "Convolutions and sliding windows, for the differential suite: by all windows as rows."

  alias EMLX.{Array, Ops}
  alias EMLX.Differential.{Case, Draw, Input, Shapes}
  alias EMLX.Differential.Reference, as: R

  @floats [:f16, :bf16, :f32, :f64]

  # {batch, space, channels in, channels out}
  @small [
    {1, [1], 1, 1},
    {2, [31], 3, 5},
    {1, [1025], 1, 2},
    {3, [7], 7, 1},
    {1, [7, 9], 3, 2},
    {2, [31, 5], 1, 3},
    {1, [3, 4, 5], 2, 2}
  ]
  @large [{1, [65_537], 1, 2}, {1025, [31], 3, 2}, {1, [257, 129], 3, 2}, {3, [8193], 3, 1}, {1, [17, 31, 65], 1, 2}]

  # Complex numbers have no order, and their products are not those of their parts.
  def build(name, %{dtype: :c64}) when name in [:window_reduce, :window_scatter], do: :skip

  def build(:conv, draw) do
    {batch, space, inside, outside} = Draw.by_size(draw, small: @small, large: @large, empty: [{0, [5], 2, 3}])
    rank = length(space)
    groups = if rank > 2, do: 1, else: Enum.random([1, inside])
    outside = outside * groups
    kernel = for n <- space, do: Enum.random([1, 2, 3] -- if(n < 3, do: [2, 3], else: []))
    [stride, kernel_dilation] = for _ <- 1..2, do: for(_ <- 1..rank, do: Enum.random([1, 1, 2]))
    input_dilation = for _ <- 1..rank, do: Enum.random([1, 1, 1, 2])
    [low, high] = for _ <- 1..2, do: for(_ <- 1..rank, do: Enum.random([0, 1, 2]))
    flip = Draw.coin()
    # A window has to fit.
    {low, kernel_dilation} = fit(space, kernel, kernel_dilation, low)

    attributes = %{
      stride: stride,
      padding_low: low,
      padding_high: high,
      kernel_dilation: kernel_dilation,
      input_dilation: input_dilation,
      groups: groups,
      flip: flip
    }

    k = R.size(kernel) * div(inside, groups)
    inputs = operands(draw, [batch] ++ space ++ [inside], [outside] ++ kernel ++ [div(inside, groups)], k)

    Case.values({:conv, attributes}, inputs, :product, fn [x, w] ->
      R.bilinear(R.split(x), R.split(w), fn x, w ->
        w = if flip, do: turned(w, rank), else: w
        correlate(x, w, stride, {low, high}, kernel_dilation, input_dilation, groups)
      end)
    end)
  end

  def build(:conv_transpose, draw) do
    {batch, space, inside, outside} = Draw.by_size(draw, small: @small, large: @large)
    rank = length(space)
    groups = if rank > 2, do: 1, else: Enum.random([1, inside])
    outside = outside * groups
    kernel = for _ <- space, do: Enum.random([1, 2, 3])
    [stride, dilation] = for _ <- 1..2, do: for(_ <- 1..rank, do: Enum.random([1, 1, 2]))
    padding = for {k, d} <- Enum.zip(kernel, dilation), do: Enum.random([0, min(1, (k - 1) * d)])
    output_padding = for s <- stride, do: Enum.random([0, min(1, s - 1)])
    # An output has to be left.
    padding = for {p, n} <- Enum.zip(padding, space), do: if(n < 3, do: 0, else: p)

    attributes = %{stride: stride, padding: padding, dilation: dilation, output_padding: output_padding, groups: groups}
    k = R.size(kernel) * div(inside, groups)
    inputs = operands(draw, [batch] ++ space ++ [inside], [outside] ++ kernel ++ [div(inside, groups)], k)

    Case.values({:conv_transpose, attributes}, inputs, :product, fn [x, w] ->
      reach = for {k, d} <- Enum.zip(kernel, dilation), do: (k - 1) * d
      low = for {r, p} <- Enum.zip(reach, padding), do: r - p
      high = for {{r, p}, o} <- reach |> Enum.zip(padding) |> Enum.zip(output_padding), do: r - p + o
      ones = Enum.map(space, fn _ -> 1 end)

      R.bilinear(R.split(x), R.split(w), fn x, w ->
        correlate(x, turned(w, rank), ones, {low, high}, dilation, stride, groups)
      end)
    end)
  end

  def build(:window_reduce, draw) do
    reduction = Enum.random([:sum, :prod, :max, :min])
    domain = if draw.dtype in @floats, do: if(reduction == :prod, do: {0.5, 1.5}, else: {0, 2}), else: {-3, 3}
    {window, strides, dilation} = windows(draw)

    [low, high] =
      for _ <- 1..2,
          do:
            for(
              {n, w} <- Enum.zip(draw.shape, window),
              do: if(w > 1, do: Enum.random([0, 1, w - 1]), else: Enum.random([0, 0, if(n in 1..100, do: 1, else: 0)]))
            )

    attributes = %{
      reduction: reduction,
      window: window,
      strides: strides,
      padding_low: low,
      padding_high: high,
      dilation: dilation
    }

    Case.values({:window_reduce, attributes}, [Draw.input(draw, domain)], tolerance(reduction), fn [x] ->
      none = Array.scalar(identity(reduction, draw.dtype), draw.dtype)
      x = padded(x, low, high, none)
      {rows, dims} = view(x, window, strides, dilation)
      rows = if reduction in [:sum, :prod], do: R.split(rows), else: rows
      R.linear(rows, &R.shaped(R.fold(&1, combine(reduction)), dims))
    end)
  end

  def build(:window_view, draw) do
    {window, strides, dilation} = windows(draw)
    attributes = %{window: window, strides: strides, dilation: dilation}

    Case.values({:window_view, attributes}, [Draw.input(draw, :special)], :bits, fn [x] ->
      {rows, dims} = view(x, window, strides, dilation)
      R.shaped(rows, dims ++ window)
    end)
  end

  def build(:window_scatter, draw) do
    draw = Shapes.lined(draw)
    reduction = Enum.random([:max, :min])
    {window, strides, _} = windows(draw)
    low = for w <- window, do: if(w > 1, do: Enum.random([0, 1]), else: 0)
    high = low
    ones = Enum.map(window, fn _ -> 1 end)

    outputs =
      for {n, w, s, l, h} <- Enum.zip([draw.shape, window, strides, low, high]), do: max(div(n + l + h - w, s) + 1, 0)

    outputs =
      if Enum.any?(Enum.zip([draw.shape, window, low, high]), fn {n, w, l, h} -> n + l + h < w end),
        do: Enum.map(outputs, fn _ -> 0 end),
        else: outputs

    inputs = [Draw.input(draw, {:few, 5}), Draw.other(draw, outputs, {0, 2}), Draw.other(draw, [], {0, 2})]
    attributes = %{reduction: reduction, window: window, strides: strides, padding_low: low, padding_high: high}

    Case.values({:window_scatter, attributes}, inputs, :summed, fn [x, source, init] ->
      size = R.size(window)
      none = Array.scalar(identity(reduction, draw.dtype), draw.dtype)
      {rows, _} = view(padded(x, low, high, none), window, strides, ones)
      own = R.spread(Array.scalar(1, :s64), draw.shape)
      {own, _} = view(padded(own, low, high, Array.scalar(0, :s64)), window, strides, ones)
      own = Ops.equal(own, Array.scalar(1, :s64))
      best = R.column(R.fold(Ops.where(own, rows, none), combine(reduction)))
      chosen = R.first(Ops.logical_and(own, Ops.equal(rows, best)))

      R.linear(R.split(source), fn source ->
        start = R.spread(R.split(init), draw.shape)

        for i <- 0..(size - 1), reduce: start do
          total ->
            offsets = EMLX.Differential.Compare.indices(i, window)
            mine = Ops.equal(chosen, Array.scalar(i, :s64))
            part = R.shaped(Ops.where(mine, R.flat(source), Array.scalar(0, Array.dtype(source))), outputs)

            tables =
              for {n, k, s, l, o} <- Enum.zip([draw.shape, offsets, strides, low, outputs]),
                  do: Shapes.inside(Shapes.apart(R.affine(n, l - k, 1), s), 0, o - 1)

            Ops.add(total, R.move(part, Shapes.scaled(tables, outputs), Array.scalar(0, :s64)))
        end
      end)
    end)
  end

  def build(_name, _draw), do: nil

  # ---- convolutions ----

  defp operands(%{dtype: dtype} = draw, x, w, k) do
    {first, second} =
      if dtype in @floats or dtype == :c64, do: {{0, 1}, {0, 2 * min(1, 50 / max(k, 1))}}, else: {{-9, 9}, {-9, 9}}

    [Draw.input(draw, first, x), Draw.other(draw, w, second)]
  end

  defp fit(space, kernel, dilation, low) do
    for {n, k, d, l} <- Enum.zip([space, kernel, dilation, low]) do
      if n + l >= (k - 1) * d + 1, do: {l, d}, else: {(k - 1) * d, d}
    end
    |> Enum.unzip()
  end

  # Weights with their axes of space turned round.
  defp turned(w, rank),
    do: Enum.reduce(1..rank, w, &Shapes.cut(&2, &1, R.affine(Enum.at(R.dims(w), &1), Enum.at(R.dims(w), &1) - 1, -1)))

  # Batch, space…, channels by out, space…, in / groups.
  defp correlate(x, w, stride, {low, high}, kernel_dilation, input_dilation, groups) do
    [batch | rest] = R.dims(x)
    {space, [inside]} = Enum.split(rest, -1)
    [outside | more] = R.dims(w)
    {kernel, [_]} = Enum.split(more, -1)
    x = spread(x, low, high, input_dilation)
    sizes = x |> R.dims() |> Enum.slice(1, length(space))

    outputs =
      for {n, k, d, s} <- Enum.zip([sizes, kernel, kernel_dilation, stride]),
          do: max(div(n - (k - 1) * d - 1, s) + 1, 0)

    [own | strides] = R.strides(R.dims(x))
    {strides, [_]} = Enum.split(strides, -1)
    {per_group, of_group} = {div(inside, groups), div(outside, groups)}

    parts =
      for g <- 0..(groups - 1) do
        tables =
          [R.affine(batch, 0, own)] ++
            for({n, s, stride} <- Enum.zip([outputs, stride, strides]), do: R.affine(n, 0, s * stride)) ++
            for({k, d, stride} <- Enum.zip([kernel, kernel_dilation, strides]), do: R.affine(k, 0, d * stride)) ++
            [R.affine(per_group, g * per_group, 1)]

        k = R.size(kernel) * per_group
        patches = R.shaped(R.move(x, tables), [1, batch * R.size(outputs), k])
        weights = Shapes.cut(w, 0, R.affine(of_group, g * of_group, 1))
        R.shaped(R.contract(patches, R.shaped(weights, [1, of_group, k])), [batch] ++ outputs ++ [of_group])
      end

    Ops.concatenate(parts, axis: -1)
  end

  # Zeros between neighbours and around.
  defp spread(x, low, high, dilation) do
    [batch | rest] = dims = R.dims(x)
    {space, [channels]} = Enum.split(rest, -1)

    tables =
      for {n, l, h, d} <- Enum.zip([space, low, high, dilation]) do
        long = max(n - 1, 0) * d + min(n, 1)
        Shapes.apart(Shapes.inside(R.affine(long + l + h, -l, 1), 0, long - 1), d)
      end

    tables = [R.affine(batch, 0, 1)] ++ tables ++ [R.affine(channels, 0, 1)]
    R.move(x, Shapes.scaled(tables, dims), Array.scalar(0, Array.dtype(x)))
  end

  # ---- windows ----

  # For each axis a window, a stride and a dilation; not many elements in all.
  defp windows(draw) do
    large = Draw.size(draw) == :large
    wide = if draw.shape == [], do: nil, else: Enum.random(0..(length(draw.shape) - 1))

    for {n, axis} <- Enum.with_index(draw.shape) do
      window =
        if axis == wide, do: Enum.random([3, 5] ++ if(large, do: [], else: [31, 64])), else: Enum.random([1, 1, 2])

      window = window |> min(max(n, 1)) |> then(&if(large and axis != wide, do: 1, else: &1))
      {window, Enum.random([1, 1, 2, 3]), if((window - 1) * 2 < n, do: Enum.random([1, 1, 2]), else: 1)}
    end
    |> Enum.reduce({[], [], []}, fn {a, b, c}, {as, bs, cs} -> {[a | as], [b | bs], [c | cs]} end)
    |> then(fn {a, b, c} -> {Enum.reverse(a), Enum.reverse(b), Enum.reverse(c)} end)
  end

  defp padded(x, low, high, none) do
    dims = R.dims(x)

    tables = for {n, l, h} <- Enum.zip([dims, low, high]), do: Shapes.inside(R.affine(n + l + h, -l, 1), 0, n - 1)
    R.move(x, Shapes.scaled(tables, dims), none)
  end

  # All windows as rows, and the sizes of the output.
  defp view(x, window, strides, dilation) do
    dims = R.dims(x)
    outputs = for {n, w, s, d} <- Enum.zip([dims, window, strides, dilation]), do: outputs(n, w, s, d)
    steps = R.strides(dims)
    first = for {n, s, step} <- Enum.zip([outputs, strides, steps]), do: R.affine(n, 0, s * step)
    inside = for {w, d, step} <- Enum.zip([window, dilation, steps]), do: R.affine(w, 0, d * step)
    {R.shaped(R.move(x, first ++ inside), [R.size(outputs), R.size(window)]), outputs}
  end

  defp outputs(n, window, stride, dilation) do
    reach = (window - 1) * dilation + 1
    if n < reach, do: 0, else: div(n - reach, stride) + 1
  end

  defp tolerance(:sum), do: :summed
  defp tolerance(:prod), do: :multiplied
  defp tolerance(_), do: :exact

  defp combine(:sum), do: &Ops.add/2
  defp combine(:prod), do: &Ops.multiply/2
  defp combine(:max), do: &Ops.maximum/2
  defp combine(:min), do: &Ops.minimum/2

  defp identity(:sum, _dtype), do: 0
  defp identity(:prod, _dtype), do: 1

  defp identity(reduction, dtype) do
    least = reduction == :max

    cond do
      dtype in @floats -> if(least, do: :neg_infinity, else: :infinity)
      dtype == :bool -> if(least, do: 0, else: 1)
      dtype == :c64 -> 0
      true -> elem(Input.range(dtype), if(least, do: 0, else: 1))
    end
  end
end
