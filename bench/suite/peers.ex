defmodule EMLX.Bench.Peers do
  @moduledoc """
  Finds and starts the programs that the suite compares with. What cannot be had is told in a line, and the suite goes
  on without.
  """

  alias EMLX.Bench.Peer

  @doc "`{%{name => peer}, [line]}` of those that are wanted."
  def start(names, options, folder) do
    Enum.reduce(names, {%{}, []}, fn name, {peers, notes} ->
      try do
        case prepare(name, options, folder) do
          {:ok, executable, arguments, opts} ->
            {Map.put(peers, name, Peer.start(called(name), executable, arguments, opts)), notes}

          {:absent, reason} ->
            {peers, notes ++ ["without #{called(name)}: #{reason}"]}
        end
      rescue
        error in RuntimeError -> {peers, notes ++ ["without #{called(name)}: #{Exception.message(error)}"]}
      end
    end)
  end

  # Those in Python: the script in bench/peers, what bench/python.sh calls the packages, and whether it has the NIF's
  # libmlx instead of the one in its package.
  @python %{
    mlx: {"Python MLX", "mlx_peer.py", "mlx", true},
    mlx_lm: {"mlx-lm", "mlx_lm_peer.py", "mlx_lm", true},
    wheel: {"Python MLX's wheel", "mlx_peer.py", "mlx", false},
    xla: {"XLA", "xla_peer.py", "xla", false},
    numpy: {"NumPy", "numpy_peer.py", "numpy", false},
    onnxruntime: {"ONNX Runtime", "onnxruntime_peer.py", "onnxruntime", false},
    openvino: {"OpenVINO", "openvino_peer.py", "openvino", false},
    torch: {"PyTorch", "torch_peer.py", "torch", false}
  }

  # VMs of their own: the project that they run in, which has all that they need, and the package of that name.
  @elixir %{
    axon: {"Axon", "emlx_axon", Axon},
    bumblebee: {"Bumblebee", "emlx_bumblebee", Bumblebee}
  }

  @doc "The peers that compute with EMLX, too."
  def ours, do: Map.keys(@elixir)

  defp called(name) when is_map_key(@elixir, name), do: elem(@elixir[name], 0)
  defp called(name), do: elem(@python[name], 0)

  defp prepare(name, %{device: :gpu}, _folder) when name in [:xla, :numpy, :onnxruntime, :openvino],
    do: {:absent, "it is compared on the CPU"}

  defp prepare(:torch, %{device: :cpu}, _folder), do: {:absent, "it is compared on a GPU"}

  defp prepare(name, options, folder) when is_map_key(@python, name) do
    {_, script, packages, same?} = @python[name]

    with {:ok, python} <- python(), {:ok, packages} <- packages(packages, folder) do
      environment =
        [{"PYTHONPATH", packages}, {"PYTHONUNBUFFERED", "1"}] ++
          if(same? and :os.type() == {:unix, :linux}, do: same(folder), else: [])

      {:ok, python, [Path.join([folder, "peers", script]), to_string(options.device)], env: environment}
    end
  end

  # Hex's package counts once it is fetched.
  defp prepare(name, options, folder) do
    {_, project, module} = @elixir[name]
    path = Path.expand("../#{project}", folder)

    there? =
      if Code.ensure_loaded?(Hex),
        do: File.dir?(Path.join(path, "deps/#{name}")),
        else: Code.ensure_loaded?(module)

    cond do
      not Code.ensure_loaded?(EMLX.Backend) ->
        {:absent, "Nx is not there"}

      not there? ->
        {:absent, "it is not there (with Hex: mix deps.get in #{project})"}

      true ->
        flags = if options.compile?, do: [], else: ["--no-compile"]
        arguments = ["run"] ++ flags ++ ["../bench/peers/#{name}_peer.exs", to_string(options.device)]
        {:ok, System.find_executable("mix"), arguments, cd: path, env: []}
    end
  end

  defp same(folder) do
    library = Path.expand("../priv/native/mlx/mlx/lib", folder)
    # The same libmlx, found before the one of Python's own package; what else the variable had stays.
    paths = Enum.reject([library, System.get_env("LD_LIBRARY_PATH")], &(&1 in [nil, ""]))
    # Products of f32 are in f32 here too, unless the user says otherwise.
    [{"LD_LIBRARY_PATH", Enum.join(paths, ":")}, {"MLX_ENABLE_TF32", System.get_env("MLX_ENABLE_TF32", "0")}]
  end

  defp python do
    case System.find_executable("python3") do
      nil -> {:absent, "there is no python3"}
      path -> {:ok, path}
    end
  end

  # The cache's folder with the packages, fetched by pip if it is not there.
  defp packages(name, folder) do
    script = """
    name="mix emlx.bench"
    . "$1/../script/lib.sh"
    . "$1/python.sh"
    python_#{name} >&2
    echo "$packages"
    """

    case System.find_executable("bash") do
      nil ->
        {:absent, "there is no bash to fetch Python's packages with"}

      bash ->
        case System.cmd(bash, ["-euc", script, "bash", folder]) do
          {text, 0} -> {:ok, text |> String.split("\n", trim: true) |> List.last("")}
          {_, _} -> {:absent, "pip could not fetch its packages (see above)"}
        end
    end
  end
end
