defmodule EMLX.LinAlgBlockTest do
  # Decompositions against their definitions, and against Nx's composed functions where the result is unique.
  use EMLX.NxCase, async: true

  alias EMLX.Random

  # f64 is for the CPU only.
  @gpu System.get_env("EMLX_TEST_DEVICE") == "gpu"
  @needs_f64 @gpu && "a GPU has no f64"
  @types [{:f, 32}, {:f, 64}, {:bf, 16}, {:f, 16}, {:s, 32}, {:u, 8}] -- if(@gpu, do: [{:f, 64}], else: [])

  defp batch, do: Random.one_of([{}, {1}, {2}, {2, 3}])

  defp matrices(batch, rows, columns, type),
    do: Random.tensor(List.to_tuple(Tuple.to_list(batch) ++ [rows, columns]), type, range: {-4, 4})

  # Symmetric matrices of integers, which every type represents.
  defp symmetric(batch, n, type) do
    half = Nx.round(Nx.as_type(matrices(batch, n, n, {:f, 64}), {:f, 64}))
    half |> Nx.add(transposed(half)) |> Nx.abs() |> Nx.as_type(type)
  end

  # Positive definite: diagonally dominant.
  defp definite(batch, n, type) do
    exactly(fn ->
      symmetric = Nx.as_type(symmetric(batch, n, {:f, 64}), {:f, 64})
      Nx.as_type(Nx.add(symmetric, Nx.multiply(Nx.eye(n), 10 * n)), type)
    end)
  end

  defp transposed(tensor) do
    rank = Nx.rank(tensor)
    Nx.transpose(tensor, axes: Enum.to_list(0..(rank - 3)//1) ++ [rank - 1, rank - 2])
  end

  defp product(a, b) do
    rank = Nx.rank(a)
    axes = Enum.to_list(0..(rank - 3)//1)
    Nx.dot(a, [rank - 1], axes, b, [rank - 2], axes)
  end

  # Converts to f64 on the binary backend, whose products are accurate enough for checks.
  defp exact(tensor), do: tensor |> Nx.backend_copy(Nx.BinaryBackend) |> Nx.as_type({:f, 64})

  # The result of Nx's composed function on the binary backend.
  defp composed(fun), do: exactly(fun)

  defp floating({kind, _} = type) when kind in [:f, :bf, :c], do: type
  defp floating(_type), do: {:f, 32}

  # The tolerance of products of factors, relative to the matrix's largest element.
  defp tolerance_of(type) do
    {_absolute, relative} = EMLX.Tolerance.of(:decomposed, EMLX.Backend.dtype(floating(type)))
    relative
  end

  defp near(actual, expected, type) do
    assert Nx.shape(actual) == Nx.shape(expected)

    {size, difference} =
      exactly(fn ->
        {expected |> Nx.abs() |> Nx.reduce_max() |> Nx.max(1) |> Nx.to_number(),
         Nx.subtract(actual, expected) |> Nx.abs() |> Nx.reduce_max() |> Nx.to_number()}
      end)

    assert is_number(difference) and difference <= tolerance_of(type) * size,
           "off by #{difference}: #{inspect(actual)}, expected #{inspect(expected)}"
  end

  defp orthonormal(q, type) do
    gram = product(transposed(q), q)

    near(
      gram,
      Nx.broadcast(Nx.eye(elem(Nx.shape(gram), Nx.rank(gram) - 1), backend: Nx.BinaryBackend), gram.shape),
      type
    )
  end

  defp for_types(name, fun) do
    for type <- @types, do: for_all(4, "#{name} #{inspect(type)}", fn -> fun.(type) end)
  end

  test "cholesky's factor multiplies to the matrix and matches the composed function's" do
    for_types("cholesky", fn type ->
      a = definite(batch(), Random.integer(1..5), type)
      l = Nx.LinAlg.cholesky(Nx.backend_copy(a, backend()))
      assert l.type == floating(type)
      near(product(exact(l), transposed(exact(l))), exact(a), type)
      same(&Nx.LinAlg.cholesky/1, [a], rtol: 5.0e-2, atol: 5.0e-2)
    end)
  end

  test "cholesky of an indefinite matrix is NaN, and the rest of its batch is not" do
    good = [[4.0, 2.0], [2.0, 3.0]]

    for bad <- [
          [[1.0, 2.0], [2.0, 1.0]],
          [[-1.0, 0.0], [0.0, 1.0]],
          [[0.0, 1.0], [1.0, 5.0]],
          [[1.0, :nan], [:nan, 1.0]]
        ] do
      [first, second] = Nx.to_batched(Nx.LinAlg.cholesky(Nx.tensor([good, bad])), 1) |> Enum.to_list()
      near(exact(product(first, transposed(first))), exact(Nx.tensor([good])), {:f, 32})
      assert Nx.to_flat_list(second) == [:nan, 0.0, :nan, :nan]
    end
  end

  # Matrices whose pivots are exactly 0, for which the composed function returns finite factors, too.
  @semidefinite [
    [[1, 1], [1, 1]],
    [[0, 0], [0, 0]],
    [[0, 0], [0, 4]],
    [[4, 2, 2], [2, 1, 1], [2, 1, 3]],
    [[4, 0, 2], [0, 0, 0], [2, 0, 1]],
    [[1, 1, 1], [1, 1, 1], [1, 1, 1]]
  ]

  test "cholesky of a semidefinite matrix matches the composed function" do
    for rows <- @semidefinite, type <- [{:f, 32}, {:f, 64}] -- if(@gpu, do: [{:f, 64}], else: []) do
      a = Nx.tensor(rows, type: type, backend: Nx.BinaryBackend)
      l = Nx.LinAlg.cholesky(Nx.backend_copy(a, backend()))
      near(product(exact(l), transposed(exact(l))), exact(a), type)
      # In f32, the composed function's eps of 1.0e-10 has no effect.
      near(exact(l), exact(composed(fn -> Nx.LinAlg.cholesky(Nx.tensor(rows, type: :f32)) end)), {:f, 32})
    end
  end

  test "cholesky of a semidefinite matrix does not depend on the scale of its rows" do
    for scale <- [1.0e-4, 1.0, 1.0e4] do
      l = Nx.LinAlg.cholesky(Nx.tensor([[scale * scale, scale], [scale, 1.0]]))
      [a, +0.0, b, +0.0] = Nx.to_flat_list(l)
      assert_in_delta a / scale, 1, 1.0e-6
      assert_in_delta b, 1, 1.0e-6
    end
  end

  test "cholesky of a semidefinite matrix does not affect the rest of its batch" do
    good = [[4.0, 2.0], [2.0, 3.0]]
    alone = Nx.LinAlg.cholesky(Nx.tensor(good))
    both = Nx.LinAlg.cholesky(Nx.tensor([[[1.0, 1.0], [1.0, 1.0]], good]))
    assert Nx.to_binary(both[1]) == Nx.to_binary(alone)
  end

  test "multivariate normal numbers with a singular covariance match the binary backend" do
    draw = fn ->
      covariance = Nx.tensor([[4.0, 2.0, 2.0], [2.0, 1.0, 1.0], [2.0, 1.0, 3.0]])

      {numbers, _key} =
        Nx.Random.multivariate_normal(Nx.Random.key(7), Nx.tensor([1, 2, 3]), covariance, shape: {20, 3})

      numbers
    end

    near(exact(draw.()), exact(composed(draw)), {:f, 32})
  end

  test "the eigenvectors of a repeated eigenvalue are the last unit vectors, projected onto its eigenspace" do
    for n <- 2..6, type <- [{:f, 32}, {:f, 64}] -- if(@gpu, do: [{:f, 64}], else: []), sign <- [1, -1] do
      v = Nx.tensor(Enum.take([1, 2, -1, 3, 1, 2], n), type: type)
      # sign·v·vᵀ + 100: n - 1 eigenvalues of 100.
      a = Nx.add(Nx.multiply(sign, Nx.outer(v, v)), Nx.multiply(100, Nx.eye(n, type: type)))
      {values, vectors} = Nx.LinAlg.eigh(a)
      near(product(exact(a), exact(vectors)), Nx.multiply(exact(vectors), exact(values)), type)
      orthonormal(exact(vectors), type)

      # The first one is the projection of unit vector 1. Each later one has no component along the unit vectors before
      # its own.
      space = if sign == 1, do: vectors[[.., 1..(n - 1)//1]], else: vectors[[.., 0..(n - 2)//1]]
      triangle = space[1..(n - 1)//1]
      near(exact(Nx.triu(triangle, k: 1)), exact(Nx.multiply(0, triangle)), type)
    end
  end

  test "the eigenvectors of the identity are the unit vectors" do
    {values, vectors} = Nx.LinAlg.eigh(Nx.eye(5, type: :f32))
    assert Nx.to_flat_list(values) == List.duplicate(1.0, 5)
    assert Nx.to_list(vectors) == Nx.to_list(Nx.eye(5, type: :f32))
  end

  @tag skip: @needs_f64
  test "a chain of close eigenvalues keeps its own eigenvectors" do
    n = 300
    # Adjacent eigenvalues are equal up to rounding, the first and the last are not.
    values = Nx.iota({n}, type: :f32) |> Nx.multiply(2.0e-7) |> Nx.add(1)
    {found, vectors} = Nx.LinAlg.eigh(Nx.make_diagonal(values))

    near(
      Nx.multiply(exact(values), 1) |> Nx.reshape({n, 1}) |> Nx.multiply(exact(vectors)),
      Nx.multiply(exact(vectors), exact(found)),
      {:f, 32}
    )

    assert Nx.to_number(Nx.sum(Nx.not_equal(vectors, 0))) == n
  end

  test "triangular_solve raises immediately for a singular matrix, also in a batch" do
    b = Nx.tensor([4, 2])

    for a <- [[[0, 0], [1, 1]], [[1, 0], [1, 0]]] do
      assert_raise ArgumentError, "can't solve for singular matrix", fn ->
        Nx.LinAlg.triangular_solve(Nx.tensor(a), b)
      end
    end

    batch = Nx.tensor([[[1, 0], [1, 1]], [[1, 0], [1, 0]]])

    assert_raise ArgumentError, "can't solve for singular matrix", fn ->
      Nx.LinAlg.triangular_solve(batch, Nx.tensor([[4, 2], [4, 2]]))
    end

    assert_raise ArgumentError, "can't solve for singular matrix", fn ->
      Nx.LinAlg.triangular_solve(Nx.tensor([[1, 1], [0, Complex.new(0, 0)]]), b, lower: false)
    end

    # An earlier error of the matrix is raised unchanged.
    nan = Nx.tensor([[:nan, 0.0], [1.0, 1.0]])
    assert [:nan, :nan] = Nx.to_flat_list(Nx.LinAlg.triangular_solve(nan, b))
  end

  test "cholesky of a complex matrix is composed" do
    tensor = Nx.tensor([[1.0, Complex.new(0, -2)], [Complex.new(0, 2), 5.0]])
    same(&Nx.LinAlg.cholesky/1, [tensor])
  end

  test "lu's factors are a permutation and two triangles that multiply to the matrix" do
    for_types("lu", fn type ->
      n = Random.integer(1..5)
      a = matrices(batch(), n, n, type)
      {p, l, u} = Nx.LinAlg.lu(Nx.backend_copy(a, backend()))
      assert {p.type, l.type, u.type} == {type, floating(type), floating(type)}
      near(product(exact(p), product(exact(l), exact(u))), exact(a), type)
      near(exactly(fn -> Nx.tril(exact(l)) end), exact(l), {:f, 64})
      near(exactly(fn -> Nx.triu(exact(u)) end), exact(u), {:f, 64})
      assert Nx.to_number(Nx.reduce_max(Nx.abs(l))) <= 1
      orthonormal(exact(p), {:f, 64})
    end)
  end

  @tag skip: @needs_f64
  test "lu exchanges rows as the composed function does" do
    for_all(10, "lu", fn ->
      n = Random.integer(1..6)
      same(&Nx.LinAlg.lu/1, [matrices(batch(), n, n, {:f, 64})], rtol: 1.0e-9, atol: 1.0e-9)
    end)
  end

  test "solve's result solves the system" do
    for_types("solve", fn type ->
      n = Random.integer(1..5)
      batch = batch()
      a = definite(batch, n, type)

      b =
        if Random.chance(0.5) or batch == {1},
          do: matrices(batch, n, Random.integer(1..3), type),
          else: Random.tensor(List.to_tuple(Tuple.to_list(batch) ++ [n]), type, range: {-4, 4})

      same(&Nx.LinAlg.solve/2, [a, b], rtol: 5 * tolerance_of(type), atol: tolerance_of(type))
    end)
  end

  test "solve of a singular system is NaN, and the rest of its batch is not" do
    a = Nx.tensor([[[1.0, 2.0], [2.0, 4.0]], [[2.0, 0.0], [0.0, 4.0]]])
    assert Nx.to_list(Nx.LinAlg.solve(a, Nx.tensor([[1.0, 1.0], [1.0, 1.0]]))) == [[:nan, :nan], [0.5, 0.25]]
  end

  test "determinant matches the composed function" do
    for_types("determinant", fn type ->
      n = Random.integer(1..6)
      a = matrices(batch(), n, n, type)
      determinant = Nx.LinAlg.determinant(Nx.backend_copy(a, backend()))
      assert determinant.type == floating(type)

      if Nx.Type.integer?(type) and n < 4 do
        # Composed, integers may wrap around.
        same(&Nx.LinAlg.determinant/1, [a])
      else
        expected = exact(a) |> determinants(n) |> Nx.tensor(type: :f64, backend: Nx.BinaryBackend)
        # Errors are relative to Hadamard's bound.
        bound = :math.pow(Nx.to_number(Nx.reduce_max(Nx.abs(exact(a)))) * :math.sqrt(n), n)
        difference = Nx.subtract(Nx.flatten(exact(determinant)), expected)
        assert Nx.to_number(Nx.reduce_max(Nx.abs(difference))) <= tolerance_of(type) * bound
      end
    end)
  end

  # By the formula, since the composed function divides by pivots, which may be 0.
  defp determinants(a, n), do: a |> Nx.reshape({:auto, n, n}) |> Nx.to_list() |> Enum.map(&by_formula/1)

  defp by_formula([[x]]), do: x

  defp by_formula([row | rows]) do
    for {x, column} <- Enum.with_index(row), reduce: 0.0 do
      sum -> sum + x * (1 - 2 * rem(column, 2)) * by_formula(Enum.map(rows, &List.delete_at(&1, column)))
    end
  end

  test "determinant of a singular matrix is 0" do
    tensor = Nx.tensor([[1, 2, 3, 4], [0, 0, 0, 0], [1, 1, 1, 1], [5, 6, 7, 9]])
    assert Nx.to_number(Nx.LinAlg.determinant(tensor)) == 0.0
  end

  test "qr's factors are orthonormal and triangular, and multiply to the matrix" do
    for_types("qr", fn type ->
      {m, n} = {Random.integer(1..6), Random.integer(1..6)}
      mode = Random.one_of([:reduced, :complete])
      a = matrices(batch(), m, n, type)
      {q, r} = Nx.LinAlg.qr(Nx.backend_copy(a, backend()), mode: mode)
      assert {q.type, r.type} == {floating(type), floating(type)}
      near(product(exact(q), exact(r)), exact(a), type)
      near(exactly(fn -> Nx.triu(exact(r)) end), exact(r), type)
      orthonormal(exact(q), type)
    end)
  end

  @tag skip: @needs_f64
  test "qr has the signs of the composed function" do
    for_all(30, "qr", fn ->
      a = matrices(batch(), Random.integer(1..6), Random.integer(1..6), {:f, 64})
      mode = Random.one_of([:reduced, :complete])
      same(&Nx.LinAlg.qr(&1, mode: mode), [a], rtol: 1.0e-8, atol: 1.0e-8)
    end)

    for matrix <- [
          [[-3, 2, 1], [0, 1, 1], [0, 0, -1]],
          [[3, 2, 1], [0, -1, 1], [0, 0, 1]],
          [[-3.0, 2.0, 1.0], [0.0, 1.0, 1.0], [0.0, 2.0, -1.0]],
          [[-3.0, 2.0, 1.0], [0.0, -1.0, 1.0]],
          [[0.0, 0.0], [0.0, 0.0]],
          [[-2.0]]
        ] do
      same(&Nx.LinAlg.qr/1, [Nx.tensor(matrix, type: :f64, backend: Nx.BinaryBackend)], rtol: 1.0e-8, atol: 1.0e-8)
    end
  end

  test "eigh's eigenvectors are orthonormal and solve the eigenvalue equation" do
    for_types("eigh", fn type ->
      n = Random.integer(1..6)
      a = symmetric(batch(), n, type)
      {values, vectors} = Nx.LinAlg.eigh(Nx.backend_copy(a, backend()))
      assert {values.type, vectors.type} == {floating(type), floating(type)}
      orthonormal(exact(vectors), type)
      scaled = Nx.multiply(exact(vectors), Nx.new_axis(exact(values), -2))
      near(product(exact(a), exact(vectors)), scaled, type)
      magnitudes = Nx.abs(exact(values))
      near(Nx.sort(magnitudes, axis: -1, direction: :desc), magnitudes, type)
    end)
  end

  @tag skip: @needs_f64
  test "eigh has the composed function's eigenvalues, and its eigenvectors for distinct eigenvalues" do
    for_all(10, "eigh", fn ->
      n = Random.integer(1..6)
      # The composed function orders by magnitude: 2, 3, 4, … with a distance of 1, of either sign.
      values =
        Nx.tensor(for(i <- n..1//-1, do: Random.one_of([1, -1]) * (i + 1.0)), backend: Nx.BinaryBackend, type: :f64)

      {q, _} = composed(fn -> Nx.LinAlg.qr(matrices({}, n, n, {:f, 64})) end)
      a = product(Nx.multiply(q, values), transposed(q))
      {composed_values, composed_vectors} = composed(fn -> Nx.LinAlg.eigh(a, eps: 1.0e-10) end)
      {actual_values, actual_vectors} = Nx.LinAlg.eigh(Nx.backend_copy(a, backend()))
      near(exact(actual_values), composed_values, {:f, 32})
      near(exact(actual_values), values, {:f, 64})
      # Up to the sign, which EMLX fixes by convention, and the tolerance at which the composed function stops.
      near(Nx.abs(exact(actual_vectors)), Nx.abs(composed_vectors), {:f, 16})
      sizes = Nx.abs(actual_vectors)
      large = Nx.greater_equal(sizes, Nx.multiply(Nx.reduce_max(sizes, axes: [0]), 0.999))
      largest = Nx.argmax(large, axis: 0, keep_axis: true)
      assert Nx.to_number(Nx.reduce_min(Nx.take_along_axis(actual_vectors, largest, axis: 0))) > 0
    end)
  end

  test "eigh of a complex matrix is composed" do
    tensor =
      Nx.tensor([
        [1.0, Complex.new(0, 2), 2.0],
        [Complex.new(0, -2), -3.0, Complex.new(0, 2)],
        [2.0, Complex.new(0, -2), 1.0]
      ])

    same(&Nx.LinAlg.eigh/1, [tensor], rtol: 1.0e-3, atol: 1.0e-3)
  end

  test "eigenvalues and singular values that are 0 up to rounding are 0" do
    column = Nx.tensor([[0.3], [0.7], [1.1], [0.9]])
    a = Nx.dot(column, Nx.transpose(column))
    {values, _} = Nx.LinAlg.eigh(a)
    assert [_, +0.0, +0.0, +0.0] = Nx.to_list(values)
    {_, values, _} = Nx.LinAlg.svd(a)
    assert [_, +0.0, +0.0, +0.0] = Nx.to_list(values)
    near(exact(Nx.dot(Nx.dot(a, Nx.LinAlg.pinv(a)), a)), exact(a), {:f, 32})
  end

  test "svd's factors are orthonormal and multiply to the matrix" do
    for_types("svd", fn type ->
      {m, n} = {Random.integer(1..6), Random.integer(1..6)}
      full? = Random.chance(0.5)
      a = matrices(batch(), m, n, type)
      {u, s, vt} = Nx.LinAlg.svd(Nx.backend_copy(a, backend()), full_matrices?: full?)
      assert {u.type, s.type, vt.type} == {floating(type), floating(type), floating(type)}
      orthonormal(exact(u), type)
      orthonormal(transposed(exact(vt)), type)
      k = min(m, n)
      rank = Nx.rank(a)
      part = Nx.slice_along_axis(exact(u), 0, k, axis: rank - 1)
      rest = Nx.slice_along_axis(exact(vt), 0, k, axis: rank - 2)
      near(product(Nx.multiply(part, Nx.new_axis(exact(s), -2)), rest), exact(a), type)
      near(Nx.sort(exact(s), axis: -1, direction: :desc), exact(s), type)
      expected = if(full?, do: {m, n}, else: {k, k})
      assert {elem(u.shape, rank - 1), elem(vt.shape, rank - 2)} == expected
    end)
  end

  test "svd of a tall matrix does not allocate a square matrix of its rows" do
    {u, s, vt} = Nx.LinAlg.svd(Nx.iota({20_000, 3}, type: :f32), full_matrices?: false)
    assert {u.shape, s.shape, vt.shape} == {{20_000, 3}, {3}, {3, 3}}
    assert is_float(Nx.to_number(s[0]))
  end

  test "eigenvalues and singular values of a matrix with NaN are NaN, those of its batch are not" do
    a = Nx.tensor([[[1.0, :nan], [:nan, 1.0]], [[2.0, 0.0], [0.0, 1.0]], [[:infinity, 0.0], [0.0, 1.0]]])
    expected = [[:nan, :nan], [2.0, 1.0], [:nan, :nan]]
    {values, _} = Nx.LinAlg.eigh(a)
    assert Nx.to_list(values) == expected
    {_, values, _} = Nx.LinAlg.svd(a)
    assert Nx.to_list(values) == expected
  end

  @tag skip: @needs_f64
  test "gradients of decompositions match the composed functions" do
    a = Nx.tensor([[4, 1, 2], [1, 5, 3], [2, 3, 6]], type: :f64, backend: Nx.BinaryBackend)

    for fun <- [
          &Nx.sum(Nx.LinAlg.cholesky(&1)),
          &Nx.LinAlg.determinant/1,
          &Nx.sum(Nx.LinAlg.solve(&1, Nx.iota({3}, type: :f64))),
          fn a -> a |> Nx.LinAlg.qr() |> then(fn {q, r} -> Nx.sum(Nx.multiply(q, Nx.exp(r))) end) end
        ] do
      same(&Nx.Defn.grad(&1, fun), [a], rtol: 1.0e-6, atol: 1.0e-6)
    end
  end

  test "decompositions keep vectorized axes, and drop names" do
    a = Nx.vectorize(definite({2}, 3, {:f, 32}), :x)
    for function <- [:cholesky, :lu, :qr, :eigh, :svd, :determinant, :invert], do: same_shapes(function, a)
  end

  defp same_shapes(function, tensor) do
    shapes = fn result ->
      for tensor <- List.wrap(if(is_tuple(result), do: Tuple.to_list(result), else: result)),
          do: {tensor.type, tensor.shape, tensor.names, tensor.vectorized_axes}
    end

    expected = apply(Nx.LinAlg, function, [tensor])
    assert shapes.(apply(Nx.LinAlg, function, [Nx.backend_copy(tensor, backend())])) == shapes.(expected)
  end
end
