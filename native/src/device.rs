//! Devices, and one stream for each that any thread may build nodes for.

use crate::error::{Reason, Result};
use crate::mlx::{self, Stream};
use rustler::NifUnitEnum;
use std::sync::OnceLock;

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

    pub fn is_available(self) -> bool {
        match self {
            Device::Cpu => true,
            Device::Gpu => {
                static GPU: OnceLock<bool> = OnceLock::new();
                *GPU.get_or_init(|| mlx::device_is_available(Device::Gpu))
            }
        }
    }

    /// The device's default stream, made on first use and kept for the life of the VM.
    pub fn stream(self) -> Result<&'static Stream> {
        static CPU: OnceLock<Result<Stream>> = OnceLock::new();
        static GPU: OnceLock<Result<Stream>> = OnceLock::new();
        let cell = match self {
            Device::Cpu => &CPU,
            Device::Gpu => &GPU,
        };
        if !self.is_available() {
            return Err(Reason::NoDevice(self.name()).into());
        }
        let start = || {
            let stream = Stream::new(self)?;
            if self == Device::Gpu {
                mlx::leave_at_exit(crate::queue::stop_all);
            }
            Ok(stream)
        };
        cell.get_or_init(start).as_ref().map_err(Clone::clone)
    }

    /// Makes `stream` the calling thread's default here, and gives the thread a usable default on every other device.
    pub fn enter(self, stream: &Stream) -> Result<()> {
        stream.make_thread_default(self)?;
        if self == Device::Cpu && Device::Gpu.is_available() {
            Device::Gpu.stream()?.make_thread_default(Device::Gpu)?;
        }
        if self == Device::Gpu {
            Device::Cpu.stream()?.make_thread_default(Device::Cpu)?;
        }
        Ok(())
    }
}
