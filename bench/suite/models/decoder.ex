defmodule EMLX.Bench.Decoder do
  @moduledoc """
  The suite's decoder as a function of `Nx.Defn` on EMLX's fused kernels; what bench/peers/mlx_models.py is in Python. A
  Llama, on the names that its checkpoint has.
  """

  import Nx.Defn

  alias EMLX.Fast

  @doc "Logits `{batch, length, vocabulary}` of tokens `{batch, length}`. `opts` hold `:blocks` and `:heads`."
  defn prefill(tokens, w, opts \\ []) do
    all_blocks(tokens, w, opts)
  end

  deftransformp all_blocks(tokens, w, opts) do
    attend = fn _i, q, k, v ->
      scale = 1 / :math.sqrt(Nx.axis_size(q, 3))
      Fast.scaled_dot_product_attention(rope(q, 0), rope(k, 0), v, :causal, scale: scale)
    end

    {x, _} =
      run(
        Nx.take(w["model.embed_tokens.weight"], tokens),
        w,
        opts,
        fn i, q, k, v, _ -> {attend.(i, q, k, v), nil} end,
        nil
      )

    x
  end

  @doc """
  One more token, `{batch, 1}`, at position `offset`: logits and the cache with its keys and values. The cache is a
  tuple of `{keys, values}` a block, `{batch, heads, length, size}` each.
  """
  defn step(token, offset, cache, w, opts \\ []) do
    one_token(token, offset, cache, w, opts)
  end

  deftransformp one_token(token, offset, cache, w, opts) do
    attend = fn i, q, k, v, cache ->
      {keys, values} = elem(cache, i)
      keys = Nx.put_slice(keys, [0, 0, offset, 0], rope(k, offset))
      values = Nx.put_slice(values, [0, 0, offset, 0], v)
      length = Nx.axis_size(keys, 2)
      seen = Nx.less_equal(Nx.iota({1, 1, 1, length}, axis: 3), offset)
      scale = 1 / :math.sqrt(Nx.axis_size(q, 3))
      out = Fast.scaled_dot_product_attention(rope(q, offset), keys, values, seen, scale: scale)
      {out, put_elem(cache, i, {keys, values})}
    end

    run(Nx.take(w["model.embed_tokens.weight"], token), w, opts, attend, cache)
  end

  @doc "A cache without anything in it."
  def cache(batch, length, type, opts) do
    zeros = Nx.broadcast(Nx.tensor(0.0, type: type), {batch, opts[:heads], length, div(opts[:size], opts[:heads])})
    Tuple.duplicate({zeros, zeros}, opts[:blocks])
  end

  defp run(x, w, opts, attend, cache) do
    {x, cache} =
      Enum.reduce(0..(opts[:blocks] - 1), {x, cache}, fn i, {x, cache} ->
        named = fn name -> "model.layers.#{i}.#{name}" end
        of = fn name -> Map.fetch!(w, named.(name) <> ".weight") end
        h = Fast.rms_norm(x, of.("input_layernorm"), eps: 1.0e-5)
        [q, k, v] = for name <- ~w(q k v), do: h |> dense(w, named.("self_attn.#{name}_proj")) |> split(opts[:heads])
        {out, cache} = attend.(i, q, k, v, cache)
        x = Nx.add(x, out |> joined() |> dense(w, named.("self_attn.o_proj")))
        h = Fast.rms_norm(x, of.("post_attention_layernorm"), eps: 1.0e-5)
        gate = dense(h, w, named.("mlp.gate_proj"))
        gated = Nx.multiply(Nx.multiply(gate, Nx.sigmoid(gate)), dense(h, w, named.("mlp.up_proj")))
        {Nx.add(x, dense(gated, w, named.("mlp.down_proj"))), cache}
      end)

    {x |> Fast.rms_norm(w["model.norm.weight"], eps: 1.0e-5) |> dense(w, "lm_head"), cache}
  end

  # The checkpoint's matrices are {outputs, inputs}.
  defp dense(x, w, name) do
    matrix = Map.fetch!(w, name <> ".weight")

    case w[name <> ".scales"] do
      nil -> Nx.dot(x, [-1], matrix, [1])
      scales -> Fast.int8_matmul(x, matrix, scales)
    end
  end

  defp split(x, heads) do
    {batch, length, size} = Nx.shape(x)
    x |> Nx.reshape({batch, length, heads, div(size, heads)}) |> Nx.transpose(axes: [0, 2, 1, 3])
  end

  defp joined(x) do
    {batch, heads, length, size} = Nx.shape(x)
    x |> Nx.transpose(axes: [0, 2, 1, 3]) |> Nx.reshape({batch, length, heads * size})
  end

  defp rope(x, offset), do: Fast.rope(x, offset, nil, dims: Nx.axis_size(x, 3), base: 10_000.0)
end
