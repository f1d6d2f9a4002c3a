defmodule EMLX.Differential.Draw do
  @moduledoc """
  Which of its calls an operation is asked for: a shape (or, where shapes have a meaning of their own, a size), a
  type, and a layout of the first input. Everything else is drawn at random from the process's seed.
  """

  alias EMLX.Differential.Input

  @enforce_keys [:shape, :dtype, :layout, :device]
  defstruct [:shape, :dtype, :layout, :device]

  @type t :: %__MODULE__{}

  @doc "`:empty`, `:small`, or `:large` from 60,000 elements on."
  def size(%__MODULE__{shape: shape}) do
    case Enum.product(shape) do
      0 -> :empty
      n when n < 60_000 -> :small
      _ -> :large
    end
  end

  @doc "One of a list for the size."
  def by_size(draw, opts), do: opts |> Keyword.get(size(draw), opts[:small]) |> Enum.random()

  @doc "The first input."
  def input(draw, domain, shape \\ nil), do: Input.new(shape || draw.shape, draw.dtype, domain, draw.layout)

  @doc "A further input, of the same type unless another is given, in any layout."
  def other(draw, shape, domain, dtype \\ nil),
    do: Input.new(shape, dtype || draw.dtype, domain, Enum.random([:contiguous | Input.layouts()]))

  @doc "An axis of the shape; nil where there is none."
  def axis(%__MODULE__{shape: []}), do: nil
  def axis(%__MODULE__{shape: shape}), do: Enum.random(0..(length(shape) - 1))

  @doc "An axis as it may be written: counted from the end, too."
  def written(axis, rank), do: Enum.random([axis, axis, axis - rank])

  @doc "true or false."
  def coin, do: :rand.uniform(2) == 1
end
