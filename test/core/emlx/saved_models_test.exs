defmodule EMLX.SavedModelsTest do
  # Models of Axon and Bumblebee, saved as programs and run without these libraries, against the models' results on
  # Nx.BinaryBackend. generate.exs in test/programs writes the programs. EMLX_TEST_DEVICE=gpu runs the tests on the GPU.
  use ExUnit.Case, async: true

  alias EMLX.{Array, Program, Safetensors}

  @folder Path.expand("../../programs", __DIR__)
  @names for file <- Path.wildcard(Path.join(@folder, "*.emlx")), do: Path.basename(file, ".emlx")

  test "there are saved models of at least twelve kinds" do
    assert length(@names) >= 12
  end

  for name <- @names do
    test "the saved model #{name} computes what the model computed on Nx.BinaryBackend" do
      path = Path.join(@folder, unquote(name))
      program = Program.load(path <> ".emlx", device: EMLX.Golden.device())
      golden = Safetensors.load(path <> ".golden.safetensors", device: EMLX.Golden.device())
      inputs = for {name, _shape, _dtype} <- Program.inputs(program), into: %{}, do: {name, golden["input." <> name]}
      outputs = Program.outputs(program, device: EMLX.Golden.device())
      assert outputs != []

      results = Program.run(program, inputs, device: EMLX.Golden.device())

      for {{name, shape, dtype}, result} <- Enum.zip(outputs, results) do
        expected = golden["output." <> name] || golden[name]
        assert {name, Array.dtype(result), Array.shape(result)} == {name, dtype, List.to_tuple(shape)}
        assert {name, Array.dtype(result), Array.shape(result)} == {name, Array.dtype(expected), Array.shape(expected)}
        assert_close(name, flat(result), flat(expected), if(dtype == :f32, do: 1.0e-4, else: 0))
      end
    end
  end

  defp flat(array), do: array |> Array.to_list() |> List.wrap() |> List.flatten()

  # The error is relative to a tensor's largest number, since a layer of a model adds all of them.
  defp assert_close(name, actual, expected, tolerance) do
    largest = expected |> Enum.map(&abs/1) |> Enum.max()

    for {{a, b}, i} <- Enum.with_index(Enum.zip(actual, expected)) do
      assert abs(a - b) <= tolerance * max(largest, 1.0), "#{name}: element #{i} is #{a}, expected #{b}"
    end
  end
end
