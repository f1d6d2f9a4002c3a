defmodule EMLX do
  @moduledoc """
  MLX's arrays and fused kernels for Elixir, on Apple silicon, on NVIDIA GPUs and on Linux CPUs.

    * `EMLX.Array` - arrays: from binaries and lists, and back
    * `EMLX.Ops` - MLX's operations
    * `EMLX.Kernels` - fused kernels: norms, rotary embedding, attention, quantized products
    * `EMLX.Program` - many operations replayed by one native call
    * `EMLX.Queue` - where and in which order arrays are evaluated
    * `EMLX.Memory`, `EMLX.Safetensors` - memory figures and files
  """

  alias EMLX.{Array, Native, Queue}

  @doc """
  Has arrays computed and waits for them. Gives its argument. Options: `:device`, `:queue`.

      iex> EMLX.eval(EMLX.Ops.add(EMLX.Array.scalar(1, :s32), EMLX.Array.scalar(2, :s32))) |> EMLX.Array.to_list()
      3
  """
  @spec eval(arrays, keyword) :: arrays when arrays: Array.t() | [Array.t()]
  def eval(arrays, opts \\ []) do
    refs = refs(arrays)
    target = Queue.target(opts)
    Native.await!(&Native.eval(refs, target, &1))
    arrays
  end

  @doc "Has arrays computed without waiting for them. Gives its argument."
  @spec async_eval(arrays, keyword) :: arrays when arrays: Array.t() | [Array.t()]
  def async_eval(arrays, opts \\ []) do
    Native.call!(Native.eval(refs(arrays), Queue.target(opts), nil))
    arrays
  end

  defp refs(%Array{ref: ref}), do: [ref]
  defp refs(arrays) when is_list(arrays), do: for(%Array{ref: ref} <- arrays, do: ref)

  @doc """
  What is known of a device: name, memory, architecture. Options: `:device`, the GPU where there is one by default.
  """
  @spec device_info(keyword) :: %{String.t() => String.t() | non_neg_integer}
  def device_info(opts \\ []) do
    device = Keyword.get_lazy(opts, :device, &default_device/0)
    Map.new(Native.call!(Native.device_info(device)))
  end

  @doc "Whether a device is there."
  @spec device_available?(:cpu | :gpu) :: boolean
  def device_available?(device), do: Native.call!(Native.device_available(device))

  defp default_device, do: if(device_available?(:gpu), do: :gpu, else: :cpu)
end
