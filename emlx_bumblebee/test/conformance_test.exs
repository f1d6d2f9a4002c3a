defmodule EMLXBumblebee.ConformanceTest do
  # Every kind of model in Bumblebee, rewritten and on EMLX, against the model as it is on Nx.BinaryBackend.
  #
  # Bumblebee's own tests have reference values of another framework for the models in its "bumblebee-testing" repositories,
  # whose weights have to be downloaded; none has weights that could be made here, so none of those values is used.
  use ExUnit.Case, async: true

  import EMLXBumblebee.Compare

  alias EMLXBumblebee.Models

  @blocks [Bumblebee.Block.SDPA, Bumblebee.Block.RotaryEmbedding, Axon.Block.RMSNorm, Axon.Block.LayerNorm]

  for name <- Models.names(), type <- [{:f, 32}, {:bf, 16}] do
    test "#{name} in #{Nx.Type.to_string(type)}" do
      type = unquote(Macro.escape(type))
      {spec, kind, counts} = Models.fetch!(unquote(name))
      model = Bumblebee.build_model(spec, type: type)
      rewritten = EMLXBumblebee.rewrite(model)
      [{_, inputs} | _] = variants = Models.inputs(kind, spec, type)
      state = Models.parameters(model, inputs)
      assert_same_parameters(rewritten, model, inputs, state)

      for {variant, inputs} <- variants do
        expected = Axon.predict(model, state, inputs, compiler: Nx.Defn.Evaluator)

        for compiler <- compilers() do
          moved = %{state | data: on(state.data, EMLX.Backend)}
          run = fn -> Axon.predict(rewritten, moved, on(inputs, EMLX.Backend), compiler: compiler) end
          {result, told} = told(@blocks, run)
          assert_alike(result, expected, "#{variant} #{inspect(compiler)}")
          assert {paths(told), []} == {counts, Enum.reject(told, &(&1.path == :fused))}
        end
      end
    end
  end

  # Blocks by their kind, in the order of @blocks.
  defp paths(told) do
    frequencies = Enum.frequencies_by(told, & &1.block)
    @blocks |> Enum.map(&Map.get(frequencies, &1, 0)) |> List.to_tuple()
  end

  # The same names, shapes and initial numbers.
  defp assert_same_parameters(rewritten, model, inputs, _state) do
    [one, other] =
      for model <- [model, rewritten] do
        {init, _predict} = Axon.build(model, seed: 3, compiler: Nx.Defn.Evaluator)
        init.(Map.new(inputs, fn {name, tensor} -> {name, Nx.to_template(tensor)} end), Axon.ModelState.empty())
      end

    # Drop path seeds its generator with the time.
    drop = fn data -> data |> Enum.reject(fn {_, layer} -> Map.keys(layer) == ["key"] end) |> Map.new() end
    assert drop.(one.data) == drop.(other.data)
    assert {one.parameters, one.state} == {other.parameters, other.state}
  end
end
