defmodule EMLX.Backend.Type do
  @moduledoc false
  # The storage of Nx's types in MLX's dtypes, and conversions between them. All of EMLX.Backend uses it.
  #
  # Most types of Nx are dtypes of MLX. Types that MLX lacks are stored in a wider dtype, and every result that could
  # exceed their range or precision is narrowed (`narrow/2`):
  #
  #   * s2 and s4 are stored as s8, u2 and u4 as u8
  #   * f8 (E5M2) and f8_e4m3fn are stored as f16, of which both are a subset
  #   * c128 is stored as f64 with one more axis, the last one, for the two parts (EMLX.Backend.Pair): MLX's complex
  #   numbers
  #     are pairs of f32. No single dtype describes it, so dtype/1 refuses c128; held/2 returns shape and dtype for any
  #     type

  import Bitwise, only: [<<<: 2]

  alias EMLX.{Array, Ops}
  alias EMLX.Backend.{Number, Pair}

  @type nx_type :: Nx.Type.t()

  @doc "Returns the dtype that stores a type of Nx."
  @spec dtype(nx_type) :: Array.dtype()
  for {kind, sizes} <- [s: [8, 16, 32, 64], u: [8, 16, 32, 64], f: [16, 32, 64], bf: [16], c: [64]],
      size <- sizes do
    def dtype({unquote(kind), unquote(size)}), do: unquote(:"#{kind}#{size}")
  end

  def dtype({:s, size}) when size in [2, 4], do: :s8
  def dtype({:u, size}) when size in [2, 4], do: :u8
  def dtype({:f, 8}), do: :f16
  def dtype({:f8_e4m3fn, 8}), do: :f16

  def dtype({:c, 128}) do
    raise EMLX.Error,
      kind: :invalid_argument,
      op: "type",
      reason: "c128 is no type of MLX; cast to c64, or take the two parts with Nx.real/1 and Nx.imag/1"
  end

  def dtype(type) do
    raise EMLX.Error, kind: :invalid_argument, op: "type", reason: "#{inspect(type)} is not supported"
  end

  @doc "Returns the dimensions and the dtype of the array that stores a tensor's elements."
  @spec held([non_neg_integer], nx_type) :: {[non_neg_integer], Array.dtype()}
  def held(dims, {:c, 128}), do: {dims ++ [2], :f64}
  def held(dims, type), do: {dims, dtype(type)}

  @doc "Returns whether a type is stored in a wider dtype, so that results have to be narrowed."
  defguard is_narrow(type) when elem(type, 1) < 8 or type == {:f, 8} or elem(type, 0) == :f8_e4m3fn

  defguard is_integer_type(type) when elem(type, 0) in [:s, :u]
  defguard is_float_type(type) when elem(type, 0) in [:f, :bf, :f8_e4m3fn]
  defguard is_complex_type(type) when elem(type, 0) == :c

  # ---- promotion ----

  integers = for kind <- [:s, :u], size <- [8, 16, 32, 64], do: {kind, size}
  floats = [f: 16, bf: 16, f: 32, f: 64]
  atom = fn {kind, size} -> :"#{kind}#{size}" end

  promote = fn
    same, same -> same
    {:c, 64}, _ -> {:c, 64}
    _, {:c, 64} -> {:c, 64}
    {:f, 64}, _ -> {:f, 64}
    _, {:f, 64} -> {:f, 64}
    {:f, 16}, {:bf, 16} -> {:f, 32}
    {:bf, 16}, {:f, 16} -> {:f, 32}
    {:f, 32}, _ -> {:f, 32}
    _, {:f, 32} -> {:f, 32}
    {kind, 16}, _ when kind in [:f, :bf] -> {kind, 16}
    _, {kind, 16} when kind in [:f, :bf] -> {kind, 16}
    {:u, 64}, {:s, _} -> {:f, 32}
    {:s, _}, {:u, 64} -> {:f, 32}
    {:u, u}, {:s, s} -> {:s, max(2 * u, s)}
    {:s, s}, {:u, u} -> {:s, max(2 * u, s)}
    {kind, a}, {kind, b} -> {kind, max(a, b)}
  end

  @doc "Returns the dtype that MLX promotes two dtypes to."
  @spec promote(Array.dtype(), Array.dtype()) :: Array.dtype()
  for a <- integers ++ floats ++ [c: 64], b <- integers ++ floats ++ [c: 64] do
    def promote(unquote(atom.(a)), unquote(atom.(b))), do: unquote(atom.(promote.(a, b)))
  end

  # ---- numbers ----

  @doc """
  Returns an array of shape {} with the bits that Nx writes for a number. `opts` has `:device` or `:queue`, as in the
  core.

  Raises `ArgumentError` for a number that the type cannot represent.
  """
  @spec scalar(Number.t(), nx_type, keyword) :: Array.t()
  def scalar(number, type, opts \\ []), do: number |> Number.bits(type) |> load({}, type, opts)

  @integer_dtypes [:u8, :u16, :u32, :u64, :s8, :s16, :s32, :s64]

  # Integers that constants of operations' own are made of once.
  @kept 0..64

  @doc """
  Returns an array of shape {} with a number that the dtype represents. Only for operations: small integers are kept,
  so that the array must not be the result of a callback.
  """
  @spec constant(number | Complex.non_finite_number(), Array.dtype(), keyword) :: Array.t()
  def constant(number, dtype, []) when is_integer(number) and number in @kept do
    if Process.get(EMLX.Queue) == nil, do: kept({__MODULE__, number, dtype}), else: made(number, dtype, [])
  end

  def constant(number, dtype, opts), do: made(number, dtype, opts)

  defp kept({_, number, dtype} = key) do
    with nil <- :persistent_term.get(key, nil) do
      array = made(number, dtype, [])
      :persistent_term.put(key, array)
      array
    end
  end

  defp made(number, dtype, opts) when is_integer(number) and dtype in @integer_dtypes,
    do: Array.of_integer(number, dtype, opts)

  defp made(number, dtype, opts), do: Ops.run({:constant, %{value: number, dtype: dtype}}, [], opts)

  @doc "Converts integers from 0 on to another type, with the bits that Nx writes for them (EMLX.Backend.Number)."
  @spec of_integers(Array.t(), nx_type) :: Array.t()
  def of_integers(array, {:bf, 16}) do
    bits = Ops.run({:view, %{dtype: :u32}}, [astype(array, :f32)])
    upper = Ops.run(:bitwise_and, [bits, constant(0xFFFF0000, :u32, [])])
    astype(Ops.run({:view, %{dtype: :f32}}, [upper]), :bf16)
  end

  def of_integers(array, {:f, 8}) do
    bits = Ops.run({:view, %{dtype: :u16}}, [astype(array, :f16)])
    upper = Ops.run(:bitwise_and, [bits, constant(0xFF00, :u16, [])])
    Ops.run({:view, %{dtype: :f16}}, [upper])
  end

  # Integers above the largest number become that number.
  def of_integers(array, {:f8_e4m3fn, 8} = type) do
    largest = 448
    bits = for integer <- 0..largest, into: <<>>, do: Number.bits(integer, type)
    index = Ops.run(:minimum, [array, constant(largest, Array.dtype(array), [])])
    Ops.run({:take, %{axis: 0}}, [load(bits, {largest + 1}, type, device: Array.device(array)), index])
  end

  def of_integers(array, type), do: narrow(astype(array, dtype(type)), type)

  # ---- narrowing ----

  @doc "Narrows values that were computed in a wider dtype to a type of Nx that MLX lacks."
  @spec narrow(Array.t(), nx_type) :: Array.t()
  def narrow(array, {:u, size}) when size < 8,
    do: Ops.run(:bitwise_and, [array, constant((1 <<< size) - 1, :u8, [])])

  def narrow(array, {:s, size}) when size < 8 do
    by = constant(8 - size, :s8, [])
    Ops.run(:right_shift, [Ops.run(:left_shift, [array, by]), by])
  end

  def narrow(array, {:f, 8} = type), do: array |> encode(type) |> decode(type)
  def narrow(array, {:f8_e4m3fn, 8} = type), do: array |> encode(type) |> decode(type)
  def narrow(array, _type), do: array

  @doc "Returns the bits of 8-bit floats, as u8, from their values as f16."
  @spec encode(Array.t(), nx_type) :: Array.t()
  def encode(array, {:f, 8}) do
    # E5M2 is the upper half of an f16. Rounding to the nearest, ties to even, carries into the exponent correctly. A
    # NaN whose fraction is in the lower half would become an infinity, so NaN is selected separately.
    bits = Ops.run({:view, %{dtype: :u16}}, [array])
    one = constant(1, :u16, [])
    eight = constant(8, :u16, [])
    odd = Ops.run(:bitwise_and, [Ops.run(:right_shift, [bits, eight]), one])
    bias = Ops.run(:add, [odd, constant(0x7F, :u16, [])])
    rounded = Ops.run(:right_shift, [Ops.run(:add, [bits, bias]), eight])
    nan = constant(0x7E, :u16, [])
    Ops.run({:astype, %{dtype: :u8}}, [Ops.run(:where, [Ops.run(:isnan, [array]), nan, rounded])])
  end

  def encode(array, {:f8_e4m3fn, 8}) do
    Ops.run(:to_fp8, [array])
  end

  @doc "Returns the values of 8-bit floats, as f16, from their bits as u8."
  @spec decode(Array.t(), nx_type) :: Array.t()
  def decode(bits, {:f, 8}) do
    wide = Ops.run({:astype, %{dtype: :u16}}, [bits])
    Ops.run({:view, %{dtype: :f16}}, [Ops.run(:left_shift, [wide, constant(8, :u16, [])])])
  end

  def decode(bits, {:f8_e4m3fn, 8}) do
    Ops.run({:from_fp8, %{dtype: :f16}}, [bits])
  end

  # ---- conversion ----

  @doc """
  Converts an array from one type of Nx to another, as `Nx.as_type/2` defines it. For integers, floats lose their
  fraction and wrap around, NaN becomes 0, and an infinity the largest or smallest integer.
  """
  @spec convert(Array.t(), nx_type, nx_type) :: Array.t()
  def convert(array, type, type), do: array
  def convert(pairs, {:c, 128}, {:c, 64}), do: Pair.to_c64(pairs)
  def convert(pairs, {:c, 128}, to), do: pairs |> Pair.real() |> convert({:f, 64}, to)
  def convert(array, {:c, 64}, {:c, 128}), do: Pair.of_c64(array)
  def convert(array, from, {:c, 128}), do: array |> convert(from, {:f, 64}) |> Pair.of_real()

  def convert(array, from, to) when is_complex_type(from) and not is_complex_type(to),
    do: convert(Ops.run(:real, [array]), {:f, 32}, to)

  def convert(array, from, to) when is_float_type(from) and is_integer_type(to),
    do: array |> to_integer(to) |> narrow(to)

  # From f64 to 16 bits, MLX converts directly if the hardware can, and rounds twice if not.
  def convert(array, _from, to), do: narrow(Ops.run({:astype, %{dtype: dtype(to)}}, [array]), to)

  # An infinity becomes the largest or smallest s8, of which only the lowest bits would remain.
  defp to_integer(array, {:s, size}) when size < 8 do
    wide = Ops.run({:to_integer, %{dtype: :s8}}, [array])
    {low, high} = range(:s, size)
    clipped = Ops.run(:clip, [wide, constant(low, :s8, []), constant(high, :s8, [])])
    Ops.run(:where, [Ops.run(:isfinite, [array]), wide, clipped])
  end

  defp to_integer(array, type), do: Ops.run({:to_integer, %{dtype: dtype(type)}}, [array])

  @doc "Returns the smallest and largest number of an integer type."
  @spec range(:s | :u, pos_integer) :: {integer, integer}
  def range(:s, size), do: {-(1 <<< (size - 1)), (1 <<< (size - 1)) - 1}
  def range(:u, size), do: {0, (1 <<< size) - 1}

  defp astype(array, dtype), do: Ops.run({:astype, %{dtype: dtype}}, [array])

  # ---- bytes ----

  @doc "Returns an array from the bits that Nx has for a type."
  @spec load(bitstring, tuple, nx_type, keyword) :: Array.t()
  def load(bits, shape, {kind, size} = type, opts) when size < 8 do
    bytes =
      case kind do
        :u -> for <<n::unsigned-size(size) <- bits>>, into: <<>>, do: <<n>>
        :s -> for <<n::signed-size(size) <- bits>>, into: <<>>, do: <<n::signed-8>>
      end

    Array.from_binary(bytes, shape, dtype(type), opts)
  end

  def load(bits, shape, type, opts) when is_narrow(type),
    do: bits |> Array.from_binary(shape, :u8, opts) |> decode(type)

  def load(binary, shape, type, opts) do
    {dims, dtype} = held(Tuple.to_list(shape), type)
    Array.from_binary(binary, dims, dtype, opts)
  end

  @doc "Returns the bits that Nx has for an array of a type."
  @spec dump(Array.t(), nx_type) :: bitstring
  def dump(array, {_kind, size}) when size < 8,
    do: for(<<n::8 <- Array.to_binary(array)>>, into: <<>>, do: <<n::size(size)>>)

  def dump(array, type) when is_narrow(type), do: array |> encode(type) |> Array.to_binary()
  def dump(array, _type), do: Array.to_binary(array)
end
