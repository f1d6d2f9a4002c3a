defmodule EMLX.Application do
  @moduledoc false
  use Application
  require Logger

  @impl true
  def start(_type, _args) do
    check_config()
    EMLX.Native.loaded!()
    warn_of_another_mlx(EMLX.Native.call!(EMLX.Native.unknown_mlx()))

    # MLX's compiler for the CPU calls the C++ compiler through popen. The VM ignores SIGCHLD, which makes pclose fail.
    # The VM itself does not need the signal: it detects the exit of its ports by other means.
    if Application.get_env(:emlx, :sigchld, true), do: :os.set_signal(:sigchld, :default)
    # By default, MLX would round the operands of f32 products to TF32 on NVIDIA GPUs.
    EMLX.Native.call!(EMLX.Native.allow_tf32(Application.get_env(:emlx, :tf32, false)))
    EMLX.Telemetry.start()
    EMLX.Profiling.init()
    EMLX.Debug.refresh()
    Supervisor.start_link(children(), strategy: :one_for_one, name: EMLX.Supervisor)
  end

  @switches [:malloc, :exit_handler, :sigchld, :address_space, :spin]

  defp check_config do
    for name <- @switches, value = Application.get_env(:emlx, name, true), not is_boolean(value) do
      raise ArgumentError, "config :emlx, #{name}: is true or false, got: #{inspect(value)}"
    end

    case Application.get_env(:emlx, :threads) do
      nil -> :ok
      count when is_integer(count) and count > 0 -> :ok
      other -> raise ArgumentError, "config :emlx, threads: is a number of threads from 1, got: #{inspect(other)}"
    end
  end

  defp warn_of_another_mlx(nil), do: :ok

  defp warn_of_another_mlx({known, loaded}) do
    Logger.warning(
      "EMLX knows the private parts of MLX #{known}, and MLX #{loaded} is loaded: programs run without CUDA graphs"
    )
  end

  if match?({:module, _}, Code.ensure_compiled(EMLX.Compiler.Cache)) do
    defp children, do: [EMLX.Compiler.Cache]
  else
    defp children, do: []
  end
end
