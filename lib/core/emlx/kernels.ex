defmodule EMLX.Kernels do
  @moduledoc """
  MLX's fused kernels on `EMLX.Array`s: one kernel where a formula takes several operations. On the CPU MLX has no fused form
  of its own and computes the same formula.
  """

  alias EMLX.{Array, Ops}

  @doc """
  Root mean square normalisation over the last axis: x / sqrt(mean(x²) + eps) · weight.

  `x` is `{…, size}`, `weight` `{size}` or nil; types `:f32`, `:f16` or `:bf16`, computed in f32. Options: `:eps`
  (default `1.0e-5`). [Zhang and Sennrich, 2019](https://arxiv.org/abs/1910.07467).
  """
  @spec rms_norm(Array.t(), Array.t() | nil, keyword) :: Array.t()
  def rms_norm(x, weight, opts \\ []) do
    {where, opts} = split(opts, eps: 1.0e-5)
    Ops.run({:rms_norm, %{eps: number!(opts, :eps, "rms_norm")}}, [x, weight], where)
  end

  @doc """
  Normalisation over the last axis: (x - mean) / sqrt(variance + eps) · weight + bias.

  `x` is `{…, size}`, `weight` and `bias` `{size}` or nil; types `:f32`, `:f16` or `:bf16`, computed in f32. Options:
  `:eps` (default `1.0e-5`). [Ba, Kiros and Hinton, 2016](https://arxiv.org/abs/1607.06450).
  """
  @spec layer_norm(Array.t(), Array.t() | nil, Array.t() | nil, keyword) :: Array.t()
  def layer_norm(x, weight, bias, opts \\ []) do
    {where, opts} = split(opts, eps: 1.0e-5)
    Ops.run({:layer_norm, %{eps: number!(opts, :eps, "layer_norm")}}, [x, weight, bias], where)
  end

  @doc """
  Rotary position embedding: pairs of the last axis are rotated by position · frequency.

  `x` is `{batch, …, length, size}` of `:f32`, `:f16` or `:bf16`. Positions are `offset`, `offset + 1`, …; `offset` is an
  integer, an array of shape `{}`, or one integer for each batch row. `freqs` is nil or `{dims / 2}` with the reciprocals of the
  frequencies; then `:base` is not used.

  Options: `:dims`, how many of the last axis are rotated (default all); `:traditional`, whether neighbours make a pair
  rather than the halves (default false); `:base` (default 10000.0); `:scale` of the positions (default 1.0).
  [Su et al., 2021](https://arxiv.org/abs/2104.09864).
  """
  @spec rope(Array.t(), integer | Array.t(), Array.t() | nil, keyword) :: Array.t()
  def rope(x, offset, freqs, opts \\ []) do
    {where, opts} =
      split(opts, dims: nil, traditional: false, base: 10_000.0, scale: 1.0)

    attributes = %{
      dims: opts[:dims] || last_size(x),
      traditional: opts[:traditional],
      base: if(freqs, do: nil, else: number!(opts, :base, "rope")),
      scale: number!(opts, :scale, "rope")
    }

    offset = if is_integer(offset), do: position(offset), else: offset
    Ops.run({:rope, attributes}, [x, offset, freqs], where)
  end

  @doc """
  Scaled dot product attention: softmax(scale · q·kᵀ + mask)·v.

  `q` is `{batch, heads, queries, size}`, `k` `{batch, kv_heads, keys, size}`, `v` `{batch, kv_heads, keys, value_size}`,
  where heads is a multiple of kv_heads (grouped or multi-query attention). The result is `{batch, heads, queries, value_size}`.

  `mask` is nil; `:causal`, where query i sees the keys up to i + keys - queries; a `:bool` array, true where a key is
  seen; or an array that is added. Arrays are broadcast to `{batch, heads, queries, keys}`. A query that a boolean mask leaves
  no key to sees all of them equally.

  Options: `:scale` (default 1 / sqrt(size)); `:sinks`, nil or `{heads}`, a score a head that takes part in the softmax
  but has no value ([Xiao et al., 2023](https://arxiv.org/abs/2309.17453)); `:layout`, `:bhsd` (default) or `:bshd`. With
  `:bshd` `q`, `k`, `v` and the result are `{batch, length, heads, size}`, without a copy.
  [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762).
  """
  @spec scaled_dot_product_attention(
          Array.t(),
          Array.t(),
          Array.t(),
          nil | :causal | Array.t(),
          keyword
        ) :: Array.t()
  def scaled_dot_product_attention(q, k, v, mask, opts \\ []) do
    {where, opts} = split(opts, scale: nil, sinks: nil, layout: :bhsd)

    scale =
      if opts[:scale],
        do: number!(opts, :scale, "scaled_dot_product_attention"),
        else: 1 / :math.sqrt(max(last_size(q), 1))

    {mode, mask} =
      case mask do
        nil -> {:none, nil}
        :causal -> {:causal, nil}
        mask -> {:array, mask}
      end

    attributes = %{scale: scale, mask: mode, layout: opts[:layout]}
    Ops.run({:scaled_dot_product_attention, attributes}, [q, k, v, mask, opts[:sinks]], where)
  end

  @doc """
  A matrix in fewer bits: `[packed, scales, biases]` in mode `:affine`, else `[packed, scales]`.

  `w` is `{…, rows, columns}`, columns a multiple of the group size. Options: `:mode`, one of `:affine` (default), `:mxfp4`,
  `:mxfp8`, `:nvfp4`; `:group_size` and `:bits`, MLX's for the mode by default; `:global_scale`, an array, for `:nvfp4`.
  [MLX's formats](https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html).
  """
  @spec quantize(Array.t(), keyword) :: [Array.t()]
  def quantize(w, opts \\ []) do
    {where, opts} = split(opts, quantization() ++ [global_scale: nil])
    {global_scale, attributes} = Map.pop(Map.new(opts), :global_scale)
    Ops.run({:quantize, attributes}, [w, global_scale], where)
  end

  @doc """
  The matrix that `quantize/2` packed, as far as its bits hold it. `biases` is nil but in mode `:affine`. Options as there, and
  `:dtype` of the result.
  """
  @spec dequantize(Array.t(), Array.t(), Array.t() | nil, keyword) :: Array.t()
  def dequantize(w, scales, biases, opts \\ []) do
    {where, opts} = split(opts, quantization() ++ [dtype: nil, global_scale: nil])
    {global_scale, attributes} = Map.pop(Map.new(opts), :global_scale)
    Ops.run({:dequantize, attributes}, [w, scales, biases, global_scale], where)
  end

  @doc """
  x · wᵀ for a quantized matrix, or x · w with `transpose: false`. `x` is `{…, columns}`. Options as in `quantize/2`.
  """
  @spec quantized_matmul(Array.t(), Array.t(), Array.t(), Array.t() | nil, keyword) :: Array.t()
  def quantized_matmul(x, w, scales, biases, opts \\ []) do
    {where, opts} = split(opts, quantization() ++ [transpose: true])
    Ops.run({:quantized_matmul, Map.new(opts)}, [x, w, scales, biases], where)
  end

  @doc """
  x · wᵀ where x is quantized on the fly too; modes `:mxfp8` and `:nvfp4`, on devices that have such products. Options as in
  `quantize/2`.
  """
  @spec qqmm(Array.t(), Array.t(), Array.t() | nil, keyword) :: Array.t()
  def qqmm(x, w, scales, opts \\ []) do
    {where, opts} = split(opts, quantization() ++ [global_scale_x: nil, global_scale_w: nil])
    {globals, attributes} = Map.split(Map.new(opts), [:global_scale_x, :global_scale_w])
    inputs = [x, w, scales, globals[:global_scale_x], globals[:global_scale_w]]
    Ops.run({:qqmm, attributes}, inputs, where)
  end

  @doc """
  `quantized_matmul/5` of matrices picked by index, as a mixture of experts needs it. Options as there, and `:lhs_indices`,
  `:rhs_indices` (arrays), `:sorted`.
  """
  @spec gather_qmm(Array.t(), Array.t(), Array.t(), Array.t() | nil, keyword) :: Array.t()
  def gather_qmm(x, w, scales, biases, opts \\ []) do
    {where, opts} =
      split(
        opts,
        quantization() ++ [transpose: true, sorted: false, lhs_indices: nil, rhs_indices: nil]
      )

    {indices, attributes} = Map.split(Map.new(opts), [:lhs_indices, :rhs_indices])
    inputs = [x, w, scales, biases, indices[:lhs_indices], indices[:rhs_indices]]
    EMLX.Debug.indexed()
    Ops.run({:gather_qmm, attributes}, inputs, where)
  end

  defp quantization, do: [group_size: nil, bits: nil, mode: :affine]

  defp split(opts, defaults) do
    {where, opts} = Keyword.split(opts, [:device, :queue])
    {where, Keyword.validate!(opts, defaults)}
  end

  # An option as a float.
  defp number!(opts, name, function) do
    case opts[name] do
      number when is_number(number) -> number * 1.0
      other -> raise ArgumentError, "#{function}: :#{name} must be a number, got: #{inspect(other)}"
    end
  end

  # MLX counts positions with 32 bits.
  defp position(offset) when offset in -0x80000000..0x7FFFFFFF, do: Array.scalar(offset, :s32)

  defp position(offset),
    do: raise(ArgumentError, "rope: offset must be from -2147483648 to 2147483647, got: #{offset}")

  defp last_size(array) do
    case Array.shape(array) do
      {} -> 0
      shape -> elem(shape, tuple_size(shape) - 1)
    end
  end
end
