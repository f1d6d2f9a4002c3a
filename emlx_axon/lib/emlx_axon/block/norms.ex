# The implementations of EMLX.Block for Axon's norms. Other packages may call these blocks with other composed
# functions, so the code relies on the documentation of the structs only.

if EMLXAxon.Upstream.known?(Axon.Block.RMSNorm) do
  defimpl EMLX.Block, for: Axon.Block.RMSNorm do
    alias EMLXAxon.Block.LastAxis

    def call(block, output, [x | weight] = args, fun) do
      weight = List.first(weight)

      if reason = LastAxis.refusal(x, List.wrap(weight)) || refusal(block, x, weight) do
        EMLX.Block.decline(block, args, fun, reason)
      else
        x |> LastAxis.apply(block.axis, &normalize(block, &1, weight)) |> Nx.rename(output.names)
      end
    end

    defp refusal(%{upcast: :all}, _x, _weight), do: nil

    defp refusal(_block, x, _weight) do
      unless EMLX.Fast.Arguments.fused?(x.type),
        do:
          "x is #{Nx.Type.to_string(x.type)}, to which the quotient is rounded; the kernel rounds to f32, f16 and bf16"
    end

    defp normalize(%{upcast: :all} = block, x, weight) do
      weight = weight && shifted(block, Nx.as_type(weight, {:f, 32}))
      EMLX.Fast.rms_norm(Nx.as_type(x, {:f, 32}), weight, eps: block.eps)
    end

    defp normalize(block, x, nil), do: EMLX.Fast.rms_norm(x, nil, eps: block.eps)

    defp normalize(block, x, weight) do
      weight = shifted(block, weight)

      # With a weight of another type, MLX does not round the quotient to the type of x. The layer does.
      if weight.type == x.type,
        do: EMLX.Fast.rms_norm(x, weight, eps: block.eps),
        else: Nx.multiply(EMLX.Fast.rms_norm(x, nil, eps: block.eps), weight)
    end

    # The layer adds the shift even if it is 0.0, which converts integers to floats.
    defp shifted(%{shift: shift}, weight) do
      if shift == 0 and Nx.Type.float?(weight.type),
        do: LastAxis.vector(weight),
        else: Nx.add(shift, LastAxis.vector(weight))
    end
  end
end

if EMLXAxon.Upstream.known?(Axon.Block.LayerNorm) do
  defimpl EMLX.Block, for: Axon.Block.LayerNorm do
    alias EMLXAxon.Block.LastAxis

    def call(block, output, [x | rest] = args, fun) do
      if reason = LastAxis.refusal(x, rest) || refusal(x, rest) do
        EMLX.Block.decline(block, args, fun, reason)
      else
        {weight, rest} = if block.weight?, do: List.pop_at(rest, 0), else: {nil, rest}
        [weight, bias] = Enum.map([weight, List.first(rest)], &(&1 && LastAxis.vector(&1)))

        x
        |> LastAxis.apply(block.axis, &EMLX.Fast.layer_norm(&1, weight, bias, eps: block.eps))
        |> Nx.rename(output.names)
      end
    end

    # The layer computes in the types of its arguments, the kernel in f32.
    defp refusal(%{type: {:f, 32}}, rest) do
      if wide = Enum.find(rest, &(&1.type not in [{:f, 32}, {:f, 16}, {:bf, 16}])),
        do: "x is f32, weight or bias is #{Nx.Type.to_string(wide.type)}; the kernel computes in f32"
    end

    # bf16 has the range of f32, so the kernel differs from the layer in rounding only, and is the more accurate one.
    # With a wider weight the result is wider, too, and the layer's rounding to bf16 would be visible in it.
    defp refusal(%{type: {:bf, 16}}, rest) do
      if other = Enum.find(rest, &(&1.type != {:bf, 16})),
        do: "x is bf16, weight or bias is #{Nx.Type.to_string(other.type)}; the layer rounds to bf16 in between"
    end

    defp refusal(%{type: {:f, 16}}, _rest),
      do: "x is f16; the layer computes in f16, where squares overflow that do not in the kernel"

    defp refusal(%{type: type}, _rest), do: "x is #{Nx.Type.to_string(type)}; the kernel is for f32 and bf16"
  end
end

defmodule EMLXAxon.Block.LastAxis do
  @moduledoc false
  # Helpers of both norms: MLX's kernels normalise over the last axis and take vectors.

  @doc "Returns the reason why neither kernel accepts x and the vectors, or nil."
  def refusal(x, vectors) do
    cond do
      Enum.any?([x | vectors], &match?({:c, _}, &1.type)) -> "an argument is complex"
      Nx.size(x) == 0 -> "x is empty"
      true -> nil
    end
  end

  @doc "Moves an axis of x to the end, applies `fun`, and moves the axis of the result back."
  def apply(x, axis, fun) do
    rank = tuple_size(x.shape)

    case Nx.Shape.normalize_axis(x.shape, axis, x.names) do
      axis when axis == rank - 1 ->
        fun.(x)

      axis ->
        axes = Enum.to_list(0..(rank - 1))
        there = List.delete(axes, axis) ++ [axis]
        back = Enum.map(axes, fn at -> Enum.find_index(there, &(&1 == at)) end)
        x |> Nx.transpose(axes: there) |> fun.() |> Nx.transpose(axes: back)
    end
  end

  @doc "Reshapes a parameter to a vector, as Axon does."
  def vector(tensor), do: Nx.reshape(tensor, {Nx.size(tensor)})
end
