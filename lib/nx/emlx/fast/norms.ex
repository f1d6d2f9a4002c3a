defmodule EMLX.Fast.RMSNorm do
  @moduledoc """
  The block of `EMLX.Fast.rms_norm/3`. Its arguments are x `{…, size}`, and weight `{size}` if `:weight?`.
  """

  alias EMLX.Fast.Arguments

  defstruct eps: 1.0e-5, weight?: true

  @type t :: %__MODULE__{eps: float, weight?: boolean}

  @doc false
  def composed(%__MODULE__{eps: eps}, x, weight \\ nil) do
    wide = Nx.as_type(x, Arguments.wide(x))
    mean = wide |> Nx.multiply(wide) |> Nx.mean(axes: [-1], keep_axes: true)
    normal = Nx.multiply(wide, Nx.rsqrt(Nx.add(mean, Arguments.number(eps, mean))))
    normal = if weight, do: Nx.multiply(normal, Nx.as_type(weight, normal.type)), else: normal
    Nx.as_type(normal, x.type)
  end
end

defmodule EMLX.Fast.LayerNorm do
  @moduledoc """
  The block of `EMLX.Fast.layer_norm/4`. Its arguments are x `{…, size}`, then weight `{size}` if `:weight?`, then bias
  `{size}` if `:bias?`.
  """

  alias EMLX.Fast.Arguments

  defstruct eps: 1.0e-5, weight?: true, bias?: true

  @type t :: %__MODULE__{eps: float, weight?: boolean, bias?: boolean}

  @doc false
  def composed(block, x), do: normalize(block, x, nil, nil)

  @doc false
  def composed(%{weight?: true} = block, x, weight), do: normalize(block, x, weight, nil)
  def composed(%{bias?: true} = block, x, bias), do: normalize(block, x, nil, bias)

  @doc false
  def composed(block, x, weight, bias), do: normalize(block, x, weight, bias)

  defp normalize(%__MODULE__{eps: eps}, x, weight, bias) do
    wide = Nx.as_type(x, Arguments.wide(x))
    centred = Nx.subtract(wide, Nx.mean(wide, axes: [-1], keep_axes: true))
    variance = centred |> Nx.multiply(centred) |> Nx.mean(axes: [-1], keep_axes: true)
    normal = Nx.multiply(centred, Nx.rsqrt(Nx.add(variance, Arguments.number(eps, variance))))
    normal = if weight, do: Nx.multiply(normal, Nx.as_type(weight, normal.type)), else: normal
    normal = if bias, do: Nx.add(normal, Nx.as_type(bias, normal.type)), else: normal
    Nx.as_type(normal, x.type)
  end
end

defimpl EMLX.Block, for: [EMLX.Fast.RMSNorm, EMLX.Fast.LayerNorm] do
  alias EMLX.{Backend, Kernels}
  alias EMLX.Fast.Arguments

  def call(block, output, [x | _] = args, fun) do
    case Arguments.refusal(x) do
      reason when is_binary(reason) ->
        EMLX.Block.decline(block, args, fun, reason)

      nil ->
        array = normalize(block, Enum.map(args, &array/1))
        # A weight of another type is applied in f32, as the composed function does.
        if Enum.all?(args, &(&1.type == x.type)), do: Backend.tensor(array, output), else: Backend.to_nx(array, output)
    end
  end

  defp array(%{type: {:f, 64}} = tensor), do: EMLX.Ops.astype(Backend.to_array(tensor), :f32)
  defp array(tensor), do: Backend.to_array(tensor)

  defp normalize(%{__struct__: EMLX.Fast.RMSNorm, eps: eps}, [x | weight]),
    do: Kernels.rms_norm(x, List.first(weight), eps: eps)

  defp normalize(%{eps: eps} = block, [x | rest]) do
    {weight, rest} = if block.weight?, do: List.pop_at(rest, 0), else: {nil, rest}
    Kernels.layer_norm(x, weight, List.first(rest), eps: eps)
  end
end
