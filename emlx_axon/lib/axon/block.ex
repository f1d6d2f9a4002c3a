# Blocks for the layers of Axon models: structs of static options, for Nx.block/4. This file defines each name only
# while Axon does not.

unless Code.ensure_loaded?(Axon.Block.RMSNorm) do
  defmodule Axon.Block.RMSNorm do
    @moduledoc """
    The block of root mean square normalisation, as `Axon.Layers.rms_norm/3`:
    x / sqrt(mean(x²) + eps) · (shift + weight).

    Arguments: x of any shape; with `:weight?`, the weight, a vector of the axis's length.

    Fields:

      * `:axis` - the axis to normalise over: an index, counted from the end if negative, or a name
      * `:eps` - added to the mean of the squares
      * `:shift` - a number added to the weight
      * `:upcast` - `:normalization` computes the quotient in f32 and rounds it to the type of x before the product with
        the weight; `:all` computes everything in f32 and returns f32
      * `:weight?` - whether the block takes a weight; without one, `:shift` is not used
    """

    defstruct axis: -1, eps: 1.0e-6, shift: 0.0, upcast: :normalization, weight?: true

    @type t :: %__MODULE__{
            axis: integer | atom,
            eps: number,
            shift: number,
            upcast: :normalization | :all,
            weight?: boolean
          }
  end
end

unless Code.ensure_loaded?(Axon.Block.LayerNorm) do
  defmodule Axon.Block.LayerNorm do
    @moduledoc """
    The block of layer normalisation, as `Axon.Layers.layer_norm/4`:
    (x - mean) / sqrt(variance + eps) · weight + bias.

    Arguments: x of any shape; with `:weight?`, the weight; with `:bias?`, the bias. Both are vectors of the axis's
    length. Each step is computed in the types of the arguments.

    Fields:

      * `:axis` - the axis to normalise over: an index, counted from the end if negative, or a name
      * `:eps` - added to the variance
      * `:weight?`, `:bias?` - whether the block takes a weight, and a bias
    """

    defstruct axis: -1, eps: 1.0e-5, weight?: true, bias?: true

    @type t :: %__MODULE__{axis: integer | atom, eps: number, weight?: boolean, bias?: boolean}
  end
end

unless Code.ensure_loaded?(Axon.Block.RoPE) do
  defmodule Axon.Block.RoPE do
    @moduledoc """
    The block of rotary position embedding: pairs of elements of the last axis are rotated by position · frequency
    ([Su et al., 2021](https://arxiv.org/abs/2104.09864)).

    Arguments:

      * x - `{batch, length, heads, size}`
      * positions - integers `{batch, length}` or `{1, length}`; or the position of the first of consecutive rows, `{}`
        or `{batch}`
      * freqs, if `:freqs?` - `{dims / 2}`, the reciprocals of the frequencies: an angle is a position divided by one

    The block computes in f32, for an f64 x in f64, and returns the shape and type of x.

    Fields:

      * `:dims` - how many elements of the last axis are rotated, an even number; nil is all
      * `:traditional` - whether adjacent elements form a pair; otherwise element i of the first half and element i of
        the second half do
      * `:base` - frequency i is base to the power -2i / dims; not used with freqs
      * `:scale` - positions are multiplied by it
      * `:freqs?` - whether the block takes freqs
    """

    defstruct dims: nil, traditional: false, base: 10_000.0, scale: 1.0, freqs?: false

    @type t :: %__MODULE__{
            dims: pos_integer | nil,
            traditional: boolean,
            base: number,
            scale: number,
            freqs?: boolean
          }
  end
end

unless Code.ensure_loaded?(Axon.Block.SDPA) do
  defmodule Axon.Block.SDPA do
    @moduledoc """
    The block of scaled dot product attention: softmax(scale · q·kᵀ + mask)·v
    ([Vaswani et al., 2017](https://arxiv.org/abs/1706.03762)).

    Arguments:

      * q - `{batch, queries, heads, size}`
      * k - `{batch, keys, kv_heads, size}`, where heads is a multiple of kv_heads
      * v - `{batch, keys, kv_heads, value_size}`
      * offset, if `:offset?` - an integer `{}`, the index of the first query among the keys
      * mask, if `:mask` - broadcasts to `{batch, heads, queries, keys}`

    The block computes in f32, in f64 if q, k or v is f64. It returns `{batch, queries, heads, value_size}` in the type
    of q.

    Fields:

      * `:scale` - nil is 1 / sqrt(size)
      * `:causal` - whether a query attends only to the keys up to its own index, its row number plus the offset
      * `:window` - nil, or `{left, right}`: a query attends only to the keys from its index - left to its index +
        right; with `:causal`, right is not used
      * `:offset?` - whether the block takes an offset; without one, the offset is 0
      * `:mask` - nil; `:boolean`, a tensor of integers, nonzero where a query attends to a key; `:additive`, a tensor
        of floats that is added to the scores

    Keys that `:causal`, `:window` or a boolean mask excludes have the lowest finite score. A query without any key
    therefore attends to all keys equally.
    """

    defstruct scale: nil, causal: false, window: nil, offset?: false, mask: nil

    @type t :: %__MODULE__{
            scale: number | nil,
            causal: boolean,
            window: {left :: non_neg_integer, right :: non_neg_integer} | nil,
            offset?: boolean,
            mask: nil | :boolean | :additive
          }
  end
end
