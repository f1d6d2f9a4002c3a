defmodule EMLX.NIFError do
  @moduledoc """
  What the functions of `EMLX` that are named as in the C++ EMLX raise, such as `EMLX.add/2`, and
  `EMLX.CommandQueue.new!/1`.

  Everything else raises `EMLX.Error`. `rescue` compares the name of the exception's module, so no module can stand for
  another one there: code that rescues `EMLX.NIFError` around `EMLX.Backend`'s operations rescues `EMLX.Error` instead.

  Fields:

    * `:message` - the words
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
