//! What MLX and NVIDIA's driver say of devices, and one stream for each device that any thread may build nodes for.

use super::error::check;
use super::{process, Stream};
use crate::base::{Device, Reason, Result};
use mlx_sys as sys;
use once_cell::sync::OnceCell;
use std::ffi::{c_char, c_int, c_void, CStr};

pub(super) fn device_handle(device: Device) -> sys::mlx_device {
    let kind = match device {
        Device::Cpu => sys::mlx_device_type__MLX_CPU,
        Device::Gpu => sys::mlx_device_type__MLX_GPU,
    };
    // SAFETY: no preconditions.
    unsafe { sys::mlx_device_new_type(kind, 0) }
}

pub fn device_is_available(device: Device) -> bool {
    let mut available = false;
    let handle = device_handle(device);
    // SAFETY: the handle is live until the call after.
    let status = unsafe { sys::mlx_device_is_available(&mut available, handle) };
    unsafe { sys::mlx_device_free(handle) };
    status == 0 && available
}

/// What NVIDIA's driver says of itself, where libmlx is one for CUDA.
pub struct CudaDriver {
    /// The version of CUDA that libmlx and its libraries are of: 12 or 13.
    pub of_mlx: u32,
    /// The newest CUDA that the driver serves: 12.4 is 12040.
    pub of_driver: u32,
    /// Why the driver has no device, in its own words.
    pub failure: Option<String>,
}

/// None where libmlx is for the CPU alone. The driver is asked directly: MLX says how many devices there are, and not
/// why none is.
#[cfg(target_os = "linux")]
pub fn cuda_driver() -> Option<CudaDriver> {
    type Init = unsafe extern "C" fn(flags: u32) -> c_int;
    type Version = unsafe extern "C" fn(version: *mut c_int) -> c_int;
    type Words = unsafe extern "C" fn(error: c_int, words: *mut *const c_char) -> c_int;

    let mut is_cuda = false;
    // SAFETY: only fills in the flag.
    if unsafe { sys::mlx_cuda_is_available(&mut is_cuda) } != 0 || !is_cuda {
        return None;
    }
    // What is loaded already, if anything.
    let loaded = |name: &CStr| {
        // SAFETY: the name ends in NUL; the flag has nothing loaded.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        (!library.is_null()).then_some(library)
    };
    let of_mlx = if loaded(c"libnvrtc.so.12").is_some() {
        12
    } else {
        13
    };
    let mut driver = CudaDriver {
        of_mlx,
        of_driver: 0,
        failure: None,
    };
    // libmlx does not load without it.
    let library = loaded(c"libcuda.so.1")?;
    let function = |name: &CStr| {
        // SAFETY: the library stays loaded for the life of the process.
        let address = unsafe { libc::dlsym(library, name.as_ptr()) };
        (!address.is_null()).then_some(address)
    };
    // SAFETY: these are the functions of CUDA's driver API of those names, which have had these types since CUDA 6.
    unsafe {
        if let Some(address) = function(c"cuDriverGetVersion") {
            let mut version = 0;
            if std::mem::transmute::<*mut c_void, Version>(address)(&mut version) == 0 {
                driver.of_driver = u32::try_from(version).unwrap_or(0);
            }
        }
        let status = match function(c"cuInit") {
            Some(address) => std::mem::transmute::<*mut c_void, Init>(address)(0),
            None => 0,
        };
        if status != 0 {
            let mut words: *const c_char = std::ptr::null();
            if let Some(address) = function(c"cuGetErrorString") {
                std::mem::transmute::<*mut c_void, Words>(address)(status, &mut words);
            }
            let words = if words.is_null() {
                "an unknown error".into()
            } else {
                CStr::from_ptr(words).to_string_lossy()
            };
            driver.failure = Some(format!("cuInit gives {status}, {words}"));
        }
    }
    Some(driver)
}

#[cfg(not(target_os = "linux"))]
pub fn cuda_driver() -> Option<CudaDriver> {
    None
}

/// What MLX knows of a device: name, memory, architecture, as MLX names them.
pub fn device_info(device: Device) -> Result<Vec<(String, InfoValue)>> {
    let handle = device_handle(device);
    let mut entries = Vec::new();
    // SAFETY: every handle below is made here, used while live and freed once; strings are copied out.
    unsafe {
        let mut info = sys::mlx_device_info_new();
        let mut keys = sys::mlx_vector_string_new();
        let mut status = sys::mlx_device_info_get(&mut info, handle);
        if status == 0 {
            status = sys::mlx_device_info_get_keys(&mut keys, info);
        }
        if status == 0 {
            for i in 0..sys::mlx_vector_string_size(keys) {
                let mut key: *mut c_char = std::ptr::null_mut();
                if sys::mlx_vector_string_get(&mut key, keys, i) != 0 || key.is_null() {
                    continue;
                }
                let name = CStr::from_ptr(key).to_string_lossy().into_owned();
                let mut text: *const c_char = std::ptr::null();
                let mut size = 0usize;
                let mut is_string = false;
                sys::mlx_device_info_is_string(&mut is_string, info, key);
                if is_string {
                    if sys::mlx_device_info_get_string(&mut text, info, key) == 0 {
                        let value = CStr::from_ptr(text).to_string_lossy().into_owned();
                        entries.push((name, InfoValue::Text(value)));
                    }
                } else if sys::mlx_device_info_get_size(&mut size, info, key) == 0 {
                    entries.push((name, InfoValue::Size(size)));
                }
            }
        }
        sys::mlx_vector_string_free(keys);
        sys::mlx_device_info_free(info);
        sys::mlx_device_free(handle);
        check(status)?;
    }
    Ok(entries)
}

pub enum InfoValue {
    Text(String),
    Size(usize),
}

impl Device {
    /// MLX for CUDA takes all memory from CUDA, so without a GPU its CPU device is of no use either.
    pub fn is_available(self) -> bool {
        static CPU: OnceCell<bool> = OnceCell::new();
        static GPU: OnceCell<bool> = OnceCell::new();
        match self {
            Device::Cpu => *CPU.get_or_init(|| {
                Device::Gpu.is_available() || cfg!(target_os = "macos") || cuda_driver().is_none()
            }),
            Device::Gpu => *GPU.get_or_init(|| device_is_available(Device::Gpu)),
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
        let Some(driver) = cuda_driver() else {
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
        static CPU: OnceCell<Result<Stream>> = OnceCell::new();
        static GPU: OnceCell<Result<Stream>> = OnceCell::new();
        let cell = match self {
            Device::Cpu => &CPU,
            Device::Gpu => &GPU,
        };
        self.require()?;
        let start = || {
            let stream = Stream::new(self)?;
            if self == Device::Gpu {
                process::renew_exit_handler();
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
