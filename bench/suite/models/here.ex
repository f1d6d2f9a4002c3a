defmodule EMLX.Bench.Here do
  @moduledoc """
  The suite's models compiled with EMLX, as something to run. The parts `models`, `memory` and `growth` share them.
  """

  alias EMLX.{Array, Backend}
  alias EMLX.Bench.{Checkpoint, Decoder, Encoder, Inputs}

  @doc """
  A model and its inputs: `:encoder`, `:prefill` or `:decode`. `sizes` may hold `:batch`, `:length` (tokens; for
  `:decode` positions of the cache), `:blocks`. `:options` is what peers are told.
  """
  def spec(model, context, sizes \\ []) do
    sizes = Map.merge(sizes(model), Map.new(sizes))

    checkpoint =
      if model == :encoder,
        do: Checkpoint.minilm(context.temporary),
        # One checkpoint of the most blocks serves all.
        else: Checkpoint.decoder(context.temporary)

    blocks = sizes[:blocks] || checkpoint.blocks
    length = if model == :decode, do: 1, else: sizes.length
    inputs = Checkpoint.inputs(context.temporary, sizes.batch, length, checkpoint.vocabulary)
    options = [file: checkpoint.file, inputs: inputs, blocks: blocks, heads: checkpoint.heads]
    offset = div(sizes.length, 2)
    options = options ++ if(model == :decode, do: [length: sizes.length, offset: offset], else: [])
    Map.merge(sizes, %{model: model, checkpoint: checkpoint, blocks: blocks, offset: offset, options: options})
  end

  defp sizes(:encoder), do: %{batch: 8, length: 64}
  defp sizes(:prefill), do: %{batch: 1, length: 128}
  defp sizes(:decode), do: %{batch: 1, length: 256}

  @doc "What a model is called in the tables."
  def title(%{model: :encoder} = spec) do
    weights = if spec.checkpoint.weights == :real, do: "MiniLM", else: "MiniLM's shape"
    "encoder, #{weights}, #{spec.batch} × #{spec.length}"
  end

  def title(%{model: :prefill} = spec), do: "decoder, #{spec.batch} × #{spec.length} tokens"
  def title(%{model: :decode} = spec), do: "decoder, 1 token, #{spec.offset} before it"

  @doc """
  `%{run:, sample:}`: a function that computes the model once and waits, and one that gives a sample of its first
  result. In `:int8`, matrices of dense layers are 8-bit integers and the rest is f32.
  """
  def compiled(spec, device, type) do
    Nx.default_backend({Backend, device: device})

    weights =
      if type == :int8, do: quantized(spec.checkpoint.file, device), else: load(spec.checkpoint.file, device, type)

    type = if type == :int8, do: :f32, else: type
    inputs = load(spec.options[:inputs], device, type)
    opts = [blocks: spec.blocks, heads: spec.checkpoint.heads, size: spec.checkpoint.size]
    run = run(spec, weights, inputs, opts, device, type)
    first = Inputs.sample(run.())
    %{run: fn -> run.() end, sample: fn -> first end}
  end

  # The tensors stay arguments of the compiled function: what it closes over would be constants.
  defp run(%{model: model}, weights, inputs, opts, device, _type) when model in [:encoder, :prefill] do
    opts = Keyword.take(opts, [:blocks, :heads])

    function =
      case model do
        :encoder -> fn inputs, w -> Encoder.embed(inputs, w, opts) end
        :prefill -> fn inputs, w -> Decoder.prefill(inputs["input_ids"], w, opts) end
      end

    compiled = compile(function, [inputs, weights], device)
    fn -> compiled.(inputs, weights) |> computed() end
  end

  # A step with what the step before left; at the cache's end it starts again where it began.
  defp run(%{model: :decode} = spec, weights, %{"input_ids" => token}, opts, device, type) do
    empty = Decoder.cache(spec.batch, spec.length, type, opts)
    offset = &Nx.tensor(&1, type: :s32)

    step = fn token, offset, cache, w ->
      Decoder.step(token, offset, cache, w, Keyword.take(opts, [:blocks, :heads]))
    end

    compiled = compile(step, [token, offset.(0), empty, weights], device)
    state = make_ref()

    fn ->
      {position, cache} = Process.get(state, {spec.offset, empty})
      {logits, cache} = compiled.(token, offset.(position), cache, weights)
      EMLX.eval([Backend.to_array(logits) | cache_arrays(cache)])
      next = if position + 1 == spec.length, do: {spec.offset, empty}, else: {position + 1, cache}
      Process.put(state, next)
      Backend.to_array(logits)
    end
  end

  defp cache_arrays(cache), do: for({k, v} <- Tuple.to_list(cache), part <- [k, v], do: Backend.to_array(part))

  defp compile(function, arguments, device),
    do: Nx.Defn.compile(function, arguments, compiler: EMLX, device: device, cache: false)

  defp computed(tensor), do: tensor |> Backend.to_array() |> EMLX.eval()

  @doc "A file's arrays as tensors, those of floats in a type."
  def load(file, device, type) do
    for {name, array} <- EMLX.Safetensors.load(file, device: device), into: %{} do
      array = if Array.dtype(array) in [:f32, :f16, :bf16], do: EMLX.Ops.astype(array, type), else: array
      {name, tensor(EMLX.eval(array))}
    end
  end

  # The matrices of dense layers as 8-bit integers with a scale for each output, the rest in f32.
  defp quantized(file, device) do
    for {name, tensor} <- load(file, device, :f32), {name, tensor} <- quantize(name, tensor), into: %{} do
      EMLX.eval(Backend.to_array(tensor))
      {name, tensor}
    end
  end

  defp quantize(name, %{shape: {_, _}} = matrix) do
    if name =~ "embed" do
      [{name, matrix}]
    else
      scales = matrix |> Nx.abs() |> Nx.reduce_max(axes: [1]) |> Nx.divide(127)
      integers = matrix |> Nx.divide(Nx.new_axis(scales, 1)) |> Nx.round() |> Nx.as_type(:s8)
      [{name, EMLX.Fast.Int8Matmul.pack(integers)}, {String.replace_suffix(name, ".weight", ".scales"), scales}]
    end
  end

  defp quantize(name, tensor), do: [{name, tensor}]

  defp tensor(array), do: %{Nx.template(Array.shape(array), Array.dtype(array)) | data: %Backend{array: array}}
end
