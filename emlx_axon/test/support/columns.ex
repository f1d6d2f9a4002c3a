defmodule EMLXAxon.Columns do
  @moduledoc "A struct that is a model's input, for Axon.stack_columns/2."
  @derive {Nx.Container, containers: [:a, :b]}
  defstruct [:a, :b]
end
