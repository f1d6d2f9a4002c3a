defmodule EMLX.Bench.Inputs do
  @moduledoc """
  Arrays that are the same here and in Python MLX, and the samples by which results are compared.
  """

  alias EMLX.{Array, Ops}

  @doc "Numbers of a seed, uniform in ±1.7, whose variance is near 1; computed."
  def uniform(shape, type, seed, device) do
    bounds = for bound <- [-1.7, 1.7], do: Array.scalar(bound, :f32, device: device)
    key = Ops.run({:random_key, %{seed: seed}}, [], device: device)
    x = Ops.run({:random_uniform, %{shape: Ops.shape_to_list(shape), dtype: :f32}}, bounds ++ [key], device: device)
    EMLX.eval(Ops.astype(x, type))
  end

  @doc "Up to 16 numbers, spread evenly over an array."
  def sample(array, count \\ 16) do
    size = Array.size(array)
    count = min(count, size)

    array
    |> Ops.reshape([size])
    |> Ops.slice([0], [count * div(size, count)], [div(size, count)])
    |> Ops.astype(:f32)
    |> Array.to_list()
  end

  @doc "The largest difference between two samples, to the largest number of the second."
  def distance(one, other) do
    number = fn n -> if is_number(n), do: n * 1.0, else: 1.0e300 end
    {one, other} = {Enum.map(one, number), Enum.map(other, number)}
    largest = other |> Enum.map(&abs/1) |> Enum.max()
    differences = Enum.zip_with(one, other, &abs(&1 - &2))
    if length(one) != length(other), do: raise("samples of #{length(one)} and #{length(other)} numbers")
    Enum.max(differences) / max(largest, 1.0e-30)
  end

  # How far samples may be apart: rounding of sums in another order, and of the operands of int8 to 8 bits. ONNX Runtime
  # rounds those of all tokens with one scale.
  @limits %{f32: 2.0e-3, bf16: 0.06, int8: 0.25}

  @doc "Raises if a side computes something else: two samples are too far apart for their type."
  def check!(what, one, other, type) do
    distance = distance(one, other)

    if distance > @limits[type] do
      raise "#{what} computes something else: results are #{EMLX.Bench.Statistics.digits(distance)} of the largest number apart"
    end

    distance
  end
end
