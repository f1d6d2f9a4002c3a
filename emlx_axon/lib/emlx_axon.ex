defmodule EMLXAxon do
  @moduledoc """
  Runs layers of Axon models with MLX's fused kernels.

  `rewrite/2` makes Axon's normalisation layers blocks (`Nx.block/4`), which `EMLX.Backend` and functions compiled with `EMLX`
  run as one kernel each:

      model = Axon.input("x") |> Axon.dense(64) |> Axon.layer_norm() |> EMLXAxon.rewrite()

  The composed function of a block is the layer's original one. So the rewritten model means the same on every backend and
  compiler, is trained as before, and where a kernel could not give the same answer it is not used. Names, parameters and
  initial values stay as they were: an `Axon.ModelState` of the one model serves the other.

  `explain/2` tells which layers became blocks. Whether a block ran as a kernel depends on types and shapes too, and is told by
  telemetry when it runs (see `EMLX.Block`).

  | layer | block | composed where |
  |---|---|---|
  | `Axon.layer_norm/2` | `Axon.Block.LayerNorm` | x is neither f32 nor bf16; x is bf16 and a parameter is not; a parameter is f64 or integer |
  | `Axon.rms_norm/2` | `Axon.Block.RMSNorm` | with `upcast: :normalization`, x is not f32, f16 or bf16 |

  In bf16, `Axon.layer_norm/2` rounds after each step and the kernel once, which is all that they may differ in. In f16 its steps
  can overflow besides, and it is composed. Complex, empty and vectorized tensors are composed always. Any axis can be normalised
  over; one that is not the last costs two transpositions.

  `EMLXAxon.Layers` has further layers for models of one's own.
  """

  alias EMLX.Options
  alias EMLXAxon.Layers

  # The layers of Axon that can be rewritten: what they run instead, and the block that this makes.
  @layers %{
    layer_norm: {&Layers.layer_norm/4, Axon.Block.LayerNorm},
    rms_norm: {&Layers.rms_norm/3, Axon.Block.RMSNorm}
  }

  @names @layers |> Map.keys() |> Enum.sort()

  # Which values there are is checked where the options are used, with the names of this model or package.
  @rewrite Options.schema(only: [type: {:list, :atom}, default: @names])
  @explain Options.schema(describe: [type: {:fun, 1}])

  @doc """
  Makes the layers of a model that have a kernel blocks, also inside of `Axon.block/2`.

  Options:

    * `:only` - which layers, default `#{inspect(@names)}`, all there are

  Everything else about a node stays: its name, parameters, options, policy, hooks and mode. To rewrite a model twice changes
  nothing. What looks for layers by their op, such as `Axon.MixedPrecision.apply_policy/3` with `except: [:layer_norm]`, goes
  before it: the op of a rewritten layer is a function. Raises `ArgumentError` for anything but a model.

  Warns about a model with layers of Bumblebee, which stay as they are. `EMLXBumblebee.rewrite/2` of the package
  `emlx_bumblebee` rewrites those.

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
  # The same for models whose other layers the caller sees to.
  def rewrite_axon(model, opts) do
    only = opts |> Options.validate!(@rewrite, "EMLXAxon.rewrite") |> Keyword.fetch!(:only)

    unless is_list(only) and only -- @names == [] do
      raise ArgumentError, ":only must be a list of some of #{inspect(@names)}, got: #{inspect(only)}"
    end

    Axon.map_nodes(model, &rewrite_node(&1, only))
  end

  # A model that EMLXBumblebee has rewritten has layers of both.
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
    # Axon.block/2 makes its layers when the model is built.
    %{node | opts: Keyword.update!(opts, :block_fun, &rewritten(&1, only))}
  end

  defp rewrite_node(%Axon.Node{op: op} = node, only) do
    case describe(node) do
      {:could, _block} -> if op in only, do: named(%{node | op: elem(@layers[op], 0)}, op), else: node
      {:left, _reason} when op in @names -> named(node, op)
      _ -> node
    end
  end

  # Initial values are drawn by the name that a layer has under its op, for which layers of one op are counted. The new op goes
  # by the name and the count of the old one.
  defp named(%Axon.Node{name: name} = node, op) do
    {fun, _block} = @layers[op]

    name = fn op_or_fun, counts ->
      {rewritten, counts} = Map.pop(counts, fun)
      counts = if rewritten, do: Map.update(counts, op, rewritten, &(&1 + rewritten)), else: counts
      name.(if(op_or_fun == fun, do: op, else: op_or_fun), counts)
    end

    %{node | name: name}
  end

  # As many inputs as Axon.block/2 can have.
  for inputs <- 0..128 do
    arguments = Macro.generate_arguments(inputs, __MODULE__)

    defp rewritten(fun, only) when is_function(fun, unquote(inputs)) do
      fn unquote_splicing(arguments) -> fun.(unquote_splicing(arguments)) |> rewrite_axon(only: only) end
    end
  end

  @doc """
  Tells which layers of a model are blocks, as a table for people.

  There is a row for each layer, in the order in which they are computed: its name, what it is, the block that it became, or why
  it became none. The layers inside of an `Axon.block/2` follow it, indented. The last line counts.

  Options:

    * `:describe` - a function that is given an `Axon.Node` and tells what it is, for layers that other packages rewrite; default
      `describe/1`

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
  Tells what a node is: `{:block, module}` where it became a block, `{:could, module}` where `rewrite/2` would make it one,
  `{:left, reason}` otherwise.
  """
  @spec describe(Axon.Node.t()) :: {:block, module} | {:could, module} | {:left, reason :: String.t()}
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
