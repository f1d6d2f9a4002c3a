defmodule EMLXBumblebee.Captures do
  @moduledoc false
  # Identifies the layers of Bumblebee's models by their functions, for EMLXBumblebee.Graph. Bumblebee's Axon nodes hold
  # captures of private functions, which have only a module, a name and an arity. This module reads them at compile time
  # from graphs that Bumblebee's builders return. If a release of Bumblebee builds those graphs differently, compilation
  # fails: otherwise the rewrite would silently find no layer.

  refuse = fn what ->
    raise CompileError,
      description:
        "Bumblebee #{Application.spec(:bumblebee, :vsn)} builds #{what} differently than emlx_bumblebee expects. " <>
          "Use the version of Bumblebee that mix.exs asks for, or a newer emlx_bumblebee"
  end

  identity = fn fun ->
    info = Function.info(fun)
    {info[:module], info[:name], info[:arity]}
  end

  keys = fn node -> node.opts |> Keyword.keys() |> Enum.sort() end
  [x, y, z] = for name <- ~w(x y z), do: Axon.input(name)
  none = Bumblebee.Layers.none()

  # ---- rms_norm ----

  rms_norms =
    for upcast <- [:normalization, :all] do
      norm = Bumblebee.Layers.rms_norm(x, upcast: upcast, shift: 1.0)

      case norm.nodes[norm.output] do
        %{op: op, parent: [_], args: [:layer, :parameter], parameters: [%{name: "weight"}]} = node
        when is_function(op, 3) ->
          if keys.(node) == [:epsilon, :shift], do: {identity.(op), upcast}, else: refuse.("rms_norm")

        _ ->
          refuse.("rms_norm")
      end
    end

  # ---- rotary_embedding ----

  {rotary, _} = Bumblebee.Layers.rotary_embedding(x, y, z, none, 4, scaling_strategy: nil)

  # An element of a tuple is a node whose function holds the index.
  taken = rotary.nodes[rotary.output]

  rotary_embedding =
    with %{op: op, parent: [parent]} when is_function(op, 2) <- taken,
         %{op: op, parent: [_, _, _, mask], args: args} = node when is_function(op, 5) <- rotary.nodes[parent],
         true <- Enum.all?(args, &(&1 == :layer)),
         %{op: :optional} <- rotary.nodes[mask],
         [:base, :max_positions, :scaling_strategy, :size] <- keys.(node) do
      identity.(op)
    else
      _ -> refuse.("rotary_embedding")
    end

  # ---- attention ----

  {output, weights} =
    Bumblebee.Layers.attention(x, y, z, none, none, none, none,
      causal: true,
      window_size: {1, 1},
      scale: 1.0,
      dropout_rate: 0.5
    )

  {attention_weights, attention_output} =
    with %{op: output_op, parent: [dropout, value], args: [:layer, :layer]} = output_node <-
           output.nodes[output.output],
         true <- is_function(output_op, 3),
         true <- dropout == weights.output and value == z.output and output_node.opts[:dropout_rate] == 0.5,
         %{op: :dropout, parent: [weights], opts: [rate: 0.5], mode: :train} <- output.nodes[dropout],
         %{op: weights_op, parent: [query, key | rest], args: args} = node when is_function(weights_op, 7) <-
           output.nodes[weights],
         true <- {query, key} == {x.output, y.output} and args == List.duplicate(:layer, 6),
         true <- Enum.all?(rest, &match?(%{op: :optional}, output.nodes[&1])),
         [:causal, :scale, :window_size] <- keys.(node) do
      {identity.(weights_op), identity.(output_op)}
    else
      _ -> refuse.("attention")
    end

  # ---- repeat_interleave, which repeats the heads of keys and values ----

  repeated = Bumblebee.Layers.repeat_interleave(x, 3, axis: 2)

  repeat_interleave =
    case repeated.nodes[repeated.output] do
      %{op: op, parent: [_], opts: [axis: 2]} when is_function(op, 2) -> identity.(op)
      _ -> refuse.("repeat_interleave")
    end

  # ---- a key or value with a cache: the updated cache if the model has one, else the new key or value ----

  {cached, _, _} = Bumblebee.Layers.Decoder.cached_attention_key_values(x, y, z, none)

  if_present =
    with %{op: op, op_name: :if_present, parent: [cache, on_true, on_false]} when is_function(op, 4) <-
           cached.nodes[cached.output],
         [%{parent: [cache]}, %{op: :optional}, %{op: :optional, parent: [on_false]}] <-
           Enum.map([cache, on_true, on_false], &cached.nodes[&1]),
         true <- {cache, on_false} == {z.output, x.output} do
      identity.(op)
    else
      _ -> refuse.("cached_attention_key_values")
    end

  # ---- the layer norm without bias of ModernBERT, a function that holds its epsilon ----

  layer_norms =
    for module <- [Bumblebee.Text.ModernBert, Bumblebee.Text.ModernBertDecoder] do
      tiny = [vocab_size: 2, hidden_size: 2, num_blocks: 1, num_attention_heads: 1, intermediate_size: 2]
      model = module |> Bumblebee.configure([layer_norm_epsilon: 0.125] ++ tiny) |> Bumblebee.build_model()

      norms =
        for {_, %{op_name: :layer_norm, op: op, parent: [_], args: [:layer, :parameter], opts: []}} <- model.nodes,
            is_function(op, 3) and Function.info(op, :env) == {:env, [0.125]},
            uniq: true,
            do: identity.(op)

      case norms do
        [identity] -> identity
        _ -> refuse.("the norms of #{inspect(module)}")
      end
    end

  @known Enum.map(layer_norms, &{&1, :layer_norm}) ++
           [
             {attention_weights, :attention_weights},
             {attention_output, :attention_output},
             {rotary_embedding, :rotary_embedding},
             {repeat_interleave, :repeat_interleave},
             {if_present, :if_present}
           ] ++ Enum.map(rms_norms, fn {identity, upcast} -> {identity, {:rms_norm, upcast}} end)

  # Two layers with the same function would be confused.
  unless length(Enum.uniq_by(@known, &elem(&1, 0))) == length(@known), do: refuse.("its layers")

  @known Map.new(@known)

  @type layer ::
          :attention_weights
          | :attention_output
          | :rotary_embedding
          | :repeat_interleave
          | :if_present
          | {:rms_norm, :normalization | :all}
          | :layer_norm

  @doc "Returns the Bumblebee layer of a node, or nil."
  @spec layer(map) :: layer | nil
  def layer(%{op: op}) when is_function(op) do
    info = Function.info(op)
    Map.get(@known, {info[:module], info[:name], info[:arity]})
  end

  def layer(_node), do: nil

  @doc "Returns Bumblebee's functions for attention, `{weights, output}`."
  @spec attention() :: {fun, fun}
  def attention do
    [q, k, v] = for name <- ~w(q k v), do: Axon.input(name)
    none = Bumblebee.Layers.none()
    {output, _} = Bumblebee.Layers.attention(q, k, v, none, none, none, none)

    [weights, output] =
      for layer <- [:attention_weights, :attention_output],
          do: Enum.find_value(output.nodes, fn {_, node} -> layer(node) == layer && node.op end)

    {weights, output}
  end
end
