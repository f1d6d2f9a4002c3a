defmodule EMLX.Block.Dispatch do
  @moduledoc false
  # Implements EMLX.Block.dispatch/4. The process dictionary holds the path of a block while its implementation runs.
  # The implementation receives the composed function in a wrapper that records calls. So telemetry is right even for an
  # implementation that runs the composed function without decline/4.

  @path {__MODULE__, :path}
  @elementwise [EMLX.Block.Nx.Block.LogicalNot, EMLX.Block.Nx.Block.Phase]

  @doc "Runs a block through an implementation."
  def run(EMLX.Block.Any, block, _output, args, fun) do
    tell(block, :composed, "#{inspect(block.__struct__)} has no implementation of EMLX.Block")
    apply(fun, [block | args])
  end

  def run(implementation, block, output, args, fun) do
    # An array of c128 has two numbers for each element, which no implementation expects (EMLX.Backend.Pair).
    if complex128?([output | args]) do
      tell(block, :composed, "the kernel takes no c128, which MLX lacks")
      apply(fun, [block | args])
    else
      implemented(implementation, block, output, args, fun)
    end
  end

  defp complex128?([%Nx.Tensor{type: {:c, 128}} | _rest]), do: true
  defp complex128?([tuple | rest]) when is_tuple(tuple), do: complex128?(Tuple.to_list(tuple)) or complex128?(rest)
  defp complex128?([_other | rest]), do: complex128?(rest)
  defp complex128?([]), do: false

  defp implemented(implementation, block, output, args, fun) do
    # A kernel may depend on axes, and the slices that a custom reduction passes as scalars have none
    # (EMLX.Backend.Fold).
    if implementation not in @elementwise, do: EMLX.Backend.Fold.refuse_slices()

    # Blocks nest: the path of the outer block is restored after the inner one.
    outer = Process.put(@path, :fused)

    try do
      call = fn -> implementation.call(block, output, args, noting(fun, block)) end
      result = EMLX.Trace.labelled(block.__struct__, call)

      # Checked for the composed function, too: an implementation may call it with other arguments.
      check(block, output, args, result)
      if Process.get(@path) == :fused, do: tell(block, :fused, nil)
      result
    rescue
      error ->
        case {Process.get(@path), error} do
          {:fused, %EMLX.Block.Error{block: ^block}} ->
            reraise error, __STACKTRACE__

          {:fused, error} ->
            if EMLX.Debug.raised?(error), do: reraise(error, __STACKTRACE__)
            reraise EMLX.Block.Error, [block: block, args: args, cause: error], __STACKTRACE__

          # Exceptions of the composed function are the caller's.
          {:composed, error} ->
            reraise error, __STACKTRACE__
        end
    after
      if outer, do: Process.put(@path, outer), else: Process.delete(@path)
    end
  end

  @doc "Runs the composed function and reports the reason to telemetry."
  def decline(block, args, fun, reason) when is_binary(reason) do
    note(block, reason)
    apply(fun, [block | args])
  end

  # The composed function in a wrapper that records the call.
  for arity <- 1..24 do
    arguments = Macro.generate_arguments(arity, __MODULE__)

    defp noting(fun, block) when is_function(fun, unquote(arity)) do
      fn unquote_splicing(arguments) ->
        note(block, nil)
        EMLX.Trace.labelled(nil, fn -> fun.(unquote_splicing(arguments)) end)
      end
    end
  end

  defp noting(fun, _block), do: fun

  @doc "Returns a function of an arity that calls `fun` with the list of its arguments."
  for arity <- 1..24 do
    arguments = Macro.generate_arguments(arity, __MODULE__)
    def of_list(unquote(arity), fun), do: fn unquote_splicing(arguments) -> fun.([unquote_splicing(arguments)]) end
  end

  defp note(block, reason) do
    if Process.get(@path) == :fused do
      Process.put(@path, :composed)
      tell(block, :composed, reason)
    end
  end

  defp tell(block, path, reason) do
    metadata = %{block: block.__struct__, path: path, reason: reason}
    :telemetry.execute([:emlx, :block, :dispatch], %{count: 1}, metadata)
  end

  defp check(block, output, args, result) do
    unless alike?(output, result) do
      cause = "gave #{EMLX.Block.Error.describe(result)}, not #{EMLX.Block.Error.describe(output)}"
      raise EMLX.Block.Error, block: block, args: args, cause: cause
    end
  end

  defp alike?(%Nx.Tensor{} = a, %Nx.Tensor{} = b),
    do: a.type == b.type and a.shape == b.shape and a.vectorized_axes == b.vectorized_axes

  defp alike?(a, b) when is_tuple(a) and is_tuple(b) and tuple_size(a) == tuple_size(b),
    do: a |> Tuple.to_list() |> Enum.zip(Tuple.to_list(b)) |> Enum.all?(fn {a, b} -> alike?(a, b) end)

  defp alike?(_a, _b), do: false
end
