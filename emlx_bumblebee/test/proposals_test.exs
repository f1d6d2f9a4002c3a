defmodule EMLXBumblebee.ProposalsTest do
  # The proposals in docs/upstream name the same structs, fields and defaults as the code.
  use ExUnit.Case, async: true

  @folder Path.expand("../../docs/upstream", __DIR__)

  for {file, modules} <- [
        {"axon.md", [Axon.Block.LayerNorm, Axon.Block.RMSNorm, Axon.Block.RoPE, Axon.Block.SDPA]},
        {"bumblebee.md", [Bumblebee.Block.SDPA, Bumblebee.Block.RotaryEmbedding]}
      ],
      module <- modules do
    test "#{inspect(module)} has the fields and defaults that #{file} proposes" do
      [_, rest] =
        @folder |> Path.join(unquote(file)) |> File.read!() |> String.split("**`#{inspect(unquote(module))}`**")

      [_, table | _] = String.split(rest, "\n\n")

      rows =
        for "| `" <> row <- String.split(table, "\n"),
            [names, default | _] = String.split("| `" <> row, " | "),
            do: {names, default}

      fields =
        for {names, default} <- rows, [_, name] <- Regex.scan(~r/`([a-z_?]+)`/, names), into: %{} do
          {name, default |> String.trim() |> String.trim("`") |> value()}
        end

      own = for {field, value} <- Map.from_struct(unquote(module).__struct__()), into: %{}, do: {"#{field}", value}
      assert fields == own
    end
  end

  defp value(text), do: text |> Code.eval_string() |> elem(0)
end
