defmodule EMLX.Compatibility do
  @moduledoc false
  # The array functions of the C++ EMLX's `EMLX`, with its argument order, on top of EMLX.Ops, EMLX.Kernels and
  # EMLX.Array. `EMLX` generates its public functions from `table/0` and converts EMLX.Error to EMLX.NIFError.
  #
  # Arguments have the forms of the C++ EMLX: types such as :f32, :float32 or {:f, 32}, shapes as tuples or lists,
  # devices as :gpu or {:gpu, 0}.

  alias EMLX.{Array, Kernels, Ops, SharedMemory}

  @types [
    bool: :bool,
    uint8: :u8,
    uint16: :u16,
    uint32: :u32,
    uint64: :u64,
    int8: :s8,
    int16: :s16,
    int32: :s32,
    int64: :s64,
    float16: :f16,
    bfloat16: :bf16,
    float32: :f32,
    float64: :f64,
    complex64: :c64
  ]

  @names Map.new(@types, fn {theirs, ours} -> {ours, theirs} end)

  @doc "Returns the dtype for a type's name in MLX, Nx or EMLX.Array."
  @spec type(atom | {atom, pos_integer}) :: Array.dtype()
  for {theirs, ours} <- @types, name <- Enum.uniq([theirs, ours]) do
    def type(unquote(name)), do: unquote(ours)
  end

  def type({kind, size} = type) when is_atom(kind) and is_integer(size) do
    case Enum.find(@types, fn {_theirs, ours} -> Atom.to_string(ours) == "#{kind}#{size}" end) do
      {_theirs, ours} -> ours
      nil -> unknown_type(type)
    end
  end

  def type(other), do: unknown_type(other)

  defp unknown_type(other) do
    raise ArgumentError,
          "a type is one of #{Enum.map_join(@types, ", ", &inspect(elem(&1, 0)))}, " <>
            "one of EMLX.Array such as :f32, or one of Nx such as {:f, 32}, got: #{inspect(other)}"
  end

  @doc "Returns the device for a device of the C++ EMLX. EMLX uses one device of each kind."
  @spec device(:cpu | :gpu | {:cpu | :gpu, integer}) :: :cpu | :gpu
  def device(device) when device in [:cpu, :gpu], do: device
  # The C++ EMLX's index of the default device is -1.
  def device({device, index}) when device in [:cpu, :gpu] and index in [0, -1], do: device

  def device({device, index}) when device in [:cpu, :gpu] and is_integer(index) do
    raise EMLX.Error,
      kind: :no_device,
      op: "device",
      reason: "there is no device {:#{device}, #{index}}: EMLX uses one device of each kind, {:#{device}, 0}"
  end

  def device(other),
    do: raise(ArgumentError, "a device is :cpu, :gpu, {:cpu, 0} or {:gpu, 0}, got: #{inspect(other)}")

  # ---- elementwise ----

  unary = [
    abs: :abs,
    acos: :arccos,
    acosh: :arccosh,
    asin: :arcsin,
    asinh: :arcsinh,
    atan: :arctan,
    atanh: :arctanh,
    bitwise_not: :bitwise_invert,
    ceil: :ceil,
    conjugate: :conjugate,
    copy: :copy,
    cos: :cos,
    cosh: :cosh,
    erf: :erf,
    erf_inv: :erfinv,
    exp: :exp,
    expm1: :expm1,
    floor: :floor,
    imag: :imag,
    is_infinity: :isinf,
    is_nan: :isnan,
    log: :log,
    log1p: :log1p,
    logical_not: :logical_not,
    negate: :negative,
    real: :real,
    round: :round,
    rsqrt: :rsqrt,
    sigmoid: :sigmoid,
    sign: :sign,
    sin: :sin,
    sinh: :sinh,
    sqrt: :sqrt,
    tan: :tan,
    tanh: :tanh
  ]

  binary = [
    add: :add,
    atan2: :arctan2,
    bitwise_and: :bitwise_and,
    bitwise_or: :bitwise_or,
    bitwise_xor: :bitwise_xor,
    divide: :divide,
    equal: :equal,
    greater: :greater,
    greater_equal: :greater_equal,
    left_shift: :left_shift,
    less: :less,
    less_equal: :less_equal,
    logical_and: :logical_and,
    logical_or: :logical_or,
    logical_xor: :logical_xor,
    maximum: :maximum,
    minimum: :minimum,
    multiply: :multiply,
    not_equal: :not_equal,
    pow: :power,
    remainder: :remainder,
    right_shift: :right_shift,
    subtract: :subtract
  ]

  for {name, op} <- unary do
    def unquote(name)(a), do: Ops.unquote(op)(a)
  end

  for {name, op} <- binary do
    def unquote(name)(a, b), do: Ops.unquote(op)(a, b)
  end

  # MLX's floor_divide rounds floats down and integers toward zero.
  def quotient(a, b) do
    if Enum.any?([a, b], &float?/1), do: Ops.floor_divide(a, b), else: Ops.quotient(a, b)
  end

  defp float?(a), do: Array.dtype(a) in [:f16, :bf16, :f32, :f64, :c64]

  def where(condition, a, b), do: Ops.where(condition, a, b)
  def clip(a, low, high), do: Ops.clip(a, low, high)
  def isclose(a, b, rtol, atol, equal_nan), do: Ops.isclose(a, b, close(rtol, atol, equal_nan))
  def allclose(a, b, rtol, atol, equal_nan), do: Ops.allclose(a, b, close(rtol, atol, equal_nan))

  defp close(rtol, atol, equal_nan), do: [rtol: rtol, atol: atol, equal_nan: equal_nan]

  # ---- creation and conversion ----

  def eye(rows, columns, type, device), do: Ops.eye(rows, m: columns, dtype: type(type), device: device(device))
  def ones(shape, type, device), do: Ops.ones(shape, type(type), device: device(device))

  def full(value, shape, type, device) do
    where = [device: device(device)]
    Ops.full(scalar(value, type(type), where), shape, type(type), where)
  end

  def scalar_tensor(value, type, device), do: scalar(value, type(type), device: device(device))

  defp scalar(%{re: re, im: im}, type, where), do: Array.scalar({re, im}, type, where)
  defp scalar(value, type, where) when is_boolean(value), do: Array.scalar(if(value, do: 1, else: 0), type, where)
  defp scalar(value, type, where), do: Array.scalar(value, type, where)

  def arange(start, stop, step, integer?, device) do
    Ops.arange(start, stop, step: step, dtype: if(integer?, do: :s32, else: :f32), device: device(device))
  end

  # The C++ EMLX accepts a binary that is longer than the array.
  def from_blob(blob, shape, type, device) do
    dims = Ops.shape_to_list(shape)
    type = type(type)
    bytes = if is_list(dims) and Enum.all?(dims, &(is_integer(&1) and &1 >= 0)), do: bytes(dims, type)

    blob =
      case blob do
        <<given::binary-size(^bytes), _rest::binary>> when is_integer(bytes) -> given
        blob -> blob
      end

    Array.from_binary(blob, dims, type, device: device(device))
  end

  defp bytes(dims, type), do: Enum.product(dims) * Array.dtype_size(type)

  def astype(a, type), do: Ops.astype(a, type(type))
  def view(a, type), do: Ops.view(a, type(type))

  # ---- shapes and parts ----

  def reshape(a, shape), do: Ops.reshape(a, shape)
  def broadcast_to(a, shape), do: Ops.broadcast_to(a, shape)
  def transpose(a, axes), do: Ops.transpose(a, axes)
  def squeeze(a, axes), do: Ops.squeeze(a, axes)
  def pad(a, axes, low, high, value), do: Ops.pad(a, value, axes, low, high)
  def as_strided(a, shape, strides, offset), do: Ops.as_strided(a, shape, strides, offset: offset)
  def slice(a, start, stop, strides), do: Ops.slice(a, start, stop, strides)

  def slice_update(a, update, start, stop),
    do: Ops.slice_update(a, update, start, stop, Enum.map(Ops.shape_to_list(start), fn _ -> 1 end))

  def stack(arrays, axis), do: Ops.stack(arrays, axis: axis)
  def concatenate(arrays, axis), do: Ops.concatenate(arrays, axis: axis)
  def take(a, indices, axis), do: Ops.take(a, indices, axis: axis)
  def take_along_axis(a, indices, axis), do: Ops.take_along_axis(a, indices, axis: axis)
  def gather(a, indices, axes, slice_sizes), do: Ops.gather(a, indices, axes, slice_sizes)
  def scatter(a, indices, updates, axes), do: Ops.scatter(a, indices, updates, axes)
  def scatter_add(a, indices, updates, axes), do: Ops.scatter_add(a, indices, updates, axes)

  # ---- reductions and order ----

  # An empty list of axes means all of them.
  for {name, op} <- [all: :all, any: :any, sum: :sum, product: :prod] do
    def unquote(name)(a, axes, keep_axes),
      do: Ops.unquote(op)(a, axes: if(axes == [], do: nil, else: axes), keepdims: keep_axes)
  end

  # Here an empty list of axes means none.
  for name <- [:max, :min] do
    def unquote(name)(a, [], _keep_axes), do: a
    def unquote(name)(a, axes, keep_axes), do: Ops.unquote(name)(a, axes: axes, keepdims: keep_axes)
  end

  for name <- [:argmax, :argmin] do
    def unquote(name)(a, keep_axes), do: Ops.unquote(name)(a, keepdims: keep_axes)
    def unquote(name)(a, axis, keep_axes), do: Ops.unquote(name)(a, axis: axis, keepdims: keep_axes)
  end

  for {name, op} <- [
        cumulative_sum: :cumsum,
        cumulative_product: :cumprod,
        cumulative_max: :cummax,
        cumulative_min: :cummin
      ] do
    def unquote(name)(a, axis, reverse, inclusive),
      do: Ops.unquote(op)(a, axis: axis, reverse: reverse, inclusive: inclusive)
  end

  def sort(a, axis), do: Ops.sort(a, axis: axis)
  def argsort(a, axis), do: Ops.argsort(a, axis: axis)

  for {name, extreme} <- [window_scatter_max: :max, window_scatter_min: :min] do
    def unquote(name)(a, source, init, window, low, high, strides),
      do: Ops.window_scatter(a, source, init, unquote(extreme), window, strides, low, high)
  end

  # ---- products, transforms, linear algebra ----

  def tensordot(a, b, axes_a, axes_b), do: Ops.tensordot(a, b, axes_a, axes_b)
  def einsum(arrays, equation), do: Ops.einsum(equation, arrays)

  def conv_general(input, kernel, strides, padding_low, padding_high, kernel_dilation, input_dilation, groups) do
    Ops.conv(input, kernel,
      stride: strides,
      padding_low: padding_low,
      padding_high: padding_high,
      kernel_dilation: kernel_dilation,
      input_dilation: input_dilation,
      groups: groups
    )
  end

  def fft(a, size, axis), do: Ops.fft(a, [size], [axis])
  def ifft(a, size, axis), do: Ops.ifft(a, [size], [axis])
  def fft2(a, sizes, axes), do: Ops.fft(a, sizes, axes)
  def ifft2(a, sizes, axes), do: Ops.ifft(a, sizes, axes)

  def tri_inv(a, upper), do: Ops.tri_inv(a, upper: upper)
  def linalg_lu(a), do: Ops.lu(a)
  def linalg_qr(a), do: a |> Ops.qr() |> List.to_tuple()
  def linalg_svd(a, compute_uv), do: a |> Ops.svd(compute_uv: compute_uv) |> List.wrap()
  def linalg_cholesky(a, upper), do: Ops.cholesky(a, upper: upper)
  def linalg_inv(a), do: Ops.inv(a)
  def linalg_pinv(a), do: Ops.pinv(a)
  def linalg_solve(a, b), do: Ops.solve(a, b)
  def linalg_solve_triangular(a, b, upper), do: Ops.solve_triangular(a, b, upper: upper)

  def linalg_eigh(a, uplo) do
    upper =
      case uplo do
        name when name in [:L, :l, "L"] -> false
        name when name in [:U, :u, "U"] -> true
        other -> raise ArgumentError, "the triangle to read is :L or :U, got: #{inspect(other)}"
      end

    a |> Ops.eigh(upper: upper) |> List.to_tuple()
  end

  # ---- quantized products ----

  def quantize(a, group_size, bits, mode) do
    case Kernels.quantize(a, group_size: group_size, bits: bits, mode: mode(mode)) do
      [packed, scales, biases] -> {packed, scales, biases}
      [packed, scales] -> {packed, scales, nil}
    end
  end

  def dequantize(packed, scales, biases, group_size, bits, mode),
    do: Kernels.dequantize(packed, scales, biases, group_size: group_size, bits: bits, mode: mode(mode))

  def quantized_matmul(x, w, scales, biases, transpose, group_size, bits, mode) do
    opts = [transpose: transpose, group_size: group_size, bits: bits, mode: mode(mode)]
    Kernels.quantized_matmul(x, w, scales, biases, opts)
  end

  for mode <- [:affine, :mxfp4, :mxfp8, :nvfp4] do
    defp mode(unquote(mode)), do: unquote(mode)
    defp mode(unquote(Atom.to_string(mode))), do: unquote(mode)
  end

  defp mode(other) do
    raise ArgumentError, ~s(a mode of quantization is "affine", "mxfp4", "mxfp8" or "nvfp4", got: #{inspect(other)})
  end

  # ---- fused kernels ----

  def fast_rms_norm(x, weight, eps), do: Kernels.rms_norm(x, weight, eps: eps)
  def fast_layer_norm(x, weight, bias, eps), do: Kernels.layer_norm(x, weight, bias, eps: eps)
  def fast_layer_norm_no_bias(x, weight, eps), do: Kernels.layer_norm(x, weight, nil, eps: eps)

  def fast_rope(x, dims, traditional, base, scale, offset),
    do: Kernels.rope(x, offset, nil, dims: dims, traditional: traditional, base: base, scale: scale)

  def fast_rope_ids(x, dims, traditional, base, scale, offset) do
    opts = [dims: dims, traditional: traditional, base: base, scale: scale]
    heads_last(x, &Kernels.rope(&1, offset, nil, opts))
  end

  def fast_rope_with_freqs(x, dims, traditional, scale, offset, freqs),
    do: heads_last(x, &Kernels.rope(&1, offset, freqs, dims: dims, traditional: traditional, scale: scale))

  # These two take {batch, length, heads, size}; the kernel takes the heads first.
  defp heads_last(x, fun) do
    if Array.rank(x) == 4,
      do: x |> Ops.swapaxes(1, 2) |> fun.() |> Ops.swapaxes(1, 2),
      else: fun.(x)
  end

  # Each row has its own position: rows become batch rows of length 1.
  def fast_rope_positions(x, dims, traditional, base, scale, positions) do
    case {Array.shape(x), Array.shape(positions)} do
      {{batch, length, heads, size}, {batch, length}} ->
        opts = [dims: dims, traditional: traditional, base: base, scale: scale]

        x
        |> Ops.reshape([batch * length, heads, 1, size])
        |> Kernels.rope(Ops.reshape(positions, [batch * length]), nil, opts)
        |> Ops.reshape([batch, length, heads, size])

      {shape, other} ->
        raise ArgumentError,
              "fast_rope_positions: the array is #{inspect(shape)}, the positions are #{inspect(other)}: " <>
                "they must be {batch, length, heads, size} and {batch, length}"
    end
  end

  def fast_sdpa(q, k, v, scale, sinks), do: attend(q, k, v, nil, scale, sinks)
  def fast_sdpa_masked(q, k, v, mask, scale, sinks), do: attend(q, k, v, mask, scale, sinks)
  def fast_sdpa_causal(q, k, v, scale, sinks), do: attend(q, k, v, :causal, scale, sinks)

  defp attend(q, k, v, mask, scale, sinks),
    do: Kernels.scaled_dot_product_attention(q, k, v, mask, scale: scale, sinks: sinks)

  def fast_sdpa_causal_key_masked(q, k, v, scale, key_mask, kv_offset, sinks) do
    {_batch, _heads, queries, _size} = heads!(q, "q")
    {batch, _heads, keys, _size} = heads!(k, "k")
    masked(q, k, v, seen(queries, keys, kv_offset), keys!(key_mask, batch, keys), scale, sinks)
  end

  def fast_swiglu(gate, up) do
    gate |> Ops.multiply(Ops.sigmoid(gate)) |> Ops.multiply(up) |> Ops.astype(Array.dtype(gate))
  end

  # Query i attends to the keys up to i + offset.
  defp seen(queries, keys, offset) do
    rows = Ops.iota([queries, keys], axis: 0)
    Ops.less_equal(Ops.iota([queries, keys], axis: 1), Ops.add(rows, offset))
  end

  # The result is 0 for a query without keys.
  defp masked(q, k, v, seen, key_mask, scale, sinks) do
    mask = Ops.logical_and(seen, key_mask)
    attention = attend(q, k, v, mask, scale, sinks)
    zero = Array.scalar(0, Array.dtype(attention))
    Ops.where(Ops.any(mask, axes: [-1], keepdims: true), attention, zero)
  end

  defp keys!(key_mask, batch, keys) do
    shape = Array.shape(key_mask)

    if shape not in [{batch, keys}, {1, keys}] do
      raise ArgumentError,
            "the key mask is #{inspect(shape)}, it must be {batch, keys}, here {#{batch}, #{keys}}"
    end

    key_mask |> Ops.not_equal(0) |> Ops.reshape([elem(shape, 0), 1, 1, keys])
  end

  defp heads!(array, name) do
    case Array.shape(array) do
      {_, _, _, _} = shape -> shape
      other -> raise ArgumentError, "#{name} is #{inspect(other)}, it must have 4 axes"
    end
  end

  # ---- attention with a cache ----

  def causal_kv_attention(q, new_k, new_v, k_cache, v_cache, offset, opts) do
    opts = Keyword.validate!(opts, [:scale, :key_mask])
    scale = Keyword.fetch!(opts, :scale)

    case opts[:key_mask] do
      nil -> kv_cache_attention(q, new_k, new_v, k_cache, v_cache, offset, scale)
      mask -> kv_cache_attention_masked(q, new_k, new_v, k_cache, v_cache, offset, scale, mask)
    end
  end

  # {batch, length, heads, size}, Bumblebee's layout.
  def kv_cache_attention(q, new_k, new_v, k_cache, v_cache, offset, scale) do
    with_cache("kv_cache_attention", 1, q, [new_k, new_v], [k_cache, v_cache], offset, fn q, k, v, _valid ->
      attend(q, k, v, :causal, scale, nil)
    end)
  end

  def kv_cache_attention_masked(q, new_k, new_v, k_cache, v_cache, offset, scale, key_mask) do
    with_cache("kv_cache_attention_masked", 1, q, [new_k, new_v], [k_cache, v_cache], offset, fn q, k, v, valid ->
      {batch, _heads, queries, _size} = Array.shape(q)
      masked(q, k, v, seen(queries, valid, valid - queries), keys!(key_mask, batch, valid), scale, nil)
    end)
  end

  # {batch, heads, length, size}, MLX's layout.
  def kv_cache_sdpa_update(q, new_k, new_v, k_cache, v_cache, offset, scale) do
    with_cache("kv_cache_sdpa_update", 2, q, [new_k, new_v], [k_cache, v_cache], offset, fn q, k, v, _valid ->
      attend(q, k, v, :causal, scale, nil)
    end)
  end

  # Writes the new keys and values at `offset` along `axis`, and attends to the valid part of the cache. Returns
  # {attention, k_cache, v_cache}.
  defp with_cache(name, axis, q, [new_k | _] = new, caches, offset, attend) do
    for {array, what} <- Enum.zip([q] ++ new ++ caches, ["q", "new_k", "new_v", "k_cache", "v_cache"]),
        do: heads!(array, "#{name}: #{what}")

    valid = offset + elem(Array.shape(new_k), axis)
    room = caches |> Enum.map(&elem(Array.shape(&1), axis)) |> Enum.min()

    if offset < 0 or valid > room do
      raise ArgumentError,
            "#{name}: the new keys and values take the places #{offset} to #{valid - 1} of a cache of #{room}"
    end

    updated = Enum.zip_with(caches, new, &write(&1, &2, axis, offset))
    [k, v] = Enum.map(updated, &(&1 |> prefix(axis, valid) |> heads_first(axis)))
    attention = q |> heads_first(axis) |> attend.(k, v, valid) |> heads_first(axis)
    List.to_tuple([attention | updated])
  end

  defp write(cache, new, axis, offset) do
    start = List.replace_at([0, 0, 0, 0], axis, offset)
    stop = Enum.zip_with(start, Tuple.to_list(Array.shape(new)), &+/2)
    slice_update(cache, Ops.astype(new, Array.dtype(cache)), start, stop)
  end

  defp prefix(cache, axis, valid) do
    stop = cache |> Array.shape() |> Tuple.to_list() |> List.replace_at(axis, valid)
    Ops.slice(cache, [0, 0, 0, 0], stop, [1, 1, 1, 1])
  end

  defp heads_first(array, 2), do: array
  defp heads_first(array, 1), do: Ops.swapaxes(array, 1, 2)

  # ---- values ----

  def shape(a), do: Array.shape(a)
  def scalar_type(a), do: Map.fetch!(@names, Array.dtype(a))
  def strides(a), do: Array.strides(a)
  def to_device(a, device), do: Array.to_device(a, device(device))
  def deallocate(a), do: Array.deallocate(a)
  def tensor_data_ptr(a), do: Array.to_pointer(a)
  def tensor_to_shm(a, permissions), do: SharedMemory.create(a, permissions: permissions)
  def shm_unlink(name), do: SharedMemory.unlink(name)

  def to_blob(a), do: told(a, fn -> Array.to_binary(a) end)

  def to_blob(a, limit) when is_integer(limit) and limit >= 0 do
    told(a, fn ->
      if limit < Array.size(a),
        do: a |> Ops.flatten() |> Ops.slice([0], [limit], [1]) |> Array.to_binary(),
        else: Array.to_binary(a)
    end)
  end

  def to_blob(_a, limit),
    do: raise(ArgumentError, "to_blob: the limit is a number of elements, got: #{inspect(limit)}")

  defp told(a, read), do: EMLX.Telemetry.to_binary(Array.shape(a), Array.dtype(a), read)

  def item(a) do
    if Array.size(a) != 1,
      do: raise(ArgumentError, "item: the array has shape #{inspect(Array.shape(a))}, it must have one element")

    if Array.dtype(a) == :c64, do: raise(ArgumentError, "item: a complex number is none; EMLX.Array.to_list/1 reads it")
    EMLX.Profiling.inc_item()

    case a |> Ops.reshape([]) |> Array.to_list() do
      true -> 1
      false -> 0
      number -> number
    end
  end

  # ---- the table ----

  # {call, the function that documents it, the kind of result}. Functions of one or two arrays in `unary` or `binary`
  # are not repeated.
  table = [
    {"quotient(a, b)", "EMLX.Ops.quotient/2`, or of floats `EMLX.Ops.floor_divide/2"},
    {"where(condition, a, b)", "EMLX.Ops.where/4"},
    {"clip(array, low, high)", "EMLX.Ops.clip/4"},
    {"isclose(a, b, rtol, atol, equal_nan)", "EMLX.Ops.isclose/3"},
    {"allclose(a, b, rtol, atol, equal_nan)", "EMLX.Ops.allclose/3"},
    {"eye(rows, columns, type, device)", "EMLX.Ops.eye/2"},
    {"ones(shape, type, device)", "EMLX.Ops.ones/3"},
    {"full(value, shape, type, device)", "EMLX.Ops.full/4"},
    {"scalar_tensor(value, type, device)", "EMLX.Array.scalar/3"},
    {"arange(start, stop, step, integer?, device)", "EMLX.Ops.arange/3"},
    {"from_blob(blob, shape, type, device)", "EMLX.Array.from_binary/4"},
    {"astype(array, type)", "EMLX.Ops.astype/3"},
    {"view(array, type)", "EMLX.Ops.view/3"},
    {"reshape(array, shape)", "EMLX.Ops.reshape/3"},
    {"broadcast_to(array, shape)", "EMLX.Ops.broadcast_to/3"},
    {"transpose(array, axes)", "EMLX.Ops.transpose/3"},
    {"squeeze(array, axes)", "EMLX.Ops.squeeze/3"},
    {"pad(array, axes, low, high, value)", "EMLX.Ops.pad/6"},
    {"as_strided(array, shape, strides, offset)", "EMLX.Ops.as_strided/4"},
    {"slice(array, start, stop, strides)", "EMLX.Ops.slice/5"},
    {"slice_update(array, update, start, stop)", "EMLX.Ops.slice_update/6"},
    {"stack(arrays, axis)", "EMLX.Ops.stack/2"},
    {"concatenate(arrays, axis)", "EMLX.Ops.concatenate/2"},
    {"take(array, indices, axis)", "EMLX.Ops.take/3"},
    {"take_along_axis(array, indices, axis)", "EMLX.Ops.take_along_axis/3"},
    {"gather(array, index_arrays, axes, slice_sizes)", "EMLX.Ops.gather/4"},
    {"scatter(array, index_arrays, updates, axes)", "EMLX.Ops.scatter/4"},
    {"scatter_add(array, index_arrays, updates, axes)", "EMLX.Ops.scatter_add/4"},
    {"all(array, axes, keep_axes)", "EMLX.Ops.all/2"},
    {"any(array, axes, keep_axes)", "EMLX.Ops.any/2"},
    {"sum(array, axes, keep_axes)", "EMLX.Ops.sum/2"},
    {"product(array, axes, keep_axes)", "EMLX.Ops.prod/2"},
    {"max(array, axes, keep_axes)", "EMLX.Ops.max/2"},
    {"min(array, axes, keep_axes)", "EMLX.Ops.min/2"},
    {"argmax(array, keep_axes)", "EMLX.Ops.argmax/2"},
    {"argmax(array, axis, keep_axes)", "EMLX.Ops.argmax/2"},
    {"argmin(array, keep_axes)", "EMLX.Ops.argmin/2"},
    {"argmin(array, axis, keep_axes)", "EMLX.Ops.argmin/2"},
    {"cumulative_sum(array, axis, reverse, inclusive)", "EMLX.Ops.cumsum/2"},
    {"cumulative_product(array, axis, reverse, inclusive)", "EMLX.Ops.cumprod/2"},
    {"cumulative_max(array, axis, reverse, inclusive)", "EMLX.Ops.cummax/2"},
    {"cumulative_min(array, axis, reverse, inclusive)", "EMLX.Ops.cummin/2"},
    {"sort(array, axis)", "EMLX.Ops.sort/2"},
    {"argsort(array, axis)", "EMLX.Ops.argsort/2"},
    {"window_scatter_max(array, source, init, window, low, high, strides)", "EMLX.Ops.window_scatter/9"},
    {"window_scatter_min(array, source, init, window, low, high, strides)", "EMLX.Ops.window_scatter/9"},
    {"tensordot(a, b, axes_a, axes_b)", "EMLX.Ops.tensordot/5"},
    {"einsum(arrays, equation)", "EMLX.Ops.einsum/3"},
    {"conv_general(input, kernel, strides, padding_low, padding_high, kernel_dilation, input_dilation, groups)",
     "EMLX.Ops.conv/3"},
    {"fft(array, size, axis)", "EMLX.Ops.fft/4"},
    {"ifft(array, size, axis)", "EMLX.Ops.ifft/4"},
    {"fft2(array, sizes, axes)", "EMLX.Ops.fft/4"},
    {"ifft2(array, sizes, axes)", "EMLX.Ops.ifft/4"},
    {"tri_inv(array, upper)", "EMLX.Ops.tri_inv/2"},
    {"linalg_lu(array)", "EMLX.Ops.lu/2", :arrays},
    {"linalg_qr(array)", "EMLX.Ops.qr/2", :tuple},
    {"linalg_svd(array, compute_uv)", "EMLX.Ops.svd/2", :arrays},
    {"linalg_cholesky(array, upper)", "EMLX.Ops.cholesky/2"},
    {"linalg_eigh(array, uplo)", "EMLX.Ops.eigh/2", :tuple},
    {"linalg_inv(array)", "EMLX.Ops.inv/2"},
    {"linalg_pinv(array)", "EMLX.Ops.pinv/2"},
    {"linalg_solve(a, b)", "EMLX.Ops.solve/2"},
    {"linalg_solve_triangular(a, b, upper)", "EMLX.Ops.solve_triangular/3"},
    {~S|quantize(array, group_size, bits, mode \\ "affine")|, "EMLX.Kernels.quantize/2", :tuple},
    {~S|dequantize(packed, scales, biases, group_size, bits, mode \\ "affine")|, "EMLX.Kernels.dequantize/4"},
    {~S|quantized_matmul(x, packed, scales, biases, transpose \\ true, group_size \\ 64, bits \\ 4, mode \\ "affine")|,
     "EMLX.Kernels.quantized_matmul/5"},
    {"fast_rms_norm(x, weight, eps)", "EMLX.Kernels.rms_norm/3"},
    {"fast_layer_norm(x, weight, bias, eps)", "EMLX.Kernels.layer_norm/4"},
    {"fast_layer_norm_no_bias(x, weight, eps)", "EMLX.Kernels.layer_norm/4"},
    {"fast_rope(x, dims, traditional, base, scale, offset)", "EMLX.Kernels.rope/4"},
    {"fast_rope_ids(x, dims, traditional, base, scale, offsets)",
     "EMLX.Kernels.rope/4` of `{batch, length, heads, size}` or `{batch, length, size}"},
    {"fast_rope_with_freqs(x, dims, traditional, scale, offsets, freqs)",
     "EMLX.Kernels.rope/4` of `{batch, length, heads, size}` or `{batch, length, size}"},
    {"fast_rope_positions(x, dims, traditional, base, scale, positions)",
     "EMLX.Kernels.rope/4` of `{batch, length, heads, size}` with positions `{batch, length}"},
    {~S|fast_sdpa(q, k, v, scale, sinks \\ nil)|, "EMLX.Kernels.scaled_dot_product_attention/5"},
    {~S|fast_sdpa_masked(q, k, v, mask, scale, sinks \\ nil)|, "EMLX.Kernels.scaled_dot_product_attention/5"},
    {~S|fast_sdpa_causal(q, k, v, scale, sinks \\ nil)|, "EMLX.Kernels.scaled_dot_product_attention/5"},
    {~S|fast_sdpa_causal_key_masked(q, k, v, scale, key_mask, kv_offset, sinks \\ nil)|,
     "EMLX.Kernels.scaled_dot_product_attention/5` where query i sees the keys up to i + kv_offset that " <>
       "`key_mask` has, and is 0 without any; the shape of `key_mask` is `{batch, keys}"},
    {"fast_swiglu(gate, up)", "gate · EMLX.Ops.sigmoid(gate) · up"},
    {"kv_cache_attention(q, new_k, new_v, k_cache, v_cache, offset, scale)",
     "EMLX.Kernels.scaled_dot_product_attention/5` of `{batch, length, heads, size}` after the new keys and " <>
       "values are written into copies of the caches: `{attention, k_cache, v_cache}", :tuple},
    {"kv_cache_attention_masked(q, new_k, new_v, k_cache, v_cache, offset, scale, key_mask)",
     "EMLX.kv_cache_attention/7` with a mask of keys `{batch, offset + length}", :tuple},
    {"kv_cache_sdpa_update(q, new_k, new_v, k_cache, v_cache, offset, scale)",
     "EMLX.kv_cache_attention/7` of `{batch, heads, length, size}", :tuple},
    {"causal_kv_attention(q, new_k, new_v, k_cache, v_cache, offset, opts)",
     "EMLX.kv_cache_attention/7` with the options `:scale` and `:key_mask", :tuple},
    {"shape(array)", "EMLX.Array.shape/1", :term},
    {"scalar_type(array)", "EMLX.Array.dtype/1`, as MLX names types: `:float32", :term},
    {"strides(array)", "EMLX.Array.strides/1", :term},
    {"to_device(array, device)", "EMLX.Array.to_device/2"},
    {"deallocate(array)", "EMLX.Array.deallocate/1", :term},
    {"to_blob(array)", "EMLX.Array.to_binary/2", :term},
    {"to_blob(array, limit)", "EMLX.Array.to_binary/2` of the first `limit` elements: `binary", :term},
    {"item(array)", "EMLX.Array.to_list/1` of one element, where true is 1 and false is 0: `number", :term},
    {"tensor_data_ptr(array)", "EMLX.Array.to_pointer/2", :term},
    {"tensor_to_shm(array, permissions)", "EMLX.SharedMemory.create/2", :term},
    {"shm_unlink(name)", "EMLX.SharedMemory.unlink/1", :term}
  ]

  simple =
    for {name, op} <- unary, do: {"#{name}(array)", "EMLX.Ops.#{op}/1"}

  pairs =
    for {name, op} <- binary, do: {"#{name}(a, b)", "EMLX.Ops.#{op}/2"}

  @table (for entry <- simple ++ pairs ++ table do
            {name, args} = entry |> elem(0) |> Code.string_to_quoted!() |> Macro.decompose_call()
            {name, args, elem(entry, 1), if(tuple_size(entry) == 3, do: elem(entry, 2), else: :array)}
          end)

  @doc "Returns `{name, quoted arguments, documenting function, kind of result}` for each function."
  def table, do: @table
end
