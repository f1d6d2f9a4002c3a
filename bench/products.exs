# Matrix products of 1024 × 1024 on the CPU, here and in Python MLX's own wheel, which has another BLAS:
# `mix run bench/products.exs`. Prints medians and ratios of both sides in turn.
for file <- ~w(statistics measure table peer peers), do: Code.require_file("suite/#{file}.ex", __DIR__)

alias EMLX.Bench.{Measure, Peer, Peers, Statistics, Table}
alias EMLX.Ops

wheel =
  case Peers.start([:wheel], %{device: :cpu}, __DIR__) do
    {%{wheel: wheel}, []} -> wheel
    {_, [note]} -> raise note
  end

normal = Ops.random_normal(Ops.random_key(1), {1024, 1024})

rows =
  for type <- [:f32, :bf16, :f16] do
    a = EMLX.eval(Ops.astype(normal, type))
    number = Peer.define(wheel, :product, size: 1024, dtype: type)
    here = fn -> Measure.time(fn -> EMLX.eval(Ops.matmul(a, a)) end) end
    there = fn -> Peer.time(wheel, number) end
    figures = Measure.in_turn([here: here, there: there], false, fn -> :ok end)
    [mine, theirs] = for side <- [:here, :there], do: Statistics.median(figures[side])
    texts = for time <- [mine, theirs], do: Statistics.text(time, :time)
    ["#{type}" | texts] ++ [Statistics.digits(mine / theirs), Statistics.verdict(mine / theirs)]
  end

IO.puts("1024 × 1024 by 1024 × 1024 on the CPU, medians\n")
IO.puts(Table.text(["type", "here", "Python MLX's wheel", "ratio", ""], rows, left: [4]))
