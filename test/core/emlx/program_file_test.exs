defmodule EMLX.ProgramFileTest do
  use ExUnit.Case, async: true

  alias EMLX.{Array, Error, Golden, Ops, Program, Programs, Safetensors}

  @moduletag :tmp_dir
  @guide Path.expand("../../../guides/programs.md", __DIR__)
  @external_resource @guide

  doctest_file(@guide)

  defp again(program, dir, opts \\ []) do
    path = Path.join(dir, "#{System.unique_integer([:positive])}.emlx")
    :ok = Program.save(program, path, opts)
    Program.load(path)
  end

  defp bytes(arrays), do: Enum.map(arrays, &{Array.shape(&1), Array.dtype(&1), Array.to_binary(&1)})

  defp body(path), do: path |> File.read!() |> String.split("\n", parts: 2) |> List.last()

  for name <- Map.keys(%{attention: 1, indices: 1, image: 1, loop: 1, any: 1}) do
    test "the program #{name} computes the same bits after it was saved and loaded", %{tmp_dir: dir} do
      {program, inputs} = Programs.all()[unquote(name)]
      loaded = again(program, dir)
      assert Program.inputs(loaded) == Program.inputs(program)
      assert Program.outputs(loaded) == Program.outputs(program)
      assert Map.drop(Map.from_struct(loaded), [:ref]) == Map.drop(Map.from_struct(program), [:ref])
      assert bytes(Program.run(loaded, inputs)) == bytes(Program.run(program, inputs))
      # Saving the loaded program writes the same file.
      assert File.read!(hd(Path.wildcard(Path.join(dir, "*.emlx")))) =~ ~r/^emlx-program 1 [0-9a-f]{64}\n\{"inputs":/
    end
  end

  test "the guide shows a saved program as it is written", %{tmp_dir: dir} do
    weight = Array.from_list([[1.0, 2.0], [3.0, 4.0]], :f32)
    instructions = [{:matmul, [0, 1], 1, "Dense"}, {{:softmax, %{axes: [-1], precise: true}}, [2], 1}]
    program = Program.new([{"x", [1, 2], :f32}], instructions, [3], constants: [weight], output_names: ["p"])
    path = Path.join(dir, "dense.emlx")
    Program.save(program, path, names: ["dense.weight"])
    [_, shown] = Regex.run(~r/```json\n(.*?)```/s, File.read!(@guide))
    assert String.replace(shown, ~r/\s/, "") == body(path)
  end

  test "inputs and outputs of a loaded program have names, shapes and types" do
    {program, _} = Programs.all().attention
    assert Program.inputs(program) == [{"tokens", [1, 4], :s32}]
    assert Program.outputs(program) == [{"probabilities", [1, 4, 24], :f32}, {"best", [1, 4], :u32}]
    {program, _} = Programs.all().any
    assert Program.inputs(program) == [{nil, nil, nil}, {nil, nil, nil}]
    assert Program.outputs(program) == [{nil, nil, nil}, {nil, nil, nil}]
    {program, _} = Programs.all().loop
    assert Program.outputs(program) == [{"root", [3], :f32}, {"square", [3], :f32}]
  end

  # One case for each operation of the table.
  test "every operation computes the same after it was saved and loaded", %{tmp_dir: dir} do
    families = Golden.families()
    path = Path.join(dir, "one.emlx")

    failures =
      for {operation, _} <- Golden.operations(families) do
        case_ = hd(Golden.cases_of(families, operation))

        run = fn op, inputs ->
          given = Enum.reject(inputs, &is_nil/1)
          {numbers, _} = Enum.map_reduce(inputs, 0, fn input, n -> if input, do: {n, n + 1}, else: {nil, n} end)
          outputs = length(List.wrap(Ops.run(op, inputs)))
          count = length(given)
          program = Program.new(count, [{op, numbers, outputs}], Enum.to_list(count..(count + outputs - 1)//1))
          Program.save(program, path)
          Program.run(Program.load(path), given)
        end

        with {:error, text} <- Golden.check(case_, run), do: text
      end

    assert Enum.reject(failures, &(&1 == :ok)) == []
    assert length(failures) > 150
  end

  test "constants of every type are saved in the file or beside it, by their names", %{tmp_dir: dir} do
    path = Path.join(dir, "constants.emlx")
    dtypes = [:bool, :u8, :u16, :u32, :u64, :s8, :s16, :s32, :s64, :f16, :bf16, :f32, :f64, :c64]

    constants =
      for dtype <- dtypes, shape <- [{}, {3}, {0, 2}, {1500}], do: Ops.astype(Ops.iota(shape), dtype)

    count = length(constants)
    program = Program.new(0, [], Enum.to_list(0..(count - 1)), constants: constants)
    assert Program.save(program, path, names: %{3 => "flags"}) == :ok
    large = Safetensors.load(Path.join(dir, "constants.safetensors"))
    assert Enum.sort(Map.keys(large)) == Enum.sort(["flags" | for(i <- 7..(count - 1)//4, do: "constant.#{i}")])
    loaded = Program.load(path)
    assert bytes(Program.run(loaded, [])) == bytes(constants)

    assert Program.save(program, path, names: for(i <- 1..count, do: "w#{i}")) == :ok
    assert bytes(Program.run(Program.load(path), [])) == bytes(constants)
    assert_raise Error, ~r/1 names for 56 constants/, fn -> Program.save(program, path, names: ["x"]) end

    assert_raise Error, ~r/two constants are named "x"/, fn ->
      Program.save(program, path, names: %{0 => "x", 1 => "x"})
    end

    assert_raise ArgumentError, ~r/no constant 56/, fn -> Program.save(program, path, names: %{56 => "x"}) end
  end

  test "constants that are views, or not yet computed, are saved with their values", %{tmp_dir: dir} do
    view = Ops.transpose(Ops.iota({40, 20}, dtype: :f32), [1, 0])
    program = Program.new(0, [], [0, 1], constants: [view, Ops.add(view, 1)])
    assert bytes(Program.run(again(program, dir), [])) == bytes([view, Ops.add(view, 1)])
  end

  test "numbers of every size are the same after saving and loading", %{tmp_dir: dir} do
    numbers = [
      {9_007_199_254_740_993, :s64},
      {-9_223_372_036_854_775_808, :s64},
      {18_446_744_073_709_551_615, :u64},
      {:nan, :f32},
      {:infinity, :f64},
      {:neg_infinity, :bf16},
      {-0.0, :f64},
      {5.0e-324, :f64},
      {1.7976931348623157e308, :f64},
      {0.1, :f64},
      {{-0.0, 1.0e-40}, :c64}
    ]

    instructions = for {value, dtype} <- numbers, do: {{:constant, %{value: value, dtype: dtype}}, [], 1}
    program = Program.new(0, instructions, Enum.to_list(0..10))
    assert bytes(Program.run(again(program, dir), [])) == bytes(Program.run(program, []))
    assert Enum.map(Program.run(again(program, dir), []), &Array.to_list/1) |> hd() == 9_007_199_254_740_993
  end

  test "save/3 refuses a program that cannot be saved", %{tmp_dir: dir} do
    path = Path.join(dir, "no.emlx")
    call = Program.new(1, [{{:call, %{id: 4, outputs: [{[], :f32}]}}, [0], 1}], [1])

    error =
      assert_raise(Error, ~r/calls functions of the calling process \(\[4\]\)/, fn -> Program.save(call, path) end)

    assert error.op == "save"

    wrong = Program.new([{"x", [2, 3], :f32}], [{:matmul, [0, 0], 1}], [1])
    assert_raise Error, ~r/instruction 0, matmul/, fn -> Program.save(wrong, path) end
    branches = {:if, %{then: {1, [], [0]}, else: {1, [{:square, [0], 1}, {:isnan, [0], 1}], [2]}}}
    wrong = Program.new([{"x", [], :f32}], [{branches, [0, 0], 1}], [1])
    assert_raise Error, ~r/branches' output 0 is f32 and bool/, fn -> Program.save(wrong, path) end
    refute File.exists?(path)

    fine = Program.new(1, [], [0])
    assert %{kind: :file} = assert_raise(Error, fn -> Program.save(fine, Path.join(dir, "absent/x.emlx")) end)
    assert %{kind: :file} = assert_raise(Error, fn -> Program.save(fine, Path.join(dir, "x.safetensors")) end)
    assert File.ls!(dir) == []
  end

  describe "a file that is refused" do
    setup %{tmp_dir: dir} do
      path = Path.join(dir, "p.emlx")
      {program, _} = Programs.all().attention
      :ok = Program.save(program, path)

      refused = fn pattern ->
        error = assert_raise(Error, fn -> Program.load(path) end)
        assert error.kind == :file
        assert error.reason =~ pattern
      end

      %{path: path, refused: refused, text: File.read!(path)}
    end

    test "load/2 refuses a path that is absent, empty, a folder or no program", %{
      path: path,
      refused: refused,
      tmp_dir: dir
    } do
      File.write!(path, "")
      refused.(~r/is not a saved program; one begins with "emlx-program 1"/)
      File.write!(path, :crypto.strong_rand_bytes(4096))
      refused.(~r/is not a saved program/)
      File.cp!(Path.join(dir, "p.safetensors"), path)
      refused.(~r/is not a saved program/)
      File.rm!(path)
      refused.(~r/No such file/)
      File.mkdir!(path)
      refused.(~r/folder/)
    end

    test "load/2 refuses a file that is truncated or damaged", %{path: path, refused: refused, text: text} do
      for length <- [5, 13, 40, 79] do
        File.write!(path, binary_part(text, 0, length))
        refused.(~r/cut short/)
      end

      for length <- [81, 200, byte_size(text) - 1] do
        File.write!(path, binary_part(text, 0, length))
        refused.(~r/damaged or cut short: its digest is/)
      end

      File.write!(path, [text, " "])
      refused.(~r/damaged or cut short/)
    end

    test "load/2 refuses a file of a newer version", %{path: path, refused: refused, text: text} do
      File.write!(path, String.replace(text, "emlx-program 1 ", "emlx-program 2 "))
      refused.(~r/is of version 2 of the format, and this release reads 1; a newer release/)
      File.write!(path, "emlx-program 1000 and whatever comes\n")
      refused.(~r/is of version 1000/)
    end

    test "load/2 refuses a file with a right digest that save/3 did not write", %{path: path, refused: refused} do
      original = body(path)

      for {from, to, pattern} <- [
            {~s("rms_norm"), ~s("rm_norm"), ~r/unknown variant `rm_norm`/},
            {~s("eps":1e-6), ~s("eps":1e999), ~r/number out of range/},
            {~s("eps":1e-6), ~s("eps":"x"), ~r/invalid type: string "x"/},
            {~s("eps":1e-6), ~s("eps":1e-6,"more":1), ~r/unknown field `more`/},
            {~s("shape":[1,4,2,8]), ~s("shape":[1,4,2,9]), ~r/instruction 2, reshape/},
            {~s("shape":[1,4,2,8]), ~s("shape":[1,4,2,99999999999]), ~r/invalid value/},
            {~s("name":"tokens","shape":[1,4]), ~s("name":"tokens","shape":[-1,4]), ~r/size -1/},
            {~s("name":"tokens","shape":[1,4]), ~s("name":"tokens","shape":[2147483647,2147483647]), ~r/memory limit/},
            {~s("name":"tokens"), ~s("name":null), ~r/lacks its name/},
            {~s("name":"best"), ~s("name":null), ~r/some outputs have names/},
            {~s("name":"best","shape":[1,4]), ~s("name":"best","shape":[1,5]), ~r/output 1 is described otherwise/},
            {~s("inputs":[14,4]), ~s("inputs":[14,400]), ~r/takes value 400/},
            {~s("inputs":[14,4]), ~s("inputs":[14,-4]), ~r/invalid value: integer `-4`/},
            {~s("inputs":[14,4],"outputs":1), ~s("inputs":[14,4],"outputs":18446744073709551615), ~r/more than/},
            {~s("inputs":[14,4],"outputs":1), ~s("inputs":[14,4],"outputs":2), ~r/has 1 outputs, the program says 2/},
            {~s("blocks":[), ~s("blocks":[{"inputs":0,"instructions":[],"outputs":[]},), ~r/a block stands nowhere/},
            {~s("blocks":[{"inputs":6), ~s("blocks":[{"inputs":9007199254740993), ~r/values are more than/},
            {~s("p.safetensors"), ~s("../p.safetensors"), ~r/is not the name of a file beside it/},
            {~s("p.safetensors"), ~s("/etc/passwd"), ~r/is not the name of a file beside it/},
            {~s("p.safetensors"), ~s(".."), ~r/is not the name of a file beside it/},
            {~s("p.safetensors"), ~s("absent.safetensors"), ~r/absent.safetensors: No such file/},
            {~s(,"tensors":"p.safetensors"), "", ~r/no file is named for them/},
            {~s("name":"constant.0"), ~s("name":"constant.9"), ~r/no array named "constant.9"/},
            {~s("name":"constant.0","shape":[32,16]), ~s("name":"constant.0","shape":[16,32]),
             ~r/another shape or type/},
            {~s("name":"constant.1","shape":[16]), ~s("name":"constant.1","shape":[17]), ~r/has not the bytes/},
            {~s("name":"constant.1","shape":[16]), ~s("name":"constant.1","shape":[2147483647,2147483647]),
             ~r/has not the bytes/},
            {~s("data":"), ~s("data":"*), ~r/not in base64/},
            {~s(]}]}), ~s(]}]} x), ~r/trailing characters/}
          ] do
        assert String.contains?(original, from), "#{from} is not in the file"
        Programs.forge(path, String.replace(original, from, to, global: false))
        refused.(pattern)
      end

      Programs.forge(path, String.duplicate("[", 200_000))
      refused.(~r/does not hold a program/)
    end

    test "load/2 refuses a file with other constants beside it", %{path: path, refused: refused, tmp_dir: dir} do
      tensors = Path.join(dir, "p.safetensors")
      original = File.read!(tensors)
      size = byte_size(original)
      <<start::binary-size(size - 1), last>> = original
      File.write!(tensors, <<start::binary, Bitwise.bxor(last, 1)>>)
      refused.(~r/p.safetensors: "constant.\d" is not what the program .*p.emlx was saved with: its digest is/)
      File.write!(tensors, start)
      refused.(~r/p.safetensors: the header describes/)
      Safetensors.save(tensors, %{"other" => Ops.zeros({3}, :f32)})
      refused.(~r/has no array named/)
      File.rm!(tensors)
      refused.(~r/p.safetensors: No such file/)
      File.write!(tensors, original)
      assert %Program{} = Program.load(path)
    end
  end
end
