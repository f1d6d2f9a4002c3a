defmodule EMLX.NxTelemetryTest do
  # The events of the Nx tier: traces, and the runs and transfers of compiled functions. The other events are in
  # test/core/emlx/telemetry_test.exs. Not async: handlers see the events of every process.
  use EMLX.NxCase, async: false

  import EMLX.TelemetryRecorder, only: [record: 1, caught: 1]
  import Nx.Defn, only: [jit_apply: 3]

  alias EMLX.TestBlock

  setup do
    {_, device} = backend()
    %{opts: [compiler: EMLX] ++ device, device: device[:device]}
  end

  defp names(events), do: for({name, _, _} <- events, do: name)

  def twice(x), do: Nx.add(Nx.exp(x), Nx.exp(x))

  test "a compiled function has one trace event and one run event per call, with its name", %{
    opts: opts,
    device: device
  } do
    x = Nx.tensor([1.0, 2.0])
    call = fn -> jit_apply(&__MODULE__.twice/1, [x], opts) end
    {_, first} = record(call)
    {_, second} = record(call)

    assert [
             {[:trace, :start], _, _},
             {[:trace, :stop], traced, trace},
             {[:run, :start], _, _},
             {[:run, :stop], ran, run}
           ] =
             first

    function = &__MODULE__.twice/1
    assert %{instructions: 2, constants: 0, duration: duration} = traced
    assert duration > 0
    assert %{function: ^function, device: ^device, path: :program, reason: nil} = trace
    assert %{instructions: 2} = ran
    assert %{function: ^function, device: ^device, queue: nil, program: %EMLX.Program{}} = run
    assert names(second) == [[:run, :start], [:run, :stop]]
  end

  test "eager operations emit no events, and reading their result is one evaluation" do
    x = Nx.broadcast(1.0, {10_000})
    {sum, events} = record(fn -> Enum.reduce(1..100, x, fn _, sum -> Nx.add(sum, x) end) end)
    assert events == []
    {binary, events} = record(fn -> Nx.to_binary(sum) end)
    assert binary == for(_ <- 1..10_000, do: <<101.0::float-32-native>>, into: <<>>)

    assert [
             {[:to_binary, :start], _, %{shape: {10_000}, dtype: {:f, 32}}},
             {[:eval, :start], _, _},
             {[:eval, :stop], %{bytes: 40_000}, %{op: :to_binary, shape: {10_000}, dtype: :f32}},
             {[:to_binary, :stop], %{duration: _}, %{shape: {10_000}, dtype: {:f, 32}, byte_size: 40_000}}
           ] = events
  end

  @tag skip: System.get_env("EMLX_TEST_DEVICE") == "gpu" && "small arrays are computed on the spot on the CPU"
  test "reading a small result of the CPU is no evaluation, because it is computed already" do
    x = Nx.tensor(1.0)

    read = fn ->
      sum = Enum.reduce(1..100, x, fn _, sum -> Nx.add(sum, x) end)
      {101.0, events} = record(fn -> Nx.to_number(sum) end)
      Enum.uniq(for {[name | _], _, _} <- events, do: name)
    end

    # While another thread has the graph, a result stays a node.
    assert Enum.any?(1..20, fn _ -> read.() == [:to_binary] end)
  end

  test "each read of a tensor is reported with its shape, its type and the bytes that were read" do
    t = Nx.iota({2, 3}, type: :s64)
    _ = Nx.to_binary(t)

    for {limit, bytes} <- [{6, 48}, {4, 32}] do
      {_, events} = record(fn -> Nx.to_binary(t, limit: limit) end)
      assert {[:to_binary, :stop], _, metadata} = List.last(events)
      assert %{shape: {2, 3}, dtype: {:s, 64}, byte_size: ^bytes} = metadata
    end
  end

  test "a function that raises while it is traced ends its trace as an exception event", %{opts: opts} do
    fun = fn x -> Nx.add(x, hd(Process.get(:nothing, []))) end
    {{:error, :badarg}, events} = record(fn -> caught(fn -> jit_apply(fun, [1], opts) end) end)

    assert names(events) == [[:trace, :start], [:trace, :exception]]
    assert {_, %{duration: _}, %{kind: :error, reason: :badarg}} = List.last(events)
  end

  test "the trace event of a function that runs in the evaluator has the path :evaluate", %{opts: opts} do
    block = %TestBlock.Peek{how: &if(Nx.to_number(&1[0]) > 0, do: &1, else: &1)}
    fun = fn x -> TestBlock.double(block, x) end

    {_, events} = record(fn -> jit_apply(fun, [Nx.tensor([1.0])], [on_unsupported: :evaluate] ++ opts) end)
    {_, _, metadata} = Enum.find(events, &match?({[:trace, :stop], _, _}, &1))
    assert %{path: :evaluate, reason: reason} = metadata
    assert reason =~ "Peek"
  end

  test "compile_to_program/3 emits a trace event", %{opts: opts} do
    fun = fn weights, x -> Nx.dot(x, weights) end
    args = [Nx.iota({2, 2}, type: :f32), Nx.template({1, 2}, :f32)]
    {program, events} = record(fn -> EMLX.compile_to_program(fun, args, Keyword.delete(opts, :compiler)) end)
    {_, traced, metadata} = Enum.find(events, &match?({[:trace, :stop], _, _}, &1))
    assert %{instructions: instructions, constants: 1} = traced
    assert instructions == program.size
    assert metadata.function == fun
  end

  test "tensors of another backend are transferred at each run, tensors of EMLX are not", %{opts: opts, device: device} do
    there = Nx.broadcast(Nx.tensor(1.0, backend: Nx.BinaryBackend), {256, 256})
    here = Nx.backend_copy(there, backend())
    call = fn x -> fn -> jit_apply(&__MODULE__.twice/1, [x], opts) end end
    call.(here).()

    for _ <- 1..2 do
      {_, events} = record(call.(there))
      assert [_, {[:transfer, :stop], %{bytes: 262_144}, %{from: :host, to: ^device}} | runs] = events
      assert names(runs) == [[:run, :start], [:run, :stop]]
    end

    {_, events} = record(call.(here))
    assert names(events) == [[:run, :start], [:run, :stop]]
  end

  test "the events of a run on a queue have the queue", %{opts: opts, device: device} do
    queue = EMLX.Queue.start(device: device)
    {_, events} = record(fn -> jit_apply(&__MODULE__.twice/1, [Nx.tensor([1.0])], [queue: queue] ++ opts) end)
    assert {_, _, %{queue: ^queue}} = List.last(events)
  end

  doctest_file(EMLX.Guide.path("performance"))
end
