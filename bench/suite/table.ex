defmodule EMLX.Bench.Table do
  @moduledoc """
  Rows of text in columns that are as wide as they have to be.
  """

  @doc """
  Returns a heading and rows as text, each a list of cells. The first column is aligned to the left, those whose index
  is in `:left` too, the others to the right.

      iex> EMLX.Bench.Table.text(["case", "time"], [["a", "1 ms"], ["bcd", "12 ms"]])
      "case   time\\na      1 ms\\nbcd   12 ms"
  """
  def text(heading, rows, opts \\ []) do
    left = [0 | Keyword.get(opts, :left, [])]
    right = for column <- 0..(length(heading) - 1), column not in left, do: column
    EMLX.Table.text([heading | rows], right: right)
  end

  @doc "The same as Markdown, for a README."
  def markdown(heading, rows) do
    line = fn cells -> "| " <> Enum.join(cells, " | ") <> " |" end
    Enum.join([line.(heading), line.(Enum.map(heading, fn _ -> "---" end)) | Enum.map(rows, line)], "\n")
  end
end
