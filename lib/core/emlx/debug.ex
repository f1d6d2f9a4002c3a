defmodule EMLX.Debug do
  @moduledoc """
  Debugging modes: checks of indices and results during the computation, and warnings about copies between devices.

  All modes are off by default and cost nothing then. They are settings of the application:

      config :emlx,
        enable_bounds_check: true,
        detect_non_finites: true,
        warn_cross_device: true

    * `:enable_bounds_check` - an index outside of its axis raises `ArgumentError`. The message names the operation, the
      first such index, its position among the indices, and the axis. Without the check, such an index is clamped where
      elements are read, and its update is dropped where they are written. The check covers `Nx.take/3`,
      `Nx.take_along_axis/3`, `Nx.gather/3`, `Nx.indexed_add/4`, `Nx.indexed_put/4` and the operations of `EMLX.Ops` and
      `EMLX.Kernels` that take indices. Starts of slices are not checked: Nx defines that they are clamped
    * `:detect_non_finites` - an operation that produces a NaN or an infinity raises `ArgumentError`. The message names
      the operation, and the first such element by its index and value. An operation produces a NaN if no operand has
      one, and an infinity if all operands are finite. Matrix products, convolutions and fused kernels are reported for
      every NaN and infinity in their results, also for those that operands bring along. Computations in c128 are not
      checked
    * `:warn_cross_device` - an operand of more than one element that is copied from another device is logged as a
      warning

  For a compiled function, the message also names the function and the instruction, numbered as `EMLX.Program.inspect/2`
  shows the function compiled with `merge: false`: `instruction 3, tensordot [dot]` or
  `instruction 2, while, instruction 0, log [log]`.

  The first two modes compute every operation by itself and read a result for each. They are slow, and a compiled
  function is neither fused nor merged nor captured. An operation is also reported if its result is discarded later, as
  the logarithm in `Nx.select(positive, Nx.log(x), 0)`.

  The settings are read when the application starts, at each call of a compiled function, at each operation with
  indices, and whenever a tensor or array is created. `Application.put_env/3` therefore works in a running system, and
  `refresh/0` applies it immediately. Programs that `EMLX.Program.new/4` creates and programs loaded from files are not
  checked.
  """

  alias EMLX.{Array, Native, Trace}

  require Logger

  @bounds 1
  @non_finite 2
  @cross_device 4
  @settings [enable_bounds_check: @bounds, detect_non_finites: @non_finite, warn_cross_device: @cross_device]

  # Operations that are reported whatever their operands are.
  @products [:matmul, :addmm, :inner, :outer, :vecdot, :tensordot, :einsum, :gather_mm, :conv, :conv_transpose] ++
              [:rms_norm, :layer_norm, :rope, :scaled_dot_product_attention, :quantized_matmul] ++
              [:int8_matmul, :qqmm, :gather_qmm]

  # Operations on bits, and constants.
  @unchecked [:constant, :view, :from_fp8]

  @floats [:f16, :bf16, :f32, :f64, :c64]

  # ---- settings ----

  @doc """
  Reads the settings, and applies them immediately. Returns those that are on.

  Raises `ArgumentError` for a setting that is neither `true` nor `false`.

      iex> EMLX.Debug.refresh()
      []
  """
  @spec refresh :: [:enable_bounds_check | :detect_non_finites | :warn_cross_device]
  def refresh do
    bits = refresh(@bounds + @non_finite + @cross_device)
    for {name, bit} <- @settings, on?(bits, bit), do: name
  end

  @doc false
  # Reads some of the settings. Returns the bits of all that are on. Creations and operations with indices ask for one
  # setting each time, and mostly nothing is on.
  def refresh(@bounds), do: refresh_one(:enable_bounds_check, @bounds)
  def refresh(@non_finite), do: refresh_one(:detect_non_finites, @non_finite)

  def refresh(which) do
    known = bits()

    bits =
      Enum.reduce(@settings, known, fn {name, bit}, bits ->
        if on?(which, bit), do: read(name, bit, bits), else: bits
      end)

    changed(known, bits)
  end

  defp refresh_one(name, bit) do
    known = bits()

    case :application.get_env(:emlx, name) do
      :undefined when known == 0 -> 0
      {:ok, false} when known == 0 -> 0
      _ -> changed(known, read(name, bit, known))
    end
  end

  defp changed(bits, bits), do: bits

  defp changed(_known, bits) do
    :persistent_term.put(__MODULE__, bits)
    Native.call!(Native.check_results(bits != 0))
    bits
  end

  defp read(name, bit, bits) do
    case Application.get_env(:emlx, name, false) do
      true -> Bitwise.bor(bits, bit)
      off when off in [false, nil] -> Bitwise.band(bits, Bitwise.bnot(bit))
      other -> raise ArgumentError, "config :emlx, #{name}: is true or false, got: #{inspect(other)}"
    end
  end

  defp bits, do: :persistent_term.get(__MODULE__, 0)

  defp on?(bits, bit), do: Bitwise.band(bits, bit) != 0

  @doc false
  # The modes that a compiled function depends on.
  def compiled, do: Bitwise.band(refresh(@bounds + @non_finite), @bounds + @non_finite)

  @doc false
  # Called for each creation of an array or tensor on a device.
  def created(:gpu), do: refresh(@non_finite + @cross_device)
  def created(_device), do: refresh(@non_finite)

  @doc false
  def warns?, do: on?(bits(), @cross_device)

  # ---- eager operations ----

  @doc false
  # Checks the answer of an operation while a mode is on, and returns it. EMLX.Ops.run/3 calls it.
  def checked(op, inputs, answer) do
    bits = bits()

    with [_ | _] = results <- results(answer) do
      bits = if checking?(), do: 0, else: bits
      if on?(bits, @cross_device), do: warn(op, inputs, hd(results))

      problem =
        (on?(bits, @bounds) && out_of_bounds(op, inputs)) || (on?(bits, @non_finite) && non_finite(op, inputs, results))

      if problem, do: raise(ArgumentError, text(problem, name(op, callback()), nil))
    end

    answer
  end

  defp results(ref) when is_reference(ref), do: [%Array{ref: ref}]
  defp results({kind, result}) when kind in [:ok, :wait], do: List.wrap(result)
  defp results(_traced_or_error), do: []

  # Whether the process is inside of unchecked/1.
  defp checking?, do: Process.get(__MODULE__, false)

  @doc false
  # Calls `fun` without checks, since its operations produce NaN or infinities on purpose.
  def unchecked(fun) do
    if bits() == 0 and not Trace.debugs?() do
      fun.()
    else
      before = Process.put(__MODULE__, true)

      try do
        Trace.unchecked(fun)
      after
        if before, do: Process.put(__MODULE__, before), else: Process.delete(__MODULE__)
      end
    end
  end

  # The callback of EMLX.Backend that an operation belongs to. The name of an overridden callback has a suffix.
  defp callback do
    {:current_stacktrace, frames} = Process.info(self(), :current_stacktrace)

    Enum.find_value(frames, fn
      {EMLX.Backend, name, arity, _location} ->
        [name | _overridden] = name |> Atom.to_string() |> String.split(" ")
        if name != "block" and function_exported?(EMLX.Backend, String.to_atom(name), arity), do: name

      _ ->
        nil
    end)
  end

  # ---- compiled functions ----

  @doc false
  # Inserts calls into the instructions of a program that check its operations. Returns the instructions and the calls.
  # `function` is the name of the compiled function; the calls must not refer to the function itself. The numbers of
  # values stay the same, since the calls have no outputs.
  def instrument(instructions, inputs, calls, function, bits) do
    calls = Map.new(calls, fn {id, call} -> {id, {:plain, call}} end)
    state = %{calls: calls, next: map_size(calls), function: function, bits: bits}
    {instructions, state} = block(instructions, inputs, [], state)

    {instructions, Map.new(state.calls, fn {id, {_kind, fun}} -> {id, fun} end)}
  end

  defp block(instructions, inputs, path, state) do
    {instructions, {_value, _number, state}} =
      instructions
      |> Enum.with_index()
      |> Enum.flat_map_reduce({inputs, 0, state}, fn {{op, ins, outs, label}, at}, {value, number, state} ->
        place = path ++ [place(op, label, number)]
        outputs = Enum.to_list(value..(value + outs - 1)//1)

        case {op, op_name(op)} do
          {{:call, %{id: id}}, _} ->
            following = instructions |> Enum.drop(at + 1) |> following(path, number, state)
            state = call(id, following, state)
            number = if check?(state, id), do: number, else: number + 1
            {[{op, ins, outs, label}], {value + outs, number, state}}

          {{name, blocks}, _} when name in [:if, :while] ->
            {blocks, state} =
              Enum.reduce(blocks, {%{}, state}, fn {key, {count, inner, results}}, {blocks, state} ->
                {inner, state} = block(inner, count, place, state)
                {Map.put(blocks, key, {count, inner, results}), state}
              end)

            {[{{name, blocks}, ins, outs, label}], {value + outs, number + 1, state}}

          {_, name} ->
            {check, state} = check(op, name, Enum.reject(ins, &is_nil/1), outputs, place, label, state)
            {[{op, ins, outs, strip(label)} | check], {value + outs, number + 1, state}}
        end
      end)

    {instructions, state}
  end

  # The place of a recorded check is known only here: the check precedes the operation that it checks.
  defp call(id, place, state) do
    case state.calls[id] do
      {:plain, {:check, check}} ->
        where = where(place, state.function)
        fun = fn arrays -> check.(arrays, where) end
        %{state | calls: Map.put(state.calls, id, {:check, fun})}

      _ ->
        state
    end
  end

  defp check?(state, id), do: match?({:check, _}, state.calls[id]) or match?({_, {:check, _}}, state.calls[id])

  # The place of the next operation with indices.
  defp following(instructions, path, number, state) do
    instructions
    |> Enum.reject(fn {op, _ins, _outs, _label} -> match?({:call, _}, op) and check?(state, elem(op, 1).id) end)
    |> Enum.with_index(number)
    |> Enum.find_value(path, fn {{op, _ins, _outs, label}, number} ->
      if indexed?(op_name(op)), do: path ++ [place(op, label, number)]
    end)
  end

  defp check(_op, name, _ins, _outs, _place, _label, state) when name in @unchecked, do: {[], state}

  defp check(op, _name, ins, outs, place, label, state) do
    if on?(state.bits, @non_finite) and outs != [] and not unchecked?(label) do
      where = where(place, state.function)
      name = name(op, label)

      fun = fn arrays ->
        {inputs, results} = Enum.split(arrays, length(ins))
        problem = non_finite(op, inputs, results)
        if problem, do: raise(ArgumentError, text(problem, name, where))
        []
      end

      call = {{:call, %{id: state.next, outputs: []}}, ins ++ outs, 0, nil}
      {[call], %{state | next: state.next + 1, calls: Map.put(state.calls, state.next, {:made, fun})}}
    else
      {[], state}
    end
  end

  # The place of an instruction, in the words of the errors of programs.
  defp place(op, label, number) do
    title = op |> op_name() |> Atom.to_string()
    label = strip(label)
    "instruction #{number}, #{title}" <> if(label, do: " [#{label}]", else: "")
  end

  defp where(place, function), do: Enum.join(["in " <> function | place], ", ")

  # The prefix of the labels of operations that are not checked, from the trace to this module.
  @mark "\0"

  @doc false
  def mark(label), do: @mark <> (label || "")

  defp unchecked?(@mark <> _), do: true
  defp unchecked?(_label), do: false

  defp strip(@mark), do: nil
  defp strip(@mark <> label), do: label
  defp strip(label), do: label

  defp op_name({name, _attributes}), do: name
  defp op_name(name), do: name

  # The name of an operation in messages: the function of Nx if the label is one, else the operation's name.
  defp name(op, label) do
    label = strip(label)
    if label && label =~ ~r/^[a-z]\w*$/, do: label, else: Atom.to_string(op_name(op))
  end

  # ---- elements that are not finite ----

  # The first non-finite element that an operation produced.
  defp non_finite(op, inputs, results) do
    name = op_name(op)
    unless name in @unchecked, do: Enum.find_value(results, &non_finite_of(name, inputs, &1))
  end

  defp non_finite_of(name, inputs, result) do
    case kinds(result) do
      {false, false} ->
        nil

      {nan?, infinity?} ->
        if name in @products or made?(inputs, nan?, infinity?), do: {:non_finite, name, first(result)}
    end
  end

  defp made?(inputs, nan?, infinity?) do
    given = for %Array{} = input <- inputs, do: kinds(input)
    given_nan? = Enum.any?(given, &elem(&1, 0))
    given_infinity? = Enum.any?(given, &elem(&1, 1))
    (nan? and not given_nan?) or (infinity? and not nan? and not given_nan? and not given_infinity?)
  end

  # Whether an array has a NaN, and whether it has an infinity.
  defp kinds(array) do
    {shape, dtype, device} = info(array)

    if dtype in @floats and Enum.product(shape) > 0 do
      any = fn test -> raw({:any, %{axes: nil, keepdims: false}}, [raw(test, [array], device)], device) end
      <<nan, infinity>> = read(raw({:stack, %{axis: 0}}, [any.(:isnan), any.(:isinf)], device), device)
      {nan != 0, infinity != 0}
    else
      {false, false}
    end
  end

  # Returns {index, value, signature} of the first element that is not finite.
  defp first(array) do
    {shape, dtype, device} = info(array)
    bad = raw(:logical_or, [raw(:isnan, [array], device), raw(:isinf, [array], device)], device)
    at = first_true(bad, device)
    {index(at, shape), element(array, at, device), signature(shape, dtype)}
  end

  # ---- indices ----

  @doc false
  # Checks the indices of an operation of Nx. With `:flat`, all elements of `array` index one axis; with `:columns`,
  # each entry of its last axis indexes one of `axes`. Nx has no negative indices.
  def check_indices(name, shape, axes, array, layout) do
    cond do
      Trace.active?() ->
        if on?(Trace.debug(), @bounds) do
          Trace.check([array], fn [array], where -> check_indices(name, shape, axes, array, layout, where) end)
        end

      on?(refresh(@bounds), @bounds) ->
        check_indices(name, shape, axes, array, layout, nil)

      true ->
        :ok
    end

    :ok
  end

  defp check_indices(name, shape, axes, array, layout, where) do
    columns =
      case layout do
        :flat -> [array]
        :columns -> columns(array)
      end

    axes
    |> Enum.zip(columns)
    |> Enum.find_value(fn {axis, column} -> outside(column, 0, elem(shape, axis) - 1, axis, Tuple.to_list(shape)) end)
    |> case do
      nil -> []
      problem -> raise ArgumentError, text(problem, name, where)
    end
  end

  defp columns(array) do
    {shape, _dtype, device} = info(array)
    {dims, [depth]} = Enum.split(shape, -1)
    zeros = Enum.map(dims, fn _ -> 0 end)
    ones = Enum.map(shape, fn _ -> 1 end)

    for i <- 0..(depth - 1)//1 do
      column = raw({:slice, %{start: zeros ++ [i], stop: dims ++ [i + 1], strides: ones}}, [array], device)
      raw({:reshape, %{shape: dims}}, [column], device)
    end
  end

  @doc false
  # Records a check of an operation of EMLX.Ops or EMLX.Kernels.
  def record(op, inputs) do
    if on?(Trace.debug(), @bounds) and indexed?(op_name(op)) do
      # Absent inputs have no value to pass.
      {present, gaps} = {Enum.reject(inputs, &is_nil/1), Enum.map(inputs, &is_nil/1)}

      Trace.check(present, fn arrays, where ->
        problem = out_of_bounds(op, fill(gaps, arrays))
        if problem, do: raise(ArgumentError, text(problem, name(op, nil), where)), else: []
      end)
    end

    :ok
  end

  defp fill([true | gaps], arrays), do: [nil | fill(gaps, arrays)]
  defp fill([false | gaps], [array | arrays]), do: [array | fill(gaps, arrays)]
  defp fill([], []), do: []

  @indexed [:gather, :scatter, :scatter_add, :scatter_max, :scatter_min, :scatter_prod] ++
             [:take, :take_along_axis, :put_along_axis, :scatter_add_axis, :gather_mm, :gather_qmm, :cross_entropy]

  @doc false
  # Called at the start of an operation with indices.
  def indexed, do: refresh(@bounds)

  defp indexed?(name), do: name in @indexed

  # In EMLX.Ops, negative indices count from the end.
  defp out_of_bounds({:gather, %{axes: axes, slice_sizes: sizes}}, [a | indices]) do
    dims = dims(a)
    places(dims, axes, indices, fn axis -> Enum.at(dims, axis) - Enum.at(sizes, axis) end)
  end

  defp out_of_bounds({name, %{axes: axes}}, [a, updates | indices])
       when name in [:scatter, :scatter_add, :scatter_max, :scatter_min, :scatter_prod] do
    {dims, updates} = {dims(a), dims(updates)}
    places(dims, axes, indices, fn axis -> Enum.at(dims, axis) - Enum.at(updates, axis - length(dims)) end)
  end

  defp out_of_bounds({name, %{axis: axis}}, [a, indices | _values])
       when name in [:take, :take_along_axis, :put_along_axis, :scatter_add_axis] do
    dims = dims(a)
    places(dims, [axis], [indices], fn axis -> Enum.at(dims, axis) - 1 end)
  end

  defp out_of_bounds({:gather_mm, _attributes}, [a, b, left, right]), do: picked([{a, left}, {b, right}])
  defp out_of_bounds({:gather_qmm, _attributes}, [x, w, _s, _b, left, right]), do: picked([{x, left}, {w, right}])

  defp out_of_bounds(:cross_entropy, [logits, targets]) do
    dims = dims(logits)
    places(dims, [-1], [targets], fn axis -> Enum.at(dims, axis) - 1 end)
  end

  defp out_of_bounds(_op, _inputs), do: nil

  # Checks indices of matrices, which are numbered over all axes except the last two.
  defp picked(pairs) do
    Enum.find_value(pairs, fn
      {_matrices, nil} -> nil
      {matrices, indices} -> indices && matrices |> dims() |> Enum.drop(-2) |> Enum.product() |> picked(indices)
    end)
  end

  defp picked(count, indices), do: outside(indices, -count, count - 1, 0, [count])

  defp places(dims, axes, indices, last) do
    axes
    |> Enum.zip(indices)
    |> Enum.find_value(fn {axis, array} ->
      axis = if axis < 0, do: axis + length(dims), else: axis
      outside(array, -Enum.at(dims, axis), last.(axis), axis, dims)
    end)
  end

  defp dims(array), do: array |> info() |> elem(0)

  # The first of `indices` that is below `first` or above `last`.
  defp outside(indices, first, last, axis, dims) do
    {shape, dtype, device} = info(indices)
    {low, high} = range(dtype)

    tests =
      for {test, limit} <- [less: first, greater: last], limit in low..high do
        raw(test, [indices, raw({:constant, %{value: limit, dtype: dtype}}, [], device)], device)
      end

    cond do
      Enum.product(shape) == 0 ->
        nil

      # All indices that the type can represent are above the range.
      last < low ->
        {:index, {index(0, shape), element(indices, 0, device), {first, last}, axis, dims}}

      tests == [] ->
        nil

      true ->
        bad = Enum.reduce(tests, fn test, bad -> raw(:logical_or, [bad, test], device) end)
        any = raw({:any, %{axes: nil, keepdims: false}}, [bad], device)

        if read(any, device) != <<0>> do
          at = first_true(bad, device)
          {:index, {index(at, shape), element(indices, at, device), {first, last}, axis, dims}}
        end
    end
  end

  for bits <- [8, 16, 32, 64] do
    defp range(unquote(:"u#{bits}")), do: {0, unquote(2 ** bits - 1)}
    defp range(unquote(:"s#{bits}")), do: {unquote(-(2 ** (bits - 1))), unquote(2 ** (bits - 1) - 1)}
  end

  defp range(:bool), do: {0, 1}

  # ---- devices ----

  # Scalars are passed with the launch, so crossed/4 does not warn about them.
  defp warn(op, inputs, result) do
    {_shape, _dtype, device} = info(result)

    for {%Array{} = input, position} <- Enum.with_index(inputs) do
      crossed("#{op_name(op)}", position, input, device)
    end
  end

  @doc false
  # Warns about an array that is not on the device of the operation that uses it.
  def crossed(what, position, array, device) do
    case info(array) do
      {_shape, _dtype, ^device} ->
        :ok

      {shape, dtype, from} ->
        if Enum.product(shape) > 1 do
          input = "input #{position} of #{what}, #{signature(shape, dtype)} on :#{from}"

          Logger.warning(
            "[EMLX] cross-device: #{input}, is copied to :#{device} (config :emlx, warn_cross_device: true)"
          )
        end
    end
  end

  # ---- messages ----

  @doc false
  # Whether an exception comes from this module. Such an exception is passed on unchanged.
  def raised?(%ArgumentError{message: message}), do: message =~ ~r/ \(config :emlx, \w+: true\)$/
  def raised?(_exception), do: false

  defp text({:non_finite, op, {index, value, signature}}, name, where) do
    whose = if name == Atom.to_string(op), do: "its result", else: "the result of #{op},"

    "#{name} produced NaN or Inf: element #{inspect(index)} of #{whose} #{signature} is #{shown(value)}" <>
      located(where) <> " (config :emlx, detect_non_finites: true)"
  end

  defp text({:index, {at, value, {first, last}, axis, dims}}, name, where) do
    "index out of bounds: #{name} takes index #{value} at #{inspect(at)} of its indices, along axis #{axis} of " <>
      "shape #{inspect(List.to_tuple(dims))}, where #{first} to #{last} are possible" <>
      located(where) <> " (config :emlx, enable_bounds_check: true)"
  end

  defp located(nil), do: ""
  defp located(where), do: ", " <> where

  defp shown({re, im}), do: "{#{shown(re)}, #{shown(im)}}"
  defp shown(:nan), do: "NaN"
  defp shown(:infinity), do: "Inf"
  defp shown(:neg_infinity), do: "-Inf"
  defp shown(number), do: "#{number}"

  defp signature(shape, dtype), do: "#{dtype}#{Enum.map(shape, &"[#{&1}]")}"

  # ---- operations that are not checked ----

  # Runs an operation without checks. The explicit device makes it run whatever queue the process has, even during a
  # trace.
  defp raw(op, inputs, device) do
    case Native.apply(op, for(%Array{ref: ref} <- inputs, do: ref), device) do
      {:check, answer} -> plain(answer)
      answer -> plain(answer)
    end
  end

  defp plain(answer) do
    case results(answer) do
      [array] -> array
      [] -> Native.call!(answer)
    end
  end

  defp read(%Array{ref: ref}, device),
    do: Native.await!(:to_binary, [ref], [device: device], &Native.read(ref, device, &1))

  defp info(%Array{ref: ref}), do: Native.call!(Native.info(ref))

  # The row-major position of the first true element.
  defp first_true(array, device) do
    flat = raw({:reshape, %{shape: [-1]}}, [array], device)

    at =
      raw({:argmax, %{axis: 0, keepdims: false, nan: :first}}, [raw({:astype, %{dtype: :u8}}, [flat], device)], device)

    <<at::unsigned-native-32>> = read(at, device)
    at
  end

  defp element(array, at, device) do
    flat = raw({:reshape, %{shape: [-1]}}, [array], device)
    one = raw({:slice, %{start: [at], stop: [at + 1], strides: [1]}}, [flat], device)
    [value] = Array.numbers(read(one, device), array |> info() |> elem(1))
    value
  end

  # The index along each axis from a row-major position.
  defp index(at, shape) do
    {index, 0} = shape |> Enum.reverse() |> Enum.map_reduce(at, fn size, rest -> {rem(rest, size), div(rest, size)} end)
    index |> Enum.reverse() |> List.to_tuple()
  end
end
