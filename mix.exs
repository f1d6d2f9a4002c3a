for file <- ~w(compile.emlx_native compile.emlx_libraries) do
  Code.require_file("mix/#{file}.exs", __DIR__)
end

defmodule EMLX.MixProject do
  use Mix.Project

  @version "0.1.0"

  # The tiers of code: core depends on nothing but the BEAM, nx on Nx. EMLX_TIER=core excludes an installed Nx, too.
  @tiers (case System.get_env("EMLX_TIER", "") do
            "" -> [:core, :nx]
            "nx" -> [:core, :nx]
            "core" -> [:core]
            other -> Mix.raise("EMLX_TIER is #{inspect(other)}; it can be core or nx")
          end)

  def project do
    [
      app: :emlx,
      version: @version,
      description: "Apple MLX's arrays and fused kernels for Nx, on Apple silicon, NVIDIA GPUs and Linux CPUs",
      elixir: "~> 1.17",
      start_permanent: Mix.env() == :prod,
      compilers: [:emlx_native, :emlx_libraries] ++ Mix.compilers(),
      elixirc_paths: elixirc_paths(Mix.env()),
      test_paths: Enum.filter(test_paths(), &File.dir?/1),
      build_path: if(nx?(), do: "_build", else: "_build/core"),
      # Without Hex, Nx is found in Erlang's library path.
      prune_code_paths: false,
      deps: deps(hex?()),
      package: package(),
      docs: docs()
    ]
  end

  def application do
    [extra_applications: [:logger | applications()], mod: {EMLX.Application, []}]
  end

  defp deps(true) do
    [
      {:nx, "~> 0.12.0 or ~> 0.13.0"},
      {:telemetry, "~> 1.0"},
      {:nimble_options, "~> 1.1", optional: true},
      {:ex_doc, "~> 0.34", only: :dev, runtime: false}
    ]
  end

  defp deps(false), do: []

  # With Hex, Mix adds the dependencies to the applications. Without telemetry, the core tier emits no events; without
  # NimbleOptions, the types of options are not checked.
  defp applications do
    cond do
      hex?() -> []
      nx?() -> [:nx, :telemetry, nimble_options: :optional]
      true -> [telemetry: :optional, nimble_options: :optional]
    end
  end

  defp elixirc_paths(:test), do: elixirc_paths(:dev) ++ support()
  defp elixirc_paths(_), do: ["lib/core"] ++ if(nx?(), do: ["lib/nx"], else: []) ++ bench()

  # `mix emlx.bench`, which is part of the repository but not of the package (see `package/0`).
  defp bench, do: Enum.filter(["bench/tasks"], &File.dir?(Path.join(__DIR__, &1)))

  # The files directly in test/support are for all tiers.
  defp support do
    Path.wildcard("test/support/*.ex") ++ ["test/support/differential"] ++ if(nx?(), do: ["test/support/nx"], else: [])
  end

  defp test_paths do
    case System.get_env("EMLX_TIER", "") do
      "" -> ["test/core"] ++ if(nx?(), do: ["test/nx"], else: [])
      tier -> ["test/#{tier}"]
    end
  end

  defp nx?, do: :nx in @tiers and (hex?() or Code.ensure_loaded?(Nx))

  defp hex?, do: Code.ensure_loaded?(Hex)

  # Links between pages are relative, as on GitHub. ExDoc finds a page by its file name, so file names are unique.
  defp docs do
    [
      main: "readme",
      extras:
        ["README.md"] ++
          Path.wildcard("guides/*.md") ++
          ["ARCHITECTURE.md"] ++
          Path.wildcard("docs/adr/0*.md") ++
          ["docs/mlx-quirks.md", "bench/RESULTS.md", "CONTRIBUTING.md", "CHANGELOG.md"],
      assets: %{"bench/results" => "results"},
      # These guides name functions of the C++ EMLX.
      skip_undefined_reference_warnings_on: ["guides/migration.md", "guides/compatibility.md"],
      # Internal pages name these modules, which have no page.
      skip_code_autolink_to: &String.match?(&1, ~r/^EMLX\.(Application|Compiler|Native|Options|Trace)\b/),
      groups_for_extras: [
        Guides: ~r"^guides/",
        Decisions: ~r"^docs/adr/",
        Internals: ~r"^(ARCHITECTURE|CONTRIBUTING|CHANGELOG|docs/mlx-quirks|bench/RESULTS)"
      ],
      groups_for_modules: [
        Nx: [EMLX, EMLX.Backend, EMLX.Fast, EMLX.Block, ~r"^EMLX\.(Fast|Block)\."],
        Core: [EMLX.Array, EMLX.Ops, EMLX.OpTable, EMLX.Kernels, EMLX.Program, EMLX.Safetensors, EMLX.SharedMemory],
        Runtime: [EMLX.Queue, EMLX.Memory, EMLX.Error],
        Diagnostics: [EMLX.Debug, EMLX.Doctor, EMLX.Telemetry, EMLX.Table],
        "Names of the C++ EMLX": [EMLX.CommandQueue, EMLX.NIFError, EMLX.Profiling]
      ]
    ]
  end

  defp package do
    [
      licenses: ["Apache-2.0"],
      links: %{},
      files:
        ~w(lib mix native tools script guides Cargo.toml Cargo.lock mix.exs .formatter.exs) ++
          Path.wildcard("{README,ARCHITECTURE,CHANGELOG,LICENSE}*")
    ]
  end
end
