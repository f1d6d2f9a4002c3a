# Factors of matrices with one row or one column. MLX allocates too little memory for them, and its out-of-bounds writes
# crashed the VM after some hundred calls.
defmodule EMLX.LinalgTest do
  use ExUnit.Case, async: true

  alias EMLX.{Array, Ops}

  defp list(array), do: Array.to_list(array)

  for dtype <- [:f32, :f64] do
    if dtype == :f64, do: @tag(:slow)

    test "matrices of one row or one column of #{dtype} are factored 300 times without damage" do
      [one, column, row] =
        for list <- [[[4.0]], [[1.0], [2.0], [4.0], [8.0], [16.0]], [[2.0, 4.0, 6.0]]],
            do: list |> Array.from_list(:f32) |> Ops.astype(unquote(dtype))

      for _ <- 1..300 do
        assert [[0], [[1.0]], [[4.0]]] = Enum.map(Ops.lu(one), &list/1)
        assert [order, [[1.0], [l] | _], [[16.0]]] = Enum.map(Ops.lu(column), &list/1)
        assert {4, 2 / 16} == {Enum.find_index(order, &(&1 == 0)), l}
        assert [[0], [[1.0]], [[2.0, 4.0, 6.0]]] = Enum.map(Ops.lu(row), &list/1)
        [factors, [0]] = with [factors, pivots] <- Ops.lu_factor(one), do: [factors, list(pivots)]
        assert list(Ops.negative(Ops.add(factors, factors))) == [[-8.0]]

        assert list(
                 Ops.run(:solve, [
                   one,
                   Ops.transpose(row, [1, 0])
                   |> then(&Ops.run({:slice, %{start: [0, 0], stop: [1, 1], strides: [1, 1]}}, [&1]))
                 ])
               ) == [[0.5]]

        assert_in_delta list(Ops.run(:det, [one])), 4.0, 1.0e-5
        assert [1.0, log] = Enum.map(Ops.run(:slogdet, [one]), &list/1)
        assert_in_delta log, :math.log(4.0), 1.0e-6
      end
    end

    test "solve takes a vector or a matrix of #{dtype} on the right" do
      a = [[2.0, 1.0], [1.0, 3.0]] |> Array.from_list(:f32) |> Ops.astype(unquote(dtype))

      for {b, want} <- [{[3.0, 5.0], [0.8, 1.4]}, {[[3.0], [5.0]], [[0.8], [1.4]]}] do
        x = Ops.run(:solve, [a, b |> Array.from_list(:f32) |> Ops.astype(unquote(dtype))]) |> list()
        for {have, want} <- Enum.zip(List.flatten(x), List.flatten(want)), do: assert_in_delta(have, want, 1.0e-5)
        assert length(x) == length(want)
      end
    end
  end

  defp f32(list), do: Array.from_list(list, :f32)

  test "solve_or_nan is solve, but NaN of a singular matrix alone" do
    a = f32([[[1.0, 2.0], [2.0, 4.0]], [[2.0, 0.0], [0.0, 4.0]]])

    for {b, singular, regular} <- [
          {[[1.0, 1.0], [1.0, 1.0]], [:nan, :nan], [0.5, 0.25]},
          {[[[1.0], [1.0]], [[1.0], [1.0]]], [[:nan], [:nan]], [[0.5], [0.25]]}
        ] do
      assert list(Ops.solve_or_nan(a, f32(b))) == [singular, regular]
    end

    error = assert_raise EMLX.Error, fn -> list(Ops.solve(a, f32([[1.0, 1.0], [1.0, 1.0]]))) end
    assert error.reason =~ "triangular inversion failed with error code 2"
    b = f32([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    m = f32([[3.0, 1.0], [-1.0, 2.0]])
    assert list(Ops.solve_or_nan(m, b)) == list(Ops.solve(m, b))
  end

  test "the inverse of a singular matrix fails with LAPACK's number of the pivot, as MLX's" do
    inverse = Ops.inv(f32([[1.0, 2.0], [2.0, 4.0]]))
    error = assert_raise EMLX.Error, fn -> list(inverse) end
    assert error.reason =~ "[Inverse::eval_cpu] LU factorization failed with error code 2"
  end

  test "solve_triangular reads one triangle, of matrices and right sides that are broadcast" do
    a = f32([[[2.0, :nan], [1.0, 4.0]], [[1.0, :nan], [0.0, 2.0]]])
    b = f32([[2.0, 4.0], [5.0, 2.0]])

    assert list(Ops.solve_triangular(a, b |> Ops.expand_dims([0]))) == [
             [[1.0, 2.0], [1.0, 0.0]],
             [[2.0, 4.0], [2.5, 1.0]]
           ]

    upper = Ops.transpose(a, [0, 2, 1])
    assert list(Ops.solve_triangular(upper, f32([[4.0, 4.0], [3.0, 2.0]]), upper: true)) == [[1.5, 1.0], [3.0, 1.0]]
    zero = f32([[0.0, 1.0], [1.0, 1.0]])
    error = assert_raise EMLX.Error, fn -> list(Ops.solve_triangular(zero, b)) end
    assert error.reason =~ "error code 1"
  end

  test "determinants of large matrices do not overflow on the way" do
    a = Ops.multiply(Ops.eye(40), f32(List.duplicate(1.0e10, 20) ++ List.duplicate(1.0e-10, 20)))
    assert_in_delta list(Ops.det(a)), 1.0, 1.0e-4
    assert [1.0, log] = Enum.map(Ops.slogdet(a), &list/1)
    assert_in_delta log, 0.0, 1.0e-3
    assert list(Ops.det(Ops.zeros({3, 2, 2}, :f32))) == [0.0, 0.0, 0.0]
    assert Enum.map(Ops.slogdet(Ops.zeros({2, 2}, :f32)), &list/1) == [0.0, :neg_infinity]
  end

  test "cholesky of a semidefinite matrix has columns of zeros, and of an indefinite one NaN" do
    a = f32([[[4.0, 2.0], [2.0, 1.0]], [[1.0, 2.0], [2.0, 1.0]], [[4.0, 2.0], [2.0, 5.0]]])

    lower = [2.0, 0.0, 1.0, 0.0, :nan, 0.0, :nan, :nan, 2.0, 0.0, 1.0, 2.0]
    upper = [2.0, 1.0, 0.0, 0.0, :nan, :nan, 0.0, :nan, 2.0, 1.0, 0.0, 2.0]

    for {upper?, want} <- [{false, lower}, {true, upper}] do
      have = Ops.cholesky(a, semidefinite: true, upper: upper?) |> list() |> List.flatten()

      for {have, want} <- Enum.zip(have, want),
          do: if(want == :nan, do: assert(have == :nan), else: assert_in_delta(have, want, 1.0e-6))
    end
  end

  test "a transform's small parts become zero, of real numbers as of complex ones" do
    x = f32([[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, :nan]])

    for a <- [x, Ops.astype(x, :c64)], op <- [:fft, :ifft] do
      scale = if op == :fft, do: 1, else: 4
      [ones, nan] = Ops.run({op, %{sizes: [4], axes: [1], norm: :backward, eps: 1.0e-6}}, [a]) |> Ops.abs() |> list()
      assert ones == [4.0 / scale, 0.0, 0.0, 0.0]
      assert nan == [:nan, :nan, :nan, :nan]
    end

    y = Ops.fft(f32([3.0, 4.0e-3, 3.0, 0.0]), [4], [0], eps: 1.0e-2)
    assert [a, +0.0, b, +0.0] = list(Ops.real(y))
    assert_in_delta a, 6.004, 1.0e-6
    assert_in_delta b, 5.996, 1.0e-6
    assert list(Ops.imag(y)) == [0.0, 0.0, 0.0, 0.0]
  end
end
