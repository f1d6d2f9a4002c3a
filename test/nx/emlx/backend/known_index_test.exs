defmodule EMLX.Backend.KnownIndexTest do
  # What a traced function knows of its indices changes its operations, and none of its numbers.
  use EMLX.NxCase, async: true

  import EMLX.Random

  defp text(fun, args) do
    fun |> EMLX.compile_to_program(Enum.map(args, &Nx.to_template/1), device: :cpu) |> EMLX.Program.inspect()
  end

  # Elements at other places, by the order that sorts them.
  defp spread(x, op) do
    x = Nx.vectorize(x, :rows)
    order = Nx.argsort(x)
    spread = apply(Nx, op, [Nx.broadcast(Nx.tensor(5, type: Nx.type(x)), x), Nx.new_axis(order, -1), Nx.flatten(x)])
    Nx.devectorize(spread, keep_names: false)
  end

  test "an order of vectorized rows is written along the axis" do
    for_all(20, "order", fn ->
      op = one_of([:indexed_put, :indexed_add])
      tensor = tensor({integer(1..4), integer(2..40)}, one_of([{:f, 32}, {:s, 32}, {:u, 8}, {:bf, 16}]))
      same(&spread(&1, op), [tensor])
    end)

    assert text(&spread(&1, :indexed_put), [Nx.template({3, 5}, :f32)]) =~ "put_along_axis("
    assert text(&spread(&1, :indexed_put), [Nx.template({1, 5}, :f32)]) =~ "put_along_axis("
    assert text(&spread(&1, :indexed_add), [Nx.template({3, 5}, :f32)]) =~ "scatter_add_axis("
  end

  test "an order of a vector is written along its axis" do
    fun = fn x -> Nx.indexed_put(Nx.broadcast(0.0, x), Nx.new_axis(Nx.argsort(x), -1), x) end
    same(fun, [tensor({30}, {:f, 32})])
    assert text(fun, [Nx.template({30}, :f32)]) =~ "put_along_axis("
  end

  test "indices that may repeat, or be out of range, are scattered" do
    fun = fn x, i ->
      i = Nx.vectorize(i, :rows)
      x |> Nx.vectorize(:rows) |> Nx.indexed_put(Nx.new_axis(i, -1), Nx.vectorize(x, :rows)) |> Nx.devectorize()
    end

    refute text(fun, [Nx.template({3, 5}, :f32), Nx.template({3, 5}, :s32)]) =~ "put_along_axis("
    # An order along the other axis, whose rows may repeat a position. Sums do not depend on which update is last.
    columns = fn x, op ->
      order = x |> Nx.argsort(axis: 0) |> Nx.vectorize(:rows)
      spread = apply(Nx, op, [Nx.vectorize(x, :rows), Nx.new_axis(order, -1), Nx.vectorize(x, :rows)])
      Nx.devectorize(spread)
    end

    refute text(&columns.(&1, :indexed_put), [Nx.template({5, 5}, :f32)]) =~ "put_along_axis("
    refute text(&columns.(&1, :indexed_add), [Nx.template({5, 5}, :f32)]) =~ "scatter_add_axis("
    same(&columns.(&1, :indexed_add), [tensor({5, 5}, {:f, 32})])
  end

  test "only indices that may be negative are clamped to 0" do
    ordered = fn x -> Nx.take_along_axis(x, Nx.argsort(x, axis: 1), axis: 1) end
    refute text(ordered, [Nx.template({3, 50}, :f32)]) =~ "negative: first"
    same(ordered, [tensor({3, 50}, {:f, 32})])

    largest = fn x -> Nx.take(x, Nx.argmax(x, axis: 0)) end
    refute text(largest, [Nx.template({7}, :f32)]) =~ "maximum("
    same(largest, [tensor({7}, {:f, 32})])

    given = fn x, i -> Nx.take_along_axis(x, i, axis: 0) end
    assert text(given, [Nx.template({7}, :f32), Nx.template({3}, :s32)]) =~ "negative: first"
    same(given, [tensor({7}, {:f, 32}), Nx.tensor([-1, 3, 9], backend: Nx.BinaryBackend)])

    less = fn x -> Nx.take(x, Nx.subtract(Nx.argmax(x, axis: 0), 3)) end
    assert text(less, [Nx.template({7}, :f32)]) =~ "maximum("
    same(less, [tensor({7}, {:f, 32})])
  end
end
