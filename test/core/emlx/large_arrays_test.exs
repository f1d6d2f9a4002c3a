# Arrays of sizes that golden values do not cover: more rows than a CUDA grid has blocks, scalars of large buffers,
# matrices with millions of columns, and on a GPU more than 2^31 elements. EMLX_TEST_DEVICE=gpu runs the tests on the
# GPU.
defmodule EMLX.LargeArraysTest do
  use ExUnit.Case, async: true

  alias EMLX.{Array, Golden, Kernels, Ops, Program, Tolerance}

  @gpu System.get_env("EMLX_TEST_DEVICE") == "gpu"

  defp device, do: Golden.device()
  defp iota(shape, dtype), do: Ops.iota(shape, dtype: dtype, device: device())
  defp scalar(number, dtype), do: Array.scalar(number, dtype, device: device())

  # One element as a scalar that shares the buffer.
  defp element(array, index) do
    stop = Enum.map(index, &(&1 + 1))
    ones = Enum.map(index, fn _ -> 1 end)
    array |> Ops.slice(index, stop, ones) |> Ops.reshape([])
  end

  defp number(array, index), do: array |> element(index) |> Array.to_list()

  # Descending numbers in row-major order.
  defp falling(shape) do
    size = Enum.product(shape)
    Ops.reshape(Ops.subtract(scalar(size, :f32), iota([size], :f32)), shape)
  end

  describe "a scalar" do
    for size <- [8_192, 20_000, 1_000_003] do
      test "a scalar sliced out of a sorted or cumulated vector of #{size} numbers is the element" do
        size = unquote(size)
        counted = iota([size], :f32)
        halves = Ops.add(Ops.full(0.5, [size], :f32, device: device()), 0)

        for index <- [0, 10, size - 1] do
          assert number(Ops.sort(falling([size])), [index]) == index + 1.0
          assert number(Ops.argsort(falling([size])), [index]) == size - 1 - index
          assert number(Ops.cummax(counted), [index]) == index * 1.0
          assert_in_delta number(Ops.cumsum(halves), [index]), (index + 1) / 2, (index + 1) * 1.0e-6
          assert number(Ops.contiguous(counted), [index]) == index * 1.0
        end
      end
    end

    test "a scalar of a larger buffer is made contiguous, copied, cast and padded correctly" do
      scalar = element(iota([50_000], :f32), [12_345])

      for f <- [&Ops.contiguous/1, &Ops.copy/1, &Ops.add(&1, 0), &Ops.astype(&1, :s32), &Ops.pad(&1, 5.0, [], [], [])] do
        assert scalar |> f.() |> Array.to_list() == 12_345
      end

      assert scalar |> Ops.broadcast_to([3]) |> Ops.contiguous() |> Array.to_list() == List.duplicate(12_345.0, 3)
    end

    test "slice updates replace a scalar and add to it" do
      scalar = element(iota([50_000], :f32), [12_345])
      assert scalar |> Ops.slice_update(scalar(5, :f32), [], [], []) |> Array.to_list() == 5.0
      assert scalar |> Ops.slice_update_add(scalar(5, :f32), [], [], []) |> Array.to_list() == 12_350.0
    end
  end

  # The VM's compiled code reads up to 7 bytes before the binary it matches. Buffers of megabytes start where a GPU's
  # memory mapping starts, and the bytes before the first one are not readable. All arrays are kept until the last one
  # is read.
  test "integers of every size can be matched at the start of a large array's binary" do
    binaries =
      for kilobytes <- [1, 64, 2048, 2050, 8192], round <- 1..8 do
        Array.to_binary(Ops.add(Ops.broadcast_to(scalar(round, :s32), [kilobytes * 256]), scalar(0, :s32)))
      end

    for binary <- binaries do
      <<first::32-little, second::32-little, _rest::binary>> = binary
      assert first in 1..8 and second == first
      assert <<^first::8-little, _::binary>> = binary
      assert <<^first::16-little, _::binary>> = binary
      assert <<^first::24-little, _::binary>> = binary
      assert <<five::40-little, _::binary>> = binary
      assert <<six::48-little, _::binary>> = binary
      assert <<seven::56-little, _::binary>> = binary
      assert Enum.uniq([five, six, seven]) == [first + 2 ** 32 * first]
    end
  end

  describe "exclusive scans" do
    for {name, none} <- [cumsum: 0, cumprod: 1, cummax: -2_147_483_648, cummin: 2_147_483_647],
        reverse <- [false, true] do
      test "exclusive #{name} of 20,000 elements is the inclusive one shifted by one#{if reverse, do: ", reversed"}" do
        {name, none, reverse} = {unquote(name), unquote(none), unquote(reverse)}
        x = Ops.subtract(Ops.remainder(iota([20_000], :s32), scalar(7, :s32)), scalar(3, :s32))
        ones = Ops.broadcast_to(scalar(-1, :s32), [20_000])
        scan = &{name, %{axis: 0, reverse: reverse, inclusive: &1}}

        for x <- [x, ones], run <- [&Golden.run/2, &program/2] do
          whole = Array.to_list(run.(scan.(true), [x]))

          expected =
            if reverse, do: tl(whole) ++ [none], else: [none | Enum.drop(whole, -1)]

          assert Array.to_list(run.(scan.(false), [x])) == expected
        end
      end
    end
  end

  test "a scan along an axis of size 1 returns its element, whatever the axis's stride" do
    for dtype <- [:f32, :u64, :bf16, :s8], name <- [:cumsum, :cumprod, :cummax, :cummin, :logcumsumexp] do
      # The first axis of the slice still has the stride of the whole.
      row = iota([1, 3001], dtype)
      slice = {:slice, %{start: [0, 5], stop: [1, 7], strides: [1, 1]}}

      if name != :logcumsumexp or dtype in [:f32, :bf16] do
        for reverse <- [false, true] do
          scan = &{name, %{axis: 0, reverse: reverse, inclusive: &1}}
          two = Golden.run(slice, [row])
          assert Array.to_list(Golden.run(scan.(true), [two])) == [[5, 6]]
          [[none, none]] = Array.to_list(Golden.run(scan.(false), [two]))
          one = Golden.run({:slice, %{start: [0, 1], stop: [1, 2], strides: [1, 1]}}, [two])
          assert Array.to_list(Golden.run(scan.(true), [one])) == [[6]]
          assert Array.to_list(Golden.run(scan.(false), [one])) == [[none]]
        end
      end
    end
  end

  test "the imaginary parts of the first and last of half a spectrum count for nothing, at any size and in two axes" do
    for n <- [16, 1_000, 16_384, 65_536], rows <- [[], [3], [2, 4]] do
      count = div(n, 2) + 1
      numbers = iota(rows ++ [count], :f32)
      parts = Enum.map([0.37, 0.73], &Ops.sin(Ops.multiply(numbers, scalar(&1, :f32))))
      [re, im] = Enum.map(parts, &Ops.astype(&1, :c64))
      unit = Array.scalar({0.0, 1.0}, :c64, device: device())
      column = iota([count], :s32)
      inner = Ops.logical_and(Ops.greater(column, 0), Ops.less(column, count - 1))
      half = Ops.add(re, Ops.multiply(unit, im))
      real_ends = Ops.add(re, Ops.where(inner, Ops.multiply(unit, im), scalar(0, :c64)))
      have = Ops.irfft(half, [n], [-1])
      want = Ops.irfft(real_ends, [n], [-1])
      {allowed, _} = Tolerance.scaled(:summed, :f32, 0.1 / :math.sqrt(n))
      assert Array.to_list(Ops.max(Ops.abs(Ops.subtract(have, want)))) <= allowed
    end
  end

  test "products of gathered f32 matrices are those of the matrices, by any number of rows" do
    b = Ops.cos(iota([3, 40, 16], :f32))
    right = Array.from_list([2, 0, 1, 1], :u32, device: device())
    left = Array.from_list([1, 1, 0, 0], :u32, device: device())

    for rows <- [3, 64, 65, 150], {lhs, rhs} <- [{left, right}, {nil, Ops.slice(right, [0], [2], [1])}] do
      a = Ops.sin(iota([2, rows, 40], :f32))
      have = Golden.run({:gather_mm, %{sorted: false}}, [a, b, lhs, rhs])
      picked = if lhs, do: Ops.take(a, lhs, axis: 0), else: a
      rhs = if lhs, do: rhs, else: Ops.slice(right, [0], [2], [1])
      want = Ops.matmul(picked, Ops.take(b, rhs, axis: 0))
      assert Array.shape(have) == Array.shape(want)
      {allowed, _} = Tolerance.scaled(:product, :f32, 4)
      assert Array.to_list(Ops.max(Ops.abs(Ops.subtract(have, want)))) < allowed
    end
  end

  test "f32 products with quantized matrices in groups of 128 are those of the matrix, by any number of rows" do
    w = Ops.multiply(Ops.sin(iota([7, 1024], :f32)), scalar(0.25, :f32))

    # Each combination is a kernel of its own on CUDA, which takes long to compile.
    for {bits, rows} <- [{4, 1}, {4, 32}, {8, 33}, {6, 65}, {2, 200}] do
      [words, scales, biases] = Kernels.quantize(w, group_size: 128, bits: bits)
      x = Ops.cos(iota([rows, 1024], :f32))
      have = Kernels.quantized_matmul(x, words, scales, biases, group_size: 128, bits: bits)
      whole = Kernels.dequantize(words, scales, biases, group_size: 128, bits: bits)
      want = Ops.matmul(x, Ops.transpose(whole, [1, 0]))
      {allowed, _} = Tolerance.scaled(:quantized, :f32, 4)
      assert Array.to_list(Ops.max(Ops.abs(Ops.subtract(have, want)))) < allowed
    end
  end

  test "an array that is cropped to size 0 and padded is all padding" do
    padded =
      Golden.run({:pad, %{axes: [0], low: [-1], high: [2], mode: :constant}}, [iota([1, 3], :s32), scalar(7, :s32)])

    assert Array.to_list(padded) == [[7, 7, 7], [7, 7, 7]]

    for name <- [:cumsum, :logcumsumexp], reverse <- [false, true], dtype <- [:f32, :bf16] do
      scan = {name, %{axis: 0, reverse: reverse, inclusive: false}}
      none = if name == :cumsum, do: 0.0, else: :neg_infinity
      assert Array.to_list(Golden.run(scan, [iota([1, 2], dtype)])) == [[none, none]]
    end
  end

  # Runs an operation in a program, which may overwrite its intermediate values.
  defp program(op, [x]) do
    program = Program.new(1, [{:negative, [0], 1}, {:negative, [1], 1}, {op, [2], 1}], [3])
    hd(Program.run(program, [x], device: device()))
  end

  describe "sorting" do
    for {shape, axis} <- [
          {[100_000, 3], 1},
          {[3, 100_000], 0},
          {[40_000, 2, 3], 2},
          {[1, 151_936], 0},
          {[70_000, 1], 1}
        ] do
      test "many short rows, #{inspect(shape)} along axis #{axis}, are each sorted" do
        {shape, axis} = {unquote(shape), unquote(axis)}
        array = falling(shape)
        length = Enum.at(shape, axis)
        kept = List.delete_at(shape, axis)
        # Numbers in row-major order descend along every axis, so sorting reverses them.
        reversed = Ops.contiguous(Ops.flip(array, [axis]))
        same = fn a, b -> assert Array.to_list(Ops.array_equal(a, b)) end

        same.(Ops.sort(array, axis: axis), reversed)
        same.(Ops.partition(array, 0, axis: axis) |> Ops.min(axes: [axis]), Ops.min(array, axes: [axis]))
        same.(Ops.topk(array, 1, axis: axis), Ops.max(array, axes: [axis], keepdims: true))

        line = for place <- 0..(length - 1), do: length - 1 - place
        column = for {_, i} <- Enum.with_index(shape), do: if(i == axis, do: length, else: 1)
        order = Array.from_list(line, :u32, device: device()) |> Ops.reshape(column) |> Ops.broadcast_to(shape)
        same.(Ops.argsort(array, axis: axis), order)

        middle = Enum.map([div(length - 1, 2), div(length, 2)], &element_rows(reversed, axis, &1))
        middle = middle |> Enum.reduce(&Ops.add/2) |> Ops.divide(2)
        assert Array.shape(Ops.median(array, axes: [axis])) == List.to_tuple(kept)
        same.(Ops.median(array, axes: [axis]), Ops.reshape(middle, kept))
      end
    end

    test "the median of 100,003 numbers is the one in the middle" do
      assert falling([100_003]) |> Ops.median() |> Array.to_list() == 50_002.0
    end
  end

  defp element_rows(array, axis, place) do
    shape = array |> Array.shape() |> Tuple.to_list()
    zeros = Enum.map(shape, fn _ -> 0 end)
    ones = Enum.map(shape, fn _ -> 1 end)
    Ops.slice(array, List.replace_at(zeros, axis, place), List.replace_at(shape, axis, place + 1), ones)
  end

  test "a matrix of nine million rows is transposed, also with its axes in two groups" do
    rows = 9_000_000
    array = Ops.multiply(iota([rows, 1], :f32), Array.from_list([[1.0, -1.0]], :f32, device: device()))

    for turned <- [Ops.transpose(array, [1, 0]), Ops.swapaxes(array, 0, 1), Ops.moveaxis(array, 0, -1)] do
      copied = Ops.contiguous(turned)
      assert Array.shape(copied) == {2, rows}

      for row <- [0, 1, 4_194_239, 4_194_240, 8_388_479, 8_388_480, 8_388_481, rows - 1], column <- [0, 1] do
        assert number(copied, [column, row]) == row * (1.0 - 2.0 * column)
      end
    end

    turned = array |> Ops.reshape([3_000, 3_000, 2]) |> Ops.transpose([2, 0, 1]) |> Ops.reshape([2, rows])
    assert number(turned, [1, rows - 1]) == 1.0 - rows
  end

  test "rope rotates seventy thousand batch rows like each row by itself" do
    rows = 70_000
    x = Ops.sin(iota([rows, 1, 2, 4], :f32))
    offsets = Ops.remainder(iota([rows], :s32), 1000)
    turned = Kernels.rope(x, offsets, nil)

    for row <- [0, 65_534, 65_535, 65_536, rows - 1] do
      one = Kernels.rope(element_rows(x, 0, row), element_rows(offsets, 0, row), nil)
      assert Array.to_list(Ops.allclose(element_rows(turned, 0, row), one, atol: 1.0e-5))
    end
  end

  test "rope rotates a thousand heads of four numbers like each head by itself" do
    x = Ops.sin(iota([1, 1_000, 3, 4], :f32))
    turned = Kernels.rope(x, 7, nil)

    for head <- [0, 499, 500, 999] do
      one = Kernels.rope(element_rows(x, 1, head), 7, nil)
      assert Array.to_list(Ops.allclose(element_rows(turned, 1, head), one, atol: 1.0e-5))
    end
  end

  describe "two million elements" do
    # A GPU has other kernels for them than for few.
    unless @gpu, do: @describetag(:slow)

    @rows 2_055
    @columns 1_021

    defp few(:s32), do: iota([@columns], :s32)
    defp few(dtype), do: Ops.astype(Ops.divide(Ops.add(iota([@columns], :f32), 0.5), @columns), dtype)

    # Whether `f` of many rows that are the same is `f` of each.
    defp same_rows?(f, inputs) do
      many = for input <- inputs, do: EMLX.eval(Ops.contiguous(Ops.broadcast_to(input, [@rows, @columns])))
      given = apply(f, many)
      wanted = Ops.broadcast_to(apply(f, inputs), [@rows, @columns])
      # The kernel for few rounds halves after each step.
      rtol = %{f16: 3.0e-3, bf16: 3.0e-2}[Array.dtype(given)] || 1.0e-5
      close = Ops.allclose(Ops.astype(given, :f32), Ops.astype(wanted, :f32), rtol: rtol, atol: 1.0e-6)
      Array.to_list(close) and Array.dtype(given) == Array.dtype(wanted)
    end

    for name <-
          [:abs, :negative, :sign, :floor, :ceil, :square, :sqrt, :rsqrt, :reciprocal, :exp, :expm1, :log] ++
            [:log1p, :sin, :cos, :tan, :sinh, :cosh, :tanh, :arcsin, :arctan, :sigmoid, :erf, :isnan] do
      test "#{name} is that of few" do
        for dtype <- [:f32, :f16, :bf16], do: assert(same_rows?(&apply(Ops, unquote(name), [&1]), [few(dtype)]))
      end
    end

    for name <-
          [:add, :subtract, :multiply, :divide, :maximum, :minimum, :power, :arctan2, :remainder] ++
            [:less, :greater_equal, :equal, :not_equal] do
      test "#{name} is that of few" do
        for dtype <- [:f32, :f16, :bf16, :s32] do
          a = few(dtype)
          f = fn a -> apply(Ops, unquote(name), [a, Ops.add(Ops.abs(Ops.subtract(a, few_half(dtype))), 1)]) end
          assert same_rows?(f, [a]), inspect(dtype)
          assert same_rows?(&apply(Ops, unquote(name), [&1, scalar(3, dtype)]), [a]), inspect(dtype)
        end
      end
    end

    defp few_half(:s32), do: scalar(div(@columns, 2), :s32)
    defp few_half(dtype), do: scalar(0.5, dtype)

    test "casts, bits and choices are those of few" do
      for from <- [:f32, :bf16, :s32], to <- [:f32, :f16, :bf16, :s32, :s8, :u8, :bool, :s64] do
        assert same_rows?(&Ops.astype(&1, to), [few(from)]), inspect({from, to})
      end

      for name <- [:bitwise_and, :bitwise_or, :bitwise_xor, :left_shift, :right_shift] do
        assert same_rows?(&apply(Ops, name, [&1, scalar(3, :s32)]), [few(:s32)]), inspect(name)
      end

      choose = fn a -> Ops.where(Ops.less(a, 0.3), Ops.multiply(a, -2), Ops.add(a, 1)) end
      for dtype <- [:f32, :bf16], do: assert(same_rows?(choose, [few(dtype)]))
    end
  end

  @tag :tmp_dir
  test "a program with an inverse computes the same after inspect/1 and save/3", %{tmp_dir: dir} do
    on = [device: device()]
    path = Path.join(dir, "inverse.emlx")
    program = Program.new([{"a", [3, 3], :f32}], [{:inv, [0], 1}], [1], output_names: ["b"])
    twice = Ops.multiply(Ops.eye(3, on), 2)
    half = [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]]
    run = fn program -> program |> Program.run([twice], on) |> hd() |> Array.to_list() end

    assert run.(program) == half
    assert Program.inspect(program, on) =~ "inv"
    assert run.(program) == half
    :ok = Program.save(program, path, on)
    assert run.(program) == half
    assert run.(Program.load(path, on)) == half
    # No work is left for another program on the same thread either.
    assert twice |> Ops.add(1) |> Array.to_list() |> hd() == [3.0, 1.0, 1.0]
  end

  describe "more than 2^31 elements" do
    @describetag :slow
    @describetag skip: not @gpu and "no GPU"

    setup do
      {rows, columns} = {22, 100_000_000}
      cast = &Ops.astype(&1, :u8)
      array = Ops.add(cast.(Ops.iota([rows, 1], axis: 0, dtype: :s32, device: :gpu)), cast.(iota([1, columns], :s32)))
      on_exit(fn -> EMLX.clear_cache() end)
      {:ok, array: array, shape: [rows, columns], last: [rows - 1, columns - 1]}
    end

    defp value([row, column]), do: rem(row + column, 256)

    test "more than 2^31 elements are counted, transposed and sorted", %{
      array: array,
      shape: [_, columns] = shape,
      last: last
    } do
      assert number(Ops.iota(shape, dtype: :u32, device: :gpu), last) == 2_199_999_999
      turned = Ops.contiguous(Ops.transpose(array, [1, 0]))
      assert number(turned, Enum.reverse(last)) == value(last)
      sorted = Ops.sort(array, axis: 1)
      assert {number(sorted, [21, 0]), number(sorted, [21, columns - 1])} == {0, 255}
    end

    test "a slice at the end of more than 2^31 elements is replaced and read", %{array: array, last: last} do
      nine = Array.from_list([[9]], :u8, device: :gpu)
      updated = Ops.slice_update(array, nine, last, Enum.map(last, &(&1 + 1)), [1, 1])
      assert number(updated, last) == 9
      start = Array.from_list(last, :s32, device: :gpu)
      assert number(Ops.slice_update_dynamic(array, nine, start, [0, 1]), last) == 9
      assert array |> Ops.slice_dynamic(start, [0, 1], [1, 1]) |> Array.to_list() == [[value(last)]]
      flat = Ops.full(0, [2, 1_100_000_000], :u8, device: :gpu)
      updated = Ops.slice_update(flat, nine, [1, 1_099_999_999], [2, 1_100_000_000], [1, 1])
      assert number(updated, [1, 1_099_999_999]) == 9
    end
  end
end
