defmodule EMLX.Compiler.Defaults do
  @moduledoc false
  # Sets the process's default backend and default compiler while EMLX.Compiler traces a function: implementations of
  # blocks create tensors and call functions, which belong to the trace.
  #
  # The previous state is restored exactly. A process without defaults follows the global ones again afterwards. Nx's
  # setters return the global value for such a process, so restoring what they return would pin it.

  # Nx has no function that calls another one with default options. Its setter, called in a separate process, reveals
  # the key of the process dictionary.
  [key] =
    Task.await(
      Task.async(fn ->
        before = Process.get_keys()
        Nx.Defn.default_options([])
        Process.get_keys() -- before
      end)
    )

  @options_key key

  @doc "Calls `fun` with EMLX's backend and compiler for a device as the process's defaults, and returns its result."
  def with_device(device, fun) do
    Nx.with_default_backend({EMLX.Backend, device: device}, fn ->
      unset = make_ref()
      before = Process.get(@options_key, unset)
      Nx.Defn.default_options(compiler: EMLX, device: device)

      try do
        fun.()
      after
        if before == unset, do: Process.delete(@options_key), else: Process.put(@options_key, before)
      end
    end)
  end
end
