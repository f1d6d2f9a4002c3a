defmodule EMLX.Compiler.Cache do
  @moduledoc false
  # Compiled functions by what they were compiled from. EMLX.Compiler asks; EMLX.Application owns the table.
  #
  # A function that closes over values is another one for other values, so their number is not bounded by a program's text.
  # The table holds the ones used last: `config :emlx, compiler_cache: 1000`.

  use GenServer

  @default 1000

  def start_link(_opts), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  @doc "What is kept for `key`, or what `make` gives, which is then kept."
  def fetch(key, make) do
    case lookup(key) do
      [{^key, _used, value}] ->
        :ets.update_element(__MODULE__, key, {2, now()})
        value

      [] ->
        value = make.()
        :ets.insert(__MODULE__, {key, now(), value})
        if :ets.info(__MODULE__, :size) > limit(), do: GenServer.cast(__MODULE__, :trim)
        value
    end
  end

  defp lookup(key) do
    :ets.lookup(__MODULE__, key)
  rescue
    ArgumentError ->
      raise "the application :emlx is not started, which compiler: EMLX needs; Application.ensure_all_started(:emlx) starts it"
  end

  @doc "Forgets everything. What is in use goes on."
  def clear, do: :ets.delete_all_objects(__MODULE__)

  @doc "How many functions are kept."
  def size, do: :ets.info(__MODULE__, :size)

  defp limit, do: Application.get_env(:emlx, :compiler_cache, @default)

  defp now, do: System.monotonic_time()

  @impl true
  def init(nil) do
    :ets.new(__MODULE__, [:named_table, :public, :set, read_concurrency: true])
    {:ok, nil}
  end

  # Leaves room for a tenth, so that it is not called for each.
  @impl true
  def handle_cast(:trim, state) do
    excess = :ets.info(__MODULE__, :size) - limit()

    if excess > 0 do
      __MODULE__
      |> :ets.select([{{:"$1", :"$2", :_}, [], [{{:"$2", :"$1"}}]}])
      |> Enum.sort()
      |> Enum.take(excess + div(limit(), 10))
      |> Enum.each(fn {_used, key} -> :ets.delete(__MODULE__, key) end)
    end

    {:noreply, state}
  end
end
