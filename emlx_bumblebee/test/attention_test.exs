defmodule EMLXBumblebee.AttentionTest do
  # Attention, compared with Bumblebee's layer on Nx.BinaryBackend.
  use ExUnit.Case, async: true

  import EMLXBumblebee.Compare

  alias Bumblebee.Block.SDPA
  alias Bumblebee.Layers

  @fused %{block: SDPA, path: :fused, reason: nil}

  defp random(shape, seed, type \\ :f32) do
    {tensor, _} = Nx.Random.normal(Nx.Random.key(seed), shape: shape)
    tensor |> Nx.backend_copy(Nx.BinaryBackend) |> Nx.as_type(type)
  end

  # Bumblebee's layer as a model. An absent input is Axon.None.
  defp layer(opts) do
    [query, key, value] = for name <- ~w(query key value), do: Axon.input(name)
    optional = for name <- ~w(key_mask head_mask bias offset), do: Axon.input(name, optional: true)
    [key_mask, head_mask, bias, offset] = optional
    {output, weights} = Layers.attention(query, key, value, key_mask, head_mask, bias, offset, opts)
    {output, Layers.output(%{output: output, attentions: weights})}
  end

  # Asserts that the rewritten layer on EMLX, with every compiler, returns the result of the layer on Nx.BinaryBackend.
  defp assert_same(inputs, opts, expected_path, build \\ [], tolerance \\ nil) do
    {model, whole} = layer(opts)
    model = if build == [], do: model, else: whole
    inputs = Map.reject(inputs, fn {_, tensor} -> tensor == nil end)
    build = [compiler: Nx.Defn.Evaluator] ++ build
    expected = Axon.predict(model, Axon.ModelState.empty(), inputs, build)

    for compiler <- compilers() do
      {result, dispatched} =
        record_blocks([SDPA], fn ->
          model
          |> EMLXBumblebee.rewrite()
          |> Axon.predict(Axon.ModelState.empty(), on(inputs, EMLX.Backend), Keyword.merge(build, options(compiler)))
        end)

      assert dispatched == [expected_path]
      assert_alike(result, expected, inspect({opts, Map.keys(inputs), compiler}), tolerance)
    end
  end

  # With left padding, the first queries of a causal row have no key at all.
  @key_mask Nx.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])

  defp inputs(type, queries \\ 5) do
    %{
      "query" => random({2, queries, 4, 8}, 1, type),
      "key" => random({2, 5, 4, 8}, 2, type),
      "value" => random({2, 5, 4, 8}, 3, type)
    }
  end

  for type <- [{:f, 32}, {:bf, 16}, {:f, 16}] do
    test "attention takes every combination of masks in #{Nx.Type.to_string(type)}" do
      type = unquote(Macro.escape(type))

      for causal <- [false, true],
          window <- [nil, {1, 2}],
          key_mask <- [nil, @key_mask, random({2, 1, 5, 5}, 4) |> Nx.greater(-0.5)],
          bias <- [nil, random({1, 4, 5, 5}, 5, type)] do
        assert_same(
          Map.merge(inputs(type), %{"key_mask" => key_mask, "bias" => bias}),
          [causal: causal, window_size: window],
          @fused
        )
      end
    end
  end

  test "attention takes fewer queries than keys, without and with an offset" do
    for queries <- [1, 3],
        offset <- [nil, Nx.tensor(0), Nx.tensor(2)],
        causal <- [false, true],
        window <- [nil, {1, 1}] do
      inputs = Map.merge(inputs(:f32, queries), %{"offset" => offset, "key_mask" => @key_mask})
      assert_same(inputs, [causal: causal, window_size: window], @fused)
      assert_same(Map.delete(inputs, "key_mask"), [causal: causal, window_size: window], @fused)
    end
  end

  test "attention takes any scale" do
    for scale <- [nil, 1, 0.3], type <- [:f32, :bf16], do: assert_same(inputs(type), [scale: scale], @fused)
  end

  test "attention takes values of another size than the keys', and broadcasts masks and biases" do
    inputs = %{inputs(:f32) | "value" => random({2, 5, 4, 3}, 6)}
    assert_same(inputs, [], @fused)
    assert_same(Map.put(inputs, "key_mask", random({2, 1, 1, 5}, 7) |> Nx.greater(0)), [causal: true], @fused)
    assert_same(Map.put(inputs, "key_mask", random({1, 4, 5, 5}, 7) |> Nx.greater(0)), [], @fused)
    assert_same(Map.put(inputs, "bias", random({2, 1, 5, 5}, 7)), [causal: true], @fused)
  end

  test "a bias of a wider type than the query's widens the result" do
    # The scores before the bias still have 16 bits.
    assert_same(
      Map.put(inputs(:bf16), "bias", random({1, 4, 5, 5}, 5, :f32)),
      [causal: true],
      @fused,
      [],
      tolerance({:bf, 16})
    )
  end

  test "attention takes large scores and large biases" do
    inputs = inputs(:f32)
    inputs = %{inputs | "query" => Nx.multiply(inputs["query"], 100), "key" => Nx.multiply(inputs["key"], 100)}
    assert_same(Map.put(inputs, "key_mask", @key_mask), [causal: true], @fused)

    masked = Nx.select(random({1, 4, 5, 5}, 5) |> Nx.greater(0.5), Nx.Constants.neg_infinity(), 0)
    assert_same(Map.put(inputs, "bias", masked), [], @fused)
    assert_same(Map.put(inputs, "bias", Nx.Constants.min_finite(:f32) |> Nx.broadcast({1, 1, 5, 5})), [], @fused)
  end

  describe "composed" do
    defp declined(reason), do: %{block: SDPA, path: :composed, reason: reason}

    test "attention with a head mask is composed" do
      reason = "the kernel does not support a head mask"
      assert_same(Map.put(inputs(:f32), "head_mask", Nx.tensor([1.0, 0.0, 0.5, 1.0])), [causal: true], declined(reason))
    end

    test "attention is composed if its weights are an output" do
      reason = "the attention weights are an output, which the kernel does not return"
      inputs = Map.put(inputs(:f32), "key_mask", @key_mask)
      assert_same(inputs, [causal: true], declined(reason), global_layer_options: [output_attentions: true])
      assert_same(inputs, [causal: true], @fused, global_layer_options: [output_attentions: false])
    end

    @tag skip: System.get_env("EMLX_TEST_DEVICE") == "gpu" && "a GPU has no f64"
    test "attention in f64 is composed" do
      assert_same(inputs(:f64), [causal: true], declined("the kernel computes in f32, an argument is f64"))
    end

    test "attention with dropout is composed while training, and fused at rate 0" do
      inputs = on(inputs(:f32), EMLX.Backend)

      for {rate, path} <- [
            {0.5, declined("the kernel does not support dropout of attention weights")},
            {0.0, @fused}
          ] do
        {model, _} = layer(dropout_rate: rate)
        model = EMLXBumblebee.rewrite(model)
        {init, predict} = Axon.build(model, mode: :train, seed: 1, compiler: Nx.Defn.Evaluator)
        state = init.(inputs, Axon.ModelState.empty())

        assert {%{prediction: prediction, state: state}, [^path]} =
                 record_blocks([SDPA], fn -> predict.(state, inputs) end)

        # The state of the dropout is the same in both cases.
        assert %{"dropout_0" => %{"key" => _}} = state
        assert Nx.shape(prediction) == {2, 5, 4, 8}
      end
    end
  end

  describe "attention/4" do
    defp attend(tensors, opts),
      do: EMLXBumblebee.attention(tensors["query"], tensors["key"], tensors["value"], opts)

    # Asserts equal results on Nx.BinaryBackend and on EMLX.
    defp assert_attention(inputs, opts) do
      expected = attend(inputs, opts)

      moved =
        Keyword.new(opts, fn {name, value} -> {name, with(%Nx.Tensor{} <- value, do: on(value, EMLX.Backend))} end)

      assert {result, [@fused]} = record_blocks([SDPA], fn -> attend(on(inputs, EMLX.Backend), moved) end)
      assert_alike(result, expected, inspect(opts))
      expected
    end

    test "attention/4 takes grouped heads" do
      whole = inputs(:f32)
      inputs = %{whole | "key" => whole["key"][[.., .., 0..1]], "value" => whole["value"][[.., .., 0..1]]}
      grouped = assert_attention(inputs, causal: true, key_mask: @key_mask)

      repeat = &Nx.take(&1, Nx.tensor([0, 0, 1, 1]), axis: 2)
      repeated = %{inputs | "key" => repeat.(inputs["key"]), "value" => repeat.(inputs["value"])}
      assert_alike(assert_attention(repeated, causal: true, key_mask: @key_mask), grouped)
    end

    test "attention/4 takes causal masking, windows and offsets without a key mask" do
      for causal <- [false, true],
          window <- [nil, {0, 1}, {2, 0}],
          offset <- [nil, Nx.tensor(1)],
          queries <- [1, 4, 5] do
        assert_attention(inputs(:f32, queries), causal: causal, window_size: window, offset: offset)
      end
    end

    test "attention/4 takes sinks" do
      sinks = Nx.tensor([-1.0, 0.0, 0.5, 3.0])

      for type <- [:f32, :bf16],
          mask <- [nil, @key_mask],
          causal <- [false, true],
          bias <- [nil, random({1, 4, 5, 5}, 5, type)] do
        assert_attention(inputs(type), sinks: Nx.as_type(sinks, type), key_mask: mask, causal: causal, bias: bias)
      end

      # A sink of minus infinity has no weight; one far above the scores has all of it.
      inputs = inputs(:f32)
      none = attend(inputs, sinks: Nx.broadcast(Nx.Constants.neg_infinity(), {4}))
      assert_alike(none, attend(inputs, []))
      assert_alike(attend(inputs, sinks: Nx.broadcast(1.0e4, {4})), Nx.multiply(none, 0))
    end

    test "attention/4 can be called in defn, and has a gradient" do
      inputs = inputs(:f32)

      for {backend, compiler} <- [{Nx.BinaryBackend, Nx.Defn.Evaluator} | Enum.map(compilers(), &{EMLX.Backend, &1})] do
        fun = fn inputs ->
          inputs |> attend(causal: true, key_mask: @key_mask) |> Nx.multiply(inputs["query"]) |> Nx.sum()
        end

        grad = Nx.Defn.jit_apply(&Nx.Defn.grad(&1, fun), [on(inputs, backend)], options(compiler))
        send(self(), {:grad, on(grad, Nx.BinaryBackend)})
      end

      assert_received {:grad, expected}

      for _ <- compilers() do
        assert_received {:grad, grad}
        assert_alike(grad, expected)
      end
    end

    test "attention/4 refuses arguments that do not fit, and names them" do
      inputs = inputs(:f32)
      refused = fn opts -> assert_raise(ArgumentError, fn -> attend(inputs, opts) end).message end

      assert refused.(key_mask: Nx.tensor([1, 1])) =~ "key_mask is {2}: it must be {batch, keys} or"
      assert refused.(sinks: Nx.tensor([1.0])) =~ "sinks is {1}: it must be {heads}"
      assert refused.(bias: Nx.broadcast(0.0, {1, 1, 1, 5})) =~ "bias is {1, 1, 1, 5}: it must be {batch | 1"
      assert refused.(offset: Nx.tensor([1])) =~ "offset is {1}: it must be a scalar"
      assert refused.(offset: 1.5) =~ "it must be an integer"
      assert refused.(causal: 1) =~ ":causal must be true or false, got: 1"
      assert refused.(window_size: 3) =~ ":window_size must be {left, right}, got: 3"
      assert refused.(scale: "1") =~ ":scale must be a number"

      assert assert_raise(ArgumentError, fn -> attend(%{inputs | "key" => Nx.tensor(1)}, []) end).message =~
               "query is {2, 5, 4, 8}, key is {}, value is {2, 5, 4, 8}: they must be"
    end
  end
end
