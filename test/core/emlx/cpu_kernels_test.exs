# EMLX's own CPU kernels against f64: sizes at which threads share the work, views, every float type.
defmodule EMLX.CpuKernelsTest do
  use ExUnit.Case, async: true

  alias EMLX.{Array, Golden, Kernels, Ops, Program}

  @floats [:f32, :bf16, :f16]
  # Row lengths that are no multiple of a vector; the last one is large enough for two threads.
  @shapes [[1], [0, 4], [4, 0], [3, 5], [2, 129, 257]]

  # Seeded numbers between -2 and 2 of a type.
  defp numbers(shape, dtype, seed) do
    key = Ops.run({:random_key, %{seed: seed}}, [])
    bounds = [Array.scalar(-2.0, :f32), Array.scalar(2.0, :f32)]
    Ops.run({:random_uniform, %{shape: shape, dtype: :f32}}, bounds ++ [key]) |> Ops.astype(dtype)
  end

  defp wide(array), do: Ops.astype(array, :f64)

  # An array itself, and views of it: transposed, every second element, and one row broadcast.
  defp forms(array) do
    [array, Golden.scattered(array) | repeated(array, Array.shape(array))]
  end

  defp repeated(array, {rows, columns}) when rows > 0 do
    row = Ops.run({:slice, %{start: [0, 0], stop: [1, columns], strides: [1, 1]}}, [array])
    [Ops.broadcast_to(row, [3, columns])]
  end

  defp repeated(_array, _shape), do: []

  defp like(number, array), do: Array.scalar(number, Array.dtype(array))

  defp agree(label, have, want, class), do: assert(:ok == Golden.compare(label, have, want, class))

  for dtype <- @floats do
    test "elementary functions of #{dtype} match f64, for views, too" do
      for shape <- @shapes, x <- forms(numbers(shape, unquote(dtype), 1)) do
        for name <- [:exp, :sigmoid, :tanh, :erf] do
          agree("#{name} of #{inspect(shape)}", Ops.run(name, [x]), Ops.run(name, [wide(x)]), :rounded)
        end

        positive = Ops.abs(x) |> Ops.add(Array.scalar(0.5, unquote(dtype)))

        for name <- [:sqrt, :rsqrt] do
          agree("#{name} of #{inspect(shape)}", Ops.run(name, [positive]), Ops.run(name, [wide(positive)]), :rounded)
        end
      end
    end

    test "arithmetic of #{dtype} with broadcast operands matches f64" do
      # Away from zero, so that quotients do not overflow 16 bits.
      apart = fn shape, seed ->
        Ops.add(Ops.abs(numbers(shape, unquote(dtype), seed)), Array.scalar(0.5, unquote(dtype)))
      end

      a = apart.([2, 129, 257], 1)

      for shape <- [[2, 129, 257], [257], [129, 1], [2, 1, 257], [1], []],
          b = apart.(shape, 2),
          a <- [a, Golden.scattered(a)],
          name <- [:add, :subtract, :multiply, :divide] do
        agree("#{name} with #{inspect(shape)}", Ops.run(name, [a, b]), Ops.run(name, [wide(a), wide(b)]), :rounded)
        agree("#{name} of #{inspect(shape)}", Ops.run(name, [b, a]), Ops.run(name, [wide(b), wide(a)]), :rounded)
      end
    end

    test "softmax of #{dtype} over the last axis matches f64, for views, too" do
      for shape <- [[1], [3, 5], [2, 129, 257]], x <- forms(numbers(shape, unquote(dtype), 3)) do
        op = {:softmax, %{axes: [-1], precise: true}}
        agree("softmax of #{inspect(shape)}", Ops.run(op, [x]), Ops.run(op, [wide(x)]), :rounded)
      end
    end

    test "products of #{dtype} in batches, row-major or column-major, match f64" do
      for {left, right} <- [
            {[70, 90], [90, 65]},
            {[3, 70, 90], [90, 65]},
            {[2, 1, 70, 90], [3, 90, 65]},
            {[3, 70, 90], [3, 90, 65]},
            {[2, 600], [600, 300]},
            {[300, 1], [1, 300]}
          ] do
        # Halves and quarters: their sums are exact in every type up to the final rounding.
        quarters = fn shape, seed -> Ops.run({:round, %{decimals: 0}}, [numbers(shape, unquote(dtype), seed)]) end
        {a, b} = {quarters.(left, 4), quarters.(right, 5)}

        for a <- [a, Golden.scattered(a)], b <- [b, Golden.scattered(b)] do
          agree("#{inspect(left)} times #{inspect(right)}", Ops.matmul(a, b), Ops.matmul(wide(a), wide(b)), :rounded)
        end
      end
    end

    test "convolutions of #{dtype} match f64, with strides, dilations, groups, cropped padding and permuted arrays" do
      for {shape, weight, options} <- [
            {[2, 37, 7], [5, 4, 7], [padding_low: 2]},
            {[3, 40, 33, 20], [33, 3, 3, 20], [padding_low: 1, padding_high: 1]},
            {[2, 21, 18, 12], [10, 2, 3, 6], [stride: 2, groups: 2, padding_low: [-1, 0], padding_high: [1, -2]]},
            {[2, 21, 18, 40], [40, 3, 3, 1], [groups: 40, kernel_dilation: 2]},
            {[2, 9, 10, 6], [8, 3, 2, 6], [input_dilation: [3, 2], padding_low: 2, flip: true]},
            # A gradient by the kernel: many taps, few positions.
            {[3, 60, 61, 5], [17, 58, 60, 5], []},
            {[1, 6, 7, 8, 3], [4, 2, 3, 2, 3], [stride: [1, 2, 1]]}
          ],
          # Sums of many terms are then around 1.
          x <- [Ops.multiply(numbers(shape, unquote(dtype), 11), 0.03125)],
          x <- [x, Golden.scattered(x)],
          w = numbers(weight, unquote(dtype), 12) do
        label = "#{inspect(shape)} with #{inspect(weight)}, #{inspect(options)}"
        agree(label, Ops.conv(x, w, options), Ops.conv(wide(x), wide(w), options), :product)
      end
    end

    test "windows of #{dtype} match f64, padded, strided and dilated" do
      for {shape, window, strides, low, high, dilation} <- [
            {[1000], [5], [1], [2], [2], [1]},
            {[4, 50, 61], [1, 3, 3], [1, 1, 2], [0, 1, 1], [0, 1, 0], [1, 1, 2]},
            {[2, 33, 34, 40], [1, 2, 2, 1], [1, 2, 2, 1], [0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]}
          ],
          x <- [numbers(shape, unquote(dtype), 13)],
          x <- [x, Golden.scattered(x)] do
        for reduction <- [:sum, :max, :min, :prod] do
          reduce = &Ops.window_reduce(&1, reduction, window, strides, low, high, dilation: dilation)
          agree("#{reduction} of #{inspect(shape)}", reduce.(x), reduce.(wide(x)), :summed)
        end

        ones = Enum.map(window, fn _ -> 1 end)
        outputs = Array.shape(Ops.window_reduce(x, :max, window, strides, low, high, dilation: ones))
        source = numbers(Tuple.to_list(outputs), unquote(dtype), 14)

        for reduction <- [:max, :min], ties <- [:first, :last], pads <- [false, true] do
          scatter = fn x, source ->
            options = [ties: ties, pads_with_init: pads]
            Ops.window_scatter(x, source, like(0.5, x), reduction, window, strides, low, high, options)
          end

          agree("scatter of #{inspect(shape)}", scatter.(x, source), scatter.(wide(x), wide(source)), :summed)
        end
      end
    end

    test "products of #{dtype} with quantized matrices match f64, for few and many rows and views" do
      for bits <- [4, 8], group_size <- [32, 64], shape <- [[256], [1, 256], [2, 3, 256], [0, 256], [3, 7, 256]] do
        how = [bits: bits, group_size: group_size]
        [words, scales, biases] = Kernels.quantize(numbers([300, 256], unquote(dtype), 12), how)
        [floats, wide_biases] = for part <- [scales, biases], do: Ops.astype(part, :f32)
        w = Ops.transpose(wide(Kernels.dequantize(words, floats, wide_biases, how)), [1, 0])
        x = numbers(shape, unquote(dtype), 13)

        for x <- [x, Golden.scattered(x)], words <- [words, Golden.scattered(words)] do
          have = Kernels.quantized_matmul(x, words, scales, biases, how)
          agree("#{inspect(shape)}, #{inspect(how)}", have, Ops.matmul(wide(x), w), :fused)
        end
      end
    end

    test "attention of #{dtype} matches f64 with every mask, grouped heads and both layouts" do
      for {queries, keys} <- [{130, 130}, {9, 70}, {64, 64}, {1, 70}, {3, 37}, {4, 4}],
          mask <- [nil, :causal, :boolean, :added] do
        inside = fn heads, length, seed ->
          Ops.transpose(numbers([2, length, heads, 24], unquote(dtype), seed), [0, 2, 1, 3])
        end

        [q, k, v] = [inside.(6, queries, 6), inside.(2, keys, 7), inside.(2, keys, 8)]
        seen = Ops.greater(numbers([queries, keys], :f32, 9), Array.scalar(0.0, :f32))
        added = numbers([2, 1, queries, keys], unquote(dtype), 10)
        {given, low} = mask(mask, seen, added, queries, keys)

        repeat = fn x -> Ops.run({:repeat, %{repeats: 3, axis: 1}}, [wide(x)]) end
        scores = Ops.matmul(wide(q), Ops.transpose(repeat.(k), [0, 1, 3, 2])) |> Ops.multiply(Array.scalar(0.2, :f64))
        weights = Ops.run({:softmax, %{axes: [-1], precise: true}}, [Ops.add(scores, low)])
        want = Ops.matmul(weights, repeat.(v))
        have = Kernels.scaled_dot_product_attention(q, k, v, given, scale: 0.2)
        agree("#{inspect(mask)} #{queries} × #{keys}", have, want, :fused)
      end
    end
  end

  for dtype <- [:u8, :s8, :u16, :s16, :u32, :s32, :u64, :s64] do
    test "products of #{dtype} wrap round, in batches, row-major or column-major" do
      # All bits of the type.
      bits = fn shape, seed ->
        key = Ops.run({:random_key, %{seed: seed}}, [])
        x = Ops.run({:random_bits, %{shape: shape, width: 4}}, [key]) |> Ops.astype(unquote(dtype))
        Ops.multiply(x, x) |> Ops.add(x)
      end

      for {left, right} <- [
            {[7, 30], [30, 45]},
            {[64, 400], [400, 70]},
            {[3, 1, 9, 20], [2, 20, 33]},
            {[2, 500], [500, 40]},
            {[300, 40], [40, 3]},
            {[50], [50, 4]},
            {[6, 50], [50]},
            {[50], [50]}
          ],
          a <- [bits.(left, 15)],
          b <- [bits.(right, 16)],
          {a, b} <- [{a, b}, {Golden.scattered(a), b}, {a, Golden.scattered(b)}] do
        assert Array.to_list(Ops.matmul(a, b)) == Array.to_list(summed(a, b))
      end
    end
  end

  # A product as the sum of a broadcast multiplication.
  defp summed(a, b) do
    rank = &tuple_size(Array.shape(&1))
    left = Ops.expand_dims(a, [-1])
    right = if rank.(b) == 1, do: Ops.expand_dims(b, [-1]), else: Ops.expand_dims(b, [-3])
    product = Ops.multiply(left, right)
    sum = Ops.sum(product, axes: [-2]) |> Ops.astype(Array.dtype(a))

    case {rank.(a), rank.(b)} do
      {1, 1} -> Ops.reshape(sum, [])
      {1, _} -> Ops.reshape(sum, [elem(Array.shape(b), 1)])
      {_, 1} -> Ops.reshape(sum, [elem(Array.shape(a), 0)])
      _ -> sum
    end
  end

  test "dynamic slices are read and written at their starts, clamped to the array" do
    for dtype <- [:f32, :bf16, :f16, :s32, :u32],
        {shape, slice, starts} <- [
          {[40, 1030], [40, 1], [{3, 5}, {-2, 2000}]},
          {[3, 40, 300], [2, 7, 300], [{0, 12, 0}, {9, -1, 4}]},
          {[5, 9], [5, 9], [{0, 0}, {4, 4}]},
          {[4, 33], [0, 3], [{1, 1}]},
          {[129], [128], [{0}, {1}, {7}]}
        ],
        start <- starts,
        start_dtype <- [:s32, :s64, :s8] do
      [a, update] = for {shape, seed} <- [{shape, 14}, {slice, 15}], do: whole(numbers(shape, :f32, seed), dtype)
      start = for place <- Tuple.to_list(start), do: if(start_dtype == :s8, do: min(place, 100), else: place)
      inside = for {place, size, own} <- Enum.zip([start, shape, slice]), do: place |> max(0) |> min(size - own)
      stop = Enum.zip_with(inside, slice, &+/2)
      static = {:slice_update, %{start: inside, stop: stop, strides: Enum.map(shape, fn _ -> 1 end)}}
      axes = {:slice_update_dynamic, %{axes: Enum.to_list(0..(length(shape) - 1))}}
      places = Ops.stack(Enum.map(start, &Array.scalar(&1, start_dtype)), axis: 0)

      one =
        Ops.run(
          {:slice,
           %{start: Enum.map(shape, fn _ -> 0 end), stop: [1 | tl(shape)], strides: Enum.map(shape, fn _ -> 1 end)}},
          [a]
        )

      for a <- [a, Golden.scattered(a), Ops.broadcast_to(one, shape)], update <- [update, Golden.scattered(update)] do
        want = Ops.run(static, [a, update])
        assert Array.to_binary(Ops.run(axes, [a, update, places])) == Array.to_binary(want)
        taken = Ops.run({:slice, %{start: inside, stop: stop, strides: Enum.map(shape, fn _ -> 1 end)}}, [a])
        slice = {:slice_dynamic, %{axes: Enum.to_list(0..(length(shape) - 1)), sizes: slice}}
        assert Array.to_binary(Ops.run(slice, [a, places])) == Array.to_binary(taken)
      end
    end
  end

  test "a dynamic slice update writes in place if the array has no other use" do
    shape = [64, 1024]
    # x, cos x with a slice of ones, and that with another one: the intermediate array is freed on the way.
    update = fn from, at -> {{:slice_update_dynamic, %{axes: [0]}}, [from, 1, at], 1} end
    instructions = [{:cos, [0], 1}, update.(4, 2), update.(5, 3)]
    x = numbers(shape, :f32, 16)
    places = for place <- [3, 9], do: Ops.reshape(Array.scalar(place, :s32), {1})
    inputs = [x, Ops.ones({1, 1024}, :f32) | places]
    [have] = Program.run(Program.new(4, instructions, [6]), inputs)
    [cos, once, twice] = Program.run(Program.new(4, instructions, [4, 5, 6]), inputs)
    assert Array.to_binary(have) == Array.to_binary(twice)
    rows = fn array -> array |> Array.to_binary() |> then(&for(<<row::binary-4096 <- &1>>, do: row)) end
    ones = hd(rows.(Ops.ones({1, 1024}, :f32)))
    assert rows.(once) == List.replace_at(rows.(cos), 3, ones)
    assert rows.(twice) == List.replace_at(rows.(once), 9, ones)
  end

  defp whole(array, dtype), do: array |> Ops.multiply(Array.scalar(100.0, :f32)) |> Ops.abs() |> Ops.astype(dtype)

  # The mask as the kernel takes it, and as an additive mask.
  defp mask(nil, _seen, _added, _queries, _keys), do: {nil, Array.scalar(0.0, :f64)}
  defp mask(:added, _seen, added, _queries, _keys), do: {added, wide(added)}
  defp mask(:boolean, seen, _added, _queries, _keys), do: {seen, lowest_unless(seen)}

  defp mask(:causal, _seen, _added, queries, keys) do
    ones = Ops.run({:ones, %{shape: [queries, keys], dtype: :f32}}, [])
    {:causal, lowest_unless(Ops.astype(Ops.run({:tril, %{k: keys - queries}}, [ones]), :bool))}
  end

  defp lowest_unless(seen) do
    Ops.run(:where, [seen, Array.scalar(0.0, :f64), Array.scalar(-1.0e30, :f64)])
  end

  test "a kernel does not overwrite an input that is still used" do
    x = numbers([300, 300], :f32, 11)
    before = Array.to_binary(x)
    results = for name <- [:exp, :tanh, :erf], do: Ops.run(name, [x])
    sums = for result <- results, do: Ops.add(result, x)
    EMLX.eval(sums)
    assert Array.to_binary(x) == before
    assert Array.to_binary(hd(sums)) == Array.to_binary(Ops.add(Ops.exp(x), x))
  end

  test "processes on separate queues compute the same" do
    x = numbers([200, 400], :f32, 12)

    run = fn ->
      x |> Ops.matmul(Ops.transpose(x, [1, 0])) |> Ops.tanh() |> Kernels.layer_norm(nil, nil) |> Array.to_binary()
    end

    expected = run.()

    results =
      1..8 |> Task.async_stream(fn _ -> for(_ <- 1..5, do: run.()) end, timeout: 60_000) |> Enum.flat_map(&elem(&1, 1))

    assert Enum.all?(results, &(&1 == expected))
  end

  # Views whose elements lie in the result's order, with gaps, repeated, the other way round, and turned over; large
  # enough to be nodes of our own, of computed arrays and of such that are computed with them.
  test "a large array that is reshaped keeps the order of its elements, however it lies" do
    x = EMLX.eval(Ops.iota({24, 40, 80}, dtype: :s32))

    views = [
      x,
      Ops.transpose(x, [2, 0, 1]),
      Ops.transpose(x, [1, 0, 2]),
      Ops.slice(x, [0, 0, 0], [24, 40, 80], [1, 1, 2]),
      Ops.slice(x, [0, 1, 3], [24, 39, 59], [1, 1, 1]),
      Ops.slice(x, [0, 4, 0], [24, 36, 80], [1, 1, 1]),
      Ops.flip(x, [0, 2]),
      Ops.broadcast_to(Ops.reshape(x, {24, 1, 40, 80}), [24, 3, 40, 80]),
      Ops.broadcast_to(Ops.slice(x, [0, 0, 0], [24, 1, 1], [1, 1, 1]), [24, 40, 80])
    ]

    for view <- views, offset <- [0, 1] do
      size = view |> Array.shape() |> Tuple.product()
      list = view |> Array.to_list() |> List.flatten()
      source = if offset == 0, do: view, else: Ops.add(view, offset)

      for shape <- [{size}, {div(size, 8), 8}, {4, div(size, 24), 1, 6}, {2, 1, div(size, 2)}] do
        reshaped = Ops.reshape(source, shape)
        assert Array.shape(reshaped) == shape
        # As it lies and what is computed of it.
        expected = Enum.map(list, &(&1 + offset))
        assert reshaped |> Array.to_list() |> List.flatten() == expected
        assert Ops.multiply(reshaped, 2) |> Array.to_list() |> List.flatten() == Enum.map(expected, &(&1 * 2))
        total = Enum.sum(expected)
        assert reshaped |> Ops.astype(:s64) |> Ops.sum() |> Array.to_list() == total
      end
    end
  end
end
