# The layers of native/src: a file imports only from its own layer and from those below. The crate of the CPU kernels,
# native/cpu, is below all of them.
defmodule EMLX.LayersTest do
  use ExUnit.Case, async: true

  @root Path.expand("../../../native/src", __DIR__)
  @cpu Path.expand("../../../native/cpu", __DIR__)

  # From bottom to top, each with its folders and files.
  @layers [
    base: ~w(base),
    mlx: ~w(mlx),
    handle: ~w(handle),
    cpu: ~w(cpu),
    op: ~w(op),
    program: ~w(program),
    runtime: ~w(runtime),
    nif: ~w(nif lib)
  ]

  @order @layers |> Keyword.keys() |> Enum.with_index() |> Map.new()
  @of for {layer, parts} <- @layers, part <- parts, into: %{}, do: {part, layer}

  # The first part of a path within the crate: `queue` for `queue.rs`, `op` for `op/mod.rs`.
  defp part(path), do: path |> Path.relative_to(@root) |> Path.split() |> hd() |> Path.rootname()

  defp sources do
    for path <- Path.wildcard(Path.join(@root, "**/*.rs")), Path.basename(path) not in ["tests.rs", "no_vm.rs"] do
      # Imports of tests may come from any layer.
      [code | _] = path |> File.read!() |> String.split(~r/^#\[cfg\((all\()?test/m)
      {path, code}
    end
  end

  # The modules of the crate that a file refers to.
  defp imports(code) do
    for [_, name] <- Regex.scan(~r/\bcrate::(\{|\w+)/, code) do
      if Map.has_key?(@of, name), do: name, else: "lib"
    end
  end

  test "every file belongs to a layer" do
    for {path, _} <- sources() do
      assert Map.has_key?(@of, part(path)), "#{Path.relative_to(path, @root)} is in no layer of #{__ENV__.file}"
    end
  end

  test "no file imports from a layer above its own" do
    upward =
      for {path, code} <- sources(),
          own = @of[part(path)],
          name <- Enum.uniq(imports(code)),
          other = @of[name],
          @order[other] > @order[own] do
        "#{Path.relative_to(path, @root)} (#{own}) imports crate::#{name} (#{other})"
      end

    assert upward == []
  end

  test "only mlx sees MLX's C functions and CUDA's driver" do
    allowed = ~w(mlx)

    seen =
      for {path, code} <- sources(), part(path) not in allowed, code =~ ~r/\bmlx_sys\b/ do
        Path.relative_to(path, @root)
      end

    assert seen == []
  end

  # The crates that a Cargo.toml depends on, in any section and under any name.
  defp dependencies(toml) do
    {names, _} =
      for line <- String.split(toml, "\n"), reduce: {[], nil} do
        {names, section} ->
          cond do
            match = Regex.run(~r/^\s*\[(?:.*\.)?(?:dev-|build-)?dependencies(?:\.([\w-]+))?\]/, line) ->
              {names ++ Enum.drop(match, 1), :dependencies}

            line =~ ~r/^\s*\[/ ->
              {names, nil}

            section == :dependencies ->
              renamed = Regex.run(~r/\bpackage\s*=\s*"([^"]+)"/, line) || []
              named = Regex.run(~r/^\s*"?([\w-]+)"?\s*[.=]/, line) || []
              {names ++ Enum.drop(named, 1) ++ Enum.drop(renamed, 1), section}

            true ->
              {names, section}
          end
      end

    Enum.map(names, &String.replace(&1, "-", "_"))
  end

  @above ~w(emlx_native mlx_rs mlx_sys rustler)

  test "the CPU kernels' crate depends on neither MLX nor the BEAM nor the NIF" do
    dependencies = @cpu |> Path.join("Cargo.toml") |> File.read!() |> dependencies()
    assert "half" in dependencies
    assert Enum.filter(dependencies, &(&1 in @above)) == []
  end

  test "a dependency is found in every form that Cargo takes" do
    toml = """
    [package]
    name = "none"

    [dependencies]
    half = "2"
    mlx-rs = { version = "1" }
    other = { package = "rustler", version = "1" }
    dotted.workspace = true

    [profile.release]
    lto = "thin"

    [target.'cfg(target_os = "linux")'.dev-dependencies]
    libc = "0.2"

    [build-dependencies.mlx-sys]
    version = "1"
    """

    found = dependencies(toml)
    for name <- ~w(half mlx_rs rustler dotted libc mlx_sys), do: assert(name in found)
    for name <- ~w(name none lto), do: refute(name in found)
  end

  test "no file of Rust or C++ has more than 700 lines" do
    native = Path.dirname(@root)

    long =
      for path <- Path.wildcard(Path.join(native, "**/*.{rs,cpp,h,hpp,cu}")),
          lines(path) > 700,
          do: Path.relative_to(path, native)

    assert long == []
  end

  defp lines(path), do: path |> File.read!() |> String.split("\n") |> length() |> Kernel.-(1)

  test "an import that points up is found" do
    assert imports("use crate::runtime::Shared;") == ["runtime"]
    assert imports("use crate::{argument, shown};") == ["lib"]
    assert imports("let a = crate::nif::decode();") == ["nif"]
    assert imports("use crate::base::Result;") == ["base"]
    assert @order[@of["runtime"]] > @order[@of["program"]]
  end
end
