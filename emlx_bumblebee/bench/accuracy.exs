# Compares quantized models with the same models in f32: `mix run bench/accuracy.exs [MINILM]` in emlx_bumblebee. Prints
# the table of the README.
#
# The encoder is MiniLM, with the weights in the folder MINILM, which script/demo fetches, and the sentences of
# examples/minilm: the cosine of each embedding to that in f32, and how many sentences have the same nearest sentence.
# The decoder is a Llama with weights of a seed: the cosine of each token's logits.
for file <- ~w(json checkpoint), do: Code.require_file("../../bench/suite/#{file}.ex", __DIR__)
Code.require_file("../../examples/minilm/program.ex", __DIR__)

defmodule EMLXBumblebee.Accuracy do
  alias EMLX.Bench.Checkpoint

  @formats [f32: nil, int8: [type: :int8], "8 bits": [bits: 8], "4 bits": [bits: 4], "2 bits": [bits: 2]]
  @reference Path.expand("../../examples/minilm/reference.safetensors", __DIR__)

  def run(folder) do
    Nx.default_backend({EMLX.Backend, device: :cpu})

    IO.puts(
      "| model | format | parameters | least cosine to f32 | mean cosine | same nearest |\n|---|---|---|---|---|---|"
    )

    models = [{"MiniLM", minilm(folder), &embeddings/1}, {"Llama with weights of a seed", llama(), &logits/1}]

    for {name, info, outputs} <- models do
      exact = outputs.(info)

      for {format, opts} <- @formats do
        quantized = if opts, do: EMLXBumblebee.quantize(info, opts), else: info
        row(name, format, quantized, outputs.(quantized), exact)
      end
    end
  end

  defp row(name, format, info, have, exact) do
    cosines = Nx.sum(Nx.multiply(have, exact), axes: [1])
    [least, mean] = for f <- [&Nx.reduce_min/1, &Nx.mean/1], do: cosines |> f.() |> Nx.to_number() |> decimal()
    size = Nx.Defn.Composite.reduce(info.params.data, 0, &(Nx.byte_size(&1) + &2))
    same = Nx.equal(nearest(have), nearest(exact)) |> Nx.sum() |> Nx.to_number()
    same = if name == "MiniLM", do: "#{same} of #{Nx.axis_size(have, 0)}"
    IO.puts("| #{name} | #{format} | #{round(size / 1.0e6)} MB | #{least} | #{mean} | #{same} |")
  end

  defp decimal(number), do: :erlang.float_to_binary(number, decimals: 4)

  # The row that is nearest to each row, other than itself.
  defp nearest(rows) do
    itself = Nx.eye(Nx.axis_size(rows, 0)) |> Nx.multiply(2)
    rows |> Nx.dot([1], rows, [1]) |> Nx.subtract(itself) |> Nx.argmax(axis: 1)
  end

  defp minilm(folder) do
    {:ok, info} = Bumblebee.load_model({:local, folder}, architecture: :base, log_params_diff: false)
    EMLXBumblebee.rewrite(info)
  end

  defp embeddings(info) do
    ids = @reference |> EMLX.Safetensors.load(device: :cpu) |> Map.fetch!("input_ids")
    ids = EMLX.Backend.to_nx(ids, Nx.template(EMLX.Array.shape(ids), EMLX.Array.dtype(ids)))
    mask = Nx.not_equal(ids, 0)
    hidden = predict(info, %{"input_ids" => ids, "attention_mask" => mask}).hidden_state
    hidden |> Nx.multiply(Nx.new_axis(mask, -1)) |> Nx.sum(axes: [1]) |> scaled()
  end

  defp llama do
    temporary = Path.join(System.tmp_dir!(), "emlx_accuracy_#{System.pid()}")
    %{folder: folder} = Checkpoint.decoder(temporary)
    {:ok, info} = Bumblebee.load_model({:local, folder}, log_params_diff: false)
    File.rm_rf!(temporary)
    EMLXBumblebee.rewrite(info)
  end

  defp logits(info) do
    ids = Nx.iota({4, 64}) |> Nx.multiply(7919) |> Nx.remainder(4096)
    predict(info, %{"input_ids" => ids}).logits |> Nx.reshape({256, 4096}) |> scaled()
  end

  defp predict(info, inputs) do
    {_init, predict} = Axon.build(info.model, compiler: EMLX)
    predict.(info.params, inputs)
  end

  defp scaled(rows), do: Nx.divide(rows, Nx.LinAlg.norm(rows, axes: [1], keep_axes: true))
end

case System.argv() do
  [folder] ->
    EMLXBumblebee.Accuracy.run(folder)

  [] ->
    minilm = EMLX.Bench.Checkpoint.minilm(System.tmp_dir!())
    if minilm.weights != :real, do: raise("MiniLM's weights are missing: run script/demo, or name their folder")
    EMLXBumblebee.Accuracy.run(minilm.folder)
end
