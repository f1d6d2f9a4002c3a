defmodule EMLX.Bench.Operation do
  @moduledoc """
  The operations of the part `operations`: each a function of Nx on named inputs, whose counterparts in
  `bench/peers/operations.py` have the same names.

  A size `n` stands for arrays of `n × n` elements. Inputs are made once for a size (`inputs/2`), and written to a file
  for the peers.
  """

  @doc """
  The operations in their order, `{name, names of inputs, function}` each. `:small_only` ones, which take the cube of a
  size, are measured on the matrices `a` of `side/1`.
  """
  def all do
    unary() ++ binary() ++ reductions() ++ order() ++ parts() ++ products() ++ linear_algebra() ++ random()
  end

  defp unary do
    for name <-
          ~w(negate abs sign floor ceil round exp expm1 sin cos tan tanh sigmoid atan erf cbrt is_nan)a do
      {"#{name}", [:x], &apply(Nx, name, [&1])}
    end ++
      for(name <- ~w(log log1p sqrt rsqrt)a, do: {"#{name}", [:positive], &apply(Nx, name, [&1])}) ++
      [
        {"asin", [:unit], &Nx.asin/1},
        {"clip", [:x], &Nx.clip(&1, -0.5, 0.5)},
        {"bitwise_not", [:i], &Nx.bitwise_not/1},
        {"f32 to s32", [:x], &Nx.as_type(&1, :s32)},
        {"s32 to f32", [:i], &Nx.as_type(&1, :f32)},
        {"f32 to bf16", [:x], &Nx.as_type(&1, :bf16)},
        {"u8 to f32", [:u], &Nx.as_type(&1, :f32)}
      ]
  end

  defp binary do
    [
      {"add", [:x, :y], &Nx.add/2},
      {"add a row", [:x, :row], &Nx.add/2},
      {"add a column", [:x, :column], &Nx.add/2},
      {"multiply", [:x, :y], &Nx.multiply/2},
      {"divide", [:x, :positive], &Nx.divide/2},
      {"max", [:x, :y], &Nx.max/2},
      {"pow", [:positive, :y], &Nx.pow/2},
      {"atan2", [:x, :y], &Nx.atan2/2},
      {"remainder", [:x, :positive], &Nx.remainder/2},
      {"multiply s32", [:i, :j], &Nx.multiply/2},
      {"quotient s32", [:i, :j], &Nx.quotient/2},
      {"remainder s32", [:i, :j], &Nx.remainder/2},
      {"bitwise_and", [:i, :j], &Nx.bitwise_and/2},
      {"left_shift", [:i, :u], &Nx.left_shift(&1, Nx.bitwise_and(&2, 7))},
      {"less", [:x, :y], &Nx.less/2},
      {"logical_and", [:u, :u], &Nx.logical_and/2},
      {"select", [:u, :x, :y], &Nx.select/3},
      {"add bf16", [:h, :h], &Nx.add/2}
    ]
  end

  defp reductions do
    [
      {"sum", [:x], &Nx.sum/1},
      {"sum of columns", [:x], &Nx.sum(&1, axes: [0])},
      {"sum of rows", [:x], &Nx.sum(&1, axes: [1])},
      {"mean of rows", [:x], &Nx.mean(&1, axes: [1])},
      {"variance", [:x], &Nx.variance/1},
      {"variance of columns", [:x], &Nx.variance(&1, axes: [0])},
      {"product of rows", [:positive], &Nx.product(&1, axes: [1])},
      {"reduce_max", [:x], &Nx.reduce_max/1},
      {"reduce_max of columns", [:x], &Nx.reduce_max(&1, axes: [0])},
      {"reduce_max of rows", [:x], &Nx.reduce_max(&1, axes: [1])},
      {"sum s32", [:i], &Nx.sum/1},
      {"all", [:u], &Nx.all/1},
      {"argmax of columns", [:x], &Nx.argmax(&1, axis: 0)},
      {"argmax of rows", [:x], &Nx.argmax(&1, axis: 1)},
      {"logsumexp of rows", [:x], &Nx.logsumexp(&1, axes: [1])},
      {"softmax", [:x],
       fn x ->
         e = Nx.exp(Nx.subtract(x, Nx.reduce_max(x, axes: [1], keep_axes: true)))
         Nx.divide(e, Nx.sum(e, axes: [1], keep_axes: true))
       end},
      {"cumulative_sum of columns", [:x], &Nx.cumulative_sum(&1, axis: 0)},
      {"cumulative_sum of rows", [:x], &Nx.cumulative_sum(&1, axis: 1)},
      {"cumulative_max of rows", [:x], &Nx.cumulative_max(&1, axis: 1)}
    ]
  end

  defp order do
    [
      {"sort", [:x], &Nx.sort(&1, axis: 1)},
      {"argsort", [:x], &Nx.argsort(&1, axis: 1)},
      {"top_k", [:x], fn x -> x |> Nx.top_k(k: min(50, Nx.axis_size(x, 1))) |> elem(0) end},
      {"median of rows", [:x], &Nx.median(&1, axis: 1)}
    ]
  end

  defp parts do
    [
      {"take rows", [:x, :at], &Nx.take(&1, &2, axis: 0)},
      {"take columns", [:x, :at], &Nx.take(&1, &2, axis: 1)},
      {"gather", [:x, :pairs], &Nx.gather/2},
      {"take_along_axis", [:x, :along], &Nx.take_along_axis(&1, &2, axis: 1)},
      {"indexed_add", [:x, :rows_at, :y], &Nx.indexed_add/3},
      {"indexed_put", [:x, :pairs, :values], &Nx.indexed_put/3},
      {"concatenate", [:x, :y], &Nx.concatenate([&1, &2], axis: 1)},
      {"pad", [:x], &Nx.pad(&1, 0.0, [{1, 1, 0}, {2, 2, 0}])},
      {"reverse", [:x], &Nx.reverse/1},
      {"tile", [:x], &Nx.tile(&1, [2, 2])},
      {"transpose", [:x], &Nx.add(Nx.transpose(&1), 1.0)},
      {"slice", [:x], fn x -> Nx.slice(x, [1, 1], Enum.map(Tuple.to_list(Nx.shape(x)), &(&1 - 2))) |> Nx.add(1.0) end}
    ]
  end

  defp products do
    [
      {"dot", [:x, :y], &Nx.dot/2},
      {"dot s32", [:si, :sj], &Nx.dot/2},
      {"conv", [:images, :kernels], &Nx.conv(&1, &2, padding: :same)},
      {"conv backward", [:images, :kernels],
       fn images, kernels -> Nx.Defn.grad({images, kernels}, fn {i, k} -> Nx.sum(Nx.conv(i, k, padding: :same)) end) end},
      {"window_max", [:images], &Nx.window_max(&1, {1, 1, 2, 2}, strides: [1, 1, 2, 2])},
      {"window_max backward", [:images],
       fn images -> Nx.Defn.grad(images, &Nx.sum(Nx.window_max(&1, {1, 1, 2, 2}, strides: [1, 1, 2, 2]))) end},
      {"window_sum", [:x], &Nx.window_sum(&1, {3, 3})},
      {"fft", [:x], &Nx.fft/1}
    ]
  end

  defp linear_algebra do
    [
      {"cholesky", [:definite], &Nx.LinAlg.cholesky/1},
      {"qr", [:a], fn a -> a |> Nx.LinAlg.qr() |> elem(1) |> Nx.abs() end},
      {"svd", [:a], fn a -> a |> Nx.LinAlg.svd() |> elem(1) end},
      {"eigh", [:definite], fn a -> a |> Nx.LinAlg.eigh() |> elem(0) end},
      {"solve", [:definite, :a], &Nx.LinAlg.solve/2},
      {"triangular_solve", [:lower, :a], &Nx.LinAlg.triangular_solve/2},
      {"determinant", [:unit_a], &Nx.LinAlg.determinant/1}
    ]
  end

  defp random do
    [
      {"random uniform", [:x], fn x -> random(&Nx.Random.uniform(&1, shape: Nx.shape(x))) end},
      {"random normal", [:x], fn x -> random(&Nx.Random.normal(&1, shape: Nx.shape(x))) end},
      {"random randint", [:x], fn x -> random(&Nx.Random.randint(&1, 0, 100, shape: Nx.shape(x))) end}
    ]
  end

  defp random(fun), do: 42 |> Nx.Random.key() |> fun.() |> elem(0)

  @doc "Side of the matrices of linear algebra beside arrays of `n × n` elements."
  def side(n), do: n |> div(4) |> max(32) |> min(512)

  @doc "The inputs of a size, as tensors by name, on the default backend."
  def inputs(n, names) do
    key = Nx.Random.key(7)

    uniform = fn i, low, high, shape ->
      key |> Nx.Random.fold_in(i) |> Nx.Random.uniform_split(low, high, shape: shape)
    end

    whole = fn i, low, high, shape, type -> Nx.as_type(Nx.floor(uniform.(i, low, high, shape)), type) end
    m = side(n)
    images = images(n)

    makers = %{
      x: fn -> uniform.(1, -1.7, 1.7, {n, n}) end,
      y: fn -> uniform.(2, -1.7, 1.7, {n, n}) end,
      positive: fn -> uniform.(3, 0.5, 1.5, {n, n}) end,
      unit: fn -> uniform.(4, -0.99, 0.99, {n, n}) end,
      row: fn -> uniform.(5, -1.7, 1.7, {n}) end,
      column: fn -> uniform.(6, -1.7, 1.7, {n, 1}) end,
      i: fn -> whole.(7, -100_000, 100_000, {n, n}, :s32) end,
      j: fn -> whole.(8, 1, 1000, {n, n}, :s32) end,
      u: fn -> whole.(9, 0, 2, {n, n}, :u8) end,
      h: fn -> Nx.as_type(uniform.(10, -1.7, 1.7, {n, n}), :bf16) end,
      at: fn -> whole.(11, 0, n, {n}, :s32) end,
      rows_at: fn -> whole.(12, 0, n, {n, 1}, :s32) end,
      pairs: fn -> whole.(13, 0, n, {n * 16, 2}, :s32) end,
      values: fn -> uniform.(14, -1.7, 1.7, {1}) |> Nx.broadcast({n * 16}) end,
      along: fn -> whole.(15, 0, n, {n, n}, :s32) end,
      si: fn -> whole.(16, -9, 9, {min(n, 1024), min(n, 1024)}, :s32) end,
      sj: fn -> whole.(17, -9, 9, {min(n, 1024), min(n, 1024)}, :s32) end,
      images: fn -> uniform.(18, -1.7, 1.7, images) end,
      kernels: fn -> uniform.(19, -0.5, 0.5, {elem(images, 1), elem(images, 1), 3, 3}) end,
      a: fn -> uniform.(20, -1.7, 1.7, {m, m}) end,
      unit_a: fn -> Nx.add(Nx.multiply(uniform.(20, -1.7, 1.7, {m, m}), 0.5 / m), Nx.eye(m)) end,
      definite: fn ->
        a = uniform.(21, -1.0, 1.0, {m, m})
        Nx.add(Nx.dot(a, Nx.transpose(a)), Nx.multiply(Nx.eye(m), m))
      end,
      lower: fn -> Nx.add(Nx.tril(uniform.(22, -0.1, 0.1, {m, m})), Nx.eye(m)) end
    }

    for name <- names, into: %{}, do: {name, makers[name].()}
  end

  # Batch, channels, height and width of about as many elements.
  defp images(n) when n <= 32, do: {1, 4, 16, 16}
  defp images(n) when n <= 1024, do: {8, 32, 64, 64}
  defp images(_), do: {32, 64, 88, 88}
end
