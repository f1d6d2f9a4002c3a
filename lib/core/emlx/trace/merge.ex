defmodule EMLX.Trace.Merge do
  @moduledoc false
  # Where a program computes a few rows, as a model does for each token that it generates, launching kernels takes longer than running
  # them. Here runs of operations become one that the GPU has a kernel for (native/src/op/fused.rs): products of one input, with
  # the norm before them and the gate or the sum after them (`:products`, `:quantized_products`); the norm, the rotation and the
  # repetition of heads (`:rope_heads`); attention of one position on a cache, as both lie (`:cache_attention`). All but the last round where
  # the operations that they stand for round. EMLX.Trace.Passes calls it.

  alias EMLX.Trace.{Block, Passes}

  # As in native/src/op/cuda/decode.rs.
  @rows 4
  @floats [:f32, :f16, :bf16]
  @products [:products, :quantized_products]

  @doc "The block with what can be merged in it and in the blocks inside. `types` has `{shape, dtype}` of its values."
  def run(%{instructions: instructions} = block, types) do
    instructions =
      Enum.map(instructions, fn
        {{name, blocks}, inputs, outputs, label} when name in [:if, :while] ->
          {{name, Block.within(blocks, &run(&1, types))}, inputs, outputs, label}

        instruction ->
          instruction
      end)

    # What came of one step is looked at anew in the next.
    Enum.reduce(
      [&gates/1, &sums/1, &products/1, &heads/1, &attention/1],
      %{block | instructions: instructions},
      fn step, block ->
        block = changed(block, step.(known(block, types)))
        Passes.live(block, block.results)
      end
    )
  end

  # Changes are `{position, instruction}`: it comes instead of those that define the same values, and before the one at the position.
  defp changed(block, []), do: block

  defp changed(block, changes) do
    defined = for {_at, {_, _, outputs, _}} <- changes, value <- outputs, into: MapSet.new(), do: value
    changes = Enum.group_by(changes, &elem(&1, 0), &elem(&1, 1))

    instructions =
      for {{_, _, outputs, _} = instruction, at} <- Enum.with_index(block.instructions),
          new <- Map.get(changes, at, []) ++ [instruction],
          new != instruction or not Enum.any?(outputs, &MapSet.member?(defined, &1)),
          do: new

    %{block | instructions: instructions}
  end

  # What defines a value of the block and what uses it, with positions; `:result` is one, too.
  defp known(block, types) do
    indexed = Enum.with_index(block.instructions)

    definitions =
      for {{op, inputs, outputs, _label}, at} <- indexed, value <- outputs, into: %{} do
        {value, %{op: op, inputs: inputs, outputs: outputs, at: at}}
      end

    users =
      for({instruction, at} <- indexed, value <- taken(instruction), do: {value, at})
      |> Enum.group_by(&elem(&1, 0), &elem(&1, 1))

    users = Enum.reduce(block.results, users, &Map.update(&2, &1, [:result], fn list -> [:result | list] end))
    instructions = block.instructions |> List.to_tuple()
    %{definitions: definitions, users: users, instructions: instructions, types: types}
  end

  defp taken({op, inputs, _, _}), do: Enum.reject(inputs, &is_nil/1) ++ inside(op)

  # Blocks inside count as users of all that they name.
  defp inside({name, blocks}) when name in [:if, :while],
    do: Enum.flat_map(blocks, fn {_, block} -> block.results ++ Enum.flat_map(block.instructions, &taken/1) end)

  defp inside(_op), do: []

  # ---- products ----

  # silu(x·gate) * (x·up)
  defp gates(known) do
    changes(known, fn {op, inputs, [output], _label}, at ->
      with true <- op == :multiply,
           [p, q] <- inputs,
           {:ok, gate, up} <- either(p, q, &silu(known, &1), &only(known, &1)),
           {:ok, gate} <- product(known, gate),
           {:ok, up} <- product(known, up),
           true <- {gate.x, gate.norm, gate.packing} == {up.x, up.norm, up.packing},
           true <- Enum.map(gate.matrix, &shape(known, &1)) == Enum.map(up.matrix, &shape(known, &1)),
           true <- shape(known, p) == shape(known, q) do
        merged(known, at, gate, nil, gate.matrix ++ up.matrix, true, output)
      end
    end)
  end

  # x·w + residual
  defp sums(known) do
    changes(known, fn {op, inputs, [output], _label}, at ->
      with true <- op == :add,
           [p, q] <- inputs,
           true <- p != q and shape(known, p) == shape(known, q) and dtype(known, p) == dtype(known, q),
           {:ok, product, residual} <-
             either(p, q, &with({:ok, value} <- only(known, &1), do: product(known, value)), &{:ok, &1}) do
        merged(known, at, product, residual, product.matrix, false, output)
      end
    end)
  end

  # The products that are left, up to three of one input together.
  defp products(known) do
    groups =
      for {at, {op, _, [output], _}} <- numbered(known), product?(op), {:ok, product} <- [product(known, output)] do
        {at, output, product}
      end
      |> Enum.group_by(fn {_at, _output, product} -> {product.x, product.norm, product.packing} end)

    for {{x, norm, packing}, products} <- groups,
        chunk <- products |> Enum.sort() |> Enum.chunk_every(3),
        [{at, _, _} | _] = chunk,
        matrices = Enum.flat_map(chunk, fn {_, _, product} -> product.matrix end),
        Enum.all?(matrices, &before?(known, &1, at)) do
      {weight, eps} = norm || {nil, nil}
      outputs = for {_, output, _} <- chunk, do: output
      {at, {op(packing, %{eps: eps, gated: false, shape: nil}), [x, weight, nil | matrices], outputs, nil}}
    end
  end

  defp merged(known, at, %{x: x, norm: norm, packing: packing}, residual, matrices, gated, output) do
    {weight, eps} = norm || {nil, nil}
    attributes = %{eps: eps, gated: gated, shape: known |> shape(output) |> Tuple.to_list()}
    {:ok, [{at, {op(packing, attributes), [x, weight, residual | matrices], [output], nil}}]}
  end

  defp op(nil, attributes), do: {:products, attributes}
  defp op(packing, attributes), do: {:quantized_products, Map.merge(attributes, packing)}

  defp product?(:matmul), do: true
  defp product?({:quantized_matmul, _}), do: true
  defp product?(_op), do: false

  # sigmoid(x) * x, used once; gives x.
  defp silu(known, value) do
    with %{op: :multiply, inputs: [p, q]} <- known.definitions[value],
         [_] <- known.users[value],
         {:ok, x, x} <- either(p, q, &sigmoid(known, &1), &{:ok, &1}),
         [_, _] <- known.users[x],
         do: {:ok, x},
         else: (_ -> :none)
  end

  defp sigmoid(known, value) do
    with %{op: :sigmoid, inputs: [x]} <- known.definitions[value],
         [_] <- known.users[value],
         do: {:ok, x},
         else: (_ -> :none)
  end

  defp only(known, value), do: if(match?([_], known.users[value]), do: {:ok, value}, else: :none)

  # A value that is, seen through reshapes, a product of few rows with a matrix: what it is a product of. Besides the uses of `value`
  # there are none. A matrix is a list of one array, or of three where it is quantized.
  defp product(known, value) do
    with %{op: op, inputs: [left | matrix], outputs: [output]} <- through(known, value),
         true <- output == value or match?([_], known.users[output]),
         {{rows, k}, dtype} when rows <= @rows and dtype in @floats <- known.types[left],
         {:ok, packing} <- packing(known, op, matrix, k, dtype) do
      {x, norm} = normed(known, left, k)
      {:ok, %{x: rows(known, x, rows, k), norm: norm, matrix: matrix, packing: packing}}
    else
      _ -> :none
    end
  end

  # How a matrix that fits `k` columns of x is packed; nil for one that is not.
  defp packing(known, :matmul, [matrix], k, dtype),
    do: if(match?({{^k, _columns}, ^dtype}, known.types[matrix]), do: {:ok, nil}, else: :none)

  defp packing(
         known,
         {:quantized_matmul, %{transpose: true, mode: :affine} = attributes},
         [words, scales, biases],
         k,
         dtype
       )
       when biases != nil do
    with %{bits: bits, group_size: group_size} when bits in [4, 8] and group_size in [32, 64, 128] <- attributes,
         true <- rem(k, group_size) == 0,
         [per_row, groups] = [div(k * bits, 32), div(k, group_size)],
         {{n, ^per_row}, :u32} <- known.types[words],
         {{^n, ^groups}, ^dtype} <- known.types[scales],
         {{^n, ^groups}, ^dtype} <- known.types[biases],
         do: {:ok, %{bits: bits, group_size: group_size}},
         else: (_ -> :none)
  end

  defp packing(_known, _op, _matrix, _k, _dtype), do: :none

  # Below a norm over the last axis: what is normed, and `{weight, eps}`.
  defp normed(known, value, k) do
    with %{op: {:rms_norm, %{eps: eps}}, inputs: [x, weight], outputs: [output]} when weight != nil <-
           through(known, value),
         {shape, dtype} <- known.types[output],
         true <- elem(shape, tuple_size(shape) - 1) == k,
         {{^k}, ^dtype} <- known.types[weight],
         {_, ^dtype} <- known.types[x] do
      {x, {weight, eps}}
    else
      _ -> {value, nil}
    end
  end

  # The same rows before they were reshaped, where they lay one after the other there too.
  defp rows(known, value, rows, k) do
    with %{op: {:reshape, _}, inputs: [source]} <- known.definitions[value],
         [^k | before] <- known |> shape(source) |> Tuple.to_list() |> Enum.reverse(),
         true <- before |> Enum.drop(1) |> Enum.all?(&(&1 == 1)) and Enum.at(before, 0, 1) == rows,
         do: rows(known, source, rows, k),
         else: (_ -> value)
  end

  # What defines a value, seen through reshapes.
  defp through(known, value) do
    case known.definitions[value] do
      %{op: {:reshape, _}, inputs: [source]} -> through(known, source)
      definition -> definition
    end
  end

  # ---- heads ----

  # Of three products of one input: two whose heads are turned alike, queries and keys, and one whose heads are not, values; those of
  # keys and values are each repeated.
  defp heads(known) do
    changes(known, fn
      {{name, %{gated: false, shape: nil}}, [x | _], [_, _, _] = outputs, _label}, at when name in @products ->
        {_, dtype} = known.types[x]

        with {:ok, chains} <- all(outputs, &chain(known, &1)),
             {[first, second], [v]} <- Enum.split_with(chains, & &1.rope),
             true <- first.rope == second.rope,
             {q, k} = if(first.repeat == 1, do: {first, second}, else: {second, first}),
             true <- q.repeat == 1 and k.repeat == v.repeat and k.size == v.size and q.norm == nil == (k.norm == nil),
             {offset, freqs, attributes} = q.rope,
             {q_weight, eps} = q.norm || {nil, nil},
             {k_weight, ^eps} <- k.norm || {nil, nil},
             true <- v.norm == nil and dtype in @floats,
             ends = [q, k, v],
             [lead] <- ends |> Enum.map(&lead(known, &1)) |> Enum.uniq(),
             true <- lead != nil,
             place = ends |> Enum.map(& &1.at) |> Enum.min(),
             true <- place > at,
             needed = [offset, freqs, q_weight, k_weight] |> Enum.reject(&is_nil/1),
             true <- Enum.all?(needed, &before?(known, &1, place)) do
          %{base: base, scale: scale} = attributes
          attributes = %{lead: lead, size: q.size, repeat: k.repeat, eps: eps, base: base, scale: scale}
          inputs = [q.value, k.value, v.value, offset, q_weight, k_weight, freqs]
          {:ok, [{place, {{:rope_heads, attributes}, inputs, Enum.map(ends, & &1.last), nil}}]}
        end

      _instruction, _at ->
        :none
    end)
  end

  # The axes before those of the heads and what they hold.
  defp lead(known, %{value: value, last: last, size: size, repeat: repeat}) do
    {rows, columns} = shape(known, value)
    heads = div(columns, size) * repeat

    case known |> shape(last) |> Tuple.to_list() |> Enum.reverse() do
      [^size, ^heads | lead] -> if Enum.product(lead) == rows, do: Enum.reverse(lead)
      _ -> nil
    end
  end

  # What becomes of a product, as far as it is reshapes, one norm, one rotation and one repetition that nothing else uses. The size of
  # heads that are not turned is that of the axis that they are reshaped to.
  defp chain(known, value),
    do: chain(known, value, %{value: value, last: value, at: -1, norm: nil, rope: nil, repeat: 1, size: nil})

  defp chain(known, value, found) do
    with [at] when is_integer(at) <- known.users[value],
         {op, inputs, [output], _label} <- elem(known.instructions, at),
         {:ok, found} <- link(known, op, inputs, value, output, found) do
      chain(known, output, %{found | last: output, at: at})
    else
      _ -> if found.size && found.at >= 0 && whole?(known, found), do: {:ok, found}, else: :none
    end
  end

  # Nothing may be missing of what a repetition comes to.
  defp whole?(known, found),
    do: Tuple.product(shape(known, found.last)) == Tuple.product(shape(known, found.value)) * found.repeat

  defp link(known, {:reshape, _}, [_], _value, output, found) do
    shape = shape(known, output)
    last = elem(shape, tuple_size(shape) - 1)
    # The first reshape to heads says how large they are.
    own = elem(shape(known, found.value), 1)
    {:ok, if(found.size == nil and last < own, do: %{found | size: last}, else: found)}
  end

  defp link(known, {:rms_norm, %{eps: eps}}, [value, weight], value, output, %{norm: nil, rope: nil, repeat: 1} = found)
       when weight != nil do
    shape = shape(known, output)
    size = elem(shape, tuple_size(shape) - 1)
    {_, dtype} = known.types[value]

    if found.size == size and known.types[weight] == {{size}, dtype},
      do: {:ok, %{found | norm: {weight, eps}}},
      else: :none
  end

  defp link(known, {:rope, %{traditional: false} = attributes}, [value, offset, freqs], value, _output, found)
       when found.rope == nil and found.repeat == 1 do
    {{rows, columns}, _} = known.types[found.value]

    with {{^rows, heads, 1, size}, _} <- known.types[value],
         true <- heads * size == columns and attributes.dims == size and found.size == size,
         {{^rows}, _} <- known.types[offset],
         do: {:ok, %{found | rope: {offset, freqs, attributes}}},
         else: (_ -> :none)
  end

  # One axis is repeated, between the heads and what they hold.
  defp link(known, {:broadcast_to, _}, [value], value, output, %{repeat: 1, size: size} = found) when size != nil do
    [from, to] = for value <- [value, output], do: value |> then(&shape(known, &1)) |> Tuple.to_list()

    with true <- length(from) == length(to),
         [{{1, repeat}, axis}] <-
           from |> Enum.zip(to) |> Enum.with_index() |> Enum.filter(fn {{a, b}, _} -> a != b end),
         true <- to |> Enum.drop(axis + 1) |> Enum.product() == size,
         do: {:ok, %{found | repeat: repeat}},
         else: (_ -> :none)
  end

  defp link(_known, _op, _inputs, _value, _output, _found), do: :none

  # ---- attention ----

  @by_head {:transpose, %{axes: [0, 2, 1, 3]}}

  # One query a head on keys and values that lie by position, as what comes out does.
  defp attention(known) do
    changes(known, fn
      {{:scaled_dot_product_attention, %{mask: mode, scale: scale}}, [q, k, v, mask, nil], [output], _label}, _at ->
        with {:ok, [q, k, v]} <- all([q, k, v], &by_place(known, &1)),
             {{_, 1, _, _}, dtype} when dtype in @floats <- known.types[q],
             {{_, length, _, _} = keys, ^dtype} <- known.types[k],
             {^keys, ^dtype} <- known.types[v],
             true <- mask(known, mode, mask, length),
             {:ok, output} <- user(known, output, &(&1 == @by_head)) do
          last =
            case user(known, output, &match?({:reshape, _}, &1)) do
              {:ok, reshaped} -> reshaped
              :none -> output
            end

          op = {:cache_attention, %{scale: scale, shape: known |> shape(last) |> Tuple.to_list()}}
          {:ok, [{known.definitions[last].at, {op, [q, k, v, mask], [last], nil}}]}
        end

      _instruction, _at ->
        :none
    end)
  end

  defp mask(_known, :none, nil, _length), do: true
  defp mask(known, :array, mask, length), do: match?({{_, _, 1, ^length}, :bool}, known.types[mask])
  defp mask(_known, _mode, _mask, _length), do: false

  defp by_place(known, value) do
    case known.definitions[value] do
      %{op: @by_head, inputs: [source]} -> {:ok, source}
      _ -> :none
    end
  end

  # What the only user of a value makes of it, if that is the right one.
  defp user(known, value, right?) do
    with [at] when is_integer(at) <- known.users[value],
         {op, [^value], [output], _label} <- elem(known.instructions, at),
         true <- right?.(op),
         do: {:ok, output},
         else: (_ -> :none)
  end

  # ---- what the steps share ----

  # What `fun` gives as `{:ok, changes}`; anything else is no change.
  defp changes(known, fun) do
    Enum.flat_map(numbered(known), fn {at, {op, _inputs, outputs, _label} = instruction} ->
      with true <- match?([_], outputs) or match?({name, _} when name in @products, op),
           {:ok, changes} <- fun.(instruction, at),
           do: changes,
           else: (_ -> [])
    end)
  end

  defp numbered(known), do: known.instructions |> Tuple.to_list() |> Enum.with_index(&{&2, &1})

  defp shape(known, value), do: known.types |> Map.fetch!(value) |> elem(0)
  defp dtype(known, value), do: known.types |> Map.fetch!(value) |> elem(1)

  # Whether a value is there before the instruction at a position.
  defp before?(known, value, at) do
    case known.definitions[value] do
      nil -> true
      definition -> definition.at < at
    end
  end

  # What the functions give of two values, in one order or the other.
  defp either(p, q, first, second) do
    with :none <- both(p, q, first, second), do: both(q, p, first, second)
  end

  defp both(p, q, first, second) do
    with {:ok, a} <- first.(p), {:ok, b} <- second.(q), do: {:ok, a, b}, else: (_ -> :none)
  end

  defp all(values, fun) do
    results = Enum.map(values, fun)
    if Enum.all?(results, &match?({:ok, _}, &1)), do: {:ok, Enum.map(results, &elem(&1, 1))}, else: :none
  end
end
