defmodule EMLX.Bench.Parts.Memory do
  @moduledoc """
  The most memory that a run takes beyond its weights and inputs, here and in Python MLX, by MLX's own count: kernels of
  a large size (a chain of four calls), and the models.
  """

  use EMLX.Bench.Part,
    about: "peak memory of kernels and models against Python MLX's"

  alias EMLX.Bench.{Here, Kernel, Measure, Peer}

  @links 4

  @impl true
  def groups(context) do
    types = if context.device == :gpu, do: [:bf16], else: [:f32, :bf16]

    kernels =
      for name <- Kernel.names(), type <- types do
        {"memory of #{name}, #{type}", fn -> kernel(context, name, type) end}
      end

    models =
      for model <- [:encoder, :prefill, :decode], type <- types, context.nx? do
        {"memory of #{model}, #{type}", fn -> model(context, model, type) end}
      end

    kernels ++ models
  end

  defp kernel(context, name, type) do
    kernel = Kernel.inputs(name, size(context), type, context.device)
    here = fn -> Kernel.chain(kernel, &Kernel.call(kernel, &1), @links) end
    composed = if context.nx?, do: [{"composed", Kernel.composed(kernel)}], else: []
    composed = for {name, call} <- composed, do: {name, fn -> Kernel.chain(kernel, call, @links) end}

    compared(
      context,
      "#{kernel.text}, #{type}",
      [{"EMLX", here} | composed],
      :kernel,
      kernel.options ++ [links: @links]
    )
  end

  # As large as does not take minutes: Python MLX's 16-bit attention on the CPU is slow.
  defp size(%{device: :cpu, quick?: false}), do: {1, 1024}
  defp size(context), do: context.device |> Kernel.sizes(context.quick?) |> List.last()

  defp model(context, model, type) do
    spec = Here.spec(model, context)
    here = Here.compiled(spec, context.device, type)
    title = Here.title(spec)
    compared(context, "#{title}, #{type}", [{"EMLX", here.run}], model, spec.options ++ [type: type])
  end

  defp compared(context, label, sides, kind, options) do
    peer = context.peers[:mlx]
    number = peer && Peer.define(peer, kind, options)
    python = if peer, do: [{"Python MLX", fn -> Peer.peak(peer, number) end}], else: []

    %Group{
      unit: :bytes,
      sides: for({name, run} <- sides, do: {name, fn -> Measure.peak(run) end}) ++ python,
      rows: [{label, "EMLX", ["Python MLX", "composed"]}],
      tidy: fn -> if peer, do: Peer.drop(peer, number) end
    }
  end
end
