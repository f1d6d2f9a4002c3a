# Implementations of Nx's cumulative functions with MLX's scans.

for {module, op} <- [
      {Nx.Block.CumulativeSum, :cumsum},
      {Nx.Block.CumulativeProduct, :cumprod},
      {Nx.Block.CumulativeMax, :cummax},
      {Nx.Block.CumulativeMin, :cummin}
    ] do
  defimpl EMLX.Block, for: module do
    alias EMLX.{Backend, Ops}

    def call(block, _output, [%{type: {_, size}}] = args, fun) when size < 8,
      do: EMLX.Block.decline(block, args, fun, "MLX has no scan of this type")

    def call(block, _output, [%{type: {:f8_e4m3fn, 8}}] = args, fun),
      do: EMLX.Block.decline(block, args, fun, "MLX has no scan of this type")

    def call(block, _output, [%{type: {:f, 8}}] = args, fun),
      do: EMLX.Block.decline(block, args, fun, "MLX has no scan of this type")

    def call(block, output, [tensor], _fun) do
      tensor
      |> Backend.to_array()
      |> widen(tensor.type)
      |> then(&apply(Ops, unquote(op), [&1, [axis: block.axis, reverse: block.reverse == true]]))
      |> Backend.to_nx(output)
    end

    # MLX adds sequentially, which soon loses every addend in 16 bits; the composed form adds in a tree.
    defp widen(array, {kind, 16}) when kind in [:f, :bf], do: Ops.astype(array, :f32)
    defp widen(array, _type), do: array
  end
end
