defmodule EMLX.CommandQueue do
  @moduledoc """
  `EMLX.Queue` by the names of the C++ EMLX, for code that was written for it. New code takes `EMLX.Queue`.

      iex> {:ok, queue} = EMLX.CommandQueue.new(:cpu)
      iex> EMLX.CommandQueue.with_queue(queue, fn -> EMLX.Array.to_list(EMLX.Ops.ones({2}, :s32)) end)
      [1, 1]
      iex> EMLX.CommandQueue.synchronize(queue)
      :ok
  """

  alias EMLX.Queue

  @doc "`EMLX.Queue.start/1` on a device, with `{:error, words}` where it is not there."
  @spec new(:cpu | :gpu) :: {:ok, Queue.t()} | {:error, String.t()}
  def new(device) do
    {:ok, new!(device)}
  rescue
    error in EMLX.Error -> {:error, Exception.message(error)}
  end

  @doc "`EMLX.Queue.start/1` on a device. Raises `EMLX.Error` where it is not there."
  @spec new!(:cpu | :gpu) :: Queue.t()
  def new!(device), do: Queue.start(device: device)

  @doc "See `EMLX.Queue.synchronize/1`."
  @spec synchronize(Queue.t()) :: :ok
  defdelegate synchronize(queue), to: Queue

  @doc "See `EMLX.Queue.with/2`."
  @spec with_queue(Queue.t(), (-> result)) :: result when result: var
  defdelegate with_queue(queue, fun), to: Queue, as: :with
end
