# Functions of Nx along an axis, at sizes and in layouts that Nx's own examples do not cover
# (test/support/nx/differential.ex).
defmodule EMLX.NxDifferentialTest do
  use EMLX.NxCase, async: true

  alias EMLX.{Differential, NxDifferential}

  @moduletag :slow
  @moduletag timeout: 3_600_000
  @seed Differential.seed(ExUnit.configuration()[:seed] || 0)

  for name <- Map.keys(NxDifferential.functions()) do
    @name name

    test "#{name} returns the reference's values, whole, by element, by row and compiled" do
      case NxDifferential.run(@name, @seed) do
        [] -> :ok
        texts -> flunk("EMLX_SEED=#{@seed}\n" <> Enum.join(Enum.take(texts, 8), "\n"))
      end
    end
  end
end
