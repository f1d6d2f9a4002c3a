# The Elixir side of bench/decoder: a decoder of 8 blocks of 512 on 128 tokens in f32 on the CPU, compiled with EMLX, against the
# same model in bare Python MLX with the same libmlx and BLAS and in XLA (jax.jit), in turn; and the same compiled in bf16. Prints
# medians, ratios, and what tracing takes.
Code.require_file("peers.exs", __DIR__)

defmodule Decoder do
  import Nx.Defn

  def blocks, do: 8
  def heads, do: 8
  @size 512
  @hidden 2048
  @vocabulary 4096
  @length 128

  # Weights from a seed, small enough for the activations to stay near 1.
  def weights do
    shapes =
      for i <- 0..(blocks() - 1), {name, shape} <- block(), into: %{}, do: {:"#{name}#{i}", shape}

    shapes = Map.merge(shapes, %{embedding: {@vocabulary, @size}, norm: {@size}, head: {@size, @vocabulary}})

    {weights, key} =
      Enum.map_reduce(Enum.sort(shapes), Nx.Random.key(42), fn {name, shape}, key ->
        scale = if tuple_size(shape) == 1, do: 0.1, else: 1 / :math.sqrt(elem(shape, 0))
        {values, key} = Nx.Random.normal(key, 0.0, scale, shape: shape, type: :f32)
        {{name, if(tuple_size(shape) == 1, do: Nx.add(values, 1), else: values)}, key}
      end)

    {tokens, _key} = Nx.Random.randint(key, 0, @vocabulary, shape: {1, @length})
    {Map.new(weights), tokens}
  end

  defp block do
    [attention_norm: {@size}, ffn_norm: {@size}] ++
      for(name <- [:q, :k, :v, :o], do: {name, {@size, @size}}) ++
      [gate: {@size, @hidden}, up: {@size, @hidden}, down: {@hidden, @size}]
  end

  defn model(tokens, w) do
    x = Nx.take(w.embedding, tokens)
    x = all_blocks(x, w)
    x |> EMLX.Fast.rms_norm(w.norm, eps: 1.0e-5) |> Nx.dot(w.head)
  end

  deftransformp all_blocks(x, w) do
    Enum.reduce(0..(blocks() - 1), x, fn i, x ->
      of = fn name -> Map.fetch!(w, :"#{name}#{i}") end
      x = Nx.add(x, attention(EMLX.Fast.rms_norm(x, of.(:attention_norm), eps: 1.0e-5), of))
      h = EMLX.Fast.rms_norm(x, of.(:ffn_norm), eps: 1.0e-5)
      gate = Nx.dot(h, of.(:gate))
      gated = Nx.multiply(Nx.multiply(gate, Nx.sigmoid(gate)), Nx.dot(h, of.(:up)))
      Nx.add(x, Nx.dot(gated, of.(:down)))
    end)
  end

  defp attention(x, of) do
    {batch, length, size} = Nx.shape(x)
    dims = div(size, heads())

    split = fn name ->
      x |> Nx.dot(of.(name)) |> Nx.reshape({batch, length, heads(), dims}) |> Nx.transpose(axes: [0, 2, 1, 3])
    end

    rope = fn t -> EMLX.Fast.rope(t, 0, nil, dims: dims, base: 10_000.0) end
    [q, k, v] = [rope.(split.(:q)), rope.(split.(:k)), split.(:v)]

    EMLX.Fast.scaled_dot_product_attention(q, k, v, :causal, scale: 1 / :math.sqrt(dims))
    |> Nx.transpose(axes: [0, 2, 1, 3])
    |> Nx.reshape({batch, length, size})
    |> Nx.dot(of.(:o))
  end
end

Nx.default_backend({EMLX.Backend, device: :cpu})
{weights, tokens} = Decoder.weights()
title = "decoder, 8 blocks of 512, 128 tokens, CPU"
sizes = [Decoder.blocks(), Decoder.heads()]
compile = fn -> Nx.Defn.compile(&Decoder.model/2, [tokens, weights], compiler: EMLX, cache: false) end
{first, _} = Peers.ms(compile)
tracing = for(_ <- 1..5, do: elem(Peers.ms(compile), 0)) |> Enum.sort() |> Enum.at(2)

Peers.compare("decoder", title, &Decoder.model/2, {"tokens", tokens}, weights, "logits", sizes)
IO.puts("tracing                     #{Float.round(tracing, 2)} ms (#{Float.round(first, 2)} ms the first time)")
