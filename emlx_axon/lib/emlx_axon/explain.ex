defmodule EMLXAxon.Explain do
  @moduledoc false
  # Builds the table of EMLXAxon.explain/2.

  @header ["layer", "op", "block", "why not"]

  def table(model, describe) do
    rows = rows(model, describe, "")
    blocks = Enum.count(rows, fn [_, _, block, _] -> block != "" end)
    "#{EMLX.Table.text([@header | rows])}\n\nblocks: #{blocks} of #{length(rows)} layers"
  end

  # Axon names and counts layers in the order in which it builds them, inputs first.
  defp rows(model, describe, indent) do
    {rows, _counts, _blocks} =
      model
      |> Axon.reduce_nodes([], &[&1 | &2])
      |> Enum.reduce({[], %{}, %{}}, fn node, {rows, counts, blocks} ->
        {name, counts, blocks} = name(node, counts, blocks)
        {block, why} = what(describe.(node))
        row = [indent <> name, Atom.to_string(node.op_name), block, why]
        {Enum.reverse(inner(node, describe, indent), [row | rows]), counts, blocks}
      end)

    Enum.reverse(rows)
  end

  # All uses of one Axon.block/2 share a name and the parameters under it.
  defp name(%{op: :block, opts: opts} = node, counts, blocks) do
    case blocks do
      %{^opts => name} ->
        {name, counts, blocks}

      %{} ->
        {name, counts, _} = name(%{node | op: nil}, counts, blocks)
        {name, counts, Map.put(blocks, opts, name)}
    end
  end

  defp name(node, counts, blocks),
    do: {node.name.(node.op_name, counts), Map.update(counts, node.op_name, 1, &(&1 + 1)), blocks}

  defp inner(%{op: :block, opts: opts, parent: parents}, describe, indent) do
    inputs = Enum.with_index(parents, fn _, i -> Axon.input("subgraph#{i}") end)
    opts[:block_fun] |> apply(inputs) |> rows(describe, indent <> "  ")
  end

  defp inner(_node, _describe, _indent), do: []

  defp what({:block, module}), do: {inspect(module), ""}
  defp what({:could, module}), do: {"", "EMLXAxon.rewrite/2 makes it #{inspect(module)}"}
  defp what({:left, reason}), do: {"", reason}
end
