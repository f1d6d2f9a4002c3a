defmodule EMLX.Compiler.Walk do
  @moduledoc false
  # Lowers an Nx.Defn expression: calls EMLX.Backend's callbacks for its nodes while EMLX.Trace records their
  # operations. This module itself lowers control flow, functions, hooks and runtime calls. Blocks are dispatched to
  # EMLX.Block.
  #
  # A node is walked once in the scope it belongs to. `cache` maps the ids of the nodes of a scope to their results: a
  # tensor, a tuple of tensors, or a function. Branches see the cache of the enclosing scope; bodies of loops and
  # functions have scopes of their own.

  alias EMLX.{Backend, Ops, Trace}
  alias EMLX.Backend.{Complex128, Type}
  alias EMLX.Compiler.Unroll
  alias Nx.Defn.{Composite, Expr, Tree}
  alias Nx.Tensor, as: T

  @creation [:eye, :iota, :from_binary]

  @doc """
  Walks a composite expression and returns its result. `params` is a tuple of tensors, one for each parameter; `hooks`
  maps names of hooks to functions.
  """
  def run(expr, params, hooks) do
    state = %{params: params, hooks: hooks, ids: Tree.scope_ids(expr)}
    {result, _cache} = composite(expr, state, %{})
    result
  end

  @doc "Returns the arrays of a composite, in Nx's order."
  def arrays(composite), do: for(tensor <- Composite.flatten_list([composite]), do: Backend.to_array(tensor))

  @doc "Returns a composite like `template` whose tensors hold the arrays, and the arrays left over."
  def fill(template, arrays) do
    Composite.traverse(template, arrays, fn tensor, [array | rest] ->
      {Backend.tensor(array, tensor |> Nx.to_template() |> Nx.devectorize()), rest}
    end)
  end

  @doc "Returns EMLX.Trace's templates for the leaves of a composite."
  def templates(composite) do
    for tensor <- Composite.flatten_list([composite]) do
      %T{shape: shape, type: type} = Nx.devectorize(tensor)
      Type.held(Tuple.to_list(shape), type)
    end
  end

  defp composite(expr, state, cache), do: Composite.traverse(expr, cache, &walk(&1, state, &2))

  # The result of a node with the names and vectorized axes of its use, which the user's functions see.
  defp like_node(node, state, cache) do
    {%T{data: data}, cache} = walk(node, state, cache)
    {%{node | data: data}, cache}
  end

  # Without the trace's arrays, which functions that run later must not keep alive.
  defp templates_of(composite), do: Composite.traverse(composite, &Nx.to_template/1)

  defp given(template, [array | rest]), do: {Backend.tensor(array, template), rest}

  # Equal constants have one id in all scopes, so the cache holds few of them. Metadata itself is not cached.
  defp walk(%T{data: %Expr{op: :metadata, args: [expr, _metadata]}}, state, cache), do: composite(expr, state, cache)

  defp walk(%T{data: %Expr{id: id, op: op, args: args}} = node, state, cache) do
    case cache do
      %{^id => result} ->
        {result, cache}

      %{} ->
        {result, cache} = node(op, args, node, state, cache)
        {result, Map.put(cache, id, result)}
    end
  end

  defp node(:constant, [number], out, _state, cache), do: {Backend.constant(out, number, options()), cache}

  defp node(:tensor, [tensor], out, _state, cache) do
    array = EMLX.Array.to_device(Backend.to_array(tensor), Trace.device())
    {Backend.tensor(array, out), cache}
  end

  defp node(:parameter, [i], _out, state, cache), do: {elem(state.params, i), cache}

  defp node(:elem, [tuple, i], _out, state, cache) do
    {tuple, cache} = composite(tuple, state, cache)
    {elem(tuple, i), cache}
  end

  # ---- functions ----

  defp node(:fun, [args, expr, _mfa], _out, state, cache) do
    call = fn params ->
      params = params |> Enum.map(&Nx.to_tensor/1) |> List.to_tuple()
      run(expr, params, state.hooks)
    end

    fun =
      case length(args) do
        1 -> fn a -> call.([a]) end
        2 -> fn a, b -> call.([a, b]) end
      end

    {fun, cache}
  end

  # ---- control flow ----

  defp node(:cond, [[{pred, body} | clauses], last], _out, state, cache) do
    # Nodes that the branches share with the enclosing scope are computed there first, and so are those that all of the
    # branches need.
    bodies = [body, last | Enum.map(clauses, &elem(&1, 1))]
    common = bodies |> Enum.map(&needed/1) |> Enum.reduce(&Map.take(&1, Map.keys(&2)))
    cache = shared(Enum.map(clauses, &elem(&1, 0)) ++ bodies, %{state | ids: Map.merge(state.ids, common)}, cache)
    {results, _like, cache} = branch(pred, body, clauses, last, nil, state, cache)
    {result, []} = last |> one_or_tuple() |> fill(results)
    {result, cache}
  end

  defp node(:while, [initial, _arg, condition, body], _out, state, cache) do
    {initial, cache} = composite(initial, state, cache)
    like = Composite.flatten_list([initial])

    step = fn expr, arrays ->
      {params, []} = fill(initial, arrays)
      run(expr, one_or_tuple_list(params), state.hooks)
    end

    # The gradient through a loop may have another type than the state it belongs to (observed with Nx 0.12.1 and
    # 0.13.1).
    condition = &(condition |> step.(&1) |> arrays())
    body = &(body |> step.(&1) |> arrays_like(like))
    results = Unroll.run(arrays(initial), condition, body) || loop(initial, condition, body)
    {result, []} = fill(initial, results)
    {result, cache}
  end

  # ---- blocks ----

  defp node(:block, [struct, in_args, expr, callback], out, state, cache) do
    {tensors, options} = Enum.split_while(in_args, &(not is_list(&1)))
    {tensors, cache} = Enum.map_reduce(tensors, cache, &like_node(&1, state, &2))

    composed = fn [_struct | args] = all ->
      given = Enum.take(args, length(tensors))

      # The expression was built for these arguments. For others the function itself is called.
      if Enum.zip_with(given, tensors, &like?/2) |> Enum.all?() and Enum.drop(args, length(tensors)) == options,
        do: run(expr, List.to_tuple(given), state.hooks),
        else: apply(callback, all)
    end

    output = if match?({:tuple, _}, out.type), do: expr, else: out
    composed = EMLX.Block.Dispatch.of_list(length(in_args) + 1, composed)
    {Backend.block(struct, output, tensors ++ options, composed), cache}
  end

  # ---- the calling process ----

  defp node(:runtime_call, [expr, fun, out_template, opts], _out, state, cache) do
    {value, cache} = Composite.traverse(expr, cache, &like_node(&1, state, &2))
    like = templates_of(value)
    out_template = templates_of(out_template)

    call = fn arrays ->
      {value, []} = Composite.traverse(like, arrays, &given/2)
      result = fun.(value, opts)

      if not Nx.compatible?(out_template, result) do
        raise "expected the runtime_call function to match the given output template " <>
                "#{inspect(out_template)}, got: #{inspect(result)}"
      end

      arrays(result)
    end

    results = Trace.call(call, arrays(value), templates(out_template))
    {result, []} = out_template |> one_or_tuple() |> fill(results)
    {result, cache}
  end

  # Nx 0.12 and 0.13 keep hooks in tokens, in reverse order.
  defp node(:token, [token], _out, state, cache) do
    cache =
      List.foldr(token.hooks, cache, fn %{name: name, callback: callback, expr: expr}, cache ->
        {value, cache} = Composite.traverse(expr, cache, &like_node(&1, state, &2))
        hook(state.hooks[name] || callback, value)
        cache
      end)

    {{}, cache}
  end

  defp node(:attach_token, [token, expr], _out, state, cache) do
    {_, cache} = walk(token, state, cache)
    walk(expr, state, cache)
  end

  # Nx's main branch has a node for a hook, first called `hook`, then `io_call`.
  defp node(op, [expr, spec, out_template, _ref], _out, state, cache) when op in [:hook, :io_call] do
    {value, cache} = Composite.traverse(expr, cache, &like_node(&1, state, &2))

    {hooked, spec, cache} =
      case spec do
        {:token_hook, hooked, spec} ->
          {hooked, cache} = Composite.traverse(hooked, cache, &like_node(&1, state, &2))
          {hooked, spec, cache}

        spec ->
          {value, spec, cache}
      end

    case spec do
      {:fn, fun} -> hook(fun, hooked)
      {:named, name, callback} -> hook(state.hooks[name] || callback, hooked)
    end

    case out_template do
      %T{} -> {value, cache}
      _ -> {[value] |> Composite.flatten_list() |> List.to_tuple(), cache}
    end
  end

  # ---- all other nodes are callbacks of the backend ----

  defp node(op, _args, out, state, cache) do
    {args, cache} = Tree.apply_args(out, cache, &walk(&1, state, &2))

    cond do
      op in @creation -> {apply(Backend, op, [out | args] ++ [options()]), cache}
      not function_exported?(Backend, op, length(args) + 1) -> unknown(op)
      true -> {Trace.named(op, fn -> apply(Backend, op, [out | args]) end), cache}
    end
  end

  defp loop(initial, condition, body) do
    templates = templates(initial)

    block = fn fun ->
      {block, nil} = Trace.block(templates, &{fun.(&1), nil})
      block
    end

    Trace.emit({:while, %{condition: block.(condition), body: block.(body)}}, arrays(initial), templates)
  end

  defp unknown(op) do
    raise EMLX.Error,
      kind: :traced,
      op: Atom.to_string(op),
      reason: "the compiler EMLX does not know this node of Nx.Defn expressions"
  end

  defp options, do: [device: Trace.device()]

  # The arrays of a composite, cast to the types of other tensors.
  defp arrays_like(composite, like) do
    Enum.zip_with(Composite.flatten_list([composite]), like, fn tensor, %T{type: type} ->
      tensor |> Backend.to_array() |> as(tensor.type, type)
    end)
  end

  defp as(array, from, to) when {:c, 128} in [from, to], do: Type.convert(array, from, to)

  defp as(array, _from, to) do
    dtype = Type.dtype(to)
    if EMLX.Array.dtype(array) == dtype, do: array, else: Ops.run({:astype, %{dtype: dtype}}, [array])
  end

  defp predicate(%T{type: {:c, 128}} = pred), do: Complex128.truth(pred)
  defp predicate(pred), do: Backend.to_array(pred)

  defp hook(nil, _value), do: :ok

  defp hook(fun, value) do
    like = templates_of(value)

    call = fn arrays ->
      {value, []} = Composite.traverse(like, arrays, &given/2)
      fun.(value)
      []
    end

    [] = Trace.call(call, arrays(value), [])
    :ok
  end

  defp like?(%T{} = a, %T{} = b), do: a.type == b.type and a.shape == b.shape and a.vectorized_axes == b.vectorized_axes

  # Results with several leaves are tuples, whatever their container.
  defp one_or_tuple(%T{} = tensor), do: tensor
  defp one_or_tuple(composite), do: [composite] |> Composite.flatten_list() |> List.to_tuple()

  defp one_or_tuple_list(composite), do: [composite] |> Composite.flatten_list() |> List.to_tuple()

  # ---- cond ----

  # The depth of a program is limited. Therefore a long cond computes all of its predicates, and finds its branch by
  # binary search.
  @long 4

  # Returns the results of a cond as arrays, and the tensors whose types and shapes they have: `like`, or those of the
  # first branch if `like` is nil.
  defp branch(pred, body, clauses, last, like, state, cache) when length(clauses) > @long do
    {preds, bodies} = Enum.unzip([{pred, body} | clauses])
    {preds, cache} = Enum.map_reduce(preds, cache, &walk(&1, state, &2))
    zero = Type.scalar(0, {:u, 8})
    holds = for pred <- preds, do: Ops.run(:not_equal, [predicate(pred), zero])
    holds = Ops.run({:stack, %{axis: 0}}, holds ++ [Ops.run({:astype, %{dtype: :bool}}, [Type.scalar(1, {:u, 8})])])
    index = Ops.run({:argmax, %{axis: 0, keepdims: false, nan: :first}}, [holds])
    {results, like} = halves(index, List.to_tuple(bodies ++ [last]), 0, length(bodies) + 1, like, state, cache)
    {results, like, cache}
  end

  defp branch(pred, body, clauses, last, like, state, cache) do
    {pred, cache} = walk(pred, state, cache)
    {taken, like} = Trace.block([], fn [] -> taken(body, like, state, cache) end)

    {otherwise, _like} =
      Trace.block([], fn [] ->
        case clauses do
          [] ->
            taken(last, like, state, cache)

          [{pred, body} | clauses] ->
            {results, like, _cache} = branch(pred, body, clauses, last, like, inner({pred, body}, state), cache)
            {results, like}
        end
      end)

    {Trace.emit({:if, %{then: taken, else: otherwise}}, [predicate(pred)], templates(List.to_tuple(like))), like, cache}
  end

  defp taken(expr, like, state, cache) do
    {result, _cache} = composite(expr, inner(expr, state), cache)
    like = like || Composite.flatten_list([result])
    {arrays_like(result, like), like}
  end

  # Selects the branch at `index` of the branches first..(last - 1).
  defp halves(_index, branches, first, last, like, state, cache) when last - first == 1,
    do: taken(elem(branches, first), like, state, cache)

  defp halves(index, branches, first, last, like, state, cache) do
    middle = div(first + last, 2)
    below = Ops.run(:less, [index, Type.scalar(middle, {:u, 32})])

    half = fn from, to, like ->
      Trace.block([], fn [] -> halves(index, branches, from, to, like, state, cache) end)
    end

    {lower, like} = half.(first, middle, like)
    {upper, like} = half.(middle, last, like)
    {Trace.emit({:if, %{then: lower, else: upper}}, [below], templates(List.to_tuple(like))), like}
  end

  defp inner(expr, state), do: %{state | ids: Tree.scope_ids(expr, state.ids)}

  defp shared(branches, state, cache) do
    {cache, _seen} = Composite.reduce(List.to_tuple(branches), {cache, %{}}, &shared_node(&1, state, &2))
    cache
  end

  # The ids of all nodes that an expression needs, whatever branches are taken.
  defp needed(expr), do: Composite.reduce(expr, %{}, &needed_node/2)

  defp needed_node(%T{data: %Expr{op: :constant}}, ids), do: ids

  defp needed_node(%T{data: %Expr{id: id, op: op, args: args}} = node, ids) do
    case {ids, op} do
      {%{^id => _}, _} ->
        ids

      {_, :cond} ->
        [[{pred, _body} | _clauses], _last] = args
        needed_node(pred, Map.put(ids, id, op))

      _ ->
        {_, ids} = Tree.apply_args(node, :scope, Map.put(ids, id, op), fn arg, ids -> {arg, needed_node(arg, ids)} end)
        ids
    end
  end

  defp shared_node(%T{data: %Expr{op: :constant}}, _state, acc), do: acc

  defp shared_node(%T{data: %Expr{id: id}} = node, state, {cache, seen}) do
    cond do
      is_map_key(cache, id) or is_map_key(seen, id) ->
        {cache, seen}

      is_map_key(state.ids, id) ->
        {_, cache} = walk(node, state, cache)
        {cache, seen}

      true ->
        {_, acc} =
          Tree.apply_args(node, :scope, {cache, Map.put(seen, id, true)}, fn arg, acc ->
            {arg, shared_node(arg, state, acc)}
          end)

        acc
    end
  end
end
