# Implementations of Nx.take, Nx.take_along_axis and Nx.top_k.

defimpl EMLX.Block, for: [Nx.Block.Take, Nx.Block.TakeAlongAxis] do
  alias EMLX.{Backend, Ops}

  def call(block, output, [tensor, indices], _fun) do
    array = Backend.to_array(tensor)
    name = if match?(%Nx.Block.Take{}, block), do: "take", else: "take_along_axis"
    Backend.Index.check(name, tensor.shape, [block.axis], indices, :flat)
    indices = indices |> Backend.to_array() |> Backend.Index.from_zero(indices.type)

    case block do
      %{__struct__: Nx.Block.Take, axis: axis} -> Ops.run({:take, %{axis: axis}}, [array, indices])
      %{axis: axis} -> Ops.run({:take_along_axis, %{axis: axis}}, [array, indices])
    end
    |> Backend.tensor(output)
  end
end

defimpl EMLX.Block, for: Nx.Block.TopK do
  alias EMLX.{Backend, Ops}

  def call(%{k: k}, {values_out, indices_out}, [tensor], _fun) do
    [values, indices] = tensor |> Backend.to_array() |> Ops.top_k(k, axis: -1)
    {Backend.to_nx(values, values_out), Backend.to_nx(indices, indices_out)}
  end
end
