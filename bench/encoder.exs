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

file = Path.join(System.tmp_dir!(), "emlx_encoder_#{System.pid()}.safetensors")
array = &EMLX.Backend.to_array/1
EMLX.Safetensors.save(file, [{"x", array.(x)} | for({name, tensor} <- weights, do: {"#{name}", array.(tensor)})])

arguments = [file, "#{Encoder.blocks()}", "#{Encoder.heads()}"]
mlx = Peers.start("encoder.py", System.fetch_env!("EMLX_BENCH_MLX"), arguments)
xla = Peers.start("encoder_xla.py", System.fetch_env!("EMLX_BENCH_XLA"), arguments)

compiled = fn type ->
  x = Nx.as_type(x, type)
  weights = Map.new(weights, fn {name, w} -> {name, Nx.as_type(w, type)} end)
  run = Nx.Defn.compile(&Encoder.model/2, [x, weights], compiler: EMLX, cache: false)
  fn -> run.(x, weights) end
end

here = fn run -> fn -> elem(Peers.ms(fn -> run.() |> array.() |> EMLX.eval() end), 0) end end
{single, half} = {compiled.(:f32), compiled.(:bf16)}

# The answers are the same.
for {name, there} <- [{"bare Python MLX", mlx}, {"XLA", xla}] do
  output = file <> ".output.safetensors"
  there.("output #{output}")
  [{"y", expected}] = Enum.to_list(EMLX.Safetensors.load(output))
  IO.puts("largest difference from #{name}: #{Peers.largest_difference(array.(single.()), expected)}")
  File.rm(output)
end

File.rm(file)
IO.puts("encoder, 6 blocks of 384, 8 × 64 tokens, CPU; medians of 31 in turn")

[
  {"compiled with EMLX, f32", here.(single)},
  {"bare Python MLX, f32", fn -> mlx.("run") end},
  {"XLA, f32", fn -> xla.("run") end},
  {"compiled with EMLX, bf16", here.(half)}
]
|> Peers.medians(31)
|> Peers.print()
