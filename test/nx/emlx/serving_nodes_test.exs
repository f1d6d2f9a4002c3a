# The code that the nodes of the test below run. It is sent to them.
{:module, helper, code, _} =
  defmodule EMLX.ServingNodes do
    @moduledoc false

    @name __MODULE__.Serving
    @workers 16
    @requests 40
    # The number of answers after which a node is killed.
    @killed_after 150

    def serve do
      {:ok, _} = Application.ensure_all_started(:emlx)
      fun = fn batch -> Nx.dot(batch, Nx.iota({3, 3}, type: :f32)) end

      serving =
        [compiler: EMLX, device: :cpu]
        |> then(&Nx.Serving.new(fn opts -> Nx.Defn.jit(fun, opts) end, &1))
        |> Nx.Serving.distributed_postprocessing(&{node(), Nx.backend_copy(&1, Nx.BinaryBackend)})

      {:ok, pid} = Nx.Serving.start_link(serving: serving, name: @name, batch_size: 4, batch_timeout: 2)
      # The caller exits after this call.
      Process.unlink(pid)
      System.pid()
    end

    def members, do: length(:pg.get_members(Nx.Serving.PG, @name))

    @doc """
    Sends many concurrent requests, and kills the operating-system process `victim` during them. Returns
    `{before or after the kill, outcome}` for each request.
    """
    def load(victim) do
      # Nx.Serving logs a warning for each request that the killed node does not answer.
      :logger.set_primary_config(:level, :error)
      answers = :counters.new(1, [])
      killed = :atomics.new(1, [])

      1..@workers
      |> Enum.map(fn worker ->
        Task.async(fn ->
          for request <- 1..@requests do
            phase = if :atomics.get(killed, 1) == 0, do: :before, else: :after
            outcome = request(worker, request)
            :counters.add(answers, 1, 1)

            if :counters.get(answers, 1) >= @killed_after and :atomics.exchange(killed, 1, 1) == 0,
              do: System.cmd("kill", ["-9", victim])

            {phase, outcome}
          end
        end)
      end)
      |> Task.await_many(60_000)
      |> Enum.concat()
    end

    @doc "Sends one request of one to three rows."
    def request(worker, request) do
      rows = rem(request, 3) + 1
      input = Nx.tensor(for(i <- 1..rows, j <- 0..2, do: worker * 100 + request + i - j)) |> Nx.reshape({rows, 3})

      try do
        {node, output} = Nx.Serving.batched_run(@name, Nx.Batch.concatenate([input]))
        if Nx.to_list(output) == expected(input), do: {:answered, node}, else: {:wrong, node, input, output}
      catch
        :exit, reason -> {:exit, reason}
      end
    end

    defp expected(input) do
      for [a, b, c] <- Nx.to_list(input), do: for(j <- 0..2, do: (a * j + b * (3 + j) + c * (6 + j)) * 1.0)
    end
  end

defmodule EMLX.ServingNodesTest do
  @moduledoc "One `Nx.Serving` on two nodes, called from a third one, with Nx's own distribution."
  use ExUnit.Case, async: true

  @helper {helper, code}

  # A node of a cluster, controlled through its standard input and output.
  defp start(cookie) do
    paths = Enum.flat_map(:code.get_path(), &[~c"-pa", &1])
    args = [~c"-setcookie", cookie, ~c"-connect_all", ~c"false"] ++ paths

    {:ok, peer, node} =
      :peer.start(%{
        name: :peer.random_name(),
        host: ~c"127.0.0.1",
        longnames: true,
        connection: :standard_io,
        args: args
      })

    on_exit(fn -> if Process.alive?(peer), do: :peer.stop(peer) end)
    {:ok, _} = :peer.call(peer, :application, :ensure_all_started, [:nx], 90_000)
    {helper, code} = @helper
    {:module, ^helper} = :peer.call(peer, :code, :load_binary, [helper, ~c"serving_nodes", code])
    {peer, node}
  end

  defp call(peer, function, arguments \\ []), do: :peer.call(peer, elem(@helper, 0), function, arguments, 90_000)

  defp wait_until(fun, tries \\ 200) do
    unless fun.() do
      assert tries > 0, "it did not come to pass in time"
      Process.sleep(50)
      wait_until(fun, tries - 1)
    end
  end

  test "when a node is killed under load, every request returns the right rows or exits" do
    cookie = ~c"emlx#{System.unique_integer([:positive])}#{System.pid()}"
    [{one, name_one}, {two, name_two}, {asker, _}] = for _ <- 1..3, do: start(cookie)
    call(one, :serve)
    victim = call(two, :serve)
    for node <- [name_one, name_two], do: assert(:peer.call(asker, Node, :connect, [node]) == true)
    wait_until(fn -> call(asker, :members) == 2 end)

    outcomes = call(asker, :load, [victim])
    assert length(outcomes) == 16 * 40

    # Both nodes answered before the kill. All requests before and after it have an outcome.
    assert Enum.sort(for({:answered, node} <- outcomes |> Keyword.values() |> Enum.uniq(), do: node)) ==
             Enum.sort([name_one, name_two])

    for {phase, outcome} <- outcomes do
      case outcome do
        {:answered, _node} -> :ok
        {:exit, {_reason, {Nx.Serving, :distributed_batched_run, _arguments}}} -> :ok
        other -> flunk("#{phase} the kill: #{inspect(other)}")
      end
    end

    assert Enum.any?(outcomes, &match?({:after, {:answered, ^name_one}}, &1))

    # The other node keeps running, alone.
    wait_until(fn -> call(asker, :members) == 1 end)
    for i <- 1..20, do: assert(call(asker, :request, [1, i]) == {:answered, name_one})
  end
end
