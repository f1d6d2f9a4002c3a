defmodule EMLX.Program do
  @moduledoc """
  A list of operations over numbered values, replayed by one native call.

  Values are numbered from 0: first the inputs, then the outputs of each instruction in order.
  """

  alias EMLX.{Array, Native, Queue}

  @enforce_keys [:ref, :inputs, :outputs]
  defstruct [:ref, :inputs, :outputs]

  @type t :: %__MODULE__{ref: reference, inputs: non_neg_integer, outputs: [non_neg_integer]}
  @type instruction ::
          {EMLX.Ops.op(), inputs :: [non_neg_integer | nil], output_count :: pos_integer}

  @doc """
  A program of `instructions` that takes `inputs` arrays and gives the values numbered `outputs`.

      iex> program = EMLX.Program.new(2, [{:add, [0, 1], 1}, {:square, [2], 1}], [3])
      iex> [a, b] = Enum.map([1.0, 2.0], &EMLX.Array.scalar(&1, :f32))
      iex> [result] = EMLX.Program.run(program, [a, b])
      iex> EMLX.Array.to_list(result)
      9.0
  """
  @spec new(non_neg_integer, [instruction], [non_neg_integer]) :: t
  def new(inputs, instructions, outputs) do
    ref = Native.call!(Native.program_new(inputs, instructions, outputs))
    %__MODULE__{ref: ref, inputs: inputs, outputs: outputs}
  end

  @doc false
  def build(inputs, constants, instructions, outputs, _opts) do
    plain = for {op, ins, count, _label} <- instructions, do: {op, ins, count}
    ref = Native.call!(Native.program_new(length(inputs) + length(constants), plain, outputs))
    %{program: %__MODULE__{ref: ref, inputs: inputs, outputs: outputs}, constants: constants, size: length(plain)}
  end

  @doc false
  def size(%{size: size}), do: size

  @doc """
  Runs a program. The outputs come back as soon as their computation is submitted. Options: `:device`, `:queue`.
  """
  @spec run(t, [Array.t()], keyword) :: [Array.t()]
  def run(program, arrays, opts \\ [])

  def run(%{program: program, constants: constants}, arrays, opts),
    do: run(program, arrays ++ constants, Keyword.delete(opts, :calls))

  def run(%__MODULE__{ref: ref}, arrays, opts) do
    inputs = for %Array{ref: ref} <- arrays, do: ref
    target = Queue.target(opts)
    Native.await!(&Native.program_run(ref, inputs, target, &1))
  end
end
