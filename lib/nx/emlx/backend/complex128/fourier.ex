defmodule EMLX.Backend.Complex128.Fourier do
  @moduledoc false
  # Discrete Fourier transforms in f64 for EMLX.Backend.Complex128: MLX's own are in c64. Arrays are {rows, n}, in pairs
  # of the real and the imaginary part.
  #
  # A length is split into factors, and each factor is one matrix product with the transform of that length (Cooley and
  # Tukey). A prime too long for that becomes a convolution whose length is a power of two (Bluestein). Time is O(n log
  # n), memory O(n).

  alias EMLX.{Array, Ops}
  alias EMLX.Backend.Complex128.Math

  # The largest factor of a composite length, and the largest prime that is one matrix product.
  @factor 32
  @prime 128

  @doc "Transforms rows of length `n`. `sign` is -1, or 1 for the inverse, which is not divided by n."
  def transform(z, 1, _sign), do: z

  def transform(z, n, sign) do
    cond do
      n <= @factor -> direct(z, n, sign)
      factor = factor(n) -> by_factor(z, factor, div(n, factor), sign)
      n <= @prime -> direct(z, n, sign)
      true -> convolution(z, n, sign)
    end
  end

  defp factor(n), do: Enum.find(@factor..2//-1, &(rem(n, &1) == 0))

  # One product for all rows: both parts, multiplied by the cosines and by the sines.
  defp direct({re, im}, n, sign) do
    rows = rows(re)
    index = iota([n, 1])
    {cos, sin} = roots(Ops.multiply(index, reshape(index, [1, n])), n, sign)
    products = Ops.matmul(concatenate([re, im], 0), concatenate([cos, sin], 1))
    part = fn row, column -> slice(products, [row, column], [row + rows, column + n]) end

    {Ops.subtract(part.(0, 0), part.(rows, n)), Ops.add(part.(0, n), part.(rows, 0))}
  end

  # x at j1·b + j2 is summed over j1 first; the result is at k1 + a·k2.
  defp by_factor({re, _} = z, a, b, sign) do
    rows = rows(re)
    n = a * b
    columns = both(z, &(&1 |> reshape([rows, a, b]) |> transpose([0, 2, 1]) |> reshape([rows * b, a])))
    inner = columns |> direct(a, sign) |> both(&(&1 |> reshape([rows, b, a]) |> transpose([0, 2, 1])))
    twiddles = roots(Ops.multiply(iota([a, 1]), iota([1, b])), n, sign)
    turned = inner |> Math.multiply(twiddles) |> both(&reshape(&1, [rows * a, b]))
    outer = transform(turned, b, sign)
    both(outer, &(&1 |> reshape([rows, a, b]) |> transpose([0, 2, 1]) |> reshape([rows, n])))
  end

  # jk = (j² + k² - (k - j)²) / 2
  defp convolution({re, _} = z, n, sign) do
    rows = rows(re)
    length = power_of_two(2 * n - 1, 1)
    index = iota([1, n])
    chirp = roots(Ops.multiply(index, index), 2 * n, sign)
    padded = z |> Math.multiply(chirp) |> both(&pad(&1, 0, length - n))

    # The conjugate of the chirp, placed at both ends.
    {cos, sin} = chirp
    sin = Ops.negative(sin)
    kernel = both({cos, sin}, &around(&1, n, length))

    product = Math.multiply(transform(padded, length, -1), transform(kernel, length, -1))
    {re, im} = transform(product, length, 1)
    scale = double(1.0 / length)
    convolved = both({re, im}, &(&1 |> slice([0, 0], [rows, n]) |> Ops.multiply(scale)))
    Math.multiply(convolved, chirp)
  end

  defp around(array, n, length) do
    tail = array |> slice([0, 1], [1, n]) |> Ops.flip([1])
    concatenate([pad(array, 0, length - 2 * n + 1), tail], 1)
  end

  defp power_of_two(n, power) when power >= n, do: power
  defp power_of_two(n, power), do: power_of_two(n, 2 * power)

  # exp(sign·2πi·k / n). The angle is reduced to an eighth of the circle while it is an integer, so that 1 and i are
  # exact.
  defp roots(k, n, sign) do
    quarters = Ops.multiply(Ops.remainder(k, integer(n)), integer(4))
    quadrant = Ops.quotient(quarters, integer(n))
    rest = Ops.subtract(quarters, Ops.multiply(quadrant, integer(n)))
    upper = Ops.greater(Ops.multiply(rest, integer(2)), integer(n))
    eighth = Ops.where(upper, Ops.subtract(integer(n), rest), rest)
    angle = Ops.multiply(Ops.astype(eighth, :f64), double(:math.pi() / 2 / n))
    {cos, sin} = {Ops.cos(angle), Ops.sin(angle)}
    {cos, sin} = {Ops.where(upper, sin, cos), Ops.where(upper, cos, sin)}

    # A quarter of the circle on, {cos, sin} becomes {-sin, cos}.
    odd = Ops.equal(Ops.remainder(quadrant, integer(2)), integer(1))
    {cos, sin} = {Ops.where(odd, Ops.negative(sin), cos), Ops.where(odd, cos, sin)}
    half = Ops.greater_equal(quadrant, integer(2))
    {cos, sin} = {Ops.where(half, Ops.negative(cos), cos), Ops.where(half, Ops.negative(sin), sin)}
    {cos, if(sign == 1, do: sin, else: Ops.negative(sin))}
  end

  defp integer(n), do: Array.scalar(n, :s64, device: :cpu)
  defp double(number), do: Array.scalar(number, :f64, device: :cpu)

  # 0, 1, 2, … along the one axis that is not of size 1.
  defp iota(dims), do: Ops.run({:iota, %{shape: dims, axis: nil, dtype: :s64}}, [], device: :cpu)

  defp rows(array), do: elem(Array.shape(array), 0)

  defp both({re, im}, fun), do: {fun.(re), fun.(im)}

  defp reshape(array, dims), do: Ops.run({:reshape, %{shape: dims}}, [array])
  defp transpose(array, axes), do: Ops.run({:transpose, %{axes: axes}}, [array])
  defp concatenate(arrays, axis), do: Ops.run({:concatenate, %{axis: axis}}, arrays)
  defp slice(array, start, stop), do: Ops.run({:slice, %{start: start, stop: stop, strides: [1, 1]}}, [array])

  defp pad(array, low, high) do
    Ops.run({:pad_interior, %{low: [0, low], high: [0, high], interior: [0, 0]}}, [array, double(0.0)])
  end
end
