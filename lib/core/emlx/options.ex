defmodule EMLX.Options do
  @moduledoc false
  # Checks the keyword options of public functions that are not called for each operation. NimbleOptions checks them if
  # it is present when EMLX is compiled; otherwise only names, defaults and required options are checked. A module keeps
  # its schemas in attributes, so that they are compiled once.

  @enforce_keys [:options, :compiled]
  defstruct [:options, :compiled]

  @type t :: %__MODULE__{options: keyword(keyword), compiled: struct | nil}

  @nimble Code.ensure_loaded?(NimbleOptions)

  @doc """
  Returns a schema for `validate!/3`. `options` has `:type`, `:default` and `:required` of each option, as in
  `NimbleOptions`. They must not contain functions, since a schema is the value of a module attribute.
  """
  @spec schema(keyword(keyword)) :: t
  def schema(options), do: %__MODULE__{options: options, compiled: compile(options)}

  @doc "Returns the options `:device` and `:queue` as a part of a schema."
  @spec place() :: keyword(keyword)
  def place,
    do: [device: [type: {:in, [:cpu, :gpu, nil]}], queue: [type: {:or, [{:struct, EMLX.Queue}, nil]}]]

  @doc "Returns whether types are checked, too."
  @spec types?() :: boolean
  def types?, do: @nimble

  @doc """
  Returns `opts` with the defaults of `schema`. `function` is the function's name in errors, as `"EMLX.Queue.start"`.

  Raises `ArgumentError` for an unknown option, an option given twice, a required one that is missing, and, with
  NimbleOptions, for a value of another type.
  """
  @spec validate!(keyword, t, String.t()) :: keyword
  def validate!(opts, %__MODULE__{} = schema, function) do
    checked = by_keyword(opts, schema.options, function)
    by_type(checked, opts, schema.compiled, function)
  end

  @doc false
  # The check without NimbleOptions. It also runs before NimbleOptions, so that errors of names have the same text.
  def by_keyword(opts, options, function) do
    names = Keyword.keys(options)

    if not Keyword.keyword?(opts) do
      raise ArgumentError,
            "#{function}: options are a keyword list, here of #{Enum.map_join(names, ", ", &inspect/1)}, " <>
              "got: #{inspect(opts)}"
    end

    case Keyword.validate(opts, Enum.map(options, &default/1)) do
      {:ok, checked} ->
        for {name, option} <- options, option[:required], not Keyword.has_key?(opts, name) do
          raise ArgumentError, "#{function}: the required option #{inspect(name)} is missing, got: #{inspect(opts)}"
        end

        checked

      {:error, unknown} ->
        raise ArgumentError,
              "#{function}: unknown keys #{inspect(unknown)} in #{inspect(opts)}, " <>
                "the allowed keys are: #{inspect(names)}"
    end
  end

  defp default({name, option}) do
    case Keyword.fetch(option, :default) do
      {:ok, default} -> {name, default}
      :error -> name
    end
  end

  if @nimble do
    defp compile(options), do: NimbleOptions.new!(options)

    defp by_type(_checked, opts, compiled, function) do
      case NimbleOptions.validate(opts, compiled) do
        {:ok, checked} -> checked
        {:error, error} -> raise ArgumentError, "#{function}: #{Exception.message(error)}"
      end
    end
  else
    defp compile(_options), do: nil
    defp by_type(checked, _opts, nil, _function), do: checked
  end
end
