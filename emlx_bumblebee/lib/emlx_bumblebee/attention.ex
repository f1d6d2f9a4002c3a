defmodule EMLXBumblebee.Attention do
  @moduledoc false
  # Attention as one block, Bumblebee.Block.SDPA. The attention layers of rewritten models and EMLXBumblebee.attention/4
  # call it. The composed function is Bumblebee's own, so that a model computes the same on every backend.

  alias Bumblebee.Block.SDPA
  alias EMLXBumblebee.Call

  @doc "Returns the names of the block's optional arguments, in order."
  def optional, do: [:key_mask, :head_mask, :bias, :offset, :sinks]

  @doc """
  Runs the block. `tensors` is a map of the given arguments of `optional/0`; `functions` are Bumblebee's
  `{weights, output}`.
  """
  def run(query, key, value, tensors, opts, functions) do
    tensors = Map.reject(tensors, fn {_, tensor} -> absent?(tensor) end)

    block = %SDPA{
      causal: opts[:causal] || false,
      window: opts[:window_size],
      scale: opts[:scale],
      key_mask?: is_map_key(tensors, :key_mask),
      head_mask?: is_map_key(tensors, :head_mask),
      bias?: is_map_key(tensors, :bias),
      offset?: is_map_key(tensors, :offset),
      sinks?: is_map_key(tensors, :sinks)
    }

    rest = for name <- optional(), tensor = tensors[name], do: tensor
    {batch, queries, heads, _} = Nx.shape(query)
    output = Nx.template({batch, queries, heads, Nx.axis_size(value, 3)}, type([query, key, value, tensors[:bias]]))
    Call.block(block, [query, key, value | rest], output, &composed(&1, &2, functions))
  end

  # The type of the scores, the weights and the output. A wider bias widens it.
  defp type(tensors), do: tensors |> Enum.reject(&is_nil/1) |> Enum.map(&Nx.type/1) |> Enum.reduce(&Nx.Type.merge/2)

  @doc "Runs the block on weights that exist as a tensor for `reason`, `:output` or `:dropout`."
  def run_weights(weights, value, reason, {_, output}) do
    {batch, heads, queries, _} = Nx.shape(weights)
    template = Nx.template({batch, queries, heads, Nx.axis_size(value, 3)}, type([weights, value]))

    Call.block(%SDPA{weights: reason}, [weights, value], template, fn _block, [weights, value] ->
      output.(weights, value, [])
    end)
  end

  def absent?(%Axon.None{}), do: true
  def absent?(tensor), do: is_nil(tensor)

  @doc "Returns the optional arguments of a block, a list of tensors, as a map by name."
  def arguments(block, tensors) do
    {named, []} =
      Enum.reduce(optional(), {%{}, tensors}, fn name, {named, tensors} ->
        if Map.fetch!(block, :"#{name}?") do
          [tensor | tensors] = tensors
          {Map.put(named, name, tensor), tensors}
        else
          {named, tensors}
        end
      end)

    named
  end

  defp composed(block, [query, key, value | rest], {weights, output}) do
    tensors = arguments(block, rest)
    [key, value] = repeated([key, value], Nx.axis_size(query, 2))
    none = %Axon.None{}
    opts = [causal: block.causal, window_size: block.window, scale: block.scale]

    if block.sinks? do
      with_sinks(query, key, value, tensors, opts, {weights, output})
    else
      weights.(
        query,
        key,
        tensors[:key_mask] || none,
        tensors[:head_mask] || none,
        tensors[:bias] || none,
        tensors[:offset] || none,
        opts
      )
      |> output.(value, [])
    end
  end

  # Repeats each head of keys and values for its query heads.
  defp repeated(tensors, heads) do
    for tensor <- tensors do
      case div(heads, Nx.axis_size(tensor, 2)) do
        1 -> tensor
        times -> Bumblebee.Utils.Nx.repeat_interleave(tensor, times, axis: 2)
      end
    end
  end

  # A sink behaves like an extra key with a fixed score and a zero value. Bumblebee's function takes it as an unmasked
  # key of zeros, with the sink as its bias.
  defp with_sinks(query, key, value, tensors, opts, {weights, output}) do
    {batch, queries, heads, size} = Nx.shape(query)
    keys = Nx.axis_size(key, 1)
    seen = seen(tensors, opts, queries, keys) || Nx.broadcast(Nx.tensor(1, type: :u8), {1, 1, 1, keys})
    seen = Nx.pad(seen, Nx.tensor(1, type: Nx.type(seen)), [{0, 0, 0}, {0, 0, 0}, {0, 0, 0}, {0, 1, 0}])

    type = Nx.type(query)
    zero = Nx.tensor(0, type: type)
    bias = Nx.broadcast(tensors[:bias] || zero, {batch, heads, queries, keys})
    sinks = tensors.sinks |> Nx.reshape({1, heads, 1, 1}) |> Nx.broadcast({batch, heads, queries, 1})
    bias = Nx.concatenate([bias, Nx.as_type(sinks, Nx.type(bias))], axis: 3)
    nothing = Nx.broadcast(zero, {batch, 1, heads, size})
    none = %Axon.None{}

    query
    |> weights.(
      Nx.concatenate([key, Nx.as_type(nothing, Nx.type(key))], axis: 1),
      seen,
      tensors[:head_mask] || none,
      bias,
      none,
      causal: false,
      window_size: nil,
      scale: opts[:scale]
    )
    |> Nx.slice_along_axis(0, keys, axis: 3)
    |> output.(value, [])
  end

  @doc """
  Returns the mask that combines key mask, offset, `:causal` and `:window_size`: u8,
  `{batch | 1, heads | 1, queries | 1, keys}`, 0 for a masked key. Returns nil if no key is masked.
  """
  def seen(tensors, opts, queries, keys) do
    key_mask =
      case tensors[:key_mask] do
        nil -> nil
        %{shape: {_, _}} = mask -> mask |> Nx.new_axis(1) |> Nx.new_axis(1) |> Nx.not_equal(0)
        mask -> Nx.not_equal(mask, 0)
      end

    case {key_mask, by_index(tensors[:offset] || 0, opts[:causal], opts[:window_size], queries, keys)} do
      {mask, nil} -> mask
      {nil, mask} -> mask
      {mask, other} -> Nx.logical_and(mask, other)
    end
  end

  defp by_index(_offset, causal, nil, _queries, _keys) when causal in [nil, false], do: nil

  defp by_index(offset, causal, window, queries, keys) do
    distance = Nx.subtract(Nx.add(Nx.iota({1, 1, queries, 1}), offset), Nx.iota({1, 1, 1, keys}))

    case {causal, window} do
      {true, nil} -> Nx.greater_equal(distance, 0)
      {true, {left, _}} -> within(distance, left, 0)
      {_, {left, right}} -> within(distance, left, right)
    end
  end

  defp within(distance, left, right),
    do: Nx.logical_and(Nx.less_equal(distance, left), Nx.greater_equal(distance, -right))
end
