defmodule EMLXBumblebee do
  @moduledoc """
  Runs Bumblebee's models with MLX's fused kernels.

      {:ok, model_info} = Bumblebee.load_model({:hf, "Qwen/Qwen3-0.6B"})
      model_info = EMLXBumblebee.rewrite(model_info)

  `rewrite/2` replaces layers by blocks (`Nx.block/4`): those that `EMLXAxon.rewrite/2` replaces, and Bumblebee's own
  layers. `EMLX.Backend` and functions compiled with `EMLX` run a block as one kernel.

  The composed function of a block is the original layer. The rewritten model computes the same on every backend and
  compiler, and is trained as before. A kernel that cannot return the layer's result is not used. Names, parameters and
  initial values do not change.

  | layer | block | composed if |
  |---|---|---|
  | attention | `Bumblebee.Block.SDPA` | weights are an output, dropout, a head mask, or an unsupported type |
  | rotary embedding | `Bumblebee.Block.RotaryEmbedding` | a type is not f32, f16 or bf16 |
  | `rms_norm` | `Axon.Block.RMSNorm` | as in `EMLXAxon` |
  | `Axon.layer_norm/2` | `Axon.Block.LayerNorm` | as in `EMLXAxon` |

  Attention supports causal and other masks, key masks of rank 2 or 4, relative bias, windows, any scale, a cache with
  its offset, and cross-attention. It is composed with `output_attentions: true`, with dropout while training, with a
  head mask, and if a type is not f32, f16 or bf16.

  Without a cache, grouped heads of keys and values are passed to the kernel without repeating them; Bumblebee's cache
  contains repeated heads. Layers with the same masks share one mask tensor.

  Rotary embedding supports positions in any order, all scaling strategies, and rotating part of a head.

  `explain/1` lists the layers that became blocks. Whether a block runs as a kernel also depends on types and inputs;
  telemetry reports it at run time (see `EMLX.Block`).

  Encoder-decoder models always have attention weights among their outputs. If such a model's whole output is used, the
  weights are computed in addition to the kernel. Generation does not use them, so they are not computed.
  """

  alias EMLX.Fast.Arguments
  alias EMLX.Options
  alias EMLXBumblebee.{Attention, Captures, Explain, Graph, Quantized}

  @axon [:layer_norm, :rms_norm]
  @layers Enum.sort([:attention, :rotary_embedding | @axon])

  # The schema has the types. The code that uses an option checks its value, with the names of this model or package.
  @rewrite Options.schema(only: [type: {:list, :atom}, default: @layers])
  @quantize Options.schema(
              type: [type: {:in, [:affine, :int8]}, default: :affine],
              bits: [type: :integer],
              group_size: [type: :integer],
              except: [type: {:list, :string}, default: []]
            )

  @doc """
  Replaces the layers of a model that have a kernel by blocks.

  Takes an Axon model, or the map with `:model` that `Bumblebee.load_model/2` returns, and returns the same.

  Options:

    * `:only` - a list of the layers to rewrite, default `#{inspect(@layers)}`, which is all of them

  Rewriting a model twice changes nothing. Raises `ArgumentError` if the first argument is not a model or an option is
  invalid.

      iex> spec =
      ...>   Bumblebee.configure(Bumblebee.Text.Bert,
      ...>     vocab_size: 16,
      ...>     hidden_size: 8,
      ...>     num_blocks: 1,
      ...>     num_attention_heads: 2,
      ...>     intermediate_size: 8
      ...>   )
      iex> model = spec |> Bumblebee.build_model() |> EMLXBumblebee.rewrite()
      iex> {init, predict} = Axon.build(model)
      iex> inputs = %{"input_ids" => Nx.tensor([[1, 2, 3]])}
      iex> state = init.(inputs, Axon.ModelState.empty())
      iex> Nx.shape(predict.(state, inputs).hidden_state)
      {1, 3, 8}
  """
  @spec rewrite(Axon.t(), keyword) :: Axon.t()
  @spec rewrite(%{model: Axon.t()}, keyword) :: %{model: Axon.t()}
  def rewrite(model_or_info, opts \\ [])

  def rewrite(%Axon{} = model, opts) do
    only = opts |> Options.validate!(@rewrite, "EMLXBumblebee.rewrite") |> Keyword.fetch!(:only)

    unless is_list(only) and only -- @layers == [] do
      raise ArgumentError, ":only must be a list of some of #{inspect(@layers)}, got: #{inspect(only)}"
    end

    model = EMLXAxon.rewrite_axon(model, only: Enum.filter(@axon, &(&1 in only)))
    Graph.rewrite(model, only)
  end

  def rewrite(%{model: %Axon{} = model} = info, opts), do: %{info | model: rewrite(model, opts)}

  def rewrite(other, _opts) do
    raise ArgumentError, "rewrite: an Axon model is needed, or a map with one as :model, got: #{inspect(other)}"
  end

  @doc """
  Quantizes the matrices of a model, in one of two formats.

      model_info = model_info |> EMLXBumblebee.rewrite() |> EMLXBumblebee.quantize(bits: 4)
      model_info = model_info |> EMLXBumblebee.rewrite() |> EMLXBumblebee.quantize(type: :int8)

  Takes the map with `:model` and `:params` that `Bumblebee.load_model/2` returns, and returns the same. The dense
  layers and embeddings with floating-point matrices are quantized:

    * `type: :affine` - MLX's format, 2, 4 or 8 bits for the weights alone: within a group of a row, an element is
      scale · code + bias. The `"kernel"` of such a layer becomes 32-bit words. The layer also has `"scales"` and
      `"biases"` in the type of the model. 4-bit weights take about a quarter of the memory of 16-bit ones, and
      generating a token reads correspondingly less
    * `type: :int8` - 8-bit integers with a scale for each output of a layer. The `"kernel"` becomes
      `{outputs, inputs}` of s8, packed (`EMLX.Fast.Int8Matmul.pack/1`), and the layer also has `"scales"`,
      `{outputs}`. A dense layer rounds each token's inputs to 8 bits as well, with a scale for each token, and adds up
      integers (`EMLX.Fast.int8_matmul/4`). On the CPU this is the fastest format for encoders and for prompts.
      Embeddings have a scale for each row, and are not packed

  `EMLX.Backend` and functions compiled with `EMLX` run kernels for the products; other backends compose them.
  Quantized layers cannot be trained. The package's README compares the accuracy of the formats.

  Options:

    * `:type` - `:affine` (default) or `:int8`
    * `:bits` - 2, 4 (default) or 8, for `:affine`
    * `:group_size` - 32, 64 (default) or 128, for `:affine`. A matrix whose row length is not a multiple of it is not
      quantized
    * `:except` - names of layers that are not quantized, default `[]`

  Quantizing a model twice changes nothing. Raises `ArgumentError` if an option is invalid, if `:bits` or `:group_size`
  is given with `:int8`, if `:except` has a name without parameters, or if the model has no matrix to quantize.

      iex> model = Axon.input("x") |> Axon.dense(8, name: "layer")
      iex> {init, _predict} = Axon.build(model)
      iex> params = init.(Nx.template({1, 64}, :f32), Axon.ModelState.empty())
      iex> shapes = fn info -> Map.new(info.params.data["layer"], fn {name, tensor} -> {name, Nx.shape(tensor)} end) end
      iex> info = EMLXBumblebee.quantize(%{model: model, params: params}, bits: 4)
      iex> shapes.(info)
      %{"bias" => {8}, "biases" => {8, 1}, "kernel" => {8, 8}, "scales" => {8, 1}}
      iex> info = EMLXBumblebee.quantize(%{model: model, params: params}, type: :int8)
      iex> shapes.(info)
      %{"bias" => {8}, "kernel" => {1, 16, 16, 4}, "scales" => {8}}
      iex> info.model |> Axon.predict(info.params, Nx.iota({1, 64}, type: :f32)) |> Nx.shape()
      {1, 8}
  """
  @spec quantize(%{model: Axon.t(), params: %Axon.ModelState{}}, keyword) :: %{
          model: Axon.t(),
          params: %Axon.ModelState{}
        }
  def quantize(info, opts \\ [])

  def quantize(%{model: %Axon{} = model, params: %Axon.ModelState{} = params} = info, opts) do
    opts = Options.validate!(opts, @quantize, "EMLXBumblebee.quantize")

    opts = format!(opts)

    unless is_list(opts[:except]) and Enum.all?(opts[:except], &is_map_key(params.data, &1)) do
      raise ArgumentError,
            "quantize: :except must be a list of names of layers, got: #{inspect(opts[:except])}; the layers with " <>
              "parameters are #{params.data |> Map.keys() |> Enum.sort() |> Enum.join(", ")}"
    end

    case Quantized.run(model, params, opts) do
      {_model, _params, []} ->
        if Quantized.any?(model), do: info, else: raise(ArgumentError, nothing(opts))

      {model, params, _names} ->
        %{info | model: model, params: params}
    end
  end

  def quantize(other, _opts) do
    raise ArgumentError,
          "quantize: a map with an Axon model as :model and its parameters as :params is needed, got: #{inspect(other)}"
  end

  defp format!(opts) do
    case opts[:type] do
      :affine ->
        opts = Keyword.merge([bits: 4, group_size: 64], opts)

        unless opts[:bits] in [2, 4, 8],
          do: raise(ArgumentError, "quantize: :bits must be 2, 4 or 8, got: #{inspect(opts[:bits])}")

        unless opts[:group_size] in [32, 64, 128],
          do: raise(ArgumentError, "quantize: :group_size must be 32, 64 or 128, got: #{inspect(opts[:group_size])}")

        opts

      :int8 ->
        for option <- [:bits, :group_size], Keyword.has_key?(opts, option) do
          raise ArgumentError, "quantize: #{inspect(option)} is an option of type: :affine, not of type: :int8"
        end

        opts

      other ->
        raise ArgumentError, "quantize: :type must be :affine or :int8, got: #{inspect(other)}"
    end
  end

  defp nothing(opts) do
    "quantize: there is no dense layer or embedding with a floating-point matrix" <>
      if(opts[:type] == :affine, do: " whose rows are a multiple of :group_size #{opts[:group_size]}", else: "")
  end

  @doc """
  Returns a table, as a string, of the layers of a model that are blocks or could be.

  Each row has the name of the layer, or of the layer whose parameters it uses; its block; and how the block computes
  it, or the reason why it has none. The argument is what `rewrite/2` takes, rewritten or not. Raises `ArgumentError` if
  it is not a model.

      iex> query = Axon.input("query")
      iex> {query, _key} =
      ...>   Bumblebee.Layers.rotary_embedding(query, query, Axon.input("positions"), Bumblebee.Layers.none(), 8, name: "rotary")
      iex> model = query |> Bumblebee.Layers.rms_norm(name: "norm") |> EMLXBumblebee.rewrite()
      iex> model |> EMLXBumblebee.explain() |> String.split("\\n")
      [
        "layer   block                            how",
        "rotary  Bumblebee.Block.RotaryEmbedding  each position on its own, in any order",
        "norm    Axon.Block.RMSNorm               upcast: :normalization",
        "",
        "blocks: 2 of 2 layers"
      ]
  """
  @spec explain(Axon.t() | %{model: Axon.t()}) :: String.t()
  def explain(%Axon{} = model), do: Explain.table(model)
  def explain(%{model: %Axon{} = model}), do: Explain.table(model)

  def explain(other) do
    raise ArgumentError, "explain: an Axon model is needed, or a map with one as :model, got: #{inspect(other)}"
  end

  @doc """
  Scaled dot product attention with the arguments and the result of Bumblebee's layer, as the block
  `Bumblebee.Block.SDPA`. Call it from your own models: in `Axon.layer/3`, in `defn` or on tensors.

    * `query` - `{batch, queries, heads, size}`
    * `key` - `{batch, keys, kv_heads, size}`, where heads is a multiple of kv_heads
    * `value` - `{batch, keys, kv_heads, value_size}`

  Options, tensors that default to nil first:

    * `:key_mask` - `{batch, keys}` or `{batch | 1, heads | 1, queries | 1, keys}`, 0 for a masked key
    * `:head_mask` - `{heads}`, a factor for the weights of each head. With it, the block is composed
    * `:bias` - `{batch | 1, heads | 1, queries, keys}`, added to the scores
    * `:offset` - an integer `{}`, the index of the first query among the keys
    * `:sinks` - `{heads}`, a score for each head that takes part in the softmax but has no value
      ([Xiao et al., 2023](https://arxiv.org/abs/2309.17453)). Bumblebee's layer has no sinks
    * `:causal` - whether a query attends only to the keys up to its own index, default `false`
    * `:window_size` - `{left, right}`: a query attends only to the keys from its index - left to its index + right;
      default nil. With `:causal`, right is 0
    * `:scale` - default 1 / sqrt(size)

  Returns `{batch, queries, heads, value_size}`, in the merged type of query, key, value and bias. A query without any
  key attends to all keys equally. Raises `ArgumentError` if shapes do not match, an option is invalid, or a tensor is
  complex or vectorized.

      iex> query = Nx.tensor([[[[0.0]], [[0.0]]]])
      iex> value = Nx.tensor([[[[1.0]], [[3.0]]]])
      iex> EMLXBumblebee.attention(query, value, value, causal: true) |> Nx.to_flat_list()
      [1.0, 2.0]
      iex> EMLXBumblebee.attention(query, value, value, sinks: Nx.tensor([0.0])) |> Nx.multiply(3) |> Nx.round() |> Nx.to_flat_list()
      [4.0, 4.0]
  """
  @spec attention(Nx.Tensor.t(), Nx.Tensor.t(), Nx.Tensor.t(), keyword) :: Nx.Tensor.t()
  def attention(query, key, value, opts \\ []) do
    opts =
      Keyword.validate!(
        opts,
        Enum.map(Attention.optional(), &{&1, nil}) ++ [causal: false, window_size: nil, scale: nil]
      )

    {tensors, opts} = Keyword.split(opts, Attention.optional())
    tensors = for {name, tensor} <- tensors, tensor != nil, into: %{}, do: {name, plain!(tensor, name)}
    [query, key, value] = for {name, t} <- [query: query, key: key, value: value], do: plain!(t, name)
    fit!(query, key, value, tensors)
    options!(opts)
    Attention.run(query, key, value, tensors, opts, Captures.attention())
  end

  defp plain!(tensor, name) do
    tensor = Nx.to_tensor(tensor)
    if tensor.vectorized_axes != [], do: raise(ArgumentError, "attention: #{name} is vectorized")
    if match?({:c, _}, tensor.type), do: raise(ArgumentError, "attention: #{name} is complex")
    Nx.rename(tensor, List.duplicate(nil, tuple_size(tensor.shape)))
  end

  defp fit!(query, key, value, tensors) do
    with {batch, queries, heads, size} <- query.shape,
         {^batch, keys, kv_heads, ^size} when kv_heads > 0 and rem(heads, kv_heads) == 0 <- key.shape,
         {^batch, ^keys, ^kv_heads, _} <- value.shape do
      scores = [batch, heads, queries, keys]

      for {name, tensor} <- tensors do
        unless fits?(name, Tuple.to_list(tensor.shape), scores) do
          raise ArgumentError,
                "attention: query is #{inspect(query.shape)}, key is #{inspect(key.shape)}, #{name} is " <>
                  "#{inspect(tensor.shape)}: it must be #{wanted(name)}"
        end

        if name == :offset and not Nx.Type.integer?(tensor.type),
          do: raise(ArgumentError, "attention: offset is #{Arguments.describe(tensor)}, it must be an integer")
      end
    else
      _ ->
        raise ArgumentError,
              "attention: query is #{inspect(query.shape)}, key is #{inspect(key.shape)}, value is " <>
                "#{inspect(value.shape)}: they must be {batch, queries, heads, size}, {batch, keys, kv_heads, size} " <>
                "and {batch, keys, kv_heads, value_size}, where heads is a multiple of kv_heads"
    end
  end

  defp fits?(:key_mask, [batch, keys], [batch, _, _, keys]), do: true
  defp fits?(:key_mask, [_, _, _, keys] = shape, [_, _, _, keys] = scores), do: spread?(shape, scores)
  defp fits?(:bias, [_, _, queries, keys] = shape, [_, _, queries, keys] = scores), do: spread?(shape, scores)
  defp fits?(:offset, shape, _scores), do: shape == []
  defp fits?(name, shape, [_, heads, _, _]) when name in [:head_mask, :sinks], do: shape == [heads]
  defp fits?(_name, _shape, _scores), do: false

  defp spread?(shape, scores), do: shape |> Enum.zip(scores) |> Enum.all?(fn {have, want} -> have in [1, want] end)

  defp wanted(:key_mask), do: "{batch, keys} or {batch | 1, heads | 1, queries | 1, keys}"
  defp wanted(:bias), do: "{batch | 1, heads | 1, queries, keys}"
  defp wanted(:offset), do: "a scalar"
  defp wanted(_name), do: "{heads}"

  defp options!(opts) do
    scale = opts[:scale]

    unless is_boolean(opts[:causal]),
      do: raise(ArgumentError, "attention: :causal must be true or false, got: #{inspect(opts[:causal])}")

    unless scale == nil or is_number(scale),
      do: raise(ArgumentError, "attention: :scale must be a number, got: #{inspect(scale)}")

    case opts[:window_size] do
      nil -> :ok
      {left, right} when is_integer(left) and left >= 0 and is_integer(right) and right >= 0 -> :ok
      other -> raise ArgumentError, "attention: :window_size must be {left, right}, got: #{inspect(other)}"
    end
  end
end
