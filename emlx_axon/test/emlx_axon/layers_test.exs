defmodule EMLXAxon.LayersTest do
  # Rotary position embedding and attention, for which Axon has no layers, compared with their formulas element by
  # element.
  use EMLXAxon.Case

  alias Axon.Block.{RoPE, SDPA}
  alias EMLXAxon.Layers

  doctest EMLXAxon.Layers

  # A GPU has no f64.
  @paths [{{:bf, 16}, :fused}, {{:f, 16}, :fused}] ++
           if(System.get_env("EMLX_TEST_DEVICE") == "gpu", do: [], else: [{{:f, 64}, :composed}])

  # Runs a function of tensors eagerly and in each compiler on the backend under test, and composed on the binary
  # backend; all must return the expected values. The blocks of Axon take the path `path`.
  defp same(fun, tensors, expected, block, path \\ :fused, opts \\ []) do
    opts = if opts == [] and expected.type == {:f, 32}, do: [rtol: 1.0e-4, atol: 1.0e-5], else: opts
    assert_same(apply(fun, tensors), expected, opts)
    tensors = Enum.map(tensors, &copy(&1, backend()))

    for run <- [
          fn -> apply(fun, tensors) end
          | for(c <- compilers(), do: fn -> Nx.Defn.jit(fun, compiler: c, cache: false) |> apply(tensors) end)
        ] do
      {actual, dispatched} = record_blocks(run)
      assert_same(actual, expected, opts)
      assert Enum.map(dispatched, &{&1.block, &1.path}) == [{block, path}]
    end
  end

  defp to_nested(tensor), do: Nx.to_list(Nx.as_type(tensor, {:f, 64}))

  defp tensor(values, type), do: Nx.tensor(values, type: {:f, 64}, backend: Nx.BinaryBackend) |> Nx.as_type(type)

  describe "rope" do
    # x {batch, length, heads, size} as lists; position.(batch, row) and frequency.(pair) are functions.
    defp rotated(x, position, frequency, dims, traditional) do
      half = div(dims, 2)

      for {rows, b} <- Enum.with_index(to_nested(x)) do
        for {heads, t} <- Enum.with_index(rows) do
          for row <- heads do
            for {value, i} <- Enum.with_index(row) do
              if i >= dims do
                value
              else
                {pair, first?, other} =
                  if traditional,
                    do: {div(i, 2), rem(i, 2) == 0, if(rem(i, 2) == 0, do: i + 1, else: i - 1)},
                    else: {rem(i, half), i < half, rem(i + half, dims)}

                angle = position.(b, t) * frequency.(pair)
                turn = :math.sin(angle) * Enum.at(row, other)
                value * :math.cos(angle) + if(first?, do: -turn, else: turn)
              end
            end
          end
        end
      end
      |> tensor(x.type)
    end

    test "rope rotates at any positions" do
      x = random({2, 3, 2, 6})
      positions = Nx.tensor([[5, 0, 2], [7, 7, 100]], backend: Nx.BinaryBackend)
      at = fn b, t -> positions |> Nx.to_list() |> Enum.at(b) |> Enum.at(t) end

      for {opts, dims} <- [{[], 6}, {[dims: 4], 4}, {[traditional: true], 6}, {[base: 500, scale: 0.5, dims: 2], 2}] do
        {base, scale} = {opts[:base] || 10_000, opts[:scale] || 1}
        frequency = fn pair -> scale * :math.pow(base, -2 * pair / dims) end
        expected = rotated(x, at, frequency, dims, opts[:traditional] || false)
        same(&Layers.rope(&1, &2, opts), [x, positions], expected, RoPE)
      end
    end

    test "rope rotates at consecutive positions, and at positions shared by all rows of the batch" do
      x = random({2, 3, 2, 4})
      frequency = &:math.pow(10_000, -2 * &1 / 4)

      for {positions, at} <- [
            {[[4, 9, 1]], fn _b, t -> Enum.at([4, 9, 1], t) end},
            {11, fn _b, t -> 11 + t end},
            {[3, 20], fn b, t -> Enum.at([3, 20], b) + t end}
          ] do
        positions = Nx.tensor(positions, backend: Nx.BinaryBackend)
        same(&Layers.rope(&1, &2), [x, positions], rotated(x, at, frequency, 4, false), RoPE)
      end
    end

    test "rope rotates by given frequencies" do
      x = random({2, 3, 2, 6})
      freqs = Nx.tensor([1.0, 3.0, 100.0], backend: Nx.BinaryBackend)
      positions = Nx.tensor([[1, 2, 3], [6, 5, 4]], backend: Nx.BinaryBackend)
      at = fn b, t -> positions |> Nx.to_list() |> Enum.at(b) |> Enum.at(t) end
      expected = rotated(x, at, &(1 / Enum.at([1.0, 3.0, 100.0], &1)), 6, false)
      same(&Layers.rope(&1, &2, &3, []), [x, positions, freqs], expected, RoPE)
    end

    test "rope is fused in 16 bits, and composed in f64" do
      positions = Nx.tensor([[1, 2, 3]], backend: Nx.BinaryBackend)
      frequency = &:math.pow(10_000, -2 * &1 / 4)

      for {type, path} <- @paths do
        x = random({1, 3, 2, 4}, type)
        expected = rotated(x, fn _b, t -> t + 1 end, frequency, 4, false)
        opts = if type == {:f, 64}, do: [], else: [rtol: 2.0e-2, atol: 1.0e-2]
        same(&Layers.rope(&1, &2), [x, positions], expected, RoPE, path, opts)
      end
    end

    test "rope is an Axon layer with gradients" do
      model = Axon.layer(&Layers.rope/3, [Axon.input("x"), Axon.input("positions")], base: 100, name: "rope")

      input = %{
        "x" => random({2, 3, 2, 4}),
        "positions" => Nx.tensor([[0, 1, 2], [2, 1, 0]], backend: Nx.BinaryBackend)
      }

      assert_rewritten(model, Axon.ModelState.empty(), input, [{RoPE, :fused}])
      # A rotation keeps the squares, so that their gradient is 2x.
      grad = &Nx.Defn.grad(&1, fn x -> x |> Layers.rope(&2) |> then(fn y -> Nx.sum(Nx.multiply(y, y)) end) end)
      assert_same(grad.(input["x"], input["positions"]), Nx.multiply(input["x"], 2), rtol: 1.0e-4, atol: 1.0e-4)
    end

    test "rope refuses arguments that do not fit, and names them" do
      x = random({2, 3, 2, 6})

      for {arguments, message} <- [
            {[random({3, 6}), 0], "rope: x is {3, 6}, it must be {batch, length, heads, size}"},
            {[x, Nx.tensor([1, 2, 3])], ~r/rope: x is {2, 3, 2, 6}, positions is s32\[3\]: it must be integers {2, 3}/},
            {[x, Nx.tensor([[1.0, 2.0, 3.0]])], ~r/positions is f32\[1\]\[3\]: it must be integers/},
            {[x, 0, [dims: 5]], ~r/dims is 5: it must be even/},
            {[x, 0, [size: 5]], ~r/unknown keys \[:size\]/},
            {[x, 0, Nx.tensor([1.0]), []], ~r/dims is 6, freqs is f32\[1\]: it must be \{3\}/}
          ] do
        assert_raise ArgumentError, message, fn -> apply(Layers, :rope, arguments) end
      end
    end
  end

  describe "scaled_dot_product_attention" do
    # seen?.(query, key) and add.(batch, head, query, key) are functions.
    defp attended(q, k, v, scale, seen?, add) do
      group = div(Nx.axis_size(q, 2), Nx.axis_size(k, 2))
      [ks, vs] = Enum.map([k, v], &to_nested/1)
      dot = fn a, b -> Enum.zip_with(a, b, &(&1 * &2)) |> Enum.sum() end

      for {rows, b} <- Enum.with_index(to_nested(q)) do
        for {heads, i} <- Enum.with_index(rows) do
          for {row, h} <- Enum.with_index(heads) do
            {keys, values} = {Enum.at(ks, b), Enum.at(vs, b)}
            seen = for j <- 0..(length(keys) - 1), seen?.(i, j), do: j
            # A query without any key attends to all keys equally.
            {seen, equal} = if seen == [], do: {Enum.to_list(0..(length(keys) - 1)), 0}, else: {seen, 1}

            powers =
              for j <- seen do
                score = scale * dot.(row, keys |> Enum.at(j) |> Enum.at(div(h, group)))
                :math.exp(equal * (score + add.(b, h, i, j)))
              end

            for d <- 0..(Nx.axis_size(v, 3) - 1) do
              Enum.zip_with(powers, seen, fn power, j ->
                power * (values |> Enum.at(j) |> Enum.at(div(h, group)) |> Enum.at(d))
              end)
              |> Enum.sum()
              |> Kernel./(Enum.sum(powers))
            end
          end
        end
      end
      |> tensor(q.type)
    end

    defp none(_b, _h, _i, _j), do: 0
    defp all(_i, _j), do: true

    test "attention takes grouped heads, values of another size than the keys', and a scale" do
      {q, k, v} = {random({2, 3, 4, 6}), random({2, 5, 2, 6}), random({2, 5, 2, 3})}

      for {opts, scale} <- [{[], 1 / :math.sqrt(6)}, {[scale: 0.3], 0.3}] do
        same(
          &Layers.scaled_dot_product_attention(&1, &2, &3, opts),
          [q, k, v],
          attended(q, k, v, scale, &all/2, &none/4),
          SDPA
        )
      end
    end

    test "attention is causal, within a window, and at an offset" do
      for {queries, keys} <- [{4, 4}, {2, 5}, {5, 3}] do
        {q, k, v} = {random({1, queries, 2, 4}), random({1, keys, 2, 4}), random({1, keys, 2, 4})}

        for offset <- [nil, 0, 2],
            {opts, seen?} <- [
              {[causal: true], &(&2 <= &1)},
              {[window: {1, 1}], &(abs(&1 - &2) <= 1)},
              {[window: {0, 2}], &((&2 - &1) in 0..2)},
              {[causal: true, window: {1, 3}], &((&1 - &2) in 0..1)}
            ] do
          from = offset || 0
          expected = attended(q, k, v, 0.5, fn i, j -> seen?.(i + from, j) end, &none/4)

          if offset do
            offset = Nx.tensor(offset, backend: Nx.BinaryBackend)
            same(&Layers.scaled_dot_product_attention(&1, &2, &3, nil, &4, opts), [q, k, v, offset], expected, SDPA)
          else
            same(&Layers.scaled_dot_product_attention(&1, &2, &3, opts), [q, k, v], expected, SDPA)
          end
        end
      end
    end

    test "attention takes boolean and additive masks" do
      {q, k, v} = {random({2, 3, 2, 4}), random({2, 4, 2, 4}), random({2, 4, 2, 4})}
      bits = Nx.tensor([[1, 1, 0, 1], [0, 1, 1, 0], [1, 0, 1, 1]], type: {:u, 8}, backend: Nx.BinaryBackend)
      bit = fn i, j -> bits |> Nx.to_list() |> Enum.at(i) |> Enum.at(j) == 1 end
      added = random({2, 1, 3, 4})
      add = fn b, _h, i, j -> added |> Nx.to_list() |> Enum.at(b) |> hd() |> Enum.at(i) |> Enum.at(j) end
      attend = fn opts -> &Layers.scaled_dot_product_attention(&1, &2, &3, &4, opts) end
      causal = &(&2 <= &1)

      same(attend.([]), [q, k, v, bits], attended(q, k, v, 0.5, bit, &none/4), SDPA)
      same(attend.(causal: true), [q, k, v, bits], attended(q, k, v, 0.5, &(bit.(&1, &2) and &2 <= &1), &none/4), SDPA)
      same(attend.([]), [q, k, v, added], attended(q, k, v, 0.5, &all/2, add), SDPA)
      same(attend.(causal: true), [q, k, v, added], attended(q, k, v, 0.5, causal, add), SDPA)

      half = Nx.as_type(added, {:f, 16})
      add = fn b, _h, i, j -> half |> Nx.to_list() |> Enum.at(b) |> hd() |> Enum.at(i) |> Enum.at(j) end
      same(attend.(window: {0, 0}, causal: true), [q, k, v, half], attended(q, k, v, 0.5, &(&1 == &2), add), SDPA)
    end

    test "a query without any key returns the mean of the values" do
      {q, k, v} = {random({1, 2, 1, 4}), random({1, 3, 1, 4}), random({1, 3, 1, 4})}
      offset = Nx.tensor(5, backend: Nx.BinaryBackend)
      expected = attended(q, k, v, 0.5, fn _, _ -> false end, &none/4)

      for mask <- [nil, random({2, 3}), random({2, 3}, {:f, 16}), random({2, 3}, {:bf, 16})] do
        attend = &Layers.scaled_dot_product_attention(&1, &2, &3, &4, &5, window: {0, 0})

        if mask,
          do: same(attend, [q, k, v, mask, offset], expected, SDPA),
          else: same(&attend.(&1, &2, &3, nil, &4), [q, k, v, offset], expected, SDPA)
      end
    end

    test "attention is fused in 16 bits, and composed in f64" do
      for {type, path} <- @paths do
        {q, k, v} = {random({1, 3, 2, 4}, type), random({1, 3, 2, 4}, type), random({1, 3, 2, 4}, type)}
        expected = attended(q, k, v, 0.5, &(&2 <= &1), &none/4)
        opts = if type == {:f, 64}, do: [], else: [rtol: 3.0e-2, atol: 3.0e-2]
        same(&Layers.scaled_dot_product_attention(&1, &2, &3, causal: true), [q, k, v], expected, SDPA, path, opts)
      end
    end

    test "attention is an Axon layer with an optional mask and gradients" do
      inputs = [Axon.input("q"), Axon.input("kv"), Axon.input("kv"), Axon.optional(Axon.input("mask", optional: true))]
      model = Axon.layer(&Layers.scaled_dot_product_attention/5, inputs, causal: true)
      input = %{"q" => random({2, 3, 2, 4}), "kv" => random({2, 3, 2, 4})}
      assert_rewritten(model, Axon.ModelState.empty(), input, [{SDPA, :fused}], rtol: 1.0e-4, atol: 1.0e-4)

      # The weights add up to 1, so adding a constant to all values adds it to the result.
      gradient =
        Nx.Defn.grad(input["kv"], fn v -> Nx.sum(Layers.scaled_dot_product_attention(input["q"], input["kv"], v)) end)

      assert_same(Nx.sum(gradient, axes: [1]), Nx.broadcast(Nx.tensor(3.0), {2, 2, 4}), rtol: 1.0e-4)
    end

    test "attention refuses arguments that do not fit, and names them" do
      x = random({2, 3, 2, 4})

      for {arguments, message} <- [
            {[random({3, 4}), x, x],
             "scaled_dot_product_attention: q is {3, 4}, it must be {batch, length, heads, size}"},
            {[x, x, x, [window: 3]], ~r/:window must be nil or {left, right}/},
            {[x, x, x, nil, Nx.tensor(1.5), []], ~r/offset is f32, it must be an integer {}/},
            {[x, random({2, 3, 3, 4}), x], ~r/2 is not a multiple of 3/},
            {[x, x, x, random({5, 5}), []], ~r/the mask is {5, 5}, it does not broadcast/}
          ] do
        assert_raise ArgumentError, message, fn -> apply(Layers, :scaled_dot_product_attention, arguments) end
      end
    end
  end
end
