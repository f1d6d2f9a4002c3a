defmodule EMLX.Backend.Complex128Test do
  # c128, which MLX lacks: every callback that accepts complex tensors. `EMLX.Random.types/0` contains c128, so the
  # tests for all types in this folder cover it, too.
  use EMLX.NxCase, async: true

  import EMLX.Random
  import Nx.Defn

  # Like f64, c128 works on the CPU only.
  if System.get_env("EMLX_TEST_DEVICE") == "gpu", do: @moduletag(skip: "a GPU has no f64, of which c128 is made")

  @c128 {:c, 128}

  defp complex(shape, opts \\ []), do: tensor(shape, @c128, opts)

  # same/3 without skips.
  defp agrees(fun, tensors, opts \\ []), do: assert(same(fun, tensors, opts) == :ok)

  defp here(tensor), do: Nx.backend_copy(tensor, backend())

  defp list(numbers), do: Nx.tensor(numbers, type: @c128)

  defp c(re, im), do: Complex.new(re, im)

  # ---- creation and reading ----

  test "c128 tensors have Nx's bytes" do
    for_all(40, :bytes, fn ->
      t = complex(shape(), special: 0.2)
      assert Nx.to_binary(here(t)) == Nx.to_binary(t)
      assert Nx.to_flat_list(here(t)) == Nx.to_flat_list(t)
    end)

    assert Nx.to_binary(list([1, c(2, 3), 4]), limit: 2) == <<1.0::64-native-float, 0::64>> <> for_parts([2.0, 3.0])
    assert inspect(list([c(1, -2), c(:nan, :infinity)])) =~ "[1.0-2.0i, NaN+Infi]"
    assert inspect(Nx.iota({1_000_000}, type: @c128)) =~ "[0.0+0.0i, 1.0+0.0i,"
  end

  defp for_parts(parts), do: for(part <- parts, into: <<>>, do: <<part::64-native-float>>)

  test "constants of c128 may be scalars or not, and finite or not" do
    for number <- [1, -2.5, c(1, 2), c(:nan, 1), c(0, :neg_infinity), :infinity, :nan] do
      agrees(fn -> Nx.tensor(number, type: @c128) end, [])
      agrees(fn -> Nx.broadcast(Nx.tensor(number, type: @c128), {2, 3}) end, [])
    end
  end

  test "c128 tensors are copied, transferred, serialized and vectorized" do
    t = complex({3, 2})
    assert_same(Nx.backend_copy(here(t), backend()), t)
    assert_same(Nx.backend_transfer(here(t), backend()), t)
    assert_same(Nx.backend_transfer(here(t), Nx.BinaryBackend), t)
    assert_same(here(t) |> Nx.serialize() |> IO.iodata_to_binary() |> Nx.deserialize(), t)
    agrees(&(&1 |> Nx.vectorize(:x) |> Nx.add(1) |> Nx.multiply(&2) |> Nx.sum()), [t, complex({2})])
  end

  test "c128 tensors are split into batches" do
    t = complex({5, 2})

    for opts <- [[leftover: :repeat], [leftover: :discard]],
        do: agrees(&Enum.to_list(Nx.to_batched(&1, 2, opts)), [t], compiled: false)
  end

  test "the array of a c128 tensor has an axis for the two parts" do
    t = list([[c(1, 2), c(3, 4)]])
    array = EMLX.Backend.to_array(t)
    assert {EMLX.Array.shape(array), EMLX.Array.dtype(array)} == {{1, 2, 2}, :f64}
    assert EMLX.Array.to_list(array) == [[[1.0, 2.0], [3.0, 4.0]]]
    assert_same(EMLX.Backend.to_nx(array, t), t)
    assert_same(EMLX.Backend.to_nx(EMLX.Array.from_list([1, 2], :s32), t), list([[1, 2]]))
    c64 = EMLX.Array.from_list([{1.0, -1.0}, {2.0, 0.5}], :c64)
    assert_same(EMLX.Backend.to_nx(c64, t), list([[c(1, -1), c(2, 0.5)]]))
  end

  @tag skip: false
  test "c128 is refused on the GPU" do
    error = catch_error(EMLX.Backend.constant(Nx.template({}, @c128), 1, device: :gpu))
    assert %EMLX.Error{reason: "c128 is not supported on the GPU; use c64, or device: :cpu"} = error
    error = catch_error(EMLX.Backend.from_binary(Nx.template({}, @c128), <<0::128>>, device: :gpu))
    assert %EMLX.Error{reason: "c128 is not supported on the GPU" <> _} = error
  end

  # ---- types ----

  test "as_type converts from c128 and to c128 for every type" do
    for type <- real_types() ++ [{:c, 64}],
        do: agrees(&Nx.as_type(&1, @c128), [tensor({2, 3}, type, range: {-100, 100})])

    for type <- integer_types() ++ [{:f, 32}, {:f, 64}, {:c, 64}, @c128],
        do: agrees(&Nx.as_type(&1, type), [complex({2, 3}, range: {0, 1})])
  end

  test "f64 and complex numbers merge to c128" do
    agrees(&Nx.complex/2, [tensor({3}, {:f, 64}), tensor({2, 3}, {:f, 64})])
    agrees(&Nx.complex/2, [tensor({3}, {:f, 64}), tensor({3}, {:s, 32})])
    agrees(&Nx.conjugate/1, [tensor({3}, {:f, 64})])
    agrees(fn -> Nx.Constants.i({:c, 128}) end, [])
    assert Nx.type(Nx.add(tensor({2}, {:c, 64}), here(tensor({2}, {:f, 64})))) == @c128
  end

  # ---- element-wise ----

  @functions [:exp, :expm1, :log, :log1p, :sigmoid, :cos, :sin, :tan, :cosh, :sinh, :tanh] ++
               [:asin, :atan, :asinh, :atanh, :sqrt, :rsqrt, :cbrt]

  for name <- @functions do
    test "#{name} of c128 matches the binary backend" do
      for_all(25, unquote(name), fn ->
        # From every quadrant, away from the branch cuts.
        z = complex(shape(), range: one_of([{0.2, 0.8}, {0.001, 0.01}, {1.2, 3}]))
        z = one_of([z, Nx.negate(z), Nx.conjugate(z), Nx.negate(Nx.conjugate(z))])
        agrees(&apply(Nx, unquote(name), [&1]), [z], rtol: 1.0e-11, atol: 1.0e-11)
      end)
    end
  end

  # EMLX's inverses are accurate on the whole plane; the binary backend loses digits or takes another branch.
  for {inverse, name} <- [acos: :cos, asin: :sin, atan: :tan, acosh: :cosh, asinh: :sinh, atanh: :tanh, log: :exp] do
    test "#{name} of #{inverse} of c128 is the identity" do
      for_all(25, unquote(inverse), fn ->
        range = one_of([{-0.5, 0.5}, {-3, 3}, {0.9, 1.1}, {-1.0e-5, 1.0e-5}])
        z = complex({6}, range: range)
        back = apply(Nx, unquote(name), [apply(Nx, unquote(inverse), [here(z)])])
        assert_same(back, z, rtol: 1.0e-12, atol: 1.0e-12)
      end)
    end
  end

  test "acosh and acos of c128 have the principal values" do
    for_all(20, :principal, fn ->
      z = here(complex({8}, range: {-3, 3}))
      acos = Nx.acos(z)
      assert_same(Nx.add(acos, Nx.asin(z)), Nx.broadcast(Nx.tensor(:math.pi() / 2, type: @c128), {8}), atol: 1.0e-13)
      assert Nx.to_number(Nx.reduce_min(Nx.real(Nx.acosh(z)))) >= 0
      assert Nx.to_number(Nx.reduce_min(Nx.real(acos))) >= 0
    end)
  end

  test "functions of c128 lose no digits near zero" do
    z = list([c(1.0e-10, 2.0e-10), c(-3.0e-9, 1.0e-9)])

    for name <- [:expm1, :log1p, :sin, :tan, :sinh, :tanh, :asin, :atan, :asinh, :atanh] do
      ratio = Nx.divide(apply(Nx, name, [z]), z)
      assert_same(ratio, list([1, 1]), rtol: 1.0e-8)
      assert Nx.to_number(Nx.reduce_max(Nx.abs(Nx.subtract(ratio, 1)))) < 1.0e-8
    end
  end

  test "functions of large and small c128 numbers have no intermediate overflow" do
    z = list([c(3.0e300, 4.0e300), c(3.0e-300, -4.0e-300)])
    assert_same(Nx.abs(z), Nx.tensor([5.0e300, 5.0e-300], type: :f64), atol: 0)
    assert_same(Nx.divide(z, z), list([1, 1]))
    assert_same(Nx.multiply(Nx.sqrt(z), Nx.sqrt(z)), z, atol: 0, rtol: 1.0e-14)
    assert_same(Nx.exp(Nx.log(z)), z, rtol: 1.0e-12, atol: 0)
    assert_same(Nx.tanh(list([c(500, 1), c(-500, 1)])), list([1, -1]))
    assert_same(Nx.sigmoid(list([c(800, 1), c(-800, 1)])), list([1, 0]))
    assert_same(Nx.asinh(list([c(1.0e200, 1.0e200)])), Nx.log(Nx.multiply(list([c(1.0e200, 1.0e200)]), 2)))
  end

  test "functions of c128 take zero, NaN and infinities" do
    zero = list([0])
    assert Nx.to_flat_list(Nx.sqrt(zero)) == [c(0, 0)]
    assert Nx.to_flat_list(Nx.sign(zero)) == [c(0, 0)]
    assert Nx.to_flat_list(Nx.abs(zero)) == [0.0]
    assert Nx.to_flat_list(Nx.cbrt(zero)) == [c(0, 0)]
    assert [%{re: :neg_infinity}] = Nx.to_flat_list(Nx.log(zero))
    # The binary backend's own sums, roots, exponentials, quotients.
    special = [c(:infinity, 1), c(:neg_infinity, 1), c(1, :infinity), c(1, :neg_infinity), c(:nan, 1), c(1, :nan)]
    z = Nx.tensor(special, type: @c128, backend: Nx.BinaryBackend)
    for name <- [:sqrt, :negate, :is_nan, :is_infinity, :conjugate], do: agrees(&apply(Nx, name, [&1]), [z])
    agrees(&Nx.exp/1, [z[1..1]])
    agrees(&Nx.abs/1, [z[0..3]])
    for name <- [:asin, :acos], do: assert([%{re: :nan}] = Nx.to_flat_list(apply(Nx, name, [list([c(:infinity, 1)])])))
    infinite = [c(:infinity, 1), c(:infinity, -1), c(:neg_infinity, 1), c(1, :neg_infinity)]
    roots = [c(:infinity, 0.0), c(:infinity, -0.0), c(:infinity, :infinity), c(:infinity, :neg_infinity)]
    assert Nx.to_flat_list(Nx.cbrt(list(infinite))) == roots
    assert Nx.to_flat_list(Nx.divide(list([c(1, 2)]), list([c(:infinity, 1)]))) == [c(0, 0)]
    assert [%{re: :nan, im: :nan}] = Nx.to_flat_list(Nx.divide(list([c(1, 2)]), zero))
  end

  test "abs, real, imag, conjugate, phase, negate and sign of c128 match the binary backend" do
    for_all(20, :parts, fn ->
      z = complex(shape(), range: {-10, 10})
      for name <- [:abs, :real, :imag, :conjugate, :phase, :negate], do: agrees(&apply(Nx, name, [&1]), [z])
      assert_same(Nx.multiply(Nx.sign(here(z)), Nx.abs(here(z))), z)
    end)
  end

  for name <- [:add, :subtract, :multiply, :divide, :equal, :not_equal, :logical_and, :logical_or, :logical_xor] do
    test "#{name} takes c128 with every type and shapes that broadcast" do
      for_all(40, unquote(name), fn ->
        shape = shape()
        range = if unquote(name) == :divide, do: {1, 8}, else: {-1, 2}
        left = complex(shape, range: range)
        right = tensor(broadcastable(shape), one_of(types()), range: range)
        agrees(&apply(Nx, unquote(name), [&1, &2]), Enum.shuffle([left, right]))
      end)
    end
  end

  test "pow of c128 matches the binary backend" do
    for_all(40, :pow, fn ->
      shape = shape()
      z = complex(shape, range: {0.2, 3})
      w = tensor(broadcastable(shape), one_of([@c128, {:c, 64}, {:f, 64}, {:s, 32}]), range: {-3, 3})
      agrees(&Nx.pow/2, [z, w], rtol: 1.0e-11)
      agrees(&Nx.pow/2, [Nx.abs(w) |> Nx.add(0.5), z], rtol: 1.0e-11)
    end)

    z = Nx.tensor([0, c(1, 2), 0], type: @c128, backend: Nx.BinaryBackend)
    for exponent <- [0, 1, -1, 2], do: agrees(&Nx.pow(&1, exponent), [z[1..1]])
    agrees(&Nx.pow(&1, &2), [z, Nx.tensor([0, 0, c(1, 1)], type: @c128, backend: Nx.BinaryBackend)])
  end

  test "atan2 takes c128 beside f64" do
    agrees(&Nx.atan2/2, [Nx.as_type(tensor({4}, {:f, 64}), @c128), tensor({4}, {:f, 64})])
  end

  test "select takes c128, also as the predicate" do
    for_all(30, :select, fn ->
      shape = shape(0..3)
      # For the binary backend, a complex 0 is true.
      pred = one_of([tensor(shape, {:u, 8}, range: {0, 1}), complex(shape, range: {0.1, 1})])
      a = tensor(shape, one_of([@c128, {:f, 32}]))
      b = tensor(shape, one_of([@c128, {:f, 64}]))
      agrees(&Nx.select/3, [pred, a, b])
      agrees(&Nx.select(&1, &2, 1.5), [pred, a])
    end)

    assert Nx.to_flat_list(Nx.select(list([0, c(0, 1), 1]), 1, 2)) == [2, 1, 1]
    assert Nx.to_flat_list(Nx.select(list([0, c(0, 1)]), list([1, 1]), 2.0)) == [c(2, 0), c(1, 0)]

    agrees(&Nx.select/3, [
      Nx.tensor(c(0, 1), type: @c128, backend: Nx.BinaryBackend),
      tensor({3}, {:f, 32}),
      complex({3})
    ])
  end

  test "functions that Nx refuses for complex numbers are refused for c128" do
    z = complex({3})

    for name <- [:floor, :ceil, :round, :erf, :argmax, :argmin, :reduce_max, :sort, :argsort],
        do: assert(same(&apply(Nx, name, [&1]), [z]) == :refused)

    for name <- [:less, :greater, :max, :min, :quotient],
        do: assert(same(&apply(Nx, name, [&1, &1]), [z]) == :refused)

    assert same(&Nx.bitcast(&1, @c128), [z]) == :refused
  end

  # ---- moves ----

  test "functions that move elements take c128" do
    t = complex({2, 3, 4})
    s = complex({2, 3, 4})
    real = tensor({2, 3, 4}, {:f, 32})
    indices = Nx.tensor([[0, 1], [1, 2], [1, 0]], backend: Nx.BinaryBackend)
    start = Nx.tensor(1, backend: Nx.BinaryBackend)

    for fun <- [
          &Nx.reshape(&1, {4, 6}),
          &Nx.reshape(&1[0][0][0], {1, 1}),
          &Nx.squeeze(Nx.new_axis(&1, 1)),
          &Nx.broadcast(&1[0][0], {3, 4}),
          &Nx.broadcast(&1[[0, .., 0]], {3, 5}, axes: [0]),
          &Nx.transpose/1,
          &Nx.transpose(&1, axes: [1, 0, 2]),
          &Nx.reverse(&1, axes: [0, 2]),
          &Nx.pad(&1, Nx.tensor(c(1, 2), type: @c128), [{1, 0, 1}, {0, -1, 0}, {-1, 2, 0}]),
          &Nx.pad(&1, 1.5, [{1, 0, 0}, {0, 0, 0}, {0, 0, 2}]),
          &Nx.slice(&1, [0, 1, 1], [2, 2, 3], strides: [1, 1, 2]),
          &Nx.gather(&1, indices),
          &Nx.gather(&1, indices, axes: [0, 2]),
          &Nx.take(&1, Nx.tensor([2, 0, 2]), axis: 1),
          &Nx.take_along_axis(&1, Nx.broadcast(1, {2, 1, 4}), axis: 1),
          &Nx.tile(&1, [2, 1, 1]),
          &Nx.tril/1,
          &Nx.triu(&1, k: 1),
          &Nx.take_diagonal/1,
          &Nx.put_diagonal(&1[0], Nx.tensor([1, 2, 3])),
          &Nx.make_diagonal(&1[0][0]),
          &Nx.outer(&1[0][0], &1[0][1]),
          &Nx.flatten/1
        ],
        do: agrees(fun, [t])

    for fun <- [
          &Nx.concatenate([&1, &2, &3], axis: 1),
          &Nx.stack([&1, &2, &3], axis: 3),
          &Nx.stack([&1, &2, &3]),
          fn t, s, _ -> Nx.put_slice(t, [0, 1, 0], s[[0..0, 0..1, 0..2]]) end,
          fn _, s, real -> Nx.put_slice(real, [0, 1, 0], s[[0..0, 0..1, 0..2]]) end,
          fn t, s, _ -> Nx.indexed_add(t, indices, s[[0, 0..2]]) end,
          fn t, _, real -> Nx.indexed_put(t, Nx.tensor([[0, 1], [1, 2]]), real[[0, 0..1]]) end,
          fn _, s, real -> Nx.indexed_add(real, indices, s[[0, 0..2]]) end
        ],
        do: agrees(fun, [t, s, real])

    agrees(&Nx.slice(&1, [&2, 0, &2], [1, 3, 2]), [t, start])
    agrees(&Nx.put_slice(&1, [&3, 0, 0], &2[[0..0, 0..1, 0..2]]), [t, s, start])
    for type <- [@c128], do: agrees(fn -> {Nx.iota({2, 3}, axis: 1, type: type), Nx.eye({2, 3}, type: type)} end, [])
  end

  # ---- reductions, windows, order ----

  test "sum, product, mean, all and any of c128 reduce any axes" do
    for_all(30, :reductions, fn ->
      shape = shape(0..3)
      z = complex(shape, range: {-1.5, 1.5})
      axes = Enum.take_random(Enum.to_list(0..(tuple_size(shape) - 1)//1), 2)
      opts = one_of([[], [axes: axes], [axes: axes, keep_axes: true]])
      for name <- [:sum, :product, :mean], do: agrees(&apply(Nx, name, [&1, opts]), [z])
    end)

    # For the binary backend, a complex 0 is true.
    t = list([[0, c(0, 1)], [c(1, 0), c(1, 1)], [0, 0]])
    assert Nx.to_flat_list(Nx.all(t, axes: [1])) == [0, 1, 0]
    assert Nx.to_flat_list(Nx.any(t, axes: [1])) == [1, 1, 0]
    assert Nx.to_flat_list(Nx.any(t, keep_axes: true)) == [1]

    agrees(&Nx.product/1, [complex({37}, range: {0.5, 1})])
    agrees(&Nx.all/1, [Nx.tensor([c(0, 1), c(1, 0)], type: @c128, backend: Nx.BinaryBackend)])
    agrees(&{Nx.variance(&1), Nx.standard_deviation(&1)}, [complex({9})], rtol: 1.0e-10)
  end

  test "cumulative functions of c128 match the binary backend" do
    for_all(15, :cumulative, fn ->
      z = complex(shape(1..3, 1..6), range: {-1.5, 1.5})
      axis = integer(0..(tuple_size(z.shape) - 1))
      opts = [axis: axis, reverse: chance(0.5)]
      for name <- [:cumulative_sum, :cumulative_product], do: agrees(&apply(Nx, name, [&1, opts]), [z])
    end)
  end

  test "reduce and window_reduce of c128 take functions" do
    for_all(20, :folds, fn ->
      z = complex(shape(1..3), range: {-1, 1})
      axes = Enum.sort(Enum.take_random(Enum.to_list(0..(tuple_size(z.shape) - 1)), 2))
      agrees(&Nx.reduce(&1, 1.0, [axes: axes], fn x, acc -> Nx.add(Nx.multiply(x, acc), x) end), [z])
      agrees(&Nx.reduce(&1, c(1, 1), [axes: axes, keep_axes: true], fn x, acc -> Nx.add(Nx.exp(x), acc) end), [z])
      window = List.to_tuple(for dim <- Tuple.to_list(z.shape), do: integer(1..dim))

      # The binary backend does not reduce windows of complex numbers.
      z = here(z)
      sum = Nx.window_reduce(z, c(0, 0), window, [padding: :same], fn x, acc -> Nx.add(x, acc) end)
      assert_same(sum, Nx.window_sum(z, window, padding: :same))
      product = Nx.window_reduce(z, 1, window, [strides: 2], fn x, acc -> Nx.multiply(x, acc) end)
      assert_same(product, Nx.window_product(z, window, strides: 2))
    end)

    # Longer than the part that is reduced in order.
    agrees(&Nx.reduce(&1, 0, fn x, acc -> Nx.add(x, acc) end), [complex({1301})])
    # A function that depends on axes is called element by element.
    agrees(&Nx.reduce(&1, 0, [axes: [0]], fn x, acc -> Nx.sum(Nx.stack([x, acc])) end), [complex({3, 2})])
    # Reduces real numbers to complex ones.
    t = here(tensor({2, 5}, {:f, 32}))
    sum = Nx.reduce(t, c(0, 1), [type: @c128, axes: [1]], fn x, acc -> Nx.add(x, acc) end)
    assert_same(sum, Nx.add(Nx.sum(Nx.as_type(t, @c128), axes: [1]), c(0, 1)))
  end

  test "window functions of c128 match the binary backend" do
    for_all(25, :windows, fn ->
      z = complex(shape(1..3, 2..5), range: {-1.5, 1.5})
      rank = tuple_size(z.shape)
      window = List.to_tuple(for _ <- 1..rank, do: integer(1..2))
      padding = one_of([:valid, :same, for(_ <- 1..rank, do: {integer(0..2), integer(0..1)})])
      opts = [padding: padding, strides: for(_ <- 1..rank, do: integer(1..2))]
      opts = if chance(0.3), do: opts ++ [window_dilations: 1], else: opts
      for name <- [:window_sum, :window_product], do: agrees(&apply(Nx, name, [&1, window, opts]), [z])
    end)
  end

  # ---- products ----

  test "dot takes c128 with every type, contraction and batch" do
    for_all(40, :dot, fn ->
      [b, m, k, n] = for _ <- 1..4, do: integer(1..4)
      other = one_of([@c128, @c128, {:f, 64}, {:f, 32}, {:c, 64}, {:s, 32}])
      [left, right] = Enum.shuffle([@c128, other])
      agrees(&Nx.dot/2, [tensor({m, k}, left), tensor({k, n}, right)])
      agrees(&Nx.dot(&1, [2], [0], &2, [1], [0]), [tensor({b, m, k}, left), tensor({b, k, n}, right)])
      agrees(&Nx.dot(&1, [0, 2], &2, [2, 0]), [tensor({b, m, k}, left), tensor({k, n, b}, right)])
    end)
  end

  test "convolutions of c128 match the binary backend" do
    for_all(20, :conv, fn ->
      [left, right] = Enum.shuffle([@c128, one_of([@c128, {:f, 64}, {:c, 64}])])
      input = tensor({2, 4, 5, 6}, left)
      opts = one_of([[], [padding: :same], [strides: [2, 1]], [feature_group_size: 2], [input_dilation: [2, 1]]])
      channels = if opts[:feature_group_size], do: 2, else: 4
      agrees(&Nx.conv(&1, &2, opts), [input, tensor({4, channels, 2, 3}, right)], rtol: 1.0e-11)
    end)
  end

  test "triangular_solve of c128 takes every option" do
    for_all(60, :triangular, fn ->
      n = integer(1..5)
      batch = for _ <- 1..integer(0..2)//1, do: integer(1..3)
      left? = chance(0.5)
      a = complex(List.to_tuple(batch ++ [n, n]), range: {-1, 1})
      a = Nx.add(a, Nx.multiply(4, Nx.eye(n, type: :s32, backend: Nx.BinaryBackend)))
      m = integer(1..4)
      shape = if chance(0.3), do: batch ++ [n], else: batch ++ if(left?, do: [n, m], else: [m, n])
      b = tensor(List.to_tuple(shape), one_of([@c128, {:f, 64}]))
      opts = [lower: chance(0.5), left_side: left?, transform_a: one_of([:none, :transpose, :conjugate])]
      agrees(&Nx.LinAlg.triangular_solve(&1, &2, opts), [a, b])
    end)

    assert_raise ArgumentError, "can't solve for singular matrix", fn ->
      Nx.LinAlg.triangular_solve(list([[1, 0], [c(1, 1), 0]]), list([1, 2]))
    end
  end

  test "decompositions of c128 are those that Nx composes" do
    for_all(6, :linear_algebra, fn ->
      n = integer(2..4)
      a = Nx.add(complex({n, n}, range: {-1, 1}), Nx.multiply(3, Nx.eye(n, type: :s32, backend: Nx.BinaryBackend)))
      b = complex({n, 2})
      opts = [rtol: 1.0e-9, atol: 1.0e-9]

      for name <- [:qr, :lu, :determinant, :invert, :norm, :adjoint],
          do: agrees(&apply(Nx.LinAlg, name, [&1]), [a], opts)

      agrees(&Nx.LinAlg.solve/2, [a, b], opts)
      agrees(&Nx.LinAlg.matrix_power(&1, 3), [a], opts)
      hermitian = Nx.dot(a, Nx.LinAlg.adjoint(a))
      agrees(&Nx.LinAlg.cholesky/1, [hermitian], opts)
    end)
  end

  # ---- Fourier transforms ----

  for name <- [:fft, :ifft] do
    test "#{name} of c128 takes any length along any axis" do
      for_all(40, unquote(name), fn ->
        # With three or more axes, the binary backend is wrong for all except the last one.
        shape = shape(1..2, 2..9)
        axis = integer(0..(tuple_size(shape) - 1))
        length = one_of([elem(shape, axis), integer(2..12), :power_of_two])
        opts = [axis: axis, length: length]
        agrees(&apply(Nx, unquote(name), [&1, opts]), [tensor(shape, one_of([@c128, {:f, 64}]))], rtol: 1.0e-11)
      end)
    end
  end

  test "transforms of c128 take every kind of length" do
    # Lengths for matrix products, for factors of two and others, for convolved primes, and for products with those.
    for n <- [1, 2, 7, 32, 33, 64, 100, 127, 131, 256, 262, 263] do
      agrees(&Nx.fft(&1, eps: 0), [complex({n}, range: {-1, 1})], rtol: 1.0e-9, atol: 1.0e-9)
    end

    for n <- [1000, 1009, 1024, 2048, 2018] do
      z = here(complex({2, n}))
      assert_same(Nx.ifft(Nx.fft(z)), z)
      # Checks Parseval's theorem and the sum.
      power = &Nx.sum(Nx.pow(Nx.abs(&1), 2))
      assert_same(power.(Nx.fft(z)), Nx.multiply(power.(z), n), rtol: 1.0e-12)
      assert_same(Nx.fft(z)[[.., 0]], Nx.sum(z, axes: [1]), atol: 1.0e-11)
    end
  end

  test "a transform of c128 along any axis is that along the last one with the axes exchanged" do
    z = here(complex({3, 4, 5, 2}))

    for axis <- 0..3 do
      order = List.delete([0, 1, 2, 3], axis) ++ [axis]
      back = Enum.map(0..3, fn i -> Enum.find_index(order, &(&1 == i)) end)
      moved = z |> Nx.transpose(axes: order) |> Nx.fft(length: 6) |> Nx.transpose(axes: back)
      assert_same(Nx.fft(z, axis: axis, length: 6), moved)
    end
  end

  test "rfft, irfft, fft2 and ifft2 of f64 match the binary backend" do
    for_all(10, :more_transforms, fn ->
      tensor = tensor({3, 4, 6}, {:f, 64})
      agrees(&{Nx.rfft(&1), Nx.fft2(&1), Nx.ifft2(&1)}, [tensor], rtol: 1.0e-11)
      agrees(&Nx.irfft(Nx.rfft(&1)), [tensor], rtol: 1.0e-11)
    end)
  end

  test "a transform of c128 sets numbers of at most eps to 0" do
    assert Nx.to_flat_list(Nx.fft(list([1, 1, 1, 1]))) == [c(4, 0), c(0, 0), c(0, 0), c(0, 0)]
    agrees(&Nx.fft(&1, eps: 2.0), [Nx.tensor([1, c(2, 1), 3], type: @c128, backend: Nx.BinaryBackend)])
  end

  # ---- blocks ----

  test "no implementation of a block is given c128" do
    z = complex({3})
    {result, [block]} = EMLX.TelemetryRecorder.record_blocks(fn -> Nx.logical_not(here(z)) end)
    assert_same(result, Nx.logical_not(z))
    assert %{block: Nx.Block.LogicalNot, path: :composed, reason: "the kernel takes no c128" <> _} = block
    {_, [block | _]} = EMLX.TelemetryRecorder.record_blocks(fn -> Nx.rfft(here(tensor({4}, {:f, 64}))) end)
    assert %{block: Nx.Block.RFFT, path: :composed, reason: "the kernel takes no c128" <> _} = block
  end

  test "EMLX.Fast refuses complex numbers, and multiplies them" do
    z = here(complex({2, 3}))
    assert_raise ArgumentError, ~r/complex/, fn -> EMLX.Fast.rms_norm(z, nil) end
    w = complex({3, 2})
    assert_same(EMLX.Fast.einsum("ij,jk->ik", [z, here(w)]), Nx.dot(z, here(w)))
  end

  # ---- gradients ----

  functions = [
    abs: quote(do: fn z -> Nx.sum(Nx.abs(z)) end),
    exp: quote(do: fn z -> Nx.sum(Nx.real(Nx.exp(Nx.multiply(z, z)))) end),
    power: quote(do: fn z -> Nx.sum(Nx.pow(Nx.abs(Nx.sin(z)), 2)) end),
    dot: quote(do: fn z -> Nx.sum(Nx.abs(Nx.dot(z, Nx.transpose(Nx.conjugate(z))))) end),
    fft: quote(do: fn z -> Nx.sum(Nx.abs(Nx.fft(z, length: 6))) end)
  ]

  for {name, fun} <- functions do
    defnp(unquote(:"grad_#{name}")(z), do: grad(z, unquote(fun)))

    test "the gradient of #{name} of c128 matches the binary backend" do
      for_all(4, {:grad, unquote(name)}, fn ->
        for type <- [@c128, {:f, 64}],
            do: agrees(&unquote(:"grad_#{name}")(&1), [tensor({2, 3}, type, range: {0.2, 1.5})], rtol: 1.0e-10)
      end)
    end
  end

  # ---- compiled ----

  defn iterate(z, c) do
    {z, _, i} =
      while {z, c, i = 0}, Nx.all(Nx.abs(z) < 2) and i < 10 do
        {z * z + c, c, i + 1}
      end

    {z, i}
  end

  defn choose(z, n) do
    cond do
      z -> {z * 2, n}
      n > 0 -> {z + Nx.exp(z), n - 1}
      true -> {Nx.conjugate(z), n}
    end
  end

  defn called(z) do
    y = Nx.runtime_call(z, Nx.multiply(z, 1), [by: 2], &__MODULE__.times/2)
    y + 1
  end

  def times(z, opts), do: Nx.multiply(Nx.backend_copy(z, Nx.BinaryBackend), opts[:by])

  defn hooked(z) do
    y = hook(z * 2, :seen, &Function.identity/1)
    Nx.sum(y)
  end

  test "runtime calls and hooks receive tensors of c128" do
    z = here(complex({2, 3}))
    assert_same(Nx.Defn.jit(&called/1, compiler: EMLX).(z), Nx.add(Nx.multiply(z, 2), 1))
    me = self()
    hooks = %{seen: &send(me, {:seen, &1})}
    assert_same(Nx.Defn.jit(&hooked/1, compiler: EMLX, hooks: hooks).(z), Nx.sum(Nx.multiply(z, 2)))
    assert_receive {:seen, seen}
    assert_same(seen, Nx.multiply(z, 2))
  end

  test "loops, branches and predicates take c128" do
    for_all(5, :loops, fn ->
      agrees(&iterate/2, [complex({3}, range: {-0.5, 0.5}), complex({3}, range: {-0.5, 0.5})])
    end)

    # For the evaluator, a complex 0 is true.
    assert_same(Nx.Defn.jit(&choose/2, compiler: EMLX).(list([0])[0], 1), {list([1])[0], Nx.tensor(0)})
    assert_same(Nx.Defn.jit(&choose/2, compiler: EMLX).(list([0])[0], 0), {list([0])[0], Nx.tensor(0)})

    for z <- [c(0, 1), c(1, 2)], n <- [0, 1] do
      agrees(&choose/2, [Nx.tensor(z, type: @c128, backend: Nx.BinaryBackend), Nx.tensor(n, backend: Nx.BinaryBackend)])
    end
  end

  test "a program takes constants of c128 and returns results of c128" do
    fun = fn z, %{x: x} ->
      {Nx.add(z, Nx.tensor([[c(1, 2), 3, 4], [5, 6, 7]], type: @c128)), Nx.multiply(x, Complex.new(0, 1)), Nx.real(z)}
    end

    {_, device} = backend()
    jit = Nx.Defn.jit(fun, [compiler: EMLX] ++ device)
    [z, x] = Enum.map([complex({3}), tensor({}, {:f, 64})], &here/1)
    assert_same(jit.(z, %{x: x}), fun.(z, %{x: x}))
    # Tensors of other backends, and vectorized ones.
    assert_same(jit.(Nx.backend_copy(z, Nx.BinaryBackend), %{x: x}), fun.(z, %{x: x}))
    vectorized = Nx.vectorize(here(complex({4, 3})), :rows)
    doubled = Nx.Defn.jit(&Nx.multiply(&1, 2), [compiler: EMLX] ++ device).(vectorized)
    assert_same(doubled, Nx.multiply(vectorized, 2))
  end

  test "a program with c128 has an axis for the two parts of its constants, inputs and outputs" do
    fun = fn weights, z -> %{y: Nx.dot(weights, z)} end
    weights = here(complex({2, 2}))
    program = EMLX.compile_to_program(fun, [weights, Nx.template({2}, @c128)], names: ["w", "z"], device: :cpu)
    z = here(complex({2}))
    [result] = EMLX.Program.run(program, %{"z" => EMLX.Backend.to_array(z)})
    assert EMLX.Array.shape(result) == {2, 2}
    assert_same(EMLX.Backend.to_nx(result, Nx.template({2}, @c128)), Nx.dot(weights, z))
  end
end
