defprotocol EMLX.Block do
  @moduledoc """
  Gives an `Nx.block/4` a kernel of MLX.

  A block is a struct of static options, tensors as arguments, and a function that composes the same result from Nx's
  operations. On `EMLX.Backend` and in functions compiled with `EMLX`, `Nx.block/4` comes here. A struct that has an
  implementation of this protocol runs it, every other struct runs its composed function. So a library needs to know nothing of
  EMLX to be given a kernel, and code that has one keeps working on every other backend.

      defimpl EMLX.Block, for: MyLibrary.Block.Softplus do
        def call(block, output, [x] = args, fun) do
          if Nx.type(x) == {:f, 32} do
            x |> EMLX.Backend.to_array() |> EMLX.Ops.logaddexp(0.0) |> EMLX.Backend.to_nx(output)
          else
            EMLX.Block.decline(block, args, fun, "the kernel is for f32")
          end
        end
      end

  The guide "Give your own block a kernel" has this example in full. The built-in blocks of Nx (`Nx.Block`) and those of
  `EMLX.Fast` have their implementations in the same way.

  ## What an implementation may rely on

    * Tensor arguments are on `EMLX.Backend` or on a backend that it can read; `EMLX.Backend.to_array/1` gives their arrays,
      `EMLX.Backend.to_nx/2` makes a tensor like the template from an array.
    * It may read shapes and types, never values: in a compiled function the arrays stand for values that are not there yet.
    * Its result has the shape and the type of `output`; that is checked.
    * No tensor, of the arguments or the output, is c128, which MLX lacks: such a block is composed.
    * It may call Nx, and so reach further blocks.
    * It is never approximately right. Where the kernel could not give the composed answer, it calls `decline/4`.

  ## Telemetry

  Each block that is dispatched is told once, as `[:emlx, :block, :dispatch]` with measurements `%{count: 1}` and metadata

    * `:block` - the struct's module
    * `:path` - `:fused` or `:composed`
    * `:reason` - why it was composed, a binary; `nil` for `:fused`, or where an implementation ran the composed function
      without saying why

  When a function is compiled, that is once per trace, not once per run. A block that raises is not told.
  """

  @fallback_to_any true

  @doc """
  Runs a block.

    * `block` - the struct
    * `output` - a template of the result: a tensor, or a tuple of tensors
    * `args` - the tensors that `Nx.block/4` was given, and a keyword list after them if it was given one
    * `fun` - the composed function, `apply(fun, [block | args])`

  Implement it; to run a block call `dispatch/4`, or `Nx.block/4`.
  """
  @spec call(t, output, args :: [term], fun) :: output when output: Nx.Tensor.t() | tuple
  def call(block, output, args, fun)

  @doc """
  Runs the composed function in place of a kernel, for a reason that telemetry tells. It is how an implementation of `call/4`
  declines.
  """
  @spec decline(struct, args :: [term], fun, reason :: binary) :: Nx.Tensor.t() | tuple
  Kernel.def(decline(block, args, fun, reason), do: EMLX.Block.Dispatch.decline(block, args, fun, reason))

  @doc """
  Runs a block through its implementation, tells the path in telemetry, checks the result and names the block in errors. What
  `Nx.block/4` does on `EMLX.Backend`.

  Raises `EMLX.Block.Error` when an implementation raises, or returns something else than `output` describes. Exceptions of the
  composed function are passed on as they are.
  """
  @spec dispatch(struct, output, args :: [term], fun) :: output when output: Nx.Tensor.t() | tuple
  Kernel.def(dispatch(block, output, args, fun),
    do: EMLX.Block.Dispatch.run(impl_for(block), block, output, args, fun)
  )
end

defimpl EMLX.Block, for: Any do
  def call(block, _output, args, fun), do: apply(fun, [block | args])
end
