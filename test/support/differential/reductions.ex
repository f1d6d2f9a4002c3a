defmodule EMLX.Differential.Reductions do
  @moduledoc "Reductions over axes and running ones along an axis, for the differential suite."

  alias EMLX.{Array, Ops, Tolerance}
  alias EMLX.Differential.{Case, Draw, Input}
  alias EMLX.Differential.Reference, as: R

  @floats [:f16, :bf16, :f32, :f64]

  # ---- over axes ----

  def build(:sum, draw), do: over(:sum, draw, &summands/2, :summed, &R.linear(R.split(&1), fn x -> R.sum(x) end))

  def build(:mean, draw) do
    over(:mean, draw, fn _, _ -> {0, 2} end, :summed, fn rows ->
      with {re, im} <- R.linear(R.split(rows), &mean(R.f64(&1))),
           do: {re, Ops.where(Ops.isnan(im), Array.scalar(0.0, :f64), im)}
    end)
  end

  def build(:prod, draw) do
    over(:prod, draw, &factors/2, Tolerance.repeated(:multiplied, draw.dtype, R.size(draw.shape)), fn rows ->
      if Array.dtype(rows) == :c64,
        do: R.fold(rows, &Ops.multiply/2, 1),
        else: R.fold(R.split(rows), &Ops.multiply/2, 1)
    end)
  end

  def build(:max, draw), do: over(:max, draw, fn _, _ -> :special end, :exact, &R.max/1)
  def build(:min, draw), do: over(:min, draw, fn _, _ -> :special end, :exact, &R.min/1)

  def build(:all, draw) do
    over(:all, draw, fn _, _ -> {:sparse, 0, 1} end, :exact, &R.fold(nonzero(&1), fn a, b -> Ops.minimum(a, b) end, 1))
  end

  def build(:any, draw) do
    over(:any, draw, fn _, n -> if(n > 50, do: {-0.7, 0.7}, else: {:few, 2}) end, :exact, fn rows ->
      R.fold(nonzero(rows), &Ops.maximum/2, 0)
    end)
  end

  def build(name, %{dtype: dtype} = draw) when name in [:var, :std] and dtype != :c64 do
    ddof = Enum.random([0, 0, 1])

    over(
      name,
      draw,
      # Far from zero where the type has the digits for it.
      fn dtype, _ -> if(dtype in [:f32, :f64], do: Enum.random([{0, 2}, {999, 1001}]), else: {0, 2}) end,
      # Of what is equal the sums of f64 leave the more the larger it is.
      if(draw.dtype == :f64, do: Tolerance.scaled(:running, :f64, 1.0e6), else: :summed),
      fn rows ->
        [_, n] = R.dims(rows)
        x = R.f64(rows)
        squares = R.sum(Ops.square(Ops.subtract(x, R.column(mean(x)))))
        variance = Ops.divide(squares, Array.scalar(max(n - ddof, 0) * 1.0, :f64))
        if name == :std, do: Ops.sqrt(variance), else: variance
      end,
      %{ddof: ddof}
    )
  end

  def build(name, _draw) when name in [:var, :std], do: :skip

  # Complex numbers have no order.
  def build(name, %{dtype: :c64}) when name in [:logsumexp, :median], do: :skip
  def build(:logsumexp, draw), do: over(:logsumexp, draw, fn _, _ -> {-5, 5} end, :summed, &logsumexp(real(&1)))

  def build(:median, draw) do
    over(:median, draw, fn _, _ -> {-100, 100} end, :rounded, fn rows ->
      [_, n] = R.dims(rows)
      sorted = R.f64(R.sort(rows))
      middle = for i <- [div(n - 1, 2), div(n, 2)], do: R.flat(R.columns(sorted, i, i + 1))
      Ops.multiply(Enum.reduce(middle, &Ops.add/2), 0.5)
    end)
  end

  def build(name, draw) when name in [:argmax, :argmin] do
    rank = length(draw.shape)
    axis = if rank == 0 or Draw.coin(), do: nil, else: Draw.axis(draw)
    {keepdims, nan} = {Draw.coin(), Enum.random([:first, :last])}
    op = {name, %{axis: axis && Draw.written(axis, rank), keepdims: keepdims, nan: nan}}
    x = Draw.input(draw, Enum.random([:special, {:few, 5}, {-100, 100}]))

    opts = kept(draw.shape, if(axis, do: [axis], else: all(rank)), keepdims)

    Case.values(
      op,
      [x],
      :exact,
      fn [x] ->
        {rows, kept} = R.rows(x, if(axis, do: [axis], else: all(rank)))
        extreme = if name == :argmax, do: R.max(rows), else: R.min(rows)
        nans = Ops.isnan(rows)
        any_nan = R.fold(nonzero(nans), &Ops.maximum/2)
        first_nan = if nan == :first, do: R.first(nans), else: R.last(nans)
        place = Ops.where(any_nan, first_nan, R.first(Ops.equal(rows, R.column(extreme))))
        R.shaped(place, dims(draw.shape, kept, if(axis, do: [axis], else: all(rank)), keepdims))
      end,
      opts
    )
  end

  def build(:trace, draw) do
    case length(draw.shape) do
      rank when rank < 2 ->
        build(:trace, %{draw | shape: draw.shape ++ [3] ++ if(rank == 0, do: [4], else: [])})

      rank ->
        [axis1, axis2] = Enum.take_random(all(rank), 2)
        offset = Enum.random(-2..2)
        op = {:trace, %{offset: offset, axis1: axis1, axis2: axis2}}
        x = Draw.input(draw, {-9, 9})
        # Differences of large sums are compared by the size of what is added.
        Case.values(op, [x], :product, fn [x] ->
          {rows, kept} = diagonals(x, offset, axis1, axis2)
          R.linear(R.split(rows), &R.shaped(R.sum(&1), kept))
        end)
    end
  end

  def build(:array_equal, draw), do: pair({:array_equal, %{equal_nan: Draw.coin()}}, draw)

  def build(:allclose, draw) do
    pair({:allclose, %{rtol: Enum.random([1.0e-5, 0.1]), atol: 1.0e-8, equal_nan: Draw.coin()}}, draw)
  end

  # ---- along an axis ----

  def build(:cumsum, draw), do: running(:cumsum, draw, &summands/2, :running, &Ops.add/2, fn _ -> 0 end)
  def build(:cumprod, draw), do: running(:cumprod, draw, &factors/2, :multiplied, &Ops.multiply/2, fn _ -> 1 end)

  # Complex numbers have no order.
  def build(name, %{dtype: :c64}) when name in [:cummax, :cummin], do: :skip

  def build(:cummax, draw) do
    running(:cummax, draw, fn _, _ -> :any end, :exact, &Ops.maximum/2, &extreme(&1, :neg_infinity))
  end

  def build(:cummin, draw) do
    running(:cummin, draw, fn _, _ -> :any end, :exact, &Ops.minimum/2, &extreme(&1, :infinity))
  end

  def build(:logcumsumexp, %{dtype: dtype}) when dtype not in @floats, do: :skip

  def build(:logcumsumexp, draw) do
    running(:logcumsumexp, draw, fn _, _ -> {-5, 5} end, :running, &Ops.logaddexp/2, fn _ -> :neg_infinity end)
  end

  def build(_name, _draw), do: nil

  # Numbers whose sums stay within 16 bits.
  defp summands(dtype, n),
    do: if(dtype in @floats or dtype == :c64, do: {0, 2 * min(1, 100 / max(n, 1))}, else: {-100, 100})

  defp factors(dtype, _n), do: if(dtype in @floats or dtype == :c64, do: {:sparse, 0.9, 1.1}, else: {:sparse, -2, 3})

  defp extreme(dtype, sign) do
    case dtype do
      dtype when dtype in @floats -> sign
      :bool -> if sign == :infinity, do: 1, else: 0
      dtype -> dtype |> Input.range() |> elem(if sign == :infinity, do: 1, else: 0)
    end
  end

  # ---- what they share ----

  @doc "All axes of a rank."
  def all(rank), do: Enum.to_list(0..(rank - 1)//1)

  # A reduction: `domain` is of the type and of how many elements are reduced to one; `fun` takes rows.
  defp over(name, draw, domain, tolerance, fun, attributes \\ %{}) do
    rank = length(draw.shape)
    axes = if rank == 0 or Draw.coin(), do: nil, else: Input.some(all(rank))
    keepdims = Draw.coin()
    reduced = axes || all(rank)
    n = reduced |> Enum.map(&Enum.at(draw.shape, &1)) |> Enum.product()
    written = axes && Enum.map(Enum.shuffle(axes), &Draw.written(&1, rank))
    op = {name, Map.merge(%{axes: written, keepdims: keepdims}, attributes)}

    Case.values(
      op,
      [Draw.input(draw, domain.(draw.dtype, n))],
      tolerance,
      fn [x] ->
        {rows, kept} = R.rows(x, reduced)
        dims = dims(draw.shape, kept, reduced, keepdims)
        R.linear(fun.(rows), &R.shaped(&1, dims))
      end,
      kept(draw.shape, reduced, keepdims)
    )
  end

  defp dims(_shape, kept, _reduced, false), do: kept

  defp dims(shape, _kept, reduced, true),
    do: for({size, i} <- Enum.with_index(shape), do: if(i in reduced, do: 1, else: size))

  # An axis that is not reduced, and its place in the result.
  defp kept(shape, reduced, keepdims) do
    case all(length(shape)) -- reduced do
      [] -> []
      axes -> for axis <- [Enum.random(axes)], do: {:rows, {axis, place(axis, reduced, keepdims)}}
    end
  end

  defp place(axis, _reduced, true), do: axis
  defp place(axis, reduced, false), do: axis - Enum.count(reduced, &(&1 < axis))

  defp nonzero(rows) do
    zero = Array.scalar(0, Array.dtype(rows))
    R.s64(Ops.not_equal(rows, zero))
  end

  defp real(rows), do: if(Array.dtype(rows) in @floats, do: R.wide(rows), else: R.f64(rows))

  @doc "Means of rows of f64; NaN where they are empty."
  def mean(rows) do
    [_, n] = R.dims(rows)
    if n == 0, do: R.full(:nan, [hd(R.dims(rows))], :f64), else: Ops.divide(R.sum(rows), Array.scalar(n * 1.0, :f64))
  end

  @doc "Logarithms of sums of exponentials of rows of f64."
  def logsumexp(rows) do
    top = R.max(rows)
    Ops.add(top, Ops.log(R.sum(Ops.exp(Ops.subtract(rows, R.column(top))))))
  end

  @doc "The diagonals of two axes as rows, and the other sizes."
  def diagonals(x, offset, axis1, axis2) do
    dims = R.dims(x)
    kept = all(length(dims)) -- [axis1, axis2]
    [n, m] = for axis <- [axis1, axis2], do: Enum.at(dims, axis)
    moved = R.permute(x, kept ++ [axis1, axis2])
    sizes = Enum.map(kept, &Enum.at(dims, &1))
    length = max(0, if(offset >= 0, do: min(n, m - offset), else: min(n + offset, m)))
    start = if offset >= 0, do: offset, else: -offset * m
    {R.move(moved, [R.affine(R.size(sizes), 0, n * m), R.affine(length, start, m + 1)]), sizes}
  end

  # The same array, or one that differs in a single element.
  defp pair(op, draw) do
    %{values: values} = x = Draw.input(draw, :special)
    size = Array.size(values)

    other =
      if size == 0 or Draw.coin() do
        values
      else
        place = Enum.random([0, size - 1, Enum.random(0..(size - 1))])
        chosen = Ops.equal(R.affine(size, 0, 1), Array.scalar(place, :s64))
        changed = Ops.where(chosen, Ops.add(R.flat(values), Array.scalar(1, draw.dtype)), R.flat(values))
        R.shaped(changed, draw.shape)
      end

    y = Input.of(other, Enum.random(Input.layouts() -- [:broadcast]))

    Case.values(op, [x, y], :exact, fn arrays ->
      equal =
        case op do
          {:array_equal, %{equal_nan: nan}} ->
            R.pieces(arrays, fn [a, b] ->
              both = Ops.logical_and(Ops.isnan(a), Ops.isnan(b))
              if nan, do: Ops.logical_or(Ops.equal(a, b), both), else: Ops.equal(a, b)
            end)

          {:allclose, attributes} ->
            R.pieces(arrays, &Ops.run({:isclose, attributes}, &1))
        end

      equal |> R.flat() |> R.shaped([1, size]) |> nonzero() |> R.fold(&Ops.minimum/2, 1) |> R.shaped([])
    end)
  end

  defp running(name, draw, domain, tolerance, fun, none) do
    draw = if draw.shape == [], do: %{draw | shape: [1]}, else: draw
    axis = Draw.axis(draw)
    rank = length(draw.shape)
    {reverse, inclusive} = {Draw.coin(), Draw.coin()}
    op = {name, %{axis: Draw.written(axis, rank), reverse: reverse, inclusive: inclusive}}
    x = Draw.input(draw, domain.(draw.dtype, Enum.at(draw.shape, axis)))
    opts = kept(draw.shape, [axis], true)

    Case.values(
      op,
      [x],
      tolerance,
      fn [x] ->
        if 0 in draw.shape do
          x
        else
          {rows, _} = R.rows(x, [axis])
          rows = if draw.dtype == :c64 or name in [:cummax, :cummin], do: rows, else: R.split(rows)
          rows = if name == :logcumsumexp, do: R.f64(rows), else: rows
          rows = if reverse, do: R.reversed(rows), else: rows
          scanned = scanned(rows, name, fun)
          scanned = if inclusive, do: scanned, else: shifted(scanned, none.(draw.dtype))
          scanned = if reverse, do: R.linear(scanned, &R.reversed/1), else: scanned
          R.linear(scanned, &R.unrows(&1, draw.shape, axis))
        end
      end,
      opts
    )
  end

  # Sums of complex numbers are those of their parts.
  defp scanned(rows, :cumsum, fun), do: R.linear(R.split(rows), &R.scan(&1, fun))
  defp scanned(rows, _name, fun), do: R.scan(rows, fun)

  defp shifted(rows, none) do
    R.linear(rows, fn rows ->
      [count, n] = R.dims(rows)
      Ops.concatenate([R.full(none, [count, 1], Array.dtype(rows)), R.columns(rows, 0, n - 1)], axis: 1)
    end)
  end
end
