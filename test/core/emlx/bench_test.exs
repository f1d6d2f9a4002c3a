# The suite is loaded from source, as mix emlx.bench does, but into files, for doctests are read from those.
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

  alias EMLX.Bench.{Chart, Inputs, Measure, Options, Part, Peer, Progress, Report, Statistics, Table}

  doctest EMLX.Bench.Statistics
  doctest EMLX.Bench.JSON
  doctest EMLX.Bench.Table
  doctest EMLX.Bench.Progress
  doctest EMLX.Bench.Options

  @parts EMLX.Bench.names(Path.join(@folder, "suite"))

  describe "arguments" do
    test "parts run in their own order, each once, all of them by default" do
      assert {:ok, %{parts: ["kernels", "dispatch"]}} = Options.parse(~w(dispatch kernels dispatch), @parts)
      assert {:ok, %{parts: @parts, device: :cpu, peers?: true, quick?: false}} = Options.parse([], @parts)
    end

    test "what is wrong is named" do
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

    test "peak memory is what a run takes beyond what is held" do
      held = EMLX.eval(EMLX.Ops.ones({1024, 1024}, :f32))
      bytes = Measure.peak(fn -> EMLX.eval(EMLX.Ops.add(held, 1.0)) end)
      assert bytes in (4 * 1024 * 1024)..(5 * 1024 * 1024)
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

    test "prints medians, the ratio and what failed; a side that was not there is left out", %{part: part} do
      text = Report.text(part)
      assert text =~ ~r/a <case> & more +EMLX +2\.00 ms +Python MLX +4\.00 ms +0\.500 +0\.250 +2\.00 times as fast/
      refute text =~ "XLA"
      assert text =~ "failed: second: does \"not\" run"
    end

    test "heads the tables with machine, versions and what is left out", %{results: results} do
      text = Report.heading(results)

      for part <- ["a processor", "2 cores", "load 0.5", "emlx 0.1.0", "without XLA: there is no python3", "2026-11-23"],
          do: assert(text =~ part)

      refute text =~ "nx"
      refute text =~ "busy"
      assert Report.heading(%{results | load_before: 3.5}) =~ "the machine is busy"
    end

    @tag :tmp_dir
    @tag skip: if(not Code.ensure_loaded?(:json), do: "Erlang/OTP reads JSON from version 27 on")
    test "writes JSON and a chart that are well formed", %{results: results, tmp_dir: folder} do
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

    test "charts what grows as lines, one panel for each axis and unit" do
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
    test "answers, tells its own error, and is missed when it ends" do
      script = """
      echo "some noise"
      while read -r command rest; do
        case $command in
          versions) echo "= ok one=1 two=2.0" ;;
          define) echo "noise"; echo "= ok 7" ;;
          time) echo "= ok 12.5" ;;
          sample) echo "= ok 1.0 nan" ;;
          peak) echo "= error it+broke" ;;
          *) exit 3 ;;
        esac
      done
      """

      peer = Peer.start("The other", System.find_executable("bash"), ["-c", script], [])
      assert peer.versions == [{"one", "1"}, {"two", "2.0"}]
      assert Peer.define(peer, :kernel, name: "a b") == "7"
      # Whoever asks is answered, not only the process that started it.
      assert Task.await(Task.async(fn -> Peer.time(peer, "7") end)) == 12.5
      assert [1.0, other] = Peer.sample(peer, "7")
      assert other > 1.0e299
      assert_raise RuntimeError, "The other says: it broke", fn -> Peer.peak(peer, "7") end
      assert_raise RuntimeError, "The other ended with status 3", fn -> Peer.drop(peer, "7") end
      assert_raise RuntimeError, "The other has ended", fn -> Peer.time(peer, "7") end
      Peer.stop(peer)
    end
  end

  @tag :tmp_dir
  test "mix emlx.bench says where the suite is when it is not there", %{tmp_dir: folder} do
    File.write!(Path.join(folder, "mix.exs"), """
    defmodule EMLX.BenchTest.Elsewhere.MixProject do
      use Mix.Project
      def project, do: [app: :elsewhere, version: "0.1.0"]
    end
    """)

    Mix.Project.in_project(:elsewhere, folder, fn _ ->
      assert_raise Mix.Error, ~r/comes with EMLX's repository, not with the package/, fn ->
        Mix.Task.rerun("emlx.bench", [])
      end
    end)
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

  # How many elements of each name, and the texts, of a document that has to be well formed. By hand: Debian's Erlang comes without xmerl.
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
