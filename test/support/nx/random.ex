defmodule EMLX.Random do
  @moduledoc """
  Random input for tests, from the generator of the calling process (`:rand`). Tensors are made on the binary backend.
  """

  @integers for kind <- [:s, :u], size <- [2, 4, 8, 16, 32, 64], do: {kind, size}
  @floats [{:f, 8}, {:f8_e4m3fn, 8}, {:bf, 16}, {:f, 16}, {:f, 32}, {:f, 64}]

  def integer_types, do: @integers
  def float_types, do: there(@floats)
  def real_types, do: @integers ++ float_types()
  def complex_types, do: there([{:c, 64}, {:c, 128}])
  def types, do: real_types() ++ complex_types()

  @doc "One of a list. Not of the types f64 and c128 where the device under test has none."
  def one_of(list) do
    list = there(list)
    Enum.at(list, :rand.uniform(length(list)) - 1)
  end

  defp there(list) do
    if EMLX.Golden.device() == :cpu, do: list, else: Enum.reject(list, &(&1 in [:f64, {:f, 64}, {:c, 128}]))
  end

  @doc "An integer of a range."
  def integer(first..last//_), do: first + :rand.uniform(last - first + 1) - 1

  @doc "True with a probability."
  def chance(probability), do: :rand.uniform() < probability

  @doc "A shape of a rank in `ranks` with sizes in `sizes`."
  def shape(ranks \\ 0..4, sizes \\ 1..4) do
    List.to_tuple(for _ <- 1..integer(ranks)//1, do: integer(sizes))
  end

  @doc "A shape that broadcasts to `shape`: axes left out in front, or of size 1."
  def broadcastable(shape) do
    dims = Tuple.to_list(shape)
    kept = Enum.drop(dims, integer(0..length(dims)))
    List.to_tuple(for dim <- kept, do: if(chance(0.3), do: 1, else: dim))
  end

  @doc """
  A tensor. Options:

    * `:range` - of the numbers, `{-10, 10}` by default; what a type cannot hold is left out
    * `:special` - the share of NaN, infinities and the type's own limits, 0 by default
    * `:distinct` - no two elements are equal, if the type has so many
  """
  def tensor(shape, type, opts \\ []) do
    size = Tuple.product(shape)
    special = Keyword.get(opts, :special, 0)

    numbers =
      if opts[:distinct] do
        {_, high} = integer_limits(type, opts)
        low = max(high - size, elem(integer_limits(type, opts), 0))
        Enum.take(Enum.shuffle(Enum.to_list(low..high)), size)
      else
        for _ <- 1..size//1, do: if(chance(special), do: special(type), else: number(type, opts))
      end

    numbers = numbers ++ for(_ <- 1..(size - length(numbers))//1, do: number(type, opts))

    numbers
    |> Enum.map(&Nx.tensor(&1, type: type, backend: Nx.BinaryBackend))
    |> Enum.map(&Nx.to_binary/1)
    |> :erlang.list_to_bitstring()
    |> from_bits(shape, type)
  end

  defp from_bits(bits, shape, type) do
    template = Nx.template(shape, type)
    Nx.BinaryBackend.from_binary(template, bits, [])
  end

  @doc "A number that a type can hold."
  def number(type, opts \\ [])

  def number({kind, _} = type, opts) when kind in [:s, :u] do
    {low, high} = integer_limits(type, opts)
    integer(low..high)
  end

  def number({:c, _}, opts), do: Complex.new(number({:f, 32}, opts), number({:f, 32}, opts))

  def number(_float, opts) do
    {low, high} = Keyword.get(opts, :range, {-10, 10})
    # Whole and half numbers now and then, where rounding has its edges.
    number = low + (high - low) * :rand.uniform()
    if chance(0.2), do: min(max(round(number * 2) / 2, low * 1.0), high * 1.0), else: number
  end

  defp integer_limits({kind, size}, opts) when kind in [:s, :u] do
    {low, high} = Keyword.get(opts, :range, {-10, 10})
    {smallest, largest} = limits(kind, size)
    {max(ceil(low), smallest), min(floor(high), largest)}
  end

  defp integer_limits(_float, opts) do
    {low, high} = Keyword.get(opts, :range, {-10, 10})
    {ceil(low), floor(high)}
  end

  defp limits(:s, size), do: {-Bitwise.bsl(1, size - 1), Bitwise.bsl(1, size - 1) - 1}
  defp limits(:u, size), do: {0, Bitwise.bsl(1, size) - 1}

  defp special({kind, size}) when kind in [:s, :u] do
    {low, high} = limits(kind, size)
    one_of([low, high, 0, 1, if(kind == :s, do: -1, else: 1)])
  end

  defp special({:c, _}) do
    part = fn -> one_of([:nan, :infinity, :neg_infinity, 0.0, 1.0]) end
    Complex.new(part.(), part.())
  end

  defp special({:f8_e4m3fn, 8}), do: one_of([:nan, 0.0, 1.0])
  defp special(_float), do: one_of([:nan, :infinity, :neg_infinity, 0.0, 1.0])
end
