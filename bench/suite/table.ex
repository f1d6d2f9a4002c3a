defmodule EMLX.Bench.Table do
  @moduledoc """
  Rows of text in columns that are as wide as they have to be.
  """

  @doc """
  Text of a heading and rows, each a list of cells. The first column is to the left, those whose number stands in `:left` too, the rest
  to the right.

      iex> EMLX.Bench.Table.text(["case", "time"], [["a", "1 ms"], ["bcd", "12 ms"]])
      "case   time\\na      1 ms\\nbcd   12 ms"
  """
  def text(heading, rows, opts \\ []) do
    left = [0 | Keyword.get(opts, :left, [])]
    table = [heading | rows]

    widths =
      table |> Enum.zip_with(& &1) |> Enum.map(fn column -> column |> Enum.map(&String.length/1) |> Enum.max() end)

    Enum.map_join(table, "\n", fn cells ->
      cells
      |> Enum.zip(widths)
      |> Enum.with_index()
      |> Enum.map_join("  ", fn {{cell, width}, i} ->
        if i in left, do: String.pad_trailing(cell, width), else: String.pad_leading(cell, width)
      end)
      |> String.trim_trailing()
    end)
  end

  @doc "The same as Markdown, for a README."
  def markdown(heading, rows) do
    line = fn cells -> "| " <> Enum.join(cells, " | ") <> " |" end
    Enum.join([line.(heading), line.(Enum.map(heading, fn _ -> "---" end)) | Enum.map(rows, line)], "\n")
  end
end
