defmodule EMLX.Kernels do
  @moduledoc """
  MLX's fused kernels on `EMLX.Array`s: one kernel replaces the several operations of a formula. On the CPU, MLX has no
  fused kernels and computes the formula's operations. `EMLX.Fast` is the counterpart for tensors of Nx.

  Options of all functions include `:device` and `:queue`, as in `EMLX.Ops.run/3`. Arguments that do not fit raise
  `EMLX.Error`.
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
  Rotary position embedding: rotates pairs of elements of the last axis by position · frequency.

  `x` is `{batch, …, length, size}` of `:f32`, `:f16` or `:bf16`. The positions are `offset`, `offset + 1`, …; `offset`
  is an integer, an array of shape `{}`, or one integer for each batch row. `freqs` is nil, or `{dims / 2}` with the
  reciprocals of the frequencies. With `freqs`, `:base` is ignored.

  Options: `:dims`, the number of elements of the last axis that are rotated (default all); `:traditional`, whether
  adjacent elements form a pair, rather than one element of each half (default false); `:base` (default 10000.0);
  `:scale`, a factor of the positions (default 1.0).
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

  `q` is `{batch, heads, queries, size}`, `k` `{batch, kv_heads, keys, size}`, `v`
  `{batch, kv_heads, keys, value_size}`, where heads is a multiple of kv_heads (grouped or multi-query attention). The
  result is `{batch, heads, queries, value_size}`.

  `mask` is nil; `:causal`, so that query i attends to the keys up to i + keys - queries; a `:bool` array, false for
  keys that are masked out; or an array that is added to the scores. Arrays are broadcast to
  `{batch, heads, queries, keys}`. A query whose keys are all masked out by a boolean mask attends to all of them
  equally.

  Options: `:scale` (default 1 / sqrt(size)); `:sinks`, nil or `{heads}`, an extra score for each head, which takes part
  in the softmax and has no value ([Xiao et al., 2023](https://arxiv.org/abs/2309.17453)); `:layout`, `:bhsd` (default)
  or `:bshd`. With `:bshd`, `q`, `k`, `v` and the result are `{batch, length, heads, size}`, without a copy.
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
  Quantizes a matrix. Returns `[packed, scales, biases]` in mode `:affine`, else `[packed, scales]`.

  `w` is `{…, rows, columns}`; columns is a multiple of the group size. Options: `:mode`, one of `:affine` (default),
  `:mxfp4`, `:mxfp8`, `:nvfp4`; `:group_size` and `:bits`, by default MLX's for the mode; `:global_scale`, an array, for
  `:nvfp4`.
  [MLX's formats](https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html).
  """
  @spec quantize(Array.t(), keyword) :: [Array.t()]
  def quantize(w, opts \\ []) do
    {where, opts} = split(opts, quantization() ++ [global_scale: nil])
    {global_scale, attributes} = Map.pop(Map.new(opts), :global_scale)
    Ops.run({:quantize, attributes}, [w, global_scale], where)
  end

  @doc """
  Returns the matrix that `quantize/2` packed, with its quantization error. `biases` is nil except in mode `:affine`.
  Options as in `quantize/2`, and `:dtype`, the dtype of the result.
  """
  @spec dequantize(Array.t(), Array.t(), Array.t() | nil, keyword) :: Array.t()
  def dequantize(w, scales, biases, opts \\ []) do
    {where, opts} = split(opts, quantization() ++ [dtype: nil, global_scale: nil])
    {global_scale, attributes} = Map.pop(Map.new(opts), :global_scale)
    Ops.run({:dequantize, attributes}, [w, scales, biases, global_scale], where)
  end

  @doc """
  Returns x · wᵀ for a quantized matrix, or x · w with `transpose: false`. `x` is `{…, columns}`. Options: `:mode`,
  `:group_size` and `:bits` as in `quantize/2`, and `:transpose` (default true).
  """
  @spec quantized_matmul(Array.t(), Array.t(), Array.t(), Array.t() | nil, keyword) :: Array.t()
  def quantized_matmul(x, w, scales, biases, opts \\ []) do
    {where, opts} = split(opts, quantization() ++ [transpose: true])
    Ops.run({:quantized_matmul, Map.new(opts)}, [x, w, scales, biases], where)
  end

  @doc """
  Returns x · wᵀ + bias for a matrix of 8-bit integers, with x rounded to 8 bits on the fly.

    * `x` - `{…, k}` of `:f32`, `:f16` or `:bf16`. Each row is rounded to integers from -127 to 127, with the largest
      magnitude / 127 as the row's scale. Halves are rounded to the even integer
    * `w` - `{n, k}` of `:s8`, of which row i stands for `scales[i]` · `w[i]`; or packed, `{⌈n / 16⌉, ⌈k / 4⌉, 16, 4}`,
      where element `{a, b, c, d}` is that of row 16 · a + c and column 4 · b + d, and 0 beyond the matrix
    * `scales`, `bias` - `{n}` of `:f32`, `:f16` or `:bf16`. `bias` may be nil

  Returns `{…, n}` in the type of `x`: sum · (row's scale · scale) + bias, in f32, rounded once. Sums are exact 32-bit
  integers, so k is at most 132,104. A row with a number that is not finite becomes NaN. A row without a magnitude of
  1.0e-30 or more counts as zeros.

  On the CPU of Linux it is one kernel, which uses VPDPBUSD where the processor has it. It reads a packed matrix as it
  lies, and packs any other in each call. Elsewhere the rounded rows are
  multiplied in f32, which is exact for k up to 1,032.

      iex> x = EMLX.Array.from_list([[127.0, 1.0], [0.0, 0.0]], :f32)
      iex> w = EMLX.Array.from_list([[1, 2], [3, 4], [5, 6]], :s8)
      iex> scales = EMLX.Array.from_list([1.0, 1.0, 0.5], :f32)
      iex> EMLX.Kernels.int8_matmul(x, w, scales, nil) |> EMLX.Array.to_list()
      [[129.0, 385.0, 320.5], [0.0, 0.0, 0.0]]
  """
  @spec int8_matmul(Array.t(), Array.t(), Array.t(), Array.t() | nil, keyword) :: Array.t()
  def int8_matmul(x, w, scales, bias, opts \\ []) do
    {where, []} = split(opts, [])
    Ops.run(:int8_matmul, [x, w, scales, bias], where)
  end

  @doc """
  Returns x · wᵀ for a quantized matrix, with x quantized on the fly. Supports the modes `:mxfp8` and `:nvfp4`, on
  devices with such products. Options as in `quantize/2`, but `:global_scale_x` and `:global_scale_w` instead of
  `:global_scale`.
  """
  @spec qqmm(Array.t(), Array.t(), Array.t() | nil, keyword) :: Array.t()
  def qqmm(x, w, scales, opts \\ []) do
    {where, opts} = split(opts, quantization() ++ [global_scale_x: nil, global_scale_w: nil])
    {globals, attributes} = Map.split(Map.new(opts), [:global_scale_x, :global_scale_w])
    inputs = [x, w, scales, globals[:global_scale_x], globals[:global_scale_w]]
    Ops.run({:qqmm, attributes}, inputs, where)
  end

  @doc """
  `quantized_matmul/5` on matrices selected by index, as in a mixture of experts. Options as in `quantized_matmul/5`,
  and `:lhs_indices` and `:rhs_indices` (arrays, default nil) and `:sorted` (default false).
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

  # Returns an option as a float.
  defp number!(opts, name, function) do
    case opts[name] do
      number when is_number(number) -> number * 1.0
      other -> raise ArgumentError, "#{function}: :#{name} must be a number, got: #{inspect(other)}"
    end
  end

  # MLX's positions are s32.
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
