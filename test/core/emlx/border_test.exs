defmodule EMLX.BorderTest do
  # Random calls at the border between Elixir and the native code. Whatever is passed, the VM survives, and every
  # failure is an EMLX.Error (from public functions) or {:error, map} (from native ones).
  use ExUnit.Case, async: false

  alias EMLX.{Array, Golden, Native, Ops, OpTable}

  @calls 25_000
  @dtypes [:bool, :u8, :u16, :u32, :u64, :s8, :s16, :s32, :s64, :f16, :bf16, :f32, :f64, :c64]

  @tag :slow
  @tag timeout: 600_000
  test "#{@calls} random calls end in a value or an error" do
    seed = seed()
    :rand.seed(:exsss, seed)
    # The table makes new operations part of this test.
    ops = Map.values(OpTable.all())
    assert length(ops) > 150
    pool = pool()

    counts =
      Enum.reduce(1..@calls, %{ok: 0, error: 0}, fn _, counts ->
        Map.update!(counts, call(Enum.random(ops), pool, seed), &(&1 + 1))
      end)

    # Some calls must succeed and some must fail, or the test shows nothing.
    assert counts.ok > div(@calls, 50), "seed #{seed}: #{inspect(counts)}"
    assert counts.error > div(@calls, 50), "seed #{seed}: #{inspect(counts)}"
    assert Array.to_list(Ops.add(Array.scalar(1, :s32), 1)) == 2
  end

  test "random terms in every native function end in a value or an error" do
    seed = seed()
    :rand.seed(:exsss, seed)
    pool = pool()

    functions =
      for {name, arity} <- Native.__info__(:functions),
          name not in [
            :load,
            :failure,
            :loaded!,
            :call!,
            :await!,
            :set_limit,
            :queue_close,
            :save_safetensors,
            :from_address,
            # The effects of these functions outlast the call.
            :shm_create,
            :check_results
          ],
          do: {name, arity}

    for {name, arity} <- functions, _ <- 1..150 do
      arguments = for _ <- 1..arity//1, do: term(pool)
      result = apply(Native, name, arguments)
      ok? = match?({:ok, _}, result) or match?({:wait, _}, result) or match?({:error, %{}}, result)
      assert ok?, "seed #{seed}: #{name}#{inspect(arguments)} gave #{inspect(result)}"
    end
  end

  # `EMLX_SEED=n` selects the calls; a failure names its seed.
  defp seed, do: "EMLX_SEED" |> System.get_env("1") |> String.to_integer()

  defp call(%{name: name, attributes: attributes}, pool, seed) do
    op = op_term(name, attributes, pool)
    inputs = for _ <- 1..Enum.random([1, 1, 2, 2, 3, 3, 4, 5]), do: input(pool)
    target = Enum.random([nil, nil, nil, :cpu, :gpu, 7])

    case Native.apply(op, inputs, target) do
      {:error, %{kind: kind, reason: reason}} ->
        assert is_atom(kind) and is_binary(reason)
        refute kind == :panic, "seed #{seed}: #{inspect(op)} panicked: #{reason}"
        :error

      built ->
        arrays =
          case built do
            ref when is_reference(ref) -> [%Array{ref: ref}]
            {tag, result} when tag in [:ok, :wait] -> List.wrap(result)
          end

        # Half of the results are evaluated, too, except those that only take long.
        for %Array{} = array <- arrays, :rand.uniform(2) == 1, Array.size(array) < 100_000 do
          try do
            assert is_binary(Array.to_binary(array))
          rescue
            error in EMLX.Error -> refute error.kind == :panic, "seed #{seed}: #{inspect(op)}"
          end
        end

        :ok
    end
  end

  defp op_term(name, [], _pool), do: if(:rand.uniform(50) == 1, do: {name, %{}}, else: name)

  defp op_term(name, attributes, pool) do
    attributes = if :rand.uniform(40) == 1, do: tl(attributes), else: attributes
    {name, Map.new(attributes, fn {field, kind} -> {field, value(kind, pool)} end)}
  end

  # Mostly values of the attribute's kind, sometimes any term.
  defp value(kind, pool) do
    if :rand.uniform(40) == 1, do: term(pool), else: of_kind(kind)
  end

  defp of_kind({:optional, kind}), do: if(:rand.uniform(3) == 1, do: nil, else: of_kind(kind))
  defp of_kind({:list, kind}), do: for(_ <- 1..Enum.random(0..4)//1, do: of_kind(kind))
  defp of_kind({:one_of, names}), do: Enum.random(names)
  defp of_kind(int) when int in [:s32, :s64], do: integer()
  defp of_kind(:u64), do: Enum.random([0, 1, 5, 0xFFFF_FFFF_FFFF_FFFF])
  defp of_kind(float) when float in [:f32, :f64], do: Enum.random([0.0, 1.0, -2.5, 1.0e-5, 1.0e30, 10_000.0])
  defp of_kind(:bool), do: Enum.random([true, false])
  defp of_kind(:number), do: Enum.random([0, -1, 0xFFFF_FFFF_FFFF_FFFF, 1.5, {1.0, 2.0}, :nan, :infinity])
  defp of_kind(:string), do: Enum.random(["ij,jk->ik", "ii->i", "a,b", "->", "...", "", "ij->ijk", "i\0j"])

  defp integer do
    case :rand.uniform(20) do
      1 -> Enum.random([2_147_483_647, -2_147_483_648, 65_536, -1_000_000_000_000])
      _ -> Enum.random(-3..8)
    end
  end

  defp input(pool) do
    case :rand.uniform(30) do
      1 -> nil
      2 -> term(pool)
      _ -> Enum.random(pool).ref
    end
  end

  defp term(pool) do
    Enum.random([
      fn -> Enum.random(pool).ref end,
      fn -> for _ <- 1..Enum.random(0..3)//1, do: Enum.random(pool).ref end,
      fn -> make_ref() end,
      fn -> self() end,
      fn -> nil end,
      fn -> :cpu end,
      fn -> :f32 end,
      fn -> "binary" end,
      fn -> <<1::3>> end,
      fn -> [1 | 2] end,
      fn -> [1, -1, 2] end,
      fn -> %{a: 1} end,
      fn -> {:add, 1} end,
      fn -> 1.5 end,
      fn -> -1 end,
      fn -> 1_000_000_000_000_000_000_000 end,
      fn -> fn -> :ok end end
    ]).()
  end

  # Arrays of every type and many shapes: computed ones, lazy ones and views.
  defp pool do
    shapes = [{}, {1}, {4}, {0}, {2, 3}, {3, 3}, {4, 4}, {2, 0}, {1, 2, 4}, {2, 3, 4}, {2, 2, 4, 8}, {32, 64}]

    arrays =
      for dtype <- @dtypes, shape <- shapes do
        array = Ops.astype(Ops.iota(shape, dtype: :s32), dtype)
        # A GPU has no f64.
        if dtype == :f64, do: array, else: Array.to_device(array, Golden.device())
      end

    views = for a <- arrays, Array.rank(a) == 2, do: Ops.transpose(a, [1, 0])
    for array <- Enum.take_every(arrays, 2), do: EMLX.eval(array, device: Array.device(array))
    key = Array.to_device(Ops.random_key(1), Golden.device())
    [key, key, key | arrays ++ views]
  end
end
