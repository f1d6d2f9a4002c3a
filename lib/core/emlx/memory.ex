defmodule EMLX.Memory do
  @moduledoc """
  Memory use and memory limits of MLX, in bytes, for monitoring and tuning. MLX counts the CPU and the GPU together.

  Freed buffers are cached for later arrays. `active/0` is the memory of arrays, `cached/0` that of the buffer cache.
  Computed arrays of less than 4 KiB on the CPU are not counted, unless MLX has needed them.
  """

  alias EMLX.Native

  @doc "Returns the bytes in use by arrays."
  @spec active :: non_neg_integer
  def active, do: Native.call!(Native.memory(:active))

  @doc "Returns the maximum of `active/0` since the start or since `reset_peak/0`."
  @spec peak :: non_neg_integer
  def peak, do: Native.call!(Native.memory(:peak))

  @doc "Returns the bytes in the buffer cache."
  @spec cached :: non_neg_integer
  def cached, do: Native.call!(Native.memory(:cached))

  @doc """
  Returns the memory limit. An array larger than the limit is refused. An evaluation that would exceed it waits for work
  in progress first.
  """
  @spec limit :: non_neg_integer
  def limit, do: Native.call!(Native.memory(:limit))

  @doc "Sets the memory limit in bytes (`limit/0`). Returns the previous limit."
  @spec set_limit(non_neg_integer) :: non_neg_integer
  def set_limit(bytes), do: Native.call!(Native.set_limit(:memory, bytes))

  @doc """
  Sets the maximum size of the buffer cache in bytes. Returns the previous limit. On CUDA the cache may exceed the limit
  by one buffer.
  """
  @spec set_cache_limit(non_neg_integer) :: non_neg_integer
  def set_cache_limit(bytes), do: Native.call!(Native.set_limit(:cache, bytes))

  @doc """
  Returns the number of CUDA graphs that programs hold, and the bytes of their memory. `active/0` includes these bytes.

  A program that runs several times on CUDA is captured: its operations are launched as CUDA graphs. The results of
  captured operations have memory of their own while the program lives. All graphs together hold at most an eighth of
  `limit/0`. `clear_cache/0` frees the graphs, and later runs capture again. Without CUDA, or with `EMLX_CUDA_GRAPHS=0`,
  both numbers are 0.
  """
  @spec graphs :: %{count: non_neg_integer, bytes: non_neg_integer}
  def graphs, do: %{count: Native.call!(Native.memory(:graphs)), bytes: Native.call!(Native.memory(:in_graphs))}

  @doc "Frees the buffer cache and the CUDA graphs (`graphs/0`). Returns `:ok`."
  @spec clear_cache :: :ok
  def clear_cache, do: Native.call!(Native.clear_cache())

  @doc "Restarts the measurement of `peak/0`. Returns `:ok`."
  @spec reset_peak :: :ok
  def reset_peak, do: Native.call!(Native.reset_peak())
end
