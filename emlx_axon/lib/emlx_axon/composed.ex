defmodule EMLXAxon.Composed do
  @moduledoc false
  # The composed functions of the blocks of EMLXAxon.Layers: Axon's own function if it has one, that of EMLX.Fast
  # otherwise. A block is a struct of Axon.Block, or a map with its fields.

  # ---- norms: Axon's own ----

  def layer_norm(%{axis: axis, eps: eps}, x, gamma, beta),
    do: original(&Axon.Layers.layer_norm/4, [x, gamma, beta], epsilon: eps, channel_index: axis)

  def rms_norm(%{axis: axis, eps: eps, shift: shift, upcast: upcast}, x, gamma) do
    opts = [epsilon: eps, channel_index: axis, shift: shift, upcast: upcast]
    original(&Axon.Layers.rms_norm/3, [x, gamma], opts)
  end

  # Outside defn, Nx runs Axon's function with the default compiler. While a program is being compiled, tensors are
  # placeholders, which the default compiler must not evaluate. The evaluator passes them to their backend.
  defp original(fun, tensors, opts) do
    if Enum.any?(tensors, &match?(%Nx.Tensor{data: %Nx.Defn.Expr{}}, &1)) do
      apply(fun, tensors ++ [opts])
    else
      wrapped =
        case tensors do
          [_, _] -> fn x, gamma -> fun.(x, gamma, opts) end
          [_, _, _] -> fn x, gamma, beta -> fun.(x, gamma, beta, opts) end
        end

      Nx.Defn.jit_apply(wrapped, tensors, compiler: Nx.Defn.Evaluator)
    end
  end

  # ---- rotary position embedding ----

  def rope(block, x, positions), do: rotate(block, x, positions, nil)
  def rope(block, x, positions, freqs), do: rotate(block, x, positions, freqs)

  # EMLX.Fast.rope/4 takes one position for each row of a batch. Arbitrary positions become rows of length 1;
  # consecutive ones only need the first.
  defp rotate(block, %{shape: {batch, length, heads, size}} = x, %{shape: {_, length}} = positions, freqs) do
    positions = positions |> Nx.broadcast({batch, length}) |> Nx.reshape({batch * length})

    x
    |> Nx.reshape({batch * length, heads, 1, size})
    |> EMLX.Fast.rope(positions, freqs, opts(block))
    |> Nx.reshape(x.shape, names: x.names)
  end

  defp rotate(block, x, positions, freqs) do
    x
    |> Nx.transpose(axes: [0, 2, 1, 3])
    |> EMLX.Fast.rope(positions, freqs, opts(block))
    |> Nx.transpose(axes: [0, 2, 1, 3])
  end

  defp opts(block), do: [dims: block.dims, traditional: block.traditional, base: block.base, scale: block.scale]

  # ---- attention ----

  def sdpa(block, q, k, v), do: attend(block, q, k, v, [])
  def sdpa(block, q, k, v, first), do: attend(block, q, k, v, [first])
  def sdpa(block, q, k, v, first, second), do: attend(block, q, k, v, [first, second])

  defp attend(block, q, k, v, rest) do
    {offset, rest} = if block.offset?, do: List.pop_at(rest, 0), else: {0, rest}
    mask = mask(block, offset, List.first(rest), elem(q.shape, 1), elem(k.shape, 1))
    EMLX.Fast.scaled_dot_product_attention(q, k, v, mask, scale: block.scale, layout: :bshd)
  end

  defp mask(%{causal: false, window: nil}, _offset, mask, _queries, _keys), do: mask

  # The kernel's causal mask aligns the last query with the last key. It applies only to as many queries as keys.
  defp mask(%{causal: true, window: nil, offset?: false, mask: nil}, _offset, nil, queries, queries), do: :causal

  defp mask(block, offset, mask, queries, keys) do
    ahead = Nx.subtract(Nx.iota({1, keys}), Nx.add(Nx.iota({queries, 1}), offset))

    seen =
      case block do
        %{causal: true, window: nil} -> Nx.less_equal(ahead, 0)
        %{causal: true, window: {left, _}} -> between(ahead, left, 0)
        %{window: {left, right}} -> between(ahead, left, right)
      end

    case block.mask do
      nil ->
        seen

      :boolean ->
        Nx.logical_and(mask, seen)

      :additive ->
        # Scores are f32, and the lowest finite f16 does not exclude a key among them.
        mask = if mask.type == {:f, 16}, do: Nx.as_type(mask, {:f, 32}), else: mask
        Nx.select(Nx.broadcast(seen, wide(mask.shape, seen.shape)), mask, Nx.Constants.min_finite(mask.type))
    end
  end

  defp between(ahead, left, right),
    do: Nx.logical_and(Nx.greater_equal(ahead, -left), Nx.less_equal(ahead, right))

  # The shape that both broadcast to.
  defp wide(left, right) do
    [left, right] = Enum.map([left, right], &Enum.reverse(Tuple.to_list(&1)))
    rank = max(length(left), length(right))
    pad = &(&1 ++ List.duplicate(1, rank - length(&1)))
    Enum.zip_with(pad.(left), pad.(right), &max/2) |> Enum.reverse() |> List.to_tuple()
  end
end
