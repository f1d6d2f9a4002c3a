# What the spans of telemetry cost where nobody listens: `mix run bench/telemetry.exs`. The same calls with spans and
# without, in turn in one run; the median of 21 of each, of 2,000 calls. With a listener, which counts, on the right.
alias EMLX.{Array, Ops, Program, Telemetry}

chain = fn count -> Program.new(1, Enum.map(0..(count - 1), &{:negative, [&1], 1}), [count]) end
x = EMLX.eval(Ops.ones({16}, :f32))
binary = :binary.copy(<<0>>, 65_536)
[one, ten, hundred] = Enum.map([1, 10, 100], chain)

calls = [
  {"a span alone", fn -> Telemetry.span(:run, %{instructions: 1}, %{function: nil}, fn -> {nil, %{}, %{}} end) end},
  {"run of 1 instruction", fn -> Program.run(one, [x]) end},
  {"run of 10 instructions", fn -> Program.run(ten, [x]) end},
  {"run of 100 instructions", fn -> Program.run(hundred, [x]) end},
  {"evaluation of one addition", fn -> EMLX.eval(Ops.add(x, x)) end},
  {"addition, read", fn -> Array.to_binary(Ops.add(x, x)) end},
  {"read of what is there", fn -> Array.to_binary(x) end},
  {"array of a 64 KiB binary", fn -> Array.from_binary(binary, {16_384}, :f32) end}
]

time = fn call ->
  {time, :ok} = :timer.tc(fn -> Enum.each(1..2_000, fn _ -> call.() end) end)
  EMLX.eval(x)
  :erlang.garbage_collect()
  time / 2_000
end

# The switch that EMLX.Telemetry.start/0 sets.
side = fn
  :without, call ->
    :persistent_term.put(Telemetry, false)
    result = time.(call)
    :persistent_term.put(Telemetry, true)
    result

  :with, call ->
    time.(call)

  :heard, call ->
    {result, _lines} = Telemetry.profile(fn -> time.(call) end)
    result
end

median = fn times -> times |> Enum.sort() |> Enum.at(10) end
text = fn number -> number |> :erlang.float_to_binary(decimals: 2) |> String.pad_leading(11) end
IO.puts("                              no spans µs   spans µs      ratio   heard µs")

for {name, call} <- calls do
  Enum.each(1..2, fn _ -> time.(call) end)
  rounds = for _ <- 1..21, do: for(kind <- [:without, :with, :heard], do: side.(kind, call))
  [without, spans, heard] = rounds |> Enum.zip_with(& &1) |> Enum.map(median)
  IO.puts(String.pad_trailing(name, 30) <> text.(without) <> text.(spans) <> text.(spans / without) <> text.(heard))
end
