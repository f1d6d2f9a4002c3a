# The layers of native/src: a file imports only from its own layer and from those below.
defmodule EMLX.LayersTest do
  use ExUnit.Case, async: true

  @root Path.expand("../../../native/src", __DIR__)

  # From the bottom to the top, each with the folders and files that belong to it.
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

  # Names of base's modules that the crate's root has too, and macros, which Rust keeps at the root.
  @everywhere ~w(device dtype error dispatch)

  @order @layers |> Keyword.keys() |> Enum.with_index() |> Map.new()
  @of for {layer, parts} <- @layers, part <- parts, into: %{}, do: {part, layer}

  # The first part of a path within the crate: `queue.rs` and `op/mod.rs` give `queue` and `op`.
  defp part(path), do: path |> Path.relative_to(@root) |> Path.split() |> hd() |> Path.rootname()

  defp sources do
    for path <- Path.wildcard(Path.join(@root, "**/*.rs")), Path.basename(path) not in ["tests.rs", "no_vm.rs"] do
      # What only tests import may come from anywhere.
      [code | _] = path |> File.read!() |> String.split(~r/^#\[cfg\((all\()?test/m)
      {path, code}
    end
  end

  # The modules of the crate that a file names.
  defp imports(code) do
    for [_, name] <- Regex.scan(~r/\bcrate::(\{|\w+)/, code), name not in @everywhere do
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

  test "an import that points up is found" do
    assert imports("use crate::runtime::Shared;") == ["runtime"]
    assert imports("use crate::{argument, shown};") == ["lib"]
    assert imports("let a = crate::nif::decode();") == ["nif"]
    assert imports("use crate::error::Result;") == []
    assert @order[@of["runtime"]] > @order[@of["program"]]
  end
end
