# Started once for all tiers: mix wants a test_helper.exs in each test path, and those in test/core and test/nx require this.
ExUnit.start()
