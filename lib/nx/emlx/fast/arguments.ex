defmodule EMLX.Fast.Arguments do
  @moduledoc false
  # Argument checks and conversions that the functions of EMLX.Fast share.

  alias Nx.Tensor, as: T

  @doc "Returns a value as a floating-point tensor without names."
  def float!(value, name, function) do
    tensor = Nx.to_tensor(value)

    case tensor.type do
      {:c, _} -> raise ArgumentError, "#{function}: #{name} is complex (#{describe(tensor)}), it must be real"
      {kind, _} when kind in [:s, :u] -> tensor |> Nx.as_type({:f, 32}) |> unnamed()
      _ -> unnamed(tensor)
    end
  end

  @doc "The same as `float!/3`; nil for nil."
  def float_or_nil!(nil, _name, _function), do: nil
  def float_or_nil!(value, name, function), do: float!(value, name, function)

  @doc "Returns a tensor without names."
  def unnamed(%T{} = tensor), do: Nx.rename(tensor, List.duplicate(nil, tuple_size(tensor.shape)))

  @doc "Returns a vector as long as the last axis of x; nil for nil."
  def vector!(nil, _name, _x, _function), do: nil

  def vector!(value, name, %T{shape: shape}, function) do
    vector = float!(value, name, function)
    size = elem(shape, tuple_size(shape) - 1)

    if vector.shape != {size} do
      raise ArgumentError,
            "#{function}: x is #{inspect(shape)}, #{name} is #{inspect(vector.shape)}: " <>
              "#{name} must be {#{size}}, as long as the last axis of x"
    end

    vector
  end

  @doc "Returns whether any of the tensors is vectorized."
  def vectorized?(tensors), do: Enum.any?(tensors, &match?(%T{vectorized_axes: [_ | _]}, &1))

  @doc """
  Runs a block on tensors without names and vectorized axes. Inside `defn`, all arguments of a block have to be
  expressions, constants included.
  """
  def block(block, args, output, fun) do
    args = if Enum.any?(args, &match?(%T{data: %Nx.Defn.Expr{}}, &1)), do: Enum.map(args, &expression/1), else: args
    Nx.block(block, args, Nx.to_template(output), fun)
  end

  defp expression(%T{data: %Nx.Defn.Expr{}} = tensor), do: tensor
  defp expression(tensor), do: Nx.Defn.Expr.tensor(tensor)

  @doc "Returns the type that a block's composed function computes in: f64 for f64, else f32."
  def wide(%T{type: {:f, 64}}), do: {:f, 64}
  def wide(%T{}), do: {:f, 32}

  @doc "Returns a number as a tensor of another tensor's type. Nx converts a plain float to f32."
  def number(number, %T{type: type}), do: Nx.tensor(number, type: type)

  @doc "Returns a tensor that the gradient treats as a constant."
  def constant(%T{data: %Nx.Defn.Expr{}} = tensor), do: Nx.Defn.Kernel.stop_grad(tensor)
  def constant(tensor), do: tensor

  @doc "Returns whether MLX's fused kernels support a type."
  def fused?({:f, size}) when size in [16, 32], do: true
  def fused?({:bf, 16}), do: true
  def fused?(_type), do: false

  @doc "Returns the reason why a fused kernel of one array cannot take x; nil if it can."
  def refusal(x) do
    cond do
      not fused?(x.type) -> "the kernel computes in f32, x is #{Nx.Type.to_string(x.type)}"
      Nx.size(x) == 0 -> "x is empty"
      true -> nil
    end
  end

  @doc "Returns a tensor's type and shape as `inspect/2` shows them."
  def describe(%T{} = tensor), do: EMLX.Block.Error.describe(tensor)

  @doc "Returns an option as a float. Raises `ArgumentError` if it is no number."
  def number!(number, _name, _function) when is_number(number), do: number * 1.0

  def number!(other, name, function),
    do: raise(ArgumentError, "#{function}: :#{name} must be a number, got: #{inspect(other)}")
end
