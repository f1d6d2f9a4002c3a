# Rows, the reductions that a program runs together with the operations on elements around them, against f64 on the CPU.
# On the GPU they are generated kernels.
defmodule EMLX.ProgramRowsTest do
  use ExUnit.Case, async: true

  alias EMLX.{Array, Golden, Ops, Program}

  @device Golden.device()
  @near %{f32: {1.0e-5, 2.0e-5}, f16: {4.0e-3, 8.0e-3}, bf16: {3.0e-2, 6.0e-2}}

  @shapes [
    {[40], [0]},
    {[7, 40], [-1]},
    {[40, 7], [0]},
    {[3, 2051], [1]},
    {[2051, 3], [0]},
    {[3, 50, 6], [1]},
    {[4, 20, 6], [0, 2]},
    {[2, 3, 4, 5], [0, 1, 2, 3]},
    {[300, 3], [1]},
    {[2, 70_000], [1]},
    {[70_000, 2], [0]},
    {[1, 1], [1]}
  ]

  defp numbers(shape, dtype, seed) do
    key = Ops.run({:random_key, %{seed: seed}}, [])
    bounds = [Array.scalar(0.5, :f32), Array.scalar(2.0, :f32)]
    Ops.run({:random_uniform, %{shape: shape, dtype: :f32}}, bounds ++ [key]) |> Ops.astype(dtype)
  end

  defp on(array, device), do: Array.to_device(array, device)

  defp reduce(name, axes, keepdims), do: {name, %{axes: axes, keepdims: keepdims}}

  # Instructions over an array, and a scale of its last axis, with the outputs.
  defp programs(axes) do
    %{
      softmax:
        {[
           {reduce(:max, axes, true), [0], 1},
           {:subtract, [0, 2], 1},
           {:exp, [3], 1},
           {reduce(:sum, axes, true), [4], 1},
           {:divide, [4, 5], 1}
         ], [6, 5]},
      logsumexp:
        {[
           {reduce(:max, axes, true), [0], 1},
           {:subtract, [0, 2], 1},
           {:exp, [3], 1},
           {reduce(:sum, axes, true), [4], 1},
           {:log, [5], 1},
           {:add, [6, 2], 1}
         ], [7]},
      variance:
        {[
           {reduce(:mean, axes, true), [0], 1},
           {reduce(:sum, axes, true), [0], 1},
           {:subtract, [0, 2], 1},
           {:square, [4], 1},
           {reduce(:sum, axes, true), [5], 1},
           {:divide, [6, 3], 1},
           {:sqrt, [7], 1}
         ], [8]},
      norm:
        {[
           {:multiply, [0, 1], 1},
           {:square, [2], 1},
           {reduce(:sum, axes, false), [3], 1},
           {:sqrt, [4], 1}
         ], [5, 2]},
      extremes:
        {[
           {:negative, [0], 1},
           {reduce(:max, axes, false), [2], 1},
           {:abs, [0], 1},
           {reduce(:min, axes, true), [4], 1},
           {:less, [0, 1], 1},
           {reduce(:all, axes, false), [6], 1},
           {reduce(:any, axes, false), [6], 1}
         ], [3, 5, 7, 8]}
    }
  end

  for dtype <- [:f32, :f16, :bf16] do
    test "reductions of #{dtype} in programs are those of f64" do
      dtype = unquote(dtype)

      for {shape, axes} <- @shapes, {name, {instructions, outputs}} <- programs(axes), is_far?(shape, dtype) do
        x = numbers(shape, dtype, 1)
        scale = numbers([List.last(shape)], dtype, 2)
        sizes = fn array -> array |> Array.shape() |> Tuple.to_list() end
        wide = Program.new(2, instructions, outputs, device: :cpu)
        want = Program.run(wide, Enum.map([x, scale], &Ops.astype(&1, :f64)), device: :cpu)

        for form <- [x, Golden.scattered(x)] do
          inputs = [form, scale]
          named = for {array, i} <- Enum.with_index(inputs), do: {"#{i}", sizes.(array), dtype}
          program = Program.new(named, instructions, outputs)
          have = Program.run(program, Enum.map(inputs, &on(&1, @device)), device: @device)

          for {have, want} <- Enum.zip(have, want) do
            label = "#{name} of #{inspect(shape)} over #{inspect(axes)}"
            assert Golden.compare(label, have, want, @near[dtype]) == :ok
          end
        end
      end
    end
  end

  # Sums of as many numbers are beyond f16.
  defp is_far?(shape, dtype), do: dtype != :f16 or Enum.product(shape) < 40_000
end
