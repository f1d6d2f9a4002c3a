defmodule EMLXBumblebee.Conformance do
  @moduledoc false
  # CONFORMANCE.md, the table of the results of test/conformance_test.exs.

  alias EMLXBumblebee.{Compare, Models, Table}

  @head """
  # Conformance

  Every kind of model in Bumblebee 0.7, tiny and with random parameters. The tests rewrite it with
  `EMLXBumblebee.rewrite/2` and run it on `EMLX.Backend`, eagerly and compiled with `compiler: EMLX`. They compare it
  with the original model on `Nx.BinaryBackend`. `test/conformance_test.exs` writes this table, and fails if its results
  differ from it. [REFERENCES.md](REFERENCES.md) has the comparison with another framework.

  The blocks are those that telemetry reported as fused, the same number in each run of a model. *Composed* is the
  number of blocks that an implementation declined. The last columns are the largest allowed difference, relative to the
  largest element of an output (at least 1). If the difference in bf16 is larger, the rewritten model's distance from
  the model in f32 is at most twice the original model's.

  | model | module | inputs | attention | rotary embedding | rms_norm | layer_norm | composed | f32 eager | f32 compiled | bf16 eager | bf16 compiled |
  |---|---|---|---|---|---|---|---|---|---|---|---|
  """

  def table do
    %{path: Path.expand("../../CONFORMANCE.md", __DIR__), head: @head, names: Models.names(), foot: ""}
  end

  @doc """
  Returns the row of a model. `runs` has, for each type, a list of
  `{compiler, counts of fused blocks, number of composed blocks}`.
  """
  def row(name, spec, inputs, runs) do
    [{counts, composed}] =
      for({_type, runs} <- runs, {_, counts, composed} <- runs, do: {counts, composed}) |> Enum.uniq()

    agreed =
      for {type, runs} <- runs, compiler <- [Nx.Defn.Evaluator, EMLX] do
        if List.keymember?(runs, compiler, 0), do: Compare.tolerance(type), else: "not run"
      end

    cells = [name, inspect(spec.__struct__), inputs |> Enum.sort() |> Enum.join(", ")]
    Table.row(cells ++ Tuple.to_list(counts) ++ [composed | agreed])
  end
end
