defmodule EMLX.Differential.Reference do
  @moduledoc """
  What operations should give, computed on the CPU in f64 or 64-bit integers by other operations than the one under
  test: sums by adding halves, running sums by adding shifted copies, everything that moves elements by computing
  where each one comes from. Functions of elements are computed in pieces of 1,000 elements, where no kernel goes in
  parallel or takes another path.

  `rows` are matrices {rows, n}, whose rows are reduced, scanned or sorted.
  """

  import Kernel, except: [max: 2, min: 2]

  alias EMLX.{Array, Ops}

  @piece 1000
  @floats [:f16, :bf16, :f32]

  # ---- types and shapes ----

  @doc "Floats in f64; other types as they are."
  def wide(array), do: if(Array.dtype(array) in @floats, do: Ops.astype(array, :f64), else: array)

  @doc "Real numbers in f64."
  def f64(array), do: Ops.astype(array, :f64)

  @doc "Integers and booleans in s64."
  def s64(array), do: Ops.astype(array, :s64)

  @doc "The sizes of the axes, as a list."
  def dims(array), do: Tuple.to_list(Array.shape(array))

  @doc "The elements in another shape."
  def shaped(array, dims), do: Ops.run({:reshape, %{shape: dims}}, [array])

  @doc "The elements as a vector."
  def flat(array), do: shaped(array, [Array.size(array)])

  @doc "One number of a type in a shape."
  def full(value, dims, dtype), do: Ops.broadcast_to(Array.scalar(value, dtype), dims)

  @doc "The product of sizes."
  def size(dims), do: Enum.product(dims)

  @doc "Row-major strides."
  def strides(dims) do
    {strides, _} = Enum.map_reduce(Enum.reverse(dims), 1, fn size, stride -> {stride, stride * size} end)
    Enum.reverse(strides)
  end

  # ---- functions of elements ----

  @doc """
  A function of vectors, in pieces, over the elements of arrays that are broadcast together.
  """
  def pieces(arrays, fun) do
    dims = arrays |> Enum.map(&dims/1) |> broadcast()
    count = size(dims)
    vectors = for array <- arrays, do: array |> spread(dims) |> flat()

    if count <= @piece do
      shaped(fun.(vectors), dims)
    else
      parts =
        for from <- 0..(count - 1)//@piece do
          to = Kernel.min(from + @piece, count)
          fun.(for vector <- vectors, do: Ops.slice(vector, [from], [to], [1]))
        end

      shaped(Ops.concatenate(parts), dims)
    end
  end

  @doc "The shape that shapes are broadcast to."
  def broadcast(shapes) do
    rank = shapes |> Enum.map(&length/1) |> Enum.max(fn -> 0 end)
    padded = for dims <- shapes, do: List.duplicate(1, rank - length(dims)) ++ dims

    padded
    |> Enum.zip_with(& &1)
    |> Enum.map(fn sizes -> Enum.find(sizes, 1, &(&1 != 1)) end)
  end

  @doc "An array broadcast to a shape, in memory of its own."
  def spread(array, dims) do
    own = dims(array)

    if own == dims do
      array
    else
      padded = List.duplicate(1, length(dims) - length(own)) ++ own

      tables =
        for {{from, to}, stride} <- padded |> Enum.zip(dims) |> Enum.zip(strides(padded)),
            do: affine(to, 0, if(from == 1, do: 0, else: stride))

      pick(array, index(tables))
    end
  end

  # ---- where elements come from ----

  @doc "start, start + step, … in s64."
  def affine(n, start, step) do
    counted = Ops.iota([n], dtype: :s64)
    Ops.add(Ops.multiply(counted, Array.scalar(step, :s64)), Array.scalar(start, :s64))
  end

  @doc "A list of integers in s64."
  def table(list), do: Array.from_list(list, :s64)

  @doc "For each axis a vector: their sums, in the shape that their lengths make."
  def index(tables), do: combine(tables, &Ops.add/2, Array.scalar(0, :s64))

  defp combine(tables, fun, none) do
    rank = length(tables)
    dims = Enum.map(tables, &Array.size/1)

    tables
    |> Enum.with_index()
    |> Enum.map(fn {table, axis} -> along(table, axis, rank) end)
    |> Enum.reduce(none, fun)
    |> Ops.broadcast_to(dims)
  end

  @doc "A vector as an axis among `rank`."
  def along(vector, axis, rank),
    do: shaped(vector, 1 |> List.duplicate(rank) |> List.replace_at(axis, Array.size(vector)))

  @doc "The coordinates of a shape: for each axis an array that is broadcast to it."
  def coordinates(dims) do
    for {n, axis} <- Enum.with_index(dims), do: along(affine(n, 0, 1), axis, length(dims))
  end

  @doc "The elements at places in row-major order."
  def pick(array, index) do
    if Array.size(index) == 0 or Array.size(array) == 0,
      do: full(0, dims(index), Array.dtype(array)),
      else: Ops.take(flat(array), index)
  end

  @doc """
  An array whose element at {i, j, …} is the one at the place `table[0][i] + table[1][j] + …` in row-major order. A
  negative entry stands for `fill`.
  """
  def move(array, tables, fill \\ nil) do
    if fill == nil do
      pick(array, index(tables))
    else
      zero = Array.scalar(0, :s64)
      valid = combine(Enum.map(tables, &Ops.greater_equal(&1, zero)), &Ops.logical_and/2, Array.scalar(1, :bool))
      inside = pick(array, index(Enum.map(tables, &Ops.maximum(&1, zero))))
      Ops.where(valid, inside, Ops.astype(fill, Array.dtype(array)))
    end
  end

  @doc "The axes in another order, in memory of its own."
  def permute(array, perm) do
    if perm == Enum.sort(perm) do
      array
    else
      {dims, strides} = {dims(array), strides(dims(array))}
      move(array, for(axis <- perm, do: affine(Enum.at(dims, axis), 0, Enum.at(strides, axis))))
    end
  end

  @doc "The inverse of an order of axes."
  def inverse(perm), do: perm |> Enum.with_index() |> Enum.sort() |> Enum.map(&elem(&1, 1))

  @doc "Some axes last, as rows: `{rows, the other sizes}`."
  def rows(array, axes) do
    dims = dims(array)
    kept = Enum.to_list(0..(length(dims) - 1)//1) -- axes
    sizes = fn axes -> Enum.map(axes, &Enum.at(dims, &1)) end
    {array |> permute(kept ++ axes) |> shaped([size(sizes.(kept)), size(sizes.(axes))]), sizes.(kept)}
  end

  @doc "Rows of an array back along one axis."
  def unrows(rows, dims, axis) do
    kept = Enum.to_list(0..(length(dims) - 1)//1) -- [axis]
    sizes = Enum.map(kept, &Enum.at(dims, &1)) ++ [rows |> dims() |> List.last()]
    rows |> shaped(sizes) |> permute(inverse(kept ++ [axis]))
  end

  @doc "Columns of rows."
  def columns(rows, from, to) do
    [count, _] = dims(rows)
    Ops.slice(rows, [0, from], [count, to], [1, 1])
  end

  @doc "The columns of rows in reverse."
  def reversed(rows) do
    [count, n] = dims(rows)
    move(rows, [affine(count, 0, n), affine(n, n - 1, -1)])
  end

  # ---- reductions ----

  @doc "The rows reduced by an operation of two arrays that is associative, in halves; `none` where they are empty."
  def fold(rows, fun, none \\ 0) do
    case dims(rows) do
      [count, 0] ->
        full(none, [count], Array.dtype(rows))

      [count, 1] ->
        shaped(rows, [count])

      [_, n] ->
        half = div(n, 2)
        folded = fun.(columns(rows, 0, half), columns(rows, half, 2 * half))
        rest = columns(rows, 2 * half, n)
        fold(if(2 * half == n, do: folded, else: Ops.concatenate([folded, rest], axis: 1)), fun, none)
    end
  end

  @doc "Sums of rows."
  def sum(rows), do: fold(rows, &Ops.add/2)

  @doc "Largest elements of rows."
  def max(rows), do: fold(rows, &Ops.maximum/2)

  @doc "Smallest elements of rows."
  def min(rows), do: fold(rows, &Ops.minimum/2)

  @doc "Running reductions of rows, by adding shifted copies."
  def scan(rows, fun), do: scan(rows, fun, 1)

  defp scan(rows, fun, step) do
    [_, n] = dims(rows)

    if step >= n do
      rows
    else
      shifted = fun.(columns(rows, 0, n - step), columns(rows, step, n))
      scan(Ops.concatenate([columns(rows, 0, step), shifted], axis: 1), fun, 2 * step)
    end
  end

  @doc "For each row the first place where a boolean is true; the length where none is."
  def first(rows) do
    [_, n] = dims(rows)
    min(Ops.where(rows, shaped(affine(n, 0, 1), [1, n]), Array.scalar(n, :s64)))
  end

  @doc "For each row the last place where a boolean is true; -1 where none is."
  def last(rows) do
    [_, n] = dims(rows)
    max(Ops.where(rows, shaped(affine(n, 0, 1), [1, n]), Array.scalar(-1, :s64)))
  end

  @doc "A column for each row."
  def column(vector), do: shaped(vector, [Array.size(vector), 1])

  # ---- order ----

  @doc """
  Rows sorted upwards, NaN last. By the CPU's sort of contiguous rows in 64 bits, and looked at: every row rises and has
  the elements that it had.
  """
  def sort(rows) do
    kind = sortable(rows)
    sorted = Ops.sort(kind, axis: 1)
    rises!(sorted)

    if Array.to_binary(digest(kind)) != Array.to_binary(digest(sorted)),
      do: raise("the reference's sort of #{inspect(dims(rows))} has other elements than what it sorts")

    sorted
  end

  @doc "The places that sort rows, equals in their order; looked at as in `sort/1`."
  def argsort(rows) do
    kind = sortable(rows)
    [count, n] = dims(rows)
    order = s64(Ops.argsort(kind, axis: 1))
    sorted = gather(kind, order)
    rises!(sorted)
    if n > 0 and count > 0, do: stable!(sorted, order, n)
    order
  end

  defp sortable(rows) do
    case Array.dtype(rows) do
      float when float in @floats -> f64(rows)
      same when same in [:f64, :u64, :s64] -> rows
      _ -> s64(rows)
    end
  end

  @doc "For each row the elements at places of that row."
  def gather(rows, places) do
    [count, n] = dims(rows)
    pick(rows, Ops.add(s64(places), column(affine(count, 0, n))))
  end

  defp rises!(sorted) do
    [_, n] = dims(sorted)

    if n > 1 do
      {a, b} = {columns(sorted, 0, n - 1), columns(sorted, 1, n)}
      falls = Ops.logical_not(Ops.logical_or(Ops.less_equal(a, b), Ops.isnan(b)))
      if :binary.match(Array.to_binary(falls), <<1>>) != :nomatch, do: raise("the reference's sort does not rise")
    end
  end

  defp stable!(sorted, order, n) do
    {a, b} = {columns(sorted, 0, n - 1), columns(sorted, 1, n)}
    equal = Ops.logical_or(Ops.equal(a, b), Ops.logical_and(Ops.isnan(a), Ops.isnan(b)))
    falls = Ops.logical_and(equal, Ops.greater_equal(columns(order, 0, n - 1), columns(order, 1, n)))
    whole = Ops.equal(digest(order), digest(Ops.add(Ops.multiply(order, 0), shaped(affine(n, 0, 1), [1, n]))))

    if :binary.match(Array.to_binary(falls), <<1>>) != :nomatch or
         :binary.match(Array.to_binary(whole), <<0>>) != :nomatch,
       do: raise("the reference's order of sorting is not stable, or no order")
  end

  @doc "A number for each row that its elements decide and their order does not."
  def digest(rows) do
    dims = dims(rows)
    rows = if Array.dtype(rows) == :f64, do: Ops.where(Ops.isnan(rows), Array.scalar(:nan, :f64), rows), else: rows
    # Both zeros are equal, and may come in any order.
    rows = if Array.dtype(rows) == :f64, do: Ops.add(rows, 0.0), else: rows
    bits = Array.from_binary(Array.to_binary(Ops.contiguous(rows)), dims, :u64)

    mixed =
      Enum.reduce([{31, 0x9E3779B97F4A7C15}, {29, 0xBF58476D1CE4E5B9}, {32, 0x94D049BB133111EB}], bits, fn {shift, odd},
                                                                                                           x ->
        x = Ops.bitwise_xor(x, Ops.right_shift(x, Array.scalar(shift, :u64)))
        Ops.multiply(x, Array.scalar(odd, :u64))
      end)

    sum(mixed)
  end

  # ---- products ----

  @doc "Complex numbers by their parts, real ones as they are."
  def split(array) do
    if Array.dtype(array) == :c64, do: EMLX.Differential.Compare.parts(array), else: number(array)
  end

  defp number(array), do: if(Array.dtype(array) in [:f64 | @floats], do: f64(array), else: s64(array))

  @doc "A bilinear function of two arrays, each of which `split/1` made."
  def bilinear({ar, ai}, {br, bi}, fun),
    do: {Ops.subtract(fun.(ar, br), fun.(ai, bi)), Ops.add(fun.(ar, bi), fun.(ai, br))}

  def bilinear({_, _} = a, b, fun), do: bilinear(a, {b, Ops.multiply(b, 0.0)}, fun)
  def bilinear(a, {_, _} = b, fun), do: bilinear({a, Ops.multiply(a, 0.0)}, b, fun)
  def bilinear(a, b, fun), do: fun.(a, b)

  @doc "A function of the parts of what `split/1` made."
  def linear({re, im}, fun), do: {fun.(re), fun.(im)}
  def linear(array, fun), do: fun.(array)

  # So many products at once.
  @products 4_000_000

  @doc "Sums of products: {batch, m, k} and {batch, n, k} give {batch, m, n}."
  def contract(a, b) do
    {[batch, m, k], [_, n, _]} = {dims(a), dims(b)}
    step = Kernel.max(1, div(@products, Kernel.max(batch * m * n, 1)))

    cond do
      k == 0 ->
        full(0, [batch, m, n], Array.dtype(a))

      k <= step ->
        products = Ops.multiply(shaped(a, [batch, m, 1, k]), shaped(b, [batch, 1, n, k]))
        products |> shaped([batch * m * n, k]) |> sum() |> shaped([batch, m, n])

      true ->
        for from <- 0..(k - 1)//step do
          to = Kernel.min(from + step, k)
          [a, b] = for x <- [a, b], do: Ops.contiguous(third(x, from, to))
          contract(a, b)
        end
        |> Enum.reduce(&Ops.add/2)
    end
  end

  defp third(x, from, to) do
    [batch, m, _] = dims(x)
    Ops.slice(x, [0, 0, from], [batch, m, to], [1, 1, 1])
  end

  @doc "Matrix products: {batch, m, k} and {batch, k, n} give {batch, m, n}."
  def multiply(a, b), do: contract(a, permute(b, [0, 2, 1]))

  @doc "The matrices of a stack turned over."
  def transpose(array), do: permute(array, [0, 2, 1])

  @doc "Identity matrices, {batch, n, n} in f64."
  def identity(batch, n) do
    [row, column] = coordinates([n, n])
    spread(shaped(f64(Ops.equal(row, column)), [1, n, n]), [batch, n, n])
  end
end
