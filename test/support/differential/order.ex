defmodule EMLX.Differential.Order do
  @moduledoc "Sorting and searching, for the differential suite. What has no order is sorted before it is compared."

  alias EMLX.{Array, Ops}
  alias EMLX.Differential.{Case, Draw, Input}
  alias EMLX.Differential.Reference, as: R

  @domains [:special, :any, {:few, 9}, {-1000, 1000}]

  # Complex numbers have no order.
  def build(_name, %{dtype: :c64}), do: :skip

  def build(:sort, draw) do
    draw = lined(draw)
    axis = Draw.axis(draw)
    along({:sort, %{axis: written(axis, draw)}}, draw, axis, fn rows -> fn [have] -> [{have, R.sort(rows)}] end end)
  end

  def build(:argsort, draw) do
    draw = lined(draw)
    axis = Draw.axis(draw)

    along({:argsort, %{axis: written(axis, draw)}}, draw, axis, fn rows ->
      fn [have] -> [{have, R.argsort(rows)}] end
    end)
  end

  def build(:topk, draw) do
    draw = lined(draw)
    axis = Draw.axis(draw)
    n = Enum.at(draw.shape, axis)
    k = Enum.random(1..max(min(n, 40), 1))

    along({:topk, %{k: k, axis: written(axis, draw)}}, draw, axis, fn rows ->
      fn [have] -> [{R.sort(have), R.columns(R.sort(rows), n - k, n)}] end
    end)
  end

  def build(:top_k, draw) do
    draw = lined(draw)
    axis = Draw.axis(draw)
    n = Enum.at(draw.shape, axis)
    k = Enum.random(0..min(n, 40))

    along({:top_k, %{k: k, axis: written(axis, draw)}}, draw, axis, fn rows ->
      # From the end, so that an ascending stable sort has the first of equals last.
      order = rows |> Ops.flip([1]) |> R.argsort() |> R.s64() |> Ops.flip([1])
      places = Ops.subtract(n - 1, order) |> R.columns(0, k)
      fn [values, at] -> [{values, R.gather(rows, places)}, {at, places}] end
    end)
  end

  def build(name, draw) when name in [:partition, :argpartition] do
    draw = lined(draw)
    axis = Draw.axis(draw)
    n = Enum.at(draw.shape, axis)
    kth = Enum.random([0, n - 1, div(n, 2), max(n - 3, 0)])
    op = {name, %{kth: Enum.random([kth, kth - n]), axis: written(axis, draw)}}

    along(op, draw, axis, fn rows ->
      fn [have] ->
        have = if name == :partition, do: have, else: R.gather(rows, have)

        parts =
          for {from, to} <- [{0, kth}, {kth, kth + 1}, {kth + 1, n}], to > from, do: R.sort(R.columns(have, from, to))

        [{Ops.concatenate(parts, axis: 1), R.sort(rows)}]
      end
    end)
  end

  def build(:searchsorted, draw) do
    side = Enum.random([:left, :right])
    size = R.size(draw.shape)
    # As many comparisons as are few.
    n = Enum.random(1..max(1, min(1025, div(4_000_000, max(size, 1)))))

    {n, shape} =
      if draw.shape != [] and Draw.coin(), do: {max(size, 1), Enum.random([[3], [2, 2]])}, else: {n, draw.shape}

    %{values: numbers} = Input.new([1, n], draw.dtype, {-100, 100}, :contiguous)
    line = Input.of(Ops.astype(R.flat(R.sort(numbers)), draw.dtype), draw.layout)
    values = Draw.other(draw, shape, {-110, 110})

    Case.values({:searchsorted, %{side: side}}, [line, values], :exact, fn [line, values] ->
      {a, v} = {R.shaped(line, [1, n]), R.column(R.flat(values))}
      below = if side == :left, do: Ops.less(a, v), else: Ops.less_equal(a, v)
      R.shaped(R.sum(R.s64(below)), shape)
    end)
  end

  def build(_name, _draw), do: nil

  # There has to be an axis.
  defp lined(%{shape: []} = draw), do: %{draw | shape: [1]}
  defp lined(draw), do: draw

  defp written(axis, draw), do: Draw.written(axis, length(draw.shape))

  # `fun` takes the rows and returns a function of the results' rows: what has to equal what.
  defp along(op, draw, axis, fun) do
    rows =
      case Enum.to_list(0..(length(draw.shape) - 1)) -- [axis] do
        [] -> []
        axes -> for other <- Enum.take_random(axes, 1), do: {:rows, {other, other}}
      end

    Case.checked(
      op,
      [Draw.input(draw, Enum.random(@domains))],
      :exact,
      fn [x] ->
        if 0 in draw.shape do
          fn results ->
            for have <- results, do: {"result", have, R.full(0, R.dims(have), Array.dtype(have)), :exact}
          end
        else
          {rows, _} = R.rows(x, [axis])
          look = fun.(rows)

          fn results ->
            lines = for result <- results, do: elem(R.rows(result, [axis]), 0)
            for {have, want} <- look.(lines), do: {"rows along the axis", have, want, :exact}
          end
        end
      end,
      # The places of equals in a partition are anyone's.
      if(elem(op, 0) in [:sort, :argsort, :top_k], do: rows, else: [])
    )
  end
end
