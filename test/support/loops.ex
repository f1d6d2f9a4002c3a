defmodule EMLX.Loops do
  @moduledoc "Programs that are loops."

  alias EMLX.Program

  @doc "The instruction of a constant."
  def constant(value, dtype), do: {{:constant, %{value: value, dtype: dtype}}, [], 1}

  @doc "The instruction of a loop over `state` values, which are the first of its inputs."
  def loop(state, inputs, condition, body), do: {{:while, %{condition: condition, body: body}}, inputs, state}

  @doc """
  A program over `{i, values…, n}` and `read` more inputs: a loop that counts i up to n. `body` has the instructions over
  all of these, `outputs` are the new values.
  """
  def counted(values, body, outputs, read \\ 0) do
    inputs = values + 2 + read
    condition = {inputs, [{:less, [0, values + 1], 1}], [inputs]}
    next = inputs + Enum.sum(Enum.map(body, &elem(&1, 2)))
    body = {inputs, body ++ [constant(1, :s64), {:add, [0, next], 1}], [next + 1 | outputs]}
    all = Enum.to_list(0..(inputs - 1))
    Program.new(inputs, [loop(values + 1, all, condition, body)], Enum.map(1..values, &(inputs + &1)))
  end
end
