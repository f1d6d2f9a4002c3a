# Makes the saved programs of this folder: tiny models of Bumblebee with weights from a seed, rewritten to blocks,
# compiled, and saved with inputs and what the models give as they are, on Nx.BinaryBackend.
# test/core/emlx/saved_models_test.exs replays them without Nx.
#
#   cd emlx_bumblebee && MIX_ENV=test mix run ../test/programs/generate.exs [name…]
#
# Each model is three files: name.emlx and name.safetensors, which EMLX.Program.save/3 writes, and
# name.golden.safetensors with the tensors "input.…" and "output.…".
defmodule EMLX.GeneratePrograms do
  alias EMLX.Program
  alias EMLXBumblebee.Models

  @folder __DIR__

  # A model, and what is done with it.
  @programs [
    bert: {:bert, :predict},
    albert: {:albert, :predict},
    modernbert: {:modernbert, :predict},
    gpt2: {:gpt2, :predict},
    llama: {:llama_grouped, :predict},
    llama_with_cache: {:llama, :step},
    gemma3_with_cache: {:gemma3, :step},
    llama_generation: {:llama, :generate},
    # With one row, and heads that CUDA's kernels take.
    qwen3_generation: {:qwen3, :generate_row},
    # The same with matrices of 4 bits.
    qwen3_quantized_generation: {:qwen3, :generate_quantized},
    t5: {:t5, :predict},
    bart: {:bart, :predict},
    whisper: {:whisper, :predict},
    vit: {:vit, :predict},
    swin: {:swin, :predict},
    clip: {:clip, :predict},
    layout_lm: {:layout_lm, :predict},
    unet: {:unet, :predict}
  ]

  def run([]), do: run(Keyword.keys(@programs))

  def run(names) do
    for name <- names do
      name = if is_binary(name), do: String.to_existing_atom(name), else: name
      {model, what} = Keyword.fetch!(@programs, name)
      Nx.default_backend(Nx.BinaryBackend)
      make("#{name}", model, what)
    end
  end

  defp make(name, model_name, what) do
    {spec, kind, _counts} = Models.fetch!(model_name)
    spec = changed(what, spec)
    {inputs, options} = inputs(what, spec, Models.inputs(kind, spec))
    model = Bumblebee.build_model(spec)
    state = initial(model, Models.inputs(kind, spec))
    {model, state} = packed(what, model, state)
    fun = function(what, model, spec, options)
    expected = Nx.Defn.jit_apply(fun, [state, inputs], compiler: Nx.Defn.Evaluator)

    rewritten = function(what, EMLXBumblebee.rewrite(model), spec, options)
    templates = Nx.to_template(inputs)
    program = EMLX.compile_to_program(rewritten, [state, templates], names: ["", ""], device: :cpu)
    path = Path.join(@folder, name)
    Program.save(program, path <> ".emlx")

    golden = leaves(inputs, "input") ++ leaves(expected, "output")
    EMLX.Safetensors.save(path <> ".golden.safetensors", golden)
    sizes = for end_ <- ~w(.emlx .safetensors .golden.safetensors), do: File.stat!(path <> end_).size
    IO.puts("#{name}: #{program.size} instructions, #{Enum.map_join(sizes, " + ", &"#{div(&1, 1024)}")} KiB")
  end

  defp initial(model, inputs) do
    {init, _predict} = Axon.build(model, seed: 3, compiler: Nx.Defn.Evaluator)
    inputs |> Nx.to_template() |> init.(Axon.ModelState.empty()) |> Models.disturbed()
  end

  defp inputs(:predict, _spec, inputs), do: {inputs, []}

  # One token for each of two rows, after three that are in the cache already.
  defp inputs(:step, spec, inputs) do
    cache = spec.__struct__.init_cache(spec, 2, 8, inputs)
    {noise, _} = Nx.Random.normal(Nx.Random.key(5), shape: {2, 8, 1, 1})

    cache =
      Nx.Defn.Composite.traverse(cache, fn
        %{type: {:f, _}} = tensor -> Nx.add(tensor, noise)
        %{shape: {}} = offset -> Nx.add(offset, 3)
        %{shape: {2, 8}} = mask -> Nx.add(mask, Nx.tensor([[1, 1, 1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]]))
        other -> other
      end)

    inputs = %{
      "input_ids" => Nx.tensor([[5], [11]]),
      "attention_mask" => Nx.tensor([[1], [1]]),
      "position_ids" => Nx.tensor([[3], [2]]),
      "cache" => cache
    }

    {inputs, []}
  end

  defp inputs(:generate, _spec, inputs) do
    {Map.put(inputs, "seed", Nx.tensor([1, 2])), [max_new_tokens: 5]}
  end

  defp inputs(what, _spec, inputs) when what in [:generate_row, :generate_quantized] do
    # One row without padding.
    ids = Nx.slice_along_axis(inputs["input_ids"], 0, 1)
    mask = Nx.broadcast(Nx.tensor(1, type: Nx.type(inputs["attention_mask"])), ids)
    {%{"input_ids" => ids, "attention_mask" => mask, "seed" => Nx.tensor([1])}, [max_new_tokens: 8]}
  end

  defp changed(:generate_row, spec) do
    sizes = [vocab_size: 96, hidden_size: 32, intermediate_size: 48, num_key_value_heads: 2, attention_head_size: 64]
    Bumblebee.configure(spec, [num_attention_heads: 4] ++ sizes)
  end

  defp changed(:generate_quantized, spec) do
    spec = changed(:generate_row, spec)
    Bumblebee.configure(spec, hidden_size: 64, intermediate_size: 128)
  end

  defp changed(_what, spec), do: spec

  defp packed(:generate_quantized, model, state) do
    quantized = EMLXBumblebee.quantize(%{model: model, params: state}, bits: 4, group_size: 32)
    {quantized.model, quantized.params}
  end

  defp packed(_what, model, state), do: {model, state}

  defp function(what, model, spec, options) when what in [:generate_row, :generate_quantized],
    do: function(:generate, model, spec, options)

  defp function(:generate, model, spec, options) do
    config = Bumblebee.configure(Bumblebee.Text.GenerationConfig, [pad_token_id: 0, eos_token_id: 1] ++ options)
    generate = Bumblebee.Text.Generation.build_generate(model, spec, config)
    fn state, inputs -> generate.(state, inputs) end
  end

  defp function(_what, model, _spec, _options) do
    {_init, predict} = Axon.build(model)
    fn state, inputs -> predict.(state, inputs) end
  end

  # The names that EMLX.compile_to_program/3 gives.
  defp leaves(container, prefix) do
    for {name, tensor} <- EMLX.Compiler.Path.names(container, prefix) do
      {name, tensor |> Nx.to_tensor() |> Nx.backend_copy({EMLX.Backend, device: :cpu}) |> EMLX.Backend.to_array()}
    end
  end
end

EMLX.GeneratePrograms.run(System.argv())
