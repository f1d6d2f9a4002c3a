defmodule EMLX.Skip do
  @moduledoc """
  Reasons to skip a test on a machine that lacks what it needs, for `@tag skip: …`: a string where the test is skipped,
  else `false`. test_helper.exs prints those that apply.
  """

  @doc "For tests of programs that are captured as CUDA graphs: they run with `EMLX_TEST_DEVICE=gpu` on an NVIDIA GPU."
  @spec no_cuda :: String.t() | false
  def no_cuda, do: not captures?() and "no CUDA"

  @doc "For tests that copy between devices."
  @spec no_gpu :: String.t() | false
  def no_gpu, do: not EMLX.device_available?(:gpu) and "no GPU"

  @doc "The reasons that apply here."
  @spec reasons :: [String.t()]
  def reasons, do: Enum.filter([no_cuda(), no_gpu()], & &1)

  defp captures? do
    EMLX.Golden.device() == :gpu and :os.type() == {:unix, :linux} and System.get_env("EMLX_CUDA_GRAPHS") != "0"
  end
end
