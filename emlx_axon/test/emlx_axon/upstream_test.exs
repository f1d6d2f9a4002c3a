defmodule EMLXAxon.UpstreamTest do
  # An Axon that defines these blocks itself: a separate VM compiles this package beside them.
  use ExUnit.Case, async: true

  @sources Path.wildcard(Path.expand("../../lib/**/*.ex", __DIR__))

  # Returns the output of a script after defining `blocks` and compiling this package.
  defp run(blocks, script) do
    paths =
      for path <- :code.get_path(),
          path = to_string(path),
          not String.ends_with?(path, "/emlx_axon/ebin"),
          Path.basename(path) == "ebin",
          argument <- ["-pa", path],
          do: argument

    program = """
    #{blocks}
    {:ok, _, _} = Kernel.ParallelCompiler.compile(#{inspect(@sources)}, return_diagnostics: true)
    #{script}
    """

    folder = Path.join(System.tmp_dir!(), "emlx_axon_upstream_#{System.unique_integer([:positive])}_#{System.pid()}")
    File.mkdir_p!(folder)
    file = Path.join(folder, "script.exs")
    File.write!(file, program)

    try do
      {output, status} = System.cmd("elixir", paths ++ [file], stderr_to_stdout: true)
      assert {status, output} == {0, output}
      output
    after
      File.rm_rf!(folder)
    end
  end

  @script """
  {:ok, _} = Application.ensure_all_started([:axon, :emlx])
  model = Axon.input("x") |> Axon.layer_norm(gamma_initializer: :ones) |> Axon.rms_norm()
  rewritten = EMLXAxon.rewrite(model)
  IO.puts(EMLXAxon.explain(rewritten))
  Nx.default_backend(EMLX.Backend)
  print = fn _, _, metadata, _ -> IO.puts("\#{inspect(metadata.block)} \#{metadata.path}") end
  :telemetry.attach("print", [:emlx, :block, :dispatch], print, nil)
  {init, predict} = Axon.build(rewritten)
  state = init.(Nx.template({1, 2}, :f32), Axon.ModelState.empty())
  IO.inspect(predict.(state, Nx.tensor([[1.0, 3.0]])) |> Nx.round() |> Nx.to_flat_list())
  x = Nx.broadcast(1.0, {1, 1, 1, 2})
  IO.inspect(EMLXAxon.Layers.rope(x, Nx.tensor(0)) |> Nx.to_flat_list())
  IO.inspect(EMLXAxon.Layers.scaled_dot_product_attention(x, x, x) |> Nx.to_flat_list())
  """

  test "blocks of a newer Axon with the same fields and more are used" do
    output =
      run(
        """
        defmodule Axon.Block.RMSNorm do
          defstruct axis: -1, eps: 1.0e-6, shift: 0.0, upcast: :normalization, weight?: true, theirs: 1
        end
        """,
        @script <> ~s|IO.inspect(Axon.Block.RMSNorm.__struct__().theirs)|
      )

    assert output =~ ~r/rms_norm +Axon.Block.RMSNorm\n/
    assert output =~ "Axon.Block.LayerNorm fused\n"
    assert output =~ "Axon.Block.RMSNorm fused\n"
    assert output =~ "[-1.0, 1.0]\n"
    assert output =~ ~r/\n1\n$/
  end

  test "blocks of a newer Axon with other fields are not used" do
    output =
      run(
        """
        for name <- [RMSNorm, LayerNorm, RoPE, SDPA], do: defmodule(Module.concat(Axon.Block, name), do: defstruct([:theirs]))
        """,
        @script
      )

    assert output =~ ~r/layer_norm_0 +layer_norm +Axon's own Axon.Block.LayerNorm has other fields\n/
    assert output =~ ~r/rms_norm_0 +rms_norm +Axon's own Axon.Block.RMSNorm has other fields\n/
    assert output =~ "blocks: 0 of 3 layers"
    refute output =~ "Axon.Block.LayerNorm fused"
    assert output =~ "[-1.0, 1.0]\n"
    # Layers that Axon does not have are computed without their block.
    assert output =~ "EMLX.Fast.RoPE fused\n[1.0, 1.0]\n"
    assert output =~ "EMLX.Fast.ScaledDotProductAttention fused\n[1.0, 1.0]\n"
  end
end
