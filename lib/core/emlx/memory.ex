defmodule EMLX.Memory do
  @moduledoc """
  MLX's memory, in bytes: of the CPU and, where there is one, of the GPU, which MLX counts together.

  MLX keeps freed buffers for later arrays. `active/0` is what arrays use, `cached/0` what is kept.
  """

  alias EMLX.Native

  @doc "Bytes in use by arrays."
  @spec active :: non_neg_integer
  def active, do: Native.call!(Native.memory(:active))

  @doc "The most bytes that were in use since the start or since `reset_peak/0`."
  @spec peak :: non_neg_integer
  def peak, do: Native.call!(Native.memory(:peak))

  @doc "Bytes kept for later arrays."
  @spec cached :: non_neg_integer
  def cached, do: Native.call!(Native.memory(:cached))

  @doc "The limit: an array larger than this is refused, and evaluation waits for work in progress rather than exceed it."
  @spec limit :: non_neg_integer
  def limit, do: Native.call!(Native.memory(:limit))

  @doc "Sets the limit. Gives the one before."
  @spec set_limit(non_neg_integer) :: non_neg_integer
  def set_limit(bytes), do: Native.call!(Native.set_limit(:memory, bytes))

  @doc "Sets how many bytes are kept for later arrays. Gives the limit before."
  @spec set_cache_limit(non_neg_integer) :: non_neg_integer
  def set_cache_limit(bytes), do: Native.call!(Native.set_limit(:cache, bytes))

  @doc """
  The CUDA graphs that programs have at the moment, and the bytes of memory that are held for them, which `active/0` counts too.

  A program that is run several times on CUDA is captured: its operations are launched together, and their results have memory of
  their own for as long as the program lives; all graphs together hold at most an eighth of `limit/0`. `clear_cache/0` gives that up, and
  later runs capture anew. Where there is no CUDA, or `EMLX_CUDA_GRAPHS` is `0`, there are none.
  """
  @spec graphs :: %{count: non_neg_integer, bytes: non_neg_integer}
  def graphs, do: %{count: Native.call!(Native.memory(:graphs)), bytes: Native.call!(Native.memory(:in_graphs))}

  @doc "Frees what is kept for later arrays, and for CUDA graphs (`graphs/0`)."
  @spec clear_cache :: :ok
  def clear_cache, do: Native.call!(Native.clear_cache())

  @doc "Starts a new measurement of `peak/0`."
  @spec reset_peak :: :ok
  def reset_peak, do: Native.call!(Native.reset_peak())
end
