defmodule EMLX.Backend.Window do
  @moduledoc false
  # Sliding windows for EMLX.Backend. Every list has one entry for each axis of the tensor.

  alias EMLX.Backend
  alias EMLX.Backend.{Complex128, Mixed, Type}
  alias EMLX.Ops
  alias Nx.Tensor, as: T

  @doc "Returns the `:sum`, `:prod`, `:max` or `:min` of each window of an array that stores `type`."
  def reduce(reduction, array, {kind, size} = type, window, opts) when size < 8 and reduction in [:max, :min] do
    # The padding is the limit of the type, not of the wider dtype that stores it.
    {low, high} = Type.range(kind, size)
    limit = Type.constant(if(reduction == :max, do: low, else: high), Type.dtype(type), [])
    array = pad(array, limit, opts[:padding])
    reduce(reduction, array, {kind, 8}, window, Keyword.put(opts, :padding, none(opts[:padding])))
  end

  def reduce(reduction, array, _type, window, opts) do
    attributes = attributes(reduction, window, opts)
    dilation = opts[:window_dilations] || Enum.map(attributes.window, fn _ -> 1 end)
    Ops.run({:window_reduce, Map.put(attributes, :dilation, dilation)}, [array])
  end

  defp attributes(reduction, window, opts) do
    {low, high} = Enum.unzip(opts[:padding])
    window = Tuple.to_list(window)
    %{reduction: reduction, window: window, strides: opts[:strides], padding_low: low, padding_high: high}
  end

  @doc "Returns all windows of an array padded with `value`: the axes of the result, then those of the window."
  def view(array, value, window, opts) do
    op =
      {:window_view,
       %{
         window: Tuple.to_list(window),
         strides: opts[:strides],
         dilation: opts[:window_dilations] || Enum.map(opts[:strides], fn _ -> 1 end)
       }}

    Ops.run(op, [pad(array, value, opts[:padding])])
  end

  defp none(padding), do: Enum.map(padding, fn _ -> {0, 0} end)

  defp pad(array, value, padding) do
    if Enum.all?(padding, &(&1 == {0, 0})) do
      array
    else
      {low, high} = Enum.unzip(padding)
      Ops.run({:pad_interior, %{low: low, high: high, interior: Enum.map(low, fn _ -> 0 end)}}, [array, value])
    end
  end

  @doc """
  Returns a tensor filled with `init`, plus each element of `source` at the position of its window's extreme in
  `tensor`, the last one of equals. An element whose extreme is in the padding, whose value is `init`, is dropped.
  """
  def scatter(reduction, %T{type: type}, tensor, source, init, window, opts) do
    # `init` has the bits of the result's type, whatever type the sums are computed in.
    work = Mixed.work_type(:add, [source, %{init | type: type}], type)

    attributes = Map.merge(attributes(reduction, window, opts), %{ties: :last, pads_with_init: true})
    inputs = [Backend.operand(tensor, type), Backend.operand(source, work), to_scalar(Backend.operand(init, type))]
    Mixed.rounded(Ops.run({:window_scatter, attributes}, inputs), work, type)
  end

  defp to_scalar(array), do: Ops.run({:reshape, %{shape: []}}, [array])

  @doc "Returns the windows of `view/4` with the axes of the window first."
  def slices(%T{type: {:c, 128}} = tensor, acc, window, opts), do: Complex128.windows(tensor, acc, window, opts)

  def slices(%T{type: type} = tensor, acc, window, opts) do
    rank = tuple_size(window)
    windows = view(Backend.operand(tensor, type), Backend.to_array(acc), window, opts)
    axes = Enum.to_list(rank..(2 * rank - 1)//1) ++ Enum.to_list(0..(rank - 1)//1)
    Ops.run({:transpose, %{axes: axes}}, [windows])
  end
end
