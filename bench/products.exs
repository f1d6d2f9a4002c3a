# The Elixir side of bench/products: both sides in turn, medians, ratios.
alias EMLX.Ops

python = System.find_executable("python3")
script = Path.join(__DIR__, "products.py")
port = Port.open({:spawn_executable, python}, [:binary, line: 200, args: [script]])

there = fn type ->
  Port.command(port, "#{type}\n")

  receive do
    {^port, {:data, {:eol, text}}} -> text |> Float.parse() |> elem(0)
  after
    60_000 -> raise "Python MLX did not answer"
  end
end

median = fn list -> list |> Enum.sort() |> Enum.at(div(length(list), 2)) end
normal = Ops.random_normal(Ops.random_key(1), {1024, 1024})

IO.puts("1024 × 1024 by 1024 × 1024 on the CPU, median of 7 in turn\n")
IO.puts("type   here       Python MLX's wheel   ratio")

for type <- [:f32, :bf16, :f16] do
  a = EMLX.eval(Ops.astype(normal, type))

  here = fn ->
    {time, _} = :timer.tc(fn -> EMLX.eval(Ops.matmul(a, a)) end)
    time / 1000
  end

  here.()
  there.(type)
  {ours, theirs} = Enum.unzip(for _ <- 1..7, do: {here.(), there.(type)})
  {ours, theirs} = {median.(ours), median.(theirs)}

  IO.puts(
    String.pad_trailing("#{type}", 7) <>
      String.pad_trailing("#{Float.round(ours, 1)} ms", 11) <>
      String.pad_trailing("#{Float.round(theirs, 1)} ms", 21) <>
      "#{Float.round(theirs / ours, 1)}"
  )
end
