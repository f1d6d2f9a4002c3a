defmodule EMLX.ApplicationTest do
  # The module is loaded again while nobody else calls it.
  use ExUnit.Case, async: false

  alias EMLX.{Array, Native, Ops, Queue}

  @status "/proc/self/status"

  test "the VM leaves SIGCHLD to MLX's compiler for the CPU, and ports report their status" do
    if File.exists?(@status) do
      status = File.read!(@status)

      for mask <- ["SigIgn", "SigCgt"] do
        [_, bits] = Regex.run(~r/#{mask}:\s+([0-9a-f]+)/, status)
        # Signal 17 on Linux; the mask's first bit is signal 1.
        assert Bitwise.band(String.to_integer(bits, 16), Bitwise.bsl(1, 16)) == 0, mask
      end
    end

    assert {"out\n", 3} = System.cmd("sh", ["-c", "echo out; exit 3"])
  end

  test "loading the native library's module again, as IEx's recompile does, changes nothing" do
    a = Ops.ones({100, 100}, :f32)

    # The code server warns of it.
    ExUnit.CaptureLog.capture_log(fn ->
      for _ <- 1..2, do: assert(:code.load_file(Native) == {:error, :on_load_failure})
    end)

    sum = Ops.sum(Ops.matmul(a, a))
    assert Array.to_list(sum) == 1_000_000.0
    assert Queue.with(Queue.start(), fn -> Array.to_list(Ops.add(sum, 1)) end) == 1_000_001.0
  end
end
