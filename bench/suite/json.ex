defmodule EMLX.Bench.JSON do
  @moduledoc """
  Writes the results file. Small, since Elixir has JSON of its own only from 1.18 on, and this keeps the order of what
  it is given.
  """

  @doc ~S"""
  JSON, indented. A list of `{key, value}` is an object in that order; maps are sorted by key; atoms are strings.

      iex> EMLX.Bench.JSON.encode(name: "a \"b\"", runs: [1, 2.5], none: nil)
      "{\n  \"name\": \"a \\\"b\\\"\",\n  \"runs\": [1, 2.5],\n  \"none\": null\n}"
  """
  def encode(value), do: value |> encode(0) |> IO.iodata_to_binary()

  defp encode(nil, _), do: "null"
  defp encode(value, _) when is_boolean(value), do: to_string(value)
  defp encode(value, _) when is_integer(value), do: Integer.to_string(value)
  # The shortest text that reads as the same number; 1.0e-6 is JSON too.
  defp encode(value, _) when is_float(value), do: Float.to_string(value)
  defp encode(value, depth) when is_atom(value), do: encode(Atom.to_string(value), depth)
  defp encode(value, _) when is_binary(value), do: [?", escape(value), ?"]
  defp encode(value, depth) when is_map(value), do: value |> Enum.sort() |> encode_object(depth)
  defp encode([{_, _} | _] = value, depth), do: encode_object(value, depth)

  defp encode(value, depth) when is_list(value) do
    if Enum.any?(value, &(is_list(&1) or is_map(&1))),
      do: lines(value, depth, "[", "]", &encode(&1, depth + 1)),
      else: ["[", value |> Enum.map(&encode(&1, depth)) |> Enum.intersperse(", "), "]"]
  end

  defp encode_object([], _depth), do: "{}"

  defp encode_object(pairs, depth),
    do:
      lines(pairs, depth, "{", "}", fn {key, value} -> [encode(to_string(key), 0), ": ", encode(value, depth + 1)] end)

  defp lines(items, depth, open, close, text) do
    indent = String.duplicate("  ", depth + 1)
    body = items |> Enum.map(&[indent, text.(&1)]) |> Enum.intersperse(",\n")
    [open, "\n", body, "\n", String.duplicate("  ", depth), close]
  end

  defp escape(text) do
    for <<character::utf8 <- text>>, into: "" do
      case character do
        ?" -> ~S(\")
        ?\\ -> ~S(\\)
        ?\n -> ~S(\n)
        ?\r -> ~S(\r)
        ?\t -> ~S(\t)
        control when control < 32 -> "\\u" <> String.pad_leading(Integer.to_string(control, 16), 4, "0")
        other -> <<other::utf8>>
      end
    end
  end
end
