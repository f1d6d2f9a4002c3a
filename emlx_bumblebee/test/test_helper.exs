# A busy machine is no failure: the limit is for what hangs.
ExUnit.start(timeout: 300_000)
