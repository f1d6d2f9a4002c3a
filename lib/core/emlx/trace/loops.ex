defmodule EMLX.Trace.Loops do
  @moduledoc false
  # Hoists loop-invariant values and operations out of loops. Values of the state that the body returns unchanged, such
  # as a model's parameters, become captured values. Operations on captured values alone are computed once, before the
  # loop. EMLX.Trace.Passes calls it.

  alias EMLX.OpTable
  alias EMLX.Trace.Block

  @doc "Returns a block with the invariants of its loops hoisted."
  def run(block), do: block(block, %{})

  # `same` maps values to the equal values that replace them.
  defp block(block, same), do: Block.rewrite(block, same, &instruction/2, &same/2)

  defp instruction({op, inputs, outputs, label}, same) do
    inputs = Enum.map(inputs, &same(&1, same))

    case op do
      {:while, blocks} ->
        while(blocks, inputs, outputs, label, same)

      {:if, blocks} ->
        {[{{:if, Block.within(blocks, &block(&1, same))}, inputs, outputs, label}], same}

      _ ->
        {[{op, inputs, outputs, label}], same}
    end
  end

  defp while(%{condition: condition, body: body} = blocks, inputs, outputs, label, same) do
    state = Enum.zip([inputs, outputs, condition.params, body.params, body.results])

    case Enum.split_with(state, fn {_, _, _, param, result} -> param != result end) do
      # The whole state is invariant: the loop runs never or forever.
      {[], _} ->
        {[{{:while, Block.within(blocks, &block(&1, same))}, inputs, outputs, label}], same}

      {kept, fixed} ->
        same =
          Enum.reduce(fixed, same, fn {input, output, in_condition, in_body, _}, same ->
            Enum.reduce([output, in_condition, in_body], same, &Map.put(&2, &1, input))
          end)

        [inputs, outputs, in_condition, in_body, results] = for i <- 0..4, do: Enum.map(kept, &elem(&1, i))
        condition = block(%{condition | params: in_condition}, same)
        body = block(%{body | params: in_body, results: results}, same)
        {before, blocks} = hoist(%{condition: condition, body: body})
        {before ++ [{{:while, blocks}, inputs, outputs, label}], same}
    end
  end

  defp hoist(blocks) do
    Enum.reduce([:condition, :body], {[], blocks}, fn key, {before, blocks} ->
      block = Map.fetch!(blocks, key)

      {stay, {out, _local}} =
        Enum.flat_map_reduce(block.instructions, {[], MapSet.new(block.params)}, fn instruction, {out, local} ->
          {op, inputs, outputs, _label} = instruction

          if movable?(op) and not Enum.any?(inputs, &MapSet.member?(local, &1)),
            do: {[], {[instruction | out], local}},
            else: {[instruction], {out, Enum.into(outputs, local)}}
        end)

      {before ++ Enum.reverse(out), Map.put(blocks, key, %{block | instructions: stay})}
    end)
  end

  # Operations that can fail during the evaluation are not hoisted, since the loop may have no steps.
  defp movable?({name, _}) when name in [:call, :if, :while], do: false
  defp movable?(op), do: not OpTable.late_failure?(op)

  defp same(value, same), do: Map.get(same, value, value)
end
