defmodule EMLX.Fast.ScaledDotProductAttention do
  @moduledoc """
  The block of `EMLX.Fast.scaled_dot_product_attention/5`. Its arguments are q `{batch, heads, queries, size}`, k
  `{batch, kv_heads, keys, size}` and v `{batch, kv_heads, keys, value_size}`, or with `layout: :bshd` heads after the
  length; then the mask if `:mask` is `:boolean` or `:additive`; then sinks `{heads}` if `:sinks?`.
  """

  alias EMLX.Fast.Arguments

  defstruct [:scale, mask: nil, sinks?: false, layout: :bhsd]

  @type t :: %__MODULE__{
          scale: float,
          mask: nil | :causal | :boolean | :additive,
          sinks?: boolean,
          layout: :bhsd | :bshd
        }

  @doc false
  # Returns {mask, sinks} from the arguments after q, k and v.
  def arguments(%{mask: mask} = block, args) do
    {mask, args} = if mask in [:boolean, :additive], do: List.pop_at(args, 0), else: {nil, args}
    {mask, if(block.sinks?, do: hd(args))}
  end

  @doc false
  def composed(block, q, k, v), do: attend(block, q, k, v, arguments(block, []))
  @doc false
  def composed(block, q, k, v, first), do: attend(block, q, k, v, arguments(block, [first]))
  @doc false
  def composed(block, q, k, v, first, second), do: attend(block, q, k, v, arguments(block, [first, second]))

  @doc false
  # Swaps heads and length of a shape in the layout :bshd.
  def swap(%{layout: :bhsd}, shape), do: shape
  def swap(%{layout: :bshd}, {batch, length, heads, size}), do: {batch, heads, length, size}

  @doc false
  def attend(%{layout: :bshd} = block, q, k, v, rest) do
    [q, k, v] = Enum.map([q, k, v], &Nx.transpose(&1, axes: [0, 2, 1, 3]))
    %{block | layout: :bhsd} |> attend(q, k, v, rest) |> Nx.transpose(axes: [0, 2, 1, 3])
  end

  def attend(block, q, k, v, {mask, sinks}) do
    type = if Enum.any?([q, k, v], &(&1.type == {:f, 64})), do: {:f, 64}, else: {:f, 32}
    {batch, heads, queries, size} = q.shape
    {_, kv_heads, keys, value_size} = v.shape
    group = div(heads, max(kv_heads, 1))

    # The query heads that share a key head become rows of one matrix.
    q_wide = Nx.as_type(q, type)
    scaled = Nx.multiply(q_wide, Arguments.number(block.scale, q_wide))
    grouped = Nx.reshape(scaled, {batch, kv_heads, group * queries, size})

    scores =
      grouped
      |> Nx.dot([3], [0, 1], Nx.as_type(k, type), [3], [0, 1])
      |> Nx.reshape({batch, heads, queries, keys})
      |> mask(block.mask, mask)

    sinks = sinks && sinks |> Nx.as_type(type) |> Nx.reshape({heads, 1, 1})

    scores
    |> softmax(sinks)
    |> Nx.reshape({batch, kv_heads, group * queries, keys})
    |> Nx.dot([3], [0, 1], Nx.as_type(v, type), [2], [0, 1])
    |> Nx.reshape({batch, heads, queries, value_size})
    |> Nx.as_type(q.type)
  end

  defp mask(scores, nil, nil), do: scores

  defp mask(%{shape: {_, _, queries, keys}} = scores, :causal, nil) do
    query = Nx.iota({queries, keys}, axis: 0)
    key = Nx.iota({queries, keys}, axis: 1)
    mask(scores, :boolean, Nx.greater_equal(Nx.add(query, keys - queries), key))
  end

  defp mask(scores, :boolean, mask) do
    # Finite, so that a query whose keys are all masked out attends to all of them equally.
    lowest = Nx.Constants.min_finite(scores.type)
    Nx.select(Nx.broadcast(mask, scores.shape), scores, lowest)
  end

  defp mask(scores, :additive, mask), do: Nx.add(scores, Nx.as_type(mask, scores.type))

  defp softmax(scores, sinks) do
    largest = Nx.reduce_max(scores, axes: [-1], keep_axes: true)
    largest = Arguments.constant(if(sinks, do: Nx.max(largest, sinks), else: largest))
    powers = Nx.exp(Nx.subtract(scores, largest))
    sum = Nx.sum(powers, axes: [-1], keep_axes: true)
    sum = if sinks, do: Nx.add(sum, Nx.exp(Nx.subtract(sinks, largest))), else: sum
    Nx.divide(powers, sum)
  end
end

defimpl EMLX.Block, for: EMLX.Fast.ScaledDotProductAttention do
  alias EMLX.{Backend, Kernels, Ops}
  alias EMLX.Fast.{Arguments, ScaledDotProductAttention}

  def call(block, output, [q, k, v | rest] = args, fun) do
    cond do
      odd = Enum.find([q, k, v], &(not Arguments.fused?(&1.type))) ->
        EMLX.Block.decline(
          block,
          args,
          fun,
          "the kernel computes in f32, an argument is #{Nx.Type.to_string(odd.type)}"
        )

      Enum.any?([q, k, v], &(Nx.size(&1) == 0)) ->
        EMLX.Block.decline(block, args, fun, "an argument is empty")

      true ->
        {mask, sinks} = ScaledDotProductAttention.arguments(block, rest)
        type = common([q, k, v] ++ if(block.mask == :additive, do: [mask], else: []) ++ List.wrap(sinks))
        [q, k, v] = Enum.map([q, k, v], &array(&1, type))

        mask =
          case block.mask do
            :boolean -> Ops.not_equal(Backend.to_array(mask), 0)
            :additive -> array(mask, type)
            mode -> mode
          end

        opts = [scale: block.scale, sinks: sinks && array(sinks, type), layout: block.layout]
        array = Kernels.scaled_dot_product_attention(q, k, v, mask, opts)
        if type == Backend.dtype(output.type), do: Backend.tensor(array, output), else: Backend.to_nx(array, output)
    end
  end

  # MLX rejects a mask or sinks whose type does not promote to that of q, k and v. Rounding them would change the
  # result, so mixed types are computed in f32.
  defp common(tensors) do
    case tensors |> Enum.map(& &1.type) |> Enum.uniq() do
      [type] -> Backend.dtype(type)
      _ -> :f32
    end
  end

  defp array(tensor, dtype) do
    array = Backend.to_array(tensor)
    if Backend.dtype(tensor.type) == dtype, do: array, else: Ops.astype(array, dtype)
  end
end
