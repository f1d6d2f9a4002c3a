defmodule EMLX.ExplainTest do
  # EMLX.Program.explain/2 for programs whose plans are known. The plans are those of the CPU with EMLX's own kernels,
  # and of CUDA, which need not be present.
  use ExUnit.Case, async: true

  alias EMLX.{Golden, Program}

  @moduletag skip: Golden.device() == :gpu and "the plans of the GPU under test depend on the GPU"

  @programs Path.expand("../../programs", __DIR__)

  defp lines(program, opts), do: program |> Program.explain(opts) |> String.split("\n") |> Enum.map(&String.trim/1)

  # The notes of a pass.
  defp notes(program, pass, opts) do
    program
    |> lines(opts)
    |> Enum.drop_while(&(&1 != pass))
    |> tl()
    |> Enum.take_while(&(&1 =~ ~r/^(took|left|found) /))
  end

  defp loop(condition, body),
    do: {:while, %{condition: {2, [{condition, [0, 1], 1}], [2]}, body: {2, [{body, [0], 1}], [2]}}}

  test "element-wise operations form a chain on the CPU if shapes are known" do
    instructions = [{:exp, [0], 1}, {:add, [1, 0], 1}, {{:sort, %{axis: 0}}, [2], 1}]

    known = Program.new([{"x", [32, 32], :f32}], instructions, [3], device: :cpu)
    assert ["plan for cpu", "1: chain: 2 operations", "2: node by node: sort" | _] = lines(known, device: :cpu)
    assert notes(known, "chains", device: :cpu) == ["took instruction 1: exp, add"]

    any = Program.new(1, instructions, [3], device: :cpu)
    assert ["plan for cpu", "0–2: node by node: exp, add, sort" | _] = lines(any, device: :cpu)
    assert ["left shapes and types are not known" <> _] = notes(any, "chains", device: :cpu)
  end

  test "reductions and the operations around them are rows on CUDA if shapes are known" do
    over = %{axes: [-1], keepdims: true}

    instructions = [
      {{:max, over}, [0], 1},
      {:subtract, [0, 1], 1},
      {:exp, [2], 1},
      {{:sum, over}, [3], 1},
      {:divide, [3, 4], 1}
    ]

    program = Program.new([{"x", [32, 32], :f32}], instructions, [5])
    assert ["plan for gpu" <> _, "0: rows: 5 operations" | _] = lines(program, device: :gpu)
    assert notes(program, "rows", device: :gpu) == ["took instruction 0: max, subtract, exp, sum, divide"]
    assert notes(program, "rows", device: :cpu) == ["left its kernels are generated for CUDA"]
  end

  test "the plan of a loop states whether its steps are counted, and why it runs on the host" do
    counted = Program.new(2, [{loop(:less, :square), [0, 1], 1}], [2], device: :cpu)

    assert notes(counted, "loops", device: :cpu) |> hd() =~
             "left loop 0: its steps are not counted, since its condition hangs on square"

    asked = Program.new(2, [{loop(:less, :inv), [0, 1], 1}], [2], device: :cpu, run_ahead: 2)

    assert [_, "left loop 0 runs on the host: its body has no merged operations; " <> reason, "took loop 0: after" <> _] =
             notes(asked, "loops", device: :gpu)

    assert reason == "its step is not one graph, since inv of its body may fail late"
  end

  test "any loop of operations alone is one captured step on CUDA" do
    program = Program.new(2, [{loop(:less, :cos), [0, 1], 1}], [2], device: :cpu)
    assert [_, "took loop 0: its step is one captured step"] = notes(program, "loops", device: :gpu)
    assert Enum.any?(lines(program, device: :gpu), &(&1 == "0: while: captured step, else steps asked for one by one"))
  end

  test "CUDA launches segments of many operations as one graph" do
    few = Program.new(1, for(i <- 0..6, do: {:exp, [i], 1}), [7])
    assert ["plan for gpu" <> _, "0–6: node by node: exp ×7" | _] = lines(few, device: :gpu)
    assert notes(few, "capture", device: :gpu) == ["left instruction 0: 7 launches are fewer than 8"]
    many = Program.new(1, for(i <- 0..7, do: {:exp, [i], 1}), [8])
    assert ["plan for gpu" <> _, "0: captured: 8 operations" | _] = lines(many, device: :gpu)
  end

  test "a program that was saved on the CPU is merged on the GPU, and its loop is a CUDA graph there" do
    for {name, product} <- [{"qwen3_generation", "products"}, {"qwen3_quantized_generation", "quantized_products"}] do
      program = Program.load(Path.join(@programs, name <> ".emlx"), device: :cpu)

      assert Enum.any?(
               lines(program, device: :gpu),
               &(&1 =~ ~r/^\d+: while: CUDA graph, else captured step, else steps asked for one by one$/)
             )

      notes = notes(program, "merge", device: :gpu)

      for what <- [product, "rope_heads", "cache_attention"],
          do: assert({what, Enum.any?(notes, &(&1 =~ what))} == {what, true})

      # Of the prompt's seven rows, too.
      assert Enum.any?(notes, &(&1 =~ ~r/^took instruction \d+: rope_heads$/))
      assert notes(program, "merge", device: :cpu) == ["left merge: false, which is the default on the CPU"]
    end
  end

  test "fuse: true compiles segments with MLX, and the plan names an operation left alone" do
    call = {:call, %{id: 0, outputs: [{[2], :f32}]}}

    program =
      Program.new(1, [{:exp, [0], 1}, {:cos, [1], 1}, {call, [2], 1}, {:abs, [3], 1}], [4], fuse: true, device: :cpu)

    assert ["plan for cpu", "0: fused: 2 operations", "2: call 0", "3: node by node: abs" | _] =
             lines(program, device: :cpu)

    assert ["took 2 operations from instruction 0 on", "left instruction 3: abs stands alone"] =
             notes(program, "compile", device: :cpu)
  end

  test "an unknown device is refused" do
    # Without NimbleOptions, the native library refuses it.
    {error, words} =
      if EMLX.Options.types?(),
        do: {ArgumentError, ~r/EMLX.Program.explain: .*:device.*\[:cpu, :gpu\], got: :tpu/},
        else: {EMLX.Error, ~r/explain.*:cpu or :gpu/s}

    assert_raise error, words, fn ->
      Program.explain(Program.new(1, [], [0]), device: :tpu)
    end
  end
end
