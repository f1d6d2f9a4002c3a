defmodule EMLX.Backend.ReductionTest do
  use EMLX.NxCase, async: true

  import EMLX.Random

  defp axes(shape), do: Enum.to_list(0..(tuple_size(shape) - 1)//1)

  defp opts(shape) do
    some = Enum.filter(axes(shape), fn _ -> chance(0.5) end)
    [axes: one_of([nil, some]), keep_axes: chance(0.5)]
  end

  # If a product overflows, the signs of a complex infinity depend on the order of the factors.
  defp factors({:c, _}), do: {0.4, 0.8}
  defp factors(_type), do: {0.5, 2}

  for name <- [:sum, :product, :all, :any] do
    test "#{name} reduces any axes" do
      for_all(120, unquote(name), fn ->
        shape = shape()
        # A product of many numbers in 8 bits may be any number.
        types = types() -- [{:f, 8}, {:f8_e4m3fn, 8}]
        # For the binary backend, 0+0i is true.
        type = one_of(if unquote(name) in [:all, :any], do: types -- complex_types(), else: types)
        range = if unquote(name) == :product, do: factors(type), else: {-10, 10}
        opts = opts(shape)
        tolerance = if elem(type, 1) <= 16, do: [rtol: 0.1, atol: 1.0], else: [rtol: 1.0e-5, atol: 1.0e-4]
        tolerance = if type in integer_types() or unquote(name) in [:all, :any], do: [], else: tolerance
        same(&apply(Nx, unquote(name), [&1, opts]), [tensor(shape, type, range: range)], tolerance)
      end)
    end
  end

  test "all and any of tensors that are mostly zero match the binary backend" do
    for_all(60, :all_and_any, fn ->
      shape = shape()
      opts = opts(shape)
      tensor = tensor(shape, one_of(real_types()), range: {0, 1.4})
      same(&{Nx.all(&1, opts), Nx.any(&1, opts)}, [Nx.floor(tensor)])
    end)
  end

  for name <- [:reduce_max, :reduce_min] do
    test "#{name} reduces any axes, and NaN wins" do
      for_all(120, unquote(name), fn ->
        shape = shape()
        opts = opts(shape)
        tensor = tensor(shape, one_of(real_types()), special: one_of([0, 0.2]))
        same(&apply(Nx, unquote(name), [&1, opts]), [tensor])
      end)
    end
  end

  test "sums of integers have Nx's width, and wrap around in it" do
    for_all(40, :wide_sums, fn ->
      same(&Nx.sum/1, [tensor({20}, one_of(integer_types()), special: 0.5)])
      same(&Nx.product/1, [tensor({20}, one_of(integer_types()), special: 0.3)])
    end)
  end

  test "sums of many 16-bit floats are rounded once" do
    for type <- [:f16, :bf16] do
      ones = Nx.broadcast(Nx.tensor(1.0, type: type), {30_000})
      assert_in_delta Nx.to_number(Nx.sum(ones)), 30_000, 120
      assert_in_delta Nx.to_number(Nx.mean(ones)), 1, 0.01
    end
  end

  for name <- [:argmax, :argmin] do
    test "#{name} breaks ties on the requested side" do
      for_all(150, unquote(name), fn ->
        shape = shape()
        axis = one_of([nil | axes(shape)])
        opts = [axis: axis, tie_break: one_of([:low, :high]), keep_axis: chance(0.5)]
        # Few different numbers, so that there are ties.
        tensor = tensor(shape, one_of(real_types()), range: {-1, 2})
        same(&apply(Nx, unquote(name), [Nx.floor(&1), opts]), [tensor])
      end)
    end

    test "#{name} finds NaN and infinities" do
      for_all(40, {unquote(name), :special}, fn ->
        tensor = tensor({5}, one_of([{:f, 32}, {:f, 16}, {:bf, 16}, {:f, 64}]), special: 0.4)
        opts = [tie_break: one_of([:low, :high])]
        same(&apply(Nx, unquote(name), [&1, opts]), [tensor])
      end)
    end
  end

  test "mean, variance, median, mode and other composed functions match the binary backend" do
    for_all(40, :composed, fn ->
      shape = shape(1..3)
      axis = one_of(axes(shape))
      opts = [axes: [axis]]
      tensor = tensor(shape, one_of([{:f, 32}, {:f, 64}, {:s, 32}, {:u, 8}]))

      same(&{Nx.mean(&1, opts), Nx.variance(&1, opts), Nx.standard_deviation(&1, opts)}, [tensor],
        rtol: 1.0e-4,
        atol: 1.0e-4
      )

      same(&{Nx.median(&1, axis: axis), Nx.mode(&1, axis: axis)}, [tensor])
      same(&Nx.logsumexp(&1, opts), [tensor])
    end)
  end

  for name <- [:cumulative_sum, :cumulative_product, :cumulative_min, :cumulative_max] do
    test "#{name} runs in both directions" do
      for_all(60, unquote(name), fn ->
        shape = shape(1..3)
        opts = [axis: one_of(axes(shape)), reverse: chance(0.5)]
        same(&apply(Nx, unquote(name), [&1, opts]), [tensor(shape, one_of([{:f, 32}, {:s, 32}, {:u, 8}, {:f, 64}]))])
      end)
    end
  end

  describe "reduce with a function" do
    test "reduce with a function matches the binary backend" do
      for_all(80, :reduce, fn ->
        shape = shape(0..3)
        opts = opts(shape)
        opts = if opts[:axes] == [], do: [], else: opts
        fun = one_of([&Nx.add/2, &Nx.max/2, fn x, acc -> Nx.add(Nx.multiply(x, 2), acc) end, fn x, _ -> x end])
        type = one_of([{:f, 32}, {:s, 32}, {:s, 64}, {:f, 64}, {:u, 16}])
        acc = one_of([0, 1.5])
        same(&Nx.reduce(&1, acc, opts, fun), [tensor(shape, type)], atol: 1.0e-4)
      end)
    end

    test "reduce with a function takes more elements than are combined in order" do
      for size <- [513, 1024, 1500, 4001] do
        t = Nx.iota({size, 3}, type: :s64)
        assert_same(Nx.reduce(t, 5, [axes: [0]], &Nx.add/2), Nx.add(Nx.sum(t, axes: [0]), 5))
        # Associative, but not commutative.
        assert_same(Nx.reduce(t, 0, [axes: [0]], fn x, _ -> x end), t[-1])
      end
    end

    test "reduce takes a function that depends on axes" do
      t = Nx.iota({3, 4})
      by_axes = fn x, acc -> Nx.add(Nx.sum(Nx.reshape(x, {1})), acc) end
      assert_same(Nx.reduce(t, 0, [axes: [0]], by_axes), Nx.sum(t, axes: [0]))
      table = Nx.tensor([10, 20, 30, 40])
      look_up = fn x, acc -> Nx.add(Nx.take(table, x), acc) end
      assert_same(Nx.reduce(Nx.tensor([[0, 3], [1, 1]]), 0, [axes: [1]], look_up), Nx.tensor([50, 40]))
    end

    test "reduce takes a function that has blocks" do
      zeros = fn x, acc -> Nx.add(Nx.logical_not(x), acc) end
      assert_same(Nx.reduce(Nx.tensor([[0, 2], [0, 0]]), 0, [axes: [1]], zeros), Nx.tensor([1, 2]))
      # With floats, since Nx compares integers in f64, which GPUs lack.
      close = fn x, acc -> Nx.add(Nx.all_close(x, 2.0), acc) end
      assert_same(Nx.reduce(Nx.tensor([[0.0, 2.0], [2.0, 2.0]]), 0.0, [axes: [1]], close), Nx.tensor([1.0, 2.0]))
    end

    test "reduce takes a function that ignores the element" do
      assert_same(Nx.reduce(Nx.iota({2, 3}), 0, [axes: [1]], fn _, _ -> 7 end), Nx.tensor([7, 7]))
    end

    test "reduce with a function works inside defn" do
      fun = fn t -> Nx.reduce(t, 0, [axes: [1]], fn x, acc -> Nx.add(x, Nx.multiply(acc, 2)) end) end

      assert_same(
        Nx.Defn.jit(fun, compiler: Nx.Defn.Evaluator).(Nx.tensor([[1, 2, 3], [4, 5, 6]])),
        Nx.tensor([11, 32])
      )

      fun = fn t -> Nx.reduce(t, 0, [axes: [1]], fn x, acc -> Nx.add(Nx.sum(Nx.broadcast(x, {2})), acc) end) end

      assert_same(
        Nx.Defn.jit(fun, compiler: Nx.Defn.Evaluator).(Nx.tensor([[1, 2, 3], [4, 5, 6]])),
        Nx.tensor([12, 30])
      )
    end
  end
end
