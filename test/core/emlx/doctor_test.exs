defmodule EMLX.DoctorTest do
  use ExUnit.Case, async: true

  import ExUnit.CaptureIO

  test "the doctor finds nothing wrong with an installation that runs these tests" do
    checks = EMLX.Doctor.checks()
    assert Enum.filter(checks, &match?({_, :error, _, _}, &1)) == []
    assert {_, :ok, text, nil} = List.keyfind(checks, "device :cpu", 0)
    assert text =~ "a product and a norm computed in"
    assert {_, :ok, _, nil} = List.keyfind(checks, "native library", 0)
  end

  test "mix emlx.doctor prints a line for each check" do
    output = capture_io(fn -> Mix.Task.rerun("emlx.doctor") end)
    for {name, _, _, _} <- EMLX.Doctor.checks(), do: assert(output =~ name)
    assert output =~ "✓ platform"
  end

  test "the doctor looks at the version of Nx" do
    {name, status, _, _} = EMLX.Doctor.checks() |> List.keyfind("nx", 0)
    assert {name, status} in [{"nx", :ok}, {"nx", :absent}]
  end

  # Without the library next to the compiled files, every call and the doctor report the cause.
  @tag :tmp_dir
  test "without the native library a call says why it fails, and so does the doctor", %{tmp_dir: dir} do
    File.mkdir_p!(Path.join(dir, "emlx"))
    File.cp_r!(Application.app_dir(:emlx, "ebin"), Path.join(dir, "emlx/ebin"))

    code = """
    {:error, _} = Application.ensure_all_started(:emlx)
    error = try do EMLX.Array.scalar(1, :s32) rescue error -> error end
    IO.puts("\#{inspect(error.__struct__)} \#{error.kind}: \#{Exception.message(error)}")
    IO.inspect(EMLX.Doctor.print())
    """

    libraries = for path <- :code.get_path(), path = to_string(path), not (path =~ ~r"/emlx/ebin$"), do: ["-pa", path]
    arguments = List.flatten(libraries) ++ ["-pa", Path.join(dir, "emlx/ebin"), "-e", code]
    {text, 0} = System.cmd("elixir", arguments, stderr_to_stdout: true)

    assert text =~
             ~r/EMLX.Error not_loaded: EMLX: the native library cannot be loaded \(.*emlx_native.so.*mix compile --force/

    assert text =~ ~r/✗ native library +the native library cannot be loaded/
    assert text =~ ~r/^:error$/m
  end

  test "the error for a library that the loader misses names the way out" do
    loaders = fn library ->
      "Failed to load NIF library /x/emlx_native: '#{library}: cannot open shared object file: No such file'"
    end

    driver = EMLX.Doctor.not_loaded(loaders.("libcuda.so.1"))
    assert driver =~ "cannot be loaded (libcuda.so.1: cannot open shared object file"
    assert driver =~ ~r/needs NVIDIA's driver.*driver 580 or newer.*EMLX_MLX=cpu/s
    assert EMLX.Doctor.not_loaded(loaders.("libcublasLt.so.13")) =~ ~r/remove .* mix compile --force installs it again/

    assert EMLX.Doctor.not_loaded(loaders.("libmlx.so")) =~
             ~r/^the native library cannot be loaded .*mix compile --force builds it/
  end

  test "the error for an absent device says why it is absent" do
    if EMLX.device_available?(:gpu) do
      assert EMLX.Native.device_absence(:gpu) == {:ok, nil}
    else
      {:ok, cause} = EMLX.Native.device_absence(:gpu)
      error = catch_error(EMLX.device_info(device: :gpu))
      assert %EMLX.Error{kind: :no_device} = error
      assert Exception.message(error) == "device_info: there is no device :gpu here: #{cause}"
      # One of: Metal is missing, EMLX was compiled for the CPU, or CUDA has no GPU.
      assert cause =~ ~r/Metal|EMLX_MLX=/
    end
  end
end
