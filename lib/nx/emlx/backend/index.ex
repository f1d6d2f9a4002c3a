defmodule EMLX.Backend.Index do
  @moduledoc false
  # The callbacks of EMLX.Backend that read, write and order elements by index: slices, gathers, scatters, extremes and
  # sorting. The functions take tensors and return the array of the result.

  alias EMLX.Backend
  alias EMLX.Backend.{KnownIndex, Mixed, Type}
  alias EMLX.Ops
  alias Nx.Tensor, as: T

  # ---- slices ----

  @doc "Returns a slice. `starts` are integers or scalar tensors, clamped so that the slice is inside the tensor."
  def slice(%T{shape: {}} = tensor, [], [], []), do: Backend.to_array(tensor)

  def slice(%T{shape: shape} = tensor, starts, lengths, strides) do
    dims = Tuple.to_list(shape)
    array = Backend.to_array(tensor)
    starts = Enum.map(starts, &known/1)

    case dynamic(starts) do
      [] ->
        starts = clamp(starts, dims, lengths)
        static(array, starts, Enum.zip_with(starts, lengths, &+/2), strides)

      axes ->
        # Axes with a known start are sliced first, statically; the others follow.
        known = Enum.zip_with([starts, dims, lengths], &known_bounds/1)
        {first, stop} = Enum.unzip(known)
        zeros = Enum.map(dims, fn _ -> 0 end)
        ones = Enum.map(dims, fn _ -> 1 end)
        array = if first == zeros and stop == dims, do: array, else: static(array, first, stop, ones)
        sizes = Enum.map(axes, &Enum.at(lengths, &1))
        op = {:slice_dynamic, %{axes: axes, sizes: sizes}}
        array = Ops.run(op, [array, start_vector(Enum.map(axes, &Enum.at(starts, &1)))])
        if strides == ones, do: array, else: static(array, zeros, lengths, strides)
    end
  end

  defp known_bounds([%T{}, dim, _length]), do: {0, dim}

  defp known_bounds([start, dim, length]) do
    start = clamp(start, dim, length)
    {start, start + length}
  end

  defp static(array, start, stop, strides),
    do: Ops.run({:slice, %{start: start, stop: stop, strides: strides}}, [array])

  @doc "Returns `tensor` with `slice` written over a part of it, in the type of `out`."
  def put_slice(%T{type: type}, %T{shape: shape} = tensor, starts, %T{shape: slice_shape} = slice) do
    inputs = [Backend.operand(tensor, type), Backend.operand(slice, type)]
    lengths = Tuple.to_list(slice_shape)
    dims = Tuple.to_list(shape)
    starts = Enum.map(starts, &known/1)

    case dynamic(starts) do
      [] ->
        starts = clamp(starts, dims, lengths)
        stop = Enum.zip_with(starts, lengths, &+/2)
        Ops.run({:slice_update, %{start: starts, stop: stop, strides: Enum.map(dims, fn _ -> 1 end)}}, inputs)

      _ ->
        # Axes that are not listed start at 0.
        moved = for {start, axis} <- Enum.with_index(starts), start != 0, do: {start, axis}
        {starts, axes} = Enum.unzip(moved)
        Ops.run({:slice_update_dynamic, %{axes: axes}}, inputs ++ [start_vector(starts)])
    end
  end

  # The number of a start that is computed already. With such numbers a slice is a view.
  defp known(%T{type: {kind, _size}, data: %Backend{array: array}} = start) do
    binary = EMLX.Array.computed(array)
    bits = if binary, do: bit_size(binary)

    case {kind, binary} do
      {_kind, nil} -> start
      {:u, binary} -> with <<number::unsigned-native-size(bits)>> <- binary, do: number
      {:s, binary} -> with <<number::signed-native-size(bits)>> <- binary, do: number
    end
  end

  defp known(start), do: start

  defp dynamic(starts), do: for({%T{}, axis} <- Enum.with_index(starts), do: axis)

  defp clamp(start, dim, length) when is_integer(start), do: start |> min(dim - length) |> max(0)
  defp clamp(starts, dims, lengths), do: Enum.zip_with([starts, dims, lengths], fn [s, d, l] -> clamp(s, d, l) end)

  defp start_vector([%T{} = start]), do: Ops.run({:reshape, %{shape: [1]}}, [Backend.to_array(start)])

  defp start_vector(starts) do
    scalars =
      Enum.map(starts, fn
        %T{} = start -> Ops.run({:reshape, %{shape: []}}, [Backend.operand(start, {:s, 64})])
        start -> Type.constant(start, :s64, [])
      end)

    Ops.run({:stack, %{axis: 0}}, scalars)
  end

  # ---- gathers and scatters ----

  @doc "Returns slices of `tensor` at the positions along `axes` that the last axis of `indices` names."
  def gather(%T{shape: out_shape}, %T{shape: shape} = tensor, indices, axes) do
    sizes = for {dim, axis} <- Enum.with_index(Tuple.to_list(shape)), do: if(axis in axes, do: 1, else: dim)
    check("gather", shape, axes, indices, :columns)

    array = Backend.to_array(indices)
    op = {:gather, %{axes: axes, slice_sizes: sizes, negative: negative(array, indices.type)}}
    gathered = Ops.run(op, [Backend.to_array(tensor) | columns(array, indices.shape)])
    Ops.run({:reshape, %{shape: Tuple.to_list(out_shape)}}, [gathered])
  end

  @doc "Returns the attribute for indices of a type of Nx of which negative ones are clamped to 0."
  def negative(_indices, {:u, _}), do: nil
  def negative(indices, _type), do: if(KnownIndex.natural?(indices), do: nil, else: :first)

  @doc """
  Returns indices of a type of Nx for `EMLX.Ops`, where negative ones count from the end: Nx clamps them to 0 where
  elements are read.
  """
  def from_zero(indices, {:u, _}), do: indices

  def from_zero(indices, type) do
    if KnownIndex.natural?(indices),
      do: indices,
      else: Ops.run(:maximum, [indices, Type.constant(0, Type.dtype(type), [])])
  end

  @doc "Returns `tensor` with slices of `updates` written (`:scatter`) or added (`:scatter_add`) at `indices`."
  def scatter(op, %T{type: type}, %T{shape: shape} = tensor, indices, updates, axes) do
    work = if op == :scatter_add, do: Mixed.work_type(:add, [tensor, updates], type), else: type
    axes = axes || Enum.to_list(0..(elem(indices.shape, tuple_size(indices.shape) - 1) - 1)//1)
    name = if op == :scatter, do: "indexed_put", else: "indexed_add"
    check(name, shape, axes, indices, :columns)
    array = Backend.to_array(indices)

    # A permutation along the last axis needs no position of the other axes.
    case axes == Enum.to_list(0..(tuple_size(shape) - 1)//1) and KnownIndex.along_last_axis(array, shape) do
      %EMLX.Array{} = order ->
        along = if op == :scatter, do: :put_along_axis, else: :scatter_add_axis
        updates = Ops.run({:reshape, %{shape: Tuple.to_list(shape)}}, [Backend.operand(updates, work)])
        scattered = Ops.run({along, %{axis: -1}}, [Backend.operand(tensor, work), order, updates])
        Mixed.rounded(scattered, work, type)

      _ ->
        scatter_slices(op, {work, type}, tensor, indices, updates, axes)
    end
  end

  defp scatter_slices(op, {work, type}, %T{shape: shape} = tensor, indices, updates, axes) do
    index_dims = indices.shape |> Tuple.to_list() |> Enum.drop(-1)
    rest = for {dim, axis} <- Enum.with_index(Tuple.to_list(shape)), do: if(axis in axes, do: 1, else: dim)
    updates = Ops.run({:reshape, %{shape: index_dims ++ rest}}, [Backend.operand(updates, work)])

    # As an unsigned integer, a negative index is out of range, and its update is dropped.
    places = Ops.run({:view, %{dtype: unsigned(indices.type)}}, [Backend.to_array(indices)])
    scattered = Ops.run({op, %{axes: axes}}, [Backend.operand(tensor, work), updates | columns(places, indices.shape)])
    Mixed.rounded(scattered, work, type)
  end

  @doc "Raises for indices outside of their axes if a debugging mode checks them; see EMLX.Debug.check_indices/5."
  def check(name, shape, axes, indices, layout),
    do: EMLX.Debug.check_indices(name, shape, axes, Backend.to_array(indices), layout)

  defp unsigned({_kind, size}), do: Type.dtype({:u, max(size, 8)})

  # One array for each entry of the last axis.
  defp columns(array, shape) do
    {dims, [depth]} = shape |> Tuple.to_list() |> Enum.split(-1)
    zeros = Enum.map(dims, fn _ -> 0 end)
    ones = Enum.map(dims, fn _ -> 1 end) ++ [1]

    for i <- 0..(depth - 1)//1 do
      column = if depth == 1, do: array, else: static(array, zeros ++ [i], dims ++ [i + 1], ones)
      Ops.run({:squeeze, %{axes: [-1]}}, [column])
    end
  end

  # ---- extremes and order ----

  @doc """
  Returns the index of the largest or smallest element: the first one of equals, or the last one with
  `tie_break: :high`. NaN is both the largest and the smallest.
  """
  def extreme(name, %T{shape: out_shape, type: type}, %T{shape: shape} = tensor, opts) do
    array = Backend.to_array(tensor)
    size = Nx.size(shape)

    {array, axis, length} =
      case opts[:axis] do
        nil -> {Ops.run({:reshape, %{shape: [size]}}, [array]), 0, size}
        axis -> {array, axis, elem(shape, axis)}
      end

    # The last one of several NaN is returned: it is the first one of the reversed array.
    nan = if opts[:tie_break] == :high, do: :first, else: :last
    op = {name, %{axis: axis, keepdims: false, nan: nan}}
    dtype = Type.dtype(type)

    index =
      if opts[:tie_break] == :high do
        index = Ops.run(op, [Ops.run({:flip, %{axes: [axis]}}, [array])])
        Ops.run(:subtract, [Type.constant(length - 1, :u32, []), index])
      else
        Ops.run(op, [array])
      end

    index = Ops.run({:astype, %{dtype: dtype}}, [index])
    Ops.run({:reshape, %{shape: Tuple.to_list(out_shape)}}, [index])
  end

  @doc "Sorts along `opts[:axis]`. NaN is last in ascending order and first in descending order."
  def sort(%T{shape: {}} = tensor, _opts), do: Backend.to_array(tensor)

  def sort(tensor, opts) do
    axis = opts[:axis]
    sorted = Ops.run({:sort, %{axis: axis}}, [Backend.to_array(tensor)])
    if opts[:direction] == :desc, do: Ops.run({:flip, %{axes: [axis]}}, [sorted]), else: sorted
  end

  @doc "Returns the indices that sort a tensor. Equal elements keep their order in both directions."
  def argsort(%T{type: type}, %T{shape: {}}, _opts), do: Type.scalar(0, type)

  def argsort(%T{type: type}, %T{shape: shape} = tensor, opts) do
    axis = opts[:axis]
    array = Backend.to_array(tensor)

    order =
      if opts[:direction] == :desc do
        # Sorts the reversed array in ascending order and reverses the result, so that equal elements keep their order.
        flip = {:flip, %{axes: [axis]}}
        upwards = Ops.run({:argsort, %{axis: axis}}, [Ops.run(flip, [array])])
        last = Type.constant(elem(shape, axis) - 1, :u32, [])
        Ops.run(:subtract, [last, Ops.run(flip, [upwards])])
      else
        Ops.run({:argsort, %{axis: axis}}, [array])
      end

    Ops.run({:astype, %{dtype: Type.dtype(type)}}, [order])
  end
end
