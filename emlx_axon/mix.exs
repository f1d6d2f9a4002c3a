# Without Hex, Axon is found in Erlang's library path; see the file.
unless Code.ensure_loaded?(Hex), do: Code.require_file("../mix/compile.emlx_libraries.exs", __DIR__)

defmodule EMLXAxon.MixProject do
  use Mix.Project

  @version "0.1.0"

  def project do
    [
      app: :emlx_axon,
      version: @version,
      description: "Axon's layers as blocks that EMLX runs with MLX's fused kernels",
      elixir: "~> 1.17",
      start_permanent: Mix.env() == :prod,
      compilers: compilers(hex?()),
      elixirc_paths: elixirc_paths(Mix.env()),
      prune_code_paths: false,
      deps: [{:emlx, path: ".."} | deps(hex?())],
      package: [
        licenses: ["Apache-2.0"],
        links: %{},
        files: ~w(lib mix.exs .formatter.exs README.md)
      ],
      docs: [
        main: "EMLXAxon",
        extras: ["README.md"],
        groups_for_modules: [Rewriting: [EMLXAxon, EMLXAxon.Layers], Blocks: ~r"^Axon\.Block\."]
      ]
    ]
  end

  # With Hex, Mix adds the dependencies to the applications.
  def application, do: [extra_applications: if(hex?(), do: [:logger], else: [:logger, :axon])]

  defp deps(true) do
    [
      {:axon, "~> 0.8.0"},
      {:ex_doc, "~> 0.34", only: :dev, runtime: false}
    ]
  end

  defp deps(false), do: []

  defp compilers(true), do: Mix.compilers()
  defp compilers(false), do: [:emlx_libraries | Mix.compilers()]

  # The tests share the case template of EMLX's own tests.
  defp elixirc_paths(:test) do
    shared =
      for file <- ~w(nx/nx_case nx/no_compiler golden telemetry_recorder tolerance),
          do: Path.expand("../test/support/#{file}.ex", __DIR__)

    ["lib", "test/support" | shared]
  end

  defp elixirc_paths(_), do: ["lib"]

  defp hex?, do: Code.ensure_loaded?(Hex)
end
