defmodule EMLXBumblebee.Quantized.Int8 do
  @moduledoc false
  # Matrices of 8-bit integers with a scale for each row, for EMLXBumblebee.quantize/2: element j of row i is
  # scales[i] * kernel[i][j]. The parameters "kernel" and "scales" replace a layer's "kernel". That of a dense layer is
  # packed. Those of embeddings are not, since their rows are looked up.

  alias EMLX.Fast.Int8Matmul

  # Terms whose products EMLX.Fast.int8_matmul/4 adds up.
  @most_columns div(2 ** 31 - 1, 127 * 128)

  @doc "The parameters of a quantized layer, without its bias."
  def names, do: ["kernel", "scales"]

  @doc "Returns whether a matrix with rows of this length can be quantized."
  def fits?(columns, _opts), do: columns <= @most_columns

  @doc "Returns the quantized parameters of a matrix, on its backend and with scales of its type."
  def pack(%Nx.Tensor{type: type} = matrix, kind, _opts) do
    wide = Nx.as_type(matrix, Nx.Type.merge(type, {:f, 32}))
    most = wide |> Nx.abs() |> Nx.reduce_max(axes: [1])
    scales = Nx.as_type(Nx.divide(most, 127), type)
    # A row of zeros has the scale 0.
    divisors = Nx.select(Nx.equal(scales, 0), Nx.tensor(1, type: wide.type), Nx.as_type(scales, wide.type))
    codes = wide |> Nx.divide(Nx.new_axis(divisors, 1)) |> Nx.round() |> Nx.clip(-127, 127)
    integers = Nx.as_type(codes, {:s, 8})
    %{"kernel" => if(kind == :dense, do: Int8Matmul.pack(integers), else: integers), "scales" => scales}
  end

  @doc "Returns the function of a layer of a kind, which has a bias or not."
  def op(:embedding, false, _opts) do
    fn ids, kernel, scales, _opts ->
      [codes, scales] = for t <- [kernel, scales], do: Nx.take(t, Nx.as_type(ids, {:s, 64}), axis: 0)
      Nx.multiply(Nx.as_type(codes, scales.type), Nx.new_axis(scales, -1))
    end
  end

  def op(_kind, false, _opts), do: fn x, kernel, scales, _opts -> EMLX.Fast.int8_matmul(x, kernel, scales) end

  def op(_kind, true, _opts),
    do: fn x, kernel, scales, bias, _opts -> EMLX.Fast.int8_matmul(x, kernel, scales, bias) end
end
