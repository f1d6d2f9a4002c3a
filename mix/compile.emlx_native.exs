# The Mix compiler that builds the NIF; mix.exs loads it. It installs MLX (tools/prepare, on Linux), runs Cargo, and
# copies the library to `priv/native/emlx_native`, from where `EMLX.Native` loads it. If no source changed, it does
# nothing, unless called with --force.
defmodule Mix.Tasks.Compile.EmlxNative do
  @moduledoc false
  use Mix.Task.Compiler

  # The package's own folder, which is not the project's if EMLX is a dependency.
  @root Path.expand("..", __DIR__)
  @library Path.join(@root, "priv/native/emlx_native.so")
  @metallib Path.join(@root, "priv/native/mlx.metallib")
  # The stamp is in Cargo's output folder, because all of Mix's build folders share one library.
  @stamp Path.join(@root, "target/emlx_native.stamp")
  @sources ["Cargo.{toml,lock}", "native/**/*", "tools/prepare/**/*"]

  @impl true
  def run(arguments) do
    state = state()

    if "--force" not in arguments and ready?() and File.read(@stamp) == {:ok, state} do
      {:noop, []}
    else
      cargo = cargo()
      if linux?(), do: prepare(cargo)
      build(cargo)
      install()
      File.write!(@stamp, state)
      # Mix links priv before the compilers run, and the first build creates it.
      Mix.Project.build_structure()
      {:ok, []}
    end
  end

  @impl true
  def clean do
    Enum.each([@library, @metallib, @stamp], &File.rm/1)
  end

  # A digest of everything on which the library and its MLX depend.
  defp state do
    files =
      for pattern <- @sources, path <- Path.wildcard(Path.join(@root, pattern)), File.regular?(path) do
        %File.Stat{mtime: mtime, size: size} = File.stat!(path)
        {Path.relative_to(path, @root), mtime, size}
      end

    variables = Enum.map(~w(EMLX_MLX EMLX_CACHE XDG_CACHE_HOME CARGO_PROFILE_RELEASE_LTO), &System.get_env/1)
    {@root, files, variables} |> :erlang.term_to_binary() |> :erlang.md5() |> Base.encode16(case: :lower)
  end

  defp ready? do
    File.regular?(@library) and
      (not linux?() or File.regular?(Path.join(@root, "priv/native/mlx/mlx/lib/libmlx.so")))
  end

  defp prepare(cargo) do
    run(cargo, ~w(run --release --quiet --package prepare --target-dir target), """
    EMLX could not install MLX; see the error above. On Debian, #{Path.join(@root, "script/bootstrap")} \
    installs the missing packages.\
    """)
  end

  defp build(cargo) do
    Mix.shell().info("Compiling EMLX's native library (the first time takes some minutes)")

    run(
      cargo,
      ~w(build --release --package emlx_native --target-dir target),
      "EMLX's native library did not compile; see Cargo's message above."
    )
  end

  defp run(cargo, arguments, message) do
    options = [
      cd: @root,
      env: [{"CARGO_BUILD_TARGET", nil}, {"MLX_RS_METAL_PATH", metal_folder()}],
      into: IO.stream(),
      stderr_to_stdout: true
    ]

    case System.cmd(cargo, arguments, options) do
      {_, 0} -> :ok
      {_, _} -> Mix.raise(message)
    end
  end

  defp install do
    suffix = if linux?(), do: "so", else: "dylib"
    copy(Path.join(@root, "target/release/libemlx_native.#{suffix}"), @library)

    # MLX loads its Metal kernels from the folder of the library that contains it.
    metallib = Path.join(metal_folder(), "mlx.metallib")
    if File.regular?(metallib), do: copy(metallib, @metallib)
  end

  # Replaces the file instead of overwriting it, because another VM may have loaded the old one.
  defp copy(from, to) do
    temporary = "#{to}.#{System.pid()}.part"
    File.mkdir_p!(Path.dirname(to))
    File.cp!(from, temporary)
    File.rename!(temporary, to)
  end

  defp metal_folder, do: Path.join(@root, "target/metal")

  defp linux?, do: :os.type() == {:unix, :linux}

  defp cargo do
    # An editor or a service may start Mix without a login shell's PATH.
    in_home = Path.join(System.user_home() || "/", ".cargo/bin/cargo")

    cond do
      cargo = System.find_executable("cargo") ->
        cargo

      File.regular?(in_home) ->
        in_home

      true ->
        Mix.raise("EMLX builds a native library with Rust, and there is no cargo: install Rust 1.91 or newer (rustup)")
    end
  end
end
