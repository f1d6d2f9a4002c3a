# Products of bf16 on the CPU, and the same through f32, casts included: `mix run bench/half_products.exs`. Prints the
# time of one product in a chain of 200 for both ways. The first is that of EMLX's own kernel, which takes products of 16
# bits of every size. With `EMLX_KERNELS=mlx` it is MLX's, up to `HALF_PRODUCT_BREAK_EVEN` in native/src/op/matmul.rs,
# which is what it shows then. Above that size both columns are the same path, so raise the constant to look further.
alias EMLX.Ops

time = fn chain ->
  EMLX.eval(chain.())

  for(_ <- 1..9, do: :timer.tc(fn -> EMLX.eval(chain.()) end) |> elem(0))
  |> Enum.sort()
  |> Enum.at(4)
end

IO.puts("size   multiply-adds   bf16 µs   through f32 µs")

for n <- [4, 8, 12, 16, 24, 32, 48, 64] do
  a = EMLX.eval(Ops.astype(Ops.eye(n), :bf16))

  direct = fn -> Enum.reduce(1..200, a, fn _, b -> Ops.matmul(b, a) end) end

  through = fn ->
    Enum.reduce(1..200, a, fn _, b ->
      Ops.astype(Ops.matmul(Ops.astype(b, :f32), Ops.astype(a, :f32)), :bf16)
    end)
  end

  [d, t] = for f <- [direct, through], do: Float.round(time.(f) / 200, 2)

  IO.puts(
    "#{String.pad_trailing("#{n}", 7)}#{String.pad_trailing("#{n ** 3}", 16)}#{String.pad_trailing("#{d}", 10)}#{t}"
  )
end
