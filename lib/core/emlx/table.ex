defmodule EMLX.Table do
  @moduledoc """
  Text tables with columns as wide as their longest cell. `EMLX.Telemetry.table/1`, `mix emlx.doctor` and the `explain`
  functions of `emlx_axon` and `emlx_bumblebee` print them.
  """

  @doc """
  Returns the rows as lines, without a line break after the last one. Two spaces separate the columns.

  ## Arguments

    * `rows` - a list of rows, the heading among them; each is a list of strings, as many in every row

  ## Options

    * `:right` - the indices of the right-aligned columns; default `[]`
    * `:least` - the minimum widths of the first columns; default `[]`

  ## Examples

      iex> EMLX.Table.text([["case", "time"], ["a", "1 ms"], ["bcd", "12 ms"]], right: [1])
      "case   time\\na      1 ms\\nbcd   12 ms"
  """
  @spec text([[String.t()]], right: [non_neg_integer], least: [non_neg_integer]) :: String.t()
  def text(rows, opts \\ []) do
    opts = Keyword.validate!(opts, right: [], least: [])
    widths = rows |> Enum.zip_with(&width/1) |> widen(opts[:least])

    Enum.map_join(rows, "\n", fn cells ->
      cells
      |> Enum.zip(widths)
      |> Enum.with_index()
      |> Enum.map_join("  ", fn {{cell, width}, column} ->
        if column in opts[:right], do: String.pad_leading(cell, width), else: String.pad_trailing(cell, width)
      end)
      |> String.trim_trailing()
    end)
  end

  defp width(column), do: column |> Enum.map(&String.length/1) |> Enum.max()

  defp widen(widths, []), do: widths
  defp widen([], _least), do: []
  defp widen([width | widths], [least | rest]), do: [max(width, least) | widen(widths, rest)]
end
