if Code.ensure_loaded?(Nx) do
  defmodule EMLX.Guide do
    @moduledoc """
    The modules that guides/blocks.md defines, compiled from the guide itself: an implementation of EMLX.Block from outside, known
    when the protocol is consolidated.
    """

    @guide Path.expand("../../../guides/blocks.md", __DIR__)
    @external_resource @guide

    for [_, code] <- Regex.scan(~r/```elixir\n(.*?)```/s, File.read!(@guide)),
        do: Code.eval_string(code, [], file: @guide)

    @doc "The guide's path."
    def path, do: @guide
  end
end
