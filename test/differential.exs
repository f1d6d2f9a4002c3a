# Runs the differential suite (test/support/differential.ex) with one line for each call that fails, and a summary. The
# operation that is looked at is written to standard error:
#
#     export MIX_ENV=test EMLX_TEST_DEVICE=gpu EMLX_DIFFERENTIAL=12
#     EMLX_DIFFERENTIAL_OPS=sort,cumsum mix run test/differential.exs
#
# EMLX_DIFFERENTIAL_SECONDS stops it before the first operation that begins later; what was left out is named.
alias EMLX.Differential

seed = Differential.seed(:rand.uniform(1_000_000))
limit = "EMLX_DIFFERENTIAL_SECONDS" |> System.get_env("0") |> String.to_integer()
extent = Differential.extent()
# In another order for each seed, so that what a limit leaves out is not always the same.
:rand.seed(:exsss, seed)
operations = Enum.shuffle(Differential.operations())
start = System.monotonic_time(:millisecond)
seconds = fn -> (System.monotonic_time(:millisecond) - start) / 1000 end

IO.puts(
  "differential: device #{EMLX.Golden.device()}, seed #{seed}, #{length(operations)} operations, #{inspect(extent)}"
)

results =
  for name <- operations do
    if limit > 0 and seconds.() > limit do
      {name, :left_out}
    else
      IO.write(:stderr, "#{name} ")
      result = Differential.run(name, seed, extent)
      for line <- result.failures, do: IO.puts("FAIL #{String.slice(line, 0, 600)}")
      {name, result}
    end
  end

run = for {_, %{} = result} <- results, do: result
left = for {name, :left_out} <- results, do: name
failed = for {name, %{failures: [_ | _] = failures}} <- results, do: "#{name} (#{length(failures)})"
none = for {name, %{checked: 0}} <- results, do: name
sum = fn key -> run |> Enum.map(&Map.fetch!(&1, key)) |> Enum.sum() end

IO.puts("#{length(run)} operations, #{sum.(:checked)} calls checked, #{sum.(:refused)} refused, #{round(seconds.())} s")
if left != [], do: IO.puts("left out: #{Enum.join(left, " ")}")
if none != [], do: IO.puts("no call accepted: #{Enum.join(none, " ")}")
IO.puts(if failed == [], do: "all as they should be", else: "failed: #{Enum.join(failed, ", ")}")
if failed != [] or none != [], do: System.halt(1)
