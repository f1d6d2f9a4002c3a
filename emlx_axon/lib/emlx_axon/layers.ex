defmodule EMLXAxon.Layers do
  @moduledoc """
  Layer functions as blocks: each function is an `Nx.block/4` on a struct of `Axon.Block`.

  The layers of a rewritten model (`EMLXAxon.rewrite/2`) call `layer_norm/4` and `rms_norm/3`. Arguments, options and
  results are those of `Axon.Layers.layer_norm/4` and `Axon.Layers.rms_norm/3`, the blocks' composed functions.

  `rope/4` and `scaled_dot_product_attention/6` are layers that Axon does not have, for your own models:

      Axon.layer(&EMLXAxon.Layers.rope/3, [query, positions], base: 500_000)

  All functions can be called in `defn` and on tensors. Other backends and compilers than those of EMLX, gradients and
  vectorized tensors use the composed function.
  """

  import Nx.Defn, only: [deftransform: 2]

  alias EMLX.Fast.Arguments
  alias EMLXAxon.{Composed, Upstream}

  # ---- Axon's own layers ----

  @doc """
  Layer normalisation: `Axon.Layers.layer_norm/4` as the block `Axon.Block.LayerNorm`.

    * `x` - the input, of any shape
    * `gamma`, `beta` - weight and bias, vectors of the axis's length

  Options: `:epsilon`, default 1.0e-5, and `:channel_index`, the axis to normalise over, default -1.

  Returns the shape of `x`, in the merged type of the arguments. Raises what Axon's layer raises.

      iex> x = Nx.tensor([[1.0, 3.0]])
      iex> EMLXAxon.Layers.layer_norm(x, Nx.tensor([1.0, 1.0]), Nx.tensor([10.0, 10.0])) |> Nx.round() |> Nx.to_list()
      [[9.0, 11.0]]
  """
  @spec layer_norm(Nx.Tensor.t(), Nx.Tensor.t(), Nx.Tensor.t(), keyword) :: Nx.Tensor.t()
  deftransform layer_norm(x, gamma, beta, opts \\ []) do
    with {:ok, block} <- block(:layer_norm, opts),
         true <- plain?([x, gamma, beta]) do
      type = Enum.reduce([gamma, beta], Nx.Type.to_floating(x.type), &Nx.Type.merge(&1.type, &2))
      Arguments.block(block, [x, gamma, beta], %{x | type: type}, &Composed.layer_norm/4)
    else
      _ -> Axon.Layers.layer_norm(x, gamma, beta, opts)
    end
  end

  @doc """
  Root mean square normalisation: `Axon.Layers.rms_norm/3` as the block `Axon.Block.RMSNorm`.

    * `x` - the input, of any shape
    * `gamma` - the weight, a vector of the axis's length

  Options:

    * `:epsilon` - default 1.0e-6
    * `:channel_index` - the axis to normalise over, default -1
    * `:shift` - a number added to the weight, default 0.0
    * `:upcast` - `:normalization` (default) or `:all`, see `Axon.Block.RMSNorm`

  Returns the shape of `x`; in f32 with `upcast: :all`, otherwise in the merged type of the arguments. Raises what
  Axon's layer raises.

      iex> x = Nx.tensor([[3.0, 4.0]])
      iex> EMLXAxon.Layers.rms_norm(x, Nx.tensor([0.0, 1.0]), shift: 1) |> Nx.multiply(100) |> Nx.round() |> Nx.to_list()
      [[85.0, 226.0]]
  """
  @spec rms_norm(Nx.Tensor.t(), Nx.Tensor.t(), keyword) :: Nx.Tensor.t()
  deftransform rms_norm(x, gamma, opts \\ []) do
    with {:ok, block} <- block(:rms_norm, opts),
         true <- plain?([x, gamma]) do
      type =
        case block.upcast do
          :all -> {:f, 32}
          :normalization -> Nx.Type.merge(x.type, Nx.Type.merge_number(gamma.type, block.shift))
        end

      Arguments.block(block, [x, gamma], %{x | type: type}, &Composed.rms_norm/3)
    else
      _ -> Axon.Layers.rms_norm(x, gamma, opts)
    end
  end

  # Axon's function raises for arguments that no block accepts, such as Axon.None or a scalar.
  defp plain?([x | _] = tensors),
    do: Enum.all?(tensors, &match?(%Nx.Tensor{vectorized_axes: []}, &1)) and x.shape != {}

  @doc false
  # Returns {:ok, block} for a layer of Axon with these options, or {:error, reason} if the layer is not rewritten.
  def block(:layer_norm, opts) do
    opts = Keyword.merge([epsilon: 1.0e-5, channel_index: -1, mode: :inference], opts)

    with :ok <- struct_of(Axon.Block.LayerNorm),
         :ok <- options(opts, [:epsilon, :channel_index, :mode]) do
      {:ok, struct!(Axon.Block.LayerNorm, axis: opts[:channel_index], eps: opts[:epsilon])}
    end
  end

  def block(:rms_norm, opts) do
    opts =
      Keyword.merge([epsilon: 1.0e-6, channel_index: -1, shift: 0.0, upcast: :normalization, mode: :inference], opts)

    with :ok <- struct_of(Axon.Block.RMSNorm),
         :ok <- options(opts, [:epsilon, :channel_index, :shift, :upcast, :mode]) do
      fields = [axis: opts[:channel_index], eps: opts[:epsilon], shift: opts[:shift], upcast: opts[:upcast]]
      {:ok, struct!(Axon.Block.RMSNorm, fields)}
    end
  end

  defp struct_of(module) do
    if Upstream.known?(module), do: :ok, else: {:error, "Axon's own #{inspect(module)} has other fields"}
  end

  defp options(opts, names) do
    Enum.find_value(opts, :ok, fn {name, value} ->
      cond do
        name not in names -> {:error, "the option #{inspect(name)} is not one of the layer's"}
        wanted = wanted(name, value) -> {:error, "#{inspect(name)} is not #{wanted}"}
        true -> nil
      end
    end)
  end

  # Returns the expected value of a static option if it has another one, or nil.
  defp wanted(name, value) when name in [:epsilon, :shift] and not is_number(value), do: "a number"
  defp wanted(:channel_index, value) when not is_integer(value) and not is_atom(value), do: "a number or a name"
  defp wanted(:upcast, value) when value not in [:normalization, :all], do: ":normalization or :all"
  defp wanted(_name, _value), do: nil

  # ---- layers that Axon does not have ----

  @doc """
  Rotary position embedding: the block `Axon.Block.RoPE`.

    * `x` - `{batch, length, heads, size}`
    * `positions` - integers `{batch, length}` or `{1, length}`; or the position of the first of consecutive rows, `{}`
      or `{batch}`
    * `freqs` - nil, or `{dims / 2}`, the reciprocals of the frequencies: an angle is a position divided by one

  Options, as for `EMLX.Fast.rope/4`:

    * `:dims` - how many elements of the last axis are rotated, default all
    * `:traditional` - whether adjacent elements form a pair, default `false`
    * `:base` - default 10,000.0
    * `:scale` - positions are multiplied by it, default 1.0

  Returns the shape and type of `x`. Raises `ArgumentError` if shapes do not match or an option is invalid.

      iex> x = Nx.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])
      iex> freqs = Nx.tensor([2 / :math.pi()])
      iex> EMLXAxon.Layers.rope(x, Nx.tensor([[1, 0]]), freqs, []) |> Nx.round() |> Nx.add(0) |> Nx.to_flat_list()
      [0.0, 1.0, 1.0, 0.0]
  """
  @spec rope(Nx.Tensor.t(), Nx.Tensor.t(), keyword) :: Nx.Tensor.t()
  deftransform(rope(x, positions, opts \\ []), do: rope(x, positions, nil, opts))

  @doc "`rope/3` with frequencies."
  @spec rope(Nx.Tensor.t(), Nx.Tensor.t(), Nx.Tensor.t() | nil, keyword) :: Nx.Tensor.t()
  deftransform rope(x, positions, freqs, opts) do
    opts = options!(opts, dims: nil, traditional: false, base: 10_000.0, scale: 1.0)
    {x, positions, freqs} = {tensor(x), tensor(positions), tensor(freqs)}
    heads!(x, "x", "rope")
    {batch, length, _heads, _size} = x.shape

    unless Nx.Type.integer?(positions.type) and positions.shape in [{batch, length}, {1, length}, {}, {batch}] do
      raise ArgumentError,
            "rope: x is #{inspect(x.shape)}, positions is #{Arguments.describe(positions)}: " <>
              "it must be integers {#{batch}, #{length}}, {1, #{length}}, {} or {#{batch}}"
    end

    block = made(Axon.Block.RoPE, [freqs?: freqs != nil] ++ opts)

    if freqs,
      do: run(block, [x, positions, freqs], x, &Composed.rope/4),
      else: run(block, [x, positions], x, &Composed.rope/3)
  end

  @doc """
  Scaled dot product attention: the block `Axon.Block.SDPA`.

    * `q` - `{batch, queries, heads, size}`
    * `k` - `{batch, keys, kv_heads, size}`, where heads is a multiple of kv_heads
    * `v` - `{batch, keys, kv_heads, value_size}`
    * `mask` - nil; integers, nonzero where a query attends to a key; or floats, which are added to the scores. It
      broadcasts to `{batch, heads, queries, keys}`
    * `offset` - nil, or an integer `{}`: the index of the first query among the keys; nil is 0

  Options:

    * `:scale` - default 1 / sqrt(size)
    * `:causal` - whether a query attends only to the keys up to its own index, default `false`
    * `:window` - `{left, right}`: a query attends only to the keys from its index - left to its index + right; default
      nil. With `:causal`, right is not used

  Returns `{batch, queries, heads, value_size}` in the type of `q`. Raises `ArgumentError` if shapes do not match or an
  option is invalid.

      iex> q = Nx.tensor([[[[0.0]], [[0.0]]]])
      iex> kv = Nx.tensor([[[[1.0]], [[3.0]]]])
      iex> EMLXAxon.Layers.scaled_dot_product_attention(q, kv, kv, causal: true) |> Nx.to_flat_list()
      [1.0, 2.0]
  """
  @spec scaled_dot_product_attention(Nx.Tensor.t(), Nx.Tensor.t(), Nx.Tensor.t(), keyword) :: Nx.Tensor.t()
  deftransform(scaled_dot_product_attention(q, k, v, opts \\ []),
    do: scaled_dot_product_attention(q, k, v, nil, nil, opts)
  )

  @doc "`scaled_dot_product_attention/4` with a mask."
  @spec scaled_dot_product_attention(Nx.Tensor.t(), Nx.Tensor.t(), Nx.Tensor.t(), Nx.Tensor.t() | nil, keyword) ::
          Nx.Tensor.t()
  deftransform(scaled_dot_product_attention(q, k, v, mask, opts),
    do: scaled_dot_product_attention(q, k, v, mask, nil, opts)
  )

  @doc "`scaled_dot_product_attention/4` with a mask and an offset."
  @spec scaled_dot_product_attention(
          Nx.Tensor.t(),
          Nx.Tensor.t(),
          Nx.Tensor.t(),
          Nx.Tensor.t() | nil,
          Nx.Tensor.t() | nil,
          keyword
        ) :: Nx.Tensor.t()
  deftransform scaled_dot_product_attention(q, k, v, mask, offset, opts) do
    opts = options!(opts, scale: nil, causal: false, window: nil)
    window!(opts[:window])
    [q, k, v, mask, offset] = Enum.map([q, k, v, mask, offset], &tensor/1)
    for {name, t} <- [{"q", q}, {"k", k}, {"v", v}], do: heads!(t, name, "scaled_dot_product_attention")

    if offset && not (Nx.Type.integer?(offset.type) and offset.shape == {}) do
      raise ArgumentError,
            "scaled_dot_product_attention: offset is #{Arguments.describe(offset)}, it must be an integer {}"
    end

    mode = mask && if(Nx.Type.integer?(mask.type), do: :boolean, else: :additive)
    block = made(Axon.Block.SDPA, [mask: mode, offset?: offset != nil] ++ opts)
    {batch, queries, heads, _size} = q.shape
    output = %{q | shape: {batch, queries, heads, elem(v.shape, 3)}, names: List.duplicate(nil, 4)}
    args = Enum.reject([q, k, v, offset, mask], &is_nil/1)
    run(block, args, output, Enum.at([&Composed.sdpa/4, &Composed.sdpa/5, &Composed.sdpa/6], length(args) - 3))
  end

  # Without a usable struct, the layer calls the composed function with a map of the fields.
  defp made(module, fields), do: if(Upstream.known?(module), do: struct!(module, fields), else: Map.new(fields))

  # The composed function passes vectorized tensors to EMLX.Fast, which broadcasts them.
  defp run(block, args, output, composed) do
    if is_struct(block) and not Arguments.vectorized?(args),
      do: Arguments.block(block, args, output, composed),
      else: apply(composed, [block | args])
  end

  # Axon adds :mode to the options of a layer.
  defp options!(opts, known), do: opts |> Keyword.delete(:mode) |> Keyword.validate!(known)

  # An optional input is nil or Axon.None.
  defp tensor(nil), do: nil
  defp tensor(%Axon.None{}), do: nil
  defp tensor(value), do: Nx.to_tensor(value)

  defp heads!(%{shape: {_, _, _, _}}, _name, _layer), do: :ok

  defp heads!(tensor, name, layer) do
    raise ArgumentError,
          "#{layer}: #{name} is #{inspect(tensor && tensor.shape)}, it must be {batch, length, heads, size}"
  end

  defp window!(nil), do: :ok
  defp window!({left, right}) when is_integer(left) and is_integer(right) and left >= 0 and right >= 0, do: :ok

  defp window!(other) do
    raise ArgumentError,
          "scaled_dot_product_attention: :window must be nil or {left, right}, two non-negative integers, got: " <>
            inspect(other)
  end
end
