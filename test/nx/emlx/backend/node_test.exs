defmodule EMLX.Backend.NodeTest do
  use EMLX.NxCase, async: true

  # Another VM, controlled through its standard input and output.
  setup do
    paths = Enum.flat_map(:code.get_path(), &[~c"-pa", &1])
    {:ok, peer, _node} = :peer.start_link(%{connection: :standard_io, args: paths})
    {:ok, _} = :peer.call(peer, :application, :ensure_all_started, [:nx])
    {:ok, peer: peer}
  end

  test "a copied tensor is a message like any other", %{peer: peer} do
    t = Nx.iota({3, 2}, type: :bf16, names: [:x, nil])
    there = :peer.call(peer, Nx, :multiply, [Nx.backend_copy(t, Nx.BinaryBackend), 2])
    assert_same(Nx.backend_transfer(there, backend()), Nx.multiply(t, 2))
  end

  test "a tensor sent to another node without a copy is refused there, and works again here", %{peer: peer} do
    {:ok, _} = :peer.call(peer, :application, :ensure_all_started, [:emlx])
    t = Nx.tensor([1, 2, 3])

    for {function, arguments} <- [add: [t, 1], to_binary: [t], backend_copy: [t]] do
      error = catch_error(:peer.call(peer, Nx, function, arguments))
      assert %EMLX.Error{kind: :bad_argument} = error
      assert error.reason =~ "expected an array"
    end

    # The term after the round trip.
    [back] = :peer.call(peer, :lists, :reverse, [[t]])
    assert Nx.to_flat_list(Nx.add(back, 1)) == [2, 3, 4]
  end

  test "a serialized tensor is read on another node", %{peer: peer} do
    t = Nx.vectorize(Nx.iota({3, 2}, type: :f32), :x)
    there = :peer.call(peer, Nx, :deserialize, [IO.iodata_to_binary(Nx.serialize(t))])
    assert %Nx.BinaryBackend{} = there.data
    assert_same(Nx.backend_transfer(there, backend()), t)
  end
end
