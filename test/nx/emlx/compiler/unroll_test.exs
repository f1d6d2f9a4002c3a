defmodule EMLX.Compiler.UnrollTest do
  # Loops of a small constant trip count leave no loop in the program, and compute the same numbers.
  use EMLX.NxCase, async: true

  import Nx.Defn

  alias EMLX.Program

  @x Nx.tensor([1.5, -2.0, 3.25], backend: Nx.BinaryBackend)

  defp text(fun, args), do: fun |> EMLX.compile_to_program(Enum.map(args, &Nx.to_template/1)) |> Program.inspect()

  defp numbers(fun, args) do
    compiled = Nx.Defn.jit_apply(fun, args, compiler: EMLX, cache: false, device: EMLX.Golden.device())
    on_binary = Enum.map(args, &Nx.backend_copy(&1, Nx.BinaryBackend))

    evaluated =
      Nx.with_default_backend(Nx.BinaryBackend, fn -> Nx.Defn.jit_apply(fun, on_binary, compiler: Nx.Defn.Evaluator) end)

    for result <- [compiled, evaluated], do: result |> Nx.backend_copy(Nx.BinaryBackend) |> Nx.to_flat_list()
  end

  # Returns whether the program has a loop, after comparing its numbers with the binary backend's.
  defp loop?(fun, args) do
    [compiled, evaluated] = numbers(fun, args)
    assert compiled == evaluated
    text(fun, args) =~ "while("
  end

  defn up(x, opts \\ []) do
    {x, _i} =
      while {x, i = 0}, i < opts[:steps] do
        {x * 2 + i, i + 1}
      end

    x
  end

  defn down(x) do
    {x, _i} =
      while {x, i = 6}, i > 0 do
        {x + i, i - 2}
      end

    x
  end

  defn float(x) do
    {x, _i} =
      while {x, i = 0.0}, i < 1.0 do
        {x - i, i + 0.25}
      end

    x
  end

  defn rows(x) do
    while x, row <- Nx.tensor([[1, 2, 3], [4, 5, 6]]) do
      x + row
    end
  end

  defn nested(x) do
    {x, _i} =
      while {x, i = 0}, i < 3 do
        {y, _j, _i} =
          while {x, j = 0, i}, j < i do
            {x * 2 + i, j + 1, i}
          end

        {y, i + 1}
      end

    x
  end

  test "a loop whose counter is a constant is unrolled" do
    for steps <- [0, 1, 8], do: refute(loop?(&up(&1, steps: steps), [@x]))
    refute loop?(&down/1, [@x])
    refute loop?(&float/1, [@x])
    refute loop?(&rows/1, [@x])
  end

  test "a nested loop is unrolled although its trip count depends on the outer counter" do
    refute loop?(&nested/1, [@x])
  end

  test "counters and tables of constants leave no operation" do
    text = text(&rows/1, [@x])
    assert length(Regex.scan(~r/ = \w+\(/, text)) == 2
    assert length(Regex.scan(~r/ = add\(/, text)) == 2
  end

  test "a loop of more steps stays a loop" do
    assert loop?(&up(&1, steps: 9), [@x])
  end

  defn inner_long(x) do
    {x, _i} =
      while {x, i = 0}, i < 2 do
        {y, _j} =
          while {x, j = 0}, j < 100 do
            {x * 0.5 + j, j + 1}
          end

        {y, i + 1}
      end

    x
  end

  test "a long loop stays in the steps of an unrolled one" do
    text = text(&inner_long/1, [@x])
    assert length(Regex.scan(~r/while\(/, text)) == 2
    assert loop?(&inner_long/1, [@x])
  end

  defn asked(x, n) do
    {x, _i, _n} =
      while {x, i = 0, n}, i < n do
        {x + i, i + 1, n}
      end

    x
  end

  defn converging(x) do
    {x, _i} =
      while {x, i = 0}, i < 4 and Nx.any(x > 0) do
        {x - 1, i + 1}
      end

    x
  end

  test "a loop whose condition depends on the program's values stays a loop" do
    assert loop?(&asked/2, [@x, Nx.tensor(3, backend: Nx.BinaryBackend)])
    assert loop?(&converging/1, [@x])
  end

  defn heavy(x) do
    {x, _i} =
      while {x, i = 0}, i < 8 do
        {forty(x), i + 1}
      end

    x
  end

  deftransformp(forty(x), do: Enum.reduce(1..40, x, fn i, x -> Nx.subtract(x, i) end))

  test "a loop with more operations than a program should repeat stays a loop" do
    assert loop?(&heavy/1, [@x])
  end

  defn tables(x) do
    {x, _i} =
      while {x, i = 1}, i < 4 do
        {x + Nx.sum(Nx.iota({50, 50}) * i), i + 1}
      end

    x
  end

  test "no large constants are computed for an unrolled loop" do
    program = EMLX.compile_to_program(&tables/1, [Nx.template({3}, :f32)])

    for [_, sizes] <- Regex.scan(~r/%c\d+ \w+((?:\[\d+\])*)/, Program.inspect(program)) do
      sizes = for [_, size] <- Regex.scan(~r/\[(\d+)\]/, sizes), do: String.to_integer(size)
      assert Enum.product(sizes) <= 1024
    end

    loop?(&tables/1, [@x])
  end

  defn hooked(x) do
    {x, _i} =
      while {x, i = 0}, i < 3 do
        {hook(x + i, :step), i + 1}
      end

    x
  end

  test "a hook in a loop is called once for each step" do
    me = self()
    hooks = %{step: &send(me, {:step, Nx.to_flat_list(&1)})}
    Nx.Defn.jit_apply(&hooked/1, [@x], compiler: EMLX, hooks: hooks, device: EMLX.Golden.device())
    for step <- [[1.5, -2.0, 3.25], [2.5, -1.0, 4.25], [4.5, 1.0, 6.25]], do: assert_received({:step, ^step})
    refute_received {:step, _}
  end

  defn summed(large, x) do
    {_i, large} =
      while {i = 0, large}, i < 3 do
        {i + 1, large + i}
      end

    Nx.sum(large) + x
  end

  test "a loop whose state begins with a large constant is explained, and computes the same" do
    # A tensor instead of a template is a constant.
    large = Nx.iota({2000}, type: :f32)
    assert EMLX.explain(&summed/2, [large, Nx.template({}, :f32)]) =~ "left a loop: it computes large constants"
    [compiled, evaluated] = numbers(&summed/2, [large, Nx.tensor(1.5)])
    assert compiled == evaluated
  end

  test "the numbers of vectorized keys are those of Nx, bit for bit, in a few chains" do
    fun = fn keys ->
      {numbers, _} = Nx.Random.uniform(Nx.vectorize(keys, :rows), shape: {3})
      Nx.devectorize(numbers, keep_names: false)
    end

    for rows <- [1, 2, 5] do
      keys = Nx.as_type(Nx.iota({rows, 2}), :u32)
      [compiled, evaluated] = numbers(fun, [keys])
      assert compiled == evaluated

      if EMLX.Golden.device() == :cpu do
        plan = EMLX.explain(fun, [Nx.template({rows, 2}, :u32)], device: :cpu)
        assert length(Regex.scan(~r/: chain: /, plan)) <= 10
      end
    end
  end

  test "EMLX.explain names the loops that are unrolled, and why others are not" do
    template = [Nx.template({3}, :f32)]
    assert EMLX.explain(&up(&1, steps: 3), template) =~ "unroll\n  took a loop of 3 steps\n"
    assert EMLX.explain(&up(&1, steps: 30), template) =~ "unroll\n  left a loop: it has more than 8 steps\n"
    assert EMLX.explain(&heavy/1, template) =~ "left a loop: it has too many operations"

    assert EMLX.explain(&converging/1, template) =~
             "left a loop: its condition depends on values of the program"
  end

  test "the gradient through an unrolled loop is the binary backend's" do
    gradient = &grad(&1, fn x -> Nx.sum(up(x, steps: 3)) end)
    [compiled, evaluated] = numbers(gradient, [@x])
    assert compiled == evaluated
  end

  # The ones are too large a constant to be computed with while the function is traced.
  defn on_large(x) do
    ones = Nx.broadcast(Nx.tensor(1.0), {20, 40, 3})
    large = [ones, ones * x] |> Nx.concatenate() |> Nx.slice_along_axis(20, 20)

    {sums, _large, _i} =
      while {sums = ones, large, i = 0}, i < 3 do
        {sums + large, large, i + 1}
      end

    sums
  end

  test "a loop is unrolled whose state begins with a large constant of several axes" do
    refute loop?(&on_large/1, [@x])
  end

  describe "Nx.Random" do
    @fold_in Nx.tensor([[1, 99], [1234, 13]], backend: Nx.BinaryBackend)

    defp draws do
      integers =
        for type <- [:u8, :s16, :u32, :s32, :s64, :u64], shape <- [{}, {1}, {5}, {2, 3}, {4, 1, 50}] do
          {"randint #{type} #{inspect(shape)}", &(&1 |> Nx.Random.randint(3, 100, shape: shape, type: type) |> elem(0))}
        end

      floats =
        for type <- [:f16, :f32, :f64],
            type != :f64 or EMLX.Golden.device() == :cpu,
            shape <- [{}, {7}, {40, 100}] do
          {"uniform #{type} #{inspect(shape)}",
           &(&1 |> Nx.Random.uniform(-1.0, 2.0, shape: shape, type: type) |> elem(0))}
        end

      others = [
        {"split", &Nx.Random.split/1},
        {"split into 7", &Nx.Random.split(&1, parts: 7)},
        {"split into 5000", &Nx.Random.split(&1, parts: 5000)},
        {"fold_in", &Nx.Random.fold_in(&1, @fold_in)},
        {"shuffle", &(&1 |> Nx.Random.shuffle(Nx.iota({17})) |> elem(0))},
        {"choice", &(&1 |> Nx.Random.choice(Nx.iota({17}), samples: 40, replace: true) |> elem(0))},
        {"a new key", &(&1 |> Nx.Random.normal(shape: {3}) |> elem(1))}
      ]

      integers ++ floats ++ others
    end

    test "compiled, it returns the binary backend's bits" do
      for seed <- [0, 42, 0xFFFFFFFF, 0x123456789ABCDEF], {name, draw} <- draws() do
        key = Nx.with_default_backend(Nx.BinaryBackend, fn -> Nx.Random.key(seed) end)
        [compiled, evaluated] = numbers(draw, [key])
        assert {seed, name, compiled} == {seed, name, evaluated}
      end
    end

    test "the program of each draw has no loop" do
      for {name, draw} <- draws(), do: refute({name, text(draw, [Nx.template({2}, :u32)]) =~ "while("} == {name, true})
    end

    test "the rounds of threefry are one kernel on the CPU" do
      if EMLX.Golden.device() == :cpu do
        text = EMLX.explain(&Nx.Random.split(&1, parts: 1000), [Nx.template({2}, :u32)], device: :cpu)
        assert [[_, count]] = Regex.scan(~r/chain: (\d+) operations/, text)
        assert String.to_integer(count) > 100
      end
    end
  end
end
