# Compares Bumblebee's models with the rewritten ones: `mix run bench/models.exs` in emlx_bumblebee. For each model it
# prints both times of a forward pass, or of a generation step with a cache, the median of 5 runs, and the ratio.
# Parameters are random. EMLX_BENCH_DEVICE=gpu runs on the GPU, EMLX_BENCH_TYPE=bf16 in bf16.
# EMLX_BENCH_COMPILER=emlx compiles with EMLX; the default is the evaluator.
device = String.to_existing_atom(System.get_env("EMLX_BENCH_DEVICE", "cpu"))
Nx.default_backend({EMLX.Backend, device: device})
type = Nx.Type.normalize!(String.to_existing_atom(System.get_env("EMLX_BENCH_TYPE", "f32")))
compiler = if System.get_env("EMLX_BENCH_COMPILER") == "emlx", do: EMLX, else: Nx.Defn.Evaluator

small = [vocab_size: 1024, hidden_size: 512, num_blocks: 4, num_attention_heads: 8, intermediate_size: 1408]

specs = [
  bert: {Bumblebee.Text.Bert, small},
  gpt2: {Bumblebee.Text.Gpt2, [architecture: :for_causal_language_modeling] ++ small},
  llama: {Bumblebee.Text.Llama, [architecture: :for_causal_language_modeling, num_key_value_heads: 2] ++ small},
  qwen3:
    {Bumblebee.Text.Qwen3,
     [architecture: :for_causal_language_modeling, num_key_value_heads: 2, attention_head_size: 64] ++ small}
]

median = fn fun ->
  fun.()
  times = for _ <- 1..5, do: fun |> :timer.tc() |> elem(0)
  times |> Enum.sort() |> Enum.at(2) |> Kernel./(1000)
end

# Reading the sum forces the computation.
forward = fn model, state, inputs ->
  {_init, predict} = Axon.build(model, compiler: compiler)

  fn ->
    output = predict.(state, inputs)
    tensor = output[:logits] || output.hidden_state
    tensor |> Nx.sum() |> Nx.to_number()
  end
end

for {name, {module, opts}} <- specs do
  spec = Bumblebee.configure(module, opts)
  model = Bumblebee.build_model(spec, type: type)
  {init, _predict} = Axon.build(model, seed: 1, compiler: Nx.Defn.Evaluator)
  state = init.(%{"input_ids" => Nx.template({1, 1}, :u32)}, Axon.ModelState.empty())
  ids = fn batch, length -> {batch, length} |> Nx.iota() |> Nx.multiply(17) |> Nx.remainder(1000) end

  prompts =
    for {batch, length} <- [{1, 128}, {1, 512}] do
      {"#{batch} x #{length}",
       %{"input_ids" => ids.(batch, length), "attention_mask" => Nx.broadcast(1, {batch, length})}}
    end

  step =
    if spec.architecture == :for_causal_language_modeling do
      for length <- [256, 2048] do
        cache = Bumblebee.Text.Generation.init_cache(spec, 1, length, %{})
        cast = &if(Nx.Type.float?(Nx.type(&1)), do: Nx.as_type(&1, type), else: &1)
        cache = %{Bumblebee.Utils.Nx.map(cache, cast) | offset: Nx.tensor(div(length, 2))}
        one = %{"input_ids" => ids.(1, 1), "attention_mask" => Nx.broadcast(1, {1, 1}), "cache" => cache}
        positions = if module == Bumblebee.Text.Gpt2, do: 100, else: div(length, 2)
        {"1 token, cache of #{length}", Map.put(one, "position_ids", Nx.tensor([[positions]]))}
      end
    else
      []
    end

  for {what, inputs} <- prompts ++ step do
    [own, rewritten] =
      for model <- [model, EMLXBumblebee.rewrite(model)], do: median.(forward.(model, state, inputs))

    times = Enum.map_join([own, rewritten], " ", &String.pad_leading("#{Float.round(&1, 1)} ms", 10))
    ratio = Float.round(own / rewritten, 2)
    IO.puts(String.pad_trailing("#{name} #{what}", 32) <> times <> "   #{ratio} times as fast")
  end
end
