Code.require_file("../../../examples/minilm/encoder.ex", __DIR__)

defmodule EMLX.MiniLMTest do
  @moduledoc "The example in examples/minilm, with small made-up weights in place of the checkpoint's."

  use ExUnit.Case, async: true

  alias EMLX.Array
  alias MiniLM.{Composed, Encoder}

  @hidden 8
  @inner 16
  @sentences [[1, 2, 3, 4, 5], [9, 0, 7]]
  # By examples/minilm/reference.py's `embed` with the weights below, in float64 and without padding.
  @embeddings [
    [0.4406515, 0.1772194, -0.3056769, 0.2649987, -0.3534298, 0.2671294, 0.4502993, 0.4601268],
    [0.4471635, 0.1655857, -0.3153324, 0.258816, -0.3522491, 0.2655486, 0.442524, 0.4645244]
  ]
  @tolerance 2.0e-6

  test "gives NumPy's embeddings, with the fused kernels and with their formulas" do
    {ids, mask} = Encoder.pad(@sentences)

    for kernels <- [EMLX.Kernels, Composed] do
      assert_close(Encoder.embed(model(), ids, mask, kernels), @embeddings)
    end
  end

  test "gives a sentence the same embedding in any batch" do
    for {ids, embedding} <- Enum.zip(@sentences, @embeddings),
        others <- [[], [[4, 4, 4, 4, 4, 4]]] do
      {ids, mask} = Encoder.pad([ids | others])
      assert_close(Encoder.embed(model(), ids, mask), [embedding])
    end
  end

  defp assert_close(embeddings, expected) do
    # A batch may have more rows than are expected.
    for {row, expected} <- Enum.zip(Array.to_list(embeddings), expected),
        {a, b} <- Enum.zip(row, expected) do
      assert_in_delta a, b, @tolerance
    end
  end

  # The entries of the i-th weight, by name, are sin(i + k²).
  defp model do
    weights =
      for {{name, shape}, i} <- shapes() |> Enum.sort() |> Enum.with_index(), into: %{} do
        values =
          for k <- 0..(Tuple.product(shape) - 1),
              into: <<>>,
              do: <<:math.sin(i + k * k)::float-32-native>>

        {name, Array.from_binary(values, shape, :f32)}
      end

    %Encoder{weights: weights, layers: 2, heads: 2}
  end

  defp shapes do
    blocks =
      for block <- ["encoder.layer.0", "encoder.layer.1"],
          entries <- [
            linear("#{block}.attention.self.query", @hidden, @hidden),
            linear("#{block}.attention.self.key", @hidden, @hidden),
            linear("#{block}.attention.self.value", @hidden, @hidden),
            linear("#{block}.attention.output.dense", @hidden, @hidden),
            norm("#{block}.attention.output.LayerNorm"),
            linear("#{block}.intermediate.dense", @hidden, @inner),
            linear("#{block}.output.dense", @inner, @hidden),
            norm("#{block}.output.LayerNorm")
          ],
          do: entries

    List.flatten([
      {"embeddings.word_embeddings.weight", {10, @hidden}},
      {"embeddings.position_embeddings.weight", {6, @hidden}},
      {"embeddings.token_type_embeddings.weight", {2, @hidden}},
      norm("embeddings.LayerNorm"),
      blocks
    ])
  end

  defp linear(name, inputs, outputs),
    do: [{"#{name}.weight", {outputs, inputs}}, {"#{name}.bias", {outputs}}]

  defp norm(name), do: [{"#{name}.weight", {@hidden}}, {"#{name}.bias", {@hidden}}]
end
