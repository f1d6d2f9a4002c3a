defmodule EMLX.Backend.NumberTest do
  # Constants have the bits that the binary backend has for the same expression.
  use EMLX.NxCase, async: true

  import Bitwise
  import EMLX.Random

  # The bits of the fraction, and the smallest and largest exponent of the float formats, the narrowest first.
  @formats [{2, -14, 15}, {3, -6, 8}, {7, -126, 127}, {10, -14, 15}, {23, -126, 127}, {52, -1022, 1023}]

  @non_finite [:nan, :infinity, :neg_infinity]

  # Ties between adjacent numbers of a format and numbers close to them, subnormal numbers, limits and numbers beyond
  # them.
  defp float do
    {fraction, low, high} = one_of(@formats)
    exponent = integer((low - fraction - 2)..(high + 1))
    steps = integer(0..((1 <<< (min(fraction, 12) + 1)) - 1))
    significand = 1 + steps / (1 <<< (min(fraction, 12) + 1))

    magnitude =
      one_of([
        fn -> scale(significand, exponent) end,
        fn -> beside(scale(significand, exponent)) end,
        fn -> scale(:rand.uniform() + 1, exponent) end,
        fn -> scale(1.0, exponent) end,
        fn -> (2 - 2 ** -fraction) * 2.0 ** min(high, 1020) end,
        fn -> one_of([0.0, 0.1, 0.3, 0.5, 0.9995, 65_504.0, 65_519.99, 65_520.0, 448.0, 464.0, 57_344.0, 61_440.0]) end
      ]).()

    if chance(0.5), do: -magnitude, else: magnitude
  end

  defp scale(significand, exponent) when exponent < -1000, do: significand * 2.0 ** -1000 * 2.0 ** (exponent + 1000)
  defp scale(significand, exponent), do: significand * 2.0 ** min(exponent, 1022)

  # The next number above or below.
  defp beside(float) do
    <<bits::64>> = <<float::float-64>>
    <<float::float-64>> = <<max(bits + one_of([-1, 1]), 0)::64>>
    float
  end

  defp whole do
    power = 1 <<< integer(0..70)

    number =
      one_of([
        power,
        power - 1,
        power + 1,
        integer(0..300),
        power + (power >>> 8),
        power + (power >>> 11),
        integer(0..power)
      ])

    if chance(0.5), do: -number, else: number
  end

  defp number_of({kind, _}) when kind in [:s, :u], do: whole()

  defp number_of({:c, _} = type) do
    part = fn -> one_of([&float/0, fn -> one_of(@non_finite) end]).() end
    if chance(0.7), do: Complex.new(part.(), part.()), else: number_of({:f, elem(type, 1)})
  end

  defp number_of(_float), do: one_of([&float/0, &float/0, &float/0, &whole/0, fn -> one_of(@non_finite) end]).()

  # The bits of a function's result on a backend, eager or compiled with the backend's compiler.
  defp bits(fun, backend, compiler) do
    Nx.with_default_backend(backend, fn ->
      result = if compiler, do: Nx.Defn.jit(fun, compiler).(), else: fun.()
      for tensor <- Nx.Defn.Composite.flatten_list([result]), do: {tensor.type, tensor.shape, Nx.to_binary(tensor)}
    end)
  rescue
    error in [ArgumentError, ArithmeticError, FunctionClauseError] -> {:raised, error}
  end

  defp same_bits(fun) do
    {_, device} = backend()
    same_bits(bits(fun, backend(), nil), bits(fun, Nx.BinaryBackend, nil))

    same_bits(
      bits(fun, backend(), [compiler: EMLX, cache: false] ++ device),
      bits(fun, Nx.BinaryBackend, compiler: Nx.Defn.Evaluator)
    )
  end

  # Cases in which the binary backend itself fails are skipped.
  defp same_bits(_actual, {:raised, _error}), do: :skipped

  defp same_bits(actual, expected) do
    assert actual == expected
    :ok
  end

  test "a scalar has the binary backend's bits in every type" do
    for type <- types() do
      for_all(150, {:scalar, type}, fn ->
        number = number_of(type)
        same_bits(fn -> Nx.tensor(number, type: type) end)
      end)
    end
  end

  test "a filled tensor has the binary backend's bits in every type" do
    for type <- types() do
      for_all(10, {:filled, type}, fn ->
        number = number_of(type)
        same_bits(fn -> Nx.broadcast(Nx.tensor(number, type: type), {2, 4}) end)
      end)
    end
  end

  test "a number that a type cannot represent is refused, and both are named" do
    for {number, type, text} <- [
          {1.5, :u8, "u8 of 1.5"},
          {-0.0, :s32, "s32 of -0.0"},
          {2 ** 1100, :f32, "no float is as large"}
        ] do
      assert_raise ArgumentError, ~r/#{text}/, fn -> Nx.tensor(number, type: type) end
    end
  end

  # The binary backend misreads subnormal numbers of f8, and loses the sign of zero.
  defp readable(number, {:f, 8}) when is_number(number) and abs(number) < 6.103515625e-5, do: 1
  defp readable(number, _type) when is_number(number) and abs(number) < 1.0e-45, do: 1
  defp readable(number, _type), do: number

  # CUDA's atomic additions flush subnormal numbers to 0, and return another NaN.
  defp added(number) when is_number(number) and abs(number) < 1.18e-38 do
    if EMLX.Golden.device() == :gpu, do: 1, else: number
  end

  defp added(:nan), do: if(EMLX.Golden.device() == :gpu, do: 1, else: :nan)
  defp added(number), do: number

  # Nx first converts a number to f32 in operations with a tensor.
  defp single(number) do
    case <<number::float-32>> do
      <<single::float-32>> -> single
      _infinite -> 1.0
    end
  end

  # Operations whose result may be the number itself, in the type that it and the tensor merge to.
  @ways [
    max: quote(do: fn x, n -> Nx.max(x, n) end),
    min: quote(do: fn x, n -> Nx.min(n, x) end),
    select: quote(do: fn x, n -> {Nx.select(x, x, n), Nx.select(Nx.tensor([1, 0]), n, x), Nx.select(1, n, x)} end),
    as_type: quote(do: fn x, n -> Nx.as_type(n, Nx.type(x)) end),
    window_scatter: quote(do: fn x, n -> Nx.window_scatter_max(x, Nx.tensor([0], type: :u8), added(n), {2}, []) end)
  ]

  for {name, fun} <- @ways do
    test "a number combined with a tensor of any type has the binary backend's bits: #{name}" do
      for type <- real_types() do
        for_all(25, {unquote(name), type}, fn ->
          number = if type in integer_types(), do: integer(0..3), else: readable(number_of(type), type)
          elements = if type in integer_types(), do: [1, integer(0..1)], else: [1, integer(1..3)]
          same_bits(fn -> unquote(fun).(Nx.tensor(elements, type: type), number) end)
        end)
      end
    end
  end

  # The binary backend only supports accumulators and padding of the tensor's type.
  test "an accumulator or padding that is a number has the bits of a constant of the type" do
    for type <- float_types() do
      for_all(25, {:accumulator, type}, fn ->
        number = readable(single(float()), type)
        x = Nx.tensor([1, 2], type: type)
        keep = fn _x, acc -> acc end

        for fun <- [
              fn x -> Nx.reduce(x, number, keep) end,
              fn x -> Nx.reduce(x, 0.0, fn _x, _acc -> Nx.tensor(number) end) end,
              fn x -> Nx.window_reduce(x, number, {2}, keep)[0] end,
              fn x -> Nx.pad(x, number, [{1, 0, 0}])[0] end
            ] do
          {_, device} = backend()
          result = fun.(x)
          constant = Nx.to_binary(Nx.tensor(number, type: Nx.type(result)))
          assert Nx.to_binary(result) == constant
          assert Nx.to_binary(Nx.Defn.jit(fun, [compiler: EMLX, cache: false] ++ device).(x)) == constant
        end
      end)
    end
  end

  test "clip's bounds have the binary backend's bits" do
    for type <- float_types() do
      for_all(25, {:clip, type}, fn ->
        [low, high] = Enum.sort([whole(), whole()])
        same_bits(fn -> Nx.clip(Nx.tensor([0, 1, -1], type: type), low, high) end)
      end)
    end
  end

  test "a window of padding alone has the binary backend's bits" do
    for type <- types(), name <- [:window_sum, :window_product, :window_max, :window_min] do
      if name in [:window_sum, :window_product] or type not in complex_types() do
        same_bits(fn -> apply(Nx, name, [Nx.tensor([1, 0], type: type), {2}, [padding: [{3, 3}]]]) end)
      end
    end
  end

  test "iota and eye have the binary backend's bits in every type" do
    for type <- types() do
      same_bits(fn -> Nx.iota({700}, type: type) end)

      same_bits(fn ->
        {Nx.iota({3, 300}, type: type, axis: 1), Nx.iota({300, 3}, type: type), Nx.iota({}, type: type)}
      end)

      same_bits(fn -> {Nx.eye(3, type: type), Nx.eye({2, 3, 2}, type: type)} end)
    end
  end

  test "a long iota has the binary backend's bits in every float type" do
    for type <- float_types(), do: same_bits(fn -> Nx.iota({70_001}, type: type) end)
  end

  test "Nx's constants have the binary backend's bits in every float type" do
    names =
      [:nan, :infinity, :neg_infinity, :max_finite, :min_finite, :smallest_positive_normal, :epsilon] ++
        [:pi, :e, :euler_gamma]

    for type <- float_types(), name <- names, do: same_bits(fn -> apply(Nx.Constants, name, [type]) end)
  end

  test "numbers computed while an expression is built have the binary backend's bits" do
    for type <- float_types() do
      for_all(20, {:folded, type}, fn ->
        # Beyond these numbers the binary backend itself fails.
        [a, b] = for _ <- 1..2, do: number({:f, 32}, range: {-100, 100})

        for name <- [:add, :subtract, :multiply, :max, :min] do
          fun = fn -> apply(Nx, name, [Nx.tensor(a, type: type), b]) end

          same_bits(
            bits(fun, backend(), compiler: EMLX, cache: false),
            bits(fun, Nx.BinaryBackend, compiler: Nx.Defn.Evaluator)
          )
        end
      end)
    end
  end

  test "random normal numbers are finite in every float type" do
    for type <- [:bf16, :f16, :f32], shape = {1, 16, 40, 64} do
      normal = fn key -> key |> Nx.Random.normal(shape: shape, type: type) |> elem(0) end
      key = Nx.Random.key(42)
      {_, device} = backend()
      compiled = Nx.Defn.jit(normal, [compiler: EMLX] ++ device).(key)

      for result <- [normal.(key), compiled] do
        assert Nx.to_number(Nx.any(Nx.is_infinity(result))) == 0, "there are infinities in #{type}"
        assert Nx.to_number(Nx.any(Nx.is_nan(result))) == 0
      end
    end
  end
end
