defmodule EMLXBumblebee.QuantizeTest do
  # Quantized models on EMLX, compared with themselves on Nx.BinaryBackend, where products are composed, and with the
  # model whose matrices are the dequantized ones.
  use ExUnit.Case, async: true

  import EMLXBumblebee.Compare

  alias EMLX.{Backend, Kernels}
  alias EMLXBumblebee.{Models, Quantized}

  @sizes [hidden_size: 64, intermediate_size: 96]
  @inputs %{"input_ids" => Nx.tensor([[7, 12, 5, 30], [2, 14, 3, 28]])}

  defp predict(info, inputs, backend, options) do
    params = %{info.params | data: on(info.params.data, backend)}
    {_init, predict} = Axon.build(info.model, options)
    Nx.with_default_backend(backend, fn -> predict.(params, on(inputs, backend)).logits end)
  end

  defp model(name, opts \\ []), do: Models.info(name, @sizes ++ opts)

  for {name, bits} <- [llama_grouped_causal: 2, llama_grouped_causal: 4, llama_grouped_causal: 8, qwen3: 4, gpt2: 4] do
    test "#{name} quantized to #{bits} bits has the outputs of its dequantized weights" do
      bits = unquote(bits)
      info = model(unquote(name))
      opts = [bits: bits, group_size: 32]
      quantized = EMLXBumblebee.quantize(info, opts)
      expected = predict(held(info, quantized, opts), @inputs, Nx.BinaryBackend, compiler: Nx.Defn.Evaluator)
      composed = predict(quantized, @inputs, Nx.BinaryBackend, compiler: Nx.Defn.Evaluator)
      assert_alike(composed, expected, "composed")

      for compiler <- compilers(), info <- [quantized, EMLXBumblebee.rewrite(quantized)] do
        {result, dispatched} =
          record_blocks([Quantized.Product, Quantized.Rows], fn ->
            predict(info, @inputs, Backend, options(compiler))
          end)

        assert_alike(result, expected, inspect(compiler))
        assert dispatched != [] and Enum.all?(dispatched, &(&1.path == :fused))
      end
    end
  end

  # The original model with the dequantized matrices.
  defp held(info, quantized, opts) do
    data =
      Map.new(info.params.data, fn {name, own} ->
        case quantized.params.data[name] do
          %{"scales" => scales, "biases" => biases, "kernel" => words} ->
            arrays =
              for t <- [words, scales, biases], do: t |> Nx.backend_copy({Backend, device: :cpu}) |> Backend.to_array()

            array = apply(Kernels, :dequantize, arrays ++ [opts])
            {rows, columns} = EMLX.Array.shape(array)
            matrix = array |> Backend.to_nx(Nx.template({rows, columns}, :f32)) |> Nx.backend_copy(Nx.BinaryBackend)

            # The matrices of embeddings and of the head are not transposed.
            rows? = name =~ "embedding" or name =~ "language_modeling_head"
            {name, %{own | "kernel" => if(rows?, do: matrix, else: Nx.transpose(matrix))}}

          _ ->
            {name, own}
        end
      end)

    %{info | params: %{info.params | data: data}}
  end

  test "a quantized model generates the same tokens on EMLX as on the binary backend" do
    info = :llama_grouped_causal |> model() |> EMLXBumblebee.quantize(group_size: 32)
    config = Models.generation(%{type: :greedy_search})
    fun = Bumblebee.Text.Generation.build_generate(info.model, info.spec, config)

    run = fn backend, options ->
      inputs = Map.put(@inputs, "seed", Nx.tensor([1, 2]))
      params = %{info.params | data: on(info.params.data, backend)}
      call = fn -> Nx.Defn.jit_apply(fun, [params, on(inputs, backend)], options) end
      Nx.to_list(Nx.with_default_backend(backend, call).token_ids)
    end

    expected = run.(Nx.BinaryBackend, compiler: Nx.Defn.Evaluator)
    for options <- [[], [merge: true, run_ahead: 0]], do: assert(run.(Backend, options(EMLX) ++ options) == expected)
  end

  test "a quantized model's parameters are words, scales and biases on the model's backend, and take less memory" do
    info = model(:llama_grouped_causal)
    quantized = EMLXBumblebee.quantize(info, group_size: 32)

    assert %{"kernel" => words, "scales" => scales, "biases" => biases} =
             quantized.params.data["decoder.blocks.0.ffn.gate"]

    assert {words.type, words.shape} == {{:u, 32}, {96, 8}}
    for t <- [scales, biases], do: assert({t.type, t.shape} == {{:f, 32}, {96, 2}})
    for t <- [words, scales, biases], do: assert(%Nx.BinaryBackend{} = t.data)
    # Norms are not quantized.
    assert quantized.params.data["output_norm"] == info.params.data["output_norm"]
    size = fn info -> Nx.Defn.Composite.reduce(info.params.data, 0, &(Nx.byte_size(&1) + &2)) end
    assert size.(quantized) < 0.25 * size.(info)
  end

  test "quantize skips excepted layers and matrices that do not fit, and changes nothing the second time" do
    info = model(:llama_grouped_causal)
    quantized = EMLXBumblebee.quantize(info, group_size: 32, except: ["language_modeling_head.output"])
    assert quantized.params.data["language_modeling_head.output"] == info.params.data["language_modeling_head.output"]
    assert EMLXBumblebee.quantize(quantized, group_size: 32, except: ["language_modeling_head.output"]) == quantized

    # A row of 96 elements is not a multiple of 64.
    quantized = EMLXBumblebee.quantize(info, group_size: 64)
    assert quantized.params.data["decoder.blocks.0.ffn.output"] == info.params.data["decoder.blocks.0.ffn.output"]
    assert %{"scales" => _} = quantized.params.data["decoder.blocks.0.ffn.gate"]
  end

  test "quantize raises for invalid options and models" do
    info = model(:llama_grouped_causal)

    refused = fn reason, info, opts ->
      assert_raise ArgumentError, reason, fn -> EMLXBumblebee.quantize(info, opts) end
    end

    refused.(~r/:bits must be 2, 4 or 8, got: 3/, info, bits: 3)
    refused.(~r/:group_size must be 32, 64 or 128/, info, group_size: 16)
    refused.(~r/:except must be a list of names.*"nothing".*output_norm/s, info, except: ["nothing"])
    refused.(~r/there is no dense layer/, info, group_size: 128)
    refused.(~r/a map with an Axon model/, info.model, [])
    refused.(~r/EMLXBumblebee.quantize: unknown keys/, info, colour: 1)
    refused.(~r/quantize: .*:bits .*got: "4"/, info, bits: "4")
    refused.(~r/quantize: .*:except .*got: "decoder"/s, info, except: "decoder")
  end
end
