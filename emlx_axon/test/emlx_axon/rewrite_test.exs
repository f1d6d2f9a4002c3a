defmodule EMLXAxon.RewriteTest do
  # The results of rewritten models: axes, options, types, the path of their blocks and its reason.
  use EMLXAxon.Case

  alias Axon.Block.{LayerNorm, RMSNorm}

  doctest EMLXAxon

  # A GPU has no f64.
  @f64 if System.get_env("EMLX_TEST_DEVICE") == "gpu", do: [], else: [{:f, 64}]

  # Axon's layer rounds to bf16 step by step.
  @steps [rtol: 4.0e-2, atol: 4.0e-2]

  defp layer_norm(opts \\ []), do: Axon.input("x") |> Axon.layer_norm([name: "norm"] ++ opts)
  defp rms_norm(opts \\ []), do: Axon.input("x") |> Axon.rms_norm([name: "norm"] ++ opts)

  defp state(size, gamma \\ {:f, 32}, beta \\ nil) do
    parameters = %{"gamma" => random({size}, gamma)}
    parameters = if beta, do: Map.put(parameters, "beta", random({size}, beta)), else: parameters
    Axon.ModelState.new(%{"norm" => parameters})
  end

  defp reasons(model, state, input) do
    model = EMLXAxon.rewrite(model)

    for compiler <- compilers(), uniq: true do
      {_, dispatched} = record_blocks(fn -> predict(model, state, input, backend(), compiler) end)
      Enum.map(dispatched, & &1.reason)
    end
  end

  # Rows have several elements: in a row of nearly equal elements the norm magnifies the rounding error of the mean.
  test "a rewritten layer_norm computes the same over every axis" do
    for axis <- [-1, -2, 0, 1, 2] do
      x = random({6, 7, 8})
      state = state(Nx.axis_size(x, axis), {:f, 32}, {:f, 32})
      assert_rewritten(layer_norm(channel_index: axis), state, x, [{LayerNorm, :fused}], atol: 1.0e-5)
    end
  end

  test "a rewritten rms_norm computes the same over every axis" do
    for axis <- [-1, -2, 0, 1, 2] do
      x = random({3, 4, 5})
      assert_rewritten(rms_norm(channel_index: axis), state(Nx.axis_size(x, axis)), x, [{RMSNorm, :fused}])
    end
  end

  test "a rewritten norm finds its axis by name" do
    x = Nx.rename(random({6, 7, 8}), [:batch, :channels, nil])
    state = state(7, {:f, 32}, {:f, 32})
    assert_rewritten(layer_norm(channel_index: :channels), state, x, [{LayerNorm, :fused}], atol: 1.0e-5)
    assert_rewritten(rms_norm(channel_index: :channels), state(7), x, [{RMSNorm, :fused}])
  end

  test "a rewritten norm takes tensors of one axis, one row and one element" do
    for shape <- [{7}, {1, 7}, {7, 1}, {1, 1, 1}, {2, 1, 3, 2, 7}] do
      x = random(shape)
      size = Nx.axis_size(x, -1)
      assert_rewritten(layer_norm(), state(size, {:f, 32}, {:f, 32}), x, [{LayerNorm, :fused}], atol: 1.0e-5)
      assert_rewritten(rms_norm(), state(size), x, [{RMSNorm, :fused}])
    end
  end

  test "a rewritten norm takes any epsilon, even one that dominates the denominator" do
    for epsilon <- [1.0e-12, 1.0e-5, 1.0e-3, 0.5, 1], factor <- [1, 1.0e-3] do
      x = Nx.multiply(random({4, 16}), factor)

      assert_rewritten(layer_norm(epsilon: epsilon), state(16, {:f, 32}, {:f, 32}), x, [{LayerNorm, :fused}],
        atol: 1.0e-5
      )

      assert_rewritten(rms_norm(epsilon: epsilon), state(16), x, [{RMSNorm, :fused}])
    end
  end

  test "a rewritten rms_norm takes Axon's shift and upcast" do
    for shift <- [0.0, 0, 1.0, 1, -0.5], upcast <- [:normalization, :all] do
      assert_rewritten(rms_norm(shift: shift, upcast: upcast), state(8), random({2, 3, 8}), [{RMSNorm, :fused}])
    end
  end

  test "a rewritten rms_norm rounds the quotient to the input's type, as Axon does" do
    for x <- [{:f, 32}, {:f, 16}, {:bf, 16}], gamma <- [{:f, 32}, {:f, 16}, {:bf, 16}, {:s, 32}] ++ @f64 do
      for shift <- [0.0, 1.0] do
        # Rounding to 16 bits is visible in every later type.
        opts = if Enum.any?([x, gamma], &match?({_, 16}, &1)), do: [rtol: 2.0e-2, atol: 1.0e-3], else: [rtol: 1.0e-5]
        assert_rewritten(rms_norm(shift: shift), state(16, gamma), random({3, 16}, x), [{RMSNorm, :fused}], opts)
      end
    end
  end

  test "a rewritten rms_norm that upcasts everything takes every real type" do
    for x <- [{:f, 32}, {:f, 16}, {:bf, 16}, {:s, 32}, {:u, 8}] ++ @f64, gamma <- [{:f, 32}, {:bf, 16}] ++ @f64 do
      input = random({3, 16}) |> Nx.abs() |> Nx.multiply(10) |> Nx.as_type(x)
      assert_rewritten(rms_norm(upcast: :all), state(16, gamma), input, [{RMSNorm, :fused}])
    end
  end

  test "a rewritten rms_norm that rounds the quotient to a type without a kernel is composed" do
    for type <- [{:s, 32} | @f64] do
      x = random({3, 16}) |> Nx.multiply(10) |> Nx.as_type(type)
      assert_rewritten(rms_norm(), state(16), x, [{RMSNorm, :composed}], rtol: 1.0e-5, atol: 1.0e-5)

      assert reasons(rms_norm(), state(16), x) == [
               [
                 "x is #{Nx.Type.to_string(type)}, to which the quotient is rounded; the kernel rounds to f32, f16 and bf16"
               ]
             ]
    end
  end

  test "a rewritten layer_norm in f32 takes parameters of narrower types" do
    for gamma <- [{:f, 32}, {:bf, 16}, {:f, 16}], beta <- [{:f, 32}, {:bf, 16}] do
      assert_rewritten(layer_norm(), state(16, gamma, beta), random({3, 16}), [{LayerNorm, :fused}])
    end
  end

  test "a rewritten layer_norm in bf16 has a kernel" do
    state = state(64, {:bf, 16}, {:bf, 16})
    assert_rewritten(layer_norm(), state, random({3, 64}, {:bf, 16}), [{LayerNorm, :fused}], @steps)
  end

  test "a rewritten layer_norm in other types is composed, and telemetry has the reason" do
    for {x, gamma, beta, reason} <- [
          {{:bf, 16}, {:f, 32}, {:bf, 16}, "x is bf16, weight or bias is f32; the layer rounds to bf16 in between"},
          {{:bf, 16}, {:bf, 16}, {:f, 16}, "x is bf16, weight or bias is f16; the layer rounds to bf16 in between"},
          {{:f, 32}, {:f, 32}, {:f, 64}, "x is f32, weight or bias is f64; the kernel computes in f32"},
          {{:f, 16}, {:f, 16}, {:f, 16},
           "x is f16; the layer computes in f16, where squares overflow that do not in the kernel"},
          {{:f, 64}, {:f, 32}, {:f, 32}, "x is f64; the kernel is for f32 and bf16"},
          {{:s, 32}, {:f, 32}, {:f, 32}, "x is s32; the kernel is for f32 and bf16"}
        ],
        @f64 != [] or {:f, 64} not in [x, gamma, beta] do
      input = random({3, 16}) |> Nx.multiply(2) |> Nx.as_type(x)
      opts = if x in [{:bf, 16}, {:f, 16}], do: @steps, else: [rtol: 1.0e-5, atol: 1.0e-5]
      assert_rewritten(layer_norm(), state(16, gamma, beta), input, [{LayerNorm, :composed}], opts)
      assert reasons(layer_norm(), state(16, gamma, beta), input) == [[reason]]
    end
  end

  test "a rewritten layer_norm in f16 overflows as Axon's does" do
    x = Nx.tensor([[-600.0, 0.0, 600.0, 1.0]], type: {:f, 16}, backend: Nx.BinaryBackend)
    state = state(4, {:f, 16}, {:f, 16})
    expected = assert_rewritten(layer_norm(), state, x, [{LayerNorm, :composed}])
    # The variance is infinite.
    assert Nx.to_flat_list(expected) == Nx.to_flat_list(state.data["norm"]["beta"])
  end

  test "a norm of complex tensors is composed" do
    x = Nx.broadcast(Nx.tensor(0.0, backend: Nx.BinaryBackend), {2, 3})
    complex = Nx.complex(x, x)
    gamma = random({3})

    {_, dispatched} =
      record_blocks(fn -> EMLXAxon.Layers.rms_norm(copy(complex, backend()), copy(gamma, backend())) end)

    assert [%{block: RMSNorm, path: :composed, reason: "an argument is complex"}] = dispatched
  end

  test "a rewritten norm keeps NaN and infinities to their own rows" do
    x = Nx.tensor([[1.0, :infinity, 2.0], [:nan, 1.0, 2.0], [1.0, 2.0, 3.0]], backend: Nx.BinaryBackend)
    assert_rewritten(layer_norm(), state(3, {:f, 32}, {:f, 32}), x, [{LayerNorm, :fused}])
    assert_rewritten(rms_norm(), state(3), x, [{RMSNorm, :fused}])
  end

  test "norms of vectorized tensors are composed" do
    x = Nx.vectorize(random({2, 3, 4}), :batch)
    gamma = random({4})
    expected = Axon.Layers.rms_norm(x, gamma)
    {actual, dispatched} = record_blocks(fn -> EMLXAxon.Layers.rms_norm(copy(x, backend()), copy(gamma, backend())) end)
    assert_same(actual, expected)
    assert dispatched == []
  end

  test "EMLXAxon.Layers' norms can be called on tensors" do
    {x, gamma, beta} = {random({2, 5}), random({5}), random({5})}
    [x_emlx, gamma_emlx, beta_emlx] = Enum.map([x, gamma, beta], &copy(&1, backend()))

    for opts <- [[], [epsilon: 0.1], [channel_index: 1]] do
      assert_same(
        EMLXAxon.Layers.layer_norm(x_emlx, gamma_emlx, beta_emlx, opts),
        Axon.Layers.layer_norm(x, gamma, beta, opts)
      )

      assert_same(EMLXAxon.Layers.rms_norm(x_emlx, gamma_emlx, opts), Axon.Layers.rms_norm(x, gamma, opts))
    end
  end

  test "a composed block does not run the default compiler, which may be compiling already" do
    {x, gamma, beta} = {random({2, 5}, {:f, 16}), random({5}, {:f, 16}), random({5}, {:f, 16})}
    expected = Axon.Layers.layer_norm(x, gamma, beta)
    [x, gamma, beta] = Enum.map([x, gamma, beta], &copy(&1, backend()))
    before = Nx.Defn.default_options(compiler: EMLX.NoCompiler)

    try do
      {actual, dispatched} = record_blocks(fn -> EMLXAxon.Layers.layer_norm(x, gamma, beta) end)
      assert [%{path: :composed}] = dispatched
      assert_same(actual, expected, @steps)
    after
      Nx.Defn.default_options(before)
    end
  end

  test "rewritten norms of random shapes, axes, options and types compute the same" do
    for_all(30, "rewritten layers", fn ->
      rank = Enum.random(1..4)
      shape = List.to_tuple(for _ <- 1..rank, do: Enum.random(1..6))
      axis = Enum.random(-rank..(rank - 1))
      size = elem(shape, if(axis < 0, do: axis + rank, else: axis))
      type = Enum.random([{:f, 32}, {:f, 32}, {:bf, 16}, {:f, 16}])
      opts = [channel_index: axis, epsilon: Enum.random([1.0e-6, 1.0e-5, 0.1])]
      rms = opts ++ [shift: Enum.random([0.0, 1.0]), upcast: Enum.random([:normalization, :all])]
      path = if type == {:f, 16}, do: :composed, else: :fused

      # In 16 bits the result for a short row may consist of rounding errors only.
      x = random(shape, type)
      norm = layer_norm(Keyword.put(opts, :epsilon, if(type == {:f, 32}, do: opts[:epsilon], else: 0.1)))
      tolerance = if type == {:f, 32}, do: [rtol: 1.0e-4, atol: 1.0e-4], else: [rtol: 6.0e-2, atol: 6.0e-2]
      assert_rewritten(norm, state(size, type, type), x, [{LayerNorm, path}], tolerance)
      # The quotient and the product are both rounded, each possibly in the other direction.
      rounded = %{{:f, 32} => 1.0e-5, {:bf, 16} => 3.2e-2, {:f, 16} => 4.0e-3}
      rounded = if rms[:upcast] == :all, do: [], else: [rtol: rounded[type]]
      assert_rewritten(rms_norm(rms), state(size, type), x, [{RMSNorm, :fused}], rounded)
      :ok
    end)
  end
end
