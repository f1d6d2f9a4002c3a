defmodule EMLX.Tolerance do
  @moduledoc """
  How far a result may be from its reference: the one place where that is said, for all tests of the core tier.

  A class names what happens to the numbers, a row what that costs in each type. `x` is near `y` when
  `|x - y| <= absolute + relative * |y|`; complex numbers by their distance in the plane. Numbers that are not finite
  are near themselves only, and NaN is near NaN.

    * `:bits` - the same bytes, so that -0.0 is not 0.0
    * `:exact` - equal numbers, in types that are exact or after operations that are
    * `:rounded` - an elementary function, or a handful of roundings
    * `:summed` - sums along an axis, of numbers around 1
    * `:accumulated` - sums and means of any length, relative to those of the magnitudes, and what is made of sums,
      relative to itself: 16-bit types are rounded once
    * `:running` - running sums along an axis as long as a million numbers, which are added one after the other
    * `:multiplied` - products along an axis, of numbers around 1
    * `:product` - matrix products and convolutions of numbers around 1; 16-bit types are summed in their own width on
      some devices
    * `:quantized` - products with quantized weights, where MLX's CPU form sums 16-bit types in their own width
    * `:tail` - relative accuracy alone, for functions that are asked for where they are small
    * `:decomposed` - factors of a matrix, and what they multiply to
    * `:fused` - the fused kernels, by the formula in float64 of inputs rounded to the type
  """

  @type class ::
          :bits
          | :exact
          | :rounded
          | :summed
          | :accumulated
          | :running
          | :multiplied
          | :product
          | :quantized
          | :tail
          | :decomposed
          | :fused
  @type t :: class | {absolute :: float, relative :: float}

  #               f16                 bf16                f32                 f64
  @table %{
    rounded: [{1.0e-4, 2.0e-3}, {1.0e-3, 1.6e-2}, {1.0e-6, 5.0e-6}, {1.0e-14, 1.0e-12}],
    summed: [{2.0e-3, 4.0e-3}, {2.0e-2, 3.2e-2}, {1.0e-5, 1.0e-5}, {1.0e-13, 1.0e-12}],
    accumulated: [{1.0e-6, 1.1e-3}, {1.0e-6, 8.0e-3}, {2.0e-6, 1.0e-6}, {1.0e-13, 1.0e-12}],
    running: [{2.0e-3, 4.0e-3}, {2.0e-2, 3.2e-2}, {1.0e-5, 1.0e-5}, {1.0e-13, 2.0e-10}],
    multiplied: [{1.0e-4, 1.0e-2}, {1.0e-3, 6.0e-2}, {1.0e-6, 2.0e-5}, {1.0e-14, 1.0e-12}],
    product: [{1.0e-2, 8.0e-3}, {8.0e-2, 3.2e-2}, {2.0e-5, 1.0e-5}, {1.0e-13, 1.0e-12}],
    quantized: [{3.0e-2, 8.0e-3}, {2.0e-1, 3.2e-2}, {5.0e-5, 1.0e-5}, {1.0e-13, 1.0e-12}],
    tail: [{1.0e-7, 4.0e-3}, {1.0e-38, 1.6e-2}, {1.0e-38, 3.0e-5}, {1.0e-300, 1.0e-6}],
    decomposed: [{2.0e-2, 2.0e-2}, {8.0e-2, 8.0e-2}, {1.0e-4, 1.0e-4}, {1.0e-11, 1.0e-11}],
    fused: [{3.0e-3, 4.0e-3}, {3.0e-2, 1.6e-2}, {2.0e-5, 2.0e-5}, {1.0e-12, 1.0e-12}]
  }

  @columns %{f16: 0, bf16: 1, f32: 2, c64: 2, f64: 3}

  @doc "The absolute and the relative tolerance of a class in a type, or `:bits` or `:exact`."
  @spec of(t, EMLX.Array.dtype()) :: {float, float} | :bits | :exact
  def of({_absolute, _relative} = given, _dtype), do: given
  def of(class, _dtype) when class in [:bits, :exact], do: class

  def of(class, dtype) do
    row = Map.fetch!(@table, class)

    case @columns do
      %{^dtype => column} -> Enum.at(row, column)
      # Integers and booleans are never rounded.
      _ -> :exact
    end
  end

  @doc """
  A class whose absolute part is so many times as large: where a result is what is left of terms whose sum is that
  large.
  """
  @spec scaled(class, EMLX.Array.dtype(), number) :: t
  def scaled(class, dtype, factor) do
    with {absolute, relative} <- of(class, dtype), do: {absolute * factor, relative}
  end

  @doc """
  A class for what is rounded in f32 with each of so many terms or factors: those that repeat are all rounded in one
  direction.
  """
  @spec repeated(class, EMLX.Array.dtype(), non_neg_integer) :: t
  def repeated(class, dtype, n) do
    with {absolute, relative} when dtype in [:f32, :c64] <- of(class, dtype), do: {absolute, max(relative, n * 6.0e-8)}
  end

  @doc "Whether two elements, as `EMLX.Golden.decode/2` gives them, are near."
  @spec near?(term, term, {float, float} | :exact) :: boolean
  def near?(same, same, _tolerance), do: true
  def near?(x, y, _tolerance) when is_atom(x) or is_atom(y), do: false
  def near?({a, b}, {c, d}, _tolerance) when is_atom(a) or is_atom(b) or is_atom(c) or is_atom(d), do: false
  def near?({a, b}, {c, d}, :exact), do: a == c and b == d

  def near?({a, b}, {c, d}, {absolute, relative}) do
    :math.sqrt((a - c) ** 2 + (b - d) ** 2) <= absolute + relative * :math.sqrt(c * c + d * d)
  end

  def near?(x, y, :exact), do: x == y
  def near?(x, y, {absolute, relative}), do: abs(x - y) <= absolute + relative * abs(y)
end
