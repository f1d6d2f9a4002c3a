defmodule EMLX.SharedMemory do
  @moduledoc """
  POSIX shared memory, by which arrays go to other processes of the operating system.

  `create/2` copies an array's elements into a new segment and returns its name, which another process opens: a VM with
  `take/4`, Python with `multiprocessing.shared_memory.SharedMemory`. The segment stays until its name is unlinked,
  which `take/4` does. A segment that nobody takes stays until the machine restarts, so `unlink/1` gives it up.

  With Nx, `Nx.to_pointer/2` and `Nx.from_pointer/5` with `mode: :ipc` are these functions.
  """

  alias EMLX.{Array, Native, Options, Ops, Queue}

  @create Options.schema([permissions: [type: :any, default: 0o400]] ++ Options.place())
  @take Options.schema(Options.place())

  @doc """
  Creates a segment with the elements of an array, row by row, in native byte order: `{name, bytes}`.

  Options:

    * `:permissions` - who may open the segment, as of a file, from `0` to `0o777`; default `0o400`, its owner, to read
    * `:device`, `:queue` - where the array is evaluated

  Raises `EMLX.Error` of kind `:file` where the operating system refuses, for example since there is too little memory,
  and `ArgumentError` for permissions that are none.

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
  Returns an array with the elements of a segment, and unlinks the segment. The elements are copied.

  `shape` and `dtype` are those of the array that the segment was created from. Options: `:device`, `:queue`.

  Raises `EMLX.Error`: of kind `:file` where there is no segment of this name or it must not be opened, of kind
  `:invalid_argument` where it has another size than the shape and the type take. Then it stays.

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
  Unlinks a segment. Returns `:ok`, also where there is none of this name.

      iex> {name, _bytes} = EMLX.SharedMemory.create(EMLX.Array.scalar(1, :s32))
      iex> {EMLX.SharedMemory.unlink(name), EMLX.SharedMemory.unlink(name)}
      {:ok, :ok}
  """
  @spec unlink(String.t()) :: :ok
  def unlink(name), do: Native.call!(Native.shm_unlink(name))
end
