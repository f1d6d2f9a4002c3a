defmodule EMLX.Backend.Number do
  @moduledoc false
  # The bits that Nx writes for a number of Elixir in a type. EMLX.Backend.Type creates constants from them,
  # EMLX.Backend.Mixed checks which numbers a type represents.
  #
  # bf16 and f8 are truncated, other floats are rounded to the nearest. f8_e4m3fn has its own rounding and no infinity.
  # Integers wrap around, and numbers too large for a float become infinite.

  alias EMLX.Backend.Type

  @type t :: number | Complex.t() | Complex.non_finite_number()

  defguardp is_number_or_atom(number) when is_number(number) or is_atom(number)

  @doc """
  Returns the bits of a number in a type.

  Raises `ArgumentError` for a number that the type cannot represent, such as 1.5 in an integer type.
  """
  @spec bits(t, Type.nx_type()) :: bitstring
  def bits(number, {:s, size}) when is_integer(number), do: <<number::signed-native-size(size)>>
  def bits(number, {:u, size}) when is_integer(number), do: <<number::unsigned-native-size(size)>>
  def bits(%Complex{re: re, im: im}, {:c, size}), do: bits(re, {:f, div(size, 2)}) <> bits(im, {:f, div(size, 2)})

  def bits(number, {:c, size}) when is_number_or_atom(number),
    do: bits(number, {:f, div(size, 2)}) <> bits(0.0, {:f, div(size, 2)})

  def bits(:nan, {kind, _} = type) when kind not in [:s, :u], do: Nx.Type.nan_binary(type)
  def bits(:infinity, {kind, _} = type) when kind not in [:s, :u], do: Nx.Type.infinity_binary(type)
  def bits(:neg_infinity, {kind, _} = type) when kind not in [:s, :u], do: Nx.Type.neg_infinity_binary(type)

  def bits(number, {kind, _} = type) when is_number(number) and kind not in [:s, :u] do
    float(number, type)
  rescue
    _ in [ArgumentError, ArithmeticError] -> refuse(number, type, "no float is as large")
  end

  def bits(number, {kind, _} = type) when kind in [:s, :u],
    do: refuse(number, type, "an integer type takes integers only")

  def bits(number, type), do: refuse(number, type, "a real type takes real numbers only")

  defp float(number, {:bf, 16}), do: Nx.Floating.dump_bf16(number)
  defp float(number, {:f, 8}), do: Nx.Floating.dump_f8(number)
  defp float(number, {:f8_e4m3fn, 8}), do: Nx.Floating.dump_f8_e4m3fn(number)
  defp float(number, {:f, size}), do: <<number::float-native-size(size)>>

  defp refuse(number, type, reason) do
    raise ArgumentError, "cannot make a constant of type #{Nx.Type.to_string(type)} of #{inspect(number)}: #{reason}"
  end

  @doc "Returns the value of a number in an integer type or a float type of at least 16 bits; other numbers unchanged."
  @spec value(t, Type.nx_type()) :: t
  def value(number, {:s, size}) do
    <<value::signed-size(size)>> = <<number::size(size)>>
    value
  end

  def value(number, {:u, size}) do
    <<value::unsigned-size(size)>> = <<number::size(size)>>
    value
  end

  def value(number, {:bf, 16}) when is_number(number), do: number |> Nx.Floating.dump_bf16() |> Nx.Floating.load_bf16()

  def value(number, {:f, size}) when is_number(number) and size > 8 do
    case <<number::float-size(size)>> do
      <<value::float-size(size)>> -> value
      <<0::1, _::bitstring>> -> :infinity
      <<1::1, _::bitstring>> -> :neg_infinity
    end
  end

  def value(number, _type), do: number

  @doc "Returns whether a float type of 16 bits and more represents an integer exactly."
  @spec exact?(integer, Type.nx_type()) :: boolean
  def exact?(integer, {kind, size} = type) when kind in [:f, :bf] and size > 8, do: value(integer, type) == integer

  @doc "Returns the smallest and the largest normal number of a 16-bit float type."
  @spec normal_range(Type.nx_type()) :: {float, float}
  def normal_range({:f, 16}), do: {6.103515625e-5, 65504.0}
  def normal_range({:bf, 16}), do: {1.1754943508222875e-38, 3.3895313892515355e38}
end
