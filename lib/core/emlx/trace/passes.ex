defmodule EMLX.Trace.Passes do
  @moduledoc false
  # The passes from a trace (EMLX.Trace) to the instructions of an EMLX.Program: loop-invariant code motion, merging of
  # equal constants, common subexpression elimination, dead code elimination, and numbering of values per block.

  alias EMLX.Trace.{Block, Loops}

  # Constants of up to this many bytes are compared by their elements.
  @compared 4096

  @doc """
  Returns the parts of a program from a traced block and its constants:
  `{used params, constants, instructions, results}`. The used params are the positions of the block's parameters that
  the program needs. They are its first values, followed by the constants.
  """
  def run(block, constants) do
    {constants, same} = unify(constants)
    block = block |> Loops.run() |> common(%{same: same, seen: %{}, reshaped: %{}})
    block = live(block, block.results)
    free = free(block)

    used =
      for {param, i} <- Enum.with_index(block.params),
          param in block.results or MapSet.member?(used(block), param),
          do: i

    params = Enum.map(used, &Enum.at(block.params, &1))
    kept = for {value, _array} <- constants, value in free, do: value
    {_count, instructions, results} = number(block, params ++ kept)
    arrays = Map.new(constants)
    {used, Enum.map(kept, &Map.fetch!(arrays, &1)), instructions, results}
  end

  # Returns the constants without duplicates, ordered by their values, and a map from duplicates to their replacements.
  defp unify(constants) do
    constants = Enum.sort(constants)
    EMLX.eval(Enum.map(constants, &elem(&1, 1)))

    {kept, {same, _}} =
      Enum.flat_map_reduce(constants, {%{}, %{}}, fn {value, array}, {same, seen} ->
        key = content(array)

        case seen do
          %{^key => first} when key != nil -> {[], {Map.put(same, value, first), seen}}
          _ -> {[{value, array}], {same, Map.put(seen, key, value)}}
        end
      end)

    {kept, same}
  end

  defp content(array) do
    if EMLX.Array.bytes(array) <= @compared,
      do: {EMLX.Array.dtype(array), EMLX.Array.shape(array), EMLX.Array.to_binary(array)},
      else: nil
  end

  # ---- common subexpressions ----

  defp common(block, scope), do: Block.rewrite(block, scope, &common_instruction/2, &same/2)

  defp common_instruction({op, inputs, outputs, label}, scope) do
    inputs = Enum.map(inputs, &same(&1, scope))

    case op do
      {:call, _} ->
        {[{op, inputs, outputs, label}], scope}

      {name, blocks} when name in [:if, :while] ->
        # A nested block can use the results of the enclosing ones.
        {[{{name, Block.within(blocks, &common(&1, scope))}, inputs, outputs, label}], scope}

      _ ->
        {inputs, scope} = reshaped(op, inputs, outputs, scope)

        case scope.seen do
          %{{^op, ^inputs} => first} ->
            {[], %{scope | same: Enum.zip_reduce(outputs, first, scope.same, &Map.put(&3, &1, &2))}}

          seen ->
            {[{op, inputs, outputs, label}], %{scope | seen: Map.put(seen, {op, inputs}, outputs)}}
        end
    end
  end

  # A reshape of a reshape becomes a reshape of the original value.
  defp reshaped({:reshape, _}, [input], [output], scope) do
    source = Map.get(scope.reshaped, input, input)
    {[source], %{scope | reshaped: Map.put(scope.reshaped, output, source)}}
  end

  defp reshaped(_op, inputs, _outputs, scope), do: {inputs, scope}

  defp same(value, scope), do: Map.get(scope.same, value, value)

  # ---- dead code ----

  # The block with the results `needed`, and only the instructions that they depend on.
  defp live(%{instructions: instructions} = block, needed) do
    {instructions, _} =
      instructions
      |> Enum.reverse()
      |> Enum.flat_map_reduce(MapSet.new(needed), fn {op, inputs, outputs, label}, needed ->
        if effect?(op) or Enum.any?(outputs, &MapSet.member?(needed, &1)) do
          {op, outputs} = live_blocks(op, outputs, needed)
          {[{op, inputs, outputs, label}], Enum.into(inputs ++ free_of(op), needed)}
        else
          {[], needed}
        end
      end)

    %{block | instructions: Enum.reverse(instructions), results: needed}
  end

  # Branches drop results that are not used.
  defp live_blocks({:if, blocks}, outputs, needed) do
    wanted = Enum.map(outputs, &MapSet.member?(needed, &1))
    pick = fn list -> for {value, true} <- Enum.zip(list, wanted), do: value end
    {{:if, Block.within(blocks, &live(&1, pick.(&1.results)))}, pick.(outputs)}
  end

  defp live_blocks({:while, blocks}, outputs, _needed),
    do: {{:while, Block.within(blocks, &live(&1, &1.results))}, outputs}

  defp live_blocks(op, outputs, _needed), do: {op, outputs}

  defp effect?({:call, _}), do: true

  defp effect?({name, blocks}) when name in [:if, :while],
    do: Enum.any?(blocks, fn {_, block} -> Enum.any?(block.instructions, &effect?(elem(&1, 0))) end)

  defp effect?(_op), do: false

  # ---- numbers ----

  defp number(%{instructions: instructions, results: results}, inputs) do
    numbers = inputs |> Enum.with_index() |> Map.new()

    {instructions, {numbers, _}} =
      Enum.map_reduce(instructions, {numbers, length(inputs)}, fn {op, ins, outs, label}, {numbers, next} ->
        {op, ins} = with_captures(op, ins)
        ins = Enum.map(ins, &(&1 && Map.fetch!(numbers, &1)))
        count = length(outs)
        numbers = outs |> Enum.with_index(next) |> Enum.into(numbers)
        {{op, ins, count, label}, {numbers, next + count}}
      end)

    {length(inputs), instructions, Enum.map(results, &Map.fetch!(numbers, &1))}
  end

  # Captured values of the blocks become further inputs of their instruction.
  defp with_captures({name, blocks} = op, ins) when name in [:if, :while] do
    captures = op |> free_of() |> Enum.uniq()
    blocks = Block.within(blocks, &number(&1, &1.params ++ captures))
    {{name, blocks}, ins ++ captures}
  end

  defp with_captures(op, ins), do: {op, ins}

  defp free_of({name, blocks}) when name in [:if, :while], do: Enum.flat_map(blocks, fn {_, block} -> free(block) end)
  defp free_of(_op), do: []

  # The values that a block captures from the enclosing ones.
  defp free(block) do
    defined = for {_, _, outputs, _} <- block.instructions, value <- outputs, into: MapSet.new(block.params), do: value
    block |> used() |> MapSet.difference(defined) |> Enum.sort()
  end

  defp used(%{instructions: instructions, results: results}) do
    for {op, inputs, _, _} <- instructions,
        value <- inputs ++ free_of(op),
        value != nil,
        into: MapSet.new(results),
        do: value
  end
end
