defmodule EMLX.Compiler.Identity do
  @moduledoc false
  # The digests that are the keys of EMLX.Compiler.Cache. Arrays and large binaries contribute their identity
  # (native/src/nif/identity.rs). The cost depends on the number of terms that a function closes over, not on their
  # size.

  alias EMLX.Native

  # The maximum number of parts of a small term.
  @max_parts 262_144

  @type captured :: %{
          arrays: [{number :: non_neg_integer, reference}],
          binaries: [{{address :: non_neg_integer, size :: non_neg_integer}, binary}]
        }

  @doc """
  Returns a digest of a term. It is the same for equal terms with the same arrays and large binaries, and for functions
  of the same code that close over such terms.
  """
  @spec digest(term) :: binary
  def digest(term) do
    {digest, _arrays, _binaries} = walk(term, false, [], [])
    digest
  end

  @doc "Returns the arrays and large binaries in a term, those in the environments of functions included."
  @spec captured(term) :: captured
  def captured(term) do
    {_digest, arrays, binaries} = walk(term, true, [], [])

    %{
      arrays: Enum.uniq_by(arrays, fn {number, _ref} -> number end),
      binaries: binaries |> Map.new(fn {address, size, binary} -> {{address, size}, binary} end) |> Map.to_list()
    }
  end

  @doc """
  Returns whether a term has no arrays and large binaries and few parts, shared ones counted each time. The VM can copy
  such a term quickly.
  """
  @spec small?(term) :: boolean
  def small?(term) do
    case Native.call!(Native.identify_long(term, true, @max_parts)) do
      {_digest, functions, [], []} -> functions == [] or small?(Enum.map(functions, &environment/1))
      _long_or_with_others -> false
    end
  end

  # The native code lists the functions it finds: only the VM can read their code and environment.
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

  # The identity of a function's code: the module, and the position and version in it.
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
