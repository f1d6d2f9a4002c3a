defmodule MiniLM.Report do
  @moduledoc "What script/demo reads and prints, with Bumblebee (bumblebee.exs) and without (demo.exs)."

  alias EMLX.{Array, Ops}

  @pairs 8
  # As many as fit into so many milliseconds, of each.
  @runs 3..15
  @patience 10_000
  # Of the embeddings from the reference's, whose entries are about 0.05.
  @limit 1.0e-5

  @doc """
  Calls `run` with what script/demo gives as arguments: the device, the model's folder and token_ids.py's output. Ends the VM with an
  error where the device is absent.
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

  @doc "What is run, where and how."
  def title(device, rows, {batch, length}, how) do
    where = device |> to_string() |> String.upcase()
    IO.puts("\nMiniLM on the #{where}: #{length(rows)} sentences, in batches of #{batch} x #{length} tokens\n#{how}\n")
  end

  @doc "The rows of token_ids.py's output: `{ids, sentence}` each."
  def sentences(path) do
    for line <- File.stream!(path) do
      [ids, sentence] = line |> String.trim_trailing("\n") |> String.split("\t", parts: 2)
      {ids |> String.split(" ") |> Enum.map(&String.to_integer/1), sentence}
    end
  end

  @doc """
  Prints the nearest pairs, how far the embeddings are from PyTorch's and the composed ones, and the times. Ends the VM with an
  error where they are too far.

  `fused` and `composed` are embeddings, `{sentences, 384}`; `run` gives two functions that embed one batch each, fused and
  composed.
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
    # Of vectors of length 1, the product is the cosine.
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

  # How many sentences have stored embeddings, and the largest difference of these. Sentences are told by their token ids.
  defp from_reference(embeddings, ids) do
    stored = EMLX.Safetensors.load(Path.join(__DIR__, "reference.safetensors"), device: :cpu)
    known = Enum.zip(Array.to_list(stored["input_ids"]), Array.to_list(stored["embeddings"]))
    reference = Map.new(known, fn {ids, embedding} -> {unpadded(ids), embedding} end)
    rows = for {ids, row} <- Enum.zip(ids, Array.to_list(embeddings)), expected = reference[ids], do: {row, expected}
    {ours, theirs} = Enum.unzip(rows)
    {length(rows), difference(List.flatten(ours), List.flatten(theirs))}
  end

  # 0 is the padding's id.
  defp unpadded(ids), do: Enum.take_while(ids, &(&1 != 0))

  defp list(embeddings), do: embeddings |> Array.to_list() |> List.flatten()

  defp difference(ours, theirs) when length(ours) == length(theirs),
    do: Enum.zip_reduce(ours, theirs, 0.0, fn a, b, largest -> max(distance(a, b), largest) end)

  # :nan and :infinity, being atoms, sort after every number, so they count as the largest.
  defp distance(a, b) when is_number(a) and is_number(b), do: abs(a - b)
  defp distance(_, _), do: :nan

  # Run in turn, so that whatever else the machine does slows both alike.
  defp median_ms({fused, composed}) do
    time = fn run -> elem(:timer.tc(run), 0) / 1000 end
    both = fn -> {time.(fused), time.(composed)} end
    {first, _} = both.()
    runs = trunc(@patience / first) |> max(@runs.first) |> min(@runs.last)
    {fused, composed} = Enum.unzip(for _ <- 1..runs, do: both.())
    {median(fused), median(composed), runs}
  end

  defp median(times), do: times |> Enum.sort() |> Enum.at(div(length(times), 2))

  @doc "A line of a table."
  def line(label, value), do: IO.puts("  " <> String.pad_trailing(label, 48) <> String.pad_leading(value, 9))

  defp decimal(number, decimals), do: format(number, decimals: decimals)
  defp scientific(number), do: format(number, scientific: 1)

  defp format(not_finite, _options) when is_atom(not_finite), do: to_string(not_finite)
  defp format(number, options), do: :erlang.float_to_binary(number, options)
end
