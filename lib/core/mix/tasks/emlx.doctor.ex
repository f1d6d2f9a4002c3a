defmodule Mix.Tasks.Emlx.Doctor do
  @shortdoc "Checks the installation of EMLX"

  @moduledoc """
  Checks the installation of EMLX: MLX, devices, BLAS, driver and packages. Prints one line for each check, and a remedy
  for each failed one. Exits with status 1 if a check failed.

      mix emlx.doctor
  """

  use Mix.Task

  @impl true
  def run(_arguments) do
    Mix.Task.run("app.config")
    # app.config does not start the application, whose parts the checks need. Without the native library it cannot
    # start; the checks report that.
    if EMLX.Native.failure() == nil, do: Application.ensure_all_started(:emlx)
    if EMLX.Doctor.print() == :error, do: exit({:shutdown, 1})
  end
end
