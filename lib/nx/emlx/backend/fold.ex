defmodule EMLX.Backend.Fold do
  @moduledoc false
  # Reductions with a user's function, `fun.(element, accumulator)`, for EMLX.Backend: Nx.reduce/4 and
  # Nx.window_reduce/5.
  #
  # The function is called with whole slices instead of elements: tensors that claim to be scalars, but whose arrays
  # have the remaining axes. Element-wise operations compute all elements of the slices at once. An operation that
  # depends on axes would treat the slice as the element. Its callback throws during such a call, and the function is
  # then called element by element.
  #
  # An array of c128 has one more axis for the parts of its numbers (EMLX.Backend.Pair), which stays the last.

  alias EMLX.Backend
  alias EMLX.Backend.{Type, Window}
  alias EMLX.Ops
  alias Nx.Tensor, as: T

  # The maximum number of elements that are reduced in order; more are reduced in pairs.
  @in_order 512

  @doc "Returns whether the function of a reduction is being called with whole slices."
  def slices?, do: Process.get(__MODULE__, false)

  @doc "Ends the attempt with whole slices. Every operation that depends on axes calls it."
  def refuse_slices do
    if slices?(), do: throw({__MODULE__, :refused})
    :ok
  end

  @doc "See `c:Nx.Backend.reduce/5`."
  def reduce(%T{type: type} = out, %T{shape: shape} = tensor, acc, opts, fun) do
    rank = tuple_size(shape)
    all = Enum.to_list(0..(rank - 1)//1)
    axes = opts[:axes] || all
    array = Backend.converted(tensor, type)
    parts = if type == {:c, 128}, do: [rank], else: []
    front = Ops.run({:transpose, %{axes: axes ++ (all -- axes) ++ parts}}, [array])
    count = axes |> Enum.map(&elem(shape, &1)) |> Enum.product()
    fold(out, front, count, acc, fun)
  end

  @doc "See `c:Nx.Backend.window_reduce/6`."
  def window_reduce(out, tensor, acc, window, opts, fun) do
    # A window and its padding have one type.
    tensor = if out.type == {:c, 128}, do: Backend.as_type(%{tensor | type: out.type}, tensor), else: tensor
    acc = %{tensor | shape: {}, names: []} |> tensor_of(acc)
    fold(out, Window.slices(tensor, acc, window, opts), Tuple.product(window), acc, fun)
  end

  defp tensor_of(template, acc),
    do: Backend.tensor(Backend.converted(acc, template.type), template)

  # `front` has the reduced axes first, `count` elements in all.
  defp fold(%T{type: type, shape: out_shape} = out, front, count, acc, fun) do
    dims = Tuple.to_list(out_shape)
    size = Enum.product(dims)
    scalar = %{out | shape: {}, names: []}
    acc = Backend.tensor(Backend.converted(acc, type), scalar)
    slices = Ops.run({:reshape, %{shape: held([count, size], scalar)}}, [front])
    call = fn x, acc -> fun.(x, acc) |> result(scalar) end

    result =
      with :refused <- whole(slices, count, size, acc, scalar, call) do
        columns =
          for i <- 0..(size - 1)//1, do: single(part(slices, 1, i, count, size, scalar), count, acc, scalar, call)

        Ops.run({:stack, %{axis: 0}}, columns)
      end

    Backend.tensor(Ops.run({:reshape, %{shape: held(dims, out)}}, [result]), out)
  end

  defp held(dims, %T{type: type}), do: dims |> Type.held(type) |> elem(0)

  # A slice of an array whose elements are like `like`.
  defp sliced(array, start, stop, strides, %T{type: {:c, 128}}),
    do: sliced(array, start ++ [0], stop ++ [2], strides ++ [1], nil)

  defp sliced(array, start, stop, strides, _like),
    do: Ops.run({:slice, %{start: start, stop: stop, strides: strides}}, [array])

  # Reduces all columns at once.
  defp whole(slices, count, size, acc, scalar, call) do
    before = Process.put(__MODULE__, true)

    try do
      row = fn i -> Backend.tensor(part(slices, 0, i, count, size, scalar), scalar) end

      folded =
        if count <= @in_order do
          Enum.reduce(0..(count - 1)//1, acc, fn i, acc -> call.(row.(i), acc) end)
        else
          total = halves(slices, count, size, scalar, call)
          call.(Backend.tensor(total, scalar), acc)
        end

      Ops.run({:broadcast_to, %{shape: held([size], scalar)}}, [Backend.to_array(folded)])
    rescue
      # An operation did not accept the slice as an element. Any other error is raised again element by element.
      _error -> :refused
    catch
      :throw, {__MODULE__, :refused} -> :refused
    after
      if before, do: Process.put(__MODULE__, before), else: Process.delete(__MODULE__)
    end
  end

  # Adjacent elements are reduced, so that the order of elements is kept.
  defp halves(slices, 1, size, scalar, _call), do: Ops.run({:reshape, %{shape: held([size], scalar)}}, [slices])

  defp halves(slices, count, size, scalar, call) do
    pairs = div(count, 2)

    every_other = fn first ->
      Backend.tensor(sliced(slices, [first, 0], [2 * pairs, size], [2, 1], scalar), scalar)
    end

    joined = Backend.to_array(call.(every_other.(1), every_other.(0)))
    joined = Ops.run({:broadcast_to, %{shape: held([pairs, size], scalar)}}, [joined])

    if rem(count, 2) == 0 do
      halves(joined, pairs, size, scalar, call)
    else
      last = sliced(slices, [count - 1, 0], [count, size], [1, 1], scalar)
      halves(Ops.run({:concatenate, %{axis: 0}}, [joined, last]), pairs + 1, size, scalar, call)
    end
  end

  # Reduces one column, element by element.
  defp single(column, count, acc, scalar, call) do
    element = fn i ->
      part = sliced(column, [i], [i + 1], [1], scalar)
      Backend.tensor(Ops.run({:reshape, %{shape: held([], scalar)}}, [part]), scalar)
    end

    0..(count - 1)//1
    |> Enum.reduce(acc, fn i, acc -> call.(element.(i), acc) end)
    |> Backend.to_array()
  end

  defp part(slices, axis, i, count, size, scalar) do
    {start, stop, length} = if axis == 0, do: {[i, 0], [i + 1, size], size}, else: {[0, i], [count, i + 1], count}
    part = sliced(slices, start, stop, [1, 1], scalar)
    Ops.run({:reshape, %{shape: held([length], scalar)}}, [part])
  end

  # The result of the function as an accumulator.
  defp result(given, %T{type: type} = scalar) do
    case Nx.to_tensor(given) do
      %T{shape: {}} = given ->
        Backend.tensor(Backend.converted(given, type), scalar)

      other ->
        raise ArgumentError, "expected the function of a reduction to give a scalar, got: #{inspect(other)}"
    end
  end
end
