defmodule EMLX.Compiler do
  @moduledoc false
  # Implements Nx.Defn.Compiler for `EMLX`: traces a function once into an EMLX.Program, caches it, and runs it with one
  # native call. EMLX documents the options.

  alias EMLX.{Backend, CommandQueue, Debug, Native, Options, Program, Queue, Trace}
  alias EMLX.Compiler.{Cache, Capture, Defaults, Identity, Path, Walk}
  alias Nx.Defn.{Composite, Expr}
  alias Nx.Tensor, as: T

  @doc "See `c:Nx.Defn.Compiler.__jit__/5`."
  def jit(key, vars, fun, [params], opts), do: [run(key, vars, fun, params, opts)]

  @doc "See `c:Nx.Defn.Compiler.__compile__/4`."
  def compile(key, vars, fun, opts) do
    given = opts
    opts = given |> options() |> debugged()

    if Trace.active?() do
      fn [params] -> [inline(vars, fun, params, opts)] end
    else
      compiled = compiled(key, vars, fun, opts)

      fn [params] ->
        # The debugging modes may have changed since.
        if Debug.compiled() == opts.debug,
          do: [call(compiled, key, params, opts)],
          else: [run(key, vars, fun, params, given)]
      end
    end
  end

  defp run(key, vars, fun, params, opts) do
    opts = opts |> options() |> debugged()

    if Trace.active?(),
      do: inline(vars, fun, params, opts),
      else: key |> compiled(vars, fun, opts) |> call(key, params, opts)
  end

  @doc "See `c:Nx.Defn.Compiler.__partitions_options__/1`."
  def partitions(opts) do
    device = options(opts).device

    case Keyword.get(opts, :max_concurrency, 1) do
      count when is_integer(count) and count > 0 ->
        for _ <- 1..count do
          queue = Queue.start(device: device)
          Keyword.merge(opts, device: device, queue: queue, command_queue: CommandQueue.of_queue(queue))
        end

      other ->
        raise ArgumentError, ":max_concurrency of compiler: EMLX is a number of partitions, got: #{inspect(other)}"
    end
  end

  @doc "See `c:Nx.Defn.Compiler.__to_backend__/1`."
  def backend(opts), do: {Backend, [device: options(opts).device]}

  # ---- options ----

  @known [:cache, :command_queue, :device, :fuse, :hooks, :max_concurrency, :merge, :on_unsupported, :queue, :run_ahead]

  # Options that Nx.Serving, Nx.Defn and Axon pass along. They have no effect here.
  @passed [:batch_keys, :compiler, :on_conflict] ++
            [:debug, :global_layer_options, :mode, :print_values, :raise_on_none, :seed]

  # Not by EMLX.Options: this runs at every call of a jitted function.
  defp options(opts) do
    for {name, _value} <- opts, name not in @known and name not in @passed do
      known = Enum.map_join(@known, ", ", &inspect/1)
      raise ArgumentError, "#{inspect(name)} is no option of compiler: EMLX; its options are #{known}"
    end

    queue = CommandQueue.to_queue(opts[:queue] || opts[:command_queue])
    device = device(queue, opts[:device])
    on_unsupported = Keyword.get(opts, :on_unsupported, :raise)

    if on_unsupported not in [:raise, :evaluate] do
      raise ArgumentError, ":on_unsupported of compiler: EMLX is :raise or :evaluate, got: #{inspect(on_unsupported)}"
    end

    fuse = Keyword.get(opts, :fuse, Application.get_env(:emlx, :fuse, false))

    if not is_boolean(fuse) do
      raise ArgumentError, ":fuse of compiler: EMLX is true or false, got: #{inspect(fuse)}"
    end

    merge = Keyword.get(opts, :merge, Application.get_env(:emlx, :merge))

    if merge not in [nil, false, true] do
      raise ArgumentError, ":merge of compiler: EMLX is true, false or nil, got: #{inspect(merge)}"
    end

    run_ahead = Keyword.get(opts, :run_ahead, Application.get_env(:emlx, :run_ahead))

    if not (run_ahead == nil or (is_integer(run_ahead) and run_ahead >= 0)) do
      raise ArgumentError, ":run_ahead of compiler: EMLX is nil or a number of steps, got: #{inspect(run_ahead)}"
    end

    cache = Keyword.get(opts, :cache, true)

    if not is_boolean(cache) do
      raise ArgumentError, ":cache of compiler: EMLX is true or false, got: #{inspect(cache)}"
    end

    %{
      queue: queue,
      device: device,
      fuse: fuse,
      merge: merge,
      run_ahead: run_ahead,
      on_unsupported: on_unsupported,
      hooks: opts[:hooks] || %{},
      cache: cache,
      debug: 0
    }
  end

  # Debugging checks each operation by itself.
  defp debugged(opts) do
    case Debug.compiled() do
      0 -> opts
      bits -> %{opts | debug: bits, fuse: false, merge: false, run_ahead: nil}
    end
  end

  defp device(nil, device) do
    {:ok, [device: device]} = {:ok, Backend.init(if(device, do: [device: device], else: []))}
    device
  end

  defp device(%Queue{device: device}, same) when same in [nil, device], do: device

  defp device(queue, device) do
    raise ArgumentError,
          ":queue of compiler: EMLX must be an EMLX.Queue, on the same device as :device if both are given, " <>
            "got: #{inspect(queue)} and #{inspect(device)}"
  end

  # ---- compiling ----

  # Returns the argument of call/4: a program, or the evaluator's function.
  defp compiled(key, vars, fun, opts) do
    if opts.cache do
      term = {key, signature(vars), Map.delete(opts, :queue)}
      made = fn -> key |> trace(vars, fun, opts) |> kept() end

      case Cache.fetch(term, [key, vars, opts.hooks], made) do
        :evaluate -> {:evaluate, evaluator(key, vars, fun, opts)}
        compiled -> compiled
      end
    else
      trace(key, vars, fun, opts)
    end
  end

  # Returns the value for the cache, and the arrays in it. The evaluator's function is not cached: it holds the terms
  # that the function closes over and the whole expression, which the cache would copy without its sharing.
  defp kept({:program, %{program: program}} = compiled),
    do: {compiled, Native.call!(Native.program_constants(program.ref))}

  defp kept({:evaluate, _fun}), do: {:evaluate, []}

  # A container may hold any term besides its tensors.
  defp container?(var), do: is_struct(var) and not is_struct(var, T)

  # The containers with, for each tensor, what a program depends on.
  defp signature(vars) do
    Enum.map(vars, fn var -> if container?(var), do: Composite.traverse(var, &leaf/1), else: part(var) end)
  end

  defp leaf(%T{type: type, shape: shape, names: names, vectorized_axes: axes}), do: {type, shape, names, axes}

  defp part(%T{} = tensor), do: leaf(tensor)
  defp part(tuple) when is_tuple(tuple), do: tuple |> Tuple.to_list() |> Enum.map(&part/1) |> List.to_tuple()
  defp part(container) when is_struct(container), do: container |> Composite.traverse(&leaf/1) |> Identity.digest()
  defp part(map) when is_map(map), do: Map.new(map, fn {key, value} -> {key, part(value)} end)

  defp trace(key, vars, fun, opts) do
    told(key, opts, fn -> traced(key, vars, fun, opts) end)
  end

  defp traced(key, vars, fun, opts) do
    {expr, outputs} = expression(vars, fun)
    templates = for var <- Composite.flatten_list(vars), do: Nx.devectorize(var)

    try do
      {{used, constants, calls, instructions, results}, _notes} = record(expr, templates, %{}, opts)
      count = length(used) + length(constants)

      {instructions, calls} =
        if opts.debug == 0,
          do: {instructions, calls},
          else: Debug.instrument(instructions, count, calls, inspect(key), opts.debug)

      inputs = for i <- used, do: input(Enum.at(templates, i), "arg#{i}")

      program =
        Program.new(inputs, instructions, results, [constants: constants] ++ planning(opts))

      compiled = {:program, %{program: program, used: used, outputs: outputs, calls: calls}}
      {compiled, size(program), %{path: :program, reason: nil}}
    rescue
      error ->
        case untraceable(error, __STACKTRACE__) do
          nil ->
            reraise error, __STACKTRACE__

          error when opts.on_unsupported == :evaluate ->
            {{:evaluate, evaluator(key, vars, fun, opts)}, %{}, %{path: :evaluate, reason: Exception.message(error)}}

          error ->
            reraise error, __STACKTRACE__
        end
    end
  end

  defp evaluator(key, vars, fun, opts), do: Nx.Defn.Evaluator.__compile__(key, vars, fun, hooks: opts.hooks)

  # Returns the parts of a program, and the notes of its trace. `templates` are its parameters; `known` maps positions of
  # some of them to arrays.
  defp record(expr, templates, known, opts) do
    {block, constants, calls, notes} =
      Defaults.with_device(opts.device, fn ->
        Trace.run(opts.device, Walk.templates(List.to_tuple(templates)), opts.debug, fn placeholders ->
          params =
            for {{template, placeholder}, i} <- templates |> Enum.zip(placeholders) |> Enum.with_index(),
                do: Backend.tensor(Map.get(known, i, placeholder), Nx.to_template(template))

          {expr |> Walk.run(List.to_tuple(params), opts.hooks) |> Walk.arrays(), Trace.notes()}
        end)
      end)

    {used, constants, instructions, results} = Trace.Passes.run(block, constants)
    {{used, constants, calls, instructions, results}, notes}
  end

  defp input(%T{shape: shape, type: type}, name) do
    {dims, dtype} = Backend.Type.held(Tuple.to_list(shape), type)
    {name, dims, dtype}
  end

  @to_program Options.schema(
                names: [type: {:or, [{:list, :any}, nil]}],
                device: [type: {:in, [:cpu, :gpu, nil]}],
                fuse: [type: :boolean],
                merge: [type: {:or, [:boolean, nil]}],
                run_ahead: [type: {:or, [:non_neg_integer, nil]}]
              )

  @doc "See `EMLX.compile_to_program/3`."
  def to_program(fun, args, opts) do
    {program, _notes} = noted_program(fun, args, opts, "EMLX.compile_to_program")
    program
  end

  @doc "See `EMLX.explain/3`."
  def explain(fun, args, opts) do
    {program, notes} = noted_program(fun, args, opts, "EMLX.explain")
    plan = Program.explain(program, Keyword.take(opts, [:device]))

    passes =
      for notes = [{pass, _, _} | _] <- Enum.chunk_by(notes, &elem(&1, 0)),
          do: [pass, "\n" | for({_pass, kind, text} <- notes, do: "  #{kind} #{text}\n")]

    IO.iodata_to_binary([plan | passes])
  end

  defp noted_program(fun, args, opts, function) do
    {names, opts} = opts |> Options.validate!(@to_program, function) |> Keyword.pop(:names)
    names = argument_names(names, args)
    opts = options(opts)

    told(fun, opts, fn ->
      {program, notes} = program(fun, args, names, opts)
      {{program, notes}, size(program), %{path: :program, reason: nil}}
    end)
  end

  defp program(fun, args, names, opts) do
    leaves = args |> Enum.zip(names) |> Enum.flat_map(fn {arg, name} -> Path.names(arg, name) end)
    {vars, fun} = Capture.expression(fun, args)
    {expr, outputs} = expression(vars, fun)
    templates = for var <- Composite.flatten_list(vars), do: Nx.devectorize(var)

    known =
      for {{_name, leaf}, i} <- Enum.with_index(leaves), not template?(leaf), into: %{} do
        {i, array(fn -> Nx.to_tensor(leaf) end, opts.device)}
      end

    {{used, constants, calls, instructions, results}, notes} =
      try do
        record(expr, templates, known, opts)
      rescue
        error -> reraise untraceable(error, __STACKTRACE__) || error, __STACKTRACE__
      end

    if calls != %{} do
      raise ArgumentError,
            "a program cannot hold hooks and runtime calls, which are functions of the process that runs it; " <>
              "leave them out of what is given to EMLX.compile_to_program/3"
    end

    leaf_names = leaves |> Enum.map(&elem(&1, 0)) |> Path.unique()
    inputs = for i <- used, do: input(Enum.at(templates, i), Enum.at(leaf_names, i))
    by_ref = for {i, array} <- known, into: %{}, do: {array.ref, Enum.at(leaf_names, i)}

    constant_names =
      for {array, i} <- Enum.with_index(constants), do: Map.get(by_ref, array.ref, "constant.#{i}")

    output_names =
      for {name, _leaf} <- Path.names(outputs, ""), do: if(name == "", do: "output", else: name)

    names = [constant_names: Path.unique(constant_names), output_names: Path.unique(output_names)]
    {Program.new(inputs, instructions, results, [constants: constants] ++ names ++ planning(opts)), notes}
  end

  defp planning(opts), do: opts |> Map.take([:device, :fuse, :merge, :run_ahead]) |> Map.to_list()

  defp argument_names(nil, args), do: for({_arg, i} <- Enum.with_index(args), do: "arg#{i}")
  defp argument_names(names, args) when length(names) == length(args), do: Enum.map(names, &to_string/1)

  defp argument_names(names, args) do
    raise ArgumentError,
          ":names of EMLX.compile_to_program/3 is a list with a name for each of the #{length(args)} arguments, " <>
            "got: #{inspect(names)}"
  end

  defp template?(%T{data: %Nx.TemplateBackend{}}), do: true
  defp template?(_leaf), do: false

  # Returns the expression without vectorized axes, and templates of the outputs with them.
  defp expression(vars, fun) do
    expr = fun.(vars)
    {Composite.traverse(expr, &Nx.devectorize/1), Composite.traverse(expr, &Nx.to_template/1)}
  end

  # Runs a function that is called while another one is traced, on that one's values.
  defp inline(vars, fun, params, opts) do
    {expr, outputs} = expression(vars, fun)
    params = params |> Enum.map(&tensor/1) |> List.to_tuple()
    {result, []} = outputs |> Composite.traverse(Walk.run(expr, params, opts.hooks) |> Walk.arrays(), &output/2)
    result
  end

  defp told(function, opts, fun),
    do: EMLX.Telemetry.span(:trace, %{}, %{function: function, device: opts.device}, fun)

  defp size(program), do: %{instructions: program.size, constants: program.constants}

  # ---- what cannot be traced ----

  defp untraceable(%EMLX.Error{kind: :traced} = error, stacktrace) do
    reason =
      "#{error.reason}.#{user_line(stacktrace)} The function cannot be compiled with compiler: EMLX as it is; " <>
        "on_unsupported: :evaluate runs it with Nx.Defn.Evaluator"

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

  defp call({:evaluate, fun}, _function, params, _opts) do
    [result] = fun.([params])
    result
  end

  defp call({:program, compiled}, function, params, opts) do
    %{program: program, used: used, outputs: outputs, calls: calls} = compiled
    arrays = params |> pick(used, 0) |> Enum.map(&array(&1, opts.device))
    if Debug.warns?(), do: warn(arrays, function, opts.device)
    results = Program.run(program, arrays, [calls: calls, function: function] ++ target(opts))
    {result, []} = Composite.traverse(outputs, results, &output/2)
    result
  end

  defp warn(arrays, function, device) do
    for {array, i} <- Enum.with_index(arrays), do: Debug.crossed(inspect(function), i, array, device)
  end

  # The process's queue is used only if it is on the program's device.
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
