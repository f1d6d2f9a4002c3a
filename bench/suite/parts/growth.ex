defmodule EMLX.Bench.Parts.Growth do
  @moduledoc """
  Time and memory of the decoder's prompt as its tokens, its batch and its blocks double, here and in Python MLX, as a
  chart.
  """

  use EMLX.Bench.Part,
    about: "time and memory as tokens, batch and blocks double",
    needs: :nx

  alias EMLX.Bench.{Here, Measure, Peer}

  @impl true
  def groups(context) do
    type = if context.device == :gpu, do: :bf16, else: :f32

    for {axis, values} <- axes(context.device, context.quick?), value <- values, unit <- [:time, :bytes] do
      {"#{value} #{axis}", fn -> group(context, axis, value, type, unit) end}
    end
  end

  defp axes(_device, true), do: [tokens: [32, 64], batch: [1, 2], blocks: [1, 2]]
  defp axes(:cpu, false), do: [tokens: [16, 32, 64, 128, 256, 512], batch: [1, 2, 4, 8], blocks: [1, 2, 4, 8]]

  defp axes(:gpu, false),
    do: [tokens: [128, 256, 512, 1024, 2048, 4096], batch: [1, 2, 4, 8, 16], blocks: [1, 2, 4, 8]]

  # What does not grow.
  @size [tokens: 128, batch: 1, blocks: 8]

  defp group(context, axis, value, type, unit) do
    size = Keyword.put(@size, axis, value)

    sizes = [length: size[:tokens], batch: size[:batch], blocks: size[:blocks]]
    spec = Here.spec(:prefill, context, sizes)

    here = Here.compiled(spec, context.device, type)
    peer = context.peers[:mlx]
    number = peer && Peer.define(peer, :prefill, spec.options ++ [type: type])

    {measure, there} = if unit == :time, do: {&Measure.time/1, &Peer.time/2}, else: {&Measure.peak/1, &Peer.peak/2}

    %Group{
      unit: unit,
      point: {axis, value},
      sides:
        [{"EMLX", fn -> measure.(here.run) end}] ++
          if(peer, do: [{"Python MLX", fn -> there.(peer, number) end}], else: []),
      rows: [{"#{size[:batch]} × #{size[:tokens]} tokens, #{size[:blocks]} blocks, #{type}", "EMLX", ["Python MLX"]}],
      tidy: fn -> if peer, do: Peer.drop(peer, number) end
    }
  end
end
