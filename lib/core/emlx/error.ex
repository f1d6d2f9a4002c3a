defmodule EMLX.Error do
  @moduledoc """
  A call that could not be done. The VM and every other process go on, and so does the next call.

  Fields:

    * `:kind` - what sort of failure: `:invalid_argument` (shapes, types or attributes that do not fit), `:bad_argument`
      (a term that is not what the call takes), `:unknown_op`, `:binary_size`, `:no_device`, `:out_of_memory`,
      `:device_lost` (the GPU is of no more use to this process), `:not_loaded` (the native library), `:queue_closed`, `:file`, `:traced`
      (a function that cannot be compiled, since it reads a value that is yet to come), `:deallocated`
      (`EMLX.Array.deallocate/1`), `:mlx` (MLX refused), `:panic` (a bug in the
      native code)
    * `:op` - the operation's name
    * `:reason` - the words, MLX's own where it has some
    * `:inputs` - `{shape, dtype}` of each array the operation was given, `nil` for an absent one
    * `:device` - where it was to run, if that was known
  """

  defexception [:kind, :op, :reason, inputs: [], device: nil]

  @type t :: %__MODULE__{
          kind: atom,
          op: String.t(),
          reason: String.t(),
          inputs: [{[non_neg_integer], EMLX.Array.dtype()} | nil],
          device: :cpu | :gpu | nil
        }

  @impl true
  def exception(fields), do: struct!(__MODULE__, fields)

  @impl true
  def message(%{op: op, reason: reason, inputs: inputs, device: device}) do
    [op, ": ", reason, describe(inputs), if(device, do: " on :#{device}", else: "")]
    |> IO.iodata_to_binary()
  end

  defp describe([]), do: ""
  defp describe(inputs), do: [" (given ", Enum.map_join(inputs, ", ", &signature/1), ")"]

  defp signature(nil), do: "nil"
  defp signature({shape, dtype}), do: "#{dtype}[#{Enum.join(shape, "][")}]"
end
