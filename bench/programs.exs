# What a program's node costs to build, against the same operations called one by one, and what a step of a small loop costs:
# `mix run bench/programs.exs`. The least of 200 runs, since other work on the machine only adds.
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

step = {{:constant, %{value: 1, dtype: :s32}}, [], 1}
loop = {:while, %{condition: {2, [{:less, [0, 1], 1}], [2]}, body: {2, [step, {:add, [0, 2], 1}], [3]}}}
program = Program.new(2, [{loop, [0, 1], 1}], [2])
steps = 10_000

in_program =
  least.(5, fn ->
    {time, _} = :timer.tc(fn -> EMLX.eval(Program.run(program, [Array.scalar(0, :s32), Array.scalar(steps, :s32)])) end)
    time / steps
  end)

by_hand =
  least.(5, fn ->
    limit = Array.scalar(steps, :s32)

    count = fn count, i ->
      if Array.to_binary(Ops.less(i, limit)) == <<1>>, do: count.(count, Ops.add(i, 1)), else: i
    end

    {time, _} = :timer.tc(fn -> count.(count, Array.scalar(0, :s32)) end)
    time / steps
  end)

[a, b, ratio] = Enum.map([in_program, by_hand, by_hand / in_program], &Float.round(&1, 2))
IO.puts("a step of a loop: #{a} µs in a program, #{b} µs from Elixir, ratio #{ratio}")
