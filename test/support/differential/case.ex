defmodule EMLX.Differential.Case do
  @moduledoc """
  One call of an operation, with what it should give.

    * `:op` and `:inputs` - what is called, with `EMLX.Differential.Input`s or nil
    * `:check` - is given the inputs' values and returns a function of the results, contiguous and on the CPU, that
      returns what has to be near what: `[{label, have, want, tolerance}]`
    * `:tolerance` - how near two ways of computing the same elements have to be
    * `:rows` - `{axis of the first input, axis of the results}` where the operation does the same along that axis
  """

  @enforce_keys [:op, :inputs, :tolerance, :check]
  defstruct [:op, :inputs, :tolerance, :check, :rows]

  @type t :: %__MODULE__{}

  @doc "A case whose results are near the arrays that `fun` returns for its inputs' values."
  @spec values(EMLX.Ops.op(), [EMLX.Differential.Input.t() | nil], EMLX.Tolerance.t(), function, keyword) :: t
  def values(op, inputs, tolerance, fun, opts \\ []) do
    checked(
      op,
      inputs,
      tolerance,
      fn arrays ->
        wants = arrays |> fun.() |> List.wrap()

        fn results ->
          for {{have, want}, i} <- results |> Enum.zip(wants) |> Enum.with_index() do
            {if(length(wants) > 1, do: "result #{i}", else: "result"), have, want, tolerance}
          end ++ count(results, wants)
        end
      end,
      opts
    )
  end

  defp count(results, wants) do
    if length(results) == length(wants),
      do: [],
      else: raise("#{length(results)} results, expected #{length(wants)}")
  end

  @doc "A case whose results are looked at by a function, as `:check` says."
  @spec checked(EMLX.Ops.op(), [EMLX.Differential.Input.t() | nil], EMLX.Tolerance.t(), function, keyword) :: t
  def checked(op, inputs, tolerance, check, opts \\ []) do
    struct!(__MODULE__, [op: op, inputs: inputs, tolerance: tolerance, check: check] ++ opts)
  end

  @doc "Which call this is, as one line."
  def describe(%__MODULE__{op: op, inputs: inputs}) do
    op =
      case op do
        {name, attributes} -> "#{name} #{inspect(attributes, charlists: :as_lists, limit: 12)}"
        name -> to_string(name)
      end

    "#{op} of #{Enum.map_join(inputs, ", ", &EMLX.Differential.Input.describe/1)}"
  end
end
