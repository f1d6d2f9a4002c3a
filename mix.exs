for file <- ~w(compile.emlx_native compile.emlx_libraries) do
  Code.require_file("mix/#{file}.exs", __DIR__)
end

defmodule EMLX.MixProject do
  use Mix.Project

  @version "0.1.0"

  # The tiers of code: core needs nothing but the BEAM, nx needs Nx. EMLX_TIER=core leaves Nx out although it is there.
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
      docs: [main: "EMLX", extras: Path.wildcard("{README,ARCHITECTURE,CHANGELOG}.md") ++ Path.wildcard("guides/*.md")]
    ]
  end

  def application do
    [extra_applications: [:logger | applications()], mod: {EMLX.Application, []}]
  end

  defp deps(true) do
    [
      {:nx, "~> 0.12.0 or ~> 0.13.0"},
      {:telemetry, "~> 1.0"},
      {:ex_doc, "~> 0.34", only: :dev, runtime: false}
    ]
  end

  defp deps(false), do: []

  # With Hex the dependencies are applications of their own accord. The core tier tells telemetry of its work where that is there.
  defp applications do
    cond do
      hex?() -> []
      nx?() -> [:nx, :telemetry]
      true -> [telemetry: :optional]
    end
  end

  defp elixirc_paths(:test), do: elixirc_paths(:dev) ++ support()
  defp elixirc_paths(_), do: ["lib/core"] ++ if(nx?(), do: ["lib/nx"], else: [])

  # What stands in test/support itself serves all tiers.
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
