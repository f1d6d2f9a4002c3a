defmodule EMLXBumblebee.Quantized do
  @moduledoc false
  # Models with quantized matrices, for EMLXBumblebee.quantize/2. A matrix {rows, columns} is packed along its columns
  # in MLX's affine format: in each group of columns an element is scale * code + bias. Codes are packed into 32-bit
  # words, the first in the lowest bits. The parameters "kernel" (words), "scales" and "biases" replace a layer's
  # "kernel".

  alias EMLX.{Backend, Kernels}
  alias EMLXBumblebee.Call

  defmodule Product do
    @moduledoc false
    # The product x · wᵀ with a quantized matrix. Arguments: x {…, columns}, words, scales, biases.
    defstruct [:bits, :group_size]
  end

  defmodule Rows do
    @moduledoc false
    # Dequantizes rows of a quantized matrix. Arguments: words, scales, biases.
    defstruct [:bits, :group_size]
  end

  @doc "Returns the model and its parameters with quantized layers, and the names of those layers."
  def run(%Axon{} = model, %Axon.ModelState{} = state, opts) do
    model.nodes
    |> Enum.sort_by(&elem(&1, 0))
    |> Enum.reduce({model, state, []}, fn {id, node}, {model, state, names} ->
      with {:ok, kind} <- kind(node),
           {:ok, name} <- name(node),
           false <- name in opts[:except],
           {:ok, state} <- parameters(state, name, kind, name in names, opts) do
        {put_in(model.nodes[id], layer(node, kind, state.data[name], opts)), state, [name | names]}
      else
        _ -> {model, state, names}
      end
    end)
  end

  @doc "Returns whether a model has quantized layers."
  def any?(%Axon{nodes: nodes}), do: Enum.any?(nodes, fn {_, node} -> is_map_key(node.meta || %{}, __MODULE__) end)

  defp kind(%{op: :dense}), do: {:ok, :dense}
  defp kind(%{op: :embedding}), do: {:ok, :embedding}

  defp kind(%{op: op, op_name: :dense_transposed, parameters: [%{name: "kernel"}]}) when is_function(op, 3),
    do: {:ok, :transposed}

  defp kind(_node), do: :none

  # A generated name depends on a counter, so it does not identify the layer's parameters here.
  defp name(%{name: name, op_name: op}) do
    case {name.(op, %{}), name.(op, %{op => 1})} do
      {name, name} -> {:ok, name}
      _ -> :none
    end
  end

  # ---- parameters ----

  defp parameters(state, _name, _kind, true, _opts), do: {:ok, state}

  defp parameters(state, name, kind, false, opts) do
    with %{^name => %{"kernel" => %Nx.Tensor{shape: {_, _}, type: {class, _}} = kernel} = own} when class in [:f, :bf] <-
           state.data,
         true <- rem(Nx.axis_size(kernel, if(kind == :dense, do: 0, else: 1)), opts[:group_size]) == 0 do
      packed = pack(if(kind == :dense, do: Nx.transpose(kernel), else: kernel), opts)
      state = put_in(state.data[name], Map.merge(own, packed))
      {:ok, update_in(state.parameters, &with_names(&1, name))}
    else
      _ -> :none
    end
  end

  defp with_names(%{} = parameters, name) when is_map_key(parameters, name),
    do: Map.update!(parameters, name, &Enum.uniq(&1 ++ ["scales", "biases"]))

  defp with_names(parameters, _name), do: parameters

  # MLX packs tensors of any backend; the result is copied to the tensor's backend.
  defp pack(%Nx.Tensor{data: %backend{}} = matrix, opts) do
    on_emlx = if backend == Backend, do: matrix, else: Nx.backend_copy(matrix, {Backend, device: :cpu})
    [words, scales, biases] = Kernels.quantize(Backend.to_array(on_emlx), opts |> Keyword.take([:bits, :group_size]))
    {rows, columns} = matrix.shape
    groups = div(columns, opts[:group_size])

    tensors = %{
      "kernel" => Backend.to_nx(words, Nx.template({rows, div(columns * opts[:bits], 32)}, :u32)),
      "scales" => Backend.to_nx(scales, Nx.template({rows, groups}, matrix.type)),
      "biases" => Backend.to_nx(biases, Nx.template({rows, groups}, matrix.type))
    }

    if backend == Backend, do: tensors, else: Map.new(tensors, fn {key, t} -> {key, Nx.backend_copy(t, backend)} end)
  end

  # ---- layers ----

  defp layer(node, kind, tensors, opts) do
    bias = for %{name: "bias"} = bias <- node.parameters, do: bias
    quantized = for name <- ["kernel", "scales", "biases"], do: parameter(name, tensors[name])
    inputs = for(_ <- node.parent, do: :layer)
    args = inputs ++ for(_ <- quantized ++ bias, do: :parameter)
    op = op(kind, bias, Keyword.take(opts, [:bits, :group_size]))

    %{
      node
      | op: op,
        opts: [],
        args: args,
        parameters: quantized ++ bias,
        meta: Map.put(node.meta || %{}, __MODULE__, opts)
    }
  end

  defp parameter(name, tensor) do
    zeros = fn shape, type, _key -> Nx.broadcast(Nx.tensor(0, type: type), shape) end
    model = Axon.layer(fn p, _ -> p end, [Axon.param(name, tensor.shape, type: tensor.type, initializer: zeros)])
    %{parameters: [parameter]} = model.nodes[model.output]
    parameter
  end

  defp op(:embedding, [], opts),
    do: fn ids, words, scales, biases, _opts -> embedding(ids, words, scales, biases, opts) end

  defp op(_kind, [], opts), do: fn x, words, scales, biases, _opts -> product(x, words, scales, biases, opts) end

  defp op(_kind, [_bias], opts),
    do: fn x, words, scales, biases, bias, _opts -> Nx.add(product(x, words, scales, biases, opts), bias) end

  @doc "Returns the product x · wᵀ, `{…, rows}`, for x `{…, columns}`."
  def product(x, words, scales, biases, opts) do
    shape = put_elem(x.shape, tuple_size(x.shape) - 1, Nx.axis_size(words, 0))
    output = Nx.template(shape, Nx.Type.merge(x.type, scales.type))
    Call.block(struct!(Product, opts), [x, words, scales, biases], output, &composed/2)
  end

  @doc "Returns the dequantized rows of a matrix at `ids`."
  def embedding(ids, words, scales, biases, opts) do
    [words, scales, biases] = for t <- [words, scales, biases], do: Nx.take(t, Nx.as_type(ids, :s64), axis: 0)
    size = Nx.axis_size(scales, -1) * opts[:group_size]
    output = Nx.template(put_elem(words.shape, tuple_size(words.shape) - 1, size), scales.type)
    Call.block(struct!(Rows, opts), [words, scales, biases], output, &composed/2)
  end

  # ---- the composed functions ----

  defp composed(%Product{} = block, [x | packed]), do: Nx.dot(x, [-1], numbers(block, packed), [1])
  defp composed(%Rows{} = block, packed), do: numbers(block, packed)

  defp numbers(%{bits: bits, group_size: group_size}, [words, scales, biases]) do
    lead = words.shape |> Tuple.to_list() |> Enum.drop(-1)
    shifts = Nx.multiply(Nx.iota({div(32, bits)}, type: :u32), bits)

    codes =
      words
      |> Nx.new_axis(-1)
      |> Nx.right_shift(shifts)
      |> Nx.bitwise_and(Nx.tensor(2 ** bits - 1, type: :u32))
      |> Nx.as_type(scales.type)
      |> Nx.reshape(List.to_tuple(lead ++ [:auto, group_size]))

    codes
    |> Nx.multiply(Nx.new_axis(scales, -1))
    |> Nx.add(Nx.new_axis(biases, -1))
    |> Nx.reshape(List.to_tuple(lead ++ [:auto]))
  end

  # ---- the kernels ----

  defimpl EMLX.Block, for: [Product, Rows] do
    alias EMLX.{Array, Backend, Kernels, Ops}
    alias EMLX.Fast.Arguments

    def call(%module{bits: bits, group_size: group_size} = block, output, args, fun) do
      floats = for %{type: {class, _}} = tensor when class != :u <- args, do: tensor

      case Enum.find(floats, &(not Arguments.fused?(&1.type))) do
        nil ->
          arrays = Enum.map(args, &Backend.to_array/1)
          opts = [bits: bits, group_size: group_size]
          module |> computed(arrays, output.shape, opts) |> Backend.to_nx(output)

        odd ->
          reason = "the kernel computes in f32, an argument is #{Nx.Type.to_string(odd.type)}"
          EMLX.Block.decline(block, args, fun, reason)
      end
    end

    # x is reshaped to rows as in Nx.dot/4, because plans for few rows merge such products.
    defp computed(EMLXBumblebee.Quantized.Product, [x, words, scales, biases], shape, opts) do
      columns = x |> Array.shape() |> Tuple.to_list() |> List.last()
      product = x |> Ops.reshape([-1, columns]) |> Kernels.quantized_matmul(words, scales, biases, opts)
      Ops.reshape(product, Tuple.to_list(shape))
    end

    defp computed(EMLXBumblebee.Quantized.Rows, [words, scales, biases], _shape, opts),
      do: Kernels.dequantize(words, scales, biases, opts)
  end
end
