defmodule EMLX.Compiler.Capture do
  @moduledoc false
  # An Nx.Defn.Compiler that compiles nothing: it hands over what Nx gives a compiler. EMLX.compile_to_program/3 goes through it,
  # so that it takes the functions and arguments that Nx.Defn.compile/3 takes.

  @behaviour Nx.Defn.Compiler

  @doc "The variables of a function for arguments like `args`, and the function that makes an expression of them."
  def expression(fun, args) do
    Nx.Defn.compile(fun, args, compiler: __MODULE__)
  catch
    :throw, {__MODULE__, vars, fun} -> {vars, fun}
  end

  @impl true
  def __compile__(_key, vars, fun, _opts), do: throw({__MODULE__, vars, fun})

  @impl true
  def __jit__(_key, vars, fun, _args, _opts), do: throw({__MODULE__, vars, fun})

  @impl true
  def __partitions_options__(opts), do: [opts]

  @impl true
  def __to_backend__(_opts), do: {EMLX.Backend, []}
end
