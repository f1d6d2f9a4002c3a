defmodule EMLX.CapturedTest do
  # Programs that run often enough to be captured as CUDA graphs: their results stay those of the first run, which is
  # node by node. CUDA needs EMLX_TEST_DEVICE=gpu. Elsewhere nothing is captured, the results have to be the same, and
  # tests that count graphs are skipped. Not async: graphs and memory are counted.
  use ExUnit.Case, async: false

  alias EMLX.{Array, Golden, Memory, Ops, Poll, Program, Queue, Safetensors, Skip}

  @folder Path.expand("../../programs", __DIR__)
  @runs 6

  setup do
    Memory.clear_cache()
    :ok
  end

  # x · w₀ + b, then tanh of sums and products, several times: more than eight operations.
  defp layers(count) do
    layer = fn i ->
      x = if i == 0, do: 0, else: 3 + 4 * i - 1
      first = 3 + 4 * i
      [{:matmul, [x, 1], 1}, {:add, [first, 2], 1}, {:tanh, [first + 1], 1}, {:add, [first + 2, x], 1}]
    end

    Program.new(3, Enum.flat_map(0..(count - 1), layer), [3 + 4 * count - 1, 4])
  end

  defp random(seed, shape) do
    :rand.seed(:exsss, {seed, seed, seed})
    count = Tuple.product(shape)
    data = for _ <- 1..count, into: <<>>, do: <<:rand.uniform() - 0.5::float-32-native>>
    Array.from_binary(data, shape, :f32, device: Golden.device())
  end

  defp run(program, inputs, opts \\ []),
    do: Program.run(program, inputs, Keyword.put_new(opts, :device, Golden.device()))

  defp flat(array), do: array |> Array.to_list() |> List.wrap() |> List.flatten()

  # Compares a result with that of `count` layers.
  defp assert_layers(result, [x, w, b], count) do
    wanted = layers_in_elixir(flat(x), flat(w), flat(b), count)
    found = flat(result)
    for {a, b} <- Enum.zip(found, wanted), do: assert_in_delta(a, b, 2.0e-3)
    assert length(found) == length(wanted)
  end

  defp layers_in_elixir(x, w, b, count) do
    rows = fn list, n -> Enum.chunk_every(list, n) end
    columns = w |> rows.(16) |> Enum.zip_with(& &1)

    Enum.reduce(1..count, rows.(x, 16), fn _, x ->
      for row <- x do
        for {column, b, own} <- Enum.zip([columns, b, row]) do
          :math.tanh(Enum.sum(Enum.zip_with(row, column, &(&1 * &2))) + b) + own
        end
      end
    end)
    |> List.flatten()
  end

  for file <- Path.wildcard(Path.join(@folder, "*.emlx")), name = Path.basename(file, ".emlx") do
    test "the saved model #{name} computes the same in every run" do
      path = Path.join(@folder, unquote(name))
      program = Program.load(path <> ".emlx", device: Golden.device())
      golden = Safetensors.load(path <> ".golden.safetensors", device: Golden.device())
      inputs = for {name, _shape, _dtype} <- Program.inputs(program), into: %{}, do: {name, golden["input." <> name]}
      # The same inputs in new arrays, as from a caller.
      again = Map.new(inputs, fn {name, array} -> {name, EMLX.eval(Ops.reshape(array, Array.shape(array)))} end)

      [first | others] =
        for run <- 1..@runs, do: run(program, if(rem(run, 2) == 0, do: again, else: inputs)) |> Enum.map(&flat/1)

      for other <- others, do: assert_same(other, first)
    end
  end

  # A CUDA graph may use other kernels for products than a run node by node, whose inputs have other addresses.
  defp assert_same(results, expected) do
    for {result, wanted} <- Enum.zip(results, expected) do
      largest = wanted |> Enum.map(&abs/1) |> Enum.max()
      for {a, b} <- Enum.zip(result, wanted), do: assert_in_delta(a, b, 1.0e-5 * max(largest, 1.0))
    end
  end

  # Runs a program once for each of the shapes, with other numbers each time. Returns the program: its graphs live as
  # long as it does.
  defp run_rows(count, rows) do
    program = layers(count)
    {w, b} = {random(1, {16, 16}), random(2, {16})}

    for {rows, seed} <- Enum.with_index(rows, 10) do
      x = random(seed, {rows, 16})
      assert_layers(hd(run(program, [x, w, b])), [x, w, b], count)
    end

    program
  end

  test "a program that runs with new inputs and the same weights uses the new inputs" do
    run_rows(4, List.duplicate(5, @runs))
  end

  @tag skip: Skip.no_cuda()
  test "a program that runs with new inputs and the same weights is one CUDA graph, with bytes of its own" do
    program = run_rows(4, List.duplicate(5, @runs))
    assert %{count: 1, bytes: bytes} = Memory.graphs()
    assert bytes > 5 * 16 * 4 * 10
    assert %Program{} = program
  end

  test "replaced weights are used from the next run on, although they were assumed constant" do
    program = layers(3)
    x = random(3, {4, 16})

    for seed <- 1..5, _run <- 1..5, reduce: nil do
      before ->
        {seed_before, w, b} = before || {0, nil, nil}
        {w, b} = if seed == seed_before, do: {w, b}, else: {random(100 + seed, {16, 16}), random(200 + seed, {16})}
        [result, _first] = run(program, [x, w, b])
        assert_layers(result, [x, w, b], 3)
        {seed, w, b}
    end
  end

  test "later runs of a program do not overwrite the results of earlier ones" do
    program = layers(3)
    {w, b} = {random(1, {16, 16}), random(2, {16})}
    xs = for seed <- 1..8, do: random(50 + seed, {4, 16})
    # All results are built before the first one is read.
    results = for x <- xs, do: hd(run(program, [x, w, b]))

    for {x, result} <- Enum.zip(xs, results) do
      assert_layers(result, [x, w, b], 3)
    end
  end

  test "the result of one run may be the input of the next" do
    program = layers(2)
    {w, b} = {random(1, {16, 16}), random(2, {16})}
    x = random(7, {4, 16})
    last = Enum.reduce(1..7, x, fn _, x -> hd(run(program, [x, w, b])) end)
    assert_layers(last, [x, w, b], 14)
  end

  test "a program that runs often takes inputs that are not row-major" do
    program = layers(3)
    {w, b} = {random(1, {16, 16}), random(2, {16})}

    for seed <- 1..@runs do
      x = Ops.run({:transpose, %{axes: [1, 0]}}, [random(30 + seed, {16, 6})], device: Golden.device())
      assert_layers(hd(run(program, [x, w, b])), [x, w, b], 3)
    end
  end

  # Two processes on each of two queues.
  defp run_on_two_queues do
    program = layers(6)
    {w, b} = {random(1, {16, 16}), random(2, {16})}
    queues = for _ <- 1..2, do: Queue.start(device: Golden.device())

    tasks =
      for {queue, q} <- Enum.with_index(queues), p <- 1..2 do
        Task.async(fn ->
          for seed <- 1..12 do
            x = random(1000 * q + 100 * p + seed, {8, 16})
            [result, _first] = Program.run(program, [x, w, b], queue: queue)
            assert_layers(result, [x, w, b], 6)
          end
        end)
      end

    Task.await_many(tasks, 60_000)
    program
  end

  test "one program runs on two queues, for several processes at once" do
    run_on_two_queues()
  end

  @tag skip: Skip.no_cuda()
  test "a program that runs on two queues is a CUDA graph on each" do
    program = run_on_two_queues()
    assert Memory.graphs().count == 2
    assert %Program{} = program
  end

  test "a program whose inputs change their shape between runs computes each shape correctly" do
    run_rows(3, for(run <- 1..24, do: 1 + rem(run, 3)))
  end

  @tag skip: Skip.no_cuda()
  test "a program whose inputs have three shapes is three CUDA graphs" do
    program = run_rows(3, for(run <- 1..24, do: 1 + rem(run, 3)))
    assert Memory.graphs().count == 3
    assert %Program{} = program
  end

  test "clear_cache/0 frees all graphs, and the program keeps running" do
    {w, b, x} = {random(1, {16, 16}), random(2, {16}), random(3, {4, 16})}
    program = layers(3)
    for _ <- 1..@runs, do: run(program, [x, w, b]) |> hd() |> flat()
    Memory.clear_cache()
    assert Memory.graphs() == %{count: 0, bytes: 0}
    [result, _first] = run(program, [x, w, b])
    assert_layers(result, [x, w, b], 3)
  end

  @tag skip: Skip.no_cuda()
  test "the CUDA graph of a program ends with the program, also while the GPU still computes" do
    {w, b, x} = {random(1, {16, 16}), random(2, {16}), random(3, {4, 16})}

    {pid, monitor} =
      spawn_monitor(fn ->
        program = layers(5)
        for _ <- 1..@runs, do: run(program, [x, w, b])
      end)

    assert_receive {:DOWN, ^monitor, :process, ^pid, :normal}, 10_000
    assert Poll.until(fn -> Memory.graphs().count == 0 end)
  end

  @tag :timing
  test "200 runs leak no memory" do
    program = layers(4)
    {w, b} = {random(1, {16, 16}), random(2, {16})}
    run = fn seed -> run(program, [random(seed, {64, 16}), w, b]) |> hd() |> flat() end
    for seed <- 1..@runs, do: run.(seed)
    before = Poll.settled_memory()
    for seed <- 1..200, do: run.(seed)
    # Memory is freed after the GPU has finished using it.
    assert Poll.until(fn -> Poll.settled_memory() <= before + 100_000 end)
  end
end
