defmodule EMLX.Backend.SmallTest do
  # Operations on small tensors are recorded and repeated (ADR 58): each call is made several times, with other values
  # of the same shapes and types.
  use EMLX.NxCase, async: true

  import EMLX.Random

  @calls 4

  # Calls a function with new tensors each time. `draw` returns them.
  defp repeated(fun, draw, opts \\ []) do
    results = for _ <- 1..@calls, do: same(fun, draw.(), [compiled: false] ++ opts)
    if Enum.all?(results, &(&1 == :skipped)), do: :skipped, else: :ok
  end

  defp axes(shape), do: Enum.to_list(0..(tuple_size(shape) - 1)//1)

  defp some_axes(shape), do: Enum.filter(axes(shape), fn _ -> chance(0.5) end)

  test "functions of one tensor return the same for other values" do
    exact = [&Nx.negate/1, &Nx.abs/1, &Nx.is_nan/1, &Nx.is_infinity/1, &Nx.logical_not/1, &Nx.floor/1]
    rounded = [&Nx.exp/1, &Nx.sin/1, &Nx.tanh/1, &Nx.sqrt(Nx.abs(&1))]

    for_all(60, :unary, fn ->
      {shape, type} = {shape(0..3), one_of(real_types())}
      repeated(one_of(exact), fn -> [tensor(shape, type, special: 0.2)] end)
      repeated(one_of(rounded), fn -> [tensor(shape, type)] end)
    end)
  end

  test "functions of two tensors return the same for other values" do
    functions =
      [&Nx.add/2, &Nx.subtract/2, &Nx.multiply/2, &Nx.divide/2, &Nx.min/2, &Nx.max/2] ++
        [&Nx.equal/2, &Nx.not_equal/2, &Nx.less/2, &Nx.greater_equal/2, &Nx.logical_and/2, &Nx.logical_xor/2]

    for_all(90, :binary, fn ->
      {fun, shape} = {one_of(functions), shape(0..3)}
      {left, right, other} = {one_of(real_types()), one_of(real_types()), broadcastable(shape)}
      # The largest number of one type may be none of the other.
      special = if left == right, do: 0.1, else: 0
      repeated(fun, fn -> [tensor(shape, left, special: special), tensor(other, right, special: special)] end)
    end)
  end

  test "constants, selections, limits and casts return the same for other values" do
    for_all(60, :mixed, fn ->
      {shape, type, to} = {shape(0..3), one_of(real_types()), one_of(real_types())}
      repeated(&Nx.add(&1, 1), fn -> [tensor(shape, type)] end)
      repeated(&Nx.multiply(&1, 3), fn -> [tensor(shape, type)] end)
      repeated(&Nx.as_type(&1, to), fn -> [tensor(shape, type, range: {0, 1})] end)
      repeated(&Nx.clip(&1, -1, 1), fn -> [tensor(shape, one_of([{:f, 32}, {:s, 32}, {:f, 64}]))] end)

      repeated(&Nx.select/3, fn ->
        [tensor(shape, {:u, 8}, range: {0, 1}), tensor(shape, type), tensor(shape, to)]
      end)
    end)
  end

  # A random view of a tensor of a shape, and the view's shape.
  defp view(shape) do
    rank = tuple_size(shape)

    case integer(1..6) do
      1 when rank > 0 ->
        new = shape |> Tuple.to_list() |> Enum.shuffle() |> List.to_tuple()
        {&Nx.reshape(&1, new), new}

      2 when rank > 0 ->
        order = Enum.shuffle(axes(shape))
        {&Nx.transpose(&1, axes: order), List.to_tuple(for axis <- order, do: elem(shape, axis))}

      3 when rank > 0 ->
        starts = for size <- Tuple.to_list(shape), do: integer(0..(size - 1))
        lengths = for {size, start} <- Enum.zip(Tuple.to_list(shape), starts), do: integer(1..(size - start))
        strides = for _ <- starts, do: integer(1..2)
        sizes = for {length, stride} <- Enum.zip(lengths, strides), do: div(length + stride - 1, stride)
        {&Nx.slice(&1, starts, lengths, strides: strides), List.to_tuple(sizes)}

      4 when rank > 0 ->
        axes = some_axes(shape)
        {&Nx.reverse(&1, axes: axes), shape}

      5 when rank < 4 ->
        new = Tuple.insert_at(shape, 0, 2)
        {&Nx.broadcast(&1, new), new}

      _ ->
        axis = integer(0..rank)
        {&(&1 |> Nx.new_axis(axis) |> Nx.squeeze(axes: [axis])), shape}
    end
  end

  test "views of views, and what is computed of them, are those of the values" do
    for_all(120, :views, fn ->
      {shape, type} = {shape(0..4), one_of(types())}

      {views, _shape} =
        Enum.map_reduce(1..integer(1..4), shape, fn _, shape ->
          {view, shape} = view(shape)
          {view, shape}
        end)

      chain = fn tensor -> Enum.reduce(views, tensor, fn view, tensor -> view.(tensor) end) end
      repeated(chain, fn -> [tensor(shape, type, special: 0.1)] end)
      repeated(&Nx.negate(chain.(&1)), fn -> [tensor(shape, type)] end)
      repeated(&Nx.sum(chain.(&1)), fn -> [tensor(shape, {:s, 32})] end)
    end)
  end

  test "reductions and orders return the same for other values" do
    for_all(60, :reductions, fn ->
      {shape, type} = {shape(1..3), one_of(real_types())}
      axis = integer(0..(tuple_size(shape) - 1))
      axes = some_axes(shape)
      direction = one_of([:asc, :desc])
      draw = fn -> [tensor(shape, type, range: {0, 3})] end
      repeated(&Nx.sum(&1, axes: axes), draw)
      repeated(&Nx.reduce_max(&1, axes: axes, keep_axes: true), draw)
      repeated(&Nx.all(&1, axes: axes), draw)
      repeated(&Nx.argmax(&1, axis: axis), draw)
      repeated(&Nx.argmin(&1, axis: axis, tie_break: :high), draw)
      repeated(&Nx.sort(&1, axis: axis, direction: direction), draw)
      repeated(&Nx.cumulative_sum(&1, axis: axis), draw)
    end)
  end

  test "parts are read and written at the indices of each call" do
    for_all(60, :parts, fn ->
      {size, type, index} = {integer(1..6), one_of(real_types()), one_of([{:s, 32}, {:s, 64}, {:u, 8}])}
      places = fn count -> tensor({count}, index, range: {0, size - 1}, distinct: true) end
      count = integer(1..size)
      repeated(&Nx.take/2, fn -> [tensor({size, 2}, type), places.(count)] end)
      repeated(&Nx.gather(&1, Nx.new_axis(&2, 1)), fn -> [tensor({size, 2}, type), places.(count)] end)
      repeated(& &1[&2], fn -> [tensor({size, 3}, type), tensor({}, index, range: {0, size - 1})] end)

      put = &Nx.indexed_put(&1, Nx.new_axis(&2, 1), &3)
      add = &Nx.indexed_add(&1, Nx.new_axis(&2, 1), &3)
      draw = fn -> [tensor({size}, type), places.(count), tensor({count}, type)] end
      repeated(put, draw)
      repeated(add, draw)

      repeated(&Nx.put_slice(&1, [&2], &3), fn ->
        [tensor({size}, type), tensor({}, index, range: {0, size}), tensor({count}, type)]
      end)

      repeated(&Nx.put_slice(&1, [size - count], &2), fn -> [tensor({size}, type), tensor({count}, type)] end)
    end)
  end

  test "tensors are joined, padded and multiplied as their values are" do
    for_all(40, :joined, fn ->
      {shape, type, other} = {shape(1..3), one_of(real_types()), one_of(real_types())}
      repeated(&Nx.concatenate([&1, &2], axis: 0), fn -> [tensor(shape, type), tensor(shape, other)] end)
      repeated(&Nx.stack([&1, &2]), fn -> [tensor(shape, type), tensor(shape, other)] end)
      config = for _ <- axes(shape), do: {integer(0..2), integer(0..2), integer(0..1)}
      repeated(&Nx.pad(&1, &2, config), fn -> [tensor(shape, type), tensor({}, type)] end)

      repeated(&Nx.dot/2, fn ->
        [tensor({2, 3}, type, range: {-2, 2}), tensor({3, 2}, type, range: {-2, 2})]
      end)
    end)
  end

  test "made tensors have Nx's values" do
    for_all(60, :made, fn ->
      {shape, type, number} = {shape(0..3), one_of(real_types()), integer(0..1)}
      repeated(fn -> Nx.iota(shape, type: type) end, fn -> [] end)
      repeated(fn -> Nx.broadcast(Nx.tensor(number, type: type), shape) end, fn -> [] end)
      repeated(fn -> Nx.eye({3, 2}, type: type) end, fn -> [] end)
      if tuple_size(shape) > 0, do: repeated(fn -> Nx.iota(shape, type: type, axis: 0) end, fn -> [] end)
    end)
  end

  test "a deallocated tensor raises also where the operation was recorded, and constants stay usable" do
    [a, b] = for _ <- 1..2, do: Nx.tensor([1.0, 2.0])
    for _ <- 1..3, do: assert(Nx.to_list(Nx.add(a, b)) == [2.0, 4.0])
    sum = Nx.add(a, b)
    assert Nx.backend_deallocate(a) == :ok
    assert Nx.backend_deallocate(a) == :already_deallocated
    assert_raise EMLX.Error, ~r/deallocated/, fn -> Nx.add(a, b) end
    assert_raise EMLX.Error, ~r/deallocated/, fn -> Nx.to_binary(a) end
    assert Nx.to_list(sum) == [2.0, 4.0]

    one = Nx.tensor(1)
    Nx.backend_deallocate(one)
    assert Nx.to_number(Nx.add(Nx.tensor(1), 1)) == 2
  end

  test "small tensors go to other backends and processes" do
    tensor = Nx.add(Nx.iota({3}), 1)
    assert Nx.backend_transfer(tensor, Nx.BinaryBackend) |> Nx.to_list() == [1, 2, 3]
    copy = Nx.backend_copy(Nx.tensor([1, 2], backend: Nx.BinaryBackend), backend())
    assert Nx.to_list(Nx.multiply(copy, copy)) == [1, 4]
    task = Task.async(fn -> Nx.multiply(tensor, 2) end)
    assert Nx.to_list(Task.await(task)) == [2, 4, 6]
  end
end
