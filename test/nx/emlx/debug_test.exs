defmodule EMLX.NxDebugTest do
  # Not async: the settings apply to the whole VM.
  use EMLX.NxCase, async: false

  import EMLX.DebugSettings
  import Nx.Defn

  setup do
    {_, device} = backend()
    %{opts: [compiler: EMLX] ++ device}
  end

  def scores(x, y), do: x |> Nx.add(1) |> Nx.dot(y) |> Nx.negate()
  def logs(x), do: x |> Nx.multiply(2) |> Nx.log() |> Nx.add(1)

  defn stepwise(x) do
    {x, _} =
      while {x, i = 0}, i < 5 do
        {Nx.log(x) + 1, i + 1}
      end

    x
  end

  defn branch(x) do
    if Nx.sum(x) > 0, do: Nx.log(x), else: Nx.sqrt(x)
  end

  defn(lookup(x, i), do: Nx.exp(x) |> Nx.take(i) |> Nx.add(1))

  defn lookups(x, i) do
    {sum, _, _, _} =
      while {sum = 0.0, k = 0, x, i}, k < 4 do
        {sum + Nx.take(x, i + k), k + 1, x, i}
      end

    sum
  end

  describe "detect_non_finites" do
    setup do: turn_on(:detect_non_finites)

    test "detect_non_finites names Nx's function of an eager operation" do
      assert message(fn -> Nx.log(Nx.tensor([1.0, 0.0])) end) =~
               "log produced NaN or Inf: element {1} of its result f32[2] is -Inf"

      nan = Nx.tensor([:nan, 1.0, 1.0])

      assert message(fn -> Nx.dot(nan, Nx.tensor([1.0, 1.0, 1.0])) end) =~
               "dot produced NaN or Inf: element {0, 0} of the result of matmul, f32[1][1] is NaN"

      input = Nx.tensor([[[[:nan, 1.0, 1.0, 1.0]]]])
      assert message(fn -> Nx.conv(input, Nx.tensor([[[[1.0, 1.0]]]])) end) =~ "conv produced NaN or Inf"

      assert message(fn -> EMLX.Fast.rms_norm(Nx.tensor([[:nan, 1.0]]), Nx.tensor([1.0, 1.0])) end) =~
               "rms_norm produced"

      assert message(fn -> Nx.pow(Nx.tensor(1.0e30), 2) end) =~
               "pow produced NaN or Inf: element {} of the result of power, f32 is Inf"
    end

    test "detect_non_finites names the compiled function and the instruction", %{opts: opts} do
      assert message(fn -> jit_apply(&__MODULE__.logs/1, [Nx.tensor([1.0, 0.0])], opts) end) =~
               "log produced NaN or Inf: element {1} of its result f32[2] is -Inf, " <>
                 "in &EMLX.NxDebugTest.logs/1, instruction 1, log [log] (config"

      words = message(fn -> jit_apply(&__MODULE__.scores/2, [Nx.tensor([[1.0]]), Nx.tensor([[:infinity]])], opts) end)

      assert words =~
               ~r/^dot produced NaN or Inf: element \{0, 0\} of the result of \w+, f32\[1\]\[1\] is Inf, in &EMLX/

      assert words =~ ~r/, in &EMLX.NxDebugTest.scores\/2, instruction \d, \w+ \[dot\]/
    end

    test "instructions have the numbers that EMLX.Program.inspect/1 shows", %{opts: opts} do
      {_, device} = backend()
      Application.delete_env(:emlx, :detect_non_finites)
      shown = EMLX.compile_to_program(&__MODULE__.logs/1, [Nx.template({2}, :f32)], [merge: false] ++ device)
      lines = shown |> EMLX.Program.inspect() |> String.split("\n") |> Enum.filter(&(&1 =~ " = "))
      log = Enum.find_index(Enum.filter(lines, &(&1 =~ ~r/multiply|log|add/)), &(&1 =~ "log"))
      Application.put_env(:emlx, :detect_non_finites, true)

      assert message(fn -> jit_apply(&__MODULE__.logs/1, [Nx.tensor([0.0, 1.0])], opts) end) =~
               "instruction #{log}, log [log]"
    end

    test "detect_non_finites checks instructions in loops and branches", %{opts: opts} do
      # 1, 1, 1, …
      assert_same(jit_apply(&__MODULE__.stepwise/1, [Nx.tensor([1.0])], opts), Nx.tensor([1.0]))
      words = message(fn -> jit_apply(&__MODULE__.stepwise/1, [Nx.tensor([1.0, 0.5])], opts) end)

      assert words =~
               ~r/^log produced NaN or Inf: element \{1\} .* is NaN, .* \d+, while, instruction \d+, log \[log\]/

      assert_same(jit_apply(&__MODULE__.branch/1, [Nx.tensor([1.0])], opts), Nx.tensor([0.0]))

      assert message(fn -> jit_apply(&__MODULE__.branch/1, [Nx.tensor([2.0, -1.0])], opts) end) =~
               ~r/^log .*, if, instruction 0, log \[log\]/

      assert message(fn -> jit_apply(&__MODULE__.branch/1, [Nx.tensor([-2.0, 1.0])], opts) end) =~
               ~r/^sqrt .*, if, instruction 0, sqrt \[sqrt\]/
    end

    test "detect_non_finites applies to functions compiled before and after the setting", %{opts: opts} do
      x = Nx.tensor([0.0])
      template = [Nx.template({1}, :f32)]
      checked = Nx.Defn.compile(&__MODULE__.logs/1, template, opts)
      jitted = Nx.Defn.jit(&__MODULE__.logs/1, opts)
      for fun <- [checked, jitted], do: assert_raise(ArgumentError, fn -> fun.(x) end)
      Application.delete_env(:emlx, :detect_non_finites)
      plain = Nx.Defn.compile(&__MODULE__.logs/1, template, opts)
      for fun <- [checked, plain, jitted], do: assert(Nx.to_flat_list(fun.(x)) == [:neg_infinity])
      Application.put_env(:emlx, :detect_non_finites, true)
      for fun <- [checked, plain, jitted], do: assert_raise(ArgumentError, fn -> fun.(x) end)
    end

    test "detect_non_finites does not change results, hooks and runtime calls", %{opts: opts} do
      test = self()

      fun = fn x ->
        x = Nx.Defn.Kernel.hook(Nx.exp(x), &send(test, {:hook, Nx.to_flat_list(&1)}))
        doubled = Nx.runtime_call(x, x, [], fn x, _opts -> Nx.multiply(x, 2) end)
        {Nx.sum(doubled), Nx.argmax(x)}
      end

      {sum, index} = jit_apply(fun, [Nx.tensor([0.0, 0.0])], opts)
      assert {Nx.to_number(sum), Nx.to_number(index)} == {4.0, 0}
      assert_received {:hook, [1.0, 1.0]}
    end

    test "detect_non_finites does not change the results of random number generators", %{opts: opts} do
      for fun <- [&Nx.Random.uniform(&1, shape: {3}), &Nx.Random.normal(&1, shape: {3})] do
        {expected, _key} = exactly(fn -> fun.(Nx.Random.key(3)) end)
        {numbers, _key} = jit_apply(fun, [Nx.Random.key(3)], opts)
        assert_same(numbers, expected)
      end
    end
  end

  describe "enable_bounds_check" do
    setup do: turn_on(:enable_bounds_check)

    test "enable_bounds_check covers Nx's functions with indices, and refuses negative ones" do
      t = Nx.tensor([[1, 2, 3], [4, 5, 6]])

      for {call, words} <- [
            {&Nx.take(t, &1, axis: 1), "take takes index"},
            {&Nx.take_along_axis(t, Nx.reshape(&1, {1, 1}) |> Nx.broadcast({2, 1}), axis: 1),
             "take_along_axis takes index"},
            {&Nx.gather(t, Nx.stack([Nx.tensor(0), Nx.squeeze(&1)]) |> Nx.reshape({1, 2})), "gather takes index"},
            {&Nx.indexed_add(t, Nx.stack([Nx.tensor(0), Nx.squeeze(&1)]) |> Nx.reshape({1, 2}), Nx.tensor([1])),
             "indexed_add takes index"},
            {&Nx.indexed_put(t, Nx.reshape(&1, {1, 1}), Nx.tensor([[1, 1]]), axes: [1]), "indexed_put takes index"}
          ] do
        assert %Nx.Tensor{} = call.(Nx.tensor([2]))
        assert message(fn -> call.(Nx.tensor([3])) end) =~ words <> " 3"
        negative = message(fn -> call.(Nx.tensor([-1])) end)
        assert negative =~ words <> " -1"
        assert negative =~ "along axis 1 of shape {2, 3}, where 0 to 2 are possible"
      end
    end

    test "the error names the position of the index among the indices" do
      t = Nx.iota({4})

      assert message(fn -> Nx.take(t, Nx.tensor([[0, 1], [2, 9]])) end) =~
               "index out of bounds: take takes index 9 at {1, 1}"
    end

    test "enable_bounds_check names the compiled function and the instruction", %{opts: opts} do
      x = Nx.tensor([0.0, 1.0, 2.0])

      assert_same(
        jit_apply(&__MODULE__.lookup/2, [x, Nx.tensor([2])], opts),
        Nx.tensor([:math.exp(2) + 1]) |> Nx.as_type(:f32),
        rtol: 1.0e-5
      )

      words = message(fn -> jit_apply(&__MODULE__.lookup/2, [x, Nx.tensor([1, 3])], opts) end)

      assert words =~
               ~r/^index out of bounds: take takes index 3 at \{1\} of its indices, along axis 0 of shape \{3\}/

      assert words =~ ~r/possible, in &EMLX.NxDebugTest.lookup\/2, instruction \d, take \[Nx.Block.Take\]/

      # The third step has the first index out of bounds.
      words = message(fn -> jit_apply(&__MODULE__.lookups/2, [x, Nx.tensor(1)], opts) end)
      assert words =~ ~r/take takes index 3.*instruction \d+, while, instruction \d+, take/
    end

    test "enable_bounds_check applies to functions compiled before and after the setting", %{opts: opts} do
      arguments = [Nx.tensor([0.0, 1.0]), Nx.tensor([7])]
      fun = Nx.Defn.compile(&__MODULE__.lookup/2, Enum.map(arguments, &Nx.to_template/1), opts)
      assert_raise ArgumentError, fn -> apply(fun, arguments) end
      Application.delete_env(:emlx, :enable_bounds_check)
      assert %Nx.Tensor{} = apply(fun, arguments)
      assert %Nx.Tensor{} = Nx.take(hd(arguments), Nx.tensor([7]))
      Application.put_env(:emlx, :enable_bounds_check, true)
      assert_raise ArgumentError, fn -> apply(fun, arguments) end
      assert_raise ArgumentError, fn -> Nx.take(hd(arguments), Nx.tensor([7])) end
    end

    test "enable_bounds_check ignores slices, whose starts Nx clamps" do
      assert Nx.iota({4}) |> Nx.slice([Nx.tensor(9)], [2]) |> Nx.to_flat_list() == [2, 3]
    end
  end

  test "with both modes, the first problem is reported", %{opts: opts} do
    turn_on(:detect_non_finites)
    turn_on(:enable_bounds_check)
    x = Nx.tensor([0.0, 1000.0])

    assert message(fn -> jit_apply(&__MODULE__.lookup/2, [x, Nx.tensor([0])], opts) end) =~
             "exp produced NaN or Inf: element {1}"

    assert message(fn -> jit_apply(&__MODULE__.lookup/2, [Nx.tensor([0.0]), Nx.tensor([1])], opts) end) =~
             "take takes index 1"
  end

  test "programs of compile_to_program/3 are not checked", %{opts: opts} do
    turn_on(:detect_non_finites)
    program = EMLX.compile_to_program(&__MODULE__.logs/1, [Nx.template({1}, :f32)], Keyword.take(opts, [:device]))
    [result] = EMLX.Program.run(program, [EMLX.Backend.to_array(Nx.tensor([0.0]))])
    assert EMLX.Array.to_list(result) == [:neg_infinity]
  end
end
