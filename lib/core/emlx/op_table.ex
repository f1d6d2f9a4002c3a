defmodule EMLX.OpTable do
  @moduledoc """
  The native operations as data: what `EMLX.Ops.run/3` takes, and the facts about each operation that passes over
  programs and tests go by. Contributors read them here instead of listing operations by hand. The facts themselves are
  in `native/src/op/traits.rs`.

      iex> EMLX.OpTable.fetch!(:argmax).attributes
      [axis: {:optional, :s32}, keepdims: :bool, nan: {:one_of, [:first, :last]}]
      iex> EMLX.OpTable.late_failure?(:det)
      true
  """

  alias EMLX.Native

  @typedoc """
  What an attribute can be. A `:number` is an integer, a float, `{real, imaginary}`, `:nan`, `:infinity` or
  `:neg_infinity`.
  """
  @type kind ::
          :s32
          | :s64
          | :u64
          | :f32
          | :f64
          | :bool
          | :string
          | :number
          | {:list, kind}
          | {:optional, kind}
          | {:one_of, [atom]}

  @typedoc """
  An operation:

    * `:name` and `:attributes` - what the native code takes: the name alone, or `{name, attributes}` where there are
      any
    * `:class` - what it does, for example `:unary`, `:reduction` or `:linear_algebra`
    * `:required`, `:optional`, `:more` - how many arrays it takes: some that are required, then some that may be nil,
      and then, where `:more`, at least one more
    * `:outputs` - how many arrays it returns; nil where attributes or inputs decide
    * `:elementwise` - whether each element of the result is a function of the elements at its place, broadcast
      together
    * `:view` - `:reshape` or `:strided` where the result mostly shares its input's memory, with the elements in their
      row-major order or in another
    * `:converts` - whether it changes shape or type and nothing else
    * `:simple` - whether the interpreters of programs know it
    * `:cpu_only` - whether it runs on the CPU also for arrays of the GPU
    * `:late_failure` - whether it can fail while it is computed, and not only while it is built
  """
  @type entry :: %{
          name: atom,
          attributes: [{atom, kind}],
          class: atom,
          required: non_neg_integer,
          optional: non_neg_integer,
          more: boolean,
          outputs: pos_integer | nil,
          elementwise: boolean,
          view: :reshape | :strided | nil,
          converts: boolean,
          simple: boolean,
          cpu_only: boolean,
          late_failure: boolean
        }

  @doc "Returns all operations by their names."
  @spec all :: %{atom => entry}
  def all do
    with nil <- :persistent_term.get(__MODULE__, nil) do
      table = Map.new(Native.call!(Native.op_table()), &{&1.name, &1})
      :persistent_term.put(__MODULE__, table)
      table
    end
  end

  @doc "Returns the names of all operations, sorted."
  @spec names :: [atom]
  def names, do: all() |> Map.keys() |> Enum.sort()

  @doc """
  Returns an operation, given by its name or as `EMLX.Ops.run/3` takes it; nil for what no array is made with, such as a
  program's `:if`.
  """
  @spec get(EMLX.Ops.op()) :: entry | nil
  def get({name, _attributes}), do: get(name)
  def get(name), do: Map.get(all(), name)

  @doc "Returns an operation as `get/1` does, and raises `KeyError` where there is none."
  @spec fetch!(EMLX.Ops.op()) :: entry
  def fetch!({name, _attributes}), do: fetch!(name)
  def fetch!(name), do: Map.fetch!(all(), name)

  @doc "Returns whether an operation can fail while it is computed. What is no operation cannot."
  @spec late_failure?(EMLX.Ops.op()) :: boolean
  def late_failure?(op), do: match?(%{late_failure: true}, get(op))

  @doc "Returns whether an operation changes shape or type alone, so that it is the identity where both stay."
  @spec converts?(EMLX.Ops.op()) :: boolean
  def converts?(op), do: match?(%{converts: true}, get(op))
end
