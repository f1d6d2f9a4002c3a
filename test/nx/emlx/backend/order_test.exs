defmodule EMLX.Backend.OrderTest do
  use EMLX.NxCase, async: true

  import EMLX.Random

  defp axis(shape), do: integer(0..(tuple_size(shape) - 1))

  test "sort in both directions puts NaN and infinities where Nx does" do
    for_all(150, :sort, fn ->
      shape = shape(1..3, 1..8)
      opts = [axis: axis(shape), direction: one_of([:asc, :desc])]
      same(&Nx.sort(&1, opts), [tensor(shape, one_of(real_types()), special: one_of([0, 0.3]))])
    end)
  end

  test "argsort is stable in both directions" do
    for_all(150, :argsort, fn ->
      shape = shape(1..3, 1..8)
      opts = [axis: axis(shape), direction: one_of([:asc, :desc]), stable: true]
      opts = if chance(0.3), do: [type: one_of([:s64, :u16, :f32])] ++ opts, else: opts
      # Few different numbers, so that there are ties.
      tensor = Nx.floor(tensor(shape, one_of(real_types()), range: {-2, 3}))
      same(&Nx.argsort(&1, opts), [tensor])
    end)
  end

  test "argsort of many equal elements is stable" do
    t = Nx.remainder(Nx.iota({5000}), 7)

    for direction <- [:asc, :desc] do
      same(&Nx.argsort(&1, direction: direction, stable: true), [Nx.backend_copy(t, Nx.BinaryBackend)])
    end
  end

  test "argsort puts NaN and infinities where Nx does" do
    for_all(60, :argsort_special, fn ->
      # One of each, since the order of several NaN is undefined.
      numbers = Enum.shuffle([:nan, :infinity, :neg_infinity, 1.0, -2.5, 0.0])
      tensor = Nx.tensor(numbers, type: one_of([:f32, :f16, :bf16, :f64]), backend: Nx.BinaryBackend)
      direction = one_of([:asc, :desc])
      same(&Nx.argsort(&1, direction: direction), [tensor])
    end)
  end

  test "sort and argsort take scalars" do
    for fun <- [&Nx.sort/1, &Nx.argsort/1, &Nx.argmax/1, &Nx.argmin/1], do: same(fun, [tensor({}, {:f, 32})])
  end

  test "top_k matches the binary backend" do
    for_all(40, :top_k, fn ->
      shape = shape(1..3, 2..8)
      size = elem(shape, tuple_size(shape) - 1)
      k = integer(1..size)
      # Distinct along the axis, since the choice among equals is undefined.
      line = tensor({Tuple.product(shape)}, {:f, 32}, range: {-500, 500}, distinct: true)
      same(&Nx.top_k(&1, k: k), [Nx.reshape(line, shape)])
    end)
  end

  test "top_k of long rows is the start of a stable descending sort, whatever the layout" do
    for_all(20, :long_top_k, fn ->
      type = one_of(real_types())
      size = one_of([300, 3000, 40_000])
      tensor = tensor({2, size}, type, range: {-6, 6}, special: one_of([0, 0.01]))
      # Few different numbers, so that there are ties.
      tensor = tensor |> Nx.backend_copy(backend()) |> Nx.floor()
      k = one_of([1, 7, 50, 299])
      # Columns of a contiguous array.
      turned = tensor |> Nx.transpose() |> Nx.add(Nx.tensor(0, type: type)) |> Nx.transpose()
      {values, places} = Nx.top_k(turned, k: k)
      order = Nx.argsort(tensor, axis: 1, direction: :desc, stable: true)
      assert_same(places, Nx.as_type(order[[.., 0..(k - 1)]], :s32))
      assert_same(values, Nx.take_along_axis(tensor, places, axis: 1))
    end)
  end

  test "top_k refuses what Nx refuses" do
    assert_raise ArgumentError, ~r/greater than or equal to 1/, fn -> Nx.top_k(Nx.tensor([1, 2]), k: 0) end
    reason = ~r/top_k: k must be within 0..2 for axis 0 of shape \[2\], got 3/
    assert_raise EMLX.Error, reason, fn -> EMLX.Ops.top_k(EMLX.Array.from_list([1, 2], :s32), 3) end
  end
end
