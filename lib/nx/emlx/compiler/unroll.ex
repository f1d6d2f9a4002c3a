defmodule EMLX.Compiler.Unroll do
  @moduledoc false
  # Unrolls loops of a small constant trip count while a function is traced. EMLX.Compiler.Walk calls it.
  #
  # Operations on arrays that are no placeholders are computed while the function is traced (EMLX.Trace). The steps of a
  # loop are taken one by one, from the state that the loop begins with, as long as the condition is such an array and
  # holds. Counters and what depends on them alone are computed on the way. Operations on other values are recorded. A
  # loop whose condition depends on inputs of the program stays a loop, and so does one of many steps or operations.

  alias EMLX.{Array, Ops, Trace}

  # Steps of a loop, and operations of all its steps, at most.
  @steps 8
  @operations 256

  @doc """
  Returns the arrays of the state after a loop that begins with `arrays`, or nil if the loop is not unrolled. `condition`
  and `body` are functions from a list of arrays to a list of arrays.
  """
  def run(arrays, condition, body) do
    case unroll(arrays, condition, body) do
      {:ok, {arrays, steps}} ->
        Trace.note("unroll", :took, "a loop of #{steps} steps")
        arrays

      {:abandoned, reason} ->
        Trace.note("unroll", :left, "a loop: #{reason}")
        nil
    end
  end

  defp unroll(arrays, condition, body) do
    cond do
      # Debugging modes name the places of operations in the loop.
      Trace.debugs?() -> {:abandoned, "debugging modes are on"}
      not Enum.any?(arrays, &Trace.known?/1) -> {:abandoned, "its state begins with no constant"}
      true -> Trace.attempt(@operations, fn -> steps(arrays, 0, condition, body) end)
    end
  end

  defp steps(arrays, count, condition, body) do
    arrays = Enum.map(arrays, &Trace.opaque/1)
    [holds] = condition.(arrays)

    cond do
      Array.traced?(holds) -> Trace.abandon("its condition depends on values of the program")
      not true?(holds) -> {arrays, count}
      count == @steps -> Trace.abandon("it has more than #{@steps} steps")
      true -> arrays |> body.() |> steps(count + 1, condition, body)
    end
  end

  defp true?(array) do
    holds = Ops.run({:astype, %{dtype: :bool}}, [array])
    Trace.untraced(fn -> Array.to_binary(holds) end) == <<1>>
  end
end
