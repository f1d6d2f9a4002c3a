# What an eager Nx.add on EMLX.Backend costs: `mix run bench/nx_dispatch.exs`. A chain of 5,000 additions, which is evaluated
# after it is built; the median of 9 chains.
Nx.default_backend(EMLX.Backend)

one = Nx.tensor(1.0)
chain = fn n -> Enum.reduce(1..n, one, fn _, sum -> Nx.add(sum, one) end) end
chain.(1_000)

times =
  for _ <- 1..9 do
    :erlang.garbage_collect()
    {time, last} = :timer.tc(fn -> chain.(5_000) end)
    5_001.0 = Nx.to_number(last)
    time / 5_000
  end

IO.puts("#{times |> Enum.sort() |> Enum.at(4) |> Float.round(2)} µs an addition")
