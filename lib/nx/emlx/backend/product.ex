defmodule EMLX.Backend.Product do
  @moduledoc false
  # Products for EMLX.Backend: dot, convolution, triangular systems, Fourier transforms. The functions take tensors and
  # return the array of the result.

  alias EMLX.Backend
  alias EMLX.Backend.{Mixed, Type}
  alias EMLX.Ops
  alias Nx.Tensor, as: T

  # ---- dot ----

  @doc "Computes `dot` as one matrix product: {batch, free, contracted} by {batch, contracted, free}."
  def dot(%T{type: type, shape: out_shape}, left, left_axes, left_batch, right, right_axes, right_batch) do
    left_free = free(left, left_axes ++ left_batch)
    right_free = free(right, right_axes ++ right_batch)
    batch = sizes(left, left_batch)
    inner = product(sizes(left, left_axes))
    work = Mixed.work_type(:matmul, [left, right], type)

    a =
      Backend.operand(left, work)
      |> transpose(left_batch ++ left_free ++ left_axes)
      |> matrix(left_free, left_axes, batch ++ [product(sizes(left, left_free)), inner])

    b =
      Backend.operand(right, work)
      |> transpose(right_batch ++ right_axes ++ right_free)
      |> matrix(right_free, right_axes, batch ++ [inner, product(sizes(right, right_free))])

    product = Mixed.rounded(Ops.run(:matmul, [a, b]), work, type)
    Ops.run({:reshape, %{shape: Tuple.to_list(out_shape)}}, [product])
  end

  defp free(%T{shape: shape}, used), do: Enum.to_list(0..(tuple_size(shape) - 1)//1) -- used
  defp sizes(%T{shape: shape}, axes), do: Enum.map(axes, &elem(shape, &1))
  defp product(sizes), do: Enum.product(sizes)

  defp transpose(array, axes) do
    if axes == Enum.sort(axes), do: array, else: Ops.run({:transpose, %{axes: axes}}, [array])
  end

  defp matrix(array, [_], [_], _dims), do: array
  defp matrix(array, _free, _contracted, dims), do: Ops.run({:reshape, %{shape: dims}}, [array])

  # ---- convolution ----

  @doc """
  Convolves a tensor with a kernel. MLX takes the layouts {batch, space…, channels} and {out, space…, in / groups}; Nx's
  permutations name the axes.
  """
  def conv(%T{type: type} = out, tensor, kernel, opts) do
    work = Mixed.work_type(:conv, [tensor, kernel], type)
    input = transpose_any(Backend.operand(tensor, work), channels_last(opts[:input_permutation]))
    weight = transpose_any(Backend.operand(kernel, work), channels_last(opts[:kernel_permutation]))
    input_dims = Enum.map(channels_last(opts[:input_permutation]), &elem(tensor.shape, &1))
    weight_dims = Enum.map(channels_last(opts[:kernel_permutation]), &elem(kernel.shape, &1))

    {input, input_dims, groups} =
      case {opts[:batch_group_size], opts[:feature_group_size]} do
        {1, groups} -> {input, input_dims, groups}
        {groups, _} -> batch_groups(input, input_dims, groups)
      end

    result = work |> convolve(input, input_dims, weight, weight_dims, groups, opts) |> Mixed.rounded(work, type)

    # Axis i of the output is axis `place` of {batch, channels, space…}.
    rank = tuple_size(out.shape)
    places = opts[:output_permutation] |> Enum.with_index() |> Enum.sort() |> Enum.map(&elem(&1, 1))

    axes =
      Enum.map(places, fn
        0 -> 0
        1 -> rank - 1
        space -> space - 1
      end)

    transpose_any(result, axes)
  end

  defp channels_last([first, second | space]), do: [first] ++ space ++ [second]

  defp transpose_any(array, axes), do: transpose(array, axes)

  # Each group of the batch has its own filters. That is a convolution with grouped channels.
  defp batch_groups(input, [batch | rest] = dims, groups) do
    rank = length(dims)
    {space, [channels]} = Enum.split(rest, -1)
    each = div(batch, groups)
    split = Ops.run({:reshape, %{shape: [groups, each | rest]}}, [input])
    axes = Enum.to_list(1..(rank - 1)) ++ [0, rank]
    side_by_side = Ops.run({:transpose, %{axes: axes}}, [split])
    dims = [each] ++ space ++ [groups * channels]
    {Ops.run({:reshape, %{shape: dims}}, [side_by_side]), dims, groups}
  end

  # (a + bi)(c + di). MLX convolves the real and imaginary parts.
  defp convolve({:c, 64}, input, input_dims, weight, weight_dims, groups, opts) do
    [a, b] = Enum.map([:real, :imag], &Ops.run(&1, [input]))
    [c, d] = Enum.map([:real, :imag], &Ops.run(&1, [weight]))
    conv = fn x, w -> convolve({:f, 32}, x, input_dims, w, weight_dims, groups, opts) end
    real = Ops.run(:subtract, [conv.(a, c), conv.(b, d)])
    imaginary = Ops.run(:add, [conv.(a, d), conv.(b, c)])
    complex(real, imaginary)
  end

  # MLX convolves up to three spatial axes, two with grouped channels. With more, each window becomes one row of a
  # matrix.
  defp convolve(_type, input, input_dims, weight, weight_dims, groups, opts)
       when length(input_dims) > 5 or (length(input_dims) > 4 and groups > 1) do
    {input, input_dims} = spread(input, input_dims, opts)
    [batch | space] = Enum.drop(input_dims, -1)
    channels = List.last(input_dims)
    [filters | kernel] = Enum.drop(weight_dims, -1)
    rank = length(input_dims)

    op =
      {:window_view,
       %{
         window: [1] ++ kernel ++ [1],
         strides: [1] ++ opts[:strides] ++ [1],
         dilation: [1] ++ opts[:kernel_dilation] ++ [1]
       }}

    out =
      Enum.zip_with([space, kernel, opts[:strides], opts[:kernel_dilation]], fn [size, k, stride, dilation] ->
        div(size - (k - 1) * dilation - 1, stride) + 1
      end)

    rows = batch * product(out)
    columns = div(channels, groups) * product(kernel)
    windows = Ops.run({:reshape, %{shape: [rows, groups, columns]}}, [Ops.run(op, [input])])
    # The channels precede the spatial axes in the weights, too.
    order = [0, rank - 1] ++ Enum.to_list(1..(rank - 2))
    weight = Ops.run({:reshape, %{shape: [groups, div(filters, groups), columns]}}, [transpose(weight, order)])
    products = Ops.run(:matmul, [transpose(windows, [1, 0, 2]), transpose(weight, [0, 2, 1])])
    Ops.run({:reshape, %{shape: [batch] ++ out ++ [filters]}}, [transpose(products, [1, 0, 2])])
  end

  defp convolve(_type, input, _input_dims, weight, _weight_dims, groups, opts) do
    {low, high} = Enum.unzip(opts[:padding])

    op =
      {:conv,
       %{
         stride: opts[:strides],
         padding_low: low,
         padding_high: high,
         kernel_dilation: opts[:kernel_dilation],
         input_dilation: opts[:input_dilation],
         groups: groups,
         flip: false
       }}

    Ops.run(op, [input, weight])
  end

  # Dilates and pads the input. A negative padding cuts the dilated input.
  defp spread(input, dims, opts) do
    {low, high} = Enum.unzip(opts[:padding])
    config = Enum.zip([[0] ++ low ++ [0], [0] ++ high ++ [0], [0] ++ Enum.map(opts[:input_dilation], &(&1 - 1)) ++ [0]])
    [low, high, interior] = for i <- 0..2, do: Enum.map(config, &elem(&1, i))
    zero = Ops.run({:constant, %{value: 0, dtype: :s32}}, [])
    op = {:pad_interior, %{low: low, high: high, interior: interior}}
    dims = Enum.zip_with(dims, config, fn dim, {low, high, interior} -> dim + (dim - 1) * interior + low + high end)
    {Ops.run(op, [input, zero]), dims}
  end

  # A c64 is a pair of f32 in memory.
  defp complex(real, imaginary) do
    pairs = Ops.run({:stack, %{axis: -1}}, [real, imaginary])
    Ops.run({:squeeze, %{axes: [-1]}}, [Ops.run({:view, %{dtype: :c64}}, [pairs])])
  end

  # ---- triangular systems ----

  @doc "Solves a·x = b or x·a = b for x, with the triangle of `a` that the options name."
  def triangular_solve(%T{type: type, shape: out_shape}, a, b, opts) do
    work = if type in [{:f, 64}, {:c, 64}], do: type, else: {:f, 32}
    rank = tuple_size(a.shape)
    last_two = Enum.to_list(0..(rank - 3)//1) ++ [rank - 1, rank - 2]
    flip = fn array -> Ops.run({:transpose, %{axes: last_two}}, [array]) end

    # The other triangle may hold any values, and is not read.
    lower? = opts[:lower]
    triangle = Backend.operand(a, work)

    {matrix, lower?} =
      case opts[:transform_a] do
        :transpose -> {flip.(triangle), not lower?}
        :conjugate -> {Ops.run(:conjugate, [triangle]), lower?}
        _ -> {triangle, lower?}
      end

    # A vector is one column or row.
    vector? = tuple_size(b.shape) < rank
    left? = opts[:left_side]
    size = elem(a.shape, rank - 1)
    dims = Tuple.to_list(b.shape)
    right = Backend.operand(b, work)

    right =
      cond do
        not vector? -> right
        left? -> Ops.run({:reshape, %{shape: dims ++ [1]}}, [right])
        true -> Ops.run({:reshape, %{shape: Enum.drop(dims, -1) ++ [1, size]}}, [right])
      end

    solved =
      if left?,
        do: solve(matrix, right, lower?, work),
        else: flip.(solve(flip.(matrix), flip.(right), not lower?, work))

    solved = if work == type, do: solved, else: Ops.run({:astype, %{dtype: Type.dtype(type)}}, [solved])
    Ops.run({:reshape, %{shape: Tuple.to_list(out_shape)}}, [solved])
  end

  defp solve(matrix, right, lower?, _work), do: Ops.run({:solve_triangular, %{upper: not lower?}}, [matrix, right])

  # ---- spectra ----

  @doc "Transforms one axis, truncated or padded to `opts[:length]`; parts of at most `opts[:eps]` become 0."
  def fourier(op, %T{type: type}, tensor, opts) do
    attributes = %{sizes: [opts[:length]], axes: [opts[:axis]], norm: :backward, eps: eps(opts[:eps])}
    # Real numbers have a transform of their own.
    work = if Nx.Type.complex?(tensor.type), do: type, else: {:f, 32}
    Ops.run({op, attributes}, [Backend.operand(tensor, work)])
  end

  defp eps(nil), do: nil
  defp eps(number), do: number * 1.0
end
