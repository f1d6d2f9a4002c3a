defmodule EMLXBumblebee.Table do
  @moduledoc false
  # The tables in CONFORMANCE.md and REFERENCES.md, which tests assert row by row. A table is a map
  # `%{path: file, head: text above the rows, names: names of all rows, in order, foot: text below the rows}`.

  import ExUnit.Assertions

  @doc "Returns a row of cells."
  def row(cells), do: "| " <> Enum.join(cells, " | ") <> " |"

  @doc "Asserts that the file contains a row. With EMLX_CONFORMANCE=write, writes the row instead."
  def check(table, name, row) do
    if writing?(), do: write(table, Map.put(rows(table), name, row))

    assert rows(table)[name] == row,
           "#{Path.basename(table.path)} is out of date for #{name}; EMLX_CONFORMANCE=write regenerates it"
  end

  @doc "Asserts that the file has a row for each name and no other, between the head and the foot."
  def check(table) do
    # While the file is being written, it is incomplete.
    unless writing?() do
      assert for({name, _} <- lines(table), do: name) == table.names
      assert File.read!(table.path) == text(table, rows(table))
    end
  end

  def writing?, do: System.get_env("EMLX_CONFORMANCE") == "write"

  defp rows(table), do: Map.new(lines(table))

  defp lines(%{path: path, names: names}) do
    text = if File.exists?(path), do: File.read!(path), else: ""
    for line <- String.split(text, "\n"), name <- names, String.starts_with?(line, "| #{name} |"), do: {name, line}
  end

  defp write(table, rows), do: File.write!(table.path, text(table, rows))

  defp text(table, rows) do
    lines = for name <- table.names, row = rows[name], do: row <> "\n"
    IO.iodata_to_binary([table.head, lines, table.foot])
  end
end
