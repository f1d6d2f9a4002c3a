defmodule EMLXBumblebee.References do
  @moduledoc false
  # The checkpoints in the archives of test/references: how Bumblebee loads them, how transformers' names map to
  # Bumblebee's, and REFERENCES.md, the table of the results of test/references_test.exs.

  alias Bumblebee.{Multimodal, Text, Vision}
  alias EMLXBumblebee.{Compare, Table}

  @archives Path.expand("../references/*.tar", __DIR__)

  @roberta "Position ids count padding tokens on the left. Those that transformers computes do not; given them, " <>
             "the outputs agree."
  @window "A causal window of `n` has `n` keys before the query's own, in transformers `n - 1`. With a window of " <>
            "`n - 1`, it agrees."
  @dynamic "Dynamic scaling raises base times ratio to size / (size - 2), transformers only the ratio. With an " <>
             "adapted base, it agrees."
  @convnext "The last norm has an epsilon of 1.0e-5 instead of the configuration's. Only the pooled state differs."
  @epsilon "The epsilon of the norms is not read from the configuration. With that epsilon, it agrees."
  @swin "All norms have the configuration's epsilon. In transformers the norms after the patches and of patch " <>
          "merging have 1.0e-5."
  @local "No layer has a window, whatever its type. A checkpoint whose layers have no window agrees."

  @bias "The output of the language modelling head has no bias. A checkpoint whose bias is zeros agrees."
  @pooling "A text is always classified by the mean of its tokens. A checkpoint that is configured so agrees."
  @last "A text is classified by the token at index `tokens - 1`, the last one only with padding on the right. A " <>
          "checkpoint of such texts agrees."

  # For each checkpoint, the numbers of blocks, {attention, rotary embedding, rms_norm, layer_norm}, and:
  #
  #   load     options that loading the checkpoint requires
  #   differs  {why, what}: Bumblebee's model differs from transformers'. It agrees with the options `what` of its
  #            specification, or with the input `what`; or the outputs `what` differ in any case
  @references [
    bert: {{2, 0, 0, 5}, []},
    bert_masked_lm: {{2, 0, 0, 6}, []},
    roberta: {{2, 0, 0, 5}, differs: {@roberta, :position_ids}},
    distilbert: {{2, 0, 0, 5}, []},
    albert: {{2, 0, 0, 5}, []},
    mpnet: {{2, 0, 0, 5}, differs: {@roberta, :position_ids}},
    modernbert: {{2, 2, 0, 6}, differs: {@epsilon, layer_norm_epsilon: 1.0e-3}},
    modernbert_decoder: {{2, 2, 0, 6}, []},
    modernbert_decoder_local: {{2, 2, 0, 6}, differs: {@local, ["logits"]}},
    nomic_bert: {{2, 2, 0, 5}, []},
    gpt2: {{2, 0, 0, 5}, []},
    gpt_neo_x: {{2, 2, 0, 5}, []},
    gpt_neo_x_in_sequence: {{2, 2, 0, 5}, []},
    gpt_big_code: {{2, 0, 0, 5}, []},
    llama: {{2, 2, 5, 0}, []},
    llama_grouped: {{2, 2, 5, 0}, []},
    llama_with_large_heads: {{2, 2, 5, 0}, []},
    llama_linear: {{2, 2, 5, 0}, []},
    # With heads of size 4, Bumblebee squares the base, which is 1000.
    llama_dynamic: {{2, 2, 5, 0}, differs: {@dynamic, rotary_embedding_base: :math.sqrt(1000)}},
    llama_llama3: {{2, 2, 5, 0}, []},
    mistral: {{2, 2, 5, 0}, differs: {@window, attention_window_size: 2}},
    gemma: {{2, 2, 5, 0}, []},
    gemma3: {{2, 2, 13, 0}, differs: {@window, attention_window_size: 2}},
    qwen3: {{2, 2, 9, 0}, []},
    phi: {{2, 2, 0, 3}, []},
    phi3: {{2, 2, 5, 0}, []},
    phi3_longrope_short: {{2, 2, 5, 0}, []},
    phi3_longrope_long: {{2, 2, 5, 0}, []},
    smollm3: {{2, 1, 5, 0}, []},
    t5: {{6, 0, 12, 0}, differs: {@epsilon, layer_norm_epsilon: 1.0e-3}},
    t5_gated: {{3, 0, 7, 0}, differs: {@epsilon, layer_norm_epsilon: 1.0e-3}},
    bart: {{6, 0, 0, 12}, []},
    mbart: {{3, 0, 0, 9}, []},
    m2m100: {{3, 0, 0, 7}, []},
    blenderbot: {{3, 0, 0, 7}, []},
    whisper: {{3, 0, 0, 7}, []},
    vit: {{2, 0, 0, 5}, []},
    deit: {{2, 0, 0, 5}, []},
    dino_v2: {{2, 0, 0, 5}, []},
    swin: {{4, 0, 0, 11}, []},
    swin_with_epsilon: {{2, 0, 0, 7}, differs: {@swin, ["last_hidden_state", "pooler_output"]}},
    convnext: {{0, 0, 0, 5}, []},
    convnext_with_epsilon: {{0, 0, 0, 5}, differs: {@convnext, ["pooler_output"]}},
    clip: {{4, 0, 0, 11}, []},
    clip_text: {{2, 0, 0, 5}, []},
    clip_vision: {{2, 0, 0, 6}, []},
    blip: {{3, 0, 0, 8}, []},
    # Bumblebee does not read max_2d_position_embeddings.
    layout_lm: {{2, 0, 0, 5}, load: [spec_overrides: [max_spatial_positions: 16]]},
    # The remaining kinds of model, with one layer.
    bert_sequences: {{1, 0, 0, 3}, []},
    bert_tokens: {{1, 0, 0, 3}, []},
    bert_answers: {{1, 0, 0, 3}, []},
    bert_choices: {{1, 0, 0, 3}, []},
    bert_next_sentence: {{1, 0, 0, 3}, []},
    bert_causal_lm: {{1, 0, 0, 4}, []},
    roberta_masked_lm: {{1, 0, 0, 4}, []},
    roberta_sequences: {{1, 0, 0, 3}, []},
    roberta_tokens: {{1, 0, 0, 3}, []},
    roberta_answers: {{1, 0, 0, 3}, []},
    roberta_choices: {{1, 0, 0, 3}, []},
    roberta_causal_lm: {{1, 0, 0, 4}, []},
    distilbert_masked_lm: {{1, 0, 0, 4}, []},
    distilbert_sequences: {{1, 0, 0, 3}, []},
    distilbert_tokens: {{1, 0, 0, 3}, []},
    distilbert_answers: {{1, 0, 0, 3}, []},
    distilbert_choices: {{1, 0, 0, 3}, []},
    albert_masked_lm: {{1, 0, 0, 4}, differs: {@bias, ["logits"]}},
    albert_sequences: {{1, 0, 0, 3}, []},
    albert_tokens: {{1, 0, 0, 3}, []},
    albert_answers: {{1, 0, 0, 3}, []},
    albert_choices: {{1, 0, 0, 3}, []},
    mpnet_masked_lm: {{1, 0, 0, 4}, []},
    mpnet_sequences: {{1, 0, 0, 3}, []},
    mpnet_tokens: {{1, 0, 0, 3}, []},
    mpnet_answers: {{1, 0, 0, 3}, []},
    mpnet_choices: {{1, 0, 0, 3}, []},
    modernbert_base: {{1, 1, 0, 3}, []},
    modernbert_sequences: {{1, 1, 0, 4}, []},
    modernbert_tokens: {{1, 1, 0, 4}, []},
    modernbert_decoder_base: {{1, 1, 0, 3}, []},
    gpt2_base: {{1, 0, 0, 3}, []},
    gpt2_sequences: {{1, 0, 0, 3}, []},
    gpt2_tokens: {{1, 0, 0, 3}, []},
    gpt_big_code_base: {{1, 0, 0, 3}, []},
    gpt_big_code_sequences: {{1, 0, 0, 3}, []},
    gpt_big_code_tokens: {{1, 0, 0, 3}, []},
    gpt_neo_x_base: {{1, 1, 0, 3}, []},
    gpt_neo_x_sequences: {{1, 1, 0, 3}, []},
    gpt_neo_x_tokens: {{1, 1, 0, 3}, []},
    llama_base: {{1, 1, 3, 0}, []},
    llama_sequences: {{1, 1, 3, 0}, []},
    mistral_base: {{1, 1, 3, 0}, []},
    mistral_sequences: {{1, 1, 3, 0}, []},
    gemma_base: {{1, 1, 3, 0}, []},
    gemma_sequences: {{1, 1, 3, 0}, []},
    gemma3_base: {{1, 1, 7, 0}, []},
    gemma3_sequences: {{1, 1, 7, 0}, []},
    qwen3_base: {{1, 1, 5, 0}, []},
    qwen3_sequences: {{1, 1, 5, 0}, []},
    phi_base: {{1, 1, 0, 2}, []},
    phi_sequences: {{1, 1, 0, 2}, []},
    phi_tokens: {{1, 1, 0, 2}, []},
    phi3_base: {{1, 1, 3, 0}, []},
    phi3_sequences: {{1, 1, 3, 0}, []},
    phi3_tokens: {{1, 1, 3, 0}, []},
    smollm3_base: {{1, 1, 3, 0}, []},
    smollm3_sequences: {{1, 1, 3, 0}, []},
    smollm3_tokens: {{1, 1, 3, 0}, []},
    smollm3_answers: {{1, 1, 3, 0}, []},
    bart_base: {{3, 0, 0, 7}, []},
    bart_sequences: {{3, 0, 0, 7}, []},
    bart_answers: {{3, 0, 0, 7}, []},
    bart_causal_lm: {{1, 0, 0, 3}, []},
    mbart_base: {{3, 0, 0, 9}, []},
    mbart_sequences: {{3, 0, 0, 9}, []},
    mbart_answers: {{3, 0, 0, 9}, []},
    mbart_causal_lm: {{1, 0, 0, 4}, []},
    m2m100_base: {{3, 0, 0, 7}, []},
    blenderbot_base: {{3, 0, 0, 7}, []},
    t5_base: {{3, 0, 7, 0}, []},
    whisper_base: {{3, 0, 0, 7}, []},
    layout_lm_masked_lm: {{1, 0, 0, 4}, load: [spec_overrides: [max_spatial_positions: 16]]},
    layout_lm_sequences: {{1, 0, 0, 3}, load: [spec_overrides: [max_spatial_positions: 16]]},
    layout_lm_tokens: {{1, 0, 0, 3}, load: [spec_overrides: [max_spatial_positions: 16]]},
    layout_lm_answers: {{1, 0, 0, 3}, load: [spec_overrides: [max_spatial_positions: 16]]},
    vit_images: {{1, 0, 0, 3}, []},
    vit_masked_images: {{1, 0, 0, 3}, []},
    deit_images: {{1, 0, 0, 3}, []},
    deit_images_with_teacher: {{1, 0, 0, 3}, []},
    deit_masked_images: {{1, 0, 0, 3}, []},
    dino_v2_images: {{1, 0, 0, 3}, []},
    swin_images: {{2, 0, 0, 7}, []},
    convnext_images: {{0, 0, 0, 5}, []},
    resnet_images: {{0, 0, 0, 0}, []},
    camembert: {{1, 0, 0, 3}, []},
    xlm_roberta: {{1, 0, 0, 3}, []},
    albert_masked_lm_without_bias: {{1, 0, 0, 4}, []},
    modernbert_sequences_first: {{1, 1, 0, 4}, differs: {@pooling, ["logits"]}},
    gpt2_sequences_padded_left: {{1, 0, 0, 3}, differs: {@last, ["logits"]}},
    t5_encoder: {{1, 0, 3, 0}, []},
    dino_v2_backbone: {{2, 0, 0, 6}, []},
    dino_v2_swiglu: {{1, 0, 0, 3}, []},
    resnet: {{0, 0, 0, 0}, []},
    resnet_basic: {{0, 0, 0, 0}, []},
    clip_text_embedding: {{1, 0, 0, 3}, load: [module: Text.ClipText, architecture: :for_embedding]},
    clip_vision_embedding: {{1, 0, 0, 4}, load: [module: Vision.ClipVision, architecture: :for_embedding]}
  ]

  @head """
  # References

  The checkpoints in `test/references`, one archive for each family of models, are tiny and have random parameters. The
  tests load them with `Bumblebee.load_model({:local, folder})`, rewrite them with `EMLXBumblebee.rewrite/2`, and run
  them on `EMLX.Backend`, eagerly and compiled with `compiler: EMLX`. The expected outputs are those of PyTorch and
  Hugging Face's transformers 4.57 (5.23 for NomicBERT). `test/references/generate.py` generates checkpoints and
  outputs.

  `test/references_test.exs` writes this table, and fails if its results differ from it. It also fails if a change of a
  parameter does not change the outputs.

  The outputs have transformers' names. Texts are padded, on the right or on the left; padding is not compared. The
  blocks are those that telemetry reported as fused; none was composed. *As it is* is the original model on
  `Nx.BinaryBackend`. The numbers are the largest allowed difference from transformers' outputs, relative to the largest
  element of an output (at least 1). *Generated* is the number of tokens of a greedy search, the same as transformers'.

  A number in brackets refers to a note, below, on a difference between Bumblebee's model and transformers'. The
  rewritten model returns what Bumblebee's does, and with the change in the note, transformers' outputs. If the number
  follows an output, no change makes that output agree; the other outputs are compared.

  | checkpoint | class of transformers | outputs | attention | rotary embedding | rms_norm | layer_norm | as it is | eager | compiled | generated |
  |---|---|---|---|---|---|---|---|---|---|---|
  """

  @besides """

  Further differences, in Bumblebee 0.7.0:

  - It reads parameters that several layers share under some of their names only. A `pytorch_model.bin` has these names,
    but the safetensors that transformers 4.57 saves do not. This applies to the embeddings of BART, mBART, M2M100 and
    Blenderbot, and to the output layer of BERT's and BLIP's language models. The checkpoints here have all names.
  - Gemma with the activation `gelu_pytorch_tanh`, transformers' default, cannot be loaded.
  - LayoutLM's `max_2d_position_embeddings` is not read; the tests pass it.
  - Parameters that only an optional input uses are not loaded: the token for masked patches of ViT and DeiT, and the
    cross-attention of BART's and mBART's causal language models.
  - The output layers of Phi's and Phi-3's token classification are read under the names of older versions of
    transformers, not under those that 4.57 saves. The checkpoints here have both names.
  - Group norms in the autoencoder, in the middle of the UNet and before its attention have 32 groups, whatever the
    configuration says. In the middle of the UNet their epsilon is 1.0e-6.
  - CLIP's embeddings of texts and images are not normalized, transformers' are. The tests normalize them.
  - DistilBERT has a pooler with random parameters, which its checkpoints do not have. GPT-NeoX's sequence
    classification has a bias of zeros.

  The checkpoints contain every kind of model in Bumblebee 0.7.0 except these:

  - ControlNet, UNet, autoencoder and safety checker of Stable Diffusion. With 32 groups of channels, a checkpoint with
    significant outputs is large. [CONFORMANCE.md](CONFORMANCE.md) has the UNet and the autoencoder, compared with
    themselves on `Nx.BinaryBackend`.
  - BLIP's text model and image model on their own, which are the two parts of `blip`.
  - BERT and ALBERT with both pretraining heads at once.

  Bumblebee's own tests compare models with transformers' outputs for checkpoints of the Hugging Face hub. These tests
  download nothing, and use the checkpoints above instead.

  `test/upstream_values_test.exs` checks the values that need no checkpoint on `EMLX.Backend`, eagerly and compiled.
  They are the samples of the schedulers DDIM, PNDM and LCM, Whisper's features, the output sizes of image featurizers,
  all logits processors, PyTorch files in both formats, and the doctests of `Bumblebee.Utils.Nx`. For one second of
  audio it also compares all features.
  """

  def names, do: Keyword.keys(@references)

  @doc """
  Extracts all archives into a temporary folder, since Bumblebee loads checkpoints from folders. test_helper.exs calls
  it once, and removes the folder after the suite.
  """
  def extract do
    File.rm_rf!(root())

    for path <- Path.wildcard(@archives) do
      {:ok, files} = :erl_tar.extract(path, [:memory])

      for {name, content} <- files do
        file = Path.join(root(), to_string(name))
        File.mkdir_p!(Path.dirname(file))
        File.write!(file, content)
      end
    end

    :ok
  end

  @doc "Returns the folder that `extract/0` fills."
  def root, do: Path.join(System.tmp_dir!(), "emlx_references_#{System.pid()}")

  @doc "Returns the folder of a checkpoint."
  def folder(name), do: Path.join(root(), to_string(name))

  @doc "Returns `{counts, options}` of a checkpoint."
  def fetch!(name), do: Keyword.fetch!(@references, name)

  @doc """
  Loads a checkpoint with further options of the specification. Bumblebee would initialise missing parameters randomly,
  which the tests would detect.
  """
  def load(name, overrides \\ []) do
    {_counts, opts} = fetch!(name)
    load = Keyword.update(opts[:load] || [], :spec_overrides, overrides, &(&1 ++ overrides))
    {:ok, info} = Bumblebee.load_model({:local, folder(name)}, [log_params_diff: false] ++ load)
    info
  end

  @doc "Returns the tensors of reference.safetensors by kind: inputs, outputs, prompt and generated."
  def read(name) do
    tensors = folder(name) |> Path.join("reference.safetensors") |> Safetensors.read!()
    {generated, tensors} = Map.pop(tensors, "generated")

    kinds =
      Enum.group_by(tensors, &(elem(&1, 0) |> String.split(".") |> hd()), fn {name, tensor} ->
        {name |> String.split(".") |> tl() |> Enum.join("."), tensor}
      end)

    kinds = Map.new(kinds, fn {kind, tensors} -> {kind, Map.new(tensors)} end)
    %{inputs: kinds["inputs"], outputs: kinds["outputs"], prompt: kinds["prompt"], generated: generated}
  end

  @doc "Converts inputs of transformers to Bumblebee's."
  def inputs(inputs, spec), do: Map.new(inputs, fn {name, tensor} -> input(name, tensor, spec) end)

  defp input("pixel_values", tensor, _spec), do: {"pixel_values", Nx.transpose(tensor, axes: [0, 2, 3, 1])}
  defp input("input_features", tensor, _spec), do: {"input_features", Nx.transpose(tensor, axes: [0, 2, 1])}
  defp input("bbox", tensor, _spec), do: {"bounding_box", tensor}
  defp input("input_ids", tensor, %Multimodal.Blip{}), do: {"decoder_input_ids", tensor}
  defp input("attention_mask", tensor, %Multimodal.Blip{}), do: {"decoder_attention_mask", tensor}
  defp input(name, tensor, _spec), do: {name, tensor}

  @doc """
  Returns `{actual, mask}`: Bumblebee's output for the name of an output of transformers, and the mask that is 0 for
  padding, nil for outputs without tokens.
  """
  def output(name, outputs, inputs, spec) do
    {key, mask} = output_and_mask(name, spec)
    {outputs |> Map.fetch!(key) |> translate(name, spec), mask && inputs[mask]}
  end

  # The architectures with logits for each token. Other logits are for a whole text or image.
  @of_tokens [
    :for_masked_language_modeling,
    :for_causal_language_modeling,
    :for_conditional_generation,
    :for_token_classification
  ]

  defp output_and_mask("encoder_last_hidden_state", _spec), do: {:encoder_hidden_state, "attention_mask"}
  # BLIP's language model attends to these.
  defp output_and_mask(name, %Multimodal.Blip{}) when name in ["last_hidden_state", "image_embeds"],
    do: {:encoder_hidden_state, nil}

  defp output_and_mask("logits", %{architecture: :for_conditional_generation}), do: {:logits, "decoder_attention_mask"}
  defp output_and_mask("logits", %{architecture: kind}) when kind in @of_tokens, do: {:logits, "attention_mask"}
  defp output_and_mask("logits", _spec), do: {:logits, nil}
  # The logits of a decoder are for its tokens, none of which is padding.
  defp output_and_mask("start_logits", %{decoder_num_blocks: _}), do: {:start_logits, nil}
  defp output_and_mask("end_logits", %{decoder_num_blocks: _}), do: {:end_logits, nil}
  defp output_and_mask("start_logits", _spec), do: {:start_logits, "attention_mask"}
  defp output_and_mask("end_logits", _spec), do: {:end_logits, "attention_mask"}

  defp output_and_mask("last_hidden_state", %{architecture: :base, decoder_num_blocks: _}),
    do: {:hidden_state, "decoder_attention_mask"}

  defp output_and_mask("last_hidden_state", _spec), do: {:hidden_state, "attention_mask"}
  defp output_and_mask("pooler_output", _spec), do: {:pooled_state, nil}
  defp output_and_mask("text_embeds", %Text.ClipText{}), do: {:embedding, nil}
  defp output_and_mask("image_embeds", %Vision.ClipVision{}), do: {:embedding, nil}
  defp output_and_mask("text_embeds", _spec), do: {:text_embedding, nil}
  defp output_and_mask("image_embeds", _spec), do: {:image_embedding, nil}
  defp output_and_mask("logits_per_text", _spec), do: {:logits_per_text, nil}
  defp output_and_mask("logits_per_image", _spec), do: {:logits_per_image, nil}
  defp output_and_mask("cls_logits", _spec), do: {:class_logits, nil}
  defp output_and_mask("distillation_logits", _spec), do: {:distillation_logits, nil}
  defp output_and_mask("reconstruction", _spec), do: {:pixel_values, nil}
  defp output_and_mask("feature_maps." <> _index, _spec), do: {:feature_maps, nil}

  defp translate(maps, "feature_maps." <> index, _spec), do: maps |> elem(String.to_integer(index)) |> channels_first()
  defp translate(tensor, "reconstruction", _spec), do: channels_first(tensor)
  defp translate(tensor, "last_hidden_state", %Vision.ConvNext{}), do: channels_first(tensor)
  defp translate(tensor, "last_hidden_state", %Vision.ResNet{}), do: channels_first(tensor)
  # transformers' output is an image of one pixel.
  defp translate(tensor, "pooler_output", %Vision.ResNet{}), do: tensor |> Nx.new_axis(-1) |> Nx.new_axis(-1)

  defp translate(tensor, name, %Multimodal.Clip{}) when name in ["text_embeds", "image_embeds"],
    do: Bumblebee.Utils.Nx.normalize(tensor)

  defp translate(tensor, _name, _spec), do: tensor

  defp channels_first(tensor), do: Nx.transpose(tensor, axes: [0, 3, 1, 2])

  # ---- the table ----

  def table do
    %{path: Path.expand("../../REFERENCES.md", __DIR__), head: @head, names: names(), foot: [notes(), @besides]}
  end

  defp reasons,
    do: for({_name, {_counts, opts}} <- @references, {why, _} <- List.wrap(opts[:differs]), uniq: true, do: why)

  defp notes, do: for({why, number} <- Enum.with_index(reasons(), 1), do: "\n#{number}. #{why}") ++ ["\n"]

  @doc "Returns the row of a checkpoint that ran with `compilers`; the outputs `differing` were not compared."
  def row(name, reference, compilers, differing, tolerance) do
    {counts, opts} = fetch!(name)
    [class] = folder(name) |> Path.join("config.json") |> File.read!() |> Jason.decode!() |> Map.fetch!("architectures")
    number = with {why, _} <- opts[:differs], do: " (#{Enum.find_index(reasons(), &(&1 == why)) + 1})"

    outputs =
      for {output, _} <- Enum.sort(reference.outputs), do: if(output in differing, do: output <> number, else: output)

    compared? = map_size(reference.outputs) > length(differing)
    agreed = if(compared?, do: tolerance, else: "as it is")

    cells = [
      if(compared?, do: "#{tolerance}#{if differing == [], do: number}", else: "differs"),
      if(Nx.Defn.Evaluator in compilers, do: agreed, else: "not run"),
      if(EMLX in compilers, do: agreed, else: "not run"),
      if(reference.generated, do: Nx.size(reference.generated), else: "")
    ]

    Table.row(["#{name}", class, Enum.join(outputs, ", ")] ++ Tuple.to_list(counts) ++ cells)
  end

  @doc """
  Returns the largest difference of `actual` and `expected` where `mask` is not zero, relative to the largest element of
  `expected`, at least 1.
  """
  def apart(actual, expected, mask) do
    [actual, expected] = for tensor <- [actual, expected], do: tensor |> Compare.on(Nx.BinaryBackend) |> masked(mask)
    far = Compare.distance(actual, expected)
    # Nx returns :nan and :infinity as atoms.
    if is_number(far), do: far / max(Compare.largest(expected), 1.0), else: far
  end

  defp masked(tensor, nil), do: tensor
  # An output of one element per token has the mask's shape; others have one more axis.
  defp masked(%{shape: shape} = tensor, %{shape: shape} = mask), do: Nx.select(mask, tensor, 0.0)
  defp masked(tensor, mask), do: mask |> Nx.new_axis(-1) |> Nx.broadcast(tensor) |> Nx.select(tensor, 0.0)
end
