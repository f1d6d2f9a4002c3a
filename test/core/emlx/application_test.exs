defmodule EMLX.ApplicationTest do
  # Not async: a test loads EMLX.Native again.
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

  # Calls a function in a separate VM, whose application starts with this config, and returns its result.
  defp in_another_vm(config, module, function, arguments) do
    paths = Enum.flat_map(:code.get_path(), &[~c"-pa", &1])
    quiet = [~c"-logger", ~c"level", ~c"none", ~c"-kernel", ~c"logger_level", ~c"emergency"]
    {:ok, peer, _node} = :peer.start_link(%{connection: :standard_io, args: quiet ++ paths})

    for {name, value} <- config,
        do: :ok = :peer.call(peer, :application, :set_env, [:emlx, name, value, [persistent: true]])

    started = :peer.call(peer, :application, :ensure_all_started, [:emlx], 30_000)
    answer = if match?({:ok, _}, started), do: :peer.call(peer, module, function, arguments, 30_000), else: started
    :peer.stop(peer)
    answer
  end

  if File.exists?(@status) do
    test "config :emlx switches off what EMLX changes in the VM" do
      settings = [malloc: false, exit_handler: false, address_space: false, spin: false, threads: 3]
      assert in_another_vm(settings, Native, :settings, []) == {:ok, Map.new(settings)}
      assert {_, true, false} = in_another_vm([], EMLX.VMState, :state, [])
      off = in_another_vm([sigchld: false, address_space: false, threads: 3, spin: false], EMLX.VMState, :state, [])
      assert {threads, wide?, true} = off
      # CUDA reserves addresses of its own.
      assert not wide? or EMLX.Golden.device() == :gpu
      # The calling thread is one of the three.
      assert threads == 2
    end
  end

  test "a switch that is neither true nor false keeps the application from starting" do
    assert {:error, {:emlx, error}} = in_another_vm([spin: 1], Native, :settings, [])
    assert inspect(error) =~ "config :emlx, spin: is true or false, got: 1"
    assert {:error, {:emlx, error}} = in_another_vm([threads: 0], Native, :settings, [])
    assert inspect(error) =~ "config :emlx, threads: is a number of threads from 1, got: 0"
  end

  test "loading the native library's module again, as IEx's recompile does, changes nothing" do
    a = Ops.ones({100, 100}, :f32)

    # The code server logs a warning.
    ExUnit.CaptureLog.capture_log(fn ->
      for _ <- 1..2, do: assert(:code.load_file(Native) == {:error, :on_load_failure})
    end)

    sum = Ops.sum(Ops.matmul(a, a))
    assert Array.to_list(sum) == 1_000_000.0
    assert Queue.with(Queue.start(), fn -> Array.to_list(Ops.add(sum, 1)) end) == 1_000_001.0
  end
end
