defmodule EMLX.Bench.Parts.Training do
  @moduledoc """
  A step of training, loss, gradients and Adam's update, of models of Axon compiled with EMLX, against the same in JAX
  (`jax.jit`, CPU): a perceptron of three layers, a convolutional network, and a transformer of two blocks, whose norms
  are also rewritten by `EMLXAxon`. In bf16 the layers compute in bf16, with weights, norms and optimizer in f32.

  Each side begins with the same weights and takes some steps on the same batch. Before anything is timed, the first
  loss, the mean of all and the updated weights are compared.
  """

  use EMLX.Bench.Part,
    about: "a training step of Axon's models against JAX",
    needs: :nx,
    peers: [:axon, :xla]

  alias EMLX.Bench.{Inputs, Peer, Statistics, Training}

  # How far updates of weights may be apart, as a part of the update. Adam divides a gradient by its size, so that
  # rounding counts in full where a gradient is nearly zero.
  @limits %{f32: 0.01, bf16: 0.15}

  @impl true
  def groups(%{peers: %{axon: _}} = context) do
    for {model, steps} <- Training.models(), type <- [:f32, :bf16], batch <- [32, 1] do
      {"#{model}, #{type}, batch #{batch}", fn -> group(context, model, steps, type, batch) end}
    end
  end

  # Without Axon there is nothing to show.
  def groups(_context), do: []

  defp group(context, model, steps, type, batch) do
    initial = Training.weights(context.temporary, model)
    inputs = Training.batch(context.temporary, model, batch)
    options = [model: model, file: initial, inputs: inputs, type: type, steps: steps]

    ways =
      [{"Axon", :axon, [rewritten: false]}] ++
        if(model == "transformer", do: [{"Axon rewritten", :axon, [rewritten: true]}], else: []) ++
        if(context.peers[:xla], do: [{"XLA", :xla, []}], else: [])

    defined = for {name, peer, more} <- ways, do: define(context, name, peer, options ++ more)
    sides = for {:ok, side} <- defined, do: side
    {sides, notes, different} = compare(sides, initial, type)
    label = "#{model}, #{type}, batch #{batch}"

    %Group{
      sides: for(side <- sides, do: {side.name, fn -> Peer.time(side.peer, side.number) end}),
      rows: [{label, "Axon", ["XLA"]}, {label, "Axon rewritten", ["Axon", "XLA"]}],
      missing: for({:error, message} <- defined, do: message) ++ different,
      notes: for(note <- notes, do: "#{label}, #{note}"),
      tidy: fn -> for side <- sides, do: Peer.drop(side.peer, side.number) end
    }
  end

  defp define(context, name, peer, options) do
    peer = context.peers[peer]
    out = Path.join(context.temporary, "trained-#{String.replace(name, " ", "-")}.safetensors")

    try do
      number = Peer.define(peer, :training, options ++ [out: out])
      {:ok, %{name: name, peer: peer, number: number, losses: Peer.sample(peer, number), out: out}}
    rescue
      # The others are measured all the same.
      error -> {:error, Exception.message(error)}
    end
  end

  # Compared with XLA's, or with the first where it is not there.
  defp compare(sides, initial, type) do
    reference = Enum.find(sides, List.first(sides), &(&1.name == "XLA"))

    Enum.reduce(sides, {[], [], []}, fn
      ^reference, {kept, notes, different} ->
        {kept ++ [reference], notes, different}

      side, {kept, notes, different} ->
        try do
          {kept ++ [side], notes ++ [check!(side, reference, initial, type)], different}
        rescue
          error -> {kept, notes, different ++ [Exception.message(error)]}
        end
    end)
  end

  defp check!(side, reference, initial, type) do
    losses = Inputs.check!(side.name, side.losses, reference.losses, type)
    weights = Training.distance(side.out, reference.out, initial)
    [losses_text, weights_text] = for distance <- [losses, weights], do: Statistics.digits(distance)

    if weights > @limits[type],
      do: raise("#{side.name} computes something else: weights are #{weights_text} of the update apart")

    "#{side.name}: losses are #{losses_text} and weights #{weights_text} of the update from #{reference.name}'s"
  end

  @impl true
  def summary(rows) do
    for here <- ["Axon", "Axon rewritten"],
        ratios = for(row <- rows, row.here == here, %{side: "XLA", ratio: ratio} <- row.against, ratio, do: ratio),
        ratios != [],
        do: Statistics.means(here, "XLA", ratios)
  end
end
