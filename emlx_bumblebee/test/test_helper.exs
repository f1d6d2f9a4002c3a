# The limit is for tests that hang; a busy machine must not reach it.
ExUnit.start(timeout: 300_000)
# Bumblebee's doctests print tensors without the name of their backend.
Application.put_env(:emlx, :add_backend_on_inspect, false)
EMLXBumblebee.References.extract()
ExUnit.after_suite(fn _result -> File.rm_rf!(EMLXBumblebee.References.root()) end)
