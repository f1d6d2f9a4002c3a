defmodule EMLX.BlockTest do
  use EMLX.NxCase, async: true

  import EMLX.TelemetryRecorder, only: [take_blocks: 0]

  alias EMLX.TestBlock
  alias EMLX.TestBlock.{Odd, Pair, Plain}

  setup {EMLX.TelemetryRecorder, :record_test}

  defp tensor, do: Nx.tensor([[1.0, 2.0, 3.0]])
  defp doubled, do: [2.0, 4.0, 6.0]

  describe "a block" do
    test "a block without an implementation is composed" do
      assert Nx.to_flat_list(TestBlock.double(%Plain{}, tensor())) == doubled()
      assert [{Plain, :composed, "EMLX.TestBlock.Plain has no implementation of EMLX.Block"}] = take_blocks()
    end

    test "a block with an implementation runs it" do
      assert Nx.to_flat_list(TestBlock.double(%Odd{does: :kernel}, tensor())) == doubled()
      assert take_blocks() == [{Odd, :fused, nil}]
    end

    test "a block is found in the consolidated protocol, as in a release" do
      assert Protocol.consolidated?(EMLX.Block)
      {:consolidated, structs} = EMLX.Block.__protocol__(:impls)
      assert Odd in structs and Nx.Block.LinAlg.QR in structs and EMLX.Fast.RoPE in structs
      refute Plain in structs
    end

    test "a block of vectorized tensors runs its implementation" do
      vectorized = Nx.vectorize(Nx.tensor([[1.0, 2.0], [3.0, 4.0]]), :x)
      doubled = TestBlock.double(%Odd{does: :kernel}, vectorized)
      assert doubled.vectorized_axes == [x: 2]
      assert Nx.to_flat_list(doubled) == [2.0, 4.0, 6.0, 8.0]
      assert take_blocks() == [{Odd, :fused, nil}]
    end

    test "a block whose implementation declines is composed, and its event has the reason" do
      assert Nx.to_flat_list(TestBlock.double(%Odd{does: :decline}, tensor())) == doubled()
      assert take_blocks() == [{Odd, :composed, "not today"}]
    end

    test "a block whose implementation runs the composed function emits the event of a composed block" do
      assert Nx.to_flat_list(TestBlock.double(%Odd{does: :compose}, tensor())) == doubled()
      assert take_blocks() == [{Odd, :composed, nil}]
    end

    test "a block may run blocks, and each emits an event" do
      assert Nx.to_flat_list(TestBlock.double(%Odd{does: :nested}, tensor())) == doubled()
      assert take_blocks() == [{Odd, :fused, nil}, {Odd, :fused, nil}]

      assert Nx.to_flat_list(TestBlock.double(%Odd{does: :nested_decline}, tensor())) == doubled()
      assert take_blocks() == [{Odd, :composed, "not today"}, {Odd, :fused, nil}]
    end

    test "a block that is composed of blocks runs their kernels" do
      double = fn %Odd{}, tensor -> TestBlock.double(%Odd{does: :kernel}, tensor) end
      assert Nx.to_flat_list(Nx.block(%Odd{does: :decline}, [tensor()], tensor(), double)) == doubled()
      assert take_blocks() == [{Odd, :composed, "not today"}, {Odd, :fused, nil}]
    end

    test "a block may have several results" do
      template = Nx.template({1, 3}, :f32)
      composed = fn %Pair{}, tensor -> {tensor, Nx.negate(tensor)} end
      assert {one, other} = Nx.block(%Pair{}, [tensor()], {template, template}, composed)
      assert Nx.to_flat_list(one) == [1.0, 2.0, 3.0]
      assert Nx.to_flat_list(other) == [-1.0, -2.0, -3.0]
      assert take_blocks() == [{Pair, :fused, nil}]

      assert {_, other} =
               Nx.Defn.jit(&Nx.block(%Pair{}, [&1], {&1, &1}, composed), compiler: Nx.Defn.Evaluator).(tensor())

      assert Nx.to_flat_list(other) == [-1.0, -2.0, -3.0]
      assert take_blocks() == [{Pair, :fused, nil}]
    end

    test "a block runs its implementation inside defn" do
      double = Nx.Defn.jit(&Nx.add(TestBlock.double(%Odd{does: :kernel}, &1), 1), compiler: Nx.Defn.Evaluator)
      assert Nx.to_flat_list(double.(tensor())) == [3.0, 5.0, 7.0]
      assert take_blocks() == [{Odd, :fused, nil}]
    end

    test "a block has the gradient of its composed function" do
      gradient = Nx.Defn.grad(tensor(), &Nx.sum(TestBlock.double(%Odd{does: :kernel}, &1)))
      assert Nx.to_flat_list(gradient) == [2.0, 2.0, 2.0]
    end

    test "a block on another backend is composed and emits no event" do
      tensor = Nx.backend_copy(tensor(), Nx.BinaryBackend)
      assert Nx.to_flat_list(TestBlock.double(%Odd{does: :raise}, tensor)) == doubled()
      assert take_blocks() == []
    end

    test "a block can be declined outside of a dispatch" do
      composed = fn _, tensor -> Nx.multiply(tensor, 2) end
      assert Nx.to_flat_list(EMLX.Block.decline(%Plain{}, [tensor()], composed, "directly")) == doubled()
      assert take_blocks() == []
    end
  end

  describe "an implementation that fails" do
    test "an implementation that fails is named with the arguments and the cause" do
      error = assert_raise EMLX.Block.Error, fn -> TestBlock.double(%Odd{does: :raise}, tensor()) end
      assert error.block == %Odd{does: :raise}
      assert error.args == ["f32[1][3]"]
      assert error.cause == %ArgumentError{message: "no luck"}

      assert Exception.message(error) ==
               "the implementation of EMLX.Block for %EMLX.TestBlock.Odd{does: :raise} with f32[1][3] " <>
                 "raised ArgumentError: no luck"

      assert take_blocks() == []
    end

    test "an implementation that fails with an EMLX.Error keeps its message" do
      error = assert_raise EMLX.Block.Error, fn -> TestBlock.double(%Odd{does: :kernel_error}, tensor()) end
      assert %EMLX.Error{op: "matmul"} = error.cause
      assert Exception.message(error) =~ ~r/for %EMLX.TestBlock.Odd\{does: :kernel_error\} with f32\[1\]\[3\] raised/
      assert Exception.message(error) =~ "matmul"
    end

    test "the error of an implementation that fails names every block around it" do
      error = assert_raise EMLX.Block.Error, fn -> TestBlock.double(%Odd{does: :nested_raise}, tensor()) end
      assert %EMLX.Block.Error{block: %Odd{does: :raise}} = error.cause
      assert Exception.message(error) =~ "no luck"
    end

    test "an implementation that fails does not affect the next block" do
      assert_raise EMLX.Block.Error, fn -> TestBlock.double(%Odd{does: :raise}, tensor()) end
      assert Nx.to_flat_list(TestBlock.double(%Odd{does: :kernel}, tensor())) == doubled()
      assert take_blocks() == [{Odd, :fused, nil}]
    end

    test "an implementation whose result does not fit is named with the difference" do
      for {does, given} <- [shape: "f32[1][1][3]", type: "s64[1][3]", term: ":ok"] do
        error = assert_raise EMLX.Block.Error, fn -> TestBlock.double(%Odd{does: does}, tensor()) end
        assert Exception.message(error) =~ "gave #{given}, not f32[1][3]"
      end
    end

    test "an implementation whose result does not fit is named also where it called the composed function" do
      double = &TestBlock.double(%Odd{does: :composed_shape}, &1)

      for double <- [double, Nx.Defn.jit(double, compiler: EMLX)] do
        error = assert_raise EMLX.Block.Error, fn -> double.(tensor()) end
        assert Exception.message(error) =~ "gave f32[1][1][3], not f32[1][3]"
      end
    end

    test "an implementation passes on what the composed function raises" do
      assert_raise RuntimeError, "in composed", fn -> TestBlock.double(%Odd{does: :raise_in_composed}, tensor()) end
    end
  end

  describe "the protocol" do
    test "the protocol is consolidated with implementations from outside" do
      assert Protocol.consolidated?(EMLX.Block)
      assert {:consolidated, implementations} = EMLX.Block.__protocol__(:impls)
      assert Odd in implementations
      assert Acme.Block.Softmax in implementations
      assert Nx.Block.LinAlg.QR in implementations
    end

    test "the protocol keeps its functions when it is consolidated, as Mix does for a release" do
      {:ok, binary} = Protocol.consolidate(EMLX.Block, [Odd, Any])
      {:ok, {EMLX.Block, [exports: exports]}} = :beam_lib.chunks(binary, [:exports])
      for function <- [call: 4, decline: 4, dispatch: 4], do: assert(function in exports)
    end
  end

  describe "Nx's own block" do
    # f64 is for the CPU only.
    # Blocks of c128 are composed.
    @types EMLX.Random.types() --
             [{:c, 128} | if(System.get_env("EMLX_TEST_DEVICE") == "gpu", do: [{:f, 64}], else: [])]

    # Each block runs fused and composed, and its events are checked.
    defp same_block(block, path, fun, tensors, opts \\ []) do
      # The binary backend of Nx's main branch does not add integers of less than 8 bits. For them only the path is
      # checked.
      if same(fun, tensors, opts) == :skipped, do: apply(fun, Enum.map(tensors, &Nx.backend_copy(&1, backend())))

      assert {block, path} in for({block, path, _} <- take_blocks(), do: {block, path}),
             "#{inspect(block)} was not #{path}"
    end

    test "logical_not has a kernel, and computes what the binary backend does in every type" do
      for type <- @types do
        tensor = EMLX.Random.tensor({3, 5}, type, range: {-1, 1}, special: 0.2)
        same_block(Nx.Block.LogicalNot, :fused, &Nx.logical_not/1, [tensor])
      end
    end

    test "phase has a kernel for complex numbers and is composed for real ones" do
      for_all(10, "phase", fn ->
        tensor = EMLX.Random.tensor(EMLX.Random.shape(), {:c, 64})
        same_block(Nx.Block.Phase, :fused, &Nx.phase/1, [tensor])
      end)

      same_block(Nx.Block.Phase, :composed, &Nx.phase/1, [Nx.tensor([-1.0, 0.0, 2.0])])
    end

    test "all_close has a kernel for f32, and is composed in other types" do
      infinite = Nx.tensor([:infinity, :neg_infinity, 1.0])
      nan = Nx.tensor([:nan, 1.0])
      near = Nx.tensor([1.0, 2.0])

      for {a, b, opts} <- [
            {infinite, infinite, []},
            {infinite, Nx.negate(infinite), []},
            {nan, nan, []},
            {nan, nan, [equal_nan: true]},
            {near, Nx.add(near, 1.0e-6), []},
            {near, Nx.add(near, 1.0e-3), []},
            {near, Nx.add(near, 1.0e-3), [atol: 1.0e-2]},
            {near, Nx.multiply(near, 1.01), [rtol: 0.1]},
            {Nx.tensor([[1.0], [2.0]]), Nx.tensor([1.0, 1.0]), []}
          ] do
        same_block(Nx.Block.AllClose, :fused, &Nx.all_close(&1, &2, opts), [a, b])
      end

      for type <- [{:s, 8}, {:u, 8}, {:bf, 16}, {:c, 64}] do
        tensor = EMLX.Random.tensor({4}, type)
        same_block(Nx.Block.AllClose, :composed, &Nx.all_close/2, [tensor, tensor])
      end
    end

    for {name, block} <- [
          cumulative_sum: Nx.Block.CumulativeSum,
          cumulative_product: Nx.Block.CumulativeProduct,
          cumulative_max: Nx.Block.CumulativeMax,
          cumulative_min: Nx.Block.CumulativeMin
        ] do
      test "#{name} computes what the binary backend does in every type, fused where MLX has the type" do
        for type <- @types,
            not (unquote(name in [:cumulative_max, :cumulative_min]) and type == {:c, 64}) do
          path = if type in [{:f, 8}, {:f8_e4m3fn, 8}] or elem(type, 1) < 8, do: :composed, else: :fused

          for_all(3, "#{unquote(name)} #{inspect(type)}", fn ->
            shape = EMLX.Random.shape(1..3, 1..6)
            tensor = EMLX.Random.tensor(shape, type, range: {-2, 2})
            opts = [axis: EMLX.Random.integer(0..(tuple_size(shape) - 1)), reverse: EMLX.Random.chance(0.5)]
            # EMLX rounds sums of 16-bit floats once, the binary backend after each addition.
            tolerance = if elem(type, 1) == 16, do: [rtol: 5.0e-2, atol: 5.0e-2], else: [rtol: 1.0e-4, atol: 1.0e-5]
            tolerance = if Nx.Type.integer?(type), do: [], else: tolerance
            tolerance = if elem(type, 1) == 8 and tolerance != [], do: [rtol: 0.5, atol: 0.5], else: tolerance
            same_block(unquote(block), path, &apply(Nx, unquote(name), [&1, opts]), [tensor], tolerance)
          end)
        end
      end
    end

    test "cumulative_max and cumulative_min pass on NaN and infinities" do
      tensor = Nx.tensor([1.0, :neg_infinity, 3.0, :infinity, 2.0, :nan, 5.0])
      same_block(Nx.Block.CumulativeMax, :fused, &Nx.cumulative_max/1, [tensor])
      same_block(Nx.Block.CumulativeMin, :fused, &Nx.cumulative_min/1, [tensor])
      same_block(Nx.Block.CumulativeMin, :fused, &Nx.cumulative_min(&1, reverse: true), [tensor])
    end

    test "cumulative_sum of 16-bit floats does not stop where an addition would round to nothing" do
      for type <- [{:bf, 16}, {:f, 16}] do
        sums = Nx.cumulative_sum(Nx.broadcast(Nx.tensor(1.0, type: type), {5000}))
        assert_in_delta Nx.to_number(sums[4999]), 5000, 16
      end
    end

    test "take has a kernel, and computes what the binary backend does along any axis" do
      for_all(60, "take", fn ->
        type = EMLX.Random.one_of(@types)
        shape = EMLX.Random.shape(1..4, 1..5)
        axis = EMLX.Random.integer(0..(tuple_size(shape) - 1))
        index = EMLX.Random.one_of([{:s, 64}, {:s, 32}, {:u, 8}, {:u, 64}])
        indices = EMLX.Random.tensor(EMLX.Random.shape(0..3), index, range: {0, elem(shape, axis) - 1})
        tensor = EMLX.Random.tensor(shape, type)
        same_block(Nx.Block.Take, :fused, &Nx.take(&1, &2, axis: axis), [tensor, indices])
      end)
    end

    test "take_along_axis has a kernel, and computes what the binary backend does along any axis" do
      for_all(60, "take_along_axis", fn ->
        type = EMLX.Random.one_of(@types)
        shape = EMLX.Random.shape(1..4, 1..5)
        axis = EMLX.Random.integer(0..(tuple_size(shape) - 1))
        index = EMLX.Random.one_of([{:s, 64}, {:s, 32}, {:u, 8}, {:u, 64}])
        index_shape = put_elem(shape, axis, EMLX.Random.integer(1..6))
        indices = EMLX.Random.tensor(index_shape, index, range: {0, elem(shape, axis) - 1})
        tensor = EMLX.Random.tensor(shape, type)
        same_block(Nx.Block.TakeAlongAxis, :fused, &Nx.take_along_axis(&1, &2, axis: axis), [tensor, indices])
      end)
    end

    test "take and take_along_axis clamp indices that are out of range" do
      tensor = Nx.tensor([10, 20, 30])
      assert Nx.to_flat_list(Nx.take(tensor, Nx.tensor([-1, 7, 1]))) == [10, 30, 20]
      assert Nx.to_flat_list(Nx.take_along_axis(tensor, Nx.tensor([-1, 7, 1]))) == [10, 30, 20]
      pairs = Nx.tensor([[-1, 0], [0, -1], [7, 7], [-9, 9]])

      for type <- [s: 8, s: 16, s: 32, s: 64] do
        table = Nx.tensor([[1, 2, 3], [4, 5, 6]])
        assert Nx.to_flat_list(Nx.gather(table, Nx.as_type(pairs, type))) == [1, 1, 6, 3]
        along = Nx.as_type(Nx.tensor([[-1, 2, 9], [1, -3, 0]]), type)
        assert Nx.to_flat_list(Nx.take_along_axis(table, along, axis: 1)) == [1, 3, 3, 5, 4, 4]
        assert Nx.to_flat_list(Nx.take_along_axis(table, along, axis: 0)) == [1, 5, 6, 4, 2, 3]
      end
    end

    test "top_k has a kernel, keeps ties in order and puts NaN first" do
      for_all(60, "top_k", fn ->
        type = EMLX.Random.one_of(@types -- [{:c, 64}])
        shape = EMLX.Random.shape(1..3, 1..7)
        k = EMLX.Random.integer(1..elem(shape, tuple_size(shape) - 1))
        tensor = EMLX.Random.tensor(shape, type, range: {-2, 2}, special: 0.1)
        same_block(Nx.Block.TopK, :fused, &Nx.top_k(&1, k: k), [tensor])
      end)
    end

    # The binary backend is right only for the last of more than two axes, and not for axes of size 1.
    defp along(tensor, axis, fun) do
      axes = Nx.axes(tensor)
      order = List.delete(axes, axis) ++ [axis]
      back = Enum.map(axes, fn axis -> Enum.find_index(order, &(&1 == axis)) end)
      tensor |> Nx.transpose(axes: order) |> fun.() |> Nx.transpose(axes: back)
    end

    defp transformed(block, fused, composed, tensor) do
      expected = Nx.with_default_backend(Nx.BinaryBackend, fn -> composed.(tensor) end)
      assert_same(fused.(Nx.backend_copy(tensor, backend())), expected, rtol: 1.0e-4, atol: 1.0e-4)
      assert {block, :fused, nil} in take_blocks()
    end

    test "fft2 and ifft2 have kernels, and are two transforms of one axis" do
      for_all(30, "fft2", fn ->
        type = EMLX.Random.one_of([{:f, 32}, {:c, 64}, {:s, 32}, {:bf, 16}, {:u, 8}])
        tensor = EMLX.Random.tensor(EMLX.Random.shape(2..4, 2..6), type)
        [a, b] = axes = tensor |> Nx.axes() |> Enum.shuffle() |> Enum.take(2)
        lengths = if EMLX.Random.chance(0.5), do: [4, 3], else: Enum.map(axes, &elem(tensor.shape, &1))

        for {block, both, one} <- [{Nx.Block.FFT2, :fft2, :fft}, {Nx.Block.IFFT2, :ifft2, :ifft}] do
          fused = &apply(Nx, both, [&1, [axes: axes, lengths: lengths]])
          part = fn tensor, axis, length -> along(tensor, axis, &apply(Nx, one, [&1, [length: length]])) end
          composed = &(&1 |> part.(b, List.last(lengths)) |> part.(a, hd(lengths)))
          transformed(block, fused, composed, tensor)
        end
      end)
    end

    test "rfft and irfft have kernels, and compute what the binary backend does" do
      for_all(30, "rfft", fn ->
        shape = EMLX.Random.shape(1..3, 3..7)
        axis = EMLX.Random.integer(0..(tuple_size(shape) - 1))
        opts = EMLX.Random.one_of([[], [length: 4], [length: 9]])

        for {block, function, types} <- [
              {Nx.Block.RFFT, :rfft, [{:f, 32}, {:s, 32}, {:bf, 16}, {:u, 8}]},
              {Nx.Block.IRFFT, :irfft, [{:c, 64}, {:f, 32}, {:s, 32}]}
            ] do
          tensor = EMLX.Random.tensor(shape, EMLX.Random.one_of(types))
          fused = &apply(Nx, function, [&1, [axis: axis] ++ opts])
          composed = fn tensor -> along(tensor, axis, &apply(Nx, function, [&1, opts])) end
          transformed(block, fused, composed, tensor)
        end
      end)
    end

    test "a block inside the function of a reduction has its kernel" do
      tensor = EMLX.Random.tensor({3, 4}, {:f, 32})
      apart = fn x, acc -> Nx.add(acc, Nx.logical_not(Nx.all_close(x, acc))) end
      same_block(Nx.Block.AllClose, :fused, &Nx.reduce(&1, 0.0, [axes: [0]], apart), [tensor])
    end

    test "blocks inside defn and on vectorized tensors have their kernels" do
      tensor = EMLX.Random.tensor({3, 4}, {:f, 32})
      sorted = Nx.Defn.jit(&Nx.top_k(Nx.cumulative_sum(&1, axis: 1), k: 2), compiler: Nx.Defn.Evaluator)
      same_block(Nx.Block.TopK, :fused, sorted, [tensor], compiled: false)
      same_block(Nx.Block.CumulativeSum, :fused, &Nx.cumulative_sum(Nx.vectorize(&1, :rows)), [tensor])
    end
  end
end

defmodule EMLX.BlockGuideTest do
  # Not async: the guide's handler receives the events of all processes.
  use EMLX.NxCase, async: false

  doctest_file(EMLX.Guide.path("blocks"))
end
