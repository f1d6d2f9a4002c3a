# Bumblebee's side of the suite: `mix run ../bench/peers/bumblebee_peer.exs cpu|gpu` in emlx_bumblebee, a VM of its own
# that has all three packages. Runs the models of the suite's checkpoints as Bumblebee has them, rewritten or not,
# compiled or by the evaluator. EMLX.Bench.Peer is the other end.
for file <- ~w(statistics measure inputs), do: Code.require_file("../suite/#{file}.ex", __DIR__)
Code.require_file("../suite/models/encoder.ex", __DIR__)
Code.require_file("server.ex", __DIR__)

defmodule EMLX.Bench.BumblebeePeer do
  alias Bumblebee.Text.{Generation, GenerationConfig}
  alias EMLX.Backend
  alias EMLX.Bench.{Encoder, Inputs, Measure, Server}

  def serve(device) do
    Nx.default_backend({Backend, device: device})

    Server.serve(%{device: device}, &answer/3)
  end

  defp answer("versions", [], cases), do: {Server.versions([:bumblebee, :axon]), cases}

  defp answer("define", [kind | options], cases) do
    options = Server.options(options)
    number = "#{map_size(cases)}-#{System.unique_integer([:positive])}"
    {cases, made} = define(kind, options, cases)
    {[number], Map.put(cases, number, made)}
  end

  defp answer("time", [number], cases) do
    case cases[number] do
      %{times: times} -> {times.(), cases}
      %{run: run} -> {[Measure.time(run)], cases}
    end
  end

  defp answer("sample", [number], cases), do: {cases[number].sample, cases}

  defp answer("drop", [number], cases) do
    cases = Map.delete(cases, number)
    # With the last case the model goes, too.
    cases = if Enum.any?(cases, &match?({"" <> _, _}, &1)), do: cases, else: Map.delete(cases, :loaded)
    :erlang.garbage_collect()
    EMLX.Memory.clear_cache()
    {[], cases}
  end

  # Several ways to generate have one model, which is loaded once.
  defp define("generate", options, cases) do
    key = {options["folder"], options["type"]}

    info =
      case cases do
        %{loaded: {^key, info}} -> info
        _ -> load(options, cases.device)
      end

    {Map.put(cases, :loaded, {key, info}), info |> changed(options) |> generation(options, cases.device)}
  end

  defp define(kind, options, cases), do: {cases, single(kind, options, cases.device)}

  defp single(kind, options, device) do
    opts = if kind == "encoder", do: [architecture: :base], else: []
    info = options |> load(device, opts) |> changed(options)
    {_init, predict} = Axon.build(info.model)
    inputs = inputs(options["inputs"], device)
    run = run(kind, predict, info, inputs, options, type(options), compiler(options["compiler"], device))
    first = Inputs.sample(run.())
    %{run: run, sample: first}
  end

  defp load(options, device, opts \\ []) do
    opts = [type: type(options), backend: {Backend, device: device}] ++ opts
    {:ok, info} = Bumblebee.load_model({:local, options["folder"]}, opts)
    info
  end

  defp type(options), do: Nx.Type.normalize!(String.to_existing_atom(options["type"]))

  defp changed(info, options) do
    info = if options["rewritten"] == "true", do: EMLXBumblebee.rewrite(info), else: info

    case options["bits"] do
      bits when bits in [nil, "16"] -> info
      bits -> EMLXBumblebee.quantize(info, bits: String.to_integer(bits), group_size: 64)
    end
  end

  # So many tokens of each row, none of which ends the text: the time of all, and that to the first.
  defp generation(info, options, device) do
    tokens = String.to_integer(options["tokens"])
    ahead = with "" <> steps <- options["run_ahead"], do: String.to_integer(steps)
    compiler = compiler(options["compiler"] || "emlx", device) ++ ways(options, ahead)
    ids = inputs(options["inputs"], device)["input_ids"]
    seeds = Nx.iota({Nx.axis_size(ids, 0)}, type: :s64)
    inputs = %{"input_ids" => ids, "attention_mask" => Nx.broadcast(Nx.tensor(1), ids), "seed" => seeds}

    [first, all] =
      for count <- [1, tokens] do
        limits = [max_new_tokens: count, pad_token_id: 0, eos_token_id: nil, strategy: strategy(options)]

        run =
          info.model
          |> Generation.build_generate(info.spec, struct!(GenerationConfig, limits))
          |> Nx.Defn.compile([info.params, inputs], compiler)

        fn -> run.(info.params, inputs).token_ids |> Nx.to_flat_list() end
      end

    %{times: fn -> [Measure.time(all), Measure.time(first)] end, sample: all.()}
  end

  defp strategy(%{"strategy" => "sampled"} = options) do
    top_k = String.to_integer(options["top_k"])
    %{type: :multinomial_sampling, top_k: top_k, top_p: String.to_float(options["top_p"])}
  end

  defp strategy(_options), do: %{type: :greedy_search}

  defp ways(%{"compiler" => "evaluator"}, _ahead), do: []
  defp ways(options, ahead), do: [merge: options["merge"] == "true", run_ahead: ahead]

  defp compiler("emlx", device), do: [compiler: EMLX, device: device, cache: false]
  defp compiler("evaluator", _device), do: [compiler: Nx.Defn.Evaluator]

  defp inputs(file, device) do
    for {name, array} <- EMLX.Safetensors.load(file, device: device), into: %{} do
      template = Nx.template(EMLX.Array.shape(array), EMLX.Array.dtype(array))
      {name, %{template | data: %Backend{array: array}}}
    end
  end

  defp run("encoder", predict, info, inputs, _options, _type, compiler) do
    embed = fn params, inputs -> Encoder.pool(predict.(params, inputs).hidden_state, inputs["attention_mask"]) end
    compiled = Nx.Defn.compile(embed, [info.params, inputs], compiler)
    fn -> compiled.(info.params, inputs) |> computed() end
  end

  defp run("prefill", predict, info, inputs, _options, _type, compiler) do
    # The suite's other sides are not padded here.
    inputs = %{inputs | "attention_mask" => Nx.broadcast(Nx.tensor(1), inputs["input_ids"])}

    compiled =
      Nx.Defn.compile(fn params, inputs -> predict.(params, inputs).logits end, [info.params, inputs], compiler)

    fn -> compiled.(info.params, inputs) |> computed() end
  end

  # A step with what the step before left; at the cache's end it starts again where it began.
  defp run("decode", predict, info, inputs, options, type, compiler) do
    [length, start] = for name <- ["length", "offset"], do: String.to_integer(options[name])
    {batch, 1} = Nx.shape(inputs["input_ids"])
    cache = Bumblebee.Text.Generation.init_cache(info.spec, batch, length, %{})
    cast = &if(Nx.Type.float?(Nx.type(&1)), do: Nx.as_type(&1, type), else: &1)
    cache = Bumblebee.Utils.Nx.map(cache, cast)
    seen = Nx.as_type(Nx.less(Nx.iota({batch, length}, axis: 1), start), Nx.type(cache.attention_mask))
    first = %{cache | offset: Nx.tensor(start, type: Nx.type(cache.offset)), attention_mask: seen}
    one = Nx.broadcast(Nx.tensor(1), {batch, 1})

    given = fn position, cache ->
      %{
        "input_ids" => inputs["input_ids"],
        "attention_mask" => one,
        "position_ids" => Nx.broadcast(Nx.tensor(position), {batch, 1}),
        "cache" => cache
      }
    end

    step = fn params, inputs ->
      outputs = predict.(params, inputs)
      {outputs.logits, outputs.cache}
    end

    compiled = Nx.Defn.compile(step, [info.params, given.(start, first)], compiler)
    state = make_ref()

    fn ->
      {position, cache} = Process.get(state, {start, first})
      {logits, cache} = compiled.(info.params, given.(position, cache))
      EMLX.eval(Enum.map([logits | tensors(cache)], &Backend.to_array/1))
      Process.put(state, if(position + 1 == length, do: {start, first}, else: {position + 1, cache}))
      Backend.to_array(logits)
    end
  end

  defp tensors(container), do: Nx.Defn.Composite.flatten_list([container])

  defp computed(tensor), do: tensor |> Backend.to_array() |> EMLX.eval()
end

[device] = System.argv()
EMLX.Bench.BumblebeePeer.serve(String.to_existing_atom(device))
