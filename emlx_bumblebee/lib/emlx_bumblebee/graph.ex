defmodule EMLXBumblebee.Graph do
  @moduledoc false
  # Replaces Bumblebee's layers in an Axon graph by blocks, for EMLXBumblebee.rewrite/2 and explain/1. A node keeps its
  # id, name and parameters, and the other nodes do not change, so that the names and shapes of parameters stay the
  # same. The nodes of the attention weights remain for models that output them; otherwise they are never computed.

  alias EMLXBumblebee.{Attention, Call, Captures, RotaryEmbedding, Upstream}

  @doc """
  Returns `{id, {:fuse, block, note, details}}` or `{id, {:leave, block, reason}}` for each of Bumblebee's layers, in
  the order of the graph.
  """
  def plan(%Axon{nodes: nodes} = model) do
    asked = outputs(model)

    for {id, node} <- Enum.sort_by(nodes, &elem(&1, 0)), step = step(Captures.layer(node), node, nodes, asked) do
      {id, step}
    end
  end

  @doc "Replaces the layers that `only` names by blocks. Returns the model."
  def rewrite(%Axon{} = model, only) do
    {model, _masks} =
      Enum.reduce(plan(model), {model, %{}}, fn
        {id, {:fuse, block, note, details}}, {model, masks} ->
          if kind(details) in only, do: fuse(details, id, {marked(model, id, block, note), masks}), else: {model, masks}

        {_id, {:leave, _block, _reason}}, state ->
          state
      end)

    model
  end

  defp kind({kind, _}), do: kind
  defp kind(kind), do: kind

  defp marked(model, id, block, note),
    do: update_in(model.nodes[id], &%{&1 | meta: Map.put(&1.meta, __MODULE__, {block, note})})

  @doc "Returns `{block, note}` for a rewritten node, or nil."
  def mark(%{meta: %{__MODULE__ => mark}}), do: mark
  def mark(_node), do: nil

  @doc "Returns the name of a layer, or of the layer with parameters from which its first input comes."
  def name(%Axon{nodes: nodes}, id), do: nodes |> owner(nodes[id]) |> String.replace(~r/\.(query|key|value)$/, "")

  defp owner(nodes, node) do
    own = node.name.(node.op_name, %{})

    case node do
      %{op_name: :custom, parameters: [], parent: [parent | _]} ->
        if own == "custom_0", do: projection(nodes, nodes[parent], own), else: own

      _ ->
        own
    end
  end

  # Follows the first inputs to a layer with parameters.
  defp projection(_nodes, %{op_name: :dense} = node, _default), do: node.name.(:dense, %{})
  defp projection(nodes, %{parent: [parent | _]}, default), do: projection(nodes, nodes[parent], default)
  defp projection(_nodes, _node, default), do: default

  # ---- the plan for a layer ----

  defp step({:rms_norm, upcast}, node, _nodes, _asked) do
    cond do
      not Upstream.known?(Axon.Block.RMSNorm) -> foreign(Axon.Block.RMSNorm)
      not is_number(node.opts[:epsilon]) or not is_number(node.opts[:shift]) -> unread(Axon.Block.RMSNorm, node)
      true -> {:fuse, Axon.Block.RMSNorm, "upcast: #{inspect(upcast)}", {:rms_norm, upcast}}
    end
  end

  defp step(:layer_norm, %{op: op}, _nodes, _asked) do
    # ModernBERT's layer norm has no bias.
    if Upstream.known?(Axon.Block.LayerNorm) do
      {:env, [epsilon]} = Function.info(op, :env)
      {:fuse, Axon.Block.LayerNorm, "without a bias", {:layer_norm, epsilon}}
    else
      foreign(Axon.Block.LayerNorm)
    end
  end

  defp step(:rotary_embedding, node, _nodes, _asked) do
    block = Bumblebee.Block.RotaryEmbedding
    opts = node.opts

    cond do
      not Upstream.known?(block) ->
        foreign(block)

      not (is_integer(opts[:size]) and is_number(opts[:base]) and is_integer(opts[:max_positions])) ->
        unread(block, node)

      reason = RotaryEmbedding.refusal(%{scaling_strategy: opts[:scaling_strategy]}) ->
        {:leave, block, reason}

      true ->
        scaling = with %{type: type} <- opts[:scaling_strategy], do: ", scaled #{inspect(type)}"
        {:fuse, block, "each position on its own, in any order#{scaling}", :rotary_embedding}
    end
  end

  defp step(:attention_output, node, nodes, asked) do
    block = Bumblebee.Block.SDPA

    case Upstream.known?(block) && attention(node, nodes) do
      false -> foreign(block)
      {:ok, details} -> {:fuse, block, note(details, nodes, asked), {:attention, details}}
      reason -> {:leave, block, reason}
    end
  end

  defp step(_layer, _node, _nodes, _asked), do: nil

  defp foreign(block), do: {:leave, block, "the library's own #{inspect(block)} has other fields"}
  defp unread(block, node), do: {:leave, block, "its options are #{inspect(node.opts)}"}

  # Attention has three nodes: weights, dropout, output. The block replaces the last.
  defp attention(%{parent: [dropped, value]} = output, nodes) do
    with %{op: :dropout, parent: [weights], opts: opts} = dropout <- nodes[dropped],
         :attention_weights <- Captures.layer(nodes[weights]),
         %{parent: [query, key, key_mask, head_mask, bias, offset]} = scores <- nodes[weights],
         true <- scores.policy == output.policy || "weights and output have different precision policies",
         true <- (scores.hooks == [] and dropout.hooks == []) || "a hook looks at the attention weights" do
      {:ok,
       %{
         weights: dropped,
         functions: {scores.op, output.op},
         rate: opts[:rate],
         opts: Keyword.take(scores.opts, [:causal, :window_size, :scale]),
         value: value,
         inputs: [query, key, key_mask, head_mask, bias, offset],
         mask: {inner(key_mask, nodes), inner(offset, nodes), scores.opts[:causal], scores.opts[:window_size]},
         grouped: grouped(key, value, output.policy, nodes)
       }}
    else
      reason when is_binary(reason) -> reason
      _ -> "its weights do not come from Bumblebee's function"
    end
  end

  defp attention(_node, _nodes), do: "its weights do not come from Bumblebee's function"

  # The node inside Axon.optional/1.
  defp inner(id, nodes) do
    case nodes[id] do
      %{op: :optional, parent: [parent]} -> parent
      _ -> id
    end
  end

  # Returns {key, value, cache or nil} before their heads are repeated, or nil if they are not repeated. Only without a
  # cache can the block use them.
  defp grouped(key, value, policy, nodes) do
    with {key, cache} <- unrepeated(key, policy, nodes),
         {value, ^cache} <- unrepeated(value, policy, nodes) do
      {key, value, cache}
    else
      _ -> nil
    end
  end

  defp unrepeated(id, policy, nodes) do
    node = nodes[id]

    if node.hooks == [] and node.policy == policy do
      case {Captures.layer(node), node} do
        {:repeat_interleave, %{parent: [parent], opts: opts}} ->
          if opts[:axis] == 2, do: {parent, nil}

        {:if_present, %{parent: [condition, _updated, new]}} ->
          with {parent, nil} <- unrepeated(inner(new, nodes), policy, nodes), do: {parent, inner(condition, nodes)}

        _ ->
          nil
      end
    end
  end

  # Describes what the block computes, and in which cases it is composed.
  defp note(details, nodes, asked) do
    does = [
      if(details.opts[:causal], do: "causal"),
      with({left, right} <- details.opts[:window_size], do: "a window of #{left} and #{right}"),
      details.grouped && "heads that are not repeated",
      if(MapSet.member?(asked, details.weights),
        do: "the weights are computed, too, if the model's whole output is used"
      )
    ]

    [_query, _key, _key_mask, head_mask | _] = details.inputs

    composed = [
      "output_attentions: true",
      if(given?([head_mask], nodes), do: "a mask of heads"),
      if(details.rate > 0, do: "dropout while training")
    ]

    case Enum.filter(does, & &1) do
      [] -> "composed only with #{either(composed)}"
      does -> "#{Enum.join(does, ", ")}; composed only with #{either(composed)}"
    end
  end

  defp either(reasons) do
    case reasons |> Enum.filter(& &1) |> Enum.split(-1) do
      {[], [reason]} -> reason
      {reasons, [last]} -> "#{Enum.join(reasons, ", ")} or #{last}"
    end
  end

  # Returns whether the nodes depend on an input of the model.
  defp given?(ids, nodes, seen \\ MapSet.new())
  defp given?([], _nodes, _seen), do: false

  defp given?([id | rest], nodes, seen) do
    node = nodes[id]

    cond do
      MapSet.member?(seen, id) -> given?(rest, nodes, seen)
      node.op == :input -> true
      true -> given?(node.parent ++ rest, nodes, MapSet.put(seen, id))
    end
  end

  # The nodes on which the output depends with any global options. Attention weights only count if something other than
  # their own attention output uses them.
  defp outputs(%Axon{output: output, nodes: nodes}), do: outputs([output], nodes, MapSet.new())

  defp outputs([], _nodes, seen), do: seen

  defp outputs([id | rest], nodes, seen) do
    node = nodes[id]

    cond do
      MapSet.member?(seen, id) -> outputs(rest, nodes, seen)
      node.op_name == :global_opt_in -> outputs(rest, nodes, seen)
      Captures.layer(node) == :attention_output -> outputs(tl(node.parent) ++ rest, nodes, MapSet.put(seen, id))
      true -> outputs(node.parent ++ rest, nodes, MapSet.put(seen, id))
    end
  end

  # ---- replacing layers by blocks ----

  defp fuse({:rms_norm, upcast}, id, {model, masks}) do
    node = model.nodes[id]
    function = node.op
    block = struct!(Axon.Block.RMSNorm, eps: node.opts[:epsilon], shift: node.opts[:shift], upcast: upcast)

    op = fn x, weight, opts ->
      Call.block(block, [x, weight], x, fn _block, [x, weight] -> function.(x, weight, opts) end)
    end

    {update_in(model.nodes[id], &%{&1 | op: op}), masks}
  end

  defp fuse({:layer_norm, epsilon}, id, {model, masks}) do
    function = model.nodes[id].op
    block = struct!(Axon.Block.LayerNorm, eps: epsilon, bias?: false)

    # Bumblebee adds a bias of f32 zeros, which widens the result but changes no value. The block has no bias.
    op = fn x, weight, opts ->
      type = Nx.Type.merge(Nx.type(x), Nx.type(weight))

      block
      |> Call.block([x, weight], Nx.as_type(x, type), fn _block, [x, weight] ->
        x |> function.(weight, opts) |> Nx.as_type(type)
      end)
      |> Nx.as_type(Nx.Type.merge(type, {:f, 32}))
    end

    {update_in(model.nodes[id], &%{&1 | op: op}), masks}
  end

  defp fuse(:rotary_embedding, id, {model, masks}) do
    function = model.nodes[id].op
    op = &RotaryEmbedding.run(&1, &2, &3, &4, &5, function)
    {update_in(model.nodes[id], &%{&1 | op: op}), masks}
  end

  defp fuse({:attention, details}, id, state) do
    {mask, {model, masks}} = mask(details, state)
    {grouped, model} = grouped_inputs(details.grouped, model)

    # The weights come first, so that Axon counts unnamed layers in the same order as before. Weights and value also
    # come last, because Axon keeps the dropout state of the last inputs.
    inputs = [details.weights | details.inputs] ++ List.wrap(mask) ++ grouped ++ [details.weights, details.value]

    %{functions: functions, rate: rate, opts: own} = details
    shared? = mask != nil

    op =
      Call.variadic(length(inputs) + 1, fn [_weights | tensors] ->
        {tensors, [weights, value, opts]} = Enum.split(tensors, -3)

        cond do
          opts[:output_attentions] -> Attention.run_weights(weights, value, :output, functions)
          opts[:mode] == :train and rate > 0 -> Attention.run_weights(weights, value, :dropout, functions)
          true -> attend(tensors, value, shared?, own, functions)
        end
      end)

    node = model.nodes[id]

    node = %{
      node
      | op: op,
        parent: inputs,
        args: List.duplicate(:layer, length(inputs)),
        global_options: Enum.uniq([:output_attentions | node.global_options])
    }

    {put_in(model.nodes[id], node), masks}
  end

  defp attend([query, key, key_mask, head_mask, bias, offset | rest], value, shared?, opts, functions) do
    {mask, rest} = if shared?, do: List.pop_at(rest, 0), else: {%Axon.None{}, rest}

    {key, value} =
      case rest do
        [grouped_key, grouped_value] -> {grouped_key, grouped_value}
        [grouped_key, grouped_value, %Axon.None{}] -> {grouped_key, grouped_value}
        _ -> {key, value}
      end

    tensors = %{key_mask: key_mask, head_mask: head_mask, bias: bias, offset: offset}

    # The shared mask replaces key mask, causality, window and offset.
    if fits?(mask, Nx.axis_size(query, 1), Nx.axis_size(key, 1), opts) do
      tensors = Map.delete(%{tensors | key_mask: mask}, :offset)
      Attention.run(query, key, value, tensors, [scale: opts[:scale]], functions)
    else
      Attention.run(query, key, value, tensors, opts, functions)
    end
  end

  defp fits?(%Nx.Tensor{shape: {_, _, queries, keys}}, queries, keys, _opts), do: true
  defp fits?(%Nx.Tensor{shape: {_, _, 1, keys}}, _queries, keys, opts), do: not by_index?(opts)
  defp fits?(_mask, _queries, _keys, _opts), do: false

  defp by_index?(opts), do: opts[:causal] == true or opts[:window_size] != nil

  # Most layers of a model have the same mask, so they share one node that computes it.
  defp mask(%{mask: shared} = details, {model, masks}) do
    case masks do
      %{^shared => id} ->
        {id, {model, masks}}

      _ ->
        [query, key, key_mask, _head_mask, _bias, offset] = details.inputs
        opts = details.opts

        layer = fn query, key, key_mask, offset, _opts ->
          {queries, keys} = {Nx.axis_size(query, 1), Nx.axis_size(key, 1)}

          tensors =
            for {name, %Nx.Tensor{} = tensor} <- [key_mask: key_mask, offset: offset], into: %{}, do: {name, tensor}

          # Causal masking alone needs no mask tensor.
          if tensors == %{} and opts[:window_size] == nil and queries == keys do
            %Axon.None{}
          else
            Attention.seen(tensors, opts, queries, keys) || %Axon.None{}
          end
        end

        inputs = for id <- [query, key, key_mask, offset], do: %Axon{model | output: id}
        %Axon{output: id, nodes: nodes} = layer |> Axon.layer(inputs, op_name: :attention_mask) |> Axon.optional()
        {id, {%Axon{model | nodes: nodes}, Map.put(masks, shared, id)}}
    end
  end

  defp grouped_inputs(nil, model), do: {[], model}
  defp grouped_inputs({key, value, nil}, model), do: {[key, value], model}

  defp grouped_inputs({key, value, cache}, model) do
    %Axon{output: id, nodes: nodes} = Axon.optional(%Axon{model | output: cache})
    {[key, value, id], %Axon{model | nodes: nodes}}
  end
end
