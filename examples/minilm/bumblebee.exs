# The part of script/demo that runs MiniLM with Bumblebee: its model, tokenizer and serving, rewritten by EMLXBumblebee
# and compiled with EMLX.
#
#   cd emlx_bumblebee && mix run ../examples/minilm/bumblebee.exs DEVICE MODEL_FOLDER TOKENS
#
# TOKENS is token_ids.py's output.
Code.require_file("report.ex", __DIR__)
Code.require_file("program.ex", __DIR__)

defmodule MiniLM.Bumblebee do
  @moduledoc false

  alias MiniLM.Report

  def run(device, folder, tokens) do
    rows = Report.sentences(tokens)
    Nx.default_backend({EMLX.Backend, device: device})
    {:ok, info} = Bumblebee.load_model({:local, folder}, architecture: :base)
    {:ok, tokenizer} = Bumblebee.load_tokenizer({:local, folder})
    rewritten = EMLXBumblebee.rewrite(info)
    {batch, length} = size = MiniLM.Program.size()
    how = "by Bumblebee.Text.text_embedding, with compiler: EMLX, after EMLXBumblebee.rewrite"
    Report.title(device, rows, size, how)
    IO.puts("#{EMLXBumblebee.explain(rewritten)}\n")

    texts = for {_ids, sentence} <- rows, do: sentence
    {fused, told} = told(fn -> embed(rewritten, tokenizer, texts, device) end)
    {composed, []} = told(fn -> embed(info, tokenizer, texts, device) end)

    IO.puts("Kernels used, as reported by telemetry when the model was compiled")

    for {{block, path}, count} <- Enum.frequencies_by(told, &{&1.block, &1.path}) do
      Report.line("#{inspect(block)}, #{path}", "#{count}")
    end

    inputs = Bumblebee.apply_tokenizer(Bumblebee.configure(tokenizer, length: length), first(texts, batch))
    runs = for info <- [rewritten, info], do: batch(info, Map.take(inputs, ["input_ids", "attention_mask"]), device)

    Report.print(
      rows,
      EMLX.Backend.to_array(fused),
      EMLX.Backend.to_array(composed),
      List.to_tuple(runs),
      "#{batch} x #{length}"
    )
  end

  defp embed(info, tokenizer, texts, device) do
    {batch, length} = MiniLM.Program.size()

    serving =
      Bumblebee.Text.text_embedding(info, tokenizer,
        output_attribute: :hidden_state,
        output_pool: :mean_pooling,
        embedding_processor: :l2_norm,
        compile: [batch_size: batch, sequence_length: length],
        # A function in the compile cache dispatches no blocks.
        defn_options: [compiler: EMLX, device: device, cache: false]
      )

    {:ok, pid} = Nx.Serving.start_link(serving: serving, name: __MODULE__, batch_size: batch)
    rows = for %{embedding: row} <- Nx.Serving.batched_run(__MODULE__, texts), do: row
    Supervisor.stop(pid)
    rows |> Nx.stack() |> Nx.backend_transfer({EMLX.Backend, device: device})
  end

  # The model alone, because a serving adds the same time to both.
  defp batch(info, inputs, device) do
    {_init, predict} = Axon.build(info.model, compiler: EMLX, device: device)
    fn -> predict.(info.params, inputs).hidden_state |> EMLX.Backend.to_array() |> EMLX.eval() end
  end

  # Returns `count` texts, repeating the list if necessary.
  defp first(texts, count), do: texts |> Stream.cycle() |> Enum.take(count)

  # Returns the models' blocks that telemetry reports. Blocks of Nx also belong to the composed model, and those of
  # EMLX.Fast are nested in others, so both are omitted.
  defp told(fun) do
    {:ok, heard} = Agent.start_link(fn -> [] end)
    id = make_ref()
    :telemetry.attach(id, [:emlx, :block, :dispatch], &__MODULE__.tell/4, heard)
    result = fun.()
    :telemetry.detach(id)
    {result, Agent.get(heard, & &1)}
  end

  def tell(_event, _measurements, told, heard) do
    unless hd(Module.split(told.block)) in ["Nx", "EMLX"], do: Agent.update(heard, &[told | &1])
  end
end

MiniLM.Report.main(&MiniLM.Bumblebee.run/3)
