defmodule EMLX.SharedMemory do
  @moduledoc """
  POSIX shared memory, to pass arrays to other operating-system processes.

  `create/2` copies an array's elements into a new segment and returns its name. Another process opens the segment by
  this name: a VM with `take/4`, Python with `multiprocessing.shared_memory.SharedMemory`. `take/4` unlinks the segment,
  which frees it. A segment that no process takes exists until `unlink/1` or a restart of the machine.

  With Nx, `Nx.to_pointer/2` and `Nx.from_pointer/5` with `mode: :ipc` call these functions.
  """

  alias EMLX.{Array, Native, Ops, Options, Queue}

  @create Options.schema([permissions: [type: :any, default: 0o400]] ++ Options.place())
  @take Options.schema(Options.place())

  @doc """
  Creates a segment with the elements of an array, in row-major order and native byte order. Returns `{name, bytes}`.

  Options:

    * `:permissions` - the permissions of the segment, like those of a file, from `0` to `0o777`; default `0o400`,
      readable by its owner
    * `:device`, `:queue` - where the array is evaluated

  Raises `EMLX.Error` of kind `:file` if the operating system refuses, for example for lack of memory. Raises
  `ArgumentError` for invalid permissions.

      iex> {name, bytes} = EMLX.SharedMemory.create(EMLX.Array.from_list([1.5, 2.5], :f32))
      iex> array = EMLX.SharedMemory.take(name, {2}, :f32)
      iex> {bytes, EMLX.Array.to_list(array)}
      {8, [1.5, 2.5]}
  """
  @spec create(Array.t(), keyword) :: {String.t(), non_neg_integer}
  def create(array, opts \\ []) do
    {permissions, opts} = opts |> Options.validate!(@create, "EMLX.SharedMemory.create") |> Keyword.pop!(:permissions)

    if permissions not in 0..0o777 do
      raise ArgumentError, ":permissions is an integer from 0 to 0o777, such as 0o600, got: #{inspect(permissions)}"
    end

    binary = Array.to_binary(array, opts)
    {Native.call!(Native.shm_create(binary, permissions)), byte_size(binary)}
  end

  @doc """
  Returns an array with a copy of the elements of a segment, and unlinks the segment.

  `shape` and `dtype` are those of the array that the segment was created from. Options: `:device`, `:queue`.

  Raises `EMLX.Error` of kind `:file` if no segment has this name or the permissions forbid to open it. Raises
  `EMLX.Error` of kind `:invalid_argument` if the size of the segment is not that of the shape and the type. Then the
  segment stays.

      iex> {name, _bytes} = EMLX.SharedMemory.create(EMLX.Array.from_list([[1, 2], [3, 4]], :s64))
      iex> EMLX.SharedMemory.take(name, {2, 2}, :s64) |> EMLX.Array.to_list()
      [[1, 2], [3, 4]]
  """
  @spec take(String.t(), Array.shape(), Array.dtype(), keyword) :: Array.t()
  def take(name, shape, dtype, opts \\ []) do
    opts = Options.validate!(opts, @take, "EMLX.SharedMemory.take")
    shape = Ops.shape_to_list(shape)
    Native.call!(Native.shm_take(name, shape, dtype, Queue.target(opts)))
  end

  @doc """
  Unlinks a segment. Returns `:ok`, also if no segment has this name.

      iex> {name, _bytes} = EMLX.SharedMemory.create(EMLX.Array.scalar(1, :s32))
      iex> {EMLX.SharedMemory.unlink(name), EMLX.SharedMemory.unlink(name)}
      {:ok, :ok}
  """
  @spec unlink(String.t()) :: :ok
  def unlink(name), do: Native.call!(Native.shm_unlink(name))
end
