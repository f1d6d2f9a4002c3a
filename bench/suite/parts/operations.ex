defmodule EMLX.Bench.Parts.Operations do
  @moduledoc """
  About ninety operations of Nx on arrays of 1 thousand, 1 million and 16 million elements, eager and compiled, against
  XLA (`jax.jit` of the same) and NumPy.

  A side's run computes the operation once and waits for it; small ones are repeated some times. Before anything is
  timed, the results are compared with XLA's, but for random numbers.
  """

  use EMLX.Bench.Part,
    about: "operations of Nx, eager and compiled, against XLA and NumPy",
    needs: :nx,
    peers: [:xla, :numpy]

  @compile {:no_warn_undefined, [EMLX, EMLX.Bench.Operation, EMLX.Backend]}

  alias EMLX.Bench.{Inputs, Measure, Operation, Peer, Statistics}

  @impl true
  def groups(context) do
    for n <- sizes(context.quick?), {name, _, _} = operation <- Operation.all() do
      {"#{name}, #{text(n)}", fn -> group(context, operation, n) end}
    end
  end

  defp sizes(true), do: [1024]
  defp sizes(false), do: [32, 1024, 4096]

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

    eager = fn -> tensors |> then(&apply(function, &1)) |> evaluate() end
    compiled = Nx.Defn.compile(function, tensors, compiler: EMLX, device: context.device)
    jitted = fn -> evaluate(apply(compiled, tensors)) end
    links = Measure.links(jitted)
    timed = fn run -> fn -> Measure.time(fn -> for(_ <- 1..links, do: run.()) end) / links end end
    options = [file: file, name: name, inputs: Enum.join(names, ","), links: links]

    peers =
      for {side, label} <- [xla: "XLA", numpy: "NumPy"],
          peer = context.peers[side],
          number = define(peer, options),
          do: {side, label, peer, number}

    for {:xla, _, peer, number} <- peers, not String.starts_with?(name, "random") do
      here = apply(compiled, tensors) |> first() |> EMLX.Backend.to_array() |> Inputs.sample()
      Inputs.check!("XLA", Peer.sample(peer, number), here, :f32)
    end

    %Group{
      sides:
        [{"eager", timed.(eager)}, {"compiled", timed.(jitted)}] ++
          for({_, label, peer, number} <- peers, do: {label, fn -> Peer.time(peer, number) end}),
      rows: [
        {"#{name}, #{text(n)}", "eager", ["XLA", "NumPy"]},
        {"#{name}, #{text(n)}", "compiled", ["XLA"]}
      ],
      tidy: fn -> for {_, _, peer, number} <- peers, do: Peer.drop(peer, number) end
    }
  end

  # A number there, or nil where the peer has no such operation.
  defp define(peer, options) do
    with "none" <- Peer.define(peer, :operation, options), do: nil
  end

  defp first(tensors) when is_tuple(tensors), do: elem(tensors, 0)
  defp first(tensor), do: tensor

  defp evaluate(tensors) do
    arrays = for tensor <- tuple(tensors), do: EMLX.Backend.to_array(tensor)
    EMLX.eval(arrays)
  end

  defp tuple(tensors) when is_tuple(tensors) and not is_struct(tensors), do: Tuple.to_list(tensors)
  defp tuple(tensor), do: [tensor]

  @impl true
  def summary(rows) do
    for here <- ["eager", "compiled"],
        ratios = for(row <- rows, row.here == here, %{side: "XLA", ratio: ratio} <- row.against, ratio, do: ratio),
        ratios != [],
        do: Statistics.means(here, "XLA", ratios)
  end
end
