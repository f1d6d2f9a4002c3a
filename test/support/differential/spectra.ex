defmodule EMLX.Differential.Spectra do
  @moduledoc """
  Fourier and Hadamard transforms, for the differential suite: single frequencies by their sums in f64, all of them
  where there are few.
  """

  alias EMLX.{Array, Ops, Tolerance}
  alias EMLX.Differential.{Case, Draw, Input, Shapes}
  alias EMLX.Differential.Reference, as: R

  @few 64

  def build(:rfft, %{dtype: :c64}), do: :skip

  def build(name, draw) when name in [:fft, :ifft, :rfft, :irfft] do
    draw = Shapes.lined(draw)
    dtype = if name == :rfft or (name != :irfft and draw.dtype != :c64), do: draw.dtype, else: :c64
    shape = if Enum.any?(draw.shape, &(&1 == 0)), do: [3, 4], else: draw.shape
    axis = Enum.random(0..(length(shape) - 1))
    given = Enum.at(shape, axis)

    n =
      Enum.random(
        if name == :irfft,
          do: [max(2 * (given - 1), 2), 2 * given - 1 + rem(given, 2)],
          else: [given, given, given + 3, max(given - 1, 1)]
      )

    norm = Enum.random([:backward, :ortho, :forward])
    op = {name, %{sizes: [n], axes: [Draw.written(axis, length(shape))], norm: norm}}
    forward = name in [:fft, :rfft]
    count = if name == :rfft, do: div(n, 2) + 1, else: n
    places = places(count)

    factor =
      case {norm, forward} do
        {:ortho, _} -> 1 / :math.sqrt(n)
        {:backward, true} -> 1.0
        {:forward, false} -> 1.0
        _ -> 1 / n
      end

    rows =
      for other <- Enum.take(Enum.shuffle(Enum.to_list(0..(length(shape) - 1)) -- [axis]), 1),
          do: {:rows, {other, other}}

    Case.checked(
      op,
      [Input.new(shape, dtype, {-1, 1}, draw.layout)],
      scaled(:summed, :f32, n, factor),
      fn [x] ->
        {rows, _} = R.rows(x, [axis])
        wants = for k <- places, do: frequency(name, rows, n, k, factor)
        want = together(wants)

        fn [have] ->
          {lines, _} = R.rows(have, [axis])
          chosen = Shapes.cut(lines, 1, R.table(places))

          [{"frequencies #{inspect(places, charlists: :as_lists)}", chosen, want, scaled(:summed, :f32, n, factor)}] ++
            length_of(have, List.replace_at(shape, axis, count))
        end
      end,
      rows
    )
  end

  def build(name, draw) when name in [:fftshift, :ifftshift] do
    draw = Shapes.lined(draw)
    axes = Input.some(Enum.to_list(0..(length(draw.shape) - 1)))
    written = Enum.map(axes, &Draw.written(&1, length(draw.shape)))

    Case.values({name, %{axes: written}}, [Draw.input(draw, :special)], :bits, fn [x] ->
      Enum.reduce(axes, x, fn axis, x ->
        n = Enum.at(draw.shape, axis)
        half = if name == :fftshift, do: n - div(n, 2), else: div(n, 2)
        Shapes.cut(x, axis, Shapes.modulo(R.affine(n, half, 1), n))
      end)
    end)
  end

  def build(:hadamard_transform, draw) do
    shape =
      Draw.by_size(draw,
        small: [[1], [2], [3, 8], [7, 64], [2, 3, 16], [31, 1024]],
        large: [[1025, 64], [3, 65_536], [1, 8192], [65_537, 2]],
        empty: [[0, 4]]
      )

    n = List.last(shape)
    scale = Enum.random([nil, 0.25])
    by = scale || 1 / :math.sqrt(n)

    Case.values(
      {:hadamard_transform, %{scale: scale}},
      [Draw.input(draw, {-1, 1}, shape)],
      scaled(:summed, floats(draw.dtype), n, by),
      fn [x] ->
        x |> R.f64() |> R.shaped([div(R.size(shape), n), n]) |> butterflies(1) |> Ops.multiply(by) |> R.shaped(shape)
      end
    )
  end

  def build(_name, _draw), do: nil

  # Errors are of the size of all terms together, whatever is left of them.
  defp scaled(class, dtype, n, factor), do: Tolerance.scaled(class, dtype, max(1.0, :math.sqrt(n)) * factor)

  # Integers give f32.
  defp floats(dtype), do: if(dtype in [:f16, :bf16], do: dtype, else: :f32)

  defp places(count) do
    if count <= @few,
      do: Enum.to_list(0..(count - 1)),
      else: Enum.uniq([0, 1, div(count, 2), count - 1] ++ for(_ <- 1..6, do: Enum.random(0..(count - 1))))
  end

  # Rows fitted to a length, with zeros behind.
  defp fitted(rows, n) do
    [_, given] = R.dims(rows)
    table = Shapes.inside(R.affine(n, 0, 1), 0, given - 1)
    [count, _] = R.dims(rows)
    R.move(rows, [R.affine(count, 0, given), table], Array.scalar(0, Array.dtype(rows)))
  end

  # One frequency of each row, as {real, imaginary} or, of a real result, one array.
  defp frequency(:irfft, rows, n, t, factor) do
    count = div(n, 2) + 1
    {re, im} = Input.on(%Input{values: rows, layout: :contiguous, storage: rows, view: & &1}, :cpu) |> R.split()
    {re, im} = {fitted(re, count), fitted(im, count)}
    {cos, sin} = angles(count, t, n)
    terms = Ops.subtract(Ops.multiply(re, cos), Ops.multiply(im, sin))
    # Of a pair of conjugates only one is there.
    single = R.table(for k <- 0..(count - 1), do: if(k == 0 or 2 * k == n, do: 1, else: 2))
    Ops.multiply(R.sum(Ops.multiply(terms, R.f64(R.shaped(single, [1, count])))), factor)
  end

  defp frequency(name, rows, n, k, factor) do
    sign = if name == :ifft, do: 1.0, else: -1.0
    {cos, sin} = angles(n, k, n)
    sin = Ops.multiply(sin, sign)
    times = fn x, y -> Ops.multiply(R.sum(Ops.multiply(fitted(x, n), y)), factor) end

    case R.split(rows) do
      {re, im} -> {Ops.subtract(times.(re, cos), times.(im, sin)), Ops.add(times.(re, sin), times.(im, cos))}
      re -> {times.(R.f64(re), cos), times.(R.f64(re), sin)}
    end
  end

  # cos and sin of 2π·i·k/n; the product is taken modulo n in integers.
  defp angles(count, k, n) do
    turn = Ops.multiply(R.f64(Shapes.modulo(R.affine(count, 0, k), n)), 2 * :math.pi() / n)
    {R.shaped(Ops.cos(turn), [1, count]), R.shaped(Ops.sin(turn), [1, count])}
  end

  defp together([{_, _} | _] = parts),
    do: {together(Enum.map(parts, &elem(&1, 0))), together(Enum.map(parts, &elem(&1, 1)))}

  defp together(parts), do: Ops.concatenate(Enum.map(parts, &R.column/1), axis: 1)

  defp length_of(have, shape) do
    if R.dims(have) == shape, do: [], else: [{"shape", R.table(R.dims(have)), R.table(shape), :exact}]
  end

  defp butterflies(rows, step) do
    [count, n] = R.dims(rows)

    if step >= n do
      rows
    else
      blocks = R.shaped(rows, [count * div(n, 2 * step), 2, step])

      [a, b] =
        for i <- [0, 1], do: R.move(blocks, [R.affine(hd(R.dims(blocks)), 0, 2 * step), R.affine(step, i * step, 1)])

      both = for x <- [Ops.add(a, b), Ops.subtract(a, b)], do: R.shaped(x, [hd(R.dims(blocks)), 1, step])
      butterflies(R.shaped(Ops.concatenate(both, axis: 1), [count, n]), 2 * step)
    end
  end
end
