defmodule MiniLM.Report do
  @moduledoc "The input and output of script/demo, with Bumblebee (bumblebee.exs) and without (demo.exs)."

  alias EMLX.{Array, Ops}

  @pairs 8
  # The number of runs of each side, as many as fit into @patience milliseconds.
  @runs 3..15
  @patience 10_000
  # The largest allowed difference from the reference, whose elements are about 0.05.
  @limit 1.0e-5

  @doc """
  Calls `run` with script/demo's arguments: the device, the model's folder and token_ids.py's output. Stops the VM with
  an error if the device does not exist.
  """
  def main(run) do
    [device, folder, tokens] = System.argv()
    device = if device == "gpu", do: :gpu, else: :cpu

    if EMLX.device_available?(device) do
      run.(device, folder, tokens)
    else
      IO.puts(:stderr, "demo: MLX finds no GPU here")
      exit({:shutdown, 1})
    end
  end

  @doc "Prints the model, the device and how the model is run."
  def title(device, rows, {batch, length}, how) do
    where = device |> to_string() |> String.upcase()
    IO.puts("\nMiniLM on the #{where}: #{length(rows)} sentences, in batches of #{batch} x #{length} tokens\n#{how}\n")
  end

  @doc "Returns the rows of token_ids.py's output, `{ids, sentence}` each."
  def sentences(path) do
    for line <- File.stream!(path) do
      [ids, sentence] = line |> String.trim_trailing("\n") |> String.split("\t", parts: 2)
      {ids |> String.split(" ") |> Enum.map(&String.to_integer/1), sentence}
    end
  end

  @doc """
  Prints the nearest pairs, the differences of the embeddings from PyTorch's and from the composed ones, and the times.
  Stops the VM with an error if a difference is too large.

  `fused` and `composed` are embeddings, `{sentences, 384}`; `run` is a tuple of two functions that embed one batch
  each, fused and composed.
  """
  def print(rows, fused, composed, run, batch) do
    {ids, sentences} = Enum.unzip(rows)
    nearest_pairs(fused, sentences)

    IO.puts("\nLargest differences")
    {found, difference} = from_reference(fused, ids)

    if found > 0 do
      line("of #{found} embeddings from PyTorch's (float64)", scientific(difference))
    else
      IO.puts("  there is no stored reference for these sentences; the kernels are compared with their formulas")
    end

    between = difference(list(fused), list(composed))
    line("fused from composed", scientific(between))

    {fused_ms, composed_ms, runs} = median_ms(run)
    IO.puts("\nTime of a batch of #{batch}, median of #{runs}")
    line("fused", "#{decimal(fused_ms, 1)} ms")
    line("composed", "#{decimal(composed_ms, 1)} ms")
    line("composed / fused", decimal(composed_ms / fused_ms, 2))

    for {what, value} <- [{"PyTorch's", difference}, {"the composed ones", between}], value > @limit do
      IO.puts(:stderr, "\ndemo: the embeddings differ from #{what} by #{scientific(value)}, more than #{@limit}")
      exit({:shutdown, 1})
    end
  end

  defp nearest_pairs(embeddings, sentences) do
    # The product of vectors of length 1 is their cosine.
    similarities = embeddings |> Ops.matmul(Ops.transpose(embeddings, [1, 0])) |> Array.to_list()

    pairs =
      for {{row, one}, i} <- similarities |> Enum.zip(sentences) |> Enum.with_index(),
          {similarity, other} <- row |> Enum.zip(sentences) |> Enum.drop(i + 1),
          do: {similarity, one, other}

    IO.puts("\nNearest pairs, by cosine similarity")

    for {similarity, one, other} <- pairs |> Enum.sort(:desc) |> Enum.take(@pairs) do
      IO.puts("  #{decimal(similarity, 3)}  #{one}\n         #{other}")
    end
  end

  # Returns the number of sentences with stored embeddings, and their largest difference. Token ids identify a sentence.
  defp from_reference(embeddings, ids) do
    stored = EMLX.Safetensors.load(Path.join(__DIR__, "reference.safetensors"), device: :cpu)
    known = Enum.zip(Array.to_list(stored["input_ids"]), Array.to_list(stored["embeddings"]))
    reference = Map.new(known, fn {ids, embedding} -> {unpadded(ids), embedding} end)
    rows = for {ids, row} <- Enum.zip(ids, Array.to_list(embeddings)), expected = reference[ids], do: {row, expected}
    {ours, theirs} = Enum.unzip(rows)
    {length(rows), difference(List.flatten(ours), List.flatten(theirs))}
  end

  # 0 is the id of padding.
  defp unpadded(ids), do: Enum.take_while(ids, &(&1 != 0))

  defp list(embeddings), do: embeddings |> Array.to_list() |> List.flatten()

  defp difference(ours, theirs) when length(ours) == length(theirs),
    do: Enum.zip_reduce(ours, theirs, 0.0, fn a, b, largest -> max(distance(a, b), largest) end)

  # The atoms :nan and :infinity sort after every number, so they count as the largest.
  defp distance(a, b) when is_number(a) and is_number(b), do: abs(a - b)
  defp distance(_, _), do: :nan

  # The sides alternate, so that other load on the machine slows both equally.
  defp median_ms({fused, composed}) do
    time = fn run -> elem(:timer.tc(run), 0) / 1000 end
    both = fn -> {time.(fused), time.(composed)} end
    {first, _} = both.()
    runs = trunc(@patience / first) |> max(@runs.first) |> min(@runs.last)
    {fused, composed} = Enum.unzip(for _ <- 1..runs, do: both.())
    {median(fused), median(composed), runs}
  end

  defp median(times), do: times |> Enum.sort() |> Enum.at(div(length(times), 2))

  @doc "Prints a line of a table."
  def line(label, value), do: IO.puts("  " <> String.pad_trailing(label, 48) <> String.pad_leading(value, 9))

  defp decimal(number, decimals), do: format(number, decimals: decimals)
  defp scientific(number), do: format(number, scientific: 1)

  defp format(not_finite, _options) when is_atom(not_finite), do: to_string(not_finite)
  defp format(number, options), do: :erlang.float_to_binary(number, options)
end
