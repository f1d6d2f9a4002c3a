# The CPU's kernels of our own against MLX's, operation by operation and size by size: microseconds and the ratio. MLX's
# are asked for with EMLX_KERNELS=mlx, which is read once a VM and there for this alone; so this starts a second VM of
# itself and runs both in turn.
#
#   mix run bench/cpu_kernels.exs [NAME]     # only the cases whose name begins with NAME
defmodule CpuKernels do
  alias EMLX.{Array, Kernels, Ops}

  def cases do
    elementwise =
      for type <- [:f32, :bf16], size <- [1_000, 786_432], name <- [:exp, :sigmoid, :tanh, :erf, :rsqrt] do
        x = numbers([size], type)
        {"#{name} #{type} #{size}", fn -> Ops.run(name, [x]) end}
      end

    rows =
      for type <- [:f32, :bf16], {rows, size} <- [{1, 512}, {512, 384}, {4096, 128}] do
        {x, w} = {numbers([rows, size], type), numbers([size], type)}
        label = "#{type} #{rows} × #{size}"

        [
          {"softmax #{label}", fn -> Ops.run({:softmax, %{axes: [-1], precise: true}}, [x]) end},
          {"rms_norm #{label}", fn -> Kernels.rms_norm(x, w) end},
          {"layer_norm #{label}", fn -> Kernels.layer_norm(x, w, w) end},
          {"add of a row #{label}", fn -> Ops.add(x, w) end}
        ]
      end

    products =
      for type <- [:f32, :bf16],
          {m, k, n} <- [
            {1, 512, 512},
            {1, 512, 2048},
            {1, 512, 32_000},
            {4, 512, 2048},
            {8, 512, 512},
            {16, 512, 2048},
            {32, 512, 2048},
            {64, 512, 2048},
            {128, 512, 2048},
            {512, 384, 1536},
            {1024, 1024, 1024},
            {2048, 512, 1}
          ],
          # The right one as it is, and as checkpoints have it: the other way round.
          turned <- [false, true] do
        a = numbers([m, k], type)
        b = if turned, do: Ops.transpose(numbers([n, k], type), [1, 0]), else: numbers([k, n], type)
        {"matmul #{type} #{m} × #{k} × #{n}#{if turned, do: " turned"}", fn -> Ops.matmul(a, b) end}
      end

    int8 =
      for {m, k, n} <- [{1, 512, 2048}, {4, 512, 2048}, {8, 512, 2048}, {64, 384, 1536}, {512, 384, 1536}],
          packed <- [false, true] do
        x = numbers([m, k], :f32)
        w = numbers([n, k], :f32) |> Ops.multiply(60) |> Ops.astype(:s8)
        scales = numbers([n], :f32)
        blocks = w |> Ops.reshape([div(n, 16), 16, div(k, 4), 4]) |> Ops.transpose([0, 2, 1, 3])
        w = EMLX.eval(if packed, do: Ops.contiguous(blocks), else: w)
        run = fn -> Kernels.int8_matmul(x, w, scales, nil) end
        {"int8 matmul #{m} × #{k} × #{n}#{if packed, do: " packed"}", run}
      end

    quantized =
      for type <- [:f32, :bf16], bits <- [4, 8], m <- [1, 4, 32, 128] do
        x = numbers([m, 512], type)
        [w, scales, biases] = Kernels.quantize(numbers([2048, 512], type), bits: bits, group_size: 64)
        EMLX.eval([w, scales, biases])
        run = fn -> Kernels.quantized_matmul(x, w, scales, biases, bits: bits, group_size: 64) end
        {"quantized matmul #{type} #{m} × 512 × 2048, #{bits} bits", run}
      end

    batches =
      for type <- [:f32, :bf16], {batch, m, k, n} <- [{96, 64, 32, 64}, {96, 64, 64, 32}, {16, 1, 64, 512}] do
        {a, b} = {numbers([batch, m, k], type), numbers([batch, k, n], type)}
        {"matmul #{type} #{batch} × #{m} × #{k} × #{n}", fn -> Ops.matmul(a, b) end}
      end

    heads =
      for type <- [:f32, :bf16], {batch, heads, length, size} <- [{1, 8, 128, 64}, {8, 12, 64, 32}] do
        q = Ops.transpose(numbers([batch, length, heads, size], type), [0, 2, 1, 3])
        label = "#{type} #{batch} × #{heads} × #{length} × #{size}"

        [
          {"attention #{label}", fn -> Kernels.scaled_dot_product_attention(q, q, q, nil) end},
          {"causal attention #{label}", fn -> Kernels.scaled_dot_product_attention(q, q, q, :causal) end},
          {"rope #{label}", fn -> Kernels.rope(q, 0, nil) end}
        ]
      end

    sums =
      for type <- [:f32, :bf16],
          {shape, axes} <- [
            {[1_048_576], nil},
            {[1024, 1024], [0]},
            {[1024, 1024], [1]},
            {[64, 64, 256], [1]},
            {[64, 64, 256], [0, 2]},
            {[1_048_576, 3], [0]},
            {[1_048_576, 3], [1]},
            {[3, 1_048_576], [0]},
            {[65_536, 16], [1]},
            {[64], nil}
          ],
          name <- [:sum, :prod, :var, :logsumexp] do
        x = numbers(shape, type)
        attributes = if name == :var, do: %{ddof: 0}, else: %{}
        op = {name, Map.merge(attributes, %{axes: axes, keepdims: false})}
        {"reduce #{name} #{type} #{Enum.join(shape, " × ")} over #{inspect(axes)}", fn -> Ops.run(op, [x]) end}
      end

    scans =
      for type <- [:f32, :bf16],
          {shape, axis} <- [{[1_048_576], 0}, {[1024, 1024], 0}, {[1024, 1024], 1}],
          name <- [:cumsum, :logcumsumexp] do
        x = numbers(shape, type)
        op = {name, %{axis: axis, reverse: false, inclusive: true}}
        {"scan #{name} #{type} #{Enum.join(shape, " × ")} along #{axis}", fn -> Ops.run(op, [x]) end}
      end

    integers =
      for type <- [:u8, :s32, :s64], {m, k, n} <- [{4, 4, 4}, {1, 1024, 1024}, {256, 256, 256}, {1024, 1024, 1024}] do
        {a, b} = {whole([m, k], type), whole([k, n], type)}
        {"matmul #{type} #{m} × #{k} × #{n}", fn -> Ops.matmul(a, b) end}
      end

    convolutions =
      for type <- [:f32, :bf16],
          {name, shape, weight, options} <- [
            {"3 × 3", [8, 64, 64, 32], [32, 3, 3, 32], [padding_low: 1, padding_high: 1]},
            {"1 × 1", [8, 28, 28, 128], [256, 1, 1, 128], []},
            {"7 × 7, stride 2", [1, 224, 224, 3], [64, 7, 7, 3], [stride: 2, padding_low: 3, padding_high: 3]},
            {"depthwise", [1, 56, 56, 128], [128, 3, 3, 1], [groups: 128, padding_low: 1, padding_high: 1]},
            {"gradient by the kernel", [32, 66, 66, 8], [32, 64, 64, 8], []},
            {"gradient of stride 2", [8, 32, 32, 64], [32, 3, 3, 64],
             [input_dilation: 2, padding_low: 1, padding_high: 2]}
          ] do
        {x, w} = {numbers(shape, type), numbers(weight, type)}
        {"conv #{type} #{name}", fn -> Ops.conv(x, w, options) end}
      end

    windows =
      for type <- [:f32, :bf16, :s32],
          {shape, window, strides} <- [
            {[1024, 1024], [3, 3], [1, 1]},
            {[8, 32, 64, 64], [1, 1, 2, 2], [1, 1, 2, 2]},
            {[8, 64, 64, 32], [1, 2, 2, 1], [1, 2, 2, 1]}
          ] do
        x = if type == :s32, do: whole(shape, type), else: numbers(shape, type)
        none = Enum.map(shape, fn _ -> 0 end)
        label = "#{type} #{Enum.join(shape, " × ")} by #{Enum.join(window, " × ")}"
        source = Ops.window_reduce(x, :max, window, strides, none, none)
        EMLX.eval([source])

        [
          {"window sum #{label}", fn -> Ops.window_reduce(x, :sum, window, strides, none, none) end},
          {"window max #{label}", fn -> Ops.window_reduce(x, :max, window, strides, none, none) end},
          {"window scatter #{label}", fn -> Ops.window_scatter(x, source, 0, :max, window, strides, none, none) end}
        ]
      end

    scatters =
      for type <- [:f32, :bf16], {rows, count, size} <- [{1024, 65_536, 1}, {1024, 1024, 1024}, {50_000, 512, 64}] do
        a = numbers([rows, size], type)
        updates = Ops.reshape(numbers([count, size], type), [count, 1, size])
        index = Ops.remainder(Ops.multiply(Ops.iota([count], dtype: :s32), 7919), rows)
        EMLX.eval(index)
        run = fn -> Ops.run({:scatter_add, %{axes: [0]}}, [a, updates, index]) end
        {"scatter_add #{type} #{count} × #{size} to #{rows}", run}
      end

    complex =
      for {shape, axes} <- [{[1_048_576], nil}, {[1024, 1024], [0]}, {[1024, 1024], [1]}] do
        x = Ops.astype(numbers(shape, :f32), :c64)
        EMLX.eval(x)
        op = {:sum, %{axes: axes, keepdims: false}}
        {"reduce sum c64 #{Enum.join(shape, " × ")} over #{inspect(axes)}", fn -> Ops.run(op, [x]) end}
      end

    asked = List.first(System.argv(), "")

    all =
      [elementwise, rows, products, int8, integers, quantized, batches, heads, convolutions, windows] ++
        [sums, complex, scans, scatters]

    for {name, _} = one <- List.flatten(all),
        String.starts_with?(name, asked),
        do: one
  end

  defp numbers(shape, type) do
    key = Ops.run({:random_key, %{seed: 1}}, [])
    bounds = [Array.scalar(0.1, :f32), Array.scalar(2.0, :f32)]
    x = Ops.run({:random_uniform, %{shape: shape, dtype: :f32}}, bounds ++ [key]) |> Ops.astype(type)
    EMLX.eval(x)
    x
  end

  # Whole numbers from 0 to 99.
  defp whole(shape, type) do
    x = Ops.astype(Ops.multiply(numbers(shape, :f32), 1000), :s32)
    x = Ops.remainder(x, 100) |> Ops.astype(type)
    EMLX.eval(x)
    x
  end

  # Microseconds of one call: of several together where one is short.
  def time(run) do
    # BLAS's threads go on turning for a while after a product of the other VM's.
    Process.sleep(150)
    {once, _} = :timer.tc(fn -> EMLX.eval(run.()) end)
    count = max(1, div(2_000, max(once, 1)))
    {time, _} = :timer.tc(fn -> for(_ <- 1..count, do: EMLX.eval(run.())) end)
    time / count
  end

  # The other VM: answers the number of a case with its time.
  def serve do
    cases = Map.new(Enum.with_index(cases(), fn {_name, run}, i -> {i, run} end))

    for line <- IO.stream(:stdio, :line) do
      {i, _} = Integer.parse(line)
      IO.puts("time #{time(cases[i])}")
    end
  end

  def compare do
    arguments = ["run", "--no-compile", __ENV__.file | System.argv()]
    environment = [{~c"EMLX_KERNELS", ~c"mlx"}]

    port =
      Port.open({:spawn_executable, System.find_executable("mix")}, [
        :binary,
        line: 200,
        args: arguments,
        env: environment
      ])

    for {{name, run}, i} <- Enum.with_index(cases()) do
      pairs = for _ <- 1..11, do: {time(run), there(port, i)}
      {ours, theirs} = Enum.unzip(pairs)
      [ours, theirs] = for list <- [ours, theirs], do: list |> Enum.sort() |> Enum.at(5)
      [a, b, ratio] = for number <- [ours, theirs, ours / theirs], do: :erlang.float_to_binary(number, decimals: 2)

      IO.puts(
        "#{String.pad_trailing(name, 40)} ours #{String.pad_leading(a, 10)} µs   MLX's #{String.pad_leading(b, 10)} µs   ratio #{ratio}"
      )
    end
  end

  defp there(port, i) do
    Port.command(port, "#{i}\n")
    answer(port)
  end

  defp answer(port) do
    receive do
      {^port, {:data, {:eol, "time " <> text}}} -> text |> Float.parse() |> elem(0)
      {^port, _} -> answer(port)
    after
      60_000 -> raise "the other VM did not answer"
    end
  end
end

# The variable is what makes a VM the other one, so that it can start none itself.
if System.get_env("EMLX_KERNELS") == "mlx", do: CpuKernels.serve(), else: CpuKernels.compare()
