defmodule EMLX do
  @moduledoc """
  MLX's arrays and fused kernels for Elixir, on Apple silicon, NVIDIA GPUs and Linux CPUs.

    * `EMLX.Array` - arrays, and their conversion from and to binaries and lists
    * `EMLX.Ops` - MLX's operations
    * `EMLX.Kernels` - fused kernels: norms, rotary embedding, attention, quantized products
    * `EMLX.Program` - sequences of operations that one native call replays
    * `EMLX.Queue` - threads that evaluate arrays, each with a stream on one device
    * `EMLX.Memory`, `EMLX.Safetensors` - memory use and safetensors files
    * `EMLX.Telemetry` - spans of evaluations, runs, traces and transfers, and a profile of them
    * `EMLX.Debug` - checks of indices and results at run time, with the failing instruction of a compiled function
    * `EMLX.SharedMemory` - arrays in POSIX shared memory, for other operating-system processes

  The functions in the group "Names of the C++ EMLX" keep code working that was written for
  [the C++ EMLX](https://github.com/elixir-nx/emlx). They raise `EMLX.NIFError` instead of `EMLX.Error`. New code uses
  `EMLX.Ops`, `EMLX.Kernels` and `EMLX.Array`. The guide [From the C++ EMLX](migration.html) compares both.

  ## NVIDIA GPUs

  Matrix products of f32 are computed in f32 by default. `config :emlx, tf32: true` rounds their operands to TF32, which
  is faster and keeps 10 bits of the mantissa. The setting is read when the application starts; the environment variable
  `MLX_ENABLE_TF32` takes precedence. Operations without a GPU kernel run on the CPU, and their operands and results are
  copied: `eig` and `eigvals`, scatters of 64-bit types and operations on arrays without elements. The guide
  [On NVIDIA GPUs](cuda.html) lists the differences, and what to do if no GPU is found.

  ## Compiler

  With Nx, this module is a compiler for `Nx.Defn`:

      Nx.Defn.jit(&predict/2, compiler: EMLX)
      Nx.Defn.default_options(compiler: EMLX)

  The function is traced once for each signature of its arguments (containers, shapes, types, names). The trace becomes
  an `EMLX.Program`, which every later call runs with one native call. Compiled functions use the same operations of the
  backend and the same implementations of `EMLX.Block` as eager code. A call returns when the computation is submitted,
  before it is done; only reading a value waits.

  `cond` computes only the branch that is taken, and `while` runs in native code. Hooks and `Nx.runtime_call/4` run in
  the calling process, and the program waits for them. Tensors that a function closes over become constants of the
  program, which are copied once. Nx 0.12 and 0.13 cannot mark inputs as donated, so their memory is not reused; MLX
  reuses the memory of intermediate values.

  Options (any other one raises `ArgumentError`, except for those that `Nx.Serving` and `Axon.build/2` pass along):

    * `:device` - `:cpu` or `:gpu`. The default is that of `EMLX.Backend`
    * `:queue` - the `EMLX.Queue` to run on. The default is the calling process's queue if it is on the device, else the
      device's default queue. `:command_queue` is another name for this option
    * `:fuse` - whether MLX's compiler fuses each sequence of element-wise operations to one kernel. The default is
      `false`, or `config :emlx, fuse: true`. On the CPU, this needs a C++ compiler (g++) at run time and about a second
      for each new kernel. Without `:fuse`, EMLX already runs common operations (arithmetic, roots, exponentials, `erf`,
      `tanh`) of f32, bf16 and f16 on the CPU several in one pass. Results of a fused kernel may differ in the last
      bits: compilers may contract a product and a sum, and 16-bit floats may keep more bits between two operations
    * `:merge` - whether operations on at most 64 rows are merged to fewer, larger ones, as in the decode step of a
      language model: products that share an input, with the norm before and the gate or the sum after them; the norm
      and rotation of heads; attention on a key-value cache. On CUDA, each merged operation is one kernel, and a loop of
      such steps replays one CUDA graph. On other devices, a merged operation runs the operations it replaces,
      with the same results. The default is `nil`: `true` on the GPU and `false` on the CPU. `config :emlx, merge: true`
      changes it
    * `:run_ahead` - the number of steps after which a loop submits its steps speculatively, before its condition is
      known, as in `EMLX.Program.new/4`. The default is `nil` (never), or `config :emlx, run_ahead: 8`
    * `:on_unsupported` - what happens to a function that cannot be traced, for example because an implementation of
      `EMLX.Block` reads a value: `:raise` (default), or `:evaluate` to run it with `Nx.Defn.Evaluator`
    * `:hooks` - a map from names of hooks to functions
    * `:max_concurrency` - the number of partitions, each with a queue, for an `Nx.Serving` with `partitions: true`.
      **Warning:** with partitions, `Nx.Serving` joins the parts of a request that is larger than `:batch_size` in the
      order in which they end, on any backend (observed with Nx 0.12.1 and 0.13.1). A request to partitions must
      therefore have at most `:batch_size` entries
    * `:cache` - `false` traces at each call. The default is `true`

  ## Compile cache

  All processes share the compiled functions. The cache looks a function up by its code and by the terms that it closes
  over. Numbers and binaries of up to 1 KiB, such as small tensors of `Nx.BinaryBackend`, are compared by value. Larger
  binaries and tensors of `EMLX.Backend` are compared by identity. The time of a call therefore does not depend on the
  size of the tensors.

  The cache does not keep the tensors that a function closes over. The compiled function and its constants are freed
  when nothing else refers to one of those tensors: immediately for tensors of `EMLX.Backend`, within about a second for
  those of `Nx.BinaryBackend`. Two kinds of functions are removed by the limits only: those that close over nothing that
  is compared by identity, and those whose hooks or runtime calls close over the same tensors as the function.

      config :emlx, compiler_cache: [entries: 1000, bytes: 2 ** 30]

  limits the number of compiled functions and the bytes of their constants. The least recently used functions are
  removed first. A constant that several functions share counts once; a tensor that a function closes over does not
  count. The defaults are 1000 entries and an eighth of `EMLX.Memory.limit/0`. A number, `compiler_cache: 1000`, limits
  the entries alone. `compiler_cache/0` returns the size of the cache, and `clear_compiler_cache/0` empties it.

  Each trace and each run emits telemetry events (`EMLX.Telemetry`).
  """

  if match?({:module, _}, Code.ensure_compiled(EMLX.Compiler)) do
    @behaviour Nx.Defn.Compiler

    @doc """
    Compiles a function of Nx to a program that runs without Nx and that `EMLX.Program.save/3` can save.

    `args` are the function's arguments. Templates in them (`Nx.template/2`, also inside containers) become inputs of
    the program. Tensors with values, such as the parameters of a model, become constants. The names of inputs, outputs
    and constants are their paths through the containers: `"arg1.input_ids"`.

    Options: `:device`, `:fuse`, `:merge` and `:run_ahead` as for the compiler (`:run_ahead` is not saved), and

      * `:names` - a list with a name for each argument instead of `arg0`, `arg1`, …; an empty name is left out of paths

    Raises `ArgumentError` for functions with hooks or runtime calls, since those run in the process that runs the
    program. Raises `EMLX.Error` of kind `:traced` for functions that cannot be traced.

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
    Returns the execution plan of a function of Nx as text: that of its compiled program, as in
    `EMLX.Program.explain/2`, and which loops are unrolled.

    `args` and `opts` are those of `compile_to_program/3`. Nothing is computed. Functions with hooks or runtime calls
    raise as in `compile_to_program/3`.

        iex> text = EMLX.explain(fn x -> Nx.multiply(Nx.tanh(x), x) end, [Nx.template({16, 16}, :f32)], device: :cpu)
        iex> text |> String.split("\n") |> hd()
        "plan for cpu"
    """
    @spec explain(fun, [Nx.Container.t()], keyword) :: String.t()
    def explain(fun, args, opts \\ []), do: EMLX.Compiler.explain(fun, args, opts)

    @doc """
    Returns the number of compiled functions in the cache, and the bytes of the constants that only the cache keeps.

    Frees entries that nothing refers to any more first. The bytes are part of `EMLX.Memory.active/0`.

        iex> Nx.Defn.jit_apply(&Nx.exp/1, [1.0], compiler: EMLX, device: :cpu)
        iex> %{entries: entries, bytes: bytes} = EMLX.compiler_cache()
        iex> entries > 0 and bytes >= 0
        true
    """
    @spec compiler_cache :: %{entries: non_neg_integer, bytes: non_neg_integer}
    defdelegate compiler_cache, to: EMLX.Compiler.Cache, as: :size

    @doc """
    Empties the compile cache: every function is traced again at its next call. Returns `:ok`.

    Running programs finish, and functions that `Nx.Defn.compile/3` returned stay usable. `clear_cache/0` empties
    another cache, MLX's buffer cache.

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
  Evaluates arrays and waits until they are computed. Returns its first argument. Options: `:device`, `:queue`.

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

  @doc "Submits arrays for evaluation and does not wait. Returns its first argument. Options: `:device`, `:queue`."
  @spec async_eval(arrays, keyword) :: arrays when arrays: Array.t() | [Array.t()]
  def async_eval(arrays, opts \\ []) do
    Native.call!(Native.eval(refs(arrays), Queue.target(opts), nil))
    arrays
  end

  defp refs(arrays) when is_list(arrays), do: Enum.map(arrays, &Array.ref!(&1, "eval"))
  defp refs(array), do: [Array.ref!(array, "eval")]

  @doc """
  Returns MLX's description of a device, under MLX's names. Options: `:device`, by default `default_device/0`.

    * On the CPU: `"device_name"`, the processor, and `"architecture"`, `"x86_64"` or `"arm64"`
    * On CUDA: `"device_name"`, `"architecture"` (`"sm_90"`), `"compute_capability_major"` and
      `"compute_capability_minor"`, `"uuid"`, `"pci_bus_id"`, and in bytes `"total_memory"` and `"free_memory"` at the
      time of the call
    * On Metal: `"device_name"`, `"architecture"`, and in bytes `"memory_size"`, `"max_buffer_length"` and
      `"max_recommended_working_set_size"`; `"resource_limit"`, the maximum number of buffers

  Raises `EMLX.Error` of kind `:no_device` if the device is absent. The error contains the cause and a remedy.

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
  Returns whether a device is available. The CPU always is, except with MLX for CUDA on a machine without a usable GPU:
  then neither device is.
  """
  @spec device_available?(:cpu | :gpu) :: boolean
  def device_available?(device) do
    # It is asked for each constant of Nx's evaluator, and the answer stays what it is.
    key = {__MODULE__, :device_available, device}

    with nil <- :persistent_term.get(key, nil) do
      available = Native.call!(Native.device_available(device))
      :persistent_term.put(key, available)
      available
    end
  end

  @doc """
  Returns the default device of `EMLX.Backend` and the compiler: that of `config :emlx, default_device: :cpu`, else the
  GPU if one is available, else the CPU. `EMLX.Array` and `EMLX.Ops` create arrays on the CPU by default.

      iex> EMLX.default_device() in [:cpu, :gpu]
      true
  """
  @spec default_device :: :cpu | :gpu
  def default_device do
    # Application.get_env/2 looks twice, and the evaluator asks for each constant.
    case :application.get_env(:emlx, :default_device, nil) do
      nil -> if device_available?(:gpu), do: :gpu, else: :cpu
      device when device in [:cpu, :gpu] -> device
      other -> raise ArgumentError, "config :emlx, default_device: is :cpu or :gpu, got: #{inspect(other)}"
    end
  end

  # ---- names that the C++ EMLX has here ----

  @doc group: "Names of the C++ EMLX"
  @doc """
  Returns the numbers of `EMLX.Memory` in one map.

      iex> EMLX.memory_info() |> Map.keys() |> Enum.sort()
      [:active_memory, :cache_memory, :peak_memory]
  """
  @spec memory_info :: %{active_memory: bytes, peak_memory: bytes, cache_memory: bytes} when bytes: non_neg_integer
  def memory_info, do: %{active_memory: Memory.active(), peak_memory: Memory.peak(), cache_memory: Memory.cached()}

  @doc group: "Names of the C++ EMLX"
  @doc "See `EMLX.Memory.clear_cache/0`."
  @spec clear_cache :: :ok
  defdelegate clear_cache, to: Memory

  @doc group: "Names of the C++ EMLX"
  @doc "See `EMLX.Memory.reset_peak/0`."
  @spec reset_peak_memory :: :ok
  defdelegate reset_peak_memory, to: Memory, as: :reset_peak

  @doc group: "Names of the C++ EMLX"
  @doc "See `EMLX.Memory.set_limit/1`."
  @spec set_memory_limit(non_neg_integer) :: non_neg_integer
  defdelegate set_memory_limit(bytes), to: Memory, as: :set_limit

  @doc group: "Names of the C++ EMLX"
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

  # These have names of arrays in the list above, but are lists of integers here.
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
