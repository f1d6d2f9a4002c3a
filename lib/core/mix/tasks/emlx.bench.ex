defmodule Mix.Tasks.Emlx.Bench do
  @shortdoc "Compares EMLX with Python MLX and XLA on this machine"

  @moduledoc """
  Runs the benchmark suite: kernels, dispatch, models, memory and growth, here and in Python MLX (and on the CPU in XLA), in turn, in
  one command. Prints a table for each part, and writes the figures as JSON and as SVG charts.

      mix emlx.bench                                 # everything
      mix emlx.bench kernels dispatch                # some parts
      mix emlx.bench models --device gpu --out results
      mix emlx.bench --quick                         # smaller sizes, fewer runs: a look, not a measurement

  The suite stands in the repository's folder `bench/`, so this runs from a clone of it, or from a project that has emlx as a path
  dependency.

  Options:

    * `--device cpu|gpu` - where everything is computed, the CPU by default. On Linux the GPU needs `EMLX_MLX=cuda13` (or `cuda12`)
    * `--out FOLDER` - where `results.json` and the charts go, by default `_build/bench`
    * `--quick` - smaller sizes and fewer runs
    * `--no-peers` - this side only: no Python, no XLA, nothing is fetched
    * `--no-compile` - runs what is compiled already
    * `--list` - prints the parts and ends

  Python MLX and JAX are fetched into the cache folder once, by pip. Where there is no Python, or no network, the suite runs this side
  alone and says so. What needs Nx, or Bumblebee, is left out where they are not there, with a line that says so.

  Ends with status 1 if something that was to be measured here failed.
  """

  use Mix.Task

  @impl true
  def run(arguments) do
    folder = folder!()
    load(folder)

    case suite(:parse, [arguments, Path.join(folder, "suite")]) do
      {:error, message} -> Mix.raise(message)
      {:list, text} -> Mix.shell().info(text)
      {:ok, options} -> start(options, folder)
    end
  end

  defp start(options, folder) do
    Mix.Task.run("app.start", if(options.compile?, do: [], else: ["--no-compile"]))
    _ = Application.ensure_all_started(:emlx)

    case suite(:run, [options, folder]) do
      :ok -> :ok
      {:error, message} -> Mix.raise(message)
      :failed -> exit({:shutdown, 1})
    end
  end

  # The suite is no part of the package, and nothing else needs it: it is loaded from source.
  defp load(folder) do
    unless Code.ensure_loaded?(EMLX.Bench) do
      files = Enum.flat_map(["suite", "suite/parts"], &Path.wildcard(Path.join([folder, &1, "*.ex"])))
      {:ok, _modules, _warnings} = Kernel.ParallelCompiler.compile(files, return_diagnostics: true)
    end
  end

  defp suite(function, arguments), do: apply(EMLX.Bench, function, arguments)

  defp folder! do
    root = if Mix.Project.config()[:app] == :emlx, do: File.cwd!(), else: Mix.Project.deps_paths()[:emlx]
    folder = Path.join(root || "", "bench")

    if File.regular?(Path.join(folder, "suite/suite.ex")) do
      folder
    else
      Mix.raise("""
      there is no benchmark suite in #{folder}: it comes with EMLX's repository, not with the package. Clone the repository \
      and run mix emlx.bench there.\
      """)
    end
  end
end
