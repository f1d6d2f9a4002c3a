defmodule EMLX.FastTest do
  use EMLX.NxCase, async: true

  import EMLX.TelemetryRecorder, only: [take_blocks: 0]

  alias EMLX.{Fast, Random}

  doctest Fast

  @types [{:f, 32}, {:f, 16}, {:bf, 16}]

  # f64 is for the CPU only.
  @gpu System.get_env("EMLX_TEST_DEVICE") == "gpu"
  @needs_f64 @gpu && "a GPU has no f64"

  setup {EMLX.TelemetryRecorder, :record_test}

  # ---- the formulas, in the type of their arguments ----

  defp rms_norm(x, weight, eps) do
    root = x |> Nx.pow(2) |> Nx.mean(axes: [-1], keep_axes: true) |> Nx.add(eps) |> Nx.sqrt()
    Nx.multiply(Nx.divide(x, root), weight)
  end

  defp layer_norm(x, weight, bias, eps) do
    mean = Nx.mean(x, axes: [-1], keep_axes: true)
    variance = Nx.variance(x, axes: [-1], keep_axes: true)
    x |> Nx.subtract(mean) |> Nx.divide(Nx.sqrt(Nx.add(variance, eps))) |> Nx.multiply(weight) |> Nx.add(bias)
  end

  # Rotates column by column; positions {batch, length}, frequencies {dims / 2}.
  defp rope(x, positions, frequencies, traditional) do
    half = Nx.size(frequencies)
    column = fn i -> x[[.., .., .., i]] end

    turned =
      for i <- 0..(half - 1) do
        {a, b} = if traditional, do: {2 * i, 2 * i + 1}, else: {i, i + half}
        angle = positions |> Nx.multiply(frequencies[i]) |> Nx.new_axis(1)
        {cos, sin} = {Nx.cos(angle), Nx.sin(angle)}

        [
          {a, Nx.subtract(Nx.multiply(column.(a), cos), Nx.multiply(column.(b), sin))},
          {b, Nx.add(Nx.multiply(column.(a), sin), Nx.multiply(column.(b), cos))}
        ]
      end

    rest = for i <- (2 * half)..(Nx.axis_size(x, -1) - 1)//1, do: {i, column.(i)}
    (List.flatten(turned) ++ rest) |> Enum.sort_by(&elem(&1, 0)) |> Enum.map(&elem(&1, 1)) |> Nx.stack(axis: 3)
  end

  # `seen` is a boolean mask or nil, `added` is an additive mask or 0.
  defp attention(q, k, v, scale, opts \\ []) do
    group = div(Nx.axis_size(q, 1), Nx.axis_size(k, 1))
    [k, v] = for t <- [k, v], do: repeat_heads(t, group)
    scores = Nx.dot(q, [3], [0, 1], k, [3], [0, 1])
    scores = scores |> Nx.multiply(Nx.tensor(scale, type: scores.type)) |> Nx.add(opts[:added] || 0)

    scores =
      case opts[:seen] do
        nil -> scores
        seen -> Nx.select(Nx.broadcast(seen, scores), scores, -1.0e30)
      end

    powers = Nx.exp(Nx.subtract(scores, Nx.reduce_max(scores, axes: [3], keep_axes: true)))
    sum = Nx.sum(powers, axes: [3], keep_axes: true)

    sum =
      case opts[:sinks] do
        nil ->
          sum

        sinks ->
          Nx.add(
            sum,
            Nx.exp(Nx.subtract(Nx.reshape(sinks, {1, :auto, 1, 1}), Nx.reduce_max(scores, axes: [3], keep_axes: true)))
          )
      end

    Nx.dot(Nx.divide(powers, sum), [3], [0, 1], v, [2], [0, 1])
  end

  defp repeat_heads(tensor, group) do
    {batch, heads, length, size} = tensor.shape

    tensor
    |> Nx.new_axis(2)
    |> Nx.broadcast({batch, heads, group, length, size})
    |> Nx.reshape({batch, heads * group, length, size})
  end

  defp causal(queries, keys) do
    Nx.greater_equal(
      Nx.add(Nx.iota({queries, keys}, axis: 0), keys - queries),
      Nx.iota({queries, keys}, axis: 1)
    )
  end

  # ---- comparison ----

  defp normal(shape, type), do: Random.tensor(shape, type, range: {-2, 2})

  # Compares `fast`, on the backend under test and on the binary backend, with `formula` in f64.
  defp near_formula(fast, formula, tensors) do
    type = hd(tensors).type

    exact =
      Enum.map(
        tensors,
        &case &1 do
          %Nx.Tensor{type: {kind, _}} when kind in [:f, :bf] -> exact(&1)
          %Nx.Tensor{} -> Nx.backend_copy(&1, Nx.BinaryBackend)
          other -> other
        end
      )

    expected = Nx.with_default_backend(Nx.BinaryBackend, fn -> apply(formula, exact) end)
    binary = Nx.with_default_backend(Nx.BinaryBackend, fn -> apply(fast, tensors) end)
    fused = apply(fast, Enum.map(tensors, &Nx.backend_copy(&1, backend())))
    for actual <- [binary, fused], do: near(actual, expected, type)
    fused
  end

  defp near(actual, expected, type) do
    assert actual.type == type
    assert actual.shape == expected.shape
    {absolute, relative} = EMLX.Tolerance.of(:fused, EMLX.Backend.dtype(type))
    {actual, expected} = {flat(actual), flat(expected)}

    for {x, y} <- Enum.zip(actual, expected) do
      assert EMLX.Tolerance.near?(x, y, {absolute, relative}), "#{x} is not near #{y} in #{inspect(type)}"
    end
  end

  defp exact(tensor), do: tensor |> Nx.backend_copy(Nx.BinaryBackend) |> Nx.as_type(:f64)

  defp flat(tensor), do: tensor |> Nx.backend_copy(Nx.BinaryBackend) |> Nx.devectorize() |> Nx.to_flat_list()

  # Compares the gradients of `fast` by every argument with those of `formula`, both in f32 on the backend under test.
  defp same_gradient(fast, formula, tensors) do
    tensors = Enum.map(tensors, &Nx.backend_copy(&1, backend()))
    # Each element has its own weight, so that no two contribute the same.
    loss = fn fun -> fn args -> args |> Tuple.to_list() |> then(&apply(fun, &1)) |> weighted_sum() end end
    args = List.to_tuple(tensors)
    actual = Nx.Defn.grad(args, loss.(fast))
    expected = Nx.Defn.grad(args, loss.(formula))

    for {a, b} <- Enum.zip(Tuple.to_list(actual), Tuple.to_list(expected)) do
      assert_same(a, b, rtol: 1.0e-3, atol: 1.0e-4)
    end
  end

  defp weighted_sum(tensor), do: Nx.sum(Nx.multiply(tensor, Nx.cos(Nx.iota(tensor.shape, type: :f32))))

  # Runs `fast` inside defn, on the backend under test.
  defp in_defn(fast, tensors) do
    take_blocks()
    tensors = Enum.map(tensors, &Nx.backend_copy(&1, backend()))
    result = Nx.Defn.jit_apply(fast, tensors, compiler: Nx.Defn.Evaluator)
    assert_same(result, apply(fast, tensors))
    take_blocks()
  end

  # Vectorizes the first axis of the tensors selected by `which`, and compares with one call for each element.
  defp same_vectorized(fast, tensors, which) do
    tensors = Enum.map(tensors, &Nx.backend_copy(&1, backend()))
    vectorized = Enum.zip_with(tensors, which, fn tensor, yes -> if yes, do: Nx.vectorize(tensor, :v), else: tensor end)
    actual = apply(fast, vectorized)
    assert [v: size] = actual.vectorized_axes

    expected =
      for i <- 0..(size - 1),
          do: apply(fast, Enum.zip_with(tensors, which, fn tensor, yes -> if yes, do: tensor[i], else: tensor end))

    assert_same(Nx.devectorize(actual, keep_names: false), Nx.stack(expected), rtol: 1.0e-4, atol: 1.0e-5)
  end

  describe "rms_norm" do
    test "rms_norm matches its formula in every type" do
      for type <- @types, shape <- [{5}, {2, 7}, {2, 3, 8}] do
        x = normal(shape, type)
        weight = normal({elem(shape, tuple_size(shape) - 1)}, type)
        near_formula(&Fast.rms_norm(&1, &2, eps: 1.0e-3), &rms_norm(&1, &2, 1.0e-3), [x, weight])
        near_formula(&Fast.rms_norm(&1, nil), &rms_norm(&1, 1, 1.0e-5), [x])
      end

      assert Enum.uniq(take_blocks()) == [{Fast.RMSNorm, :fused, nil}]
    end

    test "rms_norm takes a weight of another type" do
      x = normal({2, 8}, {:bf, 16})
      near_formula(&Fast.rms_norm/2, &rms_norm(&1, &2, 1.0e-5), [x, normal({8}, {:f, 32})])
      unless @gpu, do: near_formula(&Fast.rms_norm/2, &rms_norm(&1, &2, 1.0e-5), [x, normal({8}, {:f, 64})])
      near_formula(&Fast.rms_norm/2, &rms_norm(&1, &2, 1.0e-5), [Nx.as_type(x, {:f, 16}), normal({8}, {:bf, 16})])
    end

    @tag skip: @needs_f64
    test "rms_norm composes f64 and takes integers as f32" do
      near_formula(&Fast.rms_norm(&1, nil), &rms_norm(&1, 1, 1.0e-5), [normal({2, 7}, {:f, 64})])
      assert take_blocks() == [{Fast.RMSNorm, :composed, "the kernel computes in f32, x is f64"}]
      assert Fast.rms_norm(Nx.tensor([1, 2]), Nx.tensor([1, 1])).type == {:f, 32}
      assert take_blocks() == [{Fast.RMSNorm, :fused, nil}]
    end

    test "rms_norm has the composed gradient" do
      tensors = [normal({2, 3, 6}, {:f, 32}), normal({6}, {:f, 32})]
      same_gradient(&Fast.rms_norm/2, &rms_norm(&1, &2, 1.0e-5), tensors)
    end

    test "rms_norm works in defn" do
      assert in_defn(&Fast.rms_norm/2, [normal({2, 6}, {:f, 32}), normal({6}, {:f, 32})]) |> Enum.uniq() ==
               [{Fast.RMSNorm, :fused, nil}]
    end

    test "rms_norm works on vectorized tensors" do
      tensors = [normal({3, 2, 6}, {:f, 32}), normal({6}, {:f, 32})]
      same_vectorized(&Fast.rms_norm/2, tensors, [true, false])
      assert {Fast.RMSNorm, :fused, nil} in take_blocks()
      same_vectorized(&Fast.rms_norm/2, [hd(tensors), normal({3, 6}, {:f, 32})], [true, true])
      same_vectorized(&Fast.rms_norm/2, [normal({2, 6}, {:f, 32}), normal({3, 6}, {:f, 32})], [false, true])
    end

    test "rms_norm keeps names and takes any tensors" do
      x = Nx.tensor([[1.0, 2.0]], names: [:batch, :features])
      assert Fast.rms_norm(x, Nx.tensor([1.0, 1.0], names: [:other])).names == [:batch, :features]
      assert Fast.rms_norm(x, Nx.backend_copy(Nx.tensor([1.0, 1.0]), Nx.BinaryBackend)).shape == {1, 2}
    end

    test "the errors of rms_norm name the argument that does not fit" do
      message = "rms_norm: x is {2, 3}, weight is {4}: weight must be {3}, as long as the last axis of x"
      assert_raise ArgumentError, message, fn -> Fast.rms_norm(Nx.iota({2, 3}), Nx.iota({4})) end
      message = "rms_norm: x is a scalar, there is no axis to normalise over"
      assert_raise ArgumentError, message, fn -> Fast.rms_norm(1.0, nil) end
      message = "rms_norm: x is complex (c64[1]), it must be real"
      assert_raise ArgumentError, message, fn -> Fast.rms_norm(Nx.tensor([Complex.new(1, 2)]), nil) end
      assert_raise ArgumentError, ~r/unknown keys \[:epsilon\]/, fn -> Fast.rms_norm(Nx.iota({2}), nil, epsilon: 1) end
      message = "rms_norm: :eps must be a number, got: :small"
      assert_raise ArgumentError, message, fn -> Fast.rms_norm(Nx.iota({2}), nil, eps: :small) end
    end
  end

  describe "layer_norm" do
    test "layer_norm matches its formula in every type, with and without weight and bias" do
      for type <- @types, shape <- [{5}, {2, 7}, {2, 3, 8}] do
        size = elem(shape, tuple_size(shape) - 1)
        {x, weight, bias} = {normal(shape, type), normal({size}, type), normal({size}, type)}
        near_formula(&Fast.layer_norm(&1, &2, &3, eps: 1.0e-3), &layer_norm(&1, &2, &3, 1.0e-3), [x, weight, bias])
        near_formula(&Fast.layer_norm(&1, &2, nil), &layer_norm(&1, &2, 0, 1.0e-5), [x, weight])
        near_formula(&Fast.layer_norm(&1, nil, &2), &layer_norm(&1, 1, &2, 1.0e-5), [x, bias])
        near_formula(&Fast.layer_norm(&1, nil, nil), &layer_norm(&1, 1, 0, 1.0e-5), [x])
      end

      assert Enum.uniq(take_blocks()) == [{Fast.LayerNorm, :fused, nil}]
    end

    @tag skip: @needs_f64
    test "layer_norm composes f64" do
      near_formula(&Fast.layer_norm(&1, nil, nil), &layer_norm(&1, 1, 0, 1.0e-5), [normal({2, 7}, {:f, 64})])
      assert [{Fast.LayerNorm, :composed, _}] = take_blocks()
    end

    test "layer_norm has the composed gradient" do
      tensors = [normal({2, 3, 6}, {:f, 32}), normal({6}, {:f, 32}), normal({6}, {:f, 32})]
      same_gradient(&Fast.layer_norm/3, &layer_norm(&1, &2, &3, 1.0e-5), tensors)
    end

    test "layer_norm works in defn" do
      tensors = [normal({2, 6}, {:f, 32}), normal({6}, {:f, 32}), normal({6}, {:f, 32})]
      assert in_defn(&Fast.layer_norm/3, tensors) |> Enum.uniq() == [{Fast.LayerNorm, :fused, nil}]
      assert in_defn(&Fast.layer_norm(&1, nil, &2), tl(tensors)) |> Enum.uniq() == [{Fast.LayerNorm, :fused, nil}]
    end

    test "layer_norm works on vectorized tensors" do
      tensors = [normal({3, 2, 6}, {:f, 32}), normal({6}, {:f, 32}), normal({6}, {:f, 32})]
      same_vectorized(&Fast.layer_norm/3, tensors, [true, false, false])
      same_vectorized(&Fast.layer_norm/3, List.replace_at(tensors, 2, normal({3, 6}, {:f, 32})), [true, false, true])
    end

    test "the errors of layer_norm name the argument that does not fit" do
      message = "layer_norm: x is {2, 3}, bias is {2, 3}: bias must be {3}, as long as the last axis of x"
      assert_raise ArgumentError, message, fn -> Fast.layer_norm(Nx.iota({2, 3}), nil, Nx.iota({2, 3})) end
    end
  end

  describe "rope" do
    # Constants on the binary backend, the only ones that defn accepts.
    defp frequencies(dims, base) do
      frequencies = for i <- 0..(div(dims, 2) - 1), do: :math.pow(base, -2 * i / dims)
      Nx.tensor(frequencies, type: :f64, backend: Nx.BinaryBackend)
    end

    defp positions(length, offsets, scale \\ 1) do
      positions = for offset <- offsets, do: for(i <- 0..(length - 1), do: (i + offset) * scale)
      Nx.tensor(positions, type: :f64, backend: Nx.BinaryBackend)
    end

    test "rope matches its formula in every type" do
      for type <- @types, traditional <- [false, true], dims <- [8, 4] do
        x = normal({2, 3, 5, 8}, type)
        opts = [dims: dims, traditional: traditional, base: 500, scale: 0.5]
        formula = &rope(&1, positions(5, [7, 7], 0.5), frequencies(dims, 500), traditional)
        near_formula(&Fast.rope(&1, 7, nil, opts), formula, [x])
      end

      assert Enum.uniq(take_blocks()) == [{Fast.RoPE, :fused, nil}]
    end

    test "rope takes offsets as numbers, tensors and one for each batch row" do
      x = normal({2, 3, 5, 8}, {:f, 32})
      formula = fn offsets -> &rope(&1, positions(5, offsets), frequencies(8, 10_000), false) end
      near_formula(&Fast.rope(&1, 3), formula.([3, 3]), [x])
      near_formula(&Fast.rope(&1, Nx.tensor(3)), formula.([3, 3]), [x])
      near_formula(&Fast.rope(&1, Nx.tensor([3])), formula.([3, 3]), [x])
      near_formula(&Fast.rope(&1, Nx.tensor([3, 11], type: :u8)), formula.([3, 11]), [x])
      near_formula(&Fast.rope(&1, Nx.tensor([0, 40], type: :s64)), formula.([0, 40]), [x])
      assert Enum.uniq(take_blocks()) == [{Fast.RoPE, :fused, nil}]
    end

    test "rope takes reciprocal frequencies" do
      x = normal({1, 2, 4, 6}, {:f, 32})
      freqs = Nx.tensor([1.0, 3.0, 20.0])
      given = exactly(fn -> Nx.divide(1, exact(freqs)) end)
      near_formula(&Fast.rope(&1, 2, freqs), &rope(&1, positions(4, [2]), given, false), [x])
      near_formula(&Fast.rope(&1, Nx.tensor(2), freqs), &rope(&1, positions(4, [2]), given, false), [x])
      assert Enum.uniq(take_blocks()) == [{Fast.RoPE, :fused, nil}]
    end

    test "rope takes fewer and more axes" do
      x = normal({2, 3, 2, 5, 4}, {:f, 32}) |> Nx.backend_copy(backend())
      whole = Fast.rope(x, 3)
      assert_same(whole[[1, 2, 1]], Fast.rope(x[[1, 2, 1]], 3))
      assert_same(whole[[1, 2]], Fast.rope(x[[1, 2]], 3))
      assert_same(whole[1], Fast.rope(x[1], 3))
      assert_same(Fast.rope(x, Nx.tensor([3, 9]))[1], Fast.rope(x[1], 9))
    end

    @tag skip: @needs_f64
    test "rope composes f64" do
      near_formula(&Fast.rope(&1, 3), &rope(&1, positions(5, [3]), frequencies(8, 10_000), false), [
        normal({1, 2, 5, 8}, {:f, 64})
      ])

      assert [{Fast.RoPE, :composed, _}] = take_blocks()
    end

    test "rope has the composed gradient" do
      x = normal({2, 3, 5, 8}, {:f, 32})
      positions = Nx.as_type(positions(5, [3, 3]), :f32)

      for traditional <- [false, true] do
        fast = &Fast.rope(&1, 3, nil, dims: 4, traditional: traditional)
        same_gradient(fast, &rope(&1, positions, Nx.as_type(frequencies(4, 10_000), :f32), traditional), [x])
      end

      freqs = normal({4}, {:f, 32}) |> Nx.abs() |> Nx.add(1)
      same_gradient(&Fast.rope(&1, 3, &2), &rope(&1, positions, Nx.divide(1, &2), false), [x, freqs])
    end

    test "rope works in defn" do
      tensors = [normal({2, 3, 5, 8}, {:f, 32}), Nx.tensor([3, 4])]
      assert in_defn(&Fast.rope/2, tensors) |> Enum.uniq() == [{Fast.RoPE, :fused, nil}]
      assert in_defn(&Fast.rope(&1, 5), [hd(tensors)]) |> Enum.uniq() == [{Fast.RoPE, :fused, nil}]
    end

    test "rope works on vectorized tensors" do
      x = normal({3, 2, 2, 5, 4}, {:f, 32})
      same_vectorized(&Fast.rope(&1, 4), [x], [true])
      same_vectorized(&Fast.rope/2, [x, Nx.tensor(4)], [true, false])
      same_vectorized(&Fast.rope/2, [x, Nx.tensor([4, 9])], [true, false])
      same_vectorized(&Fast.rope/2, [x, Nx.tensor([4, 9, 1])], [true, true])
      same_vectorized(&Fast.rope/2, [x, Nx.tensor([[4, 9], [0, 1], [2, 3]])], [true, true])
      same_vectorized(&Fast.rope/2, [x[0], Nx.tensor([[4, 9], [0, 1], [2, 3]])], [false, true])
      same_vectorized(&Fast.rope/2, [x[0][0], Nx.tensor([4, 9])], [true, true])
    end

    test "the errors of rope name the argument that does not fit" do
      x = Nx.iota({2, 3, 5, 8}, type: :f32)

      for {message, call} <- [
            {"rope: x is {8}, it must be {batch, heads, length, size} or at least {length, size}",
             fn -> Fast.rope(Nx.iota({8}), 0) end},
            {"rope: x is {2, 3, 5, 8}, dims is 7: it must be even and from 2 to 8",
             fn -> Fast.rope(x, 0, nil, dims: 7) end},
            {"rope: x is {2, 3, 5, 8}, dims is 10: it must be even and from 2 to 8",
             fn -> Fast.rope(x, 0, nil, dims: 10) end},
            {"rope: dims is 8, freqs is f32[3]: it must be {4}", fn -> Fast.rope(x, 0, Nx.tensor([1.0, 2.0, 3.0])) end},
            {"rope: x is {2, 3, 5, 8}, offset is {3}: it must be {} or one integer for each of the 2 batch rows",
             fn -> Fast.rope(x, Nx.tensor([1, 2, 3])) end},
            {"rope: offset is f32, it must be of integers", fn -> Fast.rope(x, 1.0) end},
            {"rope: :base must be positive, got: 0.0", fn -> Fast.rope(x, 0, nil, base: 0) end},
            {"rope: :traditional must be true or false, got: 1", fn -> Fast.rope(x, 0, nil, traditional: 1) end}
          ] do
        assert_raise ArgumentError, message, call
      end
    end
  end

  describe "scaled_dot_product_attention" do
    defp qkv(type, opts \\ []) do
      {batch, heads, kv, queries, keys, size} = opts[:shape] || {2, 4, 2, 3, 5, 8}
      value = opts[:value] || size

      [
        normal({batch, heads, queries, size}, type),
        normal({batch, kv, keys, size}, type),
        normal({batch, kv, keys, value}, type)
      ]
    end

    test "scaled_dot_product_attention matches its formula in every type, for grouped heads" do
      for type <- @types, shape <- [{2, 4, 2, 3, 5, 8}, {1, 3, 1, 1, 7, 4}, {1, 2, 2, 6, 6, 16}] do
        size = elem(shape, 5)

        near_formula(
          &Fast.scaled_dot_product_attention/3,
          &attention(&1, &2, &3, 1 / :math.sqrt(size)),
          qkv(type, shape: shape)
        )
      end

      near_formula(
        &Fast.scaled_dot_product_attention(&1, &2, &3, nil, scale: 0.3),
        &attention(&1, &2, &3, 0.3),
        qkv({:f, 32}, value: 3)
      )

      assert Enum.uniq(take_blocks()) == [{Fast.ScaledDotProductAttention, :fused, nil}]
    end

    test "scaled_dot_product_attention takes heads after the length" do
      swap = &Nx.transpose(&1, axes: [0, 2, 1, 3])
      # Of the reference's backend, since the reference is computed in f64.
      mask = Nx.iota({3, 5}) |> Nx.greater(2) |> Nx.backend_copy(Nx.BinaryBackend)
      fast = &Fast.scaled_dot_product_attention(&1, &2, &3, mask, layout: :bshd, scale: 0.3)
      plain = &Fast.scaled_dot_product_attention(swap.(&1), swap.(&2), swap.(&3), mask, scale: 0.3)

      for type <- @types do
        args = type |> qkv(value: 6) |> Enum.map(swap)
        assert Nx.shape(apply(fast, args)) == {2, 3, 4, 6}
        near_formula(fast, &swap.(plain.(&1, &2, &3)), args)
      end

      qkv = for tensor <- qkv({:f, 32}, value: 6), do: Nx.stack(List.duplicate(swap.(tensor), 2))
      same_vectorized(fast, qkv, [true, true, true])
      [q, k, v] = qkv({:f, 32})

      assert_raise ArgumentError, ~r/:layout is :bhsd or :bshd, got: :bsd/, fn ->
        Fast.scaled_dot_product_attention(q, k, v, nil, layout: :bsd)
      end

      # The shapes are those of the layout :bshd.
      assert_raise ArgumentError, ~r/3 is not a multiple of 5/, fn ->
        Fast.scaled_dot_product_attention(q, k, v, nil, layout: :bshd)
      end
    end

    test "scaled_dot_product_attention takes boolean masks of any shape that broadcasts, and of any integer type" do
      for type <- @types, shape <- [{5}, {3, 5}, {4, 1, 5}, {2, 1, 3, 5}, {2, 4, 3, 5}, {1, 1, 1, 5}] do
        # Each query attends to its first key at least.
        seen = Random.tensor(shape, {:u, 8}, range: {0, 1})
        first = Nx.equal(Nx.iota(shape, axis: -1, backend: Nx.BinaryBackend), 0)
        seen = Nx.logical_or(seen, first) |> Nx.as_type(Random.one_of([{:u, 8}, {:s, 64}]))
        fast = &Fast.scaled_dot_product_attention(&1, &2, &3, &4)
        near_formula(fast, &attention(&1, &2, &3, 1 / :math.sqrt(8), seen: &4), qkv(type) ++ [seen])
      end

      assert Enum.uniq(take_blocks()) == [{Fast.ScaledDotProductAttention, :fused, nil}]
    end

    test "scaled_dot_product_attention of a query without keys is the mean of the values" do
      for type <- @types do
        seen = Nx.tensor([[1, 0, 0, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], type: :u8)
        [q, k, v] = qkv(type)

        out =
          near_formula(
            &Fast.scaled_dot_product_attention(&1, &2, &3, &4),
            &attention(&1, &2, &3, 1 / :math.sqrt(8), seen: &4),
            [q, k, v, seen]
          )

        near(out[[0, 0, 1]], exactly(fn -> Nx.mean(exact(v), axes: [2])[[0, 0]] end), type)
      end
    end

    test "scaled_dot_product_attention takes additive masks, also of a wider type" do
      for type <- @types, mask_type <- [type, {:f, 32}] do
        added = normal({3, 5}, mask_type)
        formula = &attention(&1, &2, &3, 1 / :math.sqrt(8), added: &4)
        near_formula(&Fast.scaled_dot_product_attention(&1, &2, &3, &4), formula, qkv(type) ++ [added])
      end

      hidden = Nx.tensor([0.0, :neg_infinity, 0.0, :neg_infinity, 0.0])
      seen = Nx.tensor([1, 0, 1, 0, 1], type: :u8)
      formula = fn q, k, v -> attention(q, k, v, 1 / :math.sqrt(8), seen: Nx.backend_copy(seen, Nx.BinaryBackend)) end
      near_formula(&Fast.scaled_dot_product_attention(&1, &2, &3, hidden), formula, qkv({:f, 32}))
      assert Enum.uniq(take_blocks()) == [{Fast.ScaledDotProductAttention, :fused, nil}]
    end

    test "scaled_dot_product_attention is causal up to the last key" do
      for type <- @types, {queries, keys} <- [{5, 5}, {1, 5}, {3, 5}] do
        formula = &attention(&1, &2, &3, 1 / :math.sqrt(8), seen: causal(queries, keys))

        near_formula(
          &Fast.scaled_dot_product_attention(&1, &2, &3, :causal),
          formula,
          qkv(type, shape: {2, 4, 2, queries, keys, 8})
        )
      end

      assert Enum.uniq(take_blocks()) == [{Fast.ScaledDotProductAttention, :fused, nil}]
    end

    test "scaled_dot_product_attention takes sinks" do
      for type <- @types, sink_type <- [type, {:f, 32}] do
        sinks = normal({4}, sink_type)
        formula = &attention(&1, &2, &3, 1 / :math.sqrt(8), sinks: &4)
        near_formula(&Fast.scaled_dot_product_attention(&1, &2, &3, nil, sinks: &4), formula, qkv(type) ++ [sinks])
        formula = &attention(&1, &2, &3, 1 / :math.sqrt(8), sinks: &4, seen: causal(3, 5))
        near_formula(&Fast.scaled_dot_product_attention(&1, &2, &3, :causal, sinks: &4), formula, qkv(type) ++ [sinks])
      end

      assert Enum.uniq(take_blocks()) == [{Fast.ScaledDotProductAttention, :fused, nil}]
    end

    @tag skip: @needs_f64
    test "scaled_dot_product_attention composes f64" do
      near_formula(&Fast.scaled_dot_product_attention/3, &attention(&1, &2, &3, 1 / :math.sqrt(8)), qkv({:f, 64}))
      assert [{Fast.ScaledDotProductAttention, :composed, _}] = take_blocks()
    end

    test "scaled_dot_product_attention has the composed gradient" do
      scale = 1 / :math.sqrt(8)
      same_gradient(&Fast.scaled_dot_product_attention/3, &attention(&1, &2, &3, scale), qkv({:f, 32}))

      same_gradient(
        &Fast.scaled_dot_product_attention(&1, &2, &3, :causal),
        &attention(&1, &2, &3, scale, seen: causal(3, 5)),
        qkv({:f, 32})
      )

      added = normal({4, 3, 5}, {:f, 32})
      sinks = normal({4}, {:f, 32})
      fast = &Fast.scaled_dot_product_attention(&1, &2, &3, &4, sinks: &5)
      same_gradient(fast, &attention(&1, &2, &3, scale, added: &4, sinks: &5), qkv({:f, 32}) ++ [added, sinks])
    end

    test "scaled_dot_product_attention works in defn" do
      fused = [{Fast.ScaledDotProductAttention, :fused, nil}]
      assert in_defn(&Fast.scaled_dot_product_attention(&1, &2, &3, :causal), qkv({:f, 32})) |> Enum.uniq() == fused
      tensors = qkv({:f, 32}) ++ [normal({3, 5}, {:f, 32}), normal({4}, {:f, 32})]
      assert in_defn(&Fast.scaled_dot_product_attention(&1, &2, &3, &4, sinks: &5), tensors) |> Enum.uniq() == fused
    end

    test "scaled_dot_product_attention works on vectorized tensors" do
      [q, k, v] = for tensor <- qkv({:f, 32}), do: Nx.stack([tensor, Nx.negate(tensor), Nx.cos(tensor)])
      same_vectorized(&Fast.scaled_dot_product_attention/3, [q, k, v], [true, true, true])
      same_vectorized(&Fast.scaled_dot_product_attention/3, [q, k[0], v[0]], [true, false, false])
      assert {Fast.ScaledDotProductAttention, :fused, nil} in take_blocks()

      fast = &Fast.scaled_dot_product_attention/4

      for {shape, vectorized} <- [
            {{3, 5}, false},
            {{2, 1, 3, 5}, false},
            {{3, 2, 1, 3, 5}, true},
            {{3, 3, 5}, true},
            {{3, 5}, true}
          ] do
        mask = normal(shape, {:f, 32})
        same_vectorized(fast, [q, k, v, mask], [true, true, true, vectorized])
        if vectorized, do: same_vectorized(fast, [q[0], k[0], v[0], mask], [false, false, false, true])
      end

      sinks = &Fast.scaled_dot_product_attention(&1, &2, &3, :causal, sinks: &4)
      same_vectorized(sinks, [q, k, v, normal({4}, {:f, 32})], [true, true, true, false])
      same_vectorized(sinks, [q, k, v, normal({3, 4}, {:f, 32})], [true, true, true, true])
    end

    test "the errors of scaled_dot_product_attention name the argument that does not fit" do
      zeros = &Nx.broadcast(0.0, &1)

      attend = fn q, k, v, mask, opts ->
        fn -> Fast.scaled_dot_product_attention(zeros.(q), zeros.(k), zeros.(v), mask, opts) end
      end

      fit = {2, 8, 16, 64}

      for {message, call} <- [
            {"q is {2, 8, 16, 64}, k has 3 heads: 8 is not a multiple of 3",
             attend.(fit, {2, 3, 16, 64}, {2, 3, 16, 64}, nil, [])},
            {"q is {8, 16, 64}, it must be {batch, heads, length, size}", attend.({8, 16, 64}, fit, fit, nil, [])},
            {"q is {2, 8, 16, 64}, k is {2, 8, 16, 32}: the sizes 64 and 32 differ",
             attend.(fit, {2, 8, 16, 32}, fit, nil, [])},
            {"k is {2, 8, 9, 64}, v is {2, 8, 16, 64}: heads or lengths differ",
             attend.(fit, {2, 8, 9, 64}, fit, nil, [])},
            {"q is {2, 8, 16, 64}, k is {1, 8, 16, 64}, v is {2, 8, 16, 64}: the batch sizes differ",
             attend.(fit, {1, 8, 16, 64}, fit, nil, [])},
            {"the mask is {3, 16}, it does not broadcast to {batch, heads, queries, keys}, here {2, 8, 16, 16}",
             attend.(fit, fit, fit, zeros.({3, 16}), [])},
            {"the mask must be nil, :causal or a tensor, got: :full", attend.(fit, fit, fit, :full, [])},
            {"q has 8 heads, sinks is {4}: it must be {8}", attend.(fit, fit, fit, nil, sinks: zeros.({4}))},
            {":scale must be a number, got: \"1\"", attend.(fit, fit, fit, nil, scale: "1")}
          ] do
        assert_raise ArgumentError, "scaled_dot_product_attention: #{message}", call
      end
    end
  end

  describe "einsum" do
    @equations [
      {"ij,jk->ik", [{2, 3}, {3, 4}]},
      {"ij,jk", [{2, 3}, {3, 4}]},
      {"bij,bjk->bik", [{2, 3, 4}, {2, 4, 5}]},
      {"bhid,bhjd->bhij", [{2, 2, 3, 4}, {2, 2, 5, 4}]},
      {"ij,jk,kl->il", [{2, 3}, {3, 4}, {4, 5}]},
      {"ij,ij->", [{2, 3}, {2, 3}]},
      {"ij,ij->ij", [{2, 3}, {2, 3}]},
      {"i,j->ji", [{2}, {3}]},
      {"i,j,k->kij", [{2}, {3}, {4}]},
      {"ij->ji", [{2, 3}]},
      {"ji", [{2, 3}]},
      {"ij->i", [{2, 3}]},
      {"ij->", [{2, 3}]},
      {"ii->i", [{3, 3}]},
      {"ii", [{3, 3}]},
      {"iij->j", [{3, 3, 2}]},
      {"ijij->ij", [{2, 3, 2, 3}]},
      {"iii->i", [{2, 2, 2}]},
      {"ik,kj,k->ij", [{2, 3}, {3, 4}, {3}]},
      {"ik,kj,k->ijk", [{2, 3}, {3, 4}, {3}]},
      {"ii,ij->j", [{3, 3}, {3, 2}]},
      {"ij,k->i", [{2, 3}, {4}]},
      {",ij->ij", [{}, {2, 3}]},
      {",->", [{}, {}]},
      {"aB,Bc->ac", [{2, 3}, {3, 2}]},
      {" i j , j k -> i k ", [{2, 3}, {3, 4}]},
      {"...ij,...jk->...ik", [{2, 3, 4}, {2, 4, 5}]},
      {"...ij,...jk->...ik", [{2, 5, 3, 4}, {1, 4, 5}]},
      {"...i,i->...", [{2, 3, 4}, {4}]},
      {"...,...->...", [{3, 1}, {2}]},
      {"i...->...i", [{2, 3, 4}]},
      {"...i,...i", [{2, 3}, {2, 3}]},
      {"...ii->...i", [{2, 3, 3}]}
    ]

    # The definition: sums over all letters, element by element.
    defp summed(equation, tensors) do
      {text, dropped} = Fast.Einsum.parse!(equation, Enum.map(tensors, & &1.shape))
      tensors = Enum.zip_with(tensors, dropped, &Nx.squeeze(&1, axes: &2))
      [inputs, output] = String.split(text, "->")
      terms = inputs |> String.split(",") |> Enum.map(&String.to_charlist/1)
      output = String.to_charlist(output)

      sizes =
        for {term, t} <- Enum.zip(terms, tensors),
            {l, axis} <- Enum.with_index(term),
            into: %{},
            do: {l, elem(t.shape, axis)}

      letters = Enum.uniq(output ++ Enum.concat(terms))
      shape = List.to_tuple(Enum.map(output, &sizes[&1]))
      values = Enum.map(tensors, &Nx.to_flat_list/1)

      sums =
        for index <- indices(Enum.map(letters, &sizes[&1])), reduce: %{} do
          sums ->
            at = Map.new(Enum.zip(letters, index))

            factor = fn term, tensor, values ->
              Enum.at(values, offset(Enum.map(term, &at[&1]), Tuple.to_list(tensor.shape)))
            end

            factors = Enum.zip_with([terms, tensors, values], fn [a, b, c] -> factor.(a, b, c) end)
            product = Enum.reduce(factors, &Complex.multiply/2)
            Map.update(sums, Enum.map(output, &at[&1]), product, &Complex.add(&1, product))
        end

      numbers = for index <- indices(Tuple.to_list(shape)), do: sums[index]
      Nx.tensor(numbers, type: wide(hd(tensors).type), backend: Nx.BinaryBackend) |> Nx.reshape(shape)
    end

    defp wide({kind, _}) when kind in [:f, :bf], do: {:f, 64}
    defp wide({:c, _} = type), do: type
    defp wide(_type), do: {:s, 64}

    defp indices([]), do: [[]]
    defp indices([size | rest]), do: for(i <- 0..(size - 1), more <- indices(rest), do: [i | more])

    defp offset(index, sizes), do: Enum.zip(index, sizes) |> Enum.reduce(0, fn {i, size}, total -> total * size + i end)

    @exact [{:s, 32}, {:u, 8}, {:s, 64}] ++ if(@gpu, do: [], else: [{:f, 64}])

    test "einsum is the sum that its equation describes, in every type" do
      for {equation, shapes} <- @equations, type <- @types ++ @exact ++ [{:c, 64}] do
        tensors = Enum.map(shapes, &Random.tensor(&1, type, range: {0, 2}))
        expected = Nx.as_type(summed(equation, tensors), type)
        binary = Nx.with_default_backend(Nx.BinaryBackend, fn -> Fast.einsum(equation, tensors) end)
        fused = Fast.einsum(equation, Enum.map(tensors, &Nx.backend_copy(&1, backend())))

        for actual <- [binary, fused] do
          assert_same(
            actual,
            expected,
            if(type in @exact, do: [], else: [rtol: tolerance_of(type), atol: tolerance_of(type)])
          )
        end
      end

      assert Enum.uniq(take_blocks()) == [{Fast.Einsum, :fused, nil}]
    end

    defp tolerance_of(type) do
      {absolute, _relative} = EMLX.Tolerance.of(:product, EMLX.Backend.dtype(type))
      absolute
    end

    test "einsum merges types" do
      a = Nx.tensor([1, 2], type: :u8)
      assert Fast.einsum("i,i->", [a, Nx.tensor([0.5, 0.5], type: :bf16)]).type == {:bf, 16}
      assert Fast.einsum("i,i->", [a, Nx.tensor([-1, -1], type: :s8)]) |> Nx.to_number() == -3
      assert Fast.einsum("i,i->", [a, Nx.tensor([3, 4], type: :s32)]).type == {:s, 32}
    end

    test "einsum wraps integers around" do
      a = Nx.tensor([100, 100, 100], type: :u8)
      assert Fast.einsum("i->", [a]) |> Nx.to_number() == 44
      assert Fast.einsum("i,i->", [a, a]) |> Nx.to_number() == rem(30_000, 256)
    end

    test "einsum takes more operands than a block" do
      tensors = for _ <- 1..20, do: Nx.tensor([1.0, 2.0])
      equation = Enum.map_join(1..20, ",", fn _ -> "i" end) <> "->"
      assert Fast.einsum(equation, tensors) |> Nx.to_number() == 1 + 2 ** 20
    end

    test "einsum has the composed gradient" do
      tensors = [normal({2, 3}, {:f, 32}), normal({3, 4}, {:f, 32}), normal({4, 2}, {:f, 32})]
      formula = &Nx.dot(Nx.dot(&1, &2), &3)
      same_gradient(&Fast.einsum("ij,jk,kl->il", [&1, &2, &3]), formula, tensors)
      same_gradient(&Fast.einsum("ii->i", [&1]), &Nx.take_diagonal/1, [normal({3, 3}, {:f, 32})])

      same_gradient(&Fast.einsum("bi,bi->b", [&1, &2]), &Nx.sum(Nx.multiply(&1, &2), axes: [1]), [
        normal({2, 3}, {:f, 32}),
        normal({2, 3}, {:f, 32})
      ])
    end

    test "einsum works in defn" do
      tensors = [normal({2, 3}, {:f, 32}), normal({3, 4}, {:f, 32})]
      assert in_defn(&Fast.einsum("ij,jk->ik", [&1, &2]), tensors) |> Enum.uniq() == [{Fast.Einsum, :fused, nil}]
    end

    test "einsum works on vectorized tensors" do
      tensors = [normal({3, 2, 4}, {:f, 32}), normal({3, 4}, {:f, 32})]
      same_vectorized(&Fast.einsum("ij,j->i", [&1, &2]), tensors, [true, true])
      same_vectorized(&Fast.einsum("ij,kj->ik", [&1, &2]), tensors, [true, false])
      same_vectorized(&Fast.einsum("...j,j", [&1, &2]), tensors, [true, true])
    end

    test "the errors of einsum name the argument that does not fit" do
      t = Nx.iota({2, 3})

      for {equation, tensors, message} <- [
            {"ij,jk->ik", [t, t], "j is 3 in operand 0 {2, 3} and 2 in operand 1 {2, 3}"},
            {"ii", [t], "i is 2 in operand 0 {2, 3} and 3 in operand 0 {2, 3}"},
            {"ij,jk->ik", [t], "the equation names 2 operands, got 1"},
            {"i->", [t], "\"i\" names 1 axes, its operand {2, 3} has 2"},
            {"ijk", [t], "\"ijk\" names 3 axes, its operand {2, 3} has 2"},
            {"ij->k", [t], "k of the output is in no operand"},
            {"ij->ii", [t], "i is in the output twice"},
            {"i1", [t], "\"1\" is not a letter for an axis"},
            {"ij->j->i", [t], "there is more than one arrow"},
            {"......", [t], "\"......\" has more than one ellipsis"},
            {"ij->...", [t], "the ellipsis of the output is in no operand"},
            {"...j->j", [t], "the output has no ellipsis for the 1 axes that an ellipsis stands for in the operands"},
            {"i...,j...", [t, Nx.iota({2, 2})],
             "an axis of the ellipsis is 3 in operand 0 {2, 3} and 2 in operand 1 {2, 2}"}
          ] do
        assert_raise ArgumentError, "einsum #{inspect(equation)}: #{message}", fn -> Fast.einsum(equation, tensors) end
      end

      assert_raise ArgumentError, "einsum: the equation must be a string, got: :ij", fn -> Fast.einsum(:ij, [t]) end
    end
  end

  describe "the names of the C++ EMLX" do
    test "the functions with the C++ EMLX's signatures take numbers for options" do
      [x, weight, bias] = [normal({2, 6}, {:f, 32}), normal({6}, {:f, 32}), normal({6}, {:f, 32})] |> on_backend()
      assert_same(Fast.rms_norm(x, weight, 0.1), Fast.rms_norm(x, weight, eps: 0.1))
      assert_same(Fast.layer_norm(x, weight, bias, 0.1), Fast.layer_norm(x, weight, bias, eps: 0.1))
      assert_same(Fast.layer_norm(x, weight, 0.1), Fast.layer_norm(x, weight, nil, eps: 0.1))

      [q, k, v] = qkv({:f, 32}) |> on_backend()
      [sinks, mask] = [normal({4}, {:f, 32}), normal({3, 5}, {:f, 32})] |> on_backend()
      attend = &Fast.scaled_dot_product_attention(q, k, v, &1, &2)
      assert_same(Fast.scaled_dot_product_attention(q, k, v, 0.3), attend.(nil, scale: 0.3))
      assert_same(Fast.scaled_dot_product_attention(q, k, v, 0.3, mask), attend.(mask, scale: 0.3))
      assert_same(Fast.scaled_dot_product_attention(q, k, v, 0.3, sinks: sinks), attend.(nil, scale: 0.3, sinks: sinks))

      assert_same(
        Fast.scaled_dot_product_attention(q, k, v, 0.3, mask, sinks: sinks),
        attend.(mask, scale: 0.3, sinks: sinks)
      )

      assert_same(Fast.scaled_dot_product_attention_causal(q, k, v, 0.3), attend.(:causal, scale: 0.3))

      assert_same(
        Fast.scaled_dot_product_attention_causal(q, k, v, 0.3, sinks: sinks),
        attend.(:causal, scale: 0.3, sinks: sinks)
      )
    end

    defp on_backend(tensors), do: Enum.map(tensors, &Nx.backend_copy(&1, backend()))

    test "rope_with_positions and rope_with_freqs rotate each token at its own position" do
      [x] = on_backend([normal({2, 5, 3, 8}, {:f, 32})])
      heads = Nx.transpose(x, axes: [0, 2, 1, 3])
      assert_same(Fast.rope(heads, 8, false, 10_000, 1.0, 4), Fast.rope(heads, 4))

      in_order = Nx.add(Nx.iota({2, 5}, axis: 1), 4)
      expected = Nx.transpose(Fast.rope(heads, 4), axes: [0, 2, 1, 3])
      assert_same(Fast.rope_with_positions(x, in_order, 8, false, 10_000, 1.0), expected, rtol: 1.0e-4)
      backwards = Nx.reverse(in_order, axes: [1])
      expected = Nx.reverse(Nx.transpose(Fast.rope(Nx.reverse(heads, axes: [2]), 4), axes: [0, 2, 1, 3]), axes: [1])
      assert_same(Fast.rope_with_positions(x, backwards, 8, false, 10_000, 1.0), expected, rtol: 1.0e-4)

      frequencies = Nx.as_type(frequencies(8, 10_000), :f32)
      expected = Fast.rope_with_positions(x, backwards, 8, true, 10_000, 1.0)
      assert_same(Fast.rope_with_freqs(x, backwards, 8, true, 1.0, frequencies), expected, rtol: 1.0e-3, atol: 1.0e-4)

      assert_raise ArgumentError, ~r/must be \{batch, length, heads, size\} and \{batch, length\}/, fn ->
        Fast.rope_with_positions(x, Nx.iota({5}), 8, false, 10_000, 1.0)
      end
    end

    test "scaled_dot_product_attention_causal_key_masked attends with causality and a mask of keys" do
      [q, k, v] = qkv({:f, 32}, shape: {2, 4, 2, 5, 5, 8}) |> on_backend()
      key_mask = Nx.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
      seen = Nx.logical_and(causal(5, 5), Nx.reshape(key_mask, {2, 1, 1, 5}))
      attended = Fast.scaled_dot_product_attention(q, k, v, seen, scale: 0.3)

      # The first two queries of the second row have no keys.
      none = Nx.reshape(Nx.tensor([[0, 0, 0, 0, 0], [1, 1, 0, 0, 0]]), {2, 1, 5, 1}) |> Nx.broadcast(attended.shape)
      expected = Nx.select(none, 0.0, attended)
      assert_same(Fast.scaled_dot_product_attention_causal_key_masked(q, k, v, 0.3, key_mask), expected)

      # Also for one query, with sinks, and with one row of the mask for all batch rows.
      nothing = Nx.tensor([[0, 0, 0, 0, 0]])
      one = Nx.slice_along_axis(q, 0, 1, axis: 2)
      sinks = Nx.tensor([0.1, 0.2, 0.3, 0.4])

      for q <- [q, one], opts <- [[], [sinks: sinks]] do
        zero = Fast.scaled_dot_product_attention_causal_key_masked(q, k, v, 0.3, nothing, opts)
        assert_same(zero, Nx.broadcast(0.0, q.shape))
      end

      one = Nx.slice_along_axis(q, 0, 1, axis: 2)
      expected = Fast.scaled_dot_product_attention(one, k, v, Nx.reshape(key_mask, {2, 1, 1, 5}), scale: 0.3)
      assert_same(Fast.scaled_dot_product_attention_causal_key_masked(one, k, v, 0.3, key_mask), expected)

      assert_raise ArgumentError, ~r/the key mask is \{2, 4\}, it must be \{batch, keys\}, here \{2, 5\}/, fn ->
        Fast.scaled_dot_product_attention_causal_key_masked(q, k, v, 0.3, key_mask[[0..1, 0..3]])
      end

      assert_raise ArgumentError, ~r/q is \{5, 8\}, it must be \{batch, heads, length, size\}/, fn ->
        Fast.scaled_dot_product_attention_causal_key_masked(q[0][0], k, v, 0.3, key_mask)
      end
    end

    test "kv_cache_sdpa_update writes into the cache and attends to it" do
      [q, new_k, new_v] = for heads <- [4, 2, 2], do: normal({2, 1, heads, 8}, {:f, 32})
      [q, new_k, new_v] = on_backend([q, new_k, new_v])
      [k_cache, v_cache] = on_backend([normal({2, 6, 2, 8}, {:f, 32}), normal({2, 6, 2, 8}, {:f, 32})])
      key_mask = Nx.tensor([[1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0]])

      update = fn offset -> Fast.kv_cache_sdpa_update(q, new_k, new_v, k_cache, v_cache, offset, key_mask, 0.3) end
      {attention, k, v} = update.(Nx.tensor(2))
      assert_same(k, Nx.put_slice(k_cache, [0, 2, 0, 0], new_k))
      assert_same(v, Nx.put_slice(v_cache, [0, 2, 0, 0], new_v))
      [q, k_heads, v_heads] = for t <- [q, k, v], do: Nx.transpose(t, axes: [0, 2, 1, 3])
      mask = Nx.reshape(key_mask, {2, 1, 1, 6})
      assert_same(attention, Fast.scaled_dot_product_attention(q, k_heads, v_heads, mask, scale: 0.3))
      assert_same(elem(update.(2), 0), attention)
    end

    test "swiglu multiplies silu of the gate by the other input, in their type" do
      [gate, up] = on_backend([normal({2, 6}, {:bf, 16}), normal({2, 6}, {:bf, 16})])
      assert Fast.swiglu(gate, up).type == {:bf, 16}
      sigmoid = fn x -> Nx.divide(1, Nx.add(1, Nx.exp(Nx.negate(x)))) end
      expected = exactly(fn -> Nx.multiply(Nx.multiply(exact(gate), exact(up)), sigmoid.(exact(gate))) end)
      near(Fast.swiglu(gate, up), expected, {:bf, 16})
    end
  end
end
