defmodule EMLX.Poll do
  @moduledoc """
  Waiting for what comes about in its own time, for tests that must neither sleep long nor depend on how busy the
  machine is.
  """

  alias EMLX.Memory

  @pause 10

  @doc "Calls `fun` every few milliseconds, until it returns a true value or the time is up. Returns whether it did."
  @spec until((-> as_boolean(term)), milliseconds :: pos_integer) :: boolean
  def until(fun, milliseconds \\ 10_000), do: poll(fun, div(milliseconds, @pause))

  defp poll(fun, tries) do
    cond do
      fun.() ->
        true

      tries <= 0 ->
        false

      true ->
        Process.sleep(@pause)
        poll(fun, tries - 1)
    end
  end

  @doc "Collects the garbage of all processes, and returns the memory of arrays once it no longer shrinks."
  @spec settled_memory :: non_neg_integer
  def settled_memory, do: settled_memory(collected(), 0, 100)

  # Three times the same is enough: a thread that gives up what it computed does so within moments.
  defp settled_memory(bytes, 2, _tries), do: bytes
  defp settled_memory(bytes, _same, 0), do: bytes

  defp settled_memory(bytes, same, tries) do
    Process.sleep(@pause)

    case collected() do
      less when less < bytes -> settled_memory(less, 0, tries - 1)
      _as_before -> settled_memory(bytes, same + 1, tries - 1)
    end
  end

  defp collected do
    for pid <- Process.list(), do: :erlang.garbage_collect(pid)
    Memory.active()
  end
end
