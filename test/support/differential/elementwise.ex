defmodule EMLX.Differential.Elementwise do
  @moduledoc "Functions of elements, alone or in pairs, choices and casts, for the differential suite."

  alias EMLX.{Array, Ops}
  alias EMLX.Differential.{Case, Draw, Input}
  alias EMLX.Differential.Reference, as: R

  # By the operation itself in pieces, in the type itself: what is exact, and what a wider type would answer otherwise.
  @same %{
    abs: {:rounded, :any},
    negative: {:exact, :special},
    sign: {:rounded, :any},
    ceil: {:exact, :special},
    floor: {:exact, :special},
    trunc: {:exact, :special},
    round_away: {:exact, :special},
    square: {:rounded, {-100, 100}},
    logical_not: {:exact, {:few, 2}},
    bitwise_invert: {:exact, :any},
    population_count: {:exact, :any},
    count_leading_zeros: {:exact, :any},
    isnan: {:exact, :special},
    isinf: {:exact, :special},
    isposinf: {:exact, :special},
    isneginf: {:exact, :special},
    isfinite: {:exact, :special},
    real: {:exact, :special},
    imag: {:exact, :special},
    conjugate: {:exact, :special},
    copy: {:bits, :special}
  }

  # By the operation in f64, in pieces: the domains of floats and of integers.
  @wide %{
    exp: {{-7.5, 9.0}, {0, 5}},
    expm1: {{-7.5, 9.0}, {0, 5}},
    log: {{0.01, 1000.0}, {1, 100}},
    log1p: {{-0.5, 1000.0}, {0, 100}},
    log2: {{0.01, 1000.0}, {1, 100}},
    log10: {{0.01, 1000.0}, {1, 100}},
    sin: {{-7.5, 9.0}, {0, 5}},
    cos: {{-7.5, 9.0}, {0, 5}},
    tan: {{-1.4, 1.4}, {0, 1}},
    arcsin: {{-1.0, 1.0}, {0, 1}},
    arccos: {{-1.0, 0.99}, {0, 1}},
    arctan: {{-7.5, 9.0}, {-5, 5}},
    sinh: {{-7.5, 9.0}, {-5, 5}},
    cosh: {{-7.5, 9.0}, {-5, 5}},
    tanh: {{-7.5, 9.0}, {-5, 5}},
    arcsinh: {{-7.5, 9.0}, {-5, 5}},
    arccosh: {{1.1, 1000.0}, {1, 100}},
    arctanh: {{-0.9, 0.9}, {0, 0}},
    erf: {{-4.0, 4.0}, {-2, 2}},
    erfinv: {{-0.99, 0.99}, {0, 0}},
    sqrt: {{0.0, 1000.0}, {0, 100}},
    rsqrt: {{0.01, 1000.0}, {1, 100}},
    cbrt: {{-1000.0, 1000.0}, {-100, 100}},
    reciprocal: {{0.01, 1000.0}, {1, 100}},
    sigmoid: {{-9.0, 9.0}, {-5, 5}},
    degrees: {{-7.5, 9.0}, {-5, 5}},
    radians: {{-700.0, 900.0}, {-5, 5}}
  }

  # Pairs: the domains of the first and the second.
  @pairs %{
    add: {:rounded, {-100, 100}, {-100, 100}},
    subtract: {:rounded, {-100, 100}, {-100, 100}},
    multiply: {:rounded, {-100, 100}, {-100, 100}},
    maximum: {:exact, :special, :special},
    minimum: {:exact, :special, :special},
    equal: {:exact, {:few, 3}, {:few, 3}},
    not_equal: {:exact, {:few, 3}, {:few, 3}},
    less: {:exact, {:few, 5}, {:few, 5}},
    less_equal: {:exact, :special, :special},
    greater: {:exact, {:few, 5}, {:few, 5}},
    greater_equal: {:exact, :special, :special},
    logical_and: {:exact, {:few, 2}, {:few, 2}},
    logical_or: {:exact, {:few, 2}, {:few, 2}},
    logical_xor: {:exact, {:few, 2}, {:few, 2}},
    bitwise_and: {:exact, :any, :any},
    bitwise_or: {:exact, :any, :any},
    bitwise_xor: {:exact, :any, :any},
    left_shift: {:exact, :any, {0, 9}},
    right_shift: {:exact, :any, {0, 9}}
  }

  # Where a quotient is not exact, rounding decides what is below it.
  @division [:floor_divide, :quotient, :remainder, :fmod, :divmod]

  def build(name, draw) when is_map_key(@same, name) do
    {tolerance, domain} = Map.fetch!(@same, name)
    unary(name, draw, domain, tolerance, &Ops.run(name, [&1]))
  end

  def build(name, draw) when is_map_key(@wide, name) do
    {floats, ints} = Map.fetch!(@wide, name)
    domain = domain(draw.dtype, floats, ints)
    unary(name, draw, domain, :rounded, &Ops.run(name, [R.wide(number(&1))]))
  end

  def build(:erfc, draw) do
    unary(:erfc, draw, domain(draw.dtype, {-3.0, 3.0}, {-2, 3}), :tail, &Ops.run(:erfc, [R.f64(&1)]))
  end

  def build(:round, draw) do
    op = {:round, %{decimals: Enum.random(if draw.dtype in [:f16, :bf16], do: [0], else: [0, 0, 1, -1])}}
    unary(op, draw, domain(draw.dtype, {:steps, -500, 500, 0.25}, {-100, 100}), :rounded, &Ops.run(op, [&1]))
  end

  def build(:nan_to_num, draw) do
    attributes = Enum.random([%{nan: 0.0, posinf: nil, neginf: nil}, %{nan: -1.5, posinf: 7.0, neginf: -8.0}])
    unary({:nan_to_num, attributes}, draw, :special, :exact, &Ops.run({:nan_to_num, attributes}, [&1]))
  end

  def build(:astype, draw) do
    # The GPU has no f64.
    types = [:bool, :u8, :u16, :u32, :u64, :s8, :s16, :s32, :s64, :f16, :bf16, :f32, :c64]
    types = if draw.device == :cpu, do: [:f64 | types], else: types
    op = {:astype, %{dtype: Enum.random(types)}}
    unary(op, draw, {0, 100}, :exact, &Ops.run(op, [&1]))
  end

  def build(:to_integer, draw) do
    op = {:to_integer, %{dtype: Enum.random([:u8, :u16, :u32, :u64, :s8, :s16, :s32, :s64])}}
    domain = Enum.random([:special, domain(draw.dtype, {:steps, -70_000, 70_000, 0.25}, :any)])
    unary(op, draw, domain, :exact, &Ops.run(op, [&1]))
  end

  def build(:to_fp8, draw), do: unary(:to_fp8, draw, {-300, 300}, :exact, &Ops.run(:to_fp8, [&1]))

  def build(:from_fp8, draw) do
    op = {:from_fp8, %{dtype: Enum.random([:f16, :bf16, :f32])}}
    unary(op, draw, :any, :exact, &Ops.run(op, [&1]))
  end

  def build(name, draw) when is_map_key(@pairs, name) do
    {tolerance, first, second} = Map.fetch!(@pairs, name)
    binary(name, draw, first, second, tolerance, &Ops.run(name, [&1, &2]))
  end

  def build(name, draw) when name in @division do
    first = domain(draw.dtype, {:steps, -50, 50, 0.25}, {-100, 100})
    binary(name, draw, first, :divisors, :exact, &Ops.run(name, [&1, &2]))
  end

  def build(:divide, draw) do
    wide = fn a, b -> Ops.divide(R.wide(number(a)), R.wide(number(b))) end
    binary(:divide, draw, {-100, 100}, domain(draw.dtype, {0.5, 9.0}, {1, 50}), :rounded, wide)
  end

  def build(:power, draw) do
    if draw.dtype in [:f16, :bf16, :f32, :f64] do
      binary(:power, draw, {0.1, 3.0}, {-3.0, 3.0}, :rounded, &Ops.power(R.f64(&1), R.f64(&2)))
    else
      binary(:power, draw, {-5, 5}, {0, 3}, :rounded, &Ops.power/2)
    end
  end

  def build(:arctan2, draw) do
    binary(
      :arctan2,
      draw,
      {-9, 9},
      domain(draw.dtype, {0.1, 9.0}, {1, 9}),
      :rounded,
      &Ops.arctan2(R.f64(&1), R.f64(&2))
    )
  end

  def build(:logaddexp, draw) do
    binary(:logaddexp, draw, {-9, 9}, {-9, 9}, :summed, &Ops.logaddexp(R.wide(number(&1)), R.wide(number(&2))))
  end

  def build(:isclose, draw) do
    op = {:isclose, %{rtol: Enum.random([1.0e-5, 0.6]), atol: 1.0e-8, equal_nan: Draw.coin()}}
    binary(op, draw, {:few, 4}, {:few, 4}, :exact, &Ops.run(op, [&1, &2]))
  end

  def build(:where, draw) do
    {first, second} = shapes(draw.shape)
    condition = Draw.other(draw, Enum.random([first, second, draw.shape]), {:few, 2}, Enum.random([:bool, :bool, :s32]))
    inputs = [condition, Draw.input(draw, :special, first), Draw.other(draw, second, :special)]
    same(:where, inputs, :exact, &Ops.run(:where, &1))
  end

  def build(:clip, draw) do
    bound = fn domain ->
      shape = Enum.random([[], draw.shape, Enum.take(draw.shape, -1)])
      Enum.random([Draw.other(draw, shape, domain), Draw.other(draw, shape, domain), nil])
    end

    inputs = [Draw.input(draw, {-9, 9}), bound.({-5, 1}), bound.({2, 5})]

    Case.values(:clip, inputs, :exact, fn [_ | bounds] = arrays ->
      {given, places} = arrays |> Enum.with_index() |> Enum.reject(&is_nil(elem(&1, 0))) |> Enum.unzip()

      R.pieces(given, fn [a | rest] ->
        found = Map.new(Enum.zip(tl(places), rest))
        Ops.run(:clip, [a | for({_, i} <- Enum.with_index(bounds, 1), do: found[i])])
      end)
    end)
  end

  def build(_name, _draw), do: nil

  defp unary(op, draw, domain, tolerance, fun),
    do: same(op, [Draw.input(draw, domain)], tolerance, fn [a] -> fun.(a) end)

  defp binary(op, draw, first, second, tolerance, fun) do
    {left, right} = shapes(draw.shape)
    b = if second == :divisors, do: divisors(draw, right), else: Draw.other(draw, right, second)
    same(op, [Draw.input(draw, first, left), b], tolerance, fn [a, b] -> fun.(a, b) end)
  end

  # Powers of two, by which quotients of multiples of a quarter are exact.
  defp divisors(draw, shape) do
    two = Array.scalar(2.0, :f64)
    %{values: exponents} = Input.new(shape, :f64, {:steps, -1.0, 3.99, 1.0}, :contiguous)
    %{values: signs} = Input.new(shape, :f64, {:few, 2}, :contiguous)
    signed = Ops.where(Ops.less(signs, 0.0), Array.scalar(-1.0, :f64), Array.scalar(1.0, :f64))

    numbers =
      case draw.dtype do
        :bool -> Ops.greater(exponents, -9.0)
        dtype when dtype in [:f16, :bf16, :f32, :f64] -> Ops.multiply(signed, Ops.power(two, exponents))
        :c64 -> Ops.power(two, exponents)
        dtype -> Ops.maximum(Ops.power(two, exponents), 1.0) |> Ops.multiply(if(signed?(dtype), do: signed, else: 1.0))
      end

    Input.of(Ops.astype(numbers, draw.dtype), Enum.random(Input.layouts() -- [:broadcast]))
  end

  defp signed?(dtype), do: dtype in [:s8, :s16, :s32, :s64]

  # Two shapes that are broadcast to one: often the same, else one lacks axes or has single ones.
  defp shapes(shape) do
    narrow = for size <- shape, do: Enum.random([size, size, 1])
    short = Enum.drop(shape, Enum.random(0..length(shape)))
    other = Enum.random([shape, shape, shape, narrow, short, []])
    if Draw.coin() or R.broadcast([shape, other]) != shape, do: {shape, other}, else: swap(shape, other)
  end

  # Axes that one of them has, the other may lack.
  defp swap(shape, other) do
    first =
      for {size, i} <- Enum.with_index(shape),
          do: if(size > 1 and at(other, i, shape) == size and Draw.coin() and size < 50, do: 1, else: size)

    {first, other}
  end

  defp at(other, i, shape) do
    place = i - (length(shape) - length(other))
    if place < 0, do: 1, else: Enum.at(other, place)
  end

  defp same(op, inputs, tolerance, fun) do
    Case.values(op, inputs, tolerance, fn arrays ->
      outputs = if match?(:divmod, op), do: 2, else: 1

      results =
        for i <- 0..(outputs - 1), do: R.pieces(arrays, fn parts -> parts |> fun.() |> List.wrap() |> Enum.at(i) end)

      results
    end)
  end

  defp domain(dtype, floats, ints) do
    cond do
      dtype in [:f16, :bf16, :f32, :f64] -> floats
      # Away from where a branch is cut.
      dtype == :c64 -> {0.2, 0.9}
      true -> ints
    end
  end

  # Integers are computed with as floats.
  defp number(array), do: if(Array.dtype(array) in [:c64, :f16, :bf16, :f32, :f64], do: array, else: R.f64(array))
end
