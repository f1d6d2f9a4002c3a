defmodule EMLX.ProgramFuseTest do
  # Programs whose segments MLX compiles. On the CPU, each first run waits for g++: tests that compile much are tagged
  # :slow.
  use ExUnit.Case, async: false

  alias EMLX.{Array, Error, Ops, Poll, Program, Programs, Queue}

  @moduletag timeout: 300_000

  # Tests with this tag run on the device under test, on the process's queue; the others run on the CPU.
  setup context do
    if context[:device_under_test], do: Process.put(Queue, Queue.start(device: EMLX.Golden.device()))
    :ok
  end

  # x * y + y, and its sigmoid through a loop of n steps.
  defp instructions do
    one = {{:constant, %{value: 1, dtype: :s32}}, [], 1}
    body = {3, [one, {:subtract, [0, 3], 1}, {:multiply, [1, 2], 1}, {:add, [5, 2], 1}, {:sigmoid, [6], 1}], [4, 7]}
    loop = {{:while, %{condition: {3, [], [0]}, body: body}}, [2, 4, 1], 2}
    [{:multiply, [0, 1], 1}, {:add, [3, 1], 1}, loop, {:tanh, [6], 1}, {:square, [7], 1}]
  end

  defp inputs(dtype) do
    x = Ops.iota({64}, dtype: :f32) |> Ops.divide(40) |> Ops.subtract(0.8) |> Ops.astype(dtype)
    [x, Ops.cos(x), Array.scalar(3, :s32)]
  end

  defp list(array), do: array |> Ops.astype(:f32) |> Array.to_list()

  @tag :slow
  @tag :device_under_test
  test "a fused program computes what the program computes unfused, within the type's tolerance" do
    for {dtype, tolerance} <- [f32: 1.0e-6, bf16: 2.0e-2, f16: 2.0e-3] do
      [plain, fused] =
        for fuse <- [false, true] do
          program = Program.new(3, instructions(), [8, 4, 7], fuse: fuse)
          Enum.map(Program.run(program, inputs(dtype)), &{Array.dtype(&1), list(&1)})
        end

      for {{^dtype, a}, {^dtype, b}} <- Enum.zip(plain, fused),
          {a, b} <- Enum.zip(a, b),
          do: assert_in_delta(a, b, tolerance)
    end
  end

  @tag :slow
  @tag :device_under_test
  test "a fused program is traced again for other shapes, and keeps constants, branches and calls" do
    branch = {:if, %{then: {2, [{:add, [0, 1], 1}, {:square, [2], 1}], [3]}, else: {2, [], [0]}}}

    instructions = [
      {:add, [0, 1], 1},
      {:abs, [2], 1},
      {branch, [3, 3, 1], 1},
      {{:call, %{id: 0, outputs: [{[], :f32}]}}, [4], 1},
      {:multiply, [5, 4], 1},
      {:negative, [6], 1}
    ]

    [ten] = constants = [Array.scalar(10.0, :f32)]
    program = Program.new(1, instructions, [7, 2], constants: constants, fuse: true)
    call = %{0 => fn [x] -> [Ops.sum(x)] end}

    for shape <- [{}, {1}] do
      [y, x] = Program.run(program, [Ops.ones(shape, :f32)], calls: call)
      assert {Array.shape(y), Array.shape(x)} == {shape, shape}
      assert Array.to_list(Ops.sum(y)) == -(21.0 ** 4)
      assert Array.to_list(Ops.sum(Ops.subtract(x, ten))) == 1.0
    end

    # With two elements, the predicate is no scalar.
    assert_raise Error, ~r/instruction 2, if/, fn -> Program.run(program, [Ops.ones({2}, :f32)], calls: call) end
  end

  test "the error of a fused program names the instruction that does not fit" do
    program = Program.new(1, [{:abs, [0], 1}, {:matmul, [1, 1], 1, "Layer"}, {:abs, [2], 1}], [3], fuse: true)

    assert_raise Error, ~r/fused, instruction 1, matmul \[Layer\]/, fn ->
      Program.run(program, [Ops.ones({2, 3}, :f32)])
    end

    assert [_] = Program.run(program, [Ops.ones({2, 2}, :f32)])
  end

  test "a late failure in a fused program reaches the readers of its outputs" do
    program = Program.new(1, [{:inv, [0], 1}, {:square, [1], 1}], [2], fuse: true)
    [good] = Program.run(program, [Ops.eye(2)])
    assert Array.to_list(good) == [[1.0, 0.0], [0.0, 1.0]]
    assert_raise Error, ~r/Inverse/, fn -> Array.to_list(hd(Program.run(program, [Ops.zeros({2, 2}, :f32)]))) end
    assert Array.to_list(hd(Program.run(program, [Ops.eye(2)]))) == [[1.0, 0.0], [0.0, 1.0]]
  end

  @tag :tmp_dir
  test "a fused program is fused again when it is loaded, and computes the same bits", %{tmp_dir: dir} do
    path = Path.join(dir, "fused.emlx")
    program = Program.new(3, instructions(), [8], fuse: true)
    Program.save(program, path)
    loaded = Program.load(path)
    refute loaded.straight?
    bits = fn program -> Enum.map(Program.run(program, inputs(:f32)), &Array.to_binary/1) end
    assert bits.(loaded) == bits.(program)
  end

  @tag :slow
  @tag :device_under_test
  test "fused models compute the same as unfused ones", %{} do
    for name <- [:attention, :loop] do
      {program, inputs} = Programs.all()[name]
      {fused, ^inputs} = {Programs.fused(program), inputs}

      for {a, b} <- Enum.zip(Program.run(program, inputs), Program.run(fused, inputs)) do
        assert {Array.shape(a), Array.dtype(a)} == {Array.shape(b), Array.dtype(b)}
        assert Array.to_list(Ops.allclose(a, b, rtol: 1.0e-5, atol: 1.0e-6))
      end
    end
  end

  @tag :slow
  @tag :timing
  test "100 runs of fused programs, each on its own queue, leak no memory" do
    run = fn ->
      program = Program.new(3, instructions(), [8], fuse: true)
      queue = Queue.start()
      for _ <- 1..3, do: Enum.each(Program.run(program, inputs(:f32), queue: queue), &Array.to_binary/1)
      Enum.each(Program.run(program, inputs(:f32)), &Array.to_binary/1)
    end

    Task.await(Task.async(run), 60_000)
    before = Poll.settled_memory()
    for _ <- 1..100, do: Task.await(Task.async(run), 60_000)
    assert Poll.until(fn -> Poll.settled_memory() <= before + 65_536 end)
  end

  describe "without a compiler" do
    @tag :slow
    @tag :tmp_dir
    test "without a C++ compiler the error of a program that is fused on the CPU says what to do", %{tmp_dir: dir} do
      # Without g++, and with one that only prints its version.
      for {script, pattern} <- [
            {"exit 127", ~r/invalid_argument: fused: fusing on the CPU takes the C\+\+ compiler g\+\+.*fuse: false/s},
            {~s(if [ "$1" = --version ]; then exit 0; else echo broken; exit 1; fi), ~r/mlx: .*broken.*fuse: false/s}
          ] do
        File.write!(Path.join(dir, "g++"), "#!/bin/sh\n#{script}\n")
        File.chmod!(Path.join(dir, "g++"), 0o755)

        code = """
        x = EMLX.Array.scalar(2.0, :f32)
        steps = [{:floor_divide, [0, 0], 1}, {:square, [1], 1}]
        run = fn fuse -> EMLX.Program.run(EMLX.Program.new(1, steps, [2], fuse: fuse), [x]) end
        try do
          EMLX.eval(run.(true))
        rescue
          error in EMLX.Error -> IO.puts("\#{error.kind}: \#{Exception.message(error)}")
        end
        IO.inspect(EMLX.Array.to_list(hd(run.(false))) == 1.0)
        """

        paths = Enum.flat_map(:code.get_path(), &["-pa", to_string(&1)])
        env = [{"PATH", dir <> ":" <> System.get_env("PATH")}, {"TMPDIR", dir}]
        # The application sets the signal handler that MLX's compiler needs.
        start = ["-e", "{:ok, _} = Application.ensure_all_started(:emlx)"]
        {text, 0} = System.cmd("elixir", paths ++ start ++ ["-e", code], env: env, stderr_to_stdout: true)
        assert text =~ pattern
        assert text =~ ~r/true\n$/
      end
    end
  end
end
