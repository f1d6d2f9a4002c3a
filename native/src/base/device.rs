//! Devices by name. What MLX knows of them is in mlx/device.rs.

use rustler::NifUnitEnum;

/// Where an operation runs. `:gpu` is Metal on macOS and CUDA on Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, NifUnitEnum)]
pub enum Device {
    Cpu,
    Gpu,
}

impl Device {
    pub fn name(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Gpu => "gpu",
        }
    }
}
