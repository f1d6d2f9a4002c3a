defmodule EMLX.Differential.Input do
  @moduledoc """
  Arrays for the differential suite: seeded values in a domain, and the same array in different layouts.

  An input knows its elements as a contiguous array on the CPU (`:values`), which references are computed from, and
  makes the array that an operation takes (`on/2`) as a view of other memory. Where a view leaves elements out, the
  memory between them holds NaN or the type's largest number, so that reading the wrong element shows.
  """

  alias EMLX.{Array, Ops}

  @enforce_keys [:values, :layout]
  defstruct [:values, :layout, :storage, :view]

  @type domain ::
          {number, number}
          | :any
          | :special
          | {:few, pos_integer}
          | {:steps, number, number, number}
          | {:sparse, number, number}

  @type t :: %__MODULE__{}

  @layouts [:contiguous, :transposed, :sliced, :broadcast, :reversed]
  @ints [:u8, :u16, :u32, :u64, :s8, :s16, :s32, :s64]

  @doc "All layouts."
  def layouts, do: @layouts

  @doc """
  An array of a shape and a type with values of a domain, to be given to an operation in a layout:

    * `{low, high}` - evenly between them; integers and booleans in what of it the type can hold
    * `:any` - all bit patterns of an integer, floats from -1000 to 1000
    * `:special` - floats from -1000 to 1000, and NaN, the infinities and both zeros among them
    * `{:few, n}` - n different whole numbers around 0
    * `{:steps, low, high, step}` - multiples of a step
    * `{:sparse, low, high}` - ones, and about a hundred other numbers

  In the layout `:broadcast` the elements are equal along one axis.
  """
  @spec new([non_neg_integer], Array.dtype(), domain, atom) :: t
  def new(shape, dtype, domain, layout \\ :contiguous)

  def new(shape, dtype, domain, :broadcast) do
    case for({size, axis} <- Enum.with_index(shape), size > 1, do: axis) do
      [] ->
        new(shape, dtype, domain, :contiguous)

      axes ->
        axis = Enum.random(axes)
        storage = values(List.replace_at(shape, axis, 1), dtype, domain)
        values = Ops.contiguous(Ops.broadcast_to(storage, shape))
        input(values, :broadcast, storage, &Ops.run({:broadcast_to, %{shape: shape}}, [&1]))
    end
  end

  def new(shape, dtype, domain, layout), do: shape |> values(dtype, domain) |> of(layout)

  @doc "An input of given values, on the CPU, in a layout that any values can have."
  @spec of(Array.t(), atom) :: t
  def of(values, layout) do
    values = Ops.contiguous(values)
    shape = Tuple.to_list(Array.shape(values))
    rank = length(shape)
    layout = if rank == 0 or 0 in shape, do: :contiguous, else: layout

    case layout do
      :transposed when rank > 1 ->
        back = Enum.to_list((rank - 1)..0//-1)
        storage = Ops.contiguous(Ops.transpose(values, back))
        input(values, :transposed, storage, &Ops.run({:transpose, %{axes: back}}, [&1]))

      sliced when sliced in [:sliced, :transposed] ->
        {last, others} = List.pop_at(shape, -1)
        start = Enum.map(shape, fn _ -> 1 end)
        stop = Enum.map(others, &(&1 + 1)) ++ [2 * last]
        strides = Enum.map(others, fn _ -> 1 end) ++ [2]
        around = Enum.map(others, &(&1 + 2)) ++ [2 * last + 1]
        canvas = Ops.broadcast_to(poison(Array.dtype(values)), around)
        storage = Ops.slice_update(canvas, values, start, stop, strides)
        slice = {:slice, %{start: start, stop: stop, strides: strides}}
        input(values, :sliced, Ops.contiguous(storage), &Ops.run(slice, [&1]))

      :reversed ->
        axes = some(Enum.to_list(0..(rank - 1)))
        storage = Ops.contiguous(Ops.flip(values, axes))
        input(values, :reversed, storage, &Ops.run({:flip, %{axes: axes}}, [&1]))

      _contiguous ->
        input(values, :contiguous, values, & &1)
    end
  end

  defp input(values, layout, storage, view) do
    EMLX.eval([values, storage])
    %__MODULE__{values: values, layout: layout, storage: storage, view: view}
  end

  @doc "The array in its layout on a device."
  @spec on(t | nil, :cpu | :gpu) :: Array.t() | nil
  def on(nil, _device), do: nil

  def on(%__MODULE__{storage: storage, view: view}, device), do: view.(Array.to_device(storage, device))

  @doc "Whether an input is of a type."
  def of_type?(%__MODULE__{values: values}, dtypes), do: Array.dtype(values) in List.wrap(dtypes)

  @doc "What a failure says of an input."
  def describe(nil), do: "nil"

  def describe(%__MODULE__{values: values, layout: layout}),
    do: "#{Array.dtype(values)}#{sizes(Array.shape(values))} #{layout}"

  @doc "A shape as text."
  def sizes(shape), do: "[" <> (shape |> Tuple.to_list() |> Enum.join(",")) <> "]"

  @doc "Some elements of a list that is not empty, at least one, in their order."
  def some(list) do
    case Enum.filter(list, fn _ -> :rand.uniform(2) == 1 end) do
      [] -> [Enum.random(list)]
      some -> some
    end
  end

  # ---- values ----

  defp values(shape, :c64, domain) do
    [re, im] = for _ <- 1..2, do: values(shape ++ [1], :f32, if(domain == :special, do: :any, else: domain))
    # Ones are real.
    im = if match?({:sparse, _, _}, domain), do: Ops.subtract(im, 1.0), else: im
    pairs = Ops.concatenate([re, im], axis: -1)
    Ops.contiguous(Ops.reshape(Ops.view(pairs, :c64), shape))
  end

  defp values(shape, :bool, domain) do
    u = uniform(shape)

    case domain do
      {:sparse, _, _} -> Ops.astype(Ops.greater_equal(u, share(shape)), :bool)
      _ -> Ops.less(u, 0.5)
    end
  end

  defp values(shape, dtype, :any) when dtype in @ints do
    width = Array.dtype_size(dtype)
    Array.from_binary(:rand.bytes(Enum.product(shape) * width), shape, dtype)
  end

  defp values(shape, dtype, domain) when dtype in @ints do
    {least, most} = range(dtype)

    case domain do
      :special -> values(shape, dtype, :any)
      {:few, n} -> whole(shape, dtype, max(-div(n, 2), least), min(div(n, 2), most))
      {:steps, low, high, _} -> whole(shape, dtype, max(ceil(low), least), min(floor(high), most))
      {:sparse, low, high} -> sparse(shape, :s64, ceil(low), floor(high) + 1) |> Ops.astype(dtype)
      {low, high} -> whole(shape, dtype, max(ceil(low), least), max(min(floor(high), most), max(ceil(low), least)))
    end
  end

  defp values(shape, dtype, domain) do
    case domain do
      :any -> between(shape, -1000, 1000)
      :special -> special(shape)
      {:few, n} -> whole(shape, :f64, -div(n, 2), div(n, 2))
      {:steps, low, high, step} -> Ops.multiply(Ops.floor(between(shape, low / step, high / step)), step * 1.0)
      {:sparse, low, high} -> sparse(shape, :f64, low, high)
      {low, high} -> between(shape, low, high)
    end
    |> Ops.astype(dtype)
  end

  defp whole(shape, dtype, low, high) do
    u = Ops.floor(Ops.multiply(uniform(shape), high - low + 1.0))
    Ops.astype(Ops.add(Ops.astype(u, :s64), Array.scalar(low, :s64)), dtype)
  end

  defp between(shape, low, high), do: Ops.add(Ops.multiply(uniform(shape), (high - low) * 1.0), low * 1.0)

  defp sparse(shape, kind, low, high) do
    other = Ops.less(uniform(shape), share(shape))
    Ops.astype(Ops.where(other, between(shape, low, high), Array.scalar(1.0, :f64)), kind)
  end

  defp share(shape), do: min(0.5, 100 / max(Enum.product(shape), 1))

  defp special(shape) do
    pick = uniform(shape)

    [:nan, :infinity, :neg_infinity, 0.0, -0.0]
    |> Enum.with_index(1)
    |> Enum.reduce(between(shape, -1000, 1000), fn {value, i}, array ->
      chosen = Ops.logical_and(Ops.greater_equal(pick, (i - 1) * 0.02), Ops.less(pick, i * 0.02))
      Ops.where(chosen, Array.scalar(value, :f64), array)
    end)
  end

  # From 0 to below 1, in f64.
  defp uniform(shape) do
    bits = Array.from_binary(:rand.bytes(4 * Enum.product(shape)), shape, :u32)
    Ops.multiply(Ops.astype(bits, :f64), 1 / 0x100000000)
  end

  @doc "The least and the largest number of an integer type."
  def range(dtype) do
    bits = 8 * Array.dtype_size(dtype)

    case Atom.to_string(dtype) do
      "u" <> _ -> {0, 2 ** bits - 1}
      "s" <> _ -> {-(2 ** (bits - 1)), 2 ** (bits - 1) - 1}
    end
  end

  defp poison(:bool), do: Array.scalar(1, :bool)
  defp poison(dtype) when dtype in @ints, do: Array.scalar(elem(range(dtype), 1), dtype)
  defp poison(:c64), do: Ops.astype(Array.scalar(:nan, :f32), :c64)
  defp poison(dtype), do: Array.scalar(:nan, dtype)
end
