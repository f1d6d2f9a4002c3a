defmodule EMLX.Compiler.Capture do
  @moduledoc false
  # An Nx.Defn.Compiler that returns the arguments that Nx passes to a compiler. EMLX.compile_to_program/3 uses it to
  # accept the same functions and arguments as Nx.Defn.compile/3.

  @behaviour Nx.Defn.Compiler

  @doc "Returns the variables of a function for arguments like `args`, and the function that builds its expression."
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
