# Implementations of Nx.take, Nx.take_along_axis and Nx.top_k.

defimpl EMLX.Block, for: [Nx.Block.Take, Nx.Block.TakeAlongAxis] do
  alias EMLX.{Backend, Ops}

  def call(block, output, [tensor, indices], _fun) do
    array = Backend.to_array(tensor)
    name = if match?(%Nx.Block.Take{}, block), do: "take", else: "take_along_axis"
    Backend.Index.check(name, tensor.shape, [block.axis], indices, :flat)
    indices = from_zero(Backend.to_array(indices), indices.type)

    case block do
      %{__struct__: Nx.Block.Take, axis: axis} -> Ops.take(array, indices, axis: axis)
      %{axis: axis} -> Ops.take_along_axis(array, indices, axis: axis)
    end
    |> Backend.tensor(output)
  end

  # Nx clamps an index below 0 to 0; in EMLX.Ops it would count from the end.
  defp from_zero(indices, {:u, _}), do: indices
  defp from_zero(indices, {:s, _}), do: Ops.maximum(indices, 0)
end

defimpl EMLX.Block, for: Nx.Block.TopK do
  alias EMLX.{Array, Backend, Ops}

  # Descending, NaN first, equal elements in their order. The ascending sort is stable, so the array is reversed before
  # it and the order reversed after it.
  def call(%{k: k}, {values_out, indices_out}, [tensor], _fun) do
    array = Backend.to_array(tensor)
    shape = Tuple.to_list(tensor.shape)
    size = List.last(shape)
    order = array |> Ops.flip([-1]) |> Ops.argsort(axis: -1) |> Ops.astype(:s32) |> Ops.flip([-1])
    order = Array.scalar(size - 1, :s32) |> Ops.subtract(order)
    zeros = Enum.map(shape, fn _ -> 0 end)
    ones = Enum.map(shape, fn _ -> 1 end)
    indices = Ops.slice(order, zeros, List.replace_at(shape, -1, k), ones)
    values = Ops.take_along_axis(array, indices, axis: -1)
    {Backend.to_nx(values, values_out), Backend.to_nx(indices, indices_out)}
  end
end
