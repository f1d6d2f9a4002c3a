defmodule EMLX.Differential.Creation do
  @moduledoc "Arrays from attributes alone, and random ones, for the differential suite."

  import Bitwise

  alias EMLX.{Array, Ops, Tolerance}
  alias EMLX.Differential.{Case, Draw, Input, Shapes}
  alias EMLX.Differential.Reference, as: R

  @floats [:f16, :bf16, :f32, :f64]
  @counted [:u8, :u16, :u32, :u64, :s8, :s16, :s32, :s64]
  @drawn [:f16, :bf16, :f32]

  # ---- from attributes ----

  def build(:constant, draw) do
    value = Enum.random([0, 1, 7] ++ if(draw.dtype in @floats, do: [0.1, -2.5, :infinity, :nan], else: []))

    Case.values({:constant, %{value: value, dtype: draw.dtype}}, [], :bits, fn [] ->
      Array.from_list(value, draw.dtype)
    end)
  end

  def build(name, draw) when name in [:zeros, :ones] do
    number = if name == :zeros, do: 0, else: 1

    Case.values({name, %{shape: draw.shape, dtype: draw.dtype}}, [], :bits, fn [] ->
      R.move(Array.from_list([number], draw.dtype), for(n <- draw.shape, do: R.affine(n, 0, 0)))
    end)
  end

  def build(:full, draw) do
    own = Enum.random([[], Enum.take(draw.shape, -1), Enum.map(draw.shape, &Enum.random([&1, 1]))])

    Case.values({:full, %{shape: draw.shape, dtype: draw.dtype}}, [Draw.input(draw, {0, 9}, own)], :bits, fn [value] ->
      R.spread(value, draw.shape)
    end)
  end

  def build(:iota, draw) do
    # What the type can count.
    shape = for n <- draw.shape, do: min(n, countable(draw.dtype))
    rank = length(shape)

    axis =
      if rank == 0 or (R.size(shape) <= countable(draw.dtype) and Draw.coin()),
        do: nil,
        else: Enum.random(0..(rank - 1))

    op = {:iota, %{shape: shape, axis: axis && Draw.written(axis, rank), dtype: draw.dtype}}

    Case.values(op, [], :exact, fn [] ->
      strides = if axis, do: shape |> Enum.map(fn _ -> 0 end) |> List.replace_at(axis, 1), else: R.strides(shape)
      R.index(for {n, stride} <- Enum.zip(shape, strides), do: R.affine(n, 0, stride))
    end)
  end

  def build(:arange, draw) do
    n = min(R.size(draw.shape), countable(draw.dtype))
    {start, step} = Enum.random([{0.0, 1.0}] ++ if(draw.dtype in @floats, do: [{-4.0, 0.25}, {8.0, -0.5}], else: []))
    {start, step} = if n > 500 and draw.dtype in [:f16, :bf16], do: {0.0, 1.0}, else: {start, step}
    op = {:arange, %{start: start, stop: start + n * step, step: step, dtype: draw.dtype}}

    Case.values(op, [], :rounded, fn [] ->
      Ops.add(Ops.multiply(R.f64(R.affine(n, 0, 1)), step), start)
    end)
  end

  def build(:linspace, draw) do
    n = R.size(draw.shape)
    {start, stop} = if draw.dtype in @floats, do: Enum.random([{0.0, 1.0}, {-3.0, 9.0}]), else: {0.0, (n - 1) * 1.0}
    n = if draw.dtype in @floats, do: n, else: min(n, min(countable(draw.dtype), 1025))
    stop = if draw.dtype in @floats, do: stop, else: max(n - 1, 0) * 1.0
    op = {:linspace, %{start: start, stop: stop, num: n, dtype: draw.dtype}}

    Case.values(op, [], :rounded, fn [] ->
      step = if n > 1, do: (stop - start) / (n - 1), else: 0.0
      Ops.add(Ops.multiply(R.f64(R.affine(n, 0, 1)), step), start)
    end)
  end

  def build(name, draw) when name in [:eye, :tri] do
    {n, m} =
      Draw.by_size(draw,
        small: [{1, 1}, {7, 31}, {31, 7}, {65, 65}, {1025, 3}],
        large: [{1025, 1025}, {65_537, 3}, {3, 65_537}],
        empty: [{0, 3}, {3, 0}]
      )

    k = Enum.random([0, 1, -1, 5, -7])

    Case.values({name, %{n: n, m: m, k: k, dtype: draw.dtype}}, [], :bits, fn [] ->
      [row, column] = R.coordinates([n, m])
      over = Ops.broadcast_to(Ops.subtract(column, row), [n, m])
      k = Array.scalar(k, :s64)
      Ops.astype(if(name == :eye, do: Ops.equal(over, k), else: Ops.less_equal(over, k)), draw.dtype)
    end)
  end

  # ---- random ----

  def build(:random_key, _draw) do
    seed = Enum.random([0, 1, 42, 0xFFFFFFFF, 0x100000000, 0xFFFFFFFFFFFFFFFF, :rand.uniform(1 <<< 62)])

    Case.values({:random_key, %{seed: seed}}, [], :exact, fn [] ->
      Array.from_list([seed >>> 32, seed &&& 0xFFFFFFFF], :u32)
    end)
  end

  def build(:random_split, draw) do
    num = Draw.by_size(draw, small: [1, 2, 3, 31, 1025], large: [65_537])
    {words, key} = key()
    Case.values({:random_split, %{num: num}}, [key], :exact, fn _ -> bits(words, [num, 2], 4) end)
  end

  def build(:random_bits, draw) do
    width = Enum.random([1, 2, 4])
    {words, key} = key()

    Case.values({:random_bits, %{shape: draw.shape, width: width}}, [key], :exact, fn _ ->
      bits(words, draw.shape, width)
    end)
  end

  def build(:random_permutation, draw) do
    draw = Shapes.lined(draw)
    axis = Draw.axis(draw)
    {_, key} = key()
    op = {:random_permutation, %{axis: Draw.written(axis, length(draw.shape))}}

    # The same elements, the others of a line going along.
    drawn(op, [Draw.input(draw, :any), key], :bits, fn [x, _], have ->
      if R.size(draw.shape) == 0 do
        []
      else
        n = Enum.at(draw.shape, axis)
        others = Enum.to_list(0..(length(draw.shape) - 1)) -- [axis]

        [a, b] =
          for array <- [x, have] do
            lines = array |> R.permute([axis | others]) |> R.shaped([n, div(R.size(draw.shape), n)])
            lines |> weighed() |> R.shaped([1, n]) |> R.sort()
          end

        [{"lines in order", b, a, :exact}]
      end
    end)
  end

  def build(:random_randint, %{dtype: dtype} = draw) when dtype in @counted do
    {_, key} = key()
    {low, high} = {3, 100}
    bounds = for n <- [low, high], do: Input.of(Array.scalar(n, dtype), :contiguous)

    drawn({:random_randint, %{shape: draw.shape, dtype: dtype}}, bounds ++ [key], :exact, fn _, have ->
      between(have, low, high - 1) ++ moments(have, (low + high - 1) / 2, (high - low) / :math.sqrt(12))
    end)
  end

  def build(:random_bernoulli, draw) do
    {_, key} = key()
    p = Enum.random([0.0, 1.0, 0.3])

    drawn({:random_bernoulli, %{shape: draw.shape}}, [number(p), key], :exact, fn _, have ->
      moments(have, p, :math.sqrt(p * (1 - p)))
    end)
  end

  def build(:random_categorical, draw) do
    {_, key} = key()
    classes = Enum.random([1, 2, 5])
    logits = for i <- 1..classes, do: i * 0.3
    shape = Enum.take(draw.shape, 2)
    input = Input.of(Ops.broadcast_to(Array.from_list(logits, :f32), shape ++ [classes]), draw.layout)
    weights = Enum.map(logits, &:math.exp/1)
    shares = Enum.map(weights, &(&1 / Enum.sum(weights)))
    mean = shares |> Enum.with_index() |> Enum.map(fn {p, i} -> p * i end) |> Enum.sum()
    square = shares |> Enum.with_index() |> Enum.map(fn {p, i} -> p * i * i end) |> Enum.sum()

    drawn({:random_categorical, %{axis: -1, shape: shape}}, [input, key], :exact, fn _, have ->
      between(have, 0, classes - 1) ++ moments(have, mean, :math.sqrt(max(square - mean * mean, 0.0)))
    end)
  end

  def build(:random_randint, _draw), do: :skip

  def build(:random_uniform, %{dtype: dtype} = draw) when dtype in @drawn do
    {words, key} = key()
    {low, high} = {-1.0, 3.0}
    op = {:random_uniform, %{shape: draw.shape, dtype: dtype}}

    drawn(op, [number(low), number(high), key], :rounded, fn _, have ->
      exact =
        if dtype == :f32 do
          unit = Ops.divide(R.f64(bits(words, draw.shape, 4)), 4_294_967_295.0)
          [{"numbers", have, Ops.add(Ops.multiply(unit, high - low), low), :rounded}]
        else
          []
        end

      exact ++ between(have, low, high) ++ moments(have, (low + high) / 2, (high - low) / :math.sqrt(12))
    end)
  end

  @distributions [:random_normal, :random_laplace, :random_gumbel, :random_truncated_normal, :random_uniform]
  def build(name, %{dtype: dtype}) when name in @distributions and dtype not in @drawn, do: :skip

  def build(:random_normal, draw) do
    {_, key} = key()
    op = {:random_normal, %{shape: draw.shape, dtype: draw.dtype, loc: 2.5, scale: 0.5}}
    drawn(op, [key], :rounded, fn _, have -> between(have, 2.5 - 6, 2.5 + 6) ++ moments(have, 2.5, 0.5) end)
  end

  def build(:random_laplace, draw) do
    {_, key} = key()
    op = {:random_laplace, %{shape: draw.shape, dtype: draw.dtype, loc: 2.5, scale: 0.5}}

    drawn(op, [key], :rounded, fn _, have ->
      between(have, 2.5 - 30, 2.5 + 30) ++ moments(have, 2.5, :math.sqrt(0.5))
    end)
  end

  def build(:random_gumbel, draw) do
    {_, key} = key()
    op = {:random_gumbel, %{shape: draw.shape, dtype: draw.dtype}}
    drawn(op, [key], :rounded, fn _, have -> between(have, -10, 60) ++ moments(have, 0.57722, 1.2825) end)
  end

  def build(:random_truncated_normal, draw) do
    {_, key} = key()
    {low, high} = {-1.0, 1.0}
    op = {:random_truncated_normal, %{shape: draw.shape, dtype: draw.dtype}}
    # The standard deviation between -1 and 1.
    drawn(op, [number(low), number(high), key], :rounded, fn _, have ->
      between(have, low, high) ++ moments(have, 0.0, 0.5396)
    end)
  end

  def build(_name, _draw), do: nil

  # ---- what they share ----

  # How far a type counts without leaving numbers out.
  defp countable(dtype) do
    case dtype do
      :bool -> 2
      :f16 -> 2048
      :bf16 -> 256
      dtype when dtype in [:f32, :c64] -> 1 <<< 24
      :f64 -> 1 <<< 53
      dtype -> dtype |> Input.range() |> elem(1)
    end
  end

  defp number(value), do: Input.of(Array.scalar(value, :f32), :contiguous)

  defp key do
    words = for _ <- 1..2, do: :rand.uniform(1 <<< 32) - 1
    {words, Input.of(Array.from_list(words, :u32), Enum.random([:contiguous, :sliced, :reversed]))}
  end

  # Random numbers: what `look` wants of them, and the same on the CPU from the same key.
  defp drawn(op, inputs, tolerance, look) do
    Case.checked(op, inputs, tolerance, fn arrays ->
      expected = Ops.run(op, arrays, device: :cpu)

      fn [have] ->
        [{"the CPU's", have, expected, tolerance} | look.(arrays, have)]
      end
    end)
  end

  defp between(have, low, high) do
    x = R.flat(R.f64(have))
    slack = if Array.dtype(have) in [:f16, :bf16], do: 0.02 * max(abs(low), abs(high)), else: 0.0
    inside = Ops.logical_and(Ops.greater_equal(x, low - slack), Ops.less_equal(x, high + slack))
    [{"within #{low} and #{high}", inside, R.full(1, R.dims(inside), :bool), :exact}]
  end

  # Mean and deviation, where there are numbers enough: within six deviations of theirs.
  defp moments(have, mean, deviation) do
    n = Array.size(have)

    if n < 1000 do
      []
    else
      x = R.shaped(R.f64(have), [1, n])
      found = Ops.divide(R.sum(x), n * 1.0)
      spread = Ops.sqrt(Ops.divide(R.sum(Ops.square(Ops.subtract(x, R.column(found)))), n * 1.0))
      # The types of 16 bits round the numbers, too.
      rounding = elem(Tolerance.of(:rounded, kind(have)), 1) * (abs(mean) + deviation)
      far = 6 * deviation / :math.sqrt(n) + rounding + 1.0e-9

      [
        {"mean", found, R.full(mean, [1], :f64), {far, 0.0}},
        {"deviation", spread, R.full(deviation, [1], :f64), {2 * far, 1.0e-3}}
      ]
    end
  end

  defp kind(have), do: if(Array.dtype(have) in @floats, do: Array.dtype(have), else: :f32)

  # One number for each line, which its elements and their order decide.
  defp weighed(lines) do
    [_, n] = R.dims(lines)
    words = lines |> Array.to_binary() |> widened(Array.dtype_size(Array.dtype(lines)))
    words = Array.from_binary(words, R.dims(lines), :u64)
    odd = R.affine(n, 0x1234567, 2 * 0x9E3779B1) |> Ops.astype(:u64)
    mixed = Ops.multiply(Ops.add(words, Array.scalar(1, :u64)), R.shaped(odd, [1, n]))
    R.sum(Ops.bitwise_xor(mixed, Ops.right_shift(mixed, Array.scalar(29, :u64))))
  end

  defp widened(binary, 8), do: binary
  defp widened(binary, size), do: for(<<x::little-unit(8)-size(size) <- binary>>, into: <<>>, do: <<x::little-64>>)

  # Threefry-2x32 of 20 rounds (Salmon et al., 2011), as MLX lays its words out: the first ones of all pairs, then the
  # second.
  defp bits(words, shape, width) do
    size = R.size(shape)
    length = size * width
    count = div(length + 3, 4)
    half = div(count, 2)
    kind = %{1 => :u8, 2 => :u16, 4 => :u32}[width]

    if length == 0 do
      R.full(0, shape, kind)
    else
      odd = rem(count, 2)
      {first, second} = threefry(words, R.affine(half, 0, 1), R.affine(half, half + odd, 1))
      {middle, _} = threefry(words, R.table([half]), R.table([0]))
      all = if odd == 1, do: [first, middle, second], else: [first, second]
      binary = all |> Ops.concatenate() |> Array.to_binary() |> binary_part(0, length)
      Array.from_binary(binary, shape, kind)
    end
  end

  @rotations {[13, 15, 26, 6], [17, 29, 16, 24]}

  defp threefry([k0, k1], x, y) do
    keys = {k0, k1, bxor(bxor(k0, k1), 0x1BD11BDA)}
    plus = fn array, n -> Ops.add(array, Array.scalar(n &&& 0xFFFFFFFF, :u32)) end
    [x, y] = for array <- [x, y], do: Ops.astype(array, :u32)
    start = {plus.(x, k0), plus.(y, k1)}

    for i <- 0..4, reduce: start do
      state ->
        {x, y} =
          for r <- elem(@rotations, rem(i, 2)), reduce: state do
            {x, y} ->
              x = Ops.add(x, y)

              turned =
                Ops.bitwise_or(Ops.left_shift(y, Array.scalar(r, :u32)), Ops.right_shift(y, Array.scalar(32 - r, :u32)))

              {x, Ops.bitwise_xor(turned, x)}
          end

        {plus.(x, elem(keys, rem(i + 1, 3))), plus.(y, elem(keys, rem(i + 2, 3)) + i + 1)}
    end
  end
end
