defmodule EMLXBumblebee.Conformance do
  @moduledoc false
  # CONFORMANCE.md, the table of what test/conformance_test.exs finds.

  import ExUnit.Assertions

  alias EMLXBumblebee.{Compare, Models}

  @path Path.expand("../../CONFORMANCE.md", __DIR__)

  def path, do: @path

  @doc "What stands above the rows."
  def head do
    """
    # Conformance

    Every kind of model in Bumblebee 0.7, tiny and with random parameters, rewritten by `EMLXBumblebee.rewrite/2` and run on
    `EMLX.Backend`, eagerly and compiled with `compiler: EMLX`, against the same model as it is on `Nx.BinaryBackend`. Written by
    `test/conformance_test.exs`, which fails where it finds anything else than what stands here.

    The blocks are those that telemetry told of as run by a kernel; each run of a model had as many. *Composed* are those that an
    implementation declined. The last columns are how far, relative to the largest number of an output (at least 1), the outputs were
    allowed to lie apart, and did not. Where bf16 is further apart than that, the rewritten model lies no further from the same
    model in f32 than twice what the model as it is does.

    | model | module | inputs | attention | rotary embedding | rms_norm | layer_norm | composed | f32 eager | f32 compiled | bf16 eager | bf16 compiled |
    |---|---|---|---|---|---|---|---|---|---|---|---|
    """
  end

  @doc "The row of a model. `runs` is, for each type, a list of `{compiler, counts of fused blocks, how many were composed}`."
  def row(name, spec, inputs, runs) do
    [{counts, composed}] =
      for({_type, runs} <- runs, {_, counts, composed} <- runs, do: {counts, composed}) |> Enum.uniq()

    agreed =
      for {type, runs} <- runs, compiler <- [Nx.Defn.Evaluator, EMLX] do
        if List.keymember?(runs, compiler, 0), do: Compare.tolerance(type), else: "not run"
      end

    cells = [name, inspect(spec.__struct__), inputs |> Enum.sort() |> Enum.join(", ")]
    "| " <> Enum.join(cells ++ Tuple.to_list(counts) ++ [composed | agreed], " | ") <> " |"
  end

  @doc "Asserts that a row stands in the file; with EMLX_CONFORMANCE=write, sees to it."
  def check(name, row) do
    if writing?(), do: write(Map.put(rows(), name, row))
    assert rows()[name] == row, "CONFORMANCE.md is out of date for #{name}; EMLX_CONFORMANCE=write has it written anew"
  end

  def writing?, do: System.get_env("EMLX_CONFORMANCE") == "write"

  @doc "The models that have a row, in order."
  def names, do: for({name, _} <- lines(), do: name)

  defp rows, do: Map.new(lines())

  defp lines do
    text = if File.exists?(@path), do: File.read!(@path), else: ""

    for line <- String.split(text, "\n"),
        name <- Models.names(),
        String.starts_with?(line, "| #{name} |"),
        do: {name, line}
  end

  defp write(rows) do
    lines = for name <- Models.names(), row = rows[name], do: row <> "\n"
    File.write!(@path, [head() | lines])
  end
end
