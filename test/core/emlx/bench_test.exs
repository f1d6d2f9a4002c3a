# The suite is compiled from source to files, since doctests are read from files; mix emlx.bench keeps it in memory.
folder = Path.expand("../../../bench", __DIR__)
beams = Path.join(Mix.Project.build_path(), "bench_suite")
File.rm_rf!(beams)
File.mkdir_p!(beams)
docs = Code.get_compiler_option(:docs)
Code.put_compiler_option(:docs, true)

{:ok, _, %{compile_warnings: [], runtime_warnings: []}} =
  ["suite", "suite/parts"]
  |> Enum.flat_map(&Path.wildcard(Path.join([folder, &1, "*.ex"])))
  |> Kernel.ParallelCompiler.compile_to_path(beams, return_diagnostics: true)

Code.put_compiler_option(:docs, docs)
Code.prepend_path(beams)

defmodule EMLX.BenchTest do
  use ExUnit.Case, async: false

  import ExUnit.CaptureIO

  @folder Path.expand("../../../bench", __DIR__)

  alias EMLX.Bench.{
    Chart,
    Checkpoint,
    Inputs,
    Measure,
    Options,
    Part,
    Parts,
    Peer,
    Peers,
    Progress,
    Report,
    Statistics,
    Table,
    Training
  }

  doctest EMLX.Bench.Statistics
  doctest EMLX.Bench.JSON
  doctest EMLX.Bench.Table
  doctest EMLX.Bench.Progress
  doctest EMLX.Bench.Options
  doctest EMLX.Bench.Parts.Small

  @parts EMLX.Bench.names(Path.join(@folder, "suite"))

  describe "arguments" do
    test "parts run in their own order, each once, all of them by default" do
      assert {:ok, %{parts: ["kernels", "dispatch"]}} = Options.parse(~w(dispatch kernels dispatch), @parts)

      assert {:ok, %{parts: @parts, device: :cpu, peers?: true, quick?: false, full?: false}} =
               Options.parse([], @parts)

      assert {:ok, %{parts: ["generation"], full?: true}} = Options.parse(~w(generation --full), @parts)
      assert {:ok, %{only: "bf16"}} = Options.parse(~w(generation --only bf16), @parts)
    end

    test "a wrong argument is named in the error" do
      for {arguments, message} <- [
            {~w(kernel), "there is no part kernel; the parts are kernels, dispatch"},
            {~w(--device tpu), "--device is cpu or gpu, not tpu"},
            {~w(--device), "--device needs a value"},
            {~w(--fast), "--fast is not an option; there are --device VALUE"},
            {~w(--quick=perhaps), "--quick does not take perhaps"},
            {~w(-x), "-x is not an option"}
          ] do
        assert {:error, text} = Options.parse(arguments, @parts)
        assert text =~ message
      end

      assert_raise Mix.Error, ~r/there is no part kernel;/, fn -> Mix.Task.rerun("emlx.bench", ["kernel"]) end
    end

    test "--list names every part" do
      assert {:list, text} = EMLX.Bench.parse(["--list"], Path.join(@folder, "suite"))
      for part <- @parts, do: assert(text =~ part)
    end
  end

  describe "figures" do
    test "a summary holds the median, the least and the quartiles" do
      assert %{median: 3, least: 1, quartiles: {2, 4}, runs: 5} = Statistics.summary([5, 1, 4, 2, 3])
    end

    test "sides are run in turn, forwards and backwards, without the rounds that warm up" do
      {:ok, order} = Agent.start_link(fn -> [] end)
      side = fn name, figure -> {name, fn -> Agent.update(order, &[name | &1]) && figure end} end
      figures = Measure.in_turn([side.(:a, 1), side.(:b, 2)], :bytes, fn -> :ok end, 1)
      assert figures == %{a: [1, 1, 1], b: [2, 2, 2]}
      assert order |> Agent.get(&Enum.reverse/1) |> Enum.join() == "ab" <> "ab" <> "ba" <> "ab"
    end

    @tag :timing
    test "peak memory is what a run takes beyond what is held" do
      held = EMLX.eval(EMLX.Ops.iota({1024, 1024}, dtype: :f32))
      bytes = fn -> Measure.peak(fn -> EMLX.eval(EMLX.Ops.add(held, 1.0)) end) end
      # Garbage of an earlier test may be freed or computed during the measurement.
      assert EMLX.Poll.until(fn -> bytes.() in (4 * 1024 * 1024)..(5 * 1024 * 1024) end)
    end

    test "results that are too far apart are refused" do
      assert Inputs.check!("this", [1.0, 2.0], [1.0, 2.001], :f32) < 1.0e-3
      assert_raise RuntimeError, ~r/^this computes something else/, fn -> Inputs.check!("this", [1.0], [1.1], :f32) end
      assert_raise RuntimeError, ~r/^this computes something else/, fn -> Inputs.check!("this", [:nan], [1.1], :f32) end
    end
  end

  describe "the report" do
    setup do
      group = %Part.Group{sides: nil, rows: [{"a <case> & more", "EMLX", ["Python MLX", "XLA"]}]}
      figures = %{"EMLX" => [1.0e3, 2.0e3, 3.0e3], "Python MLX" => [4.0e3, 4.0e3, 5.0e3]}
      part = Report.part("models", [{:ok, "first", group, figures}, {:error, "second", "does \"not\" run"}])

      results = %{
        date: "2026-11-23T04:00:00Z",
        device: :cpu,
        quick: false,
        machine: [os: "linux", cores: 2, processor: "a processor", memory: "1 GiB", versions: [emlx: "0.1.0", nx: nil]],
        load_before: 0.5,
        notes: ["without XLA: there is no python3"],
        parts: [part]
      }

      %{results: results, part: part}
    end

    test "the report prints medians, ratios and failures, and leaves out a side that is absent", %{part: part} do
      text = Report.text(part)
      assert text =~ ~r/a <case> & more +EMLX +2\.00 ms +Python MLX +4\.00 ms +0\.500 +0\.250 +2\.00 times as fast/
      refute text =~ "XLA"
      assert text =~ "failed: second: does \"not\" run"
    end

    test "the report's heading has the machine, the versions and what is left out", %{results: results} do
      text = Report.heading(results)

      for part <- ["a processor", "2 cores", "load 0.5", "emlx 0.1.0", "without XLA: there is no python3", "2026-11-23"],
          do: assert(text =~ part)

      refute text =~ "nx"
      refute text =~ "busy"
      assert Report.heading(%{results | load_before: 3.5}) =~ "the machine is busy"
    end

    @tag :tmp_dir
    @tag skip: if(not Code.ensure_loaded?(:json), do: "Erlang/OTP reads JSON from version 27 on")
    test "the report writes well-formed JSON and a well-formed chart", %{results: results, tmp_dir: folder} do
      assert [json, svg] = Report.write(results, folder)
      assert Path.basename(svg) == "models.svg"
      assert {%{"svg" => 1}, texts} = svg |> File.read!() |> xml()
      assert "a <case> & more" in texts
      assert "Python MLX" in texts

      {decoded, _, ""} = json |> File.read!() |> String.trim() |> :json.decode(:ok, %{})
      assert %{"date" => "2026-11-23T04:00:00Z", "machine" => %{"cores" => 2, "versions" => %{"nx" => :null}}} = decoded

      assert [%{"name" => "models", "rows" => [row], "failures" => [%{"message" => "does \"not\" run"}]}] =
               decoded["parts"]

      assert %{"here" => %{"median" => 2.0e3, "runs" => 3}, "against" => [%{"ratio" => 0.5}]} = row
    end

    test "the report charts growth as lines, in one panel for each axis and unit" do
      groups =
        for {value, time} <- [{1, 10.0}, {2, 19.0}, {4, 41.0}], unit <- [:time, :bytes] do
          group = %Part.Group{
            sides: nil,
            rows: [{"#{value}", "EMLX", ["Python MLX"]}],
            point: {:batch, value},
            unit: unit
          }

          {:ok, "growth", group, %{"EMLX" => [time * 1024], "Python MLX" => [2048 * time]}}
        end

      svg = Report.chart(Report.part("growth", groups), %{device: :cpu, date: "2026-11-23T04:00:00Z"})
      assert {%{"polyline" => 4, "circle" => 14}, texts} = xml(svg)
      for text <- ["time", "memory", "batch", "EMLX"], do: assert(text in texts)
    end

    test "a chart has room for ratios of any size" do
      rows = [{"small", "1 µs", [{"a", 1.0e-4}]}, {"large", "1 s", [{"b", 1.0e4}]}]
      assert {%{"circle" => 4}, _} = xml(Chart.ratios("title", "axis", rows))
    end

    test "the table aligns texts to the left and numbers to the right" do
      assert Table.markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    end
  end

  test "progress is not drawn where the output is no terminal" do
    assert capture_io(fn -> Progress.new(3) |> Progress.label("kernels") |> Progress.step() |> Progress.clear() end) ==
             ""
  end

  describe "another program" do
    test "a peer answers, passes on its own errors, and is reported once it has ended" do
      script = """
      echo "some noise"
      while read -r command rest; do
        case $command in
          versions) echo "= ok one=1 two=2.0" ;;
          define) echo "noise"; echo "= ok 7" ;;
          time) echo "= ok 12.5 3" ;;
          sample) echo "= ok 1.0 nan" ;;
          peak) echo "= error it+broke" ;;
          *) exit 3 ;;
        esac
      done
      """

      peer = Peer.start("The other", System.find_executable("bash"), ["-c", script], [])
      assert peer.versions == [{"one", "1"}, {"two", "2.0"}]
      assert Peer.define(peer, :kernel, name: "a b") == "7"
      # A peer answers every process, not only the one that started it.
      assert Task.await(Task.async(fn -> Peer.time(peer, "7") end)) == 12.5
      assert Peer.times(peer, "7") == [12.5, 3.0]
      assert [1.0, other] = Peer.sample(peer, "7")
      assert other > 1.0e299
      assert_raise RuntimeError, "The other says: it broke", fn -> Peer.peak(peer, "7") end
      assert_raise RuntimeError, "The other ended with status 3", fn -> Peer.drop(peer, "7") end
      assert_raise RuntimeError, "The other has ended", fn -> Peer.time(peer, "7") end
      Peer.stop(peer)
    end

    @tag :tmp_dir
    test "a peer that cannot be started is left out with a note", %{tmp_dir: empty} do
      path = System.get_env("PATH")
      on_exit(fn -> System.put_env("PATH", path) end)
      System.put_env("PATH", empty)

      assert Peers.start([:mlx, :mlx_lm], %{device: :cpu}, @folder) ==
               {%{}, ["without Python MLX: there is no python3", "without mlx-lm: there is no python3"]}
    end
  end

  # A fake program: a function of a command and its arguments.
  defmodule Played do
    use GenServer

    def peer(name, answer) do
      {:ok, owner} = GenServer.start_link(__MODULE__, answer)
      %Peer{name: name, owner: owner}
    end

    @impl true
    def init(answer), do: {:ok, answer}

    @impl true
    def handle_call(line, _from, answer) do
      [command | words] = line |> String.split() |> Enum.map(&URI.decode_www_form/1)
      {:reply, answer.(command, words), answer}
    end
  end

  describe "text generation" do
    # A fake Bumblebee, whose case is named by its options; `texts` maps cases to tokens.
    defp bumblebee(texts) do
      Played.peer("Bumblebee", fn
        "define", words -> {:ok, [Enum.join(words, " ")]}
        "sample", [options] -> texts.(options)
        "time", _ -> {:ok, ["49500.0", "12000.0"]}
        "drop", _ -> {:ok, []}
      end)
    end

    # A fake mlx-lm, which generates 1, 2, 3, and rates 9 as a wrong token and 8 as one nearly as good.
    defp mlx_lm do
      Played.peer("mlx-lm", fn
        "define", words ->
          {:ok, [Enum.join(words, " ")]}

        "sample", ["below " <> options] ->
          {:ok, Enum.map(ids(options), &%{"8" => "0.01", "9" => "3.5"}[&1]) |> Enum.map(&(&1 || "0.0"))}

        "sample", _ ->
          {:ok, ~w(1 2 3)}

        "time", _ ->
          {:ok, ["81000.0", "6000.0"]}

        "drop", _ ->
          {:ok, []}
      end)
    end

    defp ids(options), do: Regex.run(~r/ids=(\S+)/, options) |> Enum.at(1) |> String.split(",")

    defp context(folder, peers),
      do: %{device: :cpu, quick?: true, full?: false, temporary: folder, peers: peers}

    defp group(context, name) do
      {^name, make} = List.keyfind(Parts.Generation.groups(context), name, 0)
      make.()
    end

    @name "small_qwen3, bf16, 16 bits"

    @tag :tmp_dir
    test "generation is measured in tokens a second and time to the first token", %{tmp_dir: folder} do
      group = folder |> context(%{bumblebee: bumblebee(fn _ -> {:ok, ~w(1 2 3)} end), mlx_lm: mlx_lm()}) |> group(@name)
      assert group.missing == []
      assert group.notes == ["small Qwen3, bf16: all 3 tokens are mlx-lm's"]
      figures = Measure.in_turn(group.sides, :bytes, fn -> :ok end, 0)
      part = Report.part("generation", [{:ok, @name, group, figures}])
      text = Report.text(part)

      assert text =~
               ~r/small Qwen3, bf16 +Bumblebee rewritten +400 tokens\/s +mlx-lm +200 tokens\/s +0\.500 .*2\.00 times as fast/

      assert text =~ ~r/small Qwen3, bf16 +merge \+ run_ahead +400 tokens\/s/
      assert text =~ ~r/small Qwen3, bf16, first token +merge +12\.0 ms +mlx-lm +6\.00 ms +2\.00 .*2\.00 times as slow/
      assert text =~ ~r/Bumblebee as it is +400 tokens\/s +1\.00/
      assert text =~ "\nsmall Qwen3, bf16: all 3 tokens"

      json = Report.json(%{date: "", device: :cpu, quick: true, machine: [], load_before: 0, notes: [], parts: [part]})
      for piece <- [~s("unit": "microseconds a token"), ~s("median": 2.5e3), "all 3 tokens"], do: assert(json =~ piece)

      {_, texts} = part |> Report.chart(%{device: :cpu, date: "2026-11-23T04:00:00Z"}) |> xml()
      for text <- ["400 tokens/s", "12.0 ms", "small Qwen3, bf16, merge"], do: assert(text in texts)
      assert group.tidy.()
    end

    @tag :tmp_dir
    test "generation of other tokens is not timed, but for tokens that rounding changes", %{tmp_dir: folder} do
      texts = fn options ->
        cond do
          options =~ "run_ahead=8" -> {:error, "says: it broke"}
          options =~ "merge=true" -> {:ok, ~w(1 9 3)}
          true -> {:ok, ~w(1 2 8)}
        end
      end

      peers = %{bumblebee: bumblebee(texts), mlx_lm: mlx_lm()}
      group = folder |> context(peers) |> group(@name)
      assert Enum.map(group.sides, &elem(&1, 0)) == ["Bumblebee rewritten", "Bumblebee as it is", "mlx-lm"]

      assert ["merge + run_ahead: Bumblebee says: it broke", merge] = group.missing
      assert merge == "merge computes something else: token 2 is 3.50 σ below the best in f32"

      assert ("small Qwen3, bf16, Bumblebee rewritten, Bumblebee as it is: the first 2 of 3 tokens are mlx-lm's; f32 takes 2, and the " <>
                "worst is 0.0100 σ below its best (of mlx-lm's 3, 0 σ)") in group.notes

      # In f32, rounding does not explain the difference.
      group = folder |> context(peers) |> group("small_qwen3, f32, 16 bits")
      assert Enum.map(group.sides, &elem(&1, 0)) == ["mlx-lm"]
    end

    @tag :tmp_dir
    test "an absent peer of generation is noted, and the rest is measured", %{tmp_dir: folder} do
      group = folder |> context(%{bumblebee: bumblebee(fn _ -> {:ok, ~w(1 2 3)} end)}) |> group(@name)
      assert length(group.sides) == 4

      assert group.notes == [
               "small Qwen3, bf16: the first 3 of 3 tokens are the same in 4 ways, and mlx-lm is not there"
             ]

      assert Parts.Generation.groups(context(folder, %{mlx_lm: mlx_lm()})) == []
      assert Report.text(Report.part("generation", [])) == "generation: nothing to show"
    end

    @tag :tmp_dir
    test "drawn tokens are measured against greedy ones and compared with the evaluator's", %{tmp_dir: folder} do
      texts = fn options -> {:ok, if(options =~ "compiler=evaluator", do: ~w(4 5 7), else: ~w(4 5 6))} end
      group = folder |> context(%{bumblebee: bumblebee(texts)}) |> group("small_qwen3, f32, sampled, 1 row")
      assert group.notes == ["small Qwen3, f32, 1 row: the first 2 of 3 tokens that are drawn are the evaluator's"]
      figures = Measure.in_turn(group.sides, :bytes, fn -> :ok end, 0)
      text = Report.text(Report.part("generation", [{:ok, "sampled", group, figures}]))
      assert text =~ ~r/small Qwen3, f32, 1 row +sampled +400 tokens\/s +greedy +400 tokens\/s +1\.00/

      names = for {name, _} <- Parts.Generation.groups(%{context(folder, %{bumblebee: nil}) | quick?: false}), do: name
      for name <- ["small_qwen3, f32, sampled, 8 rows", "wide_qwen3, f32, sampled, 1 row"], do: assert(name in names)
    end

    test "generation has models of full shapes on the GPU, and on the CPU if asked" do
      names = fn context -> for {name, _} <- Parts.Generation.groups(context), do: name end
      context = %{context("", %{bumblebee: nil}) | quick?: false}
      assert "qwen3, bf16, 4 bits" in names.(%{context | device: :gpu})
      assert "llama, f32, 4 bits" in names.(%{context | full?: true})
      assert "small_llama, f32, 4 bits" in names.(context)
    end

    @tag :tmp_dir
    test "generation's checkpoints have Hugging Face's layout", %{tmp_dir: folder} do
      for {name, own?} <- [small_qwen3: true, small_llama: false] do
        checkpoint = Checkpoint.text(folder, name, :cpu)
        arrays = EMLX.Safetensors.load(checkpoint.file)
        assert is_map_key(arrays, "model.layers.0.self_attn.q_norm.weight") == own?
        # The head shares the embedding's weights.
        refute is_map_key(arrays, "lm_head.weight")
        {heads, size} = {checkpoint.kv_heads * checkpoint.head_size, checkpoint.size}
        assert EMLX.Array.shape(arrays["model.layers.1.self_attn.k_proj.weight"]) == {heads, size}
        assert Enum.uniq(for {_, array} <- arrays, do: EMLX.Array.dtype(array)) == [:bf16]
        config = File.read!(Path.join(checkpoint.folder, "config.json"))
        assert config =~ ~s("tie_word_embeddings": true)
        assert config =~ ~s("rope_type": "llama3") == not own?
      end
    end
  end

  describe "small arrays" do
    defp row(label, here, least, ratio) do
      figure = %{median: 2 * least, least: least, quartiles: {least, least}, runs: 1}
      %{label: label, here: here, figure: figure, against: [%{side: "XLA", ratio: ratio}], unit: :time}
    end

    test "the summary has mean ratios, and the figures of the goals from least times" do
      rows =
        [row("add, f32[8]", "eager", 4.0, 1), row("add, f32[1024]", "eager", 90.0, 4)] ++
          [row("add, f32[8]", "compiled", 4.0, 9), row("loop of 0, s64, a step", "compiled", 0.1, 1)] ++
          for({count, least} <- [{2, 1.0}, {7, 2.0}], do: row("loop of #{count}, f32[8], a step", "compiled", least, 1)) ++
          [row("loop of 7, f32[8], an operation", "compiled", 0.3, 100)]

      assert Parts.Small.summary(rows) == [
               "eager: geometric mean of 2 ratios to XLA 2.00; 1 above 1.5",
               "compiled: geometric mean of 1 ratios to XLA 9.00; 1 above 1.5",
               "loops: geometric mean of 3 ratios to XLA 1.00; 0 above 1.5",
               "goal, an eager operation on up to 64 elements and its value, 3.00 µs: 4.00 µs in the median of 1, " <>
                 "4.00 µs to 4.00 µs (least times)",
               "goal, an operation on up to 64 elements in a compiled loop, 0.300 µs: 0.200 µs in the median of 1, " <>
                 "0.200 µs to 0.200 µs (least times)",
               "goal, a loop step's own cost, 0.200 µs: 0.100 µs in the median of 1, 0.100 µs to 0.100 µs (least times)"
             ]

      assert Parts.Small.summary([]) == []
    end
  end

  describe "the encoder" do
    # A fake runtime of ONNX: `define` and `sample` are its answers to an encoder's options.
    defp runtime(name, define, sample) do
      Played.peer(name, fn
        "define", ["encoder" | words] -> {:ok, [define.(Enum.join(words, " "))]}
        "sample", [case] -> {:ok, Enum.map(sample.(case), &to_string/1)}
        "time", _ -> {:ok, ["1000.0"]}
        "drop", _ -> {:ok, []}
      end)
    end

    @tag :tmp_dir
    @tag skip: if(not Code.ensure_loaded?(EMLX.Backend), do: "Nx is not there")
    test "int8 has rows of its own, other results are not timed, and an absent type is left out", %{tmp_dir: folder} do
      EMLX.Bench.load_models(@folder)
      context = %{device: :cpu, quick?: true, full?: false, nx?: true, folder: @folder, temporary: folder, peers: %{}}
      spec = apply(EMLX.Bench.Here, :spec, [:encoder, context, [batch: 1]])
      expected = apply(EMLX.Bench.Here, :compiled, [spec, :cpu, :f32]).sample.()
      threads = "threads=#{System.schedulers_online()}"

      onnxruntime =
        runtime(
          "ONNX Runtime",
          fn options ->
            assert String.contains?(options, threads)
            if options =~ "type=int8", do: "int8", else: "f32"
          end,
          # Rounding to 8 bits is no error in int8.
          &Enum.map(expected, fn number -> if &1 == "int8", do: number * 1.05, else: number end)
        )

      openvino =
        runtime("OpenVINO", &if(&1 =~ "type=int8", do: "none", else: "f32"), fn _ ->
          Enum.map(expected, &(&1 * 1.05))
        end)

      groups = Parts.Models.groups(%{context | peers: %{onnxruntime: onnxruntime, openvino: openvino}})
      made = fn name -> groups |> List.keyfind(name, 0) |> elem(1) |> then(& &1.()) end

      group = made.("encoder of one, int8")
      assert group.missing == []
      assert Enum.map(group.sides, &elem(&1, 0)) == ["EMLX int8", "EMLX in f32", "ONNX Runtime int8"]
      figures = %{"EMLX int8" => [0.5e3], "EMLX in f32" => [2.0e3], "ONNX Runtime int8" => [1.0e3]}
      text = Report.text(Report.part("models", [{:ok, "int8", group, figures}]))
      assert text =~ ~r/1 × 64, int8 +EMLX int8 +500 µs +EMLX in f32 +2\.00 ms +0\.250/
      assert text =~ ~r/1 × 64, int8 +ONNX Runtime int8 +1\.00 ms +EMLX in f32 +2\.00 ms +0\.500/
      refute text =~ "OpenVINO"

      group = made.("encoder of one, f32")
      assert ["OpenVINO computes something else: results are 0.0500 of the largest number apart"] = group.missing
      assert Enum.map(group.sides, &elem(&1, 0)) == ["EMLX", "ONNX Runtime"]

      # Without the runtimes EMLX alone is measured.
      [_, make] = for {"encoder of one, " <> type, make} <- Parts.Models.groups(context), type != "f32", do: make
      assert Enum.map(make.().sides, &elem(&1, 0)) == ["EMLX int8", "EMLX in f32"]
    end
  end

  describe "training" do
    # A fake Axon or JAX, whose updated weights are the initial ones and `change`.
    defp trainer(name, losses, change) do
      Played.peer(name, fn
        "define", ["training" | words] ->
          options = Map.new(words, &(&1 |> String.split("=", parts: 2) |> List.to_tuple()))

          weights =
            for {name, array} <- EMLX.Safetensors.load(options["file"]),
                into: %{},
                do: {name, EMLX.Ops.add(array, change)}

          EMLX.Safetensors.save(options["out"], weights)
          {:ok, [options["model"]]}

        "sample", _ ->
          {:ok, losses}

        "time", _ ->
          {:ok, ["3000.0"]}

        "drop", _ ->
          {:ok, []}
      end)
    end

    defp training(folder, peers, name, device \\ :cpu) do
      context = %{device: device, quick?: true, full?: false, temporary: folder, peers: peers}
      {^name, make} = List.keyfind(Parts.Training.groups(context), name, 0)
      make.()
    end

    @tag :tmp_dir
    test "a training step is timed if losses and updated weights are XLA's", %{tmp_dir: folder} do
      peers = %{axon: trainer("Axon", ~w(2.0 1.0), 0.01), xla: trainer("XLA", ~w(2.0 1.0001), 0.01)}
      group = training(folder, peers, "mlp, f32, batch 1")
      assert group.missing == []
      assert [note] = group.notes
      assert note =~ ~r/^mlp, f32, batch 1, Axon: losses are 0.0000500 and weights 0 of the update from XLA's$/
      figures = Measure.in_turn(group.sides, :bytes, fn -> :ok end, 0)
      assert figures == %{"Axon" => [3000.0, 3000.0, 3000.0], "XLA" => [3000.0, 3000.0, 3000.0]}
      part = Report.part("training", [{:ok, "mlp", group, figures}])
      assert Parts.Training.summary(part.rows) == ["Axon: geometric mean of 1 ratios to XLA 1.00; 0 above 1.5"]

      sides = training(folder, peers, "transformer, bf16, batch 32").sides
      assert Enum.map(sides, &elem(&1, 0)) == ["Axon", "Axon rewritten", "XLA"]
    end

    @tag :tmp_dir
    test "on a GPU, training is compared with PyTorch and Python MLX, also in memory", %{tmp_dir: folder} do
      names = [axon: "Axon", torch: "PyTorch", mlx: "Python MLX", xla: "XLA"]
      peers = for {key, name} <- names, into: %{}, do: {key, trainer(name, ~w(2.0 1.0), 0.01)}
      group = training(folder, peers, "convolutional, f32, batch 128", :gpu)
      assert group.missing == []
      assert Enum.map(group.sides, &elem(&1, 0)) == ["Axon", "PyTorch", "torch.compile", "Python MLX"]
      assert group.unit == :time

      for {name, weights} <- [{"PyTorch", [3, 3, 3, 64]}, {"Axon", [3, 3, 3, 64]}] do
        out = Path.join(folder, "trained-#{name}.safetensors")
        assert EMLX.Safetensors.load(out)["conv_0.kernel"] |> EMLX.Array.shape() |> Tuple.to_list() == weights
      end

      assert %{unit: :bytes} = training(folder, peers, "convolutional, f32, batch 128, memory", :gpu)
    end

    @tag :tmp_dir
    test "training with other losses or other updates is not timed", %{tmp_dir: folder} do
      xla = trainer("XLA", ~w(2.0 1.0), 0.01)

      for {axon, message} <- [
            {trainer("Axon", ~w(2.0 1.1), 0.01), "results are"},
            {trainer("Axon", ~w(2.0 1.0), 0.011), "weights are 0.100 of the update apart"},
            {trainer("Axon", ~w(2.0 nan), 0.01), "results are"}
          ] do
        group = training(folder, %{axon: axon, xla: xla}, "mlp, f32, batch 1")
        assert [text] = group.missing
        assert text =~ "Axon computes something else: " <> message
        assert Enum.map(group.sides, &elem(&1, 0)) == ["XLA"]
      end

      assert Parts.Training.groups(%{device: :cpu, peers: %{xla: xla}}) == []
    end

    @tag :tmp_dir
    test "initial weights and batches are files that are the same each time", %{tmp_dir: folder} do
      again = Path.join(folder, "again")
      File.mkdir_p!(again)

      for {model, steps} <- Training.models() do
        assert steps > 0
        file = Training.weights(folder, model)
        arrays = EMLX.Safetensors.load(file)
        shapes = Map.new(Training.shapes(model), fn {name, shape} -> {name, List.to_tuple(shape)} end)
        assert Map.new(arrays, fn {name, array} -> {name, EMLX.Array.shape(array)} end) == shapes
        assert File.read!(file) == File.read!(Training.weights(again, model))
        batch = EMLX.Safetensors.load(Training.batch(folder, model, 3))
        assert EMLX.Array.shape(batch["y"]) == {3, 10}
        assert elem(EMLX.Array.shape(batch["x"]), 0) == 3
        assert EMLX.Array.to_list(EMLX.Ops.sum(batch["y"])) == 3.0
        assert Training.distance(file, file, file) == 0.0
      end

      mlp = Training.weights(folder, "mlp")

      assert_raise RuntimeError, ~r/^weights of other names/, fn ->
        Training.distance(mlp, Training.weights(folder, "transformer"), mlp)
      end
    end
  end

  test "the package holds neither the suite nor its task, and the task is compiled from bench/tasks" do
    package = Mix.Project.config()[:package][:files]
    assert "lib" in package

    for path <- package, file <- [path | Path.wildcard(Path.join(path, "**/*.{ex,exs}"))] do
      refute file =~ "bench", "#{file} is in the package"
    end

    task = Mix.Task.get!("emlx.bench")
    assert Path.relative_to_cwd(to_string(task.module_info(:compile)[:source])) == "bench/tasks/emlx.bench.ex"
  end

  @tag :tmp_dir
  test "mix emlx.bench runs a part, prints its table and writes its files", %{tmp_dir: folder} do
    output =
      capture_io(fn -> Mix.Task.rerun("emlx.bench", ~w(dispatch --quick --no-peers --no-compile --out) ++ [folder]) end)

    assert output =~ ~r/an eager addition, node built +EMLX +[\d.]+ µs/
    assert output =~ ~r/a program of 1000, computed +EMLX/
    assert output =~ "without peers: --no-peers"
    assert File.read!(Path.join(folder, "results.json")) =~ ~s("name": "dispatch")
  end

  @tag :tmp_dir
  test "mix emlx.bench runs the groups that --only names", %{tmp_dir: folder} do
    run = &Mix.Task.rerun("emlx.bench", ~w(dispatch --quick --no-peers --no-compile --out) ++ [folder, "--only", &1])
    output = capture_io(fn -> run.("Reading") end)
    assert output =~ "a scalar read"
    refute output =~ "a program of"

    assert_raise Mix.Error, ~r/no group's name has divan in it; they are eager addition; .*; reading/, fn ->
      run.("divan")
    end
  end

  # Returns the number of elements of each name, and the texts, of a well-formed document. Parsed by hand, since
  # Debian's Erlang lacks xmerl.
  defp xml(text) do
    tokens = Regex.scan(~r/<[^>]*>|[^<>]+/, text) |> List.flatten()
    assert Enum.join(tokens) == text

    {open, counts, texts} =
      Enum.reduce(tokens, {[], %{}, []}, fn token, {open, counts, texts} ->
        case Regex.run(~r{^<(/?)([a-zA-Z]+)((?: [\w:-]+="[^"<]*")*) ?(/?)>$}, token) do
          [_, "/", name, "", ""] ->
            assert [^name | open] = open
            {open, counts, texts}

          [_, "", name, attributes, closed] ->
            assert entities?(attributes)
            assert open != [] or counts == %{}
            open = if closed == "", do: [name | open], else: open
            {open, Map.update(counts, name, 1, &(&1 + 1)), texts}

          nil ->
            assert not String.starts_with?(token, "<") and entities?(token)
            assert open != [] or String.trim(token) == ""
            {open, counts, [unescape(token) | texts]}
        end
      end)

    assert open == []
    {counts, texts}
  end

  defp entities?(text), do: not (text =~ ~r/&(?!(amp|lt|gt|quot|apos);)/)

  defp unescape(text) do
    Enum.reduce([{"&lt;", "<"}, {"&gt;", ">"}, {"&quot;", "\""}, {"&apos;", "'"}, {"&amp;", "&"}], text, fn {from, to},
                                                                                                            text ->
      String.replace(text, from, to)
    end)
  end
end
