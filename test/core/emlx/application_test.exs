defmodule EMLX.ApplicationTest do
  use ExUnit.Case, async: true

  @status "/proc/self/status"

  test "SIGCHLD is neither ignored nor caught, as MLX's compiler for the CPU needs it, and ports end as ever" do
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
end
