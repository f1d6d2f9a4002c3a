defmodule EMLX.Bench.Encoder do
  @moduledoc """
  The suite's encoder as a function of `Nx.Defn` on EMLX's fused kernels; what bench/peers/mlx_models.py is in Python. A
  BERT with the mean over its tokens, scaled to length 1, on the names that MiniLM's checkpoint has.
  """

  import Nx.Defn

  alias EMLX.Fast

  @doc "Embeddings `{batch, size}` of token ids and a mask, `{batch, length}` each. `opts` hold `:blocks` and `:heads`."
  defn embed(inputs, w, opts \\ []) do
    pool(all_blocks(inputs, w, opts), inputs["attention_mask"])
  end

  @doc "The mean of hidden states over the tokens that the mask has, scaled to length 1."
  defn pool(hidden, mask) do
    mask = mask |> Nx.new_axis(-1) |> Nx.as_type(Nx.type(hidden))
    mean = Nx.sum(hidden * mask, axes: [1]) / Nx.sum(mask, axes: [1])
    mean / Nx.sqrt(Nx.sum(mean * mean, axes: [-1], keep_axes: true))
  end

  deftransformp all_blocks(inputs, w, opts) do
    tokens = inputs["input_ids"]
    {batch, length} = Nx.shape(tokens)
    table = fn name -> Map.fetch!(w, "embeddings.#{name}_embeddings.weight") end

    x =
      Nx.take(table.("word"), tokens)
      |> Nx.add(table.("position")[0..(length - 1)])
      |> Nx.add(table.("token_type")[0])
      |> norm(w, "embeddings.LayerNorm")

    seen = inputs["attention_mask"] |> Nx.not_equal(0) |> Nx.reshape({batch, 1, 1, length})
    Enum.reduce(0..(opts[:blocks] - 1), x, &block(&2, w, "encoder.layer.#{&1}", seen, opts[:heads]))
  end

  defp block(x, w, name, seen, heads) do
    {batch, length, size} = Nx.shape(x)
    dims = div(size, heads)

    [q, k, v] =
      for part <- ~w(query key value) do
        x
        |> dense(w, "#{name}.attention.self.#{part}")
        |> Nx.reshape({batch, length, heads, dims})
        |> Nx.transpose(axes: [0, 2, 1, 3])
      end

    out =
      Fast.scaled_dot_product_attention(q, k, v, seen, scale: 1 / :math.sqrt(dims))
      |> Nx.transpose(axes: [0, 2, 1, 3])
      |> Nx.reshape({batch, length, size})
      |> dense(w, "#{name}.attention.output.dense")

    x = norm(Nx.add(x, out), w, "#{name}.attention.output.LayerNorm")
    h = x |> dense(w, "#{name}.intermediate.dense") |> gelu() |> dense(w, "#{name}.output.dense")
    norm(Nx.add(x, h), w, "#{name}.output.LayerNorm")
  end

  # The checkpoint's matrices are {outputs, inputs}.
  defp dense(x, w, name) do
    [matrix, bias] = for part <- ["weight", "bias"], do: Map.fetch!(w, "#{name}.#{part}")

    case w["#{name}.scales"] do
      nil -> Nx.add(Nx.dot(x, [-1], matrix, [1]), bias)
      scales -> Fast.int8_matmul(x, matrix, scales, bias)
    end
  end

  defp norm(x, w, name),
    do: Fast.layer_norm(x, Map.fetch!(w, name <> ".weight"), Map.fetch!(w, name <> ".bias"), eps: 1.0e-12)

  defp gelu(x) do
    x
    |> Nx.divide(Nx.tensor(:math.sqrt(2), type: Nx.type(x)))
    |> Nx.erf()
    |> Nx.add(1)
    |> Nx.multiply(x)
    |> Nx.multiply(0.5)
  end
end
