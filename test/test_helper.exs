# Started once for all tiers: mix wants a test_helper.exs in each test path, and those in test/core and test/nx require
# this.
#
# Long and random tests are tagged :slow and left out here; `mix test --include slow` and script/test run them, too.
# Tests that bound what a clock or the operating system says, where other work of the machine shows, are tagged :timing:
# `mix test --exclude timing`.
#
# A busy machine is no failure: the limit is for what hangs.
ExUnit.start(timeout: 300_000, exclude: [:slow])

for reason <- EMLX.Skip.reasons(), do: IO.puts("skipped: #{reason}")
