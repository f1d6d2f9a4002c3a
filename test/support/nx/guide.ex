if Code.ensure_loaded?(Nx) do
  defmodule EMLX.Guide do
    @moduledoc """
    The modules that guides define, compiled from the guides themselves: an implementation of EMLX.Block from outside,
    known when the protocol is consolidated, for one.
    """

    @guides Path.expand("../../../guides", __DIR__)

    for name <- ~w(blocks performance) do
      guide = Path.join(@guides, "#{name}.md")
      @external_resource guide

      for [_, code] <- Regex.scan(~r/```elixir\n(.*?)```/s, File.read!(guide)),
          do: Code.eval_string(code, [], file: guide)
    end

    @doc "The path of the guide of that name."
    def path(name), do: Path.join(@guides, "#{name}.md")
  end
end
