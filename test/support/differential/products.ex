defmodule EMLX.Differential.Products do
  @moduledoc "Products of matrices and what is made of them, for the differential suite: by sums in 64 bits."

  alias EMLX.Differential.{Case, Draw, Input, Reductions}
  alias EMLX.Differential.Reference, as: R
  alias EMLX.Ops

  # {batch, rows, inner, columns}
  @small [
    {1, 1, 1, 1},
    {1, 3, 7, 5},
    {1, 31, 7, 1},
    {1, 1, 31, 65},
    {3, 7, 31, 5},
    {2, 4, 1025, 3},
    {1, 65, 33, 31},
    {5, 1, 7, 1}
  ]
  @large [
    {1, 1, 1_000_003, 1},
    {1, 65_537, 1, 3},
    {1, 3, 65_537, 3},
    {1, 65_537, 3, 7},
    {1, 129, 257, 65},
    {1025, 3, 7, 5},
    {1, 1, 8193, 65},
    {1, 257, 1025, 7}
  ]
  @empty [{1, 0, 3, 2}, {1, 2, 0, 3}, {2, 3, 4, 0}]

  def build(:matmul, draw) do
    {batch, m, k, n} = sizes(draw)
    shared = Draw.coin()
    a = if batch > 1, do: [batch, m, k], else: [m, k]
    b = if batch > 1 and not shared, do: [batch, k, n], else: [k, n]
    # A vector is a row on the left, and a column on the right.
    a = if m == 1 and batch == 1 and Draw.coin(), do: [k], else: a
    b = if n == 1 and length(b) == 2 and Draw.coin(), do: [k], else: b

    out =
      if(batch > 1, do: [batch], else: []) ++
        if(length(a) > 1, do: [m], else: []) ++ if(length(b) > 1, do: [n], else: [])

    rows = if length(a) == 2 and length(b) == 2 and m > 1, do: [rows: {0, 0}], else: []

    Case.values(
      :matmul,
      pair(draw, a, b, k),
      :product,
      fn [a, b] -> product(R.shaped(a, [batch, m, k]), stacked(b, batch, k, n), &R.multiply/2, out) end,
      rows
    )
  end

  def build(:addmm, draw) do
    {_, m, k, n} = sizes(draw)
    {alpha, beta} = Enum.random([{1.0, 1.0}, {0.5, -2.0}])
    c = Enum.random([[m, n], [n], [], [m, 1]])
    inputs = [Draw.other(draw, c, {0, 2}) | pair(draw, [m, k], [k, n], k)]

    Case.values({:addmm, %{alpha: alpha, beta: beta}}, inputs, :product, fn [c, a, b] ->
      product = product(R.shaped(a, [1, m, k]), R.shaped(b, [1, k, n]), &R.multiply/2, [m, n])
      scale = fn x, by -> R.linear(x, &Ops.multiply(R.f64(&1), by)) end
      plus(scale.(product, alpha), scale.(R.linear(R.split(c), &R.spread(&1, [m, n])), beta))
    end)
  end

  def build(:inner, draw) do
    {batch, m, k, n} = sizes(draw)
    {a, b} = Enum.random([{[m, k], [n, k]}, {[batch, m, k], [n, k]}, {[k], [n, k]}])

    Case.values(:inner, pair(draw, a, b, k), :product, fn [x, y] ->
      x = R.shaped(x, [1, R.size(Enum.drop(a, -1)), k])
      product(x, R.shaped(y, [1, n, k]), &R.contract/2, Enum.drop(a, -1) ++ [n])
    end)
  end

  def build(:outer, draw) do
    {m, n} = rectangle(draw)

    Case.values(:outer, pair(draw, [m], [n], 1), :rounded, fn [a, b] ->
      product(R.shaped(a, [1, m, 1]), R.shaped(b, [1, n, 1]), &R.contract/2, [m, n])
    end)
  end

  def build(:kron, draw) do
    {m, n} = rectangle(draw)
    [p, q] = for _ <- 1..2, do: Enum.random([1, 2, 3])

    Case.values(:kron, pair(draw, [m, n], [p, q], 1), :rounded, fn [a, b] ->
      # [m, n, p, q] to [m, p, n, q].
      a = R.shaped(a, [1, m * n, 1])
      products = product(a, R.shaped(b, [1, p * q, 1]), &R.contract/2, [m, n, p, q])
      R.linear(products, &R.shaped(R.permute(&1, [0, 2, 1, 3]), [m * p, n * q]))
    end)
  end

  def build(:vecdot, draw) do
    draw = if draw.shape == [], do: %{draw | shape: [1]}, else: draw
    axis = Draw.axis(draw)
    k = Enum.at(draw.shape, axis)
    [a, b] = pair(draw, draw.shape, draw.shape, k, {-9, 9})
    op = {:vecdot, %{axis: Draw.written(axis, length(draw.shape))}}

    Case.values(op, [a, b], :product, fn [a, b] ->
      {[a, b], kept} = {for(x <- [a, b], do: elem(R.rows(x, [axis]), 0)), List.delete_at(draw.shape, axis)}
      conjugated = with {re, im} <- R.split(a), do: {re, Ops.negative(im)}
      R.bilinear(conjugated, R.split(b), &R.shaped(R.sum(Ops.multiply(&1, &2)), kept))
    end)
  end

  def build(:tensordot, draw) do
    {_, m, k, n} = sizes(draw)
    # {m, k1, k2} and {k2, n, k1}, two axes of each contracted.
    {k1, k2} = if rem(k, 5) == 0 and k > 0, do: {5, div(k, 5)}, else: {1, k}
    [a, b] = pair(draw, [m, k1, k2], [k2, n, k1], k)

    Case.values({:tensordot, %{axes_a: [1, -1], axes_b: [2, 0]}}, [a, b], :product, fn [a, b] ->
      b = R.shaped(R.permute(b, [1, 2, 0]), [1, n, k])
      product(R.shaped(a, [1, m, k]), b, &R.contract/2, [m, n])
    end)
  end

  def build(:einsum, draw) do
    {batch, m, k, n} = sizes(draw)
    einsum = fn text, inputs, fun -> Case.values({:einsum, %{subscripts: text}}, inputs, :product, fun) end

    case Enum.random(1..6) do
      1 ->
        einsum.("ij,jk->ki", pair(draw, [m, k], [k, n], k), fn [a, b] ->
          products = product(R.shaped(a, [1, m, k]), R.shaped(b, [1, k, n]), &R.multiply/2, [m, n])
          R.linear(products, &R.permute(&1, [1, 0]))
        end)

      2 ->
        einsum.("bij,bkj->bik", pair(draw, [batch, m, k], [batch, n, k], k), fn [a, b] ->
          product(a, b, &R.contract/2, [batch, m, n])
        end)

      3 ->
        einsum.("i,i->", pair(draw, [k], [k], k), fn [a, b] ->
          product(R.shaped(a, [1, 1, k]), R.shaped(b, [1, 1, k]), &R.contract/2, [])
        end)

      4 ->
        einsum.("ijk->ik", [Draw.input(draw, domain(m), [batch, m, k])], fn [x] ->
          {rows, kept} = R.rows(x, [1])
          R.linear(R.split(rows), &R.shaped(R.sum(&1), kept))
        end)

      5 ->
        einsum.("ij->ji", [Draw.input(draw, {-9, 9}, [m, k])], fn [x] -> R.permute(x, [1, 0]) end)

      6 ->
        n = min(max(m, 1), 1025)

        einsum.("ii->i", [Draw.input(draw, {-9, 9}, [n, n])], fn [x] ->
          {rows, []} = Reductions.diagonals(x, 0, 0, 1)
          R.flat(rows)
        end)
    end
  end

  def build(:gather_mm, draw) do
    {_, m, k, n} = sizes(draw)
    {p, q} = {Enum.random(1..3), Enum.random(1..4)}
    [a, b] = pair(draw, [p, m, k], [q, k, n], k)
    right = for _ <- 1..p, do: :rand.uniform(q) - 1
    sorted = Draw.coin()
    right = if sorted, do: Enum.sort(right), else: right
    left = if sorted, do: nil, else: Enum.random([nil, for(_ <- 1..p, do: :rand.uniform(p) - 1)])
    index = fn list -> list && Input.of(EMLX.Array.from_list(list, :u32), :contiguous) end

    Case.values({:gather_mm, %{sorted: sorted}}, [a, b, index.(left), index.(right)], :product, fn [a, b, _, _] ->
      left = left || Enum.to_list(0..(p - 1))
      [a, b] = for {x, list, size} <- [{a, left, m * k}, {b, right, k * n}], do: picked(x, list, size)
      product(R.shaped(a, [p, m, k]), R.shaped(b, [p, k, n]), &R.multiply/2, [p, m, n])
    end)
  end

  # Booleans have no differences.
  def build(:cross, %{dtype: :bool}), do: :skip

  def build(:cross, draw) do
    shape = if draw.shape == [], do: [3], else: draw.shape
    axis = Enum.random(0..(length(shape) - 1))
    shape = List.replace_at(shape, axis, 3)
    [a, b] = pair(draw, shape, shape, 1)

    Case.values({:cross, %{axis: Draw.written(axis, length(shape))}}, [a, b], :product, fn [a, b] ->
      [[a0, a1, a2], [b0, b1, b2]] =
        for x <- [a, b], {rows, _} = R.rows(x, [axis]), do: for(i <- 0..2, do: R.split(R.columns(rows, i, i + 1)))

      times = fn x, y -> R.bilinear(x, y, &Ops.multiply/2) end

      parts = [
        minus(times.(a1, b2), times.(a2, b1)),
        minus(times.(a2, b0), times.(a0, b2)),
        minus(times.(a0, b1), times.(a1, b0))
      ]

      together(parts, &R.unrows(Ops.concatenate(&1, axis: 1), shape, axis))
    end)
  end

  def build(_name, _draw), do: nil

  defp sizes(draw), do: Draw.by_size(draw, small: @small, large: @large, empty: @empty)

  defp rectangle(draw),
    do:
      Draw.by_size(draw,
        small: [{1, 1}, {7, 31}, {31, 65}, {1025, 3}],
        large: [{100_003, 3}, {3, 65_537}, {1025, 257}],
        empty: [{0, 3}]
      )

  # Positive numbers, so that a sum is as exact as its terms; small enough for 16 bits.
  defp domain(k), do: {0, 2 * min(1, 50 / max(k, 1))}

  # Two operands whose products are summed over k; `ints` is the domain of integers.
  defp pair(%{dtype: dtype} = draw, a, b, k, ints \\ {-30, 30}) do
    {first, second} = if dtype in [:f16, :bf16, :f32, :f64, :c64], do: {{0, 1}, domain(k)}, else: {ints, ints}
    [Draw.input(draw, first, a), Draw.other(draw, b, second)]
  end

  defp product(a, b, fun, dims), do: R.linear(R.bilinear(R.split(a), R.split(b), fun), &R.shaped(&1, dims))

  defp stacked(b, batch, k, n) do
    case R.size(R.dims(b)) == batch * k * n do
      true -> R.shaped(b, [batch, k, n])
      false -> R.spread(R.shaped(b, [1, k, n]), [batch, k, n])
    end
  end

  defp picked(x, list, size),
    do: R.move(x, [Ops.multiply(R.table(list), EMLX.Array.scalar(size, :s64)), R.affine(size, 0, 1)])

  defp plus({a, b}, {c, d}), do: {Ops.add(a, c), Ops.add(b, d)}
  defp plus(a, b), do: Ops.add(a, b)
  defp minus({a, b}, {c, d}), do: {Ops.subtract(a, c), Ops.subtract(b, d)}
  defp minus(a, b), do: Ops.subtract(a, b)

  defp together([{_, _} | _] = parts, fun),
    do: {fun.(Enum.map(parts, &elem(&1, 0))), fun.(Enum.map(parts, &elem(&1, 1)))}

  defp together(parts, fun), do: fun.(parts)
end
