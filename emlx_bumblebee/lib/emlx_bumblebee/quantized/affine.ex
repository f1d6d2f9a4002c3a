defmodule EMLXBumblebee.Quantized.Product do
  @moduledoc false
  # The product x · wᵀ with a quantized matrix. Arguments: x {…, columns}, words, scales, biases.
  defstruct [:bits, :group_size]
end

defmodule EMLXBumblebee.Quantized.Rows do
  @moduledoc false
  # Dequantizes rows of a quantized matrix. Arguments: words, scales, biases.
  defstruct [:bits, :group_size]
end

defmodule EMLXBumblebee.Quantized.Affine do
  @moduledoc false
  # Matrices in MLX's affine format, for EMLXBumblebee.quantize/2. A matrix {rows, columns} is packed along its columns:
  # in each group of columns an element is scale * code + bias. Codes are packed into 32-bit words, the first in the
  # lowest bits. The parameters "kernel" (words), "scales" and "biases" replace a layer's "kernel".

  alias EMLX.{Backend, Kernels}
  alias EMLXBumblebee.Call
  alias EMLXBumblebee.Quantized.{Product, Rows}

  @doc "The parameters of a quantized layer, without its bias."
  def names, do: ["kernel", "scales", "biases"]

  @doc "Returns whether a matrix with rows of this length can be quantized."
  def fits?(columns, opts), do: rem(columns, opts[:group_size]) == 0

  @doc "Returns the quantized parameters of a matrix on EMLX.Backend."
  def pack(matrix, _kind, opts) do
    [words, scales, biases] = matrix |> Backend.to_array() |> Kernels.quantize(format(opts))
    {rows, columns} = matrix.shape
    groups = div(columns, opts[:group_size])

    %{
      "kernel" => Backend.to_nx(words, Nx.template({rows, div(columns * opts[:bits], 32)}, :u32)),
      "scales" => Backend.to_nx(scales, Nx.template({rows, groups}, matrix.type)),
      "biases" => Backend.to_nx(biases, Nx.template({rows, groups}, matrix.type))
    }
  end

  @doc "Returns the function of a layer of a kind, which has a bias or not."
  def op(:embedding, false, opts),
    do: fn ids, words, scales, biases, _opts -> embedding(ids, words, scales, biases, format(opts)) end

  def op(_kind, false, opts),
    do: fn x, words, scales, biases, _opts -> product(x, words, scales, biases, format(opts)) end

  def op(_kind, true, opts),
    do: fn x, words, scales, biases, bias, _opts -> Nx.add(product(x, words, scales, biases, format(opts)), bias) end

  defp format(opts), do: Keyword.take(opts, [:bits, :group_size])

  # The product x · wᵀ, {…, rows}, for x {…, columns}.
  defp product(x, words, scales, biases, opts) do
    shape = put_elem(x.shape, tuple_size(x.shape) - 1, Nx.axis_size(words, 0))
    output = Nx.template(shape, Nx.Type.merge(x.type, scales.type))
    Call.block(struct!(Product, opts), [x, words, scales, biases], output, &composed/2)
  end

  # The dequantized rows of a matrix at ids.
  defp embedding(ids, words, scales, biases, opts) do
    [words, scales, biases] = for t <- [words, scales, biases], do: Nx.take(t, Nx.as_type(ids, :s64), axis: 0)
    size = Nx.axis_size(scales, -1) * opts[:group_size]
    output = Nx.template(put_elem(words.shape, tuple_size(words.shape) - 1, size), scales.type)
    Call.block(struct!(Rows, opts), [words, scales, biases], output, &composed/2)
  end

  # ---- the composed functions ----

  defp composed(%Product{} = block, [x | packed]), do: Nx.dot(x, [-1], numbers(block, packed), [1])
  defp composed(%Rows{} = block, packed), do: numbers(block, packed)

  defp numbers(%{bits: bits, group_size: group_size}, [words, scales, biases]) do
    lead = words.shape |> Tuple.to_list() |> Enum.drop(-1)
    shifts = Nx.multiply(Nx.iota({div(32, bits)}, type: :u32), bits)

    codes =
      words
      |> Nx.new_axis(-1)
      |> Nx.right_shift(shifts)
      |> Nx.bitwise_and(Nx.tensor(2 ** bits - 1, type: :u32))
      |> Nx.as_type(scales.type)
      |> Nx.reshape(List.to_tuple(lead ++ [:auto, group_size]))

    codes
    |> Nx.multiply(Nx.new_axis(scales, -1))
    |> Nx.add(Nx.new_axis(biases, -1))
    |> Nx.reshape(List.to_tuple(lead ++ [:auto]))
  end
end

defimpl EMLX.Block, for: [EMLXBumblebee.Quantized.Product, EMLXBumblebee.Quantized.Rows] do
  alias EMLX.{Array, Backend, Kernels, Ops}
  alias EMLX.Fast.Arguments

  def call(%module{bits: bits, group_size: group_size} = block, output, args, fun) do
    floats = for %{type: {class, _}} = tensor when class != :u <- args, do: tensor

    case Enum.find(floats, &(not Arguments.fused?(&1.type))) do
      nil ->
        arrays = Enum.map(args, &Backend.to_array/1)
        opts = [bits: bits, group_size: group_size]
        module |> computed(arrays, output.shape, opts) |> Backend.to_nx(output)

      odd ->
        reason = "the kernel computes in f32, an argument is #{Nx.Type.to_string(odd.type)}"
        EMLX.Block.decline(block, args, fun, reason)
    end
  end

  # x is reshaped to rows as in Nx.dot/4, because plans for few rows merge such products.
  defp computed(EMLXBumblebee.Quantized.Product, [x, words, scales, biases], shape, opts) do
    columns = x |> Array.shape() |> Tuple.to_list() |> List.last()
    product = x |> Ops.reshape([-1, columns]) |> Kernels.quantized_matmul(words, scales, biases, opts)
    Ops.reshape(product, Tuple.to_list(shape))
  end

  defp computed(EMLXBumblebee.Quantized.Rows, [words, scales, biases], _shape, opts),
    do: Kernels.dequantize(words, scales, biases, opts)
end
