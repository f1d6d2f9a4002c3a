defprotocol EMLX.Block do
  @moduledoc """
  The protocol that replaces the composed function of an `Nx.block/4` by kernels of MLX.

  A block has a struct of static options, tensors as arguments, and a function that composes the same result from Nx's
  operations. On `EMLX.Backend` and in functions compiled with `EMLX`, `Nx.block/4` dispatches to this protocol. A
  struct with an implementation runs it; every other struct runs its composed function. A library does not need to
  depend on EMLX for its blocks to have kernels, and its code keeps working on every other backend.

      defimpl EMLX.Block, for: MyLibrary.Block.Softplus do
        def call(block, output, [x] = args, fun) do
          if Nx.type(x) == {:f, 32} do
            x |> EMLX.Backend.to_array() |> EMLX.Ops.logaddexp(0.0) |> EMLX.Backend.to_nx(output)
          else
            EMLX.Block.decline(block, args, fun, "the kernel is for f32")
          end
        end
      end

  The guide "Give your own block a kernel" works through an example. The built-in blocks of Nx (`Nx.Block`) and those of
  `EMLX.Fast` are implemented in the same way.

  ## The contract of an implementation

    * Tensor arguments are on `EMLX.Backend` or on a backend that it can read. `EMLX.Backend.to_array/1` returns their
      arrays, and `EMLX.Backend.to_nx/2` returns a tensor like the template from an array.
    * It may read shapes and types, never values: in a compiled function the arrays have no values yet.
    * Its result has the shape and the type of `output`. EMLX checks both.
    * No tensor of the arguments or the output is c128, which MLX lacks: such a block is composed.
    * It may call Nx, and so dispatch further blocks.
    * Its result equals the composed one up to rounding. If the kernel cannot return that, it calls `decline/4`.

  ## Telemetry

  Each dispatched block emits one event `[:emlx, :block, :dispatch]`, with measurements `%{count: 1}` and metadata

    * `:block` - the struct's module
    * `:path` - `:fused` or `:composed`
    * `:reason` - the reason why it was composed, a binary; `nil` for `:fused`, or if an implementation ran the composed
      function without a reason

  A compiled function emits the events once per trace, not once per run. A block that raises emits none.
  """

  @fallback_to_any true

  @doc """
  Runs a block.

    * `block` - the struct
    * `output` - a template of the result: a tensor, or a tuple of tensors
    * `args` - the tensors that `Nx.block/4` received, followed by its keyword list if it received one
    * `fun` - the composed function, to be called as `apply(fun, [block | args])`

  Returns a result like `output`. Implementations define this function; callers use `dispatch/4` or `Nx.block/4`.
  """
  @spec call(t, output, args :: [term], fun) :: output when output: Nx.Tensor.t() | tuple
  def call(block, output, args, fun)

  @doc """
  Runs the composed function instead of a kernel, and returns its result. Implementations of `call/4` use it for
  arguments that their kernel cannot take. Telemetry reports `reason`.
  """
  @spec decline(struct, args :: [term], fun, reason :: binary) :: Nx.Tensor.t() | tuple
  Kernel.def(decline(block, args, fun, reason), do: EMLX.Block.Dispatch.decline(block, args, fun, reason))

  @doc """
  Runs a block through its implementation, reports the path to telemetry, checks the result and names the block in
  errors. `Nx.block/4` calls it on `EMLX.Backend`.

  Raises `EMLX.Block.Error` if an implementation raises, or returns a result that is not like `output`. Exceptions of
  the composed function are passed on unchanged.
  """
  @spec dispatch(struct, output, args :: [term], fun) :: output when output: Nx.Tensor.t() | tuple
  Kernel.def(dispatch(block, output, args, fun),
    do: EMLX.Block.Dispatch.run(impl_for(block), block, output, args, fun)
  )
end

defimpl EMLX.Block, for: Any do
  def call(block, _output, args, fun), do: apply(fun, [block | args])
end
