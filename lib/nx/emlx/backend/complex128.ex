defmodule EMLX.Backend.Complex128 do
  @moduledoc false
  # The callbacks of EMLX.Backend for c128. EMLX.Backend.Pair describes the storage.
  #
  # Callbacks that only move or add elements call the backend's own callback for f64, with one more axis. Functions of
  # complex numbers are in EMLX.Backend.Complex128.Math, and products are composed of real ones. Operands of other types
  # are converted to c128 first.
  #
  # `use` puts these callbacks before those of EMLX.Backend. Each is called if one of the arguments that `@concerned`
  # names is c128.

  alias EMLX.{Array, Backend, Ops}
  alias EMLX.Backend.Complex128.{Fourier, Math, Triangular}
  alias EMLX.Backend.{Fold, Pair, Product, Type, Window}
  alias Nx.Tensor, as: T

  @c128 {:c, 128}

  unary =
    [:exp, :expm1, :log, :log1p, :sigmoid, :cos, :sin, :tan, :cosh, :sinh, :tanh] ++
      [:acos, :asin, :atan, :acosh, :asinh, :atanh, :sqrt, :rsqrt, :cbrt, :sign]

  # The first argument, the result, decides, unless its type is not that of the operands.
  @concerned Enum.map(unary ++ [:negate, :conjugate], &{&1, 2, [0]}) ++
               Enum.map([:abs, :real, :imag, :is_nan, :is_infinity], &{&1, 2, [1]}) ++
               Enum.map([:add, :subtract, :multiply, :divide, :pow, :atan2], &{&1, 3, [0]}) ++
               Enum.map([:equal, :not_equal, :logical_and, :logical_or, :logical_xor], &{&1, 3, [1, 2]}) ++
               Enum.map([:sum, :product, :fft, :ifft], &{&1, 3, [0]}) ++
               Enum.map([:all, :any], &{&1, 3, [1]}) ++
               Enum.map([:indexed_add, :indexed_put], &{&1, 5, [0]}) ++
               Enum.map([:window_sum, :window_product], &{&1, 4, [0]}) ++
               [
                 {:eye, 2, [0]},
                 {:iota, 3, [0]},
                 {:to_binary, 2, [0]},
                 {:to_batched, 3, [0]},
                 {:bitcast, 2, [0]},
                 {:select, 4, [0, 1]},
                 {:reshape, 2, [0]},
                 {:squeeze, 3, [0]},
                 {:broadcast, 4, [0]},
                 {:transpose, 3, [0]},
                 {:reverse, 3, [0]},
                 {:pad, 4, [0]},
                 {:concatenate, 3, [0]},
                 {:stack, 3, [0]},
                 {:slice, 5, [0]},
                 {:put_slice, 4, [0]},
                 {:gather, 4, [0]},
                 {:dot, 7, [0]},
                 {:conv, 4, [0]},
                 {:triangular_solve, 4, [0]}
               ]

  defmacro __using__(_opts) do
    quote do
      @before_compile EMLX.Backend.Complex128
    end
  end

  defmacro __before_compile__(_env) do
    for {name, arity, places} <- @concerned do
      arguments = Macro.generate_arguments(arity, __MODULE__)

      clauses =
        for place <- places do
          pattern = List.update_at(arguments, place, &quote(do: %Nx.Tensor{type: {:c, 128}} = unquote(&1)))

          quote do
            # The formulas have intermediate results that are NaN or infinite, which are no errors.
            def unquote(name)(unquote_splicing(pattern)) do
              EMLX.Debug.unchecked(fn -> EMLX.Backend.Complex128.unquote(name)(unquote_splicing(arguments)) end)
            end
          end
        end

      quote do
        defoverridable [{unquote(name), unquote(arity)}]
        @impl true
        unquote_splicing(clauses)
        def unquote(name)(unquote_splicing(arguments)), do: super(unquote_splicing(arguments))
      end
    end
  end

  # ---- operands and results ----

  # The pairs of a tensor of any type.
  defp pairs(%T{type: type} = tensor), do: Type.convert(Backend.to_array(tensor), type, @c128)

  defp parts(tensor), do: Pair.split(pairs(tensor))

  # The pairs as a tensor of f64, for the backend's own callbacks.
  defp flat(%T{} = tensor), do: Backend.tensor(pairs(tensor), flat_like(tensor))

  defp flat_like(%T{shape: shape, names: names} = tensor),
    do: %{tensor | type: {:f, 64}, shape: append(shape, 2), names: names ++ [nil]}

  defp append(tuple, last), do: Tuple.insert_at(tuple, tuple_size(tuple), last)

  # The result of a callback for f64 as a tensor of pairs.
  defp of_flat(out, fun), do: %{out | data: fun.(flat_like(out)).data}

  # A part of a complex tensor as a tensor of f64.
  defp real_tensor(array, %T{} = like), do: Backend.tensor(array, %{like | type: {:f, 64}})

  defp joined({re, im}, out), do: Backend.tensor(Pair.join(re, im), out)

  # ---- creation and reading ----

  def eye(out, opts), do: %{out | type: {:f, 64}} |> Backend.eye(Backend.where(opts, @c128)) |> of_real(out)

  def iota(out, axis, opts),
    do: %{out | type: {:f, 64}} |> Backend.iota(axis, Backend.where(opts, @c128)) |> of_real(out)

  defp of_real(tensor, out), do: tensor |> Backend.to_array() |> Pair.of_real() |> Backend.tensor(out)

  def to_binary(%T{} = tensor, limit), do: tensor |> flat() |> Backend.to_binary(2 * limit)

  def to_batched(out, tensor, opts) do
    out |> flat_like() |> Backend.to_batched(flat(tensor), opts) |> Stream.map(&%{out | data: &1.data})
  end

  # ---- element-wise ----

  for name <- unary do
    def unquote(name)(out, tensor), do: tensor |> parts() |> Math.unquote(name)() |> joined(out)
  end

  def negate(out, tensor), do: of_flat(out, &Backend.negate(&1, flat(tensor)))

  def bitcast(out, tensor), do: Backend.tensor(pairs(tensor), out)

  # The conjugate of a real number has the imaginary part -0.0, as on the binary backend.
  def conjugate(out, %T{type: {:c, _}} = tensor) do
    {re, im} = parts(tensor)
    joined({re, Ops.negative(im)}, out)
  end

  def conjugate(out, %T{type: type} = tensor) do
    real = Type.convert(Backend.to_array(tensor), type, {:f, 64})
    Backend.tensor(Pair.of_real(real, -0.0), out)
  end

  def abs(out, tensor), do: tensor |> parts() |> Math.abs() |> Backend.tensor(out)

  def real(out, tensor), do: tensor |> pairs() |> Pair.real() |> Backend.tensor(out)

  def imag(out, tensor), do: tensor |> pairs() |> Pair.imag() |> Backend.tensor(out)

  for {name, op} <- [is_nan: :isnan, is_infinity: :isinf] do
    def unquote(name)(out, tensor), do: tensor |> pairs() |> Ops.unquote(op)() |> of_parts(:any) |> to_u8(out)
  end

  for op <- [:add, :subtract] do
    def unquote(op)(out, left, right), do: Backend.tensor(Ops.unquote(op)(pairs(left), pairs(right)), out)
  end

  for op <- [:multiply, :divide, :pow] do
    def unquote(op)(out, left, right), do: joined(Math.unquote(op)(parts(left), parts(right)), out)
  end

  # The operands are taken as numbers on the real axis: only their real parts count.
  def atan2(out, left, right) do
    [left, right] = for tensor <- [left, right], do: Pair.real(pairs(tensor))
    Backend.tensor(Pair.of_real(Ops.arctan2(left, right)), out)
  end

  def equal(out, left, right), do: pairs(left) |> Ops.equal(pairs(right)) |> of_parts(:all) |> to_u8(out)

  def not_equal(out, left, right), do: pairs(left) |> Ops.not_equal(pairs(right)) |> of_parts(:any) |> to_u8(out)

  for op <- [:logical_and, :logical_or, :logical_xor] do
    def unquote(op)(out, left, right), do: to_u8(Ops.unquote(op)(truth(left), truth(right)), out)
  end

  @doc "Returns whether each number of a tensor of any type is not zero."
  def truth(%T{type: @c128} = tensor), do: tensor |> pairs() |> Ops.not_equal(0.0) |> of_parts(:any)
  def truth(%T{type: type} = tensor), do: Ops.not_equal(Backend.to_array(tensor), Type.scalar(0, type))

  defp of_parts(condition, op), do: Pair.of_parts(op, condition)

  defp to_u8(array, out), do: Backend.tensor(Ops.run({:astype, %{dtype: :u8}}, [array]), out)

  def select(%T{type: @c128} = out, pred, on_true, on_false) do
    Backend.tensor(Ops.where(Pair.expand(truth(pred)), pairs(on_true), pairs(on_false)), out)
  end

  def select(out, pred, on_true, on_false) do
    Backend.select(out, to_u8(truth(pred), %{pred | type: {:u, 8}}), on_true, on_false)
  end

  # ---- moves ----

  def reshape(%T{} = out, tensor), do: of_flat(out, &Backend.reshape(&1, flat(tensor)))

  def squeeze(out, tensor, _axes), do: reshape(out, tensor)

  def broadcast(out, tensor, shape, axes) do
    of_flat(out, &Backend.broadcast(&1, flat(tensor), append(shape, 2), axes ++ [tuple_size(shape)]))
  end

  def transpose(out, tensor, axes), do: of_flat(out, &Backend.transpose(&1, flat(tensor), axes ++ [length(axes)]))

  def reverse(out, tensor, axes), do: of_flat(out, &Backend.reverse(&1, flat(tensor), axes))

  # The padding value has two parts, but an array is padded with a scalar. So each part is padded by itself.
  def pad(out, tensor, value, config) do
    out_part = %{out | type: {:f, 64}}

    for part <- [&Pair.real/1, &Pair.imag/1] do
      [tensor, value] = for t <- [tensor, value], do: t |> pairs() |> part.() |> real_tensor(t)
      out_part |> Backend.pad(tensor, value, config) |> Backend.to_array()
    end
    |> List.to_tuple()
    |> joined(out)
  end

  for op <- [:concatenate, :stack] do
    def unquote(op)(out, tensors, axis),
      do: of_flat(out, &Backend.unquote(op)(&1, Enum.map(tensors, fn t -> flat(t) end), axis))
  end

  def slice(out, tensor, starts, lengths, strides),
    do: of_flat(out, &Backend.slice(&1, flat(tensor), starts ++ [0], lengths ++ [2], strides ++ [1]))

  def put_slice(out, tensor, starts, slice),
    do: of_flat(out, &Backend.put_slice(&1, flat(tensor), starts ++ [0], flat(slice)))

  def gather(out, tensor, indices, opts), do: of_flat(out, &Backend.gather(&1, flat(tensor), indices, opts))

  for name <- [:indexed_add, :indexed_put] do
    def unquote(name)(out, tensor, indices, updates, opts),
      do: of_flat(out, &Backend.unquote(name)(&1, flat(tensor), indices, flat(updates), opts))
  end

  # ---- reductions ----

  def sum(out, %T{shape: shape} = tensor, opts) do
    opts = Keyword.put(opts, :axes, opts[:axes] || all_axes(shape))
    of_flat(out, &Backend.sum(&1, flat(tensor), opts))
  end

  def product(%T{shape: out_shape} = out, %T{shape: shape} = tensor, opts) do
    Fold.refuse_slices()
    axes = opts[:axes] || all_axes(shape)
    rest = all_axes(shape) -- axes
    front = Ops.run({:transpose, %{axes: axes ++ rest ++ [tuple_size(shape)]}}, [pairs(tensor)])
    count = axes |> Enum.map(&elem(shape, &1)) |> Enum.product()
    folded(front, count, out_shape) |> Backend.tensor(out)
  end

  # The product over the first axes, which have `count` elements in all.
  defp folded(array, count, out_shape) do
    dims = Tuple.to_list(append(out_shape, 2))
    size = Enum.product(dims)
    array = Ops.run({:reshape, %{shape: [count, div(size, 2), 2]}}, [array])
    Ops.run({:reshape, %{shape: dims}}, [array |> Pair.split() |> halves(count, div(size, 2)) |> Pair.join()])
  end

  defp halves(z, 1, _size), do: z

  defp halves(z, count, size) do
    half = div(count, 2)
    part = fn first, last -> both(z, &slice_rows(&1, first, last, size)) end
    product = Math.multiply(part.(0, half), part.(half, 2 * half))

    if rem(count, 2) == 0 do
      halves(product, half, size)
    else
      {a, b} = product
      {c, d} = part.(count - 1, count)
      halves({concatenate_rows(a, c), concatenate_rows(b, d)}, half + 1, size)
    end
  end

  defp slice_rows(array, first, last, size),
    do: Ops.run({:slice, %{start: [first, 0], stop: [last, size], strides: [1, 1]}}, [array])

  defp concatenate_rows(a, b), do: Ops.run({:concatenate, %{axis: 0}}, [a, b])

  defp both({re, im}, fun), do: {fun.(re), fun.(im)}

  for op <- [:all, :any] do
    def unquote(op)(out, tensor, opts) do
      truth = to_u8(truth(tensor), %{tensor | type: {:u, 8}})
      Backend.unquote(op)(out, truth, opts)
    end
  end

  defp all_axes(shape), do: Enum.to_list(0..(tuple_size(shape) - 1)//1)

  # ---- windows ----

  def window_sum(out, tensor, window, opts),
    do: of_flat(out, &Backend.window_sum(&1, flat(tensor), append(window, 1), window_options(opts)))

  def window_product(%T{shape: out_shape} = out, tensor, window, opts) do
    Fold.refuse_slices()
    one = Backend.constant(%{out | shape: {}, names: []}, 1, device: :cpu)
    tensor |> windows(one, window, opts) |> folded(Tuple.product(window), out_shape) |> Backend.tensor(out)
  end

  @doc "Returns all windows of a tensor padded with `value`: the axes of the window first, the numbers' parts last."
  def windows(%T{shape: shape} = tensor, value, window, opts) do
    padding = opts[:padding]
    dims = Enum.zip_with(Tuple.to_list(shape), padding, fn dim, {low, high} -> dim + low + high end)

    padded =
      pad(%{tensor | type: @c128, shape: List.to_tuple(dims)}, tensor, value, for({l, h} <- padding, do: {l, h, 0}))

    opts = opts |> Keyword.put(:padding, Enum.map(padding, fn _ -> {0, 0} end)) |> window_options()
    windows = Window.view(Backend.to_array(padded), nil, append(window, 1), opts)

    rank = tuple_size(window)
    axes = Enum.to_list((rank + 1)..(2 * rank + 1)//1) ++ Enum.to_list(0..rank//1)
    Ops.run({:transpose, %{axes: axes}}, [windows])
  end

  # The options of the same windows for arrays with one more axis.
  defp window_options(opts) do
    Enum.map(opts, fn
      {:padding, padding} -> {:padding, padding ++ [{0, 0}]}
      {:strides, strides} -> {:strides, strides ++ [1]}
      {:window_dilations, dilations} -> {:window_dilations, dilations && dilations ++ [1]}
      other -> other
    end)
  end

  # ---- products ----

  def dot(out, left, left_axes, left_batch, right, right_axes, right_batch) do
    Fold.refuse_slices()

    by_parts(out, left, right, fn left, right ->
      Product.dot(%{out | type: {:f, 64}}, left, left_axes, left_batch, right, right_axes, right_batch)
    end)
  end

  def conv(out, tensor, kernel, opts) do
    Fold.refuse_slices()
    by_parts(out, tensor, kernel, fn tensor, kernel -> Product.conv(%{out | type: {:f, 64}}, tensor, kernel, opts) end)
  end

  # A product of two complex tensors takes four real products, or two if one of the tensors is real.
  defp by_parts(out, left, right, product) do
    case {real_parts(left), real_parts(right)} do
      {[a], [c, d]} ->
        {product.(a, c), product.(a, d)}

      {[a, b], [c]} ->
        {product.(a, c), product.(b, c)}

      {[a, b], [c, d]} ->
        {Ops.subtract(product.(a, c), product.(b, d)), Ops.add(product.(a, d), product.(b, c))}
    end
    |> joined(out)
  end

  defp real_parts(%T{type: {:c, _}} = tensor) do
    {re, im} = parts(tensor)
    [real_tensor(re, tensor), real_tensor(im, tensor)]
  end

  defp real_parts(tensor), do: [tensor]

  def triangular_solve(%T{shape: out_shape} = out, a, b, opts) do
    Fold.refuse_slices()
    pairs = Triangular.solve(parts(a), a.shape, parts(b), b.shape, opts)
    Backend.tensor(Ops.run({:reshape, %{shape: Tuple.to_list(append(out_shape, 2))}}, [pairs]), out)
  end

  # ---- spectra ----

  def fft(out, tensor, opts), do: fourier(out, tensor, opts, -1)

  def ifft(out, tensor, opts), do: fourier(out, tensor, opts, 1)

  defp fourier(%T{shape: out_shape} = out, %T{shape: shape} = tensor, opts, sign) do
    Fold.refuse_slices()
    [axis, n] = [opts[:axis], opts[:length]]
    last = tuple_size(shape) - 1
    order = List.delete(all_axes(shape), axis) ++ [axis]
    back = Enum.map(0..last//1, fn i -> Enum.find_index(order, &(&1 == i)) end)
    moved = &Ops.run({:transpose, %{axes: &2}}, [&1])
    rows = div(Nx.size(shape), elem(shape, axis))

    rows_of = fn array ->
      array |> moved.(order) |> reshape_array([rows, elem(shape, axis)]) |> sized(rows, elem(shape, axis), n)
    end

    result = tensor |> parts() |> both(rows_of) |> Fourier.transform(n, sign)
    result = if sign == 1, do: both(result, &Ops.divide(&1, n * 1.0)), else: result
    dims = Enum.map(order, &elem(out_shape, &1))
    result |> both(&(&1 |> small_to_zero(opts[:eps]) |> reshape_array(dims) |> moved.(back))) |> joined(out)
  end

  # Truncates or pads rows to length n.
  defp sized(array, _rows, n, n), do: array
  defp sized(array, rows, size, n) when size > n, do: slice_columns(array, rows, n)

  defp sized(array, _rows, size, n) do
    op = {:pad_interior, %{low: [0, 0], high: [0, n - size], interior: [0, 0]}}
    Ops.run(op, [array, Array.scalar(0.0, :f64, device: :cpu)])
  end

  defp slice_columns(array, rows, n),
    do: Ops.run({:slice, %{start: [0, 0], stop: [rows, n], strides: [1, 1]}}, [array])

  defp reshape_array(array, dims), do: Ops.run({:reshape, %{shape: dims}}, [array])

  defp small_to_zero(array, nil), do: array

  defp small_to_zero(array, eps) do
    zero = Array.scalar(0.0, :f64, device: :cpu)
    Ops.where(Ops.less_equal(Ops.abs(array), eps * 1.0), zero, array)
  end
end
