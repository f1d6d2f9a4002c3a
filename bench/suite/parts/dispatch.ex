defmodule EMLX.Bench.Parts.Dispatch do
  @moduledoc """
  What it costs to have something done, with next to nothing to do: an eager operation, a program of 1, 100 and 1,000
  instructions, a scalar read; against the same in Python MLX.
  """

  use EMLX.Bench.Part,
    about: "an eager operation, a program's run, a scalar read, against Python MLX"

  alias EMLX.{Array, Ops, Program}
  alias EMLX.Bench.{Measure, Peer}

  @impl true
  def groups(context) do
    one = Array.scalar(1.0, :f32, device: context.device)
    EMLX.eval(one)
    add = &Ops.add/2

    [{"eager addition", fn -> building(context, "an eager addition, node built", one, add) end}] ++
      if context.nx? do
        [
          {"Nx.add",
           fn ->
             Nx.default_backend({EMLX.Backend, device: context.device})
             one = Nx.tensor(1.0)
             building(context, "an eager Nx.add, node built", one, &Nx.add/2)
           end}
        ]
      else
        []
      end ++
      [{"eager addition, computed", fn -> eager(context, one) end}] ++
      for(count <- [1, 100, 1_000], do: {"program of #{count}", fn -> program(context, one, count) end}) ++
      for(
        count <- [1, 100, 1_000],
        fused?(context),
        do: {"fused program of #{count}", fn -> fused(context, one, count) end}
      ) ++
      [{"reading", fn -> reading(context, one) end}]
  end

  # Computing what was built is not this one's time, but it is done.
  defp building(context, label, one, add) do
    count = if context.quick?, do: 2_000, else: 20_000

    here = fn ->
      :erlang.garbage_collect()
      start = System.monotonic_time(:nanosecond)
      last = Enum.reduce(1..count, one, fn _, sum -> add.(sum, one) end)
      time = System.monotonic_time(:nanosecond) - start
      EMLX.eval(array(last))
      time / 1000 / count
    end

    compared(context, label, here, :building, count: count)
  end

  defp array(%Array{} = array), do: array
  defp array(tensor), do: EMLX.Backend.to_array(tensor)

  defp eager(context, one) do
    run = fn -> EMLX.eval(Ops.add(one, one)) end
    repeated(context, "an eager addition, computed", run, :chain, count: 1, compiled: false)
  end

  defp program(context, one, count) do
    run = run(one, count, false, context)
    repeated(context, "a program of #{count}, computed", run, :chain, count: count, compiled: false)
  end

  defp fused(context, one, count) do
    run = run(one, count, true, context)
    repeated(context, "a program of #{count}, fuse: true, computed", run, :chain, count: count, compiled: true)
  end

  defp run(one, count, fuse?, context) do
    additions = for i <- 0..(count - 1), do: {:add, [if(i == 0, do: 0, else: i + 1), 1], 1}
    program = Program.new(2, additions, [count + 1], fuse: fuse?)
    fn -> EMLX.eval(Program.run(program, [one, one], device: context.device)) end
  end

  # MLX's compiler for the CPU needs one of C++.
  defp fused?(context), do: context.device == :gpu or System.find_executable("g++") != nil

  defp reading(context, one) do
    run = fn -> Array.to_binary(one) end
    repeated(context, "a scalar read that is computed", run, :reading, [])
  end

  # As many runs as take some milliseconds, one after another.
  defp repeated(context, label, run, kind, options) do
    links = Measure.links(run)
    here = fn -> Measure.time(fn -> for(_ <- 1..links, do: run.()) end) / links end
    compared(context, label, here, kind, [links: links] ++ options)
  end

  defp compared(context, label, here, kind, options) do
    peer = context.peers[:mlx]
    number = peer && Peer.define(peer, kind, options)
    python = if peer, do: [{"Python MLX", fn -> Peer.time(peer, number) end}], else: []

    %Group{
      sides: [{"EMLX", here} | python],
      rows: [{label, "EMLX", ["Python MLX"]}],
      tidy: fn -> if peer, do: Peer.drop(peer, number) end
    }
  end
end
