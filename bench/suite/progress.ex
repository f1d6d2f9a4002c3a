defmodule EMLX.Bench.Progress do
  @moduledoc """
  One line that shows how far the suite is and what it measures. Written where the output is a terminal, and only there.
  """

  defstruct [:total, :started, :width, done: 0, label: "", drawn: 0]

  @doc "A bar of `total` steps; draws nothing if the output is no terminal."
  def new(total) do
    width =
      case :io.columns() do
        {:ok, columns} -> columns
        {:error, _} -> nil
      end

    %__MODULE__{total: total, started: now(), width: width}
  end

  @doc "Draws the bar with what is measured now."
  def label(progress, label), do: draw(%{progress | label: label})

  @doc "One step is done. Drawn ten times a second at most, since drawing takes time from what is measured."
  def step(progress) do
    progress = %{progress | done: progress.done + 1}
    if now() - progress.drawn >= 100, do: draw(progress), else: progress
  end

  @doc "Steps that will not be done after all."
  def skip(progress, steps), do: %{progress | done: progress.done + steps}

  @doc "Takes the bar away, so that a table can be printed in its place."
  def clear(%{width: nil} = progress), do: progress

  def clear(progress) do
    IO.write("\r\e[2K")
    %{progress | drawn: 0}
  end

  defp draw(%{width: nil} = progress), do: progress

  defp draw(progress) do
    IO.write("\r\e[2K" <> line(progress, progress.width, now() - progress.started))
    %{progress | drawn: now()}
  end

  @doc """
  The line for a width in characters and the milliseconds since the start.

      iex> progress = %EMLX.Bench.Progress{total: 4, done: 1, label: "rope"}
      iex> EMLX.Bench.Progress.line(progress, 60, 65_000)
      "[#####...............]  25 %  1:05, about 3:15 left  rope"
  """
  def line(progress, width, elapsed) do
    part = min(progress.done / max(progress.total, 1), 1.0)
    filled = round(20 * part)
    bar = String.duplicate("#", filled) <> String.duplicate(".", 20 - filled)
    percent = String.pad_leading("#{floor(100 * part)}", 3)
    left = if part > 0.02, do: ", about #{clock(elapsed * (1 - part) / part)} left", else: ""
    String.slice("[#{bar}] #{percent} %  #{clock(elapsed)}#{left}  #{progress.label}", 0, max(width - 1, 0))
  end

  defp clock(milliseconds) do
    seconds = round(milliseconds / 1000)
    "#{div(seconds, 60)}:#{seconds |> rem(60) |> Integer.to_string() |> String.pad_leading(2, "0")}"
  end

  defp now, do: System.monotonic_time(:millisecond)
end
