defmodule EMLX.Backend.Pair do
  @moduledoc false
  # How EMLX.Backend holds c128, which MLX lacks: an array of f64 with one more axis, the last one, for the real and the imaginary
  # part. So a tensor is one array as everywhere, its bytes are Nx's, and what only moves elements is one operation of f64.
  #
  # EMLX.Backend.Complex128 computes with such arrays; EMLX.Backend.Type converts to and from them.

  alias EMLX.{Array, Ops}

  @doc "The real and the imaginary part of an array of pairs."
  def split(pairs), do: {real(pairs), imag(pairs)}

  @doc "The real part."
  def real(pairs), do: part(pairs, 0)

  @doc "The imaginary part."
  def imag(pairs), do: part(pairs, 1)

  defp part(pairs, i) do
    dims = Tuple.to_list(Array.shape(pairs))
    start = List.replace_at(Enum.map(dims, fn _ -> 0 end), -1, i)
    op = {:slice, %{start: start, stop: List.replace_at(dims, -1, i + 1), strides: Enum.map(dims, fn _ -> 1 end)}}
    Ops.run({:squeeze, %{axes: [-1]}}, [Ops.run(op, [pairs])])
  end

  @doc "Pairs of two parts in f64, of one shape."
  def join({real, imaginary}), do: join(real, imaginary)
  def join(real, imaginary), do: Ops.run({:stack, %{axis: -1}}, [real, imaginary])

  @doc "Pairs of a real part, with the imaginary part a number."
  def of_real(real, imaginary \\ 0.0) do
    # Nothing is computed with the real part, which may be infinite.
    second = Ops.run({:iota, %{shape: [2], axis: nil, dtype: :u8}}, [], device: :cpu)
    Ops.run(:where, [second, Array.scalar(imaginary, :f64, device: :cpu), expand(real)])
  end

  @doc "Pairs of a c64."
  def of_c64(array) do
    parts = Ops.run({:view, %{dtype: :f32}}, [expand(array)])
    Ops.run({:astype, %{dtype: :f64}}, [parts])
  end

  @doc "A c64 of pairs."
  def to_c64(pairs) do
    parts = Ops.run({:astype, %{dtype: :f32}}, [pairs])
    Ops.run({:squeeze, %{axes: [-1]}}, [Ops.run({:view, %{dtype: :c64}}, [parts])])
  end

  @doc "An array with one more axis, of size 1."
  def expand(array), do: Ops.run({:expand_dims, %{axes: [-1]}}, [array])

  @doc "Whether a condition holds for one part of the pairs, or both: `:any` or `:all`."
  def of_parts(op, array), do: Ops.run({op, %{axes: [-1], keepdims: false}}, [array])
end
