defmodule EMLX.Backend.GradientTest do
  use EMLX.NxCase, async: true

  import EMLX.Random
  import Nx.Defn

  # Gradients of functions of one tensor, on the backend under test against the binary backend. Entries have the range
  # of the argument, if it is not {-2, 2}, and the shape, if it is not {3, 4}.

  # Of cbrt only numbers beside zero, where the binary backend divides by zero.
  elementwise =
    [:exp, :expm1, :sigmoid, :cos, :sin, :cosh, :sinh, :tanh, :atan, :asinh, :erf, :erfc, :abs, :negate] ++
      [log: {0.5, 3}, log1p: {-0.5, 3}, tan: {-1, 1}, acos: {-0.8, 0.8}, asin: {-0.8, 0.8}, acosh: {1.5, 3}] ++
      [cbrt: {0.2, 2}, atanh: {-0.8, 0.8}, sqrt: {0.5, 3}, rsqrt: {0.5, 3}, erf_inv: {-0.8, 0.8}]

  for entry <- elementwise do
    {name, range} = if is_atom(entry), do: {entry, {-2, 2}}, else: entry

    test "the gradient of #{name} matches the binary backend" do
      for_all(5, {:grad, unquote(name)}, fn ->
        tensor = tensor({3, 4}, one_of([{:f, 32}, {:f, 64}]), range: unquote(Macro.escape(range)))
        fun = fn t -> Nx.sum(apply(Nx, unquote(name), [t])) end
        # Nx's erf_inv is less precise.
        gradient(fun, tensor, rtol: if(unquote(name) == :erf_inv, do: 1.0e-5, else: nil))
      end)
    end
  end

  defp gradient(fun, tensor, opts) do
    opts = Enum.reject(opts, fn {_key, value} -> value == nil end)
    opts = Keyword.merge([atol: if(tensor.type == {:f, 64}, do: 1.0e-9, else: 1.0e-4)], opts)
    same(&grad(&1, fun), [tensor], opts)
  end

  zoo = [
    add: quote(do: fn t -> Nx.sum(Nx.add(Nx.multiply(t, t), 3)) end),
    divide: quote(do: fn t -> Nx.sum(Nx.divide(1, Nx.add(Nx.multiply(t, t), 1))) end),
    pow: quote(do: fn t -> Nx.sum(Nx.pow(Nx.abs(t), 2.5)) end),
    atan2: quote(do: fn t -> Nx.sum(Nx.atan2(t, Nx.add(Nx.multiply(t, t), 1))) end),
    max: quote(do: fn t -> Nx.sum(Nx.max(t, Nx.multiply(t, -0.5))) end),
    clip: quote(do: fn t -> Nx.sum(Nx.multiply(Nx.clip(t, -1, 1), t)) end),
    select: quote(do: fn t -> Nx.sum(Nx.select(Nx.greater(t, 0), Nx.exp(t), Nx.multiply(t, 2))) end),
    sum: quote(do: fn t -> Nx.sum(Nx.pow(Nx.sum(t, axes: [0]), 2)) end),
    mean: quote(do: fn t -> Nx.sum(Nx.exp(Nx.mean(t, axes: [1], keep_axes: true))) end),
    product: quote(do: fn t -> Nx.sum(Nx.product(t, axes: [1])) end),
    reduce_max: quote(do: fn t -> Nx.sum(Nx.reduce_max(Nx.multiply(t, t), axes: [1])) end),
    reduce_min: quote(do: fn t -> Nx.sum(Nx.reduce_min(Nx.exp(t), axes: [0])) end),
    variance: quote(do: fn t -> Nx.sum(Nx.standard_deviation(t, axes: [1])) end),
    logsumexp: quote(do: fn t -> Nx.sum(Nx.logsumexp(t, axes: [1])) end),
    softmax:
      quote(do: fn t -> Nx.sum(Nx.pow(Nx.divide(Nx.exp(t), Nx.sum(Nx.exp(t), axes: [1], keep_axes: true)), 2)) end),
    cumulative: quote(do: fn t -> Nx.sum(Nx.pow(Nx.cumulative_sum(t, axis: 1), 2)) end),
    dot: quote(do: fn t -> Nx.sum(Nx.exp(Nx.multiply(0.1, Nx.dot(t, Nx.transpose(t))))) end),
    batched_dot: quote(do: fn t -> Nx.sum(Nx.pow(Nx.dot(t, [1], [0], Nx.reshape(t, {3, 2, 2}), [1], [0]), 2)) end),
    transpose: quote(do: fn t -> Nx.sum(Nx.multiply(Nx.transpose(t), Nx.iota({4, 3}))) end),
    reshape: quote(do: fn t -> Nx.sum(Nx.multiply(Nx.reshape(t, {2, 6}), Nx.iota({2, 6}))) end),
    broadcast: quote(do: fn t -> Nx.sum(Nx.multiply(Nx.broadcast(t, {2, 3, 4}), Nx.iota({2, 3, 4}))) end),
    reverse: quote(do: fn t -> Nx.sum(Nx.multiply(Nx.reverse(t, axes: [1]), Nx.iota({3, 4}))) end),
    pad: quote(do: fn t -> Nx.sum(Nx.pow(Nx.pad(t, 1.0, [{1, -1, 0}, {0, 2, 1}]), 2)) end),
    slice: quote(do: fn t -> Nx.sum(Nx.pow(Nx.slice(t, [1, 0], [2, 4], strides: [1, 3]), 2)) end),
    dynamic_slice: quote(do: fn t -> Nx.sum(Nx.pow(Nx.slice(t, [Nx.tensor(7), 0], [1, 2]), 2)) end),
    put_slice: quote(do: fn t -> Nx.sum(Nx.pow(Nx.put_slice(t, [1, 1], Nx.multiply(t[[0..1, 0..1]], 3)), 2)) end),
    concatenate: quote(do: fn t -> Nx.sum(Nx.pow(Nx.concatenate([t, Nx.exp(t)], axis: 1), 2)) end),
    stack: quote(do: fn t -> Nx.sum(Nx.multiply(Nx.stack([t, Nx.sin(t)]), Nx.iota({2, 3, 4}))) end),
    gather: quote(do: fn t -> Nx.sum(Nx.pow(Nx.gather(t, Nx.tensor([[0, 1], [0, 1], [2, 3]])), 2)) end),
    take: quote(do: fn t -> Nx.sum(Nx.pow(Nx.take(t, Nx.tensor([2, 0, 2]), axis: 0), 2)) end),
    take_along_axis: quote(do: fn t -> Nx.sum(Nx.pow(Nx.take_along_axis(t, Nx.argsort(t, axis: 1), axis: 1), 2)) end),
    indexed_add: quote(do: fn t -> Nx.sum(Nx.pow(Nx.indexed_add(t, Nx.tensor([[0, 0], [0, 0]]), t[0][0..1]), 2)) end),
    indexed_put: quote(do: fn t -> Nx.sum(Nx.pow(Nx.indexed_put(t, Nx.tensor([[0, 0], [1, 2]]), t[2][0..1]), 2)) end),
    sort: quote(do: fn t -> Nx.sum(Nx.multiply(Nx.sort(t, axis: 1), Nx.iota({3, 4}))) end),
    window_sum: quote(do: fn t -> Nx.sum(Nx.pow(Nx.window_sum(t, {2, 2}, padding: :same), 2)) end),
    window_max: quote(do: fn t -> Nx.sum(Nx.multiply(Nx.window_max(t, {2, 2}), Nx.iota({2, 3}))) end),
    window_min: quote(do: fn t -> Nx.sum(Nx.window_min(t, {2, 1}, strides: [2, 1], padding: [{1, 0}, {0, 0}])) end),
    window_mean: quote(do: fn t -> Nx.sum(Nx.exp(Nx.window_mean(t, {1, 3}, window_dilations: [1, 1]))) end),
    conv:
      quote(do: fn t -> Nx.sum(Nx.pow(Nx.conv(Nx.reshape(t, {1, 1, 3, 4}), Nx.iota({2, 1, 2, 2}, type: :f32)), 2)) end),
    conv_kernel:
      quote(
        do: fn t ->
          kernel = Nx.reshape(t, {3, 1, 2, 2})
          opts = [strides: [1, 2], padding: :same, feature_group_size: 3]
          Nx.sum(Nx.pow(Nx.conv(Nx.iota({1, 3, 4, 4}, type: :f32), kernel, opts), 2))
        end
      ),
    triangular_solve:
      quote(
        do: fn t ->
          a = Nx.add(Nx.dot(t, Nx.transpose(t)), Nx.multiply(5, Nx.eye(3)))
          Nx.sum(Nx.LinAlg.triangular_solve(a, Nx.tensor([1.0, 2.0, 3.0])))
        end
      ),
    cholesky:
      quote(do: fn t -> Nx.sum(Nx.LinAlg.cholesky(Nx.add(Nx.dot(t, Nx.transpose(t)), Nx.multiply(5, Nx.eye(3))))) end),
    determinant: quote(do: fn t -> Nx.LinAlg.determinant(Nx.add(Nx.dot(t, Nx.transpose(t)), Nx.eye(3))) end),
    inverse:
      quote(do: fn t -> Nx.sum(Nx.LinAlg.invert(Nx.add(Nx.dot(t, Nx.transpose(t)), Nx.multiply(5, Nx.eye(3))))) end),
    fft: quote(do: fn t -> Nx.sum(Nx.real(Nx.multiply(Nx.fft(t), Nx.iota({3, 4})))) end),
    complex: quote(do: fn t -> Nx.sum(Nx.abs(Nx.exp(Nx.complex(t, Nx.multiply(t, 2))))) end),
    while:
      quote(
        do: fn t ->
          {_, t} = while({i = 0, t}, i < 3, do: {i + 1, Nx.sin(t) * 2})
          Nx.sum(t)
        end
      ),
    cond:
      quote(
        do: fn t ->
          cond(
            do: (
              Nx.sum(t) > 100 -> Nx.sum(t)
              true -> Nx.sum(Nx.pow(t, 3))
            )
          )
        end
      ),
    layer_norm:
      quote(
        do: fn t ->
          mean = Nx.mean(t, axes: [1], keep_axes: true)
          variance = Nx.variance(t, axes: [1], keep_axes: true)
          Nx.sum(Nx.pow(Nx.divide(Nx.subtract(t, mean), Nx.sqrt(Nx.add(variance, 1.0e-3))), 3))
        end
      )
  ]

  for {name, fun} <- zoo do
    defnp(unquote(:"grad_#{name}")(t), do: grad(t, unquote(fun)))

    test "the gradient of #{name} matches the binary backend" do
      for_all(5, {:grad, unquote(name)}, fn ->
        tensor = tensor({3, 4}, one_of(f: 32, f: 64), range: {-2, 2})
        opts = if tensor.type == {:f, 64}, do: [rtol: 1.0e-5, atol: 1.0e-5], else: [rtol: 1.0e-3, atol: 1.0e-3]
        same(&unquote(:"grad_#{name}")(&1), [tensor], opts)
      end)
    end
  end
end
