defmodule EMLXBumblebee.ReferencesTest do
  # Checkpoints loaded by Bumblebee, rewritten and on EMLX, compared with the outputs of PyTorch and transformers; see
  # test/references/generate.py.
  #
  # Each test asserts its row of REFERENCES.md. To regenerate the file:
  #
  #   EMLX_CONFORMANCE=write mix test test/references_test.exs
  use ExUnit.Case, async: true

  import EMLXBumblebee.Compare

  alias Bumblebee.{Diffusion, Text, Vision}
  alias EMLXBumblebee.{References, Table}

  # Relative to the largest element of an output. Rounding errors are about a tenth of this.
  @tolerance 1.0e-5

  for name <- References.names() do
    test "the reference checkpoint #{name} has transformers' outputs, rewritten and not" do
      {counts, opts} = References.fetch!(unquote(name))
      reference = References.read(unquote(name))

      if opts[:differs], do: assert_differs(unquote(name), reference)

      {overrides, more, differing} =
        case opts[:differs] do
          nil -> {[], %{}, []}
          {_why, :position_ids} -> {[], %{"position_ids" => position_ids(reference.inputs)}, []}
          {_why, [name | _] = names} when is_binary(name) -> {[], %{}, names}
          {_why, overrides} -> {overrides, %{}, []}
        end

      info = References.load(unquote(name), overrides)
      inputs = reference.inputs |> References.inputs(info.spec) |> Map.merge(more)
      compared = %{reference | outputs: Map.drop(reference.outputs, differing)}
      outputs = predict(info, inputs, Nx.BinaryBackend, Nx.Defn.Evaluator).(info.params)
      assert_reference(outputs, compared, inputs, info.spec, "as it is")

      rewritten = EMLXBumblebee.rewrite(info)
      params = on_emlx(info.params)

      predict =
        for compiler <- compilers(), reduce: nil do
          _previous ->
            {{predict, outputs}, dispatched} =
              record_blocks(blocks(), fn ->
                predict = predict(rewritten, inputs, EMLX.Backend, compiler)
                {predict, predict.(params)}
              end)

            assert_reference(outputs, compared, inputs, info.spec, inspect(compiler))
            assert {counts(dispatched), Enum.reject(dispatched, &(&1.path == :fused))} == {counts, []}
            predict
        end

      if differing == [], do: assert_seen(predict, params, compared, inputs, info.spec)
      if reference.generated, do: assert_generated(unquote(name), info, rewritten, reference)

      row = References.row(unquote(name), reference, compilers(), differing, @tolerance)
      Table.check(References.table(), unquote(name), row)
    end
  end

  test "REFERENCES.md has a row for each checkpoint, and no other" do
    Table.check(References.table())
    assert References.root() |> File.ls!() |> Enum.sort() == References.names() |> Enum.map(&to_string/1) |> Enum.sort()
  end

  @not_here [
    {Diffusion.ControlNet, :base},
    {Diffusion.StableDiffusion.SafetyChecker, :base},
    {Diffusion.UNet2DConditional, :base},
    {Diffusion.VaeKl, :base},
    {Diffusion.VaeKl, :decoder},
    {Diffusion.VaeKl, :encoder},
    {Text.Albert, :for_pre_training},
    {Text.Bert, :for_pre_training},
    {Text.BlipText, :base},
    {Text.BlipText, :for_causal_language_modeling},
    {Vision.BlipVision, :base}
  ]

  test "every kind of model in Bumblebee has a reference checkpoint, except those that REFERENCES.md names" do
    {:ok, modules} = :application.get_key(:bumblebee, :modules)

    kinds =
      for module <- modules,
          Code.ensure_loaded?(module),
          spec?(module),
          kind <- module.architectures(),
          do: {module, kind}

    here =
      for name <- References.names(),
          spec = References.load(name).spec,
          uniq: true,
          do: {spec.__struct__, spec.architecture}

    assert here -- kinds == []
    assert Enum.sort(kinds -- here) == @not_here
  end

  defp spec?(module), do: Bumblebee.ModelSpec in for({:behaviour, [one]} <- module.module_info(:attributes), do: one)

  # REFERENCES.md lists these, too.
  describe "Bumblebee does not" do
    @describetag :tmp_dir

    test "Bumblebee does not read these parameters under the names that transformers saves", %{tmp_dir: folder} do
      for {name, shared} <- [
            bart: ~w(model.encoder.embed_tokens.weight model.decoder.embed_tokens.weight lm_head.weight),
            bert_masked_lm: ~w(cls.predictions.decoder.weight cls.predictions.decoder.bias),
            phi_tokens: ~w(classifier.weight classifier.bias),
            phi3_tokens: ~w(classifier.weight classifier.bias)
          ] do
        File.cp_r!(References.folder(name), folder)
        file = Path.join(folder, "model.safetensors")
        Safetensors.write!(file, file |> Safetensors.read!() |> Map.drop(shared))
        {:ok, info} = Bumblebee.load_model({:local, folder}, log_params_diff: false)
        reference = References.read(name)
        inputs = References.inputs(reference.inputs, info.spec)
        outputs = predict(info, inputs, Nx.BinaryBackend, Nx.Defn.Evaluator).(info.params)
        assert furthest(outputs, reference, inputs, info.spec) > @tolerance
      end
    end

    test "Bumblebee does not load parameters that only an optional input needs" do
      for {name, optional} <- [
            vit_masked_images: %{"patch_mask" => Nx.tensor([[1, 0, 0, 1], [0, 1, 0, 0]])},
            deit_masked_images: %{"patch_mask" => Nx.tensor([[1, 0, 0, 1], [0, 1, 0, 0]])},
            bart_causal_lm: %{"encoder_hidden_state" => Nx.broadcast(0.5, {2, 5, 8})},
            mbart_causal_lm: %{"encoder_hidden_state" => Nx.broadcast(0.5, {2, 5, 8})}
          ] do
        info = References.load(name)
        inputs = name |> References.read() |> Map.fetch!(:inputs) |> References.inputs(info.spec) |> Map.merge(optional)

        assert_raise ArgumentError, ~r/"(embedder.mask_tokens|decoder.blocks.0.cross_attention.key)"/, fn ->
          predict(info, inputs, Nx.BinaryBackend, Nx.Defn.Evaluator).(info.params)
        end
      end
    end

    test "Bumblebee does not load Gemma with gelu_pytorch_tanh" do
      assert_raise Axon.CompileError, ~r/gelu_approx_tanh/, fn ->
        References.load(:gemma, activation: :gelu_approx_tanh)
      end
    end

    test "Bumblebee has 32 groups of channels in some norms of the UNet and the autoencoder, whatever is configured" do
      for {module, more} <- [{Diffusion.UNet2DConditional, [group_norm_num_groups: 4]}, {Diffusion.VaeKl, []}] do
        spec = Bumblebee.configure(module, [hidden_sizes: [8, 8, 8, 8], sample_size: 8] ++ more)
        {init, _predict} = spec |> Bumblebee.build_model() |> Axon.build(compiler: Nx.Defn.Evaluator)
        inputs = module.input_template(spec)
        assert_raise Axon.CompileError, ~r/, 32, 0\}/, fn -> init.(inputs, Axon.ModelState.empty()) end
      end
    end

    test "Bumblebee does not read LayoutLM's max_2d_position_embeddings" do
      {:ok, spec} = Bumblebee.load_spec({:local, References.folder(:layout_lm)})
      assert spec.max_spatial_positions != 16
    end
  end

  # The positions of RoBERTa and MPNet in transformers: padding has position 1, and tokens start after it.
  defp position_ids(%{"input_ids" => ids}) do
    mask = Nx.not_equal(ids, 1)
    mask |> Nx.cumulative_sum(axis: 1) |> Nx.multiply(mask) |> Nx.add(1)
  end

  # Returns a function of the parameters.
  defp predict(info, inputs, backend, compiler) do
    {_init, predict} = Axon.build(info.model, compiler: Nx.Defn.Evaluator)
    inputs = on(inputs, backend)

    if compiler == EMLX do
      templates = [info.params, inputs]
      compiled = Nx.Defn.compile(predict, templates, options(EMLX))
      &compiled.(&1, inputs)
    else
      &predict.(&1, inputs)
    end
  end

  defp on_emlx(state), do: %{state | data: on(state.data, EMLX.Backend)}

  defp assert_reference(outputs, reference, inputs, spec, path) do
    for {name, expected} <- reference.outputs do
      {actual, mask} = References.output(name, outputs, inputs, spec)
      assert {path, name, actual.shape} == {path, name, expected.shape}
      apart = References.apart(actual, expected, mask)
      assert is_float(apart) and apart <= @tolerance, "#{path}: #{name} differs by #{inspect(apart)} from transformers'"
    end
  end

  # Asserts that the model as Bumblebee loads it differs from transformers', so that REFERENCES.md is up to date, and
  # that the rewritten model has its outputs.
  defp assert_differs(name, reference) do
    info = References.load(name)
    inputs = References.inputs(reference.inputs, info.spec)
    outputs = predict(info, inputs, Nx.BinaryBackend, Nx.Defn.Evaluator).(info.params)
    assert furthest(outputs, reference, inputs, info.spec) > @tolerance

    for compiler <- compilers() do
      rewritten = predict(EMLXBumblebee.rewrite(info), inputs, EMLX.Backend, compiler)
      assert_alike(rewritten.(on_emlx(info.params)), outputs, inspect(compiler))
    end
  end

  # Asserts that the comparison detects a change of about a tenth in any parameter.
  defp assert_seen(predict, params, reference, inputs, spec) do
    for {layer, parameters} <- params.data, {parameter, value} <- parameters, not unseen?(layer, parameter, spec) do
      factors = value.shape |> Nx.iota(type: :f32) |> Nx.sin() |> Nx.multiply(0.1) |> Nx.add(1.1)
      changed = put_in(params.data[layer][parameter], Nx.multiply(value, on(factors, EMLX.Backend)))
      apart = furthest(predict.(changed), reference, inputs, spec)
      assert apart > @tolerance, "#{layer}.#{parameter} is not seen"
    end
  end

  # No checkpoint has these parameters.
  defp unseen?("pooler.output", _parameter, %Text.Distilbert{}), do: true
  defp unseen?("sequence_classification_head.output", "bias", %Text.GptNeoX{}), do: true
  # The bias of the keys adds the same number to all scores of a query, unless keys are rotated.
  defp unseen?(_layer, _parameter, %module{}) when module in [Text.GptNeoX, Text.Phi], do: false

  defp unseen?(layer, parameter, spec),
    do: (String.ends_with?(layer, ".key") and parameter == "bias") or across?(layer, spec)

  # A decoder alone has no encoder for cross-attention.
  defp across?(layer, %{architecture: :for_causal_language_modeling}), do: layer =~ "cross_attention"
  defp across?(_layer, _spec), do: false

  defp furthest(outputs, reference, inputs, spec) do
    reference.outputs
    |> Enum.map(fn {name, expected} ->
      {actual, mask} = References.output(name, outputs, inputs, spec)
      apart = References.apart(actual, expected, mask)
      assert is_float(apart), "#{name} has #{apart}"
      apart
    end)
    |> Enum.max()
  end

  defp assert_generated(name, info, rewritten, reference) do
    {:ok, config} = Bumblebee.load_generation_config({:local, References.folder(name)})
    {_batch, length} = reference.generated.shape
    config = Bumblebee.configure(config, max_new_tokens: length, strategy: %{type: :greedy_search})
    inputs = Map.put(reference.prompt, "seed", Nx.tensor([0, 0], type: :s64))
    expected = Nx.to_list(reference.generated)
    assert {"as it is", generate(info, inputs, config, Nx.BinaryBackend, Nx.Defn.Evaluator)} == {"as it is", expected}

    for compiler <- compilers() do
      {tokens, dispatched} =
        record_blocks(blocks(), fn -> generate(rewritten, inputs, config, EMLX.Backend, compiler) end)

      assert {compiler, tokens} == {compiler, expected}
      assert dispatched != [] and Enum.all?(dispatched, &(&1.path == :fused))
    end
  end

  defp generate(info, inputs, config, backend, compiler) do
    fun = Text.Generation.build_generate(info.model, info.spec, config)
    params = %{info.params | data: on(info.params.data, backend)}
    run = fn -> Nx.Defn.jit_apply(fun, [params, on(inputs, backend)], options(compiler)) end
    # Bumblebee allocates the cache on the default backend.
    Nx.to_list(Nx.with_default_backend(backend, run).token_ids)
  end
end
