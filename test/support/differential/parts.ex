defmodule EMLX.Differential.Parts do
  @moduledoc "Slices, gathers and scatters, for the differential suite: by where each element of the result comes from."

  alias EMLX.{Array, Ops, Tolerance}
  alias EMLX.Differential.{Case, Draw, Input, Reductions, Shapes}
  alias EMLX.Differential.Reference, as: R

  @floats [:f16, :bf16, :f32, :f64]

  # ---- slices ----

  def build(:slice, draw) do
    {start, stop, strides, places} = slice(draw.shape)
    op = {:slice, %{start: start, stop: stop, strides: strides}}

    Case.values(op, [Draw.input(draw, :special)], :bits, fn [x] ->
      R.move(x, Shapes.scaled(tables(places), draw.shape))
    end)
  end

  def build(name, draw)
      when name in [:slice_update, :slice_update_add, :slice_update_max, :slice_update_min, :slice_update_prod] do
    # Places upwards, each once.
    {start, stop, strides, places} = slice(draw.shape, [1, 2, 3])
    dims = Enum.map(places, &elem(&1, 0))
    update = if Draw.coin(), do: dims, else: Enum.map(dims, &Enum.random([&1, 1]))
    update = if Draw.coin(), do: update, else: Enum.drop_while(update, &(&1 == 1))
    domain = if name in [:slice_update_add, :slice_update_prod], do: {-9, 9}, else: :any
    inputs = [Draw.input(draw, domain), Draw.other(draw, update, domain)]
    op = {name, %{start: start, stop: stop, strides: strides}}

    Case.values(op, inputs, if(domain == :any, do: :exact, else: :rounded), fn [x, update] ->
      tables =
        for {n, {count, first, step}} <- Enum.zip(draw.shape, places),
            do: Shapes.inside(Shapes.apart(shifted(n, first), step), 0, count - 1)

      placed(name, x, R.spread(update, dims), Shapes.scaled(tables, dims))
    end)
  end

  def build(:slice_dynamic, draw) do
    draw = Shapes.lined(draw)
    {axes, sizes, starts} = dynamic(draw.shape)
    rank = length(draw.shape)
    op = {:slice_dynamic, %{axes: Enum.map(axes, &Draw.written(&1, rank)), sizes: sizes}}
    inputs = [Draw.input(draw, :special), numbers(starts)]

    Case.values(op, inputs, :bits, fn [x, _] ->
      places = for {_, from, size} <- clamped(draw.shape, axes, sizes, starts), do: R.affine(size, from, 1)
      R.move(x, Shapes.scaled(places, draw.shape))
    end)
  end

  def build(:slice_update_dynamic, draw) do
    draw = Shapes.lined(draw)
    {axes, sizes, starts} = dynamic(draw.shape)
    rank = length(draw.shape)
    op = {:slice_update_dynamic, %{axes: Enum.map(axes, &Draw.written(&1, rank))}}
    clamped = clamped(draw.shape, axes, sizes, starts)
    dims = for {_, _, size} <- clamped, do: size
    inputs = [Draw.input(draw, :special), Draw.other(draw, dims, :special), numbers(starts)]

    Case.values(op, inputs, :bits, fn [x, update, _] ->
      tables = for {n, from, size} <- clamped, do: Shapes.inside(shifted(n, from), 0, size - 1)
      placed(:slice_update, x, update, Shapes.scaled(tables, dims))
    end)
  end

  # ---- by indices ----

  def build(:take, draw) do
    draw = Shapes.lined(draw)
    rank = length(draw.shape)
    axis = Draw.axis(draw)
    n = Enum.at(draw.shape, axis)
    others = div(max(R.size(draw.shape), 1), max(n, 1))
    most = min(1025, max(1, div(4_000_000, max(others, 1))))
    shape = Enum.random([[], [min(7, most)], [most], [min(3, most), 1]])
    indices = indices(shape, n)
    op = {:take, %{axis: Draw.written(axis, rank)}}

    Case.values(op, [Draw.input(draw, :special), indices], :bits, fn [x, indices] ->
      {before, [_ | behind]} = Enum.split(draw.shape, axis)
      R.shaped(Shapes.cut(x, axis, R.flat(near(indices, n))), before ++ shape ++ behind)
    end)
  end

  def build(:take_along_axis, draw) do
    draw = Shapes.lined(draw)
    axis = Draw.axis(draw)
    n = Enum.at(draw.shape, axis)
    shape = List.replace_at(draw.shape, axis, Enum.random([n, 1, 3, min(n, 1025)]))
    shape = if R.size(shape) > 4_000_000, do: List.replace_at(draw.shape, axis, 1), else: shape
    op = {:take_along_axis, %{axis: Draw.written(axis, length(draw.shape))}}

    Case.values(op, [Draw.input(draw, :special), indices(shape, n)], :bits, fn [x, indices] ->
      R.pick(x, at(near(indices, n), axis, R.strides(draw.shape)))
    end)
  end

  def build(:put_along_axis, draw) do
    draw = Shapes.lined(draw)
    axis = Draw.axis(draw)
    n = Enum.at(draw.shape, axis)
    m = Enum.random([n, min(n, 3), div(n, 2)])
    shape = List.replace_at(draw.shape, axis, m)
    {step, back} = coprime(n)
    # Each place of a row at most once: the row's number and a multiple of the step, around.
    row = rest(shape, axis)
    places = Shapes.modulo(Ops.add(along(m, axis, length(shape), step), row), n)
    inputs = [Draw.input(draw, :special), index_input(R.spread(places, shape)), Draw.other(draw, shape, :special)]
    op = {:put_along_axis, %{axis: Draw.written(axis, length(shape))}}

    Case.values(op, inputs, :bits, fn [x, _, values] ->
      if R.size(shape) == 0 do
        x
      else
        row = rest(draw.shape, axis)
        turned = Ops.add(Ops.subtract(along(n, axis, length(shape), 1), row), Array.scalar(n, :s64))
        # What row of updates is at each place.
        from = Shapes.modulo(Ops.multiply(Shapes.modulo(turned, n), Array.scalar(back, :s64)), n)
        found = R.pick(values, at(R.spread(Shapes.within(from, 0, m - 1), draw.shape), axis, R.strides(shape)))
        Ops.where(R.spread(Ops.less(from, Array.scalar(m, :s64)), draw.shape), found, x)
      end
    end)
  end

  def build(:scatter_add_axis, draw) do
    draw = Shapes.lined(draw)
    axis = Draw.axis(draw)
    n = Enum.at(draw.shape, axis)
    others = div(max(R.size(draw.shape), 1), max(n, 1))
    m = Enum.random([n, 3 * n + 1, 70_001]) |> min(max(div(2_000_000, max(others, 1)), 1))
    m = if n == 0, do: 0, else: m
    shape = List.replace_at(draw.shape, axis, m)
    times = div(m + n - 1, max(n, 1))
    places = Shapes.modulo(Ops.add(along(m, axis, length(shape), 1), rest(shape, axis)), n)
    domain = summands(draw.dtype, times)
    inputs = [Draw.input(draw, domain), index_input(R.spread(places, shape)), Draw.other(draw, shape, domain)]

    op = {:scatter_add_axis, %{axis: Draw.written(axis, length(shape))}}

    Case.values(op, inputs, tolerance(:scatter_add, draw, times), fn [x, _, values] ->
      if R.size(shape) == 0 do
        x
      else
        {rows, _} = R.rows(values, [axis])

        R.linear(R.split(rows), fn rows ->
          [count, _] = R.dims(rows)
          zeros = R.full(0, [count, times * n - m], Array.dtype(rows))
          bins = Ops.concatenate([rows, zeros], axis: 1) |> R.shaped([count, times, n]) |> R.permute([0, 2, 1])
          sums = bins |> R.shaped([count * n, times]) |> R.sum() |> R.shaped([count, n])
          # Row r's bins begin at r.
          turned = Ops.subtract(R.shaped(R.affine(n, 0, 1), [1, n]), R.column(R.affine(count, 0, 1)))
          R.unrows(R.gather(sums, Shapes.modulo(turned, n)), draw.shape, axis)
        end)
        |> added(x)
      end
    end)
  end

  def build(:gather, draw) do
    draw = Shapes.lined(draw)
    rank = length(draw.shape)
    axes = Input.some(Reductions.all(rank)) |> Enum.shuffle() |> Enum.take(2)

    sizes =
      for {n, axis} <- Enum.with_index(draw.shape),
          do: if(axis in axes, do: Enum.random([min(1, n), min(2, n), 0]), else: n)

    most = min(1025, max(1, div(4_000_000, max(R.size(sizes), 1))))
    shape = Enum.random([[], [min(5, most)], [most], [min(2, most), 1]])
    bounds = for axis <- axes, do: Enum.at(draw.shape, axis)
    indices = for n <- bounds, do: indices(shape, n)
    op = {:gather, %{axes: Enum.map(axes, &Draw.written(&1, rank)), slice_sizes: sizes}}

    Case.values(op, [Draw.input(draw, :special) | indices], :bits, fn [x | indices] ->
      strides = R.strides(draw.shape)

      starts =
        for {{axis, index}, n} <- axes |> Enum.zip(indices) |> Enum.zip(bounds) do
          start = near(index, n, n - Enum.at(sizes, axis))
          Ops.multiply(R.flat(start), Array.scalar(Enum.at(strides, axis), :s64))
        end

      inner = for {n, stride} <- Enum.zip(sizes, strides), do: R.affine(n, 0, stride)
      places = R.move(Enum.reduce(starts, &Ops.add/2), [R.affine(R.size(shape), 0, 1)])
      R.shaped(R.pick(x, outer(places, R.flat(R.index(inner)))), shape ++ sizes)
    end)
  end

  def build(name, draw) when name in [:scatter, :scatter_add, :scatter_max, :scatter_min, :scatter_prod] do
    draw = Shapes.lined(draw)
    [n | rest] = draw.shape
    # Two axes are indexed where there are.
    {axes, bins, rest} = if rest != [] and Draw.coin(), do: {[0, 1], n * hd(rest), tl(rest)}, else: {[0], n, rest}
    inner = R.size(rest)
    most = max(1, div(2_000_000, max(inner, 1)))

    m =
      if name == :scatter,
        do: Enum.random([bins, div(bins, 2), 3]) |> min(bins),
        else: Enum.random([bins, 5 * bins + 1, 70_001, 7])

    m = min(m, most)
    # So many places are hit in turn, and after them one that is none.
    used = if name == :scatter, do: max(m, 1), else: Enum.random([1, 3, bins]) |> min(bins) |> max(1)
    times = div(m + used, used + 1)
    domain = scattered(name, draw.dtype, times)
    turn = Shapes.modulo(R.affine(m, 0, 1), used + 1)
    outside = Ops.equal(turn, Array.scalar(used, :s64))
    updates = [m | Enum.map(axes, fn _ -> 1 end)] ++ rest

    indices =
      case axes do
        [0] ->
          [Ops.where(outside, Array.scalar(Enum.random([n, n + 5, -n - 1, -n - 9]), :s64), turn)]

        [0, 1] ->
          width = Array.scalar(max(Enum.at(draw.shape, 1), 1), :s64)
          row = Ops.where(outside, Array.scalar(Enum.random([n + 5, -n - 1]), :s64), Ops.quotient(turn, width))
          [row, Ops.remainder(turn, width)]
      end

    kind = Enum.random([:s32, :s64])

    indices =
      for index <- indices, do: Input.of(Ops.astype(index, kind), Enum.random([:contiguous, :sliced, :reversed]))

    inputs = [Draw.input(draw, domain), Draw.other(draw, updates, domain) | indices]
    op = {name, %{axes: Enum.map(axes, &Draw.written(&1, length(draw.shape)))}}

    Case.values(op, inputs, tolerance(name, draw, times), fn [x, values | _] ->
      if m == 0 or R.size(draw.shape) == 0 do
        x
      else
        # {times, used, inner}: what hits each place.
        none = Array.scalar(identity(name, draw.dtype), draw.dtype)
        lines = R.shaped(values, [m, inner])
        missing = times * (used + 1) - m
        lines = Ops.concatenate([lines, Ops.broadcast_to(none, [missing, inner])], axis: 0)
        lines = lines |> R.shaped([times, used + 1, inner]) |> R.permute([1, 2, 0])
        hits = Ops.slice(lines, [0, 0, 0], [used, inner, times], [1, 1, 1]) |> R.shaped([used * inner, times])
        # Products of complex numbers are not those of their parts.
        exact = name == :scatter_add or (name == :scatter_prod and draw.dtype != :c64)
        hits = if exact, do: R.split(hits), else: hits
        folded = R.linear(hits, &R.fold(&1, combine(name)))
        more = (bins - used) * inner

        filled =
          R.linear(folded, fn folded ->
            Ops.concatenate([folded, R.full(identity(name, Array.dtype(folded)), [more], Array.dtype(folded))])
          end)

        combined(name, x, R.linear(filled, &R.shaped(&1, draw.shape)), used * inner)
      end
    end)
  end

  def build(:masked_scatter, draw) do
    draw = Shapes.lined(draw)
    mask = Draw.other(draw, Enum.take(draw.shape, Enum.random(1..length(draw.shape))), {:few, 2}, :bool)
    bytes = mask.values |> Array.to_binary()
    count = length(:binary.matches(bytes, <<1>>)) * div(R.size(draw.shape), max(byte_size(bytes), 1))
    inputs = [Draw.input(draw, :special), mask, Draw.other(draw, [count], :special)]

    Case.values(:masked_scatter, inputs, :bits, fn [x, mask, values] ->
      if count == 0 do
        x
      else
        size = R.size(draw.shape)
        inner = div(size, Array.size(mask))
        chosen = R.spread(R.column(R.flat(mask)), [Array.size(mask), inner])
        place = chosen |> R.s64() |> R.shaped([1, size]) |> R.scan(&Ops.add/2)
        place = Shapes.within(Ops.subtract(place, Array.scalar(1, :s64)), 0, count - 1)
        found = R.pick(values, place)
        Ops.where(R.shaped(chosen, draw.shape), R.shaped(found, draw.shape), x)
      end
    end)
  end

  def build(_name, _draw), do: nil

  # ---- slices ----

  # Starts, stops and strides, and for each axis how many places there are, the first one and the step.
  defp slice(shape, steps \\ [1, 1, 2, 3, -1, -2]) do
    parts =
      for n <- shape do
        step = Enum.random(steps)
        from = [0, 1, div(n, 3)] |> Enum.random() |> min(max(n - 1, 0))
        to = [n, n, n - 1] |> Enum.random() |> max(from)
        first = n - 1 - from

        cond do
          n == 0 -> {0, 0, 1, {0, 0, 1}}
          step > 0 -> {from, to, step, {div(to - from + step - 1, step), from, step}}
          # Down to the very first.
          true -> {first, -n - 1, step, {div(first, -step) + 1, first, step}}
        end
      end

    {for({start, _, _, _} <- parts, do: start), for({_, stop, _, _} <- parts, do: stop),
     for({_, _, step, _} <- parts, do: step), for({_, _, _, places} <- parts, do: places)}
  end

  defp tables(places), do: for({count, first, step} <- places, do: R.affine(count, first, step))

  defp shifted(n, first), do: R.affine(n, -first, 1)

  # The update where a table says so, combined with what was there.
  defp placed(name, x, update, tables) do
    zero = Array.scalar(0, Array.dtype(update))
    values = R.move(update, tables, zero)
    marks = R.move(R.spread(Array.scalar(1, :u8), R.dims(update)), tables, Array.scalar(0, :u8))
    inside = Ops.equal(marks, Array.scalar(1, :u8))

    combined =
      case name do
        :slice_update -> values
        :slice_update_add -> two(x, values, &Ops.add/2)
        :slice_update_prod -> two(x, values, &Ops.multiply/2)
        :slice_update_max -> Ops.maximum(x, values)
        :slice_update_min -> Ops.minimum(x, values)
      end

    Ops.where(inside, combined, R.wide(x))
  end

  # In f64, but for complex numbers, whose type holds what comes of a few.
  defp two(x, y, fun) do
    if Array.dtype(x) == :c64, do: fun.(x, y), else: fun.(R.split(x), R.split(y))
  end

  defp dynamic(shape) do
    axes = Input.some(Reductions.all(length(shape))) |> Enum.shuffle()
    sizes = for axis <- axes, n = Enum.at(shape, axis), do: Enum.random([n, div(n, 2), min(n, 1), min(n, 3)])
    starts = for axis <- axes, n = Enum.at(shape, axis), do: Enum.random([0, 1, div(n, 2), n + 7, -3])
    {axes, sizes, starts}
  end

  # For each axis its size, where the part begins, and how much it is.
  defp clamped(shape, axes, sizes, starts) do
    parts = Map.new(Enum.zip(axes, Enum.zip(sizes, starts)))

    for {n, axis} <- Enum.with_index(shape) do
      {size, start} = Map.get(parts, axis, {n, 0})
      {n, start |> max(0) |> min(n - size), size}
    end
  end

  # ---- indices ----

  defp numbers(list), do: Input.of(Array.from_list(list, Enum.random([:s32, :s64])), :contiguous)

  # Indices of an axis of n, some negative and some far outside.
  defp indices(shape, n) do
    kind = Enum.random([:s32, :s64, :u32])
    least = if kind == :u32, do: 0, else: -n - 2
    Input.new(shape, kind, {least, max(n + 1, 0)}, Enum.random([:contiguous, :sliced, :reversed, :transposed]))
  end

  defp index_input(values),
    do: Input.of(Ops.astype(values, Enum.random([:s32, :s64])), Enum.random([:contiguous, :sliced, :transposed]))

  # Negative ones from the end, the rest clamped.
  defp near(indices, n, last \\ nil) do
    indices = R.s64(indices)
    turned = Ops.where(Ops.less(indices, Array.scalar(0, :s64)), Ops.add(indices, Array.scalar(n, :s64)), indices)
    Shapes.within(turned, 0, last || max(n - 1, 0))
  end

  # The places of elements whose index along one axis is given, and whose others are their own.
  defp at(indices, axis, strides) do
    dims = R.dims(indices)

    tables =
      for {{n, stride}, i} <- dims |> Enum.zip(strides) |> Enum.with_index(),
          do: R.affine(n, 0, if(i == axis, do: 0, else: stride))

    Ops.add(R.index(tables), Ops.multiply(indices, Array.scalar(Enum.at(strides, axis), :s64)))
  end

  defp along(n, axis, rank, step), do: R.along(R.affine(n, 0, step), axis, rank)

  # The number of the row that an element is in, as `R.rows/2` counts them.
  defp rest(shape, axis) do
    strides = shape |> List.replace_at(axis, 1) |> R.strides()

    tables =
      for {{n, stride}, i} <- shape |> Enum.zip(strides) |> Enum.with_index(),
          do: if(i == axis, do: R.affine(1, 0, 0), else: R.affine(n, 0, stride))

    R.index(tables)
  end

  # A number without a common divisor with n, and its inverse modulo n.
  defp coprime(n) do
    n = max(n, 1)
    step = Enum.find([7, 11, 5, 3, 1], &(Integer.gcd(&1, n) == 1))
    {_, back, _} = Integer.extended_gcd(step, n)
    {step, Integer.mod(back, n)}
  end

  defp outer(places, inner), do: Ops.add(R.column(R.flat(places)), R.shaped(inner, [1, Array.size(inner)]))

  # ---- scatters ----

  defp summands(dtype, n),
    do: if(dtype in @floats or dtype == :c64, do: {0, 2 * min(1, 100 / max(n, 1))}, else: {-100, 100})

  defp scattered(:scatter_add, dtype, times), do: summands(dtype, times)

  defp scattered(:scatter_prod, dtype, _),
    do: if(dtype in @floats or dtype == :c64, do: {:sparse, 0.9, 1.1}, else: {:sparse, -2, 3})

  defp scattered(_name, _dtype, _times), do: :any

  # CUDA's atomic additions round an element's sum with each of its updates.
  defp tolerance(:scatter_add, %{device: :gpu, dtype: dtype}, times), do: Tolerance.repeated(:summed, dtype, times)

  defp tolerance(:scatter_add, _draw, _times), do: :summed
  defp tolerance(:scatter_prod, _draw, _times), do: :multiplied
  defp tolerance(_name, _draw, _times), do: :exact

  defp combine(:scatter_add), do: &Ops.add/2
  defp combine(:scatter_prod), do: &Ops.multiply/2
  defp combine(:scatter_max), do: &Ops.maximum/2
  defp combine(:scatter_min), do: &Ops.minimum/2
  defp combine(:scatter), do: fn a, _ -> a end

  defp identity(:scatter_prod, _dtype), do: 1
  defp identity(:scatter_max, dtype), do: extreme(dtype, :neg_infinity, 0)
  defp identity(:scatter_min, dtype), do: extreme(dtype, :infinity, 1)
  defp identity(_name, _dtype), do: 0

  defp extreme(dtype, sign, which) do
    cond do
      dtype in @floats -> sign
      dtype == :c64 -> if(which == 0, do: -1.0e30, else: 1.0e30)
      dtype == :bool -> which
      true -> elem(Input.range(dtype), which)
    end
  end

  defp combined(:scatter_add, x, updates, _used), do: added(updates, x)

  defp combined(:scatter_prod, x, updates, _used) do
    if Array.dtype(x) == :c64, do: Ops.multiply(x, updates), else: Ops.multiply(R.split(x), updates)
  end

  defp combined(:scatter_max, x, updates, _used), do: Ops.maximum(x, updates)
  defp combined(:scatter_min, x, updates, _used), do: Ops.minimum(x, updates)

  defp combined(:scatter, x, updates, used) do
    hit = Ops.less(R.affine(Array.size(x), 0, 1), Array.scalar(used, :s64))
    Ops.where(R.shaped(hit, R.dims(x)), updates, x)
  end

  defp added({re, im}, x) do
    {a, b} = R.split(x)
    {Ops.add(a, re), Ops.add(b, im)}
  end

  defp added(updates, x), do: Ops.add(R.split(x), updates)
end
