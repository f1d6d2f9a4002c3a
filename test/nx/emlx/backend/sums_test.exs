defmodule EMLX.Backend.SumsTest do
  # Sums, and functions that Nx composes of sums, at lengths at which a running total in the type would be wrong: eager
  # and compiled.
  use EMLX.NxCase, async: true

  import EMLX.Random

  # MLX's scans on CUDA keep running totals of parts of a row.
  @running if System.get_env("EMLX_TEST_DEVICE") == "gpu", do: 1.0e-5, else: 1.0e-6
  # The f32 number nearest to 0.1.
  @tenth 0.10000000149011612

  defp ways(fun, tensors) do
    jitted = Nx.Defn.jit(fun, compiler: EMLX)
    [apply(fun, tensors), apply(jitted, tensors)]
  end

  defp near!(fun, tensors, want, relative) do
    for result <- ways(fun, tensors), have <- result |> Nx.to_flat_list() do
      assert abs(have - want) <= relative * abs(want), "#{have}, expected #{want}"
    end
  end

  # A million numbers of 0.1 in f32, in several memory layouts.
  defp tenths do
    x = Nx.broadcast(Nx.tensor(0.1, type: :f32), {1_000_000})
    rows = Nx.add(x, 0)

    [
      repeated: x,
      rows: rows,
      reversed: Nx.reverse(rows),
      transposed: Nx.transpose(Nx.reshape(rows, {1000, 1000})),
      sliced:
        Nx.slice(Nx.broadcast(Nx.tensor(0.1, type: :f32), {2_000_000}) |> Nx.add(0), [1], [1_999_999], strides: [2])
    ]
  end

  test "sums, means and functions composed of them do not drift over a million numbers" do
    for {_layout, x} <- tenths() do
      near!(&Nx.sum/1, [x], 1_000_000 * @tenth, 1.0e-6)
      near!(&Nx.mean/1, [x], @tenth, 1.0e-6)
      near!(&Nx.logsumexp/1, [x], :math.log(1_000_000) + @tenth, 1.0e-6)
      near!(&Nx.sum(Nx.exp(&1)), [x], 1_000_000 * :math.exp(@tenth), 1.0e-6)
    end
  end

  test "norms of a million numbers are accurate" do
    x = Nx.broadcast(Nx.tensor(0.1, type: :f32), {1_000_000}) |> Nx.add(0)
    near!(&Nx.LinAlg.norm/1, [x], :math.sqrt(1_000_000) * @tenth, 1.0e-6)
    near!(&Nx.LinAlg.norm(&1, ord: 1), [x], 1_000_000 * @tenth, 1.0e-6)
    near!(&Nx.LinAlg.norm(Nx.reshape(&1, {1000, 1000}), ord: :frobenius), [x], 1000 * @tenth, 1.0e-6)
    near!(&Nx.LinAlg.norm(Nx.reshape(&1, {1000, 1000}), ord: 1), [x], 1000 * @tenth, 1.0e-6)
  end

  test "sums along one of several axes are accurate" do
    for {shape, axis} <- [{{1_000_000, 2}, 0}, {{2, 1_000_000}, 1}, {{3, 300_000, 3}, 1}] do
      x = Nx.broadcast(Nx.tensor(0.1, type: :f32), shape) |> Nx.add(0)
      count = elem(shape, axis)
      near!(&Nx.sum(&1, axes: [axis]), [x], count * @tenth, 1.0e-6)
      near!(&Nx.mean(&1, axes: [axis]), [x], @tenth, 1.0e-6)
      last = fn x -> Nx.slice_along_axis(Nx.cumulative_sum(x, axis: axis), count - 1, 1, axis: axis) end
      near!(last, [x], count * @tenth, @running)
    end
  end

  test "means and variances of numbers far from 0 are accurate" do
    x = Nx.remainder(Nx.iota({1_025_000}), 41) |> Nx.add(999_980) |> Nx.as_type(:f32)
    near!(&Nx.mean/1, [x], 1_000_000, 1.0e-6)
    near!(&Nx.variance/1, [x], 140, 1.0e-3)
    near!(&Nx.standard_deviation/1, [x], :math.sqrt(140), 1.0e-3)
  end

  test "the mean of 2^25 ones is 1" do
    near!(&Nx.mean/1, [Nx.broadcast(Nx.tensor(1.0, type: :f32), {33_554_432})], 1.0, 0.0)
  end

  test "products of many terms are accurate" do
    if EMLX.Golden.device() == :cpu do
      x = Nx.broadcast(Nx.tensor(0.1, type: :f32), {1_000_000}) |> Nx.add(0)
      near!(&Nx.dot(&1, &1), [x], 1_000_000 * @tenth * @tenth, 1.0e-5)
      near!(&Nx.dot(Nx.reshape(&1, {1, 1_000_000}), &1), [x], 1_000_000 * @tenth * @tenth, 1.0e-5)
    end
  end

  for {type, count} <- [bf16: 1_000, f16: 5_000] do
    test "numbers of #{type} that are added at one index are rounded once" do
      {type, count} = {unquote(type), unquote(count)}
      zeros = Nx.broadcast(Nx.tensor(0, type: type), {3})
      index = Nx.broadcast(1, {count, 1})
      ones = Nx.broadcast(Nx.tensor(1, type: type), {count})

      for added <- ways(&Nx.indexed_add/3, [zeros, index, ones]),
          do: assert(Nx.to_flat_list(added) == [0.0, count * 1.0, 0.0])

      # The gradient of reading one index many times.
      grad = &Nx.Defn.grad(&1, fn x -> Nx.sum(Nx.gather(x, Nx.broadcast(1, {count, 1}))) end)
      for grad <- ways(grad, [zeros]), do: assert(Nx.to_flat_list(grad) == [0.0, count * 1.0, 0.0])
      grad = &Nx.Defn.grad(&1, fn x -> Nx.sum(Nx.take(x, Nx.broadcast(2, {count}))) end)
      for grad <- ways(grad, [zeros]), do: assert(Nx.to_flat_list(grad) == [0.0, 0.0, count * 1.0])
    end

    test "numbers of #{type} that windows add at one index are rounded once" do
      {type, count} = {unquote(type), unquote(count)}

      peak =
        Nx.indexed_put(
          Nx.broadcast(Nx.tensor(0, type: type), {2 * count - 1}),
          Nx.tensor([[count - 1]]),
          Nx.tensor([1], type: type)
        )

      ones = Nx.broadcast(Nx.tensor(1, type: type), {count})

      for {scatter, x} <- [{&Nx.window_scatter_max/5, peak}, {&Nx.window_scatter_min/5, Nx.negate(peak)}] do
        fun = &scatter.(&1, &2, Nx.tensor(0, type: type), {count}, strides: [1], padding: [{0, 0}])
        for sums <- ways(fun, [x, ones]), do: assert(sums |> Nx.reduce_max() |> Nx.to_number() == count * 1.0)
      end
    end
  end

  # ---- against f64 ----

  # The reference is the same function in f64; `measure` returns the magnitude that errors are relative to.
  defp check!(label, fun, x, measure, slack) do
    cpu = {EMLX.Backend, device: :cpu}
    results = for have <- ways(fun, [x]), do: Nx.backend_copy(have, cpu)
    x = Nx.backend_copy(x, cpu)

    # The GPU has no f64.
    Nx.with_default_backend(cpu, fn ->
      wide = Nx.as_type(x, :f64)
      want = fun.(wide)
      allowed = measure.(wide, want)

      for have <- results do
        assert have.shape == want.shape
        off = Nx.abs(Nx.subtract(Nx.as_type(have, :f64), want))
        near = Nx.less_equal(off, Nx.add(Nx.multiply(allowed, slack), 1.0e-30))
        assert Nx.to_number(Nx.all(near)) == 1, "#{label}: off by #{Nx.to_number(Nx.reduce_max(off))}"
      end
    end)
  end

  defp random_tensor do
    dims = one_of([[130_001], [70_001, 3], [3, 70_001], [41, 67, 33], [17, 1, 4_097], [9, 8, 7, 6, 5]])
    scale = one_of([1.0e-3, 1.0, 1.0e4])
    shift = one_of([0.0, 1.0, -3.0])
    {x, _key} = Nx.Random.normal(Nx.Random.key(integer(1..1_000_000)), shift, 1.0, shape: List.to_tuple(dims))
    x = Nx.multiply(x, scale)
    if chance(0.3), do: Nx.transpose(x), else: if(chance(0.3), do: Nx.reverse(x), else: x)
  end

  defp random_axes(x) do
    some = for axis <- 0..(Nx.rank(x) - 1), chance(0.6), do: axis
    if some == [], do: [Nx.rank(x) - 1], else: some
  end

  defp own(_x, want), do: Nx.abs(want)

  for name <- [:sum, :mean] do
    test "#{name} of any shape over any axes matches f64" do
      for_all(12, unquote(name), fn ->
        x = random_tensor()
        axes = random_axes(x)
        fun = &apply(Nx, unquote(name), [&1, [axes: axes]])

        check!(
          "#{unquote(name)} of #{inspect(x.shape)} over #{inspect(axes)}",
          fun,
          x,
          fn x, _ -> fun.(Nx.abs(x)) end,
          1.0e-6
        )
      end)
    end
  end

  for name <- [:variance, :standard_deviation] do
    test "#{name} of any shape over any axes matches f64" do
      for_all(12, unquote(name), fn ->
        x = random_tensor()
        axes = random_axes(x)
        fun = &apply(Nx, unquote(name), [&1, [axes: axes]])
        # One number has no variance, and close numbers lose theirs in f32.
        measure = fn x, want -> Nx.add(Nx.abs(want), Nx.multiply(1.0e-3, Nx.mean(Nx.abs(x)))) end
        check!("#{unquote(name)} of #{inspect(x.shape)} over #{inspect(axes)}", fun, x, measure, 1.0e-5)
      end)
    end
  end

  test "logsumexp of any shape over any axes matches f64" do
    for_all(12, :logsumexp, fn ->
      x = random_tensor()
      axes = random_axes(x)
      # The largest number and the logarithm are added, each rounded.
      measure = fn x, want -> Nx.add(1, Nx.add(Nx.abs(want), Nx.reduce_max(Nx.abs(x)))) end

      check!(
        "logsumexp of #{inspect(x.shape)} over #{inspect(axes)}",
        &Nx.logsumexp(&1, axes: axes),
        x,
        measure,
        1.0e-6
      )
    end)
  end

  test "norms of any shape match f64" do
    for_all(12, :norm, fn ->
      x = Nx.flatten(random_tensor())
      for ord <- [1, 2, 3], do: check!("norm #{ord}", &Nx.LinAlg.norm(&1, ord: ord), x, &own/2, 2.0e-5)
    end)
  end

  test "cumulative sums of any shape match f64" do
    for_all(12, :cumulative, fn ->
      x = random_tensor()
      opts = [axis: integer(0..(Nx.rank(x) - 1)), reverse: chance(0.5)]
      fun = &Nx.cumulative_sum(&1, opts)
      check!("#{inspect(x.shape)}, #{inspect(opts)}", fun, x, fn x, _ -> fun.(Nx.abs(x)) end, @running)
    end)
  end
end
