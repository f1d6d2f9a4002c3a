defmodule EMLX.SafetensorsTest do
  use ExUnit.Case, async: true

  alias EMLX.{Array, Error, Ops, Queue, Safetensors}

  doctest EMLX.Safetensors

  @moduletag :tmp_dir

  @dtypes [:bool, :u8, :u16, :u32, :u64, :s8, :s16, :s32, :s64, :f16, :bf16, :f32, :f64, :c64]

  test "arrays of every type and shape are the same after saving and loading", %{tmp_dir: dir} do
    arrays =
      for dtype <- @dtypes, shape <- [{}, {3}, {2, 3}, {0, 4}], into: %{} do
        {"#{dtype} #{inspect(shape)}", Ops.astype(Ops.iota(shape), dtype)}
      end

    path = Path.join(dir, "all.safetensors")
    assert Safetensors.save(path, arrays) == :ok
    loaded = Safetensors.load(path)
    assert Map.keys(loaded) == Map.keys(arrays)

    for {name, array} <- arrays do
      assert Array.shape(loaded[name]) == Array.shape(array)
      assert Array.dtype(loaded[name]) == Array.dtype(array)
      assert Array.to_binary(loaded[name]) == Array.to_binary(array)
    end
  end

  test "views are saved with their values, and load reads only the names that are asked for", %{tmp_dir: dir} do
    path = Path.join(dir, "views.safetensors")
    a = Array.from_list([[1, 2, 3], [4, 5, 6]], :s32)
    Safetensors.save(path, %{"t" => Ops.transpose(a, [1, 0]), "s" => Ops.sum(a)})
    assert %{"t" => t} = only = Safetensors.load(path, only: ["t"])
    assert map_size(only) == 1
    assert Array.to_list(t) == [[1, 4], [2, 5], [3, 6]]

    assert_raise Error, ~r/no array named "u"/, fn -> Safetensors.load(path, only: ["u"]) end
  end

  test "load reads a file that another library wrote", %{tmp_dir: dir} do
    header = ~s({"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})
    data = <<1.5::float-32-little, -2.0::float-32-little>>
    path = Path.join(dir, "hand.safetensors")
    File.write!(path, [<<byte_size(header)::64-little>>, header, data])
    assert %{"w" => w} = Safetensors.load(path)
    assert Array.to_list(w) == [1.5, -2.0]
  end

  test "the error for a file that is absent, or cannot be written, names it", %{tmp_dir: dir} do
    path = Path.join(dir, "absent.safetensors")
    error = assert_raise Error, fn -> Safetensors.load(path) end
    assert %{kind: :file, op: "load_safetensors"} = error
    assert error.reason =~ "absent.safetensors"

    assert_raise Error, fn ->
      Safetensors.save(Path.join(dir, "no/such/folder"), %{"a" => Ops.ones({2}, :f32)})
    end
  end

  test "save refuses entries that cannot be saved, and does not skip them", %{tmp_dir: dir} do
    path = Path.join(dir, "refused.safetensors")
    a = Ops.ones({2}, :f32)

    assert_raise ArgumentError, ~r/"b": expected an EMLX.Array, got: 3/, fn ->
      Safetensors.save(path, %{"a" => a, "b" => 3})
    end

    assert_raise ArgumentError, ~r/the name a string, got: {:a, /, fn -> Safetensors.save(path, %{a: a}) end
    assert_raise ArgumentError, ~r/got: 5/, fn -> Safetensors.save(path, [5]) end

    for {arrays, words} <- [
          {[{"a", a}, {"a", a}], ~r/two arrays are named "a"/},
          {%{"__metadata__" => a}, ~r/another use/}
        ] do
      error = assert_raise Error, words, fn -> Safetensors.save(path, arrays) end
      assert error.kind == :file
    end

    assert File.ls!(dir) == []
  end

  test "saved files have the mode of any file that the process creates", %{tmp_dir: dir} do
    [path, other] = for name <- ["saved", "other"], do: Path.join(dir, name)
    Safetensors.save(path, %{"a" => Ops.ones({2}, :f32)})
    File.write!(other, "")
    assert File.stat!(path).mode == File.stat!(other).mode
  end

  test "one of several files that are written to a path concurrently is at the path, complete", %{tmp_dir: dir} do
    path = Path.join(dir, "one.safetensors")
    large = EMLX.eval(Ops.ones({1000, 1000}, :f32))

    writers =
      for name <- ["a", "b", "c", "d"] do
        Task.async(fn ->
          queue = Queue.start()
          for _ <- 1..10, do: Safetensors.save(path, %{name => large}, queue: queue)
        end)
      end

    assert writers |> Task.await_many(60_000) |> List.flatten() |> Enum.uniq() == [:ok]
    assert path |> Safetensors.load() |> map_size() == 1
    assert File.ls!(dir) == ["one.safetensors"]
  end

  test "load reads regular files only", %{tmp_dir: dir} do
    assert_raise Error, ~r/is a folder/, fn -> Safetensors.load(dir) end
    assert_raise Error, ~r/is no regular file/, fn -> Safetensors.load("/dev/zero") end
    assert_raise Error, ~r/is no regular file/, fn -> EMLX.Program.load("/dev/zero") end
  end

  test "a save that fails leaves no partial file", %{tmp_dir: dir} do
    File.mkdir!(Path.join(dir, "taken"))

    assert_raise Error, fn ->
      Safetensors.save(Path.join(dir, "taken"), %{"a" => Ops.ones({2}, :f32)})
    end

    assert File.ls!(dir) == ["taken"]
  end

  test "load of a small file with any cut or any changed byte is an error or an array", %{tmp_dir: dir} do
    path = Path.join(dir, "good.safetensors")
    Safetensors.save(path, %{"a" => Ops.iota({2, 3}), "b" => Ops.ones({4}, :f16)})
    good = File.read!(path)
    bad = Path.join(dir, "bad.safetensors")

    for size <- 0..(byte_size(good) - 1) do
      File.write!(bad, binary_part(good, 0, size))
      assert_raise Error, fn -> Safetensors.load(bad) end
    end

    File.write!(bad, good <> "more")
    assert_raise Error, fn -> Safetensors.load(bad) end

    for position <- 0..(byte_size(good) - 1), byte <- [0, 0x30, 0x39, 0x5D, 0xFF] do
      <<head::binary-size(position), _, tail::binary>> = good
      File.write!(bad, [head, byte, tail])

      try do
        for {_, array} <- Safetensors.load(bad), do: assert(is_binary(Array.to_binary(array)))
      rescue
        error in Error -> assert error.kind == :file
      end
    end
  end

  test "load refuses a header that lies about shapes, offsets or its own length", %{tmp_dir: dir} do
    path = Path.join(dir, "lies.safetensors")

    for header <- [
          ~s({"w":{"dtype":"F32","shape":[4],"data_offsets":[0,8]}}),
          ~s({"w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}),
          ~s({"w":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}),
          ~s({"w":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]}}),
          ~s({"w":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}),
          ~s({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"v":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}),
          ~s({"w":5}),
          ~s([]),
          "not json"
        ] do
      File.write!(path, [<<byte_size(header)::64-little>>, header, <<0::64>>])
      assert %{kind: :file} = assert_raise(Error, fn -> Safetensors.load(path) end)
    end

    for length <- [0xFFFF_FFFF_FFFF_FFFF, 0x7FFF_FFFF_FFFF_FFFF, 200_000_000, 17] do
      File.write!(path, [<<length::64-little>>, "{}", <<0::64>>])
      assert %{kind: :file} = assert_raise(Error, fn -> Safetensors.load(path) end)
    end
  end
end
