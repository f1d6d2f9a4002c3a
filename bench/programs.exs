# What a program's node costs to build, against the same operations called one by one, and what a step of a small loop
# costs: `mix run bench/programs.exs`. The least of 200 runs, since other work on the machine only adds.
alias EMLX.{Array, Ops, Program}

one = EMLX.eval(Array.scalar(1.0, :f32))

least = fn times, run ->
  for(_ <- 1..times, do: run.()) |> Enum.min()
end

for count <- [10, 200, 1_000] do
  program = Program.new(1, for(i <- 0..(count - 1), do: {:add, [i, 0], 1}), [count])

  built =
    least.(200, fn ->
      {time, [last]} = :timer.tc(fn -> Program.run(program, [one]) end)
      EMLX.eval(last)
      time / count
    end)

  called =
    least.(200, fn ->
      {time, last} = :timer.tc(fn -> Enum.reduce(1..count, one, fn _, sum -> Ops.add(sum, one) end) end)
      EMLX.eval(last)
      time / count
    end)

  [a, b, ratio] = Enum.map([built, called, called / built], &Float.round(&1, 2))
  IO.puts("#{count} nodes: #{a} µs each in a program, #{b} µs called one by one, ratio #{ratio}")
end

# Over {i, n}: i + 1 up to n, which is counted before it runs; compared as a float, i is asked for after every step.
step = {{:constant, %{value: 1, dtype: :s32}}, [], 1}
body = {2, [step, {:add, [0, 2], 1}], [3]}
steps = 10_000

[counted, asked] =
  for condition <- [
        {2, [{:less, [0, 1], 1}], [2]},
        {2, [{{:astype, %{dtype: :f32}}, [0], 1}, {:less, [2, 1], 1}], [3]}
      ] do
    program = Program.new(2, [{{:while, %{condition: condition, body: body}}, [0, 1], 1}], [2])

    least.(5, fn ->
      {time, _} =
        :timer.tc(fn -> EMLX.eval(Program.run(program, [Array.scalar(0, :s32), Array.scalar(steps, :s32)])) end)

      time / steps
    end)
  end

by_hand =
  least.(5, fn ->
    limit = Array.scalar(steps, :s32)

    count = fn count, i ->
      if Array.to_binary(Ops.less(i, limit)) == <<1>>, do: count.(count, Ops.add(i, 1)), else: i
    end

    {time, _} = :timer.tc(fn -> count.(count, Array.scalar(0, :s32)) end)
    time / steps
  end)

[a, b, c, ratio] = Enum.map([counted, asked, by_hand, by_hand / asked], &Float.round(&1, 2))

IO.puts(
  "a step of a loop: #{a} µs where it counts, #{b} µs where it is asked, #{c} µs from Elixir, ratio of these two #{ratio}"
)

# Windows of 400 samples at every 160th of 30 s at 16 kHz, one a step, as NxSignal has them.
windows = 3_000

sizes = [
  {:constant, %{value: windows, dtype: :s32}},
  {:constant, %{value: 160, dtype: :s32}},
  {:constant, %{value: 1, dtype: :s32}}
]

constants = for op <- sizes, do: {op, [], 1}

body =
  {4,
   tl(constants) ++
     [
       {{:reshape, %{shape: [1]}}, [2], 1},
       {{:slice_dynamic, %{axes: [0], sizes: [400]}}, [3, 6], 1},
       {{:reshape, %{shape: [1, 400]}}, [7], 1},
       {{:reshape, %{shape: [1]}}, [1], 1},
       {{:slice_update_dynamic, %{axes: [0]}}, [0, 8, 9], 1},
       {:add, [1, 5], 1},
       {:add, [2, 4], 1}
     ], [10, 11, 12]}

loop = {:while, %{condition: {4, [hd(constants), {:less, [1, 4], 1}], [5]}, body: body}}
program = Program.new(4, [{loop, [0, 1, 2, 3], 3}], [4])
[audio, out] = for shape <- [{480_000}, {windows, 400}], do: EMLX.eval(Ops.zeros(shape, :f32))

time =
  least.(10, fn ->
    inputs = [out, Array.scalar(0, :s32), Array.scalar(0, :s32), audio]
    elem(:timer.tc(fn -> EMLX.eval(Program.run(program, inputs)) end), 0)
  end)

IO.puts("#{windows} windows: #{Float.round(time / 1000, 1)} ms, #{Float.round(time / windows, 1)} µs each")
