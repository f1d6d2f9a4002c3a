# What building one node costs from Elixir, and reading a scalar that is computed: `mix run bench/dispatch.exs`, on the GPU
# `mix run bench/dispatch.exs gpu`. A chain of 20,000 additions, which is evaluated after it is built (on the GPU from time to time
# meanwhile), and 20,000 reads; the median of 9 of each.
alias EMLX.{Array, Ops}

one = Array.scalar(1.0, :f32, device: if(System.argv() == ["gpu"], do: :gpu, else: :cpu))
chain = fn n -> Enum.reduce(1..n, one, fn _, sum -> Ops.add(sum, one) end) end
chain.(1_000)

times =
  for _ <- 1..9 do
    # What the chain before left is not this one's cost.
    :erlang.garbage_collect()
    {time, last} = :timer.tc(fn -> chain.(20_000) end)
    20_001.0 = Array.to_list(last)
    time / 20_000
  end

reads =
  for _ <- 1..9 do
    {time, :ok} = :timer.tc(fn -> Enum.each(1..20_000, fn _ -> Array.to_binary(one) end) end)
    time / 20_000
  end

median = fn times -> times |> Enum.sort() |> Enum.at(4) |> Float.round(2) end
IO.puts("#{median.(times)} µs a node, #{median.(reads)} µs a read")
