defmodule EMLX.DocumentsTest do
  use ExUnit.Case, async: true

  @root Path.expand("../../..", __DIR__)
  @patterns ["*.md", "guides/*.md", "docs/**/*.md", "bench/*.md", "emlx_axon/*.md", "emlx_bumblebee/*.md"]
  @sources "**/*.{ex,exs,rs,cpp,h,cu}"
  @records Path.wildcard(Path.join(@root, "docs/adr/0*.md"))

  defp documents, do: for(pattern <- @patterns, path <- Path.wildcard(Path.join(@root, pattern)), do: path)

  # Relative targets of links and images, without the fragment. Links in code are ignored.
  defp targets(path) do
    text = path |> File.read!() |> String.replace(~r/```.*?```/s, "") |> String.replace(~r/`[^`\n]*`/, "")

    for [_, target] <- Regex.scan(~r/\]\(([^)\s]+)\)/, text),
        not String.contains?(target, "://"),
        [file | _] = String.split(target, "#"),
        file != "",
        do: file
  end

  test "every relative link in a document leads to a file" do
    links = for path <- documents(), target <- targets(path), do: {path, target}
    assert length(links) > 100

    missing =
      for {path, target} <- links,
          not File.exists?(Path.expand(target, Path.dirname(path))),
          do: {Path.relative_to(path, @root), target}

    assert missing == []
  end

  test "the index of decisions lists every record once, and records are numbered without a gap" do
    names = Enum.map(@records, &Path.basename/1)
    assert Enum.map(names, &String.to_integer(String.slice(&1, 0, 4))) == Enum.to_list(1..length(names))

    listed = for "0" <> _ = target <- targets(Path.join(@root, "docs/adr/README.md")), do: target
    assert Enum.sort(listed) == names
  end

  test "every record has its number, a status, a context, a decision and consequences" do
    for path <- @records do
      text = File.read!(path)
      number = path |> Path.basename() |> String.slice(0, 4) |> String.to_integer()
      assert text =~ ~r/\A# #{number}\. /, path

      for part <- ["Status: ", "## Context", "## Decision", "## Consequences"] do
        assert text =~ part, "#{path} has no #{part}"
      end
    end
  end

  test "every number of a decision in code and documents is a record's" do
    folders = ["lib", "native", "mix", "bench"]
    sources = for folder <- folders, path <- Path.wildcard(Path.join([@root, folder, @sources])), do: path

    unknown =
      for path <- documents() ++ sources,
          [_, number] <- Regex.scan(~r/\bADR (\d+)/, File.read!(path)),
          String.to_integer(number) not in 1..length(@records),
          do: {Path.relative_to(path, @root), number}

    assert unknown == []
  end

  test "no two pages of the documentation have one file name, by which ExDoc finds a link's page" do
    pages = Enum.map(Mix.Project.config()[:docs][:extras], &Path.basename/1)
    assert pages == Enum.uniq(pages)
  end

  test "every module with a page is in a group, and every operation, too" do
    groups = Mix.Project.config()[:docs][:groups_for_modules] |> Keyword.values() |> List.flatten()

    pages =
      for module <- Application.spec(:emlx, :modules),
          String.starts_with?("#{module.module_info(:compile)[:source]}", Path.join(@root, "lib")),
          {:docs_v1, _, _, _, %{}, _, _} <- [Code.fetch_docs(module)],
          "EMLX" <> _ = name <- [inspect(module)],
          do: {module, name}

    assert {EMLX, "EMLX"} in pages

    in_no_group =
      for {module, name} <- pages,
          not Enum.any?(groups, &if(is_atom(&1), do: &1 == module, else: name =~ &1)),
          do: module

    assert in_no_group == []

    {:docs_v1, _, _, _, _, _, docs} = Code.fetch_docs(EMLX.Ops)
    assert [:run] == for({{:function, name, _}, _, _, %{}, %{} = metadata} <- docs, metadata[:group] == nil, do: name)
  end
end
