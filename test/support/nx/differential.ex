defmodule EMLX.NxDifferential do
  @moduledoc """
  Functions of Nx along an axis at sizes, types and layouts that Nx's own examples do not reach, on the device under
  test: what `EMLX.Differential` is for the native operations. References are those of `EMLX.Differential.Reference`.

  Of each call it looks at the whole result, at single elements (`f(x)[i]`, eager, of what is computed, and compiled),
  at the whole compiled, and at one row of the batch alone.
  """

  alias EMLX.{Array, Backend, Differential, Golden, Ops}
  alias EMLX.Differential.{Compare, Draw, Input, Reductions}
  alias EMLX.Differential.Reference, as: R

  @floats [:f32, :bf16, :f16, :f64]
  @real [:f32, :s32, :u8, :bf16, :f16, :f64, :s64, :u64, :s8, :u16]

  @shapes [
    [1],
    [7],
    [31],
    [1025],
    [8193],
    [3, 31],
    [31, 7],
    [1025, 1],
    [1, 1025],
    [3, 7, 31],
    [1, 31, 1, 7],
    [2, 3, 1, 7, 5]
  ]
  @large [
    [65_537],
    [1_000_003],
    [1_000_003, 1],
    [1, 1_000_003],
    [3, 65_537],
    [65_537, 3],
    [65_537, 1, 3],
    [2, 3, 31, 1025]
  ]

  # Calls of each function in a test run, of small and of large tensors.
  @few {5, 2}

  @doc """
  The functions by their names: the types, the domain of values for a type and a length, the tolerance, the function
  of a tensor and an axis, and what its results are of the tensor as rows: `{:rows, rows}` along the same axis, or
  `{:each, vector}` with a number for each row.
  """
  def functions do
    %{
      sort: {@real, any(), :exact, &Nx.sort(&1, axis: &2), fn x -> {:rows, R.sort(x)} end},
      sort_downwards:
        {@real, any(), :exact, &Nx.sort(&1, axis: &2, direction: :desc), fn x -> {:rows, R.reversed(R.sort(x))} end},
      argsort: {@real, any(), :exact, &Nx.argsort(&1, axis: &2, stable: true), fn x -> {:rows, R.argsort(x)} end},
      median: {@real, any(), :rounded, &Nx.median(&1, axis: &2), fn x -> {:each, median(x)} end},
      mode: {@real, fn _, _ -> {:few, 9} end, :exact, &Nx.mode(&1, axis: &2), fn x -> {:each, mode(x)} end},
      top: {@real, any(), :exact, &top/2, fn x -> {:rows, top(x)} end},
      argmax: {@real, few(), :exact, &Nx.argmax(&1, axis: &2), fn x -> {:each, R.first(equal(x, R.max(x)))} end},
      argmax_high:
        {@real, few(), :exact, &Nx.argmax(&1, axis: &2, tie_break: :high),
         fn x -> {:each, R.last(equal(x, R.max(x)))} end},
      argmin: {@real, few(), :exact, &Nx.argmin(&1, axis: &2), fn x -> {:each, R.first(equal(x, R.min(x)))} end},
      reduce_max: {@real, any(), :exact, &Nx.reduce_max(&1, axes: [&2]), fn x -> {:each, R.max(x)} end},
      reduce_min: {@real, any(), :exact, &Nx.reduce_min(&1, axes: [&2]), fn x -> {:each, R.min(x)} end},
      sum: {@real, &summands/2, :summed, &Nx.sum(&1, axes: [&2]), fn x -> {:each, R.sum(R.split(x))} end},
      product: {@real, factors(), :multiplied, &Nx.product(&1, axes: [&2]), fn x -> {:each, product(x)} end},
      mean: {@real, &averaged/2, :summed, &Nx.mean(&1, axes: [&2]), fn x -> {:each, Reductions.mean(R.f64(x))} end},
      variance: {@real, &averaged/2, :summed, &Nx.variance(&1, axes: [&2]), fn x -> {:each, variance(x)} end},
      standard_deviation:
        {@real, &averaged/2, :summed, &Nx.standard_deviation(&1, axes: [&2]),
         fn x -> {:each, Ops.sqrt(variance(x))} end},
      logsumexp:
        {@floats, fn _, _ -> {-5, 5} end, :summed, &Nx.logsumexp(&1, axes: [&2]), fn x -> {:each, logsumexp(x)} end},
      cumulative_sum:
        {@real, &summands/2, :running, &Nx.cumulative_sum(&1, axis: &2), fn x -> {:rows, running(x, :add)} end},
      cumulative_sum_from_behind:
        {@real, &summands/2, :running, &Nx.cumulative_sum(&1, axis: &2, reverse: true),
         fn x -> {:rows, R.reversed(running(R.reversed(x), :add))} end},
      cumulative_product:
        {@floats, factors(), :multiplied, &Nx.cumulative_product(&1, axis: &2),
         fn x -> {:rows, running(x, :multiply)} end},
      cumulative_max:
        {@real, any(), :exact, &Nx.cumulative_max(&1, axis: &2), fn x -> {:rows, R.scan(x, &Ops.maximum/2)} end},
      cumulative_min:
        {@real, any(), :exact, &Nx.cumulative_min(&1, axis: &2), fn x -> {:rows, R.scan(x, &Ops.minimum/2)} end},
      window_sum: {@floats, ones(), :summed, &Nx.window_sum(&1, window(&1, &2)), fn x -> {:rows, windows(x, :add)} end},
      window_max: {@real, any(), :exact, &Nx.window_max(&1, window(&1, &2)), fn x -> {:rows, windows(x, :maximum)} end},
      window_min: {@real, any(), :exact, &Nx.window_min(&1, window(&1, &2)), fn x -> {:rows, windows(x, :minimum)} end},
      reverse: {@real, any(), :exact, &Nx.reverse(&1, axes: [&2]), fn x -> {:rows, R.reversed(x)} end},
      every_other: {@real, any(), :exact, &every_other/2, fn x -> {:rows, every_other(x)} end},
      twice:
        {@real, any(), :exact, &Nx.concatenate([&1, &1], axis: &2),
         fn x -> {:rows, Ops.concatenate([x, x], axis: 1)} end},
      taken: {@real, any(), :exact, &taken/2, fn x -> {:rows, R.columns(R.reversed(x), 0, min(3, length_of(x)))} end},
      sorted_and_cumulated:
        {@floats, &summands/2, :running, &Nx.cumulative_sum(Nx.sort(&1, axis: &2), axis: &2),
         fn x -> {:rows, running(R.sort(x), :add)} end}
    }
  end

  defp any, do: fn _, _ -> {-100, 100} end
  defp few, do: fn _, _ -> {:few, 5} end
  defp ones, do: fn _, _ -> {0, 2} end
  defp factors, do: fn dtype, _ -> if(dtype in @floats, do: {:sparse, 0.9, 1.1}, else: {:sparse, -2, 3}) end
  # The sum that Nx divides is of the tensor's type: in f16 no more than 65,504.
  defp averaged(:f16, n), do: {0, 2 * min(1, 30_000 / n)}
  defp averaged(_, _), do: {0, 2}
  defp summands(dtype, n), do: if(dtype in @floats, do: {0, 2 * min(1, 100 / n)}, else: {-100, 100})

  # ---- functions of Nx ----

  defp top(x, axis) do
    last = Nx.rank(x) - 1
    order = Enum.to_list(0..last) |> List.replace_at(axis, last) |> List.replace_at(last, axis)
    {values, _} = x |> Nx.transpose(axes: order) |> Nx.top_k(k: min(3, Nx.axis_size(x, axis)))
    Nx.transpose(values, axes: order)
  end

  defp window(x, axis), do: 1 |> Tuple.duplicate(Nx.rank(x)) |> put_elem(axis, min(3, Nx.axis_size(x, axis)))
  defp every_other(x, axis), do: Nx.slice_along_axis(x, 0, Nx.axis_size(x, axis), axis: axis, strides: 2)

  defp taken(x, axis) do
    n = Nx.axis_size(x, axis)
    Nx.take(x, Nx.subtract(n - 1, Nx.iota({min(3, n)})), axis: axis)
  end

  # ---- what they should give ----

  defp length_of(x), do: x |> R.dims() |> List.last()
  defp equal(x, each), do: Ops.equal(x, R.column(each))

  defp median(x) do
    {n, sorted} = {length_of(x), R.f64(R.sort(x))}
    middle = for i <- [div(n - 1, 2), div(n, 2)], do: R.flat(R.columns(sorted, i, i + 1))
    Ops.multiply(Enum.reduce(middle, &Ops.add/2), 0.5)
  end

  # Of the most frequent the smallest: the first whose run in the order is the longest.
  defp mode(x) do
    {n, sorted} = {length_of(x), R.sort(x)}
    [count, _] = R.dims(sorted)
    first = R.full(1, [count, 1], :bool)
    new = Ops.concatenate([first, Ops.not_equal(R.columns(sorted, 0, n - 1), R.columns(sorted, 1, n))], axis: 1)
    place = R.shaped(R.affine(n, 0, 1), [1, n])
    starts = R.scan(Ops.where(new, place, Array.scalar(0, :s64)), &Ops.maximum/2)
    lengths = Ops.subtract(place, starts)
    R.flat(R.gather(sorted, R.column(R.first(equal(lengths, R.max(lengths))))))
  end

  defp top(x) do
    n = length_of(x)
    R.reversed(R.columns(R.sort(x), n - min(3, n), n))
  end

  defp product(x), do: R.fold(R.split(x), &Ops.multiply/2, 1)

  defp variance(x) do
    x = R.f64(x)
    Reductions.mean(Ops.square(Ops.subtract(x, R.column(Reductions.mean(x)))))
  end

  # The sum that Nx takes the logarithm of is of the tensor's type, too.
  defp logsumexp(x) do
    top = R.max(R.f64(x))
    sum = R.sum(Ops.exp(Ops.subtract(R.f64(x), R.column(top))))
    Ops.add(top, Ops.log(if(Array.dtype(x) == :f16, do: R.f64(Ops.astype(sum, :f16)), else: sum)))
  end

  defp running(x, op), do: R.scan(R.split(x), &Ops.run(op, [&1, &2]))

  defp windows(x, op) do
    n = length_of(x)
    window = min(3, n)
    x = if op == :add, do: R.split(x), else: x
    for(i <- 0..(window - 1), do: R.columns(x, i, n - window + 1 + i)) |> Enum.reduce(&Ops.run(op, [&1, &2]))
  end

  defp every_other(x) do
    [count, n] = R.dims(x)
    R.move(x, [R.affine(count, 0, n), R.affine(div(n + 1, 2), 0, 2)])
  end

  # ---- calls ----

  @doc "Makes calls of a function and looks at what comes of them: texts of what is not as it should be."
  @spec run(atom, integer) :: [binary]
  def run(name, seed) do
    {types, _, _, _, _} = function = Map.fetch!(functions(), name)
    # The GPU has no f64.
    types = if Golden.device() == :gpu, do: types -- [:f64], else: types
    draw_from({seed, name})

    calls =
      for {shapes, count} <- chosen(),
          _ <- 1..count//1,
          do: {Enum.random(shapes), Enum.random(types), Enum.random(Input.layouts())}

    for {call, i} <- Enum.with_index(calls), text <- guarded(name, function, call, {seed, name, i}), do: text
  end

  defp chosen do
    case Differential.extent() do
      :full -> [{@shapes, 60}, {@large, 40}]
      {7, 2} -> [{@shapes, elem(@few, 0)}, {@large, elem(@few, 1)}]
      {small, large} -> [{@shapes, small}, {@large, large}]
    end
  end

  defp draw_from(term),
    do: :rand.seed(:exsss, {:erlang.phash2(term), :erlang.phash2({term, 1}), :erlang.phash2({term, 2})})

  defp guarded(name, function, {shape, dtype, layout} = call, seed) do
    draw_from({seed, call})
    axis = Enum.random(0..(length(shape) - 1))
    {_, domain, tolerance, fun, want} = function
    draw = %Draw{shape: shape, dtype: dtype, layout: layout, device: Golden.device()}
    input = Draw.input(draw, domain.(dtype, Enum.at(shape, axis)))
    tensor = Backend.to_nx(Input.on(input, Golden.device()))
    label = "#{name} of #{Input.describe(input)} axis #{axis}"

    try do
      for text <- look(tensor, input.values, axis, tolerance, &fun.(&1, axis), want), do: "#{label}: #{text}"
    rescue
      error -> ["#{label}: raised #{Exception.message(error)}"]
    end
  end

  defp look(tensor, values, axis, tolerance, fun, want) do
    {rows, kept} = R.rows(values, [axis])
    dims = R.dims(values)

    want =
      case want.(rows) do
        {:rows, rows} -> R.unrows(rows, dims, axis)
        {:each, vector} -> R.shaped(vector, kept)
      end

    # Not computed before it is looked at.
    lazy = fun.(tensor)
    size = Array.size(want)
    places = Enum.uniq([size - 1, 0, Enum.random(0..(size - 1))])
    before = for place <- places, do: number(lazy, place)
    eager = fun.(tensor)
    whole = host(eager)
    jit = fn fun -> Nx.Defn.jit_apply(fun, [tensor], compiler: EMLX, cache: false, device: Golden.device()) end
    compiled = host(jit.(fun))

    compare("eager", whole, want, tolerance) ++
      compare("compiled", compiled, want, tolerance) ++
      Enum.concat(
        for {place, x} <- Enum.zip(places, before), do: single("element of what is not computed yet", place, x, whole)
      ) ++
      Enum.concat(for place <- places, do: single("element of what is computed", place, number(eager, place), whole)) ++
      Enum.concat(
        for place <- places,
            do: single("element, compiled", place, Nx.to_number(jit.(&sliced(fun.(&1), place))), compiled)
      ) ++
      row(tensor, dims, axis, fun, whole, tolerance)
  end

  defp compare(label, have, want, tolerance) do
    case Compare.difference(have, want, tolerance) do
      nil -> []
      text -> ["#{label}: #{text}"]
    end
  end

  defp host(tensor) do
    array = Backend.from_nx(tensor)
    Array.from_binary(Array.to_binary(array), Tuple.to_list(Array.shape(array)), Array.dtype(array))
  end

  defp at(tensor, place), do: place |> Compare.indices(Tuple.to_list(Nx.shape(tensor))) |> Enum.reduce(tensor, & &2[&1])
  # Nx 0.12.1 raises where a squeezed tensor is indexed in a compiled function.
  defp sliced(tensor, place) do
    dims = Nx.shape(tensor)
    start = Compare.indices(place, Tuple.to_list(dims))
    Nx.reshape(Nx.slice(tensor, start, List.duplicate(1, tuple_size(dims))), {})
  end

  defp number(tensor, place), do: tensor |> at(place) |> Nx.to_number()

  defp single(label, place, x, whole) do
    case Compare.element(whole, place) do
      ^x -> []
      # 1 and 1.0.
      y when is_number(x) and is_number(y) and x == y -> []
      y -> ["#{label}: #{place} is #{inspect(x)}, in the whole #{inspect(y)}"]
    end
  end

  # The last row of a batch alone.
  defp row(tensor, dims, axis, fun, whole, tolerance) do
    case for({n, other} <- Enum.with_index(dims), other != axis, n > 1, do: {other, n}) do
      [] ->
        []

      axes ->
        {other, n} = Enum.random(axes)
        alone = host(fun.(Nx.slice_along_axis(tensor, n - 1, 1, axis: other)))
        # An axis of the result less, where the axis is gone that comes before.
        place = if Array.rank(whole) < length(dims) and axis < other, do: other - 1, else: other
        sizes = R.dims(whole)

        tables =
          for {{size, stride}, i} <- sizes |> Enum.zip(R.strides(sizes)) |> Enum.with_index(),
              do: if(i == place, do: R.affine(1, (n - 1) * stride, 0), else: R.affine(size, 0, stride))

        compare("row #{n - 1} of axis #{other} alone", alone, R.move(whole, tables), tolerance)
    end
  end
end
