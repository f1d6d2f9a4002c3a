defmodule EMLX.Array do
  @moduledoc """
  An array of MLX, the value that `EMLX.Ops` and `EMLX.Kernels` compute with.

  Arrays are lazy: operations only record a computation, and `to_binary/2`, `to_list/1` and `EMLX.eval/2` evaluate it.
  An array is immutable. Any process of the same node can use it.

      iex> a = EMLX.Array.from_binary(<<1.0::float-32-native, 2.0::float-32-native>>, {2}, :f32)
      iex> EMLX.Array.to_list(EMLX.Ops.add(a, a))
      [2.0, 4.0]

  ## Types

  `:bool` (one byte for each element), `:u8`, `:u16`, `:u32`, `:u64`, `:s8`, `:s16`, `:s32`, `:s64`, `:f16`, `:bf16`,
  `:f32`, `:f64` (on the CPU only), `:c64` (two f32, the real and the imaginary part).
  """

  alias EMLX.{Native, Queue}

  @enforce_keys [:ref]
  # `weight` is a binary of the array's size whose bytes take no memory. It makes the garbage collector see that size.
  defstruct [:ref, :weight]

  @typedoc "An array. Its fields are internal."
  @type t :: %__MODULE__{ref: reference, weight: binary | nil}
  @type dtype ::
          :bool
          | :u8
          | :u16
          | :u32
          | :u64
          | :s8
          | :s16
          | :s32
          | :s64
          | :f16
          | :bf16
          | :f32
          | :f64
          | :c64
  @type shape :: tuple | [non_neg_integer]
  @type non_finite :: :nan | :infinity | :neg_infinity
  @typedoc "A number of some type, see `from_list/3`."
  @type element :: number | boolean | non_finite | {number | non_finite, number | non_finite}

  # Copying more bytes than this would block a scheduler for too long.
  @large_binary 1_048_576

  # For fewer bytes, the copy takes hardly longer than a telemetry event.
  @told_binary 65_536

  @doc """
  Returns an array of a binary, which has the elements in row-major order and native byte order. The bytes are copied.

  `shape` is a tuple or a list. Options: `:device` (`:cpu` or `:gpu`), `:queue`.

  Raises `EMLX.Error` of kind `:binary_size` if the size of the binary is not that of `shape` and `dtype`.
  """
  @spec from_binary(binary, shape, dtype, keyword) :: t
  def from_binary(binary, shape, dtype, opts \\ []) do
    shape = EMLX.Ops.shape_to_list(shape)
    target = Queue.target(opts)
    EMLX.Debug.created(Queue.device(opts))

    cond do
      not is_binary(binary) or byte_size(binary) < @told_binary ->
        Native.call!(Native.from_binary(binary, shape, dtype, target))

      byte_size(binary) <= @large_binary ->
        transfer(byte_size(binary), opts, fn -> Native.call!(Native.from_binary(binary, shape, dtype, target)) end)

      true ->
        transfer(byte_size(binary), opts, fn -> Native.call!(Native.from_large_binary(binary, shape, dtype, target)) end)
    end
  end

  @doc false
  # An array of shape {} of its bytes, without checks of settings.
  def of_bits(bits, dtype, opts) do
    case Native.scalar(bits, dtype, Queue.target(opts)) do
      ref when is_reference(ref) -> %__MODULE__{ref: ref}
      error -> Native.call!(error)
    end
  end

  @doc false
  # The same of an integer in an integer type, in which it wraps around.
  def of_integer(number, dtype, opts), do: number |> number_to_binary(dtype) |> of_bits(dtype, opts)

  defp transfer(bytes, opts, fun) do
    metadata = %{from: :host, to: Queue.device(opts) || :cpu, queue: Queue.of(opts)}
    EMLX.Telemetry.span(:transfer, %{bytes: bytes}, metadata, fn -> {fun.(), %{}, %{}} end)
  end

  @doc """
  Returns an array of shape `{}` of a number: an integer, a float, `:nan`, `:infinity`, `:neg_infinity`, or
  `{real, imaginary}` of two of them. Options: `:device`, `:queue`.

      iex> EMLX.Array.to_list(EMLX.Array.scalar(3, :s64))
      3
  """
  @spec scalar(element, dtype, keyword) :: t
  def scalar(number, dtype, opts \\ []) do
    EMLX.Debug.created(Queue.device(opts))
    constant(number, dtype, opts)
  end

  defp constant({re, im}, dtype, opts) when is_number(re) and is_number(im),
    do: EMLX.Ops.run({:constant, %{value: {re * 1.0, im * 1.0}, dtype: dtype}}, [], opts)

  defp constant({_, _} = number, :c64, opts), do: from_list(number, :c64, opts)
  defp constant(number, dtype, opts), do: EMLX.Ops.run({:constant, %{value: number, dtype: dtype}}, [], opts)

  @doc """
  Returns an array of nested lists of numbers.

  Integer types accept integers. Float types also accept floats, `:nan`, `:infinity` and `:neg_infinity`. `:c64` also
  accepts `{real, imaginary}`, and `:bool` accepts `true`, `false` and numbers. Integers out of a type's range wrap
  around, floats out of range become infinite. Options: `:device`, `:queue`.

  Raises `ArgumentError` if the lists inside of a list differ in shape, and for a term that is no number of the type.

      iex> EMLX.Array.shape(EMLX.Array.from_list([[1, 2, 3], [4, 5, 6]], :s32))
      {2, 3}
  """
  @spec from_list(list | element, dtype, keyword) :: t
  def from_list(list, dtype, opts \\ []) do
    # Raises for an unknown type, before the numbers are converted.
    _bytes = dtype_size(dtype)
    shape = list_shape(list)
    flat = if is_list(list), do: List.flatten(list), else: [list]
    binary = for number <- flat, into: <<>>, do: number!(number, dtype)
    from_binary(binary, shape, dtype, opts)
  end

  defp list_shape([head | rest] = list) do
    shape = list_shape(head)

    for other <- rest, list_shape(other) != shape do
      raise ArgumentError, "from_list: the lists inside one list differ in shape, got: #{inspect(list, limit: 20)}"
    end

    [length(list) | shape]
  end

  defp list_shape([]), do: [0]
  defp list_shape(_number), do: []

  # The bytes of a number of a type.
  defp number!(number, dtype) do
    if takes?(dtype, number), do: number_to_binary(number, dtype), else: raise(ArgumentError)
  rescue
    # Raised here, or by the conversion of an integer that is too large for a float.
    ArgumentError ->
      message = "from_list: #{inspect(number, limit: 10)} is no number of type #{inspect(dtype)}"
      reraise ArgumentError, [message: message], __STACKTRACE__
  end

  @non_finite [:nan, :infinity, :neg_infinity]

  defp takes?(:bool, number), do: is_boolean(number) or is_number(number)
  defp takes?(:c64, {re, im}), do: takes?(:f32, re) and takes?(:f32, im)

  defp takes?(dtype, number) when dtype in [:f16, :bf16, :f32, :f64, :c64],
    do: is_number(number) or number in @non_finite

  defp takes?(_integer, number), do: is_integer(number)

  @doc """
  Evaluates an array and returns its elements as a binary, in row-major order and native byte order. For an array that
  is contiguous in row-major order, the binary refers to the array's memory, without a copy. Options: `:device`,
  `:queue`.
  """
  @spec to_binary(t, keyword) :: binary
  def to_binary(array, opts \\ []) do
    ref = ref!(array, "to_binary")
    target = Queue.target(opts)
    Native.await!(:to_binary, [ref], opts, &Native.read(ref, target, &1))
  end

  @doc false
  # The binary of an array that is computed already, on the CPU; nil for any other.
  def computed(%__MODULE__{ref: ref}), do: Native.call!(Native.computed(ref))
  def computed(_array), do: nil

  @doc """
  Evaluates an array and returns `{address, bytes}` of its elements in row-major order, for other libraries in the same
  operating-system process. The memory belongs to the array. It must not be written to, and it is valid as long as a
  process refers to the array. Options: `:device`, `:queue`.
  """
  @spec to_pointer(t, keyword) :: {pos_integer, non_neg_integer}
  def to_pointer(array, opts \\ []) do
    ref = ref!(array, "to_pointer")
    target = Queue.target(opts)
    Native.await!(:to_pointer, [ref], opts, &Native.pin(ref, target, &1))
  end

  @doc """
  Returns an array with a copy of the bytes at an address in the same operating-system process. Options: `:device`,
  `:queue`.

  The caller is responsible for the address: if the bytes at it are not readable, the VM crashes.
  """
  @spec from_pointer(pos_integer, shape, dtype, keyword) :: t
  def from_pointer(address, shape, dtype, opts \\ []) do
    shape = EMLX.Ops.shape_to_list(shape)
    target = Queue.target(opts)
    bytes = Enum.product(shape) * dtype_size(dtype)
    transfer(bytes, opts, fn -> Native.call!(Native.from_address(address, shape, dtype, target)) end)
  end

  @doc """
  Evaluates an array and returns its elements as nested lists, or as a number for shape `{}`. Non-finite numbers are
  `:nan`, `:infinity` and `:neg_infinity`, complex numbers `{real, imaginary}`, and booleans `true` and `false`.
  """
  @spec to_list(t) :: list | term
  def to_list(array) do
    {shape, dtype, _device} = info(array)
    elements = binary_to_numbers(to_binary(array), dtype)

    case nest(elements, Enum.reverse(shape)) do
      [scalar] when shape == [] -> scalar
      nested -> nested
    end
  end

  defp nest(elements, []), do: elements
  defp nest(elements, [_last]), do: elements

  defp nest(elements, [size | rest]) do
    groups = if size == 0, do: empty_groups(rest), else: Enum.chunk_every(elements, size)
    nest(groups, rest)
  end

  defp empty_groups(sizes), do: List.duplicate([], Enum.product(sizes))

  @doc "Returns the sizes of the axes as a tuple."
  @spec shape(t) :: tuple
  def shape(array), do: array |> info() |> elem(0) |> List.to_tuple()

  @doc "Returns the type of the elements."
  @spec dtype(t) :: dtype
  def dtype(array), do: array |> info() |> elem(1)

  @doc "Returns the device that the array was created on, `:cpu` or `:gpu`."
  @spec device(t) :: :cpu | :gpu
  def device(array), do: array |> info() |> elem(2)

  @doc "Returns the number of axes."
  @spec rank(t) :: non_neg_integer
  def rank(array), do: array |> info() |> elem(0) |> length()

  @doc "Returns the number of elements."
  @spec size(t) :: non_neg_integer
  def size(array), do: array |> info() |> elem(0) |> Enum.product()

  @doc "Returns the size of all elements in bytes."
  @spec bytes(t) :: non_neg_integer
  def bytes(array), do: size(array) * dtype_size(dtype(array))

  @doc """
  Evaluates an array and returns its strides, the distances in elements along each axis. Its memory layout is not known
  before the evaluation. On the CPU, computed arrays of less than 4 KiB are contiguous in row-major order.

      iex> array = EMLX.Ops.iota({32, 64}, dtype: :s32)
      iex> {EMLX.Array.strides(array), EMLX.Array.strides(EMLX.Ops.transpose(array, [1, 0]))}
      {[64, 1], [1, 64]}
  """
  @spec strides(t) :: [integer]
  def strides(array) do
    EMLX.eval(array)
    Native.call!(Native.strides(ref!(array, "strides")))
  end

  @doc """
  Frees an array's memory without waiting for the garbage collector. Returns `:ok`, or `:already_deallocated` if that
  was done before.

  Every later use of the array's elements raises `EMLX.Error` of kind `:deallocated`. Results that were or will be
  computed from the array are not affected. Memory that other arrays, binaries or pointers (`to_pointer/2`) use is freed
  with the last of them. On macOS, memory is freed with the last reference to the array, as without this function.

      iex> array = EMLX.Array.from_list([1, 2], :s32)
      iex> double = EMLX.Ops.add(array, array)
      iex> {EMLX.Array.deallocate(array), EMLX.Array.deallocate(array), EMLX.Array.to_list(double)}
      {:ok, :already_deallocated, [2, 4]}
  """
  @spec deallocate(t) :: :ok | :already_deallocated
  def deallocate(array), do: Native.call!(Native.deallocate(ref!(array, "deallocate")))

  @doc "Returns an equal array on a device. Raises `EMLX.Error` of kind `:no_device` if the device is absent."
  @spec to_device(t, :cpu | :gpu) :: t
  def to_device(array, device) do
    case device(array) do
      ^device ->
        array

      from ->
        metadata = %{from: from, to: device, queue: Queue.of(device: device)}
        copy = fn -> {EMLX.Ops.run(:copy, [array], device: device), %{}, %{}} end
        EMLX.Telemetry.span(:transfer, %{bytes: bytes(array)}, metadata, copy)
    end
  end

  @doc false
  # Returns the reference that native functions take for an array. `call` names the caller in errors.
  def ref!(%__MODULE__{ref: ref}, _call), do: ref

  def ref!(other, call) do
    hint = if is_struct(other, Nx.Tensor), do: "; EMLX.Backend.to_array/1 gives a tensor's", else: ""
    raise ArgumentError, "#{call}: expected an EMLX.Array#{hint}, got: #{inspect(other, limit: 5)}"
  end

  @doc false
  # Whether an array stands for a value of a function that is being traced.
  def traced?(%__MODULE__{ref: ref}), do: Native.call!(Native.is_traced(ref))

  defp info(array), do: Native.call!(Native.info(ref!(array, "info")))

  @doc "Returns the size of one element of a type in bytes."
  @spec dtype_size(dtype) :: 1 | 2 | 4 | 8
  def dtype_size(dtype) when dtype in [:bool, :u8, :s8], do: 1
  def dtype_size(dtype) when dtype in [:u16, :s16, :f16, :bf16], do: 2
  def dtype_size(dtype) when dtype in [:u32, :s32, :f32], do: 4
  def dtype_size(dtype) when dtype in [:u64, :s64, :f64, :c64], do: 8

  def dtype_size(other),
    do: raise(ArgumentError, "a type is an atom such as :f32 (see EMLX.Array), got: #{inspect(other)}")

  # ---- numbers and their bytes ----

  @doc false
  def numbers(binary, dtype), do: binary_to_numbers(binary, dtype)

  for {dtype, bits} <- [u8: 8, u16: 16, u32: 32, u64: 64] do
    defp binary_to_numbers(binary, unquote(dtype)),
      do: for(<<n::unsigned-native-size(unquote(bits)) <- binary>>, do: n)

    defp number_to_binary(n, unquote(dtype)), do: <<n::unsigned-native-size(unquote(bits))>>
  end

  for {dtype, bits} <- [s8: 8, s16: 16, s32: 32, s64: 64] do
    defp binary_to_numbers(binary, unquote(dtype)),
      do: for(<<n::signed-native-size(unquote(bits)) <- binary>>, do: n)

    defp number_to_binary(n, unquote(dtype)), do: <<n::signed-native-size(unquote(bits))>>
  end

  for {dtype, bits, exponent} <-
        [f16: {16, 5}, f32: {32, 8}, f64: {64, 11}] |> Enum.map(fn {d, {b, e}} -> {d, b, e} end) do
    defp binary_to_numbers(binary, unquote(dtype)),
      do: for(<<bits::bitstring-size(unquote(bits)) <- binary>>, do: float(bits, unquote(bits), unquote(exponent)))

    defp number_to_binary(n, unquote(dtype)) when is_number(n),
      do: <<n::float-native-size(unquote(bits))>>

    defp number_to_binary(n, unquote(dtype)), do: non_finite(n, unquote(bits), unquote(exponent))
  end

  defp binary_to_numbers(binary, :bool), do: for(<<n <- binary>>, do: n != 0)

  defp binary_to_numbers(binary, :bf16),
    do: for(<<n::16-native <- binary>>, do: float(<<n::16, 0::16>> |> native(), 32, 8))

  defp binary_to_numbers(binary, :c64),
    do: for(<<re::bitstring-32, im::bitstring-32 <- binary>>, do: {float(re, 32, 8), float(im, 32, 8)})

  defp number_to_binary(true, :bool), do: <<1>>
  defp number_to_binary(false, :bool), do: <<0>>
  defp number_to_binary(n, :bool), do: <<if(n == 0, do: 0, else: 1)>>

  defp number_to_binary(n, :bf16) do
    <<bits::32-native>> = number_to_binary(n, :f32)

    # Round to the nearest, ties to even, as the hardware does; a NaN stays one.
    rounded = if n == :nan, do: bits, else: bits + 0x7FFF + Bitwise.band(Bitwise.bsr(bits, 16), 1)
    <<Bitwise.bsr(rounded, 16)::16-native>>
  end

  defp number_to_binary({re, im}, :c64),
    do: number_to_binary(re, :f32) <> number_to_binary(im, :f32)

  defp number_to_binary(n, :c64), do: number_to_binary({n, 0.0}, :c64)

  # Elixir matches finite floats only; the bits identify all others.
  defp float(bits, size, exponent) do
    case bits do
      <<n::float-native-size(size)>> -> n
      _ -> bits |> native() |> name_non_finite(exponent)
    end
  end

  defp name_non_finite(big_endian, exponent) do
    <<sign::1, _::size(exponent), fraction::bitstring>> = big_endian
    size = bit_size(fraction)

    case {fraction, sign} do
      {<<0::size(size)>>, 0} -> :infinity
      {<<0::size(size)>>, 1} -> :neg_infinity
      _ -> :nan
    end
  end

  defp non_finite(name, size, exponent) do
    fraction = size - exponent - 1
    ones = Bitwise.bsl(1, exponent) - 1

    native(
      case name do
        :infinity -> <<0::1, ones::size(exponent), 0::size(fraction)>>
        :neg_infinity -> <<1::1, ones::size(exponent), 0::size(fraction)>>
        :nan -> <<0::1, ones::size(exponent), 1::1, 0::size(fraction - 1)>>
      end
    )
  end

  # Converts between big-endian and native byte order.
  defp native(bits) do
    size = bit_size(bits)
    <<n::unsigned-big-size(size)>> = bits
    <<n::unsigned-native-size(size)>>
  end

  defimpl Inspect do
    import Inspect.Algebra

    def inspect(array, _opts) do
      {shape, dtype, device} = EMLX.Native.call!(EMLX.Native.info(array.ref))
      concat(["#EMLX.Array<", "#{dtype}", Enum.map_join(shape, &"[#{&1}]"), " on :#{device}>"])
    end
  end
end
