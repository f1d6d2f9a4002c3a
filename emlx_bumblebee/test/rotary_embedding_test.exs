defmodule EMLXBumblebee.RotaryEmbeddingTest do
  # Rotary embedding and rms_norm, compared with Bumblebee's layers on Nx.BinaryBackend.
  use ExUnit.Case, async: true

  import EMLXBumblebee.Compare

  alias Bumblebee.Block.RotaryEmbedding
  alias Bumblebee.Layers

  defp random(shape, seed, type) do
    {tensor, _} = Nx.Random.normal(Nx.Random.key(seed), shape: shape)
    tensor |> Nx.backend_copy(Nx.BinaryBackend) |> Nx.as_type(type)
  end

  defp assert_same(model, inputs, modules, expected_paths) do
    expected = Axon.predict(model, Axon.ModelState.empty(), inputs, compiler: Nx.Defn.Evaluator)

    for compiler <- compilers() do
      {result, dispatched} =
        record_blocks(modules, fn ->
          model
          |> EMLXBumblebee.rewrite()
          |> Axon.predict(Axon.ModelState.empty(), on(inputs, EMLX.Backend), options(compiler))
        end)

      assert Enum.map(dispatched, &{&1.path, &1.reason}) == expected_paths
      assert_alike(result, expected)
    end
  end

  defp layer(size, opts) do
    [query, key, positions] = for name <- ~w(query key positions), do: Axon.input(name)
    mask = Axon.input("mask", optional: true)
    query |> Layers.rotary_embedding(key, positions, mask, size, opts) |> Axon.container()
  end

  defp inputs(type, size \\ 8, positions \\ Nx.iota({2, 5}, axis: 1)) do
    %{
      "query" => random({2, 5, 4, size}, 1, type),
      "key" => random({2, 5, 2, size}, 2, type),
      "positions" => positions
    }
  end

  @fused [{:fused, nil}]

  @strategies [
    nil,
    %{type: :linear, factor: 3.0},
    %{type: :dynamic, factor: 2.0},
    %{
      type: :llama3,
      factor: 8.0,
      low_frequency_factor: 1.0,
      high_frequency_factor: 4.0,
      original_max_positions: 64
    },
    %{
      type: :longrope,
      short_factor: [1.0, 1.1, 1.3, 1.7],
      long_factor: [1.0, 2.0, 3.0, 5.0],
      original_max_positions: 8
    }
  ]

  for strategy <- @strategies, type <- [{:f, 32}, {:bf, 16}, {:f, 16}] do
    test "rotary embedding with scaling #{inspect(strategy[:type])} is fused in #{Nx.Type.to_string(type)}" do
      {strategy, type} = unquote(Macro.escape({strategy, type}))

      # As with a cache, the mask is longer than the positions, and makes the sequence longer than in training.
      for base <- [10_000, 500_000.0], mask <- [nil, Nx.broadcast(1, {2, 40})], positions <- [4, 4096] do
        model = layer(8, scaling_strategy: strategy, base: base, max_positions: positions)
        inputs = inputs(type)
        inputs = if mask, do: Map.put(inputs, "mask", mask), else: inputs
        assert_same(model, inputs, [RotaryEmbedding], @fused)
      end
    end
  end

  test "rotary embedding takes positions in any order, and one row of them for the whole batch" do
    model = layer(8, [])

    for positions <- [
          Nx.tensor([[4, 0, 0, 2, 1], [1, 1, 3, 0, 4]]),
          Nx.tensor([[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]], type: :u8),
          Nx.tensor([[3, 1, 4, 1, 0]], type: :s64)
        ] do
      assert_same(model, inputs(:f32, 8, positions), [RotaryEmbedding], @fused)
    end
  end

  test "rotary embedding takes large positions" do
    mask = Nx.broadcast(1, {2, 5000})
    positions = Nx.tensor([[4999, 4998, 17, 2500, 4095], [0, 1, 1000, 3000, 4999]])
    model = layer(8, max_positions: 8192)
    inputs = Map.put(inputs(:f32, 8, positions), "mask", mask)
    expected = Axon.predict(model, Axon.ModelState.empty(), inputs, compiler: Nx.Defn.Evaluator)
    moved = on(inputs, EMLX.Backend)

    result =
      model |> EMLXBumblebee.rewrite() |> Axon.predict(Axon.ModelState.empty(), moved, compiler: Nx.Defn.Evaluator)

    # An angle of 5000 in f32 has an error of up to 2.4e-4.
    assert_alike(result, expected, "output", 5.0e-4)
  end

  test "rotary embedding takes sizes that are not powers of two" do
    for size <- [2, 6, 20, 96], do: assert_same(layer(size, []), inputs(:f32, size), [RotaryEmbedding], @fused)
  end

  @tag skip: System.get_env("EMLX_TEST_DEVICE") == "gpu" && "a GPU has no f64"
  test "rotary embedding in f64 is composed" do
    reason = "the kernel computes in f32, x is f64"
    assert_same(layer(8, []), inputs(:f64), [RotaryEmbedding], [{:composed, reason}])
  end

  test "rotary embedding with an unknown scaling strategy is not rewritten" do
    model = layer(8, scaling_strategy: %{type: :yarn, factor: 2.0})

    assert EMLXBumblebee.explain(EMLXBumblebee.rewrite(model)) =~
             "the scaling strategy %{type: :yarn, factor: 2.0} is not known"

    assert_same(model, inputs(:f32), [RotaryEmbedding], [])
  end

  test "rotary embedding of more positions than a kernel takes is composed" do
    # The decision only depends on shapes.
    query = Nx.template({512, 1024, 32, 128}, :f32)
    block = %RotaryEmbedding{size: 128, length: 1024}
    arguments = [query, query, Nx.template({512, 1024}, :s32)]
    run = fn -> EMLX.Block.dispatch(block, {query, query}, arguments, fn ^block, _, _, _ -> {query, query} end) end

    assert {{^query, ^query}, [%{reason: "512 x 1024 positions are more rows than the kernel supports"}]} =
             record_blocks([RotaryEmbedding], run)
  end

  describe "rms_norm" do
    for type <- [{:f, 32}, {:bf, 16}, {:f, 16}], upcast <- [:normalization, :all] do
      test "rms_norm with upcast: #{inspect(upcast)} is fused in #{Nx.Type.to_string(type)}" do
        {type, upcast} = unquote(Macro.escape({type, upcast}))

        for shift <- [0.0, 1.0], weight_type <- Enum.uniq([type, {:f, 32}]) do
          model = Axon.input("x") |> Layers.rms_norm(name: "norm", upcast: upcast, shift: shift, epsilon: 1.0e-5)
          state = Axon.ModelState.new(%{"norm" => %{"weight" => random({8}, 2, weight_type)}})
          inputs = %{"x" => random({2, 3, 8}, 1, type)}
          expected = Axon.predict(model, state, inputs, compiler: Nx.Defn.Evaluator)

          for compiler <- compilers() do
            rewritten = EMLXBumblebee.rewrite(model)
            moved = %{state | data: on(state.data, EMLX.Backend)}
            run = fn -> Axon.predict(rewritten, moved, on(inputs, EMLX.Backend), options(compiler)) end
            assert {result, [%{path: :fused}]} = record_blocks([Axon.Block.RMSNorm], run)
            tolerance = Enum.max([tolerance(type), tolerance(expected.type)])
            assert_alike(result, expected, inspect({shift, weight_type}), tolerance)
          end
        end
      end
    end

    test "rms_norm takes vectorized tensors" do
      model = Axon.input("x") |> Layers.rms_norm(name: "norm", upcast: :normalization)
      state = Axon.ModelState.new(%{"norm" => %{"weight" => random({8}, 2, :f32)}})
      inputs = %{"x" => random({2, 3, 8}, 1, :f32) |> Nx.vectorize(:batch)}
      expected = Axon.predict(model, state, inputs, compiler: Nx.Defn.Evaluator)
      moved = %{state | data: on(state.data, EMLX.Backend)}

      for compiler <- compilers() do
        result = model |> EMLXBumblebee.rewrite() |> Axon.predict(moved, on(inputs, EMLX.Backend), options(compiler))
        assert result.vectorized_axes == [batch: 2]
        assert_alike(Nx.devectorize(result), Nx.devectorize(expected))
      end
    end
  end
end
