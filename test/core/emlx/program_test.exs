defmodule EMLX.ProgramTest do
  use ExUnit.Case, async: true

  import Bitwise, only: [<<<: 2]

  alias EMLX.{Array, Error, Ops, Program, Queue}

  doctest EMLX.Program

  defp scalar(number, dtype \\ :s32), do: Array.scalar(number, dtype)
  defp values(arrays), do: Enum.map(arrays, &Array.to_list/1)

  defp constant(value, dtype \\ :s32), do: {{:constant, %{value: value, dtype: dtype}}, [], 1}

  # A loop over {i, sum} up to n: i + 1, sum + i.
  defp count_to do
    condition = {3, [{:less, [0, 2], 1}], [3]}
    body = {3, [constant(1), {:add, [0, 3], 1}, {:add, [1, 0], 1}], [4, 5]}
    {:while, %{condition: condition, body: body}}
  end

  describe "inputs" do
    test "the inputs of a program are checked by name, shape and type" do
      program = Program.new([{"x", [2], :f32}, {"y", [], :s32}], [{:multiply, [0, 1], 1}], [2])
      x = Array.from_list([1.0, 2.0], :f32)
      assert values(Program.run(program, [x, scalar(3)])) == [[3.0, 6.0]]
      assert values(Program.run(program, %{"x" => x, "y" => scalar(3)})) == [[3.0, 6.0]]

      assert_raise Error, ~r/input "x" is s32, the program takes f32\[2\]/, fn ->
        Program.run(program, [scalar(1), scalar(3)])
      end

      assert_raise Error, ~r/input "y" is f32\[2\], the program takes s32$/, fn -> Program.run(program, [x, x]) end
      assert_raise Error, ~r/takes 2 inputs, got 1/, fn -> Program.run(program, [x]) end
      assert_raise ArgumentError, ~r/no array for input "y"/, fn -> Program.run(program, %{"x" => x}) end

      assert_raise ArgumentError, ~r/no input is named "z"/, fn ->
        Program.run(program, %{"x" => x, "y" => x, "z" => x})
      end

      assert_raise ArgumentError, ~r/have no names/, fn -> Program.run(Program.new(1, [], [0]), %{"x" => x}) end
      assert_raise ArgumentError, ~r/expected an EMLX.Array, got: 1/, fn -> Program.run(program, [x, 1]) end
    end

    test "an input may be unused, an output, or several outputs" do
      program = Program.new(3, [], [2, 0, 0])
      assert values(Program.run(program, [scalar(1), scalar(2), scalar(3)])) == [3, 1, 1]
      assert Program.run(Program.new(1, [{:abs, [0], 1}], []), [scalar(1)]) == []
    end

    test "constants are numbered after the inputs, and several programs may share them" do
      table = Array.from_list([10, 20, 30], :s32)
      take = {{:take, %{axis: 0}}, [1, 0], 1}
      programs = for _ <- 1..2, do: Program.new(1, [take], [2], constants: [table])
      for program <- programs, do: assert(values(Program.run(program, [scalar(1)])) == [20])
      assert_raise Error, fn -> Program.new(1, [take], [2], constants: []) end
    end
  end

  test "names of outputs that are no strings are refused" do
    # Without NimbleOptions, the native library refuses them.
    error = if EMLX.Options.types?(), do: ArgumentError, else: Error
    assert_raise error, fn -> Program.new(1, [], [0], output_names: [:a]) end
  end

  test "Program.new refuses terms that are no programs" do
    for bad <- [
          fn -> Program.new(-1, [], []) end,
          fn -> Program.new(:one, [], []) end,
          fn -> Program.new(1 <<< 62, [], []) end,
          fn -> Program.new([{"x", [-1], :f32}], [], []) end,
          fn -> Program.new([{"x", [1], :f99}], [], []) end,
          fn -> Program.new([{"x", [1], :f32}, {"x", [1], :f32}], [], []) end,
          fn -> Program.new(1, [:abs], []) end,
          fn -> Program.new(1, [{:abs, [0]}], []) end,
          fn -> Program.new(1, [{:abs, [0], 1 <<< 62}], []) end,
          fn -> Program.new(1, [{:abs, [0], -1}], []) end,
          fn -> Program.new(1, [{:abs, [0 | 1], 1}], []) end,
          fn -> Program.new(1, [{:abs, [0], 1} | :x], []) end,
          fn -> Program.new(1, [{:abs, [0], 1, :label}], []) end,
          fn -> Program.new(1, [{:abs, [-1], 1}], []) end,
          fn -> Program.new(1, [{{:if, %{}}, [0], 1}], []) end,
          fn -> Program.new(1, [{{:if, :nothing}, [0], 1}], []) end,
          fn -> Program.new(1, [{{:if, %{then: {0, [], []}, else: 1}}, [0], 0}], []) end,
          fn -> Program.new(1, [{{:while, %{condition: {1, [], [0]}}}, [0], 1}], []) end,
          fn -> Program.new(1, [{{:call, %{id: -1, outputs: []}}, [0], 0}], []) end,
          fn -> Program.new(1, [{{:call, %{id: 0, outputs: [{[1], :f32}]}}, [0], 0}], []) end,
          fn -> Program.new(1, [], [0], output_names: ["a", "b"]) end
        ] do
      assert %Error{op: op} = assert_raise(Error, bad)
      assert op =~ ~r/program|instruction/
    end

    deep = fn deep, n ->
      inside = if n == 0, do: [], else: [deep.(deep, n - 1)]
      {{:if, %{then: {0, inside, []}, else: {0, [], []}}}, [0], 0}
    end

    assert_raise Error, ~r/more than 32 deep/, fn -> Program.new(1, [deep.(deep, 100)], []) end
    nested = Enum.reduce(1..200_000, [], fn _, inner -> [inner] end)
    assert_raise Error, fn -> Program.new(1, [{{:sum, %{axes: nested, keepdims: false}}, [0], 1}], []) end
  end

  describe "if" do
    test "an if runs its then branch for a predicate other than zero, of any type, else its else branch" do
      branches = {:if, %{then: {1, [{:negative, [0], 1}], [1]}, else: {1, [], [0]}}}
      program = Program.new(2, [{branches, [0, 1], 1}], [2])

      for {dtype, yes, no} <- [
            {:bool, [1], [0]},
            {:u8, [1, 255], [0]},
            {:s64, [-1, 4_294_967_296], [0]},
            {:f16, [0.5], [0.0, -0.0]},
            {:bf16, [0.5], [0.0, -0.0]},
            {:f32, [1.0e-40, :nan, :neg_infinity], [0.0, -0.0]},
            {:f64, [1.0e-300], [0.0, -0.0]},
            {:c64, [{0.0, 1.0}], [{0.0, -0.0}]}
          ] do
        for number <- yes, do: assert(values(Program.run(program, [scalar(number, dtype), scalar(5)])) == [-5])
        for number <- no, do: assert(values(Program.run(program, [scalar(number, dtype), scalar(5)])) == [5])
      end
    end

    test "an if computes only the branch that is taken" do
      then = {1, [{:inv, [0], 1}], [1]}
      program = Program.new(2, [{{:if, %{then: then, else: {1, [], [0]}}}, [0, 1], 1}], [2])
      singular = Ops.zeros({2, 2}, :f32)
      assert [[[a, _], _]] = values(Program.run(program, [scalar(0), singular]))
      assert a == 0.0
      [bad] = Program.run(program, [scalar(1), singular])
      assert_raise Error, ~r/Inverse/, fn -> Array.to_list(bad) end
    end

    test "an if may have several outputs, which later instructions use" do
      branches = {:if, %{then: {2, [{:add, [0, 1], 1}], [2, 0]}, else: {2, [], [1, 1]}}}
      program = Program.new(3, [{branches, [0, 1, 2], 2}, {:multiply, [3, 4], 1}, {:add, [5, 1], 1}], [6, 3])
      assert values(Program.run(program, [scalar(1), scalar(2), scalar(3)])) == [5 * 2 + 2, 5]
      assert values(Program.run(program, [scalar(0), scalar(2), scalar(3)])) == [3 * 3 + 2, 3]
    end

    test "an if refuses a predicate that is no scalar" do
      program = Program.new(1, [{{:if, %{then: {0, [], []}, else: {0, [], []}}}, [0], 0}], [])

      assert_raise Error, ~r/instruction 0, if: the predicate has shape \[2\]/, fn ->
        Program.run(program, [Ops.ones({2}, :bool)])
      end

      assert Program.run(program, [Ops.ones({1, 1}, :bool)]) == []
    end
  end

  describe "while" do
    test "a while runs its body as long as its condition holds, with captured values" do
      program = Program.new(3, [{count_to(), [0, 1, 2], 2}], [3, 4])
      run = fn n -> values(Program.run(program, [scalar(0), scalar(0), scalar(n)])) end
      assert run.(0) == [0, 0]
      assert run.(1) == [1, 0]
      assert run.(100) == [100, 4950]
    end

    test "a while may be inside loops and branches, and they inside it" do
      # For i in 0..n-1: total + (if i is odd: the sum of 0..i-1, else i).
      odd = [constant(1), {:bitwise_and, [0, 3], 1}]
      inner = {1, [constant(0), {count_to(), [1, 1, 0], 2}], [3]}
      body_if = {{:if, %{then: inner, else: {1, [], [0]}}}, [4, 0], 1}
      body = {3, odd ++ [body_if, {:add, [1, 5], 1}, {:add, [0, 3], 1}], [7, 6]}
      outer = {{:while, %{condition: {3, [{:less, [0, 2], 1}], [3]}, body: body}}, [0, 1, 2], 2}
      program = Program.new(3, [outer], [4])
      expected = for i <- 0..9, do: if(rem(i, 2) == 1, do: div(i * (i - 1), 2), else: i)
      assert values(Program.run(program, [scalar(0), scalar(0), scalar(10)])) == [Enum.sum(expected)]
    end

    test "a while may have control flow in its condition" do
      # i < limit, where the limit comes from a branch.
      limit = {{:if, %{then: {2, [], [0]}, else: {2, [], [1]}}}, [1, 2, 3], 1}
      condition = {4, [limit, {:less, [0, 4], 1}], [5]}
      body = {4, [constant(1), {:add, [0, 4], 1}], [5]}
      program = Program.new(4, [{{:while, %{condition: condition, body: body}}, [0, 1, 2, 3], 1}], [4])
      assert values(Program.run(program, [scalar(0), scalar(1), scalar(3), scalar(9)])) == [3]
      assert values(Program.run(program, [scalar(0), scalar(0), scalar(3), scalar(9)])) == [9]
    end

    test "a while may swap values of its state and repeat them" do
      body = {3, [constant(1), {:subtract, [2, 3], 1}], [1, 0, 4]}
      loop = {{:while, %{condition: {3, [], [2]}, body: body}}, [0, 1, 2], 3}
      program = Program.new(3, [loop], [3, 4, 5, 0])
      assert values(Program.run(program, [scalar(7), scalar(8), scalar(3)])) == [8, 7, 0, 7]

      same = {{:while, %{condition: {2, [], [0]}, body: {2, [], [1, 1]}}}, [0, 0], 2}
      assert values(Program.run(Program.new(1, [same], [1, 2]), [scalar(0)])) == [0, 0]
    end

    test "a while refuses a body that changes the state's shapes or types" do
      grow = {1, [{{:concatenate, %{axis: 0}}, [0, 0], 1}], [1]}
      always = {1, [constant(1)], [1]}
      program = Program.new(1, [{{:while, %{condition: always, body: grow}}, [0], 1}], [1])

      assert_raise Error, ~r/instruction 0, while.*value 0 of the state is f32\[2\] and becomes f32\[4\]/, fn ->
        Program.run(program, [Ops.ones({2}, :f32)])
      end
    end

    test "the error of a while names the instruction inside it that does not fit" do
      body = {2, [{:matmul, [0, 1], 1}], [2]}
      program = Program.new(2, [{{:while, %{condition: {2, [constant(1)], [2]}, body: body}}, [0, 1], 1}], [2])

      assert_raise Error, ~r/instruction 0, while, body, instruction 0, matmul: .*f32\[2\]\[3\], f32\[2\]\[3\]/s, fn ->
        Program.run(program, [Ops.ones({2, 3}, :f32), Ops.ones({2, 3}, :f32)])
      end
    end
  end

  describe "call" do
    defp asks(outputs, more \\ []) do
      Program.new(1, [{{:call, %{id: 7, outputs: outputs}}, [0], length(outputs)} | more], [1])
    end

    test "a call hands its values to the calling process and takes its answer" do
      program = asks([{[2], :f32}], [{:add, [1, 0], 1}])
      me = self()

      double = fn [x] ->
        assert self() == me
        [Ops.multiply(x, 10)]
      end

      x = Array.from_list([1.0, 2.0], :f32)
      assert values(Program.run(program, [x], calls: %{7 => double})) == [[10.0, 20.0]]
    end

    test "a call in a loop is made in every step" do
      call = {{:call, %{id: 0, outputs: [{[], :s32}]}}, [0], 1}
      loop = {:while, %{condition: {2, [{:less, [0, 1], 1}], [2]}, body: {2, [call], [2]}}}
      program = Program.new(2, [{loop, [0, 1], 1}], [2])
      {:ok, seen} = Agent.start_link(fn -> [] end)

      next = fn [i] ->
        value = Array.to_list(i)
        Agent.update(seen, &[value | &1])
        [Ops.add(i, 3)]
      end

      assert values(Program.run(program, [scalar(0), scalar(10)], calls: %{0 => next})) == [12]
      assert Agent.get(seen, &Enum.reverse/1) == [0, 3, 6, 9]
    end

    test "a call may return nothing, and may run programs on the same queue" do
      queue = Queue.start()
      program = Program.new(1, [{{:call, %{id: 1, outputs: []}}, [0, 0], 0}, {:negative, [0], 1}], [1])
      count = Program.new(3, [{count_to(), [0, 1, 2], 2}], [4])

      look = fn [_, x] ->
        assert values(Program.run(count, [scalar(0), scalar(0), x], queue: queue)) == [45]
        []
      end

      assert values(Program.run(program, [scalar(10)], calls: %{1 => look}, queue: queue)) == [-10]
    end

    test "a run refuses to start without a function for each call" do
      program = asks([{[], :s32}])

      for calls <- [%{}, %{6 => &Function.identity/1}, %{7 => fn -> [] end}, %{7 => nil}] do
        assert_raise ArgumentError, ~r/calls function 7/, fn -> Program.run(program, [scalar(1)], calls: calls) end
      end
    end

    test "a call's answer is checked against the shapes and types that the program takes" do
      program = asks([{[2], :f32}])
      run = fn answer -> Program.run(program, [scalar(1)], calls: %{7 => fn _ -> answer end}) end
      x = Array.from_list([1.0, 2.0], :f32)
      assert values(run.([x])) == [[1.0, 2.0]]

      assert_raise Error, ~r/instruction 0, call 7: the function gave \[s32\], the program takes \[f32\[2\]\]/, fn ->
        run.([scalar(1)])
      end

      assert_raise Error, ~r/the function gave \[\]/, fn -> run.([]) end
      assert_raise ArgumentError, ~r/expected an EMLX.Array, got: :x/, fn -> run.([:x]) end
      assert_raise ArgumentError, ~r/gives a list of arrays, got :x/, fn -> run.(:x) end
    end
  end

  describe "inspect" do
    test "inspect shows blocks, calls, several outputs and absent inputs" do
      branch = {:if, %{then: {1, [{:negative, [0], 1}], [1]}, else: {1, [], [0]}}}

      instructions = [
        {count_to(), [1, 1, 2], 2, "count"},
        {branch, [3, 0], 1},
        {{:call, %{id: 3, outputs: []}}, [4], 0},
        {:clip, [5, nil, 0], 1},
        {:divmod, [1, 2], 2}
      ]

      program = Program.new([{"x", [2], :f32}, {"n", [], :s32}], instructions, [6, 2], constants: [scalar(9)])

      assert Program.inspect(program) == """
             inputs
               %0 = "x" f32[2]
               %1 = "n" s32
             constants
               %c0 s32
             instructions
               %3, %4 = while(%1, %1, %c0) s32, s32 [count]
                 condition(%0 s32, %1 s32, %2 s32)
                   %3 = less(%0, %2) bool
                   give %3
                 body(%0 s32, %1 s32, %2 s32)
                   %3 = constant(dtype: s32, value: 1) s32
                   %4 = add(%0, %3) s32
                   %5 = add(%1, %0) s32
                   give %4, %5
               %5 = if(%3, %0) f32[2]
                 then(%0 f32[2])
                   %1 = negative(%0) f32[2]
                   give %1
                 else(%0 f32[2])
                   give %0
               call(%4, id: 3)
               %6 = clip(%5, nil, %0) f32[2]
               %7, %8 = divmod(%1, %c0) s32, s32
             outputs
               %6 f32[2]
               %c0 s32
             """
    end

    test "inspect shows programs without types, and where one does not fit" do
      assert Program.inspect(Program.new(1, [{:abs, [0], 1}], [1], fuse: true)) == """
             inputs
               %0 any
             instructions, fused
               %1 = abs(%0)
             outputs
               %1
             """

      wrong = Program.new([{"x", [2, 3], :f32}], [{:matmul, [0, 0], 1}], [1])
      assert Program.inspect(wrong) =~ ~r/%1 = matmul\(%0, %0\)\n.*does not fit: instruction 0, matmul: /s
    end
  end
end
