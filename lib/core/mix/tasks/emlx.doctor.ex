defmodule Mix.Tasks.Emlx.Doctor do
  @shortdoc "Looks at the installation of EMLX"

  @moduledoc """
  Prints which MLX runs, on which devices, with which BLAS and driver, and which packages are there; one line each, with a way out
  for what is wrong. Ends with status 1 if something is.

      mix emlx.doctor
  """

  use Mix.Task

  @impl true
  def run(_arguments) do
    Mix.Task.run("app.config")
    # Not started by app.config, and its checks are about what it starts.
    # It does not start without its library, which is what the checks tell of.
    if EMLX.Native.failure() == nil, do: Application.ensure_all_started(:emlx)
    if EMLX.Doctor.print() == :error, do: exit({:shutdown, 1})
  end
end
