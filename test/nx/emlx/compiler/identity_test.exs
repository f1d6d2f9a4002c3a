defmodule EMLX.Compiler.IdentityTest do
  use EMLX.NxCase, async: true

  alias EMLX.Compiler.Identity

  defp digest(term), do: Identity.digest(term)
  defp copy(term), do: Task.await(Task.async(fn -> term end))
  defp binary(size, byte), do: :binary.copy(<<byte>>, size)

  @fun &Nx.exp/1

  # Terms that are pairwise different.
  defp terms do
    [
      nil,
      :a,
      "a",
      ~c"a",
      [:a],
      {:a},
      [[:a]],
      [:a | :b],
      [:a, :b],
      {:a, :b},
      %{a: :b},
      %{b: :a},
      %{},
      [],
      {},
      "",
      0,
      1,
      -1,
      1.0,
      0.0,
      -0.0,
      2 ** 63 - 1,
      2 ** 63,
      2 ** 200,
      2 ** 200 + 1,
      -(2 ** 200),
      <<1::3>>,
      <<1::4>>,
      <<1::8>>,
      self(),
      make_ref(),
      make_ref(),
      @fun,
      &Nx.pow/2,
      &Nx.sin/1,
      {1, {2, 3}},
      {{1, 2}, 3},
      [1, [2, 3]],
      [[1, 2], 3],
      Map.new(1..100, &{&1, &1}),
      Map.new(1..100, &{&1, -&1}),
      Map.new(1..101, &{&1, &1}),
      binary(1024, 1),
      binary(1024, 2),
      Nx.tensor([1, 2]),
      Nx.tensor([1, 2]),
      Nx.tensor([1, 2], backend: Nx.BinaryBackend),
      Nx.tensor([1, 3], backend: Nx.BinaryBackend)
    ]
  end

  test "different terms have different digests, and copies have the same" do
    terms = terms()
    digests = Enum.map(terms, &digest/1)
    assert length(Enum.uniq(digests)) == length(terms)
    assert Enum.map(copy(terms), &digest/1) == digests
  end

  test "a term of many parts has the digest of its copy" do
    lists = [Enum.to_list(1..100_000), Enum.to_list(1..99_999), List.duplicate({1, %{a: 2.0}}, 20_000)]
    digests = Enum.map(lists, &digest/1)
    assert Enum.uniq(digests) == digests
    assert Enum.map(copy(lists), &digest/1) == digests
  end

  test "a term nested a million deep has a digest" do
    nest = fn last -> Enum.reduce(1..1_000_000, last, fn _, inner -> {[inner]} end) end
    assert digest(nest.(1)) == digest(nest.(1))
    assert digest(nest.(1)) != digest(nest.(2))
  end

  # Terms of a few hundred parts; copies without sharing would have more than 2^40.
  defp chains(last) do
    chain = fn grow -> Enum.reduce(1..60, last, fn _, inner -> grow.(inner) end) end

    [
      chain.(&{&1, &1}),
      chain.(&[&1 | &1]),
      chain.(&%{a: &1, b: [&1]}),
      chain.(&fn -> {&1, &1} end),
      Enum.reduce(1..60, {last, last}, fn _, {a, b} -> {b, fn -> {a, b} end} end)
    ]
  end

  test "a part that a term has many times is visited once" do
    digests = Enum.map(chains(1), &digest/1)
    assert Enum.map(chains(1), &digest/1) == digests
    assert Enum.uniq(digests ++ Enum.map(chains(2), &digest/1)) |> length() == 2 * length(digests)

    for chain <- chains(Nx.iota({4096})), do: assert(%{arrays: [_]} = Identity.captured(chain))
  end

  test "a term has the digest of its copy, in which no part is shared" do
    for depth <- 1..18, last <- [1, "a", Nx.tensor(1)] do
      chain = Enum.reduce(1..depth, last, fn n, inner -> {n, inner, [inner]} end)
      assert digest(copy(chain)) == digest(chain)
    end
  end

  test "functions are identified by their code and the terms they close over" do
    make = fn n -> fn x -> Nx.add(x, n) end end
    other = fn n -> fn x -> Nx.add(x, n) end end
    assert digest(make.(1)) == digest(copy(make.(1)))
    assert digest(make.(1)) != digest(make.(2))
    assert digest(make.(1)) != digest(other.(1))
    none = [&Nx.exp/1, &Nx.pow/2, &Nx.sin/1, fn x -> x end, fn x -> x end]
    assert none |> Enum.uniq_by(&digest/1) |> length() == 5
    assert copy(none) |> Enum.map(&digest/1) == Enum.map(none, &digest/1)
    # Also inside of other functions, and in other terms around a function.
    nested = fn n -> %{deep: [{make.(n), fn -> make.(n) end}]} end
    assert digest(nested.(1)) == digest(copy(nested.(1)))
    assert digest(nested.(1)) != digest(nested.(2))
    # Functions of the shell share their code; they differ in the terms they close over.
    {[a, b], _} = Code.eval_string("[fn x -> x + 1 end, fn x -> x + 2 end]")
    assert digest(a) != digest(b)
    assert digest(a) == digest(copy(a))
  end

  test "large binaries and arrays count by identity" do
    binary = binary(1025, 1)
    assert digest(binary) == digest(copy(binary))
    assert digest(binary) != digest(binary(1025, 1))
    assert digest(binary) != digest(binary_part(binary, 0, 1024))

    array = Nx.iota({1024})
    assert digest(array) == digest(copy(array))
    assert digest(array) != digest(Nx.iota({1024}))
    assert digest(array) != digest(Nx.reshape(array, {1024, 1}))
  end

  test "all digests have the same size" do
    for term <- [1, binary(1_000_000, 0), Nx.iota({1_000_000}), Enum.to_list(1..10_000)],
        do: assert(byte_size(digest(term)) == 32)
  end

  test "terms that count by identity are listed once each" do
    a = Nx.iota({4096})
    b = Nx.tensor(1)
    large = binary(5000, 1)
    inner = fn -> {a, large, "small"} end
    %{arrays: arrays, binaries: binaries} = Identity.captured([fn -> {inner, b} end, %{a: a, b: [large]}])
    refs = for %Nx.Tensor{data: %{array: array}} <- [a, b], do: array.ref
    assert arrays |> Enum.map(&elem(&1, 1)) |> Enum.sort() == Enum.sort(refs)
    assert [{{_address, 5000}, ^large}] = binaries
  end
end
