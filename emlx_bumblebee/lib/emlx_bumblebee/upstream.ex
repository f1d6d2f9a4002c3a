defmodule EMLXBumblebee.Upstream do
  @moduledoc false
  # Whether the structs of lib/bumblebee/block.ex, or those that Bumblebee has come to define under the same names, have the
  # fields that the code here reads. Found when this package is compiled: of a struct that has not, no blocks are made and there
  # is no implementation, and layers stay Bumblebee's own.

  @fields %{
    Bumblebee.Block.SDPA => ~w(causal window scale key_mask? head_mask? bias? offset? sinks? weights)a,
    Bumblebee.Block.RotaryEmbedding => ~w(size length max_positions base scaling_strategy)a
  }

  @known for {module, fields} <- @fields,
             match?({:module, _}, Code.ensure_compiled(module)),
             function_exported?(module, :__struct__, 0),
             fields -- Map.keys(module.__struct__()) == [],
             do: module

  @doc "Whether a struct of Bumblebee.Block has the fields that the code here reads; of Axon.Block EMLXAxon knows."
  def known?(module), do: module in @known or EMLXAxon.Upstream.known?(module)
end
