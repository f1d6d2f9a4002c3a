defmodule EMLX.Compiler.MergeTest do
  # Loop-invariant code motion, and the merging of operations with merge: true. The results stay the same, and only the
  # intended operations are hoisted and merged.
  use EMLX.NxCase, async: true

  import Nx.Defn

  alias EMLX.{Array, Program}

  defp random(shape, seed, type \\ :f32) do
    {tensor, _} = Nx.Random.normal(Nx.Random.key(seed), 0.0, 0.5, shape: shape, type: type)
    tensor
  end

  # Returns the program's text, after checking that its results are the same with and without the options.
  defp text(fun, args, opts \\ [merge: true]) do
    compiled = fn opts ->
      Nx.Defn.jit_apply(fun, args, [compiler: EMLX, cache: false, device: EMLX.Golden.device()] ++ opts)
    end

    [plain, other] = for opts <- [[], opts], do: Nx.Defn.Composite.flatten_list([compiled.(opts)])

    for {a, b} <- Enum.zip(plain, other) do
      assert {a.type, a.shape} == {b.type, b.shape}
      assert_all_close(Nx.as_type(a, :f32), Nx.as_type(b, :f32))
    end

    program = args |> Enum.map(&Nx.to_template/1) |> then(&EMLX.compile_to_program(fun, &1, opts))
    assert opts[:merge] != true or Program.inspect(program) == Program.inspect(unmerged(fun, args))
    if opts[:merge], do: Program.explain(program, device: EMLX.Golden.device()), else: Program.inspect(program)
  end

  defp unmerged(fun, args), do: EMLX.compile_to_program(fun, Enum.map(args, &Nx.to_template/1), merge: false)

  defp assert_all_close(a, b), do: assert(Nx.to_number(Nx.all_close(a, b, rtol: 2.0e-2, atol: 1.0e-2)) == 1)

  # Counts an operation in the text of explain or inspect, inside of chains, too.
  defp count("plan" <> _ = text, op) do
    [_, chains] = Regex.run(~r/\nchains\n(.*)\ncompile\n/s, text)
    lists = Regex.scan(~r/node by node: (.*)/, text) ++ Regex.scan(~r/took .*instruction \d+: (.*)/, chains)

    Enum.sum(
      for [_, names] <- lists, name <- String.split(names, ", ") do
        case String.split(name, " ×") do
          [^op] -> 1
          [^op, times] -> String.to_integer(times)
          _ -> 0
        end
      end
    )
  end

  defp count(text, op), do: length(Regex.scan(~r/ = #{op}\(/, text))

  # ---- loops ----

  # Each step returns `w` unchanged.
  defn carried(x, w, n) do
    {x, _w, _n, _i} =
      while {x, w, n, i = 0}, i < n do
        {Nx.tanh(Nx.dot(x, Nx.transpose(w)) + Nx.sum(Nx.exp(w))), w, n, i + 1}
      end

    {x, w}
  end

  test "loop-invariant operations are hoisted, and invariant values leave the state" do
    text = text(&carried/3, [random({2, 3}, 1), random({3, 3}, 2), 4], merge: false)
    [before, loop] = String.split(text, "while(", parts: 2)
    for op <- ["transpose", "exp", "sum"], do: assert({op, count(before, op), count(loop, op)} == {op, 1, 0})
    assert count(loop, "matmul") == 1
    # The state is x and the counter.
    [_, body] = String.split(loop, "body(", parts: 2)
    assert [_, given] = Regex.run(~r/give (.*)/, body)
    assert length(String.split(given, ", ")) == 2
  end

  test "a loop without steps returns its initial state" do
    for n <- [0, -1], do: text(&carried/3, [random({2, 3}, 1), random({3, 3}, 2), n], [])
  end

  defn idle(x, n) do
    {x, _n} =
      while {x, n}, n > 10 do
        {x, n}
      end

    x
  end

  test "a loop whose whole state is invariant stays" do
    assert text(&idle/2, [random({2}, 1), 3], []) =~ "while("
  end

  defn inverting(x, w, n) do
    {x, _w, _n, _i} =
      while {x, w, n, i = 0}, i < n do
        {x + Nx.LinAlg.invert(w), w, n, i + 1}
      end

    x
  end

  test "operations that can fail late stay in the loop, which may not run" do
    singular = Nx.broadcast(0.0, {2, 2})
    run = &Nx.Defn.jit_apply(fn x, w, n -> inverting(x, w, n) end, &1, compiler: EMLX, cache: false)
    assert Nx.to_flat_list(run.([singular, singular, 0])) == [0.0, 0.0, 0.0, 0.0]
  end

  defn nested(x, w, n) do
    {x, _w, _n, _i} =
      while {x, w, n, i = 0}, i < n do
        {x, _w, _j} =
          while {x, w, j = 0}, j < 2 do
            {x * Nx.cos(w) + Nx.sum(w), w, j + 1}
          end

        {x, w, n, i + 1}
      end

    x
  end

  test "invariants of nested loops leave both loops" do
    text = text(&nested/3, [random({3}, 1), random({3}, 2), 3], [])
    [before, _loop] = String.split(text, "while(", parts: 2)
    assert {count(before, "cos"), count(before, "sum")} == {1, 1}
  end

  # The loop's counter is a float, so that the trip count is not known in advance (such a loop would not run ahead).
  defn asked(x, w, n) do
    {x, w, _n, _i} =
      while {x, w, n, i = 0.0}, i < n do
        {Nx.tanh(Nx.dot(x, Nx.transpose(w)) + Nx.sum(Nx.exp(w))), w, n, i + 1}
      end

    {x, w}
  end

  test "steps that run ahead compute the same results" do
    for n <- [0, 1, 5, 12], ahead <- [0, 3] do
      text(&asked/3, [random({2, 3}, 1), random({3, 3}, 2), n], merge: true, run_ahead: ahead)
    end
  end

  # ---- products ----

  defp silu(x), do: Nx.multiply(x, Nx.sigmoid(x))

  test "up to three products of one input become one operation" do
    fun = fn x, a, b, c, d -> {Nx.dot(x, a), Nx.dot(x, b), Nx.dot(x, c), Nx.dot(x, d)} end
    args = [random({1, 8}, 1) | for(i <- 2..5, do: random({8, 16}, i))]
    text = text(fun, args)
    assert {count(text, "products"), count(text, "matmul")} == {2, 0}
    assert text =~ "products, 3 of one input"
  end

  test "a product absorbs the norm before and the gate and sum after it" do
    fun = fn x, g, gate, up, down ->
      h = EMLX.Fast.rms_norm(x, g, eps: 1.0e-5)
      Nx.add(x, Nx.dot(Nx.multiply(silu(Nx.dot(h, gate)), Nx.dot(h, up)), down))
    end

    args = [random({1, 1, 8}, 1), random({8}, 2), random({8, 16}, 3), random({8, 16}, 4), random({16, 8}, 5)]

    for type <- [:f32, :bf16] do
      text = text(fun, Enum.map(args, &Nx.as_type(&1, type)))
      assert {count(text, "products"), text =~ ", gated"} == {2, true}
      for op <- ["matmul", "rms_norm", "sigmoid", "multiply", "add"], do: assert({op, count(text, op)} == {op, 0})
    end
  end

  test "values with other uses are not merged away" do
    [x, g, a, b] = [random({1, 8}, 1), random({8}, 2), random({8, 16}, 3), random({8, 16}, 4)]

    # The gate's product is a result, too; below, the norm is.
    text = text(fn x, a, b -> {Nx.dot(x, a), Nx.multiply(silu(Nx.dot(x, a)), Nx.dot(x, b))} end, [x, a, b])
    assert count(text, "sigmoid") == 1

    normed = fn x, g, a ->
      h = EMLX.Fast.rms_norm(x, g)
      {h, Nx.dot(h, a)}
    end

    text = text(normed, [x, g, a])
    assert count(text, "rms_norm") == 1

    # A sum of two products is merged into one of them.
    text = text(fn x, a, b -> Nx.add(Nx.dot(x, a), Nx.dot(x, b)) end, [x, a, b])
    assert {count(text, "products"), count(text, "add")} == {2, 0}

    # The second factor is the product of another input.
    text = text(fn x, y, a, b -> Nx.multiply(silu(Nx.dot(x, a)), Nx.dot(y, b)) end, [x, random({1, 8}, 9), a, b])
    refute text =~ ", gated"
  end

  test "operations on many rows, integers, f64 and other shapes are not merged" do
    for args <- [
          [random({65, 8}, 1), random({8, 16}, 2)],
          [Nx.iota({1, 8}), Nx.iota({8, 16})],
          [Nx.iota({2, 1, 8}, type: :f32), Nx.iota({2, 8, 16}, type: :f32)]
        ] do
      fun = if tuple_size(Nx.shape(hd(args))) == 3, do: &Nx.dot(&1, [2], [0], &2, [1], [0]), else: &Nx.dot/2
      assert args |> then(&text(fun, &1)) |> count("products") == 0
    end
  end

  test "a matrix that is computed after the first product is not used before it" do
    fun = fn x, a ->
      y = Nx.dot(x, a)
      {y, Nx.dot(x, Nx.multiply(a, Nx.sum(y)))}
    end

    text = text(fun, [random({1, 8}, 1), random({8, 16}, 2)])
    assert count(text, "products") + count(text, "matmul") == 2
  end

  test "products inside branches and loops are merged, too" do
    text = text(&branching/3, [random({1, 8}, 1), random({8, 8}, 2), 3])
    assert count(text, "products") >= 2
  end

  defn branching(x, a, n) do
    {x, _a, _n, _i} =
      while {x, a, n, i = 0}, i < n do
        x = if Nx.remainder(i, 2) == 0, do: Nx.dot(x, a) + x, else: Nx.dot(x, a * 2)
        {x, a, n, i + 1}
      end

    x
  end

  test "options of wrong types are refused" do
    run = fn opts -> Nx.Defn.jit_apply(&Nx.add/2, [1, 2], [compiler: EMLX] ++ opts) end
    assert_raise ArgumentError, ~r/:merge of compiler: EMLX is true, false or nil/, fn -> run.(merge: 1) end

    assert_raise ArgumentError, ~r/:run_ahead of compiler: EMLX is nil or a number of steps/, fn ->
      run.(run_ahead: -1)
    end
  end

  test "a saved program is merged for the device it runs on" do
    fun = fn x, a, b -> {Nx.dot(x, a), Nx.dot(x, b)} end
    args = [random({1, 8}, 1), random({8, 16}, 2), random({8, 16}, 3)]
    program = EMLX.compile_to_program(fun, Enum.map(args, &Nx.to_template/1), merge: true)
    path = Path.join(System.tmp_dir!(), "emlx_merged_#{System.pid()}.emlx")

    try do
      Program.save(program, path)
      loaded = Program.load(path)
      assert Program.inspect(loaded) =~ "matmul("
      assert Program.explain(loaded) =~ "products, 2 of one input"
      arrays = Enum.map(args, &EMLX.Backend.to_array/1)
      [run, again] = for program <- [program, loaded], do: program |> Program.run(arrays) |> Enum.map(&Array.to_list/1)
      assert run == again
    after
      for extension <- ["emlx", "safetensors"], do: File.rm(Path.rootname(path) <> "." <> extension)
    end
  end
end
