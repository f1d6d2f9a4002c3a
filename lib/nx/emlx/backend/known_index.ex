defmodule EMLX.Backend.KnownIndex do
  @moduledoc false
  # What is known of indices while a function is traced, from the operations that they come from (EMLX.Trace.source/1).
  # EMLX.Backend.Index and the blocks of Nx that take indices leave out what such indices do not need. Without a trace
  # nothing is known.

  alias EMLX.{Array, Ops, Trace}

  @moved [:reshape, :squeeze, :expand_dims, :broadcast_to, :transpose, :slice, :copy]
  @wide [:s32, :s64, :u32, :u64]

  @doc "Returns whether no index is negative: those that an order, a position of an extreme, or a count returns."
  def natural?(%Array{} = array) do
    case Trace.source(array) do
      {{name, _}, _} when name in [:argsort, :argmax, :argmin, :iota] -> true
      {{:astype, %{dtype: dtype}}, [source]} when dtype in @wide -> natural?(source)
      {{name, _}, [source]} when name in @moved -> natural?(source)
      _ -> false
    end
  end

  # Whether each row along the last axis has each of its positions once: the order of a sort along that axis.
  defp permutation?(%Array{} = array) do
    case Trace.source(array) do
      {{:argsort, %{axis: axis}}, [source]} -> axis in [-1, tuple_size(Array.shape(source)) - 1]
      {{:astype, %{dtype: dtype}}, [source]} when dtype in @wide -> permutation?(source)
      _ -> false
    end
  end

  @doc """
  Returns `{shape…, n}` indices along the last axis of an array of `shape`, if `indices` {rows, columns} are those of
  each element of such an array: the element's own position on the other axes, and a permutation along the last one.
  This is what Nx makes of the indices of a vectorized tensor. Returns nil for other indices.
  """
  def along_last_axis(%Array{} = indices, {_size} = shape), do: permutation(indices, shape)

  def along_last_axis(%Array{} = indices, shape) do
    with {:reshape, [columns]} <- named_source(indices),
         {:concatenate, parts} <- named_source(columns),
         {others, [last]} <- Enum.split(parts, -1),
         true <- length(parts) == tuple_size(shape) and Array.shape(columns) == grown(shape, length(parts)),
         true <- others |> Enum.with_index() |> Enum.all?(fn {part, axis} -> counts?(part, shape, axis) end),
         %Array{} = order <- permutation(last, shape) do
      order
    else
      _ -> nil
    end
  end

  # The permutation of a shape that has an axis of size 1 behind its last one here.
  defp permutation(last, shape) do
    case Trace.source(last) do
      {{:reshape, _}, [source]} -> if Array.shape(source) == shape and permutation?(source), do: source
      _ -> nil
    end
  end

  defp named_source(array) do
    case Trace.source(array) do
      {{name, _attributes}, inputs} -> {name, inputs}
      other -> other
    end
  end

  # Whether an array has the position of each element along an axis.
  defp counts?(part, shape, axis) do
    case Trace.source(part) do
      {{:iota, %{axis: ^axis, shape: dims}}, []} ->
        List.to_tuple(dims) == grown(shape, 1)

      nil ->
        not Array.traced?(part) and Array.shape(part) == grown(shape, 1) and
          Trace.untraced(fn ->
            dims = Tuple.to_list(grown(shape, 1))
            Array.to_list(Ops.array_equal(part, Ops.iota(dims, axis: axis, dtype: Array.dtype(part))))
          end)

      _ ->
        false
    end
  end

  defp grown(shape, size), do: Tuple.insert_at(shape, tuple_size(shape), size)
end
