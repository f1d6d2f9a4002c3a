if Code.ensure_loaded?(Nx) do
  defmodule EMLX.TestBlock do
    @moduledoc "Blocks for the tests of EMLX.Block. Each doubles its argument when it is composed."

    defmodule Plain do
      @moduledoc "Has no implementation."
      defstruct []
    end

    defmodule Odd do
      @moduledoc "An implementation that does what `:does` says."
      defstruct [:does]
    end

    defmodule Pair do
      @moduledoc "Gives the argument and its negation."
      defstruct []
    end

    defmodule Peek do
      @moduledoc "An implementation that does what `:how` says, for the tests of the compiler."
      defstruct [:how]
    end

    @doc "Runs a block."
    def double(block, tensor, output \\ nil),
      do: Nx.block(block, [tensor], output || tensor, fn %{}, tensor -> Nx.multiply(tensor, 2) end)
  end

  defimpl EMLX.Block, for: EMLX.TestBlock.Odd do
    alias EMLX.{Backend, Ops}

    def call(%{does: does} = block, output, [tensor] = args, fun) do
      case does do
        :kernel -> tensor |> Backend.to_array() |> Ops.multiply(2) |> Backend.to_nx(output)
        :decline -> EMLX.Block.decline(block, args, fun, "not today")
        :compose -> apply(fun, [block | args])
        :nested -> EMLX.TestBlock.double(%{block | does: :kernel}, tensor)
        :nested_decline -> EMLX.TestBlock.double(%{block | does: :decline}, tensor)
        :raise -> raise ArgumentError, "no luck"
        :kernel_error -> Ops.matmul(Backend.to_array(tensor), Backend.to_array(Nx.tensor([1, 2, 3, 4, 5])))
        :shape -> Nx.new_axis(tensor, 0)
        :composed_shape -> fun.(block, Nx.new_axis(tensor, 0))
        :type -> Nx.as_type(tensor, :s64)
        :term -> :ok
        :nested_raise -> EMLX.TestBlock.double(%{block | does: :raise}, tensor)
        :raise_in_composed -> EMLX.Block.decline(block, args, fn _, _ -> raise "in composed" end, "for the test")
      end
    end
  end

  defimpl EMLX.Block, for: EMLX.TestBlock.Pair do
    def call(_block, {one, other}, [tensor], _fun) do
      array = EMLX.Backend.to_array(tensor)
      {EMLX.Backend.to_nx(array, one), array |> EMLX.Ops.negative() |> EMLX.Backend.to_nx(other)}
    end
  end

  defimpl EMLX.Block, for: EMLX.TestBlock.Peek do
    import Nx.Defn

    def call(%{how: how} = block, _output, [x] = args, fun) do
      case how do
        how when is_function(how) -> how.(x)
        :jits -> Nx.Defn.jit_apply(&grow/1, [x])
        :other_shape -> fun.(block, Nx.stack([x, x]))[0]
        :leaks -> tap(x, &send(self(), {:leaked, &1}))
        :composes -> apply(fun, [block | args])
      end
    end

    defn grow(x) do
      {x, _} =
        while {x, i = 0}, i < 2 do
          {if(Nx.sum(x) > 100, do: x, else: x + 1), i + 1}
        end

      x
    end
  end
end
