defmodule EMLX.Application do
  @moduledoc false
  use Application
  require Logger

  @impl true
  def start(_type, _args) do
    EMLX.Native.loaded!()
    warn_of_another_mlx(EMLX.Native.call!(EMLX.Native.unknown_mlx()))

    # MLX's compiler for the CPU calls the C++ compiler through popen, and pclose fails while SIGCHLD is ignored, as the VM
    # leaves it. The VM learns of its own ports' ends by other means.
    :os.set_signal(:sigchld, :default)
    # On NVIDIA GPUs MLX would round the operands of f32 products to 10 bits by default.
    EMLX.Native.call!(EMLX.Native.allow_tf32(Application.get_env(:emlx, :tf32, false)))
    EMLX.Telemetry.start()
    EMLX.Profiling.init()
    EMLX.Debug.refresh()
    Supervisor.start_link(children(), strategy: :one_for_one, name: EMLX.Supervisor)
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
