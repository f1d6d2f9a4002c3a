defmodule EMLX.CompatibilityTest do
  use ExUnit.Case, async: true

  alias EMLX.{Array, Compatibility, Ops, Tolerance}

  defp f32(list), do: Array.from_list(list, :f32)
  defp s32(list), do: Array.from_list(list, :s32)
  defp u8(list), do: Array.from_list(list, :u8)

  defp plain(%Array{} = array), do: Array.to_list(array)
  defp plain(tuple) when is_tuple(tuple), do: tuple |> Tuple.to_list() |> Enum.map(&plain/1) |> List.to_tuple()
  defp plain(list) when is_list(list), do: Enum.map(list, &plain/1)
  defp plain(other), do: other

  defp near?(actual, expected) when is_float(expected) and is_number(actual),
    do: Tolerance.near?(actual * 1.0, expected, Tolerance.of(:fused, :f32))

  defp near?(actual, expected) when is_list(expected) and is_list(actual) and length(actual) == length(expected),
    do: actual |> Enum.zip(expected) |> Enum.all?(fn {a, b} -> near?(a, b) end)

  defp near?(actual, expected) when is_tuple(expected) and is_tuple(actual),
    do: near?(Tuple.to_list(actual), Tuple.to_list(expected))

  defp near?(actual, expected), do: actual == expected

  # Calls of every function, with their results. The numbers are computed by hand or with Erlang's :math.
  defp calls do
    a = f32([[1.0, 2.0], [3.0, 4.0]])
    b = f32([[2.0, 0.5], [1.0, 4.0]])
    i = s32([6, 7, -7])
    j = s32([2, 3, 2])
    t = f32([0.25, -0.5])
    row = f32([3.0, 1.0, 2.0])
    complex = Array.from_list([{1.0, 2.0}], :c64)
    s = fn number -> Array.scalar(number, :f32) end
    triangle = f32([[2.0, 0.0], [1.0, 4.0]])
    symmetric = f32([[2.0, 0.0], [0.0, 3.0]])

    unary =
      for {name, fun} <- [
            abs: &abs/1,
            acos: &:math.acos/1,
            asin: &:math.asin/1,
            asinh: &:math.asinh/1,
            atan: &:math.atan/1,
            atanh: &:math.atanh/1,
            ceil: &:math.ceil/1,
            copy: & &1,
            cos: &:math.cos/1,
            cosh: &:math.cosh/1,
            erf: &:math.erf/1,
            exp: &:math.exp/1,
            expm1: &(:math.exp(&1) - 1),
            floor: &:math.floor/1,
            log1p: &:math.log(1 + &1),
            negate: &(-&1),
            round: &(&1 |> Float.round() |> then(fn x -> if abs(x) == 1, do: 0.0, else: x end)),
            sigmoid: &(1 / (1 + :math.exp(-&1))),
            sign: &(&1 / abs(&1)),
            sin: &:math.sin/1,
            sinh: &:math.sinh/1,
            tan: &:math.tan/1,
            tanh: &:math.tanh/1
          ] do
        {name, [t], Enum.map([0.25, -0.5], fun)}
      end

    unary ++
      [
        {:acosh, [f32([2.0])], [:math.acosh(2.0)]},
        {:log, [f32([2.0])], [:math.log(2.0)]},
        {:sqrt, [f32([2.0])], [:math.sqrt(2.0)]},
        {:rsqrt, [f32([4.0])], [0.5]},
        {:erf_inv, [Ops.erf(t)], [0.25, -0.5]},
        {:bitwise_not, [i], [-7, -8, 6]},
        {:conjugate, [complex], [{1.0, -2.0}]},
        {:real, [complex], [1.0]},
        {:imag, [complex], [2.0]},
        {:is_nan, [f32([:nan, 1.0])], [true, false]},
        {:is_infinity, [f32([:neg_infinity, 1.0])], [true, false]},
        {:logical_not, [i], [false, false, false]},
        {:add, [i, j], [8, 10, -5]},
        {:subtract, [i, j], [4, 4, -9]},
        {:multiply, [i, j], [12, 21, -14]},
        {:divide, [i, j], [3.0, 7 / 3, -3.5]},
        {:pow, [j, j], [4, 27, 4]},
        {:remainder, [i, j], [0, 1, 1]},
        # Truncated for integers, rounded down for floats.
        {:quotient, [i, j], [3, 2, -3]},
        {:quotient, [f32([-7.0]), f32([2.0])], [-4.0]},
        {:atan2, [f32([1.0]), f32([-1.0])], [:math.atan2(1.0, -1.0)]},
        {:bitwise_and, [i, j], [2, 3, 0]},
        {:bitwise_or, [i, j], [6, 7, -5]},
        {:bitwise_xor, [i, j], [4, 4, -5]},
        {:left_shift, [i, j], [24, 56, -28]},
        {:right_shift, [i, j], [1, 0, -2]},
        {:minimum, [i, j], [2, 3, -7]},
        {:maximum, [i, j], [6, 7, 2]},
        {:equal, [i, s32([6, 0, -7])], [true, false, true]},
        {:not_equal, [i, s32([6, 0, -7])], [false, true, false]},
        {:greater, [i, j], [true, true, false]},
        {:less, [i, j], [false, false, true]},
        {:greater_equal, [i, s32([6, 8, 0])], [true, false, false]},
        {:less_equal, [i, s32([6, 8, 0])], [true, true, true]},
        {:logical_and, [i, s32([0, 1, 0])], [false, true, false]},
        {:logical_or, [s32([0, 0]), s32([0, 2])], [false, true]},
        {:logical_xor, [s32([1, 0]), s32([1, 2])], [false, true]},
        {:where, [u8([1, 0, 1]), i, j], [6, 3, -7]},
        {:clip, [i, Array.scalar(-1, :s32), Array.scalar(6, :s32)], [6, 6, -1]},
        {:isclose, [f32([1.0, 2.0]), f32([1.05, 3.0]), 0.1, 0.0, false], [true, false]},
        {:allclose, [f32([:nan]), f32([:nan]), 1.0e-5, 1.0e-8, true], true},
        {:eye, [2, 3, :float32, :cpu], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]},
        {:ones, [{2}, :int16, :cpu], [1, 1]},
        {:full, [1.5, {1, 2}, :float16, {:cpu, 0}], [[1.5, 1.5]]},
        {:full, [%{re: 1.0, im: -1.0}, {1}, :complex64, :cpu], [{1.0, -1.0}]},
        {:scalar_tensor, [3, {:u, 8}, {:cpu, -1}], 3},
        {:scalar_tensor, [true, :bool, :cpu], true},
        {:arange, [1, 8, 3, true, :cpu], [1, 4, 7]},
        {:arange, [1, 3, 1, false, :cpu], [1.0, 2.0]},
        # The binary may be longer than the array.
        {:from_blob, [<<1::32-native, 2::32-native, 3::32-native>>, {2}, :int32, :cpu], [1, 2]},
        {:astype, [t, :int32], [0, 0]},
        {:view, [f32([1.0]), :uint32], [0x3F800000]},
        {:reshape, [a, {4}], [1.0, 2.0, 3.0, 4.0]},
        {:broadcast_to, [j, {2, 3}], [[2, 3, 2], [2, 3, 2]]},
        {:transpose, [a, [1, 0]], [[1.0, 3.0], [2.0, 4.0]]},
        {:squeeze, [f32([[1.0]]), [0]], [1.0]},
        {:pad, [j, [0], [1], [2], Array.scalar(9, :s32)], [9, 2, 3, 2, 9, 9]},
        {:as_strided, [row, {2, 2}, [1, 1], 0], [[3.0, 1.0], [1.0, 2.0]]},
        {:slice, [i, [0], [3], [2]], [6, -7]},
        {:slice_update, [i, s32([1, 2]), [1], [3]], [6, 1, 2]},
        {:stack, [[i, j], 1], [[6, 2], [7, 3], [-7, 2]]},
        {:concatenate, [[i, j], 0], [6, 7, -7, 2, 3, 2]},
        {:take, [i, s32([2, 0]), 0], [-7, 6]},
        {:take_along_axis, [a, s32([[1], [0]]), 1], [[2.0], [3.0]]},
        {:gather, [a, [s32([1]), s32([0])], [0, 1], [1, 1]], [[[3.0]]]},
        {:scatter, [i, [s32([1])], s32([[9]]), [0]], [6, 9, -7]},
        {:scatter_add, [i, [s32([1, 1])], s32([[1], [1]]), [0]], [6, 9, -7]},
        {:all, [s32([[1, 0], [1, 1]]), [1], false], [false, true]},
        {:any, [s32([[0, 0], [1, 0]]), [], true], [[true]]},
        {:sum, [a, [], false], 10.0},
        {:sum, [a, [0], true], [[4.0, 6.0]]},
        {:product, [a, [1], false], [2.0, 12.0]},
        {:max, [a, [0], false], [3.0, 4.0]},
        {:max, [a, [], false], [[1.0, 2.0], [3.0, 4.0]]},
        {:min, [a, [0, 1], false], 1.0},
        {:argmax, [row, false], 0},
        {:argmax, [a, 1, true], [[1], [1]]},
        {:argmin, [row, false], 1},
        {:argmin, [a, 0, false], [0, 0]},
        {:cumulative_sum, [row, 0, false, true], [3.0, 4.0, 6.0]},
        {:cumulative_product, [row, 0, true, true], [6.0, 2.0, 2.0]},
        {:cumulative_max, [row, 0, false, true], [3.0, 3.0, 3.0]},
        {:cumulative_min, [row, 0, false, true], [3.0, 1.0, 1.0]},
        {:sort, [row, 0], [1.0, 2.0, 3.0]},
        {:argsort, [row, 0], [1, 2, 0]},
        {:window_scatter_max, [row, f32([5.0]), s.(0.0), [3], [0], [0], [3]], [5.0, 0.0, 0.0]},
        {:window_scatter_min, [row, f32([5.0]), s.(1.0), [3], [0], [0], [3]], [1.0, 6.0, 1.0]},
        {:tensordot, [a, b, [1], [0]], [[4.0, 8.5], [10.0, 17.5]]},
        {:einsum, [[a, b], "ij,jk->ik"], [[4.0, 8.5], [10.0, 17.5]]},
        {:conv_general, [f32([[[1.0], [2.0], [3.0]]]), f32([[[1.0], [10.0]]]), [1], [0], [1], [1], [1], 1],
         [[[21.0], [32.0], [3.0]]]},
        {:fft, [f32([1.0, 2.0]), 2, 0], [{3.0, 0.0}, {-1.0, 0.0}]},
        {:ifft, [Array.from_list([{3.0, 0.0}, {-1.0, 0.0}], :c64), 2, 0], [{1.0, 0.0}, {2.0, 0.0}]},
        {:fft2, [f32([[1.0, 2.0]]), [1, 2], [0, 1]], [[{3.0, 0.0}, {-1.0, 0.0}]]},
        {:ifft2, [Array.from_list([[{3.0, 0.0}, {-1.0, 0.0}]], :c64), [1, 2], [0, 1]], [[{1.0, 0.0}, {2.0, 0.0}]]},
        {:tri_inv, [triangle, false], [[0.5, 0.0], [-0.125, 0.25]]},
        {:linalg_lu, [symmetric], [[0, 1], [[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 3.0]]]},
        {:linalg_svd, [symmetric, false], [[3.0, 2.0]]},
        {:linalg_cholesky, [f32([[4.0, 0.0], [0.0, 9.0]]), false], [[2.0, 0.0], [0.0, 3.0]]},
        {:linalg_inv, [symmetric], [[0.5, 0.0], [0.0, 1 / 3]]},
        {:linalg_pinv, [symmetric], [[0.5, 0.0], [0.0, 1 / 3]]},
        {:linalg_solve, [symmetric, f32([2.0, 6.0])], [1.0, 2.0]},
        {:linalg_solve_triangular, [triangle, f32([[2.0], [9.0]]), false], [[1.0], [2.0]]},
        {:fast_rms_norm, [f32([[3.0, 4.0]]), f32([1.0, 2.0]), 0], [[3 / :math.sqrt(12.5), 8 / :math.sqrt(12.5)]]},
        {:fast_layer_norm, [f32([[1.0, 3.0]]), f32([1.0, 2.0]), f32([0.5, 0.5]), 0], [[-0.5, 2.5]]},
        {:fast_layer_norm_no_bias, [f32([[1.0, 3.0]]), f32([1.0, 2.0]), 0], [[-1.0, 2.0]]},
        {:fast_swiglu, [f32([0.0, 1.0]), f32([1.0, 2.0])], [0.0, 2 / (1 + :math.exp(-1))]},
        {:shape, [a], {2, 2}},
        {:scalar_type, [a], :float32},
        {:scalar_type, [Ops.astype(a, :bf16)], :bfloat16},
        {:strides, [Ops.transpose(Ops.tile(a, [32, 32]), [1, 0])], [1, 64]},
        {:to_device, [a, {:cpu, 0}], [[1.0, 2.0], [3.0, 4.0]]},
        {:deallocate, [Ops.copy(a)], :ok},
        {:to_blob, [Ops.transpose(i, [0])], <<6::32-native, 7::32-native, -7::32-native>>},
        {:to_blob, [i, 2], <<6::32-native, 7::32-native>>},
        {:to_blob, [i, 9], <<6::32-native, 7::32-native, -7::32-native>>},
        {:item, [Array.from_list([true], :bool)], 1},
        {:item, [s32([[5]])], 5},
        {:item, [s.(0.5)], 0.5},
        {:shm_unlink, ["/emlx_no_such_segment"], :ok}
      ]
  end

  # Functions whose results are more than a list of numbers; the tests below cover them.
  @apart [:linalg_qr, :linalg_eigh, :quantize, :dequantize, :quantized_matmul, :tensor_data_ptr, :tensor_to_shm] ++
           [:fast_rope, :fast_rope_ids, :fast_rope_with_freqs, :fast_rope_positions] ++
           [:fast_sdpa, :fast_sdpa_masked, :fast_sdpa_causal, :fast_sdpa_causal_key_masked] ++
           [:kv_cache_attention, :kv_cache_attention_masked, :kv_cache_sdpa_update, :causal_kv_attention]

  test "every function returns the C++ EMLX's result" do
    for {name, arguments, expected} <- calls() do
      actual = plain(apply(EMLX, name, arguments))
      assert near?(actual, expected), "#{name}: #{inspect(actual)} for #{inspect(expected)}"
    end
  end

  test "every name of the table is tested" do
    tested = MapSet.new(Enum.map(calls(), &elem(&1, 0)) ++ @apart)
    assert Enum.uniq(for {name, _, _, _} <- Compatibility.table(), name not in tested, do: name) == []
  end

  test "every function of the table exists" do
    for {_, _, where, _} <- Compatibility.table(), [module, name, arity] <- references(where) do
      module = Module.concat([module])
      Code.ensure_loaded!(module)
      assert function_exported?(module, String.to_atom(name), String.to_integer(arity)), where
    end
  end

  defp references(text), do: Regex.scan(~r/([A-Z][\w.]*)\.([a-z_]\w*)\/(\d+)/, text, capture: :all_but_first)

  test "the factors of a decomposition multiply to their matrix" do
    a = f32([[1.0, 2.0], [3.0, 4.0]])
    {q, r} = EMLX.linalg_qr(a)
    assert near?(plain(Ops.matmul(q, r)), plain(a))
    symmetric = f32([[2.0, 1.0], [1.0, 2.0]])

    for uplo <- [:L, :U, "L", :u] do
      {values, vectors} = EMLX.linalg_eigh(symmetric, uplo)
      assert near?(plain(values), [1.0, 3.0])
      product = Ops.matmul(symmetric, vectors)
      assert near?(plain(product), plain(Ops.multiply(vectors, Ops.reshape(values, [1, 2]))))
    end

    assert_raise ArgumentError, ~r/:L or :U, got: :left/, fn -> EMLX.linalg_eigh(symmetric, :left) end
    [u, s, vt] = EMLX.linalg_svd(a, true)
    assert near?(plain(Ops.matmul(Ops.multiply(u, s), vt)), plain(a))
  end

  test "products with quantized matrices are close to those with the original matrices" do
    w = Ops.random_key(1) |> Ops.random_normal({8, 64})
    x = Ops.random_key(2) |> Ops.random_normal({2, 64})

    for {mode, group, bits} <- [{"affine", 64, 4}, {:affine, 32, 8}, {"mxfp4", 32, 4}] do
      {packed, scales, biases} = EMLX.quantize(w, group, bits, mode)
      assert EMLX.scalar_type(packed) == :uint32
      assert is_nil(biases) == (mode == "mxfp4")
      near = EMLX.dequantize(packed, scales, biases, group, bits, mode) |> Ops.astype(:f32)
      assert Array.shape(near) == {8, 64}
      product = EMLX.quantized_matmul(x, packed, scales, biases, true, group, bits, mode)
      expected = Ops.matmul(x, Ops.transpose(near, [1, 0]))
      assert plain(Ops.allclose(product, expected, rtol: 1.0e-3, atol: 1.0e-3)) == true
    end

    {packed, scales, biases} = EMLX.quantize(w, 64, 4)

    assert plain(EMLX.quantized_matmul(x, packed, scales, biases)) ==
             plain(EMLX.quantized_matmul(x, packed, scales, biases, true, 64, 4))

    assert plain(EMLX.dequantize(packed, scales, biases, 64, 4)) ==
             plain(EMLX.dequantize(packed, scales, biases, 64, 4, "affine"))

    assert_raise ArgumentError, ~r/a mode of quantization is/, fn -> EMLX.quantize(w, 64, 4, "gguf") end
  end

  test "pointers and shared memory lead to the elements" do
    a = s32([1, 2, 3])
    assert {address, 12} = EMLX.tensor_data_ptr(a)
    assert plain(Array.from_pointer(address, {3}, :s32)) == [1, 2, 3]
    assert {name, 12} = EMLX.tensor_to_shm(a, 0o600)
    assert plain(EMLX.SharedMemory.take(name, {3}, :s32)) == [1, 2, 3]
    assert EMLX.shm_unlink(name) == :ok
  end

  # ---- rotary embedding, by its definition ----

  defp rotate(row, position, frequencies) do
    {first, second} = Enum.split(row, length(frequencies))

    turned =
      for {{x, y}, frequency} <- first |> Enum.zip(second) |> Enum.zip(frequencies) do
        {sin, cos} = {:math.sin(position * frequency), :math.cos(position * frequency)}
        {x * cos - y * sin, y * cos + x * sin}
      end

    Enum.map(turned, &elem(&1, 0)) ++ Enum.map(turned, &elem(&1, 1))
  end

  defp rows(array, positions, frequencies) do
    # {batch, length, heads, size}, a position for each row of {batch, length}.
    for {batch, positions} <- Enum.zip(plain(array), positions) do
      for {heads, position} <- Enum.zip(batch, positions), do: Enum.map(heads, &rotate(&1, position, frequencies))
    end
  end

  test "positions follow the length, whatever the order of the axes" do
    x = Ops.random_key(3) |> Ops.random_normal({2, 3, 2, 4})
    frequencies = [1.0, 0.01]
    ids = [[5, 6, 7], [0, 1, 2]]
    expected = rows(x, ids, frequencies)
    assert near?(plain(EMLX.fast_rope_ids(x, 4, false, 10_000, 1, s32([5, 0]))), expected)
    reciprocals = f32(Enum.map(frequencies, &(1 / &1)))
    assert near?(plain(EMLX.fast_rope_with_freqs(x, 4, false, 1.0, s32([5, 0]), reciprocals)), expected)
    assert near?(plain(EMLX.fast_rope_positions(x, 4, false, 10_000, 1, s32(ids))), expected)

    backwards = [[7, 0, 2], [1, 1, 9]]
    positions = EMLX.fast_rope_positions(x, 4, false, 10_000, 1, s32(backwards))
    assert near?(plain(positions), rows(x, backwards, frequencies))

    heads_first = Ops.swapaxes(x, 1, 2)
    expected = rows(x, [[5, 6, 7], [5, 6, 7]], frequencies)
    assert near?(plain(heads_first |> EMLX.fast_rope(4, false, 10_000, 1.0, 5) |> Ops.swapaxes(1, 2)), expected)

    assert_raise ArgumentError, ~r/\{batch, length, heads, size\} and \{batch, length\}/, fn ->
      EMLX.fast_rope_positions(x, 4, false, 10_000, 1, s32([1, 2]))
    end
  end

  # ---- attention, by its definition ----

  # Attention on nested lists {batch, heads, length, size}; `sees?` takes batch row, query and key.
  defp attention(q, k, v, scale, sees?, sinks \\ nil) do
    for {q, b} <- Enum.with_index(q) do
      group = div(length(q), length(Enum.at(k, b)))

      for {queries, h} <- Enum.with_index(q) do
        {keys, values} = {k |> Enum.at(b) |> Enum.at(div(h, group)), v |> Enum.at(b) |> Enum.at(div(h, group))}

        for {query, i} <- Enum.with_index(queries) do
          powers =
            for {key, j} <- Enum.with_index(keys) do
              score = Enum.zip_with(query, key, &*/2) |> Enum.sum()
              if sees?.(b, i, j), do: :math.exp(score * scale), else: 0.0
            end

          sum = Enum.sum(powers) + if(sinks, do: :math.exp(Enum.at(sinks, h)), else: 0.0)
          values |> Enum.zip_with(& &1) |> Enum.map(&weighted(&1, powers, sum))
        end
      end
    end
  end

  defp weighted(_column, _powers, +0.0), do: 0.0
  defp weighted(column, powers, sum), do: (column |> Enum.zip_with(powers, &*/2) |> Enum.sum()) / sum

  defp qkv(queries, keys) do
    for {seed, heads, length} <- [{1, 4, queries}, {2, 2, keys}, {3, 2, keys}],
        do: Ops.random_key(seed) |> Ops.random_normal({2, heads, length, 4})
  end

  test "attention is softmax(scale q k)·v over a query's keys, and 0 without keys" do
    [q, k, v] = arrays = qkv(3, 5)
    lists = Enum.map(arrays, &plain/1)
    sinks = f32([0.1, 0.2, 0.3, 0.4])
    attended = fn sees?, sinks -> apply(&attention/6, lists ++ [0.5, sees?, sinks]) end
    all = fn _, _, _ -> true end
    causal = fn _, i, j -> j <= i + 2 end

    assert near?(plain(EMLX.fast_sdpa(q, k, v, 0.5)), attended.(all, nil))
    assert near?(plain(EMLX.fast_sdpa(q, k, v, 0.5, sinks)), attended.(all, plain(sinks)))
    assert near?(plain(EMLX.fast_sdpa_causal(q, k, v, 0.5)), attended.(causal, nil))
    assert near?(plain(EMLX.fast_sdpa_causal(q, k, v, 0.5, sinks)), attended.(causal, plain(sinks)))
    mask = Array.from_list([[[[true, false, true, false, true]]]], :bool)
    even = fn _, _, j -> rem(j, 2) == 0 end
    assert near?(plain(EMLX.fast_sdpa_masked(q, k, v, mask, 0.5)), attended.(even, nil))
    assert near?(plain(EMLX.fast_sdpa_masked(q, k, v, mask, 0.5, sinks)), attended.(even, plain(sinks)))

    keys = [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    there? = fn b, j -> keys |> Enum.at(b) |> Enum.at(j) == 1 end

    for offset <- [0, 2], {sinks, list} <- [{nil, nil}, {sinks, plain(sinks)}] do
      actual = EMLX.fast_sdpa_causal_key_masked(q, k, v, 0.5, u8(keys), offset, sinks)
      assert near?(plain(actual), attended.(fn b, i, j -> j <= i + offset and there?.(b, j) end, list))
    end

    assert plain(EMLX.fast_sdpa_causal_key_masked(q, k, v, 0.5, u8(keys), 0)) ==
             plain(EMLX.fast_sdpa_causal_key_masked(q, k, v, 0.5, u8(keys), 0, nil))

    assert_raise ArgumentError, ~r/the key mask is \{1, 4\}, it must be \{batch, keys\}, here \{2, 5\}/, fn ->
      EMLX.fast_sdpa_causal_key_masked(q, k, v, 0.5, u8([[1, 1, 1, 1]]), 0)
    end
  end

  test "new keys and values are written into the caches and attended to with the previous ones" do
    caches = for seed <- [4, 5], do: Ops.random_key(seed) |> Ops.random_normal({2, 2, 6, 4})
    [k_cache, v_cache] = caches
    lists = Enum.map(caches, &plain/1)

    for {offset, length} <- [{0, 3}, {2, 1}, {3, 3}] do
      [q, new_k, new_v] = qkv(length, length)
      valid = offset + length

      written =
        for {cache, new} <- Enum.zip(lists, [plain(new_k), plain(new_v)]) do
          Enum.zip_with(cache, new, fn heads, new ->
            Enum.zip_with(heads, new, fn rows, new ->
              Enum.take(rows, offset) ++ new ++ Enum.drop(rows, valid)
            end)
          end)
        end

      [k, v] = for heads <- written, do: for(batch <- heads, do: for(rows <- batch, do: Enum.take(rows, valid)))
      expected = attention(plain(q), k, v, 0.5, fn _, i, j -> j <= i + offset end)

      {attended, k_new, v_new} = EMLX.kv_cache_sdpa_update(q, new_k, new_v, k_cache, v_cache, offset, 0.5)
      assert near?(plain(attended), expected)
      assert [plain(k_new), plain(v_new)] == written
      # The caches are unchanged.
      assert Enum.map(caches, &plain/1) == lists

      # The same with the heads after the length.
      [q, new_k, new_v, k_cache, v_cache] = for a <- [q, new_k, new_v | caches], do: Ops.swapaxes(a, 1, 2)
      call = [q, new_k, new_v, k_cache, v_cache, offset]
      {attended, k_new, v_new} = apply(&EMLX.kv_cache_attention/7, call ++ [0.5])
      assert near?(plain(Ops.swapaxes(attended, 1, 2)), expected)
      assert Enum.map([k_new, v_new], &plain(Ops.swapaxes(&1, 1, 2))) == written
      assert plain(apply(&EMLX.causal_kv_attention/7, call ++ [[scale: 0.5]])) == plain({attended, k_new, v_new})

      mask = for row <- 0..1, do: for(j <- 0..(valid - 1), do: if(row == 0 or j > 1, do: 1, else: 0))
      there? = fn b, j -> mask |> Enum.at(b) |> Enum.at(j) == 1 end
      expected = attention(plain(Ops.swapaxes(q, 1, 2)), k, v, 0.5, fn b, i, j -> j <= i + offset and there?.(b, j) end)
      {attended, _, _} = masked = apply(&EMLX.kv_cache_attention_masked/8, call ++ [0.5, u8(mask)])
      assert near?(plain(Ops.swapaxes(attended, 1, 2)), expected)
      assert plain(apply(&EMLX.causal_kv_attention/7, call ++ [[scale: 0.5, key_mask: u8(mask)]])) == plain(masked)
    end

    [q, new_k, new_v] = qkv(3, 3)

    assert_raise ArgumentError, ~r/kv_cache_sdpa_update: .* take the places 4 to 6 of a cache of 6/, fn ->
      EMLX.kv_cache_sdpa_update(q, new_k, new_v, k_cache, v_cache, 4, 0.5)
    end

    assert_raise ArgumentError, ~r/must have 4 axes/, fn ->
      EMLX.kv_cache_attention(f32([1.0]), new_k, new_v, k_cache, v_cache, 0, 0.5)
    end

    assert_raise KeyError, fn -> EMLX.causal_kv_attention(q, new_k, new_v, k_cache, v_cache, 0, []) end
  end

  # ---- errors ----

  test "a call that fails raises EMLX.NIFError with the EMLX.Error in it" do
    error = assert_raise EMLX.NIFError, ~r/add: .*cannot be broadcast/, fn -> EMLX.add(s32([1, 2]), s32([1, 2, 3])) end
    assert %EMLX.Error{op: "add", inputs: [{[2], :s32}, {[3], :s32}]} = error.error
    assert error.message == Exception.message(error.error)

    assert_raise EMLX.NIFError, ~r/a binary of 3 bytes does not hold shape \[1\]/, fn ->
      EMLX.from_blob(<<1, 2, 3>>, {1}, :int32, :cpu)
    end

    assert_raise EMLX.NIFError, ~r/one device of each kind, \{:gpu, 0\}/, fn -> EMLX.ones({1}, :float32, {:gpu, 1}) end
    assert_raise EMLX.NIFError, "words", fn -> raise EMLX.NIFError, "words" end
  end

  test "unknown types and devices are refused by name" do
    assert_raise ArgumentError, ~r/a type is one of :bool, :uint8.*got: :int128/, fn ->
      EMLX.ones({1}, :int128, :cpu)
    end

    assert_raise ArgumentError, ~r/got: \{:f, 8\}/, fn -> EMLX.astype(s32([1]), {:f, 8}) end

    assert_raise ArgumentError, ~r/a device is :cpu, :gpu, \{:cpu, 0\}.*got: :tpu/, fn ->
      EMLX.ones({1}, :int8, :tpu)
    end

    assert_raise ArgumentError, ~r/got: "cpu"/, fn -> EMLX.to_device(s32([1]), "cpu") end
  end

  test "item/1 takes one real number, and to_blob/2 takes a number of elements as limit" do
    assert_raise ArgumentError, ~r/shape \{2\}, it must have one element/, fn -> EMLX.item(s32([1, 2])) end
    assert_raise ArgumentError, ~r/a complex number is none/, fn -> EMLX.item(Array.scalar({1.0, 2.0}, :c64)) end
    assert EMLX.item(f32([:infinity])) == :infinity
    assert_raise ArgumentError, ~r/a number of elements, got: -1/, fn -> EMLX.to_blob(s32([1]), -1) end
    assert EMLX.to_blob(Ops.transpose(s32([[1, 2], [3, 4]]), [1, 0]), 2) == <<1::32-native, 3::32-native>>
  end
end
