defmodule EMLXBumblebee.ConformanceTest do
  # Every kind of model in Bumblebee, rewritten and on EMLX, compared with the original model on Nx.BinaryBackend.
  #
  # Each test asserts its row of CONFORMANCE.md. To regenerate the file:
  #
  #   EMLX_CONFORMANCE=write mix test test/conformance_test.exs
  #
  # Bumblebee's own tests have reference values of another framework, for weights that have to be downloaded.
  # references_test.exs replaces them by values of PyTorch for checkpoints in this repository.
  use ExUnit.Case, async: true

  import EMLXBumblebee.Compare

  alias EMLXBumblebee.{Conformance, Models, Table}

  for name <- Models.names() do
    test "the rewritten model #{name} has the original's outputs on Nx.BinaryBackend, in f32 and bf16" do
      {spec, kind, counts} = Models.fetch!(unquote(name))
      inputs = Models.inputs(kind, spec)
      model = Bumblebee.build_model(spec)
      state = Models.initial(model, inputs)
      assert_same_state(Models.initial(EMLXBumblebee.rewrite(model), inputs), state)

      state = Models.disturbed(state)
      expected = predict(model, state, inputs)
      f32 = assert_rewritten(model, state, inputs, counts, &assert_alike(&1, expected, &2))

      # In bf16, both models are also compared with the same parameters in f32: the rewritten model must be about as
      # accurate as the original.
      exact = fn -> model |> predict(Models.as_type(Models.as_type(state, {:bf, 16}), {:f, 32}), inputs) end
      type = {:bf, 16}
      model = Bumblebee.build_model(spec, type: type)
      {state, inputs} = {Models.as_type(state, type), Models.as_type(inputs, type)}
      expected = predict(model, state, inputs)
      bf16 = assert_rewritten(model, state, inputs, counts, &assert_as_near(&1, expected, exact, &2))

      row = Conformance.row(unquote(name), spec, Map.keys(inputs), [{{:f, 32}, f32}, {type, bf16}])
      Table.check(Conformance.table(), unquote(name), row)
    end
  end

  test "CONFORMANCE.md has a row for each model, and no other" do
    Table.check(Conformance.table())
  end

  # Asserts equal names, shapes and initial values.
  defp assert_same_state(state, expected) do
    assert {state.parameters, state.state} == {expected.parameters, expected.state}
    # Drop path seeds its generator with the current time.
    drop = fn data -> data |> Enum.reject(fn {_, layer} -> Map.keys(layer) == ["key"] end) |> Map.new() end
    assert drop.(state.data) == drop.(expected.data)
  end

  defp predict(model, state, inputs, compiler \\ Nx.Defn.Evaluator),
    do: Axon.predict(model, state, inputs, options(compiler))

  defp assert_rewritten(model, state, inputs, counts, assert_result) do
    model = EMLXBumblebee.rewrite(model)
    {state, inputs} = {%{state | data: on(state.data, EMLX.Backend)}, on(inputs, EMLX.Backend)}

    for compiler <- compilers() do
      {result, dispatched} = record_blocks(blocks(), fn -> predict(model, state, inputs, compiler) end)
      assert_result.(result, inspect(compiler))
      {fused, composed} = Enum.split_with(dispatched, &(&1.path == :fused))
      assert {counts(fused), composed} == {counts, []}
      {compiler, counts, length(composed)}
    end
  end
end
