defmodule EMLXBumblebee.Upstream do
  @moduledoc false
  # Checks the fields of the structs of Bumblebee.Block, which lib/bumblebee/block.ex or a newer Bumblebee defines. The
  # check runs when this package is compiled. For a struct without the fields that the code here reads, the package has
  # no block and no implementation, and does not rewrite Bumblebee's layers.

  @fields %{
    Bumblebee.Block.SDPA => ~w(causal window scale key_mask? head_mask? bias? offset? sinks? weights)a,
    Bumblebee.Block.RotaryEmbedding => ~w(size length max_positions base scaling_strategy)a
  }

  @known for {module, fields} <- @fields,
             match?({:module, _}, Code.ensure_compiled(module)),
             function_exported?(module, :__struct__, 0),
             fields -- Map.keys(module.__struct__()) == [],
             do: module

  @doc "Returns whether a struct of Bumblebee.Block or Axon.Block has the fields that the code here reads."
  def known?(module), do: module in @known or EMLXAxon.Upstream.known?(module)
end
