# A serving under load: `mix run bench/soak.exs [cpu|gpu] [seconds]`, 120 seconds by default. Eight clients ask one
# Nx.Serving on two partitions, each with a queue, for a function with a loop, a branch and a fused norm; every answer
# is compared. Every tenth of the time a line says how many answers there were, the longest wait, and what memory is
# held; the last one how much resident memory grew after the first fifth. For two operating-system processes on one GPU
# start it twice.
{device, seconds} =
  case System.argv() do
    [device, seconds] when device in ~w(cpu gpu) -> {String.to_atom(device), String.to_integer(seconds)}
    [device] when device in ~w(cpu gpu) -> {String.to_atom(device), 120}
    [] -> {:cpu, 120}
  end

Nx.global_default_backend({EMLX.Backend, device: device})

defmodule Soak do
  import Nx.Defn

  @rows 64

  defn predict(x, weight) do
    x = EMLX.Fast.rms_norm(x, Nx.broadcast(1.0, {64}))

    {x, _, _} =
      while {x, weight, i = 0}, i < 3 do
        {Nx.tanh(Nx.dot(x, weight)) + 0.01 * x, weight, i + 1}
      end

    # Enough operations to be captured as a CUDA graph.
    x = Nx.tanh(Nx.dot(x, weight) + 0.01 * x)
    x = Nx.tanh(Nx.dot(x, weight) - 0.02 * x)
    x = Nx.sigmoid(Nx.dot(x, weight) + 0.03 * x)

    if Nx.reduce_max(x) > 100 do
      x * 0.5
    else
      x + 0.1
    end
  end

  def batch(seed), do: Nx.Random.key(seed) |> Nx.Random.normal(shape: {@rows, 64}, type: :f32) |> elem(0)

  # Asks until the time is over; tells the counter of answers, and keeps the longest wait in milliseconds.
  def client(batch, expected, stop, figures) do
    start = System.monotonic_time(:millisecond)
    answer = Nx.Serving.batched_run(Soak.Serving, Nx.Batch.concatenate([batch]))
    waited = System.monotonic_time(:millisecond) - start
    apart = Nx.subtract(answer, expected) |> Nx.abs() |> Nx.reduce_max() |> Nx.to_number()
    if apart > 1.0e-4, do: :counters.add(figures, 2, 1)
    :counters.add(figures, 1, 1)
    if waited > :counters.get(figures, 3), do: :counters.put(figures, 3, waited)
    if System.monotonic_time(:millisecond) < stop, do: client(batch, expected, stop, figures)
  end

  def resident do
    "/proc/self/statm" |> File.read!() |> String.split() |> Enum.at(1) |> String.to_integer() |> Kernel.*(4)
  end
end

weight = Nx.divide(Nx.iota({64, 64}, type: :f32), 4096)

serving =
  Nx.Serving.new(fn opts ->
    predict = Nx.Defn.jit(&Soak.predict/2, opts)
    fn batch -> predict.(batch, weight) end
  end)

options = [compiler: EMLX, device: device, max_concurrency: 2]
options = [name: Soak.Serving, serving: Nx.Serving.defn_options(serving, options), partitions: true, batch_size: 256]
{:ok, _} = Supervisor.start_link([{Nx.Serving, options ++ [batch_timeout: 2]}], strategy: :one_for_one)

batches = for seed <- 1..8, do: Soak.batch(seed)
expected = for batch <- batches, do: Nx.Defn.jit_apply(&Soak.predict/2, [batch, weight], compiler: EMLX, device: device)
figures = :counters.new(3, [])
stop = System.monotonic_time(:millisecond) + seconds * 1000

clients =
  for {batch, expected} <- Enum.zip(batches, expected),
      do: Task.async(fn -> Soak.client(batch, expected, stop, figures) end)

IO.puts("#{device}       answers  wrong  longest ms   active MiB  kept MiB  resident MiB  processes")

lines =
  for tenth <- 1..10 do
    Process.sleep(seconds * 100)
    # What is only garbage in the old part of a process's heap is no growth.
    Enum.each(Process.list(), &:erlang.garbage_collect/1)
    resident = Soak.resident()
    [answers, wrong, longest] = for i <- 1..3, do: :counters.get(figures, i)
    :counters.put(figures, 3, 0)
    memory = [EMLX.Memory.active() / 1_048_576, EMLX.Memory.cached() / 1_048_576, resident / 1024]

    columns =
      [{tenth * seconds / 10, 5}, {answers, 9}, {wrong, 7}, {longest, 12}] ++
        Enum.zip(memory, [13, 10, 14]) ++ [{length(Process.list()), 11}]

    IO.puts(
      Enum.map_join(columns, fn
        {number, width} when is_float(number) -> number |> Float.round(1) |> to_string() |> String.pad_leading(width)
        {number, width} -> number |> to_string() |> String.pad_leading(width)
      end)
    )

    resident
  end

graphs = EMLX.Memory.graphs().count
Task.await_many(clients, 60_000)
growth = List.last(lines) - Enum.at(lines, 1)

IO.puts(
  "#{:counters.get(figures, 1)} answers in #{seconds} s, #{:counters.get(figures, 2)} wrong; resident memory grew by #{growth} kB; #{graphs} CUDA graphs"
)
