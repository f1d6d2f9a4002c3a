defmodule EMLX.Differential.LinearAlgebra do
  @moduledoc "Factors, inverses and solutions, for the differential suite: by what they multiply to."

  alias EMLX.{Array, Ops}
  alias EMLX.Differential.{Case, Draw, Input}
  alias EMLX.Differential.Reference, as: R

  # {batch sizes, n}
  @small [{[], 1}, {[], 2}, {[], 7}, {[], 31}, {[3], 2}, {[2, 3], 5}, {[1, 1], 3}]
  @large [{[1025], 3}, {[20_011], 2}, {[], 97}, {[3], 65}, {[31, 33], 2}]
  @types [:f32, :f64]

  def build(_name, %{dtype: dtype}) when dtype not in @types, do: :skip

  def build(name, draw) when name in [:inv, :tri_inv] do
    {lead, n, batch} = sizes(draw)
    upper = Draw.coin()
    a = if name == :tri_inv, do: triangular(lead, n, upper), else: general(lead, n, draw)
    op = if name == :inv, do: :inv, else: {:tri_inv, %{upper: upper}}

    checked(op, [given(a, draw)], lead, fn [a] ->
      fn [x] -> [{"a·x", product(a, x), R.identity(batch, n)}] end
    end)
  end

  def build(:pinv, draw) do
    {lead, n, batch} = sizes(draw)
    m = n + Enum.random(0..3)
    a = Ops.concatenate([general(lead, n, draw), random(lead, n, m - n)], axis: -1)

    checked(:pinv, [given(a, draw)], lead, fn [a] ->
      fn [x] -> [{"a·x", product(a, x), R.identity(batch, n)}] end
    end)
  end

  def build(:cholesky, draw) do
    {lead, n, _} = sizes(draw)
    upper = Draw.coin()

    checked({:cholesky, %{upper: upper}}, [given(positive(lead, n), draw)], lead, fn [a] ->
      fn [l] ->
        {l, t} = if upper, do: {R.transpose(stack(l)), stack(l)}, else: {stack(l), R.transpose(stack(l))}
        [{"l·lᵀ", R.multiply(l, t), stack(a)}, {"l", stack(triangle(l, false)), l}]
      end
    end)
  end

  def build(:cholesky_inv, draw) do
    {lead, n, batch} = sizes(draw)
    upper = Draw.coin()
    factor = triangular(lead, n, upper)

    checked({:cholesky_inv, %{upper: upper}}, [given(factor, draw)], lead, fn [l] ->
      {l, t} = if upper, do: {R.transpose(stack(l)), stack(l)}, else: {stack(l), R.transpose(stack(l))}
      a = R.multiply(l, t)
      fn [x] -> [{"a·x", R.multiply(a, stack(x)), R.identity(batch, n)}] end
    end)
  end

  def build(:qr, draw) do
    {lead, n, batch} = sizes(draw)

    checked(:qr, [given(general(lead, n, draw), draw)], lead, fn [a] ->
      fn [q, r] ->
        [
          {"q·r", product(q, r), stack(a)},
          {"qᵀ·q", R.multiply(R.transpose(stack(q)), stack(q)), R.identity(batch, n)},
          {"r", stack(triangle(r, true)), stack(r)}
        ]
      end
    end)
  end

  def build(:svd, draw) do
    {lead, n, batch} = sizes(draw)
    compute_uv = Draw.coin()

    checked({:svd, %{compute_uv: compute_uv}}, [given(general(lead, n, draw), draw)], lead, fn [a] ->
      fn
        [u, s, vt] ->
          scaled = Ops.multiply(stack(u), row(s, batch, n))

          [
            {"u·s·vᵀ", R.multiply(scaled, stack(vt)), stack(a)},
            {"uᵀ·u", R.multiply(R.transpose(stack(u)), stack(u)), R.identity(batch, n)},
            {"v·vᵀ", product(vt, R.transpose(stack(vt))), R.identity(batch, n)}
          ] ++ falls(s, n)

        [s] ->
          [{"squares of s", norms(row(s, batch, n)), norms(stack(a))}] ++ falls(s, n)
      end
    end)
  end

  def build(name, draw) when name in [:eigh, :eigvalsh] do
    {lead, n, batch} = sizes(draw)
    upper = Draw.coin()
    a = symmetric(lead, n)

    # Only the triangle that is asked for is looked at.
    checked({name, %{upper: upper}}, [given(triangle(a, upper), draw)], lead, fn _ ->
      fn
        [w, v] ->
          scaled = Ops.multiply(stack(v), row(w, batch, n))

          [
            {"v·w·vᵀ", R.multiply(scaled, R.transpose(stack(v))), stack(a)},
            {"vᵀ·v", R.multiply(R.transpose(stack(v)), stack(v)), R.identity(batch, n)}
          ] ++ falls(Ops.negative(w), n)

        [w] ->
          values = row(w, batch, n)

          [{"trace", sums(values), traces(stack(a))}, {"squares", norms(values), norms(stack(a))}] ++
            falls(Ops.negative(w), n)
      end
    end)
  end

  def build(name, draw) when name in [:eig, :eigvals] do
    {lead, n, batch} = sizes(draw)

    checked(name, [given(general(lead, n, draw), draw)], lead, fn [a] ->
      fn results ->
        [w | vectors] = Enum.map(results, &R.split/1)
        {re, im} = R.linear(w, &row(&1, batch, n))
        squares = Ops.subtract(Ops.square(re), Ops.square(im))
        trace = {"trace", sums(re), traces(stack(a))}
        square = {"trace of the square", sums(squares), traces(product(a, a))}

        case vectors do
          [] ->
            [trace, square]

          [v] ->
            v = R.linear(v, &R.shaped(&1, [batch, n, n]))
            left = R.bilinear(R.split(stack(a)), v, &R.multiply/2)
            right = R.bilinear(v, {re, im}, &Ops.multiply/2)
            {p, q} = {elem(left, 0), elem(left, 1)}
            {r, s} = right
            [trace, square, {"a·v", p, r}, {"a·v, imaginary", q, s}]
        end
      end
    end)
  end

  def build(:lu, draw) do
    {lead, n, batch} = sizes(draw)

    checked(:lu, [given(general(lead, n, draw), draw)], lead, fn [a] ->
      fn [order, l, u] ->
        # Row i of a is row order[i] of l·u.
        rows = R.shaped(R.s64(order), [batch, n, 1])
        starts = R.shaped(R.affine(batch, 0, n), [batch, 1, 1])

        index =
          Ops.add(Ops.multiply(Ops.add(rows, starts), Array.scalar(n, :s64)), R.shaped(R.affine(n, 0, 1), [1, 1, n]))

        [
          {"(l·u)[order]", R.pick(product(l, u), index), stack(a)},
          {"l", stack(triangle(l, false)), stack(l)},
          {"u", stack(triangle(u, true)), stack(u)}
        ]
      end
    end)
  end

  def build(:lu_factor, draw) do
    {lead, n, batch} = sizes(draw)

    checked(:lu_factor, [given(general(lead, n, draw), draw)], lead, fn [a] ->
      fn [packed, pivots] ->
        packed = stack(packed)
        u = stack(triangle(packed, true))
        l = Ops.add(Ops.subtract(packed, u), R.identity(batch, n))
        swapped = pivots |> R.s64() |> R.flat() |> Array.to_list() |> Enum.chunk_every(n) |> Enum.with_index()
        order = for {row, b} <- swapped, i <- order(row, n), do: b * n + i

        index =
          Ops.add(Ops.multiply(R.column(R.table(order)), Array.scalar(n, :s64)), R.shaped(R.affine(n, 0, 1), [1, n]))

        [{"l·u", R.multiply(l, u), R.shaped(R.pick(a, index), [batch, n, n])}]
      end
    end)
  end

  def build(name, draw) when name in [:det, :slogdet] do
    {lead, n, batch} = sizes(draw)
    # f32 has no numbers for the determinants of larger ones.
    n = if name == :det and draw.dtype == :f32, do: min(n, 7), else: n

    checked(name, [given(general(lead, n, draw), draw)], lead, fn [a] ->
      {sign, logarithm} = determinants(stack(a), batch, n)

      fn
        [det] ->
          want = Ops.multiply(sign, Ops.exp(logarithm))
          # Determinants grow with every row.
          [{"determinant", Ops.divide(R.f64(R.flat(det)), Ops.abs(want)), sign}]

        [s, l] ->
          [{"sign", R.flat(s), sign}, {"logarithm", R.flat(l), logarithm}]
      end
    end)
  end

  def build(name, draw) when name in [:solve, :solve_or_nan, :solve_triangular] do
    {lead, n, batch} = sizes(draw)
    upper = Draw.coin()
    a = if name == :solve_triangular, do: triangular(lead, n, upper), else: general(lead, n, draw)
    columns = Enum.random([1, 3])
    op = if name == :solve_triangular, do: {:solve_triangular, %{upper: upper}}, else: name

    b =
      Input.of(
        Ops.astype(random(lead, n, columns), draw.dtype),
        Enum.random([:contiguous, :sliced, :transposed, :reversed])
      )

    checked(op, [given(a, draw), b], [], fn [a, b] ->
      fn [x] ->
        [
          {"a·x", R.multiply(stack(a), R.shaped(R.f64(x), [batch, n, columns])),
           R.shaped(R.f64(b), [batch, n, columns])}
        ]
      end
    end)
  end

  def build(_name, _draw), do: nil

  # ---- matrices ----

  defp sizes(draw) do
    {lead, n} = Draw.by_size(draw, small: @small, large: @large)
    {lead, n, R.size(lead)}
  end

  defp random(lead, rows, columns), do: Input.new(lead ++ [rows, columns], :f64, {-1, 1}, :contiguous).values

  # Far from singular, but with rows that have to change places.
  defp general(lead, n, draw) do
    {row, column} = {R.along(R.affine(n, 0, 1), 0, 2), R.along(R.affine(n, 0, 1), 1, 2)}
    turned = if draw.dtype == :f64, do: Ops.subtract(Array.scalar(n - 1, :s64), column), else: column
    Ops.add(random(lead, n, n), Ops.multiply(R.f64(Ops.equal(row, turned)), n + 2.0))
  end

  defp triangular(lead, n, upper) do
    [row, column] = R.coordinates([n, n])
    triangle(Ops.add(random(lead, n, n), Ops.multiply(R.f64(Ops.equal(row, column)), n + 2.0)), upper)
  end

  defp symmetric(lead, n) do
    x = stack(random(lead, n, n))
    [row, column] = R.coordinates([n, n])
    diagonal = Ops.multiply(R.f64(Ops.equal(row, column)), R.f64(Ops.multiply(row, Array.scalar(3, :s64))))
    R.shaped(Ops.add(Ops.add(x, R.transpose(x)), diagonal), lead ++ [n, n])
  end

  defp positive(lead, n) do
    x = stack(random(lead, n, n))
    eye = Ops.multiply(R.identity(R.size(lead), n), n * 1.0)
    R.shaped(Ops.add(R.contract(x, x), eye), lead ++ [n, n])
  end

  defp triangle(a, upper) do
    [row, column] = a |> R.dims() |> Enum.take(-2) |> R.coordinates()
    inside = if upper, do: Ops.less_equal(row, column), else: Ops.greater_equal(row, column)
    Ops.where(inside, a, Array.scalar(0, Array.dtype(a)))
  end

  # Rounded to the type first: what it multiplies to is that of the rounded one.
  defp given(a, draw), do: Input.of(Ops.astype(a, draw.dtype), draw.layout)

  defp stack(a) do
    [m, n] = a |> R.dims() |> Enum.take(-2)
    R.shaped(R.f64(a), [div(Array.size(a), m * n), m, n])
  end

  defp product(a, b), do: R.multiply(stack(a), stack(b))
  defp row(w, batch, n), do: R.shaped(R.f64(w), [batch, 1, n])

  defp norms(a) do
    [batch, m, n] = R.dims(a)
    R.sum(R.shaped(Ops.square(a), [batch, m * n]))
  end

  defp sums(a) do
    [batch, m, n] = R.dims(a)
    R.sum(R.shaped(a, [batch, m * n]))
  end

  defp traces(a) do
    [_, n, _] = R.dims(a)
    a |> Ops.multiply(R.identity(1, n)) |> sums()
  end

  # Rows of numbers go downwards.
  defp falls(w, n) do
    rows = R.shaped(w, [div(Array.size(w), n), n])
    falls = Ops.greater_equal(R.columns(rows, 0, n - 1), R.columns(rows, 1, n))
    [{"order", falls, R.full(1, R.dims(falls), :bool)}]
  end

  # The rows that pivots bring to each place.
  defp order(pivots, n) do
    start = Map.new(0..(n - 1), &{&1, &1})

    swapped =
      for {to, from} <- Enum.with_index(pivots), reduce: start do
        rows -> %{rows | from => rows[to], to => rows[from]}
      end

    for i <- 0..(n - 1), do: swapped[i]
  end

  # Signs and logarithms of the determinants, by elimination without a choice of rows: of the product with a matrix that
  # turns the columns round where rows have to change places.
  defp determinants(a, batch, n) do
    diagonal = fn a, i -> R.flat(Ops.slice(a, [0, i, i], [batch, i + 1, i + 1], [1, 1, 1])) end
    weight = norms(Ops.multiply(a, R.identity(1, n)))
    turned = R.move(a, [R.affine(batch, 0, n * n), R.affine(n, 0, n), R.affine(n, n - 1, -1)])
    # The heavy diagonal is the one or the other, for all matrices of a stack.
    heavy? = fn a, b ->
      Array.to_list(Ops.less(R.sum(R.shaped(a, [1, batch])), R.sum(R.shaped(b, [1, batch])))) == [1]
    end

    turn? = heavy?.(weight, norms(Ops.multiply(turned, R.identity(1, n))))
    flips = if turn? and rem(div(n, 2), 2) == 1, do: -1.0, else: 1.0
    start = {if(turn?, do: turned, else: a), R.full(flips, [batch], :f64), R.full(0.0, [batch], :f64)}

    {_, sign, logarithm} =
      for i <- 0..(n - 1), reduce: start do
        {a, sign, logarithm} ->
          pivot = diagonal.(a, i)
          row = Ops.slice(a, [0, i, 0], [batch, i + 1, n], [1, 1, 1])
          column = Ops.divide(Ops.slice(a, [0, 0, i], [batch, n, i + 1], [1, 1, 1]), R.shaped(pivot, [batch, 1, 1]))
          below = R.shaped(R.f64(Ops.greater(R.affine(n, 0, 1), Array.scalar(i, :s64))), [1, n, 1])
          left = Ops.subtract(a, Ops.multiply(Ops.multiply(column, below), row))
          {left, Ops.multiply(sign, Ops.sign(pivot)), Ops.add(logarithm, Ops.log(Ops.abs(pivot)))}
      end

    {sign, logarithm}
  end

  defp checked(op, inputs, lead, check) do
    rows = if lead == [], do: [], else: [rows: {0, 0}]

    Case.checked(
      op,
      inputs,
      :decomposed,
      fn arrays ->
        look = check.(arrays)
        # By the type of the operation, not the wider one of what is computed from its results.
        fn results ->
          # Complex numbers are of f32.
          tolerance = EMLX.Tolerance.of(:decomposed, if(op in [:eig, :eigvals], do: :f32, else: dtype(hd(inputs))))
          for {label, have, want} <- look.(results), do: {label, have, want, sized(tolerance, want)}
        end
      end,
      if(op in [:eig, :qr, :eigvals] or match?({:svd, _}, op) or match?({:eigh, _}, op), do: [], else: rows)
    )
  end

  defp dtype(%Input{values: values}), do: Array.dtype(values)

  # An element that is small among large ones is as exact as those.
  defp sized({absolute, relative}, want) do
    if Array.dtype(want) == :bool do
      :exact
    else
      top =
        want
        |> R.flat()
        |> R.f64()
        |> Ops.abs()
        |> R.shaped([1, Array.size(want)])
        |> R.max()
        |> Array.to_list()
        |> hd()

      {absolute * max(1.0, top), relative}
    end
  end
end
