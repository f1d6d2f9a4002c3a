defmodule EMLX.TelemetryRecorder do
  @moduledoc """
  Records the telemetry events of the calling process, for the tests of all tiers. Events of other processes, whose
  tests may run at the same time, are left out.
  """

  # Telemetry comes with Nx.
  @compile {:no_warn_undefined, :telemetry}

  @doc "Returns `{result of fun, events}`; an event is `{name without :emlx, measurements, metadata}`, in order."
  def record(fun) do
    id = attach()

    try do
      {fun.(), events(id)}
    after
      :telemetry.detach(id)
    end
  end

  @doc """
  Returns `{result of fun, metadata of each block that was dispatched}`, in order; with a list of modules, of blocks of
  those modules only.
  """
  def record_blocks(fun, modules \\ nil) do
    {result, events} = record(fun)
    {result, for(metadata <- blocks(events), modules == nil or metadata.block in modules, do: metadata)}
  end

  @doc "Returns the result of `fun`, or `{kind, reason}` of how it ended."
  def caught(fun) do
    fun.()
  catch
    kind, reason -> {kind, reason}
  end

  @doc "A callback of `setup`: records the test's events until it ends, for `take_blocks/0`."
  def record_test(_context) do
    id = attach()
    Process.put(__MODULE__, id)
    ExUnit.Callbacks.on_exit(fn -> :telemetry.detach(id) end)
  end

  @doc "Returns `{block, path, reason}` of each block dispatched since the last call, in order. Needs `record_test/1`."
  def take_blocks do
    for metadata <- __MODULE__ |> Process.get() |> events() |> blocks(),
        do: {metadata.block, metadata.path, metadata.reason}
  end

  defp attach do
    id = make_ref()
    :ok = :telemetry.attach_many(id, EMLX.Telemetry.events(), &__MODULE__.handle/4, {self(), id})
    id
  end

  @doc false
  def handle([:emlx | event], measurements, metadata, {test, id}) do
    if self() == test, do: send(test, {id, {event, measurements, metadata}})
  end

  defp events(id) do
    receive do
      {^id, event} -> [event | events(id)]
    after
      0 -> []
    end
  end

  defp blocks(events), do: for({[:block, :dispatch], %{count: 1}, metadata} <- events, do: metadata)
end
