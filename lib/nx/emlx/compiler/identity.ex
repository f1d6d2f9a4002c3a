defmodule EMLX.Compiler.Identity do
  @moduledoc false
  # What EMLX.Compiler.Cache tells functions by: a digest in which arrays and large binaries count by identity
  # (native/src/nif/identity.rs). Its cost depends on how many terms a function closes over, not on how large they are.

  alias EMLX.Native

  # The most parts of a small term.
  @max_parts 262_144

  @type captured :: %{
          arrays: [{number :: non_neg_integer, reference}],
          binaries: [{{address :: non_neg_integer, size :: non_neg_integer}, binary}]
        }

  @doc """
  A digest of a term: equal for equal terms with the same arrays and large binaries, and functions of the same code
  that close over such.
  """
  @spec digest(term) :: binary
  def digest(term) do
    {digest, _arrays, _binaries} = walk(term, false, [], [])
    digest
  end

  @doc "The arrays and large binaries in a term, functions' environments included, that count by identity."
  @spec captured(term) :: captured
  def captured(term) do
    {_digest, arrays, binaries} = walk(term, true, [], [])

    %{
      arrays: Enum.uniq_by(arrays, fn {number, _ref} -> number end),
      binaries: binaries |> Map.new(fn {address, size, binary} -> {{address, size}, binary} end) |> Map.to_list()
    }
  end

  @doc """
  Whether a term has few parts, shared ones counted each time, and no arrays and large binaries. So the VM can copy it
  in little time.
  """
  @spec small?(term) :: boolean
  def small?(term) do
    case Native.call!(Native.identify_long(term, true, @max_parts)) do
      {_digest, functions, [], []} -> functions == [] or small?(Enum.map(functions, &environment/1))
      _long_or_with_others -> false
    end
  end

  # The native code lists the functions that it meets; the VM alone can open them.
  defp walk(term, gather, arrays, binaries) do
    case identify(term, gather) do
      {digest, [], more_arrays, more_binaries} ->
        {digest, more_arrays ++ arrays, more_binaries ++ binaries}

      {digest, functions, more_arrays, more_binaries} ->
        walk(
          [digest | Enum.map(functions, &{code(&1), environment(&1)})],
          gather,
          more_arrays ++ arrays,
          more_binaries ++ binaries
        )
    end
  end

  defp identify(term, gather) do
    case Native.call!(Native.identify(term, gather)) do
      :long -> Native.call!(Native.identify_long(term, gather, nil))
      identity -> identity
    end
  end

  # What tells functions apart that were written at different places: the module, and the place and version in it.
  defp code(fun) do
    {:module, module} = :erlang.fun_info(fun, :module)

    case :erlang.fun_info(fun, :type) do
      {:type, :external} ->
        {:name, name} = :erlang.fun_info(fun, :name)
        {:arity, arity} = :erlang.fun_info(fun, :arity)
        {module, name, arity}

      {:type, :local} ->
        {:new_index, index} = :erlang.fun_info(fun, :new_index)
        {:new_uniq, version} = :erlang.fun_info(fun, :new_uniq)
        {module, index, version}
    end
  end

  # The terms that a function closes over.
  defp environment(fun) do
    {:env, environment} = :erlang.fun_info(fun, :env)
    environment
  end
end
