defmodule EMLX.Compiler.MaskedTest do
  # Rows that a mask fills are one kernel of the program on the CPU, and compute what Nx does.
  use EMLX.NxCase, async: true

  import EMLX.Random

  alias EMLX.Program

  @moduletag skip: EMLX.Golden.device() == :gpu and "the kernel is the CPU's"

  defp explained(fun, args), do: EMLX.explain(fun, Enum.map(args, &Nx.to_template/1), device: :cpu)
  defp masked?(fun, args), do: explained(fun, args) =~ ~r/: masked: \d+ operations/

  # The largest of each row, as the logits of a text model are masked before a token is drawn.
  defp largest(logits, k) do
    {values, _} = Nx.top_k(logits, k: k)
    least = values[-1]
    Nx.select(Nx.less(logits, least), Nx.Constants.neg_infinity(Nx.type(logits)), logits)
  end

  defp softmax(x) do
    exps = Nx.exp(Nx.subtract(x, Nx.reduce_max(x, axes: [-1], keep_axes: true)))
    Nx.divide(exps, Nx.sum(exps, axes: [-1], keep_axes: true))
  end

  # Leaves the most probable ones that come to `p`.
  defp nucleus(logits, p) do
    order = Nx.argsort(logits)
    scores = logits |> Nx.take_along_axis(order) |> softmax() |> Nx.cumulative_sum()
    mask = Nx.less_equal(scores, 1 - p)
    mask = Nx.indexed_put(Nx.broadcast(Nx.tensor(0, type: :u8), mask), Nx.new_axis(order, -1), Nx.flatten(mask))
    Nx.select(mask, Nx.Constants.neg_infinity(Nx.type(logits)), logits)
  end

  # The first place at which the running sum exceeds a share of the whole.
  defp drawn(logits, share) do
    sums = logits |> softmax() |> Nx.cumulative_sum()
    Nx.argmin(Nx.less_equal(sums, Nx.multiply(sums[-1], share)), tie_break: :low)
  end

  defp sample(logits, share, opts) do
    logits = Nx.vectorize(logits, :batch)
    logits = if k = opts[:top_k], do: largest(logits, k), else: logits
    logits = if p = opts[:top_p], do: nucleus(logits, p), else: logits
    logits |> drawn(Nx.vectorize(share, :batch)) |> Nx.devectorize(keep_names: false)
  end

  # Distinct numbers, so that rounding decides nothing.
  defp logits(rows, size, type) do
    {numbers, _} = Nx.Random.shuffle(Nx.Random.key(integer(0..1000)), Nx.iota({rows * size}))
    numbers |> Nx.divide(rows * size / 12) |> Nx.as_type(type) |> Nx.reshape({rows, size})
  end

  defp share(rows), do: tensor({rows}, {:f, 32}, range: {0.05, 0.95})

  defp assert_sampled(args, opts) do
    fun = &sample(&1, &2, opts)
    args = Enum.map(args, &Nx.backend_copy(&1, Nx.BinaryBackend))
    same(fun, args)
    assert masked?(fun, args)
  end

  test "a token that is drawn from the largest of each row is Nx's" do
    for_all(12, "top-k and top-p", fn ->
      {rows, size} = {integer(1..5), one_of([256, 300, 1000])}
      opts = one_of([[top_k: integer(1..60)], [top_k: 20, top_p: 0.9], [top_k: 200, top_p: 0.5]])
      assert_sampled([logits(rows, size, :f32), share(rows)], opts)
    end)
  end

  test "a token that is drawn from the most probable ones, however many, is Nx's" do
    for_all(6, "top-p", fn ->
      rows = integer(1..3)
      assert_sampled([logits(rows, 400, :f32), share(rows)], top_p: one_of([0.2, 0.9, 1.0]))
    end)
  end

  test "equal, infinite and NaN numbers are ordered as by Nx" do
    rows =
      for numbers <- [[1.0, 1.0, 3.0, 3.0, 3.0], [:neg_infinity], [:neg_infinity, 2.0], [0.0, -0.0, 1.0], [5.0]],
          do: Enum.take(Stream.cycle(numbers), 256)

    # No share of equal numbers is near one that rounding decides.
    args = [Nx.tensor(rows, backend: Nx.BinaryBackend), Nx.broadcast(0.5025, {5})]
    assert_sampled(args, top_k: 4)
    assert_sampled(args, top_k: 100, top_p: 0.7)
  end

  test "the order and the sums of a masked row are those of the program without the kernel" do
    fun = fn x, least ->
      masked = Nx.select(Nx.less(x, least), -3.0, x)
      sums = masked |> Nx.take_along_axis(Nx.argsort(masked, axis: 1), axis: 1) |> Nx.cumulative_sum(axis: 1)
      {Nx.argmax(sums, axis: 1), Nx.reduce_max(sums, axes: [1])}
    end

    for_all(10, "sums", fn ->
      # The sum falls within the run of the mask's number.
      args = [logits(3, 500, :f32), Nx.tensor([[2.0], [11.9], [0.0]])]
      first = &elem(fun.(&1, &2), 0)
      same(first, args)
      assert masked?(first, args)
    end)
  end

  test "rows of 16-bit floats give what they give one operation after another" do
    for type <- [{:bf, 16}, {:f, 16}] do
      fun = fn x ->
        masked = Nx.select(Nx.less(x, 11), Nx.Constants.neg_infinity(type), x)
        scores = masked |> Nx.take_along_axis(Nx.argsort(masked, axis: 1), axis: 1) |> softmax()
        Nx.argmin(Nx.less_equal(Nx.cumulative_sum(scores, axis: 1), 0.3), axis: 1)
      end

      args = [logits(4, 300, type)]
      assert masked?(fun, args)
      compiled = Nx.Defn.jit_apply(fun, args, compiler: EMLX, cache: false, device: :cpu)
      evaluated = Nx.Defn.jit_apply(fun, args, compiler: Nx.Defn.Evaluator)

      for {a, b} <- Enum.zip(Nx.to_flat_list(compiled), Nx.to_flat_list(evaluated)),
          do: assert_in_delta(a, b, 1)
    end
  end

  test "a mask whose row is needed whole is left to the other passes, with the reason" do
    whole = fn x -> x |> Nx.less(0) |> Nx.select(0.0, x) |> Nx.cumulative_sum(axis: 1) end
    refute masked?(whole, [logits(2, 300, :f32)])
    assert explained(whole, [logits(2, 300, :f32)]) =~ "its rows are needed whole"

    short = fn x -> x |> Nx.less(0) |> Nx.select(0.0, x) |> Nx.cumulative_sum(axis: 1) |> Nx.argmax(axis: 1) end
    refute masked?(short, [logits(2, 100, :f32)])
    assert masked?(short, [logits(2, 300, :f32)])
  end

  test "a saved program has the operations, and its plan the kernel" do
    fun = fn x -> x |> Nx.less(3) |> Nx.select(-1.0, x) |> Nx.cumulative_sum(axis: 1) |> Nx.argmax(axis: 1) end
    program = EMLX.compile_to_program(fun, [Nx.template({2, 300}, :f32)], device: :cpu)
    assert Program.inspect(program) =~ "cumsum("
    assert Program.explain(program, device: :cpu) =~ ": masked: 6 operations"
  end
end
