defmodule MiniLM.Program do
  @moduledoc """
  Compiles the program that script/demo runs without Bumblebee: Bumblebee's BERT with MiniLM's sizes, from token ids to
  embeddings. compile.exs saves it, and a test of emlx_bumblebee compares it with the model.

  The inputs are the checkpoint's tensors under their own names, so that the file contains no weights, then `input_ids`
  and `attention_mask`, `{batch, length}`. The output is the embeddings, `{batch, 384}`.
  """

  @batch 16
  @length 64

  @doc "Returns the number of sentences of the program, and the number of their tokens: `{batch, length}`."
  def size, do: {@batch, @length}

  @doc "Returns the specification of all-MiniLM-L6-v2, as Bumblebee reads it from the checkpoint's config.json."
  def spec do
    Bumblebee.configure(Bumblebee.Text.Bert,
      vocab_size: 30_522,
      max_positions: 512,
      max_token_types: 2,
      hidden_size: 384,
      num_blocks: 6,
      num_attention_heads: 12,
      intermediate_size: 1536,
      activation: :gelu,
      layer_norm_epsilon: 1.0e-12
    )
  end

  @doc "Returns the program of a model of `spec/0`, rewritten or not."
  def compile(model) do
    inputs = for name <- ["input_ids", "attention_mask"], into: %{}, do: {name, Nx.template({@batch, @length}, :s32)}
    parameters = parameters(model, inputs)
    {_init, predict} = Axon.build(model)

    embed = fn checkpoint, inputs ->
      data = Map.new(parameters, fn {layer, own} -> {layer, Map.new(own, &parameter(&1, checkpoint))} end)
      predict.(Axon.ModelState.new(data), inputs).hidden_state |> pool(inputs["attention_mask"])
    end

    checkpoint =
      for {_layer, own} <- parameters, {_name, {key, shape, turned?}} <- own, into: %{} do
        {key, Nx.template(if(turned?, do: turn(shape), else: shape), :f32)}
      end

    EMLX.compile_to_program(embed, [checkpoint, inputs], names: ["", ""], device: :cpu)
  end

  # The mean over the tokens without padding, scaled to length 1.
  defp pool(hidden, mask) do
    mask = Nx.new_axis(mask, -1)
    mean = hidden |> Nx.multiply(mask) |> Nx.sum(axes: [1]) |> Nx.divide(Nx.sum(mask, axes: [1]))
    Nx.divide(mean, mean |> Nx.multiply(mean) |> Nx.sum(axes: [-1], keep_axes: true) |> Nx.sqrt())
  end

  # Layer => parameter => {name in the checkpoint, shape, whether the checkpoint's tensor is transposed}.
  defp parameters(model, inputs) do
    mapping = Bumblebee.HuggingFace.Transformers.Model.params_mapping(spec())

    for {layer, own} <- Axon.trace_init(model, inputs).data, into: %{} do
      [_ | number] = Regex.run(~r/\.(\d+)\./, layer) || [nil]
      general = String.replace(layer, ~r/\.\d+\./, ".{n}.")

      target =
        mapping |> Map.fetch!(general) |> String.replace("{n}", Enum.join(number)) |> String.trim_leading("bert.")

      {layer, Map.new(own, fn {name, tensor} -> {name, checkpoint(name, layer, target, tensor.shape)} end)}
    end
  end

  # PyTorch's dense layers have the shape {outputs, inputs}, Axon's {inputs, outputs}; embedding tables do not differ.
  defp checkpoint("kernel", layer, target, shape),
    do: {target <> ".weight", shape, not String.ends_with?(layer, "_embedding")}

  defp checkpoint("gamma", _layer, target, shape), do: {target <> ".weight", shape, false}
  defp checkpoint(name, _layer, target, shape) when name in ["bias", "beta"], do: {target <> ".bias", shape, false}

  defp parameter({name, {key, _shape, true}}, checkpoint), do: {name, Nx.transpose(checkpoint[key])}
  defp parameter({name, {key, _shape, false}}, checkpoint), do: {name, checkpoint[key]}

  defp turn({a, b}), do: {b, a}
end
