defmodule EMLX.Programs do
  @moduledoc """
  Programs that tests save, load and damage, each with inputs to run it on. Together they have every kind of attribute.
  """

  alias EMLX.{Array, Ops, Program}

  @doc "Every program with its inputs, by name."
  @spec all :: %{atom => {Program.t(), [Array.t()]}}
  def all, do: %{attention: attention(), indices: indices(), image: image(), loop: loop(), any: any()}

  @doc "The same program, fused: as if its file said so."
  @spec fused(Program.t()) :: Program.t()
  def fused(program) do
    path = Path.join(System.tmp_dir!(), "emlx_fused_#{System.pid()}_#{System.unique_integer([:positive])}.emlx")
    :ok = Program.save(program, path)

    try do
      [_, body] = path |> File.read!() |> String.split("\n", parts: 2)
      forge(path, String.replace(body, ~s("fuse":false), ~s("fuse":true)))
      Program.load(path)
    after
      File.rm(path)
      File.rm(String.replace(path, ".emlx", ".safetensors"))
    end
  end

  @doc """
  Writes a program's file with a right digest, whatever is in it. The digest is in the error of one with a wrong one.
  """
  @spec forge(Path.t(), binary) :: :ok
  def forge(path, body) do
    File.write!(path, ["emlx-program 1 ", String.duplicate("0", 64), "\n", body])

    try do
      Program.load(path)
      raise "a wrong digest was taken"
    rescue
      error in EMLX.Error ->
        [_, digest] = Regex.run(~r/its digest is ([0-9a-f]{64})/, error.reason)
        File.write!(path, ["emlx-program 1 ", digest, "\n", body])
    end
  end

  defp ramp(shape, dtype \\ :f32) do
    size = Enum.product(shape)
    Ops.iota(shape, dtype: :f32) |> Ops.subtract(size / 2) |> Ops.divide(size) |> Ops.astype(dtype)
  end

  # A layer of a transformer, with a table too large to stand in the file.
  defp attention do
    heads = {{:reshape, %{shape: [1, 4, 2, 8]}}, [7], 1}
    turned = {{:transpose, %{axes: [0, 2, 1, 3]}}, [8], 1}

    instructions = [
      # 6
      {{:take, %{axis: 0}}, [1, 0], 1, "embedding"},
      {{:rms_norm, %{eps: 1.0e-6}}, [6, 2], 1, "norm"},
      heads,
      turned,
      # 10
      {{:rope, %{dims: 8, traditional: false, base: 10_000.0, scale: 1.0}}, [9, 5, nil], 1},
      {{:scaled_dot_product_attention, %{scale: 0.35, mask: :causal}}, [10, 10, 9, nil, nil], 1},
      {{:transpose, %{axes: [0, 2, 1, 3]}}, [11], 1},
      {{:reshape, %{shape: [1, 4, 16]}}, [12], 1},
      {:matmul, [13, 3], 1},
      # 15
      {:add, [14, 4], 1},
      {:sigmoid, [15], 1},
      {{:softmax, %{axes: [-1], precise: true}}, [16], 1},
      {{:argmax, %{axis: -1, keepdims: false, nan: :first}}, [17], 1}
    ]

    constants = [ramp([32, 16]), ramp([16]), ramp([16, 24]), ramp([24]), Array.scalar(0, :s32)]

    program =
      Program.new([{"tokens", [1, 4], :s32}], instructions, [17, 18],
        constants: constants,
        output_names: ["probabilities", "best"]
      )

    {program, [Array.from_list([[1, 5, 31, 0]], :s32)]}
  end

  defp indices do
    instructions = [
      # 2
      {{:slice, %{start: [0, 1], stop: [4, 6], strides: [1, 2]}}, [0], 1},
      {{:split, %{indices: [1, 3], axis: 0}}, [2], 3},
      {{:concatenate, %{axis: 0}}, [5, 3, 4], 1},
      {{:gather, %{axes: [0], slice_sizes: [1, 3]}}, [6, 1], 1},
      {{:squeeze, %{axes: [1]}}, [7], 1},
      {{:scatter_add, %{axes: [0]}}, [6, 7, 1], 1},
      # 10
      {{:pad, %{axes: [0, 1], low: [1, 0], high: [0, 2], mode: :constant}}, [9, 11], 1},
      {{:sort, %{axis: 1}}, [10], 1},
      {{:topk, %{k: 2, axis: 1}}, [12], 1},
      {{:cumsum, %{axis: 0, reverse: true, inclusive: false}}, [13], 1},
      {{:einsum, %{subscripts: "ij,kj->ik"}}, [14, 13], 1},
      {{:iota, %{shape: [3, 5], axis: 1, dtype: :s64}}, [], 1}
    ]

    # The padding's value comes before what it pads.
    value = {{:constant, %{value: :neg_infinity, dtype: :f32}}, [], 1}
    instructions = List.insert_at(instructions, 6, value)
    instructions = List.update_at(instructions, 7, fn {op, _, n} -> {op, [9, 10], n} end)

    instructions =
      instructions
      |> List.replace_at(8, {{:sort, %{axis: 1}}, [11], 1})

    program = Program.new([{"x", [4, 6], :f32}, {"rows", [2], :s32}], instructions, [12, 13, 14, 15, 16, 8])
    {program, [ramp([4, 6]), Array.from_list([2, 0], :s32)]}
  end

  defp image do
    window = %{window: [1, 2, 2, 1], strides: [1, 2, 2, 1], padding_low: [0, 0, 0, 0], padding_high: [0, 0, 0, 0]}

    conv = %{
      stride: [1, 1],
      padding_low: [1, 1],
      padding_high: [1, 1],
      kernel_dilation: [1, 1],
      input_dilation: [1, 1],
      groups: 1,
      flip: false
    }

    instructions = [
      {{:conv, conv}, [0, 1], 1},
      {{:window_reduce, Map.merge(window, %{reduction: :max, dilation: [1, 1, 1, 1]})}, [2], 1},
      {{:mean, %{axes: nil, keepdims: false}}, [3], 1},
      {{:as_strided, %{shape: [2, 2], strides: [1, 2], offset: 3}}, [3], 1},
      {{:fft, %{sizes: [4], axes: [2], norm: :backward}}, [3], 1},
      {{:full, %{shape: [2, 3], dtype: :bf16}}, [4], 1},
      {{:linspace, %{start: -1.0, stop: 1.0, num: 5, dtype: :f32}}, [], 1},
      {{:random_key, %{seed: 18_446_744_073_709_551_615}}, [], 1},
      {{:random_normal, %{shape: [3], dtype: :f32, loc: 0.5, scale: 2.0}}, [9], 1}
    ]

    program =
      Program.new([{"image", [1, 8, 8, 3], :f32}], instructions, [3, 4, 5, 6, 7, 8, 10],
        constants: [ramp([2, 3, 3, 3])]
      )

    {program, [ramp([1, 8, 8, 3])]}
  end

  # Newton's square roots in a loop of at most n steps, each a branch.
  defp loop do
    half = {{:constant, %{value: 0.5, dtype: :f32}}, [], 1}
    one = {{:constant, %{value: 1, dtype: :s32}}, [], 1}
    better = {2, [{:divide, [1, 0], 1}, {:add, [2, 0], 1}, half, {:multiply, [3, 4], 1}], [5]}
    branch = {{:if, %{then: better, else: {2, [], [0]}}}, [5, 1, 2], 1}
    body = {4, [one, {:add, [0, 4], 1}, branch, {:less, [5, 3], 1}], [5, 6]}
    # The predicate of the branch is the new count, which is never zero.
    condition = {4, [{:less, [0, 3], 1}], [4]}

    instructions = [{{:while, %{condition: condition, body: body}}, [2, 0, 0, 1], 2}, {:square, [4], 1}]

    program =
      Program.new([{"x", [3], :f32}, {"n", [], :s32}], instructions, [4, 5],
        constants: [Array.scalar(0, :s32)],
        output_names: ["root", "square"]
      )

    {program, [Array.from_list([1.0, 2.0, 9.0], :f32), Array.scalar(20, :s32)]}
  end

  # Inputs of any shapes.
  defp any do
    program = Program.new(2, [{:matmul, [0, 1], 1}, {{:sum, %{axes: nil, keepdims: true}}, [2], 1}], [3, 2])
    {program, [ramp([2, 3]), ramp([3, 2])]}
  end
end
