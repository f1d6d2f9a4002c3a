defmodule EMLX.Block.LinAlg do
  @moduledoc """
  The implementations of `EMLX.Block` for `Nx.LinAlg`. On the CPU, `cholesky`, `solve`, `determinant` and
  `triangular_solve` have kernels of EMLX, and the others use LAPACK. On NVIDIA GPUs they use cuSOLVER, or the CPU if
  cuSOLVER cannot be loaded.

  Integers and 16-bit floats are computed in f32, f64 in f64. Complex matrices run the composed functions.

  If a decomposition is not unique, the result follows Nx's:

    * `Nx.LinAlg.qr/2` - R has a positive diagonal, except for the leading rows before the first reflection, which keep
      their sign. In Nx, a later row without a reflection keeps its sign, too; here it is positive. The mode `:complete`
      of a tall matrix is composed, since its further columns could be any basis
    * `Nx.LinAlg.eigh/2` - eigenvalues are in descending order of magnitude (up to rounding), and the largest component
      of each eigenvector is positive. If an eigenvalue occurs m times, its eigenvectors are the last m unit vectors
      projected onto its eigenspace and orthonormalized in their order. If those projections are linearly dependent,
      they are any orthonormal basis. Nx's are those that its iteration finds, which are the same in some cases only.
      The options `:eps` and `:max_iter` of the composed function are ignored
    * `Nx.LinAlg.svd/2` - the right singular vectors follow the same rule; for a wide matrix, the left ones
    * `Nx.LinAlg.lu/1` - rows are exchanged for the first largest pivot

  Eigenvalues and singular values that are 0 up to rounding are exactly 0, since `Nx.LinAlg.pinv/2` and others divide by
  those that are not. The threshold is the size of the matrix times the precision of the type times the largest value.

  A positive semidefinite matrix has a Cholesky factor with a column of 0 for each pivot that is 0 up to rounding. An
  indefinite matrix has a factor of NaN, and a singular one has solutions of NaN. A matrix that contains NaN or an
  infinity has eigenvalues and singular values of NaN. Other matrices of the batch are not affected.
  """

  alias EMLX.{Array, Backend, Ops}

  @doc false
  # The dtype to decompose in; nil for types that LAPACK's kernels do not support.
  def working_type({:c, _}), do: nil
  def working_type({:f, 64}), do: :f64
  def working_type(_type), do: :f32

  @doc false
  # Runs `kernel` with the arrays of all arguments, cast to the dtype to decompose in, or declines.
  def run(block, output, args, fun, kernel) do
    type = args |> Enum.map(& &1.type) |> Enum.reduce(&Nx.Type.merge/2)

    cond do
      Enum.any?(args, &(Nx.size(&1) == 0)) ->
        EMLX.Block.decline(block, args, fun, "a matrix is empty")

      dtype = working_type(type) ->
        args
        |> Enum.map(&Ops.astype(Backend.to_array(&1), dtype))
        |> kernel.()
        |> to_nx(output)

      true ->
        EMLX.Block.decline(block, args, fun, "LAPACK's kernel in MLX is for real numbers")
    end
  end

  defp to_nx(arrays, outputs) when is_tuple(outputs) do
    arrays |> Enum.zip_with(Tuple.to_list(outputs), &Backend.to_nx/2) |> List.to_tuple()
  end

  defp to_nx(array, output), do: Backend.to_nx(array, output)

  @doc false
  # The numbers of rows and columns.
  def matrix_size(array) do
    shape = Array.shape(array)
    {elem(shape, tuple_size(shape) - 2), elem(shape, tuple_size(shape) - 1)}
  end

  @doc false
  # 1 or -1: unlike MLX's sign, 1 for 0.
  def sign(array), do: Ops.where(Ops.less(array, 0), like(-1, array), like(1, array))

  @doc false
  def like(number, array), do: Array.scalar(number, Array.dtype(array))

  @doc false
  # 1 or -1 for each vector along an axis: the sign of its largest component, of the first one if several are largest up
  # to rounding.
  def orientation(vectors, axis) do
    magnitude = Ops.abs(vectors)
    largest = Ops.max(magnitude, axes: [axis], keepdims: true)
    candidates = Ops.greater_equal(magnitude, Ops.multiply(largest, 0.999))
    first = candidates |> Ops.astype(:s32) |> Ops.argmax(axis: axis, keepdims: true)
    vectors |> Ops.take_along_axis(first, axis: axis) |> sign()
  end

  @doc false
  # The distance from 1 to the next number.
  def precision(array), do: if(Array.dtype(array) == :f64, do: 2.220446049250313e-16, else: 1.1920928955078125e-7)

  @doc false
  # Eigenvalues or singular values of matrices of n rows or columns, with 0 for those that are 0 up to rounding.
  def without_noise(values, n) do
    magnitude = Ops.abs(values)
    noise = magnitude |> Ops.max(axes: [-1], keepdims: true) |> Ops.multiply(n * precision(values))
    Ops.where(Ops.less_equal(magnitude, noise), like(0, values), values)
  end

  @doc false
  # A factor whose vectors are multiplied by signs. Adding 0 turns -0 into 0.
  def turn(factor, signs), do: factor |> Ops.multiply(signs) |> Ops.add(0)

  @doc false
  def diagonal(array), do: Ops.diagonal(array, axis1: -2, axis2: -1)

  @doc false
  # The first rows and columns of an array.
  def corner(array, rows, columns) do
    shape = Tuple.to_list(Array.shape(array))
    stop = Enum.drop(shape, -2) ++ [rows, columns]
    Ops.slice(array, Enum.map(shape, fn _ -> 0 end), stop, Enum.map(shape, fn _ -> 1 end))
  end
end

defimpl EMLX.Block, for: Nx.Block.LinAlg.Cholesky do
  alias EMLX.{Block.LinAlg, Ops}

  def call(block, output, args, fun) do
    LinAlg.run(block, output, args, fun, fn [a] -> Ops.cholesky(a, semidefinite: true) end)
  end
end

defimpl EMLX.Block, for: Nx.Block.LinAlg.LU do
  alias EMLX.{Array, Block.LinAlg, Ops}

  def call(block, output, args, fun) do
    LinAlg.run(block, output, args, fun, fn [a] ->
      {n, n} = LinAlg.matrix_size(a)
      # Row i of a is row order[i] of l·u.
      [order, l, u] = Ops.lu(a)
      p = Ops.equal(Ops.expand_dims(order, [-1]), Ops.iota([n], dtype: Array.dtype(order)))
      [p, l, u]
    end)
  end
end

defimpl EMLX.Block, for: Nx.Block.LinAlg.Solve do
  alias EMLX.{Block.LinAlg, Ops}

  def call(block, output, args, fun) do
    # Of a singular system NaN, not a failure of the whole batch during the evaluation.
    LinAlg.run(block, output, args, fun, fn [a, b] -> Ops.run(:solve_or_nan, [a, b]) end)
  end
end

defimpl EMLX.Block, for: Nx.Block.LinAlg.Determinant do
  alias EMLX.{Block.LinAlg, Ops}

  def call(block, output, [%{shape: shape}] = args, fun) do
    if elem(shape, tuple_size(shape) - 1) < 4 do
      EMLX.Block.decline(block, args, fun, "the formula for up to 3 rows is as short as the kernel")
    else
      LinAlg.run(block, output, args, fun, fn [a] -> Ops.det(a) end)
    end
  end
end

defimpl EMLX.Block, for: Nx.Block.LinAlg.QR do
  alias EMLX.{Block.LinAlg, Ops}

  def call(%{mode: mode} = block, output, [%{shape: shape}] = args, fun) do
    rank = tuple_size(shape)

    if mode == :complete and elem(shape, rank - 2) > elem(shape, rank - 1) do
      EMLX.Block.decline(block, args, fun, "MLX has no complete decomposition of a tall matrix")
    else
      LinAlg.run(block, output, args, fun, fn [a] ->
        [q, r] = Ops.qr(a)
        signs = signs(a, r, block.eps)
        [LinAlg.turn(q, Ops.expand_dims(signs, [-2])), LinAlg.turn(r, Ops.expand_dims(signs, [-1]))]
      end)
    end
  end

  # Nx reflects each column onto the positive axis, and keeps a column that is 0 below its diagonal. LAPACK reflects
  # onto the axis opposite to the element on the diagonal. The signs convert LAPACK's result to Nx's.
  defp signs(a, r, eps) do
    {m, n} = LinAlg.matrix_size(a)
    k = min(m, n)
    positive = LinAlg.sign(LinAlg.diagonal(r))

    # The leading columns without a reflection. After the first reflection, the elements of `a` no longer show them.
    below = LinAlg.corner(a, m, k) |> Ops.tril(k: -1) |> Ops.square() |> Ops.sum(axes: [-2])
    stays = below |> Ops.less(eps * 1.0) |> Ops.astype(:s32) |> Ops.cumprod(axis: -1) |> Ops.equal(1)
    kept = Ops.multiply(positive, LinAlg.sign(LinAlg.diagonal(a)))
    signs = Ops.where(stays, kept, positive)

    if m > n do
      signs
    else
      # The last row is not reflected. Its sign follows from the determinant of Q: each reflection contributes a factor
      # of -1.
      last = Ops.iota([k]) |> Ops.equal(k - 1)
      one = LinAlg.like(1, signs)
      reflected = Ops.where(Ops.logical_or(stays, last), one, signs)
      follows = Ops.prod(reflected, axes: [-1], keepdims: true)
      Ops.where(Ops.logical_and(last, Ops.logical_not(stays)), follows, signs)
    end
  end
end

defimpl EMLX.Block, for: Nx.Block.LinAlg.Eigh do
  alias EMLX.{Array, Block.LinAlg, Ops}

  def call(block, output, args, fun) do
    LinAlg.run(block, output, args, fun, fn [a] -> decompose(a) end)
  end

  defp decompose(a) do
    {n, n} = LinAlg.matrix_size(a)
    [values, vectors] = Ops.eigh(a)
    start = first_of_equals(values, n)
    vectors = with_basis(vectors, start, n)
    # Equal eigenvalues stay adjacent, in the order of their basis.
    size = values |> Ops.take_along_axis(start, axis: -1) |> Ops.abs()
    order = size |> Ops.negative() |> Ops.argsort(axis: -1)
    values = Ops.take_along_axis(values, order, axis: -1)
    columns = order |> Ops.expand_dims([-2]) |> Ops.broadcast_to(Array.shape(vectors))
    vectors = Ops.take_along_axis(vectors, columns, axis: -1)
    [LinAlg.without_noise(values, n), LinAlg.turn(vectors, LinAlg.orientation(vectors, -2))]
  end

  # For an eigenvalue that occurs m times, LAPACK returns any basis of its eigenspace. In its coordinates, the
  # projections of the last m unit vectors are the last m rows of `vectors`. So the Q of these rows converts one basis
  # to the other. One matrix holds the blocks of all eigenvalues; its Q is 1 for an eigenvalue that occurs once.
  defp with_basis(vectors, start, n) do
    same = Ops.equal(Ops.expand_dims(start, [-1]), Ops.expand_dims(start, [-2]))
    times = same |> Ops.astype(:s32) |> Ops.sum(axes: [-1])
    unit = Ops.iota([n]) |> Ops.subtract(start) |> Ops.add(Ops.subtract(n, times))
    rows = unit |> Ops.expand_dims([-1]) |> Ops.broadcast_to(Array.shape(vectors))
    projections = vectors |> Ops.take_along_axis(rows, axis: -2) |> Ops.swapaxes(-2, -1)
    [q, _r] = Ops.qr(Ops.where(same, projections, LinAlg.like(0, vectors)))
    Ops.matmul(vectors, q)
  end

  # For each of n ascending eigenvalues, the position of the first one that is equal up to rounding. If a chain of close
  # eigenvalues spans too wide a range, each of them is its own group.
  defp first_of_equals(values, 1), do: values |> Ops.astype(:s32) |> Ops.multiply(0)

  defp first_of_equals(values, n) do
    places = Ops.iota([n])
    rounding = values |> Ops.abs() |> Ops.max(axes: [-1], keepdims: true) |> Ops.multiply(LinAlg.precision(values))
    [first, later] = Ops.split(values, [1], axis: -1)
    [earlier, _last] = Ops.split(values, [n - 1], axis: -1)
    gap = Ops.greater(Ops.subtract(later, earlier), Ops.multiply(rounding, 8))
    gap = Ops.concatenate([Ops.equal(first, first), gap], axis: -1)
    start = gap |> Ops.where(places, Array.scalar(0, :s32)) |> Ops.cummax(axis: -1)
    width = Ops.subtract(values, Ops.take_along_axis(values, start, axis: -1))
    too_wide = width |> Ops.greater(Ops.multiply(rounding, max(n, 8))) |> Ops.expand_dims([-2])
    same = Ops.equal(Ops.expand_dims(start, [-1]), Ops.expand_dims(start, [-2]))
    spread = same |> Ops.logical_and(too_wide) |> Ops.any(axes: [-1])
    Ops.where(spread, places, start)
  end
end

defimpl EMLX.Block, for: Nx.Block.LinAlg.SVD do
  alias EMLX.{Block.LinAlg, Ops}

  def call(block, output, args, fun) do
    LinAlg.run(block, output, args, fun, fn [a] -> decompose(a, block.full_matrices?) end)
  end

  defp decompose(a, full?) do
    {m, n} = LinAlg.matrix_size(a)

    cond do
      m < n ->
        [u, s, vt] = decompose(Ops.swapaxes(a, -2, -1), full?)
        [Ops.swapaxes(vt, -2, -1), s, Ops.swapaxes(u, -2, -1)]

      m > n and not full? ->
        # MLX always computes all of u. For a tall matrix, that may exceed the memory.
        [q, r] = Ops.qr(a)
        [u, s, vt] = decompose(r, true)
        [Ops.matmul(q, u), LinAlg.without_noise(s, m), vt]

      true ->
        [u, s, vt] = Ops.svd(a)
        orientation = LinAlg.orientation(vt, -1)
        vt = LinAlg.turn(vt, orientation)
        columns = Ops.swapaxes(orientation, -2, -1)
        paired = LinAlg.turn(LinAlg.corner(u, m, n), columns)

        [
          if(m == n, do: paired, else: Ops.concatenate([paired, further(u, m, n)], axis: -1)),
          LinAlg.without_noise(s, m),
          vt
        ]
    end
  end

  # The columns of u that belong to no singular value.
  defp further(u, m, n) do
    [_, further] = Ops.split(u, [n], axis: -1)
    true = m > n
    LinAlg.turn(further, LinAlg.orientation(further, -2))
  end
end
