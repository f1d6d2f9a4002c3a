defmodule EMLX.OptionsTest do
  use ExUnit.Case, async: true

  alias EMLX.{Array, Options, Program, Queue, Safetensors, SharedMemory}

  @options [
    device: [type: {:in, [:cpu, :gpu]}, default: :cpu],
    names: [type: {:list, :string}],
    steps: [type: :pos_integer, required: true]
  ]
  @schema Options.schema(@options)

  # The check with NimbleOptions, if it is present, and the one without.
  defp checks do
    [&Options.validate!(&1, @schema, "Some.function"), &Options.by_keyword(&1, @options, "Some.function")]
  end

  defp program, do: Program.new(1, [{:abs, [0], 1}], [1])

  test "defaults are filled in, options without one are not" do
    for check <- checks() do
      assert Enum.sort(check.(steps: 1)) == [device: :cpu, steps: 1]
      assert Enum.sort(check.(steps: 2, device: :gpu, names: ["a"])) == [device: :gpu, names: ["a"], steps: 2]
    end
  end

  test "an unknown option is named together with those that exist" do
    for check <- checks() do
      error = assert_raise ArgumentError, fn -> check.(step: 1) end
      assert error.message =~ "Some.function: unknown keys [:step] in [step: 1]"
      assert error.message =~ "the allowed keys are: [:device, :names, :steps]"
    end
  end

  test "an option that is given twice is refused" do
    for check <- checks() do
      assert_raise ArgumentError, ~r/Some.function: unknown keys \[:steps\]/, fn -> check.(steps: 1, steps: 2) end
    end
  end

  test "a missing required option is named" do
    for check <- checks() do
      assert_raise ArgumentError, ~r/Some.function: the required option :steps is missing, got: \[device: :gpu\]/, fn ->
        check.(device: :gpu)
      end
    end
  end

  test "options that are no keyword list are refused" do
    for check <- checks(), opts <- [%{steps: 1}, [:steps], nil] do
      assert_raise ArgumentError, ~r/Some.function: options are a keyword list, here of :device, :names, :steps/, fn ->
        check.(opts)
      end
    end
  end

  test "types are checked exactly where NimbleOptions is present" do
    assert Options.types?() == Code.ensure_loaded?(NimbleOptions)
    assert Options.by_keyword([steps: :many], @options, "Some.function")[:steps] == :many
  end

  if Options.types?() do
    test "a value of another type is refused with the function, the option, the type and the value" do
      for {opts, words} <- [
            {[steps: 0], ["Some.function", ":steps", "positive integer", "got: 0"]},
            {[steps: 1, device: :tpu], ["Some.function", ":device", "[:cpu, :gpu]", "got: :tpu"]},
            {[steps: 1, names: "a"], ["Some.function", ":names", "list", "got: \"a\""]}
          ] do
        error = assert_raise ArgumentError, fn -> Options.validate!(opts, @schema, "Some.function") end
        for word <- words, do: assert(error.message =~ word)
      end
    end

    test "public functions name themselves, the option and the value of another type" do
      array = Array.scalar(1.0, :f32)
      program = program()

      for {name, call, words} <- [
            {"EMLX.Queue.start", fn -> Queue.start(device: :tpu) end, ~r/:device .*got: :tpu/},
            {"EMLX.Program.new", fn -> Program.new(1, [], [0], fuse: :yes) end, ~r/:fuse .*got: :yes/},
            {"EMLX.Program.new", fn -> Program.new(1, [], [0], output_names: [:a]) end, ~r/:output_names .*got: :a/s},
            {"EMLX.Program.explain", fn -> Program.explain(program, device: 1) end, ~r/:device .*got: 1/},
            {"EMLX.Program.inspect", fn -> Program.inspect(program, queue: 1) end, ~r/:queue .*got: 1/s},
            {"EMLX.Program.outputs", fn -> Program.outputs(program, device: "cpu") end, ~r/:device .*got: "cpu"/},
            {"EMLX.Program.save", fn -> Program.save(program, "x.emlx", device: :tpu) end, ~r/:device .*got: :tpu/},
            {"EMLX.Program.load", fn -> Program.load("x.emlx", device: :tpu) end, ~r/:device .*got: :tpu/},
            {"EMLX.Safetensors.load", fn -> Safetensors.load("x", only: :a) end, ~r/:only .*got: :a/s},
            {"EMLX.Safetensors.save", fn -> Safetensors.save("x", %{}, queue: 1) end, ~r/:queue .*got: 1/s},
            {"EMLX.SharedMemory.create", fn -> SharedMemory.create(array, device: :tpu) end, ~r/:device .*got: :tpu/},
            {"EMLX.SharedMemory.take", fn -> SharedMemory.take("x", {1}, :f32, queue: 1) end, ~r/:queue .*got: 1/s}
          ] do
        error = assert_raise ArgumentError, call
        assert String.starts_with?(error.message, name <> ": ")
        assert error.message =~ words
      end
    end
  end

  test "the error for an unknown option names the public function and its options" do
    array = Array.scalar(1.0, :f32)
    program = program()

    for {name, call} <- [
          {"EMLX.Queue.start", fn -> Queue.start(devise: :cpu) end},
          {"EMLX.Program.new", fn -> Program.new(1, [], [0], devise: :cpu) end},
          {"EMLX.Program.explain", fn -> Program.explain(program, devise: :cpu) end},
          {"EMLX.Program.inspect", fn -> Program.inspect(program, devise: :cpu) end},
          {"EMLX.Program.outputs", fn -> Program.outputs(program, devise: :cpu) end},
          {"EMLX.Program.save", fn -> Program.save(program, "x.emlx", devise: :cpu) end},
          {"EMLX.Program.load", fn -> Program.load("x.emlx", devise: :cpu) end},
          {"EMLX.Safetensors.load", fn -> Safetensors.load("x", devise: :cpu) end},
          {"EMLX.Safetensors.save", fn -> Safetensors.save("x", %{}, devise: :cpu) end},
          {"EMLX.SharedMemory.create", fn -> SharedMemory.create(array, devise: :cpu) end},
          {"EMLX.SharedMemory.take", fn -> SharedMemory.take("x", {1}, :f32, devise: :cpu) end}
        ] do
      error = assert_raise ArgumentError, call
      assert String.starts_with?(error.message, name <> ": unknown keys [:devise]")
      assert error.message =~ ~r/the allowed keys are: \[.*:device/
    end
  end
end
