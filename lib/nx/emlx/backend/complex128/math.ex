defmodule EMLX.Backend.Complex128.Math do
  @moduledoc false
  # Functions of complex numbers in f64 for EMLX.Backend.Complex128. A number z = x + iy is a pair {x, y} of arrays.
  #
  # The functions return principal values. Their formulas stay accurate where textbook formulas do not: near the branch
  # points, near zero and for the largest numbers. Those of the inverse functions are Kahan's ("Branch Cuts for Complex
  # Elementary Functions", 1987).

  import Kernel, except: [abs: 1]

  alias EMLX.{Array, Ops}

  # ---- arithmetic ----

  def multiply({a, b}, {c, d}), do: {minus(times(a, c), times(b, d)), plus(times(b, c), times(a, d))}

  @doc "Divides two numbers. The divisor is scaled to about 1 before it is squared, so that the square cannot overflow."
  def divide({a, b}, {c, d}) do
    size = Ops.maximum(Ops.abs(c), Ops.abs(d))
    infinite = Ops.isinf(size)
    c = pick(infinite, 0.0, over(c, size))
    d = pick(infinite, 0.0, over(d, size))
    square = plus(times(c, c), times(d, d))

    # A finite number divided by an infinity is 0.
    part = fn numerator, dividend -> pick(infinite, times(dividend, 0.0), over(over(numerator, square), size)) end
    {part.(plus(times(a, c), times(b, d)), a), part.(minus(times(b, c), times(a, d)), b)}
  end

  def negate({x, y}), do: {Ops.negative(x), Ops.negative(y)}

  @doc "Returns z / |z|, and 0 for 0."
  def sign({x, y} = z) do
    size = abs(z)
    zero = Ops.equal(size, 0.0)
    {pick(zero, 0.0, over(x, size)), pick(zero, 0.0, over(y, size))}
  end

  @doc "Returns |z|, without an intermediate overflow."
  def abs(z) do
    {large, ratio} = ratio(z)
    pick(infinite?(z), :infinity, times(large, Ops.sqrt(plus(times(ratio, ratio), 1.0))))
  end

  @doc "Returns the angle, from -pi to pi."
  def phase({x, y}), do: Ops.arctan2(y, x)

  # The magnitude of the larger part, and the ratio of the smaller part to it.
  defp ratio({x, y}) do
    {x, y} = {Ops.abs(x), Ops.abs(y)}
    large = Ops.maximum(x, y)
    degenerate = either(Ops.equal(large, 0.0), Ops.isinf(large))
    {large, pick(degenerate, 0.0, over(Ops.minimum(x, y), large))}
  end

  # ---- powers and logarithms ----

  def exp({x, y}) do
    # exp(-infinity) is 0 in every direction.
    nothing = Ops.equal(x, :neg_infinity)
    {real, imaginary} = polar(Ops.exp(x), y)
    {pick(nothing, 0.0, real), pick(nothing, 0.0, imaginary)}
  end

  @doc "Returns exp(z) - 1, with expm1(x)·cos(y) - 2·sin(y / 2)² as the real part."
  def expm1({x, y} = z) do
    {_, imaginary} = exp(z)
    half = Ops.sin(times(y, 0.5))
    real = minus(times(Ops.expm1(x), Ops.cos(y)), times(times(half, half), 2.0))
    {pick(Ops.equal(x, :neg_infinity), -1.0, real), imaginary}
  end

  def log({x, y} = z) do
    {small, large} = {Ops.minimum(Ops.abs(x), Ops.abs(y)), Ops.maximum(Ops.abs(x), Ops.abs(y))}
    {log_abs(z, plus(times(minus(large, 1.0), plus(large, 1.0)), times(small, small))), phase(z)}
  end

  def log1p({x, y}) do
    z = {plus(x, 1.0), y}
    {log_abs(z, plus(times(x, plus(x, 2.0)), times(y, y))), phase(z)}
  end

  # log |z|. `excess` is |z|² - 1: for a small one, log1p of it is the accurate form.
  defp log_abs(z, excess) do
    {large, ratio} = ratio(z)
    far = plus(Ops.log(large), times(Ops.log1p(times(ratio, ratio)), 0.5))
    far = pick(infinite?(z), :infinity, far)
    near = Ops.logical_and(Ops.greater(excess, -0.5), Ops.less(excess, 1.0))
    pick(near, times(Ops.log1p(pick(near, excess, 0.0)), 0.5), far)
  end

  def sqrt({x, y} = z) do
    {large, ratio} = ratio(z)
    root = Ops.sqrt(plus(times(ratio, ratio), 1.0))
    first = pick(Ops.greater_equal(Ops.abs(x), Ops.abs(y)), 1.0, ratio)
    # w is one part of the root, and v the other one, computed from w.
    w = times(Ops.sqrt(large), Ops.sqrt(times(plus(first, root), 0.5)))
    v = pick(Ops.equal(w, 0.0), 0.0, over(times(y, 0.5), w))
    right = Ops.greater_equal(x, 0.0)
    down = Ops.less(y, 0.0)
    real = pick(right, w, Ops.abs(v))
    imaginary = pick(right, v, pick(down, Ops.negative(w), w))

    # For an infinite real part, the other part of the root is 0, whatever y is.
    real = pick(Ops.isinf(x), pick(right, :infinity, 0.0), real)
    imaginary = pick(Ops.isinf(x), pick(right, 0.0, :infinity), imaginary)
    upright = Ops.isinf(y)
    nan = either(Ops.isnan(x), Ops.isnan(y))
    {pick(nan, :nan, pick(upright, :infinity, real)), pick(nan, :nan, pick(upright, y, imaginary))}
  end

  def rsqrt(z), do: divide(one(), sqrt(z))

  @doc "Returns the cube root. On the positive real axis the imaginary part is 0, for infinity, too."
  def cbrt(z) do
    angle = over(phase(z), 3.0)
    {real, imaginary} = polar(Ops.cbrt(abs(z)), angle)
    {real, pick(Ops.equal(angle, 0.0), angle, imaginary)}
  end

  @doc "Returns z to the power w. 0 to any power except 0 is 0, and the result for non-finite numbers is NaN."
  def pow(z, {c, d} = w) do
    size = abs(z)
    zero = Ops.equal(size, 0.0)
    angle = phase(z)
    log = Ops.log(pick(zero, 1.0, size))
    length = times(Ops.power(pick(zero, 1.0, size), c), Ops.exp(Ops.negative(times(d, angle))))
    power = polar(length, plus(times(c, angle), times(d, log)))

    real = Ops.equal(d, 0.0)
    is = fn exponent -> Ops.logical_and(real, Ops.equal(c, exponent)) end
    power = choose(is.(1.0), z, power)
    power = choose(is.(-1.0), divide(one(), z), power)
    power = choose(zero, {pick(is.(0.0), 1.0, 0.0), 0.0}, power)
    choose(Ops.logical_and(finite?(z), finite?(w)), power, {:nan, :nan})
  end

  @doc "Returns 1 / (1 + exp(-z)), computed with exponentials that do not overflow."
  def sigmoid({x, y}) do
    right = Ops.greater_equal(x, 0.0)
    {a, b} = exp({Ops.negative(Ops.abs(x)), pick(right, Ops.negative(y), y)})
    divide({pick(right, 1.0, a), pick(right, 0.0, b)}, {plus(a, 1.0), b})
  end

  # ---- circular and hyperbolic functions ----

  def sin({x, y}), do: {times(Ops.sin(x), Ops.cosh(y)), times(Ops.cos(x), Ops.sinh(y))}

  def cos({x, y}), do: {times(Ops.cos(x), Ops.cosh(y)), Ops.negative(times(Ops.sin(x), Ops.sinh(y)))}

  def sinh({x, y}), do: {times(Ops.sinh(x), Ops.cos(y)), times(Ops.cosh(x), Ops.sin(y))}

  def cosh({x, y}), do: {times(Ops.cosh(x), Ops.cos(y)), times(Ops.sinh(x), Ops.sin(y))}

  def tanh({x, y}) do
    # Beyond 20 the real part is ±1 to the last digit, and the square for the imaginary part would overflow.
    far = Ops.greater(Ops.abs(x), 20.0)
    near = pick(far, 0.0, x)
    tangent = Ops.tan(y)
    secant = plus(times(tangent, tangent), 1.0)
    sinh = Ops.sinh(near)
    divisor = plus(times(secant, times(sinh, sinh)), 1.0)
    real = over(times(times(secant, Ops.cosh(near)), sinh), divisor)
    small = times(Ops.exp(times(Ops.abs(x), -2.0)), times(times(Ops.sin(y), Ops.cos(y)), 4.0))
    {pick(far, Ops.sign(x), real), pick(far, small, over(tangent, divisor))}
  end

  @doc "Returns tan(z) as -i·tanh(iz)."
  def tan({x, y}), do: {y, x} |> tanh() |> swap()

  def asin({x, y} = z) do
    a = sqrt({minus(1.0, x), Ops.negative(y)})
    b = sqrt({plus(x, 1.0), y})
    {Ops.arctan2(x, real_of_product(a, b)), Ops.arcsinh(imaginary_of_conjugate(a, b))} |> infinite_as_nan(z)
  end

  def acos({x, y} = z) do
    a = sqrt({minus(1.0, x), Ops.negative(y)})
    b = sqrt({plus(x, 1.0), y})
    angle = times(Ops.arctan2(elem(a, 0), elem(b, 0)), 2.0)
    {angle, Ops.arcsinh(imaginary_of_conjugate(b, a))} |> infinite_as_nan(z)
  end

  def acosh({x, y} = z) do
    a = sqrt({minus(x, 1.0), y})
    b = sqrt({plus(x, 1.0), y})
    angle = times(Ops.arctan2(elem(a, 1), elem(b, 0)), 2.0)
    {Ops.arcsinh(real_of_product(negate_imaginary(a), b)), angle} |> infinite_as_nan(z)
  end

  @doc "Returns asinh(z) as i·asin(-iz)."
  def asinh({x, y}), do: {y, x} |> asin() |> swap()

  def atanh({x, y}) do
    size = Ops.abs(x)
    away = minus(1.0, size)
    square = times(y, y)
    real = times(Ops.log1p(over(times(size, 4.0), plus(times(away, away), square))), 0.25)
    real = pick(Ops.less(x, 0.0), Ops.negative(real), real)
    angle = Ops.arctan2(times(y, 2.0), minus(times(away, plus(size, 1.0)), square))
    {real, times(angle, 0.5)}
  end

  @doc "Returns atan(z) as i·atanh(-iz)."
  def atan({x, y}), do: {y, x} |> atanh() |> swap()

  # f(z) = i·g(-iz) for an odd g that keeps conjugates: -iz is the mirror image of {y, x}.
  defp swap({x, y}), do: {y, x}

  defp real_of_product({a, b}, {c, d}), do: minus(times(a, c), times(b, d))

  # The imaginary part of the second number times the conjugate of the first.
  defp imaginary_of_conjugate({a, b}, {c, d}), do: minus(times(a, d), times(b, c))

  defp negate_imaginary({x, y}), do: {x, Ops.negative(y)}

  defp infinite_as_nan(result, z), do: choose(finite?(z), result, {:nan, :nan})

  # ---- helpers ----

  defp polar(size, angle), do: {times(size, Ops.cos(angle)), times(size, Ops.sin(angle))}

  defp one, do: {double(1.0), double(0.0)}

  defp infinite?({x, y}), do: either(Ops.isinf(x), Ops.isinf(y))
  defp finite?({x, y}), do: Ops.logical_and(Ops.isfinite(x), Ops.isfinite(y))

  defp choose(condition, {a, b}, {c, d}), do: {pick(condition, a, c), pick(condition, b, d)}

  defp pick(condition, a, b), do: Ops.where(condition, double(a), double(b))

  defp double(%Array{} = array), do: array
  defp double(number), do: Array.scalar(number, :f64, device: :cpu)

  defp either(a, b), do: Ops.logical_or(a, b)
  defp plus(a, b), do: Ops.add(a, b)
  defp minus(a, b), do: Ops.subtract(a, b)
  defp times(a, b), do: Ops.multiply(a, b)
  defp over(a, b), do: Ops.divide(a, b)
end
