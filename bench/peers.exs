# The models of bench/decoder and bench/encoder in other programs, driven from here: each is a Python script that runs its model once
# for each line of input and answers with the milliseconds. Loaded by their .exs files.
defmodule Peers do
  # Starts `script` with the weights and what else it takes; gives a function that sends a command and waits for the number.
  def start(script, folders, arguments) do
    python = System.find_executable("python3")
    environment = [{~c"PYTHONPATH", String.to_charlist(folders)}]
    options = [:binary, line: 200, args: [Path.join(__DIR__, script) | arguments], env: environment]
    port = Port.open({:spawn_executable, python}, options)

    fn command ->
      Port.command(port, command <> "\n")

      receive do
        {^port, {:data, {:eol, text}}} -> text |> Float.parse() |> elem(0)
        {^port, {:exit_status, status}} -> raise "#{script} ended with #{status}"
      after
        120_000 -> raise "#{script} did not answer"
      end
    end
  end

  def ms(fun) do
    {time, result} = :timer.tc(fun)
    {time / 1000, result}
  end

  # Runs each side in turn, `count` times after three for warming up; gives the medians in the order of the sides.
  def medians(sides, count) do
    for _ <- 1..3, {_name, run} <- sides, do: run.()
    runs = for _ <- 1..count, do: for({_name, run} <- sides, do: run.())

    for {{name, _run}, times} <- Enum.zip(sides, Enum.zip_with(runs, & &1)) do
      {name, times |> Enum.sort() |> Enum.at(div(count, 2))}
    end
  end

  # One line a side, with the ratio of the first side's time to it.
  def print([{_name, ours} | _] = medians) do
    for {name, time} <- medians do
      ratio = if time == ours, do: "", else: "   ratio of times #{Float.round(ours / time, 2)}"
      IO.puts("#{String.pad_trailing(name, 28)}#{Float.round(time, 2)} ms#{ratio}")
    end
  end

  def largest_difference(a, b) do
    EMLX.Ops.subtract(a, b) |> EMLX.Ops.abs() |> EMLX.Ops.max() |> EMLX.Array.to_list()
  end
end
