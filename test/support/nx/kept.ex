defmodule EMLX.Kept do
  @moduledoc "A container that keeps a term beside its tensor, for the tests of the compile cache."

  @derive {Nx.Container, containers: [:x], keep: [:by]}
  defstruct [:x, :by]
end
