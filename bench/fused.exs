# What a fused kernel saves over the operations that it stands for: `mix run bench/fused.exs` on the CPU, `mix run
# bench/fused.exs gpu` on the GPU. The composed side is what a block runs where there is no kernel. Both sides take the same tensors
# and are timed in one run: a chain of calls, each on the result of the one before, evaluated at its end; the median of 9 chains. The
# last lines say how near a kernel comes to the speed at which the device copies the same bytes.
alias EMLX.Fast
alias EMLX.Fast.{LayerNorm, RMSNorm, RoPE, ScaledDotProductAttention}

device = if System.argv() == ["gpu"], do: :gpu, else: :cpu
Nx.default_backend({EMLX.Backend, device: device})

# Shapes that fill a GPU; a part of them for a CPU.
{x_shape, heads, links, type} =
  case device do
    :gpu -> {{8, 2048, 4096}, {8, 32, 2048, 128}, 20, {:bf, 16}}
    :cpu -> {{1, 512, 4096}, {1, 8, 512, 128}, 4, {:f, 32}}
  end

eval = fn tensor ->
  EMLX.eval(EMLX.Backend.to_array(tensor))
  tensor
end

random = fn shape, seed ->
  {tensor, _key} = Nx.Random.normal(Nx.Random.key(seed), shape: shape, type: {:f, 32})
  eval.(Nx.as_type(tensor, type))
end

x = random.(x_shape, 1)
[weight, bias] = for seed <- [2, 3], do: random.({elem(x_shape, 2)}, seed)
[q, k, v] = for seed <- [4, 5, 6], do: random.(heads, seed)
size = elem(heads, 3)

attention = %ScaledDotProductAttention{scale: 1 / :math.sqrt(size), mask: :causal, sinks?: false}
rope = %RoPE{dims: size, traditional: false, base: 10_000, scale: 1, freqs?: false, offset: 0}

pairs = [
  rms_norm: {x, links, &Fast.rms_norm(&1, weight), &RMSNorm.composed(%RMSNorm{eps: 1.0e-6}, &1, weight)},
  layer_norm:
    {x, links, &Fast.layer_norm(&1, weight, bias), &LayerNorm.composed(%LayerNorm{eps: 1.0e-5}, &1, weight, bias)},
  rope: {q, links, &Fast.rope(&1, 0), &RoPE.composed(rope, &1)},
  attention:
    {q, div(links, 4), &Fast.scaled_dot_product_attention(&1, k, v, :causal),
     &ScaledDotProductAttention.composed(attention, &1, k, v)}
]

time = fn start, step, links ->
  chain = fn -> eval.(Enum.reduce(1..links, start, fn _, a -> step.(a) end)) end
  for _ <- 1..2, do: chain.()

  times =
    for _ <- 1..9 do
      :erlang.garbage_collect()
      {time, _} = :timer.tc(chain)
      time / links
    end

  times |> Enum.sort() |> Enum.at(4)
end

text = fn number -> number |> Float.round(if(number < 100, do: 2, else: 1)) |> to_string() |> String.pad_leading(11) end
IO.puts("#{device}, #{Nx.Type.to_string(type)}            fused µs composed µs      ratio")

times =
  for {name, {start, links, fused, composed}} <- pairs, into: %{} do
    [one, other] = for side <- [fused, composed], do: Nx.as_type(side.(start), :f32)
    largest = fn tensor -> tensor |> Nx.abs() |> Nx.reduce_max() |> Nx.to_number() end
    distance = largest.(Nx.subtract(one, other)) / largest.(other)
    if distance > 0.02, do: raise("#{name}: fused and composed are #{distance} of the largest number apart")
    [a, b] = for side <- [fused, composed], do: time.(start, side, links)
    IO.puts(String.pad_trailing(to_string(name), 16) <> text.(a) <> text.(b) <> text.(b / a))
    {name, a}
  end

# One operand read and one result written, as a norm and a rotation do.
for {name, start} <- [rms_norm: x, layer_norm: x, rope: q] do
  copy = time.(start, &Nx.negate/1, links)
  bytes = 2 * Nx.byte_size(start)
  speed = fn time -> "#{Float.round(bytes / time / 1.0e3, 1)} GB/s" end
  IO.puts("#{name}: #{speed.(times[name])}, copying #{speed.(copy)}, #{round(100 * copy / times[name])} %")
end
