defmodule EMLX.Compiler do
  @moduledoc false
  # What `EMLX` does as an Nx.Defn.Compiler: traces a function once into an EMLX.Program, keeps it, and runs it with one native
  # call. See EMLX for the options.

  alias EMLX.{Backend, Program, Queue, Trace}
  alias EMLX.Compiler.{Cache, Walk}
  alias Nx.Defn.{Composite, Expr}
  alias Nx.Tensor, as: T

  @doc "See `c:Nx.Defn.Compiler.__jit__/5`."
  def jit(key, vars, fun, [params], opts), do: [run(key, vars, fun, params, opts)]

  @doc "See `c:Nx.Defn.Compiler.__compile__/4`."
  def compile(key, vars, fun, opts) do
    opts = options(opts)

    if Trace.active?() do
      fn [params] -> [inline(vars, fun, params, opts)] end
    else
      compiled = compiled(key, vars, fun, opts)
      fn [params] -> [call(compiled, params, opts)] end
    end
  end

  defp run(key, vars, fun, params, opts) do
    opts = options(opts)

    if Trace.active?(),
      do: inline(vars, fun, params, opts),
      else: key |> compiled(vars, fun, opts) |> call(params, opts)
  end

  @doc "See `c:Nx.Defn.Compiler.__partitions_options__/1`."
  def partitions(opts) do
    device = options(opts).device

    case Keyword.get(opts, :max_concurrency, 1) do
      1 -> [opts]
      count -> for _ <- 1..count, do: Keyword.put(opts, :queue, Queue.start(device: device))
    end
  end

  @doc "See `c:Nx.Defn.Compiler.__to_backend__/1`."
  def backend(opts), do: {Backend, [device: options(opts).device]}

  # ---- options ----

  # Nx.Serving and others pass options of their own along, so unknown ones are nothing to stop at.
  defp options(opts) do
    queue = opts[:queue]
    device = device(queue, opts[:device])
    on_unsupported = Keyword.get(opts, :on_unsupported, :raise)

    if on_unsupported not in [:raise, :evaluate] do
      raise ArgumentError, ":on_unsupported of compiler: EMLX is :raise or :evaluate, got: #{inspect(on_unsupported)}"
    end

    fuse = Keyword.get(opts, :fuse, Application.get_env(:emlx, :fuse, device == :gpu))

    if not is_boolean(fuse) do
      raise ArgumentError, ":fuse of compiler: EMLX is true or false, got: #{inspect(fuse)}"
    end

    %{
      queue: queue,
      device: device,
      fuse: fuse,
      on_unsupported: on_unsupported,
      hooks: opts[:hooks] || %{},
      cache: Keyword.get(opts, :cache, true)
    }
  end

  defp device(nil, device) do
    {:ok, [device: device]} = {:ok, Backend.init(if(device, do: [device: device], else: []))}
    device
  end

  defp device(%Queue{device: device}, same) when same in [nil, device], do: device

  defp device(queue, device) do
    raise ArgumentError,
          ":queue of compiler: EMLX is an EMLX.Queue, on the device that is given if one is, got: #{inspect(queue)} and #{inspect(device)}"
  end

  # ---- compiling ----

  # What call/3 takes: a program, or the evaluator's function.
  defp compiled(key, vars, fun, opts) do
    if opts.cache,
      do: Cache.fetch({key, signature(vars), Map.delete(opts, :queue)}, fn -> trace(key, vars, fun, opts) end),
      else: trace(key, vars, fun, opts)
  end

  # Containers, and of each tensor what a program depends on.
  defp signature(vars) do
    Enum.map(vars, fn var ->
      Composite.traverse(var, fn %T{type: type, shape: shape, names: names, vectorized_axes: axes} ->
        {type, shape, names, axes}
      end)
    end)
  end

  defp trace(key, vars, fun, opts) do
    start = System.monotonic_time()
    {expr, outputs} = expression(vars, fun)
    templates = for var <- Composite.flatten_list(vars), do: Nx.devectorize(var)

    try do
      {block, constants, calls, results} =
        as_compiler(opts, fn ->
          Trace.run(opts.device, Walk.templates(List.to_tuple(templates)), fn arrays ->
            params = templates |> Enum.zip_with(arrays, &Backend.tensor(&2, Nx.to_template(&1))) |> List.to_tuple()
            results = Walk.run(expr, params, opts.hooks)
            {Walk.arrays(results), nil}
          end)
        end)

      _ = results
      {used, constants, instructions, results} = EMLX.Trace.Passes.run(block, constants)
      inputs = for i <- used, do: input(Enum.at(templates, i), i)
      program = Program.new(inputs, instructions, results, constants: constants)
      told(:stop, start, key, %{instructions: program.size})
      {:program, %{program: program, used: used, outputs: outputs, calls: calls}}
    rescue
      error ->
        case untraceable(error, __STACKTRACE__) do
          nil ->
            reraise error, __STACKTRACE__

          error when opts.on_unsupported == :evaluate ->
            told(:evaluate, start, key, %{reason: Exception.message(error)})
            {:evaluate, Nx.Defn.Evaluator.__compile__(key, vars, fun, hooks: opts.hooks)}

          error ->
            reraise error, __STACKTRACE__
        end
    end
  end

  defp input(%T{shape: shape, type: type}, i),
    do: {"arg#{i}", Tuple.to_list(shape), Backend.dtype(type)}

  # The expression without vectorized axes, and templates of the outputs with them.
  defp expression(vars, fun) do
    expr = fun.(vars)
    {Composite.traverse(expr, &Nx.devectorize/1), Composite.traverse(expr, &Nx.to_template/1)}
  end

  # Functions that a block calls are part of the trace, and the tensors they make are on the device.
  defp as_compiler(opts, fun) do
    backend = Nx.default_backend({Backend, device: opts.device})
    defn = Nx.Defn.default_options(compiler: EMLX, device: opts.device)

    try do
      fun.()
    after
      Nx.default_backend(backend)
      Nx.Defn.default_options(defn)
    end
  end

  # A function that is called while another one is traced, with that one's values.
  defp inline(vars, fun, params, opts) do
    {expr, outputs} = expression(vars, fun)
    params = params |> Enum.map(&tensor/1) |> List.to_tuple()
    {result, []} = outputs |> Composite.traverse(Walk.run(expr, params, opts.hooks) |> Walk.arrays(), &output/2)
    result
  end

  defp told(event, start, key, metadata) do
    measurements = %{duration: System.monotonic_time() - start}
    :telemetry.execute([:emlx, :compile, event], measurements, Map.put(metadata, :key, key))
  end

  # ---- what cannot be traced ----

  defp untraceable(%EMLX.Error{kind: :traced} = error, stacktrace) do
    reason =
      "#{error.reason}.#{user_line(stacktrace)} The function cannot be compiled with compiler: EMLX as it is; " <>
        "on_unsupported: :evaluate has Nx.Defn.Evaluator run it"

    %{error | reason: reason}
  end

  defp untraceable(%EMLX.Block.Error{cause: %EMLX.Error{kind: :traced} = cause, block: block}, stacktrace) do
    cause = %{cause | reason: "in the implementation of EMLX.Block for #{inspect(block.__struct__)}: " <> cause.reason}
    untraceable(cause, stacktrace)
  end

  defp untraceable(_error, _stacktrace), do: nil

  @libraries [:emlx, :nx, :telemetry, :elixir, :ex_unit, :iex, :mix, :logger, :stdlib, :kernel, :erts, :compiler]

  defp user_line(stacktrace) do
    Enum.find_value(stacktrace, "", fn {module, _fun, _arity, location} ->
      if location[:file] && Application.get_application(module) not in @libraries,
        do: " It was called at #{location[:file]}:#{location[:line]}."
    end)
  end

  # ---- running ----

  defp call({:evaluate, fun}, params, _opts) do
    [result] = fun.([params])
    result
  end

  defp call({:program, %{program: program, used: used, outputs: outputs, calls: calls}}, params, opts) do
    arrays = params |> pick(used, 0) |> Enum.map(&array(&1, opts.device))
    results = Program.run(program, arrays, [calls: calls] ++ target(opts))
    {result, []} = Composite.traverse(outputs, results, &output/2)
    result
  end

  # The process's own queue, where it is on the program's device.
  defp target(%{queue: %Queue{} = queue}), do: [queue: queue]

  defp target(%{device: device}) do
    case Process.get(Queue) do
      %Queue{device: ^device} = queue -> [queue: queue]
      _ -> [device: device]
    end
  end

  defp pick([param | params], [i | used], i), do: [param | pick(params, used, i + 1)]
  defp pick([_ | params], used, i), do: pick(params, used, i + 1)
  defp pick([], [], _i), do: []

  defp array(param, device) do
    case tensor(param) do
      %T{data: %Backend{array: array}} -> array
      %T{} = tensor -> tensor |> Nx.backend_copy({Backend, device: device}) |> Backend.to_array()
    end
  end

  defp tensor(param) do
    case param.() do
      %T{data: %Expr{}} = tensor ->
        raise ArgumentError, "cannot pass a tensor expression as argument to defn, got: #{inspect(tensor)}"

      %T{} = tensor ->
        Nx.devectorize(tensor)
    end
  end

  defp output(template, [array | rest]), do: {Backend.tensor(array, template), rest}
end
