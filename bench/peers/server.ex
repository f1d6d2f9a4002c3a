defmodule EMLX.Bench.Server do
  @moduledoc """
  What the suite's peers in Elixir share: commands on standard input, one a line, words with URL escapes; an answer each
  that begins with `= `. `EMLX.Bench.Peer` is the other end.
  """

  @doc "Answers each command with `answer.(command, words, state)`, which returns `{words, state}`, until the input ends."
  def serve(state, answer) do
    Enum.reduce(IO.stream(:stdio, :line), state, fn line, state ->
      [command | words] = line |> String.split() |> Enum.map(&URI.decode_www_form/1)

      try do
        {words, state} = answer.(command, words, state)
        IO.puts(Enum.join(["= ok" | Enum.map(words, &to_string/1)], " "))
        state
      rescue
        error ->
          IO.puts("= error " <> URI.encode_www_form(Exception.message(error)))
          state
      end
    end)
  end

  @doc "The options of a command's words."
  def options(words), do: Map.new(words, &(&1 |> String.split("=", parts: 2) |> List.to_tuple()))

  @doc "Version words of some applications."
  def versions(apps) do
    for app <- apps, :ok == Application.ensure_loaded(app), do: "#{app}=#{Application.spec(app, :vsn)}"
  end
end
