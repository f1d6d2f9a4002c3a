# Started once for all tiers: mix wants a test_helper.exs in each test path, and those in test/core and test/nx require this.
# A busy machine is no failure: the limit is for what hangs.
ExUnit.start(timeout: 300_000)
