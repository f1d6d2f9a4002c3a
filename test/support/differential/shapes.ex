defmodule EMLX.Differential.Shapes do
  @moduledoc """
  Operations that move elements, for the differential suite: by where each element of the result comes from.
  """

  alias EMLX.{Array, Ops}
  alias EMLX.Differential.{Case, Draw, Input, Reductions}
  alias EMLX.Differential.Reference, as: R

  # Results are to stay of the inputs' order of size.
  @most 4_000_000

  def build(:reshape, draw) do
    size = R.size(draw.shape)
    merged = with [_, _ | _] = shape <- draw.shape, do: [hd(shape) * Enum.at(shape, 1) | Enum.drop(shape, 2)]
    parts = for d <- [2, 3, 5, 7, 31], size > 0, rem(size, d) == 0, do: [d, div(size, d)]
    targets = [[size], Enum.reverse(draw.shape), merged, [1 | draw.shape]] ++ parts
    target = Enum.random(targets)
    target = if size > 0 and target != [] and Draw.coin(), do: List.replace_at(target, 0, -1), else: target
    moved({:reshape, %{shape: target}}, draw, &R.shaped(&1, open(target, size)))
  end

  def build(:flatten, draw) do
    case length(draw.shape) do
      0 ->
        moved({:flatten, %{start_axis: 0, end_axis: -1}}, draw, &R.shaped(&1, [1]))

      rank ->
        from = Enum.random(0..(rank - 1))
        to = Enum.random(from..(rank - 1))
        {before, rest} = Enum.split(draw.shape, from)
        {joined, behind} = Enum.split(rest, to - from + 1)
        op = {:flatten, %{start_axis: Draw.written(from, rank), end_axis: Draw.written(to, rank)}}
        moved(op, draw, &R.shaped(&1, before ++ [R.size(joined)] ++ behind))
    end
  end

  def build(:unflatten, draw) do
    draw = lined(draw)
    axis = Draw.axis(draw)
    n = Enum.at(draw.shape, axis)
    parts = [[n], [1, n], [n, 1]] ++ for(d <- [2, 3, 5, 31, 1025], n > 0, rem(n, d) == 0, do: [d, div(n, d)])
    part = Enum.random(parts)
    written = if n > 0 and Draw.coin(), do: List.replace_at(part, 0, -1), else: part
    target = draw.shape |> List.replace_at(axis, part) |> List.flatten()
    moved({:unflatten, %{axis: Draw.written(axis, length(draw.shape)), shape: written}}, draw, &R.shaped(&1, target))
  end

  def build(:squeeze, draw) do
    with_ones = Enum.flat_map(draw.shape, &if(Draw.coin(), do: [1, &1], else: [&1])) ++ [1]
    ones = for {1, i} <- Enum.with_index(with_ones), do: i
    axes = Input.some(ones)
    left = for {size, i} <- Enum.with_index(with_ones), i not in axes, do: size
    written = Enum.map(axes, &Draw.written(&1, length(with_ones)))
    moved({:squeeze, %{axes: written}}, %{draw | shape: with_ones}, &R.shaped(&1, left))
  end

  def build(:expand_dims, draw) do
    rank = length(draw.shape) + Enum.random(1..2)
    axes = Enum.take_random(0..(rank - 1), rank - length(draw.shape))
    {dims, []} = Enum.map_reduce(0..(rank - 1), draw.shape, &if(&1 in axes, do: {1, &2}, else: {hd(&2), tl(&2)}))
    moved({:expand_dims, %{axes: Enum.map(axes, &Draw.written(&1, rank))}}, draw, &R.shaped(&1, dims))
  end

  def build(:transpose, draw) do
    perm = Enum.shuffle(Reductions.all(length(draw.shape)))
    written = Enum.map(perm, &Draw.written(&1, length(perm)))
    moved({:transpose, %{axes: written}}, draw, &R.permute(&1, perm))
  end

  def build(:swapaxes, draw) do
    draw = lined(draw)
    [a, b] = for _ <- 1..2, do: Draw.axis(draw)
    all = Reductions.all(length(draw.shape))
    perm = all |> List.replace_at(a, b) |> List.replace_at(b, a)
    op = {:swapaxes, %{axis1: Draw.written(a, length(all)), axis2: Draw.written(b, length(all))}}
    moved(op, draw, &R.permute(&1, perm))
  end

  def build(:moveaxis, draw) do
    draw = lined(draw)
    [from, to] = for _ <- 1..2, do: Draw.axis(draw)
    all = Reductions.all(length(draw.shape))
    perm = all |> List.delete_at(from) |> List.insert_at(to, from)
    op = {:moveaxis, %{source: Draw.written(from, length(all)), destination: Draw.written(to, length(all))}}
    moved(op, draw, &R.permute(&1, perm))
  end

  def build(:broadcast_to, draw) do
    own = for size <- draw.shape, do: Enum.random([size, 1])
    more = if R.size(draw.shape) * 3 < @most, do: Enum.random([[], [], [3], [2, 1]]), else: []
    target = more ++ draw.shape
    moved({:broadcast_to, %{shape: target}}, %{draw | shape: own}, &R.spread(&1, target))
  end

  def build(:contiguous, draw), do: moved(:contiguous, draw, & &1)

  def build(:view, draw) do
    draw = lined(draw)
    width = Array.dtype_size(draw.dtype)
    last = List.last(draw.shape) * width
    types = [:bool, :u8, :s8, :u16, :s16, :f16, :bf16, :u32, :s32, :f32, :u64, :s64, :c64]
    # Booleans are bytes of 0 and 1.
    fits = for type <- types, type != :bool or draw.dtype == :bool, rem(last, Array.dtype_size(type)) == 0, do: type
    to = Enum.random(fits)
    dims = List.replace_at(draw.shape, -1, div(last, Array.dtype_size(to)))

    Case.values({:view, %{dtype: to}}, [Draw.input(draw, :any)], :bits, fn [x] ->
      Array.from_binary(Array.to_binary(x), dims, to)
    end)
  end

  # ---- joined and cut ----

  def build(:concatenate, draw) do
    draw = lined(draw)
    axis = Draw.axis(draw)
    n = Enum.at(draw.shape, axis)
    more = for _ <- 1..Enum.random([1, 2, 3, 9])//1, do: List.replace_at(draw.shape, axis, Enum.random([n, 1, 0, 3]))
    more = if R.size(draw.shape) > @most / 4, do: Enum.take(more, 1), else: more
    inputs = [Draw.input(draw, :special) | Enum.map(Enum.drop(more, 1), &Draw.other(draw, &1, :special))]
    Case.values({:concatenate, %{axis: Draw.written(axis, length(draw.shape))}}, inputs, :bits, &join(&1, axis))
  end

  def build(:stack, draw) do
    rank = length(draw.shape) + 1
    axis = Enum.random(0..(rank - 1))
    count = if R.size(draw.shape) > @most / 4, do: 2, else: Enum.random(1..4)
    inputs = [Draw.input(draw, :special) | for(_ <- 2..count//1, do: Draw.other(draw, draw.shape, :special))]

    Case.values({:stack, %{axis: Draw.written(axis, rank)}}, inputs, :bits, fn arrays ->
      arrays |> Enum.map(&R.shaped(&1, List.insert_at(draw.shape, axis, 1))) |> join(axis)
    end)
  end

  def build(:split, draw) do
    draw = lined(draw)
    axis = Draw.axis(draw)
    n = Enum.at(draw.shape, axis)
    indices = Enum.sort(for _ <- 1..Enum.random(0..3)//1, do: Enum.random(0..n))
    op = {:split, %{indices: indices, axis: Draw.written(axis, length(draw.shape))}}

    Case.values(op, [Draw.input(draw, :special)], :bits, fn [x] ->
      for {from, to} <- Enum.zip([0 | indices], indices ++ [n]), do: cut(x, axis, R.affine(to - from, from, 1))
    end)
  end

  # ---- repeated and turned ----

  def build(:repeat, draw) do
    draw = lined(draw)
    axis = Draw.axis(draw)
    n = Enum.at(draw.shape, axis)
    repeats = Enum.random(if R.size(draw.shape) * 3 < @most, do: [0, 1, 2, 3], else: [1, 2])
    places = Ops.quotient(R.affine(n * repeats, 0, 1), Array.scalar(max(repeats, 1), :s64))
    moved({:repeat, %{repeats: repeats, axis: Draw.written(axis, length(draw.shape))}}, draw, &cut(&1, axis, places))
  end

  def build(:tile, draw) do
    rank = length(draw.shape)
    count = max(0, rank + Enum.random(-1..1))
    few = R.size(draw.shape) * 8 < @most
    times = for _ <- 1..count//1, do: Enum.random(if few, do: [1, 1, 2], else: [1])
    times = if few or times == [], do: times, else: List.replace_at(times, -1, 2)
    whole = max(rank, count)
    dims = List.duplicate(1, whole - rank) ++ draw.shape
    repeats = List.duplicate(1, whole - count) ++ times

    moved({:tile, %{repetitions: times}}, draw, fn x ->
      tables =
        for {{n, t}, stride} <- dims |> Enum.zip(repeats) |> Enum.zip(R.strides(dims)),
            do: steps(modulo(R.affine(n * t, 0, 1), n), stride)

      R.move(x, tables)
    end)
  end

  def build(:flip, draw) do
    axes = if draw.shape == [], do: [], else: Input.some(Reductions.all(length(draw.shape)))
    op = {:flip, %{axes: Enum.map(axes, &Draw.written(&1, length(draw.shape)))}}
    moved(op, draw, fn x -> Enum.reduce(axes, x, &cut(&2, &1, backwards(Enum.at(draw.shape, &1)))) end)
  end

  def build(:roll, draw) do
    draw = lined(draw)
    axes = Input.some(Reductions.all(length(draw.shape)))
    shift = for axis <- axes, do: Enum.random([1, -1, 5, -1_000_000, Enum.at(draw.shape, axis), 0])
    op = {:roll, %{shift: shift, axes: Enum.map(axes, &Draw.written(&1, length(draw.shape)))}}

    moved(op, draw, fn x ->
      Enum.reduce(Enum.zip(axes, shift), x, fn {axis, by}, x ->
        n = Enum.at(draw.shape, axis)
        if n == 0, do: x, else: cut(x, axis, modulo(R.affine(n, Integer.mod(-by, n), 1), n))
      end)
    end)
  end

  # ---- padded ----

  def build(:pad, draw) do
    draw = lined(draw)
    rank = length(draw.shape)
    mode = if 0 in draw.shape, do: :constant, else: Enum.random([:constant, :edge])
    axes = Input.some(Reductions.all(rank))
    least = fn axis -> -div(Enum.at(draw.shape, axis), 3) end
    [low, high] = for _ <- 1..2, do: for(axis <- axes, do: Enum.random([0, 1, 5, max(least.(axis), -2)]))
    {low, high} = if R.size(draw.shape) * 11 > @most and rank > 1, do: {zeros(low), zeros(high)}, else: {low, high}
    op = {:pad, %{axes: Enum.map(axes, &Draw.written(&1, rank)), low: low, high: high, mode: mode}}
    inputs = [Draw.input(draw, :special), Draw.other(draw, [], {2, 9})]

    Case.values(op, inputs, :bits, fn [x, value] ->
      widths = Map.new(Enum.zip(axes, Enum.zip(low, high)))

      tables =
        for {n, axis} <- Enum.with_index(draw.shape) do
          {low, high} = Map.get(widths, axis, {0, 0})
          # Cropped first, so that an edge is the last element that is left.
          {least, most} = {max(-low, 0), n - 1 - max(-high, 0)}
          places = R.affine(max(n + low + high, 0), -low, 1)
          if mode == :edge, do: within(places, least, most), else: inside(places, least, most)
        end

      R.move(x, scaled(tables, draw.shape), value)
    end)
  end

  def build(:pad_interior, draw) do
    rank = length(draw.shape)
    few = R.size(draw.shape) < @most / 30
    between = for _ <- 1..rank//1, do: Enum.random(if few, do: [0, 0, 1, 2], else: [0])
    between = if few or rank == 0, do: between, else: List.replace_at(between, -1, 1)
    [low, high] = for _ <- 1..2, do: for(n <- draw.shape, do: Enum.random([0, 0, 1, if(n > 3, do: -1, else: 0)]))
    inputs = [Draw.input(draw, :special), Draw.other(draw, [], {2, 9})]

    Case.values({:pad_interior, %{low: low, high: high, interior: between}}, inputs, :bits, fn [x, value] ->
      tables =
        for {n, low, high, between} <- Enum.zip([draw.shape, low, high, between]) do
          spread = n + max(n - 1, 0) * between
          places = R.affine(max(spread + low + high, 0), -low, 1)
          apart(inside(places, 0, spread - 1), between + 1)
        end

      R.move(x, scaled(tables, draw.shape), value)
    end)
  end

  # ---- strides and diagonals ----

  def build(:as_strided, draw) do
    size = R.size(draw.shape)

    {dims, strides, offset} =
      Enum.random(
        [{[0, 2], [1, 1], 0}] ++
          if(size == 0,
            do: [],
            else: [
              {[size], [-1], size - 1},
              {[size, 2], [1, 0], 0},
              {[div(size + 1, 2)], [2], 0},
              {[], [], size - 1},
              {[max(size - 4, 1), min(size, 5)], [1, 1], 0}
            ]
          )
      )

    op = {:as_strided, %{shape: dims, strides: strides, offset: offset}}

    moved(op, draw, fn x ->
      tables = for {n, stride} <- Enum.zip(dims, strides), do: R.affine(n, 0, stride)
      R.pick(x, Ops.add(R.index(tables), Array.scalar(offset, :s64)))
    end)
  end

  def build(:diag, draw) do
    k = Enum.random(-3..3)

    if Draw.coin() do
      n = min(R.size(draw.shape), 1025)

      moved({:diag, %{k: k}}, %{draw | shape: [n]}, fn x ->
        m = n + abs(k)
        [row, column] = R.coordinates([m, m])
        inner = R.pick(x, Ops.minimum(Ops.minimum(row, column), Array.scalar(max(n - 1, 0), :s64)))
        on = Ops.equal(Ops.subtract(column, row), Array.scalar(k, :s64))
        Ops.where(on, inner, Array.scalar(0, draw.dtype))
      end)
    else
      moved({:diag, %{k: k}}, %{draw | shape: matrix(draw.shape)}, fn x ->
        {rows, []} = Reductions.diagonals(x, k, 0, 1)
        R.flat(rows)
      end)
    end
  end

  def build(:diagonal, draw) do
    shape = if length(draw.shape) < 2, do: matrix(draw.shape), else: draw.shape
    [axis1, axis2] = Enum.take_random(Reductions.all(length(shape)), 2)
    offset = Enum.random(-2..2)
    rank = length(shape)
    op = {:diagonal, %{offset: offset, axis1: Draw.written(axis1, rank), axis2: Draw.written(axis2, rank)}}

    moved(op, %{draw | shape: shape}, fn x ->
      {rows, kept} = Reductions.diagonals(x, offset, axis1, axis2)
      R.shaped(rows, kept ++ [rows |> R.dims() |> List.last()])
    end)
  end

  def build(name, draw) when name in [:tril, :triu] do
    shape = if length(draw.shape) < 2, do: matrix(draw.shape), else: draw.shape
    k = Enum.random(-2..2)

    moved({name, %{k: k}}, %{draw | shape: shape}, fn x ->
      [row, column] = Enum.take(R.coordinates(shape), -2)
      over = Ops.subtract(column, row)
      k = Array.scalar(k, :s64)
      inside = if name == :tril, do: Ops.less_equal(over, k), else: Ops.greater_equal(over, k)
      Ops.where(inside, x, Array.scalar(0, draw.dtype))
    end)
  end

  def build(_name, _draw), do: nil

  # ---- what they share ----

  @doc "A shape with at least one axis."
  def lined(%{shape: []} = draw), do: %{draw | shape: [1]}
  def lined(draw), do: draw

  @doc "Two axes."
  def matrix(shape) do
    case shape do
      [] -> [1, 1]
      [n] -> [n, Enum.random(if n > 100_000, do: [1, 3], else: [1, 7])] |> Enum.shuffle()
      [n, m | more] -> [n, m * R.size(more)]
    end
  end

  @doc "Elements at places along one axis."
  def cut(x, axis, places) do
    dims = R.dims(x)

    tables =
      for {{n, stride}, i} <- dims |> Enum.zip(R.strides(dims)) |> Enum.with_index(),
          do: if(i == axis, do: steps(places, stride), else: R.affine(n, 0, stride))

    R.move(x, tables)
  end

  @doc "Places along each axis as places in row-major order; negative ones stay."
  def scaled(tables, dims), do: for({table, stride} <- Enum.zip(tables, R.strides(dims)), do: signed(table, stride))

  defp signed(table, stride) do
    least = Array.scalar(-1, :s64)
    Ops.where(Ops.less(table, Array.scalar(0, :s64)), least, steps(table, stride))
  end

  defp steps(table, stride), do: Ops.multiply(table, Array.scalar(stride, :s64))

  @doc "Places within bounds, which those outside are brought to."
  def within(places, least, most),
    do: Ops.minimum(Ops.maximum(places, Array.scalar(least, :s64)), Array.scalar(most, :s64))

  @doc "Places within bounds, and -1 for those outside."
  def inside(places, least, most) do
    outside =
      Ops.logical_or(Ops.less(places, Array.scalar(least, :s64)), Ops.greater(places, Array.scalar(most, :s64)))

    Ops.where(outside, Array.scalar(-1, :s64), places)
  end

  @doc "Every step-th of the places from 0, numbered, and -1 for the others."
  def apart(places, step) do
    step = Array.scalar(step, :s64)
    least = Array.scalar(-1, :s64)
    whole = Ops.equal(Ops.remainder(places, step), Array.scalar(0, :s64))
    inside = Ops.logical_and(whole, Ops.greater_equal(places, Array.scalar(0, :s64)))
    Ops.where(inside, Ops.quotient(places, step), least)
  end

  @doc "Places modulo n."
  def modulo(places, n), do: Ops.remainder(places, Array.scalar(max(n, 1), :s64))

  defp backwards(n), do: R.affine(n, n - 1, -1)
  defp zeros(list), do: Enum.map(list, fn _ -> 0 end)

  defp open(target, size) do
    known = target |> Enum.reject(&(&1 == -1)) |> R.size()
    Enum.map(target, &if(&1 == -1, do: div(size, known), else: &1))
  end

  defp moved(op, draw, fun), do: Case.values(op, [Draw.input(draw, :special)], :bits, fn [x] -> fun.(x) end)

  # Arrays joined along an axis: from all their elements in a row.
  defp join(arrays, axis) do
    dims = R.dims(hd(arrays))
    {before, [_ | behind]} = Enum.split(dims, axis)
    {lead, trail} = {R.size(before), R.size(behind)}
    lengths = for array <- arrays, do: Enum.at(R.dims(array), axis)
    starts = Enum.scan([0 | Enum.map(lengths, &(&1 * lead * trail))], &+/2)
    all = Ops.concatenate(Enum.map(arrays, &R.flat/1))

    # For each place along the axis where its part begins, and how far its rows are apart.
    {offsets, steps} =
      for {n, start} <- Enum.zip(lengths, starts), n > 0 do
        {R.affine(n, start, trail), Ops.add(R.affine(n, 0, 0), Array.scalar(n * trail, :s64))}
      end
      |> Enum.unzip()

    case offsets do
      [] ->
        R.full(0, List.replace_at(dims, axis, 0), Array.dtype(all))

      _ ->
        [offsets, steps] = for list <- [offsets, steps], do: R.along(Ops.concatenate(list), 1, 3)
        rows = Ops.multiply(R.along(R.affine(lead, 0, 1), 0, 3), steps)
        index = Ops.add(Ops.add(rows, offsets), R.along(R.affine(trail, 0, 1), 2, 3))
        R.shaped(R.pick(all, index), List.replace_at(dims, axis, Enum.sum(lengths)))
    end
  end
end
