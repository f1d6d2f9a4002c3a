defmodule EMLXBumblebee.RewriteTest do
  # Which layers the rewrite replaces, which it does not, and what it must not change.
  use ExUnit.Case, async: true

  import EMLXBumblebee.Compare

  alias Bumblebee.Block.SDPA
  alias Bumblebee.Layers
  alias EMLXBumblebee.{Explain, Models}

  @evaluator [compiler: Nx.Defn.Evaluator]

  defp predict(info, inputs, opts \\ []),
    do: Axon.predict(info.model, info.params, inputs, Keyword.merge(@evaluator, opts))

  defp on_emlx(info) do
    %{EMLXBumblebee.rewrite(info) | params: %{info.params | data: on(info.params.data, EMLX.Backend)}}
  end

  defp inputs(name) do
    {spec, kind, _counts} = Models.fetch!(name)
    Models.inputs(kind, spec)
  end

  defp rows(model), do: for({_name, what, how} <- Explain.rows(model), do: {what, how})

  defp attention(opts \\ []) do
    [query, key, value] = for name <- ~w(query key value), do: Axon.input(name)
    none = Layers.none()
    {output, weights} = Layers.attention(query, key, value, none, none, none, none, opts)
    {output, weights}
  end

  describe "on another backend" do
    for name <-
          ~w(bert gpt2_with_cross_attention gpt_neo_x llama_grouped gemma3 phi3_longrope t5 swin mpnet modernbert)a do
      test "the rewritten model #{name} has exactly the same outputs on Nx.BinaryBackend" do
        info = Models.info(unquote(name))
        inputs = inputs(unquote(name))
        assert predict(EMLXBumblebee.rewrite(info), inputs) == predict(info, inputs)
      end
    end

    test "rewritten models have exactly the same outputs on Nx.BinaryBackend in bf16" do
      for name <- [:llama, :modernbert, :gemma] do
        {spec, _kind, _counts} = Models.fetch!(name)
        info = Models.info(name)
        info = %{info | model: Bumblebee.build_model(spec, type: :bf16), params: Models.as_type(info.params, :bf16)}
        inputs = inputs(name)
        assert predict(EMLXBumblebee.rewrite(info), inputs) == predict(info, inputs)
      end
    end
  end

  describe "training" do
    test "a rewritten model in training has the same output and the same state, with dropout" do
      {spec, kind, _counts} = Models.fetch!(:bert)
      spec = Bumblebee.configure(spec, dropout_rate: 0.4, attention_dropout_rate: 0.3)
      inputs = Models.inputs(kind, spec)
      model = Bumblebee.build_model(spec)

      [one, other] =
        for model <- [model, EMLXBumblebee.rewrite(model)] do
          {init, predict} = Axon.build(model, [mode: :train, seed: 11] ++ @evaluator)
          state = init.(inputs, Axon.ModelState.empty())
          predict.(state, inputs)
        end

      assert one.state != %{}
      assert other == one
    end

    test "the gradients of a rewritten model are the original's" do
      for name <- [:llama_grouped, :modernbert, :bert] do
        info = Models.info(name)
        inputs = inputs(name)

        loss = fn model ->
          {_init, predict} = Axon.build(model, @evaluator)

          fn params, inputs ->
            output = predict.(%{info.params | data: params}, inputs).hidden_state
            output |> Nx.multiply(output) |> Nx.mean()
          end
        end

        gradient = fn model, backend, compiler ->
          arguments = [on(info.params.data, backend), on(inputs, backend)]
          fun = fn params, inputs -> Nx.Defn.grad(params, &loss.(model).(&1, inputs)) end
          Nx.with_default_backend(backend, fn -> Nx.Defn.jit_apply(fun, arguments, options(compiler)) end)
        end

        expected = gradient.(info.model, Nx.BinaryBackend, Nx.Defn.Evaluator)

        for compiler <- compilers(),
            do: assert_alike(gradient.(EMLXBumblebee.rewrite(info.model), EMLX.Backend, compiler), expected, "#{name}")
      end
    end
  end

  describe "inputs of models" do
    test "a rewritten model takes position ids in any order" do
      info = Models.info(:llama_grouped)
      positions = Nx.tensor([[6, 0, 1, 5, 2, 2, 3], [0, 1, 2, 3, 4, 5, 6]])
      inputs = Map.put(inputs(:llama_grouped), "position_ids", positions)
      expected = predict(info, inputs)
      assert expected != predict(info, Map.delete(inputs, "position_ids"))

      for compiler <- compilers(),
          do: assert_alike(predict(on_emlx(info), on(inputs, EMLX.Backend), options(compiler)), expected)
    end

    test "a rewritten model with a head mask composes its attention" do
      info = Models.info(:bert)
      heads = Nx.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.5, 1.0]])
      inputs = Map.put(inputs(:bert), "attention_head_mask", heads)
      expected = predict(info, inputs)

      for compiler <- compilers() do
        run = fn -> predict(on_emlx(info), on(inputs, EMLX.Backend), options(compiler)) end
        assert {result, [dispatched, dispatched]} = record_blocks([SDPA], run)
        assert dispatched == %{block: SDPA, path: :composed, reason: "the kernel does not support a head mask"}
        assert_alike(result, expected)
      end
    end

    test "a rewritten model outputs attention weights and hidden states" do
      for name <- [:llama_grouped, :swin, :bert] do
        info = Models.info(name)
        inputs = inputs(name)
        options = [output_attentions: true, output_hidden_states: true]
        expected = predict(info, inputs, global_layer_options: options)
        assert is_tuple(expected.attentions) and is_tuple(expected.hidden_states)

        for compiler <- compilers() do
          run = fn ->
            predict(on_emlx(info), on(inputs, EMLX.Backend), [global_layer_options: options] ++ options(compiler))
          end

          {result, dispatched} = record_blocks([SDPA], run)
          assert_alike(result, expected)
          assert dispatched != [] and Enum.all?(dispatched, &(&1.reason =~ "the attention weights are an output"))
        end
      end
    end

    test "a rewritten model without any mask uses causal masking alone" do
      info = Models.info(:gpt2)
      inputs = Map.take(inputs(:gpt2), ["input_ids"])
      expected = predict(info, inputs)

      for compiler <- compilers(),
          do: assert_alike(predict(on_emlx(info), on(inputs, EMLX.Backend), options(compiler)), expected)
    end
  end

  describe "leaves" do
    test "attention with a hook on its weights is not fused, and the hook is called" do
      {output, weights} = attention()
      [id] = weights.nodes[weights.output].parent
      pid = self()
      model = update_in(output.nodes[id], &%{&1 | hooks: [{:forward, :both, fn w -> send(pid, {:weights, w}) end}]})
      assert rows(EMLXBumblebee.rewrite(model)) == [{{:left, SDPA}, "a hook looks at the attention weights"}]

      tensor = Nx.iota({1, 2, 1, 2}, type: :f32)
      inputs = %{"query" => tensor, "key" => tensor, "value" => tensor}
      Axon.predict(EMLXBumblebee.rewrite(model), Axon.ModelState.empty(), inputs, @evaluator)
      assert_received {:weights, %Nx.Tensor{}}
    end

    test "attention whose nodes have different precision policies is not rewritten" do
      {output, weights} = attention()
      [id] = weights.nodes[weights.output].parent
      policy = Axon.MixedPrecision.create_policy(compute: {:bf, 16})
      model = update_in(output.nodes[id], &%{&1 | policy: policy})

      assert [{{:left, SDPA}, "weights and output have different precision policies"}] =
               rows(EMLXBumblebee.rewrite(model))
    end

    test "rewrite does not replace layers that :only does not name" do
      model = Models.info(:llama).model

      kinds = fn only ->
        for {_, {:block, block}, _} <- Explain.rows(EMLXBumblebee.rewrite(model, only: only)), uniq: true, do: block
      end

      assert kinds.([:attention]) == [SDPA]
      assert kinds.([:rotary_embedding]) == [Bumblebee.Block.RotaryEmbedding]
      assert kinds.([:rms_norm]) == [Axon.Block.RMSNorm]
      assert kinds.([:layer_norm]) == []
      assert kinds.([]) == []
    end
  end

  @tag skip: System.get_env("EMLX_TEST_DEVICE") == "gpu" && "a GPU has no f64"
  test "a composed block does not run the default compiler, which may be compiling already" do
    query = Nx.iota({1, 3, 2, 4}, type: :f64)
    expected = EMLXBumblebee.attention(query, query, query, causal: true)
    before = Nx.Defn.default_options(compiler: EMLX.NoCompiler)

    try do
      run = fn -> query |> on(EMLX.Backend) |> then(&EMLXBumblebee.attention(&1, &1, &1, causal: true)) end
      assert {result, [%{path: :composed}]} = record_blocks([SDPA], run)
      assert_alike(result, expected)
    after
      Nx.Defn.default_options(before)
    end
  end

  test "EMLXAxon.rewrite/2 of a model of Bumblebee names this package's rewrite/2 in a warning" do
    info = Models.info(:bert)
    warning = ExUnit.CaptureIO.capture_io(:stderr, fn -> EMLXAxon.rewrite(info.model) end)
    assert warning =~ ~r/EMLXAxon.rewrite\/2 leaves \d+ layers of Bumblebee as they are. EMLXBumblebee.rewrite\/2/

    # There is no warning for a model that this package has rewritten, nor while it rewrites one.
    once = EMLXBumblebee.rewrite(info.model)
    assert ExUnit.CaptureIO.capture_io(:stderr, fn -> EMLXBumblebee.rewrite(info.model) end) == ""
    assert ExUnit.CaptureIO.capture_io(:stderr, fn -> EMLXAxon.rewrite(once) end) == ""
  end

  test "rewriting a model a second time changes nothing" do
    for name <- [:llama_grouped, :bert, :modernbert] do
      info = Models.info(name)
      once = EMLXBumblebee.rewrite(info.model)
      assert EMLXBumblebee.rewrite(once) == once
    end
  end

  test "rewrite and explain take a model or Bumblebee's map of one, and nothing else" do
    info = Models.info(:bert)
    assert %{spec: spec, params: params, model: %Axon{}} = EMLXBumblebee.rewrite(info)
    assert {spec, params} == {info.spec, info.params}

    for wrong <- [nil, %{}, %{model: 1}, {info.model, 1}] do
      assert_raise ArgumentError, ~r/rewrite: an Axon model is needed/, fn -> EMLXBumblebee.rewrite(wrong) end
      assert_raise ArgumentError, ~r/explain: an Axon model is needed/, fn -> EMLXBumblebee.explain(wrong) end
    end

    assert_raise ArgumentError, ~r/:only must be a list of some of/, fn ->
      EMLXBumblebee.rewrite(info, only: [:dense])
    end

    assert_raise ArgumentError, ~r/EMLXBumblebee.rewrite: unknown keys/, fn -> EMLXBumblebee.rewrite(info, other: 1) end
    assert_raise ArgumentError, ~r/:only .*got: 1/s, fn -> EMLXBumblebee.rewrite(info, only: 1) end
  end

  test "explain describes each layer before and after rewriting" do
    info = Models.info(:mistral)
    before = EMLXBumblebee.explain(info)
    assert before =~ "decoder.blocks.0.self_attention "
    assert before =~ "EMLXBumblebee.rewrite/2 makes it Bumblebee.Block.SDPA"
    assert before =~ "blocks: 0 of 9 layers"

    table = info |> EMLXBumblebee.rewrite() |> EMLXBumblebee.explain()

    assert table =~
             "causal, a window of 3 and 3, heads that are not repeated; composed only with output_attentions: true or a mask of heads"

    assert table =~ "blocks: 9 of 9 layers"

    assert Models.info(:bert) |> EMLXBumblebee.rewrite() |> EMLXBumblebee.explain() =~
             "  composed only with output_attentions: true, a mask of heads or dropout while training"

    assert EMLXBumblebee.explain(EMLXBumblebee.rewrite(Models.info(:bart))) =~ "the weights are computed, too"
    refute EMLXBumblebee.explain(EMLXBumblebee.rewrite(Models.info(:bert))) =~ "the weights are computed, too"
  end

  # A release of Bumblebee that builds its layers differently must be noticed.
  describe "does not compile where Bumblebee" do
    @source File.read!("lib/emlx_bumblebee/captures.ex")

    defp compile(from, to) do
      assert @source =~ from
      source = @source |> String.replace(from, to) |> String.replace("EMLXBumblebee.Captures", "EMLXBumblebee.Moved")
      assert_raise CompileError, fn -> Code.compile_string(source) end
    end

    test "emlx_bumblebee does not compile if Bumblebee builds a layer differently" do
      assert compile("Bumblebee.Layers.rms_norm(x, upcast: upcast, shift: 1.0)", "Axon.layer_norm(x)").description =~
               "builds rms_norm differently than emlx_bumblebee expects"

      assert compile("Bumblebee.Layers.attention(x, y, z,", "Bumblebee.Layers.attention(x, z, y,").description =~
               "builds attention differently than emlx_bumblebee expects"

      assert compile("Bumblebee.Layers.Decoder.cached_attention_key_values(x, y, z, none)", "{x, y, z}").description =~
               "builds cached_attention_key_values differently than emlx_bumblebee expects"
    end
  end
end
