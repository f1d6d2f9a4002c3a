defmodule EMLX.MergedTest do
  # The merged operations of EMLX.Ops.run/3 (products, rope_heads, cache_attention) against the operations that they
  # replace. On CUDA they have kernels for few rows. test/nx/emlx/compiler/merge_test.exs tests that the compiler merges
  # a model's operations.
  use ExUnit.Case, async: true

  alias EMLX.{Array, Error, Golden, Kernels, Ops}

  @types [:f32, :f16, :bf16]

  # Seeded numbers around 0 of a type.
  defp numbers(shape, dtype, seed, scale \\ 1.0) do
    key = Ops.random_key(seed, device: Golden.device())
    key |> Ops.random_normal(shape, dtype: :f32, loc: 0.0, scale: scale) |> Ops.astype(dtype)
  end

  defp weights([k, n], dtype, seed), do: numbers([k, n], dtype, seed, 1 / :math.sqrt(k))

  defp near!(label, have, want) do
    assert {label, Array.shape(have), Array.dtype(have)} == {label, Array.shape(want), Array.dtype(want)}
    with {:error, text} <- Golden.compare(label, have, want, :product), do: flunk(text)
  end

  defp products(inputs, attributes \\ %{}) do
    List.wrap(Ops.run({:products, Map.merge(%{eps: nil, gated: false, shape: nil}, attributes)}, inputs))
  end

  describe "products" do
    for dtype <- @types do
      test "products match the operations one by one, in #{dtype}" do
        for rows <- [1, 2, 4, 5], k <- [64, 200], normed <- [false, true], transposed <- [false, true] do
          dtype = unquote(dtype)
          x = numbers([1, rows, k], dtype, 1)
          norm = if normed, do: numbers([k], dtype, 2)

          matrices =
            for {n, i} <- Enum.with_index([64, 32, 96]) do
              if transposed, do: Ops.transpose(weights([n, k], dtype, i), [1, 0]), else: weights([k, n], dtype, i)
            end

          eps = if normed, do: 1.0e-5
          flat = Ops.reshape(if(normed, do: Kernels.rms_norm(x, norm, eps: eps), else: x), [rows, k])
          expected = Enum.map(matrices, &Ops.matmul(flat, &1))
          label = inspect({rows, k, normed, transposed})

          for count <- 1..3 do
            given = Enum.take(matrices, count)
            got = products([x, norm, nil | given], %{eps: eps})
            assert length(got) == count
            for {have, want} <- Enum.zip(got, expected), do: near!(label, have, want)
          end

          # The first product with a sum.
          added = numbers([1, rows, 64], dtype, 7)
          [have] = products([x, norm, added, hd(matrices)], %{eps: eps, shape: [rows, 1, 64]})
          near!(label, have, Ops.reshape(Ops.add(hd(expected), Ops.reshape(added, [rows, 64])), [rows, 1, 64]))

          # Two products with a gate.
          other = weights([k, 64], dtype, 9)
          [have] = products([x, norm, nil, hd(matrices), other], %{eps: eps, gated: true})
          silu = Ops.multiply(Ops.sigmoid(hd(expected)), hd(expected))
          near!(label, have, Ops.multiply(silu, Ops.matmul(flat, other)))
        end
      end
    end

    test "products take numbers of columns that no kernel's tile divides" do
      [x, w] = [numbers([2, 24], :bf16, 1), weights([24, 7], :bf16, 2)]
      [have] = products([x, nil, nil, w])
      near!("7 columns", have, Ops.matmul(x, w))
    end

    test "products name the argument that does not fit" do
      [x, w, narrow] = [numbers([1, 8], :f32, 1), weights([8, 16], :f32, 2), weights([4, 16], :f32, 3)]
      norm = numbers([8], :f32, 4)

      for {inputs, attributes, reason} <- [
            {[x, nil, nil], %{}, ~r/at least 4/},
            {[x, nil, nil, narrow], %{}, ~r/every matrix must be \{8, n\}, got \[\[4, 16\]\]/},
            {[x, nil, nil, norm], %{}, ~r/every matrix must be/},
            {[x, norm, nil, w], %{}, ~r/eps goes with the weight/},
            {[x, nil, nil, w], %{eps: 1.0e-5}, ~r/eps goes with the weight/},
            {[x, nil, nil, w], %{gated: true}, ~r/a gate takes two matrices/},
            {[x, nil, x, w, w], %{}, ~r/added to one product only/},
            {[x, nil, x, w], %{}, ~r/16 elements of the product/},
            {[x, nil, nil, w], %{shape: [15]}, ~r/the only output, which has 16 elements/},
            {[x, nil, nil, w, w], %{shape: [16]}, ~r/the only output/},
            {[Ops.reshape(Array.scalar(1.0, :f32), []), nil, nil, w], %{}, ~r/x must be/}
          ] do
        assert_raise Error, reason, fn -> inputs |> products(attributes) |> EMLX.eval() end
      end
    end
  end

  defp quantized_products(inputs, attributes) do
    defaults = %{eps: nil, gated: false, shape: nil, bits: 4, group_size: 64}
    List.wrap(Ops.run({:quantized_products, Map.merge(defaults, attributes)}, inputs))
  end

  defp quantized([k, n], dtype, seed, opts), do: Kernels.quantize(numbers([n, k], dtype, seed, 1 / :math.sqrt(k)), opts)

  describe "quantized_products" do
    for dtype <- @types do
      test "quantized_products match the operations one by one, in #{dtype}" do
        for {rows, {k, bits, group_size}, normed} <- [
              {1, {128, 4, 64}, true},
              {1, {320, 4, 32}, false},
              {2, {320, 4, 32}, true},
              {4, {256, 8, 128}, true},
              {5, {256, 8, 128}, false}
            ] do
          dtype = unquote(dtype)
          how = [bits: bits, group_size: group_size]
          x = numbers([1, rows, k], dtype, 1)
          norm = if normed, do: numbers([k], dtype, 2)
          # 36 columns fit only the narrowest tile.
          matrices = for {n, i} <- Enum.with_index([64, 36, 96]), do: quantized([k, n], dtype, i, how)
          eps = if normed, do: 1.0e-5
          flat = Ops.reshape(if(normed, do: Kernels.rms_norm(x, norm, eps: eps), else: x), [rows, k])
          product = fn [words, scales, biases] -> Kernels.quantized_matmul(flat, words, scales, biases, how) end
          expected = Enum.map(matrices, product)
          label = inspect({rows, k, how, normed})
          attributes = Map.merge(%{eps: eps}, Map.new(how))

          for count <- 1..3 do
            given = matrices |> Enum.take(count) |> Enum.concat()
            got = quantized_products([x, norm, nil | given], attributes)
            assert length(got) == count
            for {have, want} <- Enum.zip(got, expected), do: near!(label, have, want)
          end

          # The first product with a sum.
          added = numbers([1, rows, 64], dtype, 7)
          summed = Map.put(attributes, :shape, [rows, 1, 64])
          [have] = quantized_products([x, norm, added | hd(matrices)], summed)
          near!(label, have, Ops.reshape(Ops.add(hd(expected), Ops.reshape(added, [rows, 64])), [rows, 1, 64]))

          # Two products with a gate.
          other = quantized([k, 64], dtype, 9, how)
          [have] = quantized_products([x, norm, nil | hd(matrices) ++ other], Map.put(attributes, :gated, true))
          silu = Ops.multiply(Ops.sigmoid(hd(expected)), hd(expected))
          near!(label, have, Ops.multiply(silu, product.(other)))
        end
      end
    end

    test "quantized_products take any number of columns, in tiles of every width" do
      x = numbers([1, 128], :bf16, 1)
      norm = numbers([128], :bf16, 2)
      how = [bits: 4, group_size: 32]
      normed = Kernels.rms_norm(x, norm, eps: 1.0e-5)

      for columns <- [256, 512, 1024, 2048, 4096] do
        packed = [words, scales, biases] = quantized([128, columns], :bf16, 3, how)
        [have] = quantized_products([x, norm, nil | packed], %{eps: 1.0e-5, group_size: 32})
        near!("#{columns} columns", have, Kernels.quantized_matmul(normed, words, scales, biases, how))
      end
    end

    test "quantized_products take matrices that are views, and numbers of columns that no kernel's tile divides" do
      x = numbers([2, 128], :bf16, 1)
      packed = quantized([128, 40], :bf16, 2, bits: 4, group_size: 64)
      want = apply(Kernels, :quantized_matmul, [x | packed] ++ [[bits: 4, group_size: 64]])
      [have] = quantized_products([x, nil, nil | Enum.map(packed, &Golden.scattered/1)], %{})
      near!("views", have, want)
      odd = for array <- packed, do: Ops.slice(array, [0, 0], [7, elem(Array.shape(array), 1)], [1, 1])
      [have] = quantized_products([x, nil, nil | odd], %{})
      near!("7 columns", have, Ops.slice(want, [0, 0], [2, 7], [1, 1]))
    end

    test "quantized_products names the argument that does not fit" do
      x = numbers([1, 128], :f32, 1)
      [words, scales, biases] = quantized([128, 16], :f32, 2, bits: 4, group_size: 64)

      for {inputs, attributes, reason} <- [
            {[x, nil, nil], %{}, ~r/at least 4/},
            {[x, nil, nil, words, scales], %{}, ~r/every matrix must be words \{n, 128 \* bits \/ 32\}/},
            {[x, nil, nil, scales, words, biases], %{}, ~r/every matrix must be words/},
            {[x, nil, nil, words, scales, biases], %{bits: 8}, ~r/got .* 8 and 64/},
            {[x, nil, nil, words, scales, biases], %{group_size: 48}, ~r/got .* 4 and 48/},
            {[x, nil, nil, words, scales, biases], %{gated: true}, ~r/a gate takes two matrices/},
            {[x, nil, x, words, scales, biases], %{}, ~r/16 elements of the product/}
          ] do
        assert_raise Error, reason, fn -> inputs |> quantized_products(attributes) |> EMLX.eval() end
      end
    end
  end

  defp rope_heads(inputs, attributes) do
    defaults = %{repeat: 1, eps: nil, base: 10_000.0, scale: 1.0}
    Ops.run({:rope_heads, Map.merge(defaults, attributes)}, inputs)
  end

  describe "rope_heads" do
    for dtype <- @types do
      test "rope_heads normalizes, rotates and repeats like the operations one by one, in #{dtype}" do
        dtype = unquote(dtype)

        for rows <- [1, 3, 6],
            size <- [64, 16],
            {heads, kv_heads} <- [{4, 2}, {2, 2}],
            normed <- [false, true],
            own <- [false, true] do
          [q, k, v] = for {n, i} <- [{heads, 1}, {kv_heads, 2}, {kv_heads, 3}], do: numbers([rows, n * size], dtype, i)
          [q_norm, k_norm] = for i <- [4, 5], do: if(normed, do: numbers([size], dtype, i))
          offset = Array.from_list(Enum.take([7, 0, 300, 2, 2, 9], rows), :s32, device: Golden.device())
          freqs = if own, do: numbers([div(size, 2)], :f32, 6) |> Ops.abs() |> Ops.add(1.0)
          repeat = div(heads, kv_heads)
          base = if own, do: nil, else: 10_000.0

          turned = fn x, weight, n ->
            x = Ops.reshape(x, [rows, n, 1, size])
            x = if normed, do: Kernels.rms_norm(x, weight, eps: 1.0e-6), else: x
            Ops.run({:rope, %{dims: size, traditional: false, base: base, scale: 1.0}}, [x, offset, freqs])
          end

          repeated = fn x ->
            x = Ops.broadcast_to(Ops.reshape(x, [rows, kv_heads, 1, size]), [rows, kv_heads, repeat, size])
            Ops.reshape(x, [1, rows, heads, size])
          end

          attributes = %{lead: [1, rows], size: size, repeat: repeat, eps: if(normed, do: 1.0e-6), base: base}
          got = rope_heads([q, k, v, offset, q_norm, k_norm, freqs], attributes)

          expected = [
            q |> turned.(q_norm, heads) |> Ops.reshape([1, rows, heads, size]),
            k |> turned.(k_norm, kv_heads) |> repeated.(),
            repeated.(v)
          ]

          label = inspect({rows, size, heads, kv_heads, normed, own})
          for {have, want} <- Enum.zip(got, expected), do: near!(label, have, want)
        end
      end
    end

    test "rope_heads names the argument that does not fit" do
      [q, k, weight] = [numbers([2, 32], :f32, 1), numbers([2, 16], :f32, 2), numbers([16], :f32, 3)]
      offset = Array.from_list([1, 2], :s32, device: Golden.device())
      fits = %{lead: [2], size: 16}
      assert [_, _, _] = rope_heads([q, k, k, offset, nil, nil, nil], fits)

      for {inputs, attributes, reason} <- [
            {[q, k, k, offset, nil, nil, nil], %{fits | lead: [3]}, ~r/lead must multiply to the 2 rows/},
            {[q, k, k, offset, nil, nil, nil], %{fits | size: 12}, ~r/rows, heads \* 12/},
            {[q, k, Ops.reshape(k, [1, 32]), offset, nil, nil, nil], fits, ~r/v must be/},
            {[q, k, k, Ops.reshape(offset, [2, 1]), nil, nil, nil], fits, ~r/one offset a row/},
            {[q, k, k, offset, nil, nil, nil], Map.put(fits, :repeat, 0), ~r/repeat must be from 1/},
            {[q, k, k, offset, weight, nil, nil], Map.put(fits, :eps, 1.0e-6), ~r/a weight for q and one for k/}
          ] do
        assert_raise Error, reason, fn -> rope_heads(inputs, attributes) end
      end
    end
  end

  describe "cache_attention" do
    for dtype <- @types do
      test "cache_attention is attention with a cache's axis order, in #{dtype}" do
        dtype = unquote(dtype)

        for {heads, kv_heads} <- [{4, 4}, {4, 2}],
            size <- [64, 128, 24],
            length <- [1, 70],
            masks <- [nil, {1, 1}, {2, 4}, {2, 1}] do
          q = numbers([2, 1, heads, size], dtype, 1)
          [k, v] = for i <- [2, 3], do: numbers([2, length, kv_heads, size], dtype, i)

          mask =
            with {batch, of_heads} <- masks,
                 do: Ops.less(numbers([batch, of_heads, 1, length], :f32, 4), 0.3)

          got = Ops.run({:cache_attention, %{scale: 0.2, shape: [2, heads * size]}}, [q, k, v, mask])
          [tq, tk, tv] = for array <- [q, k, v], do: Ops.transpose(array, [0, 2, 1, 3])
          want = Kernels.scaled_dot_product_attention(tq, tk, tv, mask, scale: 0.2)
          want = want |> Ops.transpose([0, 2, 1, 3]) |> Ops.reshape([2, heads * size])
          near!(inspect({heads, kv_heads, size, length, masks}), got, want)
        end
      end
    end

    test "cache_attention of a query without keys is the mean of the values" do
      q = numbers([1, 1, 2, 64], :f32, 1)
      [k, v] = for i <- [2, 3], do: numbers([1, 9, 2, 64], :f32, i)
      none = Ops.zeros([1, 1, 1, 9], :bool, device: Golden.device())
      got = Ops.run({:cache_attention, %{scale: 1.0, shape: [1, 2, 64]}}, [q, k, v, none])
      near!("none", got, Ops.mean(v, axes: [1], keepdims: false))
    end

    test "cache_attention names the argument that does not fit" do
      q = numbers([1, 1, 2, 8], :f32, 1)
      [k, mask] = [numbers([1, 5, 2, 8], :f32, 2), Ops.less(numbers([1, 1, 1, 5], :f32, 3), 0.0)]
      assert %Array{} = Ops.run({:cache_attention, %{scale: 1.0, shape: [16]}}, [q, k, k, mask])

      for {inputs, shape, reason} <- [
            {[k, k, k, nil], [16], ~r/q is \[1, 5, 2, 8\]/},
            {[q, k, Ops.transpose(k, [0, 2, 1, 3]), nil], [16], ~r/heads being a multiple/},
            {[Ops.reshape(q, [1, 2, 8]), k, k, nil], [16], ~r/q must be \{batch, length, heads, size\}/},
            {[q, k, k, Ops.astype(mask, :f32)], [16], ~r/the mask must be booleans/},
            {[q, k, k, Ops.reshape(mask, [1, 5])], [16], ~r/the mask must be booleans/},
            {[q, k, k, nil], [15], ~r/the 16 elements of q/}
          ] do
        assert_raise Error, reason, fn -> Ops.run({:cache_attention, %{scale: 1.0, shape: shape}}, inputs) end
      end
    end
  end
end
