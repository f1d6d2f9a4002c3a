# Axon's side of the suite: `mix run ../bench/peers/axon_peer.exs cpu|gpu` in emlx_axon, a VM of its own that has EMLX,
# Axon and EMLXAxon. Trains the models of the part `training`, compiled with EMLX. EMLX.Bench.Peer is the other end.
for file <- ~w(statistics measure), do: Code.require_file("../suite/#{file}.ex", __DIR__)
Code.require_file("server.ex", __DIR__)

defmodule EMLX.Bench.AxonPeer do
  alias EMLX.Backend
  alias EMLX.Bench.{Measure, Server}

  def serve(device) do
    Nx.default_backend({Backend, device: device})
    Server.serve(%{device: device}, &answer/3)
  end

  defp answer("versions", [], cases), do: {Server.versions([:axon, :polaris]), cases}

  defp answer("define", ["training" | options], cases) do
    number = "#{map_size(cases)}"
    {[number], Map.put(cases, number, training(Server.options(options), cases.device))}
  end

  defp answer("time", [number], cases), do: {[cases[number].time.()], cases}
  defp answer("sample", [number], cases), do: {cases[number].losses, cases}

  defp answer("peak", [number], cases), do: {[cases[number].peak.()], cases}

  defp answer("drop", [number], cases) do
    cases = Map.put(cases, number, nil)
    :erlang.garbage_collect()
    EMLX.Memory.clear_cache()
    {[], cases}
  end

  # Steps of Adam on one batch, each with what the one before left. Every sample begins with the initial weights, so that
  # no number becomes too small. The weights after the steps go to a file.
  defp training(options, device) do
    steps = String.to_integer(options["steps"])

    sizes =
      for {name, value} <- options,
          name in ~w(channels tokens size heads blocks),
          into: %{},
          do: {name, String.to_integer(value)}

    model = model(options["model"], sizes)
    model = if options["type"] == "bf16", do: half(model), else: model
    model = if options["rewritten"] == "true", do: EMLXAxon.rewrite(model), else: model
    batch = batch(options["inputs"], device)
    initial = options["file"] |> load(device) |> Enum.reduce(%{}, &parameter/2) |> Axon.ModelState.new()
    {init, step} = Axon.Loop.train_step(model, &loss/2, Polaris.Optimizers.adam(learning_rate: 1.0e-3))
    state = init.(batch, initial)
    compiled = Nx.Defn.compile(step, [batch, state], compiler: EMLX, device: device, cache: false)

    run = fn count ->
      Enum.reduce(1..count, state, fn _, state ->
        state = compiled.(batch, state)
        state |> tensors() |> Enum.map(&Backend.to_array/1) |> EMLX.eval()
        state
      end)
    end

    losses = for count <- [1, steps], do: run.(count).loss |> Nx.to_number()
    save(run.(steps).model_state.data, options["out"], device)
    peak = fn -> Measure.peak(fn -> run.(2) end) end
    %{time: fn -> Measure.time(fn -> run.(steps) end) / steps end, losses: losses, peak: peak}
  end

  defp loss(expected, logits) do
    logits = Nx.as_type(logits, :f32)
    Axon.Losses.categorical_cross_entropy(expected, logits, from_logits: true, reduction: :mean)
  end

  # The weights and the loss are f32, the layers between compute in bf16, but for norms.
  defp half(model) do
    policy = Axon.MixedPrecision.create_policy(params: {:f, 32}, compute: {:bf, 16}, output: {:bf, 16})
    Axon.MixedPrecision.apply_policy(model, policy, except: [:layer_norm])
  end

  # ---- models; xla_training.py, torch_training.py and mlx_training.py have the same ----

  defp model("mlp", _sizes) do
    Axon.input("x")
    |> Axon.dense(512, activation: :relu, name: "hidden_0")
    |> Axon.dense(256, activation: :relu, name: "hidden_1")
    |> Axon.dense(10, name: "head")
  end

  defp model("convolutional", %{"channels" => channels}) do
    Axon.input("x")
    |> Axon.conv(channels, kernel_size: 3, padding: :same, activation: :relu, name: "conv_0")
    |> Axon.max_pool(kernel_size: 2)
    |> Axon.conv(2 * channels, kernel_size: 3, padding: :same, activation: :relu, name: "conv_1")
    |> Axon.max_pool(kernel_size: 2)
    |> Axon.flatten()
    |> Axon.dense(128, activation: :relu, name: "hidden")
    |> Axon.dense(10, name: "head")
  end

  defp model("transformer", %{"tokens" => length, "size" => size} = sizes) do
    tokens = Axon.input("x")
    position = Axon.param("kernel", fn _ -> {length, size} end)

    embedded =
      Axon.layer(
        fn x, position, _ -> Nx.add(x, position) end,
        [Axon.embedding(tokens, 1000, size, name: "tokens"), position],
        name: "positions",
        op_name: :positions
      )

    Enum.reduce(0..(sizes["blocks"] - 1), embedded, &block(&2, "block_#{&1}", sizes))
    |> Axon.nx(&Nx.mean(&1, axes: [1]))
    |> Axon.dense(10, name: "head")
  end

  defp block(x, name, %{"size" => size, "heads" => heads}) do
    [q, k, v] = for part <- ~w(query key value), do: Axon.dense(x, size, name: "#{name}_#{part}")
    attention = Axon.layer(&attention/4, [q, k, v], name: "#{name}_attention", op_name: :attention, heads: heads)
    attention = Axon.dense(attention, size, name: "#{name}_output")
    x = x |> Axon.add(attention) |> Axon.layer_norm(name: "#{name}_norm_0")
    hidden = x |> Axon.dense(4 * size, activation: :gelu, name: "#{name}_up") |> Axon.dense(size, name: "#{name}_down")
    x |> Axon.add(hidden) |> Axon.layer_norm(name: "#{name}_norm_1")
  end

  defp attention(q, k, v, opts) do
    {batch, length, size} = Nx.shape(q)
    width = div(size, opts[:heads])

    [q, k, v] =
      for x <- [q, k, v],
          do: x |> Nx.reshape({batch, length, opts[:heads], width}) |> Nx.transpose(axes: [0, 2, 1, 3])

    scores = q |> Nx.dot([3], [0, 1], k, [3], [0, 1]) |> Nx.multiply(1 / :math.sqrt(width))

    scores
    |> Axon.Activations.softmax(axis: -1)
    |> Nx.dot([3], [0, 1], v, [2], [0, 1])
    |> Nx.transpose(axes: [0, 2, 1, 3])
    |> Nx.reshape({batch, length, size})
  end

  # ---- files ----

  # `layer.parameter` to the maps of a model's state.
  defp parameter({name, tensor}, state) do
    [layer, parameter] = String.split(name, ".")
    Map.update(state, layer, %{parameter => tensor}, &Map.put(&1, parameter, tensor))
  end

  defp batch(file, device) do
    %{"x" => x, "y" => y} = load(file, device)
    {%{"x" => x}, y}
  end

  defp load(file, device) do
    for {name, array} <- EMLX.Safetensors.load(file, device: device), into: %{} do
      template = Nx.template(EMLX.Array.shape(array), EMLX.Array.dtype(array))
      {name, %{template | data: %Backend{array: array}}}
    end
  end

  defp save(data, file, device) do
    arrays =
      for {layer, parameters} <- data, {name, tensor} <- parameters, do: {"#{layer}.#{name}", Backend.to_array(tensor)}

    EMLX.Safetensors.save(file, Map.new(arrays), device: device)
  end

  defp tensors(container), do: Nx.Defn.Composite.flatten_list([container])
end

[device] = System.argv()
EMLX.Bench.AxonPeer.serve(String.to_existing_atom(device))
