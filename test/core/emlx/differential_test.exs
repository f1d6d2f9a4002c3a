# Every operation of the native table against references in 64 bits, at sizes and in layouts that golden values do not
# cover. test/support/differential.ex documents how to run more. Each run makes other calls; a failure names its seed.
seed = EMLX.Differential.seed(ExUnit.configuration()[:seed] || 0)
operations = EMLX.Differential.operations()

# Several modules, which run concurrently.
for {names, part} <-
      operations
      |> Enum.with_index()
      |> Enum.group_by(&rem(elem(&1, 1), 4), &elem(&1, 0))
      |> Enum.map(fn {i, n} -> {n, i} end) do
  defmodule Module.concat(EMLX.DifferentialTest, "Part#{part + 1}") do
    use ExUnit.Case, async: true

    alias EMLX.Differential

    @moduletag :slow
    @moduletag timeout: 3_600_000
    @seed seed

    for name <- names do
      @name name

      test "#{name} returns the reference's values, whole, by element, by row and compiled" do
        %{checked: checked, failures: failures} = Differential.run(@name, @seed)

        if failures != [] do
          shown = Enum.take(failures, 8)
          more = length(failures) - length(shown)
          more = if more > 0, do: "\nand #{more} more", else: ""
          flunk("EMLX_SEED=#{@seed} EMLX_DIFFERENTIAL_OPS=#{@name}\n" <> Enum.join(shown, "\n") <> more)
        end

        assert checked > 0, "no call of #{@name} is accepted"
      end
    end
  end
end

defmodule EMLX.DifferentialTest do
  use ExUnit.Case, async: true

  alias EMLX.{Array, Differential, Ops, OpTable}
  alias EMLX.Differential.{Compare, Input, Reference}

  test "every operation of the native table has a generator of calls" do
    assert Enum.reject(OpTable.names(), &Differential.generator?/1) == []
  end

  test "an input has the same elements in every layout" do
    for layout <- Input.layouts(), shape <- [[], [5], [3, 4], [2, 1, 3, 2]], dtype <- [:f32, :u8, :bool, :c64] do
      input = Input.new(shape, dtype, {0, 9}, layout)
      array = Input.on(input, :cpu)
      assert Array.shape(array) == List.to_tuple(shape)
      assert Array.to_binary(array) == Array.to_binary(input.values), "#{layout} #{inspect(shape)} #{dtype}"
    end
  end

  test "a comparison finds the one wrong element, with its position and both values" do
    have = Array.from_list([[1.0, 2.0], [3.0, 4.5]], :f32)
    want = Array.from_list([[1.0, 2.0], [3.0, 4.0]], :f64)
    assert Compare.difference(have, want, :rounded) == "element [1,1] is 4.5, expected 4.0 (1 of 4)"
    assert Compare.difference(have, Ops.astype(have, :f64), :bits) == nil
    assert Compare.difference(have, Array.from_list([1.0], :f64), :exact) == "shape {2, 2}, expected {1}"
  end

  test "a comparison accepts NaN for NaN, and nothing else" do
    nan = Array.scalar(:nan, :f32)
    assert Compare.difference(nan, Array.scalar(:nan, :f64), :exact) == nil
    assert Compare.difference(nan, Array.scalar(1.0, :f64), :rounded) =~ "is :nan, expected 1.0"
    assert Compare.difference(Array.scalar(1.0, :f32), Array.scalar(:infinity, :f64), :rounded) =~ "expected :infinity"
  end

  test "references of sums and running sums are exact at a million elements" do
    million = Array.from_binary(:binary.copy(<<0.1::float-64-little>>, 1_000_003), [1, 1_000_003], :f64)
    [sum] = Array.to_list(Reference.sum(million))
    assert_in_delta sum, 100_000.3, 1.0e-6
    last = Reference.columns(Reference.scan(million, &Ops.add/2), 1_000_002, 1_000_003)
    assert_in_delta last |> Array.to_list() |> hd() |> hd(), 100_000.3, 1.0e-6
  end
end
