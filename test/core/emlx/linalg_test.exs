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
end
