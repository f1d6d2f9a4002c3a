defmodule EMLX.Trace.Block do
  @moduledoc false
  # What the passes over a trace's blocks share.

  @doc """
  The block with each instruction replaced by those that `fun` gives for it, and each result by `value`'s. Both take what is carried
  from one instruction to the next; `fun` gives `{instructions, carried}`.
  """
  def rewrite(%{instructions: instructions, results: results} = block, carried, fun, value) do
    {instructions, carried} = Enum.flat_map_reduce(instructions, carried, fun)
    %{block | instructions: instructions, results: Enum.map(results, &value.(&1, carried))}
  end

  @doc "The blocks of a branch or a loop, each as `fun` makes it."
  def within(blocks, fun), do: Map.new(blocks, fn {key, block} -> {key, fun.(block)} end)
end
