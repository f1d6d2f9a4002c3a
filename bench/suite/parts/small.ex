defmodule EMLX.Bench.Parts.Small do
  @moduledoc """
  Small arrays and loops: operations on up to 1,024 elements and their values, eager and compiled, and compiled loops
  whose steps are a few operations on up to 64 elements; against XLA (`jax.jit` of the same), NumPy and
  `Nx.BinaryBackend` in this VM, with the evaluator.

  A side's run reads the result. Before anything is timed, the results are compared: integers with
  `Nx.BinaryBackend`'s have to be the same, random numbers are compared with `Nx.BinaryBackend`'s only.
  """

  use EMLX.Bench.Part,
    about: "small operations and loops against XLA, NumPy and Nx.BinaryBackend",
    needs: :nx,
    peers: [:xla, :numpy]

  @compile {:no_warn_undefined, [EMLX, EMLX.Bench.Small, EMLX.Backend]}

  alias EMLX.Bench.{Inputs, Measure, Peer, Small, Statistics}

  @binary "Nx.BinaryBackend"

  # The steps of a loop by side; fewer where a step takes longer. The time is one step's.
  @steps %{"compiled" => 10_000, "XLA" => 10_000, "NumPy" => 1_000, @binary => 100}

  @impl true
  def groups(context) do
    operations =
      for {name, types, _} = operation <- Small.operations() do
        label = "#{name}, #{Small.text(hd(types))}"
        {label, fn -> operation(context, label, operation) end}
      end

    counted =
      for {count, type} <- Small.counted() do
        label = "loop of #{count}, #{Small.text(type)}"
        {label, fn -> counted(context, label, count, type) end}
      end

    conditional =
      for {name, type, _} = loop <- Small.conditional() do
        label = "loop until, #{name}, #{Small.text(type)}"
        {label, fn -> conditional(context, label, loop) end}
      end

    operations ++ counted ++ conditional
  end

  # ---- operations ----

  defp operation(context, label, {name, types, function}) do
    {file, tensors, binary} = inputs(context, types)
    eager = fn -> function |> apply(tensors) |> Nx.to_binary() end
    compiled = compile(context, function, tensors)
    jitted = fn -> compiled |> apply(tensors) |> Nx.to_binary() end
    expected = on_binary(fn -> apply(function, binary) end)
    check!("eager", apply(function, tensors), expected)
    check!("compiled", apply(compiled, tensors), expected)

    links = links(jitted)
    peers = peers(context, :small_operation, fn _ -> [file: file, name: name, links: links] end)

    unless String.starts_with?(name, "random"),
      do: for({_, label, peer, number} <- peers, do: check_peer!(label, peer, number, expected))

    others = ["XLA", "NumPy", @binary]

    %Group{
      sides:
        [{"eager", timed(eager, links(eager))}, {"compiled", timed(jitted, links)}] ++
          [{@binary, binary_side(fn -> function |> apply(binary) |> Nx.to_binary() end)}] ++ sides(peers),
      rows: [{label, "eager", others}, {label, "compiled", others}],
      tidy: fn -> drop(peers) end
    }
  end

  # ---- loops ----

  defp counted(context, label, count, type) do
    {file, [x], [binary]} = inputs(context, [type])
    steps = if context.quick?, do: Map.new(@steps, fn {side, steps} -> {side, div(steps, 10)} end), else: @steps
    loop = fn side -> compile(context, Small.counted(count, steps[side]), [x]) end
    evaluated = Nx.Defn.jit(Small.counted(count, steps[@binary]), compiler: Nx.Defn.Evaluator)
    check!("compiled", loop.(@binary).(x), on_binary(fn -> evaluated.(binary) end))
    compiled = loop.("compiled")
    run = fn -> x |> compiled.() |> Nx.to_binary() end
    links = links(run)
    peers = peers(context, :counted, &[file: file, count: count, steps: steps[&1], links: links])
    for {_, side, peer, number} <- peers, do: check_peer!(side, peer, number, loop.(side).(x))

    sides =
      [{"compiled", timed(run, links)}, {@binary, binary_side(fn -> binary |> evaluated.() |> Nx.to_binary() end)}] ++
        sides(peers)

    %Group{
      sides: for({name, side} <- sides, do: {name, fn -> side.() / steps[name] end}),
      rows:
        [{label <> ", a step", "compiled", ["XLA", "NumPy", @binary]}] ++
          if(count == 0,
            do: [],
            else: [{label <> ", an operation", "compiled", [], figures: fn steps -> Enum.map(steps, &(&1 / count)) end}]
          ),
      tidy: fn -> drop(peers) end
    }
  end

  defp conditional(context, label, {name, type, function}) do
    {file, [x], [binary]} = inputs(context, [type])
    compiled = compile(context, function, [x])
    evaluated = Nx.Defn.jit(function, compiler: Nx.Defn.Evaluator)
    steps = on_binary(fn -> evaluated.(binary) end)
    check!("compiled", compiled.(x), steps)
    run = fn -> x |> compiled.() |> Nx.to_binary() end
    links = links(run)
    peers = peers(context, :conditional, fn _ -> [file: file, name: name, links: links] end)
    for {_, side, peer, number} <- peers, do: check_peer!(side, peer, number, steps)
    count = Nx.to_number(steps)

    sides =
      [{"compiled", timed(run, links)}, {@binary, binary_side(fn -> binary |> evaluated.() |> Nx.to_binary() end)}] ++
        sides(peers)

    %Group{
      sides: for({name, side} <- sides, do: {name, fn -> side.() / count end}),
      rows: [{label <> ", a step", "compiled", ["XLA", "NumPy", @binary]}],
      notes: ["#{label}: #{count} steps"],
      tidy: fn -> drop(peers) end
    }
  end

  # ---- sides ----

  # A file of the inputs, and the inputs here and on Nx.BinaryBackend.
  defp inputs(context, types) do
    binary = on_binary(fn -> Small.inputs(types) end)
    Nx.default_backend({EMLX.Backend, device: context.device})
    tensors = Enum.map(binary, &Nx.backend_copy(&1, {EMLX.Backend, device: context.device}))
    arrays = for {tensor, i} <- Enum.with_index(tensors), into: %{}, do: {"#{i}", EMLX.Backend.to_array(tensor)}
    file = Path.join(context.temporary, "small.safetensors")
    EMLX.Safetensors.save(file, arrays, device: context.device)
    {file, tensors, binary}
  end

  defp compile(context, function, tensors),
    do: Nx.Defn.compile(function, tensors, compiler: EMLX, device: context.device)

  # Constants of a function are on the default backend.
  defp on_binary(function), do: Nx.with_default_backend(Nx.BinaryBackend, function)

  defp binary_side(run) do
    links = on_binary(fn -> links(run) end)
    side = timed(run, links)
    fn -> on_binary(side) end
  end

  defp links(run), do: Measure.links(run, 5_000)

  defp timed(run, links), do: fn -> Measure.time(fn -> repeat(run, links) end) / links end

  defp repeat(_run, 0), do: :ok

  defp repeat(run, links) do
    run.()
    repeat(run, links - 1)
  end

  defp peers(context, kind, options) do
    for {side, label} <- [xla: "XLA", numpy: "NumPy"],
        peer = context.peers[side],
        number = define(peer, kind, options.(label)),
        do: {side, label, peer, number}
  end

  # A number there, or nil where the peer has no such operation.
  defp define(peer, kind, options) do
    with "none" <- Peer.define(peer, kind, options), do: nil
  end

  defp sides(peers), do: for({_, label, peer, number} <- peers, do: {label, fn -> Peer.time(peer, number) end})

  defp drop(peers), do: for({_, _, peer, number} <- peers, do: Peer.drop(peer, number))

  defp check!(what, result, expected) do
    if Nx.Type.float?(Nx.type(expected)) do
      Inputs.check!(what, sample(result), sample(expected), :f32)
    else
      if Nx.to_binary(result) != Nx.to_binary(expected),
        do: raise("#{what} computes something else: #{inspect(result)} instead of #{inspect(expected)}")
    end
  end

  defp check_peer!(what, peer, number, expected),
    do: Inputs.check!(what, Peer.sample(peer, number), sample(expected), :f32)

  defp sample(tensor) do
    size = Nx.size(tensor)
    count = min(16, size)
    tensor |> Nx.to_flat_list() |> Enum.take_every(div(size, count)) |> Enum.take(count)
  end

  # ---- summary ----

  @impl true
  def summary(rows) do
    {loops, operations} = Enum.split_with(rows, &String.starts_with?(&1.label, "loop"))
    steps = Enum.filter(loops, &String.ends_with?(&1.label, ", a step"))

    means("eager", Enum.filter(operations, &(&1.here == "eager"))) ++
      means("compiled", Enum.filter(operations, &(&1.here == "compiled"))) ++
      means("loops", steps) ++ goals(operations, steps)
  end

  defp means(what, rows) do
    for side <- ["XLA", "NumPy", @binary],
        ratios = for(row <- rows, %{side: ^side, ratio: ratio} <- row.against, ratio, do: ratio),
        ratios != [],
        do: Statistics.means(what, side, ratios)
  end

  # The figures that the goals are of, from least times, since other work on the machine only adds.
  defp goals(operations, steps) do
    eager = for row <- operations, row.here == "eager", small?(row.label), do: row.figure.least
    points = for row <- steps, [_, count, type] <- [loop(row.label)], do: {type, {count, row.figure.least}}
    own = for {_, {0, least}} <- points, do: least

    # What a step of a type takes by its operations, as a line.
    operation =
      for {_, points} <- Enum.group_by(points, &elem(&1, 0), &elem(&1, 1)),
          points = Enum.reject(points, &match?({0, _}, &1)),
          length(points) > 1,
          do: slope(points)

    for {[_ | _] = figures, goal, what} <- [
          {eager, 3, "an eager operation on up to 64 elements and its value"},
          {operation, 0.3, "an operation on up to 64 elements in a compiled loop"},
          {own, 0.2, "a loop step's own cost"}
        ] do
      [middle, least, most] =
        for f <- [&Statistics.median/1, &Enum.min/1, &Enum.max/1], do: Statistics.text(f.(figures), :time)

      "goal, #{what}, #{Statistics.text(goal, :time)}: #{middle} in the median of #{length(figures)}, " <>
        "#{least} to #{most} (least times)"
    end
  end

  defp small?(label), do: label =~ ~r/^(add|sum|slice|dot),/ and not (label =~ "[1024]")

  defp loop(label) do
    with [_, count, type] <- Regex.run(~r/^loop of (\d+), (\S+), a step$/, label),
         do: [:loop, String.to_integer(count), type]
  end

  @doc """
  The slope of the line with the least squares through some points.

      iex> EMLX.Bench.Parts.Small.slope([{2, 1.0}, {7, 2.0}, {12, 3.0}])
      0.2
  """
  def slope(points) do
    n = length(points)
    {x, y} = {Enum.sum(Enum.map(points, &elem(&1, 0))) / n, Enum.sum(Enum.map(points, &elem(&1, 1))) / n}
    products = for {a, b} <- points, do: (a - x) * (b - y)
    squares = for {a, _} <- points, do: (a - x) * (a - x)
    Enum.sum(products) / Enum.sum(squares)
  end
end
