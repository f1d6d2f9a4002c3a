# Compares Axon's norms with the rewritten ones in the evaluator: `mix run bench/norms.exs` in emlx_axon. For each
# layer, type and axis it prints both times for a {8, 512, 1024} tensor, the median of 9 runs, and the ratio.
# EMLX_BENCH_DEVICE=gpu runs on the GPU.
Nx.default_backend({EMLX.Backend, device: String.to_existing_atom(System.get_env("EMLX_BENCH_DEVICE", "cpu"))})

median = fn fun ->
  fun.()
  times = for _ <- 1..9, do: fun |> :timer.tc() |> elem(0)
  times |> Enum.sort() |> Enum.at(4) |> Kernel./(1000)
end

{numbers, _key} = Nx.Random.normal(Nx.Random.key(1), shape: {8, 512, 1024})

for {name, layer} <- [layer_norm: &Axon.layer_norm/2, rms_norm: &Axon.rms_norm/2],
    type <- [:f32, :bf16],
    axis <- [-1, 1] do
  x = Nx.as_type(numbers, type)
  policy = Axon.MixedPrecision.create_policy(params: Nx.type(x))
  model = layer.(Axon.input("x"), channel_index: axis) |> Axon.MixedPrecision.apply_policy(policy, fn _ -> true end)
  {init, _predict} = Axon.build(model)
  state = init.(x, Axon.ModelState.empty())

  [own, rewritten] =
    for model <- [model, EMLXAxon.rewrite(model)] do
      {_init, predict} = Axon.build(model)
      median.(fn -> state |> predict.(x) |> Nx.sum() |> Nx.to_number() end)
    end

  times = Enum.map_join([own, rewritten], " ", &String.pad_leading("#{Float.round(&1, 1)} ms", 10))
  ratio = Float.round(own / rewritten, 2)
  IO.puts(String.pad_trailing("#{name} #{type} axis #{axis}", 24) <> times <> "   #{ratio} times as fast")
end
