defmodule EMLX.Doctor do
  @moduledoc """
  Looks at an installation: which MLX runs, on which devices, with which BLAS, and which packages are there. `mix emlx.doctor`
  prints it; in a release, `EMLX.Doctor.print/0` does.
  """

  alias EMLX.{Array, Ops}

  @type status :: :ok | :warning | :error | :absent
  @type check :: {name :: String.t(), status, text :: String.t(), way_out :: String.t() | nil}

  # Oldest and first version too new of the packages that EMLX works with.
  @packages [
    {:nx, "0.12.0", "0.14.0", "Nx is needed for EMLX.Backend and the compiler"},
    {:axon, "0.8.0", "0.9.0", "emlx_axon needs it"},
    {:bumblebee, "0.7.0", "0.8.0", "emlx_bumblebee needs it"}
  ]

  @doc "Prints the checks, one line each, and the ways out of what is wrong. Gives `:ok` or `:error`."
  @spec print() :: :ok | :error
  def print do
    checks = checks()
    width = checks |> Enum.map(fn {name, _, _, _} -> String.length(name) end) |> Enum.max()

    for {name, status, text, way_out} <- checks do
      IO.puts("#{mark(status)} #{String.pad_trailing(name, width)}  #{text}")
      if way_out, do: IO.puts("  #{String.duplicate(" ", width)}  → #{way_out}")
    end

    if Enum.any?(checks, &match?({_, :error, _, _}, &1)), do: :error, else: :ok
  end

  defp mark(:ok), do: "✓"
  defp mark(:warning), do: "!"
  defp mark(:error), do: "✗"
  defp mark(:absent), do: "·"

  @doc """
  What was looked at: `{name, status, text, way_out}` each. `:absent` is what is not there and need not be, `way_out` is `nil` where
  nothing has to be done.
  """
  @spec checks() :: [check]
  def checks do
    library = library()

    rest =
      if elem(library, 1) == :ok,
        do: mlx() ++ [device(:cpu), device(:gpu), memory(), fuse()],
        else: mlx()

    [platform(), library] ++ rest ++ packages()
  end

  defp platform do
    {_, os} = :os.type()
    machine = :erlang.system_info(:system_architecture)

    text =
      "#{os}, #{machine}, Elixir #{System.version()} on OTP #{System.otp_release()}, #{System.schedulers_online()} schedulers"

    {"platform", :ok, text, nil}
  end

  # ---- the native library ----

  defp library do
    path = native("emlx_native.so")

    case Code.ensure_loaded(EMLX.Native) do
      {:module, _} ->
        {"native library", :ok, path, nil}

      {:error, reason} ->
        {"native library", :error, "#{path} cannot be loaded (#{inspect(reason)})",
         "mix compile --force builds it and finds MLX again; the cache folder (EMLX_CACHE) has to stay where it was"}
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

  # A wheel leaves a folder with its name and version.
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
        error ->
          {name, :error, Exception.message(error), driver_way_out(device)}
      end
    else
      {status, way_out} = missing(device)
      {name, status, "not there", way_out}
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

  # A product and a fused kernel, computed and looked at.
  defp run(device) do
    options = [device: device]
    a = Ops.ones({256, 256}, :f32, options)

    {time, sum} =
      :timer.tc(fn -> a |> Ops.matmul(a) |> EMLX.Kernels.rms_norm(nil, options) |> Ops.sum() |> Array.to_list() end)

    if abs(sum - 65_536) > 1, do: raise("a product and a norm gave #{sum}, expected 65536")
    "a product and a norm computed in #{Float.round(time / 1000, 1)} ms"
  end

  defp missing(:cpu), do: {:error, "MLX has no CPU device here: mix compile --force"}

  defp missing(:gpu) do
    cond do
      not linux?() ->
        {:error, "MLX finds no Metal device; Apple silicon is needed"}

      cpu?(resolved(native("mlx"))) and nvidia?() ->
        {:warning, "compile with EMLX_MLX=cuda13 (or cuda12) for the NVIDIA GPU of this machine"}

      cpu?(resolved(native("mlx"))) ->
        {:absent, nil}

      true ->
        {:error, driver_way_out(:gpu)}
    end
  end

  defp driver_way_out(:gpu) do
    driver =
      case File.read("/proc/driver/nvidia/version") do
        {:ok, text} -> "the driver says: " <> (text |> String.split("\n") |> hd())
        _ -> "there is no NVIDIA driver (/proc/driver/nvidia/version)"
      end

    "#{driver}; CUDA 13 needs driver 580 or newer, CUDA 12 needs 525 or newer (EMLX_MLX=cuda12)"
  end

  defp driver_way_out(_device), do: nil

  defp nvidia?, do: File.exists?("/proc/driver/nvidia/version")

  # ---- the rest ----

  defp memory do
    {"memory", :ok, "limit #{bytes(EMLX.Memory.limit())}, active #{bytes(EMLX.Memory.active())}", nil}
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
