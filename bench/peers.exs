# The models of bench/decoder and bench/encoder in other programs, driven from here: each is a Python script that runs its model once
# for each line of input and answers with the milliseconds. Loaded by their .exs files.
defmodule Peers do
  # Compares `model`, a function of an input and weights, with what bench/<name>.py and bench/<name>_xla.py make of it: whether the
  # answers are the same, then the times in turn. `input` is `{name, tensor}`, `output` the name of what they save.
  def compare(name, title, model, {input_name, input}, weights, output, arguments) do
    array = &EMLX.Backend.to_array/1
    file = Path.join(System.tmp_dir!(), "emlx_#{name}_#{System.pid()}.safetensors")
    tensors = for {weight, tensor} <- weights, do: {"#{weight}", array.(tensor)}
    EMLX.Safetensors.save(file, [{input_name, array.(input)} | tensors])
    arguments = [file | Enum.map(arguments, &to_string/1)]
    mlx = start("#{name}.py", System.fetch_env!("EMLX_BENCH_MLX"), arguments)
    xla = start("#{name}_xla.py", System.fetch_env!("EMLX_BENCH_XLA"), arguments)

    compiled = fn type ->
      input = in_type(input, type)
      weights = Map.new(weights, fn {name, tensor} -> {name, in_type(tensor, type)} end)
      run = Nx.Defn.compile(model, [input, weights], compiler: EMLX, cache: false)
      fn -> input |> run.(weights) |> array.() |> EMLX.eval() end
    end

    single = compiled.(:f32)

    for {peer, there} <- [{"bare Python MLX", mlx}, {"XLA", xla}] do
      saved = file <> ".#{output}.safetensors"
      there.("output #{saved}")
      %{^output => expected} = EMLX.Safetensors.load(saved)
      IO.puts("largest difference from #{peer}: #{largest_difference(single.(), expected)}")
      File.rm(saved)
    end

    File.rm(file)
    IO.puts("#{title}; medians of 31 in turn")
    timed = fn run -> fn -> elem(ms(run), 0) end end

    [
      {"compiled with EMLX, f32", timed.(single)},
      {"bare Python MLX, f32", fn -> mlx.("run") end},
      {"XLA, f32", fn -> xla.("run") end},
      {"compiled with EMLX, bf16", timed.(compiled.(:bf16))}
    ]
    |> medians(31)
    |> print()
  end

  defp in_type(tensor, type), do: if(Nx.Type.float?(tensor.type), do: Nx.as_type(tensor, type), else: tensor)

  # Starts `script` with the weights and what else it takes; gives a function that sends a command and waits for the number.
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
