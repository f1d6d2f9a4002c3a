# The implementations of EMLX.Block for Bumblebee's blocks.

if EMLXBumblebee.Upstream.known?(Bumblebee.Block.SDPA) do
  defimpl EMLX.Block, for: Bumblebee.Block.SDPA do
    alias EMLX.{Array, Backend, Kernels, Ops}
    alias EMLX.Fast.Arguments
    alias EMLXBumblebee.Attention

    # The bias of a masked key. It is low enough to absorb any score, as Bumblebee's lowest finite number is, and high
    # enough not to overflow in a kernel that multiplies it.
    @lowest -1.0e30

    def call(%{weights: :output} = block, _output, args, fun),
      do: EMLX.Block.decline(block, args, fun, "the attention weights are an output, which the kernel does not return")

    def call(%{weights: :dropout} = block, _output, args, fun),
      do: EMLX.Block.decline(block, args, fun, "the kernel does not support dropout of attention weights")

    def call(%{head_mask?: true} = block, _output, args, fun),
      do: EMLX.Block.decline(block, args, fun, "the kernel does not support a head mask")

    def call(block, output, [query, key, value | rest] = args, fun) do
      tensors = Attention.arguments(block, rest)
      floats = [query, key, value | for(name <- [:bias, :sinks], tensor = tensors[name], do: tensor)]

      cond do
        odd = Enum.find(floats, &(not Arguments.fused?(&1.type))) ->
          reason = "the kernel computes in f32, an argument is #{Nx.Type.to_string(odd.type)}"
          EMLX.Block.decline(block, args, fun, reason)

        Enum.any?([query, key, value], &(Nx.size(&1) == 0)) ->
          EMLX.Block.decline(block, args, fun, "an argument is empty")

        true ->
          attend(block, output, query, key, value, tensors)
      end
    end

    defp attend(block, output, query, key, value, tensors) do
      {_, queries, _, size} = query.shape
      keys = elem(key.shape, 1)
      where = [device: Array.device(Backend.to_array(query))]
      {mask, mask_type} = mask(block, tensors, queries, keys, where)
      type = common([output, query, key, value | List.wrap(tensors[:sinks])], mask_type)
      cast = &if Backend.dtype(&1.type) == type, do: Backend.to_array(&1), else: Ops.astype(Backend.to_array(&1), type)
      [q, k, v] = Enum.map([query, key, value], cast)

      mask = if mask_type in [nil, :bool, type], do: mask, else: Ops.astype(mask, type)
      sinks = tensors[:sinks] && cast.(tensors.sinks)
      opts = [scale: scale(block.scale, size, query.type), sinks: sinks, layout: :bshd]
      array = Kernels.scaled_dot_product_attention(q, k, v, mask, opts)
      if type == Backend.dtype(output.type), do: Backend.tensor(array, output), else: Backend.to_nx(array, output)
    end

    # The common type of all arguments. In Bumblebee's function, too, an argument wider than the query widens the
    # scores.
    defp common(tensors, mask_type) do
      types = Enum.map(tensors, &Backend.dtype(&1.type)) ++ if(mask_type in [nil, :bool], do: [], else: [mask_type])

      case Enum.uniq(types) do
        [type] -> type
        _ -> :f32
      end
    end

    # Returns {nil | :causal | array, its type}. The kernel's :causal aligns the last query with the last key,
    # Bumblebee's the first ones, so it applies only to as many queries as keys.
    defp mask(%{causal: true, window: nil, offset?: false}, tensors, same, same, _where)
         when not is_map_key(tensors, :key_mask) and not is_map_key(tensors, :bias),
         do: {:causal, nil}

    defp mask(block, tensors, queries, keys, where) do
      key_mask =
        case tensors[:key_mask] do
          nil -> nil
          %{shape: {batch, keys}} = mask -> Ops.reshape(seen(mask), [batch, 1, 1, keys])
          mask -> seen(mask)
        end

      seen = both(key_mask, by_index(block, tensors[:offset], queries, keys, where))

      case tensors[:bias] do
        nil ->
          {seen, seen && :bool}

        bias ->
          # f16 cannot represent a bias low enough to absorb any score.
          type = if bias.type == {:f, 16} and seen != nil, do: :f32, else: Backend.dtype(bias.type)
          bias = Ops.astype(Backend.to_array(bias), type)
          {if(seen, do: Ops.where(seen, bias, Array.scalar(@lowest, type)), else: bias), type}
      end
    end

    defp seen(mask), do: Ops.not_equal(Backend.to_array(mask), 0)

    defp both(nil, mask), do: mask
    defp both(mask, nil), do: mask
    defp both(mask, other), do: Ops.logical_and(mask, other)

    defp by_index(%{causal: false, window: nil}, _offset, _queries, _keys, _where), do: nil

    defp by_index(block, offset, queries, keys, where) do
      query = Ops.iota([1, 1, queries, 1], [axis: 2] ++ where)
      query = if offset, do: Ops.add(query, Ops.astype(Backend.to_array(offset), :s32)), else: query
      key = Ops.iota([1, 1, 1, keys], [axis: 3] ++ where)

      case block do
        %{causal: true, window: nil} -> Ops.greater_equal(query, key)
        %{causal: true, window: {left, _}} -> within(query, key, left, 0)
        %{window: {left, right}} -> within(query, key, left, right)
      end
    end

    defp within(query, key, left, right) do
      distance = Ops.subtract(query, key)
      Ops.logical_and(Ops.less_equal(distance, left), Ops.greater_equal(distance, -right))
    end

    # Bumblebee rounds the square root of the size to the type of the query.
    defp scale(nil, size, type) do
      [root, one] = for number <- [:math.sqrt(size), 1.0], do: Nx.tensor(number, type: type, backend: Nx.BinaryBackend)
      one |> Nx.divide(root) |> Nx.to_number()
    end

    defp scale(scale, _size, _type), do: scale
  end
end

if EMLXBumblebee.Upstream.known?(Bumblebee.Block.RotaryEmbedding) do
  defimpl EMLX.Block, for: Bumblebee.Block.RotaryEmbedding do
    alias EMLX.{Array, Backend, Kernels, Ops}
    alias EMLX.Fast.Arguments
    alias EMLXBumblebee.RotaryEmbedding

    # The CUDA kernel uses one block of 1024 threads for 8192 elements, with positions along a grid axis of at most
    # 65,535 blocks.
    @most 65_535 * 4096

    def call(block, output, [query, key, positions] = args, fun) do
      cond do
        reason = Enum.find_value([query, key], &Arguments.refusal/1) ->
          EMLX.Block.decline(block, args, fun, reason)

        reason = refusal(block, query) ->
          EMLX.Block.decline(block, args, fun, reason)

        true ->
          {freqs, factor} = RotaryEmbedding.frequencies(block)
          freqs = Array.from_list(freqs, :f32, device: Array.device(Backend.to_array(query)))
          {batch, length, _, _} = query.shape
          positions = positions |> Backend.to_array() |> Ops.astype(:s32) |> Ops.broadcast_to([batch, length])
          positions = Ops.reshape(positions, [batch * length])
          {query_output, key_output} = output
          {rotate(query, query_output, positions, freqs, factor), rotate(key, key_output, positions, freqs, factor)}
      end
    end

    defp refusal(block, %{shape: {batch, length, heads, size}}) do
      cond do
        rem(size, 2) != 0 or size != block.size ->
          "only #{block.size} of #{size} elements are rotated"

        batch * length == 0 ->
          "query is empty"

        batch * length * heads * size > @most ->
          "#{batch} x #{length} positions are more rows than the kernel supports"

        true ->
          RotaryEmbedding.refusal(block)
      end
    end

    # The kernel numbers positions consecutively along an axis. Each position becomes a batch row of length 1, in any
    # order, by a reshape of {batch, length, heads, size} that does not copy.
    defp rotate(%{shape: {batch, length, heads, size}} = x, output, positions, freqs, factor) do
      array = Backend.to_array(x)
      # Bumblebee multiplies the cosines and sines by the factor, in f32.
      array = if factor == 1.0, do: array, else: Ops.astype(array, :f32)

      rotated =
        array
        |> Ops.reshape([batch * length, heads, 1, size])
        |> Kernels.rope(positions, freqs, dims: size)

      rotated = if factor == 1.0, do: rotated, else: Ops.multiply(rotated, factor)
      Backend.to_nx(rotated, output)
    end
  end
end
