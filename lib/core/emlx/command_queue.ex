defmodule EMLX.CommandQueue do
  @moduledoc """
  `EMLX.Queue` under the names of the C++ EMLX, for code that was written for it. New code uses `EMLX.Queue`.

  A command queue is a struct with `:ref` and `:device`. The compiler accepts it as the option `:command_queue`.

      iex> {:ok, %EMLX.CommandQueue{device: :cpu} = queue} = EMLX.CommandQueue.new(:cpu)
      iex> EMLX.CommandQueue.with_queue(queue, fn -> EMLX.Array.to_list(EMLX.Ops.ones({2}, :s32)) end)
      [1, 1]
      iex> EMLX.CommandQueue.synchronize(queue)
      :ok
  """

  alias EMLX.Queue

  @enforce_keys [:ref, :device]
  defstruct [:ref, :device]

  @type t :: %__MODULE__{ref: reference, device: :cpu | :gpu}

  @doc "Starts a queue on a device. Returns `{:ok, queue}`, or `{:error, message}` if the device is absent."
  @spec new(:cpu | :gpu) :: {:ok, t} | {:error, String.t()}
  def new(device) do
    {:ok, new!(device)}
  rescue
    error in EMLX.NIFError -> {:error, Exception.message(error)}
  end

  @doc "Starts a queue on a device and returns it. Raises `EMLX.NIFError` if the device is absent."
  @spec new!(:cpu | :gpu) :: t
  def new!(device) do
    device |> then(&Queue.start(device: &1)) |> of_queue()
  rescue
    error in EMLX.Error -> reraise EMLX.NIFError, error, __STACKTRACE__
  end

  @doc "See `EMLX.Queue.synchronize/1`."
  @spec synchronize(t | Queue.t()) :: :ok
  def synchronize(queue), do: queue |> to_queue() |> Queue.synchronize()

  @doc "See `EMLX.Queue.with/2`."
  @spec with_queue(t | Queue.t(), (-> result)) :: result when result: var
  def with_queue(queue, fun), do: queue |> to_queue() |> Queue.with(fun)

  @doc false
  # Converts a command queue to an EMLX.Queue. Any other term is returned unchanged.
  def to_queue(%__MODULE__{ref: ref, device: device}), do: %Queue{ref: ref, device: device}
  def to_queue(other), do: other

  @doc false
  def of_queue(%Queue{ref: ref, device: device}), do: %__MODULE__{ref: ref, device: device}
end
