defmodule EMLX.OpTable do
  @moduledoc """
  The native operations as data: the attributes and inputs that `EMLX.Ops.run/3` takes, and the properties of each
  operation that passes over programs and tests use. Contributors query this table instead of listing operations by
  hand. The properties are defined with each operation, in its family's file of `native/src/op`.

      iex> EMLX.OpTable.fetch!(:argmax).attributes
      [axis: {:optional, :s32}, keepdims: :bool, nan: {:one_of, [:first, :last]}]
      iex> EMLX.OpTable.late_failure?(:det)
      true
  """

  alias EMLX.Native

  @typedoc """
  The type of an attribute. A `:number` is an integer, a float, `{real, imaginary}`, `:nan`, `:infinity` or
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

    * `:name` and `:attributes` - the native code takes the name alone, or `{name, attributes}` for an operation with
      attributes
    * `:class` - the kind of operation, for example `:unary`, `:reduction` or `:linear_algebra`
    * `:required`, `:optional`, `:more` - the number of input arrays: required ones, then ones that may be nil, and
      then, if `:more`, at least one more
    * `:outputs` - the number of output arrays; nil if attributes or inputs decide
    * `:elementwise` - whether each element of the result is a function of the elements at its index, after broadcasting
    * `:view` - whether the result usually shares its input's memory: `:reshape` with the elements in their row-major
      order, `:strided` in another order, nil if not
    * `:converts` - whether it only changes shape or type
    * `:simple` - whether the interpreters of programs support it
    * `:cpu_only` - whether it always runs on the CPU, for arrays on the GPU, too. Other linear algebra runs there if
      cuSOLVER cannot be loaded
    * `:late_failure` - whether it can fail during the evaluation, and not only when it is built
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

  @doc "Returns a map from names to operations."
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
  Returns an operation, given by its name or as `EMLX.Ops.run/3` takes it. Returns nil for other instructions of
  programs, such as `:if`.
  """
  @spec get(EMLX.Ops.op()) :: entry | nil
  def get({name, _attributes}), do: get(name)
  def get(name), do: Map.get(all(), name)

  @doc "Returns an operation as `get/1` does. Raises `KeyError` for an unknown one."
  @spec fetch!(EMLX.Ops.op()) :: entry
  def fetch!({name, _attributes}), do: fetch!(name)
  def fetch!(name), do: Map.fetch!(all(), name)

  @doc "Returns whether an operation can fail during the evaluation; false for other instructions of programs."
  @spec late_failure?(EMLX.Ops.op()) :: boolean
  def late_failure?(op), do: match?(%{late_failure: true}, get(op))

  @doc "Returns whether an attribute of an operation is a float; false for attributes that it does not have."
  @spec float?(atom, atom) :: boolean
  def float?(name, attribute),
    do: fetch!(name).attributes[attribute] in [:f32, :f64, {:optional, :f32}, {:optional, :f64}]

  @doc "Returns whether an operation only changes shape or type, so that it is the identity if both stay the same."
  @spec converts?(EMLX.Ops.op()) :: boolean
  def converts?(op), do: match?(%{converts: true}, get(op))
end
