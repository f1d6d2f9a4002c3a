# Blocks for the layers of Bumblebee's models, in addition to those of Axon: structs of static options, for Nx.block/4.
# This file defines each name only while Bumblebee does not.

unless Code.ensure_loaded?(Bumblebee.Block.SDPA) do
  defmodule Bumblebee.Block.SDPA do
    @moduledoc """
    The block of scaled dot product attention, as `Bumblebee.Layers.attention/8`: softmax(scale · q·kᵀ + bias)·v
    ([Vaswani et al., 2017](https://arxiv.org/abs/1706.03762)).

    Arguments, in this order; an optional one is passed only if its field is true:

      * query - `{batch, queries, heads, size}`
      * key - `{batch, keys, kv_heads, size}`, where heads is a multiple of kv_heads (grouped heads)
      * value - `{batch, keys, kv_heads, value_size}`
      * key mask, if `:key_mask?` - `{batch, keys}` or `{batch | 1, heads | 1, queries | 1, keys}`, 0 for a masked key
      * head mask, if `:head_mask?` - `{heads}`, a factor for the weights of each head
      * bias, if `:bias?` - `{batch | 1, heads | 1, queries, keys}`, added to the scores
      * offset, if `:offset?` - an integer `{}`, the index of the first query among the keys
      * sinks, if `:sinks?` - `{heads}`, a score for each head that takes part in the softmax but has no value
        ([Xiao et al., 2023](https://arxiv.org/abs/2309.17453))

    The result is `{batch, queries, heads, value_size}`.

    Fields:

      * `:causal` - whether a query attends only to the keys up to its own index, its row number plus the offset
      * `:window` - nil, or `{left, right}`: a query attends only to the keys from its index - left to its index +
        right; with `:causal`, right is 0
      * `:scale` - nil is 1 / sqrt(size), in the type of the query
      * `:weights` - nil; or `:output` or `:dropout`: the weights exist as a tensor, because they are an output of the
        model, or because of dropout. The arguments are then the weights `{batch, heads, queries, keys}` and the value

    For a masked key, the bias is replaced by the lowest finite number of the query's type. A query without any key
    therefore attends to all keys equally.
    """

    defstruct causal: false,
              window: nil,
              scale: nil,
              key_mask?: false,
              head_mask?: false,
              bias?: false,
              offset?: false,
              sinks?: false,
              weights: nil

    @type t :: %__MODULE__{
            causal: boolean,
            window: {left :: non_neg_integer, right :: non_neg_integer} | nil,
            scale: number | nil,
            key_mask?: boolean,
            head_mask?: boolean,
            bias?: boolean,
            offset?: boolean,
            sinks?: boolean,
            weights: nil | :output | :dropout
          }
  end
end

unless Code.ensure_loaded?(Bumblebee.Block.RotaryEmbedding) do
  defmodule Bumblebee.Block.RotaryEmbedding do
    @moduledoc """
    The block of rotary position embedding of query and key, as `Bumblebee.Layers.rotary_embedding/6`
    ([Su et al., 2021](https://arxiv.org/abs/2104.09864)).

    Arguments: query `{batch, length, heads, size}`, key `{batch, length, kv_heads, size}`, and the position ids,
    integers `{batch | 1, length}` from 0 to below `:length`, in any order. The result is a tuple of query and key.

    Fields:

      * `:size` - how many elements are rotated, all of the last axis
      * `:length` - the length of the whole sequence, on which some scaling strategies depend
      * `:max_positions` - the number of positions that the model was trained for
      * `:base` - frequency i is base to the power -2i / size, before scaling
      * `:scaling_strategy` - nil, or a map with `:type`, as in the specifications of Bumblebee's models
    """

    defstruct [:size, :length, max_positions: 2048, base: 10_000, scaling_strategy: nil]

    @type t :: %__MODULE__{
            size: pos_integer,
            length: non_neg_integer,
            max_positions: pos_integer,
            base: number,
            scaling_strategy: map | nil
          }
  end
end
