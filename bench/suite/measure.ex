defmodule EMLX.Bench.Measure do
  @moduledoc """
  Runs the sides of a group in turn, so that whatever else the machine does slows all alike.
  """

  # Rounds at least and at most, and the seconds after which no further round starts.
  @full %{least: 5, most: 31, seconds: 10}
  @quick %{least: 3, most: 5, seconds: 2}

  # OpenBLAS's threads wait for more work for 100 ms, turning round on a core that the next side needs.
  @pause 150

  @doc "How many rounds there are at most."
  def rounds(quick?), do: plan(quick?).most

  # Memory is the same each time, but for what a garbage collector leaves.
  @bytes %{least: 3, most: 3, seconds: 0}

  defp plan(:bytes), do: @bytes
  defp plan(quick?), do: if(quick?, do: @quick, else: @full)

  @doc """
  The figures of each side, `%{name => [figure]}`, for time (whether `--quick`) or memory (`:bytes`), after `warm`
  rounds that do not count. `step` is called after each round. Every other round goes through the sides backwards.
  `pause?` says whether there is a pause before each side.
  """
  def in_turn(sides, what, step, warm \\ 2, pause? \\ true) do
    plan = Map.put(plan(what), :pause, if(pause?, do: @pause, else: 0))
    for _ <- 1..warm//1, {_name, run} <- sides, do: run.()
    until = now() + plan.seconds * 1000
    {rounds, _} = rounds(sides, plan, until, step, 1, [])
    for {{name, _}, i} <- Enum.with_index(sides), into: %{}, do: {name, Enum.map(rounds, &Enum.at(&1, i))}
  end

  defp rounds(sides, plan, until, step, number, done) do
    if number > plan.most or (number > plan.least and now() > until) do
      {done, number - 1}
    else
      forwards? = rem(number, 2) == 1
      sides_in_order = if forwards?, do: sides, else: Enum.reverse(sides)
      figures = once(sides_in_order, plan.pause)
      figures = if forwards?, do: figures, else: Enum.reverse(figures)
      step.()
      rounds(sides, plan, until, step, number + 1, [figures | done])
    end
  end

  defp once([_] = sides, _pause), do: for({_name, run} <- sides, do: run.())

  defp once(sides, pause) do
    for {_name, run} <- sides do
      Process.sleep(pause)
      run.()
    end
  end

  @doc "Microseconds of a function, without the garbage that was there before it."
  def time(run) do
    :erlang.garbage_collect()
    start = System.monotonic_time(:nanosecond)
    run.()
    (System.monotonic_time(:nanosecond) - start) / 1000
  end

  @doc "Bytes that a run takes at its peak beyond what is held before it."
  def peak(run) do
    EMLX.Memory.clear_cache()
    held = settled(nil, 50)
    EMLX.Memory.reset_peak()
    run.()
    max(EMLX.Memory.peak() - held, 0)
  end

  # What was given up is freed a little later where a queue or a GPU is at work.
  defp settled(before, 0), do: before

  defp settled(before, times) do
    :erlang.garbage_collect()
    Process.sleep(20)

    case EMLX.Memory.active() do
      ^before -> before
      active -> settled(active, times - 1)
    end
  end

  @doc """
  How many runs to make one sample of, so that it takes some milliseconds: from 1 to `most`.
  """
  def links(run, most \\ 64) do
    run.()
    once = Enum.min(for _ <- 1..3, do: time(run))
    round(4_000 / max(once, 0.1)) |> max(1) |> min(most)
  end

  defp now, do: System.monotonic_time(:millisecond)
end
