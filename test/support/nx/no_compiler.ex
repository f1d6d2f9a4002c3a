defmodule EMLX.NoCompiler do
  @moduledoc """
  A compiler that must not be asked, for the tests of what runs while another one is at work. The packages' tests use it
  too.
  """

  @behaviour Nx.Defn.Compiler

  @impl true
  def __jit__(_key, _vars, _fun, _args, _opts), do: raise("the default compiler is not to be asked")

  @impl true
  def __compile__(_key, _vars, _fun, _opts), do: raise("the default compiler is not to be asked")

  @impl true
  def __partitions_options__(_opts), do: []

  @impl true
  def __to_backend__(_opts), do: {Nx.BinaryBackend, []}
end
