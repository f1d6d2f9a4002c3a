defmodule EMLX.NIFError do
  @moduledoc """
  The exception of the functions of `EMLX` with names of the C++ EMLX, such as `EMLX.add/2`, and of
  `EMLX.CommandQueue.new!/1`.

  All other functions raise `EMLX.Error`. `rescue` compares the names of modules, so one exception cannot match as
  another. Code that rescues `EMLX.NIFError` around `EMLX.Backend`'s operations has to rescue `EMLX.Error` instead.

  Fields:

    * `:message` - the message
    * `:error` - the `EMLX.Error`, with the operation, shapes and types as fields; `nil` where the exception was raised
      by hand

  """

  defexception [:message, :error]

  @type t :: %__MODULE__{message: String.t(), error: EMLX.Error.t() | nil}

  @impl true
  def exception(%EMLX.Error{} = error), do: %__MODULE__{message: Exception.message(error), error: error}
  def exception(message) when is_binary(message), do: %__MODULE__{message: message}
  def exception(fields), do: struct!(__MODULE__, fields)
end
