defmodule EMLX.Compiler.Path do
  @moduledoc false
  # Names of the leaves of containers, such as "encoder.blocks.0.kernel". EMLX.compile_to_program/3 names the inputs,
  # outputs and constants of a program by them.

  @doc "Returns `{name, leaf}` for each leaf of a container, in Nx's order; the names begin with `prefix`."
  def names(container, prefix), do: container |> leaves([prefix], []) |> Enum.reverse()

  defp leaves(%Nx.Tensor{} = leaf, path, acc), do: [{name(path), leaf} | acc]
  defp leaves(leaf, path, acc) when is_number(leaf) or is_struct(leaf, Complex), do: [{name(path), leaf} | acc]

  defp leaves(tuple, path, acc) when is_tuple(tuple) do
    tuple
    |> Tuple.to_list()
    |> Enum.with_index()
    |> Enum.reduce(acc, fn {value, i}, acc -> leaves(value, ["#{i}" | path], acc) end)
  end

  # Nx.Container's order for maps.
  defp leaves(map, path, acc) when is_map(map) and not is_struct(map) do
    map
    |> Map.to_list()
    |> Enum.sort()
    |> Enum.reduce(acc, fn {key, value}, acc -> leaves(value, [key(key) | path], acc) end)
  end

  # Nx.Container.reduce/3 passes the fields of a struct without their names, in the struct's own order.
  defp leaves(struct, path, acc) do
    {acc, _} =
      Nx.Container.reduce(struct, {acc, fields(struct)}, fn value, {acc, fields} ->
        {field, fields} = take(fields, value)
        {leaves(value, if(field, do: [key(field) | path], else: path), acc), fields}
      end)

    acc
  end

  defp fields(struct), do: struct |> Map.from_struct() |> Map.to_list()

  defp take(fields, value) do
    case Enum.find(fields, fn {_key, field} -> :erts_debug.same(field, value) end) do
      nil -> {nil, fields}
      {key, _} = found -> {key, List.delete(fields, found)}
    end
  end

  defp key(key) when is_atom(key), do: Atom.to_string(key)
  defp key(key) when is_binary(key), do: key
  defp key(key), do: inspect(key)

  defp name(path), do: path |> Enum.reject(&(&1 == "")) |> Enum.reverse() |> Enum.join(".")

  @doc "Returns the names, with a number appended to those that occurred before."
  def unique(names) do
    {names, _} =
      Enum.map_reduce(names, MapSet.new(), fn name, seen ->
        name =
          Stream.iterate(1, &(&1 + 1))
          |> Stream.map(&if(&1 == 1, do: name, else: "#{name}.#{&1}"))
          |> Enum.find(&(&1 not in seen))

        {name, MapSet.put(seen, name)}
      end)

    names
  end
end
