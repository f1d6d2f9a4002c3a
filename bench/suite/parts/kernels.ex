defmodule EMLX.Bench.Parts.Kernels do
  @moduledoc """
  Each fused kernel against its composed form (the formula that a block runs where there is no kernel, as a program),
  against Python MLX's own call, and, where it reads and writes each number once, against a copy of the same bytes. From
  one token on, in f32 and bf16.
  """

  use EMLX.Bench.Part,
    about: "each fused kernel against its composed form and Python MLX's"

  alias EMLX.Bench.{Inputs, Kernel, Measure, Peer}

  @impl true
  def groups(context) do
    for name <- Kernel.names(),
        type <- [:f32, :bf16],
        size <- Kernel.sizes(context.device, context.quick?) do
      {"#{name}, #{type}", fn -> group(context, name, type, size) end}
    end
  end

  defp group(context, name, type, size) do
    kernel = Kernel.inputs(name, size, type, context.device)
    [x | _] = kernel.arrays
    here = &Kernel.call(kernel, &1)
    expected = Inputs.sample(here.(x))
    links = Measure.links(fn -> Kernel.chain(kernel, here, 1) end)
    timed = fn call -> fn -> Measure.time(fn -> Kernel.chain(kernel, call, links) end) / links end end

    composed =
      if context.nx? do
        call = Kernel.composed(kernel)
        Inputs.check!("the composed form", Inputs.sample(call.(x)), expected, type)
        [{"composed", timed.(call)}]
      else
        []
      end

    peer = context.peers[:mlx]
    number = peer && Peer.define(peer, :kernel, kernel.options ++ [links: links])
    if peer, do: Inputs.check!("Python MLX", Peer.sample(peer, number), expected, type)
    python = if peer, do: [{"Python MLX", fn -> Peer.time(peer, number) end}], else: []
    copy = if name in [:rms_norm, :layer_norm, :rope], do: [{"a copy", timed.(&Kernel.copy/1)}], else: []

    %Group{
      sides: [{"kernel", timed.(here)}] ++ composed ++ python ++ copy,
      rows: [{"#{kernel.text}, #{type}", "kernel", ["composed", "Python MLX", "a copy"]}],
      tidy: fn -> if peer, do: Peer.drop(peer, number) end
    }
  end
end
