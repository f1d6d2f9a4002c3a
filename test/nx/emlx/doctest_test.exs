defmodule EMLX.DoctestTest do
  use EMLX.NxCase, async: true

  require EMLX.Doctests

  # Nx's documentation prints the results of Nx.BinaryBackend to the last digit. Doctests that are not listed here have
  # to pass unchanged.
  @modules [Nx, Nx.LinAlg, Nx.Random, Nx.Constants, Nx.Type, Nx.Shape, Nx.Batch, Nx.Container, Nx.Defn]

  last_digit = "the last digit of f64"
  erf_inv = "Nx's erf_inv has 8 digits of f64, this one 16"
  normal = "the last digit of erf_inv in f32"
  last_digit_of_f32 = "the last digit of f32"
  decomposition = "last digits of a decomposition, LAPACK's or a kernel's here, Nx's own in the documentation"

  @exceptions %{
    {"Nx.erf_inv/1", 1} => {erf_inv, {:digits, 1.0e-7}},
    {"Nx.erf_inv/1", 2} => {erf_inv, {:digits, 1.0e-7}},
    {"Nx.erfc/1", 1} => {last_digit, {:digits, 1.0e-15}},
    {"Nx.erfc/1", 2} => {last_digit, {:digits, 1.0e-15}},
    {"Nx.log1p/1", 2} => {last_digit, {:digits, 1.0e-15}},
    {"Nx.sin/1", 2} => {last_digit, {:digits, 1.0e-15}},
    {"Nx.Random.normal/4", 1} => {normal, {:digits, 2.0e-7}},
    {"Nx.Random.normal/4", 3} => {normal, {:digits, 2.0e-7}},
    {"Nx.Random.normal/4", 4} => {normal, {:digits, 2.0e-7}},
    {"Nx.Random.multivariate_normal/4", 2} => {normal, {:digits, 2.0e-7}},
    {"Nx.Random.multivariate_normal/4", 4} => {normal, {:digits, 2.0e-7}},
    {"Nx.Random.gumbel/2", 2} => {last_digit_of_f32, {:digits, 2.0e-7}},
    {"Nx.atan2/2", 2} => {last_digit_of_f32, {:digits, 1.0e-7}},
    {"Nx.LinAlg.cholesky/1", 1} => {decomposition, {:digits, 1.0e-6}},
    {"Nx.LinAlg.cholesky/1", 2} => {decomposition, {:digits, 1.0e-6}},
    {"Nx.LinAlg.cholesky/1", 5} => {decomposition, {:digits, 1.0e-6}},
    {"Nx.LinAlg.determinant/1", 7} => {decomposition, {:digits, 1.0e-6}},
    {"Nx.LinAlg.eigh/2", 3} => {decomposition, {:digits, 1.0e-6}},
    {"Nx.LinAlg.eigh/2", 4} => {decomposition, {:digits, 1.0e-6}},
    {"Nx.LinAlg.least_squares/3", 1} => {decomposition, {:digits, 1.0e-6}},
    {"Nx.LinAlg.least_squares/3", 2} => {decomposition, {:digits, 1.0e-6}},
    {"Nx.LinAlg.least_squares/3", 3} => {decomposition, {:digits, 1.0e-6}},
    {"Nx.LinAlg.lu/1", 3} => {decomposition, {:digits, 1.0e-6}},
    {"Nx.LinAlg.matrix_power/2", 6} => {decomposition, {:digits, 1.0e-5}},
    {"Nx.LinAlg.pinv/2", 5} => {decomposition, {:digits, 2.0e-5}},
    {"Nx.LinAlg.pinv/2", 6} => {decomposition, {:digits, 1.0e-6}},
    {"Nx.LinAlg.qr/2", 4} => {decomposition, {:digits, 1.0e-6}},
    {"Nx.LinAlg.solve/2", 1} => {decomposition, {:digits, 1.0e-6}},
    {"Nx.LinAlg.solve/2", 4} => {decomposition, {:digits, 1.0e-6}},
    {"Nx.LinAlg.svd/2", 2} => {decomposition, {:digits, 1.0e-6}},
    {"Nx.LinAlg.eigh/2", 2} => {decomposition, {:digits, 1.0e-6}}
  }

  # Observed on an H200: CUDA's libraries round the last digit of f32 differently.
  cuda = "the last digit of f32 in CUDA's library"

  @only_on_gpu for {function, numbers} <- [
                     {"Nx.atan2/2", 1..3},
                     {"Nx.logsumexp/2", 5..9},
                     {"Nx.phase/1", [1, 3]},
                     {"Nx.LinAlg.cholesky/1", [3]},
                     {"Nx.Random.gumbel/2", [2]}
                   ],
                   number <- numbers,
                   into: %{},
                   do: {{function, number}, {cuda, {:digits, 1.0e-6}}}

  if EMLX.Golden.device() == :gpu, do: @exceptions(Map.merge(@exceptions, @only_on_gpu))

  EMLX.Doctests.run(@modules, @exceptions)

  test "every doctest of Nx runs, and every exception names one of them" do
    # 1,330 in Nx 0.12.1, 1,341 in 0.13.1.
    assert @doctests >= 1330
    assert map_size(Map.drop(@exceptions, Map.keys(@only_on_gpu))) <= 32
    assert Enum.sort(Map.keys(@found)) == Enum.sort(Map.keys(@exceptions))
  end

  for {{function, number} = key, {reason, check}} <- Enum.sort(@exceptions) do
    @name Map.fetch!(@found, key)
    @check check
    test "example #{number} of #{function} differs by no more than its reason: #{reason}" do
      check(EMLX.Doctests.outcome(__MODULE__, @name), @check)
    end
  end

  defp check(outcome, {:digits, rtol}), do: EMLX.Doctests.assert_digits(outcome, rtol)
end
