defmodule EMLXAxon do
  @moduledoc """
  Runs layers of Axon models with MLX's fused kernels.

  `rewrite/2` replaces Axon's normalisation layers by blocks (`Nx.block/4`). `EMLX.Backend` and functions compiled with
  `EMLX` run each block as one kernel:

      model = Axon.input("x") |> Axon.dense(64) |> Axon.layer_norm() |> EMLXAxon.rewrite()

  The composed function of a block is the original layer. The rewritten model computes the same on every backend and
  compiler, and is trained as before. A kernel that cannot return the layer's result is not used. Names, parameters and
  initial values do not change: an `Axon.ModelState` of one model works with the other.

  `explain/2` lists the layers that became blocks. Whether a block runs as a kernel also depends on types and shapes;
  telemetry reports it at run time (see `EMLX.Block`).

  | layer | block | composed if |
  |---|---|---|
  | `Axon.layer_norm/2` | `Axon.Block.LayerNorm` | x is neither f32 nor bf16, or a parameter has another type (below) |
  | `Axon.rms_norm/2` | `Axon.Block.RMSNorm` | with `upcast: :normalization`, x is not f32, f16 or bf16 |

  With an f32 x, the parameters of `Axon.layer_norm/2` may be f32, f16 or bf16; with a bf16 x, they must be bf16. In
  bf16 the layer rounds after each step and the kernel once, which is the only difference between them. In f16 the
  layer's steps can overflow where the kernel does not, so the block is composed.

  Complex, empty and vectorized tensors are always composed. Any axis can be normalised over; an axis other than the
  last costs two transposes.

  `EMLXAxon.Layers` has further layers for your own models.
  """

  alias EMLX.Options
  alias EMLXAxon.Layers

  # The layers of Axon that can be rewritten: the function that replaces each, and its block.
  @layers %{
    layer_norm: {&Layers.layer_norm/4, Axon.Block.LayerNorm},
    rms_norm: {&Layers.rms_norm/3, Axon.Block.RMSNorm}
  }

  @names @layers |> Map.keys() |> Enum.sort()

  # The schema has the types. The code that uses an option checks its value, with the names of this model or package.
  @rewrite Options.schema(only: [type: {:list, :atom}, default: @names])
  @explain Options.schema(describe: [type: {:fun, 1}])

  @doc """
  Replaces the layers of a model that have a kernel by blocks, also inside `Axon.block/2`. Returns the model.

  Options:

    * `:only` - a list of the layers to rewrite, default `#{inspect(@names)}`, which is all of them

  The name, parameters, options, policy, hooks and mode of a node do not change. Rewriting a model twice changes
  nothing.

  The op of a rewritten layer is a function. Code that selects layers by their op, such as
  `Axon.MixedPrecision.apply_policy(model, policy, except: [:layer_norm])`, must run before `rewrite/2`.

  Raises `ArgumentError` if the first argument is not a model or an option is invalid. Warns about layers of Bumblebee,
  which do not change; `EMLXBumblebee.rewrite/2` of the package `emlx_bumblebee` rewrites those.

      iex> model = Axon.input("x") |> Axon.rms_norm(name: "norm") |> EMLXAxon.rewrite()
      iex> {init, predict} = Axon.build(model)
      iex> state = init.(Nx.template({1, 2}, :f32), Axon.ModelState.empty())
      iex> predict.(state, Nx.tensor([[3.0, 4.0]])) |> Nx.multiply(100) |> Nx.round() |> Nx.to_list()
      [[85.0, 113.0]]
  """
  @spec rewrite(Axon.t(), keyword) :: Axon.t()
  def rewrite(model, opts \\ [])

  def rewrite(%Axon{} = model, opts) do
    rewritten = rewrite_axon(model, opts)
    warn_of_bumblebee(model)
    rewritten
  end

  def rewrite(other, _opts), do: raise(ArgumentError, "rewrite: an Axon model is needed, got: #{inspect(other)}")

  @doc false
  # As rewrite/2, without the warning: EMLXBumblebee rewrites the other layers itself.
  def rewrite_axon(model, opts) do
    only = opts |> Options.validate!(@rewrite, "EMLXAxon.rewrite") |> Keyword.fetch!(:only)

    unless is_list(only) and only -- @names == [] do
      raise ArgumentError, ":only must be a list of some of #{inspect(@names)}, got: #{inspect(only)}"
    end

    Axon.map_nodes(model, &rewrite_node(&1, only))
  end

  # A model that EMLXBumblebee has rewritten contains layers of both packages.
  defp warn_of_bumblebee(%Axon{nodes: nodes}) do
    modules = for {_id, %Axon.Node{op: op}} <- nodes, is_function(op), do: op |> Function.info(:module) |> elem(1)
    count = Enum.count(modules, &within?(&1, "Bumblebee"))

    if count > 0 and not Enum.any?(modules, &within?(&1, "EMLXBumblebee")) do
      IO.warn(
        "EMLXAxon.rewrite/2 leaves #{count} layers of Bumblebee as they are. EMLXBumblebee.rewrite/2 of the package " <>
          "emlx_bumblebee rewrites those that have a kernel, attention and rotary embedding among them"
      )
    end
  end

  defp within?(module, name), do: String.starts_with?(Atom.to_string(module), ["Elixir.#{name}."])

  defp rewrite_node(%Axon.Node{op: :block, opts: opts} = node, only) do
    # Axon.block/2 creates its layers only when the model is built.
    %{node | opts: Keyword.update!(opts, :block_fun, &rewritten(&1, only))}
  end

  defp rewrite_node(%Axon.Node{op: op} = node, only) do
    case describe(node) do
      {:could, _block} -> if op in only, do: named(%{node | op: elem(@layers[op], 0)}, op), else: node
      {:left, _reason} when op in @names -> named(node, op)
      _ -> node
    end
  end

  # A layer's name seeds its initial values and contains a count of the layers with the same op. The new op uses the
  # name and the count of the old one, so that the values do not change.
  defp named(%Axon.Node{name: name} = node, op) do
    {fun, _block} = @layers[op]

    name = fn op_or_fun, counts ->
      {rewritten, counts} = Map.pop(counts, fun)
      counts = if rewritten, do: Map.update(counts, op, rewritten, &(&1 + rewritten)), else: counts
      name.(if(op_or_fun == fun, do: op, else: op_or_fun), counts)
    end

    %{node | name: name}
  end

  # Axon.block/2 has at most 128 inputs.
  for inputs <- 0..128 do
    arguments = Macro.generate_arguments(inputs, __MODULE__)

    defp rewritten(fun, only) when is_function(fun, unquote(inputs)) do
      fn unquote_splicing(arguments) -> fun.(unquote_splicing(arguments)) |> rewrite_axon(only: only) end
    end
  end

  @doc """
  Returns a table, as a string, of the layers of a model and their blocks.

  Each layer has a row, in the order of computation: its name, its op, and its block or the reason why it has none. The
  layers of an `Axon.block/2` follow it, indented. The last line has the number of blocks.

  Options:

    * `:describe` - a function of an `%Axon.Node{}` with the result of `describe/1`, for layers that other packages
      rewrite; default `describe/1`

  Raises `ArgumentError` if the first argument is not a model.

      Axon.input("x") |> Axon.dense(2) |> Axon.layer_norm(name: "norm") |> EMLXAxon.rewrite() |> EMLXAxon.explain() |> IO.puts()

      layer    op          block                 why not
      x        input                             no kernel
      dense_0  dense                             no kernel
      norm     layer_norm  Axon.Block.LayerNorm

      blocks: 1 of 3 layers
  """
  @spec explain(Axon.t(), keyword) :: String.t()
  def explain(model, opts \\ [])

  def explain(%Axon{} = model, opts) do
    describe = opts |> Options.validate!(@explain, "EMLXAxon.explain") |> Keyword.get(:describe, &describe/1)
    EMLXAxon.Explain.table(model, describe)
  end

  def explain(other, _opts), do: raise(ArgumentError, "explain: an Axon model is needed, got: #{inspect(other)}")

  @doc """
  Returns `{:block, module}` if a node is a block, `{:could, module}` if `rewrite/2` would replace it by one, and
  `{:left, reason}` otherwise.
  """
  @spec describe(%Axon.Node{}) :: {:block, module} | {:could, module} | {:left, reason :: String.t()}
  def describe(%Axon.Node{op: op, opts: opts}) when op in @names do
    case Layers.block(op, opts) do
      {:ok, block} -> {:could, block.__struct__}
      {:error, reason} -> {:left, reason}
    end
  end

  def describe(%Axon.Node{op: :block}), do: {:left, "see the layers in it"}

  def describe(%Axon.Node{op: op, op_name: op_name}) do
    case Enum.find(@layers, fn {_name, {fun, _block}} -> fun == op end) do
      {_name, {_fun, block}} -> {:block, block}
      nil when op_name in @names -> {:left, "a layer of its own, not Axon's #{op_name}"}
      nil -> {:left, "no kernel"}
    end
  end
end
