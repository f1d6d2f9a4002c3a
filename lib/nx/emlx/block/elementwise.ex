# Implementations of Nx's element-wise blocks, and of all_close, which compares element by element.

defimpl EMLX.Block, for: Nx.Block.LogicalNot do
  alias EMLX.{Backend, Ops}

  def call(_block, output, [tensor], _fun) do
    tensor |> Backend.to_array() |> Ops.equal(0) |> Ops.astype(:u8) |> Backend.tensor(output)
  end
end

defimpl EMLX.Block, for: Nx.Block.Phase do
  alias EMLX.{Backend, Ops}

  def call(_block, output, [%{type: {:c, _}} = tensor], _fun) do
    array = Backend.to_array(tensor)
    array |> Ops.imag() |> Ops.arctan2(Ops.real(array)) |> Backend.tensor(output)
  end

  def call(block, _output, args, fun),
    do: EMLX.Block.decline(block, args, fun, "a real number has the phase 0 or pi, which takes no kernel")
end

defimpl EMLX.Block, for: Nx.Block.AllClose do
  alias EMLX.{Backend, Ops}

  # MLX takes the tolerances as f32.
  def call(block, output, [%{type: {:f, 32}} = a, %{type: {:f, 32}} = b], _fun) do
    opts = [rtol: block.rtol, atol: block.atol, equal_nan: block.equal_nan == true]
    a |> Backend.to_array() |> Ops.allclose(Backend.to_array(b), opts) |> Backend.to_nx(output)
  end

  def call(block, _output, args, fun),
    do: EMLX.Block.decline(block, args, fun, "the kernel compares f32 with f32")
end
