defmodule EMLX.Fast do
  @moduledoc """
  Norms, rotary position embedding, attention, products in 8 bits and Einstein sums as fused kernels, for tensors of Nx.

  The functions work on tensors, inside `defn` and in Axon layers, with any backend and compiler. On `EMLX.Backend` and
  in functions compiled with `EMLX` they run MLX's kernels. Elsewhere, and if the kernel could not return the same
  result, they are composed from Nx's operations (see `EMLX.Block`). Gradients are those of the composed form.
  Vectorized axes are batch axes.

  ## Types

  f32, f16 and bf16 are computed in f32 and rounded once. f64 is computed in f64, composed. Integers become f32. The
  result has the type of the first argument. Complex numbers raise `ArgumentError`, except in `einsum/2`.

  ## Names of the C++ EMLX

  The functions of the C++ EMLX's `EMLX.Fast` exist under their names. A number in place of the options or the mask is
  `eps` or `scale`, as in `rms_norm(x, weight, 1.0e-6)`. `rope/6`, `rope_with_positions/6`, `rope_with_freqs/6`,
  `scaled_dot_product_attention/6`, `scaled_dot_product_attention_causal/5`,
  `scaled_dot_product_attention_causal_key_masked/6`, `swiglu/2` and `kv_cache_sdpa_update/8` are short forms of the
  functions here.
  """

  import Nx.Defn, only: [deftransform: 2]

  alias EMLX.Fast.{Arguments, Einsum, Int8Matmul, LayerNorm, RMSNorm, RoPE, ScaledDotProductAttention}

  # ---- norms ----

  @doc """
  Root mean square normalisation over the last axis: x / sqrt(mean(x²) + eps) · weight.

    * `x` - `{…, size}`
    * `weight` - `{size}`, or nil

  Options: `:eps`, default `1.0e-5`.

  Returns a tensor with the shape, type and names of `x`. Raises `ArgumentError` if `x` is a scalar, or if `weight` and
  the last axis of `x` differ in length.
  [Zhang and Sennrich, 2019](https://arxiv.org/abs/1910.07467).

      iex> EMLX.Fast.rms_norm(Nx.tensor([3.0, 4.0]), nil, eps: 0.0) |> Nx.multiply(100) |> Nx.round() |> Nx.to_list()
      [85.0, 113.0]
  """
  @spec rms_norm(Nx.Tensor.t(), Nx.Tensor.t() | nil, keyword | number) :: Nx.Tensor.t()
  deftransform rms_norm(x, weight, opts \\ []) do
    eps = eps!(opts, "rms_norm")
    {x, weight, names} = normalized!(x, weight, "rms_norm")
    block = %RMSNorm{eps: eps, weight?: weight != nil}
    norm(block, x, [weight], &RMSNorm.composed/2, &RMSNorm.composed/3, nil) |> Nx.rename(names)
  end

  @doc """
  Normalisation over the last axis: (x - mean) / sqrt(variance + eps) · weight + bias.

    * `x` - `{…, size}`
    * `weight`, `bias` - `{size}`, or nil

  Options: `:eps`, default `1.0e-5`.

  Returns a tensor with the shape, type and names of `x`. Raises `ArgumentError` if `x` is a scalar, or if `weight` or
  `bias` and the last axis of `x` differ in length. [Ba, Kiros and Hinton, 2016](https://arxiv.org/abs/1607.06450).

      iex> EMLX.Fast.layer_norm(Nx.tensor([1.0, 3.0]), nil, Nx.tensor([10.0, 10.0]), eps: 0.0) |> Nx.round() |> Nx.to_list()
      [9.0, 11.0]
  """
  @spec layer_norm(Nx.Tensor.t(), Nx.Tensor.t() | nil, Nx.Tensor.t() | nil | number, keyword | number) :: Nx.Tensor.t()
  deftransform layer_norm(x, weight, bias, opts \\ []) do
    # In the C++ EMLX the third of three arguments is eps.
    {bias, opts} = if is_number(bias), do: {nil, [eps: bias]}, else: {bias, opts}
    eps = eps!(opts, "layer_norm")
    {x, weight, names} = normalized!(x, weight, "layer_norm")
    bias = Arguments.vector!(bias, "bias", x, "layer_norm")
    block = %LayerNorm{eps: eps, weight?: weight != nil, bias?: bias != nil}

    norm(block, x, [weight, bias], &LayerNorm.composed/2, &LayerNorm.composed/3, &LayerNorm.composed/4)
    |> Nx.rename(names)
  end

  defp eps!(eps, _function) when is_number(eps), do: eps * 1.0

  defp eps!(opts, function) do
    opts |> Keyword.validate!(eps: 1.0e-5) |> Keyword.fetch!(:eps) |> Arguments.number!(:eps, function)
  end

  defp normalized!(x, weight, function) do
    names = Nx.to_tensor(x).names
    x = Arguments.float!(x, "x", function)
    if x.shape == {}, do: raise(ArgumentError, "#{function}: x is a scalar, there is no axis to normalise over")
    {x, Arguments.vector!(weight, "weight", x, function), names}
  end

  # Vectorized axes of x become leading axes. A vectorized weight runs composed: the kernel takes vectors only.
  defp norm(block, x, vectors, none, one, two) do
    vectors = Enum.reject(vectors, &is_nil/1)
    composed = Enum.at([none, one, two], length(vectors))

    if Arguments.vectorized?(vectors) do
      apply(composed, [block, x | vectors])
    else
      flat = Nx.devectorize(x, keep_names: false)
      Arguments.block(block, [flat | vectors], flat, composed) |> Nx.vectorize(x.vectorized_axes)
    end
  end

  # ---- rotary position embedding ----

  @doc """
  Rotary position embedding: rotates each pair of elements of the last axis by position · frequency.

    * `x` - `{batch, heads, length, size}`, or `{length, size}`, `{batch, length, size}`, or more axes between batch and
      length
    * `offset` - the position of the first row: an integer, an integer tensor `{}`, or one integer for each batch row,
      `{batch}`
    * `freqs` - nil, or `{dims / 2}` with the reciprocals of the frequencies: an angle is the position divided by it.
      With `freqs`, `:base` is ignored

  Options:

    * `:dims` - the number of elements of the last axis that are rotated, an even integer; default all
    * `:traditional` - whether adjacent elements form a pair, rather than one element of each half; default `false`
    * `:base` - frequency i is base to the power -2i / dims; default `10_000`
    * `:scale` - a factor of the positions; default 1

  Returns a tensor with the shape, type and names of `x`. Raises `ArgumentError` if shapes or options do not fit.
  [Su et al., 2021](https://arxiv.org/abs/2104.09864).

      iex> x = Nx.tensor([[1.0, 0.0], [1.0, 0.0]])
      iex> EMLX.Fast.rope(x, 0, Nx.tensor([2 / :math.pi()])) |> Nx.round() |> Nx.add(0) |> Nx.to_list()
      [[1.0, 0.0], [0.0, 1.0]]
  """
  @spec rope(Nx.Tensor.t(), integer | Nx.Tensor.t(), Nx.Tensor.t() | nil, keyword) :: Nx.Tensor.t()
  deftransform rope(x, offset, freqs \\ nil, opts \\ []) do
    opts = Keyword.validate!(opts, dims: nil, traditional: false, base: 10_000, scale: 1)
    names = Nx.to_tensor(x).names
    x = Arguments.float!(x, "x", "rope")

    block = %RoPE{
      dims: dims!(x, opts[:dims]),
      traditional: boolean!(opts[:traditional], :traditional, "rope"),
      base: positive!(opts[:base], :base, "rope"),
      scale: Arguments.number!(opts[:scale], :scale, "rope"),
      freqs?: freqs != nil
    }

    freqs = freqs!(freqs, block.dims)
    {block, offset} = offset!(block, offset, x)
    {x, flat, offset} = rows(x, offset)
    args = Enum.reject([flat, offset, freqs], &is_nil/1)

    composed =
      case length(args) do
        1 -> &RoPE.composed/2
        2 -> &RoPE.composed/3
        3 -> &RoPE.composed/4
      end

    block
    |> Arguments.block(args, flat, composed)
    |> Nx.reshape(Nx.devectorize(x, keep_names: false).shape)
    |> Nx.vectorize(x.vectorized_axes)
    |> Nx.rename(names)
  end

  @doc false
  deftransform(rope(x, dims, traditional, base, scale, offset),
    do: rope(x, offset, nil, dims: dims, traditional: traditional, base: base, scale: scale)
  )

  defp dims!(%{shape: shape}, _dims) when tuple_size(shape) < 2,
    do:
      raise(
        ArgumentError,
        "rope: x is #{inspect(shape)}, it must be {batch, heads, length, size} or at least {length, size}"
      )

  defp dims!(%{shape: shape}, dims) do
    size = elem(shape, tuple_size(shape) - 1)
    dims = dims || size

    unless is_integer(dims) and dims > 0 and dims <= size and rem(dims, 2) == 0 do
      raise ArgumentError,
            "rope: x is #{inspect(shape)}, dims is #{inspect(dims)}: it must be even and from 2 to #{size}"
    end

    dims
  end

  defp freqs!(nil, _dims), do: nil

  defp freqs!(freqs, dims) do
    freqs = Arguments.float!(freqs, "freqs", "rope")

    if freqs.shape != {div(dims, 2)} or freqs.vectorized_axes != [] do
      raise ArgumentError, "rope: dims is #{dims}, freqs is #{Arguments.describe(freqs)}: it must be {#{div(dims, 2)}}"
    end

    freqs
  end

  defp offset!(block, offset, _x) when is_integer(offset), do: {%{block | offset: offset}, nil}

  defp offset!(block, offset, %{shape: shape}) do
    offset = offset |> Nx.to_tensor() |> Arguments.unnamed()
    batch = if tuple_size(shape) > 2, do: elem(shape, 0), else: 1

    unless Nx.Type.integer?(offset.type) do
      raise ArgumentError, "rope: offset is #{Arguments.describe(offset)}, it must be of integers"
    end

    unless offset.shape in [{}, {1}, {batch}] do
      raise ArgumentError,
            "rope: x is #{inspect(shape)}, offset is #{inspect(offset.shape)}: " <>
              "it must be {} or one integer for each of the #{batch} batch rows"
    end

    {block, if(offset.shape == {1}, do: Nx.squeeze(offset), else: offset)}
  end

  # Returns x with the vectorized axes of the offset; x as {rows, heads, length, size}, where vectorized axes are rows,
  # too; and the offset as {} or {rows}.
  defp rows(x, offset) do
    {x, offset} =
      if offset && Arguments.vectorized?([offset]) do
        [x, offset] = Nx.broadcast_vectors([x, offset])
        {x, offset}
      else
        {x, offset}
      end

    vectors = x.vectorized_axes |> Keyword.values() |> Enum.product()
    dims = Tuple.to_list(x.shape)
    {leading, [length, size]} = Enum.split(dims, -2)

    {batch, heads} =
      case leading do
        [] -> {1, 1}
        [batch | rest] -> {batch, Enum.product(rest)}
      end

    flat = x |> Nx.devectorize(keep_names: false) |> Nx.reshape({vectors * batch, heads, length, size})

    offset =
      case offset do
        nil -> nil
        %{vectorized_axes: [], shape: {}} -> offset
        %{shape: {}} -> spread(offset, vectors, 1, batch)
        _ -> spread(offset, vectors, batch, batch)
      end

    {x, flat, offset}
  end

  # Broadcasts to one offset for each row of each vector.
  defp spread(offset, vectors, own, batch) do
    offset = Nx.devectorize(offset, keep_names: false)
    mine = if Nx.size(offset) == own, do: Nx.reshape(offset, {1, own}), else: Nx.reshape(offset, {vectors, own})
    mine |> Nx.broadcast({vectors, batch}) |> Nx.reshape({vectors * batch})
  end

  @doc """
  `rope/4` with a position for each row: `x` is `{batch, length, heads, size}`, `positions` is `{batch, length}` of
  integers. Returns the shape, type and names of `x`.

  The C++ EMLX's function of this name.
  """
  @spec rope_with_positions(Nx.Tensor.t(), Nx.Tensor.t(), pos_integer, boolean, number, number) :: Nx.Tensor.t()
  deftransform(rope_with_positions(x, positions, dims, traditional, base, scale),
    do: at_positions(x, positions, nil, dims: dims, traditional: traditional, base: base, scale: scale)
  )

  @doc """
  `rope_with_positions/6` with frequencies `{dims / 2}` in place of a base. Unlike in `rope/4`, they are not
  reciprocals.

  The C++ EMLX's function of this name.
  """
  @spec rope_with_freqs(Nx.Tensor.t(), Nx.Tensor.t(), pos_integer, boolean, number, Nx.Tensor.t()) :: Nx.Tensor.t()
  deftransform rope_with_freqs(x, positions, dims, traditional, scale, freqs) do
    freqs = Arguments.float!(freqs, "freqs", "rope_with_freqs")

    at_positions(x, positions, Nx.divide(Arguments.number(1.0, freqs), freqs),
      dims: dims,
      traditional: traditional,
      scale: scale
    )
  end

  # Each position is a batch row of length 1.
  defp at_positions(x, positions, freqs, opts) do
    x = Nx.to_tensor(x)
    positions = Nx.to_tensor(positions)

    case {x.shape, positions.shape} do
      {{batch, length, heads, size}, {batch, length}} ->
        x
        |> Nx.reshape({batch * length, heads, 1, size})
        |> rope(Nx.reshape(positions, {batch * length}), freqs, opts)
        |> Nx.reshape(x.shape, names: x.names)

      {shape, other} ->
        raise ArgumentError,
              "rope: x is #{inspect(shape)}, the positions are #{inspect(other)}: " <>
                "they must be {batch, length, heads, size} and {batch, length}"
    end
  end

  # ---- products in 8 bits ----

  @doc """
  Returns x · wᵀ + bias for a matrix of 8-bit integers, as `EMLX.Kernels.int8_matmul/5` defines it.

    * `x` - `{…, k}`. Each row is rounded to integers from -127 to 127
    * `w` - `{n, k}` of s8, of which row i stands for `scales[i]` · `w[i]`, or what `EMLX.Fast.Int8Matmul.pack/1` returns
    * `scales` - `{n}`
    * `bias` - `{n}`, or nil

  Returns `{…, n}` in the type of `x`. Raises `ArgumentError` if shapes or types do not fit.

      iex> EMLX.Fast.int8_matmul(Nx.tensor([2.0, 1.0]), Nx.s8([[3, -1], [0, 4]]), Nx.tensor([1.0, 0.5])) |> Nx.round() |> Nx.to_list()
      [5.0, 2.0]
  """
  @spec int8_matmul(Nx.Tensor.t(), Nx.Tensor.t(), Nx.Tensor.t(), Nx.Tensor.t() | nil) :: Nx.Tensor.t()
  deftransform(int8_matmul(x, w, scales, bias \\ nil), do: Int8Matmul.run(x, w, scales, bias))

  # ---- attention ----

  @doc """
  Scaled dot product attention: softmax(scale · q·kᵀ + mask)·v.

    * `q` - `{batch, heads, queries, size}`
    * `k` - `{batch, kv_heads, keys, size}`; heads is a multiple of kv_heads (grouped or multi-query attention)
    * `v` - `{batch, kv_heads, keys, value_size}`
    * `mask` - one of
      * `nil`
      * `:causal` - query i attends to the keys up to i + keys - queries
      * a tensor of integers, such as the u8 that Nx's comparisons return: a boolean mask, 0 for keys that are masked
        out. A query whose keys are all masked out attends to all of them equally
      * a tensor of floats, which is added to the scores

      Tensors are broadcast to `{batch, heads, queries, keys}`, aligned at the last axis

  Options:

    * `:scale` - default 1 / sqrt(size)
    * `:sinks` - nil, or `{heads}`: an extra score for each head, which takes part in the softmax and has no value
      ([Xiao et al., 2023](https://arxiv.org/abs/2309.17453))
    * `:layout` - `:bhsd` (default), or `:bshd`: `q`, `k`, `v` and the result are `{batch, length, heads, size}`,
      without a copy. The compiler's `:merge` recognises attention in this layout

  Returns a tensor `{batch, heads, queries, value_size}` of the type of `q`. Raises `ArgumentError` if shapes do not
  fit. [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762), grouped heads
  [Ainslie et al., 2023](https://arxiv.org/abs/2305.13245).

      iex> q = Nx.tensor([[[[0.0]]]])
      iex> kv = Nx.tensor([[[[1.0], [3.0], [8.0]]]])
      iex> EMLX.Fast.scaled_dot_product_attention(q, kv, kv, Nx.tensor([1, 1, 0], type: :u8)) |> Nx.to_flat_list()
      [2.0]
  """
  @spec scaled_dot_product_attention(
          Nx.Tensor.t(),
          Nx.Tensor.t(),
          Nx.Tensor.t(),
          nil | :causal | Nx.Tensor.t() | number,
          keyword | Nx.Tensor.t()
        ) :: Nx.Tensor.t()
  deftransform scaled_dot_product_attention(q, k, v, mask \\ nil, opts \\ []) do
    case {mask, opts} do
      # In the C++ EMLX the fourth argument is the scale, and the mask follows it.
      {scale, opts} when is_number(scale) and is_list(opts) -> attention(q, k, v, nil, [scale: scale] ++ opts)
      {scale, mask} when is_number(scale) -> attention(q, k, v, mask, scale: scale)
      {mask, opts} -> attention(q, k, v, mask, opts)
    end
  end

  @doc false
  deftransform(scaled_dot_product_attention(q, k, v, scale, mask, opts),
    do: attention(q, k, v, mask, [scale: scale] ++ opts)
  )

  @doc false
  deftransform(scaled_dot_product_attention_causal(q, k, v, scale, opts \\ []),
    do: attention(q, k, v, :causal, [scale: scale] ++ opts)
  )

  @doc """
  Causal attention with a mask of keys: `key_mask` is `{batch, keys}`, 1 for a key and 0 for padding.

  A single query attends to all keys that are not padding, several queries to those up to their own index. The result is
  0 for a query without keys, such as padding before the first token. Options: `:sinks`, as for
  `scaled_dot_product_attention/5`. The C++ EMLX's function of this name.
  """
  @spec scaled_dot_product_attention_causal_key_masked(
          Nx.Tensor.t(),
          Nx.Tensor.t(),
          Nx.Tensor.t(),
          number,
          Nx.Tensor.t(),
          keyword
        ) :: Nx.Tensor.t()
  deftransform scaled_dot_product_attention_causal_key_masked(q, k, v, scale, key_mask, opts \\ []) do
    {batch, _, queries, _} = heads!(Nx.to_tensor(q), "q").shape
    {_, _, keys, _} = heads!(Nx.to_tensor(k), "k").shape
    key_mask = key_mask |> Nx.to_tensor() |> Arguments.unnamed()

    if key_mask.shape not in [{batch, keys}, {1, keys}] do
      raise ArgumentError,
            "#{attention()}: the key mask is #{inspect(key_mask.shape)}, it must be {batch, keys}, " <>
              "here {#{batch}, #{keys}}"
    end

    key_mask = key_mask |> Nx.not_equal(0) |> Nx.new_axis(1) |> Nx.new_axis(1)
    first = if queries == 1, do: keys - 1, else: 0
    seen = Nx.greater_equal(Nx.add(Nx.iota({queries, keys}, axis: 0), first), Nx.iota({queries, keys}, axis: 1))
    mask = Nx.logical_and(seen, key_mask)
    attention = attention(q, k, v, mask, [scale: scale] ++ opts)
    sees_any = mask |> Nx.any(axes: [-1], keep_axes: true) |> Nx.broadcast(attention.shape)
    Nx.select(sees_any, attention, Nx.tensor(0, type: attention.type))
  end

  defp attention(q, k, v, mask, opts) do
    opts = Keyword.validate!(opts, scale: nil, sinks: nil, layout: :bhsd)
    block = %ScaledDotProductAttention{layout: layout!(opts[:layout])}

    [q, k, v] =
      for {name, t} <- [{"q", q}, {"k", k}, {"v", v}], do: heads!(Arguments.float!(t, name, attention()), name)

    [q_shape, k_shape, v_shape] = for t <- [q, k, v], do: ScaledDotProductAttention.swap(block, t.shape)
    heads_fit!(q_shape, k_shape, v_shape)
    {batch, heads, queries, size} = q_shape
    keys = elem(k_shape, 2)
    value_size = elem(v_shape, 3)

    scale =
      if opts[:scale], do: Arguments.number!(opts[:scale], :scale, attention()), else: 1 / :math.sqrt(max(size, 1))

    {mode, mask} = mask!(mask, {batch, heads, queries, keys})
    sinks = sinks!(opts[:sinks], heads)
    block = %{block | scale: scale, mask: mode, sinks?: sinks != nil}
    output = %{q | shape: ScaledDotProductAttention.swap(block, {batch, heads, queries, value_size})}
    rest = Enum.reject([mask, sinks], &is_nil/1)

    composed =
      Enum.at(
        [&ScaledDotProductAttention.composed/4, &ScaledDotProductAttention.composed/5] ++
          [&ScaledDotProductAttention.composed/6],
        length(rest)
      )

    cond do
      sinks && Arguments.vectorized?([sinks]) ->
        # The kernel takes one sink for each head, the same for all batch rows.
        ScaledDotProductAttention.attend(block, q, k, v, {mask, sinks})

      Arguments.vectorized?([q, k, v | rest]) ->
        vectorized_attention(block, [q, k, v], mask, sinks, output, composed)

      true ->
        Arguments.block(block, [q, k, v | rest], output, composed)
    end
  end

  # Vectorized axes become batch rows.
  defp vectorized_attention(block, [q, k, v], mask, sinks, output, composed) do
    {batch, _, _, _} = q.shape

    {[q, k, v], mask} =
      case mask do
        %{vectorized_axes: [_ | _]} ->
          [q, k, v, mask] = Nx.broadcast_vectors([q, k, v, mask])
          {[q, k, v], mask}

        mask ->
          {Nx.broadcast_vectors([q, k, v]), mask}
      end

    vectors = q.vectorized_axes |> Keyword.values() |> Enum.product()

    rows = fn tensor ->
      [first | rest] = Tuple.to_list(tensor.shape)
      tensor |> Nx.devectorize(keep_names: false) |> Nx.reshape(List.to_tuple([vectors * first | rest]))
    end

    mask =
      case mask do
        nil ->
          nil

        %{shape: shape, vectorized_axes: []} when tuple_size(shape) < 4 or elem(shape, 0) == 1 ->
          mask

        %{shape: shape, vectorized_axes: []} ->
          tiled = Nx.broadcast(mask, List.to_tuple([vectors | Tuple.to_list(shape)]))
          Nx.reshape(tiled, put_elem(shape, 0, vectors * batch))

        %{shape: shape} ->
          ones = List.duplicate(1, 4 - tuple_size(shape))
          [_ | rest] = full = ones ++ Tuple.to_list(shape)
          mask |> Nx.reshape(List.to_tuple(full)) |> Nx.broadcast(List.to_tuple([batch | rest])) |> rows.()
      end

    args = Enum.map([q, k, v], rows) ++ Enum.reject([mask, sinks], &is_nil/1)
    template = output.shape |> put_elem(0, vectors * batch) |> Nx.template(output.type)

    block
    |> Arguments.block(args, template, composed)
    |> Nx.reshape(List.to_tuple(Keyword.values(q.vectorized_axes) ++ Tuple.to_list(output.shape)))
    |> Nx.vectorize(q.vectorized_axes)
  end

  defp attention, do: "scaled_dot_product_attention"

  defp layout!(layout) when layout in [:bhsd, :bshd], do: layout

  defp layout!(layout),
    do: raise(ArgumentError, "#{attention()}: :layout is :bhsd or :bshd, got: #{inspect(layout)}")

  defp heads!(%{shape: {_, _, _, _}} = tensor, _name), do: tensor

  defp heads!(%{shape: shape}, name),
    do: raise(ArgumentError, "#{attention()}: #{name} is #{inspect(shape)}, it must be {batch, heads, length, size}")

  defp heads_fit!({batch, heads, _, size} = q, {k_batch, kv_heads, keys, k_size} = k, {v_batch, v_heads, v_keys, _} = v) do
    cond do
      kv_heads == 0 or rem(heads, kv_heads) != 0 ->
        raise ArgumentError,
              "#{attention()}: q is #{inspect(q)}, k has #{kv_heads} heads: #{heads} is not a multiple of #{kv_heads}"

      k_size != size ->
        raise ArgumentError,
              "#{attention()}: q is #{inspect(q)}, k is #{inspect(k)}: the sizes #{size} and #{k_size} differ"

      {kv_heads, keys} != {v_heads, v_keys} ->
        raise ArgumentError, "#{attention()}: k is #{inspect(k)}, v is #{inspect(v)}: heads or lengths differ"

      batch != k_batch or batch != v_batch ->
        raise ArgumentError,
              "#{attention()}: q is #{inspect(q)}, k is #{inspect(k)}, v is #{inspect(v)}: the batch sizes differ"

      true ->
        :ok
    end
  end

  defp mask!(nil, _scores), do: {nil, nil}
  defp mask!(:causal, _scores), do: {:causal, nil}

  defp mask!(mask, scores) when not is_atom(mask) do
    mask = mask |> Nx.to_tensor() |> Arguments.unnamed()

    aligned =
      Enum.zip(Enum.reverse(Tuple.to_list(mask.shape)), Enum.reverse(Tuple.to_list(scores)))
      |> Enum.all?(fn {have, want} -> have in [1, want] end)

    unless tuple_size(mask.shape) <= 4 and aligned do
      raise ArgumentError,
            "#{attention()}: the mask is #{inspect(mask.shape)}, it does not broadcast to " <>
              "{batch, heads, queries, keys}, here #{inspect(scores)}"
    end

    case mask.type do
      {kind, _} when kind in [:u, :s] -> {:boolean, mask}
      {:c, _} -> raise ArgumentError, "#{attention()}: the mask is complex"
      _ -> {:additive, mask}
    end
  end

  defp mask!(mask, _scores) do
    raise ArgumentError, "#{attention()}: the mask must be nil, :causal or a tensor, got: #{inspect(mask)}"
  end

  defp sinks!(nil, _heads), do: nil

  defp sinks!(sinks, heads) do
    sinks = Arguments.float!(sinks, "sinks", attention())

    if sinks.shape != {heads} do
      raise ArgumentError,
            "#{attention()}: q has #{heads} heads, sinks is #{inspect(sinks.shape)}: it must be {#{heads}}"
    end

    sinks
  end

  @doc """
  Writes keys and values into a key-value cache and attends to it. Returns `{attention, k_cache, v_cache}`.

    * `q` - `{batch, length, heads, size}`; `new_k`, `new_v` - `{batch, length, kv_heads, size}`
    * `k_cache`, `v_cache` - `{batch, max_length, kv_heads, size}`
    * `offset` - the position in the cache to write to, an integer or an integer tensor of one element
    * `key_mask` - `{batch, max_length}`, 1 for a key and 0 for padding
    * `scale` - the factor of the scores, a number

  The attention is `{batch, heads, length, size}`. The C++ EMLX's function of this name.
  """
  @spec kv_cache_sdpa_update(
          Nx.Tensor.t(),
          Nx.Tensor.t(),
          Nx.Tensor.t(),
          Nx.Tensor.t(),
          Nx.Tensor.t(),
          integer | Nx.Tensor.t(),
          Nx.Tensor.t(),
          number
        ) :: {Nx.Tensor.t(), Nx.Tensor.t(), Nx.Tensor.t()}
  deftransform kv_cache_sdpa_update(q, new_k, new_v, k_cache, v_cache, offset, key_mask, scale) do
    offset = if is_integer(offset), do: offset, else: Nx.reshape(offset, {})
    k = Nx.put_slice(k_cache, [0, offset, 0, 0], new_k)
    v = Nx.put_slice(v_cache, [0, offset, 0, 0], new_v)
    [q, k_heads, v_heads] = Enum.map([q, k, v], &Nx.transpose(&1, axes: [0, 2, 1, 3]))
    {scaled_dot_product_attention_causal_key_masked(q, k_heads, v_heads, scale, key_mask), k, v}
  end

  @doc """
  The gated unit silu(gate) · up, with silu(x) = x · sigmoid(x). Returns the type of `gate`. Composed from Nx's
  operations on every backend. [Shazeer, 2020](https://arxiv.org/abs/2002.05202).
  """
  @spec swiglu(Nx.Tensor.t(), Nx.Tensor.t()) :: Nx.Tensor.t()
  deftransform swiglu(gate, up) do
    gate = Nx.to_tensor(gate)
    gate |> Nx.multiply(Nx.sigmoid(gate)) |> Nx.multiply(up) |> Nx.as_type(gate.type)
  end

  # ---- Einstein sums ----

  @doc """
  The Einstein sum of an equation: `"bij,bjk->bik"` is a batched matrix product.

    * `equation` - for each operand one letter per axis, then `->` and the axes of the result. Letters that are not in
      the result are summed over. A letter twice in an operand takes its diagonal. Without `->`, the result has the
      letters that occur once, in alphabetical order. `...` stands for any number of further axes, which are broadcast
    * `operands` - a list of tensors, or one tensor

  Works like [NumPy's](https://numpy.org/doc/stable/reference/generated/numpy.einsum.html), except that axes of size 1
  are broadcast under an ellipsis only. The result has the type that the operands' types merge to; integers wrap around.
  Raises `ArgumentError` if the equation is malformed or does not fit the operands.

      iex> EMLX.Fast.einsum("ij,jk->ik", [Nx.tensor([[1, 2]]), Nx.tensor([[3], [4]])]) |> Nx.to_list()
      [[11]]

      iex> EMLX.Fast.einsum("ii", [Nx.tensor([[1, 2], [3, 4]])]) |> Nx.to_number()
      5
  """
  @spec einsum(String.t(), [Nx.Tensor.t()] | Nx.Tensor.t()) :: Nx.Tensor.t()
  deftransform einsum(equation, operands) do
    unless is_binary(equation),
      do: raise(ArgumentError, "einsum: the equation must be a string, got: #{inspect(equation)}")

    operands = operands |> List.wrap() |> Enum.map(&(&1 |> Nx.to_tensor() |> Arguments.unnamed()))
    {equation, dropped} = Einsum.parse!(equation, Enum.map(operands, & &1.shape))
    operands = Enum.zip_with(operands, dropped, fn tensor, axes -> Nx.squeeze(tensor, axes: axes) end)

    if Arguments.vectorized?(operands) do
      [%{vectorized_axes: axes} | _] = operands = Nx.broadcast_vectors(operands)
      letters = Einsum.unused(equation, length(axes))
      [inputs, output] = String.split(equation, "->")
      inputs = inputs |> String.split(",") |> Enum.map_join(",", &"#{letters}#{&1}")
      operands = Enum.map(operands, &Nx.devectorize(&1, keep_names: false))
      "#{inputs}->#{letters}#{output}" |> contract(operands) |> Nx.vectorize(axes)
    else
      contract(equation, operands)
    end
  end

  defp contract(equation, operands) do
    block = %Einsum{equation: equation}
    count = length(operands)

    if count > Einsum.most_operands() do
      Einsum.contract(block, operands)
    else
      [inputs, output] = String.split(equation, "->")

      sizes =
        for {term, tensor} <- Enum.zip(String.split(inputs, ","), operands),
            {letter, axis} <- Enum.with_index(String.to_charlist(term)),
            into: %{},
            do: {letter, elem(tensor.shape, axis)}

      shape = output |> String.to_charlist() |> Enum.map(&sizes[&1]) |> List.to_tuple()
      type = operands |> Enum.map(& &1.type) |> Enum.reduce(&Nx.Type.merge/2)
      Arguments.block(block, operands, Nx.template(shape, type), Einsum.function(count))
    end
  end

  # ---- options ----

  defp boolean!(value, _name, _function) when is_boolean(value), do: value

  defp boolean!(value, name, function),
    do: raise(ArgumentError, "#{function}: :#{name} must be true or false, got: #{inspect(value)}")

  defp positive!(number, name, function) do
    number = Arguments.number!(number, name, function)
    if number > 0, do: number, else: raise(ArgumentError, "#{function}: :#{name} must be positive, got: #{number}")
  end
end
