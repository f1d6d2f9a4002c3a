defmodule EMLX.OpTableTest do
  use ExUnit.Case, async: true

  alias EMLX.{Array, Ops, OpTable}

  doctest OpTable

  test "every operation has a class and attributes of known kinds" do
    for {name, entry} <- OpTable.all() do
      assert entry.name == name
      assert is_atom(entry.class) and entry.class != nil
      assert entry.outputs == nil or entry.outputs > 0
      assert entry.view in [nil, :reshape, :strided]
      for {attribute, kind} <- entry.attributes, do: assert(known?(kind), "#{name}'s #{attribute} is #{inspect(kind)}")
    end
  end

  defp known?({list, kind}) when list in [:list, :optional], do: known?(kind)
  defp known?({:one_of, names}), do: names != [] and Enum.all?(names, &is_atom/1)
  defp known?(kind), do: kind in [:s32, :s64, :u64, :f32, :f64, :bool, :string, :number]

  test "linear algebra fails late, and of it eigenvalues of any matrix run on the CPU alone" do
    for {name, entry} <- OpTable.all() do
      assert entry.late_failure == (entry.class == :linear_algebra), "#{name}"
      assert entry.cpu_only == name in [:eig, :eigvals], "#{name}"
      refute entry.late_failure and entry.elementwise, "#{name}"
    end

    assert Enum.all?([:det, :slogdet, :inv, :solve, {:svd, %{compute_uv: true}}], &OpTable.late_failure?/1)
    refute Enum.any?([:add, :if, :while, :call, :matrix_norm, {:cross, %{axis: -1}}], &OpTable.late_failure?/1)
  end

  test "the table has no entry for other instructions and unknown names" do
    assert OpTable.get(:if) == nil
    assert_raise KeyError, fn -> OpTable.fetch!(:matrix_norm) end
  end

  test "a float attribute is one of 32 or 64 bits, also where it may be nil" do
    assert OpTable.float?(:arange, :start)
    assert OpTable.float?(:addmm, :alpha)
    assert OpTable.float?(:nan_to_num, :posinf)
    refute OpTable.float?(:sort, :axis)
    refute OpTable.float?(:constant, :value)
    refute OpTable.float?(:add, :alpha)
  end

  test "functions of EMLX.Ops take an integer for any float attribute, of whatever name" do
    a = Array.from_list([1.0, :nan], :f32)
    assert Array.to_list(Ops.arange(0, 3, step: 1)) == [0.0, 1.0, 2.0]
    assert Array.to_list(Ops.nan_to_num(a, nan: 7, posinf: 1)) == [1.0, 7.0]
    assert Array.to_list(Ops.hadamard_transform(Array.from_list([1.0, 2.0], :f32), scale: 1)) == [3.0, -1.0]
  end

  test "a function of EMLX.Ops that returns several arrays is one of an operation that does" do
    {:ok, specs} = Code.Typespec.fetch_specs(Ops)
    names = OpTable.names()

    for {{name, _arity}, [spec | _]} <- specs, name in names do
      {:"::", _, [_call, returned]} = Code.Typespec.spec_to_quoted(name, spec)
      returned = Macro.to_string(returned)
      several? = returned == "[EMLX.Array.t()]"
      outputs = OpTable.fetch!(name).outputs

      assert several? == (outputs != 1 and name != :svd),
             "#{name} returns #{returned} by its spec, #{outputs} by the table"
    end
  end

  test "every operation on one matrix without attributes has a function that passes its name alone" do
    a = Array.from_list([[2.0, 1.0], [1.0, 3.0]], :f32)

    for {name, %{class: :linear_algebra, attributes: [], required: 1, outputs: outputs}} <- OpTable.all() do
      results = apply(Ops, name, [a])
      assert length(List.wrap(results)) == outputs
    end
  end
end
