defmodule EMLX.Golden do
  @moduledoc """
  Reads the golden values under `test/golden/data` (made by `test/golden/generate.py`, which says what a case holds),
  runs cases through `EMLX.Ops.run/3` and compares. On the CPU, or with EMLX_TEST_DEVICE=gpu on the GPU, which has no
  cases in f64.
  """

  alias EMLX.{Array, Kernels, Ops, Tolerance}

  @data Path.expand("../golden/data", __DIR__)

  @type case_ :: %{
          name: binary,
          op: Ops.op(),
          inputs: [tuple | nil],
          outputs: [tuple],
          tolerance: Tolerance.t(),
          form: term,
          family: binary
        }

  @doc "The families that there are files of."
  @spec families :: [binary]
  def families do
    for path <- Path.wildcard(Path.join(@data, "*.terms")), do: Path.basename(path, ".terms")
  end

  @doc "The cases of a family, in the order they were made in. Read once."
  @spec cases(binary) :: [case_]
  def cases(family) do
    cached({__MODULE__, :cases, family}, fn ->
      {:ok, cases} = :file.consult(Path.join(@data, family <> ".terms"))
      cases = Enum.map(cases, &Map.merge(%{family: family, form: :values}, &1))
      if device() == :cpu, do: cases, else: Enum.reject(cases, &double?/1)
    end)
  end

  defp double?(case_) do
    arrays = Enum.reject(case_.inputs ++ case_.outputs, &is_nil/1)
    Enum.any?(arrays, &(elem(&1, 0) == :f64)) or match?({_, %{dtype: :f64}}, case_.op)
  end

  @doc "The device under test."
  @spec device :: :cpu | :gpu
  def device do
    case System.get_env("EMLX_TEST_DEVICE", "cpu") do
      "cpu" -> :cpu
      "gpu" -> :gpu
    end
  end

  @doc "`EMLX.Ops.run/3` on the device under test."
  @spec run(Ops.op(), [Array.t() | nil]) :: Array.t() | [Array.t()]
  def run(op, inputs), do: Ops.run(op, inputs, device: device())

  # The fused kernels on the device under test, with arguments and results on the CPU, so that formulas can be composed
  # of them.
  for {name, arity} <- [rms_norm: 2, layer_norm: 3, rope: 3, scaled_dot_product_attention: 4] do
    arguments = Macro.generate_arguments(arity, __MODULE__)

    @doc "`EMLX.Kernels.#{name}/#{arity + 1}` on the device under test."
    def unquote(name)(unquote_splicing(arguments), opts \\ []) do
      arguments = Enum.map(unquote(arguments), &to_device/1)
      opts = Enum.map(opts, fn {name, value} -> {name, to_device(value)} end)
      Array.to_device(apply(Kernels, unquote(name), arguments ++ [opts]), :cpu)
    end
  end

  defp to_device(%Array{} = array), do: Array.to_device(array, device())
  defp to_device(other), do: other

  @doc "The name of a case's operation."
  @spec operation(case_) :: atom
  def operation(%{op: {name, _attributes}}), do: name
  def operation(%{op: name}), do: name

  @doc "Every operation that has cases in these families, with how many."
  @spec operations([binary]) :: [{atom, pos_integer}]
  def operations(families) do
    families |> Enum.flat_map(&cases/1) |> Enum.frequencies_by(&operation/1) |> Enum.sort()
  end

  @doc "The cases of one operation."
  @spec cases_of([binary], atom) :: [case_]
  def cases_of(families, operation) do
    families |> Enum.flat_map(&cases/1) |> Enum.filter(&(operation(&1) == operation))
  end

  @doc "Files that the test modules are compiled again for when they change."
  @spec files :: [binary]
  def files, do: Path.wildcard(Path.join(@data, "*"))

  @doc """
  Runs a case and compares: `:ok`, or `{:error, text}` that names the case, the first element that is off and both
  values.

  `run` takes the operation and its inputs and gives an array or a list of arrays.
  """
  @spec check(case_, (Ops.op(), [Array.t() | nil] -> Array.t() | [Array.t()])) :: :ok | {:error, binary}
  def check(case_, run \\ &__MODULE__.run/2) do
    inputs = Enum.map(case_.inputs, &array(case_, &1))
    results = case_.op |> run.(inputs) |> List.wrap()
    # Forms are computed in f64 where they can be.
    results = if case_.form == :values, do: results, else: Enum.map(results, &Array.to_device(&1, :cpu))
    results = form(case_.form, Enum.map(inputs, &(&1 && Array.to_device(&1, :cpu))), results)
    expected = case_.outputs

    if length(results) == length(expected) do
      expected
      |> Enum.zip(results)
      |> Enum.with_index()
      |> Enum.find_value(:ok, fn {{want, have}, i} -> difference(case_, want, have, i) end)
    else
      {:error, "#{case_.name}: #{length(results)} results, expected #{length(expected)}"}
    end
  rescue
    error in EMLX.Error -> {:error, "#{case_.name}: raised #{Exception.message(error)}"}
  end

  @doc """
  The same array as a view whose elements do not lie next to each other: what an operation makes of strides is part of
  its meaning. Scalars and empty arrays stay as they are.
  """
  @spec scattered(Array.t() | nil) :: Array.t() | nil
  def scattered(nil), do: nil

  def scattered(array) do
    rank = Array.rank(array)

    cond do
      rank == 0 or Array.size(array) == 0 ->
        array

      rank == 1 ->
        doubled = Ops.run({:repeat, %{repeats: 2, axis: 0}}, [array])
        stop = [2 * Array.size(array)]
        Ops.run({:slice, %{start: [0], stop: stop, strides: [2]}}, [doubled])

      true ->
        back = Enum.to_list((rank - 1)..0//-1)
        turned = Ops.run(:contiguous, [Ops.run({:transpose, %{axes: back}}, [array])])
        Ops.run({:transpose, %{axes: back}}, [turned])
    end
  end

  @doc """
  Compares an array with its reference in f64, `:ok` or `{:error, text}`, by the tolerance of the array's own type.
  """
  @spec compare(binary, Array.t(), Array.t(), Tolerance.t()) :: :ok | {:error, binary}
  def compare(label, have, want, tolerance) do
    shape = Array.shape(want)

    if Array.shape(have) != shape do
      {:error, "#{label}: shape #{inspect(Array.shape(have))}, expected #{inspect(shape)}"}
    else
      {absolute, relative} = tolerance = Tolerance.of(tolerance, Array.dtype(have))
      # A GPU has no f64.
      [wide, want] = for array <- [have, want], do: Ops.astype(Array.to_device(array, :cpu), :f64)
      distance = Ops.abs(Ops.subtract(wide, want))
      allowed = want |> Ops.abs() |> Ops.multiply(relative) |> Ops.add(absolute)
      near = Ops.less_equal(distance, allowed)

      if Array.to_list(Ops.all(near)) do
        :ok
      else
        flat = near |> Array.to_binary() |> :binary.match(<<0>>) |> elem(0)
        [x, y] = for array <- [wide, want], do: array |> Array.to_binary() |> decode(:f64) |> Enum.at(flat)
        place = list(place(flat, Tuple.to_list(shape)))

        {:error,
         "#{label}: element #{place} is #{inspect(x)}, expected #{inspect(y)} " <>
           "(#{Array.dtype(have)}#{list(Tuple.to_list(shape))}, allowed #{inspect(tolerance)})"}
      end
    end
  end

  defp array(_case, nil), do: nil

  defp array(case_, {dtype, shape, offset, length}) do
    Array.from_binary(bytes(case_, offset, length), shape, dtype, device: device())
  end

  defp bytes(case_, offset, length) do
    blob = cached({__MODULE__, :blob, case_.family}, fn -> File.read!(Path.join(@data, case_.family <> ".bin")) end)
    binary_part(blob, offset, length)
  end

  defp cached(key, make) do
    with nil <- :persistent_term.get(key, nil) do
      value = make.()
      :persistent_term.put(key, value)
      value
    end
  end

  # ---- comparison ----

  defp difference(case_, {dtype, shape, offset, length}, have, index) do
    where = if length(case_.outputs) > 1, do: "#{case_.name}: result #{index}", else: case_.name
    {found_dtype, found_shape} = {Array.dtype(have), Tuple.to_list(Array.shape(have))}

    if found_dtype != dtype or found_shape != shape do
      {:error, "#{where} is #{found_dtype}#{list(found_shape)}, expected #{dtype}#{list(shape)}"}
    else
      want = bytes(case_, offset, length)
      have = Array.to_binary(have)
      if want == have, do: nil, else: off(where, want, have, dtype, shape, case_.tolerance)
    end
  end

  defp off(where, want, have, dtype, shape, tolerance) do
    tolerance = Tolerance.of(tolerance, dtype)

    differing =
      [decode(want, dtype), decode(have, dtype), chunks(want, dtype), chunks(have, dtype)]
      |> Enum.zip()
      |> Enum.with_index()
      |> Enum.reject(fn {{x, y, x_bytes, y_bytes}, _} ->
        case tolerance do
          # NaNs differ in bits that mean nothing.
          :bits -> x_bytes == y_bytes or not_a_number?(x, y)
          _ -> Tolerance.near?(y, x, tolerance)
        end
      end)

    case differing do
      [] ->
        nil

      [{{x, y, _, _}, i} | _] = all ->
        {:error,
         "#{where}: element #{list(place(i, shape))} is #{inspect(y)}, expected #{inspect(x)} " <>
           "(#{dtype}#{list(shape)}, #{length(all)} of #{Enum.product(shape)} differ by more than #{inspect(tolerance)})"}
    end
  end

  defp list(numbers), do: inspect(numbers, charlists: :as_lists)

  defp not_a_number?(:nan, :nan), do: true
  defp not_a_number?({a, b}, {c, d}), do: :nan in [a, b] and :nan in [c, d]
  defp not_a_number?(_, _), do: false

  defp place(flat, shape) do
    {place, _} = Enum.map_reduce(Enum.reverse(shape), flat, fn size, rest -> {rem(rest, size), div(rest, size)} end)
    Enum.reverse(place)
  end

  # ---- elements ----

  @doc """
  The elements of a binary: integers, floats, `{real, imaginary}`, `:nan`, `:infinity`, `:neg_infinity`; booleans as 0
  and 1.
  """
  @spec decode(binary, Array.dtype()) :: [term]
  def decode(binary, :c64) do
    for <<real::binary-4, imaginary::binary-4 <- binary>>, do: {float(real, 8, 23), float(imaginary, 8, 23)}
  end

  def decode(binary, :f16), do: for(<<x::binary-2 <- binary>>, do: float(x, 5, 10))
  def decode(binary, :bf16), do: for(<<x::binary-2 <- binary>>, do: float(x, 8, 7))
  def decode(binary, :f32), do: for(<<x::binary-4 <- binary>>, do: float(x, 8, 23))
  def decode(binary, :f64), do: for(<<x::binary-8 <- binary>>, do: float(x, 11, 52))
  def decode(binary, :bool), do: :binary.bin_to_list(binary)

  def decode(binary, dtype) do
    bits = 8 * bytes_of(dtype)

    case Atom.to_string(dtype) do
      "u" <> _ -> for <<x::integer-unsigned-little-size(bits) <- binary>>, do: x
      "s" <> _ -> for <<x::integer-signed-little-size(bits) <- binary>>, do: x
    end
  end

  defp float(bytes, exponent_bits, fraction_bits) do
    <<bits::integer-little-size(exponent_bits + fraction_bits + 1)>> = bytes

    <<sign::1, exponent::size(exponent_bits), fraction::size(fraction_bits)>> =
      <<bits::size(exponent_bits + fraction_bits + 1)>>

    largest = 2 ** exponent_bits - 1
    bias = div(largest, 2)
    sign = if sign == 1, do: -1.0, else: 1.0

    cond do
      exponent == largest and fraction != 0 -> :nan
      exponent == largest and sign < 0 -> :neg_infinity
      exponent == largest -> :infinity
      exponent == 0 -> sign * fraction * :math.pow(2, 1 - bias - fraction_bits)
      fraction_bits == 52 -> double(bits)
      true -> sign * (1 + fraction / 2 ** fraction_bits) * :math.pow(2, exponent - bias)
    end
  end

  defp double(bits) do
    <<x::float-64>> = <<bits::64>>
    x
  end

  defp chunks(binary, dtype) do
    size = bytes_of(dtype)
    for <<x::binary-size(size) <- binary>>, do: x
  end

  @sizes %{
    bool: 1,
    u8: 1,
    s8: 1,
    u16: 2,
    s16: 2,
    f16: 2,
    bf16: 2,
    u32: 4,
    s32: 4,
    f32: 4,
    u64: 8,
    s64: 8,
    f64: 8,
    c64: 8
  }

  defp bytes_of(dtype), do: Map.fetch!(@sizes, dtype)

  # ---- forms of results that are not unique ----

  defp form(:values, _inputs, results), do: results

  # Sorted along an axis.
  defp form({:sorted, axis}, _inputs, [result]), do: [sort(result, axis)]

  # What comes before and after the k-th is sorted; the k-th has to be in its place.
  defp form({:partition, kth, axis}, _inputs, [result]) do
    length = elem(Array.shape(result), axis)

    parts =
      for {from, to} <- [{0, kth}, {kth, kth + 1}, {kth + 1, length}],
          to > from,
          do: sort(part(result, axis, from, to), axis)

    [Ops.run({:concatenate, %{axis: axis}}, parts)]
  end

  # The same of what the indices point at.
  defp form({:argpartition, kth, axis}, [input], [indices]) do
    :u32 = Array.dtype(indices)
    form({:partition, kth, axis}, [], [Ops.run({:take_along_axis, %{axis: axis}}, [input, indices])])
  end

  # q·r, qᵀ·q, and what r has below its diagonal.
  defp form(:qr, _inputs, [q, r]) do
    [product(q, r), product(adjoint(q), q), Ops.run({:tril, %{k: -1}}, [r])]
  end

  # The singular values, u·s·vᴴ, uᴴ·u and vᴴ·v.
  defp form(:svd, _inputs, [u, s, vt]) do
    count = elem(Array.shape(s), Array.rank(s) - 1)
    left = part(u, Array.rank(u) - 1, 0, count)
    right = part(vt, Array.rank(vt) - 2, 0, count)
    scaled = Ops.run(:multiply, [left, expand(s, -2)])
    [s, product(scaled, right), product(adjoint(u), u), product(vt, adjoint(vt))]
  end

  # The eigenvalues, v·w·vᴴ and vᴴ·v.
  defp form(:eigh, _inputs, [w, v]) do
    scaled = Ops.run(:multiply, [v, expand(w, -2)])
    [w, product(scaled, adjoint(v)), product(adjoint(v), v)]
  end

  # The eigenvalues in order, a·v - v·w, and the length of each eigenvector.
  defp form(:eig, [a], [w, v]) do
    a = Ops.run({:astype, %{dtype: :c64}}, [a])
    rest = Ops.run(:subtract, [product(a, v), Ops.run(:multiply, [v, expand(w, -2)])])
    squares = Ops.run({:sum, %{axes: [-2], keepdims: false}}, [Ops.run(:square, [Ops.run(:abs, [v])])])
    [in_order(w), rest, squares]
  end

  defp form(:eigvals, _inputs, [w]), do: [in_order(w)]

  # l, u, and how far the rows of l·u in the order given are from a.
  defp form(:lu, [a], [order, l, u]) do
    :u32 = Array.dtype(order)
    shape = Tuple.to_list(Array.shape(a))
    rank = length(shape)
    indices = Ops.run({:expand_dims, %{axes: [rank - 1]}}, [order])
    indices = Ops.run({:broadcast_to, %{shape: shape}}, [indices])
    rows = Ops.run({:take_along_axis, %{axis: rank - 2}}, [product(l, u), indices])
    [l, u, Ops.run(:subtract, [rows, a])]
  end

  defp sort(array, axis), do: Ops.run({:sort, %{axis: axis}}, [array])
  defp product(a, b), do: Ops.run(:matmul, [a, b])
  defp adjoint(a), do: Ops.run({:swapaxes, %{axis1: -1, axis2: -2}}, [Ops.run(:conjugate, [a])])
  defp expand(a, axis), do: Ops.run({:expand_dims, %{axes: [axis]}}, [a])

  defp part(array, axis, from, to) do
    shape = Tuple.to_list(Array.shape(array))
    start = shape |> Enum.map(fn _ -> 0 end) |> List.replace_at(axis, from)
    strides = Enum.map(shape, fn _ -> 1 end)
    Ops.run({:slice, %{start: start, stop: List.replace_at(shape, axis, to), strides: strides}}, [array])
  end

  # Complex numbers by real part, then imaginary part; each row of the last axis by itself. Rounded, so that pairs whose
  # real parts are equal but for the last bits come in one order.
  defp in_order(array) do
    shape = Array.shape(array)
    length = elem(shape, tuple_size(shape) - 1)

    sorted =
      array
      |> Array.to_binary()
      |> decode(:c64)
      |> Enum.chunk_every(max(length, 1))
      |> Enum.map(&Enum.sort_by(&1, fn {re, im} -> {Float.round(re, 3), Float.round(im, 3)} end))

    binary = for row <- sorted, {re, im} <- row, into: <<>>, do: <<re::float-32-little, im::float-32-little>>
    Array.from_binary(binary, shape, :c64)
  end
end
