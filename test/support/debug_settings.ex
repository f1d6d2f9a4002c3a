defmodule EMLX.DebugSettings do
  @moduledoc false
  # For tests of the debugging modes.

  import ExUnit.Assertions
  import ExUnit.Callbacks

  @doc "Turns one of the modes on until the test ends."
  def turn_on(setting) do
    on_exit(fn ->
      Application.delete_env(:emlx, setting)
      EMLX.Debug.refresh()
    end)

    Application.put_env(:emlx, setting, true)
  end

  @doc "The message of the `ArgumentError` that a function raises."
  def message(fun), do: Exception.message(assert_raise(ArgumentError, fun))
end
