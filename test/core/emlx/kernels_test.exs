# The fused kernels against golden values of NumPy's float64 (test/golden), and, over a grid of shapes, against their
# formulas. The formulas are composed in f64 from operations that have golden values themselves.
defmodule EMLX.KernelsTest do
  use ExUnit.Case, async: true

  alias EMLX.{Array, Golden, Ops}

  @types [:f32, :f16, :bf16]
  for file <- Golden.files(), do: @external_resource(file)

  defp report([]), do: :ok

  defp report(failures) do
    shown = Enum.take(failures, 8)
    more = length(failures) - length(shown)
    flunk(Enum.join(shown, "\n") <> if(more > 0, do: "\nand #{more} cases more", else: ""))
  end

  defp errors(results), do: for({:error, text} <- results, do: text)

  for {operation, count} <- Golden.operations(["kernels"]) do
    @operation operation

    describe "#{operation} (#{count} golden cases)" do
      test "#{operation} returns the golden values, in MLX's types" do
        ["kernels"] |> Golden.cases_of(@operation) |> Enum.map(&Golden.check/1) |> errors() |> report()
      end

      test "#{operation} returns the golden values when its inputs are strided views" do
        run = fn op, inputs -> Golden.run(op, Enum.map(inputs, &Golden.scattered/1)) end
        ["kernels"] |> Golden.cases_of(@operation) |> Enum.map(&Golden.check(&1, run)) |> errors() |> report()
      end
    end
  end

  # ---- the grid ----

  # Seeded numbers between -2 and 2 of a type.
  defp numbers(shape, dtype, seed) do
    key = Ops.run({:random_key, %{seed: seed}}, [])
    bounds = [Array.scalar(-2.0, :f32), Array.scalar(2.0, :f32)]
    uniform = Ops.run({:random_uniform, %{shape: shape, dtype: :f32}}, bounds ++ [key])
    Ops.astype(uniform, dtype)
  end

  defp wide(nil), do: nil
  defp wide(array), do: Ops.astype(array, :f64)

  defp near(label, have, want), do: Golden.compare(label, have, want, :fused)

  # Large enough for EMLX's own kernels on CUDA.
  describe "large arrays" do
    @describetag :slow

    for dtype <- @types do
      test "norms of large arrays match their formulas, also for unaligned rows, in #{dtype}" do
        results =
          for {rows, size} <- [{257, 4096}, {1100, 1000}, {180, 6001}, {80, 16_384}, {64, 20_000}],
              weighted <- [false, true],
              shifted <- [false, true] do
            x = numbers([rows * size + 1], unquote(dtype), 1)
            {from, to} = if shifted, do: {1, rows * size + 1}, else: {0, rows * size}
            x = Ops.reshape(Ops.run({:slice, %{start: [from], stop: [to], strides: [1]}}, [x]), {rows, size})
            [weight, bias] = for seed <- [2, 3], do: if(weighted, do: numbers([size], unquote(dtype), seed))
            label = "#{rows} × #{size} #{weighted} #{shifted}"

            near(
              label,
              Golden.layer_norm(x, weight, bias, eps: 1.0e-5),
              layer_norm(wide(x), wide(weight), wide(bias), 1.0e-5)
            )
          end

        results |> errors() |> report()
      end

      test "rope of large arrays matches its formula, whatever their strides, in #{dtype}" do
        opts = [dims: 128, traditional: false, base: 10_000.0, scale: 1.0]
        freqs = Array.from_list(for(i <- 1..64, do: 1.0 + i * i), :f32)
        plain = numbers([20, 9, 60, 128], unquote(dtype), 1)
        turned = Ops.transpose(numbers([20, 60, 9, 128], unquote(dtype), 2), [0, 2, 1, 3])
        backwards = Ops.run({:flip, %{axes: [2]}}, [plain])
        spread = Ops.run({:broadcast_to, %{shape: [20, 9, 60, 128]}}, [numbers([20, 1, 60, 128], unquote(dtype), 3)])
        rows = Array.from_list(Enum.to_list(0..19), :s32)

        results =
          for {name, x} <- [plain: plain, turned: turned, backwards: backwards, spread: spread],
              {offset, freqs} <- [{5, nil}, {rows, nil}, {rows, freqs}] do
            near(
              "#{name} #{inspect(offset)} #{freqs != nil}",
              Golden.rope(x, offset, freqs, opts),
              rope(wide(x), offset, wide(freqs), opts)
            )
          end

        results |> errors() |> report()
      end
    end
  end

  describe "rms_norm and layer_norm over a grid of shapes" do
    for dtype <- @types do
      test "rms_norm and layer_norm of every shape match their formulas in #{dtype}" do
        results =
          for shape <- [[1], [7], [1, 1], [3, 5], [2, 64], [2, 3, 96], [5, 1, 130], [1, 2, 3, 33], [2, 2000]],
              weighted <- [false, true],
              biased <- [false, true],
              eps <- [1.0e-6, 1.0e-3] do
            size = List.last(shape)
            x = numbers(shape, unquote(dtype), 1)
            weight = if weighted, do: numbers([size], unquote(dtype), 2)
            bias = if biased, do: numbers([size], unquote(dtype), 3)
            label = "#{inspect(shape)} weight #{weighted} bias #{biased} eps #{eps}"
            layer = Golden.layer_norm(x, weight, bias, eps: eps)
            rms = Golden.rms_norm(x, weight, eps: eps)

            [near("layer_norm " <> label, layer, layer_norm(wide(x), wide(weight), wide(bias), eps))] ++
              if(biased, do: [], else: [near("rms_norm " <> label, rms, rms_norm(wide(x), wide(weight), eps))])
          end

        results |> List.flatten() |> errors() |> report()
      end
    end
  end

  defp rms_norm(x, weight, eps) do
    mean = Ops.mean(Ops.square(x), axes: [-1], keepdims: true)
    scaled(Ops.divide(x, Ops.sqrt(Ops.add(mean, eps))), weight, nil)
  end

  defp layer_norm(x, weight, bias, eps) do
    centred = Ops.subtract(x, Ops.mean(x, axes: [-1], keepdims: true))
    scaled(rms_norm(centred, nil, eps), weight, bias)
  end

  defp scaled(x, weight, bias) do
    x = if weight, do: Ops.multiply(x, weight), else: x
    if bias, do: Ops.add(x, bias), else: x
  end

  describe "rope over a grid of shapes" do
    for dtype <- @types do
      test "rope of every shape rotates pairs by position and frequency in #{dtype}" do
        results =
          for shape <- [[1, 1, 2], [2, 7, 8], [3, 2, 4, 64], [1, 5, 1, 80], [2, 1, 33, 128]],
              {name, offset} <- [{"0", 0}, {"60", 60}, {"an array", Array.scalar(9, :s32)}, {"each", :each}],
              traditional <- [false, true],
              part <- [1, 2],
              {freqs, base, scale} <- [{false, 10_000.0, 1.0}, {false, 500.0, 0.5}, {true, nil, 1.0}],
              dims = div(List.last(shape), part),
              rem(dims, 2) == 0 do
            batch = hd(shape)
            x = numbers(shape, unquote(dtype), 4)
            offset = if offset == :each, do: Array.from_list(for(i <- 1..batch, do: 5 * i), :s32), else: offset
            freqs = if freqs, do: Array.from_list(for(i <- 1..div(dims, 2), do: 1.0 + i * i), :f32)
            opts = [dims: dims, traditional: traditional, scale: scale] ++ if(freqs, do: [], else: [base: base])
            label = "rope #{inspect(shape)} at #{name} #{inspect(opts)} freqs #{freqs != nil}"
            near(label, Golden.rope(x, offset, freqs, opts), rope(wide(x), offset, wide(freqs), opts))
          end

        results |> errors() |> report()
      end
    end
  end

  defp rope(x, offset, freqs, opts) do
    shape = Tuple.to_list(Array.shape(x))
    {dims, half} = {opts[:dims], div(opts[:dims], 2)}
    {batch, length, size} = {hd(shape), Enum.at(shape, -2), List.last(shape)}

    frequencies =
      if freqs,
        do: Ops.reciprocal(freqs),
        else: Array.from_list(for(i <- 0..(half - 1), do: :math.pow(opts[:base], -i / half)), :f64)

    starts = if is_integer(offset), do: Array.scalar(offset * 1.0, :f64), else: wide(offset)
    starts = Ops.broadcast_to(Ops.reshape(starts, [-1, 1]), [batch, 1])
    steps = Array.from_list(for(i <- 0..(length - 1), do: i * 1.0), :f64)
    positions = Ops.multiply(Ops.add(starts, steps), opts[:scale])
    angles = Ops.multiply(Ops.reshape(positions, [batch, length, 1]), frequencies)
    between = List.duplicate(1, length(shape) - 3)
    angles = Ops.reshape(angles, [batch] ++ between ++ [length, half])
    {cos, sin} = {Ops.cos(angles), Ops.sin(angles)}

    turned = last(x, 0, dims, 1)

    {a, b} =
      if opts[:traditional],
        do: {last(turned, 0, dims, 2), last(turned, 1, dims, 2)},
        else: {last(turned, 0, half, 1), last(turned, half, dims, 1)}

    first = Ops.subtract(Ops.multiply(a, cos), Ops.multiply(b, sin))
    second = Ops.add(Ops.multiply(a, sin), Ops.multiply(b, cos))

    pairs =
      if opts[:traditional],
        do: Ops.reshape(Ops.stack([first, second], axis: -1), List.replace_at(shape, -1, dims)),
        else: Ops.concatenate([first, second], axis: -1)

    if dims == size, do: pairs, else: Ops.concatenate([pairs, last(x, dims, size, 1)], axis: -1)
  end

  # A part of the last axis.
  defp last(x, from, to, step) do
    shape = Tuple.to_list(Array.shape(x))
    start = List.replace_at(Enum.map(shape, fn _ -> 0 end), -1, from)
    strides = List.replace_at(Enum.map(shape, fn _ -> 1 end), -1, step)
    Ops.slice(x, start, List.replace_at(shape, -1, to), strides)
  end

  describe "scaled_dot_product_attention over a grid of shapes" do
    for dtype <- @types, size <- [32, 64, 80, 128] do
      test "attention is softmax(scale · q·kᵀ + mask)·v in #{dtype} with heads of size #{size}" do
        results =
          for kv_heads <- [8, 2, 1],
              {queries, keys} <- [{1, 1}, {1, 9}, {4, 4}, {5, 12}, {33, 40}],
              mask <- [:none, :causal, :boolean, :masked_rows, :added, :infinite],
              sinks <- [false, true],
              # Sinks with one shape only: they do not depend on lengths.
              not sinks or queries == 4 do
            dtype = unquote(dtype)
            q = numbers([2, 8, queries, unquote(size)], dtype, 5)
            k = numbers([2, kv_heads, keys, unquote(size)], dtype, 6)
            v = numbers([2, kv_heads, keys, unquote(size)], dtype, 7)
            sinks = if sinks, do: numbers([8], dtype, 8)
            mask_array = mask(mask, queries, keys, dtype)
            label = "heads 8/#{kv_heads} lengths #{queries}/#{keys} mask #{mask} sinks #{sinks != nil}"
            given = if mask in [:none, :causal], do: %{none: nil, causal: :causal}[mask], else: mask_array
            want = attention(wide(q), wide(k), wide(v), mask_array, wide(sinks), dtype)
            near(label, Golden.scaled_dot_product_attention(q, k, v, given, sinks: sinks), want)
            # The same with heads after the length.
            swap = &Ops.transpose(&1, [0, 2, 1, 3])
            [q, k, v] = Enum.map([q, k, v], swap)
            have = Golden.scaled_dot_product_attention(q, k, v, given, sinks: sinks, layout: :bshd)
            near(label <> " bshd", swap.(have), want)
          end

        results |> errors() |> report()
      end
    end
  end

  defp mask(:none, _queries, _keys, _dtype), do: nil
  defp mask(:added, queries, keys, dtype), do: numbers([queries, keys], dtype, 9)

  defp mask(kind, queries, keys, dtype) do
    seen =
      for i <- 0..(queries - 1), j <- 0..(keys - 1) do
        case kind do
          :causal -> j <= i + keys - queries
          # Every query attends to its first key at least.
          :masked_rows -> rem(i, 2) == 1 and rem(i + j, 3) != 0
          _ -> j == 0 or rem(i * 7 + j * 5, 3) != 0
        end
      end

    bytes = for s <- seen, into: <<>>, do: if(s, do: <<1>>, else: <<0>>)
    seen = Array.from_binary(bytes, [queries, keys], :bool)

    if kind == :infinite,
      do: Ops.where(seen, Array.scalar(0.0, dtype), Array.scalar(:neg_infinity, dtype)),
      else: seen
  end

  @least %{f32: -3.4028234663852886e38, f16: -65504.0, bf16: -3.3895313892515355e38}

  defp attention(q, k, v, mask, sinks, dtype) do
    {batch, heads, queries, size} = Array.shape(q)
    groups = div(heads, elem(Array.shape(k), 1))
    [k, v] = for x <- [k, v], do: Ops.run({:repeat, %{repeats: groups, axis: 1}}, [x])
    scale = 1 / :math.sqrt(size)
    scores = Ops.multiply(Ops.matmul(q, Ops.transpose(k, [0, 1, 3, 2])), scale)

    scores =
      cond do
        mask == nil -> scores
        Array.dtype(mask) == :bool -> Ops.where(mask, scores, Array.scalar(@least[dtype], :f64))
        true -> Ops.add(scores, wide(mask))
      end

    scores =
      if sinks do
        column = Ops.broadcast_to(Ops.reshape(sinks, [1, heads, 1, 1]), [batch, heads, queries, 1])
        Ops.concatenate([column, scores], axis: -1)
      else
        scores
      end

    exps = Ops.exp(Ops.subtract(scores, Ops.max(scores, axes: [-1], keepdims: true)))
    weights = Ops.divide(exps, Ops.sum(exps, axes: [-1], keepdims: true))
    weights = if sinks, do: last(weights, 1, elem(Array.shape(weights), 3), 1), else: weights
    Ops.matmul(weights, v)
  end
end
