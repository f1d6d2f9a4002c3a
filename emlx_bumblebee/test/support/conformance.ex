defmodule EMLXBumblebee.Conformance do
  @moduledoc false
  # CONFORMANCE.md, the table of what test/conformance_test.exs finds.

  alias EMLXBumblebee.{Compare, Models, Table}

  @head """
  # Conformance

  Every kind of model in Bumblebee 0.7, tiny and with random parameters, rewritten by `EMLXBumblebee.rewrite/2` and run on
  `EMLX.Backend`, eagerly and compiled with `compiler: EMLX`, against the same model as it is on `Nx.BinaryBackend`. Written by
  `test/conformance_test.exs`, which fails where it finds anything else than what stands here. [REFERENCES.md](REFERENCES.md) is
  the table of models against another framework.

  The blocks are those that telemetry told of as run by a kernel; each run of a model had as many. *Composed* are those that an
  implementation declined. The last columns are how far, relative to the largest number of an output (at least 1), the outputs were
  allowed to lie apart, and did not. Where bf16 is further apart than that, the rewritten model lies no further from the same
  model in f32 than twice what the model as it is does.

  | model | module | inputs | attention | rotary embedding | rms_norm | layer_norm | composed | f32 eager | f32 compiled | bf16 eager | bf16 compiled |
  |---|---|---|---|---|---|---|---|---|---|---|---|
  """

  def table do
    %{path: Path.expand("../../CONFORMANCE.md", __DIR__), head: @head, names: Models.names(), foot: ""}
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
    Table.row(cells ++ Tuple.to_list(counts) ++ [composed | agreed])
  end
end
