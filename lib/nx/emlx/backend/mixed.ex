defmodule EMLX.Backend.Mixed do
  @moduledoc false
  # Operations of EMLX.Backend on operands of different types.
  #
  # Nx's type of a result may not represent an operand: f16 cannot hold 70,000, f16 and bf16 merge to f16, and a float
  # and an integer merge to the float's type. If the result is a float of 8 or 16 bits, such operations are computed in
  # f32 or f64 and rounded once. Comparisons are exact for every pair of real types.

  import EMLX.Backend.Type, only: [is_narrow: 1, is_integer_type: 1, is_float_type: 1]

  alias EMLX.{Array, Backend, Ops, Trace}
  alias EMLX.Backend.{Number, Type}
  alias Nx.Tensor, as: T

  require EMLX.Backend.Type

  # ---- arithmetic ----

  @doc "Runs an operation of two operands. Returns an array in the dtype that stores `type`."
  @spec arithmetic(Ops.op(), T.t(), T.t(), Type.nx_type()) :: Array.t()
  def arithmetic(op, %T{type: type} = left, %T{type: type} = right, type),
    do: Ops.run(op, [Backend.to_array(left), Backend.to_array(right)])

  def arithmetic(op, %T{type: left_type} = left, %T{type: right_type} = right, type) do
    work = work_type(op, [left, right], type)

    # If MLX promotes both operands to that type, no cast is needed.
    if Type.promote(Type.dtype(left_type), Type.dtype(right_type)) == Type.dtype(work),
      do: rounded(Ops.run(op, [given(left, work), given(right, work)]), work, type),
      else: rounded(Ops.run(op, [Backend.operand(left, work), Backend.operand(right, work)]), work, type)
  end

  # Constants of a function that is traced are cast once.
  defp given(tensor, type) do
    array = Backend.to_array(tensor)
    if Trace.active?() and Trace.known?(array), do: Backend.operand(tensor, type), else: array
  end

  @doc "Casts a result that was computed in `work` to the dtype that stores `type`."
  @spec rounded(Array.t(), Type.nx_type(), Type.nx_type()) :: Array.t()
  def rounded(array, type, type), do: array

  def rounded(array, work, type) do
    dtype = Type.dtype(type)
    if Type.dtype(work) == dtype, do: array, else: Ops.run({:astype, %{dtype: dtype}}, [array])
  end

  @doc """
  Returns the type in which to compute an operation whose result has `type`: that type, f16 for floats of 8 bits, or a
  wider one that represents all operands. f64 is used on the CPU only.
  """
  @spec work_type(Ops.op(), [T.t()], Type.nx_type()) :: Type.nx_type()
  def work_type(op, tensors, type) when is_float_type(type) and elem(type, 1) <= 16 do
    base = if is_narrow(type), do: {:f, 16}, else: type

    case Enum.reject(tensors, &held?(op, &1, base)) do
      [] -> base
      others -> if Enum.any?(others, &double?/1) and Enum.all?(tensors, &on_cpu?/1), do: {:f, 64}, else: {:f, 32}
    end
  end

  def work_type(_op, _tensors, type), do: type

  defp held?(_op, %T{type: base}, base), do: true
  defp held?(_op, %T{type: {_kind, 8}}, _base), do: true
  defp held?(_op, %T{type: {kind, size}}, _base) when kind in [:s, :u] and size < 8, do: true

  defp held?(op, tensor, base) do
    case Backend.number(tensor) do
      nil -> false
      number when is_integer(number) -> Number.exact?(number, base)
      number -> in_range?(op, number, base)
    end
  end

  # A fraction is rounded in any case. Powers and remainders amplify its error, so they need it exactly. Other
  # operations only lose numbers that overflow, and subnormal ones unless they are added or subtracted.
  defp in_range?(op, number, base) when op in [:power, :fmod], do: Number.value(number, base) == number

  defp in_range?(op, number, base) when is_float(number) do
    {smallest, largest} = Number.normal_range(base)
    abs(number) <= largest and (op in [:add, :subtract] or number == 0.0 or abs(number) >= smallest)
  end

  defp in_range?(_op, _non_finite, _base), do: true

  # Whether f32 may not represent an operand exactly.
  defp double?(%T{type: type} = tensor) do
    case Backend.number(tensor) do
      number when is_integer(number) -> not Number.exact?(number, {:f, 32})
      nil -> type == {:f, 64} or (is_integer_type(type) and elem(type, 1) >= 32)
      _ -> type == {:f, 64}
    end
  end

  defp on_cpu?(tensor), do: Array.device(Backend.to_array(tensor)) == :cpu

  # ---- comparisons ----

  @mirrored %{
    equal: :equal,
    not_equal: :not_equal,
    greater: :less,
    less: :greater,
    greater_equal: :less_equal,
    less_equal: :greater_equal
  }

  @doc "Compares two tensors. Returns an array of `:u8`."
  @spec compare(atom, T.t(), T.t()) :: Array.t()
  def compare(op, %T{type: {:u, 64}} = left, %T{type: {:s, _}} = right), do: compare_unsigned(op, left, right)

  def compare(op, %T{type: {:s, _}} = left, %T{type: {:u, 64}} = right),
    do: compare_unsigned(Map.fetch!(@mirrored, op), right, left)

  def compare(op, %T{type: left_type} = left, %T{type: right_type} = right)
      when is_float_type(left_type) and is_integer_type(right_type),
      do: compare_float(op, left, right)

  def compare(op, %T{type: left_type} = left, %T{type: right_type} = right)
      when is_integer_type(left_type) and is_float_type(right_type),
      do: compare_float(Map.fetch!(@mirrored, op), right, left)

  def compare(op, left, right), do: Ops.run_and_cast(op, [Backend.to_array(left), Backend.to_array(right)], :u8)

  # MLX compares u64 with signed integers as f32. Here they are compared as u64, except if the signed one is negative.
  defp compare_unsigned(op, unsigned, signed) do
    compared = Ops.run(op, [Backend.to_array(unsigned), Backend.operand(signed, {:u, 64})])
    negative = Ops.run(:less, [Backend.to_array(signed), Type.scalar(0, signed.type)])
    larger = if op in [:not_equal, :greater, :greater_equal], do: 1, else: 0
    Ops.run_and_cast(:where, [negative, Type.constant(larger, :bool, []), compared], :u8)
  end

  # MLX compares a float with an integer in the float's type, which has to represent the integer exactly.
  defp compare_float(op, float, whole) do
    held = if is_narrow(float.type), do: {:f, 16}, else: float.type
    wider = [{:f, 32} | if(on_cpu?(float) and on_cpu?(whole), do: [{:f, 64}], else: [])]
    candidates = [held | for({_, size} = type <- wider, size > elem(held, 1), do: type)]

    case Enum.find(candidates, &holds_whole?(&1, whole)) do
      nil -> compare_wide(op, float, whole)
      ^held -> Ops.run_and_cast(op, [Backend.to_array(float), Backend.to_array(whole)], :u8)
      type -> Ops.run_and_cast(op, [Backend.operand(float, type), Backend.operand(whole, type)], :u8)
    end
  end

  defp holds_whole?(type, %T{type: {_, size}} = whole) do
    case Backend.number(whole) do
      nil -> size <= integer_bits(type)
      number -> Number.exact?(number, type)
    end
  end

  # The width of the widest integer type that a float type represents exactly.
  defp integer_bits({:f, 64}), do: 32
  defp integer_bits({:f, 32}), do: 16
  defp integer_bits(_type), do: 8

  # Compares the float with the integer rounded to a float. If both are equal, the float is an integer, and both are
  # compared as integers. A float beyond the integer range is compared with 0 instead: it is larger than any integer.
  defp compare_wide(op, float, %T{type: type} = whole) do
    work = if float.type == {:f, 64}, do: {:f, 64}, else: {:f, 32}

    {integers, limit} =
      if type == {:u, 64}, do: {{:u, 64}, 1.8446744073709552e19}, else: {{:s, 64}, 9.223372036854775808e18}

    float = Backend.operand(float, work)
    zero = Type.scalar(0, work)
    beyond = Ops.run(:greater_equal, [float, Type.scalar(limit, work)])
    rounded = Ops.run(:where, [beyond, zero, Backend.operand(whole, work)])
    equal = Ops.run(:equal, [float, rounded])
    same = Ops.run({:astype, %{dtype: Type.dtype(integers)}}, [Ops.run(:where, [equal, float, zero])])
    exact = Ops.run(op, [same, Backend.operand(whole, integers)])
    Ops.run_and_cast(:where, [equal, exact, Ops.run(op, [float, rounded])], :u8)
  end
end
