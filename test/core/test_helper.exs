Code.require_file("../test_helper.exs", __DIR__)
