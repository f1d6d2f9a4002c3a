# A benchmark's other side in another program, driven from here: a Python script that runs once for each line of input and answers with
# the milliseconds. Loaded by bench/generation.exs; the suite (mix emlx.bench) has EMLX.Bench.Peer.
defmodule Peers do
  # Starts `script` with what it takes; gives a function that sends a command and waits for the number.
  def start(script, folders, arguments) do
    python = System.find_executable("python3")
    environment = [{~c"PYTHONPATH", String.to_charlist(folders)}]
    options = [:binary, :exit_status, line: 200, args: [Path.join(__DIR__, script) | arguments], env: environment]
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
end
