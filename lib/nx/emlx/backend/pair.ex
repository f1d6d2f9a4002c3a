defmodule EMLX.Backend.Pair do
  @moduledoc false
  # The storage of c128 in EMLX.Backend, which MLX lacks: an array of f64 with one more axis, the last one, for the real
  # and the imaginary part. So a tensor is still one array, its bytes are Nx's, and an operation that only moves
  # elements is one operation on f64.
  #
  # EMLX.Backend.Complex128 computes with such arrays; EMLX.Backend.Type converts to and from them.

  alias EMLX.{Array, Ops}

  @doc "Returns the real and the imaginary part of an array of pairs."
  def split(pairs), do: {real(pairs), imag(pairs)}

  @doc "Returns the real part."
  def real(pairs), do: part(pairs, 0)

  @doc "Returns the imaginary part."
  def imag(pairs), do: part(pairs, 1)

  defp part(pairs, i) do
    dims = Tuple.to_list(Array.shape(pairs))
    start = List.replace_at(Enum.map(dims, fn _ -> 0 end), -1, i)
    op = {:slice, %{start: start, stop: List.replace_at(dims, -1, i + 1), strides: Enum.map(dims, fn _ -> 1 end)}}
    Ops.run({:squeeze, %{axes: [-1]}}, [Ops.run(op, [pairs])])
  end

  @doc "Returns pairs of two parts in f64, of the same shape."
  def join({real, imaginary}), do: join(real, imaginary)
  def join(real, imaginary), do: Ops.run({:stack, %{axis: -1}}, [real, imaginary])

  @doc "Returns pairs of a real part, with a number as the imaginary part."
  def of_real(real, imaginary \\ 0.0) do
    # A selection, without arithmetic on the real part: it may be infinite.
    second = Ops.run({:iota, %{shape: [2], axis: nil, dtype: :u8}}, [], device: :cpu)
    Ops.run(:where, [second, Array.scalar(imaginary, :f64, device: :cpu), expand(real)])
  end

  @doc "Returns pairs of an array of c64."
  def of_c64(array) do
    parts = Ops.run({:view, %{dtype: :f32}}, [expand(array)])
    Ops.run({:astype, %{dtype: :f64}}, [parts])
  end

  @doc "Returns an array of c64 of pairs."
  def to_c64(pairs) do
    parts = Ops.run({:astype, %{dtype: :f32}}, [pairs])
    Ops.run({:squeeze, %{axes: [-1]}}, [Ops.run({:view, %{dtype: :c64}}, [parts])])
  end

  @doc "Returns an array with one more axis of size 1, the last one."
  def expand(array), do: Ops.run({:expand_dims, %{axes: [-1]}}, [array])

  @doc "Returns whether a condition holds for one part of the pairs (`:any`), or for both (`:all`)."
  def of_parts(op, array), do: Ops.run({op, %{axes: [-1], keepdims: false}}, [array])
end
