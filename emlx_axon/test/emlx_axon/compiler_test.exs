defmodule EMLXAxon.CompilerTest do
  # Every layer of Axon under `compiler: EMLX`: predictions and gradients of the parameters, compared with the evaluator
  # on EMLX.Backend and on the binary backend; and a training loop.
  use EMLXAxon.Case, async: true

  import Axon, only: [input: 2]

  @activations [:celu, :elu, :exp, :gelu, :hard_sigmoid, :hard_silu, :hard_tanh, :leaky_relu, :linear, :log_sumexp] ++
                 [:log_sigmoid, :log_softmax, :mish, :relu, :relu6, :sigmoid, :silu, :selu, :softmax, :softplus] ++
                 [:softsign, :tanh]

  # {name, shapes of the inputs, model of the input layers}; `integers` where an input holds classes, `columns` where it
  # is a struct.
  vector = [{2, 6}]
  image = [{2, 8, 8, 4}]
  text = [{2, 5, 4}]

  layers =
    for(name <- @activations, do: {name, vector, quote(do: &Axon.unquote(name)(&1))}) ++
      [
        dense: {vector, quote(do: &Axon.dense(&1, 3, activation: :relu))},
        bias: {vector, quote(do: &Axon.bias(&1))},
        bilinear: {[{2, 3}, {2, 4}], quote(do: &Axon.bilinear(&1, &2, 5))},
        conv: {image, quote(do: &Axon.conv(&1, 3, kernel_size: {3, 2}, strides: 2, padding: :same))},
        conv_dilated: {image, quote(do: &Axon.conv(&1, 4, kernel_size: 2, kernel_dilation: 2, feature_group_size: 2))},
        conv_first: {[{2, 4, 8, 8}], quote(do: &Axon.conv(&1, 3, kernel_size: 3, channels: :first))},
        conv_transpose: {image, quote(do: &Axon.conv_transpose(&1, 2, kernel_size: 3, strides: 2))},
        depthwise_conv: {image, quote(do: &Axon.depthwise_conv(&1, 2, kernel_size: 3))},
        separable_conv2d: {image, quote(do: &Axon.separable_conv2d(&1, 2, kernel_size: 3))},
        separable_conv3d: {[{1, 4, 4, 4, 2}], quote(do: &Axon.separable_conv3d(&1, 2, kernel_size: 2))},
        max_pool: {image, quote(do: &Axon.max_pool(&1, kernel_size: 2, strides: 2))},
        avg_pool: {image, quote(do: &Axon.avg_pool(&1, kernel_size: 3, padding: :same))},
        lp_pool: {image, quote(do: &Axon.lp_pool(Axon.exp(&1), kernel_size: 2, norm: 2))},
        # Axon's filter for channels that come last is for an odd number of them.
        blur_pool: {[{2, 8, 8, 1}], quote(do: &Axon.blur_pool(&1))},
        adaptive_avg_pool: {image, quote(do: &Axon.adaptive_avg_pool(&1, output_size: {3, 4}))},
        adaptive_max_pool: {image, quote(do: &Axon.adaptive_max_pool(&1, output_size: {3, 4}))},
        adaptive_lp_pool: {image, quote(do: &Axon.adaptive_lp_pool(Axon.exp(&1), output_size: {2, 2}))},
        global_avg_pool: {image, quote(do: &Axon.global_avg_pool(&1))},
        global_max_pool: {image, quote(do: &Axon.global_max_pool(&1))},
        global_lp_pool: {image, quote(do: &Axon.global_lp_pool(Axon.exp(&1)))},
        batch_norm: {image, quote(do: &Axon.batch_norm(&1))},
        instance_norm: {image, quote(do: &Axon.instance_norm(&1))},
        layer_norm: {text, quote(do: &Axon.layer_norm(&1))},
        rms_norm: {text, quote(do: &Axon.rms_norm(&1))},
        group_norm: {image, quote(do: &Axon.group_norm(&1, 2))},
        lstm: {text, quote(do: fn x -> x |> Axon.lstm(3) |> elem(0) end)},
        lstm_dynamic: {text, quote(do: fn x -> x |> Axon.lstm(3, unroll: :dynamic) |> elem(0) end)},
        lstm_static: {text, quote(do: fn x -> x |> Axon.lstm(3, unroll: :static) |> elem(0) end)},
        gru: {text, quote(do: fn x -> x |> Axon.gru(3) |> elem(0) end)},
        conv_lstm: {[{1, 3, 4, 4, 2}], quote(do: fn x -> x |> Axon.conv_lstm(2, kernel_size: 2) |> elem(0) end)},
        bidirectional:
          {text,
           quote(
             do: fn x ->
               x
               |> Axon.bidirectional(&Axon.gru(&1, 3), &Nx.concatenate([&1, &2], axis: 1))
               |> Axon.nx(&elem(&1, 0))
             end
           )},
        embedding: {[{:integers, {2, 5}}], quote(do: &Axon.embedding(&1, 7, 4))},
        flatten: {image, quote(do: &Axon.flatten(&1))},
        reshape: {vector, quote(do: &Axon.reshape(&1, {:batch, 2, 3}))},
        transpose: {text, quote(do: &Axon.transpose(&1, [0, 2, 1]))},
        pad: {image, quote(do: &Axon.pad(&1, [{1, 2}, {0, 1}], 0.5))},
        resize_nearest: {image, quote(do: &Axon.resize(&1, {5, 11}, method: :nearest))},
        resize_bilinear: {image, quote(do: &Axon.resize(&1, {5, 11}, method: :bilinear))},
        resize_bicubic: {image, quote(do: &Axon.resize(&1, {11, 5}, method: :bicubic))},
        concatenate: {[{2, 3}, {2, 4}], quote(do: &Axon.concatenate(&1, &2))},
        add: {[{2, 3}, {2, 3}], quote(do: &Axon.add(&1, &2))},
        subtract: {[{2, 3}, {2, 3}], quote(do: &Axon.subtract(&1, &2))},
        multiply: {[{2, 3}, {2, 3}], quote(do: &Axon.multiply(&1, &2))},
        cond:
          {[{2, 3}, {2, 3}],
           quote(
             do: fn a, b -> Axon.cond(Axon.add(a, b), &Nx.greater(Nx.sum(&1), 0), Axon.tanh(a), Axon.sigmoid(b)) end
           )},
        split: {[{2, 6}], quote(do: fn x -> x |> Axon.split(3) |> elem(1) end)},
        stack_columns: {[:columns], quote(do: &Axon.stack_columns(&1))},
        nx: {vector, quote(do: fn x -> Axon.nx(x, &Nx.cumulative_sum(&1, axis: 1)) end)},
        constant: {vector, quote(do: fn x -> Axon.add(x, Axon.constant(Nx.tensor([1.0, 2, 3, 4, 5, 6]))) end)},
        mask:
          {[{:integers, {2, 5}}],
           quote(
             do: fn x ->
               {states, _} = x |> Axon.embedding(7, 4) |> Axon.lstm(3, mask: Axon.mask(x, 0))
               states
             end
           )},
        container: {vector, quote(do: fn x -> Axon.container(%{a: Axon.dense(x, 2), b: {x, Axon.tanh(x)}}) end)},
        dropout: {vector, quote(do: &Axon.dropout(Axon.dense(&1, 4), rate: 0.4))},
        alpha_dropout: {vector, quote(do: &Axon.alpha_dropout(&1))},
        feature_alpha_dropout: {image, quote(do: &Axon.feature_alpha_dropout(&1))},
        spatial_dropout: {image, quote(do: &Axon.spatial_dropout(&1))}
      ]

  for entry <- layers do
    {name, shapes, build} =
      case entry do
        {name, shapes, build} -> {name, shapes, build}
        {name, {shapes, build}} -> {name, shapes, build}
      end

    test "the layer #{name} has the evaluator's predictions and gradients when it is compiled" do
      shapes = unquote(Macro.escape(shapes))
      inputs = for {shape, i} <- Enum.with_index(shapes), do: input("x#{i}", dims(shape))
      model = apply(unquote(build), inputs)
      check(model, for({shape, i} <- Enum.with_index(shapes), into: %{}, do: {"x#{i}", values(shape)}))
    end
  end

  defp dims(:columns), do: []
  defp dims({:integers, shape}), do: dims(shape)
  defp dims(shape), do: [shape: put_elem(shape, 0, nil)]

  defp values(:columns), do: %EMLXAxon.Columns{a: random({2}), b: random({2})}

  defp values({:integers, shape}) do
    numbers = for _ <- 1..Tuple.product(shape), do: :rand.uniform(7) - 1
    numbers |> Nx.tensor(backend: Nx.BinaryBackend) |> Nx.reshape(shape)
  end

  defp values(shape), do: random(shape)

  setup do
    :rand.seed(:exsss, 7)
    :ok
  end

  defp check(model, input) do
    {init, _} = Axon.build(model, compiler: Nx.Defn.Evaluator, seed: 3, mode: :train)
    state = init.(Map.new(input, fn {name, t} -> {name, Nx.to_template(t)} end), Axon.ModelState.empty())

    for mode <- [:inference, :train] do
      opts = [mode: mode, seed: 5]
      expected = predict(model, state, input, Nx.BinaryBackend, Nx.Defn.Evaluator, opts)
      evaluated = predict(model, state, input, backend(), Nx.Defn.Evaluator, opts)
      compiled = predict(model, state, input, backend(), EMLX, opts)
      assert_same(plain(evaluated), plain(expected), rtol: 1.0e-4, atol: 1.0e-5)
      assert_same(plain(compiled), plain(expected), rtol: 1.0e-4, atol: 1.0e-5)
    end

    gradients = fn backend, compiler ->
      on(backend, fn ->
        {_, predict} = Axon.build(model, mode: :train, seed: 5)

        gradient = fn state, input ->
          Nx.Defn.grad(state.data, fn data -> loss(predict.(%{state | data: data}, input).prediction) end)
        end

        Nx.Defn.jit_apply(gradient, [copy(state, backend), copy(input, backend)], compiler: compiler)
      end)
    end

    if state.data != %{} do
      expected = gradients.(Nx.BinaryBackend, Nx.Defn.Evaluator)
      assert_same(gradients.(backend(), EMLX), expected, rtol: 1.0e-3, atol: 1.0e-4)
    end
  end

  defp loss(prediction) do
    [prediction] |> Nx.Defn.Composite.flatten_list() |> Enum.map(&Nx.sum(Nx.sin(&1))) |> Enum.reduce(&Nx.add/2)
  end

  # What comes of training mode has a model's state beside the prediction.
  defp plain(%{prediction: prediction}), do: prediction
  defp plain(prediction), do: prediction

  test "a training loop of a compiled model has the evaluator's result" do
    model = input("x", shape: {nil, 4}) |> Axon.dense(8, activation: :tanh) |> Axon.layer_norm() |> Axon.dense(1)

    data =
      for i <- 1..20 do
        x = Nx.tensor(for(j <- 1..8, do: for(k <- 1..4, do: :math.sin(i * j + k))), backend: Nx.BinaryBackend)
        {%{"x" => x}, Nx.sum(x, axes: [1], keep_axes: true)}
      end

    train = fn backend, compiler ->
      on(backend, fn ->
        {init, _} = Axon.build(model, compiler: Nx.Defn.Evaluator, seed: 3)
        state = init.(%{"x" => Nx.template({8, 4}, :f32)}, Axon.ModelState.empty())

        model
        |> Axon.Loop.trainer(:mean_squared_error, Polaris.Optimizers.adam(learning_rate: 0.01), log: 0)
        |> Axon.Loop.metric(:mean_absolute_error)
        |> Axon.Loop.run(data, state, epochs: 3, compiler: compiler)
      end)
    end

    expected = train.(Nx.BinaryBackend, Nx.Defn.Evaluator)
    assert_same(train.(backend(), EMLX).data, expected.data, rtol: 1.0e-2, atol: 1.0e-3)
  end
end
