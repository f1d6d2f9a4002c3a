defmodule EMLX.MiniLMTest do
  @moduledoc "The saved programs of examples/minilm, with made-up weights in place of the checkpoint's."
  use ExUnit.Case, async: true

  alias EMLX.{Array, Ops, Program}

  @folder Path.expand("../../../examples/minilm", __DIR__)
  @tolerance 1.0e-5

  setup_all do
    programs =
      for name <- ["minilm", "minilm_composed"], do: Program.load(Path.join(@folder, name <> ".emlx"), device: :cpu)

    {:ok, programs: programs}
  end

  test "MiniLM's saved programs take weights by name, token ids and a mask", %{programs: programs} do
    for {program, name} <- Enum.zip(programs, ["minilm", "minilm_composed"]) do
      inputs = for {name, shape, dtype} <- Program.inputs(program), into: %{}, do: {name, {shape, dtype}}
      # Five weights of the embeddings, and sixteen of each layer.
      assert map_size(inputs) == 5 + 6 * 16 + 2
      assert inputs["embeddings.word_embeddings.weight"] == {[30_522, 384], :f32}
      assert inputs["encoder.layer.5.output.dense.weight"] == {[384, 1536], :f32}
      assert {[_batch, _length] = shape, :s32} = inputs["input_ids"]
      assert inputs["attention_mask"] == {shape, :s32}
      assert File.stat!(Path.join(@folder, name <> ".safetensors")).size < 16_384
    end
  end

  test "only MiniLM's rewritten program has kernels for attention and norms", %{programs: programs} do
    counts =
      for program <- programs do
        text = Program.inspect(program, device: :cpu)

        for kernel <- ["scaled_dot_product_attention", "layer_norm"],
            do: length(String.split(text, " = #{kernel}(")) - 1
      end

    assert counts == [[6, 13], [0, 0]]
  end

  @tag :slow
  test "MiniLM's saved programs compute equal embeddings of length 1", %{programs: [fused, composed]} do
    weights = weights(fused)
    {_, [batch, length], _} = fused |> Program.inputs() |> List.keyfind("input_ids", 0)

    run = fn program, padding ->
      ids = for b <- 1..batch, i <- 1..length, do: if(i <= 3 + b, do: 100 * b + i, else: padding)
      mask = for b <- 1..batch, i <- 1..length, do: if(i <= 3 + b, do: 1, else: 0)

      inputs =
        for {name, list} <- [{"input_ids", ids}, {"attention_mask", mask}],
            into: weights,
            do: {name, integers(list, batch, length)}

      [embeddings] = Program.run(program, inputs, device: :cpu)
      assert {Array.shape(embeddings), Array.dtype(embeddings)} == {{batch, 384}, :f32}
      Array.to_list(embeddings)
    end

    expected = run.(composed, 0)
    for row <- expected, do: assert_in_delta(row |> Enum.map(&(&1 * &1)) |> Enum.sum(), 1.0, @tolerance)
    # Different sentences have different embeddings.
    assert expected |> Enum.map(&hd/1) |> Enum.uniq() |> length() == batch

    for actual <- [run.(fused, 0), run.(fused, 7)],
        {row, other} <- Enum.zip(actual, expected),
        {a, b} <- Enum.zip(row, other),
        do: assert_in_delta(a, b, @tolerance)
  end

  defp integers(list, batch, length),
    do: Array.from_binary(for(x <- list, into: <<>>, do: <<x::32-native>>), {batch, length}, :s32, device: :cpu)

  # The entries of the i-th weight are sin(i + k²) / 8, about as large as a model's; those of the norms' scales are 1
  # more.
  defp weights(program) do
    named = for {name, shape, :f32} <- Program.inputs(program), do: {name, List.to_tuple(shape)}

    for {{name, shape}, i} <- Enum.with_index(named), into: %{} do
      k = Ops.remainder(Ops.arange(0, Tuple.product(shape), device: :cpu), 997.0)
      noise = k |> Ops.square() |> Ops.add(i * 1.0) |> Ops.sin() |> Ops.divide(8.0) |> Ops.reshape(Tuple.to_list(shape))
      {name, if(String.ends_with?(name, "LayerNorm.weight"), do: Ops.add(noise, 1.0), else: noise)}
    end
  end
end
