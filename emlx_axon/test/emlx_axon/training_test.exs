defmodule EMLXAxon.TrainingTest do
  # Training to the end, with Axon's mixed precision and loss scaling, on the device under test.
  use EMLXAxon.Case, async: true

  alias EMLXAxon.Digits

  defp model do
    Axon.input("images", shape: {nil, 12, 12, 1})
    |> Axon.conv(16, kernel_size: 3, padding: :same, activation: :relu)
    |> Axon.max_pool(kernel_size: 2)
    |> Axon.conv(16, kernel_size: 3, padding: :same, activation: :relu)
    |> Axon.flatten()
    |> Axon.dense(48, activation: :relu)
    |> Axon.layer_norm()
    |> Axon.dense(10)
  end

  defp precise(model, nil), do: model

  defp precise(model, compute) do
    policy = Axon.MixedPrecision.create_policy(params: {:f, 32}, compute: compute, output: {:f, 32})
    Axon.MixedPrecision.apply_policy(model, policy, except: [:layer_norm])
  end

  defp loss(expected, logits) do
    logits = Nx.as_type(logits, :f32)
    Axon.Losses.categorical_cross_entropy(expected, logits, from_logits: true, reduction: :mean)
  end

  # The part of some images whose digit is found.
  defp accuracy(model, state, batches) do
    {_init, predict} = Axon.build(model, compiler: EMLX)

    found =
      for {images, classes} <- batches do
        found = Nx.argmax(predict.(state, Nx.backend_copy(images, backend())), axis: 1)

        found
        |> Nx.backend_copy(Nx.BinaryBackend)
        |> Nx.equal(Nx.argmax(classes, axis: 1))
        |> Nx.mean()
        |> Nx.to_number()
      end

    Enum.sum(found) / length(found)
  end

  for {name, compute, scale} <- [
        {"f32", nil, :identity},
        {"bf16 with a static loss scale", {:bf, 16}, :static},
        {"f16 with a dynamic loss scale", {:f, 16}, :dynamic}
      ] do
    @tag compute: compute, scale: scale
    test "Axon.Loop trains a convolutional network to find 97 % of unseen digits in #{name}", context do
      model = precise(model(), context.compute)
      unseen = Digits.batches(8, 64, 2)

      on(backend(), fn ->
        data =
          for {images, classes} <- Digits.batches(60, 64, 1), do: {copy(images, backend()), copy(classes, backend())}

        optimizer = Polaris.Optimizers.adam(learning_rate: 3.0e-3)

        state =
          model
          |> Axon.Loop.trainer(&loss/2, optimizer, loss_scale: context.scale, seed: 7, log: 0)
          |> Axon.Loop.run(data, Axon.ModelState.empty(), epochs: 6, compiler: EMLX)

        assert accuracy(model, state, unseen) >= 0.97
      end)
    end
  end

  test "the losses of the first 20 steps are those of Nx.BinaryBackend" do
    model =
      Axon.input("images", shape: {nil, 12, 12, 1})
      |> Axon.conv(4, kernel_size: 3, strides: 2, activation: :relu)
      |> Axon.flatten()
      |> Axon.dense(16, activation: :tanh)
      |> Axon.layer_norm()
      |> Axon.dense(10)

    data = Digits.batches(20, 8, 3)

    losses = fn backend, compiler ->
      on(backend, fn ->
        {init, step} = Axon.Loop.train_step(model, &loss/2, Polaris.Optimizers.adam(learning_rate: 1.0e-2), seed: 5)
        data = Enum.map(data, &copy(&1, backend))
        first = Nx.Defn.jit_apply(init, [hd(data), Axon.ModelState.empty()], compiler: Nx.Defn.Evaluator)
        step = Nx.Defn.jit(step, compiler: compiler)

        data
        |> Enum.scan(first, &step.(&1, &2))
        |> Enum.map(&(&1.loss |> Nx.backend_copy(Nx.BinaryBackend)))
        |> Nx.stack()
      end)
    end

    expected = losses.(Nx.BinaryBackend, Nx.Defn.Evaluator)
    [first, last] = for i <- [0, 19], do: Nx.to_number(expected[i])
    assert last < first
    for compiler <- compilers(), do: assert_same(losses.(backend(), compiler), expected, rtol: 1.0e-3)
  end
end
