defmodule EMLX.Backend.ProductTest do
  use EMLX.NxCase, async: true

  import EMLX.Random

  # Sums of a few products, in f32 against f64.
  defp summed({_, size} = type) do
    cond do
      type in integer_types() -> []
      size <= 8 -> [rtol: 0.6, atol: 60]
      size <= 16 -> [rtol: 0.05, atol: 2.0]
      type == {:f, 64} -> [atol: 1.0e-10]
      true -> [rtol: 1.0e-4, atol: 1.0e-3]
    end
  end

  test "conv takes padding wider than its output, in groups and dilated" do
    for _ <- 1..20 do
      image = tensor({1, 4, 2, 2}, {:f, 32}, range: {-2, 2})
      kernel = tensor({4, 1, 7, 7}, {:f, 32}, range: {-2, 2})
      same(&Nx.conv(&1, &2, padding: [{3, 3}, {3, 3}], feature_group_size: 4), [image, kernel])
      kernel = tensor({4, 4, 3, 3}, {:f, 32}, range: {-2, 2})
      same(&Nx.conv(&1, &2, padding: [{9, 0}, {9, 1}], input_dilation: [2, 1], strides: [3, 2]), [image, kernel])
    end
  end

  test "dot contracts any axes, batched or not" do
    for_all(250, :dot, fn ->
      batch = for _ <- 1..integer(0..2)//1, do: integer(1..3)
      contracted = for _ <- 1..integer(0..2)//1, do: integer(1..4)
      [left_free, right_free] = for _ <- 1..2, do: for(_ <- 1..integer(0..2)//1, do: integer(1..4))
      {left_shape, left_axes} = arrange(length(batch), left_free, contracted)
      {right_shape, right_axes} = arrange(length(batch), right_free, contracted)
      left_type = one_of(types())
      right_type = one_of([left_type, one_of(types())])
      left = tensor(List.to_tuple(batch ++ left_shape), left_type)
      right = tensor(List.to_tuple(batch ++ right_shape), right_type)
      batch_axes = Enum.to_list(0..(length(batch) - 1)//1)
      type = Nx.Type.merge(left_type, right_type)
      same(&Nx.dot(&1, left_axes, batch_axes, &2, right_axes, batch_axes), [left, right], summed(type))
    end)
  end

  # Free and contracted sizes in random order, with the positions of the contracted ones.
  defp arrange(offset, free, contracted) do
    tagged = Enum.shuffle(Enum.map(free, &{:free, &1}) ++ Enum.with_index(contracted))
    places = for {{_size, i}, at} <- Enum.with_index(tagged), is_integer(i), do: {i, at + offset}

    sizes =
      Enum.map(tagged, fn
        {:free, size} -> size
        {size, _} -> size
      end)

    {sizes, places |> Enum.sort() |> Enum.map(&elem(&1, 1))}
  end

  test "dot of integers is exact, and wraps" do
    for_all(60, :integer_dot, fn ->
      [m, k, n] = for _ <- 1..3, do: integer(1..12)
      left = tensor({m, k}, one_of(integer_types()), special: 0.5)
      same(&Nx.dot/2, [left, tensor({k, n}, left.type, special: 0.5)])
    end)
  end

  test "dot of large integer matrices is exact" do
    a = Nx.iota({40, 50}, type: :s64, backend: Nx.BinaryBackend) |> Nx.multiply(1_000_003)
    same(&Nx.dot(&1, Nx.transpose(&1)), [a])
  end

  test "outer, inner and similar products match the binary backend" do
    for_all(30, :outer, fn ->
      same(&Nx.outer/2, [tensor(shape(0..2), {:f, 32}), tensor(shape(0..2), {:s, 32})])
      same(&Nx.dot/2, [tensor({}, {:f, 32}), tensor(shape(0..3), {:f, 32})])
    end)
  end

  # ---- convolution ----

  defp permutation(rank), do: Enum.shuffle(Enum.to_list(0..(rank - 1)))

  defp unpermute(dims, permutation) do
    # permutation[i] is the axis of the tensor that is axis i of the canonical order.
    permutation |> Enum.zip(dims) |> Enum.sort() |> Enum.map(&elem(&1, 1)) |> List.to_tuple()
  end

  defp convolution(type) do
    space = integer(1..3)
    rank = space + 2
    {feature_groups, batch_groups} = one_of([{1, 1}, {2, 1}, {1, 2}, {3, 1}])
    channels = integer(1..2)
    filters = integer(1..2) * feature_groups * batch_groups
    batch = integer(1..2) * batch_groups
    kernel = for _ <- 1..space, do: integer(1..3)
    kernel_dilation = for _ <- 1..space, do: integer(1..2)
    sizes = for {k, d} <- Enum.zip(kernel, kernel_dilation), do: (k - 1) * d + integer(1..4)
    [input_permutation, kernel_permutation, output_permutation] = for _ <- 1..3, do: permutation(rank)

    opts = [
      strides: for(_ <- 1..space, do: integer(1..2)),
      padding: one_of([:valid, :same, for(_ <- 1..space, do: {integer(0..2), integer(0..2)})]),
      input_dilation: for(_ <- 1..space, do: integer(1..2)),
      kernel_dilation: kernel_dilation,
      feature_group_size: feature_groups,
      batch_group_size: batch_groups
    ]

    permutations =
      one_of([
        [],
        [input_permutation: input_permutation],
        [kernel_permutation: kernel_permutation, output_permutation: output_permutation],
        [
          input_permutation: input_permutation,
          kernel_permutation: kernel_permutation,
          output_permutation: output_permutation
        ]
      ])

    input_dims = [batch, channels * feature_groups | sizes]
    kernel_dims = [filters, channels | kernel]
    canonical = Enum.to_list(0..(rank - 1))
    input = tensor(unpermute(input_dims, permutations[:input_permutation] || canonical), type)
    weight = tensor(unpermute(kernel_dims, permutations[:kernel_permutation] || canonical), type)
    {input, weight, opts ++ permutations}
  end

  for type <- [{:f, 32}, {:f, 64}, {:bf, 16}, {:f, 16}, {:s, 32}, {:u, 8}, {:c, 64}] do
    test "conv of #{Nx.Type.to_string(type)} takes every layout, with groups, strides, padding and dilations" do
      type = unquote(type)

      for_all(60, {:conv, type}, fn ->
        {input, weight, opts} = convolution(type)
        tolerance = if elem(type, 1) == 16, do: [rtol: 0.05, atol: 4.0], else: [rtol: 1.0e-4, atol: 1.0e-3]
        same(&Nx.conv(&1, &2, opts), [input, weight], tolerance)
      end)
    end
  end

  test "conv with negative padding cuts the input" do
    for_all(20, :conv_negative, fn ->
      opts = [padding: [{-1, integer(-1..1)}, {integer(-1..1), -1}], input_dilation: [integer(1..2), integer(1..2)]]
      same(&Nx.conv(&1, &2, opts), [tensor({1, 2, 6, 6}, {:f, 32}), tensor({3, 2, 2, 2}, {:f, 32})], atol: 1.0e-3)
    end)
  end

  test "conv takes four spatial axes" do
    same(&Nx.conv/2, [tensor({1, 2, 3, 3, 3, 3}, {:f, 32}), tensor({2, 2, 2, 2, 2, 2}, {:f, 32})], atol: 1.0e-3)
  end

  # ---- triangular systems ----

  test "triangular_solve takes every option" do
    for_all(120, :triangular_solve, fn ->
      n = integer(1..5)
      batch = for _ <- 1..integer(0..2)//1, do: integer(1..3)
      type = one_of([{:f, 32}, {:f, 64}, {:c, 64}, {:s, 32}])
      left? = chance(0.5)
      a = tensor(List.to_tuple(batch ++ [n, n]), type, range: {-1, 1})
      # A diagonal far from zero.
      a = Nx.add(a, Nx.multiply(4, Nx.eye(n, type: :s32, backend: Nx.BinaryBackend)))
      m = integer(1..4)
      shape = if chance(0.3), do: batch ++ [n], else: batch ++ if(left?, do: [n, m], else: [m, n])
      b = tensor(List.to_tuple(shape), type)
      transform = one_of([:none, :transpose] ++ if(type == {:c, 64}, do: [:conjugate], else: []))
      opts = [lower: chance(0.5), left_side: left?, transform_a: transform]
      same(&Nx.LinAlg.triangular_solve(&1, &2, opts), [a, b], rtol: 1.0e-4, atol: 1.0e-5)
    end)
  end

  # ---- Fourier transforms ----

  for name <- [:fft, :ifft] do
    test "#{name} takes any length along any axis" do
      for_all(80, unquote(name), fn ->
        # With three or more axes, the binary backend is wrong for all except the last one.
        shape = shape(1..2, 2..9)
        axis = integer(0..(tuple_size(shape) - 1))
        length = one_of([elem(shape, axis), integer(2..12), :power_of_two])
        type = one_of([{:f, 32}, {:c, 64}, {:s, 32}, {:u, 8}, {:bf, 16}])

        same(&apply(Nx, unquote(name), [&1, [axis: axis, length: length]]), [tensor(shape, type)],
          rtol: 1.0e-4,
          atol: 1.0e-4
        )
      end)
    end
  end

  test "a transform along any axis is that along the last one with the axes exchanged" do
    t = Nx.as_type(Nx.iota({3, 4, 5, 2}), :c64)

    for axis <- 0..3 do
      order = List.delete([0, 1, 2, 3], axis) ++ [axis]
      back = Enum.map(0..3, fn i -> Enum.find_index(order, &(&1 == i)) end)
      moved = t |> Nx.transpose(axes: order) |> Nx.fft(length: 6) |> Nx.transpose(axes: back)
      assert_same(Nx.fft(t, axis: axis, length: 6), moved, atol: 1.0e-3)
    end
  end

  test "rfft, irfft, fft2 and ifft2 match the binary backend" do
    for_all(30, :more_transforms, fn ->
      tensor = tensor({3, 4, 6}, {:f, 32})
      same(&{Nx.rfft(&1), Nx.fft2(&1), Nx.ifft2(&1)}, [tensor], rtol: 1.0e-4, atol: 1.0e-4)
      same(&Nx.irfft(Nx.rfft(&1)), [tensor], rtol: 1.0e-4, atol: 1.0e-4)
    end)
  end
end
