# Operations that accumulate, against f64, at lengths at which a running total in the type itself would be wrong:
# eagerly and in programs, on arrays of any memory layout.
defmodule EMLX.SumsTest do
  use ExUnit.Case, async: true

  alias EMLX.{Array, Golden, Kernels, Ops, Program, Tolerance}

  @device Golden.device()
  # MLX's sums, scans and norms on CUDA keep running totals of parts of a row.
  @running if @device == :gpu, do: 1.0e-5, else: 1.0e-6

  defp op(name, attributes \\ %{}), do: {name, Map.merge(%{axes: nil, keepdims: false}, attributes)}
  defp run(op, inputs), do: Golden.run(op, inputs)
  defp full(number, shape, dtype), do: Golden.run({:full, %{shape: shape, dtype: dtype}}, [scalar(number, dtype)])
  defp scalar(number, dtype), do: Array.scalar(number, dtype, device: @device)
  defp value(array), do: Array.to_list(array)

  # Alone, in a program, and after other operations of a program, which may be fused with it.
  defp ways(op, x) do
    program = Program.new(1, [{op, [0], 1}], [1])
    behind = Program.new(1, [{:negative, [0], 1}, {:negative, [1], 1}, {op, [2], 1}], [3])
    [run(op, [x]) | for(program <- [program, behind], do: hd(Program.run(program, [x], device: @device)))]
  end

  # An array filled with one number, in several memory layouts.
  defp layouts(number, shape, dtype) do
    size = Enum.product(shape)
    flat = full(number, [size], dtype)
    rows = Ops.run(:contiguous, [Ops.reshape(flat, shape)])
    twice = full(number, Enum.map(shape, &(2 * &1)), dtype)
    {zeros, ones} = {Enum.map(shape, fn _ -> 0 end), Enum.map(shape, fn _ -> 2 end)}
    stop = Enum.map(shape, &(2 * &1))

    [
      repeated: Ops.broadcast_to(scalar(number, dtype), shape),
      rows: rows,
      turned: run({:flip, %{axes: Enum.to_list(0..(length(shape) - 1))}}, [rows]),
      apart: run({:slice, %{start: zeros, stop: stop, strides: ones}}, [twice])
    ]
  end

  defp near!(label, have, want, relative) do
    for have <- List.flatten(List.wrap(have)),
        do: assert(abs(have - want) <= relative * abs(want), "#{label}: #{inspect(have)}, expected #{want}")
  end

  # The f32 number nearest to 0.1.
  @tenth 0.10000000149011612

  describe "sums of a million numbers" do
    for {shape, axes} <- [
          {[1_000_000], nil},
          {[1000, 1000], nil},
          {[1_000_000, 2], [0]},
          {[2, 1_000_000], [1]},
          {[10, 100_000, 3], [1]},
          {[100, 3, 10_000], [0, 2]}
        ] do
      test "sums of a million numbers in #{inspect(shape)} over #{inspect(axes)} are accurate" do
        {shape, axes} = {unquote(shape), unquote(axes)}
        count = if axes, do: axes |> Enum.map(&Enum.at(shape, &1)) |> Enum.product(), else: Enum.product(shape)

        for {layout, x} <- layouts(0.1, shape, :f32) do
          for sum <- ways(op(:sum, %{axes: axes}), x), do: near!(layout, value(sum), count * @tenth, 1.0e-6)
          for mean <- ways(op(:mean, %{axes: axes}), x), do: near!(layout, value(mean), @tenth, 1.0e-6)

          for log <- ways(op(:logsumexp, %{axes: axes}), x),
              do: near!(layout, value(log), :math.log(count) + @tenth, 1.0e-6)
        end
      end
    end

    test "sums of a million complex numbers are accurate" do
      parts =
        Ops.run(:contiguous, [Ops.broadcast_to(Array.from_list([0.1, -0.1], :f32, device: @device), [1_000_000, 2])])

      x = Ops.reshape(Ops.run({:view, %{dtype: :c64}}, [parts]), [1_000_000])

      for sum <- ways(op(:sum), x) do
        {real, imaginary} = sum |> Array.to_binary() |> Golden.decode(:c64) |> hd()
        near!("real", real, 100_000.0, 1.0e-6)
        near!("imaginary", imaginary, -100_000.0, 1.0e-6)
      end
    end

    test "sums of 16-bit floats are rounded once" do
      for dtype <- [:f16, :bf16] do
        for sum <- ways(op(:sum), full(1.0, [30_000], dtype)), do: near!(dtype, value(sum), 30_000, 2.0e-3)
        for sum <- ways(op(:sum), full(1.0, [1_000], dtype)), do: assert(value(sum) == 1_000.0)
      end
    end
  end

  describe "means and variances" do
    test "means and variances of many numbers far from 0 are accurate" do
      numbers = Ops.iota([1_025_000], dtype: :s32, device: @device) |> Ops.remainder(41) |> Ops.astype(:f32)
      x = Ops.add(numbers, scalar(999_980.0, :f32))
      for mean <- ways(op(:mean), x), do: near!("mean", value(mean), 1_000_000, 1.0e-6)
      for variance <- ways(op(:var, %{ddof: 0}), x), do: near!("variance", value(variance), 140, 1.0e-3)
      for deviation <- ways(op(:std, %{ddof: 0}), x), do: near!("deviation", value(deviation), :math.sqrt(140), 1.0e-3)
    end

    test "the mean of 2^25 ones is 1 and their variance is 0" do
      x = Ops.broadcast_to(scalar(1.0, :f32), [33_554_432])
      assert value(run(op(:mean), [x])) == 1.0
      assert value(run(op(:var, %{ddof: 0}), [x])) == 0.0
    end

    test "means of more 16-bit numbers than the type can count are accurate" do
      for dtype <- [:f16, :bf16] do
        x = full(0.5, [70_000], dtype)
        for mean <- ways(op(:mean), x), do: assert(value(mean) == 0.5)
        for variance <- ways(op(:var, %{ddof: 0}), x), do: assert(value(variance) == 0.0)
        # Partial sums need not fit the type either.
        large = Ops.concatenate([full(60_000.0, [40], dtype), full(-60_000.0, [40], dtype)], axis: 0)
        for sum <- ways(op(:sum), large), do: assert(value(sum) == 0.0)
      end
    end

    test "means of integers whose sum overflows the type are accurate" do
      x = full(2_000_000_000, [8], :s32)
      near!("mean", value(run(op(:mean), [x])), 2.0e9, 1.0e-6)
    end
  end

  describe "cumulative sums" do
    test "cumulative sums are accurate at the end of a million numbers" do
      for {shape, axis} <- [{[1_000_000], 0}, {[1_000_000, 3], 0}, {[2, 1_000_000], 1}, {[1_000_000, 16], 0}],
          reverse <- [false, true] do
        scan = {:cumsum, %{axis: axis, reverse: reverse, inclusive: true}}
        x = full(0.1, shape, :f32)
        end_of = if reverse, do: 0, else: 999_999
        index = Array.scalar(end_of, :s32, device: @device)

        for sums <- ways(scan, x),
            do: near!(inspect(shape), value(run({:take, %{axis: axis}}, [sums, index])), 1.0e5, @running)
      end
    end

    test "cumulative sums of exponentials are accurate at the end of many numbers" do
      if @device == :cpu do
        scan = {:logcumsumexp, %{axis: 0, reverse: false, inclusive: true}}
        [last] = for sums <- [run(scan, [full(0.0, [100_000], :f32)])], do: List.last(value(sums))
        near!("logcumsumexp", last, :math.log(100_000), 1.0e-6)
      end
    end
  end

  describe "operations composed of sums" do
    test "norms of long rows are accurate" do
      offsets = Ops.iota([1_000_000], dtype: :s32, device: @device) |> Ops.remainder(2) |> Ops.astype(:f32)
      # 1000 ± 0.1
      x = offsets |> Ops.multiply(0.2) |> Ops.add(999.9) |> Ops.reshape([1, 1_000_000])
      normal = Golden.layer_norm(x, nil, nil, eps: 1.0e-6)
      [low, high] = for i <- [0, 1], do: normal |> Ops.slice([0, i], [1, i + 1], [1, 1]) |> value() |> hd() |> hd()
      near!("low", low, -1.0, 1.0e-3)
      near!("high", high, 1.0, 1.0e-3)
      root = Golden.rms_norm(full(0.1, [1, 1_000_000], :f32), nil, eps: 0.0)
      near!("rms_norm", root |> Ops.max() |> value(), 1.0, @running)
    end

    test "norms with weights of another type are accurate" do
      x = full(3.0, [2, 100_000], :bf16)
      weight = Array.from_binary(Array.to_binary(full(0.5, [100_000], :f32)), [100_000], :f32)
      normal = Golden.rms_norm(x, weight, eps: 0.0)
      near!("rms_norm", normal |> Ops.max() |> value(), 0.5, 1.0e-6)
    end

    test "softmax of long rows is accurate" do
      for {shape, axes} <- [{[300_000], [0]}, {[300_000, 3], [0]}, {[500, 3, 600], [0, 2]}, {[2, 300_000], [1]}] do
        softmax = run({:softmax, %{axes: axes, precise: true}}, [full(0.1, shape, :f32)])
        near!(inspect(shape), value(Ops.max(softmax)), 1 / 300_000, 2.0e-6)
        near!(inspect(shape), value(Ops.min(softmax)), 1 / 300_000, 2.0e-6)
      end
    end

    test "the trace of a large matrix is accurate" do
      trace = {:trace, %{offset: 0, axis1: 0, axis2: 1}}
      x = Ops.broadcast_to(scalar(0.1, :f32), [40_000, 40_000])
      if @device == :cpu, do: near!("trace", value(run(trace, [x])), 4000.0, 1.0e-6)
    end

    if @device == :cpu do
      test "the cross entropy of many classes is accurate" do
        logits = full(0.1, [2, 500_000], :f32)
        targets = Array.from_list([3, 499_999], :s32)
        near!("cross_entropy", value(run(:cross_entropy, [logits, targets])), :math.log(500_000), 1.0e-6)
      end
    end
  end

  if @device == :cpu do
    describe "products of a million terms" do
      for {dtype, relative} <- [f32: 1.0e-5, bf16: 8.0e-3, f16: 8.0e-3] do
        test "products of a million terms are accurate in #{dtype}, row-major and column-major" do
          {dtype, relative} = {unquote(dtype), unquote(relative)}
          k = 1_000_000
          tenth = 0.1 |> scalar(dtype) |> Ops.astype(:f64) |> value()
          # With ones, since 16-bit floats cannot represent 10,000 exactly.
          want = k * tenth * 0.0625

          for n <- [1, 2, 13], m <- [1, 3, 40] do
            a = full(0.1, [n, k], dtype)
            b = full(0.0625, [k, m], dtype)
            turned = Ops.transpose(full(0.0625, [m, k], dtype), [1, 0])
            for b <- [b, turned], do: near!("#{n} × #{m}", value(Ops.matmul(a, b)), want, relative)
          end

          {a, b} = {full(0.1, [k], dtype), full(0.0625, [k], dtype)}
          near!("vectors", value(Ops.matmul(a, b)), want, relative)
          near!("inner", value(Ops.inner(a, b)), want, relative)
          near!("vecdot", value(Ops.vecdot(a, b)), want, relative)
          near!("tensordot", value(run({:tensordot, %{axes_a: [0], axes_b: [0]}}, [a, b])), want, relative)
          for equation <- ["i,i->", "i,i"], do: near!(equation, value(Ops.einsum(equation, [a, b])), want, relative)
          near!("ij->", value(Ops.einsum("ij->", [Ops.reshape(b, [10, 100_000])])), k * 0.0625, relative)
          addmm = {:addmm, %{alpha: 2.0, beta: 1.0}}
          matrices = [full(0.0, [1, 1], dtype), Ops.reshape(a, [1, k]), Ops.reshape(b, [k, 1])]
          near!("addmm", value(run(addmm, matrices)), 2 * want, relative)
        end
      end

      test "products of a million complex terms are accurate" do
        x = Ops.astype(full(0.1, [2, 1_000_000], :f32), :c64)
        product = Ops.matmul(x, Ops.transpose(x, [1, 0]))

        for {real, _imaginary} <- product |> Array.to_binary() |> Golden.decode(:c64),
            do: near!("c64", real, 1.0e4, 1.0e-5)
      end

      test "attention to many keys is accurate" do
        # With equal scores, the result is the mean of the values.
        for queries <- [1, 9], dtype <- [:f32, :bf16] do
          q = full(0.0, [1, 1, queries, 16], dtype)
          k = full(0.0, [1, 1, 100_000, 16], dtype)
          v = full(0.1, [1, 1, 100_000, 16], dtype)
          tenth = 0.1 |> scalar(dtype) |> Ops.astype(:f64) |> value()
          out = Kernels.scaled_dot_product_attention(q, k, v, nil)
          near!("attention", value(Ops.astype(out, :f32)), tenth, if(dtype == :f32, do: 5.0e-6, else: 4.0e-3))
        end
      end
    end
  end

  describe "numbers added at one index" do
    # Factors just above 1: multiplied one by one, each product would be rounded.
    for {dtype, count, factor} <- [{:bf16, 1_000, 1.0078125}, {:f16, 5_000, 1.0009765625}] do
      test "numbers that are added at one index are rounded once in #{dtype}" do
        {dtype, count} = {unquote(dtype), unquote(count)}
        {a, zeros} = {full(0.0, [3], dtype), full(0, [count], :s32)}
        ones = full(1.0, [count], dtype)
        want = [count * 1.0, 0.0, 0.0]

        added = {:scatter_add, %{axes: [0]}}
        assert value(run(added, [a, Ops.reshape(ones, [count, 1]), zeros])) == want
        program = Program.new(3, [{added, [0, 1, 2], 1}], [3])
        [sums] = Program.run(program, [a, Ops.reshape(ones, [count, 1]), zeros], device: @device)
        assert value(sums) == want
        assert value(run({:scatter_add_axis, %{axis: 0}}, [a, zeros, ones])) == want
        small = unquote(factor)
        factors = Ops.reshape(full(small, [500], dtype), [500, 1])
        products = run({:scatter_prod, %{axes: [0]}}, [full(1.0, [3], dtype), factors, full(0, [500], :s32)])
        near!("scatter_prod", hd(value(products)), :math.pow(small, 500), 8.0e-3)
      end

      test "numbers that windows add at one index are rounded once in #{dtype}" do
        {dtype, count} = {unquote(dtype), unquote(count)}
        # All windows contain the maximum.
        a =
          Ops.concatenate([full(0.0, [count - 1], dtype), full(1.0, [1], dtype), full(0.0, [count - 1], dtype)],
            axis: 0
          )

        for {reduction, a} <- [max: a, min: Ops.negative(a)] do
          how = %{reduction: reduction, window: [count], strides: [1], padding_low: [0], padding_high: [0]}
          sums = run({:window_scatter, how}, [a, full(1.0, [count], dtype), scalar(0.0, dtype)])
          assert value(Ops.max(sums)) == count * 1.0
        end
      end
    end

    if @device == :cpu do
      test "numbers that are added at one index are accumulated in more than f32" do
        {a, zeros} = {full(1.0, [3], :f32), full(0, [1_000_000], :s32)}
        tenths = full(0.1, [1_000_000], :f32)

        near!(
          "scatter_add",
          hd(value(run({:scatter_add, %{axes: [0]}}, [a, Ops.reshape(tenths, [1_000_000, 1]), zeros]))),
          100_001,
          1.0e-6
        )

        near!("scatter_add_axis", hd(value(run({:scatter_add_axis, %{axis: 0}}, [a, zeros, tenths]))), 100_001, 1.0e-6)
      end

      test "complex numbers that are added at one index are accurate" do
        a = Ops.astype(full(1.0, [2, 3], :f32), :c64)
        updates = Ops.reshape(Ops.astype(full(0.5, [4, 3], :f32), :c64), [4, 1, 3])
        index = Array.from_list([1, 1, -1, 5], :s32)
        sums = run({:scatter_add, %{axes: [0]}}, [a, updates, index])

        assert sums |> Array.to_binary() |> Golden.decode(:c64) ==
                 List.duplicate({1.0, 0.0}, 3) ++ List.duplicate({2.5, 0.0}, 3)
      end
    end
  end

  # ---- against f64 ----

  defp random(list), do: Enum.random(list)

  # Numbers of a random magnitude, some far from 0, in a random memory layout. The memory between the elements is filled
  # with non-finite numbers.
  defp numbers(shape, dtype) do
    key = Ops.random_key(:rand.uniform(1_000_000), device: @device)
    scale = random(if dtype == :f16, do: [1.0, 100.0], else: [1.0e-3, 1.0, 1.0e4])
    shift = random([0.0, 0.0, 3.0, -100.0])
    x = Ops.random_normal(key, shape, dtype: :f32, loc: shift * scale / 100, scale: scale) |> Ops.astype(dtype)
    rank = length(shape)

    case random([:rows, :turned, :apart, :flipped, :repeated]) do
      _ when rank == 0 ->
        x

      :rows ->
        x

      :turned ->
        order = Enum.shuffle(Enum.to_list(0..(rank - 1)))
        back = for axis <- 0..(rank - 1), do: Enum.find_index(order, &(&1 == axis))
        Ops.transpose(Ops.run(:contiguous, [Ops.transpose(x, order)]), back)

      :apart ->
        zeros = Enum.map(shape, fn _ -> 0 end)
        canvas = full(:nan, Enum.map(shape, &(2 * &1)), dtype)
        places = %{start: zeros, stop: Enum.map(shape, &(2 * &1)), strides: Enum.map(shape, fn _ -> 2 end)}
        run({:slice, places}, [run({:slice_update, places}, [canvas, x])])

      :flipped ->
        run({:flip, %{axes: [random(0..(rank - 1))]}}, [x])

      :repeated ->
        axis = random(0..(rank - 1))

        one =
          run(
            {:slice,
             %{
               start: Enum.map(shape, fn _ -> 0 end),
               stop: List.replace_at(shape, axis, 1),
               strides: Enum.map(shape, fn _ -> 1 end)
             }},
            [x]
          )

        Ops.broadcast_to(one, shape)
    end
  end

  defp shape do
    sizes = [1, 2, 3, 7, 8, 16, 17, 31, 64, 130, 1_025, 4_097, 33_000]
    shape = for _ <- 1..random(0..5)//1, do: random(sizes)
    if Enum.product(shape) <= 200_000, do: shape, else: shape()
  end

  # The reference and its tolerance: for sums, relative to the sum of magnitudes, as the classes of Tolerance define.
  defp check!(label, name, attributes, x, have) do
    wide = Ops.astype(Array.to_device(x, :cpu), :f64)
    [have_wide, want] = [Ops.astype(Array.to_device(have, :cpu), :f64), Ops.run({name, attributes}, [wide])]
    assert Array.shape(have_wide) == Array.shape(want), label
    {absolute, relative} = Tolerance.of(:accumulated, Array.dtype(x))
    relative = relative * @running / 1.0e-6

    magnitudes =
      if name in [:sum, :mean, :cumsum], do: Ops.run({name, attributes}, [Ops.abs(wide)]), else: Ops.abs(want)

    # What is left of equal numbers is their mean's rounding.
    rounding = fn ->
      {:mean, Map.delete(attributes, :ddof)} |> Ops.run([Ops.abs(wide)]) |> Ops.multiply(@running / 10)
    end

    rest =
      case name do
        :var -> Ops.square(rounding.())
        :std -> rounding.()
        _ -> 0.0
      end

    distance = Ops.abs(Ops.subtract(have_wide, want))
    near = Ops.less_equal(distance, Ops.add(Ops.add(Ops.multiply(magnitudes, relative), absolute), rest))
    # Results beyond the type's range are infinite.
    near = Ops.logical_or(near, Ops.greater(Ops.abs(want), if(Array.dtype(x) == :f16, do: 65_000.0, else: 3.0e38)))
    assert value(Ops.all(near)), "#{label}: off by #{value(Ops.max(distance))}"
  end

  # The label of a check has the seed that repeats it.
  defp for_all(count, name, check) do
    seed = :rand.uniform(1_000_000_000)

    for i <- 1..count do
      :rand.seed(:exsss, {seed, i, :erlang.phash2(name)})
      check.("#{name}, seed {#{seed}, #{i}}")
    end
  end

  # A reduction of random numbers.
  defp check_reduction!(label, name) do
    shape = shape()
    dtype = random([:f32, :f16, :bf16])
    axes = for axis <- 0..(length(shape) - 1)//1, random([true, false]), do: axis
    attributes = if name in [:var, :std], do: %{ddof: random([0, 0, 1])}, else: %{}
    {op, attributes} = op(name, Map.merge(attributes, %{axes: random([nil, axes]), keepdims: random([true, false])}))
    reduced = for {size, axis} <- Enum.with_index(shape), attributes.axes == nil or axis in attributes.axes, do: size

    if Enum.product(reduced) > Map.get(attributes, :ddof, 0) do
      x = numbers(shape, dtype)
      label = "#{label}: #{dtype} #{inspect(shape)} over #{inspect(attributes)}"
      for have <- ways({op, attributes}, x), do: check!(label, name, attributes, x, have)
    end
  end

  defp check_scan!(label, name) do
    shape = [random([1, 7, 130, 4_097, 140_000]) | Enum.take(shape(), 2)]
    shape = if Enum.product(shape) > 300_000, do: [hd(shape)], else: Enum.shuffle(shape)
    attributes = %{axis: random(0..(length(shape) - 1)), reverse: random([true, false]), inclusive: true}
    x = numbers(shape, random([:f32, :f16, :bf16]))
    label = "#{label}: #{Array.dtype(x)} #{inspect(shape)}, #{inspect(attributes)}"
    for have <- ways({name, attributes}, x), do: check!(label, name, attributes, x, have)
  end

  for name <- [:sum, :mean, :var, :std, :logsumexp] do
    test "#{name} is accurate for any shape, any axes and any memory layout" do
      for_all(60, unquote(name), &check_reduction!(&1, unquote(name)))
    end
  end

  if @device == :cpu do
    for name <- [:cumsum, :logcumsumexp] do
      test "#{name} is accurate for any shape, any axis and any memory layout" do
        for_all(60, unquote(name), &check_scan!(&1, unquote(name)))
      end
    end
  end
end
