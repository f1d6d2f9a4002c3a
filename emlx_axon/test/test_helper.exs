# Axon's loops log the options that they pass on.
Logger.configure(level: :info)
ExUnit.start()
