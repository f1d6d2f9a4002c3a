defmodule EMLX.ServingMemoryTest do
  # Not async: memory is counted for the whole VM.
  use EMLX.NxCase, async: false

  alias EMLX.Memory

  @moduletag :capture_log

  @mib 1024 * 1024
  @weights 16 * @mib
  @servings 5

  setup do
    {_, device} = backend()
    EMLX.clear_compiler_cache()
    %{opts: [compiler: EMLX] ++ device}
  end

  # The VM frees garbage at a time of its choice, so the condition is checked repeatedly, up to a limit.
  defp eventually(fun, attempts \\ 400) do
    Enum.each(Process.list(), &:erlang.garbage_collect/1)

    cond do
      fun.() ->
        true

      attempts == 0 ->
        false

      true ->
        Process.sleep(25)
        eventually(fun, attempts - 1)
    end
  end

  defp weights(n, backend) do
    bytes = :binary.copy(<<n::float-32-native>>, div(@weights, 4))
    Nx.from_binary(bytes, :f32, backend: backend)
  end

  # Ways to use weights in a serving's function. Nx accepts those of the device as arguments only, or copied.
  defp servings do
    %{
      "closes over weights of the binary backend" => fn n, opts ->
        w = weights(n, Nx.BinaryBackend)
        Nx.Serving.jit(fn x -> Nx.reduce_max(Nx.multiply(Nx.new_axis(x, -1), w), axes: [-1]) end, opts)
      end,
      "closes over weights that were read from the device" => fn n, opts ->
        w = n |> weights(backend()) |> Nx.add(0) |> Nx.backend_transfer(Nx.BinaryBackend)
        Nx.Serving.jit(fn x -> Nx.reduce_max(Nx.multiply(Nx.new_axis(x, -1), w), axes: [-1]) end, opts)
      end,
      "copies weights of the device into the function" => fn n, opts ->
        w = weights(n, backend())

        Nx.Serving.jit(
          fn x -> Nx.reduce_max(Nx.multiply(Nx.new_axis(x, -1), Nx.backend_copy(w, Nx.BinaryBackend)), axes: [-1]) end,
          opts
        )
      end,
      "gives weights of the device as arguments" => fn n, opts ->
        w = weights(n, backend())

        Nx.Serving.new(fn opts ->
          predict = Nx.Defn.jit(fn w, x -> Nx.reduce_max(Nx.multiply(Nx.new_axis(x, -1), w), axes: [-1]) end, opts)
          fn batch -> predict.(w, batch) end
        end)
        |> Nx.Serving.defn_options(opts)
      end,
      "is compiled beforehand" => fn n, opts ->
        w = weights(n, Nx.BinaryBackend)
        fun = fn x -> Nx.reduce_max(Nx.multiply(Nx.new_axis(x, -1), w), axes: [-1]) end
        template = Nx.template({1, 1}, :f32)
        Nx.Serving.new(fn opts -> Nx.Defn.compile(fun, [template], Keyword.delete(opts, :batch_keys)) end, opts)
      end
    }
  end

  # Starts a serving, sends it requests and stops it, all in a process that exits afterwards.
  defp serve(serving, n, opts) do
    Task.await(
      Task.async(fn ->
        name = :"#{__MODULE__}.#{n}"
        {:ok, pid} = Nx.Serving.start_link(name: name, serving: serving.(n, opts), batch_size: 1, batch_timeout: 1)
        batch = Nx.Batch.stack([Nx.tensor([2.0])])
        results = for _ <- 1..2, do: name |> Nx.Serving.batched_run(batch) |> Nx.to_flat_list()
        Supervisor.stop(pid)
        results
      end),
      :infinity
    )
  end

  for name <- [
        "closes over weights of the binary backend",
        "closes over weights that were read from the device",
        "copies weights of the device into the function",
        "gives weights of the device as arguments",
        "is compiled beforehand"
      ] do
    test "the memory of a stopped serving that #{name} is freed", %{opts: opts} do
      serving = Map.fetch!(servings(), unquote(name))
      # Allocates the memory that MLX and the VM allocate once.
      serve(serving, 1, opts)
      assert eventually(fn -> EMLX.compiler_cache().bytes < @mib end)
      before = Memory.active()
      binaries = :erlang.memory(:binary)

      for n <- 1..@servings do
        assert serve(serving, n, opts) == [[n * 2.0], [n * 2.0]]
      end

      assert eventually(fn -> Memory.active() < before + div(@weights, 2) end)
      assert eventually(fn -> :erlang.memory(:binary) < binaries + div(@weights, 2) end)
    end
  end

  test "a serving under a supervisor keeps its memory until its child specification is deleted", %{opts: opts} do
    before = Memory.active()
    {:ok, supervisor} = Supervisor.start_link([], strategy: :one_for_one)

    Task.await(
      Task.async(fn ->
        serving = Map.fetch!(servings(), "closes over weights of the binary backend").(7, opts)
        child = {Nx.Serving, serving: serving, name: __MODULE__.Supervised, batch_size: 1, batch_timeout: 1}
        {:ok, _pid} = Supervisor.start_child(supervisor, child)
        Nx.Serving.batched_run(__MODULE__.Supervised, Nx.Batch.stack([Nx.tensor([1.0])]))
      end)
    )

    :ok = Supervisor.terminate_child(supervisor, __MODULE__.Supervised)
    Enum.each(Process.list(), &:erlang.garbage_collect/1)
    assert EMLX.compiler_cache().entries == 1
    :ok = Supervisor.delete_child(supervisor, __MODULE__.Supervised)
    assert eventually(fn -> Memory.active() < before + div(@weights, 2) end)
    assert EMLX.compiler_cache().entries == 0
  end
end
