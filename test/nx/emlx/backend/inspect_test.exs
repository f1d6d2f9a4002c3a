defmodule EMLX.Backend.InspectTest do
  # Not async: the setting applies to the whole application.
  use EMLX.NxCase, async: false

  setup do
    before = Application.fetch_env(:emlx, :add_backend_on_inspect)
    Application.delete_env(:emlx, :add_backend_on_inspect)

    on_exit(fn ->
      with {:ok, value} <- before, do: Application.put_env(:emlx, :add_backend_on_inspect, value)
    end)
  end

  test "inspect names the backend and the device, unless it is configured not to" do
    t = Nx.tensor([1, 2, 3])
    {EMLX.Backend, device: device} = backend()
    assert inspect(t) == "#Nx.Tensor<\n  s32[3]\n  EMLX.Backend(#{device})\n  [1, 2, 3]\n>"
    Application.put_env(:emlx, :add_backend_on_inspect, false)
    assert inspect(t) == "#Nx.Tensor<\n  s32[3]\n  [1, 2, 3]\n>"
  end
end
