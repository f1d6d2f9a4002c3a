defmodule EMLX.Block.Error do
  @moduledoc """
  The exception for an implementation of `EMLX.Block` that raised, or whose result is not like the template.
  `EMLX.Block.dispatch/4` raises it.

  Fields:

    * `:block` - the struct
    * `:args` - a description of each argument, such as `"f32[2][3]"`
    * `:cause` - the exception, or a binary that describes the wrong result
  """

  defexception [:block, :cause, args: []]

  @type t :: %__MODULE__{block: struct, args: [binary], cause: Exception.t() | binary}

  @impl true
  def exception(fields) do
    args = Enum.map(fields[:args], &describe/1)
    struct!(__MODULE__, Keyword.put(fields, :args, args))
  end

  @impl true
  def message(%{block: block, args: args, cause: cause}) do
    "the implementation of EMLX.Block for #{inspect(block)} with #{given(args)} #{failed(cause)}"
  end

  defp given([]), do: "no arguments"
  defp given(args), do: Enum.join(args, ", ")

  defp failed(cause) when is_binary(cause), do: cause
  defp failed(cause), do: "raised #{inspect(cause.__struct__)}: #{Exception.message(cause)}"

  @doc false
  def describe(%Nx.Tensor{type: type, shape: shape, vectorized_axes: vectorized}) do
    vectorized = Enum.map(vectorized, fn {name, size} -> "[#{name}: #{size}]" end)
    sizes = Enum.map(Tuple.to_list(shape), &"[#{&1}]")
    IO.iodata_to_binary([Nx.Type.to_string(type), vectorized, sizes])
  end

  def describe(tuple) when is_tuple(tuple),
    do: "{#{tuple |> Tuple.to_list() |> Enum.map_join(", ", &describe/1)}}"

  def describe(other), do: inspect(other)
end
