defmodule EMLX.Bench.Parts.Models do
  @moduledoc """
  An encoder with MiniLM's weights and a decoder, a prompt and a single token: compiled with EMLX, against bare Python
  MLX and XLA, the encoder against ONNX Runtime and OpenVINO, too; and the same models of Bumblebee, rewritten by
  `EMLXBumblebee` and as they are, compiled and by the evaluator. Without Nx it is the encoder's saved program
  (examples/minilm) alone.
  """

  use EMLX.Bench.Part,
    about:
      "an encoder and a decoder against Python MLX, XLA, ONNX Runtime and OpenVINO; Bumblebee's, rewritten and not",
    peers: [:mlx, :xla, :onnxruntime, :openvino, :bumblebee]

  alias EMLX.{Array, Program, Safetensors}
  alias EMLX.Bench.{Checkpoint, Here, Inputs, Measure, Peer}

  # Those that run the encoder only, in 8-bit integers, too.
  @encoders [:onnxruntime, :openvino]

  @impl true
  def groups(context) do
    [main, other] = if context.device == :gpu, do: [:bf16, :f32], else: [:f32, :bf16]

    if context.nx? do
      for model <- [:encoder, :prefill, :decode],
          group <-
            [{"#{model}, #{main}", fn -> compiled(context, Here.spec(model, context), main) end}] ++
              if(context.peers[:bumblebee],
                do: [{"#{model}, evaluator", fn -> evaluated(context, model, main) end}],
                else: []
              ) ++
              [{"#{model}, #{other}", fn -> other_type(context, Here.spec(model, context), other, main) end}],
          do: group
    else
      []
    end ++ encoders(context, main, other) ++ [{"saved program", fn -> saved(context) end}]
  end

  # The encoder for one text, and all models in 8-bit integers.
  defp encoders(%{nx?: false}, _main, _other), do: []

  defp encoders(context, main, other) do
    one = fn -> Here.spec(:encoder, context, batch: 1) end
    spec = &Here.spec(&1, context)

    [
      {"encoder of one, #{main}", fn -> compiled(context, one.(), main) end},
      {"encoder of one, #{other}", fn -> other_type(context, one.(), other, main) end},
      {"encoder, int8", fn -> int8(context, spec.(:encoder), main) end},
      {"encoder of one, int8", fn -> int8(context, one.(), main) end},
      {"prefill, int8", fn -> int8(context, spec.(:prefill), main) end},
      {"decode, int8", fn -> int8(context, spec.(:decode), main) end}
    ]
  end

  # Everything that is compiled, in the type that the device is best at.
  defp compiled(context, spec, type) do
    title = "#{title(spec)}, #{type}"
    here = here(spec, context, type)
    peers = peers(context, spec, type, [:mlx, :xla, :onnxruntime, :openvino], here.sample.())
    bumblebee = bumblebee(context, spec, type, "emlx", here.sample.())

    %Group{
      sides: [{"EMLX", fn -> Measure.time(here.run) end} | sides(peers ++ bumblebee)],
      rows: [
        {title, "EMLX", ["Python MLX", "XLA", "ONNX Runtime", "OpenVINO"]},
        {title, "Bumblebee rewritten", ["Bumblebee as it is", "Python MLX", "XLA"]}
      ],
      missing: missing(peers ++ bumblebee),
      tidy: fn -> drop(peers ++ bumblebee) end
    }
  end

  defp evaluated(context, model, type) do
    spec = Here.spec(model, context)
    here = here(spec, context, type)
    peers = peers(context, spec, type, [:mlx], here.sample.())
    bumblebee = bumblebee(context, spec, type, "evaluator", here.sample.())

    %Group{
      sides: sides(bumblebee ++ peers),
      rows: [{"#{title(spec)}, #{type}, evaluator", "Bumblebee rewritten", ["Bumblebee as it is", "Python MLX"]}],
      missing: missing(peers ++ bumblebee),
      tidy: fn -> drop(peers ++ bumblebee) end
    }
  end

  defp other_type(context, spec, type, main) do
    [here, other] = for type <- [type, main], do: here(spec, context, type)
    peers = peers(context, spec, type, [:mlx, :openvino], here.sample.())

    %Group{
      sides: [
        {"EMLX", fn -> Measure.time(here.run) end},
        {"EMLX in #{main}", fn -> Measure.time(other.run) end} | sides(peers)
      ],
      rows: [{"#{title(spec)}, #{type}", "EMLX", ["Python MLX", "OpenVINO", "EMLX in #{main}"]}],
      missing: missing(peers),
      tidy: fn -> drop(peers) end
    }
  end

  # Products of 8-bit integers, each side beside what EMLX takes in the device's type.
  defp int8(context, spec, main) do
    title = "#{title(spec)}, int8"
    other = here(spec, context, main)
    expected = other.sample.()
    named = fn name -> "#{name} int8" end
    defined = peers(context, spec, :int8, @encoders, expected)
    peers = for {name, peer, number} <- defined, do: {named.(name), peer, number}

    ours = here(spec, context, :int8)
    Inputs.check!(named.("EMLX"), ours.sample.(), expected, :int8)
    there = Enum.map(@encoders, &named.(called(&1)))

    %Group{
      sides:
        [{named.("EMLX"), fn -> Measure.time(ours.run) end}, {"EMLX in #{main}", fn -> Measure.time(other.run) end}] ++
          sides(peers),
      rows: [
        {title, named.("EMLX"), ["EMLX in #{main}" | there]}
        | for(side <- there, do: {title, side, ["EMLX in #{main}"]})
      ],
      missing: missing(defined),
      tidy: fn -> drop(peers) end
    }
  end

  # The files that script/demo runs where Bumblebee is not: what EMLXBumblebee makes of the model, and the model as it
  # is.
  defp saved(context) do
    minilm = Checkpoint.minilm(context.temporary)
    [fused, composed] = for name <- ["minilm", "minilm_composed"], do: program(context, name, minilm)
    [batch, length] = fused.size
    inputs = Checkpoint.inputs(context.temporary, batch, length, minilm.vocabulary)
    given = Safetensors.load(inputs, device: context.device)

    run = fn side ->
      side.program |> Program.run(Map.merge(side.weights, given), device: context.device) |> EMLX.eval() |> hd()
    end

    expected = Inputs.sample(run.(fused))
    Inputs.check!("the program as it is", Inputs.sample(run.(composed)), expected, :f32)
    options = [file: minilm.file, inputs: inputs, blocks: minilm.blocks, heads: minilm.heads]
    peers = defined(context, :mlx, :encoder, options ++ [type: :f32], "Python MLX", expected, :f32)

    %Group{
      sides: [
        {"saved program", fn -> Measure.time(fn -> run.(fused) end) end},
        {"as it is", fn -> Measure.time(fn -> run.(composed) end) end} | sides(peers)
      ],
      rows: [{"encoder, #{batch} × #{length}, f32, saved", "saved program", ["as it is", "Python MLX"]}],
      missing: missing(peers),
      tidy: fn -> drop(peers) end
    }
  end

  defp program(context, name, minilm) do
    program = Program.load(Path.join(context.folder, "../examples/minilm/#{name}.emlx"), device: context.device)
    inputs = Program.inputs(program)
    {_, size, _} = List.keyfind(inputs, "input_ids", 0)
    names = for {name, _, _} <- inputs, name not in ["input_ids", "attention_mask"], do: name
    weights = Safetensors.load(minilm.file, device: context.device, only: names)
    EMLX.eval(Map.values(weights))
    %{program: program, size: size, weights: Map.filter(weights, fn {_, w} -> match?(%Array{}, w) end)}
  end

  # ---- sides ----

  defp here(spec, context, type), do: Here.compiled(spec, context.device, type)

  defp title(spec), do: Here.title(spec)

  defp peers(context, spec, type, names, expected) do
    for name <- names,
        name not in @encoders or spec.model == :encoder,
        more = if(name in @encoders, do: [threads: System.schedulers_online()], else: []),
        side <- defined(context, name, spec.model, spec.options ++ [type: type] ++ more, called(name), expected, type),
        do: side
  end

  defp called(:mlx), do: "Python MLX"
  defp called(:xla), do: "XLA"
  defp called(:onnxruntime), do: "ONNX Runtime"
  defp called(:openvino), do: "OpenVINO"

  defp bumblebee(context, spec, type, compiler, expected) do
    for {rewritten?, name} <- [{true, "Bumblebee rewritten"}, {false, "Bumblebee as it is"}],
        options = [folder: spec.checkpoint.folder, type: type, compiler: compiler, rewritten: rewritten?],
        side <- defined(context, :bumblebee, spec.model, spec.options ++ options, name, expected, type),
        do: side
  end

  defp defined(context, peer, kind, options, name, expected, type) do
    case context.peers[peer] do
      nil ->
        []

      peer ->
        try do
          case Peer.define(peer, kind, options) do
            # The peer has no such type on this machine.
            "none" ->
              []

            number ->
              Inputs.check!(name, Peer.sample(peer, number), expected, type)
              [{name, peer, number}]
          end
        rescue
          # The others are measured all the same.
          error -> [{:missing, Exception.message(error)}]
        end
    end
  end

  defp missing(defined), do: for({:missing, message} <- defined, do: message)

  defp sides(defined), do: for({name, peer, number} <- defined, do: {name, fn -> Peer.time(peer, number) end})

  defp drop(defined), do: for({_, peer, number} <- defined, do: Peer.drop(peer, number))
end
