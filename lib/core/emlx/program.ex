defmodule EMLX.Program do
  @moduledoc """
  A program is a sequence of operations over numbered values, with branches and loops, that one native call runs. The
  compiler `EMLX` produces programs; `new/4` builds them by hand.

  Values are numbered from 0: first the inputs, then the constants, then the outputs of each instruction in order. An
  instruction is `{op, inputs, number_of_outputs}`, or the same with a label that errors show. `inputs` are numbers of
  values, `nil` for an absent one. An `op` is one of

    * an operation as `EMLX.Ops.run/3` takes it: `:add`, `{:sum, %{axes: [0], keepdims: false}}`
    * `{:if, %{then: block, else: block}}` - the inputs are the predicate, a scalar of any type, and then the inputs of
      both blocks. A predicate other than zero selects `then`. Only the selected block is computed.
    * `{:while, %{condition: block, body: block}}` - the inputs are the initial state, as many values as the instruction
      has outputs, and then captured values. Both blocks take the state and the captured values. The condition returns
      one scalar. While it is not zero, the body returns the new state, with the same shapes and types.
    * `{:call, %{id: id, outputs: [{shape, dtype}]}}` - calls the function of that id in `run/3`'s option `:calls`, in
      the process that runs the program. The function takes the inputs and returns the outputs, each as a list of
      arrays.

  A `block` is `{number_of_inputs, instructions, outputs}`. Its values have their own numbers: first its inputs, then
  the outputs of its instructions.

      iex> add = {:add, [0, 1], 1}
      iex> below = {:less, [0, 2], 1}
      iex> loop = {:while, %{condition: {3, [below], [3]}, body: {3, [add], [3, 1]}}}
      iex> program = EMLX.Program.new(3, [{loop, [0, 1, 2], 2}], [3])
      iex> [result] = EMLX.Program.run(program, Enum.map([1, 7, 40], &EMLX.Array.scalar(&1, :s32)))
      iex> EMLX.Array.to_list(result)
      43

  If the condition of a loop depends only on integer counters, its trip count is computed before the first step, and the
  steps are submitted without synchronization.

  The calling process runs a program without branches, loops and calls: it builds the nodes and submits them to the
  queue, so a run can follow the previous one without waiting. The queue runs all other programs. A long run lets jobs
  of other processes on the queue go first every 10 ms. A run ends when the process that called it exits.
  """

  import Kernel, except: [inspect: 1, inspect: 2]

  alias EMLX.{Array, Native, Options, Queue}

  @enforce_keys [:ref, :inputs, :output_names, :constants, :calls, :size, :straight?, :long?]
  defstruct [:ref, :inputs, :output_names, :constants, :calls, :size, :straight?, :long?, :constant_names]

  @type input :: {name :: String.t(), [non_neg_integer], Array.dtype()}
  @type t :: %__MODULE__{
          ref: reference,
          inputs: non_neg_integer | [input],
          output_names: nil | [String.t()],
          constants: non_neg_integer,
          constant_names: nil | [String.t()],
          calls: [non_neg_integer],
          size: non_neg_integer,
          straight?: boolean,
          long?: boolean
        }
  @type value :: non_neg_integer
  @type block :: {inputs :: non_neg_integer, [instruction], outputs :: [value]}
  @type op ::
          EMLX.Ops.op()
          | {:if, %{then: block, else: block}}
          | {:while, %{condition: block, body: block}}
          | {:call, %{id: non_neg_integer, outputs: [{[non_neg_integer], Array.dtype()}]}}
  @type instruction ::
          {op, [value | nil], outputs :: non_neg_integer}
          | {op, [value | nil], outputs :: non_neg_integer, label :: String.t() | nil}

  @device [device: [type: {:in, [:cpu, :gpu]}]]
  @new Options.schema(
         [
           constants: [type: {:list, :any}, default: []],
           constant_names: [type: {:or, [{:list, :string}, {:map, :integer, :string}, nil]}, default: nil],
           output_names: [type: {:or, [{:list, :string}, nil]}, default: nil],
           fuse: [type: :boolean, default: false],
           merge: [type: {:or, [:boolean, nil]}, default: nil],
           run_ahead: [type: {:or, [:non_neg_integer, nil]}, default: nil]
         ] ++ @device
       )
  @explain Options.schema(@device)
  # save/3 itself checks :names, for clearer errors.
  @save Options.schema([names: [type: :any]] ++ Options.place())
  @place Options.schema(Options.place())

  @doc """
  Returns a program of `instructions` whose results are the values numbered `outputs`.

  `inputs` is the number of arrays that a run takes, of any shapes and types, or a list of `{name, shape, dtype}`. With
  a list, every run checks its arrays, and may take a map of arrays by name.

  Options:

    * `:constants` - a list of arrays that every run uses, numbered after the inputs; default `[]`. They are shared, not
      copied
    * `:constant_names` - a list with a name for each constant, for `save/3`
    * `:output_names` - a list with a name for each output
    * `:device` - the device whose plan is made immediately; default `EMLX.default_device/0`. The plan for another
      device is made by the first run there. `explain/2` shows plans
    * `:merge` - whether operations on at most 64 rows are merged to fewer, larger ones, as with the compiler `EMLX`. The
      default `nil` merges on the GPU only
    * `:fuse` - whether MLX's compiler fuses adjacent element-wise operations of a segment to one kernel; default
      `false`. The first run for each set of shapes compiles. On the CPU, this needs the C++ compiler g++ and about a
      second for each new kernel. Kernels are cached in the system's temporary folder, also for other VMs. A kernel
      keeps intermediate values in registers and may contract a product and a sum, so results may differ from
      `fuse: false` in the last bits. The run goes through the queue, as one with branches does. Without `:fuse`, a
      program whose inputs have names and shapes runs common operations on f32, bf16 and f16 on the CPU several in one
      pass, with bit-identical results
    * `:run_ahead` - the number of steps after which a loop submits its steps speculatively, before its condition is
      known, so that the device does not idle; default `nil`, never. A step too many is discarded. The loop keeps its
      previous results for that, so loops with results of more than 1 MiB do not run ahead, nor do loops with branches,
      loops or calls

  Raises `EMLX.Error` for a value that is used before it is defined, a block whose inputs or outputs do not fit its
  instruction, an unknown operation, more than 1,048,576 values, or blocks that are nested more than 32 deep.

      iex> program = EMLX.Program.new(2, [{:add, [0, 1], 1}, {:square, [2], 1}], [3])
      iex> [a, b] = Enum.map([1.0, 2.0], &EMLX.Array.scalar(&1, :f32))
      iex> [result] = EMLX.Program.run(program, [a, b])
      iex> EMLX.Array.to_list(result)
      9.0

      iex> half = EMLX.Array.scalar(0.5, :f32)
      iex> program = EMLX.Program.new([{"x", [2], :f32}], [{:multiply, [0, 1], 1}], [2], constants: [half])
      iex> [result] = EMLX.Program.run(program, %{"x" => EMLX.Array.from_list([1.0, 2.0], :f32)})
      iex> EMLX.Array.to_list(result)
      [0.5, 1.0]
  """
  @spec new(non_neg_integer | [input], [instruction], [value], keyword) :: t
  def new(inputs, instructions, outputs, opts \\ []) do
    opts = opts |> Options.validate!(@new, "EMLX.Program.new") |> Keyword.put_new_lazy(:device, &EMLX.default_device/0)
    constants = for constant <- opts[:constants], do: Array.ref!(constant, "program, a constant")
    native_opts = opts |> Keyword.drop([:constants, :constant_names]) |> Map.new()
    program = from_ref(Native.call!(Native.program_new(inputs, constants, instructions, outputs, native_opts)))
    %{program | constant_names: opts[:constant_names]}
  end

  defp from_ref(ref) do
    {%{is_straight: straight?, is_long: long?}, info} =
      Map.split(Native.call!(Native.program_info(ref)), [:is_straight, :is_long])

    struct!(__MODULE__, Map.merge(info, %{ref: ref, straight?: straight?, long?: long?}))
  end

  @doc """
  Returns the inputs of a program, each as `{name, shape, dtype}`, or `{nil, nil, nil}` for an input of any shape and
  type.

      iex> EMLX.Program.inputs(EMLX.Program.new([{"x", [2, 3], :f32}], [], [0]))
      [{"x", [2, 3], :f32}]
  """
  @spec inputs(t) :: [input | {nil, nil, nil}]
  def inputs(%__MODULE__{inputs: inputs}) when is_list(inputs), do: inputs
  def inputs(%__MODULE__{inputs: count}), do: List.duplicate({nil, nil, nil}, count)

  @doc """
  Returns the outputs of a program, each as `{name, shape, dtype}`. The name is `nil` for an output without a name.
  Shape and type are `nil` if the inputs may have any.

  Shapes and types are those of the program's operations, built on arrays that are never computed. Raises `EMLX.Error`
  for an instruction whose inputs do not fit. Options: `:device`, `:queue`.

      iex> sum = {{:sum, %{axes: [1], keepdims: false}}, [0], 1}
      iex> EMLX.Program.outputs(EMLX.Program.new([{"x", [2, 3], :f32}], [sum], [1], output_names: ["rows"]))
      [{"rows", [2], :f32}]
  """
  @spec outputs(t, keyword) :: [{String.t() | nil, [non_neg_integer] | nil, Array.dtype() | nil}]
  def outputs(%__MODULE__{} = program, opts \\ []) do
    opts = Options.validate!(opts, @place, "EMLX.Program.outputs")
    types = Native.call!(Native.program_outputs(program.ref, Queue.target(opts)))

    for {type, name} <- Enum.zip(types, program.output_names || Enum.map(types, fn _ -> nil end)) do
      {shape, dtype} = type || {nil, nil}
      {name, shape, dtype}
    end
  end

  @doc ~S'''
  Returns a program as text: one line for each instruction, with nested blocks indented. `%3` is a value, `%c0` a
  constant. Labels are in brackets. The text has shapes and types if the inputs have them. For a program whose
  instructions do not fit, it ends with the reason. Options: `:device`, `:queue`.

      iex> weight = EMLX.Ops.ones({3, 2}, :f32)
      iex> instructions = [{:matmul, [0, 1], 1, "Dense"}, {{:sum, %{axes: [1], keepdims: false}}, [2], 1}]
      iex> program = EMLX.Program.new([{"x", [4, 3], :f32}], instructions, [3], constants: [weight], output_names: ["rows"])
      iex> EMLX.Program.inspect(program)
      """
      inputs
        %0 = "x" f32[4][3]
      constants
        %c0 f32[3][2]
      instructions
        %2 = matmul(%0, %c0) f32[4][2] [Dense]
        %3 = sum(%2, axes: [1], keepdims: false) f32[4]
      outputs
        "rows" = %3 f32[4]
      """
  '''
  @spec inspect(t, keyword) :: String.t()
  def inspect(%__MODULE__{ref: ref}, opts \\ []) do
    opts = Options.validate!(opts, @place, "EMLX.Program.inspect")
    Native.call!(Native.program_describe(ref, Queue.target(opts)))
  end

  @doc ~S'''
  Returns the execution plan of a program on a device as text, with the decisions of each planning pass and their
  reasons.

  A plan is made once for each device. Its lines have the numbers of the program's instructions, as `inspect/2` shows
  them, and the engine that runs them: MLX node by node, a chain (one kernel of EMLX for several element-wise
  operations), masked rows (one kernel for what is computed of rows that a mask fills, `masked`), a segment compiled
  by MLX (`fused`), or a segment launched as one CUDA graph (`captured`). For a loop, the line lists the engines in the
  order in which they are tried.

  Options: `:device`, default `EMLX.default_device/0`. On a machine without a GPU, `device: :gpu` returns the plan for
  CUDA.

      iex> instructions = [{:exp, [0], 1}, {{:sum, %{axes: [0], keepdims: false}}, [1], 1}]
      iex> program = EMLX.Program.new([{"x", [2], :f32}], instructions, [2])
      iex> EMLX.Program.explain(program, device: :cpu) |> String.split("\n") |> Enum.take(2)
      ["plan for cpu", "  0–1: node by node: exp, sum"]
  '''
  @spec explain(t, keyword) :: String.t()
  def explain(%__MODULE__{ref: ref}, opts \\ []) do
    opts = Options.validate!(opts, @explain, "EMLX.Program.explain")
    Native.call!(Native.program_explain(ref, Keyword.get_lazy(opts, :device, &EMLX.default_device/0)))
  end

  # ---- files ----

  @doc """
  Writes a program to a file, by convention `name.emlx`. Constants of more than 1 KiB are written to `name.safetensors`
  next to it. Returns `:ok`. `load/2` only needs EMLX's core: neither Nx nor the libraries that built the program.
  [The guide](programs.html) describes the format.

  Options:

    * `:names` - names of the constants: a list with one for each, or a map from positions of constants to names. The
      default is the option `:constant_names` of `new/4`, else `"constant.0"` and so on
    * `:device`, `:queue` - where constants that are not computed yet are evaluated

  The file keeps all options of `new/4` except `:run_ahead` and `:device`. Raises `EMLX.Error` for a program with calls,
  whose functions a file cannot hold, and for one whose shapes do not fit together. The error has the kind `:file` if
  the file cannot be written.
  """
  @spec save(t, Path.t(), keyword) :: :ok
  def save(%__MODULE__{} = program, path, opts \\ []) do
    opts = Options.validate!(opts, @save, "EMLX.Program.save")
    {names, opts} = Keyword.pop(opts, :names, program.constant_names || %{})
    names = constant_names(names, program.constants)
    target = Queue.target(opts)
    Native.await!(:save, [], opts, &Native.program_save(program.ref, to_string(path), names, target, &1))
  end

  defp constant_names(names, _count) when is_list(names), do: names

  defp constant_names(names, count) when is_map(names) do
    case Enum.find(Map.keys(names), &(&1 not in 0..(count - 1)//1)) do
      nil -> for i <- 0..(count - 1)//1, do: Map.get(names, i, "constant.#{i}")
      other -> raise ArgumentError, "there is no constant #{Kernel.inspect(other)}; the program has #{count}"
    end
  end

  defp constant_names(names, _count) do
    raise ArgumentError,
          ":names is a list with a name for each constant, or a map of names by the constants' positions, got: " <>
            Kernel.inspect(names)
  end

  @doc """
  Loads a program and its constants from a file that `save/3` wrote. Options: `:device`, `:queue`, for the constants.

  Raises `EMLX.Error` of kind `:file` for a file that is no saved program, has a newer version of the format, is
  truncated or damaged (its digest or that of a constant differs), or whose instructions do not fit together.
  """
  @spec load(Path.t(), keyword) :: t
  def load(path, opts \\ []) do
    opts = Options.validate!(opts, @place, "EMLX.Program.load")
    from_ref(Native.call!(Native.program_load(to_string(path), Queue.target(opts))))
  end

  @doc """
  Runs a program on a list of arrays, or on a map of arrays by input name. Returns the list of its outputs as soon as
  their computation is submitted.

  Options:

    * `:calls` - `%{id => fun}`, a function for each `:call` of the program; default `%{}`. It runs in the calling
      process, takes the list of the call's inputs and returns the list of its outputs. If it raises, the run ends, and
      the exception is raised to the caller
    * `:device`, `:queue` - where to run, as for `EMLX.Ops.run/3`
    * `:function` - the name of the run in telemetry (`EMLX.Telemetry`). The compiler passes the compiled function

  Raises `EMLX.Error` if the inputs do not fit, if an instruction does not fit its inputs, or if the queue is closed
  during the run. Raises `ArgumentError` for a call without a function.
  """
  @spec run(t, [Array.t()] | %{String.t() => Array.t()}, keyword) :: [Array.t()]
  def run(%__MODULE__{} = program, arrays, opts \\ []) do
    {calls, opts} = Keyword.pop(opts, :calls, %{})
    {function, opts} = Keyword.pop(opts, :function)
    check_calls(program, calls)
    inputs = refs(program, arrays)
    target = Queue.target(opts)
    metadata = %{program: program, function: function, device: Queue.device(opts), queue: Queue.of(opts)}

    outputs =
      EMLX.Telemetry.span(:run, %{instructions: program.size}, metadata, fn ->
        tag = make_ref()

        case start(program, inputs, target, tag) do
          {:error, error} -> raise EMLX.Error, error
          :ok -> {{:ok, await(tag, calls)}, %{}, %{}}
          built -> {built, %{}, %{}}
        end
      end)

    case outputs do
      {:ok, outputs} -> outputs
      {:wait, outputs} -> EMLX.eval(outputs, opts)
    end
  end

  # Building the nodes would block a scheduler for too long.
  defp start(%{straight?: true, long?: true} = program, inputs, target, tag),
    do: Native.program_run_dirty(program.ref, inputs, target, tag)

  defp start(program, inputs, target, tag), do: Native.program_run(program.ref, inputs, target, tag)

  defp refs(%{inputs: inputs}, arrays) when is_non_struct_map(arrays) and is_list(inputs) do
    names = for {name, _shape, _dtype} <- inputs, do: name

    case {names -- Map.keys(arrays), Map.keys(arrays) -- names} do
      {[], []} ->
        for name <- names, do: ref(arrays[name])

      {[missing | _], _} ->
        raise ArgumentError, "no array for input #{Kernel.inspect(missing)}; the inputs are #{Kernel.inspect(names)}"

      {_, [extra | _]} ->
        raise ArgumentError, "no input is named #{Kernel.inspect(extra)}; the inputs are #{Kernel.inspect(names)}"
    end
  end

  defp refs(_program, arrays) when is_non_struct_map(arrays) do
    raise ArgumentError, "the program's inputs have no names; run it on a list of arrays"
  end

  defp refs(_program, arrays) when is_list(arrays), do: Enum.map(arrays, &ref/1)

  defp refs(_program, other) do
    raise ArgumentError, "a program runs on a list of arrays, or a map of arrays by name, got: #{Kernel.inspect(other)}"
  end

  defp ref(array), do: Array.ref!(array, "run")

  # ---- calls ----

  defp check_calls(%{calls: []}, _calls), do: :ok

  defp check_calls(%{calls: ids}, calls) do
    for id <- ids, not is_function(calls[id], 1) do
      raise ArgumentError,
            "the program calls function #{id}; give run/3 a function of one argument as calls: %{#{id} => fun}"
    end
  end

  # A run always sends a message: its outputs, an error, or a call. After the result of a call it sends another one.
  defp await(tag, calls) do
    receive do
      {^tag, {:call, id, arrays, suspended}} ->
        outputs = call(calls[id], arrays, suspended)
        Native.call!(Native.program_resume(suspended, {:ok, outputs}))
        await(tag, calls)

      {^tag, answer} ->
        Native.call!(answer)
    end
  end

  defp call(fun, arrays, suspended) do
    case fun.(arrays) do
      outputs when is_list(outputs) ->
        Enum.map(outputs, &ref/1)

      other ->
        raise ArgumentError, "a function called by a program gives a list of arrays, got #{Kernel.inspect(other)}"
    end
  catch
    kind, reason ->
      Native.program_resume(suspended, :error)
      :erlang.raise(kind, reason, __STACKTRACE__)
  end
end
