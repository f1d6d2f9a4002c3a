# Implementations of Nx's Fourier transforms over two axes and of real numbers. MLX computes in c64.

defimpl EMLX.Block, for: [Nx.Block.FFT2, Nx.Block.IFFT2] do
  alias EMLX.{Backend, Ops}

  def call(%{axes: [a, b], lengths: lengths, eps: eps} = block, %{type: {:c, 64}} = output, [tensor], _fun)
      when a != b do
    array = Backend.to_array(tensor)

    case block do
      %{__struct__: Nx.Block.FFT2} -> Ops.fft(array, lengths, [a, b], eps: eps)
      _ -> Ops.ifft(array, lengths, [a, b], eps: eps)
    end
    |> Backend.to_nx(output)
  end

  def call(block, _output, args, fun),
    do: EMLX.Block.decline(block, args, fun, "the kernel is for two axes and gives c64")
end

defimpl EMLX.Block, for: Nx.Block.RFFT do
  alias EMLX.{Backend, Ops}

  def call(%{axis: axis, length: length}, %{type: {:c, 64}} = output, [%{type: {kind, _}} = tensor], _fun)
      when kind != :c do
    half = tensor |> Backend.to_array() |> Ops.astype(:f32) |> Ops.rfft([length], [axis])
    # Adding 0 turns -0 into 0.
    half |> Ops.add(0) |> Backend.to_nx(output)
  end

  def call(block, _output, args, fun),
    do: EMLX.Block.decline(block, args, fun, "the kernel takes real numbers and gives c64")
end

defimpl EMLX.Block, for: Nx.Block.IRFFT do
  alias EMLX.{Backend, Ops}

  def call(%{axis: axis, length: length}, %{type: {:f, 32}} = output, [tensor], _fun) when length > 1 do
    tensor |> Backend.to_array() |> Ops.astype(:c64) |> Ops.irfft([length], [axis]) |> Backend.to_nx(output)
  end

  def call(block, _output, args, fun),
    do: EMLX.Block.decline(block, args, fun, "the kernel gives f32, of a length above 1")
end
