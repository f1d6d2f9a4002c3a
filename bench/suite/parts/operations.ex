defmodule EMLX.Bench.Parts.Operations do
  @moduledoc """
  About ninety operations of Nx on arrays of 1 thousand, 1 million and 16 million elements, eager and compiled: on the
  CPU against XLA (`jax.jit` of the same) and NumPy, on a GPU against PyTorch, eager and by way of `torch.compile`.

  On the CPU, a side's run computes the operation once and waits for it; small ones are repeated some times. On a GPU,
  some runs follow each other before there is a wait (*in flight*), and each is waited for (*alone*). Before anything is
  timed, the results are compared with XLA's or PyTorch's, but for random numbers.
  """

  use EMLX.Bench.Part,
    about: "operations of Nx, eager and compiled, against XLA and NumPy, on a GPU against PyTorch",
    needs: :nx,
    peers: [:xla, :numpy, :torch]

  @compile {:no_warn_undefined, [EMLX, EMLX.Bench.Operation, EMLX.Backend]}

  alias EMLX.Bench.{Inputs, Measure, Operation, Peer, Statistics}

  @impl true
  def groups(context) do
    for n <- sizes(context), {name, _, _} = operation <- Operation.all() do
      {"#{name}, #{text(n)}", fn -> group(context, operation, n) end}
    end
  end

  defp sizes(%{quick?: true, full?: false, device: device}), do: if(device == :cpu, do: [1024], else: [4096])
  defp sizes(_context), do: [32, 1024, 4096]

  defp text(32), do: "1 K"
  defp text(1024), do: "1 M"
  defp text(4096), do: "16 M"

  defp group(context, {name, names, function}, n) do
    Nx.default_backend({EMLX.Backend, device: context.device})
    inputs = Operation.inputs(n, Enum.uniq(names))
    file = Path.join(context.temporary, "operation.safetensors")
    arrays = for {name, tensor} <- inputs, into: %{}, do: {to_string(name), EMLX.Backend.to_array(tensor)}
    EMLX.eval(Map.values(arrays))
    EMLX.Safetensors.save(file, arrays, device: context.device)
    tensors = Enum.map(names, &inputs[&1])

    compiled = Nx.Defn.compile(function, tensors, compiler: EMLX, device: context.device)
    ours = [{"eager", fn -> apply(function, tensors) end}, {"compiled", fn -> apply(compiled, tensors) end}]
    links = Measure.links(fn -> evaluate([apply(compiled, tensors)]) end)
    options = [file: file, name: name, inputs: Enum.join(names, ","), links: links]
    peers = cases(context, options)

    for {side, peer, number} <- peers, side in ["XLA", "PyTorch"], not String.starts_with?(name, "random") do
      here = apply(compiled, tensors) |> first() |> EMLX.Backend.to_array() |> Inputs.sample()
      Inputs.check!(side, Peer.sample(peer, number), here, :f32)
    end

    %Group{
      sides:
        for(
          {side, run} <- ours,
          wait <- waits(context.device),
          do: {side <> suffix(wait), timed(run, wait, links)}
        ) ++
          for({side, peer, number} <- peers, do: {side, fn -> Peer.time(peer, number) end}),
      rows: for({here, there} <- rows(context.device), do: {"#{name}, #{text(n)}", here, there}),
      pause: context.device == :cpu,
      tidy: fn -> for {_, peer, number} <- peers, do: Peer.drop(peer, number) end
    }
  end

  # Whether runs are waited for one by one, or together at the end.
  defp waits(:cpu), do: [:each]
  defp waits(:gpu), do: [:end, :each]

  defp suffix(:end), do: ", in flight"
  defp suffix(:each), do: ""

  defp rows(:cpu), do: [{"eager", ["XLA", "NumPy"]}, {"compiled", ["XLA"]}]

  defp rows(:gpu) do
    for wait <- waits(:gpu), {here, there} <- [{"eager", ["PyTorch"]}, {"compiled", ["PyTorch", "torch.compile"]}] do
      {here <> suffix(wait), Enum.map(there, &(&1 <> suffix(wait)))}
    end
  end

  defp timed(run, :each, links),
    do: fn -> Measure.time(fn -> for(_ <- 1..links, do: evaluate([run.()])) end) / links end

  defp timed(run, :end, links), do: fn -> Measure.time(fn -> evaluate(for(_ <- 1..links, do: run.())) end) / links end

  # `{side, peer, number of the case there}` of each side that a peer has.
  defp cases(%{device: :cpu, peers: peers}, options) do
    for {name, side} <- [xla: "XLA", numpy: "NumPy"], case = define(peers[name], options), do: {side, peers[name], case}
  end

  defp cases(%{device: :gpu, peers: %{torch: peer}}, options) do
    for {side, compiled} <- [{"PyTorch", false}, {"torch.compile", true}],
        wait <- waits(:gpu),
        case = define(peer, [compiled: compiled, waits: wait] ++ options),
        do: {side <> suffix(wait), peer, case}
  end

  defp cases(%{device: :gpu}, _options), do: []

  # The number of a case there, or nil where there is no such peer, or none of its operations is this one.
  defp define(nil, _options), do: nil

  defp define(peer, options) do
    with "none" <- Peer.define(peer, :operation, options), do: nil
  end

  defp first(tensors) when is_tuple(tensors), do: elem(tensors, 0)
  defp first(tensor), do: tensor

  defp evaluate(results) do
    arrays = for result <- results, tensor <- tuple(result), do: EMLX.Backend.to_array(tensor)
    EMLX.eval(arrays)
  end

  defp tuple(tensors) when is_tuple(tensors) and not is_struct(tensors), do: Tuple.to_list(tensors)
  defp tuple(tensor), do: [tensor]

  @impl true
  def summary(rows) do
    for row <- rows, %{side: there, ratio: ratio} <- row.against, ratio, reduce: %{} do
      ratios -> Map.update(ratios, {row.here, there}, [ratio], &[ratio | &1])
    end
    |> Enum.sort()
    |> Enum.map(fn {{here, there}, ratios} -> Statistics.means(here, there, ratios) end)
  end
end
