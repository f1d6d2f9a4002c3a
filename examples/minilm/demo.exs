# The part of script/demo that runs MiniLM and prints.
#
#   mix run examples/minilm/demo.exs DEVICE WEIGHTS TOKENS REFERENCE
#
# TOKENS is token_ids.py's output, REFERENCE reference.py's.

Code.require_file("encoder.ex", __DIR__)

defmodule MiniLM.Compared do
  @moduledoc "The kernels of `EMLX.Kernels`, which on each call also note how far they are from `MiniLM.Composed`."

  alias EMLX.{Array, Ops}

  def layer_norm(x, weight, bias, opts), do: compared(:layer_norm, [x, weight, bias, opts])

  def scaled_dot_product_attention(q, k, v, mask, opts),
    do: compared(:scaled_dot_product_attention, [q, k, v, mask, opts])

  @doc "The largest difference of each kernel so far."
  def differences, do: Process.get(__MODULE__, %{})

  defp compared(kernel, arguments) do
    fused = apply(EMLX.Kernels, kernel, arguments)
    composed = apply(MiniLM.Composed, kernel, arguments)
    difference = fused |> Ops.subtract(composed) |> Ops.abs() |> Ops.max() |> Array.to_list()
    Process.put(__MODULE__, Map.update(differences(), kernel, difference, &max(&1, difference)))
    fused
  end
end

defmodule MiniLM.Demo do
  @moduledoc false

  alias EMLX.{Array, Ops}
  alias MiniLM.Encoder

  @pairs 8
  @runs 15
  # From NumPy's embeddings, whose entries are about 0.05.
  @limit 1.0e-5

  def run(device, weights, tokens, reference) do
    {ids, sentences} = tokens |> File.stream!() |> Enum.map(&parse/1) |> Enum.unzip()
    model = Encoder.load(weights, device: device)
    {ids, mask} = Encoder.pad(ids, device: device)
    embed = &Encoder.embed(model, ids, mask, &1)

    {count, length} = Array.shape(ids)
    where = device |> to_string() |> String.upcase()
    IO.puts("\nMiniLM on the #{where}: #{count} sentences, padded to #{length} tokens")

    embeddings = embed.(EMLX.Kernels)
    print_nearest_pairs(embeddings, sentences)

    IO.puts("\nLargest differences")
    difference = difference(embeddings, File.read!(reference))
    print("embeddings, from NumPy's in float64", scientific(difference))
    embed.(MiniLM.Compared)

    for {kernel, largest} <- MiniLM.Compared.differences(),
        do: print("#{kernel}, from its formula", scientific(largest))

    {fused, composed} = median_ms(embed)
    IO.puts("\nTime of one forward pass, median of #{@runs}")
    print("with the fused kernels", "#{decimal(fused, 1)} ms")
    print("with their formulas", "#{decimal(composed, 1)} ms")

    if difference > @limit do
      IO.puts(:stderr, "\ndemo: the embeddings differ from NumPy's by #{scientific(difference)}, more than #{@limit}")
      exit({:shutdown, 1})
    end
  end

  # A line of the token file: ids separated by spaces, a tab, the sentence.
  defp parse(line) do
    [ids, sentence] = line |> String.trim_trailing("\n") |> String.split("\t", parts: 2)
    {ids |> String.split(" ") |> Enum.map(&String.to_integer/1), sentence}
  end

  defp print_nearest_pairs(embeddings, sentences) do
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

  defp difference(embeddings, reference) do
    ours = embeddings |> Array.to_list() |> List.flatten()
    theirs = for <<x::float-64-little <- reference>>, do: x
    true = length(ours) == length(theirs)
    Enum.zip_reduce(ours, theirs, 0.0, fn a, b, largest -> max(distance(a, b), largest) end)
  end

  # :nan and :infinity, being atoms, sort after every number, so they count as the largest.
  defp distance(a, b) when is_number(a), do: abs(a - b)
  defp distance(not_finite, _b), do: not_finite

  # Run in turn, so that whatever else the machine does slows both alike.
  defp median_ms(forward) do
    time = fn kernels -> elem(:timer.tc(fn -> EMLX.eval(forward.(kernels)) end), 0) / 1000 end
    run = fn -> {time.(EMLX.Kernels), time.(MiniLM.Composed)} end
    run.()
    {fused, composed} = Enum.unzip(for _ <- 1..@runs, do: run.())
    {median(fused), median(composed)}
  end

  defp median(times), do: times |> Enum.sort() |> Enum.at(div(length(times), 2))

  defp print(label, value), do: IO.puts("  " <> String.pad_trailing(label, 48) <> String.pad_leading(value, 9))

  defp decimal(number, decimals), do: format(number, decimals: decimals)
  defp scientific(number), do: format(number, scientific: 1)

  defp format(not_finite, _options) when is_atom(not_finite), do: to_string(not_finite)
  defp format(number, options), do: :erlang.float_to_binary(number, options)
end

[device, weights, tokens, reference] = System.argv()
device = String.to_atom(device)

if EMLX.device_available?(device) do
  MiniLM.Demo.run(device, weights, tokens, reference)
else
  IO.puts(:stderr, "demo: MLX finds no GPU here")
  exit({:shutdown, 1})
end
