defmodule EMLX.Trace.Block do
  @moduledoc false
  # Helpers that the passes over the blocks of a trace share.

  @doc """
  Replaces each instruction of a block by those that `fun` returns for it, and each result by that of `value`. Both
  functions take an accumulator; `fun` returns `{instructions, accumulator}`.
  """
  def rewrite(%{instructions: instructions, results: results} = block, carried, fun, value) do
    {instructions, carried} = Enum.flat_map_reduce(instructions, carried, fun)
    %{block | instructions: instructions, results: Enum.map(results, &value.(&1, carried))}
  end

  @doc "Maps the blocks of a branch or a loop by `fun`."
  def within(blocks, fun), do: Map.new(blocks, fn {key, block} -> {key, fun.(block)} end)
end
