defmodule EMLX.Fast.Int8Matmul do
  @moduledoc """
  The block of `EMLX.Fast.int8_matmul/4`. Its arguments are x `{…, k}`, w `{n, k}` of s8 or packed, scales `{n}`, and
  bias `{n}` if `:bias?`.
  """

  alias EMLX.Fast.Arguments

  defstruct bias?: true

  @type t :: %__MODULE__{bias?: boolean}

  # As native/cpu/src/gemm8.rs has them.
  @most_terms div(2 ** 31 - 1, 127 * 128)
  @smallest 1.0e-30
  # Adding it leaves a float of f32 or f64 no fraction, and rounds halves to the even integer.
  @no_fraction %{{:f, 32} => 1.5 * 2 ** 23, {:f, 64} => 1.5 * 2 ** 52}

  # Rows of w, and elements of each, that are beside each other in a packed matrix.
  @beside 16
  @quad 4

  @doc """
  Packs a matrix for `EMLX.Fast.int8_matmul/4`: `{n, k}` of s8 becomes `{⌈n / 16⌉, ⌈k / 4⌉, 16, 4}`, where element
  `{a, b, c, d}` is that of row 16 · a + c and column 4 · b + d, and 0 beyond the matrix.

  The CPU's kernel reads a packed matrix as it lies, and packs any other in each call. Pack matrices that are used many
  times, such as a model's.

      iex> EMLX.Fast.Int8Matmul.pack(Nx.s8([[1, 2], [3, 4]])) |> Nx.shape()
      {1, 1, 16, 4}
  """
  @spec pack(Nx.Tensor.t()) :: Nx.Tensor.t()
  def pack(%Nx.Tensor{shape: {n, k}, type: {:s, 8}} = w) do
    [panels, quads] = for {size, beside} <- [{n, @beside}, {k, @quad}], do: div(size + beside - 1, beside)

    w
    |> Arguments.unnamed()
    |> Nx.pad(Nx.s8(0), [{0, panels * @beside - n, 0}, {0, quads * @quad - k, 0}])
    |> Nx.reshape({panels, @beside, quads, @quad})
    |> Nx.transpose(axes: [0, 2, 1, 3])
    |> in_rows()
  end

  def pack(other),
    do: raise(ArgumentError, "pack: a matrix of s8 is needed, got: #{Arguments.describe(Nx.to_tensor(other))}")

  # On EMLX.Backend a transposed tensor is a view of the other one, which is not packed.
  defp in_rows(%{data: %EMLX.Backend{}} = tensor),
    do: tensor |> EMLX.Backend.to_array() |> EMLX.Ops.contiguous() |> EMLX.Backend.to_nx(tensor)

  defp in_rows(tensor), do: tensor

  defp packed(n, k), do: {div(n + @beside - 1, @beside), div(k + @quad - 1, @quad), @beside, @quad}

  # A matrix {n, k} from itself or from a packed one.
  defp matrix(%{shape: {_, _}} = w, _n, _k), do: w

  defp matrix(%{shape: {panels, quads, _, _}} = w, n, k) do
    whole = w |> Nx.transpose(axes: [0, 2, 1, 3]) |> Nx.reshape({panels * @beside, quads * @quad})
    whole[[0..(n - 1), 0..(k - 1)]]
  end

  @doc false
  def run(x, w, scales, bias) do
    names = Nx.to_tensor(x).names
    x = Arguments.float!(x, "x", "int8_matmul")
    w = w |> Nx.to_tensor() |> Arguments.unnamed()
    scales = Arguments.float!(scales, "scales", "int8_matmul")
    fit!(x, w, scales)
    vectors = [vector!(scales, "scales", w, scales) | if(bias, do: [vector!(bias, "bias", w, scales)], else: [])]
    block = %__MODULE__{bias?: bias != nil}
    composed = if bias, do: &composed/5, else: &composed/4
    {lead, [_]} = names |> Enum.split(-1)

    result =
      if Arguments.vectorized?([w | vectors]) do
        apply(composed, [block, x, w | vectors])
      else
        flat = Nx.devectorize(x, keep_names: false)
        shape = put_elem(flat.shape, tuple_size(flat.shape) - 1, Nx.size(hd(vectors)))
        output = Nx.template(shape, x.type)
        block |> Arguments.block([flat, w | vectors], output, composed) |> Nx.vectorize(x.vectorized_axes)
      end

    Nx.rename(result, lead ++ [nil])
  end

  defp vector!(value, name, w, scales) do
    vector = Arguments.float!(value, name, "int8_matmul")
    rows = if tuple_size(w.shape) == 2, do: Nx.axis_size(w, 0), else: Nx.size(scales)

    unless vector.shape == {rows} do
      raise ArgumentError,
            "int8_matmul: w is #{inspect(w.shape)}, #{name} is #{inspect(vector.shape)}: " <>
              "#{name} must have one number for each row of w"
    end

    vector
  end

  defp fit!(x, w, scales) do
    terms = if x.shape != {}, do: Nx.axis_size(x, -1)

    unless match?({_, ^terms}, w.shape) or
             (terms && tuple_size(scales.shape) == 1 && w.shape == packed(Nx.size(scales.shape), terms)) do
      raise ArgumentError,
            "int8_matmul: x is #{inspect(x.shape)}, w is #{inspect(w.shape)}, scales is #{inspect(scales.shape)}: " <>
              "they must be {…, k}, {n, k} or packed {⌈n / 16⌉, ⌈k / 4⌉, 16, 4}, and {n}"
    end

    if w.type != {:s, 8}, do: raise(ArgumentError, "int8_matmul: w is #{Arguments.describe(w)}, it must be s8")

    if terms > @most_terms do
      raise ArgumentError,
            "int8_matmul: x is #{inspect(x.shape)}, w is #{inspect(w.shape)}: sums of #{terms} products may not fit " <>
              "32 bits, k is at most #{@most_terms}"
    end
  end

  @doc false
  def composed(%__MODULE__{}, x, w, scales), do: x |> product(w, scales) |> Nx.as_type(x.type)

  @doc false
  def composed(%__MODULE__{}, x, w, scales, bias) do
    product = product(x, w, scales)
    product |> Nx.add(Nx.as_type(bias, product.type)) |> Nx.as_type(x.type)
  end

  defp product(x, w, scales) do
    x = Nx.as_type(x, Arguments.wide(x))
    number = &Arguments.number(&1, x)
    is_odd = x |> Nx.is_nan() |> Nx.logical_or(Nx.is_infinity(x)) |> Nx.any(axes: [-1], keep_axes: true)
    most = x |> Nx.abs() |> Nx.reduce_max(axes: [-1], keep_axes: true)
    is_zero = Nx.logical_or(is_odd, Nx.less(most, number.(@smallest)))
    factor = Nx.divide(number.(127), Nx.select(is_zero, number.(1), most))
    scaled = Nx.select(Nx.broadcast(is_zero, x), number.(0), Nx.multiply(x, factor))
    no_fraction = number.(@no_fraction[x.type])
    integers = scaled |> Nx.add(no_fraction) |> Nx.subtract(no_fraction) |> Nx.as_type({:s, 32})
    w = w |> matrix(Nx.axis_size(scales, -1), Nx.axis_size(x, -1)) |> Nx.as_type({:s, 32})
    sums = integers |> Nx.dot([-1], w, [1]) |> Nx.as_type(x.type)
    of_rows = Nx.select(is_odd, Nx.Constants.nan(x.type), Nx.divide(most, number.(127)))
    Nx.multiply(sums, Nx.multiply(of_rows, Nx.as_type(scales, x.type)))
  end
end

defimpl EMLX.Block, for: EMLX.Fast.Int8Matmul do
  alias EMLX.{Backend, Kernels}
  alias EMLX.Fast.Arguments

  def call(block, output, [x, _w, scales | bias] = args, fun) do
    case Enum.find([x, scales | bias], &(not Arguments.fused?(&1.type))) do
      nil ->
        [x, w, scales | bias] = Enum.map(args, &Backend.to_array/1)
        x |> Kernels.int8_matmul(w, scales, List.first(bias)) |> Backend.tensor(output)

      odd ->
        reason = "the kernel computes in f32, an argument is #{Nx.Type.to_string(odd.type)}"
        EMLX.Block.decline(block, args, fun, reason)
    end
  end
end
