defmodule EMLX.Backend.WindowTest do
  use EMLX.NxCase, async: true

  import EMLX.Random

  # A shape, a window that fits it, and the options of the window.
  defp windows(opts \\ []) do
    shape = shape(1..3, 2..6)
    dims = Tuple.to_list(shape)
    window = for dim <- dims, do: integer(1..min(dim, 3))

    dilations =
      for {dim, size} <- Enum.zip(dims, window),
          do: if(size == 1, do: 1, else: integer(1..max(div(dim - 1, size - 1), 1)))

    dilations = if opts[:dilations] == false, do: Enum.map(dims, fn _ -> 1 end), else: dilations
    strides = for _ <- dims, do: integer(1..3)
    padding = one_of([:valid, :same, for(_ <- dims, do: {integer(0..2), integer(0..2)})])

    opts =
      [strides: strides, padding: padding] ++ if(opts[:dilations] == false, do: [], else: [window_dilations: dilations])

    {shape, List.to_tuple(window), opts}
  end

  for name <- [:window_sum, :window_product, :window_max, :window_min] do
    test "#{name} takes any strides, padding and dilation" do
      for_all(120, unquote(name), fn ->
        {shape, window, opts} = windows()
        type = one_of(real_types() -- [{:f, 8}, {:f8_e4m3fn, 8}])
        range = if unquote(name) == :window_product, do: {0.5, 2}, else: {-10, 10}

        tolerance =
          if elem(type, 1) <= 16 and type not in integer_types(), do: [rtol: 0.05, atol: 0.5], else: [atol: 1.0e-4]

        same(&apply(Nx, unquote(name), [&1, window, opts]), [tensor(shape, type, range: range)], tolerance)
      end)
    end
  end

  test "large windows match the binary backend" do
    for_all(60, :large_windows, fn ->
      size = integer(9..40)
      dilation = integer(1..3)
      length = (size - 1) * dilation + integer(1..20)

      opts = [
        strides: [integer(1..4), 1],
        window_dilations: [dilation, 1],
        padding: [{integer(0..5), integer(0..5)}, {0, 0}]
      ]

      tensor = tensor({length, 2}, one_of([{:s, 32}, {:f, 64}, {:u, 8}]))
      name = one_of([:window_sum, :window_max, :window_min])
      same(&apply(Nx, name, [&1, {size, 1}, opts]), [tensor], atol: 1.0e-10)
    end)
  end

  test "windows of padding alone match the binary backend" do
    opts = [padding: [{3, 3}], strides: [1]]
    tensor = tensor({2}, {:s, 32})
    same(&{Nx.window_max(&1, {2}, opts), Nx.window_min(&1, {2}, opts), Nx.window_sum(&1, {2}, opts)}, [tensor])
    tensor = tensor({2}, {:f, 32})
    same(&{Nx.window_max(&1, {2}, opts), Nx.window_min(&1, {2}, opts), Nx.window_sum(&1, {2}, opts)}, [tensor])
  end

  test "window_sum takes complex numbers" do
    for_all(20, :complex, fn ->
      {shape, window, opts} = windows()
      same(&Nx.window_sum(&1, window, opts), [tensor(shape, {:c, 64})], atol: 1.0e-4)
    end)
  end

  test "window_mean matches the binary backend" do
    for_all(30, :window_mean, fn ->
      {shape, window, opts} = windows()
      same(&Nx.window_mean(&1, window, opts), [tensor(shape, one_of([{:f, 32}, {:s, 16}]))], atol: 1.0e-4)
    end)
  end

  test "window_reduce takes a function" do
    for_all(60, :window_reduce, fn ->
      {shape, window, opts} = windows()
      tensor = tensor(shape, {:s, 32})

      {binary, emlx} =
        one_of([
          {fn x, acc -> x + acc end, &Nx.add/2},
          {fn x, acc -> max(x, acc) end, &Nx.max/2},
          {fn x, acc -> 2 * x + acc end, fn x, acc -> Nx.add(Nx.multiply(2, x), acc) end}
        ])

      # The binary backend calls the function with numbers.
      expected = Nx.with_default_backend(Nx.BinaryBackend, fn -> Nx.window_reduce(tensor, 0, window, opts, binary) end)
      assert_same(Nx.window_reduce(Nx.backend_copy(tensor, backend()), 0, window, opts, emlx), expected)
    end)
  end

  for name <- [:window_scatter_max, :window_scatter_min] do
    test "#{name} takes the last of equal elements, sums overlaps and drops padding" do
      for_all(100, unquote(name), fn ->
        {shape, window, opts} = windows(dilations: false)
        # Few different numbers, so that there are ties.
        type = one_of([{:s, 32}, {:f, 32}, {:u, 8}, {:s, 64}])
        tensor = Nx.floor(tensor(shape, type, range: {-2, 3}))
        windows = Nx.window_sum(tensor, window, opts)
        source = tensor(windows.shape, type)
        init = tensor({}, type, range: {-1, 1})
        same(&apply(Nx, unquote(name), [&1, &2, &3, window, opts]), [tensor, source, init])
      end)
    end
  end
end
