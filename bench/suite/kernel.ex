defmodule EMLX.Bench.Kernel do
  @moduledoc """
  The fused kernels as something to run: alone, as the formula that a block runs where there is no kernel (with Nx), and
  as what Python MLX is to do. The parts `kernels` and `memory` share them.

  A sample is a chain of calls, each on the result of the one before, computed at its end.
  """

  # Used where they are.
  @compile {:no_warn_undefined, [EMLX, Nx]}

  alias EMLX.{Array, Kernels, Ops, Program}
  alias EMLX.Bench.Inputs

  @names [:rms_norm, :layer_norm, :rope, :attention, :causal_attention]

  def names, do: @names

  @doc "Sizes `{batch, tokens}` that are measured on a device, the largest last."
  def sizes(:gpu, true), do: [{1, 1}, {8, 2048}]
  def sizes(:gpu, false), do: [{1, 1}, {1, 128}, {1, 2048}, {8, 2048}]
  def sizes(:cpu, true), do: [{1, 1}, {1, 128}]
  def sizes(:cpu, false), do: [{1, 1}, {1, 128}, {1, 1024}, {8, 512}]

  # The width of what is normalised, the heads and their size: a large model's on the GPU, a smaller one's on the CPU.
  defp width(:gpu), do: {4096, 32, 128}
  defp width(:cpu), do: {1024, 16, 64}

  @doc """
  A kernel's inputs of a size and type. One token attends to as many as fit in a small cache, others to one another.
  """
  def inputs(name, {batch, tokens}, type, device) do
    {size, heads, dims} = width(device)
    keys = if tokens == 1, do: 512, else: tokens
    rows = [batch, tokens, size]
    shape = [batch, heads, tokens, dims]
    uniform = fn shape, seed -> Inputs.uniform(shape, type, seed, device) end

    arrays =
      case name do
        :rms_norm ->
          [uniform.(rows, 1), uniform.([size], 2)]

        :layer_norm ->
          [uniform.(rows, 1), uniform.([size], 2), uniform.([size], 3)]

        :rope ->
          [uniform.(shape, 4)]

        _ ->
          [uniform.(shape, 4) | for(seed <- [5, 6], do: uniform.([batch, heads, keys, dims], seed))] ++
            mask(name, keys, device)
      end

    sizes = [rows: rows, heads: [batch, heads, tokens, keys, dims]]
    options = [name: name, dtype: type] ++ for {key, numbers} <- sizes, do: {key, Enum.join(numbers, "x")}

    %{
      name: name,
      type: type,
      device: device,
      arrays: arrays,
      dims: dims,
      text: text(name, rows, shape, keys),
      options: options
    }
  end

  # A last quarter that no query sees, as padding.
  defp mask(:causal_attention, _keys, _device), do: []

  defp mask(:attention, keys, device) do
    seen = for i <- 0..(keys - 1), into: <<>>, do: <<if(i < keys - div(keys, 4), do: 1, else: 0)>>
    [Array.from_binary(seen, {1, 1, 1, keys}, :bool, device: device)]
  end

  defp text(name, rows, _shape, _keys) when name in [:rms_norm, :layer_norm], do: "#{name}, #{Enum.join(rows, " × ")}"
  defp text(:rope, _rows, shape, _keys), do: "rope, #{Enum.join(shape, " × ")}"

  defp text(name, _rows, shape, keys) do
    name = if name == :attention, do: "masked SDPA", else: "causal SDPA"
    text = "#{name}, #{Enum.join(shape, " × ")}"
    if Enum.at(shape, 2) == keys, do: text, else: "#{text}, #{keys} keys"
  end

  @doc "One call of the kernel on x."
  def call(%{name: :rms_norm, arrays: [_, weight]}, x), do: Kernels.rms_norm(x, weight, eps: 1.0e-6)
  def call(%{name: :layer_norm, arrays: [_, weight, bias]}, x), do: Kernels.layer_norm(x, weight, bias, eps: 1.0e-5)
  def call(%{name: :rope, dims: dims}, x), do: Kernels.rope(x, 0, nil, dims: dims)

  def call(%{name: :attention, arrays: [_, k, v, mask]}, x),
    do: Kernels.scaled_dot_product_attention(x, k, v, mask)

  def call(%{name: :causal_attention, arrays: [_, k, v]}, x),
    do: Kernels.scaled_dot_product_attention(x, k, v, :causal)

  @doc "The formula as a program of one call, traced as any function of Nx."
  def composed(%{arrays: arrays, device: device} = kernel) do
    alias = fn name -> Module.concat(EMLX.Fast, name) end
    formula = formula(kernel, alias)
    # Nx has no booleans: its masks are u8.
    arrays =
      for array <- arrays, do: if(Array.dtype(array) == :bool, do: EMLX.eval(Ops.astype(array, :u8)), else: array)

    templates = for array <- arrays, do: Nx.template(Array.shape(array), Array.dtype(array))
    program = EMLX.compile_to_program(arity(formula, length(arrays)), templates, device: device)
    [_ | rest] = arrays
    fn x -> program |> Program.run([x | rest], device: device) |> hd() end
  end

  defp formula(%{name: :rms_norm}, alias), do: block(alias.(:RMSNorm), eps: 1.0e-6)

  defp formula(%{name: :layer_norm}, alias), do: block(alias.(:LayerNorm), eps: 1.0e-5)
  defp formula(%{name: :rope, dims: dims}, alias), do: block(alias.(:RoPE), dims: dims, offset: 0)

  defp formula(%{name: :causal_attention, dims: dims}, alias),
    do: block(alias.(:ScaledDotProductAttention), scale: 1 / :math.sqrt(dims), mask: :causal)

  defp formula(%{name: :attention, dims: dims}, alias),
    do: block(alias.(:ScaledDotProductAttention), scale: 1 / :math.sqrt(dims), mask: :boolean)

  defp block(module, fields) do
    block = struct!(module, fields)
    fn arguments -> apply(module, :composed, [block | arguments]) end
  end

  defp arity(formula, 1), do: fn a -> formula.([a]) end
  defp arity(formula, 2), do: fn a, b -> formula.([a, b]) end
  defp arity(formula, 3), do: fn a, b, c -> formula.([a, b, c]) end
  defp arity(formula, 4), do: fn a, b, c, d -> formula.([a, b, c, d]) end

  @doc "A chain of `links` calls of a function of x, computed."
  def chain(%{arrays: [x | _]}, call, links) do
    EMLX.eval(Enum.reduce(1..links, x, fn _, x -> call.(x) end))
  end

  @doc "What reads x once and writes as much: the least that a norm or a rotation takes."
  def copy(x), do: Ops.negative(x)
end
