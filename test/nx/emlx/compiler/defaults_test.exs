defmodule EMLX.Compiler.DefaultsTest do
  # Not async: Nx's global defaults are shared by all processes.
  use EMLX.NxCase, async: false

  import Nx.Defn

  alias EMLX.TestBlock
  alias EMLX.TestBlock.{Odd, Peek}

  @moduletag :capture_log

  setup do
    {_, device} = backend()
    %{opts: [compiler: EMLX, cache: false] ++ device, device: device}
  end

  defn looped(x) do
    {x, _} =
      while {x, i = 0}, i < 3 do
        {if(i > 1, do: Nx.cos(x), else: Nx.sin(x)), i + 1}
      end

    x
  end

  defn(hooked(x), do: hook(x * 2, :hooked))

  defp odd(does), do: &TestBlock.double(%Odd{does: does}, &1)
  defp peek(how), do: &TestBlock.double(%Peek{how: how}, &1)
  defp read(x), do: Nx.multiply(x, Nx.to_number(Nx.sum(x)))

  # Ways to trace a function, and the outcome of each one: `:ok`, or the kind and the reason of the exception.
  @ways [
    jit: :ok,
    kept: :ok,
    compile: :ok,
    program: :ok,
    loop: :ok,
    reduce: :ok,
    reduce_in_order: :ok,
    inner_jit: :ok,
    block: :ok,
    block_that_jits: :ok,
    hook: :ok,
    evaluate: :ok,
    untraceable: :error,
    raise: :error,
    throw: :throw,
    exit: :exit,
    raise_in_program: :error,
    raise_in_block: :error,
    raise_in_composed: :error,
    throw_in_block: :throw,
    exit_in_block: :exit,
    throw_in_reduce: :throw,
    raise_in_hook: :error
  ]

  defp way(name, x, opts) do
    jit = &Nx.Defn.jit_apply(&1, [x], opts)

    case name do
      :jit -> jit.(&Nx.exp/1)
      :kept -> Nx.Defn.jit_apply(&Nx.exp/1, [x], Keyword.delete(opts, :cache))
      :compile -> Nx.Defn.compile(&Nx.exp/1, [x], opts).(x)
      :program -> EMLX.compile_to_program(&Nx.exp/1, [Nx.template({2}, :f32)], Keyword.take(opts, [:device]))
      :loop -> jit.(&looped/1)
      :reduce -> jit.(fn x -> Nx.reduce(x, 0.0, fn a, b -> Nx.add(a, b) end) end)
      :reduce_in_order -> jit.(fn x -> Nx.reduce(x, 0.0, fn a, b -> Nx.sum(Nx.stack([a, b])) end) end)
      :inner_jit -> jit.(fn x -> Nx.Defn.jit_apply(&Nx.exp/1, [x], [on_conflict: :reuse] ++ opts) end)
      :block -> jit.(odd(:nested_decline))
      :block_that_jits -> jit.(peek(:jits))
      :hook -> Nx.Defn.jit_apply(&hooked/1, [x], [hooks: %{hooked: &Nx.to_binary/1}] ++ opts)
      :evaluate -> Nx.Defn.jit_apply(peek(&read/1), [x], [on_unsupported: :evaluate] ++ opts)
      :untraceable -> jit.(peek(&read/1))
      :raise -> jit.(fn _ -> raise "in the function" end)
      :throw -> jit.(fn _ -> throw(:in_the_function) end)
      :exit -> jit.(fn _ -> exit(:in_the_function) end)
      :raise_in_program -> EMLX.compile_to_program(odd(:raise), [x], Keyword.take(opts, [:device]))
      :raise_in_block -> jit.(odd(:raise))
      :raise_in_composed -> jit.(odd(:raise_in_composed))
      :throw_in_block -> jit.(peek(fn _ -> throw(:in_the_block) end))
      :exit_in_block -> jit.(peek(fn _ -> exit(:in_the_block) end))
      :throw_in_reduce -> jit.(fn x -> Nx.reduce(x, 0.0, fn _, _ -> throw(:in_the_function) end) end)
      :raise_in_hook -> Nx.Defn.jit_apply(&hooked/1, [x], [hooks: %{hooked: fn _ -> raise "in the hook" end}] ++ opts)
    end
  end

  # The outcome of `way` in a separate process, and the process dictionary before and after.
  defp in_process(way, opts, before) do
    Task.await(
      Task.async(fn ->
        before.()
        x = Nx.tensor([1.0, 2.0], backend: backend())
        dictionary = Process.get()

        ended =
          try do
            way(way, x, opts)
            :ok
          catch
            kind, _reason -> kind
          end

        {ended, Enum.sort(dictionary), Enum.sort(Process.get())}
      end)
    )
  end

  for {way, ends} <- @ways do
    test "a trace by #{way} leaves the process dictionary as it was", %{opts: opts} do
      assert {unquote(ends), before, dictionary} = in_process(unquote(way), opts, fn -> :ok end)
      assert dictionary == before

      set = fn ->
        Nx.default_backend({Nx.BinaryBackend, []})
        Nx.Defn.default_options(compiler: Nx.Defn.Evaluator, max_concurrency: 1)
      end

      assert {unquote(ends), before, dictionary} = in_process(unquote(way), opts, set)
      assert dictionary == before
    end
  end

  test "a process that has compiled follows the global defaults", %{opts: opts, device: device} do
    backend = Nx.global_default_backend(Nx.BinaryBackend)
    options = Nx.Defn.global_default_options([])

    on_exit(fn ->
      Nx.global_default_backend(backend)
      Nx.Defn.global_default_options(options)
    end)

    task =
      Task.async(fn ->
        Nx.Defn.jit_apply(&Nx.exp/1, [1.0], opts)
        Nx.global_default_backend(backend())
        Nx.Defn.global_default_options([compiler: EMLX] ++ device)
        {Nx.default_backend(), Nx.Defn.default_options(), Nx.tensor([1.0])}
      end)

    assert {default, options, %Nx.Tensor{data: %EMLX.Backend{}}} = Task.await(task)
    assert default == backend()
    assert options == [compiler: EMLX] ++ device
  end

  test "a function inside a traced one sees EMLX's defaults", %{opts: opts, device: device} do
    me = self()

    note = fn x ->
      send(me, {Nx.default_backend(), Nx.Defn.default_options()})
      x
    end

    Task.await(Task.async(fn -> Nx.Defn.jit_apply(peek(note), [1.0], opts) end))
    assert_received {backend, options}
    assert backend == backend()
    assert Keyword.equal?(options, [compiler: EMLX] ++ device)
  end
end
