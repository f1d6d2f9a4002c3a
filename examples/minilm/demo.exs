# The part of script/demo that runs MiniLM without Bumblebee: the saved program of Bumblebee's model, rewritten to
# blocks, with the checkpoint's weights.
#
#   mix run examples/minilm/demo.exs DEVICE MODEL_FOLDER TOKENS
#
# TOKENS is token_ids.py's output.
Code.require_file("report.ex", __DIR__)

defmodule MiniLM.Demo do
  @moduledoc false

  alias EMLX.{Array, Ops, Program}
  alias MiniLM.Report

  def run(device, model, tokens) do
    rows = Report.sentences(tokens)
    weights = EMLX.Safetensors.load(Path.join(model, "model.safetensors"), device: device)
    [fused, composed] = for name <- ["minilm", "minilm_composed"], do: load(name, weights, device)
    {batch, length} = fused.size
    batches = for rows <- Enum.chunk_every(rows, batch), do: pad(Enum.map(rows, &elem(&1, 0)), fused.size, device)

    how = "by examples/minilm/minilm.emlx, the saved program of Bumblebee's model after EMLXBumblebee.rewrite"
    Report.title(device, rows, fused.size, how)

    IO.puts(
      "Kernels used (of the program's #{fused.program.size} instructions; the model as it is has #{composed.program.size})"
    )

    for {kernel, count} <- kernels(fused.program, device), do: Report.line(kernel, "#{count}")

    [one, other] =
      for model <- [fused, composed],
          do:
            batches
            |> Enum.map(&embed(model, &1))
            |> Ops.concatenate(axis: 0)
            |> Ops.slice([0, 0], [length(rows), 384], [1, 1])

    first = hd(batches)
    run = for model <- [fused, composed], do: fn -> EMLX.eval(embed(model, first)) end
    Report.print(rows, one, other, List.to_tuple(run), "#{batch} x #{length}")
  end

  defp load(name, weights, device) do
    program = Program.load(Path.join(__DIR__, name <> ".emlx"), device: device)
    inputs = Program.inputs(program)
    {_, [batch, length], _} = List.keyfind(inputs, "input_ids", 0)

    %{
      program: program,
      size: {batch, length},
      weights: Map.take(weights, for({name, _, _} <- inputs, do: name)),
      device: device
    }
  end

  defp embed(model, batch) do
    [embeddings] = Program.run(model.program, Map.merge(model.weights, batch), device: model.device)
    embeddings
  end

  # Returns lists of token ids as a batch, padded with zeros and, if there are too few, with empty sentences.
  defp pad(ids, {batch, length}, device) do
    filled = ids ++ List.duplicate([0], batch - length(ids))
    ids = for row <- filled, do: row ++ List.duplicate(0, length - length(row))
    mask = for row <- filled, do: List.duplicate(1, length(row)) ++ List.duplicate(0, length - length(row))

    for {name, rows} <- [{"input_ids", ids}, {"attention_mask", mask}], into: %{} do
      data = for row <- rows, number <- row, into: <<>>, do: <<number::32-native>>
      {name, Array.from_binary(data, {batch, length}, :s32, device: device)}
    end
  end

  # Returns the fused kernels among the program's instructions.
  defp kernels(program, device) do
    text = Program.inspect(program, device: device)

    for kernel <- ~w(scaled_dot_product_attention layer_norm rms_norm rope),
        count = length(Regex.scan(~r/ = (?:fast_)?#{kernel}\(/, text)),
        count > 0,
        do: {kernel, count}
  end
end

MiniLM.Report.main(&MiniLM.Demo.run/3)
