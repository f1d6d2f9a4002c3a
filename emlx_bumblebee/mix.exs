# Without Hex, Bumblebee is found in Erlang's library path; see the file.
unless Code.ensure_loaded?(Hex), do: Code.require_file("../mix/compile.emlx_libraries.exs", __DIR__)

defmodule EMLXBumblebee.MixProject do
  use Mix.Project

  @version "0.1.0"

  def project do
    [
      app: :emlx_bumblebee,
      version: @version,
      description: "Bumblebee's models on the fused kernels of EMLX",
      elixir: "~> 1.17",
      start_permanent: Mix.env() == :prod,
      compilers: compilers(hex?()),
      elixirc_paths: elixirc_paths(Mix.env()),
      prune_code_paths: false,
      deps: [
        {:emlx_axon, path: "../emlx_axon"},
        {:emlx, path: "..", override: true} | deps(hex?())
      ],
      package: [
        licenses: ["Apache-2.0"],
        links: %{},
        files: ~w(lib mix.exs .formatter.exs README.md CONFORMANCE.md REFERENCES.md)
      ],
      docs: [
        main: "EMLXBumblebee",
        extras: ["README.md", "CONFORMANCE.md", "REFERENCES.md"],
        # Bumblebee has no pages for these, which its layers and the tests of its values are named by.
        skip_code_autolink_to: &String.match?(&1, ~r/^Bumblebee\.(Layers|Utils)\b/),
        groups_for_modules: [Rewriting: EMLXBumblebee, Blocks: ~r"^Bumblebee\.Block\."]
      ]
    ]
  end

  # With Hex, Mix adds the dependencies to the applications.
  def application, do: [extra_applications: if(hex?(), do: [:logger], else: [:logger, :bumblebee])]

  defp deps(true) do
    [
      {:bumblebee, "~> 0.7.0"},
      {:ex_doc, "~> 0.34", only: :dev, runtime: false}
    ]
  end

  defp deps(false), do: []

  defp compilers(true), do: Mix.compilers()
  defp compilers(false), do: [:emlx_libraries | Mix.compilers()]

  # The tests share support modules of EMLX's own tests.
  defp elixirc_paths(:test) do
    shared =
      for file <- ~w(nx/no_compiler telemetry_recorder),
          do: Path.expand("../test/support/#{file}.ex", __DIR__)

    ["lib", "test/support" | shared]
  end

  defp elixirc_paths(_), do: ["lib"]

  defp hex?, do: Code.ensure_loaded?(Hex)
end
