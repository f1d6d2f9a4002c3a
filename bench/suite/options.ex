defmodule EMLX.Bench.Options do
  @moduledoc """
  What `mix emlx.bench` was asked for.
  """

  @enforce_keys [:parts, :only, :device, :out, :quick?, :full?, :peers?, :compile?]
  defstruct @enforce_keys

  @switches [
    device: :string,
    only: :string,
    out: :string,
    quick: :boolean,
    full: :boolean,
    peers: :boolean,
    compile: :boolean,
    list: :boolean
  ]

  @doc """
  The options of some arguments, given the names of the parts that there are: `{:ok, options}`, `:list`, or
  `{:error, message}`.

      iex> {:ok, options} = EMLX.Bench.Options.parse(~w(kernels --device gpu --quick), ~w(dispatch kernels))
      iex> {options.parts, options.device, options.quick?, options.out}
      {["kernels"], :gpu, true, "_build/bench"}
      iex> EMLX.Bench.Options.parse(~w(kernel), ~w(dispatch kernels))
      {:error, "there is no part kernel; the parts are dispatch, kernels"}
  """
  def parse(arguments, names) do
    {switches, parts, invalid} = OptionParser.parse(arguments, strict: @switches)
    unknown = Enum.uniq(parts) -- names

    cond do
      invalid != [] -> {:error, invalid(hd(invalid))}
      switches[:list] -> :list
      unknown != [] -> {:error, "there is no part #{hd(unknown)}; the parts are #{Enum.join(names, ", ")}"}
      switches[:device] not in [nil, "cpu", "gpu"] -> {:error, "--device is cpu or gpu, not #{switches[:device]}"}
      true -> {:ok, options(switches, parts, names)}
    end
  end

  # Parts run in their own order, each once, however they were named.
  defp options(switches, parts, names) do
    %__MODULE__{
      parts: if(parts == [], do: names, else: Enum.filter(names, &(&1 in parts))),
      device: String.to_existing_atom(switches[:device] || "cpu"),
      only: switches[:only],
      out: switches[:out] || "_build/bench",
      quick?: switches[:quick] || false,
      full?: switches[:full] || false,
      peers?: Keyword.get(switches, :peers, true),
      compile?: Keyword.get(switches, :compile, true)
    }
  end

  defp invalid({"--" <> _ = name, nil}) do
    known =
      for {switch, type} <- @switches, do: "--#{if switch in [:peers, :compile], do: "no-"}#{switch}#{value(type)}"

    needs_value = for {switch, :string} <- @switches, do: "--#{switch}"

    if name in needs_value,
      do: "#{name} needs a value",
      else: "#{name} is not an option; there are #{Enum.join(known, ", ")}"
  end

  defp invalid({name, nil}), do: "#{name} is not an option; see mix help emlx.bench"
  defp invalid({name, value}), do: "#{name} does not take #{value}"

  defp value(:string), do: " VALUE"
  defp value(_), do: ""
end
