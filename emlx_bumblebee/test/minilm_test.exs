Code.require_file("../../examples/minilm/program.ex", __DIR__)

defmodule EMLXBumblebee.MiniLMTest do
  # The saved programs of examples/minilm, which script/demo runs without Bumblebee, compared with Bumblebee's model of
  # the same checkpoint.
  use ExUnit.Case, async: false

  import EMLXBumblebee.Compare

  alias EMLX.{Array, Program}

  @folder Path.expand("../../examples/minilm", __DIR__)
  @config %{
    architectures: ["BertModel"],
    model_type: "bert",
    hidden_act: "gelu",
    hidden_size: 384,
    intermediate_size: 1536,
    layer_norm_eps: 1.0e-12,
    max_position_embeddings: 512,
    num_attention_heads: 12,
    num_hidden_layers: 6,
    pad_token_id: 0,
    type_vocab_size: 2,
    vocab_size: 30_522
  }

  test "MiniLM's saved programs are equal to the output of compile.exs" do
    model = Bumblebee.build_model(MiniLM.Program.spec())

    for {name, model} <- [minilm: EMLXBumblebee.rewrite(model), minilm_composed: model] do
      saved = Program.load(Path.join(@folder, "#{name}.emlx"), device: :cpu)
      made = MiniLM.Program.compile(model)
      assert Program.inspect(saved, device: :cpu) == Program.inspect(made, device: :cpu), "run compile.exs again"
    end
  end

  test "MiniLM's saved programs have the outputs of Bumblebee's model" do
    # The checkpoint has 90 MB, so it is removed after the test.
    folder = Path.join(System.tmp_dir!(), "emlx_minilm_#{System.pid()}")
    File.mkdir_p!(folder)
    on_exit(fn -> File.rm_rf!(folder) end)

    programs =
      for name <- ["minilm", "minilm_composed"], do: Program.load(Path.join(@folder, name <> ".emlx"), device: :cpu)

    {_, [batch, length], _} = programs |> hd() |> Program.inputs() |> List.keyfind("input_ids", 0)

    weights =
      for {name, shape, :f32} <- Program.inputs(hd(programs)), into: %{}, do: {name, weight(name, List.to_tuple(shape))}

    File.write!(Path.join(folder, "config.json"), Jason.encode!(@config))
    EMLX.Safetensors.save(Path.join(folder, "model.safetensors"), weights)

    # The checkpoint has no pooler, and embeddings do not use one.
    load = fn ->
      Bumblebee.load_model({:local, folder},
        architecture: :base,
        backend: {EMLX.Backend, device: :cpu},
        log_params_diff: false
      )
    end

    {:ok, info} = load.()
    assert info.spec == MiniLM.Program.spec()

    lengths = Nx.iota({batch, 1}) |> Nx.multiply(7) |> Nx.remainder(length - 1) |> Nx.add(2)
    ids = Nx.iota({batch, length}) |> Nx.multiply(7919) |> Nx.remainder(30_000) |> Nx.as_type(:s32)
    mask = Nx.iota({batch, length}, axis: 1) |> Nx.less(lengths) |> Nx.as_type(:s32)
    inputs = %{"input_ids" => ids, "attention_mask" => mask}

    {_init, predict} = Axon.build(EMLXBumblebee.rewrite(info.model), compiler: Nx.Defn.Evaluator)
    hidden = predict.(info.params, on(inputs, {EMLX.Backend, device: :cpu})).hidden_state
    expected = hidden |> Nx.multiply(Nx.new_axis(mask, -1)) |> Nx.sum(axes: [1]) |> Bumblebee.Utils.Nx.normalize()

    arrays =
      Map.new(inputs, fn {name, t} -> {name, t |> on({EMLX.Backend, device: :cpu}) |> EMLX.Backend.to_array()} end)

    for program <- programs do
      [embeddings] = Program.run(program, Map.merge(weights, arrays), device: :cpu)
      assert_alike(Nx.tensor(Array.to_list(embeddings), type: :f32), on(expected, Nx.BinaryBackend))
    end
  end

  defp weight(name, shape) do
    key = Nx.Random.key(:erlang.phash2(name))
    backend = {EMLX.Backend, device: :cpu}
    draw = fn -> elem(Nx.Random.normal(on(key, backend), 0.0, 0.05, shape: shape), 0) end
    tensor = Nx.with_default_backend(backend, draw)
    tensor = if String.ends_with?(name, "LayerNorm.weight"), do: Nx.add(tensor, 1), else: tensor
    EMLX.Backend.to_array(tensor)
  end
end
