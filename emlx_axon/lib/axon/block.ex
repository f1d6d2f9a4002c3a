# The blocks that layers of Axon models are: structs of static options, for Nx.block/4. They stand here only while Axon defines
# none of these names.

unless Code.ensure_loaded?(Axon.Block.RMSNorm) do
  defmodule Axon.Block.RMSNorm do
    @moduledoc """
    Root mean square normalisation, as `Axon.Layers.rms_norm/3`: x / sqrt(mean(x²) + eps) · (shift + weight).

    Arguments: x of any shape, then the weight, a vector as long as the axis, if `:weight?`.

    Fields:

      * `:axis` - the axis that is normalised over, a number from the front or (negative) from the back, or a name
      * `:eps` - added to the mean of the squares
      * `:shift` - a number added to the weight
      * `:upcast` - `:normalization`: the quotient is computed in f32 and rounded to the type of x before it is multiplied with
        the weight; `:all`: all is computed in f32, which is the type of the result
      * `:weight?` - whether there is a weight; without one, `:shift` is not used
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
    Layer normalisation, as `Axon.Layers.layer_norm/4`: (x - mean) / sqrt(variance + eps) · weight + bias.

    Arguments: x of any shape, then the weight if `:weight?`, then the bias if `:bias?`, vectors as long as the axis. It is
    computed in the types of the arguments, step by step.

    Fields:

      * `:axis` - the axis that is normalised over, a number from the front or (negative) from the back, or a name
      * `:eps` - added to the variance
      * `:weight?`, `:bias?` - whether there is a weight, and a bias
    """

    defstruct axis: -1, eps: 1.0e-5, weight?: true, bias?: true

    @type t :: %__MODULE__{axis: integer | atom, eps: number, weight?: boolean, bias?: boolean}
  end
end

unless Code.ensure_loaded?(Axon.Block.RoPE) do
  defmodule Axon.Block.RoPE do
    @moduledoc """
    Rotary position embedding: pairs of numbers of the last axis are rotated by position · frequency
    ([Su et al., 2021](https://arxiv.org/abs/2104.09864)).

    Arguments:

      * x - `{batch, length, heads, size}`
      * positions - integers `{batch, length}` or `{1, length}`; or the position of the first of consecutive rows, `{}` or
        `{batch}`
      * freqs, if `:freqs?` - `{dims / 2}`, what positions are divided by to give angles, the reciprocals of the frequencies

    It is computed in f32, in f64 for f64, and has the type of x.

    Fields:

      * `:dims` - how many numbers of the last axis are rotated, an even number; nil is all
      * `:traditional` - whether neighbours make a pair, rather than the numbers of the first half and of the second
      * `:base` - frequency i is base to the power -2i / dims; not used with freqs
      * `:scale` - of the positions
      * `:freqs?` - whether there are freqs
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
    Scaled dot product attention: softmax(scale · q·kᵀ + mask)·v ([Vaswani et al., 2017](https://arxiv.org/abs/1706.03762)).

    Arguments:

      * q - `{batch, queries, heads, size}`
      * k - `{batch, keys, kv_heads, size}`, heads being a multiple of kv_heads
      * v - `{batch, keys, kv_heads, value_size}`
      * offset, if `:offset?` - an integer `{}`, the index of the first query among the keys
      * mask, if `:mask` - lined up with `{batch, heads, queries, keys}` at the last axis

    It is computed in f32, in f64 where q, k or v is f64. The result is `{batch, queries, heads, value_size}` in the type of q.

    Fields:

      * `:scale` - nil is 1 / sqrt(size)
      * `:causal` - whether a query sees only the keys up to its own index, which is its number plus the offset
      * `:window` - nil, or `{left, right}`: a query sees only the keys from its index - left to its index + right; with
        `:causal`, right is not used
      * `:offset?` - whether there is an offset; without one, it is 0
      * `:mask` - nil; `:boolean`, a tensor of integers, a key is seen where it is not 0; `:additive`, a tensor of floats

    What `:causal`, `:window` and a boolean mask leave out has the lowest finite score, so that a query that is left no key sees
    all of them equally.
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
