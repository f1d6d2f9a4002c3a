defmodule EMLX.Backend.ShapeTest do
  use EMLX.NxCase, async: true

  import EMLX.Random

  defp axes(shape), do: Enum.to_list(0..(tuple_size(shape) - 1)//1)

  defp some_axes(shape), do: Enum.filter(axes(shape), fn _ -> chance(0.5) end)

  test "reshape and flatten keep the order of elements" do
    for_all(60, :reshape, fn ->
      shape = shape(1..4)
      new = shape |> Tuple.to_list() |> Enum.shuffle() |> List.to_tuple()
      same(&Nx.reshape(&1, new), [tensor(shape, one_of(types()))])
      same(&Nx.flatten/1, [tensor(shape, one_of(types()))])
    end)
  end

  test "reshape of a transposed tensor keeps the order of elements" do
    for_all(30, :reshape_transposed, fn ->
      shape = shape(2..4)
      order = Enum.shuffle(axes(shape))
      same(&(&1 |> Nx.transpose(axes: order) |> Nx.flatten()), [tensor(shape, one_of(types()))])
    end)
  end

  test "squeeze and new_axis drop and add axes of size 1" do
    for_all(60, :squeeze, fn ->
      shape = shape(0..4, 1..2)
      tensor = tensor(shape, one_of(types()))
      same(&Nx.squeeze/1, [tensor])
      axis = integer(0..tuple_size(shape))
      same(&Nx.new_axis(&1, axis), [tensor])
    end)
  end

  test "broadcast maps any axes" do
    for_all(100, :broadcast, fn ->
      to = shape(1..4)
      chosen = some_axes(to)
      from = List.to_tuple(for axis <- chosen, do: if(chance(0.3), do: 1, else: elem(to, axis)))
      tensor = tensor(from, one_of(types()))
      same(&Nx.broadcast(&1, to, axes: chosen), [tensor])
      same(&Nx.broadcast(&1, to), [tensor(broadcastable(to), one_of(types()))])
    end)
  end

  test "transpose takes axes in any order" do
    for_all(60, :transpose, fn ->
      shape = shape()
      order = Enum.shuffle(axes(shape))
      same(&Nx.transpose(&1, axes: order), [tensor(shape, one_of(types()))])
    end)
  end

  test "reverse takes any axes" do
    for_all(60, :reverse, fn ->
      shape = shape(1..4)
      axes = some_axes(shape)
      same(&Nx.reverse(&1, axes: axes), [tensor(shape, one_of(types()))])
    end)
  end

  test "pad takes positive, negative and interior widths" do
    for_all(150, :pad, fn ->
      shape = shape()
      # The binary backend keeps the tensor's type even if both types merge to another.
      type = one_of(types())
      value = tensor({}, type)

      config =
        for dim <- Tuple.to_list(shape) do
          interior = integer(0..2)
          inner = dim + (dim - 1) * interior
          low = integer(-min(inner, 2)..2)
          # The negative padding leaves at least one element.
          high = integer(-min(max(inner + low - 1, 0), 2)..2)
          {if(inner + low + high < 1, do: 1, else: low), high, interior}
        end

      same(&Nx.pad(&1, &2, config), [tensor(shape, type), value])
    end)
  end

  test "concatenate and stack merge types" do
    for_all(100, :concatenate, fn ->
      shape = shape(1..3)
      axis = one_of(axes(shape))
      parts = for _ <- 1..integer(1..4), do: tensor(put_elem(shape, axis, integer(1..3)), one_of(types()))
      same(fn a, b, c, d -> Nx.concatenate(Enum.filter([a, b, c, d], & &1), axis: axis) end, pad_list(parts, 4))
      parts = for _ <- 1..integer(1..4), do: tensor(shape, one_of(types()))
      axis = integer(0..tuple_size(shape))
      same(fn a, b, c, d -> Nx.stack(Enum.filter([a, b, c, d], & &1), axis: axis) end, pad_list(parts, 4))
    end)
  end

  defp pad_list(list, size), do: list ++ List.duplicate(nil, size - length(list))

  # Starts, constant or dynamic, some of them out of bounds, and lengths that fit.
  defp part(shape) do
    for dim <- Tuple.to_list(shape) do
      length = integer(1..dim)
      start = integer(-2..(dim + 1))
      type = if start < 0, do: {:s, 32}, else: one_of([{:s, 64}, {:u, 8}])
      {if(chance(0.5), do: max(start, 0), else: tensor({}, type, range: {start, start})), length}
    end
  end

  test "slice takes constant and dynamic starts, and clamps them" do
    for_all(200, :slice, fn ->
      shape = shape(1..4, 1..5)
      {starts, lengths} = Enum.unzip(part(shape))
      strides = for length <- lengths, do: integer(1..length)
      tensor = tensor(shape, one_of(types()))
      same(&Nx.slice(&1, starts, lengths, strides: strides), [tensor])
    end)
  end

  test "put_slice takes constant and dynamic starts, and clamps them" do
    for_all(150, :put_slice, fn ->
      shape = shape(1..4, 1..5)
      {starts, lengths} = Enum.unzip(part(shape))
      tensor = tensor(shape, one_of(types()))
      slice = tensor(List.to_tuple(lengths), one_of(types()))
      same(&Nx.put_slice(&1, starts, &2), [tensor, slice])
    end)
  end

  test "access by indices, ranges and tensors matches the binary backend" do
    for_all(40, :access, fn ->
      tensor = tensor({4, 3, 5}, one_of(types()))
      index = integer(-4..3)
      same(& &1[index], [tensor])
      same(& &1[[1..2, -1]], [tensor])
      same(& &1[&2], [tensor, tensor({}, {:s, 32}, range: {-3, 6})])
    end)
  end

  # Index columns within an array's axes.
  defp indices(count_shape, shape, axes) do
    columns = for axis <- axes, do: tensor(count_shape, {:s, 64}, range: {0, elem(shape, axis) - 1})
    Nx.stack(columns, axis: -1)
  end

  test "gather takes any axes" do
    for_all(150, :gather, fn ->
      shape = shape(1..4, 1..5)
      axes = some_axes(shape)
      axes = if axes == [], do: [0], else: axes
      indices = Nx.as_type(indices(shape(1..2), shape, axes), one_of([{:s, 32}, {:u, 8}, {:s, 64}, {:u, 64}]))
      same(&Nx.gather(&1, &2, axes: axes), [tensor(shape, one_of(types())), indices])
    end)
  end

  test "gather clamps indices that are out of range" do
    t = Nx.iota({3, 2})
    assert Nx.to_flat_list(Nx.gather(t, Nx.tensor([[5], [-1], [1]]), axes: [0])) == [4, 5, 0, 1, 2, 3]
    assert Nx.to_flat_list(Nx.take(Nx.tensor([1, 2, 3]), Nx.tensor([-7, 9]))) == [1, 3]
  end

  for name <- [:indexed_add, :indexed_put] do
    test "#{name} takes any axes, also where indices repeat" do
      for_all(150, unquote(name), fn ->
        shape = shape(1..4, 1..4)
        axes = some_axes(shape)
        axes = if axes == [], do: [0], else: axes
        count = count(unquote(name), shape, axes)
        rest = for {dim, axis} <- Enum.with_index(Tuple.to_list(shape)), axis not in axes, do: dim
        updates = tensor(List.to_tuple([count | rest]), one_of(types()))
        args = [tensor(shape, one_of(types())), at(unquote(name), {count}, shape, axes), updates]
        opts = [axes: axes]
        same(fn t, i, u -> apply(Nx, unquote(name), [t, i, u, opts]) end, args, summed(args))
      end)
    end
  end

  # For repeated indices, indexed_put keeps the last update on the CPU and any one on the GPU (EMLX.Backend). Therefore
  # the indices on the GPU are distinct.
  defp apart?(name), do: name == :indexed_put and EMLX.Golden.device() == :gpu

  defp count(name, shape, axes) do
    places = axes |> Enum.map(&elem(shape, &1)) |> Enum.product()
    integer(1..if(apart?(name), do: min(6, places), else: 6))
  end

  defp at(name, {count}, shape, axes) do
    if apart?(name) do
      places =
        Enum.reduce(axes, [[]], fn axis, places -> for p <- places, i <- 0..(elem(shape, axis) - 1), do: p ++ [i] end)

      places |> Enum.shuffle() |> Enum.take(count) |> Nx.tensor(type: {:s, 64})
    else
      indices({count}, shape, axes)
    end
  end

  # A sum of several numbers may be rounded after each addition.
  defp summed(tensors) do
    if Enum.any?(tensors, &(elem(&1.type, 0) not in [:s, :u] and elem(&1.type, 1) <= 16)),
      do: [rtol: 0.3, atol: 1.0],
      else: [atol: 1.0e-5]
  end

  test "indexed_put and indexed_add drop indices that are out of range" do
    t = Nx.tensor([1, 2, 3])
    at = Nx.tensor([[3], [-1], [1]])
    assert Nx.to_flat_list(Nx.indexed_put(t, at, Nx.tensor([7, 8, 9]))) == [1, 9, 3]
    assert Nx.to_flat_list(Nx.indexed_add(t, at, Nx.tensor([7, 8, 9]))) == [1, 11, 3]
  end

  test "updates of many whole rows match the binary backend" do
    for_all(12, :indexed_rows, fn ->
      rows = integer(100..400)
      type = one_of([{:f, 32}, {:bf, 16}, {:s, 32}])
      shape = {rows, integer(32..70), 3}
      count = integer(1..300)
      tensor = tensor(shape, type, range: {-8, 8})
      updates = tensor(put_elem(shape, 0, count), type, range: {-1, 1})
      same(&Nx.indexed_add/3, [tensor, tensor({count, 1}, {:s, 32}, range: {0, rows - 1}), updates])
    end)
  end

  test "take and take_along_axis match the binary backend" do
    for_all(80, :take, fn ->
      shape = shape(1..4, 1..5)
      axis = one_of(axes(shape))
      tensor = tensor(shape, one_of(types()))
      range = {0, elem(shape, axis) - 1}
      same(&Nx.take(&1, &2, axis: axis), [tensor, tensor(shape(0..2), {:s, 32}, range: range)])
      along = put_elem(shape, axis, integer(1..4))
      same(&Nx.take_along_axis(&1, &2, axis: axis), [tensor, tensor(along, {:u, 32}, range: range)])
    end)
  end

  test "operations keep names with their axes" do
    same(
      fn t ->
        t = Nx.rename(t, [:x, :y, :z])
        {Nx.transpose(t), Nx.sum(t, axes: [:y]), Nx.add(t, 1), Nx.reshape(t, {2, 12}, names: [:a, :b]), t[z: 1..2]}
      end,
      [tensor({2, 3, 4}, {:f, 32})]
    )
  end

  test "operations keep vectorized axes" do
    for_all(40, :vectorized, fn ->
      types = [f: 32, s: 32, u: 8, s: 64, c: 64, bf: 16]
      tensor = tensor({2, 3, 4}, one_of(types))
      other = tensor({3, 4}, one_of(types))

      same(
        fn a, b ->
          a = Nx.vectorize(a, :x)
          b = Nx.vectorize(b, :y)
          {Nx.add(a, b), Nx.sum(a), Nx.reshape(a, {4, 3}), Nx.slice(a, [1, 0], [2, 2]), Nx.dot(a, [1], b, [0])}
        end,
        [tensor, other],
        atol: if(elem(other.type, 1) <= 16, do: 1.0, else: 1.0e-4),
        rtol: 0.1
      )
    end)
  end
end
