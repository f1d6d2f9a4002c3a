defmodule EMLX.Bench.Training do
  @moduledoc """
  The models of the part `training`: their initial weights, a batch for each, and how far updates of weights are apart.
  The models themselves are in `bench/peers/axon_peer.exs` and in `xla_training.py`, `torch_training.py` and
  `mlx_training.py` beside it.
  """

  alias EMLX.{Array, Ops, Safetensors}

  @classes 10

  @doc "The models, `{name, steps of a sample}` each; more steps where one takes less time."
  def models, do: [{"mlp", 10}, {"convolutional", 3}, {"transformer", 3}]

  @doc """
  The sizes of the models on a device: the side and the colors of an image, the channels of the first convolution, the
  number of tokens, their size, heads and blocks.
  """
  def sizes(:cpu), do: [image: 28, colors: 1, channels: 32, tokens: 64, size: 128, heads: 4, blocks: 2]
  def sizes(:gpu), do: [image: 32, colors: 3, channels: 64, tokens: 256, size: 384, heads: 6, blocks: 6]

  @doc "The numbers of rows of a batch on a device."
  def batches(:cpu), do: [32, 1]
  def batches(:gpu), do: [128, 32]

  @doc "The shapes of a model's weights, by `layer.parameter` as Axon names them."
  def shapes(model, sizes \\ sizes(:cpu))

  def shapes("mlp", _sizes),
    do: dense("hidden_0", 784, 512) ++ dense("hidden_1", 512, 256) ++ dense("head", 256, @classes)

  def shapes("convolutional", sizes) do
    {channels, side} = {sizes[:channels], div(sizes[:image], 4)}

    [{"conv_0.kernel", [3, 3, sizes[:colors], channels]}, {"conv_0.bias", [channels]}] ++
      [{"conv_1.kernel", [3, 3, channels, 2 * channels]}, {"conv_1.bias", [2 * channels]}] ++
      dense("hidden", side * side * 2 * channels, 128) ++ dense("head", 128, @classes)
  end

  def shapes("transformer", sizes) do
    size = sizes[:size]

    blocks =
      for i <- 0..(sizes[:blocks] - 1), name = "block_#{i}" do
        for(part <- ~w(query key value output), do: dense("#{name}_#{part}", size, size)) ++
          [dense("#{name}_up", size, 4 * size), dense("#{name}_down", 4 * size, size)] ++
          for norm <- 0..1, part <- ~w(gamma beta), do: [{"#{name}_norm_#{norm}.#{part}", [size]}]
      end

    [{"tokens.kernel", [1000, size]}, {"positions.kernel", [sizes[:tokens], size]}] ++
      List.flatten(blocks) ++ dense("head", size, @classes)
  end

  defp dense(name, inputs, outputs), do: [{"#{name}.kernel", [inputs, outputs]}, {"#{name}.bias", [outputs]}]

  @doc "A file of a model's initial weights in f32, of a seed."
  def weights(temporary, name, sizes \\ sizes(:cpu)) do
    file(temporary, "training-#{name}", fn ->
      for {{named, shape}, seed} <- Enum.with_index(shapes(name, sizes)), do: {named, weight(named, shape, seed)}
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
  def batch(temporary, name, size, sizes \\ sizes(:cpu)) do
    file(temporary, "training-#{name}-#{size}", fn ->
      classes =
        for i <- 0..(size - 1), class <- 0..(@classes - 1), do: if(rem(i * 7, @classes) == class, do: 1.0, else: 0.0)

      y = for number <- classes, into: <<>>, do: <<number::float-32-native>>
      [{"x", x(name, size, sizes)}, {"y", Array.from_binary(y, {size, @classes}, :f32, device: :cpu)}]
    end)
  end

  defp x("mlp", size, _sizes), do: EMLX.Bench.Inputs.uniform([size, 784], :f32, 1, :cpu)

  defp x("convolutional", size, sizes),
    do: EMLX.Bench.Inputs.uniform([size, sizes[:image], sizes[:image], sizes[:colors]], :f32, 1, :cpu)

  defp x("transformer", size, sizes) do
    length = sizes[:tokens]
    tokens = for i <- 1..(size * length), into: <<>>, do: <<rem(i * 7919, 1000)::32-native-signed>>
    Array.from_binary(tokens, {size, length}, :s32, device: :cpu)
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
