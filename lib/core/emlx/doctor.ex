defmodule EMLX.Doctor do
  @moduledoc """
  Checks an installation: the version of MLX, the devices, the BLAS, and the packages that EMLX works with.
  `mix emlx.doctor` prints the checks; in a release, `EMLX.Doctor.print/0` does.
  """

  alias EMLX.{Array, Ops}

  @type status :: :ok | :warning | :error | :absent
  @type check :: {name :: String.t(), status, text :: String.t(), way_out :: String.t() | nil}

  # Packages that EMLX works with: the oldest supported version, and the first unsupported newer one.
  @packages [
    {:nx, "0.12.0", "0.14.0", "Nx is needed for EMLX.Backend and the compiler"},
    {:axon, "0.8.0", "0.9.0", "emlx_axon needs it"},
    {:bumblebee, "0.7.0", "0.8.0", "emlx_bumblebee needs it"}
  ]

  @doc "Prints the checks, one line each, and remedies for failed ones. Returns `:error` if a check failed, else `:ok`."
  @spec print() :: :ok | :error
  def print do
    checks = checks()

    rows =
      for {name, status, text, way_out} <- checks,
          row <- [["#{mark(status)} #{name}", text] | if(way_out, do: [["", "→ #{way_out}"]], else: [])],
          do: row

    rows |> EMLX.Table.text() |> IO.puts()
    if Enum.any?(checks, &match?({_, :error, _, _}, &1)), do: :error, else: :ok
  end

  defp mark(:ok), do: "✓"
  defp mark(:warning), do: "!"
  defp mark(:error), do: "✗"
  defp mark(:absent), do: "·"

  @doc """
  Runs the checks and returns `{name, status, text, way_out}` for each. The status `:absent` marks an optional part that
  is missing. `way_out` is a remedy, `nil` if nothing has to be done.
  """
  @spec checks() :: [check]
  def checks do
    library = library()

    rest =
      if elem(library, 1) == :ok,
        do: mlx() ++ [device(:cpu), device(:gpu)] ++ memory() ++ [fuse()],
        else: mlx()

    [platform(), library] ++ rest ++ packages()
  end

  defp platform do
    {_, os} = :os.type()
    machine = :erlang.system_info(:system_architecture)

    text =
      "#{os}, #{machine}, Elixir #{System.version()} on OTP #{System.otp_release()}, " <>
        "#{System.schedulers_online()} schedulers"

    {"platform", :ok, text, nil}
  end

  # ---- the native library ----

  defp library do
    path = native("emlx_native.so")

    case EMLX.Native.failure() do
      nil -> {"native library", :ok, path, nil}
      text -> {"native library", :error, cause(text), loading_way_out(text)}
    end
  end

  @doc false
  # Why the native library could not be loaded, and a remedy, for errors. `text` is the loader's message.
  def not_loaded(text), do: "#{cause(text)}: #{loading_way_out(text)}"

  # The loader's message starts with the name of the library.
  defp cause(text) do
    case Regex.run(~r/'(.*)'$/s, text) do
      [_, words] -> "the native library cannot be loaded (#{words})"
      nil -> "the native library cannot be loaded (#{text})"
    end
  end

  defp loading_way_out(text) do
    cond do
      # Only MLX for CUDA links to libcuda.
      text =~ "libcuda.so" ->
        "MLX for CUDA needs NVIDIA's driver, and #{driver()}; on a machine without an NVIDIA GPU compile with " <>
          "EMLX_MLX=cpu"

      text =~ ~r/lib(cu|nv|nccl)/ ->
        "a library that MLX's wheel for CUDA brings is missing or does not fit: remove #{resolved(native("mlx"))}, " <>
          "then EMLX_MLX=#{variable()} mix compile --force installs it again; #{driver_needed()}"

      true ->
        "mix compile --force builds it and finds MLX again; the cache folder (EMLX_CACHE) has to stay where it was"
    end
  end

  # The value of EMLX_MLX at the installation of MLX.
  defp variable do
    case Path.wildcard(Path.join(resolved(native("mlx")), "mlx_{cpu,cuda}*.dist-info")) do
      [wheel | _] -> Regex.replace(~r/^mlx_([a-z]*)_?(\d*)-.*/, Path.basename(wheel), "\\1\\2")
      [] -> "cuda13"
    end
  end

  defp mlx do
    if linux?() do
      folder = resolved(native("mlx"))
      [variant(folder) | blas(folder)]
    else
      [{"MLX", :ok, "Metal, built by mlx-sys", nil}]
    end
  end

  # The folder of a wheel's metadata has its name and version.
  defp variant(folder) do
    wheels = Path.wildcard(Path.join(folder, "mlx_{cpu,cuda}*.dist-info"))
    library = Path.join(folder, "mlx/lib/libmlx.so")

    case {wheels, File.regular?(library)} do
      {[wheel | _], true} ->
        [name, version] = wheel |> Path.basename(".dist-info") |> String.split("-")
        {"MLX", :ok, "#{version}, #{name |> String.trim_leading("mlx_") |> String.replace("_", " ")}, #{library}", nil}

      _ ->
        {"MLX", :error, "there is no libmlx.so in #{folder}", "mix compile --force fetches it again"}
    end
  end

  defp blas(folder) do
    case {cpu?(folder), File.read(Path.join(folder, "mlx_cpu.libs/blas.txt"))} do
      {false, _} ->
        []

      {true, {:ok, text}} ->
        [{"BLAS", :ok, text |> String.split() |> hd(), nil}]

      {true, _} ->
        [
          {"BLAS", :warning, "the reference BLAS of MLX's wheel, some 36 times slower than OpenBLAS",
           "install OpenBLAS (Debian: libopenblas0-pthread), then mix compile --force"}
        ]
    end
  end

  defp cpu?(folder), do: Path.wildcard(Path.join(folder, "mlx_cpu*.dist-info")) != []

  # ---- devices ----

  defp device(device) do
    name = "device :#{device}"

    if EMLX.device_available?(device) do
      try do
        {name, :ok, described(device) <> run(device), nil}
      rescue
        error -> {name, :error, Exception.message(error), if(device == :gpu, do: driver())}
      end
    else
      missing(name, device, EMLX.Native.call!(EMLX.Native.device_absence(device)))
    end
  end

  defp described(device) do
    info = EMLX.device_info(device: device)
    name = info["device_name"] || info["architecture"]
    memory = info["memory_size"] || info["total_memory"]

    [name, if(is_integer(memory), do: bytes(memory))]
    |> Enum.reject(&is_nil/1)
    |> Enum.join(", ")
    |> then(&if(&1 == "", do: "", else: &1 <> ": "))
  rescue
    _ -> ""
  end

  # Computes a product and a fused kernel, and checks the result.
  defp run(device) do
    options = [device: device]
    a = Ops.ones({256, 256}, :f32, options)

    {time, sum} =
      :timer.tc(fn -> a |> Ops.matmul(a) |> EMLX.Kernels.rms_norm(nil, options) |> Ops.sum() |> Array.to_list() end)

    if abs(sum - 65_536) > 1, do: raise("a product and a norm gave #{sum}, expected 65536")
    "a product and a norm computed in #{Float.round(time / 1000, 1)} ms"
  end

  # `cause` is the native library's text, with a remedy.
  defp missing(name, :gpu, cause) do
    cond do
      not linux?() or not cpu?(resolved(native("mlx"))) -> {name, :error, "not there", cause}
      nvidia?() -> {name, :warning, "not there", cause}
      true -> {name, :absent, "not there", nil}
    end
  end

  # The cause is that of the GPU, which the next line shows.
  defp missing(name, :cpu, _cause), do: {name, :error, "not there: MLX for CUDA takes its memory from CUDA", nil}

  defp driver do
    case File.read("/proc/driver/nvidia/version") do
      {:ok, text} -> "the driver here is #{text |> String.split("\n") |> hd()}; #{driver_needed()}"
      _ -> "there is none here (no /proc/driver/nvidia/version); #{driver_needed()}"
    end
  end

  defp driver_needed, do: "CUDA 13 needs driver 580 or newer, CUDA 12 needs 525 or newer (EMLX_MLX=cuda12)"

  defp nvidia?, do: File.exists?("/proc/driver/nvidia/version")

  # ---- the rest ----

  # Without a device there are no memory figures.
  defp memory do
    if EMLX.device_available?(:cpu),
      do: [{"memory", :ok, "limit #{bytes(EMLX.Memory.limit())}, active #{bytes(EMLX.Memory.active())}", nil}],
      else: []
  end

  defp fuse do
    cond do
      not linux?() ->
        {"fuse: true", :ok, "kernels are compiled by Metal", nil}

      path = System.find_executable("g++") ->
        {"fuse: true on the CPU", :ok, path, nil}

      true ->
        {"fuse: true on the CPU", :absent, "no C++ compiler (g++); only programs with fuse: true on the CPU need one",
         nil}
    end
  end

  defp packages do
    for {app, oldest, too_new, use} <- @packages do
      Application.load(app)

      case Application.spec(app, :vsn) do
        nil ->
          {"#{app}", :absent, "not there; #{use}", nil}

        version ->
          version = List.to_string(version)
          fits? = Version.compare(version, oldest) != :lt and Version.compare(version, too_new) == :lt

          if fits?,
            do: {"#{app}", :ok, version, nil},
            else: {"#{app}", :warning, version, "EMLX is made for #{oldest} and newer, below #{too_new}"}
      end
    end
  end

  defp native(name), do: :emlx |> :code.priv_dir() |> Path.join("native/#{name}")

  defp resolved(path) do
    case File.read_link(path) do
      {:ok, target} -> Path.expand(target, Path.dirname(path))
      _ -> path
    end
  end

  defp linux?, do: :os.type() == {:unix, :linux}

  defp bytes(count) when count >= 1_073_741_824, do: "#{Float.round(count / 1_073_741_824, 1)} GiB"
  defp bytes(count), do: "#{Float.round(count / 1_048_576, 1)} MiB"
end
