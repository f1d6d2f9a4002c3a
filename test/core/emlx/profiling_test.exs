defmodule EMLX.ProfilingTest do
  # Not async: the counts are those of the whole VM.
  use ExUnit.Case, async: false

  import ExUnit.CaptureIO

  alias EMLX.{Array, Ops, Profiling}

  # The core's tests run without telemetry, too.
  @compile {:no_warn_undefined, :telemetry}

  defp stop do
    if Code.ensure_loaded?(:telemetry), do: :telemetry.detach(Profiling)
    :persistent_term.erase({EMLX, :profiling_counters})
    Application.delete_env(:emlx, :profile_eval)
  end

  test "nothing is counted without the setting" do
    assert Profiling.init() == nil
    refute Profiling.enabled?()

    assert {Profiling.inc_eval(), Profiling.inc_item(), Profiling.inc_to_blob(), Profiling.reset()} ==
             {:ok, :ok, :ok, :ok}

    assert Profiling.read() == {:error, :not_initialized}
    assert capture_io(fn -> Profiling.snapshot("step") end) =~ "[EMLX.Profiling step] not counting"
  end

  test "evaluations, items and reads are counted from init/0 on" do
    on_exit(&stop/0)
    Application.put_env(:emlx, :profile_eval, true)
    assert Profiling.init() != nil
    assert Profiling.enabled?()
    assert Profiling.read() == {:ok, %{eval: 0, item: 0, to_blob: 0}}

    a = Ops.ones({5000}, :f32)
    if EMLX.Telemetry.told?(), do: EMLX.eval(Ops.add(a, a)), else: Profiling.inc_eval()
    1 = EMLX.item(Array.scalar(1, :s32))

    if EMLX.Telemetry.told?(),
      do: <<_::binary-size(20_000)>> = EMLX.to_blob(Ops.add(a, a)),
      else: Profiling.inc_to_blob()

    assert Profiling.read() == {:ok, %{eval: 1, item: 1, to_blob: 1}}
    assert capture_io(fn -> Profiling.snapshot() end) == "[EMLX.Profiling] eval=1 item=1 to_blob=1\n"

    assert Profiling.reset() == :ok
    assert {:ok, %{eval: 0}} = Profiling.read()
  end
end
