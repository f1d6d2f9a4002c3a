defmodule EMLX.Telemetry do
  @moduledoc """
  The [telemetry](https://hexdocs.pm/telemetry) events of EMLX, and a profile of them: `profile/1`. Applications attach
  handlers to them to measure evaluations, runs, traces and transfers. The guide [Find a slow spot](performance.html)
  uses the profile.

  EMLX emits five spans. Each one ends with `:stop` or `:exception`. `:start` and `:stop` have the measurements of the
  list:

  * `[:emlx, :eval, …]` - a process waits for a queue to evaluate, read or save arrays. Measurement: `:bytes` of the
    arrays. Metadata: `:op`, one of `:eval`, `:to_binary`, `:to_pointer`, `:save`; `:shape`, `:dtype`; `:device`,
    `:queue`
  * `[:emlx, :to_binary, …]` - a tensor is read, or an array by `EMLX.to_blob/1`. Metadata: `:shape`, `:dtype`; on
    `:stop` also `:byte_size`
  * `[:emlx, :run, …]` - a program runs: `EMLX.Program.run/3`, each call of a compiled function. Measurement:
    `:instructions` of the program. Metadata: `:program`; `:function` that it was compiled from, else `nil`; `:device`,
    `:queue`
  * `[:emlx, :trace, …]` - `Nx.Defn` compiles a function. Measurements, on `:stop` only: `:instructions` and
    `:constants` of the program. Metadata: `:function`, `:device`; on `:stop` also `:path` and `:reason`
  * `[:emlx, :transfer, …]` - an array is created from bytes of Elixir or another library, or copied to another device.
    Measurement: `:bytes`. Metadata: `:from`, which is `:host` or a device, `:to`, `:queue`

  More about measurements and metadata:

  * `:start` measures `:monotonic_time` and `:system_time`, `:stop` and `:exception` measure `:duration` and
    `:monotonic_time`, in native units (`System.convert_time_unit/3`). The metadata of `:exception` has `:kind`,
    `:reason` and `:stacktrace`.
  * `:telemetry_span_context` in the metadata is the same for all events of one span.
  * `:shape` is a tuple. `:dtype` is a type of Nx for a tensor (`{:f, 32}`) and of `EMLX.Array` for an array (`:f32`).
    Both are `nil` in an `[:emlx, :eval, …]` of several arrays. `:byte_size` is that of the binary that was read.
  * `:device` is `:cpu` or `:gpu`. It is `nil` for a run without device and queue, which runs on the device of its
    inputs. `:queue` is the `EMLX.Queue`, `nil` for a device's default queue.
  * The `:path` of a trace is `:program`. It is `:evaluate` for a function that could not be traced and runs in Nx's
    evaluator (`on_unsupported: :evaluate`); then `:reason` is the reason.

  Two events have no duration. `[:emlx, :block, :dispatch]` reports whether a block runs fused or composed
  (`EMLX.Block`). `[:emlx, :memory, :stats]` reports memory use at each call of `memory_stats/0`.

  ## Durations

  Execution is lazy and asynchronous. The run of a program without branches, loops and calls lasts until its graph is
  built and submitted to the queue; any other run lasts until its outputs are submitted. The time of the computation is
  in the `[:emlx, :eval, …]` of the process that waits for it, also for operations that were recorded long before. A
  copy between devices is lazy, too, so the duration of such a transfer is that of recording it.

  ## Work without events

  Single operations emit no events, since they only record a node. Arrays that are already computed emit no
  `[:emlx, :eval, …]`: on the CPU, no queue is involved. Two kinds of copies emit no events: arrays of less than 64 KiB
  that are created from binaries, and inputs on another device that an operation or a run copies by itself.

  A span without handlers costs about half a microsecond. Without the telemetry library, which Nx depends on, there are
  no spans.
  """

  @spans [:eval, :to_binary, :run, :trace, :transfer]

  @doc """
  Returns the names of all events, for `:telemetry.attach_many/4`.

      iex> [:emlx, :eval, :stop] in EMLX.Telemetry.events()
      true
  """
  @spec events :: [[atom]]
  def events do
    for(span <- @spans, end_of <- [:start, :stop, :exception], do: [:emlx, span, end_of]) ++
      [[:emlx, :block, :dispatch], [:emlx, :memory, :stats]]
  end

  # Nx depends on telemetry; without it this module emits nothing.
  @compile {:no_warn_undefined, [:telemetry, :telemetry_handler_table]}

  @doc false
  # Records whether telemetry is started. EMLX.Application calls it.
  def start, do: :persistent_term.put(__MODULE__, List.keymember?(Application.started_applications(), :telemetry, 0))

  @doc false
  # Whether telemetry is present.
  def told?, do: :persistent_term.get(__MODULE__, false)

  @doc false
  # Calls `fun` in a span. `fun` returns `{result, measurements, metadata}`, which `:stop` has in addition to those of
  # `:start`.
  def span(name, measurements, metadata, fun) do
    if :persistent_term.get(__MODULE__, false),
      do: told(name, measurements, metadata, fun),
      else: elem(fun.(), 0)
  end

  @doc false
  # `read` returns the bits of a tensor of this shape and type.
  def to_binary(shape, dtype, read) do
    # Small tensors are read in less time than a span takes.
    if :persistent_term.get(__MODULE__, false) and attended?() do
      told(:to_binary, %{}, %{shape: shape, dtype: dtype}, fn ->
        bits = read.()
        {bits, %{}, %{byte_size: byte_size(bits)}}
      end)
    else
      read.()
    end
  end

  # Whether the span has handlers. One that is attached while a tensor is read sees the next one.
  defp attended? do
    :telemetry_handler_table.list_for_event([:emlx, :to_binary, :start]) != [] or
      :telemetry_handler_table.list_for_event([:emlx, :to_binary, :stop]) != [] or
      :telemetry_handler_table.list_for_event([:emlx, :to_binary, :exception]) != []
  end

  defp told(name, measurements, metadata, fun) do
    start = System.monotonic_time()
    metadata = Map.put(metadata, :telemetry_span_context, make_ref())
    started = Map.merge(measurements, %{monotonic_time: start, system_time: start + System.time_offset()})
    :telemetry.execute([:emlx, name, :start], started, metadata)

    try do
      fun.()
    catch
      kind, reason ->
        failed = Map.merge(metadata, %{kind: kind, reason: reason, stacktrace: __STACKTRACE__})
        :telemetry.execute([:emlx, name, :exception], stopped(start), failed)
        :erlang.raise(kind, reason, __STACKTRACE__)
    else
      {result, more_measurements, more_metadata} ->
        measurements = measurements |> Map.merge(stopped(start)) |> Map.merge(more_measurements)
        :telemetry.execute([:emlx, name, :stop], measurements, Map.merge(metadata, more_metadata))
        result
    end
  end

  defp stopped(start) do
    now = System.monotonic_time()
    %{duration: now - start, monotonic_time: now}
  end

  @doc """
  Emits the event `[:emlx, :memory, :stats]` with `EMLX.memory_info/0` as its measurements, and returns them. Call it
  from a timer to monitor memory use.

      iex> %{active_memory: bytes} = EMLX.Telemetry.memory_stats()
      iex> is_integer(bytes)
      true
  """
  @spec memory_stats :: %{active_memory: bytes, peak_memory: bytes, cache_memory: bytes} when bytes: non_neg_integer
  def memory_stats do
    stats = EMLX.memory_info()
    if :persistent_term.get(__MODULE__, false), do: :telemetry.execute([:emlx, :memory, :stats], stats, %{})
    stats
  end

  @typedoc """
  A line of `profile/1`: the count, the total time in microseconds and the total bytes of the spans with the same
  `:event` and `:about`. `:about` is the `:op` of an evaluation, the `:function` of a run or a trace, `{from, to}` of a
  transfer, or `{block, path, reason}` of a block. `:failed` is the number of spans that ended with an exception.
  """
  @type line :: %{
          event: :eval | :run | :trace | :transfer | :block,
          about: term,
          count: pos_integer,
          failed: non_neg_integer,
          time: non_neg_integer,
          bytes: non_neg_integer
        }

  @doc """
  Calls `fun` and counts the events of all processes during the call. Returns `{result, lines}`, the longest time first.

      iex> a = EMLX.Ops.ones({100, 100}, :f32)
      iex> {_, lines} = EMLX.Telemetry.profile(fn -> EMLX.eval(EMLX.Ops.add(a, a)) end)
      iex> for %{event: :eval, about: :eval} = line <- lines, do: line.count > 0
      [true]

  `table/1` formats the lines. Raises `RuntimeError` without telemetry.
  """
  @spec profile((-> result)) :: {result, [line]} when result: var
  def profile(fun) when is_function(fun, 0) do
    table = :ets.new(__MODULE__, [:public, write_concurrency: true])
    id = {__MODULE__, make_ref()}

    events =
      for [:emlx, name, end_of] = event <- events(), end_of != :start and name not in [:memory, :to_binary], do: event

    if not :persistent_term.get(__MODULE__, false),
      do: raise("there is no telemetry, which comes with Nx, or emlx is not started")

    try do
      :ok = :telemetry.attach_many(id, events, &__MODULE__.count/4, table)
      result = fun.()
      :telemetry.detach(id)
      {result, table |> :ets.tab2list() |> Enum.map(&line/1) |> Enum.sort_by(&{-&1.time, -&1.count})}
    after
      :telemetry.detach(id)
      :ets.delete(table)
    end
  end

  @doc false
  def count([:emlx, event, end_of], measurements, metadata, table) do
    key = {event, about(event, metadata)}
    failed = if end_of == :exception, do: 1, else: 0
    duration = Map.get(measurements, :duration, 0)
    bytes = Map.get(measurements, :bytes, 0)
    :ets.update_counter(table, key, [{2, 1}, {3, failed}, {4, duration}, {5, bytes}], {key, 0, 0, 0, 0})
  end

  defp about(:eval, %{op: op}), do: op
  defp about(:transfer, %{from: from, to: to}), do: {from, to}
  defp about(:block, %{block: block, path: path, reason: reason}), do: {block, path, reason}
  defp about(_run_or_trace, %{function: function}), do: function

  defp line({{event, about}, count, failed, duration, bytes}) do
    time = System.convert_time_unit(duration, :native, :microsecond)
    %{event: event, about: about, count: count, failed: failed, time: time, bytes: bytes}
  end

  @doc ~S'''
  Formats the lines of `profile/1` as a table. Returns a string.

      iex> lines = [
      ...>   %{event: :eval, about: :to_binary, count: 20, failed: 0, time: 61_250, bytes: 80},
      ...>   %{event: :transfer, about: {:host, :cpu}, count: 1, failed: 0, time: 40, bytes: 8192}
      ...> ]
      iex> EMLX.Telemetry.table(lines)
      """
          count   time ms        MiB  what
             20     61.25       0.00  eval to_binary
              1      0.04       0.01  transfer host to cpu
      """
  '''
  @spec table([line]) :: String.t()
  def table(lines) do
    rows = [["count", "time ms", "MiB", "what"] | Enum.map(lines, &row/1)]
    EMLX.Table.text(rows, right: [0, 1, 2], least: [9, 8, 9]) <> "\n"
  end

  defp row(line) do
    failed = if line.failed > 0, do: " (#{line.failed} failed)", else: ""
    what = "#{line.event} #{words(line.event, line.about)}#{failed}"
    [to_string(line.count), decimals(line.time / 1000), decimals(line.bytes / 1_048_576), what]
  end

  defp decimals(number), do: :erlang.float_to_binary(number, decimals: 2)

  defp words(:eval, op), do: "#{op}"
  defp words(:transfer, {from, to}), do: "#{from} to #{to}"
  defp words(:block, {block, path, nil}), do: "#{inspect(block)} #{path}"
  defp words(:block, {block, path, reason}), do: "#{inspect(block)} #{path}: #{reason}"
  defp words(_run_or_trace, nil), do: "of a program"
  defp words(_run_or_trace, function), do: inspect(function)
end
