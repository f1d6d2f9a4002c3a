defmodule EMLX.Ops do
  @moduledoc """
  MLX's operations on `EMLX.Array`s. Calls record operations; the evaluation computes them later (`EMLX.Array`).

  Names and semantics are those of [MLX](https://ml-explore.github.io/mlx/build/html/python/ops.html), except where an
  operation documents a difference.

    * Arrays of different types are promoted to a common type, and shapes are broadcast.
    * Axes count from 0, negative ones from the end. `axes: nil` means all axes. A shape is a tuple or a list.
    * In functions of two arrays, one may be a number. It becomes a scalar of the other's type, or of `:f32` for a float
      with an integer array.
    * Functions with options also take `:device` and `:queue`, as `run/3` does.

  All functions return a new array, or a list of arrays where documented. They raise `EMLX.Error`, which names the
  operation, the shapes and the types, if the arguments do not fit.

      iex> a = EMLX.Array.from_list([[1.0, 2.0], [3.0, 4.0]], :f32)
      iex> a |> EMLX.Ops.matmul(a) |> EMLX.Ops.sum(axes: [0]) |> EMLX.Array.to_list()
      [22.0, 32.0]
  """

  import Kernel, except: [abs: 1, ceil: 1, floor: 1, trunc: 1, round: 1, round: 2, max: 2, min: 2]

  alias EMLX.{Array, Native, Queue}

  @type op :: atom | {atom, map}

  @typedoc "An array, or a number that becomes a scalar of the other operand's type."
  @type operand :: Array.t() | number | boolean | Array.non_finite()

  @doc """
  Runs an operation, given as its name or as `{name, attributes}` (`EMLX.OpTable` lists both). All functions of this
  module and of `EMLX.Kernels` call it.

  `inputs` is a list of arrays, `nil` for absent ones. Attributes that may be `nil` may be left out. Returns one array,
  or a list of arrays for operations with several results.

  Options: `:device` or `:queue`, where the operation runs. The default is the process's queue (`EMLX.Queue.with/2`),
  else the device of the inputs.
  """
  @spec run(op, [Array.t() | nil], keyword) :: Array.t() | [Array.t()]
  def run(op, inputs, opts \\ []) do
    case Native.apply(op, refs(inputs), Queue.target(opts)) do
      ref when is_reference(ref) -> %Array{ref: ref}
      {:check, answer} -> op |> EMLX.Debug.checked(inputs, answer) |> result(op, inputs, opts)
      answer -> result(answer, op, inputs, opts)
    end
  end

  @doc false
  # An operation of one result, which is cast: in one call, and on the CPU mostly in one kernel.
  @spec run_and_cast(op, [Array.t() | nil], Array.dtype(), keyword) :: Array.t()
  def run_and_cast(op, inputs, dtype, opts \\ []) do
    case Native.apply_and_cast(op, refs(inputs), dtype, Queue.target(opts)) do
      ref when is_reference(ref) -> %Array{ref: ref}
      :apart -> run({:astype, %{dtype: dtype}}, [run(op, inputs, opts)], opts)
      {:check, answer} -> op |> EMLX.Debug.checked(inputs, answer) |> result(op, inputs, opts)
      answer -> result(answer, op, inputs, opts)
    end
  end

  defp result(ref, _op, _inputs, _opts) when is_reference(ref), do: %Array{ref: ref}
  defp result({:ok, result}, _op, _inputs, _opts), do: result
  defp result({:wait, result}, _op, _inputs, opts), do: EMLX.eval(result, opts)
  defp result({:traced, result}, op, inputs, _opts), do: EMLX.Trace.record(op, inputs, result)
  defp result({:error, error}, _op, _inputs, _opts), do: raise(EMLX.Error, error)

  defp refs([%Array{ref: ref} | rest]), do: [ref | refs(rest)]
  defp refs([other | rest]), do: [other | refs(rest)]
  # The native code raises for an improper list or another term, with the name of the operation.
  defp refs(end_of_list), do: end_of_list

  @doc false
  def shape_to_list(shape) when is_tuple(shape), do: Tuple.to_list(shape)
  def shape_to_list(shape), do: shape

  # A row `group: title` starts a group of the documentation.
  grouped = fn rows ->
    {rows, _title} =
      Enum.flat_map_reduce(rows, nil, fn
        {:group, title}, _title -> {[], title}
        row, title -> {[{title, row}], title}
      end)

    rows
  end

  # ---- operations of one and two arrays ----

  unary = [
    group: "Elementwise",
    abs: "Absolute value.",
    negative: "-a.",
    sign: "-1, 0 or 1; for complex numbers a / |a|.",
    ceil: "Rounds up to an integer.",
    floor: "Rounds down to an integer.",
    trunc: "Rounds toward zero to an integer.",
    round_away: "Rounds to the nearest integer, halves away from zero.",
    exp: "e to the power a.",
    expm1: "exp(a) - 1, accurate for small a.",
    log: "Natural logarithm.",
    log1p: "log(1 + a), accurate for small a.",
    log2: "Logarithm to base 2.",
    log10: "Logarithm to base 10.",
    sin: "Sine of an angle in radians.",
    cos: "Cosine of an angle in radians.",
    tan: "Tangent of an angle in radians.",
    arcsin: "Inverse sine.",
    arccos: "Inverse cosine.",
    arctan: "Inverse tangent.",
    sinh: "Hyperbolic sine.",
    cosh: "Hyperbolic cosine.",
    tanh: "Hyperbolic tangent.",
    arcsinh: "Inverse hyperbolic sine.",
    arccosh: "Inverse hyperbolic cosine.",
    arctanh: "Inverse hyperbolic tangent.",
    erf: "The error function.",
    erfc: "1 - erf(a), accurate in f32 also where erf is near 1.",
    erfinv: "The inverse of the error function.",
    sqrt: "Square root.",
    rsqrt: "1 / sqrt(a).",
    cbrt: "The real cube root.",
    square: "a · a.",
    reciprocal: "1 / a.",
    sigmoid: "1 / (1 + exp(-a)).",
    degrees: "Converts radians to degrees.",
    radians: "Converts degrees to radians.",
    logical_not: "Whether a is zero, as `:bool`.",
    bitwise_invert: "Inverts all bits.",
    population_count: "The number of bits that are set. Integers only.",
    count_leading_zeros: "The number of zero bits above the highest set one. Integers only.",
    isnan: "Whether a is NaN.",
    isinf: "Whether a is infinite.",
    isposinf: "Whether a is positive infinity.",
    isneginf: "Whether a is negative infinity.",
    isfinite: "Whether a is neither infinite nor NaN.",
    real: "The real part.",
    imag: "The imaginary part.",
    conjugate: "The complex conjugate.",
    group: "Shapes",
    copy: "An equal array with its own memory.",
    contiguous: "An equal array that is contiguous in row-major order.",
    group: "Casts",
    to_fp8: "Rounds to 8-bit floats (E4M3), returned as their bits in `:u8`."
  ]

  for {group, {name, doc}} <- grouped.(unary) do
    @doc group: group
    @doc doc
    @spec unquote(name)(Array.t()) :: Array.t()
    def unquote(name)(a), do: run(unquote(name), [a])
  end

  binary = [
    group: "Elementwise",
    add: "a + b.",
    subtract: "a - b.",
    multiply: "a · b.",
    divide: "a / b. For integers, too, the result is a float.",
    floor_divide: "a / b rounded down.",
    quotient: "a / b rounded toward zero. Integers only; 0 where b is 0.",
    remainder: "The remainder with the sign of b, as Python's `%`. For integers, 0 where b is 0.",
    fmod: "The remainder with the sign of a, as Erlang's `rem`. For integers, 0 where b is 0.",
    power: "a to the power b.",
    maximum: "The larger of a and b; NaN where either is.",
    minimum: "The smaller of a and b; NaN where either is.",
    arctan2: "The angle of the point {b, a}, in radians.",
    logaddexp: "log(exp(a) + exp(b)).",
    equal: "a = b, as `:bool`.",
    not_equal: "a ≠ b, as `:bool`.",
    less: "a < b, as `:bool`.",
    less_equal: "a ≤ b, as `:bool`.",
    greater: "a > b, as `:bool`.",
    greater_equal: "a ≥ b, as `:bool`.",
    logical_and: "Whether both are non-zero, as `:bool`.",
    logical_or: "Whether either is non-zero, as `:bool`.",
    logical_xor: "Whether exactly one is non-zero, as `:bool`.",
    bitwise_and: "Bits set in both.",
    bitwise_or: "Bits set in either.",
    bitwise_xor: "Bits set in exactly one.",
    left_shift: "Shifts a left by b bits; the result is 0 for b of at least the width of the type.",
    right_shift: "Shifts a right by b bits. Signed types keep their sign.",
    group: "Matrix products",
    matmul: "Matrix product of the last two axes; the others are broadcast. Integers wrap around in their type.",
    inner: "The sum of products over the last axes.",
    outer: "The outer product of two flattened arrays.",
    kron: "The Kronecker product.",
    group: "Linear algebra",
    solve: "Solves a·x = b for x; a is {…, n, n}, b is {…, n} or {…, n, m}. Runs on the CPU.",
    solve_or_nan: "Like `solve/3`, but the solution of a singular system is NaN and not an error.",
    group: "Reductions",
    cross_entropy: "The cross entropy of logits {…, classes} and integer targets {…}."
  ]

  for {group, {name, doc}} <- grouped.(binary) do
    @doc group: group
    @doc doc
    @spec unquote(name)(operand, operand) :: Array.t()
    def unquote(name)(a, b) do
      {a, b} = with_number(a, b)
      run(unquote(name), [a, b])
    end
  end

  defp with_number(a, %Array{} = b) when not is_struct(a), do: {like(a, b), b}
  defp with_number(%Array{} = a, b) when not is_struct(b) and b != nil, do: {a, like(b, a)}
  defp with_number(a, b), do: {a, b}

  # A scalar of a number that is combined with an array.
  defp like(number, %Array{} = array) do
    dtype = Array.dtype(array)
    integral? = dtype in [:bool, :u8, :u16, :u32, :u64, :s8, :s16, :s32, :s64]

    cond do
      is_number(number) or number in [:nan, :infinity, :neg_infinity] ->
        dtype = if integral? and not is_integer(number), do: :f32, else: dtype
        dtype = if dtype == :bool, do: :s32, else: dtype
        Array.scalar(number, dtype)

      is_boolean(number) ->
        Array.scalar(if(number, do: 1, else: 0), :bool)

      true ->
        number
    end
  end

  # ---- operations with attributes ----
  #
  # {name, arrays, required attributes, options with their defaults, documentation}. The arguments of the function are
  # the arrays, then the attributes, then the options.

  reduction = [axes: nil, keepdims: false]
  cumulative = [axis: -1, reverse: false, inclusive: true]

  table = [
    {:group, "Elementwise"},
    {:round, [:a], [], [decimals: 0], "Rounds to a number of decimals, ties to even."},
    {:nan_to_num, [:a], [], [nan: 0.0, posinf: nil, neginf: nil],
     "Replaces NaN and infinities; nil means the largest finite number of the same sign."},
    {:isclose, [:a, :b], [], [rtol: 1.0e-5, atol: 1.0e-8, equal_nan: false], "|a - b| ≤ atol + rtol·|b|."},
    {:group, "Reductions"},
    {:allclose, [:a, :b], [], [rtol: 1.0e-5, atol: 1.0e-8, equal_nan: false],
     "Whether all elements are close, as one `:bool`."},
    {:array_equal, [:a, :b], [], [equal_nan: false], "Whether shapes and elements are equal."},
    {:group, "Casts"},
    {:astype, [:a], [:dtype], [], "Casts the elements to another type."},
    {:to_integer, [:a], [:dtype], [],
     "Casts to an integer type. Floats outside of it wrap around; NaN is 0, an infinity the largest or smallest integer."},
    {:view, [:a], [:dtype], [], "Reinterprets the bits as another type; the last axis changes with the element size."},
    {:from_fp8, [:a], [], [dtype: :f32], "Converts 8-bit floats (E4M3, as their bits in `:u8`) to floats."},
    {:group, "Reductions"},
    {:sum, [:a], [], reduction, "Sum over axes."},
    {:prod, [:a], [], reduction, "Product over axes."},
    {:max, [:a], [], reduction, "Maximum over axes."},
    {:min, [:a], [], reduction, "Minimum over axes."},
    {:all, [:a], [], reduction, "Whether all elements are non-zero, over axes."},
    {:any, [:a], [], reduction, "Whether any element is non-zero, over axes."},
    {:mean, [:a], [], reduction, "Arithmetic mean over axes."},
    {:median, [:a], [], reduction, "Median over axes."},
    {:var, [:a], [], reduction ++ [ddof: 0], "Variance over axes, divided by n - ddof."},
    {:std, [:a], [], reduction ++ [ddof: 0], "Standard deviation over axes."},
    {:logsumexp, [:a], [], reduction, "Logarithm of the sum of exponentials over axes."},
    {:softmax, [:a], [], [axes: [-1], precise: false],
     "Exponentials divided by their sum; `precise: true` sums 16-bit floats in f32."},
    {:argmax, [:a], [], [axis: nil, keepdims: false, nan: :first],
     "Index of the first largest element as `:u32`. NaN counts as largest; `nan: :last` selects the last NaN."},
    {:argmin, [:a], [], [axis: nil, keepdims: false, nan: :first],
     "Index of the first smallest element as `:u32`. NaN counts as smallest; `nan: :last` selects the last NaN."},
    {:group, "Scans"},
    {:cumsum, [:a], [], cumulative, "Running sums."},
    {:cumprod, [:a], [], cumulative, "Running products."},
    {:cummax, [:a], [], cumulative, "Running maxima."},
    {:cummin, [:a], [], cumulative, "Running minima."},
    {:logcumsumexp, [:a], [], cumulative, "Running logarithm of sums of exponentials."},
    {:group, "Sorting"},
    {:sort, [:a], [], [axis: -1], "Sorts in ascending order, NaN last."},
    {:argsort, [:a], [], [axis: -1], "The indices of a stable ascending sort, as `:u32`."},
    {:partition, [:a], [:kth], [axis: -1],
     "Reorders the elements so that element `kth` is at its sorted position, with the smaller ones before it."},
    {:argpartition, [:a], [:kth], [axis: -1], "The indices of `partition`."},
    {:topk, [:a], [:k], [axis: -1], "The k largest elements, in undefined order. `top_k` orders them."},
    {:searchsorted, [:sorted, :values], [], [side: :left],
     "The indices to insert values into a sorted vector at, before (`:left`) or after (`:right`) equal elements."},
    {:group, "Shapes"},
    {:reshape, [:a], [:shape], [], "Changes the shape; one size may be -1."},
    {:flatten, [:a], [], [start_axis: 0, end_axis: -1], "Merges axes into one."},
    {:unflatten, [:a], [:axis, :shape], [], "Splits one axis into several."},
    {:squeeze, [:a], [:axes], [], "Removes axes of size 1."},
    {:expand_dims, [:a], [:axes], [], "Inserts axes of size 1 at these positions of the result."},
    {:transpose, [:a], [:axes], [], "Permutes the axes."},
    {:swapaxes, [:a], [:axis1, :axis2], [], "Swaps two axes."},
    {:moveaxis, [:a], [:source, :destination], [], "Moves one axis."},
    {:broadcast_to, [:a], [:shape], [], "Broadcasts to a shape, without a copy."},
    {:repeat, [:a], [:repeats], [axis: 0], "Repeats each element."},
    {:tile, [:a], [:repetitions], [], "Repeats the array along each axis."},
    {:flip, [:a], [:axes], [], "Reverses axes."},
    {:roll, [:a], [:shift, :axes], [], "Shifts elements cyclically along axes."},
    {:pad, [:a, :value], [:axes, :low, :high], [mode: :constant],
     "Pads axes with `value`; negative widths crop. `mode: :edge` repeats the border."},
    {:pad_interior, [:a, :value], [:low, :high, :interior], [],
     "Pads every axis, with `interior` values between adjacent elements."},
    {:as_strided, [:a], [:shape, :strides], [offset: 0],
     "A view of the elements in row-major order with any strides, in elements."},
    {:group, "Diagonals"},
    {:diag, [:a], [], [k: 0], "A vector as a diagonal, or the diagonal of a matrix."},
    {:diagonal, [:a], [], [offset: 0, axis1: 0, axis2: 1], "The diagonal of two axes."},
    {:tril, [:a], [], [k: 0], "The lower triangle: zero above diagonal k."},
    {:triu, [:a], [], [k: 0], "The upper triangle: zero below diagonal k."},
    {:trace, [:a], [], [offset: 0, axis1: 0, axis2: 1], "The sum of a diagonal."},
    {:group, "Slices and indices"},
    {:slice, [:a], [:start, :stop, :strides], [], "Elements start, start + stride, … before stop, for each axis."},
    {:slice_update, [:a, :update], [:start, :stop, :strides], [], "Replaces a slice."},
    {:slice_update_add, [:a, :update], [:start, :stop, :strides], [], "Adds to a slice."},
    {:slice_update_max, [:a, :update], [:start, :stop, :strides], [], "Replaces a slice where the update is larger."},
    {:slice_update_min, [:a, :update], [:start, :stop, :strides], [], "Replaces a slice where the update is smaller."},
    {:slice_update_prod, [:a, :update], [:start, :stop, :strides], [], "Multiplies a slice."},
    {:slice_dynamic, [:a, :start], [:axes, :sizes], [],
     "A slice that starts at the integers in `start`, one for each axis, clamped so that it fits."},
    {:slice_update_dynamic, [:a, :update, :start], [:axes], [],
     "Replaces a slice that starts at the integers in `start`, clamped so that it fits."},
    {:take, [:a, :indices], [], [axis: 0],
     "Elements at indices along an axis. Negative indices count from the end, others are clamped."},
    {:take_along_axis, [:a, :indices], [], [axis: -1],
     "One element for each index, at the index's own position on the other axes."},
    {:put_along_axis, [:a, :indices, :values], [], [axis: -1], "The inverse of `take_along_axis`."},
    {:scatter_add_axis, [:a, :indices, :values], [], [axis: -1], "Adds values at indices along an axis."},
    {:masked_scatter, [:a, :mask, :values], [], [], "Replaces the elements selected by a mask by values, in order."},
    {:group, "Elementwise"},
    {:where, [:condition, :a, :b], [], [], "a where the condition is non-zero, else b."},
    {:clip, [:a, :low, :high], [], [], "Clamps to the range from low to high; either may be nil."},
    {:group, "Matrix products"},
    {:addmm, [:c, :a, :b], [], [alpha: 1.0, beta: 1.0], "alpha·(a·b) + beta·c."},
    {:tensordot, [:a, :b], [:axes_a, :axes_b], [], "The sum of products over pairs of axes."},
    {:vecdot, [:a, :b], [], [axis: -1], "The sum of products over one axis, with a conjugated."},
    {:gather_mm, [:a, :b, :lhs_indices, :rhs_indices], [], [sorted: false],
     "Matrix products of matrices selected by index; either index array may be nil."},
    {:group, "Convolutions and windows"},
    {:conv, [:a, :weight], [],
     [
       stride: 1,
       padding_low: 0,
       padding_high: 0,
       kernel_dilation: 1,
       input_dilation: 1,
       groups: 1,
       flip: false
     ],
     "Convolution (cross-correlation unless `flip`). a is {batch, space…, channels}, weight is " <>
       "{out, space…, channels / groups}. A number applies to all spatial axes."},
    {:conv_transpose, [:a, :weight], [], [stride: 1, padding: 0, dilation: 1, output_padding: 0, groups: 1],
     "Transposed convolution, in the layout of `conv`."},
    {:window_reduce, [:a], [:reduction, :window, :strides, :padding_low, :padding_high], [dilation: nil],
     "`:sum`, `:prod`, `:max` or `:min` over sliding windows; lists have one entry for each axis."},
    {:window_scatter, [:a, :source, :init], [:reduction, :window, :strides, :padding_low, :padding_high],
     [ties: :first, pads_with_init: false],
     "`init`, plus each element of `source` at its window's first (or `:last`) maximum (`:max`) or minimum (`:min`). " <>
       "Padding is never chosen, unless it is `init`: a source whose window's extreme it is is left out."},
    {:window_view, [:a], [:window, :strides], [dilation: nil], "All windows: the output's axes, then the window's."},
    {:group, "Transforms"},
    {:fft, [:a], [:sizes, :axes], [norm: :backward, eps: nil],
     "Discrete Fourier transform over axes. Real and imaginary parts of at most `eps` become 0."},
    {:ifft, [:a], [:sizes, :axes], [norm: :backward, eps: nil],
     "Inverse discrete Fourier transform. Real and imaginary parts of at most `eps` become 0."},
    {:rfft, [:a], [:sizes, :axes], [norm: :backward], "Fourier transform of real numbers."},
    {:irfft, [:a], [:sizes, :axes], [norm: :backward], "The inverse of `rfft`."},
    {:fftshift, [:a], [:axes], [], "Moves frequency 0 to the middle."},
    {:ifftshift, [:a], [:axes], [], "The inverse of `fftshift`."},
    {:hadamard_transform, [:a], [], [scale: nil],
     "The Hadamard transform of the last axis; `scale` is 1/sqrt(length) by default."},
    {:group, "Linear algebra"},
    {:cholesky, [:a], [], [upper: false, semidefinite: false],
     "The Cholesky factor of {…, n, n}. With `semidefinite: true`, the column of a pivot that is 0 up to rounding is 0, " <>
       "and the factor of an indefinite matrix is NaN; otherwise that is not defined. On the CPU."},
    {:cholesky_inv, [:a], [], [upper: false], "The inverse from a Cholesky factor. On the CPU."},
    {:eigvalsh, [:a], [], [upper: false], "The eigenvalues of a symmetric matrix. On the CPU."},
    {:eigvals, [:a], [], [], "The eigenvalues, complex. On the CPU."},
    {:inv, [:a], [], [], "The inverse. On the CPU."},
    {:tri_inv, [:a], [], [upper: false], "The inverse of a triangular matrix. On the CPU."},
    {:pinv, [:a], [], [], "The Moore-Penrose inverse. On the CPU."},
    {:det, [:a], [], [], "The determinant. On the CPU."},
    {:solve_triangular, [:a, :b], [], [upper: false],
     "Solves a·x = b for x with a triangular matrix, of which only that triangle is read. On the CPU."},
    {:cross, [:a, :b], [], [axis: -1], "The cross product of vectors of 3 (or 2) elements."},
    {:group, "Random numbers"},
    {:random_key, [], [:seed], [], "A key of the counter-based generator (Threefry)."},
    {:random_split, [:key], [], [num: 2], "Splits a key into new keys, {num, 2}."},
    {:random_bits, [:key], [:shape], [width: 4], "Random bits in unsigned integers of `width` bytes."},
    {:random_uniform, [:low, :high, :key], [:shape], [dtype: :f32], "Uniform distribution in low..high."},
    {:random_normal, [:key], [:shape], [dtype: :f32, loc: 0.0, scale: 1.0], "Normal distribution."},
    {:random_randint, [:low, :high, :key], [:shape], [dtype: :s32], "Integers from low to below high."},
    {:random_bernoulli, [:p, :key], [:shape], [], "true with probability p, as `:bool`."},
    {:random_truncated_normal, [:low, :high, :key], [:shape], [dtype: :f32],
     "Normal distribution truncated to low..high."},
    {:random_gumbel, [:key], [:shape], [dtype: :f32], "Gumbel distribution."},
    {:random_laplace, [:key], [:shape], [dtype: :f32, loc: 0.0, scale: 1.0], "Laplace distribution."},
    {:random_categorical, [:logits, :key], [:shape], [axis: -1],
     "Samples indices with the probabilities softmax(logits)."},
    {:random_permutation, [:a, :key], [], [axis: 0], "Permutes randomly along an axis."},
    {:group, "Creation"},
    {:full, [:value], [:shape, :dtype], [], "An array filled with `value`."},
    {:zeros, [], [:shape, :dtype], [], "An array of zeros."},
    {:ones, [], [:shape, :dtype], [], "An array of ones."},
    {:arange, [], [:start, :stop], [step: 1.0, dtype: :f32], "start, start + step, … before stop."},
    {:linspace, [], [:start, :stop, :num], [dtype: :f32], "num evenly spaced numbers from start to stop."},
    {:iota, [], [:shape], [axis: nil, dtype: :s32], "Counts from 0 along an axis, or in row-major order."},
    {:eye, [], [:n], [m: nil, k: 0, dtype: :f32], "Ones on diagonal k of an n × m matrix."},
    {:tri, [], [:n], [m: nil, k: 0, dtype: :f32], "Ones on and below diagonal k."}
  ]

  # Operations that return lists of arrays.
  lists = [
    {:group, "Elementwise"},
    {:divmod, [:a, :b], [], [], "`[a / b rounded down, remainder]`."},
    {:group, "Shapes"},
    {:split, [:a], [:indices], [axis: 0], "Splits at indices. Returns a list of the parts."},
    {:group, "Sorting"},
    {:top_k, [:a], [:k], [axis: -1],
     "`[the k largest elements in descending order, their indices as :u32]`. NaN comes first, and of equal elements " <>
       "the first; k may be 0."},
    {:group, "Linear algebra"},
    {:qr, [:a], [], [], "`[q, r]`. On the CPU."},
    {:svd, [:a], [], [compute_uv: true], "`[u, s, vt]`, or only s. On the CPU."},
    {:eigh, [:a], [], [upper: false],
     "`[ascending eigenvalues, eigenvectors in columns]` of a symmetric matrix. On the CPU."},
    {:eig, [:a], [], [], "`[eigenvalues, eigenvectors]`, complex. On the CPU."},
    {:lu, [:a], [], [], "`[row order, l, u]`. On the CPU."},
    {:lu_factor, [:a], [], [], "`[l and u in one matrix, pivots]`. On the CPU."},
    {:slogdet, [:a], [], [], "`[sign, log |det|]`. On the CPU."}
  ]

  # Attributes for which a number applies to all spatial axes.
  @spaces [:stride, :padding_low, :padding_high, :kernel_dilation, :input_dilation] ++
            [:padding, :dilation, :output_padding]

  for {group, {name, arrays, attributes, options, doc}} <- grouped.(table ++ lists) do
    inputs = Enum.map(arrays, &Macro.var(&1, nil))
    required = Enum.map(attributes, &Macro.var(&1, nil))
    given = Enum.zip(attributes, required)
    indexed? = Enum.any?(arrays, &(&1 in [:indices, :lhs_indices]))

    defaults =
      case options do
        [] -> ""
        _ -> " Options: " <> Enum.map_join(options, ", ", fn {k, v} -> "`#{k}: #{inspect(v)}`" end) <> "."
      end

    types = Enum.map(arrays, fn _ -> quote(do: Array.t() | number | nil) end)

    result =
      cond do
        name == :svd -> quote(do: [Array.t()] | Array.t())
        List.keymember?(lists, name, 0) -> quote(do: [Array.t()])
        true -> quote(do: Array.t())
      end

    @doc group: group
    @doc doc <> defaults
    @spec unquote(name)(
            unquote_splicing(types ++ Enum.map(attributes, fn _ -> quote(do: term) end)),
            keyword
          ) :: unquote(result)
    def unquote(name)(unquote_splicing(inputs ++ required), opts \\ []) do
      if unquote(indexed?), do: EMLX.Debug.indexed()
      with_attributes(unquote(name), unquote(inputs), unquote(given), opts, unquote(options))
    end
  end

  defp with_attributes(name, inputs, given, opts, defaults) do
    {where, opts} = Keyword.split(opts, [:device, :queue])
    attributes = given ++ Keyword.validate!(opts, defaults)
    inputs = numbers_to_arrays(inputs)

    case Map.new(attributes, fn {key, value} -> {key, attribute(name, key, value, inputs, attributes)} end) do
      none when none == %{} -> run(name, inputs, where)
      map -> run({name, map}, inputs, where)
    end
  end

  defp numbers_to_arrays(inputs) do
    case Enum.find(inputs, &is_struct(&1, Array)) do
      nil -> Enum.map(inputs, &if(is_number(&1), do: Array.scalar(&1, :f32), else: &1))
      array -> Enum.map(inputs, &if(is_number(&1), do: like(&1, array), else: &1))
    end
  end

  defp attribute(name, :m, nil, _inputs, all) when name in [:eye, :tri], do: all[:n]

  defp attribute(name, :dilation, nil, _inputs, all) when name in [:window_reduce, :window_view],
    do: List.duplicate(1, length(shape_to_list(all[:window])))

  defp attribute(name, key, value, [%Array{} = a | _], _all)
       when name in [:conv, :conv_transpose] and key in @spaces and is_integer(value),
       do: List.duplicate(value, Kernel.max(Array.rank(a) - 2, 0))

  # The native code takes no integer for a float.
  defp attribute(name, key, value, _inputs, _all) when is_integer(value),
    do: if(EMLX.OpTable.float?(name, key), do: value * 1.0, else: value)

  defp attribute(_name, _key, value, _inputs, _all) when is_tuple(value), do: Tuple.to_list(value)
  defp attribute(_name, _key, value, _inputs, _all), do: value

  # ---- any number of arrays ----

  @doc group: "Shapes"
  @doc "Concatenates arrays along an axis. Options: `axis: 0`."
  @spec concatenate([Array.t()], keyword) :: Array.t()
  def concatenate(arrays, opts \\ []), do: joined(:concatenate, arrays, opts)

  @doc group: "Shapes"
  @doc "Stacks arrays along a new axis. Options: `axis: 0`."
  @spec stack([Array.t()], keyword) :: Array.t()
  def stack(arrays, opts \\ []), do: joined(:stack, arrays, opts)

  defp joined(name, arrays, opts) do
    {where, opts} = Keyword.split(opts, [:device, :queue])
    run({name, Map.new(Keyword.validate!(opts, axis: 0))}, arrays, where)
  end

  @doc group: "Matrix products"
  @doc """
  The Einstein sum of an equation such as `"bij,bjk->bik"`.

      iex> a = EMLX.Array.from_list([[1, 2], [3, 4]], :s32)
      iex> EMLX.Array.to_list(EMLX.Ops.einsum("ij->ji", [a]))
      [[1, 3], [2, 4]]
  """
  @spec einsum(String.t(), [Array.t()], keyword) :: Array.t()
  def einsum(subscripts, operands, opts \\ []),
    do: run({:einsum, %{subscripts: subscripts}}, operands, opts)

  @doc group: "Slices and indices"
  @doc """
  Gathers slices of a at the positions in `indices`, which has one index array for each of `axes`. The axes of the
  result are those of the broadcast index arrays, followed by those of a slice of `slice_sizes`. Indices are clamped so
  that the slice fits.
  """
  @spec gather(Array.t(), [Array.t()], [integer], [non_neg_integer]) :: Array.t()
  def gather(a, indices, axes, slice_sizes) do
    EMLX.Debug.indexed()
    run({:gather, %{axes: axes, slice_sizes: shape_to_list(slice_sizes)}}, [a | indices])
  end

  for {name, doc} <- [
        scatter: "Replaces slices of a by updates. If indices repeat, the update that is kept is undefined.",
        scatter_add: "Adds updates to slices of a.",
        scatter_max: "Takes the maximum of slices of a and updates.",
        scatter_min: "Takes the minimum of slices of a and updates.",
        scatter_prod: "Multiplies slices of a by updates."
      ] do
    @doc group: "Slices and indices"
    @doc """
    #{doc}

    `indices` has one index array for each of `axes`. `updates` has the axes of the index arrays, followed by one for
    every axis of a. Updates whose index is out of range are dropped.
    """
    @spec unquote(name)(Array.t(), [Array.t()], Array.t(), [integer]) :: Array.t()
    def unquote(name)(a, indices, updates, axes) do
      EMLX.Debug.indexed()
      run({unquote(name), %{axes: axes}}, [a, updates | indices])
    end
  end
end
