defmodule EMLX.TableTest do
  use ExUnit.Case, async: true

  doctest EMLX.Table

  test "a column is as wide as its longest cell, or as its least width" do
    rows = [["x", "y"], ["long", "1"]]
    assert EMLX.Table.text(rows, least: [6]) == "x       y\nlong    1"
    assert EMLX.Table.text(rows, least: [2, 3], right: [1]) == "x       y\nlong    1"
  end

  test "widths count characters, and no line ends in spaces" do
    assert EMLX.Table.text([["→ 2³¹", ""], ["a", "b"]]) == "→ 2³¹\na      b"
  end

  test "an option that does not exist is refused" do
    assert_raise ArgumentError, ~r/unknown keys \[:left\]/, fn -> EMLX.Table.text([["a"]], left: [0]) end
  end
end
