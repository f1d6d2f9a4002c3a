# EMLX.Fast.int8_matmul/4 on EMLX.Backend and compiled, against its composed form on Nx.BinaryBackend.
defmodule EMLX.Fast.Int8MatmulTest do
  use EMLX.NxCase, async: true

  import EMLX.TelemetryRecorder, only: [take_blocks: 0]

  alias EMLX.{Fast, Random}

  doctest EMLX.Fast.Int8Matmul

  @gpu System.get_env("EMLX_TEST_DEVICE") == "gpu"

  setup {EMLX.TelemetryRecorder, :record_test}

  defp numbers(shape, type), do: Random.tensor(shape, type, range: {-2, 2})
  defp integers(shape), do: shape |> Random.tensor({:f, 32}, range: {-127, 127}) |> Nx.round() |> Nx.as_type(:s8)

  defp here(tensors), do: for(t <- tensors, do: t && Nx.backend_copy(t, backend()))

  defp composed(tensors) do
    tensors = for t <- tensors, do: t && Nx.backend_copy(t, Nx.BinaryBackend)
    Nx.with_default_backend(Nx.BinaryBackend, fn -> apply(&Fast.int8_matmul/4, tensors) end)
  end

  defp alike(have, want) do
    assert {have.shape, have.type, have.names} == {want.shape, want.type, want.names}
    {absolute, relative} = EMLX.Tolerance.of(:rounded, EMLX.Backend.dtype(want.type))
    assert_same(have, want, atol: absolute, rtol: relative)
  end

  test "the kernel returns what the composed form returns, in every type, eagerly and compiled" do
    for type <- [{:f, 32}, {:f, 16}, {:bf, 16}],
        {lead, k, n} <- [{{}, 5, 3}, {{1}, 64, 9}, {{3}, 70, 33}, {{2, 9}, 130, 40}] do
      shape = Tuple.insert_at(lead, tuple_size(lead), k)
      x = numbers(shape, type)

      for scales <- [{:f, 32}, type], bias <- [nil, {:f, 32}, type] do
        tensors = [x, integers({n, k}), numbers({n}, scales), bias && numbers({n}, bias)]
        want = composed(tensors)
        take_blocks()
        alike(apply(&Fast.int8_matmul/4, here(tensors)), want)
        assert take_blocks() == [{Fast.Int8Matmul, :fused, nil}]
        packed = List.update_at(tensors, 1, &Fast.Int8Matmul.pack/1)
        alike(composed(packed), want)
        alike(apply(&Fast.int8_matmul/4, here(packed)), want)
        given = here(Enum.reject(tensors, &is_nil/1))

        for compiler <- [[compiler: EMLX], [compiler: Nx.Defn.Evaluator]] do
          fun = if bias, do: &Fast.int8_matmul/4, else: &Fast.int8_matmul/3
          alike(Nx.Defn.jit_apply(fun, given, compiler), want)
        end
      end
    end
  end

  test "rows that are not finite become NaN and rows of zeros the bias, composed and by the kernel" do
    x = Nx.tensor([[1.0, :nan], [:infinity, 1.0], [0.0, 0.0], [1.0e-38, 0.0], [2.0, 1.0]])
    tensors = [x, Nx.s8([[1, 2], [3, 4], [5, 6]]), Nx.tensor([1.0, 0.5, 0.25]), Nx.tensor([1.0, 2.0, 3.0])]
    want = composed(tensors)
    assert [[:nan, :nan, :nan], [:nan, :nan, :nan], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [_, _, _]] = Nx.to_list(want)
    alike(apply(&Fast.int8_matmul/4, here(tensors)), want)
  end

  @tag skip: @gpu && "a GPU has no f64"
  test "f64 is composed, and integers become f32" do
    tensors = here([numbers({3, 8}, {:f, 64}), integers({5, 8}), numbers({5}, {:f, 64}), nil])
    take_blocks()
    alike(apply(&Fast.int8_matmul/4, tensors), composed(tensors))
    assert [{Fast.Int8Matmul, :composed, reason}] = take_blocks()
    assert reason =~ "f64"
    assert Fast.int8_matmul(Nx.tensor([[1, 2]]), Nx.s8([[1, 1]]), Nx.tensor([1])).type == {:f, 32}
  end

  test "vectorized axes are batch axes, of the matrix, too" do
    [x, w, scales, bias] = here([numbers({2, 3, 8}, {:f, 32}), integers({2, 5, 8}), numbers({5}, {:f, 32}), nil])

    for {w, at} <- [{w[0], fn _ -> w[0] end}, {Nx.vectorize(w, :v), &w[&1]}] do
      have = Fast.int8_matmul(Nx.vectorize(x, :v), w, scales, bias)
      assert have.vectorized_axes == [v: 2]
      want = Nx.stack(for i <- 0..1, do: Fast.int8_matmul(x[i], at.(i), scales, bias))
      assert_same(Nx.devectorize(have, keep_names: false), want, rtol: 1.0e-5, atol: 1.0e-5)
    end
  end

  test "the result keeps the names of the leading axes" do
    x = Nx.tensor([[1.0, 2.0]], names: [:batch, :size])
    assert Fast.int8_matmul(x, Nx.s8([[1, 1]]), Nx.tensor([1.0])).names == [:batch, nil]
  end

  test "arguments that do not fit are refused" do
    {x, w, ones} = {Nx.iota({2, 3}, type: :f32), Nx.broadcast(Nx.s8(1), {4, 3}), Nx.tensor([1.0, 1.0, 1.0, 1.0])}

    for {arguments, reason} <- [
          {[Nx.iota({2, 5}), w, ones],
           ~r/x is \{2, 5\}, w is \{4, 3\}, scales is \{4\}: they must be \{…, k\}, \{n, k\} or packed/},
          {[Nx.tensor(1.0), w, ones], ~r/x is \{\}/},
          {[x, Fast.Int8Matmul.pack(w), Nx.broadcast(1.0, {17})],
           ~r/x is \{2, 3\}, w is \{1, 1, 16, 4\}, scales is \{17\}/},
          {[x, Nx.as_type(w, :s32), ones], ~r/w is s32\[4\]\[3\], it must be s8/},
          {[x, w, Nx.tensor([1.0])], ~r/w is \{4, 3\}, scales is \{1\}/},
          {[x, w, ones, Nx.tensor(1.0)], ~r/bias is \{\}: bias must have one number for each row of w/},
          {[Nx.broadcast(1.0, {1, 132_105}), Nx.broadcast(Nx.s8(1), {1, 132_105}), Nx.tensor([1.0])],
           ~r/sums of 132105 products may not fit 32 bits/}
        ] do
      assert_raise ArgumentError, reason, fn -> apply(Fast, :int8_matmul, arguments) end
    end

    assert_raise ArgumentError, ~r/a matrix of s8 is needed, got: f32\[4\]/, fn -> Fast.Int8Matmul.pack(ones) end
  end
end
