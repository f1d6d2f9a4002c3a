defmodule EMLX.Backend.Complex128.Triangular do
  @moduledoc false
  # Solves triangular systems in c128 for EMLX.Backend.Complex128 with the solver of f64.
  #
  # Each row is divided by its element of the diagonal. Then the complex system becomes a real one of twice the size, in
  # which each number x + iy of the matrix is the block x, -y; y, x. The blocks of the diagonal are 1, 0; 0, 1, so the
  # real system is triangular, too.

  alias EMLX.{Array, Ops}
  alias EMLX.Backend.Complex128.Math
  alias EMLX.Backend.Pair

  @doc "Solves a system given by parts and their shapes; returns pairs. See `EMLX.Backend.Product.triangular_solve/4`."
  def solve(matrix, shape, right, right_shape, opts) do
    rank = tuple_size(shape)
    n = elem(shape, rank - 1)
    batch = shape |> Tuple.to_list() |> Enum.drop(-2)
    vector? = tuple_size(right_shape) < rank
    left? = opts[:left_side]
    {matrix, lower?} = transformed(triangle(matrix, opts[:lower]), opts)

    columns =
      cond do
        vector? -> 1
        left? -> elem(right_shape, rank - 1)
        true -> elem(right_shape, rank - 2)
      end

    # x·a = b is the system with a and b transposed.
    {matrix, right, lower?} =
      if left? do
        {matrix, both(right, &reshape(&1, batch ++ [n, columns])), lower?}
      else
        rows = both(right, &reshape(&1, batch ++ [columns, n]))
        {both(matrix, &flip/1), both(rows, &flip/1), not lower?}
      end

    diagonal = both(matrix, &Pair.expand(Ops.diagonal(&1, axis1: -2, axis2: -1)))
    refuse_singular(diagonal)
    {x, y} = Math.divide(matrix, diagonal)
    right = Math.divide(right, diagonal)

    # {…, n, 2, n, 2}: the parts of a row are adjacent, and so are those of a column.
    blocks = Ops.run({:stack, %{axis: -3}}, [Pair.join(x, Ops.negative(y)), Pair.join(y, x)])
    blocks = reshape(blocks, batch ++ [2 * n, 2 * n])
    # The diagonal is 1 up to rounding.
    blocks = unit_diagonal(blocks, 2 * n)
    {re, im} = right
    sides = reshape(Ops.run({:stack, %{axis: -2}}, [re, im]), batch ++ [2 * n, columns])
    solved = Ops.run({:solve_triangular, %{upper: not lower?}}, [blocks, sides])
    pairs = reshape(solved, batch ++ [n, 2, columns])
    axes = Enum.to_list(0..(length(batch) - 1)//1)
    r = length(batch)
    order = if left?, do: [r, r + 2, r + 1], else: [r + 2, r, r + 1]
    Ops.run({:transpose, %{axes: axes ++ order}}, [pairs])
  end

  # The other triangle may hold any values.
  defp triangle(matrix, lower?),
    do: {both(matrix, &Ops.run({if(lower?, do: :tril, else: :triu), %{k: 0}}, [&1])), lower?}

  defp transformed({matrix, lower?}, opts) do
    case opts[:transform_a] do
      :transpose -> {both(matrix, &flip/1), not lower?}
      :conjugate -> {put_elem(matrix, 1, Ops.negative(elem(matrix, 1))), lower?}
      _ -> {matrix, lower?}
    end
  end

  defp unit_diagonal(blocks, size) do
    eye = Ops.run({:eye, %{n: size, m: size, k: 0, dtype: :bool}}, [], device: :cpu)
    Ops.where(eye, Array.scalar(1.0, :f64, device: :cpu), blocks)
  end

  # The same check as in EMLX.Backend for other types.
  defp refuse_singular({x, y}) do
    if not Array.traced?(x) do
      zeros = Ops.any(Ops.logical_and(Ops.equal(x, 0.0), Ops.equal(y, 0.0)))
      if Array.to_list(zeros), do: raise(ArgumentError, "can't solve for singular matrix")
    end
  end

  defp flip(array), do: Ops.swapaxes(array, -1, -2)

  defp reshape(array, dims), do: Ops.run({:reshape, %{shape: dims}}, [array])

  defp both({re, im}, fun), do: {fun.(re), fun.(im)}
end
