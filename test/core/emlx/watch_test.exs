defmodule EMLX.WatchTest do
  # EMLX.Native.watch/1, which notifies the compile cache of arrays.
  use ExUnit.Case, async: true

  alias EMLX.{Array, Native, Ops, Program}

  defp number(%Array{ref: ref}) do
    {:ok, {_digest, [], [{number, ^ref}], []}} = Native.identify(ref, true)
    number
  end

  test "a process receives one message when the last reference to an array is dropped" do
    array = Ops.add(Array.scalar(1, :s32), 1)
    number = number(array)
    {:ok, :ok} = Native.watch([array.ref])
    {:ok, :ok} = Native.watch([array.ref])
    copy = Task.async(fn -> receive do: (array -> Array.to_list(array)) end)
    send(copy.pid, array)
    assert Task.await(copy, 60_000) == 2
    :erlang.garbage_collect()
    refute_received {:emlx_array_gone, ^number}
    assert Array.to_list(array) == 2
    array = nil
    :erlang.garbage_collect()
    assert array == nil
    assert_receive {:emlx_array_gone, ^number}
    refute_receive {:emlx_array_gone, _}, 20
  end

  test "a program does not keep the handles of its constants, nor do other handles of an array" do
    constant = Array.from_list([1.0, 2.0], :f32)
    number = number(constant)
    program = Program.new(1, [{:multiply, [0, 1], 1}], [2], constants: [constant])
    {:ok, :ok} = Native.watch([constant.ref])
    assert {:ok, [{^number, 8}]} = Native.sizes([constant.ref])
    assert {:ok, [{^number, 8}]} = Native.program_constants(program.ref)
    constant = nil
    :erlang.garbage_collect()
    assert constant == nil
    assert_receive {:emlx_array_gone, ^number}
    [result] = Program.run(program, [Array.scalar(3.0, :f32)])
    assert Array.to_list(result) == [3.0, 6.0]
  end

  test "a program's constant is its array, also one that is not computed yet or fails" do
    lazy = Ops.exp(Ops.zeros({2}, :f32))
    program = Program.new(0, [], [0], constants: [lazy])
    assert [result] = Program.run(program, [])
    assert Array.to_list(result) == [1.0, 1.0]

    singular = Ops.inv(Ops.zeros({2, 2}, :f32))
    program = Program.new(0, [], [0], constants: [singular])
    assert_raise EMLX.Error, fn -> program |> Program.run([]) |> hd() |> Array.to_list() end
  end

  test "arrays whose watching process has exited stay usable" do
    array = Ops.ones({4}, :f32)
    Task.await(Task.async(fn -> Native.watch([array.ref]) end))
    assert Array.to_list(array) == [1.0, 1.0, 1.0, 1.0]
    array = nil
    :erlang.garbage_collect()
    assert array == nil
    assert Array.to_list(Ops.ones({}, :f32)) == 1.0
  end
end
