defmodule EMLX.VMState do
  @moduledoc "What EMLX has changed in a VM, as the system shows it, for tests that start VMs. On Linux."

  alias EMLX.{Array, Ops}

  @doc "The number of the kernels' threads, whether the address space is above 256 GiB, and whether SIGCHLD is ignored."
  @spec state :: {non_neg_integer, boolean, boolean}
  def state do
    product = Ops.matmul(Ops.ones({300, 300}, :f32), Ops.ones({300, 300}, :f32))
    300.0 = Array.to_list(Ops.max(product))

    threads =
      for path <- Path.wildcard("/proc/self/task/*/comm"), {:ok, "emlx_kernel_" <> _} <- [File.read(path)], do: path

    status = File.read!("/proc/self/status")
    [_, kib] = Regex.run(~r/VmSize:\s+(\d+)/, status)
    [_, ignored] = Regex.run(~r/SigIgn:\s+([0-9a-f]+)/, status)
    # Signal 17; the mask's first bit is signal 1.
    ignores? = Bitwise.band(String.to_integer(ignored, 16), Bitwise.bsl(1, 16)) != 0
    {length(threads), String.to_integer(kib) > 2 ** 28, ignores?}
  end
end
