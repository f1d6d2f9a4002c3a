Code.require_file("../test_helper.exs", __DIR__)
Application.put_env(:emlx, :add_backend_on_inspect, false)
