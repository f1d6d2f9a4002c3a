defmodule EMLXAxon.ExplainTest do
  use ExUnit.Case, async: true

  defp model do
    block = Axon.block(fn x -> x |> Axon.dense(4) |> Axon.rms_norm() end)

    Axon.input("tokens")
    |> Axon.dense(4, name: "first")
    |> Axon.layer_norm()
    |> Axon.layer_norm(epsilon: Nx.tensor(1.0e-5))
    |> Axon.rms_norm(name: "norm")
    |> then(&Axon.layer(fn x, _opts -> x end, [&1], op_name: :rms_norm))
    |> block.()
    |> block.()
  end

  test "explain has the block of every layer, or the reason why it has none" do
    assert model() |> EMLXAxon.rewrite() |> EMLXAxon.explain() == """
           layer         op          block                 why not
           tokens        input                             no kernel
           first         dense                             no kernel
           layer_norm_0  layer_norm  Axon.Block.LayerNorm
           layer_norm_1  layer_norm                        :epsilon is not a number
           norm          rms_norm    Axon.Block.RMSNorm
           rms_norm_1    rms_norm                          a layer of its own, not Axon's rms_norm
           block_0       block                             see the layers in it
             subgraph0   input                             no kernel
             dense_0     dense                             no kernel
             rms_norm_0  rms_norm    Axon.Block.RMSNorm
           block_0       block                             see the layers in it
             subgraph0   input                             no kernel
             dense_0     dense                             no kernel
             rms_norm_0  rms_norm    Axon.Block.RMSNorm

           blocks: 4 of 14 layers\
           """
  end

  test "explain names layers as Axon does" do
    names = model() |> EMLXAxon.explain() |> String.split("\n") |> Enum.map(&hd(String.split(&1, " ")))
    assert Map.keys(Axon.properties(model())) -- names == ["block_1"]
  end

  test "explain names the block that would replace a layer" do
    model = Axon.input("x") |> Axon.layer_norm() |> Axon.rms_norm() |> EMLXAxon.rewrite(only: [:rms_norm])

    assert EMLXAxon.explain(model) == """
           layer         op          block               why not
           x             input                           no kernel
           layer_norm_0  layer_norm                      EMLXAxon.rewrite/2 makes it Axon.Block.LayerNorm
           rms_norm_0    rms_norm    Axon.Block.RMSNorm

           blocks: 1 of 3 layers\
           """
  end

  test "explain reports that a model without norms has no kernel" do
    assert EMLXAxon.explain(Axon.input("x")) == """
           layer  op     block  why not
           x      input         no kernel

           blocks: 0 of 1 layers\
           """
  end

  test "explain describes another package's layers with the :describe option" do
    describe = fn
      %Axon.Node{op_name: :softmax} -> {:block, Mine.Softmax}
      node -> EMLXAxon.describe(node)
    end

    model = Axon.input("x") |> Axon.softmax() |> Axon.rms_norm() |> EMLXAxon.rewrite()
    table = EMLXAxon.explain(model, describe: describe)
    assert table =~ ~r/softmax_0 +softmax +Mine\.Softmax\n/
    assert table =~ "blocks: 2 of 3 layers"
  end

  test "explain refuses anything but a model" do
    assert_raise ArgumentError, "explain: an Axon model is needed, got: 1", fn -> EMLXAxon.explain(1) end
  end
end
