defmodule EMLX.DoctorTest do
  use ExUnit.Case, async: true

  import ExUnit.CaptureIO

  test "an installation that runs these tests has nothing wrong with it" do
    checks = EMLX.Doctor.checks()
    assert Enum.filter(checks, &match?({_, :error, _, _}, &1)) == []
    assert {_, :ok, text, nil} = List.keyfind(checks, "device :cpu", 0)
    assert text =~ "a product and a norm computed in"
    assert {_, :ok, _, nil} = List.keyfind(checks, "native library", 0)
  end

  test "mix emlx.doctor prints a line for each" do
    output = capture_io(fn -> Mix.Task.rerun("emlx.doctor") end)
    for {name, _, _, _} <- EMLX.Doctor.checks(), do: assert(output =~ name)
    assert output =~ "✓ platform"
  end

  test "a package of another version is told" do
    {name, status, _, _} = EMLX.Doctor.checks() |> List.keyfind("nx", 0)
    assert {name, status} in [{"nx", :ok}, {"nx", :absent}]
  end
end
