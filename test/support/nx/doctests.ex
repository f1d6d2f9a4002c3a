defmodule EMLX.Doctests do
  @moduledoc """
  Nx's own doctests on the backend under test, with the exceptions named.

  `run/2` defines the doctests of some modules. Those that `exceptions` names, as `{function, example}` with the number
  of the example within its function, are not run as they are: each becomes a test that the result differs from the
  printed one in its last digits only, or whatever else the exception says that has to hold instead.
  """

  import ExUnit.Assertions

  @doc """
  Defines the doctests of `modules` in the calling test case, and tests in the place of the exceptions. An exception is
  `{function, example} => {reason, check}`, where `check` is `:digits`, `{:digits, relative tolerance}` or the name of a
  function of the calling module that takes the result of calling the doctest: `:passed` or the error.

  On the GPU an example that needs f64 passes when that is refused.
  """
  defmacro run(modules, exceptions) do
    quote do
      for module <- unquote(modules) do
        # Each module in a scope of its own: doctest/1 takes an alias or a variable.
        doctest(module)
      end

      EMLX.Doctests.name_exceptions(__MODULE__, unquote(exceptions))
      unquote(functions_on_gpu())
    end
  end

  defp functions_on_gpu do
    quote unquote: false do
      for {name, example} <- @on_gpu do
        def unquote(name)(context), do: EMLX.Doctests.unless_refused(fn -> unquote(example)(context) end)
      end
    end
  end

  @doc false
  def name_exceptions(module, exceptions) do
    tests = Module.get_attribute(module, :ex_unit_tests)
    {doctests, others} = Enum.split_with(tests, &(&1.tags.test_type == :doctest))

    numbered =
      for {_function, group} <- Enum.group_by(doctests, &function/1),
          {test, number} <- group |> Enum.sort_by(&index/1) |> Enum.with_index(1) do
        {test, {function(test), number}}
      end

    kept =
      for {test, key} <- numbered do
        case exceptions do
          %{^key => {reason, _check}} -> %{test | tags: Map.put(test.tags, :skip, reason)}
          %{} -> test
        end
      end

    {kept, on_gpu} = on_gpu(kept, EMLX.Golden.device())
    found = for {test, key} <- numbered, is_map_key(exceptions, key), into: %{}, do: {key, test.name}
    Module.delete_attribute(module, :ex_unit_tests)
    Module.register_attribute(module, :ex_unit_tests, accumulate: true)

    for test <- Enum.reverse(others) ++ Enum.sort_by(kept, &index/1),
        do: Module.put_attribute(module, :ex_unit_tests, test)

    Module.put_attribute(module, :doctests, length(doctests))
    Module.put_attribute(module, :found, found)
    Module.put_attribute(module, :on_gpu, on_gpu)
  end

  # The tests under names of functions that are to call theirs.
  defp on_gpu(tests, :cpu), do: {tests, []}

  defp on_gpu(tests, :gpu) do
    names = for test <- tests, do: {:"#{test.name}, or f64 refused", test.name}
    {for({test, {name, _}} <- Enum.zip(tests, names), do: %{test | name: name}), names}
  end

  @doc "Calls a doctest, which may end with the GPU's refusal of f64."
  def unless_refused(example) do
    example.()
  rescue
    error -> if EMLX.NxCase.refuses_f64?(error), do: :ok, else: reraise(error, __STACKTRACE__)
  end

  # "doctest Nx.exp/1 (444)" is an example of Nx.exp/1.
  defp function(%{name: name}) do
    [_, function] = Regex.run(~r/^doctest (.+) \(\d+\)$/, to_string(name))
    function
  end

  defp index(%{name: name}) do
    [_, index | _] = Regex.run(~r/\((\d+)\)(, or f64 refused)?$/, to_string(name))
    String.to_integer(index)
  end

  @doc "Runs a doctest; gives :passed or its error."
  def outcome(module, name) do
    apply(module, name, [%{}])
    :passed
  rescue
    error -> error
  end

  @doc """
  Asserts that a doctest prints what it should but for digits within a relative tolerance, or that it passes, or that
  the GPU refuses its f64.
  """
  def assert_digits(:passed, _rtol), do: :ok

  def assert_digits(%ExUnit.AssertionError{left: left, right: right}, rtol) when is_binary(left) and is_binary(right) do
    # What is not a number has to be the same.
    assert Regex.split(number(), left) == Regex.split(number(), right)

    [left, right] =
      for text <- [left, right], do: Enum.map(Regex.scan(number(), text), fn [n] -> Float.parse(n) |> elem(0) end)

    size = right |> Enum.map(&abs/1) |> Enum.max()

    for {a, b} <- Enum.zip(left, right) do
      assert abs(a - b) <= rtol * max(size, 1.0e-30), "#{a} is not #{b} within #{rtol} of the largest number, #{size}"
    end
  end

  def assert_digits(error, _rtol), do: if(EMLX.NxCase.refuses_f64?(error), do: :ok, else: raise(error))

  defp number, do: ~r/-?\d+\.\d+(?:e-?\d+)?/
end
