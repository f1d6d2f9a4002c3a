defmodule EMLX.BackendTest do
  use EMLX.NxCase, async: true

  import EMLX.Random

  # A GPU has neither f64 nor c128, which is stored as f64.
  @double if EMLX.Golden.device() == :gpu, do: [], else: [{:c, 128}]

  doctest EMLX.Backend
  doctest_file(EMLX.Guide.path("migration"))

  describe "conversion between tensors and arrays" do
    test "to_nx/2 restores names, types that MLX lacks, and vectorized axes" do
      for type <- [{:s, 2}, {:u, 4}, {:s, 32}, {:f, 8}, {:f8_e4m3fn, 8}, {:bf, 16}, {:f, 32}, {:c, 64}] ++ @double do
        tensor = Nx.iota({2, 3, 1}, type: type, names: [nil, :rows, nil]) |> Nx.vectorize(:x)
        back = tensor |> EMLX.Backend.to_array() |> EMLX.Backend.to_nx(tensor)
        assert Map.delete(back, :data) == Map.delete(tensor, :data)
        assert Nx.to_binary(back) == Nx.to_binary(tensor)
      end
    end

    test "to_nx/2 refuses an array of another size" do
      error = assert_raise EMLX.Error, fn -> EMLX.Backend.to_nx(EMLX.Ops.iota({6}), Nx.template({5}, :s32)) end
      assert error.reason =~ "shape [6] cannot become [5]"
    end

    test "to_array/1 refuses a template" do
      assert_raise RuntimeError, ~r/TemplateBackend/, fn -> EMLX.Backend.to_array(Nx.template({2}, :f32)) end
    end
  end

  describe "options" do
    test "the option :device accepts an available device only" do
      assert EMLX.Backend.init(device: :cpu) == [device: :cpu]
      assert EMLX.Backend.init([])[:device] in [:cpu, :gpu]

      if EMLX.device_available?(:gpu) do
        assert EMLX.Backend.init(device: :gpu) == [device: :gpu]
      else
        assert %EMLX.Error{kind: :no_device} = catch_error(EMLX.Backend.init(device: :gpu))
        assert %EMLX.Error{kind: :no_device} = catch_error(Nx.default_backend({EMLX.Backend, device: :gpu}))
        assert %EMLX.Error{kind: :no_device} = catch_error(Nx.tensor([1], backend: {EMLX.Backend, device: :gpu}))
      end
    end

    test "unknown devices and options are refused" do
      assert_raise ArgumentError, ~r/:cpu or :gpu, got: :tpu/, fn -> EMLX.Backend.init(device: :tpu) end
      assert_raise ArgumentError, ~r/unknown keys \[:client\]/, fn -> EMLX.Backend.init(client: :host) end
    end
  end

  describe "types" do
    test "from_binary and to_binary preserve the bits of every type" do
      for_all(100, :bits, fn ->
        tensor = tensor(shape(), one_of(types()), special: 0.2, range: {-300, 300})
        there = Nx.backend_copy(tensor, backend())
        assert %EMLX.Backend{} = there.data
        assert Nx.to_binary(there) == Nx.to_binary(tensor)
      end)
    end

    test "a constant is the number in every type" do
      for type <- types(), number <- [0, 1, 3, 2.5], not (is_float(number) and type in integer_types()) do
        same(fn -> Nx.tensor(number, type: type) end, [])
        same(fn -> Nx.broadcast(Nx.tensor(number, type: type), {2, 3}) end, [])
      end

      for type <- float_types(),
          number <- [:nan, :infinity, :neg_infinity],
          do: same(fn -> Nx.tensor(number, type: type) end, [])

      same(fn -> Nx.tensor(Complex.new(1, :infinity)) end, [])
      same(fn -> Nx.tensor(18_446_744_073_709_551_615, type: :u64) end, [])
      same(fn -> Nx.tensor(-9_223_372_036_854_775_808, type: :s64) end, [])
    end

    test "iota and eye support every type" do
      for type <- types() do
        same(fn -> Nx.iota({3, 4}, type: type) end, [])
        same(fn -> Nx.iota({3, 4}, axis: 0, type: type) end, [])
        same(fn -> Nx.iota({}, type: type) end, [])
        same(fn -> Nx.eye({3, 2}, type: type) end, [])
        same(fn -> Nx.eye({2, 3, 4}, type: type) end, [])
      end

      same(fn -> Nx.iota({300}, type: :u8) end, [])
      same(fn -> Nx.iota({5000}, type: :f16) end, [])
    end

    test "integers beyond 64 bits keep their low bits, or become floats" do
      same(fn -> Nx.tensor(36_893_488_147_419_103_235, type: :s32) end, [])
      assert Nx.to_number(Nx.tensor(36_893_488_147_419_103_235, type: :f32)) == 36_893_488_147_419_103_232.0
    end

    # The backend relies on it to omit casts.
    test "MLX promotes types as the backend assumes" do
      types = [:u8, :u16, :u32, :u64, :s8, :s16, :s32, :s64, :f16, :bf16, :f32, :c64]

      for a <- types, b <- types do
        sum = EMLX.Ops.add(EMLX.Array.scalar(1, a), EMLX.Array.scalar(1, b))
        assert {a, b, EMLX.Backend.Type.promote(a, b)} == {a, b, EMLX.Array.dtype(sum)}
      end
    end

    test "8-bit floats round to the nearest" do
      numbers = [1.06, 1.2, -3.3, 300.0, 1.0e-3]
      assert Nx.to_flat_list(Nx.tensor(numbers) |> Nx.as_type(:f8_e4m3fn)) == [1.0, 1.25, -3.25, 288.0, 0.001953125]
      assert Nx.to_flat_list(Nx.tensor(numbers) |> Nx.as_type({:f, 8})) == [1.0, 1.25, -3.5, 320.0, 9.765625e-4]
      assert Nx.to_flat_list(Nx.tensor([1.0e6, :infinity, :nan]) |> Nx.as_type({:f, 8})) == [:infinity, :infinity, :nan]
      assert Nx.to_flat_list(Nx.tensor([1.0e6, :infinity, :nan]) |> Nx.as_type(:f8_e4m3fn)) == [448.0, 448.0, :nan]
    end

    test "arithmetic of types of fewer than 8 bits wraps around" do
      t = Nx.tensor([1, 7, -8], type: :s4)
      assert Nx.to_flat_list(Nx.add(t, t)) == [2, -2, 0]
      assert Nx.to_flat_list(Nx.subtract(Nx.tensor([0, 3], type: :u2), Nx.tensor([1, 1], type: :u2))) == [3, 2]
    end
  end

  describe "other backends" do
    test "operations take tensors of other backends" do
      binary = Nx.tensor([1, 2, 3], backend: Nx.BinaryBackend)
      here = Nx.tensor([10, 20, 30])
      assert %{data: %EMLX.Backend{}} = sum = Nx.add(binary, here)
      assert Nx.to_flat_list(sum) == [11, 22, 33]
      assert Nx.to_flat_list(Nx.concatenate([here, binary])) == [10, 20, 30, 1, 2, 3]
      assert Nx.to_flat_list(Nx.slice(here, [Nx.tensor(1, backend: Nx.BinaryBackend)], [2])) == [20, 30]
      assert Nx.to_flat_list(Nx.select(Nx.tensor([1, 0, 1], backend: Nx.BinaryBackend), here, binary)) == [10, 2, 30]
    end

    test "tensors are transferred and copied to other backends and back" do
      t = Nx.iota({2, 3}, names: [:x, :y], type: :f32)
      there = Nx.backend_transfer(t, Nx.BinaryBackend)
      assert %Nx.BinaryBackend{} = there.data
      assert_same(Nx.backend_transfer(there, backend()), t)
      assert_same(Nx.backend_copy(t, backend()), t)
      assert %Nx.BinaryBackend{} = Nx.backend_copy(t).data
      assert %Nx.BinaryBackend{} = Nx.backend_transfer(t).data
    end

    test "a deallocated tensor cannot be used, but results computed from it can" do
      t = Nx.iota({2, 3}, type: :f32)
      double = Nx.multiply(t, 2)
      assert Nx.backend_deallocate(t) == :ok
      assert Nx.backend_deallocate(t) == :already_deallocated
      assert_same(double, Nx.multiply(Nx.iota({2, 3}, type: :f32), 2))
      {_, device} = backend()

      for use <- [
            &Nx.to_binary/1,
            &Nx.add(&1, 1),
            &Nx.backend_copy/1,
            &Nx.to_pointer/1,
            &Nx.Defn.jit_apply(fn x -> Nx.negate(x) end, [&1], [compiler: EMLX] ++ device)
          ] do
        error = assert_raise EMLX.Error, fn -> use.(t) end
        assert %{kind: :deallocated, reason: "the array was deallocated" <> _} = error
      end
    end

    test "an unchanged result of a compiled function outlives the deallocation of its argument" do
      {_, device} = backend()

      # Alone, and beside a loop, which runs on the queue.
      loop = fn x, i ->
        {x, Nx.reduce_max(Nx.Random.uniform_split(Nx.Random.key(i), 0, 1, shape: {2})), Nx.add(x, 1)}
      end

      for fun <- [fn x, i -> {x, Nx.add(i, 1), Nx.add(x, 1)} end, loop] do
        fun = Nx.Defn.jit(fun, [compiler: EMLX] ++ device)
        x = Nx.tensor([3.0, 4.0])
        {same, _, _} = fun.(x, Nx.tensor(1, type: :s64))
        assert Nx.backend_deallocate(x) == :ok
        assert Nx.to_flat_list(same) == [3.0, 4.0]
        assert {_, _, sum} = fun.(same, Nx.tensor(1, type: :s64))
        assert Nx.to_flat_list(sum) == [4.0, 5.0]
      end
    end

    test "a device may have an index, as in the C++ EMLX" do
      {module, [device: device]} = backend()
      assert_same(Nx.tensor([1, 2], backend: {module, device: {device, 0}}), Nx.tensor([1, 2]))
      error = assert_raise EMLX.Error, fn -> Nx.tensor([1], backend: {module, device: {device, 3}}) end
      assert %{kind: :no_device, reason: reason} = error
      assert reason =~ "EMLX uses one device of each kind"
    end

    test "vectorized tensors are transferred with their axes" do
      t = Nx.vectorize(Nx.iota({2, 3}), :x)
      there = Nx.backend_transfer(t, Nx.BinaryBackend)
      assert there.vectorized_axes == [x: 2]
      assert_same(Nx.backend_transfer(there, backend()), t)
      assert Nx.to_flat_list(Nx.add(t, there)) == [0, 2, 4, 6, 8, 10]
    end
  end

  describe "values" do
    test "to_binary reads no more elements than its limit" do
      t = Nx.iota({3, 4}, type: :u8)
      assert Nx.to_binary(t, limit: 5) == <<0, 1, 2, 3, 4>>
      assert Nx.to_binary(Nx.transpose(t), limit: 3) == <<0, 4, 8>>
      assert Nx.to_binary(Nx.tensor([1, 2, 3], type: :u4), limit: 2) == <<1::4, 2::4>>
      assert Nx.to_binary(Nx.vectorize(Nx.iota({2, 2}, type: :u8), :x)) == <<0, 1, 2, 3>>
    end

    test "to_batched slices, repeats and discards" do
      t = Nx.iota({5, 2})

      for opts <- [[leftover: :repeat], [leftover: :discard]] do
        same(&Enum.to_list(Nx.to_batched(&1, 2, opts)), [Nx.backend_copy(t, Nx.BinaryBackend)], compiled: false)
      end
    end

    test "serialization preserves a tensor" do
      t = Nx.iota({2, 3}, type: :bf16, names: [:a, nil])
      read = t |> Nx.serialize() |> IO.iodata_to_binary() |> Nx.deserialize()
      assert_same(read, t)
    end

    test "add_backend_on_inspect: false leaves the backend's name out" do
      t = Nx.tensor([1, 2, 3])
      text = inspect(t)
      assert text == "#Nx.Tensor<\n  s32[3]\n  [1, 2, 3]\n>"
      data = EMLX.Backend.inspect(t, %Inspect.Opts{})
      assert data |> Inspect.Algebra.format(80) |> IO.iodata_to_binary() == "[1, 2, 3]"
    end

    test "inspection of a large tensor reads its beginning" do
      assert inspect(Nx.iota({1_000_000})) =~ "[0, 1, 2, 3,"
      assert inspect(Nx.tensor([1.5, :nan, :infinity], type: :bf16)) =~ "[1.5, NaN, Inf]"
    end
  end

  describe "pointers" do
    test "a pointer leads to the elements and back" do
      for type <- [{:u, 8}, {:s, 64}, {:f, 32}, {:bf, 16}, {:c, 64}] ++ @double,
          t = Nx.iota({2, 3}, type: type),
          t <- [t, Nx.transpose(t), Nx.broadcast(t, {2, 2, 3})] do
        assert %Nx.Pointer{kind: :local, address: address, data_size: size} = pointer = Nx.to_pointer(t)
        assert address > 0 and size == Nx.byte_size(t)
        assert Nx.to_pointer(t) == pointer
        assert_same(Nx.from_pointer(backend(), pointer, t.type, t.shape), t)
      end
    end

    test "from_pointer takes names" do
      pointer = Nx.to_pointer(t = Nx.tensor([1, 2]))
      assert_same(Nx.from_pointer(backend(), pointer, {:s, 32}, {2}, names: [:x]), Nx.rename(t, [:x]))
    end

    test "a pointer to shared memory leads to the elements once, and takes names" do
      for type <- [{:u, 8}, {:s, 64}, {:f, 32}, {:bf, 16}, {:c, 64}] ++ @double,
          t = Nx.iota({2, 3}, type: type),
          t <- [t, Nx.transpose(t), Nx.broadcast(t, {2, 2, 3})] do
        assert %Nx.Pointer{kind: :ipc, handle: "/emlx_" <> _, data_size: size} = pointer = Nx.to_pointer(t, mode: :ipc)
        assert size == Nx.byte_size(t)
        assert Nx.to_pointer(t, mode: :ipc, permissions: 0o600).handle |> unlinked() != pointer.handle
        names = List.duplicate(:x, 1) ++ List.duplicate(nil, Nx.rank(t) - 1)
        read = Nx.from_pointer(backend(), pointer, t.type, t.shape, names: names)
        assert_same(read, Nx.rename(t, names))

        error = assert_raise EMLX.Error, fn -> Nx.from_pointer(backend(), pointer, t.type, t.shape) end
        assert %{kind: :file, reason: "shared memory /emlx_" <> _} = error
      end
    end

    defp unlinked(name) do
      :ok = EMLX.SharedMemory.unlink(name)
      name
    end

    test "pointers of another kind, size, mode or permissions are refused" do
      t = Nx.tensor([1, 2, 3])

      for mode <- [:local, :ipc] do
        pointer = Nx.to_pointer(t, mode: mode)
        message = ~r/data_size is 12 bytes, \{3\} of s64 takes 24/
        assert_raise ArgumentError, message, fn -> Nx.from_pointer(backend(), pointer, {:s, 64}, {3}) end
        # The pointer is still valid.
        assert_same(Nx.from_pointer(backend(), pointer, {:s, 32}, {3}), t)
      end

      assert_raise ArgumentError, ~r/:local or :ipc, got: :cuda/, fn -> Nx.to_pointer(t, mode: :cuda) end
      other = %Nx.Pointer{kind: :cuda_ipc, handle: "x", data_size: 12}
      message = ~r/the kinds :local and :ipc, got: :cuda_ipc/
      assert_raise ArgumentError, message, fn -> Nx.from_pointer(backend(), other, {:s, 32}, {3}) end
      assert_raise ArgumentError, ~r/wider type/, fn -> Nx.to_pointer(Nx.tensor([1], type: :u4)) end
      message = ~r/:permissions is an integer from 0 to 0o777/
      assert_raise ArgumentError, message, fn -> Nx.to_pointer(t, mode: :ipc, permissions: 0o1000) end
    end
  end

  describe "processes" do
    test "processes can use each other's tensors" do
      t = Nx.iota({100})

      sums =
        1..20
        |> Task.async_stream(fn i -> Nx.to_number(Nx.sum(Nx.multiply(t, i))) end)
        |> Enum.map(fn {:ok, sum} -> sum end)

      assert sums == Enum.map(1..20, &(&1 * 4950))
    end

    test "a tensor outlives the process that created it" do
      t = Task.await(Task.async(fn -> Nx.add(Nx.iota({3}), 1) end))
      :erlang.garbage_collect()
      assert Nx.to_flat_list(t) == [1, 2, 3]
    end
  end

  test "an error names the operation and the shapes of its inputs" do
    a = EMLX.Backend.to_array(Nx.iota({2, 3}))
    error = catch_error(EMLX.Ops.matmul(a, a))
    assert Exception.message(error) =~ "matmul"
    assert Exception.message(error) =~ "[2][3]"
  end

  test "Nx.Random returns the binary backend's numbers" do
    same(
      fn ->
        key = Nx.Random.key(42)
        {uniform, key} = Nx.Random.uniform(key, shape: {3, 4})
        {integers, key} = Nx.Random.randint(key, 0, 1000, shape: {5})
        {normal, key} = Nx.Random.normal(key, shape: {10})
        {shuffled, key} = Nx.Random.shuffle(key, Nx.iota({8}))
        {choice, _key} = Nx.Random.choice(key, Nx.tensor([1.5, 2.5, 3.5]), samples: 4, replace: true)
        {uniform, integers, normal, shuffled, choice}
      end,
      []
    )
  end
end
