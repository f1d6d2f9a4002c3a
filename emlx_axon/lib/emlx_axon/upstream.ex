defmodule EMLXAxon.Upstream do
  @moduledoc false
  # Whether the structs of lib/axon/block.ex, or those that Axon has come to define under the same names, have the fields that
  # the code here reads. Found when this package is compiled: of a struct that has not, no blocks are made and there is no
  # implementation, and layers stay Axon's own.

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

  @doc "Whether a struct of Axon.Block has the fields that the code here reads."
  def known?(module), do: module in @known
end
