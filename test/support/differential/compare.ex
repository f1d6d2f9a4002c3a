defmodule EMLX.Differential.Compare do
  @moduledoc """
  Compares whole arrays with their references, as many elements as there are. A reference is an array on the CPU,
  wider than the result where that is rounded, or `{real, imaginary}` for complex numbers.
  """

  alias EMLX.{Array, Golden, Ops, Tolerance}

  @floats [:f16, :bf16, :f32, :f64]

  @doc """
  The first element of `have` that is not near `want`, as text with its place, both values and how many there are; nil
  where there is none. `tolerance` is of `EMLX.Tolerance`.
  """
  @spec difference(Array.t(), Array.t() | {Array.t(), Array.t()}, Tolerance.t()) :: binary | nil
  def difference(have, want, tolerance) do
    {found, expected} = {Array.shape(have), shape(want)}

    if found == expected do
      near = near(have, want, tolerance)
      if near == :same, do: nil, else: first(near, have, want)
    else
      "shape #{inspect(found)}, expected #{inspect(expected)}"
    end
  end

  defp shape({re, _im}), do: Array.shape(re)
  defp shape(array), do: Array.shape(array)

  # A boolean for each element, or :same.
  defp near(have, want, tolerance) do
    dtype = Array.dtype(have)
    cast = cast(want, dtype)

    cond do
      cast != nil and Array.to_binary(cast) == Array.to_binary(have) -> :same
      dtype in @floats -> near_floats(have, want, cast, Tolerance.of(tolerance, dtype))
      dtype == :c64 -> near_complex(have, want, Tolerance.of(tolerance, dtype))
      true -> Ops.equal(have, cast)
    end
  end

  defp cast({_, _}, _dtype), do: nil
  defp cast(want, dtype), do: Ops.contiguous(Ops.astype(want, dtype))

  defp near_floats(have, _want, cast, :bits), do: either([equal_bits(have, cast), both_nan(have, cast)])

  defp near_floats(have, want, cast, tolerance) do
    have = Ops.astype(have, :f64)

    # A number that the type rounds to an infinity may be one.
    either(
      for want <- [Ops.astype(want, :f64), Ops.astype(cast, :f64)],
          test <- [&Ops.equal/2, &both_nan/2, &within(&1, &2, tolerance)],
          do: test.(have, want)
    )
  end

  defp equal_bits(a, b) do
    bits = %{f16: :u16, bf16: :u16, f32: :u32, f64: :u64}[Array.dtype(a)]
    Ops.equal(as_bits(a, bits), as_bits(b, bits))
  end

  defp as_bits(array, bits),
    do: Array.from_binary(Array.to_binary(array), Tuple.to_list(Array.shape(array)), bits)

  defp both_nan(a, b), do: Ops.logical_and(Ops.isnan(a), Ops.isnan(b))

  defp within(have, want, {absolute, relative}) do
    allowed = Ops.add(Ops.multiply(Ops.abs(want), relative * 1.0), absolute * 1.0)
    # An infinity is near itself alone.
    finite = Ops.logical_and(Ops.isfinite(have), Ops.isfinite(want))
    Ops.logical_and(finite, Ops.less_equal(Ops.abs(Ops.subtract(have, want)), allowed))
  end

  defp within(have, want, exact) when exact in [:exact, :bits], do: Ops.equal(have, want)

  defp near_complex(have, want, tolerance) do
    {a, b} = parts(have)
    {c, d} = parts(want)
    same = fn x, y -> either([Ops.equal(x, y), both_nan(x, y)]) end
    equal = Ops.logical_and(same.(a, c), same.(b, d))

    case tolerance do
      {absolute, relative} ->
        length = fn x, y -> Ops.sqrt(Ops.add(Ops.square(x), Ops.square(y))) end
        allowed = Ops.add(Ops.multiply(length.(c, d), relative * 1.0), absolute * 1.0)
        distance = length.(Ops.subtract(a, c), Ops.subtract(b, d))
        finite = Ops.logical_and(Ops.isfinite(distance), Ops.isfinite(allowed))
        either([equal, Ops.logical_and(finite, Ops.less_equal(distance, allowed))])

      _ ->
        equal
    end
  end

  @doc "The real and the imaginary part in f64."
  def parts({re, im}), do: {re, im}

  def parts(array) do
    if Array.dtype(array) == :c64 do
      shape = Tuple.to_list(Array.shape(array))
      pairs = Array.from_binary(Array.to_binary(array), [Enum.product(shape), 2], :f32)
      [re, im] = for i <- [0, 1], do: Ops.slice(pairs, [0, i], [Enum.product(shape), i + 1], [1, 1])
      {wide(re, shape), wide(im, shape)}
    else
      re = Ops.astype(array, :f64)
      {re, Ops.multiply(re, 0.0)}
    end
  end

  defp wide(array, shape), do: Ops.reshape(Ops.astype(array, :f64), shape)

  defp either(arrays), do: Enum.reduce(arrays, &Ops.logical_or/2)

  defp first(near, have, want) do
    bytes = Array.to_binary(near)

    case :binary.match(bytes, <<0>>) do
      :nomatch ->
        nil

      {flat, 1} ->
        count = length(:binary.matches(bytes, <<0>>))
        shape = Tuple.to_list(Array.shape(have))
        wanted = with {re, im} <- want, do: {element(re, flat), element(im, flat)}
        wanted = if is_tuple(wanted), do: wanted, else: element(want, flat)

        "element #{place(flat, shape)} is #{inspect(element(have, flat))}, expected #{inspect(wanted)} " <>
          "(#{count} of #{Enum.product(shape)})"
    end
  end

  @doc "One element of an array by its place in row-major order, as `EMLX.Golden.decode/2` has it."
  def element(array, flat), do: element(Array.to_binary(array), Array.dtype(array), flat)

  def element(binary, dtype, flat) do
    size = Array.dtype_size(dtype)
    binary |> binary_part(flat * size, size) |> Golden.decode(dtype) |> hd()
  end

  @doc "The indices of an element by its place in row-major order."
  def indices(flat, shape) do
    {place, _} = Enum.map_reduce(Enum.reverse(shape), flat, fn size, rest -> {rem(rest, size), div(rest, size)} end)
    Enum.reverse(place)
  end

  defp place(flat, shape), do: "[" <> Enum.join(indices(flat, shape), ",") <> "]"
end
