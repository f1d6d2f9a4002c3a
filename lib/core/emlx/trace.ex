defmodule EMLX.Trace do
  @moduledoc false
  # Records the operations of a function as the instructions of an EMLX.Program. EMLX.Compiler uses it.
  #
  # The function is called with placeholders: arrays that have a shape and a type, but no elements. An operation on a
  # placeholder builds its node as usual, which checks the arguments and determines the shape of the result. The result
  # is a placeholder, too, and EMLX.Ops.run/3 passes the operation to record/3. Operations on other arrays are not
  # recorded: they are computed once, and their results become constants of the program if a recorded operation uses
  # them.
  #
  # Values are numbered in order, across all nested blocks. EMLX.Trace.Passes renumbers them for the program.

  alias EMLX.{Array, Native, OpTable, Queue}

  @doc "Returns whether the process is tracing a function."
  def active?, do: Process.get(__MODULE__) != nil

  @doc "Returns the device of the function that the process is tracing."
  def device, do: state!("device").device

  @doc "Returns the debugging modes that the function is traced for, as the bits of EMLX.Debug."
  def debug, do: state!("debug").debug

  @doc "Returns whether a function is being traced for debugging modes."
  def debugs?, do: match?(%{debug: bits} when bits != 0, Process.get(__MODULE__))

  @doc """
  Traces `fun`, which takes placeholders for `templates` (a list of `{dims, dtype}`) and returns `{arrays, term}`: a
  list of arrays and any term. Returns `{block, constants, calls, term}`:

    * `block` - `%{params: [value], instructions: [{op, [value | nil], [value], label}], results: [value]}`; the
      operations `:if` and `:while` hold blocks in their attributes
    * `constants` - `%{value => array}`
    * `calls` - `%{id => fun}`, the functions of `call/3`, and `{:check, fun}` for those of `check/2`
  """
  def run(device, templates, debug \\ 0, fun) do
    if active?(), do: raise(ArgumentError, "the process is tracing a function already")

    state = %{
      device: device,
      debug: debug,
      unchecked?: false,
      next: 0,
      values: %{},
      sources: %{},
      constants: %{},
      calls: %{},
      instructions: [],
      recorded: 0,
      limit: :infinity,
      label: nil,
      notes: []
    }

    Process.put(__MODULE__, state)
    queue = Process.put(Queue, %Queue{ref: {:trace, device}, device: device})

    try do
      {block, term} = block(templates, fun)
      %{constants: constants, calls: calls} = Process.get(__MODULE__)
      {block, constants, calls, term}
    after
      Process.delete(__MODULE__)
      if queue, do: Process.put(Queue, queue), else: Process.delete(Queue)
    end
  end

  @doc "Traces `fun` as a nested block, for an operation that holds blocks. Returns `{block, term}`."
  def block(templates, fun) do
    outer = state!("block").instructions
    put(:instructions, [])
    placeholders = Enum.map(templates, &placeholder/1)
    params = Enum.map(placeholders, &define/1)
    {results, term} = fun.(placeholders)
    results = Enum.map(results, &value/1)
    instructions = Enum.reverse(state!("block").instructions)
    put(:instructions, outer)
    {%{params: params, instructions: instructions, results: results}, term}
  end

  # Constants of up to this many bytes are computed while a function is traced. EMLX.Trace.Passes merges equal ones.
  @small 4096

  @doc """
  Calls `fun`, which may record up to `limit` operations. Returns `{:ok, result}`, or `{:abandoned, reason}` if the
  function calls `abandon/1`, records more or a call, or computes a constant of more than #{@small} bytes that an
  operation needs. In this case nothing is recorded.
  """
  def attempt(limit, fun) do
    before = state!("attempt")
    Process.put(__MODULE__, %{before | limit: min(before.limit, before.recorded + limit)})

    try do
      result = fun.()
      put(:limit, before.limit)
      {:ok, result}
    catch
      :throw, {__MODULE__, reason} ->
        Process.put(__MODULE__, before)
        {:abandoned, reason}
    end
  end

  @doc "Ends the innermost `attempt/2`."
  def abandon(reason), do: throw({__MODULE__, reason})

  @doc "Adds a note on what a pass takes (`:took`) or leaves (`:left`), for `EMLX.explain/3`."
  def note(pass, kind, text), do: put(:notes, [{pass, kind, text} | state!("note").notes])

  @doc "Returns the notes in their order."
  def notes, do: Enum.reverse(state!("notes").notes)

  @doc """
  Returns whether an array is a constant that is small enough to be computed while the function is traced.
  """
  def known?(%Array{} = array), do: not Array.traced?(array) and small?(array)

  defp small?(array), do: Array.bytes(array) <= @small

  @doc "Returns an array, or a placeholder for it if it is a large constant, so that operations on it are recorded."
  def opaque(%Array{} = array) do
    if Array.traced?(array) or small?(array) do
      array
    else
      value = value(array)
      placeholder = placeholder({Tuple.to_list(Array.shape(array)), Array.dtype(array)})
      put(:values, Map.put(state!("opaque").values, placeholder.ref, value))
      placeholder
    end
  end

  @doc """
  Returns the operation that an array is the only result of, with its arrays: `{op, [array | nil]}`. Returns nil for
  other arrays, and if no function is being traced.
  """
  def source(%Array{ref: ref}) do
    case Process.get(__MODULE__) do
      %{sources: %{^ref => source}} -> source
      _ -> nil
    end
  end

  @doc "Calls `fun`, which reads arrays that are no placeholders."
  def untraced(fun) do
    queue = Process.delete(Queue)

    try do
      fun.()
    after
      if queue, do: Process.put(Queue, queue)
    end
  end

  @doc """
  Records an operation on arrays (nil for absent ones) with its `result`. Returns `result`, or a constant for a small
  `:iota`.
  """
  def record({:iota, _attributes} = op, [], result) do
    if small?(result),
      do: untraced(fn -> EMLX.Ops.run(op, [], device: state!("iota").device) end),
      else: recorded(op, [], result)
  end

  def record(op, inputs, result), do: recorded(op, inputs, result)

  defp recorded(op, inputs, result) do
    if debugs?(), do: EMLX.Debug.record(op, inputs)
    if same?(op, inputs, result), do: alias_value(hd(inputs), result), else: append(op, inputs, result)
    result
  end

  # Casts and reshapes that change nothing.
  defp same?(op, [%Array{} = a], %Array{} = b),
    do: OpTable.converts?(op) and Array.dtype(a) == Array.dtype(b) and Array.shape(a) == Array.shape(b)

  defp same?(_op, _inputs, _result), do: false

  defp alias_value(array, %Array{ref: ref}) do
    value = value(array)
    put(:values, Map.put(state!("alias").values, ref, value))
    put(:sources, Map.put(state!("alias").sources, ref, source(array)))
  end

  defp append(op, arrays, result) do
    inputs = Enum.map(arrays, &value/1)
    outputs = result |> List.wrap() |> Enum.map(&define/1)
    state = state!(name(op))
    sources = if match?(%Array{}, result), do: Map.put(state.sources, result.ref, {op, arrays}), else: state.sources
    if state.recorded >= state.limit, do: abandon("it has too many operations")
    label = if state.unchecked?, do: EMLX.Debug.mark(state.label), else: state.label
    instructions = [{op, inputs, outputs, label} | state.instructions]
    Process.put(__MODULE__, %{state | instructions: instructions, sources: sources, recorded: state.recorded + 1})
  end

  @doc "Records an operation that only programs have. Returns placeholders for `templates`."
  def emit(op, inputs, templates) do
    results = Enum.map(templates, &placeholder/1)
    record(op, inputs, results)
  end

  @doc """
  Records a call of `fun` in the process that runs the program. `fun` takes the list of arrays and returns a list of
  arrays like `templates`.
  """
  def call(fun, inputs, templates) do
    %{calls: calls, limit: limit} = state!("call")
    if limit != :infinity, do: abandon("it calls a function of the process")
    id = map_size(calls)
    put(:calls, Map.put(calls, id, fun))
    emit({:call, %{id: id, outputs: templates}}, inputs, templates)
  end

  @doc """
  Records a check for debugging. `fun` is called like one of `call/3`, with the position in the program as a second
  argument, which EMLX.Debug.instrument/5 adds.
  """
  def check(inputs, fun), do: call({:check, fun}, inputs, [])

  @doc "Calls `fun`. The results of operations recorded during the call are not checked."
  def unchecked(fun) do
    case Process.get(__MODULE__) do
      %{debug: bits, unchecked?: false} when bits != 0 ->
        put(:unchecked?, true)

        try do
          fun.()
        after
          put(:unchecked?, false)
        end

      _ ->
        fun.()
    end
  end

  @doc "Calls `fun`, which runs an operation of Nx. In debugging modes, its name labels the recorded operations."
  def named(name, fun), do: if(debugs?(), do: labelled(Atom.to_string(name), fun), else: fun.())

  @doc """
  Calls `fun`. Operations recorded during the call have the label. The outermost label counts: it names the block whose
  kernel the operations are. The label `nil` is for the operations that a block composes, a module stands for its name.
  """
  def labelled(label, fun) do
    case Process.get(__MODULE__) do
      %{label: outer} when outer == nil or label == nil ->
        put(:label, if(is_atom(label) and label != nil, do: inspect(label), else: label))

        try do
          fun.()
        after
          put(:label, outer)
        end

      _ ->
        fun.()
    end
  end

  defp placeholder({dims, dtype}), do: Native.call!(Native.placeholder(dims, dtype, state!("placeholder").device))

  defp define(%Array{ref: ref}) do
    %{next: value, values: values} = state = state!("define")
    Process.put(__MODULE__, %{state | next: value + 1, values: Map.put(values, ref, value)})
    value
  end

  defp value(nil), do: nil

  defp value(%Array{ref: ref} = array) do
    case state!("an operation").values do
      %{^ref => value} ->
        value

      _ ->
        if Array.traced?(array), do: escaped("an operation")
        if state!("an operation").limit != :infinity and not small?(array), do: abandon("it computes large constants")
        value = define(array)
        put(:constants, Map.put(state!("constants").constants, value, array))
        value
    end
  end

  defp put(key, value), do: Process.put(__MODULE__, %{Process.get(__MODULE__) | key => value})

  defp state!(op), do: Process.get(__MODULE__) || escaped(op)

  defp name({op, _attributes}), do: Atom.to_string(op)
  defp name(op), do: to_string(op)

  defp escaped(op) do
    raise EMLX.Error,
      kind: :traced,
      op: op,
      reason:
        "an array stands for a value of a function that is being compiled, or was; it can be used inside of that " <>
          "function only, in the process that compiles it"
  end
end
