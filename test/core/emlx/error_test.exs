defmodule EMLX.ErrorTest do
  use ExUnit.Case, async: true

  alias EMLX.{Array, Error, Kernels, Native, Ops, Program, Queue}

  defp failure(fun), do: assert_raise(Error, fun)

  test "an error names the operation, the shapes and the types, and has MLX's message" do
    a = Array.from_list([[1.0, 2.0]], :f32)
    b = Array.from_list([1, 2, 3], :s32)
    error = failure(fn -> Ops.add(a, b) end)

    assert %{kind: :mlx, op: "add", device: :cpu, inputs: [{[1, 2], :f32}, {[3], :s32}]} = error
    assert Exception.message(error) =~ "cannot be broadcast"
    assert Exception.message(error) =~ "f32[1][2], s32[3]"
  end

  test "an unknown operation, a missing attribute and a wrong one are different errors" do
    a = Array.scalar(1.0, :f32)
    assert failure(fn -> Ops.run(:no_such_op, [a]) end).kind == :unknown_op
    assert failure(fn -> Ops.run({:no_such_op, %{}}, [a]) end).kind == :unknown_op
    assert failure(fn -> Ops.run("add", [a, a]) end).kind == :unknown_op
    assert failure(fn -> Ops.run({:sum, %{axes: [0]}}, [a]) end).reason =~ "the attribute keepdims is missing"
    # An attribute that may be nil may be left out.
    x = EMLX.Ops.ones({1, 1, 1, 4}, :f32)
    attention = &Ops.run({:scaled_dot_product_attention, &1}, [x, x, x, nil, nil])
    assert Array.to_list(attention.(%{scale: 1.0, mask: :none})) == [[[[1.0, 1.0, 1.0, 1.0]]]]
    assert failure(fn -> attention.(%{mask: :none}) end).reason =~ "the attribute scale is missing"

    assert failure(fn -> attention.(%{scale: 1.0, mask: :none, layout: :bsd}) end).reason =~
             "the attribute layout cannot be bsd"

    assert failure(fn -> Ops.run({:sum, %{axes: :all, keepdims: false}}, [a]) end).reason =~
             "the attribute axes cannot be all"

    assert failure(fn -> Ops.iota({3_000_000_000}, dtype: :u8) end).reason =~
             "the attribute shape cannot be [3000000000], MLX counts with 32 bits"
  end

  test "an axis out of range, an attribute that is no number and an improper list are errors" do
    a = Ops.ones({2}, :f32)
    assert failure(fn -> Ops.concatenate([a], axis: 1) end).reason =~ "axis 1 is out of range"
    assert failure(fn -> Ops.stack([a], axis: 2) end).reason =~ "xis"
    assert failure(fn -> Ops.arange(:nan, 1) end).reason =~ "the attribute start cannot be nan"
    assert failure(fn -> Ops.concatenate([a | :end]) end).kind == :bad_argument
  end

  # LAPACK ends the process for some of these matrices, and never returns for others, which would block the stream.
  test "a matrix with NaN or an infinity is no error: its factors are NaN, and the rest of its batch is unaffected" do
    for n <- [2, 3, 50], bad <- [:nan, :infinity, :neg_infinity], dtype <- [:f32, :f64] do
      sound = Ops.random_key(3) |> Ops.random_normal({n, n}) |> Ops.astype(dtype)

      at = fn matrix, i, j ->
        Ops.slice_update(matrix, Ops.full(Array.scalar(bad, dtype), {1, 1}, dtype), [i, j], [i + 1, j + 1], [1, 1])
      end

      batch = Ops.stack([at.(sound, 0, 0), sound, at.(sound, n - 1, 0)])

      for op <- [:eig, :eigvals, :svd, :eigh, :eigvalsh, :pinv] do
        for {factor, own} <- Enum.zip(List.wrap(Ops.run(named(op), [batch])), List.wrap(Ops.run(named(op), [sound]))) do
          nan = Ops.isnan(factor) |> Ops.reshape([3, -1])
          assert nan |> Ops.all(axes: [1]) |> Array.to_list() == [true, false, true]
          # The threads of BLAS may add in a different order in each call.
          close = Ops.run({:allclose, %{rtol: 1.0e-4, atol: 1.0e-4, equal_nan: false}}, [second(factor), own])
          assert Array.to_list(close) == true
        end
      end

      # The triangle that is not read may hold any values.
      for {upper, part} <- [{false, at.(sound, 0, n - 1)}, {true, at.(sound, n - 1, 0)}] do
        values = Ops.eigvalsh(part, upper: upper)
        assert Array.to_binary(values) == Array.to_binary(Ops.eigvalsh(sound, upper: upper))
      end
    end
  end

  defp second(batch), do: Ops.take(batch, Array.scalar(1, :s32), axis: 0)

  defp named(:svd), do: {:svd, %{compute_uv: true}}
  defp named(op) when op in [:eigh, :eigvalsh], do: {op, %{upper: false}}
  defp named(op), do: op

  test "the error for an option that is no number names the option" do
    x = Ops.ones({1, 1, 2, 4}, :f32)

    for {call, words} <- [
          {fn -> Kernels.rms_norm(x, nil, eps: nil) end, ~r/rms_norm: :eps must be a number, got: nil/},
          {fn -> Kernels.layer_norm(x, nil, nil, eps: :nan) end, ~r/layer_norm: :eps must be a number/},
          {fn -> Kernels.rope(x, 0, nil, base: "a") end, ~r/rope: :base must be a number/},
          {fn -> Kernels.rope(x, 2_147_483_648, nil) end, ~r/rope: offset must be from -2147483648 to 2147483647/},
          {fn -> Kernels.scaled_dot_product_attention(x, x, x, nil, scale: x) end, ~r/:scale must be a number/}
        ] do
      assert_raise ArgumentError, words, call
    end
  end

  test "a term that is no array in a list of arrays is refused with its value" do
    a = Array.scalar(1.0, :f32)
    assert_raise ArgumentError, ~r/eval: expected an EMLX.Array, got: 3/, fn -> EMLX.eval([a, 3]) end
    assert_raise ArgumentError, ~r/expected an EMLX.Array, got: nil/, fn -> EMLX.async_eval(nil) end
    assert_raise ArgumentError, ~r/to_binary: expected an EMLX.Array/, fn -> Array.to_binary(nil) end

    assert_raise ArgumentError, ~r/a constant: expected an EMLX.Array, got: 2/, fn ->
      Program.new(1, [{:add, [0, 1], 1}], [2], constants: [2])
    end

    program = Program.new(1, [{:abs, [0], 1}], [1])
    assert_raise ArgumentError, ~r/a list of arrays, or a map of arrays by name/, fn -> Program.run(program, a) end
    assert_raise ArgumentError, ~r/a list of arrays, or a map of arrays by name/, fn -> Program.run(program, nil) end
  end

  test "the error for a wrong number of arrays says how many the operation takes" do
    a = Array.scalar(1.0, :f32)
    assert failure(fn -> Ops.run(:add, [a]) end).reason =~ "takes 2 arrays, got 1"
    assert failure(fn -> Ops.run(:abs, []) end).reason =~ "takes 1 arrays, got 0"
    assert failure(fn -> Ops.run(:add, [a, nil]) end).reason =~ "expected an array"
    assert failure(fn -> Ops.concatenate([]) end).reason =~ "at least 1"
  end

  test "native functions refuse terms that are no arrays" do
    for term <- [make_ref(), :atom, "text", 1, self(), [], {1, 2}, %{}, 1.0, <<1::3>>] do
      assert %{kind: :bad_argument} = failure(fn -> Ops.run(:abs, [term]) end)
      assert {:error, %{kind: :bad_argument}} = Native.info(term)
      assert {:error, %{kind: :bad_argument}} = Native.read(term, nil, make_ref())
      assert {:error, %{kind: :bad_argument}} = Native.eval([term], nil, make_ref())
    end

    # A reference to another resource of EMLX is no array either.
    queue = Queue.start()
    program = Program.new(1, [{:abs, [0], 1}], [1])
    assert {:error, %{kind: :bad_argument}} = Native.info(queue.ref)
    assert {:error, %{kind: :bad_argument}} = Native.info(program.ref)
    assert {:error, %{kind: :bad_argument}} = Native.apply(:abs, [program.ref], nil)
    assert {:error, %{kind: :bad_argument}} = Native.apply(:abs, [1], nil)
  end

  test "more memory than the limit is refused, also where sizes do not fit in 64 bits" do
    a = Array.scalar(1.0, :f32)
    column = Ops.zeros({1_000_000, 1}, :f32)
    error = failure(fn -> Ops.add(column, Ops.zeros({1, 1_000_000}, :f32)) end)
    assert %{kind: :out_of_memory, op: "add"} = error
    assert error.reason =~ "memory limit"

    for shape <- [[65_536, 65_536, 65_536, 65_536], [2_147_483_647, 2_147_483_647, 2_147_483_647]] do
      assert failure(fn -> Ops.zeros(shape, :f32) end).kind == :out_of_memory
    end

    assert Array.to_list(Ops.add(a, 1.0)) == 2.0
  end

  test "a late failure reaches the readers of dependent arrays only" do
    singular = Ops.zeros({3, 3}, :f32)
    x = Ops.inv(singular)
    doubled = Ops.add(x, x)
    other = Ops.add(Array.scalar(1.0, :f32), 1.0)

    assert failure(fn -> Array.to_binary(doubled) end).reason =~ "Inverse"
    # Later reads, and reads of dependent results, return the same error and never uninitialized memory.
    assert failure(fn -> Array.to_binary(doubled) end).reason =~ "Inverse"
    assert failure(fn -> Array.to_binary(Ops.sum(doubled)) end).reason =~ "Inverse"
    assert failure(fn -> Array.to_binary(x) end).reason =~ "Inverse"
    assert failure(fn -> EMLX.eval([other, x]) end).reason =~ "Inverse"

    assert Array.to_list(other) == 2.0
    assert Array.to_list(Ops.inv(Ops.eye(2))) == [[1.0, 0.0], [0.0, 1.0]]
  end

  test "a late failure that occurs while a long graph is submitted is kept, too" do
    inverse = Ops.inv(Ops.zeros({3, 3}, :f32))
    last = Enum.reduce(1..500, inverse, fn _, sum -> Ops.add(sum, 1.0) end)

    for _ <- 1..3, do: assert(failure(fn -> Array.to_binary(last) end).reason =~ "Inverse")
    assert failure(fn -> Array.to_binary(inverse) end).reason =~ "Inverse"
  end

  test "eigenvalues of a non-finite matrix are NaN, those of its batch's other matrices are not" do
    a = Array.from_list([[[:nan, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 3.0]]], :f32)
    [values, vectors] = Ops.eig(a)
    assert [[{:nan, _}, {:nan, _}], [{2.0, +0.0}, {3.0, +0.0}]] = Array.to_list(values)
    assert [[[{:nan, _}, _], _], [[{1.0, _}, _], _]] = Array.to_list(vectors)
    assert [[{:nan, _}, _], [{2.0, +0.0}, _]] = Array.to_list(Ops.eigvals(a))
  end

  describe "errors of fused kernels name the argument that does not fit:" do
    defp ones(shape), do: Ops.ones(shape, :f32)

    test "rms_norm and layer_norm say which argument does not fit" do
      assert failure(fn -> Kernels.rms_norm(ones({2, 8}), ones({4})) end).reason =~
               "weight must have one axis"

      assert failure(fn -> Kernels.layer_norm(ones({2, 8}), nil, ones({8, 1})) end).reason =~
               "bias must have one axis"

      assert failure(fn -> Kernels.rms_norm(Ops.ones({2, 8}, :s32), nil) end).reason =~
               "takes f32, f16 or bf16, got s32"

      assert %Error{} = failure(fn -> Kernels.rms_norm(Array.scalar(1.0, :f32), nil) end)
    end

    test "rope says which argument does not fit" do
      assert failure(fn -> Kernels.rope(ones({2, 8}), 0, nil) end).reason =~ "at least 3 axes"

      assert failure(fn -> Kernels.rope(ones({2, 4, 8}), Ops.zeros({3}, :s32), nil) end).reason =~
               "each of the 2 batch rows"

      assert %Error{} = failure(fn -> Kernels.rope(ones({2, 4, 8}), 0, nil, dims: 7) end)
      assert %Error{} = failure(fn -> Kernels.rope(ones({2, 4, 8}), 0, nil, dims: 16) end)
    end

    test "scaled_dot_product_attention says which argument does not fit" do
      attention = &Kernels.scaled_dot_product_attention/4
      q = ones({2, 8, 16, 64})

      assert failure(fn -> attention.(q, ones({2, 3, 16, 64}), ones({2, 3, 16, 64}), nil) end).reason =~
               "q is [2, 8, 16, 64], k has 3 heads: 8 is not a multiple of 3"

      assert failure(fn -> attention.(q, ones({2, 8, 16, 32}), q, nil) end).reason =~
               "size in q and k"

      assert failure(fn -> attention.(ones({8, 16, 64}), q, q, nil) end).reason =~
               "q must be {batch, heads, length, size}"

      assert failure(fn -> attention.(q, q, q, ones({5, 16})) end).reason =~
               "does not broadcast to [2, 8, 16, 16]"
    end
  end
end
