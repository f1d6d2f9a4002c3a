defmodule EMLXBumblebee.Call do
  @moduledoc false
  # Functions of any number of arguments. Nx.block/4 and Axon's layers pass each tensor as an argument, and the number
  # of tensors depends on the model.

  alias EMLX.Fast.Arguments

  @most 16

  @doc "Returns a function of `arity` arguments that calls `fun` with the list of them."
  for arity <- 1..@most do
    arguments = Macro.generate_arguments(arity, __MODULE__)
    def variadic(unquote(arity), fun), do: fn unquote_splicing(arguments) -> fun.(unquote(arguments)) end
  end

  @doc """
  Calls `Nx.block/4` with a composed function of the block and the list of tensors. Calls the composed function directly
  if a tensor is vectorized, which kernels do not support.
  """
  def block(block, tensors, output, composed) do
    if Arguments.vectorized?(tensors) do
      composed.(block, tensors)
    else
      fun = variadic(length(tensors) + 1, fn [block | tensors] -> composed(composed, block, tensors) end)
      Arguments.block(block, tensors, output, fun)
    end
  end

  # Outside defn, Nx runs Bumblebee's functions with the default compiler. While a program is being compiled, tensors
  # are placeholders, which the default compiler must not evaluate. The evaluator passes them to their backend.
  defp composed(composed, block, tensors) do
    if Enum.any?(tensors, &match?(%Nx.Tensor{data: %Nx.Defn.Expr{}}, &1)) do
      composed.(block, tensors)
    else
      wrapped = fn tensors -> composed.(block, Tuple.to_list(tensors)) end
      Nx.Defn.jit_apply(wrapped, [List.to_tuple(tensors)], compiler: Nx.Defn.Evaluator)
    end
  end
end
