defmodule EMLX do
  @moduledoc """
  MLX's arrays and fused kernels for Elixir, on Apple silicon, on NVIDIA GPUs and on Linux CPUs.

    * `EMLX.Array` - arrays: from binaries and lists, and back
    * `EMLX.Ops` - MLX's operations
    * `EMLX.Kernels` - fused kernels: norms, rotary embedding, attention, quantized products
    * `EMLX.Program` - many operations replayed by one native call
    * `EMLX.Queue` - where and in which order arrays are evaluated
    * `EMLX.Memory`, `EMLX.Safetensors` - memory figures and files
    * `EMLX.Telemetry` - spans of what is computed, run, traced and moved, and a table of where the time goes
    * `EMLX.Debug` - checks of indices and results while they are computed, and where in a compiled function they fail
    * `EMLX.SharedMemory` - arrays for other processes of the operating system

  The functions in the group "Names of the C++ EMLX" are for code that was written for
  [the C++ EMLX](https://github.com/elixir-nx/emlx). New code takes `EMLX.Ops`, `EMLX.Kernels` and `EMLX.Array`. They
  raise `EMLX.NIFError` where those raise `EMLX.Error`. The guide [From the C++ EMLX](migration.html) compares both.

  ## NVIDIA GPUs

  `config :emlx, tf32: true` lets products of f32 round their operands to 10 bits, for speed; the default is f32. It is read when the
  application starts; an environment variable `MLX_ENABLE_TF32` goes before it. What has no kernel on the GPU (linear algebra,
  scatters of 64-bit types, arrays without elements) is computed on the CPU and copied. The guide [On NVIDIA GPUs](cuda.html) has what
  differs, and what to do where no GPU is found.

  ## Compiler

  With Nx, this module is a compiler for `Nx.Defn`:

      Nx.Defn.jit(&predict/2, compiler: EMLX)
      Nx.Defn.default_options(compiler: EMLX)

  The function is traced once for each signature of its arguments (containers, shapes, types, names) and becomes an
  `EMLX.Program`, which every further call runs with one native call. The backend's operations and the implementations of
  `EMLX.Block` serve compiled functions as they serve eager ones. A call returns when the computation is submitted, before
  it is done; only reading a value waits.

  `cond` runs the branch taken only; `while` runs in native code. Hooks and `Nx.runtime_call/4` run in the calling
  process, which the program waits for. Tensors that a function closes over become constants of the program, copied once. Nx 0.12 and 0.13 have no mark for inputs that may be overwritten; intermediate values are, by MLX.

  Options (another one raises `ArgumentError`, but for those that `Nx.Serving` and `Axon.build/2` pass along):

    * `:device` - `:cpu` or `:gpu`, by default as for `EMLX.Backend`
    * `:queue` - the `EMLX.Queue` to run on; by default the calling process's queue if it is on the device, else the device's own.
      `:command_queue` is another name for it
    * `:fuse` - whether runs of element-wise operations are compiled to one kernel each, by `mx.compile`. Default `false`;
      `config :emlx, fuse: true` sets it. On the CPU a C++ compiler (g++) is needed while the program runs, and each new
      kernel takes it about a second; without it the common ones (arithmetic, roots, exponentials, `erf`, `tanh`) of f32, bf16 and f16 already
      run several in one pass there. A fused kernel rounds as its operations do one by one, but for the last bits: compilers may
      contract a product and a sum, and 16-bit floats may keep more bits between two operations
    * `:merge` - whether operations on at most 4 rows, as a model has for each token that it generates, become fewer, larger ones:
      products of one input with the norm before and the gate or the sum after them, the norm and rotation of heads, attention on
      a cache. On CUDA each is one kernel, and a loop of such steps is launched as one graph, over and over; elsewhere they are the
      operations that they stand for, with the same results. Default `nil`, which is `true` on the GPU and `false` on the CPU;
      `config :emlx, merge: true` sets it
    * `:run_ahead` - the steps after which a loop submits its next step before it is known whether there is one, as `EMLX.Program.new/4`
      has it. Default `nil`, never; `config :emlx, run_ahead: 8` sets it
    * `:on_unsupported` - what to do with a function that cannot be traced, for example since an implementation of a block
      reads a value: `:raise` (default) or `:evaluate`, which has `Nx.Defn.Evaluator` run it
    * `:hooks` - a map of functions for named hooks
    * `:max_concurrency` - the number of partitions, each with a queue, for an `Nx.Serving` with `partitions: true`.
      **Warning:** with partitions, `Nx.Serving` joins the parts of a request that is larger than `:batch_size` in the
      order in which they end, on any backend (seen with Nx 0.12.1 and 0.13.1). So a request to partitions must have at
      most `:batch_size` entries
    * `:cache` - `false` to trace at each call

  ## Compile cache

  Compiled functions are kept for all processes. A function is found by its code and by what it closes over: numbers
  and binaries of up to 1 KiB, such as small tensors of `Nx.BinaryBackend`, by their values; larger binaries and
  tensors of `EMLX.Backend` by their identity. A call therefore takes the same time however large the tensors are.

  The cache does not keep what a function closes over. The compiled function, with its constants, is freed when
  nothing else refers to one of those tensors: at once for tensors of `EMLX.Backend`, within about a second for those
  of `Nx.BinaryBackend`. Only the limits remove two kinds of functions: those that close over nothing that counts by
  identity, and those whose hooks or runtime calls close over the same tensors as the function.

      config :emlx, compiler_cache: [entries: 1000, bytes: 2 ** 30]

  limits the number of compiled functions and the bytes of their constants. Those used last stay. A constant of
  several functions counts once; a tensor that a function closes over does not count. The defaults are 1000 entries
  and an eighth of `EMLX.Memory.limit/0`. A number, `compiler_cache: 1000`, limits the entries alone.
  `compiler_cache/0` returns the size of the cache, and `clear_compiler_cache/0` empties it.

  Telemetry tells of each trace and each run (`EMLX.Telemetry`).
  """

  if match?({:module, _}, Code.ensure_compiled(EMLX.Compiler)) do
    @behaviour Nx.Defn.Compiler

    @doc """
    Compiles a function of Nx to a program, which `EMLX.Program.save/3` can save and which runs without Nx.

    `args` are the function's arguments. What is a template in them (`Nx.template/2`, also inside containers) is an input of
    the program; what is a tensor with values is a constant, such as the parameters of a model. Inputs, outputs and constants are named
    by their way through the containers: `"arg1.input_ids"`.

    Options: `:device`, `:fuse`, `:merge` and `:run_ahead` as for the compiler (`:run_ahead` is not saved), and

      * `:names` - a name for each argument instead of `arg0`, `arg1`, …; an empty one is left out

    Raises `ArgumentError` for functions with hooks or runtime calls, since those call the process that runs the program; and
    `EMLX.Error` of kind `:traced` for functions that cannot be traced.

        iex> weights = %{kernel: Nx.tensor([[1.0, 2.0], [3.0, 4.0]])}
        iex> predict = fn weights, inputs -> Nx.dot(inputs["x"], weights.kernel) end
        iex> inputs = %{"x" => Nx.template({1, 2}, :f32)}
        iex> program = EMLX.compile_to_program(predict, [weights, inputs], names: ["weights", ""], device: :cpu)
        iex> [result] = EMLX.Program.run(program, %{"x" => EMLX.Array.from_list([[1.0, 1.0]], :f32)})
        iex> EMLX.Array.to_list(result)
        [[4.0, 6.0]]
    """
    @spec compile_to_program(fun, [Nx.Container.t()], keyword) :: EMLX.Program.t()
    defdelegate compile_to_program(fun, args, opts \\ []), to: EMLX.Compiler, as: :to_program

    @doc ~S"""
    Explains how a function of Nx runs: the plan of the program that it compiles to, as `EMLX.Program.explain/2` shows it.

    `args` and `opts` are those of `compile_to_program/3`. Nothing is computed. Functions with hooks or runtime calls cannot be
    explained, and raise as `compile_to_program/3` does.

        iex> text = EMLX.explain(fn x -> Nx.multiply(Nx.tanh(x), x) end, [Nx.template({16, 16}, :f32)], device: :cpu)
        iex> text |> String.split("\n") |> hd()
        "plan for cpu"
    """
    @spec explain(fun, [Nx.Container.t()], keyword) :: String.t()
    def explain(fun, args, opts \\ []) do
      fun |> EMLX.Compiler.to_program(args, opts, "EMLX.explain") |> EMLX.Program.explain(Keyword.take(opts, [:device]))
    end

    @doc """
    Returns the number of compiled functions that are kept, and the bytes of the constants that only they keep.

    What nothing refers to any more is freed first. The bytes are part of `EMLX.Memory.active/0`.

        iex> Nx.Defn.jit_apply(&Nx.exp/1, [1.0], compiler: EMLX, device: :cpu)
        iex> %{entries: entries, bytes: bytes} = EMLX.compiler_cache()
        iex> entries > 0 and bytes >= 0
        true
    """
    @spec compiler_cache :: %{entries: non_neg_integer, bytes: non_neg_integer}
    defdelegate compiler_cache, to: EMLX.Compiler.Cache, as: :size

    @doc """
    Empties the compile cache: every function is traced anew at its next call. Returns `:ok`.

    Programs that are running finish, and functions of `Nx.Defn.compile/3` stay usable. (`clear_cache/0` is about
    another cache, MLX's memory for later arrays.)

        iex> EMLX.clear_compiler_cache()
        :ok
    """
    @spec clear_compiler_cache :: :ok
    defdelegate clear_compiler_cache, to: EMLX.Compiler.Cache, as: :clear

    @doc false
    @impl true
    defdelegate __jit__(key, vars, fun, args_list, opts), to: EMLX.Compiler, as: :jit

    @doc false
    @impl true
    defdelegate __compile__(key, vars, fun, opts), to: EMLX.Compiler, as: :compile

    @doc false
    @impl true
    defdelegate __partitions_options__(opts), to: EMLX.Compiler, as: :partitions

    @doc false
    @impl true
    defdelegate __to_backend__(opts), to: EMLX.Compiler, as: :backend
  end

  import Kernel, except: [abs: 1, ceil: 1, floor: 1, round: 1]

  alias EMLX.{Array, Compatibility, Memory, Native, Queue}

  @doc """
  Has arrays computed and waits for them. Gives its argument. Options: `:device`, `:queue`.

      iex> EMLX.eval(EMLX.Ops.add(EMLX.Array.scalar(1, :s32), EMLX.Array.scalar(2, :s32))) |> EMLX.Array.to_list()
      3
  """
  @spec eval(arrays, keyword) :: arrays when arrays: Array.t() | [Array.t()]
  def eval(arrays, opts \\ [])
  def eval([], _opts), do: []

  def eval(arrays, opts) do
    refs = refs(arrays)
    target = Queue.target(opts)
    Native.await!(:eval, refs, opts, &Native.eval(refs, target, &1))
    arrays
  end

  @doc "Has arrays computed without waiting for them. Gives its argument."
  @spec async_eval(arrays, keyword) :: arrays when arrays: Array.t() | [Array.t()]
  def async_eval(arrays, opts \\ []) do
    Native.call!(Native.eval(refs(arrays), Queue.target(opts), nil))
    arrays
  end

  defp refs(arrays) when is_list(arrays), do: Enum.map(arrays, &Array.ref!(&1, "eval"))
  defp refs(array), do: [Array.ref!(array, "eval")]

  @doc """
  What MLX knows of a device, by MLX's names. Options: `:device`, by default `default_device/0`.

    * On the CPU: `"device_name"`, the processor's, and `"architecture"`, `"x86_64"` or `"arm64"`
    * On CUDA: `"device_name"`, `"architecture"` (`"sm_90"`), `"compute_capability_major"` and `"compute_capability_minor"`, `"uuid"`,
      `"pci_bus_id"`, and in bytes `"total_memory"` and `"free_memory"`, which is what is free at the time of the call
    * On Metal: `"device_name"`, `"architecture"`, and in bytes `"memory_size"`, `"max_buffer_length"` and
      `"max_recommended_working_set_size"`; `"resource_limit"`, the most buffers

  Raises `EMLX.Error` of kind `:no_device` where the device is not there; the error says why, and what to do.

      iex> info = EMLX.device_info(device: :cpu)
      iex> is_binary(info["device_name"]) and is_binary(info["architecture"])
      true
  """
  @spec device_info(keyword) :: %{String.t() => String.t() | non_neg_integer}
  def device_info(opts \\ []) do
    device = opts |> Keyword.validate!([:device]) |> Keyword.get_lazy(:device, &default_device/0)
    Map.new(Native.call!(Native.device_info(device)))
  end

  @doc """
  Whether a device is there. The CPU always is, except with MLX for CUDA where CUDA has no GPU to use: then nothing is.
  """
  @spec device_available?(:cpu | :gpu) :: boolean
  def device_available?(device), do: Native.call!(Native.device_available(device))

  @doc """
  The device that `EMLX.Backend` and the compiler take where none is asked for: what `config :emlx, default_device: :cpu` says, else
  the GPU where there is one. (Without Nx, arrays are made on the CPU by default.)

      iex> EMLX.default_device() in [:cpu, :gpu]
      true
  """
  @spec default_device :: :cpu | :gpu
  def default_device do
    case Application.get_env(:emlx, :default_device) do
      nil -> if device_available?(:gpu), do: :gpu, else: :cpu
      device when device in [:cpu, :gpu] -> device
      other -> raise ArgumentError, "config :emlx, default_device: is :cpu or :gpu, got: #{inspect(other)}"
    end
  end

  # ---- names that the C++ EMLX has here ----

  @doc """
  The memory figures of `EMLX.Memory` in one map.

      iex> EMLX.memory_info() |> Map.keys() |> Enum.sort()
      [:active_memory, :cache_memory, :peak_memory]
  """
  @spec memory_info :: %{active_memory: bytes, peak_memory: bytes, cache_memory: bytes} when bytes: non_neg_integer
  def memory_info, do: %{active_memory: Memory.active(), peak_memory: Memory.peak(), cache_memory: Memory.cached()}

  @doc "See `EMLX.Memory.clear_cache/0`."
  @spec clear_cache :: :ok
  defdelegate clear_cache, to: Memory

  @doc "See `EMLX.Memory.reset_peak/0`."
  @spec reset_peak_memory :: :ok
  defdelegate reset_peak_memory, to: Memory, as: :reset_peak

  @doc "See `EMLX.Memory.set_limit/1`."
  @spec set_memory_limit(non_neg_integer) :: non_neg_integer
  defdelegate set_memory_limit(bytes), to: Memory, as: :set_limit

  @doc "See `EMLX.Memory.set_cache_limit/1`."
  @spec set_cache_limit(non_neg_integer) :: non_neg_integer
  defdelegate set_cache_limit(bytes), to: Memory

  if match?({:module, _}, Code.ensure_compiled(EMLX.Backend)) do
    @doc group: "Names of the C++ EMLX"
    @doc "The C++ EMLX's name of `EMLX.Backend.to_nx/1`."
    @spec to_nx(Array.t()) :: Nx.Tensor.t()
    defdelegate to_nx(array), to: EMLX.Backend
  end

  types = %{
    type: quote(do: atom | {atom, pos_integer}),
    shape: quote(do: Array.shape()),
    device: quote(do: :cpu | :gpu | {:cpu | :gpu, integer}),
    axis: quote(do: integer),
    axes: quote(do: [integer]),
    arrays: quote(do: [Array.t()]),
    index_arrays: quote(do: [Array.t()]),
    value: quote(do: Array.t() | number),
    blob: quote(do: binary),
    name: quote(do: String.t()),
    opts: quote(do: keyword)
  }

  arrays =
    [:array, :a, :b, :q, :k, :v, :x, :gate, :up, :condition, :indices, :updates, :update, :source, :input] ++
      [:kernel, :weight, :packed, :scales, :new_k, :new_v, :k_cache, :v_cache, :key_mask, :mask, :low, :high]

  # Where these are arrays it is said in the table's order alone.
  numbers = [pad: [:low, :high], window_scatter_max: [:low, :high], window_scatter_min: [:low, :high]]

  results = %{
    array: quote(do: Array.t()),
    arrays: quote(do: [Array.t()]),
    tuple: quote(do: tuple),
    term: quote(do: term)
  }

  # ---- the array functions of the C++ EMLX, as EMLX.Compatibility has them ----

  for {name, arguments, where, result} <- Compatibility.table() do
    plain =
      Enum.map(arguments, fn
        {:\\, _meta, [argument, _default]} -> argument
        argument -> argument
      end)

    specs =
      for {argument, _meta, _context} <- plain do
        cond do
          argument in Keyword.get(numbers, name, []) -> quote(do: [integer])
          argument in arrays -> quote(do: Array.t())
          true -> Map.get(types, argument, quote(do: term))
        end
      end

    @doc group: "Names of the C++ EMLX"
    @doc "The C++ EMLX's name of `#{where}`."
    @spec unquote(name)(unquote_splicing(specs)) :: unquote(results[result])
    def unquote(name)(unquote_splicing(arguments)) do
      Compatibility.unquote(name)(unquote_splicing(plain))
    rescue
      error in EMLX.Error -> reraise EMLX.NIFError, error, __STACKTRACE__
    end
  end
end
