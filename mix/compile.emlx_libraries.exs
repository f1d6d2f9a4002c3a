# A Mix compiler for machines without Hex, where libraries are installed in Erlang's own folder; mix.exs loads it. Mix
# consolidates no protocols of that folder, so that, for example, Nx's tensors could not be inspected. The compiler
# therefore links the Elixir libraries into the build folder, and adds the links to the code path.
defmodule Mix.Tasks.Compile.EmlxLibraries do
  @moduledoc false
  use Mix.Task.Compiler

  @impl true
  def run(_arguments) do
    unless Code.ensure_loaded?(Hex), do: Enum.each(libraries(), &add/1)
    {:noop, []}
  end

  defp libraries do
    erlang = :code.lib_dir()

    for path <- :code.get_path(),
        List.starts_with?(path, erlang),
        folder = Path.dirname(path),
        Enum.any?(files(path), &String.starts_with?(&1, "Elixir.")),
        do: folder
  end

  defp files(path) do
    case File.ls(path) do
      {:ok, names} -> names
      {:error, _} -> []
    end
  end

  defp add(folder) do
    link = Path.join([Mix.Project.build_path(), "libraries", Path.basename(folder)])
    File.mkdir_p!(Path.dirname(link))
    # The link may exist already, from this run or an earlier one.
    _ = File.ln_s(folder, link)
    Code.append_path(Path.join(link, "ebin"))
  end
end
