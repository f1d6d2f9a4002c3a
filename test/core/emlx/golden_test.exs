# Every operation of the native table against the golden values of NumPy and MLX (test/golden).
defmodule EMLX.GoldenTest do
  use ExUnit.Case, async: true

  alias EMLX.{Golden, OpTable, Program}

  # The fused kernels have their own module.
  @families Golden.families() -- ["kernels"]
  for file <- Golden.files(), do: @external_resource(file)

  defp check_all(operation, run) do
    failures =
      for case_ <- Golden.cases_of(@families, operation),
          {:error, text} <- [Golden.check(case_, run)],
          do: text

    if failures != [] do
      shown = Enum.take(failures, 8)
      more = length(failures) - length(shown)
      flunk(Enum.join(shown, "\n") <> if(more > 0, do: "\nand #{more} cases more", else: ""))
    end
  end

  # Runs an operation as a program, with a copy of each input, so that MLX may write results over its operands.
  defp run_as_program(op, inputs) do
    {arrays, []} = inputs |> Enum.reject(&is_nil/1) |> Enum.split(length(inputs))
    count = length(arrays)
    copies = for i <- 0..(count - 1)//1, do: {:copy, [i], 1}

    {numbers, _} =
      Enum.map_reduce(inputs, count, fn
        nil, next -> {nil, next}
        _array, next -> {next, next + 1}
      end)

    outputs = length(List.wrap(Golden.run(op, inputs)))
    results = Enum.to_list((2 * count)..(2 * count + outputs - 1)//1)
    Program.run(Program.new(count, copies ++ [{op, numbers, outputs}], results), arrays, device: Golden.device())
  end

  # The differences on the GPU, with their reasons.
  @on_gpu %{
    quantize: "CUDA's has -0 where the reference has 0 in 4-bit floats, and rounds a few codes of bf16 the other way"
  }

  for {operation, count} <- Golden.operations(@families) do
    @operation operation

    describe "#{operation} (#{count} cases)" do
      reason = @on_gpu[operation]
      if reason && Golden.device() == :gpu, do: @describetag(skip: reason)

      test "an operation returns the reference's shapes, types and values" do
        check_all(@operation, &Golden.run/2)
      end

      test "a program whose values can be overwritten returns the reference's values" do
        check_all(@operation, &run_as_program/2)
      end

      test "an operation on strided views returns the reference's values" do
        check_all(@operation, fn op, inputs -> Golden.run(op, Enum.map(inputs, &Golden.scattered/1)) end)
      end
    end
  end

  # Operations without golden values, each with the reason.
  @without Map.new(
             [:products, :quantized_products, :rope_heads, :cache_attention],
             &{&1, "EMLX.MergedTest compares it with the operations that it stands for, which have theirs"}
           )
           |> Map.put(:solve_or_nan, "EMLX.LinalgTest compares it with `solve`, which has its own")

  test "no operation of the native table is without golden values" do
    names = OpTable.names()
    assert length(names) > 200

    covered = for {operation, _count} <- Golden.operations(Golden.families()), do: operation

    assert names -- (covered ++ Map.keys(@without)) == []
    assert covered -- names == [], "there are golden values of operations that do not exist"
    assert Map.keys(@without) -- names == [], "a reason is given for an operation that does not exist"
  end
end
