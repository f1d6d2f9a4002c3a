defmodule EMLXBumblebee.GenerationTest do
  # Generated tokens of rewritten models on EMLX, compared token for token with those of the original model on
  # Nx.BinaryBackend.
  use ExUnit.Case, async: true

  import EMLXBumblebee.Compare

  alias Bumblebee.Text.Generation
  alias EMLXBumblebee.Models

  @decoders [
    :gpt2,
    :gpt_neo_x,
    :gpt_big_code,
    :llama,
    :llama_grouped_causal,
    :mistral,
    :gemma,
    :gemma3,
    :qwen3,
    :phi,
    :smollm3
  ]
  @encoder_decoders [:t5, :bart]

  defp generate(info, inputs, config, backend, compiler) do
    fun = Generation.build_generate(info.model, info.spec, config)
    params = %{info.params | data: on(info.params.data, backend)}
    run = fn -> Nx.Defn.jit_apply(fun, [params, on(inputs, backend)], options(compiler)) end
    # Bumblebee allocates the cache on the default backend.
    result = Nx.with_default_backend(backend, run)
    {Nx.to_list(result.token_ids), Nx.to_list(result.length)}
  end

  # On the CPU, merged operations are composed, with the same results. run_ahead: 0 runs speculative iterations from the
  # start; the last one is discarded.
  defp ways, do: compilers() ++ if(EMLX in compilers(), do: [{EMLX, merge: true, run_ahead: 0}], else: [])

  # A batch of two, the shorter one padded on the left, as Bumblebee's serving does.
  @inputs %{
    "input_ids" => Nx.tensor([[7, 12, 5, 30, 22, 9], [0, 0, 0, 14, 3, 28]]),
    "attention_mask" => Nx.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]]),
    "seed" => Nx.tensor([42, 7], type: :s64)
  }

  defp assert_same(name, config, opts \\ []) do
    info = Models.info(name, opts)
    expected = generate(info, @inputs, config, Nx.BinaryBackend, Nx.Defn.Evaluator)
    rewritten = EMLXBumblebee.rewrite(info)

    for compiler <- ways() do
      {result, dispatched} =
        record_blocks([Bumblebee.Block.SDPA], fn -> generate(rewritten, @inputs, config, EMLX.Backend, compiler) end)

      assert result == expected
      assert dispatched != [] and Enum.all?(dispatched, &(&1.path == :fused))
    end

    {tokens, _lengths} = expected
    tokens
  end

  for name <- @decoders ++ @encoder_decoders do
    test "the rewritten model #{name} generates the same tokens, greedily and sampled" do
      name = unquote(name)
      greedy = assert_same(name, Models.generation(%{type: :greedy_search}))
      sampled = assert_same(name, Models.generation(%{type: :multinomial_sampling, top_p: 0.9}, temperature: 2.0))
      # Otherwise nothing was sampled, or the logits hardly distinguish tokens.
      assert greedy != sampled
      assert [greedy, sampled] |> List.flatten() |> Enum.uniq() |> length() > 4
    end
  end

  test "explain and telemetry agree that every norm, rotation and attention of Llama's compiled generation is fused" do
    blocks = [Bumblebee.Block.SDPA, Bumblebee.Block.RotaryEmbedding, Axon.Block.RMSNorm]
    info = Models.info(:llama_grouped_causal)
    rewritten = EMLXBumblebee.rewrite(info)

    table = EMLXBumblebee.explain(rewritten)
    explained = for block <- blocks, do: length(String.split(table, " #{inspect(block)} ")) - 1
    layers = info.spec.num_blocks
    assert explained == [layers, layers, 2 * layers + 1]
    assert table =~ "blocks: #{Enum.sum(explained)} of #{Enum.sum(explained)} layers"

    config = Models.generation(%{type: :greedy_search})
    expected = generate(info, @inputs, config, Nx.BinaryBackend, Nx.Defn.Evaluator)
    {result, dispatched} = record_blocks(blocks, fn -> generate(rewritten, @inputs, config, EMLX.Backend, EMLX) end)
    assert result == expected
    assert Enum.reject(dispatched, &(&1.path == :fused)) == []

    # The model is traced for the prompt, and once for all the tokens after it.
    assert for(block <- blocks, do: Enum.count(dispatched, &(&1.block == block))) == Enum.map(explained, &(2 * &1))
  end

  test "a rewritten model generates the same tokens with contrastive search, which repeats the cache" do
    assert_same(:gpt2, Models.generation(%{type: :contrastive_search, top_k: 3, alpha: 0.6}))
  end

  test "a rewritten model generates the same tokens for a prompt of one token, which only runs the loop" do
    info = Models.info(:llama)
    inputs = %{"input_ids" => Nx.tensor([[7]]), "seed" => Nx.tensor([1], type: :s64)}
    config = Models.generation(%{type: :greedy_search})
    expected = generate(info, inputs, config, Nx.BinaryBackend, Nx.Defn.Evaluator)

    for compiler <- ways(),
        do: assert(generate(EMLXBumblebee.rewrite(info), inputs, config, EMLX.Backend, compiler) == expected)
  end
end
