defmodule EMLX.Compiler.Cache do
  @moduledoc false
  # The cache of compiled functions. EMLX.Compiler looks functions up in an ETS table; the process that owns the table
  # adds and removes entries. EMLX.Application starts it.
  #
  # The key is a digest (EMLX.Compiler.Identity). It holds only the identities of the arrays and large binaries that a
  # function closes over, so an entry does not keep them. Once one of them is garbage, no call can find the entry, and
  # the process removes it.
  #
  #   * An array sends the process a message when nothing refers to it any more (`EMLX.Native.watch/1`).
  #   * A binary cannot. The process keeps it, so that its address is not reused while a key contains it, and regularly
  #     asks the VM whether any other reference is left.
  #
  # The remaining entries are limited by number and by bytes; the least recently used go first. The bytes are those of
  # the programs' constants. A constant of several programs counts once. An array that the function closes over does not
  # count, since it belongs to the function.
  #
  # A second table maps small terms without arrays and large binaries to their digests: a lookup is several times as
  # fast as computing the digest. The table is ordered, because an ordered table compares terms and does not hash them.
  # The time of a comparison is bounded by the parts of the smaller term. A hash visits shared parts every time, and a
  # function over an expression of 60 nodes can have 2^60 paths.

  use GenServer

  alias EMLX.Compiler.Identity
  alias EMLX.Native

  @digests __MODULE__.Digests
  # The maximum size in bytes of a term in that table.
  @max_term 1_048_576

  @entries 1000
  # The divisor of the memory limit. CUDA graphs have the same share.
  @share 8

  # The interval in milliseconds between sweeps for garbage binaries. Sweeps take at most a twentieth of the process's
  # time.
  @interval 250
  @pause 20

  def start_link(_opts), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  @doc """
  Returns the cached value of a term. If the cache has none, calls `make`, which returns `{value, arrays}`, and caches
  the value. `arrays` has `{number, bytes}` for each array in the value.

  `captures` is a term that contains everything the digest of `term` depends on.
  """
  def fetch(term, captures, make) do
    key = digest(term)

    case lookup(__MODULE__, key) do
      [{^key, _used, value}] ->
        :ets.update_element(__MODULE__, key, {2, now()})
        value

      [] ->
        limits = limits()
        # Frees garbage before the new value allocates.
        GenServer.call(__MODULE__, :sweep, :infinity)
        {value, arrays} = make.()
        captured = Identity.captured(captures)
        small = if small?(term, captured), do: [term], else: []
        GenServer.call(__MODULE__, {:put, key, small, value, arrays, captured, limits}, :infinity)
        value
    end
  end

  defp digest(term) do
    case lookup(@digests, term) do
      [{^term, digest}] -> digest
      # An ordered table also finds a term with 1.0 in place of 1, whose digest differs.
      _ -> Identity.digest(term)
    end
  end

  defp lookup(table, key) do
    :ets.lookup(table, key)
  rescue
    ArgumentError ->
      message =
        "the application :emlx is not started, which compiler: EMLX needs; " <>
          "Application.ensure_all_started(:emlx) starts it"

      reraise message, __STACKTRACE__
  end

  defp small?(term, captured) do
    captured == %{arrays: [], binaries: []} and Identity.small?(term) and :erlang.external_size(term) <= @max_term
  end

  @doc "Removes all entries. Functions that are in use stay usable."
  def clear, do: GenServer.call(__MODULE__, :clear, :infinity)

  @doc "Returns the number of entries, and the bytes of the constants that only they keep."
  def size, do: GenServer.call(__MODULE__, :size, :infinity)

  defp now, do: System.monotonic_time()

  # The limits of entries and bytes.
  defp limits do
    config = Application.get_env(:emlx, :compiler_cache, [])
    limits = if is_integer(config), do: [entries: config], else: config
    if not Keyword.keyword?(limits) or Keyword.keys(limits) -- [:entries, :bytes] != [], do: refuse(config)
    limits = {Keyword.get(limits, :entries, @entries), Keyword.get_lazy(limits, :bytes, &bytes/0)}
    if not Enum.all?(Tuple.to_list(limits), &(is_integer(&1) and &1 >= 0)), do: refuse(config)
    limits
  end

  defp bytes, do: div(EMLX.Memory.limit(), @share)

  defp refuse(limits) do
    raise ArgumentError,
          "config :emlx, compiler_cache: is a number of entries, or a keyword list of :entries and :bytes, each a " <>
            "number from 0, got: #{inspect(limits)}"
  end

  # ---- the process ----

  # `entries` has `{key, ties, arrays}`, where a tie is `{:array, number}` or `{:binary, place}`; `ties` has
  # `{tie, key}`; `arrays` has `{number, bytes, count}`. `binaries` maps places to binaries. It is a map on the
  # process's heap and no ETS table, since `Process.info/2` lists the binaries of a heap only.
  @impl true
  def init(nil) do
    :ets.new(__MODULE__, [:named_table, :public, :set, read_concurrency: true])
    :ets.new(@digests, [:named_table, :protected, :ordered_set, read_concurrency: true])

    {:ok,
     %{
       entries: :ets.new(:entries, [:private]),
       ties: :ets.new(:ties, [:private, :bag]),
       arrays: :ets.new(:arrays, [:private]),
       binaries: %{},
       bytes: 0,
       timer: nil
     }}
  end

  @impl true
  def handle_call({:put, key, small, value, arrays, captured, limits}, from, state) do
    for term <- small, do: :ets.insert(@digests, {term, key})
    state = if :ets.member(__MODULE__, key), do: state, else: put(state, key, value, arrays, captured)
    {:noreply, state |> trim(limits) |> schedule(), {:continue, {:reply, from, :ok}}}
  end

  def handle_call(:sweep, from, state), do: {:noreply, sweep(state), {:continue, {:reply, from, :ok}}}

  def handle_call(:size, from, state) do
    state = sweep(state)
    size = %{entries: :ets.info(__MODULE__, :size), bytes: state.bytes}
    {:noreply, state, {:continue, {:reply, from, size}}}
  end

  def handle_call(:clear, from, state) do
    :ets.delete_all_objects(@digests)
    keys = :ets.select(state.entries, [{{:"$1", :_, :_}, [], [:"$1"]}])
    {:noreply, Enum.reduce(keys, state, &evict/2), {:continue, {:reply, from, :ok}}}
  end

  # Collects the message and the previous state, which would keep arrays and binaries alive.
  @impl true
  def handle_continue({:reply, from, reply}, state) do
    :erlang.garbage_collect()
    GenServer.reply(from, reply)
    {:noreply, state}
  end

  @impl true
  def handle_info({:emlx_array_gone, number}, state), do: {:noreply, evict_tied({:array, number}, state), :hibernate}

  def handle_info(:sweep, state) do
    {microseconds, state} = :timer.tc(fn -> sweep(%{state | timer: nil}) end)
    {:noreply, schedule(state, max(@interval, div(microseconds * @pause, 1000))), :hibernate}
  end

  def handle_info(_other, state), do: {:noreply, state}

  defp schedule(state, interval \\ @interval)

  defp schedule(%{timer: nil, binaries: binaries} = state, interval) when map_size(binaries) > 0,
    do: %{state | timer: Process.send_after(self(), :sweep, interval)}

  defp schedule(state, _interval), do: state

  defp put(state, key, value, arrays, %{arrays: captured, binaries: binaries}) do
    {numbers, refs} = Enum.unzip(captured)
    Native.call!(Native.watch(refs))
    ties = Enum.map(numbers, &{:array, &1}) ++ for {place, _binary} <- binaries, do: {:binary, place}
    :ets.insert(state.ties, for(tie <- ties, do: {tie, key}))

    # A value, such as one with a hook, may itself refer to arrays that the function closes over. Those count.
    kept = sizes(Identity.captured(value).arrays)
    arrays = arrays |> Map.new() |> Map.merge(kept) |> Map.drop(numbers -- Map.keys(kept)) |> Map.to_list()

    added =
      for {number, bytes} <- arrays,
          :ets.update_counter(state.arrays, number, {3, 1}, {number, bytes, 0}) == 1,
          do: bytes

    :ets.insert(state.entries, {key, ties, arrays})
    :ets.insert(__MODULE__, {key, now(), value})
    %{state | binaries: Map.merge(Map.new(binaries), state.binaries), bytes: state.bytes + Enum.sum(added)}
  end

  defp sizes(arrays) do
    refs = for {_number, ref} <- arrays, do: ref
    refs |> Native.sizes() |> Native.call!() |> Map.new()
  end

  # Deletes the entry from the table before it drops the entry's binaries, whose addresses a new binary may get.
  defp evict(key, state) do
    case :ets.take(state.entries, key) do
      [{^key, ties, arrays}] ->
        :ets.delete(__MODULE__, key)
        if ties == [], do: :ets.match_delete(@digests, {:_, key})
        for tie <- ties, do: :ets.delete_object(state.ties, {tie, key})
        free = for {:binary, place} = tie <- ties, not :ets.member(state.ties, tie), do: place

        freed =
          for {number, bytes} <- arrays, :ets.update_counter(state.arrays, number, {3, -1}) == 0, do: {number, bytes}

        for {number, _bytes} <- freed, do: :ets.delete(state.arrays, number)
        bytes = for {_number, bytes} <- freed, reduce: state.bytes, do: (sum -> sum - bytes)
        %{state | binaries: Map.drop(state.binaries, free), bytes: bytes}

      [] ->
        state
    end
  end

  defp evict_tied(tie, state) do
    keys = for {_tie, key} <- :ets.lookup(state.ties, tie), do: key
    Enum.reduce(keys, state, &evict/2)
  end

  # ---- limits ----

  # Frees a further tenth, so that not every new entry trims. The most recently used entry stays whatever its size:
  # otherwise it would be compiled again at each call.
  defp trim(state, {entries, bytes}) do
    size = :ets.info(__MODULE__, :size)

    if size > entries or state.bytes > bytes do
      by_use = __MODULE__ |> :ets.select([{{:"$1", :"$2", :_}, [], [{{:"$2", :"$1"}}]}]) |> Enum.sort()
      {oldest, rest} = Enum.split(by_use, if(size > entries, do: size - entries + div(entries, 10), else: 0))
      state = Enum.reduce(oldest, state, fn {_used, key}, state -> evict(key, state) end)
      trim_bytes(rest, state, bytes)
    else
      state
    end
  end

  defp trim_bytes(by_use, state, limit) do
    target = if state.bytes > limit, do: limit - div(limit, 10), else: limit

    by_use
    |> Enum.drop(-1)
    |> Enum.reduce_while(state, fn {_used, key}, state ->
      if state.bytes > target, do: {:cont, evict(key, state)}, else: {:halt, state}
    end)
  end

  # ---- garbage ----

  # Evicts the entries of binaries without other references.
  defp sweep(%{binaries: binaries} = state) when map_size(binaries) == 0, do: state

  defp sweep(state) do
    with own when own != %{} <- own(),
         # Garbage of this process counts as a reference.
         true = :erlang.garbage_collect(),
         own when own != %{} <- own() do
      dead = for {place, binary} <- state.binaries, Enum.any?(allocations(binary), &is_map_key(own, &1)), do: place
      Enum.reduce(dead, state, &evict_tied({:binary, &1}, &2))
    else
      _ -> state
    end
  end

  # The binaries that only this process refers to, by the VM's names for them.
  defp own do
    {:binary, binaries} = Process.info(self(), :binary)

    binaries
    |> Enum.group_by(fn {name, _size, _references} -> name end)
    |> Map.filter(fn {_name, [{_, _, references} | _] = mine} -> references <= length(mine) end)
  end

  # The VM's names for the allocation that a binary is part of, as listed for a process that refers to nothing else. A
  # literal has none.
  defp allocations(binary) do
    {process, monitor} =
      spawn_monitor(fn ->
        receive do
          {:binary, binary} -> exit({Process.info(self(), :binary), byte_size(binary)})
        end
      end)

    send(process, {:binary, binary})

    receive do
      {:DOWN, ^monitor, :process, ^process, {{:binary, binaries}, _size}} -> Enum.map(binaries, &elem(&1, 0))
    end
  end
end
