defmodule EMLXBumblebee.Quantized do
  @moduledoc false
  # Models with quantized matrices, for EMLXBumblebee.quantize/2. Finds the layers with a matrix, and replaces it and
  # the layer's function by those of a format: a module that packs a matrix whose rows are the layer's outputs.

  alias EMLX.Backend
  alias EMLXBumblebee.Quantized.{Affine, Int8}

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
         true <- format(opts).fits?(Nx.axis_size(kernel, if(kind == :dense, do: 0, else: 1)), opts) do
      packed = pack(if(kind == :dense, do: Nx.transpose(kernel), else: kernel), kind, opts)
      state = put_in(state.data[name], Map.merge(own, packed))
      {:ok, update_in(state.parameters, &with_names(&1, name, format(opts).names()))}
    else
      _ -> :none
    end
  end

  defp with_names(%{} = parameters, name, names) when is_map_key(parameters, name),
    do: Map.update!(parameters, name, &Enum.uniq(&1 ++ names))

  defp with_names(parameters, _name, _names), do: parameters

  # Matrices of any backend are packed on EMLX's. The result is copied to the matrix's own.
  defp pack(%Nx.Tensor{data: %Backend{}} = matrix, kind, opts), do: format(opts).pack(matrix, kind, opts)

  defp pack(%Nx.Tensor{data: %backend{}} = matrix, kind, opts) do
    tensors = matrix |> Nx.backend_copy({Backend, device: :cpu}) |> format(opts).pack(kind, opts)
    Map.new(tensors, fn {key, tensor} -> {key, Nx.backend_copy(tensor, backend)} end)
  end

  defp format(opts), do: if(opts[:type] == :int8, do: Int8, else: Affine)

  # ---- layers ----

  defp layer(node, kind, tensors, opts) do
    bias = for %{name: "bias"} = bias <- node.parameters, do: bias
    format = format(opts)
    quantized = for name <- format.names(), do: parameter(name, tensors[name])
    inputs = for(_ <- node.parent, do: :layer)
    args = inputs ++ for(_ <- quantized ++ bias, do: :parameter)

    %{
      node
      | op: format.op(kind, bias != [], opts),
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
end
