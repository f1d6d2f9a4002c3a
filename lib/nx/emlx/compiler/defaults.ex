defmodule EMLX.Compiler.Defaults do
  @moduledoc false
  # The process's default backend and default compiler while EMLX.Compiler traces a function: implementations of
  # blocks make tensors and call functions of their own, which belong to the trace.
  #
  # What the process had is restored exactly. A process that has set nothing follows the global defaults afterwards,
  # as before: Nx's setters return the global value in that case, so restoring what they return would pin it.

  # Nx has no function that calls another one with default options. Its setter, called in a process of its own, shows
  # the key.
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
