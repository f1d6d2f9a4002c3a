defmodule EMLX.Backend.CallbacksTest do
  # Not async: tracing of calls applies to the whole VM.
  use EMLX.NxCase, async: false

  # Returns the functions of `module` that this process calls during `fun`, each with its caller's module and name.
  defp calls(module, fun) do
    :erlang.trace_pattern({module, :_, :_}, [{:_, [], [{:message, {:caller}}]}], [])
    tracer = spawn_link(fn -> collect(MapSet.new()) end)
    :erlang.trace(self(), true, [:call, {:tracer, tracer}])

    try do
      fun.()
    after
      :erlang.trace(self(), false, [:call])
      :erlang.trace_pattern({module, :_, :_}, false, [])
    end

    reference = :erlang.trace_delivered(self())
    assert_receive {:trace_delivered, _, ^reference}, 10_000
    send(tracer, {:calls, self()})
    assert_receive {:calls, calls}, 10_000
    calls
  end

  defp collect(calls) do
    receive do
      {:trace, _, :call, {_module, name, arguments}, caller} ->
        caller = if is_tuple(caller), do: Tuple.delete_at(caller, 2)
        collect(MapSet.put(calls, {{name, length(arguments)}, caller}))

      {:calls, pid} ->
        send(pid, {:calls, calls})
    end
  end

  @unary [
           :abs,
           :acos,
           :acosh,
           :asin,
           :asinh,
           :atan,
           :atanh,
           :cbrt,
           :ceil,
           :conjugate,
           :cos,
           :cosh,
           :erf,
           :erf_inv,
           :erfc
         ] ++
           [:exp, :expm1, :floor, :imag, :is_infinity, :is_nan, :log, :log1p, :negate, :round, :rsqrt, :sigmoid] ++
           [:sign, :sin, :sinh, :sqrt, :tan, :tanh] ++
           [
             :all,
             :any,
             :argmax,
             :argmin,
             :argsort,
             :fft,
             :ifft,
             :product,
             :reduce_max,
             :reduce_min,
             :sort,
             :sum,
             :transpose
           ]

  @binary [:add, :atan2, :divide, :equal, :greater, :greater_equal, :less, :less_equal, :logical_and, :logical_or] ++
            [:logical_xor, :max, :min, :multiply, :not_equal, :pow, :remainder, :subtract]

  @bits [:bitwise_and, :bitwise_or, :bitwise_xor, :left_shift, :right_shift, :quotient]

  # Calls every callback once, through a function of Nx.
  defp everything do
    Nx.default_backend(backend())
    t = Nx.tensor([[0.5, 0.25, 0.75], [0.1, 0.2, 0.3]])
    n = Nx.iota({2, 3}, type: :s32)
    square = Nx.add(Nx.eye(3), 1.0e-3)
    indices = Nx.tensor([[0, 1], [1, 2]])
    window = {1, 2}

    results =
      Enum.map(@unary, &apply(Nx, &1, [t])) ++
        Enum.map(@binary, &apply(Nx, &1, [t, Nx.reverse(t)])) ++
        Enum.map(@bits, &apply(Nx, &1, [n, Nx.add(n, 1)])) ++
        Enum.map([:bitwise_not, :population_count, :count_leading_zeros], &apply(Nx, &1, [n])) ++
        for(name <- [:window_max, :window_min, :window_product, :window_sum], do: apply(Nx, name, [t, window])) ++
        for(
          name <- [:window_scatter_max, :window_scatter_min],
          do: apply(Nx, name, [t, t[[.., 0..1]], 0, window, []])
        ) ++
        [
          Nx.real(Nx.complex(t, t)),
          Nx.imag(Nx.complex(t, t)),
          Nx.as_type(t, :bf16),
          Nx.backend_copy(t, backend()),
          Nx.backend_transfer(t, backend()),
          Nx.bitcast(t, :s32),
          Nx.broadcast(t, {2, 2, 3}),
          Nx.clip(t, 0.2, 0.4),
          Nx.concatenate([t, t]),
          Nx.stack([t, t]),
          Nx.conv(Nx.reshape(t, {1, 1, 2, 3}), Nx.broadcast(1.0, {1, 1, 1, 1})),
          Nx.dot(t, [1], t, [1]),
          Nx.gather(t, indices),
          Nx.indexed_add(t, indices, Nx.tensor([1.0, 2.0])),
          Nx.indexed_put(t, indices, Nx.tensor([1.0, 2.0])),
          Nx.pad(t, 0.0, [{1, 0, 1}, {0, -1, 0}]),
          Nx.put_slice(t, [0, 1], Nx.tensor([[1.0]])),
          Nx.slice(t, [0, 1], [1, 2]),
          Nx.squeeze(Nx.new_axis(t, 0)),
          Nx.select(Nx.greater(t, 0.2), t, 0.0),
          Nx.reduce(t, 0.0, [axes: [1]], &Nx.add/2),
          Nx.window_reduce(t, 0.0, window, &Nx.add/2),
          Nx.LinAlg.triangular_solve(square, Nx.tensor([1.0, 2.0, 3.0])),
          Nx.block(%EMLX.TestBlock.Plain{}, [t], t, fn _, t -> Nx.add(t, t) end)
        ] ++ Enum.to_list(Nx.to_batched(t, 1))

    for result <- results do
      assert %EMLX.Backend{} = result.data
      Nx.to_binary(result)
    end

    pointer = Nx.to_pointer(t, mode: :local)
    assert Nx.to_flat_list(Nx.from_pointer(backend(), pointer, {:f, 32}, {2, 3})) == Nx.to_flat_list(t)
    inspect(t)
    Nx.backend_deallocate(Nx.add(t, 1))
  end

  test "EMLX.Backend exports every callback of Nx.Backend" do
    for {name, arity} <- Nx.Backend.behaviour_info(:callbacks),
        do: assert(function_exported?(EMLX.Backend, name, arity), "#{name}/#{arity}")
  end

  test "every callback of Nx.Backend runs on EMLX.Backend" do
    everything()
    called = EMLX.Backend |> calls(&everything/0) |> MapSet.new(&elem(&1, 0))
    assert Nx.Backend.behaviour_info(:callbacks) |> Enum.reject(&(&1 in called)) == []
  end

  # Nx folds constants of a traced function by itself, and passes them as tensors of the binary backend.
  defp of_nx_itself?({_call, {Nx.Defn.Expr, _}}), do: true
  defp of_nx_itself?({{:to_binary, 2}, {Nx, :to_number}}), do: true
  defp of_nx_itself?({{:to_binary, 2}, {EMLX.Backend, :to_array}}), do: true
  defp of_nx_itself?(_call), do: false

  test "every function of Nx runs without the binary backend" do
    assert Enum.to_list(calls(Nx.BinaryBackend, &everything/0)) == []
  end

  # c128 has its own callbacks.
  if EMLX.Golden.device() == :gpu, do: @tag(skip: "a GPU has no f64, of which c128 is made")

  test "functions of complex numbers of f64 run without the binary backend" do
    run = fn ->
      z = Nx.complex(Nx.tensor([[0.5, 0.25, 0.75], [0.1, 0.2, 0.3]], type: :f64), 0.5)
      types = [Nx.type(z), Nx.type(Nx.fft(Nx.real(z)))]
      indices = Nx.tensor([[0, 1], [1, 2]])
      real = [:erf, :erf_inv, :erfc, :ceil, :floor, :round, :argmax, :argmin, :argsort, :sort, :reduce_max, :reduce_min]

      results =
        Enum.map(@unary -- real, &apply(Nx, &1, [z])) ++
          Enum.map(
            [:add, :divide, :equal, :logical_and, :logical_xor, :multiply, :not_equal, :pow, :subtract],
            fn name ->
              apply(Nx, name, [z, Nx.reverse(z)])
            end
          ) ++
          for(name <- [:window_product, :window_sum], do: apply(Nx, name, [z, {1, 2}])) ++
          [
            Nx.iota({3}, type: :c128),
            Nx.eye(3, type: :c128),
            Nx.as_type(z, :f32),
            Nx.as_type(z, :c64),
            Nx.backend_copy(z, backend()),
            Nx.backend_transfer(z, backend()),
            Nx.broadcast(z, {2, 2, 3}),
            Nx.concatenate([z, z]),
            Nx.stack([z, z]),
            Nx.conv(Nx.reshape(z, {1, 1, 2, 3}), Nx.broadcast(1.0, {1, 1, 1, 1})),
            Nx.dot(z, [1], z, [1]),
            Nx.gather(z, indices),
            Nx.indexed_add(z, indices, Nx.tensor([1.0, 2.0])),
            Nx.indexed_put(z, indices, Nx.tensor([1.0, 2.0])),
            Nx.pad(z, 0.0, [{1, 0, 1}, {0, -1, 0}]),
            Nx.put_slice(z, [0, 1], Nx.tensor([[1.0]])),
            Nx.slice(z, [0, 1], [1, 2]),
            Nx.squeeze(Nx.new_axis(z, 0)),
            Nx.select(z, z, 0.0),
            Nx.reduce(z, 0.0, [axes: [1]], &Nx.add/2),
            Nx.window_reduce(z, 0.0, {1, 2}, &Nx.add/2),
            Nx.cumulative_product(z, axis: 1),
            Nx.LinAlg.triangular_solve(Nx.eye(3), z[0]),
            Nx.LinAlg.qr(z[[.., 0..1]]) |> elem(0),
            Nx.take(z, Nx.tensor([1, 0]), axis: 1)
          ] ++ Enum.to_list(Nx.to_batched(z, 1))

      for result <- results do
        assert %EMLX.Backend{} = result.data
        Nx.to_binary(result)
      end

      assert types == [{:c, 128}, {:c, 128}]
      inspect(z)
    end

    assert Nx.BinaryBackend |> calls(run) |> Enum.reject(&of_nx_itself?/1) == []
  end

  test "linear algebra and random numbers run without the binary backend" do
    run = fn ->
      a = Nx.add(Nx.iota({4, 4}, type: :f32), Nx.multiply(Nx.eye(4), 20))
      symmetric = Nx.add(a, Nx.transpose(a))
      definite = Nx.dot(a, Nx.transpose(a))

      for name <- [:qr, :lu, :svd, :determinant, :invert, :pinv, :norm, :matrix_rank, :adjoint],
          do: apply(Nx.LinAlg, name, [a])

      Nx.LinAlg.eigh(symmetric)
      Nx.LinAlg.cholesky(definite)
      Nx.LinAlg.solve(a, Nx.iota({4}))
      Nx.LinAlg.least_squares(a, Nx.iota({4}))
      Nx.LinAlg.matrix_power(a, 3)

      for name <- [
            :cumulative_sum,
            :cumulative_product,
            :cumulative_max,
            :cumulative_min,
            :median,
            :variance,
            :mean,
            :mode
          ],
          do: apply(Nx, name, [a])

      {_, key} = Nx.Random.normal(Nx.Random.key(1), shape: {3})
      {_, key} = Nx.Random.uniform(key, shape: {3})
      {_, key} = Nx.Random.randint(key, 0, 9, shape: {3})
      {_, key} = Nx.Random.shuffle(key, a)
      {_, key} = Nx.Random.choice(key, a, samples: 2, replace: false)
      {_, _key} = Nx.Random.gumbel(key, shape: {3})
    end

    assert Nx.BinaryBackend |> calls(run) |> Enum.reject(&of_nx_itself?/1) == []
  end
end
