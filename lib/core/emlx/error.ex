defmodule EMLX.Error do
  @moduledoc """
  The exception of EMLX's functions. The VM and all other processes keep running, and later calls work.

  Fields:

    * `:kind` - the kind of the failure: `:invalid_argument` (shapes, types or attributes that do not fit),
      `:bad_argument` (a term of a wrong type), `:unknown_op`, `:binary_size`, `:no_device`, `:out_of_memory`,
      `:device_lost` (this process of the operating system can no longer use the GPU), `:not_loaded` (the native
      library), `:queue_closed`, `:file`, `:traced` (a function that cannot be compiled, since it reads a value during
      the trace), `:deallocated` (`EMLX.Array.deallocate/1`), `:mlx` (an error of MLX), `:panic` (a bug in the native
      code)
    * `:op` - the operation's name
    * `:reason` - the reason, in MLX's words for an error of MLX
    * `:inputs` - `{shape, dtype}` of each array that the operation received, `nil` for an absent one
    * `:device` - the device of the operation, if known
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
