defmodule EMLXBumblebee.Explain do
  @moduledoc false
  # Builds the table of EMLXBumblebee.explain/1.

  alias EMLXBumblebee.Graph

  @header ["layer", "block", "how"]

  def table(model) do
    rows = rows(model)
    lines = Enum.map(rows, &line/1)
    blocks = Enum.count(rows, &match?({_, {:block, _}, _}, &1))

    """
    #{EMLX.Table.text([@header | lines])}

    blocks: #{blocks} of #{length(rows)} #{if length(rows) == 1, do: "layer", else: "layers"}\
    """
  end

  @doc """
  Returns `{name, what, how}` for each layer that is a block or could be one, in the order of computation. `what` is
  `{:block, module}`, `{:could, module}` before the rewrite, or `{:left, module}`.
  """
  def rows(model) do
    plan = Map.new(Graph.plan(model))

    model
    |> Axon.reduce_nodes([], &[&1 | &2])
    |> Enum.flat_map(&List.wrap(row(&1, plan[&1.id], model)))
  end

  defp row(node, step, model) do
    case {step, Graph.mark(node)} do
      {nil, nil} -> axon(node)
      {nil, {block, note}} -> {Graph.name(model, node.id), {:block, block}, note || ""}
      {{:fuse, block, note, _}, _} -> {Graph.name(model, node.id), {:could, block}, note || ""}
      {{:leave, block, reason}, _} -> {Graph.name(model, node.id), {:left, block}, reason}
    end
  end

  # Axon's own layers.
  defp axon(node) do
    name = node.name.(node.op_name, %{})

    case EMLXAxon.describe(node) do
      {:block, block} -> {name, {:block, block}, ""}
      {:could, block} -> {name, {:could, block}, ""}
      {:left, reason} when node.op in [:layer_norm, :rms_norm] -> {name, {:left, nil}, reason}
      {:left, _reason} -> nil
    end
  end

  defp line({name, {:block, block}, how}), do: [name, inspect(block), how]
  defp line({name, {:could, block}, _how}), do: [name, "", "EMLXBumblebee.rewrite/2 makes it #{inspect(block)}"]
  defp line({name, {:left, _block}, how}), do: [name, "", how]
end
