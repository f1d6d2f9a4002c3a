defmodule MiniLM.Encoder do
  @moduledoc """
  all-MiniLM-L6-v2, which turns a sentence into a vector of 384 numbers: sentences of like meaning get vectors of like
  direction.

  A BERT encoder: six blocks of self-attention and a perceptron, each of the two followed by a residual sum and a layer norm.
  The mean of a sentence's tokens, scaled to length 1, is its embedding.

  `kernels` is the module whose `layer_norm/4` and `scaled_dot_product_attention/5` are used: `EMLX.Kernels`, or
  `MiniLM.Composed` with the same two as formulas.

  In the shapes below, `hidden` is 384, and `length` the number of tokens of the batch's longest sentence.
  """

  alias EMLX.{Array, Ops}

  defstruct [:weights, layers: 6, heads: 12, eps: 1.0e-12]

  @doc "The model with the weights of a safetensors file. `opts` are those of `EMLX.Safetensors.load/2`."
  def load(path, opts \\ []), do: %__MODULE__{weights: EMLX.Safetensors.load(path, opts)}

  @doc """
  Lists of token ids as two arrays of shape `{batch, length}`: the ids, padded with zeros, and the mask, true where there is a
  token.
  """
  def pad(sentences, opts \\ []) do
    length = sentences |> Enum.map(&length/1) |> Enum.max()
    shape = {length(sentences), length}

    ids = for ids <- sentences, id <- padded(ids, length), into: <<>>, do: <<id::32-native>>

    mask =
      for ids <- sentences,
          one <- padded(Enum.map(ids, fn _ -> 1 end), length),
          into: <<>>,
          do: <<one>>

    {Array.from_binary(ids, shape, :s32, opts), Array.from_binary(mask, shape, :bool, opts)}
  end

  defp padded(list, length), do: list ++ List.duplicate(0, length - length(list))

  @doc "The embeddings, `{batch, hidden}`, of token ids `{batch, length}` with their mask `{batch, length}`."
  def embed(model, ids, mask, kernels \\ EMLX.Kernels) do
    x = token_embeddings(model, ids, kernels)

    x =
      Enum.reduce(
        0..(model.layers - 1),
        x,
        &block(model, "encoder.layer.#{&1}", &2, mask, kernels)
      )

    x |> mean_pool(mask) |> normalize()
  end

  # {batch, length} -> {batch, length, hidden}: what the token is, where it stands, and that it is of the first segment.
  defp token_embeddings(model, ids, kernels) do
    {_batch, length} = Array.shape(ids)
    words = Ops.take(weight(model, "embeddings.word_embeddings"), ids, axis: 0)

    positions =
      Ops.slice(
        weight(model, "embeddings.position_embeddings"),
        [0, 0],
        [length, hidden(model)],
        [1, 1]
      )

    segment =
      Ops.slice(weight(model, "embeddings.token_type_embeddings"), [0, 0], [1, hidden(model)], [
        1,
        1
      ])

    words
    |> Ops.add(positions)
    |> Ops.add(segment)
    |> layer_norm(model, "embeddings.LayerNorm", kernels)
  end

  # {batch, length, hidden} -> {batch, length, hidden}
  defp block(model, name, x, mask, kernels) do
    attended =
      x
      |> attention(model, "#{name}.attention.self", mask, kernels)
      |> linear(model, "#{name}.attention.output.dense")

    x = x |> Ops.add(attended) |> layer_norm(model, "#{name}.attention.output.LayerNorm", kernels)

    transformed =
      x
      |> linear(model, "#{name}.intermediate.dense")
      |> gelu()
      |> linear(model, "#{name}.output.dense")

    x |> Ops.add(transformed) |> layer_norm(model, "#{name}.output.LayerNorm", kernels)
  end

  # {batch, length, hidden} -> {batch, length, hidden}. The hidden axis is shared out among the heads; each token attends to
  # all tokens of its sentence, and to no padding.
  defp attention(x, model, name, mask, kernels) do
    {batch, length, hidden} = Array.shape(x)
    size = div(hidden, model.heads)

    [q, k, v] =
      for kind <- ["query", "key", "value"] do
        x
        |> linear(model, "#{name}.#{kind}")
        |> Ops.reshape([batch, length, model.heads, size])
        |> Ops.transpose([0, 2, 1, 3])
      end

    mask = Ops.reshape(mask, [batch, 1, 1, length])

    kernels.scaled_dot_product_attention(q, k, v, mask, scale: 1 / :math.sqrt(size))
    |> Ops.transpose([0, 2, 1, 3])
    |> Ops.reshape([batch, length, hidden])
  end

  # {…, in} -> {…, out}; the weight is {out, in}.
  defp linear(x, model, name) do
    x |> Ops.matmul(Ops.transpose(weight(model, name), [1, 0])) |> Ops.add(bias(model, name))
  end

  defp layer_norm(x, model, name, kernels) do
    kernels.layer_norm(x, weight(model, name), bias(model, name), eps: model.eps)
  end

  # x · Φ(x), with Φ the normal distribution's: the exact GELU, not its approximation by tanh.
  defp gelu(x) do
    x
    |> Ops.multiply(1 / :math.sqrt(2))
    |> Ops.erf()
    |> Ops.add(1.0)
    |> Ops.multiply(Ops.multiply(x, 0.5))
  end

  # {batch, length, hidden} -> {batch, hidden}: the mean over the tokens, without the padding.
  defp mean_pool(x, mask) do
    mask = mask |> Ops.astype(Array.dtype(x)) |> Ops.expand_dims([-1])
    Ops.divide(Ops.sum(Ops.multiply(x, mask), axes: [1]), Ops.sum(mask, axes: [1]))
  end

  # Each row divided by its length.
  defp normalize(x) do
    Ops.divide(x, x |> Ops.square() |> Ops.sum(axes: [-1], keepdims: true) |> Ops.sqrt())
  end

  defp weight(model, name), do: Map.fetch!(model.weights, "#{name}.weight")
  defp bias(model, name), do: Map.fetch!(model.weights, "#{name}.bias")
  defp hidden(model), do: model |> bias("embeddings.LayerNorm") |> Array.size()
end

defmodule MiniLM.Composed do
  @moduledoc "The formulas of the two kernels that `MiniLM.Encoder` uses, composed of plain operations."

  alias EMLX.{Array, Ops}

  @doc "`(x - mean) / √(variance + eps) · weight + bias`, over the last axis."
  def layer_norm(x, weight, bias, eps: eps) do
    centred = Ops.subtract(x, Ops.mean(x, axes: [-1], keepdims: true))
    variance = centred |> Ops.square() |> Ops.mean(axes: [-1], keepdims: true)

    centred
    |> Ops.multiply(variance |> Ops.add(eps) |> Ops.rsqrt())
    |> Ops.multiply(weight)
    |> Ops.add(bias)
  end

  @doc "`softmax(scale · q · kᵀ) · v`, where the scores that `mask` is false for count as minus infinity."
  def scaled_dot_product_attention(q, k, v, mask, scale: scale) do
    scores = q |> Ops.matmul(Ops.transpose(k, [0, 1, 3, 2])) |> Ops.multiply(scale)
    hidden = Array.scalar(:neg_infinity, Array.dtype(scores))

    mask
    |> Ops.where(scores, hidden)
    |> Ops.softmax(axes: [-1])
    |> Ops.matmul(v)
  end
end
