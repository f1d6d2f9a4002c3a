defmodule EMLX.SharedMemoryTest do
  use ExUnit.Case, async: true

  alias EMLX.{Array, Error, Ops, SharedMemory}

  doctest SharedMemory

  defp failure(fun), do: assert_raise(Error, fun)

  test "a segment has an array's elements in row-major order, and take/4 unlinks it" do
    array = Ops.iota({3, 4}, dtype: :s32)

    for {layout, expected} <- [
          {array, Array.to_list(array)},
          {Ops.transpose(array, [1, 0]), Array.to_list(Ops.transpose(array, [1, 0]))},
          {Ops.zeros({0, 2}, :s32), []},
          {Array.scalar(7, :s32), 7}
        ] do
      {name, bytes} = SharedMemory.create(layout)
      assert bytes == Array.bytes(layout)
      assert name |> SharedMemory.take(Array.shape(layout), :s32) |> Array.to_list() == expected
      assert %{kind: :file, reason: reason} = failure(fn -> SharedMemory.take(name, Array.shape(layout), :s32) end)
      assert reason =~ "shm_open: No such file or directory"
    end
  end

  test "a segment of another size is refused, and stays" do
    {name, 8} = SharedMemory.create(Array.from_list([1.0, 2.0], :f32))
    error = failure(fn -> SharedMemory.take(name, {3}, :f32) end)
    assert error.reason == "shared memory #{name} has 8 bytes, shape [3] of type f32 takes 12"
    assert failure(fn -> SharedMemory.take(name, {-2}, :f32) end).reason =~ "an impossible number"
    assert SharedMemory.take(name, {1}, :f64) |> Array.bytes() == 8
    assert SharedMemory.unlink(name) == :ok
  end

  test "names that could be paths are refused" do
    for name <- ["", "name", "/", "/../etc/passwd", "/a\0b"] do
      assert %{kind: :invalid_argument} = failure(fn -> SharedMemory.unlink(name) end)
      assert %{kind: :invalid_argument} = failure(fn -> SharedMemory.take(name, {1}, :u8) end)
    end

    assert %{kind: :bad_argument} = failure(fn -> SharedMemory.unlink(:name) end)
  end

  test "permissions are exactly the given ones, whatever the umask" do
    for permissions <- [0o400, 0o640, 0o666] do
      {name, _} = SharedMemory.create(Array.scalar(1, :u8), permissions: permissions)

      # Linux shows shared memory as files here.
      if File.dir?("/dev/shm"), do: assert(Bitwise.band(File.stat!("/dev/shm" <> name).mode, 0o777) == permissions)
      assert name |> SharedMemory.take({}, :u8) |> Array.to_list() == 1
    end

    for permissions <- [-1, 0o1000, :read] do
      message = ~r/:permissions is an integer from 0 to 0o777/
      assert_raise ArgumentError, message, fn -> SharedMemory.create(Array.scalar(1, :u8), permissions: permissions) end
    end
  end

  test "the native functions refuse terms of wrong types" do
    assert {:error, %{kind: :bad_argument}} = EMLX.Native.shm_create(:data, 0o600)
    assert {:error, %{kind: :bad_argument}} = EMLX.Native.shm_create(<<1>>, -1)
    assert {:error, %{kind: :bad_argument}} = EMLX.Native.check_results(1)
  end

  # Runs code in a separate VM, another process of the operating system, which knows only the name.
  defp elsewhere(code) do
    paths = for path <- :code.get_path(), do: ["-pa", List.to_string(path)]
    script = "{ok, _} = application:ensure_all_started(emlx), #{code}, halt(0)."
    {output, status} = System.cmd("erl", List.flatten(paths) ++ ["-noshell", "-eval", script], stderr_to_stdout: true)
    assert {status, output} |> elem(0) == 0, output
    output
  end

  test "another process of the operating system takes a segment" do
    {name, _} = SharedMemory.create(Array.from_list([[1, 2], [3, 4]], :s32), permissions: 0o600)

    output =
      elsewhere("""
      Array = 'Elixir.EMLX.SharedMemory':take(<<"#{name}">>, [2, 2], s32),
      io:format("~p", ['Elixir.EMLX.Array':to_list(Array)])
      """)

    assert output == "[[1,2],[3,4]]"
    assert %{kind: :file} = failure(fn -> SharedMemory.take(name, {2, 2}, :s32) end)
  end

  test "a segment outlives the process of the operating system that created it" do
    name =
      elsewhere("""
      Array = 'Elixir.EMLX.Array':from_list([1.5, 2.5], f32),
      {Name, 8} = 'Elixir.EMLX.SharedMemory':create(Array, [{permissions, 8#600}]),
      io:format("~s", [Name])
      """)

    assert name |> SharedMemory.take({2}, :f32) |> Array.to_list() == [1.5, 2.5]
  end
end
