defmodule EMLX.Backend.ElementwiseTest do
  use EMLX.NxCase, async: true

  import EMLX.Random

  # The real domain of each function.
  @domains [
    exp: {-4, 4},
    expm1: {-4, 4},
    log: {0.1, 10},
    log1p: {-0.9, 10},
    sigmoid: {-8, 8},
    cos: {-6, 6},
    sin: {-6, 6},
    tan: {-1.4, 1.4},
    cosh: {-4, 4},
    sinh: {-4, 4},
    tanh: {-4, 4},
    acos: {-1, 1},
    asin: {-1, 1},
    atan: {-4, 4},
    acosh: {1, 8},
    asinh: {-4, 4},
    atanh: {-0.9, 0.9},
    sqrt: {0, 10},
    rsqrt: {0.1, 10},
    cbrt: {-10, 10},
    erf: {-3, 3},
    erfc: {-3, 3},
    erf_inv: {-0.95, 0.95},
    abs: {-10, 10},
    bitwise_not: {-10, 10},
    ceil: {-10, 10},
    conjugate: {-10, 10},
    floor: {-10, 10},
    negate: {-10, 10},
    round: {-10, 10},
    sign: {-10, 10},
    count_leading_zeros: {-10, 10},
    population_count: {-10, 10},
    real: {-10, 10},
    imag: {-10, 10},
    is_nan: {-10, 10},
    is_infinity: {-10, 10}
  ]

  # Nx's own erf_inv has a precision of 8 digits.
  @tolerances [erf_inv: [rtol: 1.0e-6, atol: 1.0e-6]]

  for {name, range} <- @domains do
    test "#{name} matches the binary backend on every real type" do
      for_all(60, unquote(name), fn ->
        type = one_of(real_types())
        tensor = tensor(shape(), type, range: unquote(Macro.escape(range)))
        opts = if elem(type, 1) >= 32, do: unquote(@tolerances[name] || []), else: []
        same(&apply(Nx, unquote(name), [&1]), [tensor], opts)
      end)
    end
  end

  # The binary backend's sign of a complex number is 1, and its acos has the opposite sign of other implementations.
  for {name, _} <- @domains, name not in [:sign, :acos] do
    test "#{name} matches the binary backend on complex numbers" do
      for_all(20, unquote(name), fn ->
        # Away from the branch cuts, where implementations differ.
        tensor = tensor(shape(), one_of(complex_types()), range: {0.2, 0.8})
        same(&apply(Nx, unquote(name), [&1]), [tensor])
      end)
    end
  end

  test "acos of complex numbers is the inverse of cos" do
    for_all(20, :acos, fn ->
      z = tensor(shape(), one_of(complex_types()), range: {0.2, 0.8}) |> Nx.backend_copy(backend())
      assert_same(Nx.acos(Nx.cos(z)), z)
    end)
  end

  test "sign of complex numbers has their direction" do
    z = Nx.tensor([Complex.new(3, 4), Complex.new(0, -2), 0], type: :c64)
    assert_same(Nx.sign(z), Nx.tensor([Complex.new(0.6, 0.8), Complex.new(0, -1), 0], type: :c64))
  end

  test "sign of NaN is 0, which is neither less nor more than zero" do
    assert Nx.to_flat_list(Nx.sign(Nx.tensor([:nan, :infinity, :neg_infinity]))) == [0.0, 1.0, -1.0]
  end

  test "floor, ceil and round keep non-finite numbers" do
    special = [:infinity, :neg_infinity, :nan]
    for name <- [:floor, :ceil, :round], do: assert(Nx.to_flat_list(apply(Nx, name, [Nx.tensor(special)])) == special)
  end

  for name <- [:is_nan, :is_infinity, :abs, :negate] do
    test "#{name} keeps non-finite numbers" do
      for_all(40, unquote(name), fn ->
        tensor = tensor(shape(), one_of(float_types()), special: 0.5)
        same(&apply(Nx, unquote(name), [&1]), [tensor])
      end)
    end
  end

  @binary [:add, :subtract, :multiply, :divide, :atan2, :min, :max] ++
            [:equal, :not_equal, :greater, :less, :greater_equal, :less_equal] ++
            [:logical_and, :logical_or, :logical_xor]

  for name <- @binary do
    test "#{name} matches the binary backend on every pair of types and of shapes that broadcast" do
      for_all(150, unquote(name), fn ->
        shape = shape()
        [left, right] = for _ <- 1..2, do: one_of(one_of([types(), real_types()]))

        # Implementations differ in the parts of complex results with infinities and in the sign of atan2(-0.0, -1).
        # With a float, an integer is converted to the float's type, in which its limits may be infinite.
        complex? = left in complex_types() or right in complex_types()
        alike? = left in integer_types() == right in integer_types()
        safe? = alike? and not complex? and not wide_and_signed?(left, right)
        special = if safe? and unquote(name) != :atan2, do: one_of([0, 0, 0.2]), else: 0
        range = if complex? and unquote(name) == :divide, do: {1, 10}, else: {-10, 10}
        left = tensor(shape, left, special: special, range: range)
        right = tensor(broadcastable(shape), right, special: special, range: range)
        [left, right] = Enum.shuffle([left, right])
        same(&apply(Nx, unquote(name), [&1, &2]), [left, right])
      end)
    end
  end

  # u64 and a signed type merge to s64, which cannot represent the upper half of u64.
  defp wide_and_signed?(left, right), do: {:u, 64} in [left, right] and left != right

  test "comparisons of u64 with signed integers are exact" do
    for_all(60, :wide_comparisons, fn ->
      shape = shape()
      left = tensor(shape, {:u, 64}, special: 0.5)
      right = tensor(shape, {:s, one_of([8, 32, 64])}, special: 0.5)
      name = one_of([:equal, :not_equal, :greater, :less, :greater_equal, :less_equal])
      same(fn a, b -> apply(Nx, name, [a, b]) end, Enum.shuffle([left, right]))
    end)
  end

  for name <- [:bitwise_and, :bitwise_or, :bitwise_xor, :quotient, :remainder] do
    test "#{name} matches the binary backend on every pair of integer types" do
      for_all(100, unquote(name), fn ->
        shape = shape()
        [left, right] = for _ <- 1..2, do: one_of(integer_types())
        special = if wide_and_signed?(left, right), do: 0, else: 0.2
        left = tensor(shape, left, special: special)
        right = tensor(broadcastable(shape), right, special: special)
        same(&apply(Nx, unquote(name), [&1, &2]), [left, right])
      end)
    end
  end

  # The binary backend raises for these.
  test "integer division by zero returns 0, and of the smallest integer by -1 itself" do
    for {kind, size} = type <- integer_types() do
      assert Nx.to_flat_list(Nx.quotient(Nx.tensor([1, 0], type: type), Nx.tensor([0, 0], type: type))) == [0, 0]
      assert Nx.to_flat_list(Nx.remainder(Nx.tensor([1, 0], type: type), Nx.tensor([0, 0], type: type))) == [0, 0]

      if kind == :s do
        smallest = Nx.tensor([-Integer.pow(2, size - 1)], type: type)
        assert Nx.to_flat_list(Nx.quotient(smallest, Nx.tensor([-1], type: type))) == Nx.to_flat_list(smallest)
        assert Nx.to_flat_list(Nx.remainder(smallest, Nx.tensor([-1], type: type))) == [0]
      end
    end
  end

  test "remainder of floats has the sign of the dividend" do
    for_all(100, :remainder_of_floats, fn ->
      shape = shape()
      left = tensor(shape, one_of(integer_types() ++ [{:f, 32}, {:f, 64}]))
      right = tensor(broadcastable(shape), one_of([{:f, 32}, {:f, 64}]), range: {0.5, 4})
      same(&Nx.remainder/2, [left, Nx.multiply(right, one_of([1, -1]))])
    end)
  end

  for name <- [:left_shift, :right_shift] do
    test "#{name} matches the binary backend for every distance" do
      for_all(100, unquote(name), fn ->
        shape = shape()
        left = tensor(shape, one_of(integer_types()), special: 0.2)
        right = tensor(broadcastable(shape), one_of(integer_types() -- [{:s, 2}]), range: {0, 70})
        same(&apply(Nx, unquote(name), [&1, &2]), [left, right])
      end)
    end
  end

  test "pow of integers wraps, pow of floats does not" do
    for_all(150, :pow, fn ->
      shape = shape()
      left = tensor(shape, one_of(types()), range: {0.1, 4})
      right = tensor(broadcastable(shape), one_of(real_types()), range: {0, 3})
      same(&Nx.pow/2, [left, right])
    end)
  end

  test "numbers are treated like scalar tensors" do
    for_all(100, :numbers, fn ->
      tensor = tensor(shape(), one_of(types()))
      number = one_of([0, 1, -3, 300, 2.5, -0.5])
      name = one_of([:add, :subtract, :multiply, :max, :equal, :less])
      args = Enum.shuffle([tensor, number])
      same(fn a, b -> apply(Nx, name, [a, b]) end, args)
    end)
  end

  test "select takes from either side by the truth of any type" do
    for_all(150, :select, fn ->
      shape = shape()
      # No complex predicates: for the binary backend, 0+0i is true.
      pred = tensor(one_of([shape, {}]), one_of(real_types()), range: {-1, 1}, special: 0.1)
      on_true = tensor(broadcastable(shape), one_of(types()))
      on_false = tensor(broadcastable(shape), one_of(types()))
      same(&Nx.select/3, [pred, on_true, on_false])
    end)
  end

  test "select takes 0+0i for false" do
    pred = Nx.tensor([Complex.new(0, 0), Complex.new(0, 1), Complex.new(1, 0)])
    assert Nx.to_flat_list(Nx.select(pred, 1, 0)) == [0, 1, 1]
  end

  test "clip matches the binary backend" do
    for_all(100, :clip, fn ->
      # EMLX keeps NaN; the binary backend replaces it by the lower bound.
      type = one_of(real_types())
      special = if type in (integer_types() -- [{:u, 64}]), do: 0.1, else: 0
      tensor = tensor(shape(), type, special: special)
      low = tensor({}, one_of(real_types()), range: {-5, 0})
      high = tensor({}, one_of(real_types()), range: {1, 5})
      same(&Nx.clip/3, [tensor, low, high])
    end)
  end

  test "as_type matches the binary backend between all types" do
    for from <- types(), to <- types() do
      for_all(4, {:as_type, from, to}, fn ->
        special = if from in complex_types(), do: 0, else: 0.2
        tensor = tensor(shape(), from, range: {-300, 300}, special: special)
        same(&Nx.as_type(&1, to), [tensor], rounding(to))
      end)
    end
  end

  # The binary backend truncates to 16 and 8 bits, MLX rounds.
  defp rounding({:bf, 16}), do: [rtol: 8.0e-3]
  defp rounding({:f, 8}), do: [rtol: 0.26]
  defp rounding({:f8_e4m3fn, 8}), do: [rtol: 0.13, atol: 2.0e-3]
  defp rounding(_type), do: []

  test "as_type of floats beyond the range wraps, as integers do" do
    for_all(60, :as_type_wraps, fn ->
      tensor = tensor(shape(), one_of([{:f, 32}, {:f, 64}]), range: {-1.0e10, 1.0e10})
      to = one_of(integer_types())
      same(&Nx.as_type(&1, to), [tensor])
    end)
  end

  test "bitcast keeps the bits" do
    for_all(150, :bitcast, fn ->
      size = one_of([2, 4, 8, 16, 32, 64])
      same_size = Enum.filter(real_types(), &(elem(&1, 1) == size))
      [from, to] = [one_of(same_size), one_of(same_size)]
      same(&Nx.bitcast(&1, to), [tensor(shape(), from, range: {-300, 300}, special: 0.2)])
    end)
  end
end
