defmodule EMLXAxon.Upstream do
  @moduledoc false
  # Checks the fields of the structs of Axon.Block, which lib/axon/block.ex or a newer Axon defines. The check runs when
  # this package is compiled. For a struct without the fields that the code here reads, the package has no block and no
  # implementation, and does not rewrite Axon's layers.

  @fields %{
    Axon.Block.RMSNorm => [:axis, :eps, :shift, :upcast, :weight?],
    Axon.Block.LayerNorm => [:axis, :eps, :weight?, :bias?],
    Axon.Block.RoPE => [:dims, :traditional, :base, :scale, :freqs?],
    Axon.Block.SDPA => [:scale, :causal, :window, :offset?, :mask]
  }

  @known for {module, fields} <- @fields,
             match?({:module, _}, Code.ensure_compiled(module)),
             function_exported?(module, :__struct__, 0),
             fields -- Map.keys(module.__struct__()) == [],
             do: module

  @doc "Returns whether a struct of Axon.Block has the fields that the code here reads."
  def known?(module), do: module in @known
end
