defmodule EMLX.Bench.Small do
  @moduledoc """
  The cases of the part `small`: functions of Nx on a few elements, and loops of `Nx.Defn` whose steps have a known
  number of operations. Their counterparts in `bench/peers/small.py` have the same names.

  A step keeps its state bounded. Floats contract, and integers are masked to 16 bits, so that every number of steps
  has a result that can be compared.
  """

  import Nx.Defn

  @doc """
  The operations, `{name, types of inputs, function}` each. A type of an input is `{type, shape}`. The results of names
  that begin with `random` depend on the generator.
  """
  def operations do
    additions() ++ others() ++ random()
  end

  defp additions do
    for type <- [:f32, :s64], n <- [1, 8, 64, 1024], input = {type, {n}}, do: {"add", [input, input], &Nx.add/2}
  end

  defp others do
    for(input <- [f32: {8}, f32: {64}, f32: {1024}, s64: {64}], do: {"sum", [input], &Nx.sum/1}) ++
      for(input <- [f32: {64}, s64: {8}], do: {"slice", [input], &half/1}) ++
      for(input <- [f32: {4, 4}, s64: {4, 4}], do: {"dot", [input, input], &Nx.dot/2}) ++
      for(input <- [f32: {8}, f32: {64}, s64: {64}], do: {"chain of ten", [input, input], &chain/2})
  end

  defp random do
    [
      {"random normal", [{:u32, {2}}], fn key -> key |> Nx.Random.normal() |> elem(0) end},
      {"random split", [{:u32, {2}}], &Nx.Random.split/1}
    ]
  end

  defp half(x), do: Nx.slice(x, [div(Nx.size(x), 4)], [div(Nx.size(x), 2)])

  # Ten operations, one after another.
  defp chain(x, y) do
    x
    |> Nx.add(y)
    |> Nx.max(y)
    |> Nx.multiply(y)
    |> Nx.subtract(x)
    |> Nx.abs()
    |> Nx.min(y)
    |> Nx.negate()
    |> Nx.add(x)
    |> Nx.max(x)
    |> Nx.subtract(y)
  end

  @doc """
  The loops of counted steps, `{operations in a step, type of the state}` each. A step's operations are beside the
  counter's addition and comparison. The loop of 0 operations returns its counter.
  """
  def counted do
    [{0, {:s64, {}}}, {2, {:f32, {}}}, {2, {:s64, {}}}] ++
      for type <- [:f32, :s64], n <- [8, 64], count <- [2, 7, 30], do: {count, {type, {n}}}
  end

  @doc "The loop of `steps` steps of `count` operations, as a function of its state."
  def counted(0, steps), do: &counter(&1, steps: steps)
  def counted(2, steps), do: &two(&1, steps: steps)
  def counted(7, steps), do: &seven(&1, steps: steps)
  def counted(30, steps), do: &thirty(&1, steps: steps)

  defn counter(x, opts \\ []) do
    {i, _} =
      while {i = x * 0, steps = opts[:steps]}, i < steps do
        {i + 1, steps}
      end

    i
  end

  defn two(x, opts \\ []) do
    {x, _, _} =
      while {x, i = 0, steps = opts[:steps]}, i < steps do
        {step_of_two(x), i + 1, steps}
      end

    x
  end

  defn seven(x, opts \\ []) do
    {x, _, _} =
      while {x, i = 0, steps = opts[:steps]}, i < steps do
        {step_of_seven(x), i + 1, steps}
      end

    x
  end

  defn thirty(x, opts \\ []) do
    {x, _, _} =
      while {x, i = 0, steps = opts[:steps]}, i < steps do
        {step_of_thirty(x), i + 1, steps}
      end

    x
  end

  deftransformp step_of_two(x) do
    if float?(x),
      do: x |> Nx.multiply(0.999) |> Nx.add(0.01),
      else: x |> Nx.multiply(5) |> Nx.bitwise_and(0xFFFF)
  end

  deftransformp step_of_seven(x) do
    n = Nx.size(x)

    if float?(x) do
      mean = x |> Nx.sum() |> Nx.multiply(1 / n)
      x |> Nx.subtract(mean) |> Nx.tanh() |> Nx.multiply(0.5) |> Nx.max(-0.4) |> Nx.add(mean)
    else
      few = x |> Nx.sum() |> Nx.bitwise_and(1023)
      y = x |> Nx.add(few) |> Nx.multiply(5)
      y |> Nx.bitwise_xor(few) |> Nx.right_shift(1) |> Nx.bitwise_and(0xFFFF)
    end
  end

  deftransformp step_of_thirty(x) do
    if float?(x), do: thirty_of_floats(x, Nx.size(x)), else: thirty_of_integers(x, Nx.size(x))
  end

  # A normalization, gates, a rotation and a softmax.
  defp thirty_of_floats(x, n) do
    centered = Nx.subtract(x, x |> Nx.sum() |> Nx.multiply(1 / n))
    variance = centered |> Nx.multiply(centered) |> Nx.sum() |> Nx.multiply(1 / n)
    normal = variance |> Nx.add(1.0) |> Nx.rsqrt() |> Nx.multiply(centered)
    gate = Nx.sigmoid(normal)
    new = Nx.tanh(x)
    mixed = new |> Nx.multiply(gate) |> Nx.add(x |> Nx.subtract(new) |> Nx.multiply(0.5))
    clipped = Nx.divide(mixed, mixed |> Nx.abs() |> Nx.max(1.0))
    chosen = mixed |> Nx.greater(0.0) |> Nx.select(mixed, clipped)
    rotated = rotate(chosen, n)
    powers = rotated |> Nx.subtract(Nx.reduce_max(rotated)) |> Nx.exp()
    shares = Nx.divide(powers, Nx.sum(powers))
    rotated |> Nx.multiply(0.9) |> Nx.add(shares)
  end

  # Sums, shifts, a rotation and a choice.
  defp thirty_of_integers(x, n) do
    few = x |> Nx.sum() |> Nx.bitwise_and(1023)
    a = x |> Nx.multiply(5) |> Nx.add(few) |> Nx.bitwise_and(0xFFFF)
    b = a |> Nx.left_shift(3) |> Nx.bitwise_xor(a) |> Nx.bitwise_and(0xFFFF)
    c = b |> Nx.right_shift(2) |> Nx.bitwise_xor(b)
    rotated = rotate(c, n)
    largest = Nx.reduce_max(rotated)
    d = largest |> Nx.subtract(rotated) |> Nx.multiply(3) |> Nx.bitwise_and(0xFFFF)
    chosen = d |> Nx.less(few) |> Nx.select(rotated, d)
    e = chosen |> Nx.add(7) |> Nx.quotient(3) |> Nx.remainder(1021)
    f = e |> Nx.max(11) |> Nx.min(1009) |> Nx.multiply(29)
    f |> Nx.bitwise_xor(rotated) |> Nx.add(e) |> Nx.subtract(few) |> Nx.abs() |> Nx.bitwise_and(0xFFFF)
  end

  # Three operations.
  defp rotate(x, n) do
    half = div(n, 2)
    Nx.concatenate([Nx.slice(x, [half], [n - half]), Nx.slice(x, [0], [half])])
  end

  defp float?(x), do: Nx.Type.float?(Nx.type(x))

  @doc """
  The loops whose condition is data, `{name, type of the state, function}` each. The function returns the number of
  steps.
  """
  def conditional do
    [
      {"halving", {:f32, {64}}, &halving/1},
      {"congruence", {:s64, {}}, &congruence/1}
    ]
  end

  @doc "Shrinks the state by a thousandth a step, until its sum is 1."
  defn halving(x) do
    {_, steps} =
      while {x = Nx.abs(x) + 1, steps = 0}, Nx.sum(x) > 1 do
        {x * 0.999, steps + 1}
      end

    steps
  end

  @doc "Steps of a linear congruential generator, until a number is below 2¹⁸."
  defn congruence(x) do
    {_, steps} =
      while {x = x + 2 ** 30, steps = 0}, x >= 262_144 do
        {Nx.bitwise_and(x * 1_103_515_245 + 12_345, 0x7FFFFFFF), steps + 1}
      end

    steps
  end

  @doc "Inputs of some types, the same each time, on the default backend."
  def inputs(types) do
    for {{type, shape}, i} <- Enum.with_index(types) do
      key = Nx.Random.fold_in(Nx.Random.key(7), i)

      case type do
        :f32 -> key |> Nx.Random.uniform_split(-1.7, 1.7, shape: shape)
        :s64 -> key |> Nx.Random.uniform_split(0, 1000, shape: shape) |> Nx.floor() |> Nx.as_type(:s64)
        :u32 -> key
      end
    end
  end

  @doc "What a type of an input is called: `f32[4][4]`."
  def text({type, shape}), do: Enum.map_join([type | Enum.map(Tuple.to_list(shape), &"[#{&1}]")], "", &to_string/1)
end
