defmodule EMLX.Bench.Training do
  @moduledoc """
  The models of the part `training`: their initial weights, a batch for each, and how far updates of weights are apart.
  The models themselves are in `bench/peers/axon_peer.exs` and `bench/peers/xla_training.py`.
  """

  alias EMLX.{Array, Ops, Safetensors}

  @classes 10

  @doc "The models, `{name, steps of a sample}` each; more steps where one takes less time."
  def models, do: [{"mlp", 10}, {"convolutional", 3}, {"transformer", 3}]

  @doc "The shapes of a model's weights, by `layer.parameter` as Axon names them."
  def shapes("mlp"), do: dense("hidden_0", 784, 512) ++ dense("hidden_1", 512, 256) ++ dense("head", 256, @classes)

  def shapes("convolutional") do
    [{"conv_0.kernel", [3, 3, 1, 32]}, {"conv_0.bias", [32]}] ++
      [{"conv_1.kernel", [3, 3, 32, 64]}, {"conv_1.bias", [64]}] ++
      dense("hidden", 7 * 7 * 64, 128) ++ dense("head", 128, @classes)
  end

  def shapes("transformer") do
    blocks =
      for i <- 0..1, name = "block_#{i}" do
        for(part <- ~w(query key value output), do: dense("#{name}_#{part}", 128, 128)) ++
          [dense("#{name}_up", 128, 512), dense("#{name}_down", 512, 128)] ++
          for norm <- 0..1, part <- ~w(gamma beta), do: [{"#{name}_norm_#{norm}.#{part}", [128]}]
      end

    [{"tokens.kernel", [1000, 128]}, {"positions.kernel", [64, 128]}] ++
      List.flatten(blocks) ++ dense("head", 128, @classes)
  end

  defp dense(name, inputs, outputs), do: [{"#{name}.kernel", [inputs, outputs]}, {"#{name}.bias", [outputs]}]

  @doc "A file of a model's initial weights in f32, of a seed."
  def weights(temporary, name) do
    file(temporary, "training-#{name}", fn ->
      for {{named, shape}, seed} <- Enum.with_index(shapes(name)), do: {named, weight(named, shape, seed)}
    end)
  end

  # Small enough for the activations to stay near 1.
  defp weight(name, shape, seed) do
    {loc, scale} =
      cond do
        String.ends_with?(name, "gamma") -> {1.0, 0.1}
        length(shape) == 1 -> {0.0, 0.1}
        name in ["tokens.kernel", "positions.kernel"] -> {0.0, 0.5}
        true -> {0.0, 1 / :math.sqrt(Enum.product(shape) / List.last(shape))}
      end

    key = Ops.run({:random_key, %{seed: seed}}, [], device: :cpu)
    Ops.random_normal(key, shape, loc: loc, scale: scale, device: :cpu)
  end

  @doc "A file of a batch: `x`, and `y`, whose rows are one-hot."
  def batch(temporary, name, size) do
    file(temporary, "training-#{name}-#{size}", fn ->
      classes =
        for i <- 0..(size - 1), class <- 0..(@classes - 1), do: if(rem(i * 7, @classes) == class, do: 1.0, else: 0.0)

      y = for number <- classes, into: <<>>, do: <<number::float-32-native>>
      [{"x", x(name, size)}, {"y", Array.from_binary(y, {size, @classes}, :f32, device: :cpu)}]
    end)
  end

  defp x("mlp", size), do: EMLX.Bench.Inputs.uniform([size, 784], :f32, 1, :cpu)
  defp x("convolutional", size), do: EMLX.Bench.Inputs.uniform([size, 28, 28, 1], :f32, 1, :cpu)

  defp x("transformer", size) do
    tokens = for i <- 1..(size * 64), into: <<>>, do: <<rem(i * 7919, 1000)::32-native-signed>>
    Array.from_binary(tokens, {size, 64}, :s32, device: :cpu)
  end

  defp file(temporary, name, arrays) do
    file = Path.join(temporary, name <> ".safetensors")
    unless File.exists?(file), do: Safetensors.save(file, Map.new(arrays.()), device: :cpu)
    file
  end

  @doc """
  How far the weights of a file are from those of another, relative to what the training of the other changed: the norm
  of the difference to the norm of the change, over all weights.
  """
  def distance(one, other, initial) do
    [one, other, initial] = for file <- [one, other, initial], do: Safetensors.load(file, device: :cpu)

    unless Map.keys(one) == Map.keys(other),
      do: raise("weights of other names: #{inspect(Map.keys(one))} and #{inspect(Map.keys(other))}")

    squares = fn a, b ->
      Enum.reduce(Map.keys(other), 0.0, fn name, sum ->
        difference = Ops.subtract(a[name], b[name])
        square = difference |> Ops.multiply(difference) |> Ops.sum() |> Array.to_list()
        sum + if(is_number(square), do: square, else: 1.0e300)
      end)
    end

    :math.sqrt(squares.(one, other) / max(squares.(other, initial), 1.0e-30))
  end
end
