defmodule EMLX.Backend do
  @moduledoc """
  An `Nx.Backend` that stores tensors as `EMLX.Array`s and runs Nx's operations with MLX.

      Nx.default_backend(EMLX.Backend)
      Nx.default_backend({EMLX.Backend, device: :gpu})

  Execution is lazy: a call records an operation, and reading a value evaluates it (`Nx.to_binary/1`, `Nx.to_number/1`,
  inspection, a transfer to another backend).

  ## Options

    * `:device` - `:cpu` or `:gpu`, the device that tensors are created and computed on. The default is
      `EMLX.default_device/0`: that of `config :emlx, default_device: :cpu`, else the GPU if one is available

  `config :emlx, add_backend_on_inspect: false` leaves the backend's name out of inspected tensors.

  ## Types

  All types of Nx are supported. f64 and c128 work on the CPU only. An element of s2, s4, u2 or u4 takes one byte, an
  element of f8 or f8_e4m3fn two bytes.

  MLX has no c128, so it is computed with f64 operations. An operation takes several times as long as in c64. Blocks
  with c128 tensors run composed from Nx's operations, linear algebra included, and never with a kernel (`EMLX.Block`).

  ## Semantics

  Results are those that Nx documents and that `Nx.BinaryBackend` returns, up to rounding. Where Nx leaves the result
  open:

    * Indices out of range are clamped where elements are read (`Nx.gather/3`, `Nx.take/3`), and updates out of range
      are dropped (`Nx.indexed_add/4`, `Nx.indexed_put/4`)
    * Integer division by zero returns 0, and so does the remainder
    * Shifts by the width of the type or more return 0, or -1 for negative numbers shifted right
    * A constant has the bits that Nx writes for it: bf16 and f8 constants are truncated, while results of operations
      are rounded to the nearest. A constant that an integer type cannot represent, such as 1.5, raises `ArgumentError`
    * Arithmetic is computed in the type that both operands merge to. If that is a float of 8 or 16 bits that cannot
      represent an operand, such as 70,000 with f16, it is computed in f32, or in f64 for integers of 32 bits and more
      on the CPU. The result is then rounded once
    * Comparisons of real numbers of any two types are exact
    * A complex 0 is false, and the inverse functions of complex numbers return their principal values
    * `Nx.clip/3` returns NaN for NaN, and `Nx.sign/1` returns 0
    * If indices repeat, `Nx.indexed_put/4` keeps the last update on the CPU, and any one of them on the GPU
    * `Nx.reduce/4` and `Nx.window_reduce/5` call their function with whole slices. Up to 512 elements along the reduced
      axes are reduced in order, more are reduced in pairs. The result is the same for associative functions, which Nx
      requires. A function that uses axes is called element by element
    * `Nx.LinAlg.triangular_solve/3` evaluates its matrix during the call, since a zero on the diagonal raises
      `ArgumentError`. `Nx.LinAlg.solve/2` and `Nx.LinAlg.invert/1` do not
    * Decompositions and solvers of linear algebra run on the GPU where cuSOLVER can be loaded, else on the CPU

  No operation falls back to another backend.
  """

  @behaviour Nx.Backend

  # This module handles the callbacks whose tensors are c128.
  use EMLX.Backend.Complex128

  import Kernel, except: [inspect: 2]

  alias EMLX.{Array, Ops}
  alias EMLX.Backend.{Fold, Index, Mixed, Number, Product, Type, Window}
  alias Nx.Tensor, as: T

  require EMLX.Backend.Type
  import EMLX.Backend.Type, only: [is_narrow: 1, is_integer_type: 1, is_float_type: 1, is_complex_type: 1]

  # A constant also keeps its number: the bits of another type have to be made of the number, not of the rounded array.
  @enforce_keys [:array]
  defstruct [:array, :number]

  @typedoc false
  @type t :: %__MODULE__{array: Array.t(), number: nil | Number.t()}

  # ---- conversion between tensors and arrays ----

  @doc """
  Returns the array of a tensor. Implementations of `EMLX.Block`, and code that calls `EMLX.Ops` or `EMLX.Kernels` on
  tensors of Nx, use it.

  For a tensor on `EMLX.Backend`, returns the array it holds, without a copy. A tensor on another backend is read and
  copied. A number or a `Complex` becomes a scalar of the type that Nx infers.

    * The shape is the tensor's, with the vectorized axes first.
    * The dtype is the one that stores the tensor's type: `:s8` for `s2` and `s4`, `:u8` for `u2` and `u4`, `:f16` for
      the 8-bit floats. c128 is stored as `:f64` with one more axis, the last one, for the real and the imaginary part.
      All other types are stored as the dtype of the same name.
    * Names are dropped; `to_nx/2` takes them from its template.

  Templates and expressions of `defn` have no values; for them, the errors of their backends are raised.

      iex> tensor = Nx.tensor([[1, 2], [3, 4]], type: :u4, backend: EMLX.Backend)
      iex> array = EMLX.Backend.to_array(tensor)
      iex> {EMLX.Array.shape(array), EMLX.Array.dtype(array)}
      {{2, 2}, :u8}

      iex> EMLX.Backend.to_array(Nx.tensor([1.0, 2.0], backend: Nx.BinaryBackend)) |> EMLX.Array.to_list()
      [1.0, 2.0]

      iex> vectorized = Nx.iota({3, 2}, backend: EMLX.Backend) |> Nx.vectorize(:x)
      iex> EMLX.Array.shape(EMLX.Backend.to_array(vectorized))
      {3, 2}
  """
  @spec to_array(Nx.Tensor.t() | number | Complex.t()) :: Array.t()
  def to_array(%T{data: %__MODULE__{array: array}}), do: array

  def to_array(%T{data: %backend{}, type: type} = tensor),
    do: tensor |> backend.to_binary(Nx.flat_size(tensor)) |> Type.load(full_shape(tensor), type, [])

  def to_array(number), do: Type.scalar(number, Nx.Type.infer(number))

  @doc """
  Returns a tensor with the elements of an array and the type, shape, names and vectorized axes of a template. The
  inverse of `to_array/1`.

    * `array` - an `EMLX.Array` with as many elements as the template. It is cast to the template's type and reshaped to
      its shape. For c128, its last axis holds the real and the imaginary part, or it has one number for each element
    * `template` - a tensor whose values are ignored, such as the `output` that `EMLX.Block.call/4` receives

  Raises `EMLX.Error` if the numbers of elements differ.

      iex> template = Nx.template({2, 2}, :f32, names: [:rows, nil])
      iex> tensor = EMLX.Array.from_list([1, 2, 3, 4], :s32) |> EMLX.Backend.to_nx(template)
      iex> {Nx.type(tensor), Nx.names(tensor), Nx.to_list(tensor)}
      {{:f, 32}, [:rows, nil], [[1.0, 2.0], [3.0, 4.0]]}
  """
  @spec to_nx(Array.t(), Nx.Tensor.t()) :: Nx.Tensor.t()
  def to_nx(array, %T{type: {:c, 128}} = out) do
    dims = Tuple.to_list(full_shape(out))

    pairs =
      cond do
        array |> Array.shape() |> Tuple.product() == 2 * Enum.product(dims) ->
          Ops.run({:astype, %{dtype: :f64}}, [array])

        Array.dtype(array) == :c64 ->
          Type.convert(array, {:c, 64}, out.type)

        true ->
          Type.convert(Ops.run({:astype, %{dtype: :f64}}, [array]), {:f, 64}, out.type)
      end

    tensor(Ops.run({:reshape, %{shape: dims ++ [2]}}, [pairs]), out)
  end

  def to_nx(array, %T{type: type} = out) do
    array = Ops.run({:astype, %{dtype: Type.dtype(type)}}, [array])
    array = Ops.run({:reshape, %{shape: Tuple.to_list(full_shape(out))}}, [array])
    tensor(Type.narrow(array, type), out)
  end

  @doc """
  Returns a tensor with the shape and type of an array; `:bool` becomes u8. See `to_nx/2`.

      iex> EMLX.Array.from_list([true, false], :bool) |> EMLX.Backend.to_nx() |> Nx.to_list()
      [1, 0]
  """
  @spec to_nx(Array.t()) :: Nx.Tensor.t()
  def to_nx(array) do
    type = if Array.dtype(array) == :bool, do: {:u, 8}, else: Nx.Type.normalize!(Array.dtype(array))
    to_nx(array, Nx.template(Array.shape(array), type))
  end

  @doc "The C++ EMLX's name of `to_array/1`."
  @spec from_nx(Nx.Tensor.t()) :: Array.t()
  def from_nx(tensor), do: to_array(tensor)

  @doc false
  # The dtype that stores a type of Nx.
  defdelegate dtype(type), to: Type

  @doc false
  # A tensor like `out` from an array that already has its type and shape.
  def tensor(array, out), do: %{out | data: %__MODULE__{array: array}}

  @doc false
  # The number of a constant in the constant's type; nil for a tensor that is no constant.
  def number(%T{type: type, data: %__MODULE__{number: number}}) when number != nil, do: Number.value(number, type)
  def number(_tensor), do: nil

  @doc false
  # The array of a tensor, in the dtype that stores `type`. A constant is made anew in that type, as Nx does.
  def operand(%T{type: type} = tensor, type), do: to_array(tensor)

  def operand(%T{type: from} = tensor, type) do
    # f8 and f8_e4m3fn are stored in a dtype that represents all of their numbers.
    number = if is_float_type(type) and not is_narrow(from), do: number(tensor)
    dtype = Type.dtype(type)

    cond do
      number != nil -> filled(number, full_shape(tensor), type, device: Array.device(to_array(tensor)))
      Type.dtype(from) == dtype -> to_array(tensor)
      true -> Ops.run({:astype, %{dtype: dtype}}, [to_array(tensor)])
    end
  end

  @doc false
  # The array of a tensor converted to any type, as `Nx.as_type/2` does.
  def converted(%T{type: from} = tensor, to) do
    if is_float_type(to) and not is_complex_type(from) and number(tensor) != nil,
      do: operand(tensor, to),
      else: Type.convert(to_array(tensor), from, to)
  end

  # An array filled with one number.
  defp filled(number, {}, type, opts), do: Type.scalar(number, type, opts)

  defp filled(number, shape, type, opts) do
    {dims, dtype} = Type.held(Tuple.to_list(shape), type)
    Ops.run({:full, %{shape: dims, dtype: dtype}}, [Type.scalar(number, type, opts)])
  end

  # The shape of a tensor's array: vectorized axes come first.
  defp full_shape(%T{shape: shape, vectorized_axes: []}), do: shape

  defp full_shape(%T{shape: shape, vectorized_axes: axes}),
    do: List.to_tuple(Keyword.values(axes) ++ Tuple.to_list(shape))

  # The tensor of an element-wise result. The dtype that stores a narrow type has more values than the type.
  defp elementwise(array, %T{type: type} = out) when is_narrow(type),
    do: tensor(Type.narrow(array, type), out)

  defp elementwise(array, out), do: tensor(array, out)

  # The tensor of a result whose operation depends on axes.
  defp shaped(array, out) do
    Fold.refuse_slices()
    elementwise(array, out)
  end

  # The same for an operation that only moves elements, so that no value needs narrowing.
  defp moved(array, out) do
    Fold.refuse_slices()
    tensor(array, out)
  end

  # ---- options ----

  @impl true
  def init([]), do: available(EMLX.default_device())
  def init(opts), do: opts |> Keyword.validate!([:device]) |> device() |> available()

  defp available(device) do
    if not EMLX.device_available?(device) do
      reason =
        "there is no device #{Kernel.inspect(device)} here: #{EMLX.Native.call!(EMLX.Native.device_absence(device))}"

      raise EMLX.Error, kind: :no_device, op: "EMLX.Backend", reason: reason
    end

    [device: device]
  end

  # The device of the options. The first clause is the one for options that init/1 has normalized.
  defp device([{:device, device}]) when device in [:cpu, :gpu], do: device

  defp device(opts) do
    case opts[:device] do
      nil ->
        EMLX.default_device()

      device when device in [:cpu, :gpu] ->
        device

      # The C++ EMLX's form.
      {device, _index} = indexed when device in [:cpu, :gpu] ->
        EMLX.Compatibility.device(indexed)

      other ->
        raise ArgumentError, "the device of EMLX.Backend is :cpu or :gpu, got: #{Kernel.inspect(other)}"
    end
  end

  @doc false
  # The options of Ops.run/3 that create a tensor of a type.
  def where(opts, type) do
    device = device(opts)

    if device == :gpu, do: refuse_double(type)

    [device: device]
  end

  # The same for tensors that are created without an input.
  defp created(opts, type) do
    [device: device] = where = where(opts, type)
    EMLX.Debug.created(device)
    where
  end

  defp refuse_double({kind, size}) when {kind, size} in [{:f, 64}, {:c, 128}] do
    [name, instead] = if kind == :f, do: ["f64", "f32"], else: ["c128", "c64"]

    raise EMLX.Error,
      kind: :invalid_argument,
      op: "EMLX.Backend",
      device: :gpu,
      reason: "#{name} is not supported on the GPU; use #{instead}, or device: :cpu"
  end

  defp refuse_double(_type), do: :ok

  # ---- creation ----

  @impl true
  def constant(%T{shape: {}, type: type} = out, number, [device: :cpu] = opts)
      when not is_narrow(type) and type != {:c, 128} do
    EMLX.Debug.created(:cpu)
    array = number |> Number.bits(type) |> Array.of_bits(Type.dtype(type), opts)
    %{out | data: %__MODULE__{array: array, number: number}}
  end

  def constant(%T{shape: shape, type: type} = out, number, opts),
    do: %{out | data: %__MODULE__{array: filled(number, shape, type, created(opts, type)), number: number}}

  @impl true
  def from_binary(%T{type: type} = out, binary, opts) do
    bits = if is_bitstring(binary), do: binary, else: :erlang.list_to_bitstring(binary)
    tensor(Type.load(bits, full_shape(out), type, where(opts, type)), out)
  end

  @impl true
  def eye(%T{shape: shape, type: type} = out, opts) do
    dims = Tuple.to_list(shape)
    [m, n] = Enum.take(dims, -2)
    eye = Ops.run({:eye, %{n: m, m: n, k: 0, dtype: Type.dtype(type)}}, [], created(opts, type))
    tensor(if(tuple_size(shape) == 2, do: eye, else: Ops.run({:broadcast_to, %{shape: dims}}, [eye])), out)
  end

  @impl true
  def iota(%T{shape: shape, type: type} = out, axis, opts) do
    iota = fn dtype ->
      Ops.run({:iota, %{shape: Tuple.to_list(shape), axis: axis, dtype: dtype}}, [], created(opts, type))
    end

    # 16-bit floats cannot represent every index, so the indices are computed in s64 first.
    if is_float_type(type) and elem(type, 1) < 32,
      do: tensor(Type.of_integers(iota.(:s64), type), out),
      else: tensor(Type.narrow(iota.(Type.dtype(type)), type), out)
  end

  # ---- conversion to terms, copies and transfers ----

  @impl true
  def to_binary(%T{shape: shape, type: type} = tensor, limit) do
    Fold.refuse_slices()
    array = to_array(tensor)

    EMLX.Telemetry.to_binary(shape, type, fn ->
      if limit < Nx.flat_size(tensor) do
        flat = Ops.run({:flatten, %{start_axis: 0, end_axis: -1}}, [array])
        Type.dump(Ops.run({:slice, %{start: [0], stop: [limit], strides: [1]}}, [flat]), type)
      else
        Type.dump(array, type)
      end
    end)
  end

  @impl true
  def inspect(tensor, inspect_opts) do
    if Array.traced?(to_array(tensor)),
      do: "a value of a function that is being compiled",
      else: inspect_elements(tensor, inspect_opts)
  end

  defp inspect_elements(tensor, inspect_opts) do
    size = Nx.flat_size(tensor)
    limit = if inspect_opts.limit == :infinity, do: size, else: min(size, inspect_opts.limit + 1)
    data = Nx.Backend.inspect(tensor, to_binary(tensor, limit), inspect_opts)
    if Application.get_env(:emlx, :add_backend_on_inspect, true), do: with_name(tensor, data), else: data
  end

  defp with_name(tensor, data) do
    import Inspect.Algebra, only: [concat: 1, line: 0]
    concat(["EMLX.Backend(#{Array.device(to_array(tensor))})", line(), data])
  end

  @impl true
  def backend_copy(tensor, backend, opts)

  def backend_copy(%T{} = tensor, Nx.Tensor, opts), do: backend_copy(tensor, Nx.BinaryBackend, opts)

  def backend_copy(%T{} = tensor, __MODULE__, opts) do
    tensor(Ops.run(:copy, [to_array(tensor)], where(opts, tensor.type)), tensor)
  end

  def backend_copy(%T{} = tensor, backend, opts),
    do: backend.from_binary(tensor, to_binary(tensor, Nx.flat_size(tensor)), opts)

  @impl true
  def backend_transfer(%T{} = tensor, __MODULE__, opts),
    do: tensor(Array.to_device(to_array(tensor), where(opts, tensor.type)[:device]), tensor)

  def backend_transfer(tensor, backend, opts), do: backend_copy(tensor, backend, opts)

  # Without this, the memory is freed when no process refers to it any more.
  @impl true
  def backend_deallocate(tensor), do: Array.deallocate(to_array(tensor))

  @impl true
  def to_batched(%T{shape: out_shape} = out, %T{shape: shape} = tensor, opts) do
    array = to_array(tensor)
    batch = elem(out_shape, 0)
    total = elem(shape, 0)
    [_ | dims] = Tuple.to_list(shape)
    zeros = Enum.map(dims, fn _ -> 0 end)
    ones = [1 | Enum.map(dims, fn _ -> 1 end)]

    part = fn first, last ->
      Ops.run({:slice, %{start: [first | zeros], stop: [last | dims], strides: ones}}, [array])
    end

    full = div(total, batch)
    missing = full * batch + batch - total
    batches = if missing < batch and opts[:leftover] == :repeat, do: full + 1, else: full

    Stream.map(0..(batches - 1)//1, fn
      ^full ->
        tensor(Ops.run({:concatenate, %{axis: 0}}, [part.(full * batch, total), part.(0, missing)]), out)

      i ->
        tensor(part.(i * batch, i * batch + batch), out)
    end)
  end

  # mode: :ipc copies the elements into shared memory (EMLX.SharedMemory).
  @impl true
  def to_pointer(tensor, opts) do
    opts = Keyword.validate!(opts, mode: :local, permissions: 0o400)
    refuse_encoded(tensor.type, "to_pointer")

    case opts[:mode] do
      :local ->
        {address, bytes} = Array.to_pointer(to_array(tensor))
        %Nx.Pointer{kind: :local, address: address, data_size: bytes}

      :ipc ->
        {name, bytes} = EMLX.SharedMemory.create(to_array(tensor), permissions: opts[:permissions])
        %Nx.Pointer{kind: :ipc, handle: name, data_size: bytes}

      other ->
        raise ArgumentError, "the mode of a pointer is :local or :ipc, got: #{Kernel.inspect(other)}"
    end
  end

  @impl true
  def from_pointer(%Nx.Pointer{kind: kind} = pointer, type, shape, backend_opts, opts) when kind in [:local, :ipc] do
    refuse_encoded(type, "from_pointer")
    {dims, dtype} = Type.held(Tuple.to_list(shape), type)
    expected = Enum.product(dims) * Array.dtype_size(dtype)

    if pointer.data_size not in [nil, expected] do
      raise ArgumentError,
            "the pointer's data_size is #{pointer.data_size} bytes, #{Kernel.inspect(shape)} of " <>
              "#{Nx.Type.to_string(type)} takes #{expected}"
    end

    names = opts[:names] || List.duplicate(nil, tuple_size(shape))
    out = %T{type: type, shape: shape, names: names}
    where = where(backend_opts, type)

    array =
      case kind do
        :local -> Array.from_pointer(pointer.address, dims, dtype, where)
        :ipc -> EMLX.SharedMemory.take(pointer.handle, dims, dtype, where)
      end

    tensor(array, out)
  end

  def from_pointer(%Nx.Pointer{kind: kind}, _type, _shape, _backend_opts, _opts) do
    raise ArgumentError,
          "EMLX.Backend only supports pointers of the kinds :local and :ipc, got: #{Kernel.inspect(kind)}"
  end

  defp refuse_encoded(type, name) when is_narrow(type) do
    raise ArgumentError,
          "EMLX.Backend holds #{Nx.Type.to_string(type)} in a wider type, so its memory is not what #{name} stands for"
  end

  defp refuse_encoded(_type, _name), do: :ok

  # ---- element-wise, one operand ----

  unary =
    [acos: :arccos, asin: :arcsin, atan: :arctan, acosh: :arccosh, asinh: :arcsinh, atanh: :arctanh] ++
      [erf_inv: :erfinv, negate: :negative] ++
      Enum.map(
        [:exp, :expm1, :log, :log1p, :sigmoid, :cos, :sin, :tan, :cosh, :sinh, :tanh] ++
          [:sqrt, :rsqrt, :cbrt, :erf, :erfc, :abs, :ceil, :floor, :sign, :conjugate, :real, :imag],
        &{&1, &1}
      )

  for {name, op} <- unary do
    @impl true
    def unquote(name)(out, tensor), do: elementwise(unary(unquote(op), tensor, out), out)
  end

  # MLX converts integers to f32, as Nx does.
  defp unary(op, %T{type: type} = tensor, %T{type: type}), do: Ops.run(op, [to_array(tensor)])

  defp unary(op, %T{type: from} = tensor, %T{type: {:f, 32}}) when is_integer_type(from) or from == {:c, 64},
    do: Ops.run(op, [to_array(tensor)])

  defp unary(op, tensor, %T{type: type}), do: Ops.run(op, [operand(tensor, type)])

  @impl true
  def round(out, tensor), do: elementwise(Ops.run(:round_away, [to_array(tensor)]), out)

  @impl true
  def bitwise_not(out, tensor), do: elementwise(Ops.run(:bitwise_invert, [to_array(tensor)]), out)

  @impl true
  def population_count(out, %T{type: type} = tensor),
    do: tensor(Ops.run(:population_count, [bits(to_array(tensor), type)]), out)

  @impl true
  def count_leading_zeros(out, %T{type: {_, size} = type} = tensor) do
    zeros = Ops.run(:count_leading_zeros, [bits(to_array(tensor), type)])
    extra = Type.constant(max(8 - size, 0), Type.dtype(type), [])
    tensor(if(size < 8, do: Ops.run(:subtract, [zeros, extra]), else: zeros), out)
  end

  # Clears the copies of the sign bit above a negative number of fewer than 8 bits.
  defp bits(array, {:s, size}) when size < 8,
    do: Ops.run(:bitwise_and, [array, Type.constant(Bitwise.bsl(1, size) - 1, :s8, [])])

  defp bits(array, _type), do: array

  for {name, op} <- [is_nan: :isnan, is_infinity: :isinf] do
    @impl true
    def unquote(name)(out, tensor), do: tensor(Ops.run_and_cast(unquote(op), [to_array(tensor)], :u8), out)
  end

  @impl true
  def as_type(%T{type: to} = out, tensor), do: tensor(converted(tensor, to), out)

  @impl true
  def bitcast(%T{type: to} = out, %T{type: from} = tensor) do
    raw = if is_narrow(from) and is_float_type(from), do: Type.encode(to_array(tensor), from), else: to_array(tensor)

    array =
      if is_narrow(to) and is_float_type(to) do
        Type.decode(Ops.run({:view, %{dtype: :u8}}, [raw]), to)
      else
        Type.narrow(Ops.run({:view, %{dtype: Type.dtype(to)}}, [raw]), to)
      end

    tensor(array, out)
  end

  # ---- element-wise, two operands ----

  arithmetic =
    [pow: :power, remainder: :fmod] ++
      Enum.map(
        [:add, :subtract, :multiply, :divide, :quotient, :bitwise_and, :bitwise_or, :bitwise_xor, :left_shift],
        &{&1, &1}
      )

  for {name, op} <- arithmetic do
    @impl true
    def unquote(name)(%T{type: type} = out, left, right),
      do: elementwise(Mixed.arithmetic(unquote(op), left, right, type), out)
  end

  # The result is one of the operands, so both are converted to the result's type first.
  for {name, op} <- [min: :minimum, max: :maximum] do
    @impl true
    def unquote(name)(%T{type: type} = out, left, right),
      do: elementwise(Ops.run(unquote(op), [operand(left, type), operand(right, type)]), out)
  end

  # Complex operands are taken as numbers on the real axis: only their real parts count.
  @impl true
  def atan2(%T{type: {:c, _} = type} = out, left, right) do
    [left, right] = for t <- [left, right], do: Ops.run(:real, [operand(t, type)])
    tensor(Ops.run({:astype, %{dtype: Type.dtype(type)}}, [Ops.run(:arctan2, [left, right])]), out)
  end

  def atan2(%T{type: type} = out, left, right), do: elementwise(Mixed.arithmetic(:arctan2, left, right, type), out)

  # s64 cannot represent the upper half of u64 before the shift.
  @impl true
  def right_shift(%T{type: {:s, 64}} = out, %T{type: {:u, 64}} = left, right) do
    shifted = Ops.run(:right_shift, [to_array(left), operand(right, {:u, 64})])
    tensor(Ops.run({:astype, %{dtype: :s64}}, [shifted]), out)
  end

  def right_shift(%T{type: type} = out, left, right),
    do: elementwise(Mixed.arithmetic(:right_shift, left, right, type), out)

  for op <- [:equal, :not_equal, :greater, :less, :greater_equal, :less_equal] do
    @impl true
    def unquote(op)(out, left, right), do: tensor(Mixed.compare(unquote(op), left, right), out)
  end

  for op <- [:logical_and, :logical_or, :logical_xor] do
    @impl true
    def unquote(op)(out, left, right),
      do: tensor(Ops.run_and_cast(unquote(op), [truth(left), truth(right)], :u8), out)
  end

  # MLX tests the real part only.
  defp truth(%T{type: type} = tensor) when is_complex_type(type),
    do: Ops.run(:not_equal, [to_array(tensor), Type.scalar(0, type)])

  defp truth(tensor), do: to_array(tensor)

  # ---- element-wise, three operands ----

  @impl true
  def select(%T{type: type} = out, pred, on_true, on_false) do
    elementwise(
      Ops.run(:where, [truth(pred), operand(on_true, type), operand(on_false, type)]),
      out
    )
  end

  @impl true
  def clip(%T{type: type} = out, tensor, min, max) do
    elementwise(
      Ops.run(:clip, [operand(tensor, type), operand(min, type), operand(max, type)]),
      out
    )
  end

  # ---- shapes ----

  @impl true
  def reshape(out, tensor), do: reshaped(out, tensor)

  @impl true
  def squeeze(out, tensor, _axes), do: reshaped(out, tensor)

  defp reshaped(%T{shape: shape} = out, tensor),
    do: moved(Ops.run({:reshape, %{shape: Tuple.to_list(shape)}}, [to_array(tensor)]), out)

  @impl true
  def broadcast(out, %T{shape: from} = tensor, shape, axes) do
    dims = Tuple.to_list(shape)
    array = to_array(tensor)
    rank = length(dims)

    # MLX aligns the last axes by itself.
    aligned =
      if axes == Enum.to_list((rank - tuple_size(from))..(rank - 1)//1) do
        array
      else
        sizes = Map.new(Enum.zip(axes, Tuple.to_list(from)))
        Ops.run({:reshape, %{shape: for(axis <- 0..(rank - 1)//1, do: Map.get(sizes, axis, 1))}}, [array])
      end

    moved(Ops.run({:broadcast_to, %{shape: dims}}, [aligned]), out)
  end

  @impl true
  def transpose(out, tensor, axes), do: moved(Ops.run({:transpose, %{axes: axes}}, [to_array(tensor)]), out)

  @impl true
  def reverse(out, tensor, axes), do: moved(Ops.run({:flip, %{axes: axes}}, [to_array(tensor)]), out)

  @impl true
  def pad(%T{type: type} = out, tensor, pad_value, config) do
    {low, high, interior} = unzip3(config)
    op = {:pad_interior, %{low: low, high: high, interior: interior}}
    moved(Ops.run(op, [operand(tensor, type), operand(pad_value, type)]), out)
  end

  defp unzip3(list) do
    {for({a, _, _} <- list, do: a), for({_, b, _} <- list, do: b), for({_, _, c} <- list, do: c)}
  end

  for op <- [:concatenate, :stack] do
    @impl true
    def unquote(op)(%T{type: type} = out, tensors, axis) do
      moved(Ops.run({unquote(op), %{axis: axis}}, Enum.map(tensors, &operand(&1, type))), out)
    end
  end

  # ---- parts ----

  @impl true
  def slice(out, tensor, starts, lengths, strides), do: moved(Index.slice(tensor, starts, lengths, strides), out)

  @impl true
  def put_slice(out, tensor, starts, slice), do: moved(Index.put_slice(out, tensor, starts, slice), out)

  @impl true
  def gather(out, tensor, indices, opts), do: moved(Index.gather(out, tensor, indices, opts[:axes]), out)

  for {name, op} <- [indexed_add: :scatter_add, indexed_put: :scatter] do
    @impl true
    def unquote(name)(out, tensor, indices, updates, opts),
      do: shaped(Index.scatter(unquote(op), out, tensor, indices, updates, opts[:axes]), out)
  end

  # ---- reductions ----

  for {name, op} <- [sum: :sum, product: :prod, reduce_max: :max, reduce_min: :min] do
    @impl true
    def unquote(name)(%T{type: type} = out, tensor, opts) do
      op = {unquote(op), %{axes: opts[:axes], keepdims: opts[:keep_axes] || false}}
      shaped(Ops.run(op, [operand(tensor, type)]), out)
    end
  end

  for op <- [:all, :any] do
    @impl true
    def unquote(op)(out, tensor, opts) do
      op = {unquote(op), %{axes: opts[:axes], keepdims: opts[:keep_axes] || false}}
      moved(Ops.run_and_cast(op, [truth(tensor)], :u8), out)
    end
  end

  for name <- [:argmax, :argmin] do
    @impl true
    def unquote(name)(out, tensor, opts), do: moved(Index.extreme(unquote(name), out, tensor, opts), out)
  end

  @impl true
  def reduce(out, tensor, acc, opts, fun), do: Fold.reduce(out, tensor, acc, opts, fun)

  # ---- windows ----

  for {name, reduction} <- [window_sum: :sum, window_product: :prod, window_max: :max, window_min: :min] do
    @impl true
    def unquote(name)(%T{type: type} = out, tensor, window, opts),
      do: shaped(Window.reduce(unquote(reduction), operand(tensor, type), type, window, opts), out)
  end

  @impl true
  def window_reduce(out, tensor, acc, window, opts, fun), do: Fold.window_reduce(out, tensor, acc, window, opts, fun)

  for {name, reduction} <- [window_scatter_max: :max, window_scatter_min: :min] do
    @impl true
    def unquote(name)(out, tensor, source, init, window, opts),
      do: shaped(Window.scatter(unquote(reduction), out, tensor, source, init, window, opts), out)
  end

  # ---- order ----

  @impl true
  def sort(out, tensor, opts), do: moved(Index.sort(tensor, opts), out)

  @impl true
  def argsort(out, tensor, opts), do: moved(Index.argsort(out, tensor, opts), out)

  # ---- products ----

  @impl true
  def dot(out, left, left_axes, left_batch, right, right_axes, right_batch),
    do: shaped(Product.dot(out, left, left_axes, left_batch, right, right_axes, right_batch), out)

  @impl true
  def conv(out, tensor, kernel, opts), do: shaped(Product.conv(out, tensor, kernel, opts), out)

  @impl true
  def triangular_solve(out, a, b, opts) do
    refuse_singular(a)
    shaped(Product.triangular_solve(out, a, b, opts), out)
  end

  # Nx raises during the call for a singular triangular system, so the diagonal has to be evaluated here. It is the only
  # callback that reads values. A compiled function has none yet, and its solution is not finite.
  defp refuse_singular(a) do
    Fold.refuse_slices()
    array = to_array(a)

    if not Array.traced?(array) do
      zeros = array |> Ops.diagonal(axis1: -2, axis2: -1) |> Ops.equal(0) |> Ops.any()
      if Array.to_list(zeros), do: raise(ArgumentError, "can't solve for singular matrix")
    end
  end

  for op <- [:fft, :ifft] do
    @impl true
    def unquote(op)(out, tensor, opts), do: moved(Product.fourier(unquote(op), out, tensor, opts), out)
  end

  # ---- blocks ----

  @impl true
  def block(struct, output, args, fun) do
    if Fold.slices?(),
      do: apply(fun, [struct | args]),
      else: EMLX.Block.dispatch(struct, output, args, fun)
  end
end
