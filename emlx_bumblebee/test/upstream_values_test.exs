defmodule EMLXBumblebee.UpstreamValuesTest do
  # The reference values of Bumblebee 0.7.0's tests that need no checkpoint, computed on EMLX.Backend, eagerly and
  # compiled: noise schedulers and Whisper's features, as in diffusers and transformers, logits processors, and PyTorch
  # files. references_test.exs tests models.
  use ExUnit.Case, async: true

  import EMLXBumblebee.Compare

  alias Bumblebee.Audio.WhisperFeaturizer
  alias Bumblebee.Conversion.PyTorchLoader
  alias Bumblebee.Diffusion.{DdimScheduler, LcmScheduler, PndmScheduler}
  alias Bumblebee.Text.Generation.LogitsProcessing
  alias Bumblebee.Vision
  alias EMLXBumblebee.Models

  setup do
    Nx.default_backend(EMLX.Backend)
    :ok
  end

  # The values have four decimal places. Bumblebee's own tests allow twice this difference.
  @tolerance 5.0e-5

  # Returns the largest difference in units of the tolerance.
  defp furthest(actual, expected) do
    assert {actual.shape, actual.type} == {expected.shape, {:f, 32}}

    for {one, other} <- Enum.zip(Nx.to_flat_list(actual), Nx.to_flat_list(expected)), reduce: 0.0 do
      furthest -> max(furthest, abs(one - other) / (@tolerance * (1 + abs(other))))
    end
  end

  describe "schedulers" do
    defmodule Denoising do
      @moduledoc false
      # Runs a scheduler from a fixed sample, with a formula in place of the model.
      import Nx.Defn

      def sample, do: {8, 8, 4} |> Nx.iota(type: :f32) |> Nx.divide(256)

      @doc "Calls the scheduler once for each step."
      def stepwise(scheduler, steps) do
        {state, timesteps} = init(scheduler, steps).(Nx.to_template(sample()), Nx.Random.key(0))

        {_state, sample} =
          for index <- 0..(Nx.size(timesteps) - 1), reduce: {state, sample()} do
            {state, sample} -> step(scheduler).(state, sample, predict(sample, timesteps[index]))
          end

        {sample, timesteps}
      end

      @doc "Runs a batch in a loop of defn, as Bumblebee's pipelines do."
      defn batched(samples, seeds, init, step) do
        samples = Nx.vectorize(samples, :batch)
        keys = seeds |> Nx.vectorize(:batch) |> Nx.Random.key()
        {state, timesteps} = init.(Nx.to_template(samples), keys)

        {samples, _state} =
          while {samples = Nx.devectorize(samples), state}, timestep <- timesteps do
            prediction = predict(samples, timestep)
            {state, samples} = step.(state, Nx.vectorize(samples, :batch), Nx.vectorize(prediction, :batch))
            {Nx.devectorize(samples), state}
          end

        {samples, timesteps}
      end

      def init(scheduler, steps), do: &Bumblebee.scheduler_init(scheduler, steps, &1, &2)
      def step(scheduler), do: &Bumblebee.scheduler_step(scheduler, &1, &2, &3)

      defn(predict(sample, timestep), do: sample * timestep / (timestep + 1))
    end

    # A scheduler, its options, the sum of its output, and the elements at [1..3, 1..3, 1..2]. LCM adds noise after each
    # step but the last. Random numbers differ between frameworks, so LCM runs one step only.
    @steps %{DdimScheduler => 10, PndmScheduler => 10, LcmScheduler => 1}
    @denoised [
      {DdimScheduler, [], 57.1861, ~w(0.0648 0.0666 0.0718 0.0736 0.0788 0.0806 0.1209 0.1226 0.1279
          0.1296 0.1349 0.1367 0.1770 0.1787 0.1840 0.1857 0.1910 0.1927)},
      {DdimScheduler, [beta_schedule: :quadratic], 59.5049,
       ~w(0.0675 0.0693 0.0747 0.0766 0.0820 0.0839 0.1258 0.1276 0.1331
          0.1349 0.1404 0.1422 0.1841 0.1860 0.1914 0.1932 0.1987 0.2005)},
      {DdimScheduler, [beta_schedule: :squared_cosine], 60.2983,
       ~w(0.0684 0.0702 0.0757 0.0776 0.0831 0.0850 0.1275 0.1293 0.1349
          0.1367 0.1422 0.1441 0.1866 0.1884 0.1940 0.1958 0.2014 0.2032)},
      {DdimScheduler, [beta_start: 0.001, beta_end: 0.02], 57.5869,
       ~w(0.0653 0.0670 0.0723 0.0741 0.0794 0.0812 0.1217 0.1235 0.1288
          0.1306 0.1359 0.1376 0.1782 0.1800 0.1853 0.1870 0.1923 0.1941)},
      {DdimScheduler, [prediction_type: :angular_velocity], 17.4644,
       ~w(0.0198 0.0203 0.0219 0.0225 0.0241 0.0246 0.0369 0.0375 0.0391
          0.0396 0.0412 0.0417 0.0540 0.0546 0.0562 0.0567 0.0583 0.0589)},
      {PndmScheduler, [], 65.8717, ~w(0.0747 0.0767 0.0827 0.0848 0.0908 0.0928 0.1393 0.1413 0.1473
          0.1493 0.1554 0.1574 0.2038 0.2058 0.2119 0.2139 0.2200 0.2220)},
      {PndmScheduler, [reduce_warmup: true], 65.7333, ~w(0.0745 0.0765 0.0826 0.0846 0.0906 0.0926 0.1390 0.1410 0.1470
          0.1490 0.1551 0.1571 0.2034 0.2054 0.2115 0.2135 0.2195 0.2215)},
      {PndmScheduler, [beta_schedule: :quadratic], 65.4468,
       ~w(0.0742 0.0762 0.0822 0.0842 0.0902 0.0922 0.1384 0.1404 0.1464
          0.1484 0.1544 0.1564 0.2025 0.2045 0.2105 0.2125 0.2186 0.2206)},
      {PndmScheduler, [beta_schedule: :squared_cosine], 65.2970,
       ~w(0.0740 0.0760 0.0820 0.0840 0.0900 0.0920 0.1380 0.1400 0.1460
          0.1480 0.1540 0.1560 0.2021 0.2041 0.2101 0.2121 0.2181 0.2201)},
      {PndmScheduler, [beta_start: 0.001, beta_end: 0.02], 66.3751,
       ~w(0.0752 0.0773 0.0834 0.0854 0.0915 0.0935 0.1403 0.1423 0.1484
          0.1505 0.1566 0.1586 0.2054 0.2074 0.2135 0.2156 0.2217 0.2237)},
      {PndmScheduler, [prediction_type: :angular_velocity], 22.4076,
       ~w(0.0254 0.0261 0.0281 0.0288 0.0309 0.0316 0.0474 0.0481 0.0501
          0.0508 0.0529 0.0535 0.0693 0.0700 0.0721 0.0728 0.0748 0.0755)},
      {LcmScheduler, [], 6.2203, ~w(0.0071 0.0072 0.0078 0.0080 0.0086 0.0088 0.0131 0.0133 0.0139
          0.0141 0.0147 0.0149 0.0192 0.0194 0.0200 0.0202 0.0208 0.0210)},
      {LcmScheduler, [beta_schedule: :linear], 5.7404, ~w(0.0065 0.0067 0.0072 0.0074 0.0079 0.0081 0.0121 0.0123 0.0128
          0.0130 0.0135 0.0137 0.0178 0.0179 0.0185 0.0186 0.0192 0.0193)},
      {LcmScheduler, [beta_schedule: :squared_cosine], 2587.1404,
       ~w(2.9326 3.0118 3.2498 3.3290 3.5667 3.6462 5.4692 5.5484 5.7860
          5.8653 6.1035 6.1827 8.0054 8.0846 8.3229 8.4021 8.6397 8.7190)},
      {LcmScheduler, [beta_start: 0.001, beta_end: 0.02], 10.0290,
       ~w(0.0114 0.0117 0.0126 0.0129 0.0138 0.0141 0.0212 0.0215 0.0224
          0.0227 0.0237 0.0240 0.0310 0.0313 0.0323 0.0326 0.0335 0.0338)},
      {LcmScheduler, [prediction_type: :angular_velocity], -118.3716,
       ~w(-0.1342 -0.1378 -0.1487 -0.1523 -0.1632 -0.1668 -0.2502 -0.2539 -0.2647
          -0.2684 -0.2792 -0.2829 -0.3663 -0.3699 -0.3808 -0.3844 -0.3953 -0.3989)}
    ]

    for {{module, opts, _sum, _numbers}, index} <- Enum.with_index(@denoised) do
      test "the scheduler #{inspect(module)} with #{inspect(opts)} computes the reference samples" do
        {module, opts, sum, numbers} = Enum.at(@denoised, unquote(index))
        scheduler = Bumblebee.configure(module, opts)
        steps = @steps[module]
        {sample, _timesteps} = Denoising.stepwise(scheduler, steps)
        assert {"stepwise", furthest_of(sample, sum, numbers)} <= {"stepwise", 1.0}

        for compiler <- compilers() do
          # A sample of zeros does not change.
          samples = Nx.stack([Nx.multiply(Denoising.sample(), 0), Denoising.sample()])
          init = Denoising.init(scheduler, steps)
          step = Denoising.step(scheduler)
          fun = &Denoising.batched(&1, &2, init, step)
          {samples, _timesteps} = Nx.Defn.jit_apply(fun, [samples, Nx.tensor([0, 1], type: :s64)], options(compiler))
          assert {compiler, furthest_of(samples[1], sum, numbers)} <= {compiler, 1.0}
          assert Nx.to_number(Nx.reduce_max(Nx.abs(samples[0]))) == 0.0
        end

        # Other options must change the values.
        for {^module, other, sum, numbers} <- @denoised,
            other != opts,
            do: assert(furthest_of(sample, sum, numbers) > 1.0)
      end
    end

    defp furthest_of(sample, sum, numbers) do
      numbers = numbers |> Enum.map(&String.to_float/1) |> Nx.tensor() |> Nx.reshape({3, 3, 2})
      max(furthest(Nx.sum(sample), Nx.tensor(sum)), furthest(sample[[1..3, 1..3, 1..2]], numbers))
    end

    @timesteps [
      {DdimScheduler, [], 10, Enum.to_list(900..0//-100)},
      {LcmScheduler, [], 10, Enum.to_list(999..99//-100)},
      {LcmScheduler, [], 3, [999, 679, 339]},
      {LcmScheduler, [], 1, [999]},
      {PndmScheduler, [], 4, [750, 625, 625, 500, 500, 375, 375, 250, 250, 125, 125, 0, 0]},
      {PndmScheduler, [], 10,
       [900, 850, 850, 800, 800, 750, 750, 700, 700, 650, 650, 600] ++ Enum.to_list(600..0//-100)},
      {PndmScheduler, [reduce_warmup: true], 2, [500, 0, 0]},
      {PndmScheduler, [reduce_warmup: true], 4, [750, 500, 500, 250, 0]},
      {PndmScheduler, [reduce_warmup: true], 10, [900, 800] ++ Enum.to_list(800..0//-100)}
    ]

    test "the schedulers have the reference timesteps" do
      for {module, opts, steps, expected} <- @timesteps do
        init = module |> Bumblebee.configure(opts) |> Denoising.init(steps)
        sample = Denoising.sample()
        {_state, timesteps} = init.(Nx.to_template(sample), Nx.Random.key(0))
        assert Nx.to_list(timesteps) == expected

        for compiler <- compilers() do
          fun = fn sample, key -> sample |> Nx.to_template() |> init.(key) |> elem(1) end
          timesteps = Nx.Defn.jit_apply(fun, [sample, Nx.Random.key(0)], options(compiler))
          assert {compiler, Nx.to_list(timesteps)} == {compiler, expected}
        end
      end
    end
  end

  describe "featurizers" do
    # As in the preprocessor_config.json of openai/whisper-tiny.
    @whisper %{
      feature_extractor_type: "WhisperFeatureExtractor",
      feature_size: 80,
      sampling_rate: 16_000,
      hop_length: 160,
      chunk_length: 30,
      n_fft: 400,
      padding_value: 0.0
    }
    @features [
      [0.7313, 0.7820, 0.7391, 0.6787],
      [0.4332, 0.4861, 0.4412, 0.3497],
      [-0.5938, -0.5938, -0.5938, -0.5938],
      [-0.5938, -0.5938, -0.5938, -0.5938]
    ]

    @tag :tmp_dir
    test "Whisper's featurizer computes the reference features", %{tmp_dir: folder} do
      File.write!(Path.join(folder, "preprocessor_config.json"), Jason.encode!(@whisper))
      {:ok, %WhisperFeaturizer{} = featurizer} = Bumblebee.load_featurizer({:local, folder})
      # The reference is the second of two, so that the test covers batches.
      audio = [Nx.iota({50}, type: :f32), Nx.sin(Nx.iota({100}, type: :f32))]
      features = Nx.tensor(@features)

      for compiler <- compilers() do
        extract = fn featurizer ->
          %{"input_features" => extracted} =
            Bumblebee.apply_featurizer(featurizer, audio, defn_options: options(compiler))

          extracted
        end

        extracted = extract.(featurizer)
        assert extracted.shape == {2, 3000, 80}
        assert {compiler, furthest(extracted[[1, 0..3, 0..3]], features)} <= {compiler, 1.0}

        # Trailing silence changes nothing, so one second is enough to detect that each option matters.
        for {opts, near?} <- [
              {[], true},
              {[hop_length: 80], false},
              {[fft_length: 200], false},
              {[feature_size: 40], false},
              {[sampling_rate: 8_000], false}
            ] do
          extracted = featurizer |> Bumblebee.configure([num_seconds: 1] ++ opts) |> extract.()
          assert {compiler, opts, furthest(extracted[[1, 0..3, 0..3]], features) <= 1.0} == {compiler, opts, near?}
        end
      end
    end

    test "Whisper's featurizer computes transformers' features for a whole second" do
      # test/references/generate.py generates the file.
      tensors = Path.expand("whisper_features.safetensors", __DIR__) |> Safetensors.read!() |> on(EMLX.Backend)
      featurizer = Bumblebee.configure(WhisperFeaturizer, num_seconds: 1)
      expected = Nx.stack([tensors["features.0"], tensors["features.1"]])
      audio = [tensors["audio.0"], tensors["audio.1"]]

      for compiler <- compilers() do
        %{"input_features" => extracted} =
          Bumblebee.apply_featurizer(featurizer, audio, defn_options: options(compiler))

        assert {compiler, furthest(extracted, expected)} <= {compiler, 1.0}
      end

      assert furthest(Nx.reverse(expected, axes: [0]), expected) > 1.0e3
    end

    # A featurizer, its default output size, and options for a smaller output.
    cropped = [size: %{shortest_edge: 12}, crop_size: %{height: 8, width: 10}]

    @images [
      {Vision.BitFeaturizer, 448, cropped},
      {Vision.BlipFeaturizer, 384, [size: %{height: 12, width: 9}]},
      {Vision.ClipFeaturizer, 224, cropped},
      {Vision.ConvNextFeaturizer, 224, [size: 12]},
      {Vision.DeitFeaturizer, 224, [size: %{height: 12, width: 9}, crop_size: %{height: 8, width: 10}]},
      {Vision.VitFeaturizer, 224, [size: %{height: 12, width: 9}]}
    ]

    for {module, size, smaller} <- @images do
      # Bumblebee tests the default shape. The values are compared with Nx.BinaryBackend, which is slow, at a smaller
      # size.
      test "#{inspect(module)} has the same output as on Nx.BinaryBackend" do
        smaller = unquote(Macro.escape(smaller))

        pixels = fn backend, opts, channels, compiler ->
          Nx.with_default_backend(backend, fn ->
            image = Nx.broadcast(Nx.tensor([[[50], [100]], [[150], [200]]]), {2, 2, channels})
            featurizer = Bumblebee.configure(unquote(module), opts)
            Bumblebee.apply_featurizer(featurizer, image, defn_options: options(compiler))["pixel_values"]
          end)
        end

        for channels <- [3, 4] do
          expected = pixels.(Nx.BinaryBackend, smaller, channels, Nx.Defn.Evaluator)

          for compiler <- compilers() do
            assert pixels.(EMLX.Backend, [], channels, compiler).shape == {1, unquote(size), unquote(size), 3}
            assert_alike(pixels.(EMLX.Backend, smaller, channels, compiler), expected, inspect(compiler))
          end
        end
      end
    end
  end

  describe "processors of logits" do
    no = :neg_infinity
    four = [1.0, 2.0, 3.0, 4.0]
    eight = four ++ [5.0, 6.0, 7.0, 8.0]
    shares = Enum.map([0.1, 0.2, 0.3, 0.4], &:math.log/1)
    whisper = [eos_token_id: 4, forced_token_ids: [{1, 3}], no_timestamps_token_id: 5, timestamp_begin_id: 6]
    forced = [forced_token_ids: [{1, 2}, {2, 1}]]

    # For each processor: options, logits, tokens so far, padded with 0, and the expected logits.
    @processed [
      suppressed_tokens_processor: {[suppressed_token_ids: [1, 3]], four, [1, 0, 0, 0], [1.0, no, 3.0, no]},
      bos_token_processor: {[bos_token_id: 1], four, [1, 0, 0, 0], [no, 0.0, no, no]},
      bos_token_processor: {[bos_token_id: 1], four, [1, 1, 0, 0], four},
      eos_token_processor: {[eos_token_id: 2], four, [1, 1, 1, 0], [no, no, 0.0, no]},
      eos_token_processor: {[eos_token_id: 1], four, [1, 1, 0, 0], four},
      forced_tokens_processor: {forced, four, [1, 0, 0, 0], [no, no, 0.0, no]},
      forced_tokens_processor: {forced, four, [1, 1, 0, 0], [no, 0.0, no, no]},
      forced_tokens_processor: {forced, four, [1, 1, 1, 0], four},
      # The test adds a min_length_fun that returns 3.
      min_length_processor: {[eos_token_ids: [2]], four, [1, 1, 0, 0], [1.0, 2.0, no, 4.0]},
      min_length_processor: {[eos_token_ids: [2]], four, [1, 1, 1, 0], four},
      min_length_processor: {[eos_token_ids: [2, 1]], four, [1, 1, 0, 0], [1.0, no, no, 4.0]},
      no_repeat_ngram_processor: {[ngram_length: 2], four, [2, 3, 2, 0], [1.0, 2.0, 3.0, no]},
      no_repeat_ngram_processor: {[ngram_length: 2], four, [2, 3, 1, 0], four},
      temperature_processor: {[temperature: 10], four, [1, 0, 0, 0], [0.1, 0.2, 0.3, 0.4]},
      top_k_processor: {[top_k: 2], four, [1, 0, 0, 0], [no, no, 3.0, 4.0]},
      top_k_processor: {[top_k: 2], [3.0, 2.0, 3.0, 4.0], [1, 0, 0, 0], [3.0, no, 3.0, 4.0]},
      top_p_processor: {[top_p: 0.7], shares, [1, 0, 0, 0], [no, no | Enum.drop(shares, 2)]},
      top_p_processor: {[top_p: 0.6], shares, [1, 0, 0, 0], [no, no | Enum.drop(shares, 2)]},
      whisper_timestamp_processor: {whisper, eight, [1, 0, 0, 0], List.replace_at(eight, 5, no)},
      whisper_timestamp_processor: {whisper, eight, [1, 3, 0, 0], [no, no, no, no, no, no, 0.0, no]},
      whisper_timestamp_processor: {whisper, eight, [1, 3, 6, 0], Enum.take(eight, 5) ++ [no, no, no]},
      whisper_timestamp_processor: {whisper, eight, [1, 3, 6, 2, 7, 0], [no, no, no, no, no, no, 7.0, 8.0]},
      whisper_timestamp_processor: {whisper, eight, [1, 3, 6, 2, 7, 7, 0], Enum.take(eight, 5) ++ [no, no, no]},
      whisper_timestamp_processor:
        {whisper, Enum.take(eight, 6) ++ [17.0, 18.0], [1, 3, 6, 2, 2, 0], [no, no, no, no, no, no, 17.0, 18.0]}
    ]

    for name <- @processed |> Keyword.keys() |> Enum.uniq() do
      test "the logits processor #{name} returns the reference logits" do
        for {opts, logits, tokens, expected} <- Keyword.get_values(@processed, unquote(name)) do
          opts = if unquote(name) == :min_length_processor, do: opts ++ [min_length_fun: fn _ -> 3 end], else: opts
          length = Enum.count(tokens, &(&1 != 0))

          process = fn logits, tokens, length ->
            LogitsProcessing.unquote(name)(logits, %{sequence: tokens, length: length, input_length: 1}, opts)
          end

          for type <- if(unquote(name) == :no_repeat_ngram_processor, do: [:f32, :f16], else: [:f32]) do
            [logits, expected] = for list <- [logits, expected], do: Nx.tensor(list, type: type)
            tokens = Nx.tensor(tokens)
            assert_same(process.(logits, tokens, length), expected, {opts, tokens, "by step"})

            for compiler <- compilers() do
              run = &Nx.Defn.jit_apply(process, &1, options(compiler))
              assert_same(run.([logits, tokens, length]), expected, {opts, tokens, compiler})
              # Generation passes vectorized tensors.
              [logits, tokens, twice] =
                for one <- [logits, tokens, expected], do: Nx.vectorize(Nx.stack([one, one]), :batch)

              assert_same(run.([logits, tokens, length]), twice, {opts, tokens, compiler})
            end
          end
        end
      end
    end

    # The comparison is exact: processors must not change the logits that they keep.
    defp assert_same(actual, expected, path) do
      for part <- [&Nx.type/1, & &1.vectorized_axes, &Nx.to_list(Nx.devectorize(&1))],
          do: assert({path, part.(actual)} == {path, part.(expected)})
    end

    defmodule Counting do
      @moduledoc false
      # Forces the token in its state, and then the one after it.
      @behaviour Bumblebee.Configurable
      @behaviour Bumblebee.LogitsProcessor

      defstruct [:from]

      @impl Bumblebee.Configurable
      def config(processor, opts), do: struct!(processor, opts)

      @impl Bumblebee.LogitsProcessor
      def init(processor, _context), do: %{token: Nx.tensor(processor.from)}

      @impl Bumblebee.LogitsProcessor
      def process(_processor, state, logits, _context) do
        forced = Nx.equal(Nx.iota({Nx.axis_size(logits, -1)}), state.token)
        {%{token: Nx.add(state.token, 1)}, Nx.select(forced, logits, Nx.Constants.neg_infinity(logits.type))}
      end
    end

    test "a logits processor with a state works in a batch of one and of two" do
      info = :gpt2 |> Models.info(vocab_size: 100) |> EMLXBumblebee.rewrite()
      params = %{info.params | data: on(info.params.data, EMLX.Backend)}

      for {batch, from, expected} <- [{1, 79, [[79, 80]]}, {2, 78, [[78, 79, 80], [78, 79, 80]]}],
          compiler <- compilers() do
        config = Models.generation(%{type: :greedy_search}, max_new_tokens: length(hd(expected)))
        counting = Bumblebee.configure(Counting, from: from)
        opts = [logits_processors: [counting]]
        generate = Bumblebee.Text.Generation.build_generate(info.model, info.spec, config, opts)
        ids = Nx.tensor(List.duplicate([0, 0, 10, 20, 30, 40, 50, 60, 70, 80], batch))
        inputs = %{"input_ids" => ids, "attention_mask" => Nx.not_equal(ids, 0), "seed" => Nx.broadcast(0, {batch})}
        %{token_ids: tokens} = Nx.Defn.jit_apply(generate, [params, inputs], options(compiler))
        assert {compiler, Nx.to_list(tokens)} == {compiler, expected}
      end
    end
  end

  describe "a file that PyTorch wrote" do
    # test/references/generate.py generates the files.
    @tensors %{
      "float64" => {:f64, [-1.5, 2.25]},
      "float32" => {:f32, [-1.5, 2.25]},
      "float16" => {:f16, [-1.5, 2.25]},
      "bfloat16" => {:bf16, [-1.5, 2.25]},
      "int64" => {:s64, [-3, 2]},
      "int32" => {:s32, [-3, 2]},
      "int16" => {:s16, [-3, 2]},
      "int8" => {:s8, [-3, 2]},
      "complex128" => {:c128, [Complex.new(1.5, -1.0), Complex.new(-2.0, 0.5)]},
      "complex64" => {:c64, [Complex.new(1.5, -1.0), Complex.new(-2.0, 0.5)]},
      "uint8" => {:u8, [7, 255]},
      "bool" => {:u8, [0, 1]},
      "permuted" => {:f32, for(i <- 0..3, do: for(j <- 0..1, do: for(k <- 0..2, do: 12.0 * j + 4 * k + i)))},
      "part" => {:s64, [4, 5, 6]}
    }

    for format <- ~w(zip legacy) do
      test "the tensors of a PyTorch file in the format #{format} load on EMLX.Backend" do
        # MLX has no f64 on a GPU.
        Nx.default_backend({EMLX.Backend, device: :cpu})
        tensors = PyTorchLoader.load!(Path.expand("pytorch/#{unquote(format)}.pt", __DIR__))
        assert Enum.sort(Map.keys(tensors)) == Enum.sort(Map.keys(@tensors))

        for {name, {type, expected}} <- @tensors do
          assert %{data: %EMLX.Backend{}} = tensor = Nx.to_tensor(tensors[name])
          assert {name, tensor.type, Nx.to_list(tensor)} == {name, Nx.Type.normalize!(type), expected}
        end
      end
    end
  end

  doctest Bumblebee.Utils.Nx
end
