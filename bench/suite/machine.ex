defmodule EMLX.Bench.Machine do
  @moduledoc """
  On what the figures were taken: the machine, and the version of everything that has part in them.
  """

  @doc "Ordered `{key, value}` pairs for the results file."
  def describe(device, peers) do
    checks = EMLX.Doctor.checks()
    text = fn name -> with({_, _, text, _} <- List.keyfind(checks, name, 0), do: text) end

    [
      os: os(),
      processor: processor(),
      cores: System.schedulers_online(),
      memory: memory(),
      gpu: if(device == :gpu, do: text.("device :gpu")),
      versions:
        [
          emlx: version(:emlx),
          mlx: mlx(text.("MLX")),
          blas: with(path when path != nil <- text.("BLAS"), do: Path.basename(path)),
          nx: version(:nx),
          axon: version(:axon),
          bumblebee: version(:bumblebee),
          elixir: System.version(),
          otp: System.otp_release()
        ] ++ for({peer, %{versions: versions}} <- peers, {name, version} <- versions, do: {"#{peer}_#{name}", version}),
      commit: commit()
    ]
  end

  # Where it is installed is this machine's own affair.
  defp mlx(nil), do: nil
  defp mlx(text), do: text |> String.split(", ") |> Enum.reject(&String.contains?(&1, "/")) |> Enum.join(", ")

  @doc "The load of the last minute, where the system tells it."
  def load do
    with {:ok, text} <- File.read("/proc/loadavg"), {load, _} <- Float.parse(text) do
      load
    else
      _ -> nil
    end
  end

  defp os do
    {_, name} = :os.type()
    with({a, b, c} <- :os.version(), do: "#{name} #{a}.#{b}.#{c}")
  end

  defp processor do
    case File.read("/proc/cpuinfo") do
      {:ok, text} ->
        name = with([_, name] <- Regex.run(~r/model name\s*: (.*)/, text), do: name)
        vectors = for flag <- ~w(avx2 avx512f amx_tile), text =~ ~r/\b#{flag}\b/, do: flag
        Enum.join([name || to_string(:erlang.system_info(:system_architecture)) | vectors], ", ")

      _ ->
        case System.find_executable("sysctl") do
          nil -> to_string(:erlang.system_info(:system_architecture))
          path -> path |> System.cmd(["-n", "machdep.cpu.brand_string"]) |> elem(0) |> String.trim()
        end
    end
  end

  defp memory do
    with {:ok, text} <- File.read("/proc/meminfo"), [_, kib] <- Regex.run(~r/MemTotal:\s*(\d+) kB/, text) do
      EMLX.Bench.Statistics.text(String.to_integer(kib) * 1024, :bytes)
    else
      _ -> nil
    end
  end

  defp version(app) do
    Application.load(app)
    with(version when version != nil <- Application.spec(app, :vsn), do: to_string(version))
  end

  defp commit do
    with path when path != nil <- System.find_executable("git"),
         {text, 0} <- System.cmd(path, ~w(rev-parse --short HEAD), cd: __DIR__, stderr_to_stdout: true) do
      String.trim(text)
    else
      _ -> nil
    end
  end
end
