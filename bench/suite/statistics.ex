defmodule EMLX.Bench.Statistics do
  @moduledoc """
  Medians and ratios of what the suite measures, and how they are written. Used by the table, the charts and the results
  file.
  """

  @doc """
  The middle one of some numbers, or the mean of the two in the middle.

      iex> EMLX.Bench.Statistics.median([3, 1, 2])
      2
      iex> EMLX.Bench.Statistics.median([4, 1, 2, 3])
      2.5
  """
  def median([_ | _] = numbers) do
    sorted = Enum.sort(numbers)
    half = div(length(sorted), 2)

    if rem(length(sorted), 2) == 1,
      do: Enum.at(sorted, half),
      else: (Enum.at(sorted, half - 1) + Enum.at(sorted, half)) / 2
  end

  @doc "Median, least, the quartiles, and how many there were."
  def summary([_ | _] = numbers) do
    sorted = Enum.sort(numbers)
    at = fn part -> Enum.at(sorted, round(part * (length(sorted) - 1))) end
    %{median: median(sorted), least: hd(sorted), quartiles: {at.(0.25), at.(0.75)}, runs: length(sorted)}
  end

  @doc """
  The first to the second; nil where there is none, as for a run that took no memory.

      iex> EMLX.Bench.Statistics.ratio(1, 2)
      0.5
      iex> EMLX.Bench.Statistics.ratio(1, 0)
      nil
  """
  def ratio(_here, there) when there == 0, do: nil
  def ratio(here, there), do: here / there

  @doc """
  A figure with its unit, to three digits: microseconds as `:time`, bytes as `:bytes`, microseconds a token as `:token`.

      iex> Enum.map([0.51234, 12.345, 1234.5, 2_500_000], &EMLX.Bench.Statistics.text(&1, :time))
      ["0.512 µs", "12.3 µs", "1.23 ms", "2.50 s"]
      iex> Enum.map([0, 2048, 5_242_880, 3_221_225_472], &EMLX.Bench.Statistics.text(&1, :bytes))
      ["0 B", "2.00 KiB", "5.00 MiB", "3.00 GiB"]
      iex> EMLX.Bench.Statistics.text(2500, :token)
      "400 tokens/s"
  """
  def text(figure, :time), do: scaled(figure, 1000, ["µs", "ms", "s"])
  def text(figure, :token), do: "#{digits(1.0e6 / figure)} tokens/s"
  def text(figure, :bytes) when figure < 1024, do: "#{round(figure)} B"
  def text(figure, :bytes), do: scaled(figure / 1024, 1024, ["KiB", "MiB", "GiB", "TiB"])

  defp scaled(figure, step, [_, next | rest]) when figure >= step * 0.9995,
    do: scaled(figure / step, step, [next | rest])

  defp scaled(figure, _step, [unit | _]), do: "#{digits(figure)} #{unit}"

  @doc """
  A number to three digits.

      iex> Enum.map([0.0123, 1, 98.76, 1234.5], &EMLX.Bench.Statistics.digits/1)
      ["0.0123", "1.00", "98.8", "1235"]
  """
  def digits(number) when number == 0, do: "0"
  def digits(number) when abs(number) >= 1.0e15, do: :erlang.float_to_binary(number * 1.0, scientific: 2)

  def digits(number) do
    before =
      if abs(number) >= 1, do: trunc(:math.log10(abs(number)) + 1.0e-9) + 1, else: floor(:math.log10(abs(number))) + 1

    :erlang.float_to_binary(number * 1.0, decimals: max(3 - before, 0))
  end

  @doc """
  The geometric mean.

      iex> EMLX.Bench.Statistics.geometric_mean([1, 4])
      2.0
  """
  def geometric_mean([_ | _] = numbers), do: :math.exp(Enum.sum(Enum.map(numbers, &:math.log/1)) / length(numbers))

  @doc """
  A line about the ratios of a side here to another.

      iex> EMLX.Bench.Statistics.means("eager", "XLA", [1, 4])
      "eager: geometric mean of 2 ratios to XLA 2.00; 1 above 1.5"
  """
  def means(here, side, ratios) do
    "#{here}: geometric mean of #{length(ratios)} ratios to #{side} #{digits(geometric_mean(ratios))}; " <>
      "#{Enum.count(ratios, &(&1 > 1.5))} above 1.5"
  end

  @doc """
  What a ratio of times says in words.

      iex> Enum.map([0.5, 1.02, 2.0, nil], &EMLX.Bench.Statistics.verdict/1)
      ["2.00 times as fast", "equal (within 5 %)", "2.00 times as slow", ""]
  """
  def verdict(nil), do: ""
  def verdict(ratio) when ratio > 1.05, do: "#{digits(ratio)} times as slow"
  def verdict(ratio) when ratio < 1 / 1.05 and ratio > 0, do: "#{digits(1 / ratio)} times as fast"
  def verdict(_), do: "equal (within 5 %)"
end
