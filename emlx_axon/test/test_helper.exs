# Axon's loops log the options that they pass on.
Logger.configure(level: :info)
# The limit is for tests that hang; a busy machine must not reach it.
ExUnit.start(timeout: 300_000)
