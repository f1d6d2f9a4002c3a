defmodule EMLXBumblebee.Models do
  @moduledoc false
  # Tiny models of every kind that Bumblebee has, with random parameters, for the tests.

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
    sample_size: 8,
    in_channels: 4,
    out_channels: 4,
    hidden_sizes: [16, 32],
    depth: 1,
    down_block_types: [:cross_attention_down_block, :down_block],
    up_block_types: [:up_block, :cross_attention_up_block],
    downsample_padding: [{1, 1}],
    num_attention_heads: 4,
    cross_attention_size: 12,
    group_norm_num_groups: 8
  ]

  @llama3 %{
    type: :llama3,
    factor: 8.0,
    low_frequency_factor: 1.0,
    high_frequency_factor: 4.0,
    original_max_positions: 64
  }

  # What inputs a model takes, the specification, and how many layers become which blocks:
  # {attention, rotary embedding, rms_norm, layer_norm}.
  @models [
    bert: {:text, Text.Bert, @text, {2, 0, 0, 5}},
    bert_with_pooled_head: {:text, Text.Bert, [architecture: :for_sequence_classification] ++ @text, {2, 0, 0, 5}},
    bert_causal: {:text, Text.Bert, @causal ++ @text, {2, 0, 0, 6}},
    bert_with_cross_attention: {:cross, Text.Bert, [use_cross_attention: true] ++ @text, {4, 0, 0, 7}},
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
    gpt_neo_x_in_sequence: {:text, Text.GptNeoX, [use_parallel_transformer_block: false] ++ @text, {2, 2, 0, 5}},
    gpt_big_code: {:text, Text.GptBigCode, @causal ++ [num_key_value_heads: 1] ++ @text, {2, 0, 0, 5}},
    llama: {:text, Text.Llama, @causal ++ @text, {2, 2, 5, 0}},
    llama_grouped: {:text, Text.Llama, [num_key_value_heads: 2] ++ @text, {2, 2, 5, 0}},
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
    gemma: {:text, Text.Gemma, @causal ++ [num_key_value_heads: 1, attention_head_size: 8] ++ @text, {2, 2, 5, 0}},
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
    phi3: {:text, Text.Phi3, [num_key_value_heads: 2, attention_window_size: 3] ++ @text, {2, 2, 5, 0}},
    phi3_longrope:
      {:text, Text.Phi3,
       [
         max_positions: 64,
         rotary_embedding_scaling_strategy: %{
           type: :longrope,
           short_factor: [1.0, 1.5],
           long_factor: [2.0, 4.0],
           original_max_positions: 4
         }
       ] ++ @text, {2, 2, 5, 0}},
    smollm3: {:text, Text.SmolLm3, @causal ++ [num_key_value_heads: 2] ++ @text, {2, 1, 5, 0}},
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
    convnext: {:image, Vision.ConvNext, [hidden_sizes: [8, 16], depths: [1, 1], image_size: 16], {0, 0, 0, 5}},
    clip: {:clip, Multimodal.Clip, [], {4, 0, 0, 10}},
    clip_text: {:text, Text.ClipText, [max_positions: 16] ++ @text, {2, 0, 0, 5}},
    clip_vision: {:image, Vision.ClipVision, [intermediate_size: 24] ++ @vision, {2, 0, 0, 6}},
    blip: {:blip, Multimodal.Blip, [], {6, 0, 0, 15}},
    layout_lm: {:layout, Multimodal.LayoutLm, @text, {2, 0, 0, 5}},
    unet: {:unet, Diffusion.UNet2DConditional, @unet, {10, 0, 0, 15}},
    vae:
      {:image, Diffusion.VaeKl,
       [
         hidden_sizes: [32],
         sample_size: 8,
         in_channels: 3,
         out_channels: 3,
         latent_channels: 4
       ], {2, 0, 0, 0}}
  ]

  def names, do: Keyword.keys(@models)

  @doc "`{spec, kind, counts}` of a model."
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

  defp opts(:convnext, _module, opts), do: Keyword.delete(opts, :image_size)
  defp opts(_name, _module, opts), do: opts

  @doc "Random parameters: those that Axon initialises, each number with a random one added."
  def parameters(model, inputs) do
    {init, _predict} = Axon.build(model, seed: 7, compiler: Nx.Defn.Evaluator)
    templates = Map.new(inputs, fn {name, tensor} -> {name, Nx.to_template(tensor)} end)
    state = init.(templates, Axon.ModelState.empty())
    {data, _} = disturbed(state.data, 1)
    %{state | data: data}
  end

  defp disturbed(%Nx.Tensor{type: {kind, _}} = tensor, seed) when kind in [:f, :bf] do
    {noise, _} = Nx.Random.normal(Nx.Random.key(seed), shape: tensor.shape)
    {tensor |> Nx.add(Nx.multiply(noise, 0.1)) |> Nx.as_type(tensor.type), seed + 1}
  end

  defp disturbed(%Nx.Tensor{} = tensor, seed), do: {tensor, seed}

  defp disturbed(map, seed) do
    map
    |> Enum.sort_by(&elem(&1, 0))
    |> Enum.map_reduce(seed, fn {name, value}, seed ->
      {value, seed} = disturbed(value, seed)
      {{name, value}, seed}
    end)
    |> then(fn {pairs, seed} -> {Map.new(pairs), seed} end)
  end

  @doc "Inputs for a kind of model, as `{name, inputs}`: text once with padding on the right and once on the left."
  def inputs(kind, spec, type \\ :f32)

  def inputs(:text, _spec, _type) do
    for {name, mask} <- masks(), do: {name, %{"input_ids" => ids(1), "attention_mask" => mask}}
  end

  def inputs(:cross, _spec, type) do
    encoded = random({2, 5, 16}, 3, type)

    for {name, mask} <- masks() do
      {name,
       %{
         "input_ids" => ids(1),
         "attention_mask" => mask,
         "encoder_hidden_state" => encoded,
         "encoder_attention_mask" => Nx.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
       }}
    end
  end

  def inputs(:seq2seq, _spec, _type) do
    for {name, mask} <- masks() do
      decoder = %{"decoder_input_ids" => ids(2)[[.., 0..4]], "decoder_attention_mask" => mask[[.., 1..5]]}
      {name, Map.merge(%{"input_ids" => ids(1), "attention_mask" => mask}, decoder)}
    end
  end

  def inputs(:audio, _spec, type) do
    [audio: %{"input_features" => random({2, 12, 5}, 3, type), "decoder_input_ids" => ids(2)[[.., 0..4]]}]
  end

  def inputs(:image, spec, type), do: [image: %{image(spec) => pixels(spec, type)}]

  def inputs(:clip, spec, type) do
    for {name, inputs} <- inputs(:text, spec, type),
        do: {name, Map.put(inputs, "pixel_values", pixels(spec.vision_spec, type))}
  end

  def inputs(:blip, spec, type) do
    for {name, mask} <- masks() do
      {name,
       %{
         "pixel_values" => pixels(spec.vision_spec, type),
         "decoder_input_ids" => ids(1),
         "decoder_attention_mask" => mask
       }}
    end
  end

  def inputs(:layout, _spec, _type) do
    boxes = Nx.iota({2, 7, 4}) |> Nx.remainder(9)
    for {name, mask} <- masks(), do: {name, %{"input_ids" => ids(1), "attention_mask" => mask, "bounding_box" => boxes}}
  end

  def inputs(:unet, spec, type) do
    [
      image: %{
        "sample" => random({1, spec.sample_size, spec.sample_size, 4}, 3, type),
        "timestep" => Nx.tensor(3),
        "encoder_hidden_state" => random({1, 5, spec.cross_attention_size}, 4, type)
      }
    ]
  end

  # The second row is shorter.
  defp masks do
    [
      right: Nx.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]]),
      left: Nx.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]])
    ]
  end

  defp ids(seed), do: Nx.iota({2, 7}) |> Nx.multiply(11) |> Nx.add(seed) |> Nx.remainder(37) |> Nx.add(2)

  defp image(%Diffusion.VaeKl{}), do: "sample"
  defp image(_spec), do: "pixel_values"

  defp pixels(%{sample_size: size}, type), do: random({1, size, size, 3}, 3, type)
  defp pixels(%{image_size: size}, type), do: random({1, size, size, 3}, 3, type)
  defp pixels(_spec, type), do: random({1, 16, 16, 3}, 3, type)

  defp random(shape, seed, type) do
    {tensor, _} = Nx.Random.normal(Nx.Random.key(seed), shape: shape)
    Nx.as_type(tensor, type)
  end
end
