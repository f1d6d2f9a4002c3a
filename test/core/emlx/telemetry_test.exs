defmodule EMLX.TelemetryTest do
  # The events of the core tier: evaluations, runs, transfers and memory figures, and EMLX.Telemetry.profile/1 over
  # them. Those of traces and of compiled functions are in test/nx/emlx/telemetry_test.exs. Not async: handlers see the
  # events of every process.
  use ExUnit.Case, async: false

  import EMLX.TelemetryRecorder, only: [record: 1, caught: 1], warn: false

  alias EMLX.{Array, Ops, Telemetry}

  # Nx depends on telemetry. The core tier alone emits no events, which the last test covers.
  @telemetry? Enum.any?(Application.started_applications(), &match?({:telemetry, _, _}, &1))

  if @telemetry? do
    alias EMLX.{Program, Queue}

    doctest EMLX.Telemetry

    def refuse(_event, _measurements, _metadata, _config), do: raise("no")

    defp names(events), do: for({name, _, _} <- events, do: name)

    # Of more elements than are computed on the spot.
    defp sum(total), do: Ops.sum(Ops.full(Array.scalar(total / 8192, :f32, device: device()), {8192}, :f32))
    defp device, do: EMLX.Golden.device()

    test "an evaluation is a span with the bytes of its arrays, its device and its queue" do
      queue = Queue.start(device: device())
      arrays = [Ops.add(Ops.ones({100, 100}, :f32, device: device()), 1.0), sum(7)]
      {^arrays, [start, stop]} = record(fn -> EMLX.eval(arrays, queue: queue) end)
      assert {[:eval, :start], %{bytes: 40_004, system_time: time, monotonic_time: _}, metadata} = start
      assert_in_delta System.convert_time_unit(time, :native, :second), System.os_time(:second), 100
      device = device()
      assert %{op: :eval, device: ^device, queue: ^queue, telemetry_span_context: context} = metadata

      assert {[:eval, :stop], %{bytes: 40_004, duration: duration}, %{telemetry_span_context: ^context, op: :eval}} =
               stop

      assert duration > 0
    end

    test "reading an array is an evaluation if it has to wait, and no event for a computed array" do
      array = sum(100)

      {value, [_, {[:eval, :stop], %{bytes: 4}, %{op: :to_binary, queue: nil}}]} =
        record(fn -> Array.to_list(array) end)

      assert value == 100.0

      # The GPU's values are copied each time.
      if device() == :cpu, do: assert({100.0, []} = record(fn -> Array.to_list(array) end))
    end

    test "memory_stats/0 emits one event, which is no line of a profile" do
      {stats, events} = record(fn -> Telemetry.memory_stats() end)
      assert [{[:memory, :stats], ^stats, %{}}] = events
      assert {%{}, []} = Telemetry.profile(fn -> Telemetry.memory_stats() end)
    end

    test "an event has the calling process's queue" do
      queue = Queue.start(device: device())
      {_, events} = record(fn -> Queue.with(queue, fn -> Array.to_list(sum(3)) end) end)
      assert [%{queue: ^queue}, %{queue: ^queue}] = for({_, _, metadata} <- events, do: metadata)
    end

    test "an evaluation that fails is an exception event" do
      # A singular matrix.
      inverse = Ops.inv(Ops.zeros({2, 2}, :f32))
      {{:error, %EMLX.Error{} = error}, events} = record(fn -> caught(fn -> EMLX.eval(inverse) end) end)
      assert [[:eval, :start], [:eval, :exception]] = names(events)
      {_, measurements, metadata} = List.last(events)
      assert %{duration: _} = measurements
      assert %{kind: :error, reason: ^error, op: :eval, device: :cpu} = metadata
      assert [{EMLX.Native, _, _, _} | _] = metadata.stacktrace
    end

    test "a run is a span with the number of its instructions, whatever the program does" do
      straight = Program.new(1, [{:negative, [0], 1}, {:exp, [1], 1}], [2])
      below = {2, [{:less, [0, 1], 1}], [2]}
      loop = {:while, %{condition: below, body: {2, [{:add, [0, 0], 1}], [2]}}}
      looping = Program.new(2, [{loop, [0, 1], 1}], [2])
      [one, limit] = for number <- [1.0, 100.0], do: Array.scalar(number, :f32, device: device())

      for {program, inputs} <- [{straight, [one]}, {looping, [one, limit]}] do
        {[_], events} = record(fn -> Program.run(program, inputs, device: device(), function: :mine) end)
        assert [{[:run, :start], started, _}, {[:run, :stop], stopped, metadata}] = events
        assert started.instructions == program.size and stopped.instructions == program.size
        assert %{program: ^program, function: :mine, queue: nil} = metadata
        assert metadata.device == device()
      end
    end

    test "single operations and a program's instructions emit no events" do
      x = Array.scalar(1.0, :f32, device: device())
      assert {_, []} = record(fn -> Enum.reduce(1..200, x, fn _, sum -> Ops.add(sum, x) end) end)
      program = Program.new(1, Enum.map(0..199, &{:negative, [&1], 1}), [200])
      {_, events} = record(fn -> Program.run(program, [x]) end)
      assert names(events) == [[:run, :start], [:run, :stop]]
    end

    test "a run whose inputs do not fit, and one whose call raises, are exception events" do
      program = Program.new([{"x", [2], :f32}], [{:negative, [0], 1}], [1])

      {{:error, %EMLX.Error{}}, events} =
        record(fn -> caught(fn -> Program.run(program, [Array.scalar(1.0, :f32)]) end) end)

      assert names(events) == [[:run, :start], [:run, :exception]]

      calling = Program.new(1, [{{:call, %{id: 0, outputs: [{[], :f32}]}}, [0], 1}], [1])
      run = fn -> Program.run(calling, [Array.scalar(1.0, :f32)], calls: %{0 => fn _ -> throw(:out) end}) end
      {{:throw, :out}, events} = record(fn -> caught(run) end)
      assert names(events) == [[:run, :start], [:run, :exception]]
      assert {_, _, %{kind: :throw, reason: :out}} = List.last(events)
    end

    test "a transfer of 64 KiB or more is a span with its source and its destination" do
      device = device()
      {_, events} = record(fn -> Array.from_binary(:binary.copy(<<0>>, 65_536), {16_384}, :f32, device: device) end)
      assert [{_, %{bytes: 65_536}, _}, {[:transfer, :stop], %{bytes: 65_536, duration: _}, metadata}] = events
      assert %{from: :host, to: ^device, queue: nil} = metadata
      assert {_, []} = record(fn -> Array.from_binary(:binary.copy(<<0>>, 65_532), {16_383}, :f32) end)

      assert {_, [_, {_, %{bytes: bytes}, _}]} =
               record(fn -> Array.from_binary(:binary.copy(<<0>>, 2_000_000), {2_000_000}, :u8) end)

      assert bytes == 2_000_000

      {address, 400} = Array.to_pointer(EMLX.eval(Ops.ones({100}, :f32)))

      assert {_, [_, {[:transfer, :stop], %{bytes: 400}, %{from: :host}}]} =
               record(fn -> Array.from_pointer(address, {100}, :f32) end)
    end

    test "a copy to the device of an array is no transfer" do
      array = Ops.ones({100}, :f32)
      assert {_, []} = record(fn -> Array.to_device(array, :cpu) end)
    end

    @tag skip: EMLX.Skip.no_gpu()
    test "a copy to another device is a transfer" do
      array = Ops.ones({100}, :f32)
      {_, [_, stop]} = record(fn -> Array.to_device(array, :gpu) end)
      assert {[:transfer, :stop], %{bytes: 400}, %{from: :cpu, to: :gpu}} = stop
    end

    test "a handler that raises does not affect the call" do
      id = make_ref()
      :telemetry.attach(id, [:emlx, :eval, :start], &__MODULE__.refuse/4, nil)
      log = ExUnit.CaptureLog.capture_log(fn -> assert Array.to_list(sum(5)) == 5.0 end)
      assert log =~ "has failed and has been detached"
      assert :telemetry.list_handlers([:emlx, :eval, :start]) == []
    end

    test "profile counts and sums events, and detaches its handler even if its function raises" do
      run = fn -> for _ <- 1..3, do: Array.to_list(sum(50)) end
      {[50.0, 50.0, 50.0], lines} = Telemetry.profile(run)

      assert %{count: 3, failed: 0, bytes: 12, time: time} =
               Enum.find(lines, &match?(%{event: :eval, about: :to_binary}, &1))

      assert time >= 0
      assert Telemetry.table(lines) =~ "eval to_binary"

      assert_raise ArgumentError, fn -> Telemetry.profile(fn -> raise ArgumentError end) end
      assert Enum.all?(:telemetry.list_handlers([:emlx]), &(not match?({Telemetry, _}, &1.id)))
    end

    test "profile counts failures" do
      fail = fn -> assert_raise EMLX.Error, fn -> EMLX.eval(Ops.inv(Ops.zeros({2, 2}, :f32))) end end
      {_, lines} = Telemetry.profile(fail)
      assert [%{event: :eval, about: :eval, count: 1, failed: 1}] = lines
      assert Telemetry.table(lines) =~ "eval eval (1 failed)"
    end
  else
    test "without telemetry everything works, and profile's error names the missing library" do
      assert Array.to_list(Ops.sum(Ops.ones({3}, :f32))) == 3.0
      assert_raise RuntimeError, ~r/no telemetry/, fn -> Telemetry.profile(fn -> :ok end) end
    end
  end
end
