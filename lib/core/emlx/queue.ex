defmodule EMLX.Queue do
  @moduledoc """
  A thread that evaluates arrays, with a stream of its own on one device.

  Each device has a default queue, so most code needs none of this. Processes that should not wait behind each other take
  a queue each:

      queue = EMLX.Queue.start(device: :cpu)
      EMLX.Queue.with(queue, fn -> EMLX.Array.to_binary(EMLX.Ops.add(a, b)) end)

  Jobs of one queue are done in order. A queue closes when no process refers to it any more, or by `close/1`; whoever waits
  for one of its jobs then gets an `EMLX.Error` of kind `:queue_closed`. Arrays made under a closed queue stay usable: any
  queue of the same device can evaluate them.
  """

  alias EMLX.{Native, Options}

  @start Options.schema(device: [type: {:in, [:cpu, :gpu]}, default: :cpu])

  @enforce_keys [:ref, :device]
  defstruct [:ref, :device]

  @type t :: %__MODULE__{ref: reference, device: :cpu | :gpu}

  @doc "Starts a queue. Options: `:device`, `:cpu` (the default) or `:gpu`."
  @spec start(keyword) :: t
  def start(opts \\ []) do
    device = opts |> Options.validate!(@start, "EMLX.Queue.start") |> Keyword.fetch!(:device)
    %__MODULE__{ref: Native.call!(Native.queue_start(device)), device: device}
  end

  @doc "Closes a queue: jobs it has not begun are answered with an error."
  @spec close(t) :: :ok
  def close(%__MODULE__{ref: ref}), do: Native.call!(Native.queue_close(ref))

  @doc """
  Waits until all that a queue was given before is computed.

      iex> queue = EMLX.Queue.start()
      iex> a = EMLX.Ops.exp(EMLX.Ops.ones({2}, :f32))
      iex> EMLX.async_eval(a, queue: queue)
      iex> EMLX.Queue.synchronize(queue)
      :ok
  """
  @spec synchronize(t) :: :ok
  def synchronize(%__MODULE__{} = queue) do
    # A node of its own comes behind all others.
    one = EMLX.Array.scalar(1, :u8)
    EMLX.eval(EMLX.Ops.run(:negative, [one], queue: queue), queue: queue)
    :ok
  end

  @doc "Calls `fun` with `queue` as the calling process's queue. Gives what `fun` gives."
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
  # What the native functions take as the place to run: the `:queue` or `:device` given, the process's queue, or nil, which
  # stands for the device that the inputs are on.
  def target([]) do
    case Process.get(__MODULE__) do
      nil -> nil
      %__MODULE__{ref: ref} -> ref
    end
  end

  def target(opts) do
    case {place(opts), Process.get(__MODULE__)} do
      {nil, _} -> target([])
      # A function that is being traced is recorded as one, whatever its parts ask for.
      {_, %__MODULE__{ref: {:trace, _} = trace}} -> trace
      {place, _} -> place
    end
  end

  # The queue or the device that options ask for, nil where they ask for none.
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
  # Waits for the answer to a job, as a span of telemetry, and gives its value. EMLX.Native.await!/3 is what calls it.
  def wait!(tag, op, refs, device, bytes, queue) do
    {shape, dtype} = signature(refs)
    metadata = %{op: op, shape: shape, dtype: dtype, device: device, queue: queue}

    EMLX.Telemetry.span(:eval, %{bytes: bytes}, metadata, fn ->
      receive do
        {^tag, answer} -> {Native.call!(answer), %{}, %{}}
      end
    end)
  end

  # Of one array, where somebody may be told.
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
  # The queue that target/1 stands for, as a struct; nil for a device's own.
  def of(opts) do
    case {opts[:queue], opts[:device], Process.get(__MODULE__)} do
      {nil, nil, %__MODULE__{ref: ref} = queue} when is_reference(ref) -> queue
      {queue, _, _} -> queue
    end
  end

  @doc false
  # The device that target/1 stands for; nil where it is that of the inputs.
  def device(opts) do
    case {opts[:queue], opts[:device], Process.get(__MODULE__)} do
      {%__MODULE__{device: device}, _, _} -> device
      {_, nil, %__MODULE__{device: device}} -> device
      {_, device, _} -> device
    end
  end
end
