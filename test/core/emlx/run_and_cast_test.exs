defmodule EMLX.RunAndCastTest do
  # EMLX.Ops.run_and_cast/4 against the operation and the cast one after the other.
  use ExUnit.Case, async: true

  alias EMLX.{Array, Error, Golden, Ops}

  @device Golden.device()

  defp array(list, dtype), do: Array.from_list(list, dtype, device: @device)

  defp same!(op, inputs, dtype) do
    have = Ops.run_and_cast(op, inputs, dtype)
    want = Ops.astype(Ops.run(op, inputs), dtype)
    assert {Array.dtype(have), Array.shape(have)} == {dtype, Array.shape(want)}
    assert Array.to_list(have) == Array.to_list(want)
  end

  test "the result is the operation's, cast" do
    long = Ops.astype(Ops.iota([40_000], device: @device, dtype: :s32), :f32)
    small = array([[1.5, -2.0], [0.0, 7.25]], :f32)

    for dtype <- [:bool, :u8, :s64, :f16, :f32], {x, y} <- [{small, array([0.0, 7.0], :f32)}, {long, long}] do
      same!(:less_equal, [x, y], dtype)
      same!(:add, [x, y], dtype)
      same!(:logical_xor, [x, y], dtype)
      same!(:isnan, [x], dtype)
      same!(:where, [Ops.less(x, y), x, y], dtype)
      same!({:all, %{axes: [0], keepdims: false}}, [x], dtype)
    end

    same!(:equal, [Ops.broadcast_to(array([1], :s32), [0, 3]), array([1, 2, 3], :u8)], :u8)
  end

  test "an error names the operation" do
    [x, y] = [array([1, 2], :f32), array([1, 2, 3], :f32)]
    assert %Error{op: "less"} = catch_error(Ops.run_and_cast(:less, [x, y], :u8))
    assert %Error{op: "divmod"} = error = catch_error(Ops.run_and_cast(:divmod, [x, x], :u8))
    assert Exception.message(error) =~ "several results"
    assert_raise Error, ~r/a type such as :f32/, fn -> Ops.run_and_cast(:less, [x, x], :nothing) end
  end
end
