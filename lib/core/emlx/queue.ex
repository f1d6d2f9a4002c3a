defmodule EMLX.Queue do
  @moduledoc """
  A queue is a thread that evaluates arrays, with its own stream on one device.

  Each device has a default queue, so most code does not use this module. Processes that must not wait for each other
  use one queue each:

      queue = EMLX.Queue.start(device: :cpu)
      EMLX.Queue.with(queue, fn -> EMLX.Array.to_binary(EMLX.Ops.add(a, b)) end)

  The jobs of a queue run in order. `close/1` closes a queue, and so does garbage collection when no process refers to
  it any more. A process that waits for a job of a closed queue raises `EMLX.Error` of kind `:queue_closed`. Arrays that
  were created on a closed queue stay usable: any queue of the same device can evaluate them.
  """

  alias EMLX.{Native, Options}

  @start Options.schema(device: [type: {:in, [:cpu, :gpu]}, default: :cpu])

  @enforce_keys [:ref, :device]
  defstruct [:ref, :device]

  @type t :: %__MODULE__{ref: reference, device: :cpu | :gpu}

  @doc """
  Starts a queue and returns it. Options: `:device`, `:cpu` (default) or `:gpu`.

  Raises `EMLX.Error` of kind `:no_device` if the device is absent.
  """
  @spec start(keyword) :: t
  def start(opts \\ []) do
    device = opts |> Options.validate!(@start, "EMLX.Queue.start") |> Keyword.fetch!(:device)
    %__MODULE__{ref: Native.call!(Native.queue_start(device)), device: device}
  end

  @doc "Closes a queue. Jobs that have not started fail with an error. Returns `:ok`."
  @spec close(t) :: :ok
  def close(%__MODULE__{ref: ref}), do: Native.call!(Native.queue_close(ref))

  @doc """
  Waits until all jobs that were submitted to a queue before are done. Returns `:ok`.

      iex> queue = EMLX.Queue.start()
      iex> a = EMLX.Ops.exp(EMLX.Ops.ones({2}, :f32))
      iex> EMLX.async_eval(a, queue: queue)
      iex> EMLX.Queue.synchronize(queue)
      :ok
  """
  @spec synchronize(t) :: :ok
  def synchronize(%__MODULE__{} = queue) do
    # A new node runs after all previous ones. One without inputs is never computed on the spot.
    range = {:arange, %{start: 0, stop: 1, step: 1, dtype: :u8}}
    EMLX.eval(EMLX.Ops.run(range, [], queue: queue), queue: queue)
    :ok
  end

  @doc "Calls `fun` with `queue` as the calling process's queue, and returns the result of `fun`."
  @spec with(t, (-> result)) :: result when result: var
  def with(%__MODULE__{} = queue, fun) when is_function(fun, 0) do
    before = Process.put(__MODULE__, queue)

    try do
      fun.()
    after
      if before, do: Process.put(__MODULE__, before), else: Process.delete(__MODULE__)
    end
  end

  @doc false
  # Returns the target for the native functions: the `:queue` or `:device` of the options, else the process's queue,
  # else nil for the device of the inputs.
  def target([]) do
    case Process.get(__MODULE__) do
      nil -> nil
      %__MODULE__{ref: ref} -> ref
    end
  end

  def target(opts) do
    case {place(opts), Process.get(__MODULE__)} do
      {nil, _} -> target([])
      # While a function is traced, all of its operations are recorded, whatever device or queue they name.
      {_, %__MODULE__{ref: {:trace, _} = trace}} -> trace
      {place, _} -> place
    end
  end

  # The queue or the device of the options; nil without both.
  defp place([{:device, device}]), do: device
  defp place([{:queue, %__MODULE__{ref: ref}}]), do: ref

  defp place(opts) when is_list(opts) do
    opts = Keyword.validate!(opts, device: nil, queue: nil)

    case {opts[:queue], opts[:device]} do
      {nil, device} ->
        device

      {%__MODULE__{ref: ref, device: device}, same} when same in [nil, device] ->
        ref

      {queue, device} ->
        raise ArgumentError,
              ":queue must be an EMLX.Queue, on the same device as :device if both are given, " <>
                "got: #{inspect(queue)} and #{inspect(device)}"
    end
  end

  defp place(other),
    do: raise(ArgumentError, "options are a keyword list, here of :device and :queue, got: #{inspect(other)}")

  @doc false
  # Waits for the answer to a job in a span of telemetry, and returns its value. EMLX.Native.await!/4 calls it.
  def wait!(tag, op, refs, device, bytes, queue) do
    {shape, dtype} = signature(refs)
    metadata = %{op: op, shape: shape, dtype: dtype, device: device, queue: queue}

    EMLX.Telemetry.span(:eval, %{bytes: bytes}, metadata, fn ->
      receive do
        {^tag, answer} -> {Native.call!(answer), %{}, %{}}
      end
    end)
  end

  # Shape and dtype of a single array. Without telemetry, they are not read.
  defp signature([ref]) do
    if EMLX.Telemetry.told?() do
      {shape, dtype, _device} = Native.call!(Native.info(ref))
      {List.to_tuple(shape), dtype}
    else
      {nil, nil}
    end
  end

  defp signature(_refs), do: {nil, nil}

  @doc false
  # The queue of target/1 as a struct; nil for a device's default queue.
  def of(opts) do
    case {opts[:queue], opts[:device], Process.get(__MODULE__)} do
      {nil, nil, %__MODULE__{ref: ref} = queue} when is_reference(ref) -> queue
      {queue, _, _} -> queue
    end
  end

  @doc false
  # The device of target/1; nil for that of the inputs.
  def device(opts) do
    case {opts[:queue], opts[:device], Process.get(__MODULE__)} do
      {%__MODULE__{device: device}, _, _} -> device
      {_, nil, %__MODULE__{device: device}} -> device
      {_, device, _} -> device
    end
  end
end
