# The Elixir side of bench/encoder: an encoder of 6 blocks of 384 on 8 × 64 tokens on the CPU, compiled with EMLX in f32 and in bf16,
# against the same model in bare Python MLX with the same libmlx and BLAS, and in XLA (jax.jit), in turn. Prints medians and ratios.
Code.require_file("peers.exs", __DIR__)

defmodule Encoder do
  import Nx.Defn

  def blocks, do: 6
  def heads, do: 12
  @size 384
  @hidden 1536
  @batch 8
  @length 64

  # Weights from a seed, small enough for the activations to stay near 1.
  def weights do
    shapes = for i <- 0..(blocks() - 1), {name, shape} <- block(), do: {:"#{name}#{i}", shape}

    {weights, key} =
      Enum.map_reduce(shapes, Nx.Random.key(42), fn {name, shape}, key ->
        scale = if tuple_size(shape) == 1, do: 0.1, else: 1 / :math.sqrt(elem(shape, 0))
        {values, key} = Nx.Random.normal(key, 0.0, scale, shape: shape, type: :f32)
        {{name, values}, key}
      end)

    {x, _key} = Nx.Random.normal(key, 0.0, 1.0, shape: {@batch, @length, @size}, type: :f32)
    {Map.new(weights), x}
  end

  defp block do
    vectors = [norm_scale: {@size}, norm_bias: {@size}, out_scale: {@size}, out_bias: {@size}]
    square = for name <- [:q, :k, :v, :o], do: {name, {@size, @size}}
    biases = for name <- [:qb, :kb, :vb, :ob, :db], do: {name, {@size}}
    vectors ++ square ++ biases ++ [u: {@size, @hidden}, ub: {@hidden}, d: {@hidden, @size}]
  end

  defn(model(x, w), do: all_blocks(x, w))

  deftransformp all_blocks(x, w) do
    Enum.reduce(0..(blocks() - 1), x, fn i, x ->
      of = fn name -> Map.fetch!(w, :"#{name}#{i}") end
      dense = fn x, w, b -> Nx.add(Nx.dot(x, of.(w)), of.(b)) end
      x = Nx.add(x, attention(x, of, dense))
      x = EMLX.Fast.layer_norm(x, Nx.add(of.(:norm_scale), 1), of.(:norm_bias), eps: 1.0e-12)
      h = gelu(dense.(x, :u, :ub))
      x = Nx.add(x, dense.(h, :d, :db))
      EMLX.Fast.layer_norm(x, Nx.add(of.(:out_scale), 1), of.(:out_bias), eps: 1.0e-12)
    end)
  end

  defp gelu(x) do
    x
    |> Nx.divide(Nx.tensor(:math.sqrt(2), type: Nx.type(x)))
    |> Nx.erf()
    |> Nx.add(1)
    |> Nx.multiply(x)
    |> Nx.multiply(0.5)
  end

  defp attention(x, _of, dense) do
    {batch, length, size} = Nx.shape(x)
    dims = div(size, heads())

    split = fn w, b ->
      dense.(x, w, b) |> Nx.reshape({batch, length, heads(), dims}) |> Nx.transpose(axes: [0, 2, 1, 3])
    end

    EMLX.Fast.scaled_dot_product_attention(split.(:q, :qb), split.(:k, :kb), split.(:v, :vb), nil,
      scale: 1 / :math.sqrt(dims)
    )
    |> Nx.transpose(axes: [0, 2, 1, 3])
    |> Nx.reshape({batch, length, size})
    |> dense.(:o, :ob)
  end
end

Nx.default_backend({EMLX.Backend, device: :cpu})
{weights, x} = Encoder.weights()
title = "encoder, 6 blocks of 384, 8 × 64 tokens, CPU"
Peers.compare("encoder", title, &Encoder.model/2, {"x", x}, weights, "y", [Encoder.blocks(), Encoder.heads()])
