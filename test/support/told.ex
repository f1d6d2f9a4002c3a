defmodule EMLX.Told do
  @moduledoc """
  What telemetry tells of the calling process's work, for the tests of all tiers. Other tests run at the same time, in processes of
  their own.
  """

  # Telemetry comes with Nx.
  @compile {:no_warn_undefined, :telemetry}

  @doc "What `fun` gives, and what was told meanwhile, in order: `{name without :emlx, measurements, metadata}` each."
  def told(fun) do
    id = attach()

    try do
      {fun.(), heard(id)}
    after
      :telemetry.detach(id)
    end
  end

  @doc "What `fun` gives, and the metadata of the blocks that were told meanwhile, in order; of those modules only, if a list is given."
  def told_blocks(fun, modules \\ nil) do
    {result, events} = told(fun)
    {result, for(metadata <- blocks(events), modules == nil or metadata.block in modules, do: metadata)}
  end

  @doc "What `fun` gives, or `{kind, reason}` of how it ended."
  def caught(fun) do
    fun.()
  catch
    kind, reason -> {kind, reason}
  end

  @doc "For `setup`: what the test is told until it ends is kept for `heard_blocks/0`."
  def listen(_context) do
    id = attach()
    Process.put(__MODULE__, id)
    ExUnit.Callbacks.on_exit(fn -> :telemetry.detach(id) end)
  end

  @doc "The blocks that were told since the last time: `{block, path, reason}` each, in order."
  def heard_blocks do
    for metadata <- __MODULE__ |> Process.get() |> heard() |> blocks(),
        do: {metadata.block, metadata.path, metadata.reason}
  end

  defp attach do
    id = make_ref()
    :ok = :telemetry.attach_many(id, EMLX.Telemetry.events(), &__MODULE__.tell/4, {self(), id})
    id
  end

  @doc false
  def tell([:emlx | event], measurements, metadata, {test, id}) do
    if self() == test, do: send(test, {id, {event, measurements, metadata}})
  end

  defp heard(id) do
    receive do
      {^id, event} -> [event | heard(id)]
    after
      0 -> []
    end
  end

  defp blocks(events), do: for({[:block, :dispatch], %{count: 1}, metadata} <- events, do: metadata)
end
