defmodule EMLX.NxCase do
  @moduledoc """
  Tests of the Nx tier: EMLX.Backend is the default backend, on the CPU or on the device that EMLX_TEST_DEVICE names.

  `same/3` runs a function under EMLX.Backend and under Nx.BinaryBackend and compares what comes out; `for_all/3` does
  something many times with random input (`EMLX.Random`) and names the seed where it fails.
  """

  use ExUnit.CaseTemplate

  alias Nx.Tensor, as: T

  using do
    quote do
      import EMLX.NxCase
    end
  end

  setup do
    Nx.default_backend(backend())
    :ok
  end

  @doc "The backend under test."
  def backend, do: {EMLX.Backend, device: EMLX.Golden.device()}

  # How far a result may be from the binary backend's, which computes in f64 and rounds once: relative to the larger of
  # the two, or absolutely.
  @tolerances %{
    {:f, 64} => {1.0e-13, 1.0e-13},
    {:f, 32} => {1.0e-5, 1.0e-6},
    {:bf, 16} => {2.0e-2, 1.0e-3},
    {:f, 16} => {2.0e-3, 1.0e-3},
    {:f, 8} => {0.51, 1.0e-3},
    {:f8_e4m3fn, 8} => {0.26, 2.0e-2},
    {:c, 64} => {1.0e-5, 1.0e-6},
    {:c, 128} => {1.0e-12, 1.0e-12}
  }

  @doc "The relative and the absolute tolerance of a type."
  def tolerance(type), do: Map.get(@tolerances, type, {0, 0})

  @doc """
  Asserts that `fun`, applied to `tensors` on the backend under test, gives what it gives on the binary backend, in
  shape, type, names and values. Where the binary backend fails there is nothing to compare, and the result is
  `:skipped`.

  The same is asserted of `fun` compiled with `compiler: EMLX`, unless `compiled: false` says that it reads values.

  Options: `:rtol`, `:atol` instead of the type's own.
  """
  def same(fun, tensors, opts \\ []) do
    case under(Nx.BinaryBackend, fun, tensors) do
      {:raised, {error, trace}} ->
        # What the binary backend itself cannot do says nothing; what Nx refuses has to be refused here too.
        if Enum.any?(trace, &match?({Nx.BinaryBackend, _, _, _}, &1)) do
          :skipped
        else
          assert {:raised, {actual, _trace}} = under(backend(), fun, tensors)
          assert Exception.message(actual) == Exception.message(error)
          :refused
        end

      expected ->
        case under(backend(), fun, tensors) do
          {:raised, {error, trace}} ->
            if refuses_f64?(error), do: :refused, else: reraise(error, trace)

          actual ->
            assert_same(actual, expected, opts)
            if Keyword.get(opts, :compiled, true), do: assert_same(compiled(fun, tensors), expected, opts)
            :ok
        end
    end
  end

  @doc "Whether an error is the GPU's, which has no f64 and says so."
  def refuses_f64?(%EMLX.Error{reason: reason}), do: refuses_f64?(reason)

  # An example that is to raise, and is refused before it does.
  def refuses_f64?(%ExUnit.AssertionError{message: "Doctest failed: expected exception" <> rest}),
    do: refuses_f64?(rest)

  def refuses_f64?(reason) when is_binary(reason),
    do: EMLX.Golden.device() == :gpu and reason =~ ~r/(f64|float64|c128) is not supported/

  def refuses_f64?(_error), do: false

  @doc "Calls a function with the binary backend as the default, for what is to be exact on every device."
  def exactly(fun), do: Nx.with_default_backend(Nx.BinaryBackend, fun)

  defp compiled(fun, tensors) do
    {_, device} = backend()
    {arguments, given} = Enum.split_with(Enum.with_index(tensors), &is_struct(elem(&1, 0), T))

    # What is not a tensor is no argument of a compiled function.
    {tensors, places} = Enum.unzip(arguments)

    call = fn tensors ->
      all = Enum.zip(Tuple.to_list(tensors), places) ++ given
      apply(fun, all |> Enum.sort_by(&elem(&1, 1)) |> Enum.map(&elem(&1, 0)))
    end

    tensors = tensors |> Enum.map(&to_backend(&1, backend())) |> List.to_tuple()
    Nx.Defn.jit_apply(call, [tensors], [compiler: EMLX, cache: false] ++ device)
  end

  defp under(backend, fun, tensors) do
    before = Nx.default_backend(backend)

    try do
      apply(fun, Enum.map(tensors, &to_backend(&1, backend)))
    rescue
      error -> {:raised, {error, __STACKTRACE__}}
    after
      Nx.default_backend(before)
    end
  end

  defp to_backend(%T{} = tensor, backend), do: Nx.backend_copy(tensor, backend)
  defp to_backend(other, _backend), do: other

  @doc "Asserts that two tensors, or two tuples, lists or maps of them, are the same up to the type's tolerance."
  def assert_same(actual, expected, opts \\ [])

  def assert_same(%T{} = actual, %T{} = expected, opts) do
    assert {actual.type, actual.shape, actual.names, actual.vectorized_axes} ==
             {expected.type, expected.shape, expected.names, expected.vectorized_axes}

    {rtol, atol} = tolerance(expected.type)
    rtol = Keyword.get(opts, :rtol, rtol)
    atol = Keyword.get(opts, :atol, atol)
    pairs = Enum.zip(numbers(actual), numbers(expected))

    case Enum.find_index(pairs, fn {a, b} -> not close?(a, b, rtol, atol) end) do
      nil ->
        :ok

      index ->
        {a, b} = Enum.at(pairs, index)

        flunk("""
        element #{index} is #{inspect(a)}, expected #{inspect(b)} (#{inspect(expected.type)}, relative tolerance #{rtol})

        #{inspect(Nx.backend_copy(actual, Nx.BinaryBackend))}
        #{inspect(Nx.backend_copy(expected, Nx.BinaryBackend))}
        """)
    end
  end

  def assert_same(actual, expected, opts) when is_tuple(expected) do
    assert tuple_size(actual) == tuple_size(expected)
    assert_same(Tuple.to_list(actual), Tuple.to_list(expected), opts)
  end

  def assert_same(actual, expected, opts) when is_list(expected) do
    assert length(actual) == length(expected)
    Enum.zip_with(actual, expected, &assert_same(&1, &2, opts))
    :ok
  end

  def assert_same(actual, expected, opts) when is_map(expected) and not is_struct(expected) do
    for {key, value} <- expected, do: assert_same(Map.fetch!(actual, key), value, opts)
    :ok
  end

  def assert_same(actual, expected, _opts) do
    assert actual == expected
    :ok
  end

  defp numbers(tensor), do: tensor |> Nx.backend_copy(Nx.BinaryBackend) |> Nx.devectorize() |> Nx.to_flat_list()

  defp close?(same, same, _rtol, _atol), do: true

  defp close?(%Complex{} = a, %Complex{} = b, rtol, atol) do
    # The error of one part is relative to the number, not to that part.
    size = Enum.max([0 | for(part <- [a.re, a.im, b.re, b.im], is_number(part), do: abs(part))])
    atol = atol + rtol * size
    close?(a.re, b.re, rtol, atol) and close?(a.im, b.im, rtol, atol)
  end

  defp close?(a, b, rtol, atol) when is_number(a) and is_number(b),
    do: a == b or abs(a - b) <= atol + rtol * max(abs(a), abs(b))

  defp close?(_a, _b, _rtol, _atol), do: false

  @doc """
  Calls `fun` `times` times, each with a random generator of its own. A failure names the seed that repeats it:
  `EMLX_SEED=<seed> mix test <file>:<line>` runs that one alone. `EMLX_TIMES=10` tries ten times as much. Each run of
  the tests draws other cases, except under continuous integration (`CI=true`), which must not fail by chance. Not more
  than half of the calls may end as `:skipped`.

  Where tests tagged `:slow` are left out, it is a third of `times`, rounded up, and skipped calls are not counted.
  """
  def for_all(times, name, fun) do
    seeds =
      case System.get_env("EMLX_SEED") do
        nil ->
          base = if System.get_env("CI"), do: 0, else: ExUnit.configuration()[:seed] || 0
          times = if few?(), do: div(times + 2, 3), else: times
          times = times * String.to_integer(System.get_env("EMLX_TIMES", "1"))
          for i <- 1..times, do: :erlang.phash2({base, name, i}, 1_000_000_000)

        seed ->
          [String.to_integer(seed)]
      end

    results =
      for seed <- seeds do
        :rand.seed(:exsss, {seed, seed, seed})

        try do
          fun.()
        rescue
          error ->
            IO.puts(:stderr, "\n#{inspect(name)} failed with EMLX_SEED=#{seed}")
            reraise(error, __STACKTRACE__)
        end
      end

    skipped = Enum.count(results, &(&1 == :skipped))

    if not few?() and skipped * 2 > length(results),
      do: flunk("#{skipped} of #{length(results)} calls had nothing to compare with")

    :ok
  end

  defp few? do
    config = ExUnit.configuration()
    :slow in config[:exclude] and :slow not in config[:include]
  end
end
