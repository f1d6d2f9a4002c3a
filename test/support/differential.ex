defmodule EMLX.Differential do
  @moduledoc """
  Every operation of the native table at sizes, shapes, types and layouts that golden values do not reach: on the CPU
  or, with `EMLX_TEST_DEVICE=gpu`, on the GPU, against references that other operations compute on the CPU in 64 bits
  (`EMLX.Differential.Reference`).

  Of each call it looks at

    * the whole result
    * single elements, sliced out of a result that is not computed yet, and of one that is: `f(x)[i]` is the element
      of `f(x)`
    * a program of the operation, which may write over its operands, and which CUDA captures from the third run on
    * one row of a batch, computed alone
    * what another operation reads of the result

  There are more calls than a test can make, so each run makes some, drawn by a seed that failures name. Environment:

    * `EMLX_DIFFERENTIAL` - how many calls of each operation, or `full` for every shape in every layout and every type
    * `EMLX_DIFFERENTIAL_OPS` - names of operations, with commas between them; all by default
    * `EMLX_SEED` - the seed; that of the test run by default

  `test/differential.exs` runs it without ExUnit, with one line for each call that fails.
  """

  alias EMLX.{Array, Golden, Ops, OpTable, Program, Tolerance}
  alias EMLX.Differential.{Case, Compare, Draw, Input}
  alias EMLX.Differential.Reference, as: R

  alias EMLX.Differential.{
    Creation,
    Elementwise,
    Fused,
    LinearAlgebra,
    Order,
    Parts,
    Products,
    Quantized,
    Reductions,
    Shapes,
    Spectra,
    Windows
  }

  @families %{
    unary: Elementwise,
    binary: Elementwise,
    select: Elementwise,
    cast: Elementwise,
    reduction: Reductions,
    scan: Reductions,
    order: Order,
    shape: Shapes,
    slice: Parts,
    index: Parts,
    product: Products,
    window: Windows,
    spectrum: Spectra,
    linear_algebra: LinearAlgebra,
    random: Creation,
    creation: Creation,
    fused: Fused,
    quantized: Quantized
  }

  @dtypes [:f32, :bf16, :s32, :f16, :u8, :s64, :bool, :f64, :c64, :u32, :s8, :u64, :s16, :u16]

  @vectors [[], [0], [1], [7], [31], [1025], [8193]]
  @matrices [[0, 7], [7, 0], [3, 31], [31, 7], [1025, 1], [1, 1025], [3, 8193]]
  @deep [[3, 7, 31], [1025, 3, 7], [0, 3, 2], [1, 31, 1, 7], [2, 3, 5, 7], [2, 3, 1, 7, 5], [31, 3, 2, 1, 7]]
  @shapes @vectors ++ @matrices ++ @deep
  @large [[65_537], [20_011, 3, 1], [1_000_003], [1_000_003, 1], [1, 1_000_003], [3, 65_537], [65_537, 3]] ++
           [[65_537, 1, 3], [2, 1, 65_537], [1025, 31, 7], [2, 3, 31, 1025], [3, 2, 1, 7, 8193]]

  # Calls of each operation in a test run: of small arrays and of large ones.
  @few {7, 2}

  @type result :: %{checked: non_neg_integer, refused: non_neg_integer, failures: [binary]}

  @doc "The operations that are asked for, sorted."
  @spec operations :: [atom]
  def operations do
    case System.get_env("EMLX_DIFFERENTIAL_OPS", "") do
      "" ->
        OpTable.names()

      names ->
        names = names |> String.split(",", trim: true) |> Enum.map(&String.trim/1)
        found = Enum.filter(OpTable.names(), &(to_string(&1) in names))
        missing = names -- Enum.map(found, &to_string/1)

        if missing != [],
          do: raise(ArgumentError, "EMLX_DIFFERENTIAL_OPS: there is no operation #{Enum.join(missing, ", ")}")

        found
    end
  end

  @doc "How many calls of each operation there are to be: `{small, large}` or `:full`."
  def extent do
    case System.get_env("EMLX_DIFFERENTIAL", "") do
      "" -> @few
      "full" -> :full
      number -> number |> String.to_integer() |> then(&{&1 - div(&1, 3), div(&1, 3)})
    end
  end

  @doc "The seed, which `EMLX_SEED` sets."
  def seed(default), do: "EMLX_SEED" |> System.get_env("#{default}") |> String.to_integer()

  @doc "Whether there is a generator of an operation's calls."
  @spec generator?(atom) :: boolean
  def generator?(name) do
    Enum.any?(@dtypes, fn dtype ->
      draw_from({name, dtype})
      build(name, draw([3, 7], dtype, :contiguous)) not in [nil, :skip]
    end)
  end

  @doc "Makes calls of an operation and looks at what comes of them."
  @spec run(atom, integer, {non_neg_integer, non_neg_integer} | :full) :: result
  def run(name, seed, extent \\ extent()) do
    calls = calls(name, seed, extent)
    start = %{checked: 0, refused: 0, failures: []}

    Enum.reduce(calls, start, fn {shape, dtype, layout}, result ->
      draw_from({seed, name, shape, dtype, layout})

      case guarded(name, draw(shape, dtype, layout)) do
        :ok -> %{result | checked: result.checked + 1}
        :refused -> %{result | refused: result.refused + 1}
        {:error, texts} -> %{result | checked: result.checked + 1, failures: result.failures ++ texts}
      end
    end)
  end

  # ---- which calls ----

  defp calls(name, seed, extent) do
    case dtypes(name) do
      [] -> []
      dtypes -> chosen(name, seed, extent, dtypes)
    end
  end

  defp chosen(name, seed, extent, dtypes) do
    layouts = Input.layouts()

    all = fn shapes ->
      by_layout = for shape <- shapes, layout <- layouts, do: {shape, layout}
      by_type = for shape <- shapes, dtype <- dtypes, do: {shape, dtype}

      Enum.zip_with(by_layout, Stream.cycle(dtypes), fn {shape, layout}, dtype -> {shape, dtype, layout} end) ++
        Enum.zip_with(by_type, Stream.cycle(layouts), fn {shape, dtype}, layout -> {shape, dtype, layout} end)
    end

    draw_from({seed, name})

    case extent do
      :full -> Enum.uniq(all.(@shapes) ++ all.(@large))
      {small, large} -> Enum.take_random(all.(@shapes), small) ++ Enum.take_random(all.(@large), large)
    end
  end

  # The types that an operation takes: a few calls are tried on the CPU.
  defp dtypes(name) do
    # The GPU has no f64.
    for dtype <- @dtypes, dtype != :f64 or Golden.device() == :cpu, takes?(name, dtype), do: dtype
  end

  defp takes?(name, dtype) do
    key = {__MODULE__, name, dtype}

    with nil <- :persistent_term.get(key, nil) do
      takes = Enum.any?(1..3, &tried?(name, dtype, &1))
      :persistent_term.put(key, takes)
      takes
    end
  end

  defp tried?(name, dtype, attempt) do
    draw_from({name, dtype, attempt})

    case build(name, draw([3, 7], dtype, :contiguous)) do
      :skip ->
        false

      %Case{op: op, inputs: inputs} ->
        op |> Ops.run(Enum.map(inputs, &Input.on(&1, :cpu)), device: :cpu) |> EMLX.eval()
        true
    end
  rescue
    EMLX.Error -> false
  end

  defp draw(shape, dtype, layout), do: %Draw{shape: shape, dtype: dtype, layout: layout, device: Golden.device()}

  defp build(name, draw) do
    %{class: class} = OpTable.fetch!(name)
    Map.fetch!(@families, class).build(name, draw)
  end

  defp draw_from(term),
    do: :rand.seed(:exsss, {:erlang.phash2(term), :erlang.phash2({term, 1}), :erlang.phash2({term, 2})})

  # ---- one call ----

  # What the suite itself cannot do is a failure, too, of the one call.
  defp guarded(name, draw) do
    call(name, draw)
  rescue
    error ->
      place = __STACKTRACE__ |> Enum.filter(&ours?/1) |> Enum.take(2) |> Exception.format_stacktrace() |> String.trim()
      call = "#{draw.dtype}#{inspect(draw.shape, charlists: :as_lists)} #{draw.layout}"
      {:error, ["#{name} of #{call}: the suite raised #{Exception.message(error)} in #{place}"]}
  end

  defp ours?({module, _, _, _}), do: String.starts_with?(inspect(module), "EMLX.Differential.")

  defp call(name, draw) do
    case build(name, draw) do
      :skip -> :refused
      %Case{} = call -> look(call)
    end
  end

  defp look(call) do
    device = Golden.device()
    values = for input <- call.inputs, do: input && input.values

    case evaluated(call, device) do
      {:ok, arrays, results} ->
        check = call.check.(values)

        texts =
          check(check, results, "eager") ++
            attempt("element", fn -> elements(call, device, arrays, results) end) ++
            attempt("compiled", fn -> compiled(call, device, check, results) end) ++
            attempt("row", fn -> row(call, device, results) end) ++
            attempt("used", fn -> used(call, device, results) end)

        if texts == [], do: :ok, else: {:error, Enum.map(texts, &"#{Case.describe(call)}: #{&1}")}

      {:raised, error} ->
        if refused?(call, values),
          do: :refused,
          else: {:error, ["#{Case.describe(call)}: raised #{Exception.message(error)}"]}
    end
  end

  defp evaluated(call, device) do
    arrays = List.wrap(Ops.run(call.op, Enum.map(call.inputs, &Input.on(&1, device)), device: device))
    {:ok, arrays, Enum.map(arrays, &host/1)}
  rescue
    error in EMLX.Error -> {:raised, error}
  end

  # What has no elements may be refused; what the operation refuses in small pieces, too.
  defp refused?(call, values) do
    Enum.any?(values, &(&1 != nil and Array.size(&1) == 0)) or
      try do
        _ = call.check.(values)
        false
      rescue
        EMLX.Error -> true
      end
  end

  defp host(array), do: Array.from_binary(Array.to_binary(array), Tuple.to_list(Array.shape(array)), Array.dtype(array))

  defp check(check, results, how) do
    for {label, have, want, tolerance} <- check.(results),
        text = Compare.difference(have, want, tolerance),
        do: "#{how}: #{label}: #{text}"
  end

  defp attempt(how, fun) do
    fun.()
  rescue
    error in EMLX.Error -> ["#{how}: raised #{Exception.message(error)}"]
  end

  # ---- single elements ----

  defp elements(call, device, computed, results) do
    lazy = List.wrap(Ops.run(call.op, Enum.map(call.inputs, &Input.on(&1, device)), device: device))

    for {{array, result}, i} <- lazy |> Enum.zip(results) |> Enum.with_index(),
        size = Array.size(result),
        size > 0,
        place <- Enum.uniq([0, size - 1, Enum.random(0..(size - 1))]),
        {how, array} <- [{"of what is not computed yet", array}, {"of what is computed", Enum.at(computed, i)}],
        text = element(array, result, place, tolerance(call, how)),
        do: "element: #{how}, result #{i}: #{text}"
  end

  # What is computed is there; another computation may round otherwise.
  defp tolerance(call, "of what is computed"), do: if(call, do: :bits)
  defp tolerance(call, _how), do: call.tolerance

  defp element(array, result, place, tolerance) do
    dims = Tuple.to_list(Array.shape(result))
    at = Compare.indices(place, dims)
    axes = Reductions.all(length(dims))
    slice = {:slice, %{start: at, stop: Enum.map(at, &(&1 + 1)), strides: Enum.map(at, fn _ -> 1 end)}}
    single = Ops.run({:squeeze, %{axes: axes}}, [Ops.run(slice, [array])])
    dtype = Array.dtype(result)
    size = Array.dtype_size(dtype)
    [have, want] = [Array.to_binary(single), binary_part(Array.to_binary(result), place * size, size)]

    if have != want do
      [x, y] = for binary <- [have, want], do: Compare.element(binary, dtype, 0)

      near =
        case Tolerance.of(tolerance, dtype) do
          :bits -> false
          tolerance -> Tolerance.near?(x, y, tolerance)
        end

      if near, do: nil, else: "#{inspect(at, charlists: :as_lists)} is #{inspect(x)}, in the whole #{inspect(y)}"
    end
  end

  # ---- what is computed from a result ----

  # A result's strides and flags have to be true for whatever reads it, and not for a copy alone.
  defp used(call, device, results) do
    arrays = List.wrap(Ops.run(call.op, Enum.map(call.inputs, &Input.on(&1, device)), device: device))

    for {{array, result}, i} <- arrays |> Enum.zip(results) |> Enum.with_index(),
        # Complex numbers have no order.
        Array.dtype(result) != :c64,
        text = Compare.difference(host(Ops.run(:maximum, [array, array])), result, call.tolerance),
        do: "used: the larger of result #{i} and itself: #{text}"
  end

  # ---- programs ----

  # On CUDA a program of eight operations and more is captured when it has run some times.
  @copies 8
  @runs 5

  defp compiled(call, device, check, results) do
    inputs = Enum.map(call.inputs, &Input.on(&1, device))
    {program, arrays} = program(call.op, inputs, length(results), if(device == :gpu, do: @copies, else: 1))

    for run <- 1..if(device == :gpu, do: @runs, else: 1) do
      again = for array <- Program.run(program, arrays, device: device), do: host(array)

      if Enum.map(again, &Array.to_binary/1) == Enum.map(results, &Array.to_binary/1),
        do: [],
        else: check(check, again, "compiled, run #{run}")
    end
    |> Enum.find([], &(&1 != []))
  end

  defp program(op, inputs, outputs, copies) do
    arrays = Enum.reject(inputs, &is_nil/1)
    count = length(arrays)

    # Copies of copies, the last of which the operation may write over.
    instructions = for round <- 0..(copies - 1), i <- 0..(count - 1)//1, do: {:copy, [round * count + i], 1}

    {numbers, _} =
      Enum.map_reduce(inputs, copies * count, fn
        nil, next -> {nil, next}
        _array, next -> {next, next + 1}
      end)

    first = (copies + 1) * count
    results = Enum.to_list(first..(first + outputs - 1)//1)
    {Program.new(count, instructions ++ [{op, numbers, outputs}], results), arrays}
  end

  # ---- rows ----

  defp row(%Case{rows: nil}, _device, _results), do: []

  defp row(%Case{rows: {axis, out}} = call, device, results) do
    [first | rest] = Enum.map(call.inputs, &Input.on(&1, device))
    n = Enum.at(Tuple.to_list(Array.shape(first)), axis)

    for i <- Enum.uniq([0, n - 1, Enum.random(0..max(n - 1, 0))]), i in 0..(n - 1)//1 do
      alone = List.wrap(Ops.run(call.op, [cut(first, axis, i) | rest], device: device))

      for {have, result} <- Enum.zip(alone, results),
          text = Compare.difference(host(have), R.wide(R.pick(result, places(result, out, i))), call.tolerance),
          do: "row #{i} of axis #{axis} alone: #{text}"
    end
    |> Enum.concat()
  end

  defp cut(array, axis, i) do
    dims = Tuple.to_list(Array.shape(array))
    start = dims |> Enum.map(fn _ -> 0 end) |> List.replace_at(axis, i)
    stop = List.replace_at(dims, axis, i + 1)
    Ops.run({:slice, %{start: start, stop: stop, strides: Enum.map(dims, fn _ -> 1 end)}}, [array])
  end

  defp places(result, axis, i) do
    dims = R.dims(result)

    R.index(
      for {{n, stride}, at} <- dims |> Enum.zip(R.strides(dims)) |> Enum.with_index(),
          do: if(at == axis, do: R.affine(1, i * stride, 0), else: R.affine(n, 0, stride))
    )
  end
end
