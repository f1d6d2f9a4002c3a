# Implementations of Nx.take, Nx.take_along_axis and Nx.top_k.

defimpl EMLX.Block, for: [Nx.Block.Take, Nx.Block.TakeAlongAxis] do
  alias EMLX.{Backend, Ops}

  def call(block, output, [tensor, indices], _fun) do
    array = Backend.to_array(tensor)
    name = if match?(%Nx.Block.Take{}, block), do: "take", else: "take_along_axis"
    Backend.Index.check(name, tensor.shape, [block.axis], indices, :flat)
    places = Backend.to_array(indices)

    case block do
      %{__struct__: Nx.Block.Take, axis: axis} ->
        Ops.run({:take, %{axis: axis}}, [array, Backend.Index.from_zero(places, indices.type)])

      %{axis: axis} ->
        op = {:take_along_axis, %{axis: axis, negative: Backend.Index.negative(places, indices.type)}}
        Ops.run(op, [array, places])
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
