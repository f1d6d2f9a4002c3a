defmodule EMLX.Fast.RoPE do
  @moduledoc """
  The block of `EMLX.Fast.rope/4`. Its arguments are x `{batch, heads, length, size}`; the offset, `{}` or `{batch}`, if
  `:offset` is nil; freqs `{dims / 2}` if `:freqs?`.
  """

  alias EMLX.Fast.Arguments

  defstruct [:dims, offset: nil, traditional: false, base: 10_000.0, scale: 1.0, freqs?: false]

  @type t :: %__MODULE__{
          dims: pos_integer,
          offset: integer | nil,
          traditional: boolean,
          base: float,
          scale: float,
          freqs?: boolean
        }

  @doc false
  # Returns {offset, freqs} from the arguments after x.
  def arguments(%{offset: offset, freqs?: false}, []), do: {offset, nil}
  def arguments(%{offset: nil, freqs?: false}, [offset]), do: {offset, nil}
  def arguments(%{offset: nil, freqs?: true}, [offset, freqs]), do: {offset, freqs}
  def arguments(%{offset: offset, freqs?: true}, [freqs]), do: {offset, freqs}

  @doc false
  def composed(block, x), do: rotate(block, x, arguments(block, []))
  @doc false
  def composed(block, x, first), do: rotate(block, x, arguments(block, [first]))
  @doc false
  def composed(block, x, first, second), do: rotate(block, x, arguments(block, [first, second]))

  @doc false
  def rotate(%{dims: dims} = block, x, {offset, freqs}) do
    type = Arguments.wide(x)
    {_batch, _heads, length, size} = x.shape
    half = div(dims, 2)

    # {length} or {batch, 1, length}
    positions = Nx.iota({length}, type: type)
    positions = Nx.multiply(Nx.add(positions, offset(offset, type)), Arguments.number(block.scale, positions))

    inverse =
      if freqs do
        Nx.divide(Arguments.number(1.0, positions), Nx.as_type(freqs, type))
      else
        exponents = Nx.iota({half}, type: type)
        Nx.exp(Nx.multiply(exponents, Arguments.number(-:math.log(block.base) / half, exponents)))
      end

    # {length, half} or {batch, 1, length, half}
    angle = Nx.multiply(Nx.new_axis(positions, -1), inverse)
    {cos, sin} = {Nx.cos(angle), Nx.sin(angle)}

    wide = Nx.as_type(x, type)
    {first, second} = pairs(Nx.slice_along_axis(wide, 0, dims, axis: 3), half, block.traditional)
    turned_first = Nx.subtract(Nx.multiply(first, cos), Nx.multiply(second, sin))
    turned_second = Nx.add(Nx.multiply(first, sin), Nx.multiply(second, cos))
    turned = joined(turned_first, turned_second, dims, block.traditional)

    if dims < size do
      Nx.concatenate([turned, Nx.slice_along_axis(wide, dims, size - dims, axis: 3)], axis: 3)
    else
      turned
    end
    |> Nx.as_type(x.type)
  end

  defp offset(offset, _type) when is_integer(offset), do: offset
  defp offset(%{shape: {}} = offset, type), do: Nx.as_type(offset, type)
  defp offset(%{shape: {batch}} = offset, type), do: offset |> Nx.as_type(type) |> Nx.reshape({batch, 1, 1})

  defp pairs(x, half, false),
    do: {Nx.slice_along_axis(x, 0, half, axis: 3), Nx.slice_along_axis(x, half, half, axis: 3)}

  defp pairs(%{shape: {batch, heads, length, _}} = x, half, true) do
    paired = Nx.reshape(x, {batch, heads, length, half, 2})
    part = fn i -> paired |> Nx.slice_along_axis(i, 1, axis: 4) |> Nx.squeeze(axes: [4]) end
    {part.(0), part.(1)}
  end

  defp joined(first, second, _dims, false), do: Nx.concatenate([first, second], axis: 3)

  defp joined(%{shape: {batch, heads, length, _}} = first, second, dims, true),
    do: [first, second] |> Nx.stack(axis: 4) |> Nx.reshape({batch, heads, length, dims})
end

defimpl EMLX.Block, for: EMLX.Fast.RoPE do
  alias EMLX.{Backend, Kernels}
  alias EMLX.Fast.{Arguments, RoPE}

  def call(block, output, [x | rest] = args, fun) do
    case Arguments.refusal(x) do
      reason when is_binary(reason) ->
        EMLX.Block.decline(block, args, fun, reason)

      nil ->
        {offset, freqs} = RoPE.arguments(block, rest)
        offset = if is_integer(offset), do: offset, else: Backend.to_array(offset)
        opts = [dims: block.dims, traditional: block.traditional, base: block.base, scale: block.scale]

        x
        |> Backend.to_array()
        |> Kernels.rope(offset, freqs && Backend.to_array(freqs), opts)
        |> Backend.tensor(output)
    end
  end
end
