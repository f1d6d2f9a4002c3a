defmodule EMLX.Bench do
  @moduledoc """
  The benchmark suite: what `mix emlx.bench` runs. Starts the programs that it compares with, goes through the parts,
  prints a table for each, and writes results.json and the charts.

  `bench/suite/parts` holds the parts; see `EMLX.Bench.Part` for how one is written.
  """

  alias EMLX.Bench.{Machine, Measure, Options, Peer, Peers, Progress, Report}
  alias EMLX.Bench.Part.Group

  # Parts that are not here come after those that are.
  @order ~w(kernels dispatch operations small models training generation memory growth)

  @doc """
  The options of some arguments: `{:ok, options}`, `{:list, text}` or `{:error, message}`. `folder` is that of this
  file.
  """
  def parse(arguments, folder) do
    with :list <- Options.parse(arguments, names(folder)) do
      lines = for name <- names(folder), do: "#{String.pad_trailing(name, 12)}#{part(name).about()}"
      {:list, Enum.join(lines, "\n")}
    end
  end

  @doc "The parts that there are, in the order in which they run."
  def names(folder) do
    names = for path <- Path.wildcard(Path.join(folder, "parts/*.ex")), do: Path.basename(path, ".ex")
    Enum.sort_by(names, &{Enum.find_index(@order, fn name -> name == &1 end) || length(@order), &1})
  end

  defp part(name), do: Module.concat(EMLX.Bench.Parts, Macro.camelize(name))

  @doc """
  Runs the parts that the options name; `folder` is `bench/`. `:ok`, `:failed` if something that was to be measured here
  failed, or `{:error, message}` if nothing can be measured.
  """
  def run(options, folder) do
    nx? = Code.ensure_loaded?(EMLX.Backend)
    parts = for name <- options.parts, do: {name, part(name)}
    {there, absent} = Enum.split_with(parts, fn {_, part} -> nx? or part.needs() == :core end)

    cond do
      not EMLX.device_available?(options.device) ->
        {:error, "there is no device :#{options.device} here; mix emlx.doctor says why"}

      there == [] ->
        {:error, "#{names_of(absent)} needs Nx, which is not there"}

      true ->
        run(options, folder, there, absent, nx?)
    end
  end

  defp run(options, folder, parts, absent, nx?) do
    if nx?, do: load_models(folder)
    wanted = parts |> Enum.flat_map(fn {_, part} -> part.peers() end) |> Enum.uniq()

    wanted = if options.peers?, do: wanted, else: Enum.filter(wanted, &(&1 in Peers.ours()))
    {peers, notes} = Peers.start(wanted, options, folder)
    notes = if options.peers?, do: notes, else: ["without peers: --no-peers" | notes]
    notes = if absent == [], do: notes, else: notes ++ ["without #{names_of(absent)}: Nx is not there"]
    temporary = Path.join(System.tmp_dir!(), "emlx-bench-#{System.pid()}")
    File.mkdir_p!(temporary)

    context = %{
      device: options.device,
      quick?: options.quick?,
      full?: options.full?,
      nx?: nx?,
      folder: folder,
      temporary: temporary,
      peers: peers
    }

    try do
      groups = for {name, part} <- parts, do: {name, part.groups(context)}

      case only(groups, options.only) do
        {:ok, groups} -> measure(groups, options, notes, context)
        error -> error
      end
    after
      for {_, peer} <- peers, do: Peer.stop(peer)
      File.rm_rf!(temporary)
    end
  end

  @doc "Compiles the modules that need Nx, once; `folder` is `bench/`."
  def load_models(folder) do
    unless Code.ensure_loaded?(EMLX.Bench.Here) do
      {:ok, _, _} =
        Kernel.ParallelCompiler.compile(Path.wildcard(Path.join(folder, "suite/models/*.ex")), return_diagnostics: true)
    end

    :ok
  end

  defp names_of(parts), do: Enum.map_join(parts, ", ", &elem(&1, 0))

  # The groups of each part whose name has the text in it, and the parts that have such.
  defp only(groups, nil), do: {:ok, groups}

  defp only(groups, text) do
    wanted? = fn {name, _make} -> String.contains?(String.downcase(name), String.downcase(text)) end

    case for({part, all} <- groups, [_ | _] = some <- [Enum.filter(all, wanted?)], do: {part, some}) do
      [] ->
        names = for {_, all} <- groups, {name, _} <- all, do: name
        {:error, "no group's name has #{text} in it; they are #{Enum.join(names, "; ")}"}

      some ->
        {:ok, some}
    end
  end

  defp measure(groups, options, notes, context) do
    results = %{
      date: DateTime.utc_now() |> DateTime.truncate(:second) |> DateTime.to_iso8601(),
      device: options.device,
      quick: options.quick?,
      machine: Machine.describe(options.device, context.peers),
      load_before: Machine.load(),
      notes: notes,
      parts: []
    }

    IO.puts(Report.heading(results))
    rounds = Measure.rounds(options.quick?)
    total = groups |> Enum.map(fn {_, groups} -> length(groups) * rounds end) |> Enum.sum()

    {measured, _progress} =
      Enum.map_reduce(groups, Progress.new(total), fn {name, groups}, progress ->
        {done, progress} = Enum.map_reduce(groups, progress, &group(&1, &2, options.quick?))
        progress = Progress.clear(progress)
        part = Report.part(name, done) |> summarize(part(name))
        IO.puts("\n" <> Report.text(part))
        {part, progress}
      end)

    results = %{results | parts: measured} |> Map.put(:load_after, Machine.load())
    files = Report.write(results, options.out)
    IO.puts("\nwritten: #{Enum.join(files, ", ")}")
    if Enum.any?(measured, &(&1.failures != [])), do: :failed, else: :ok
  end

  defp summarize(results, part) do
    if function_exported?(part, :summary, 1),
      do: Map.update!(results, :notes, &(&1 ++ part.summary(results.rows))),
      else: results
  end

  # One group's figures, or why there are none. What is measured next starts from clean memory.
  defp group({name, make}, progress, quick?) do
    progress = Progress.label(progress, name)
    {:ok, counter} = Agent.start_link(fn -> progress end)
    before = progress.done

    # In a process of its own, whose end gives up all that the group held.
    task =
      Task.async(fn ->
        try do
          %Group{} = group = make.()
          plan = if group.unit == :bytes, do: :bytes, else: quick?
          warm = if group.unit == :bytes, do: 1, else: 2
          step = fn -> Agent.update(counter, &Progress.step/1) end
          figures = Measure.in_turn(group.sides, plan, step, warm, group.pause)
          if group.tidy, do: group.tidy.()
          {:ok, name, %{group | sides: nil, tidy: nil}, figures}
        rescue
          error -> {:error, name, Exception.message(error)}
        end
      end)

    result = Task.await(task, :infinity)
    EMLX.Memory.clear_cache()
    progress = Agent.get(counter, & &1)
    Agent.stop(counter)
    {result, Progress.skip(progress, before + Measure.rounds(quick?) - progress.done)}
  end
end
