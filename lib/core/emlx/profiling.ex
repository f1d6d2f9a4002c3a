defmodule EMLX.Profiling do
  @moduledoc """
  Counts of evaluations and reads, under the names of the C++ EMLX. `EMLX.Telemetry.profile/1` reports more: times,
  bytes, runs and transfers.

  With `config :emlx, profile_eval: true`, counting starts with the application. If the setting is made later, `init/0`
  starts it. Without the setting, nothing is counted and no handler is attached. The counts are those of the whole VM:

    * `:eval` - waits of processes for the evaluation of arrays (`EMLX.eval/2`)
    * `:item` - calls of `EMLX.item/1`
    * `:to_blob` - reads of tensors and arrays (`Nx.to_binary/1`, `EMLX.to_blob/1`)

  """

  @counters {EMLX, :profiling_counters}
  @indices [eval: 1, item: 2, to_blob: 3]
  @events [[:emlx, :eval, :stop], [:emlx, :to_binary, :stop]]

  # Nx depends on telemetry; without it, evaluations and reads emit no events.
  @compile {:no_warn_undefined, :telemetry}

  @doc """
  Starts counting if `config :emlx, profile_eval: true` is set, and returns the counters; else returns `nil`.
  `EMLX.Application` calls it.
  """
  @spec init :: :counters.counters_ref() | nil
  def init do
    if Application.get_env(:emlx, :profile_eval, false) do
      counters = :counters.new(length(@indices), [:atomics])
      :persistent_term.put(@counters, counters)

      if EMLX.Telemetry.told?() do
        :telemetry.detach(__MODULE__)
        :ok = :telemetry.attach_many(__MODULE__, @events, &__MODULE__.count/4, nil)
      end

      counters
    end
  end

  @doc "Returns whether counting has started."
  @spec enabled? :: boolean
  def enabled?, do: counters() != nil

  @doc false
  def count([:emlx, :eval, :stop], _measurements, %{op: :eval}, _config), do: inc_eval()
  def count([:emlx, :to_binary, :stop], _measurements, _metadata, _config), do: inc_to_blob()
  def count(_event, _measurements, _metadata, _config), do: :ok

  for {name, index} <- @indices do
    @doc "Adds one to the count `:#{name}`. Does nothing if counting has not started. Returns `:ok`."
    @spec unquote(:"inc_#{name}")() :: :ok
    def unquote(:"inc_#{name}")(), do: add(unquote(index))
  end

  defp add(index) do
    case counters() do
      nil -> :ok
      counters -> :counters.add(counters, index, 1)
    end
  end

  @doc "Returns `{:ok, %{eval: count, item: count, to_blob: count}}`, or `{:error, :not_initialized}`."
  @spec read :: {:ok, %{eval: integer, item: integer, to_blob: integer}} | {:error, :not_initialized}
  def read do
    case counters() do
      nil -> {:error, :not_initialized}
      counters -> {:ok, Map.new(@indices, fn {name, index} -> {name, :counters.get(counters, index)} end)}
    end
  end

  @doc "Sets the counts to 0. Returns `:ok`."
  @spec reset :: :ok
  def reset do
    if counters = counters(), do: Enum.each(@indices, fn {_name, index} -> :counters.put(counters, index, 0) end)
    :ok
  end

  @doc "Prints the counts on one line, after a label. Returns `:ok`."
  @spec snapshot(String.t()) :: :ok
  def snapshot(label \\ "") do
    text =
      case read() do
        {:ok, counts} -> "eval=#{counts.eval} item=#{counts.item} to_blob=#{counts.to_blob}"
        {:error, :not_initialized} -> "not counting: config :emlx, profile_eval: true starts it"
      end

    IO.puts("[EMLX.Profiling#{if label != "", do: " #{label}"}] #{text}")
  end

  defp counters, do: :persistent_term.get(@counters, nil)
end
