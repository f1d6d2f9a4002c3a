defmodule EMLX.Bench.Parts.Training do
  @moduledoc """
  A step of training, loss, gradients and Adam's update, of models of Axon compiled with EMLX: a perceptron of three
  layers, a convolutional network, and a transformer, whose norms are also rewritten by `EMLXAxon`. On the CPU it is
  compared with the same in JAX (`jax.jit`), on a GPU with PyTorch, eager and by way of `torch.compile`, and with Python
  MLX (`mx.compile`), there also in memory: what two steps take at their peak, the trained weights and moments included.
  In bf16 the layers compute in bf16, with weights, norms and optimizer in f32.

  Each side begins with the same weights and takes some steps on the same batch. Before anything is timed, the first
  loss, the mean of all and the updated weights are compared.
  """

  use EMLX.Bench.Part,
    about: "a training step of Axon's models against JAX, on a GPU against PyTorch and MLX",
    needs: :nx,
    peers: [:axon, :xla, :torch, :mlx]

  alias EMLX.Bench.{Inputs, Peer, Statistics, Training}

  # How far updates of weights may be apart, as a part of the update. Adam divides a gradient by its size, so that
  # rounding counts in full where a gradient is nearly zero. PyTorch's autocast rounds to bf16 in other places.
  @limits %{cpu: %{f32: 0.01, bf16: 0.15}, gpu: %{f32: 0.01, bf16: 0.35}}

  @impl true
  def groups(%{peers: %{axon: _}} = context) do
    for {model, steps} <- Training.models(),
        type <- [:f32, :bf16],
        batch <- Training.batches(context.device),
        {what, unit} <- figures(context.device) do
      {"#{model}, #{type}, batch #{batch}#{what}", fn -> group(context, model, steps, type, batch, what, unit) end}
    end
  end

  # Without Axon there is nothing to show.
  def groups(_context), do: []

  defp figures(:cpu), do: [{"", :time}]
  defp figures(:gpu), do: [{"", :time}, {", memory", :bytes}]

  defp group(context, model, steps, type, batch, what, unit) do
    sizes = Training.sizes(context.device)
    initial = Training.weights(context.temporary, model, sizes)
    inputs = Training.batch(context.temporary, model, batch, sizes)
    options = [model: model, file: initial, inputs: inputs, type: type, steps: steps] ++ sizes

    ways =
      [{"Axon", :axon, [rewritten: false]}] ++
        if(model == "transformer", do: [{"Axon rewritten", :axon, [rewritten: true]}], else: []) ++
        for({name, peer, more} <- others(context.device), context.peers[peer], do: {name, peer, more})

    defined = for {name, peer, more} <- ways, do: define(context, name, peer, options ++ more)
    sides = for {:ok, side} <- defined, do: side
    {sides, notes, different} = compare(sides, initial, type, @limits[context.device][type])
    label = "#{model}, #{type}, batch #{batch}#{what}"
    figure = if unit == :time, do: &Peer.time/2, else: &Peer.peak/2
    there = for {name, _, _} <- others(context.device), do: name

    %Group{
      unit: unit,
      pause: context.device == :cpu,
      sides: for(side <- sides, do: {side.name, fn -> figure.(side.peer, side.number) end}),
      rows: [{label, "Axon", there}, {label, "Axon rewritten", ["Axon" | there]}],
      missing: for({:error, message} <- defined, do: message) ++ different,
      notes: for(note <- notes, do: "#{label}, #{note}"),
      tidy: fn -> for side <- sides, do: Peer.drop(side.peer, side.number) end
    }
  end

  defp others(:cpu), do: [{"XLA", :xla, []}]

  defp others(:gpu) do
    [{"PyTorch", :torch, [compiled: false]}, {"torch.compile", :torch, [compiled: true]}, {"Python MLX", :mlx, []}]
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

  # Compared with XLA's or PyTorch's, or with the first where it is not there.
  defp compare(sides, initial, type, limit) do
    reference = Enum.find(sides, List.first(sides), &(&1.name in ["XLA", "PyTorch"]))

    Enum.reduce(sides, {[], [], []}, fn
      ^reference, {kept, notes, different} ->
        {kept ++ [reference], notes, different}

      side, {kept, notes, different} ->
        try do
          {kept ++ [side], notes ++ [check!(side, reference, initial, type, limit)], different}
        rescue
          error -> {kept, notes, different ++ [Exception.message(error)]}
        end
    end)
  end

  defp check!(side, reference, initial, type, limit) do
    losses = Inputs.check!(side.name, side.losses, reference.losses, type)
    weights = Training.distance(side.out, reference.out, initial)
    [losses_text, weights_text] = for distance <- [losses, weights], do: Statistics.digits(distance)

    if weights > limit,
      do: raise("#{side.name} computes something else: weights are #{weights_text} of the update apart")

    "#{side.name}: losses are #{losses_text} and weights #{weights_text} of the update from #{reference.name}'s"
  end

  @impl true
  def summary(rows) do
    for unit <- [:time, :bytes],
        here <- ["Axon", "Axon rewritten"],
        there <- ["XLA", "PyTorch", "torch.compile", "Python MLX"],
        rows = Enum.filter(rows, &(&1.here == here and &1.unit == unit)),
        ratios = for(row <- rows, %{side: ^there, ratio: ratio} <- row.against, ratio, do: ratio),
        ratios != [],
        do: Statistics.means(if(unit == :bytes, do: here <> ", memory", else: here), there, ratios)
  end
end
