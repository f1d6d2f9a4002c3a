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

    /// MLX for CUDA takes all memory from CUDA, so without a GPU its CPU device is of no use either.
    pub fn is_available(self) -> bool {
        static CPU: OnceLock<bool> = OnceLock::new();
        static GPU: OnceLock<bool> = OnceLock::new();
        match self {
            Device::Cpu => *CPU.get_or_init(|| {
                Device::Gpu.is_available()
                    || cfg!(target_os = "macos")
                    || mlx::cuda_driver().is_none()
            }),
            Device::Gpu => *GPU.get_or_init(|| mlx::device_is_available(Device::Gpu)),
        }
    }

    /// An error where the device is not there.
    pub fn require(self) -> Result<()> {
        if self.is_available() {
            return Ok(());
        }
        let (device, cause) = (self.name(), self.absence());
        Err(Reason::NoDevice { device, cause }.into())
    }

    /// Why the device is not there, and what to do.
    pub fn absence(self) -> String {
        if cfg!(target_os = "macos") {
            return "MLX finds no Metal device, which needs Apple silicon; use `device: :cpu`"
                .into();
        }
        let Some(driver) = mlx::cuda_driver() else {
            return "the MLX that EMLX was compiled with is the CPU's. For an NVIDIA GPU compile with EMLX_MLX=cuda13 or cuda12, \
                    else use `device: :cpu`"
                .into();
        };
        let (major, minor) = (driver.of_driver / 1000, driver.of_driver % 1000 / 10);
        let of_mlx = driver.of_mlx;
        let (newest, other) = match of_mlx {
            12 => (525, ""),
            _ => (580, ", or compile with EMLX_MLX=cuda12"),
        };
        let cause = if major < of_mlx {
            format!(
                "NVIDIA's driver is made for CUDA {major}.{minor} and MLX for CUDA {of_mlx}: update the driver ({newest} or newer){other}"
            )
        } else {
            let failure = driver
                .failure
                .map_or_else(String::new, |words| format!(" ({words})"));
            format!(
                "MLX is for CUDA {of_mlx}, and NVIDIA's driver, which is made for CUDA {major}.{minor}, finds no GPU{failure}: \
                 see what nvidia-smi says, and whether CUDA_VISIBLE_DEVICES hides it"
            )
        };
        format!("{cause}. Without a GPU, compile with EMLX_MLX=cpu: MLX for CUDA has no memory for the CPU either")
    }

    /// The device's default stream, made on first use and kept for the life of the VM.
    pub fn stream(self) -> Result<&'static Stream> {
        static CPU: OnceLock<Result<Stream>> = OnceLock::new();
        static GPU: OnceLock<Result<Stream>> = OnceLock::new();
        let cell = match self {
            Device::Cpu => &CPU,
            Device::Gpu => &GPU,
        };
        self.require()?;
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
