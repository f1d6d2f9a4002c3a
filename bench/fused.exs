# What a fused kernel saves over the same formula composed of operations: `mix run bench/fused.exs` on the CPU,
# `mix run bench/fused.exs gpu` on the GPU. Both sides start from the same arrays and are timed in one run: a chain of calls, each
# on the result of the one before, evaluated at its end; the median of 9 chains. The last lines say how near a norm and a rotation come
# to the speed at which the device copies the same bytes.
alias EMLX.{Array, Kernels, Ops}

device = String.to_existing_atom(List.first(System.argv()) || "cpu")
gpu? = device == :gpu

# Shapes that fill a GPU; a sixteenth of the rows for a CPU.
{rows, heads, links} = if gpu?, do: {8, {8, 32, 2048, 128}, 20}, else: {1, {1, 8, 512, 128}, 4}
dtype = if gpu?, do: :bf16, else: :f32
size = 4096

random = fn shape, seed ->
  key = Ops.random_key(seed, device: device)
  normal = {:random_normal, %{shape: Tuple.to_list(shape), dtype: :f32, loc: 0.0, scale: 1.0}}
  EMLX.eval(Ops.astype(Ops.run(normal, [key], device: device), dtype))
end

number = fn value -> Array.scalar(value, :f32, device: device) end
x = random.({rows, 2048, size}, 1)
[weight, bias] = for seed <- [2, 3], do: random.({size}, seed)
[q, k, v] = for seed <- [4, 5, 6], do: random.(heads, seed)
{_, _, length, head} = heads

# Constants of the composed sides, made once.
eps = number.(1.0e-5)
half = div(head, 2)

angles =
  Ops.multiply(
    Ops.reshape(Ops.astype(Ops.iota({length}, dtype: :s32, device: device), :f32), {length, 1}),
    Ops.exp(Ops.multiply(Ops.astype(Ops.iota({half}, dtype: :s32, device: device), :f32), -:math.log(10_000) / half))
  )

[cos, sin] = for f <- [&Ops.cos/1, &Ops.sin/1], do: EMLX.eval(Ops.astype(f.(angles), dtype))
places = Ops.iota({length}, dtype: :s32, device: device)
seen = Ops.greater_equal(Ops.reshape(places, {length, 1}), Ops.reshape(places, {1, length}))
mask = EMLX.eval(Ops.astype(Ops.where(seen, number.(0.0), number.(:neg_infinity)), dtype))

mean = fn a -> Ops.mean(a, axes: [-1], keepdims: true) end

composed = %{
  rms_norm: fn a ->
    wide = Ops.astype(a, :f32)
    normal = Ops.multiply(wide, Ops.rsqrt(Ops.add(mean.(Ops.square(wide)), eps)))
    Ops.multiply(Ops.astype(normal, dtype), weight)
  end,
  layer_norm: fn a ->
    wide = Ops.astype(a, :f32)
    centred = Ops.subtract(wide, mean.(wide))
    normal = Ops.multiply(centred, Ops.rsqrt(Ops.add(mean.(Ops.square(centred)), eps)))
    Ops.add(Ops.multiply(Ops.astype(normal, dtype), weight), bias)
  end,
  rope: fn a ->
    [first, second] = Ops.run({:split, %{indices: [half], axis: -1}}, [a])
    left = Ops.subtract(Ops.multiply(first, cos), Ops.multiply(second, sin))
    right = Ops.add(Ops.multiply(first, sin), Ops.multiply(second, cos))
    Ops.run({:concatenate, %{axis: -1}}, [left, right])
  end,
  attention: fn a ->
    scores = Ops.matmul(a, Ops.transpose(k, [0, 1, 3, 2]))
    scores = Ops.add(Ops.multiply(scores, Array.scalar(1 / :math.sqrt(head), dtype, device: device)), mask)
    Ops.matmul(Ops.run({:softmax, %{axes: [-1], precise: true}}, [scores]), v)
  end
}

fused = %{
  rms_norm: &Kernels.rms_norm(&1, weight, eps: 1.0e-5),
  layer_norm: &Kernels.layer_norm(&1, weight, bias, eps: 1.0e-5),
  rope: &Kernels.rope(&1, 0, nil, dims: head),
  attention: &Kernels.scaled_dot_product_attention(&1, k, v, :causal)
}

median = fn times -> times |> Enum.sort() |> Enum.at(div(length(times), 2)) end

time = fn start, step, links ->
  chain = fn -> EMLX.eval(Enum.reduce(1..links, start, fn _, a -> step.(a) end)) end
  for _ <- 1..2, do: chain.()

  times =
    for _ <- 1..9 do
      :erlang.garbage_collect()
      {time, _} = :timer.tc(chain)
      time / links
    end

  median.(times)
end

text = fn number -> number |> Float.round(if(number < 100, do: 2, else: 1)) |> to_string() |> String.pad_leading(10) end
IO.puts("#{device}, #{dtype}; µs a call      fused  composed     ratio")

times =
  for {name, start, links} <- [
        {:rms_norm, x, links},
        {:layer_norm, x, links},
        {:rope, q, links},
        {:attention, q, max(div(links, 5), 1)}
      ],
      into: %{} do
    near = fn step -> Ops.astype(step.(start), :f32) end
    distance = Ops.max(Ops.abs(Ops.subtract(near.(fused[name]), near.(composed[name]))))
    distance = Array.to_list(distance)
    true = distance < 0.2 or raise "#{name}: fused and composed are #{distance} apart"
    [a, b] = for side <- [fused, composed], do: time.(start, side[name], links)
    IO.puts(String.pad_trailing(to_string(name), 22) <> text.(a) <> text.(b) <> text.(b / a))
    {name, a}
  end

# One operand read and one result written, as a norm or a rotation does.
copy = time.(x, &Ops.negative/1, links)
bytes = 2 * Array.size(x) * Array.dtype_size(dtype)
IO.puts("copying #{text.(copy)} µs, #{Float.round(bytes / copy / 1.0e3, 1)} GB/s")

for name <- [:rms_norm, :layer_norm] do
  IO.puts(
    "#{name} #{Float.round(bytes / times[name] / 1.0e3, 1)} GB/s, #{round(100 * copy / times[name])} % of copying"
  )
end
