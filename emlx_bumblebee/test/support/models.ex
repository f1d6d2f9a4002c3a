defmodule EMLXBumblebee.Models do
  @moduledoc false
  # Tiny models of every kind in Bumblebee, with random parameters, for the tests.

  alias Bumblebee.{Audio, Diffusion, Multimodal, Text, Vision}

  @text [vocab_size: 40, hidden_size: 16, num_blocks: 2, num_attention_heads: 4, intermediate_size: 24]
  @seq2seq [
    vocab_size: 40,
    hidden_size: 16,
    encoder_num_blocks: 1,
    decoder_num_blocks: 1,
    encoder_num_attention_heads: 4,
    decoder_num_attention_heads: 4
  ]
  @seq2seq_sizes [encoder_intermediate_size: 24, decoder_intermediate_size: 24, max_positions: 24]
  @vision [hidden_size: 16, num_blocks: 2, num_attention_heads: 4, image_size: 8, patch_size: 4]
  @causal [architecture: :for_causal_language_modeling]
  @unet [
    sample_size: 2,
    in_channels: 4,
    out_channels: 4,
    hidden_sizes: [32, 32],
    depth: 1,
    down_block_types: [:cross_attention_down_block, :down_block],
    up_block_types: [:up_block, :cross_attention_up_block],
    downsample_padding: [{1, 1}, {1, 1}],
    num_attention_heads: 4,
    cross_attention_size: 12,
    group_norm_num_groups: 32
  ]

  @llama3 %{
    type: :llama3,
    factor: 8.0,
    low_frequency_factor: 1.0,
    high_frequency_factor: 4.0,
    original_max_positions: 64
  }

  # For each model: the kind of its inputs, its specification, and the numbers of its blocks:
  # {attention, rotary embedding, rms_norm, layer_norm}.
  @models [
    bert: {:text, Text.Bert, @text, {2, 0, 0, 5}},
    bert_with_pooled_head: {:text, Text.Bert, [architecture: :for_sequence_classification] ++ @text, {2, 0, 0, 5}},
    bert_causal: {:text, Text.Bert, @causal ++ @text, {2, 0, 0, 6}},
    bert_with_cross_attention: {:cross, Text.Bert, @causal ++ [use_cross_attention: true] ++ @text, {4, 0, 0, 8}},
    roberta: {:text, Text.Roberta, @text, {2, 0, 0, 5}},
    distilbert: {:text, Text.Distilbert, @text, {2, 0, 0, 5}},
    albert: {:text, Text.Albert, [embedding_size: 8] ++ @text, {2, 0, 0, 5}},
    mpnet: {:text, Text.MpNet, @text, {2, 0, 0, 5}},
    modernbert:
      {:text, Text.ModernBert, [local_attention_window: 4, layer_types: [:full_attention, :sliding_attention]] ++ @text,
       {2, 2, 0, 5}},
    modernbert_decoder:
      {:text, Text.ModernBertDecoder,
       [local_attention_window: 4, layer_types: [:full_attention, :sliding_attention]] ++ @text, {2, 2, 0, 5}},
    nomic_bert: {:text, Text.NomicBert, @text, {2, 2, 0, 5}},
    gpt2: {:text, Text.Gpt2, @causal ++ @text, {2, 0, 0, 5}},
    gpt2_with_cross_attention: {:cross, Text.Gpt2, [use_cross_attention: true] ++ @text, {4, 0, 0, 7}},
    gpt2_unscaled: {:text, Text.Gpt2, [scale_attention_weights: false] ++ @text, {2, 0, 0, 5}},
    gpt_neo_x: {:text, Text.GptNeoX, @causal ++ [rotary_embedding_percentage: 0.5] ++ @text, {2, 2, 0, 5}},
    gpt_neo_x_in_sequence:
      {:text, Text.GptNeoX, [use_parallel_transformer_block: false, rotary_embedding_percentage: 0.5] ++ @text,
       {2, 2, 0, 5}},
    gpt_big_code: {:text, Text.GptBigCode, @causal ++ [num_key_value_heads: 1] ++ @text, {2, 0, 0, 5}},
    llama: {:text, Text.Llama, @causal ++ @text, {2, 2, 5, 0}},
    llama_grouped: {:text, Text.Llama, [num_key_value_heads: 2] ++ @text, {2, 2, 5, 0}},
    llama_grouped_causal: {:text, Text.Llama, @causal ++ [num_key_value_heads: 2] ++ @text, {2, 2, 5, 0}},
    llama_with_large_heads:
      {:text, Text.Llama, [num_key_value_heads: 1, attention_head_size: 6] ++ @text, {2, 2, 5, 0}},
    llama_linear:
      {:text, Text.Llama, [rotary_embedding_scaling_strategy: %{type: :linear, factor: 3.0}] ++ @text, {2, 2, 5, 0}},
    llama_dynamic:
      {:text, Text.Llama,
       [max_positions: 4, rotary_embedding_scaling_strategy: %{type: :dynamic, factor: 2.0}] ++ @text, {2, 2, 5, 0}},
    llama_llama3: {:text, Text.Llama, [rotary_embedding_scaling_strategy: @llama3] ++ @text, {2, 2, 5, 0}},
    mistral:
      {:text, Text.Mistral, @causal ++ [num_key_value_heads: 2, attention_window_size: 3] ++ @text, {2, 2, 5, 0}},
    gemma:
      {:text, Text.Gemma, @causal ++ [num_key_value_heads: 1, attention_head_size: 8, activation: :gelu] ++ @text,
       {2, 2, 5, 0}},
    gemma3:
      {:text, Text.Gemma3Text,
       @causal ++
         [
           num_key_value_heads: 2,
           attention_head_size: 8,
           attention_window_size: 3,
           layer_types: [:sliding_attention, :full_attention]
         ] ++ @text, {2, 2, 13, 0}},
    qwen3: {:text, Text.Qwen3, @causal ++ [num_key_value_heads: 2, attention_head_size: 8] ++ @text, {2, 2, 9, 0}},
    phi: {:text, Text.Phi, @causal ++ @text, {2, 2, 0, 3}},
    phi3:
      {:text, Text.Phi3, [num_key_value_heads: 2, attention_window_size: 3, activation: :silu] ++ @text, {2, 2, 5, 0}},
    phi3_longrope:
      {:text, Text.Phi3,
       [
         max_positions: 64,
         activation: :silu,
         rotary_embedding_scaling_strategy: %{
           type: :longrope,
           short_factor: [1.0, 1.5],
           long_factor: [2.0, 4.0],
           original_max_positions: 4
         }
       ] ++ @text, {2, 2, 5, 0}},
    smollm3: {:text, Text.SmolLm3, @causal ++ [num_key_value_heads: 2] ++ @text, {2, 2, 5, 0}},
    t5:
      {:seq2seq, Text.T5,
       [architecture: :for_conditional_generation, attention_head_size: 4, intermediate_size: 24] ++ @seq2seq,
       {3, 0, 7, 0}},
    t5_gated:
      {:seq2seq, Text.T5,
       [attention_head_size: 6, intermediate_size: 24, ffn_gated_activation: true, activation: :gelu_approx_tanh] ++
         Keyword.merge(@seq2seq, encoder_num_blocks: 2, decoder_num_blocks: 2), {6, 0, 12, 0}},
    bart:
      {:seq2seq, Text.Bart, [architecture: :for_conditional_generation] ++ @seq2seq ++ @seq2seq_sizes, {3, 0, 0, 7}},
    mbart: {:seq2seq, Text.Mbart, @seq2seq ++ @seq2seq_sizes, {3, 0, 0, 9}},
    m2m100: {:seq2seq, Text.M2m100, @seq2seq ++ @seq2seq_sizes, {3, 0, 0, 7}},
    blenderbot: {:seq2seq, Text.Blenderbot, @seq2seq ++ @seq2seq_sizes, {3, 0, 0, 7}},
    whisper:
      {:audio, Audio.Whisper,
       [
         architecture: :for_conditional_generation,
         encoder_intermediate_size: 24,
         decoder_intermediate_size: 24,
         encoder_max_positions: 6,
         decoder_max_positions: 12,
         feature_size: 5
       ] ++ @seq2seq, {3, 0, 0, 7}},
    vit: {:image, Vision.Vit, [intermediate_size: 24] ++ @vision, {2, 0, 0, 5}},
    deit: {:image, Vision.Deit, [intermediate_size: 24] ++ @vision, {2, 0, 0, 5}},
    dino_v2: {:image, Vision.DinoV2, @vision, {2, 0, 0, 5}},
    swin:
      {:image, Vision.Swin,
       [
         embedding_size: 8,
         num_blocks: [2, 1],
         num_attention_heads: [2, 4],
         window_size: 2,
         image_size: 16,
         patch_size: 4
       ], {3, 0, 0, 9}},
    convnext: {:image, Vision.ConvNext, [hidden_sizes: [8, 16], depths: [1, 1]], {0, 0, 0, 5}},
    clip: {:clip, Multimodal.Clip, [], {4, 0, 0, 11}},
    clip_text: {:text, Text.ClipText, [max_positions: 16] ++ @text, {2, 0, 0, 5}},
    clip_vision: {:image, Vision.ClipVision, [intermediate_size: 24] ++ @vision, {2, 0, 0, 6}},
    blip: {:blip, Multimodal.Blip, [], {6, 0, 0, 13}},
    layout_lm: {:layout, Multimodal.LayoutLm, [max_spatial_positions: 12] ++ @text, {2, 0, 0, 5}},
    unet: {:unet, Diffusion.UNet2DConditional, @unet, {8, 0, 0, 12}},
    vae:
      {:image, Diffusion.VaeKl,
       [
         hidden_sizes: [32],
         sample_size: 2,
         in_channels: 3,
         out_channels: 3,
         latent_channels: 4
       ], {2, 0, 0, 0}}
  ]

  def names, do: Keyword.keys(@models)

  @doc "Returns `{spec, kind, counts}` of a model."
  def fetch!(name) do
    {kind, module, opts, counts} = Keyword.fetch!(@models, name)
    {module |> Bumblebee.configure(opts(name, module, opts)), kind, counts}
  end

  defp opts(:clip, _module, opts) do
    text = Bumblebee.configure(Text.ClipText, [max_positions: 16] ++ @text)
    vision = Bumblebee.configure(Vision.ClipVision, [intermediate_size: 24] ++ @vision)
    [text_spec: text, vision_spec: vision, projection_size: 8] ++ opts
  end

  defp opts(:blip, _module, opts) do
    text =
      Bumblebee.configure(
        Text.BlipText,
        [architecture: :for_causal_language_modeling, encoder_hidden_size: 16] ++ @text
      )

    vision = Bumblebee.configure(Vision.BlipVision, [intermediate_size: 24] ++ @vision)
    [text_spec: text, vision_spec: vision] ++ opts
  end

  defp opts(_name, _module, opts), do: opts

  @doc "Returns the model and its parameters in the form of Bumblebee.load_model/2."
  def info(name, opts \\ []) do
    {spec, kind, _counts} = fetch!(name)
    spec = Bumblebee.configure(spec, opts)
    model = Bumblebee.build_model(spec)
    %{model: model, spec: spec, params: model |> initial(inputs(kind, spec)) |> disturbed()}
  end

  @doc "Returns Axon's initial parameters on Nx.BinaryBackend, computed on EMLX.Backend because that is faster."
  def initial(model, inputs) do
    {init, _predict} = Axon.build(model, seed: 3, compiler: Nx.Defn.Evaluator)
    templates = Map.new(inputs, fn {name, tensor} -> {name, Nx.to_template(tensor)} end)
    state = Nx.with_default_backend(EMLX.Backend, fn -> init.(templates, Axon.ModelState.empty()) end)
    %{state | data: Nx.backend_copy(state.data, Nx.BinaryBackend)}
  end

  @doc "Returns a configuration that generates a few tokens."
  def generation(strategy, opts \\ []) do
    own = [strategy: strategy, max_new_tokens: 8, pad_token_id: 0, eos_token_id: 1, decoder_start_token_id: 2]
    struct!(Bumblebee.Text.GenerationConfig, own ++ opts)
  end

  @doc "Adds a small number to each initial parameter, because zeros and ones could hide a difference."
  def disturbed(%Axon.ModelState{} = state), do: %{state | data: disturb(state.data)}

  defp disturb(%Nx.Tensor{type: {:f, 32}} = tensor) do
    # The offsets are halves, so that no parameter is exactly representable in a narrower type.
    noise =
      Nx.iota({Nx.size(tensor)}) |> Nx.multiply(7919) |> Nx.remainder(401) |> Nx.subtract(200.5) |> Nx.divide(1500)

    # The parameters stay small: T5 does not scale its scores, and bf16 cannot represent differences of large ones.
    tensor |> Nx.add(Nx.reshape(noise, tensor.shape)) |> Nx.multiply(0.6)
  end

  defp disturb(%Nx.Tensor{} = tensor), do: tensor
  defp disturb(map), do: Map.new(map, fn {name, value} -> {name, disturb(value)} end)

  @doc "Converts the floats of parameters or inputs to another type."
  def as_type(%Axon.ModelState{} = state, type), do: %{state | data: as_type(state.data, type)}
  def as_type(%Nx.Tensor{type: {kind, _}} = tensor, type) when kind in [:f, :bf], do: Nx.as_type(tensor, type)
  def as_type(%Nx.Tensor{} = tensor, _type), do: tensor
  def as_type(map, type), do: Map.new(map, fn {name, value} -> {name, as_type(value, type)} end)

  @doc "Returns inputs for a kind of model. Of two rows of text, one is padded on the right and one on the left."
  def inputs(:text, _spec), do: %{"input_ids" => ids(1), "attention_mask" => mask()}

  def inputs(:cross, spec) do
    encoder = %{
      "encoder_hidden_state" => random({2, 5, 16}, 3),
      "encoder_attention_mask" => Nx.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    }

    Map.merge(inputs(:text, spec), encoder)
  end

  def inputs(:seq2seq, spec) do
    decoder = %{
      "decoder_input_ids" => ids(2)[[.., 0..4]],
      "decoder_attention_mask" => Nx.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    }

    Map.merge(inputs(:text, spec), decoder)
  end

  def inputs(:audio, _spec),
    do: %{"input_features" => random({2, 12, 5}, 3), "decoder_input_ids" => ids(2)[[.., 0..4]]}

  def inputs(:image, spec), do: %{image(spec) => pixels(spec)}
  def inputs(:clip, spec), do: Map.put(inputs(:text, spec), "pixel_values", pixels(spec.vision_spec))

  def inputs(:blip, spec) do
    pixels = spec.vision_spec |> pixels() |> Nx.broadcast({2, 8, 8, 3})
    %{"pixel_values" => pixels, "decoder_input_ids" => ids(1), "decoder_attention_mask" => mask()}
  end

  def inputs(:layout, spec) do
    boxes = Nx.iota({2, 7, 4}, axis: 2) |> Nx.add(Nx.iota({2, 7, 1}, axis: 1))
    Map.put(inputs(:text, spec), "bounding_box", boxes)
  end

  def inputs(:unet, spec) do
    %{
      "sample" => random({1, spec.sample_size, spec.sample_size, 4}, 3),
      "timestep" => Nx.tensor(3),
      "encoder_hidden_state" => random({1, 5, spec.cross_attention_size}, 4)
    }
  end

  defp mask, do: Nx.tensor([[1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1]])

  defp ids(seed), do: Nx.iota({2, 7}) |> Nx.multiply(11) |> Nx.add(seed) |> Nx.remainder(37) |> Nx.add(2)

  defp image(%Diffusion.VaeKl{}), do: "sample"
  defp image(_spec), do: "pixel_values"

  defp pixels(%{sample_size: size}), do: random({1, size, size, 3}, 3)
  defp pixels(%{image_size: size}), do: random({1, size, size, 3}, 3)
  defp pixels(_spec), do: random({1, 32, 32, 3}, 3)

  defp random(shape, seed) do
    {tensor, _} = Nx.Random.normal(Nx.Random.key(seed), shape: shape)
    tensor
  end
end
