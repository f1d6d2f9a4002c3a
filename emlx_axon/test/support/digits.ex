defmodule EMLXAxon.Digits do
  @moduledoc """
  Images of digits: each digit in a font of 5 × 7 pixels, somewhere in an image of 12 × 12, brighter or darker, under
  noise.
  """

  @side 12

  @font [
    ~w(01110 10001 10011 10101 11001 10001 01110),
    ~w(00100 01100 00100 00100 00100 00100 01110),
    ~w(01110 10001 00001 00110 01000 10000 11111),
    ~w(11110 00001 00001 01110 00001 00001 11110),
    ~w(00010 00110 01010 10010 11111 00010 00010),
    ~w(11111 10000 11110 00001 00001 10001 01110),
    ~w(00110 01000 10000 11110 10001 10001 01110),
    ~w(11111 00001 00010 00100 01000 01000 01000),
    ~w(01110 10001 10001 01110 10001 10001 01110),
    ~w(01110 10001 10001 01111 00001 00010 01100)
  ]

  @doc """
  `count` batches of `size` images each, from a seed: `{images {size, 12, 12, 1} of f32, classes {size, 10}, one-hot}`.
  """
  def batches(count, size, seed) do
    :rand.seed(:exsss, {seed, 1, 1})
    for _ <- 1..count, do: batch(size)
  end

  defp batch(size) do
    digits = for _ <- 1..size, do: :rand.uniform(10) - 1
    pixels = digits |> Enum.flat_map(&image/1) |> Enum.map(&<<&1::float-32-native>>) |> IO.iodata_to_binary()

    classes =
      digits
      |> Nx.tensor(backend: Nx.BinaryBackend)
      |> Nx.new_axis(1)
      |> Nx.equal(Nx.iota({1, 10}, backend: Nx.BinaryBackend))

    images = Nx.from_binary(pixels, :f32, backend: Nx.BinaryBackend) |> Nx.reshape({size, @side, @side, 1})
    {images, Nx.as_type(classes, :f32)}
  end

  defp image(digit) do
    {down, right} = {:rand.uniform(@side - 6) - 1, :rand.uniform(@side - 4) - 1}
    ink = 0.7 + 0.6 * :rand.uniform()
    rows = @font |> Enum.at(digit) |> Enum.map(&String.to_charlist/1)

    for y <- 0..(@side - 1), x <- 0..(@side - 1) do
      inside? = (y - down) in 0..6 and (x - right) in 0..4
      bright? = inside? and rows |> Enum.at(y - down) |> Enum.at(x - right) == ?1
      if(bright?, do: ink, else: 0.0) + 0.15 * :rand.normal()
    end
  end
end
