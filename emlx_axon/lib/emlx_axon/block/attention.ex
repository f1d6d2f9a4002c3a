# The implementations of EMLX.Block for rotary position embedding and attention. EMLX.Fast has other shapes and takes
# one position for each row of a batch, so its blocks are nested in these; see EMLXAxon.Composed.

if EMLXAxon.Upstream.known?(Axon.Block.RoPE) do
  defimpl EMLX.Block, for: Axon.Block.RoPE do
    def call(block, output, [x | rest] = args, fun) do
      if reason = EMLX.Fast.Arguments.refusal(x),
        do: EMLX.Block.decline(block, args, fun, reason),
        else: EMLXAxon.Composed |> apply(:rope, [block, x | rest]) |> Nx.rename(output.names)
    end
  end
end

if EMLXAxon.Upstream.known?(Axon.Block.SDPA) do
  defimpl EMLX.Block, for: Axon.Block.SDPA do
    alias EMLX.Fast.Arguments

    def call(block, output, [q, k, v | _] = args, fun) do
      cond do
        odd = Enum.find([q, k, v], &(not Arguments.fused?(&1.type))) ->
          reason = "the kernel computes in f32, an argument is #{Nx.Type.to_string(odd.type)}"
          EMLX.Block.decline(block, args, fun, reason)

        Enum.any?([q, k, v], &(Nx.size(&1) == 0)) ->
          EMLX.Block.decline(block, args, fun, "an argument is empty")

        true ->
          EMLXAxon.Composed |> apply(:sdpa, [block | args]) |> Nx.rename(output.names)
      end
    end
  end
end
