//! Copies of several stretches of memory in one launch.

pub use crate::mlx::captured::Copy;

use crate::base::Result;
use crate::program::engine::step_graph::{failed, Gpu};
use cudarc::driver::{result as driver, sys};
use once_cell::sync::OnceCell;
use std::ffi::c_void;

/// Copies of one launch. Their addresses are the kernel's argument, which may have 4 KiB.
const MAX_COPIES: usize = 128;
const THREADS: u32 = 256;
/// Bytes that a thread copies at once.
const PACK: u64 = 16;
/// Blocks that share a copy, at most.
const MAX_BLOCKS: u64 = 128;

#[repr(C)]
struct Copies([Copy; MAX_COPIES]);

/// The kernel, compiled.
pub fn copier() -> Result<sys::CUfunction> {
    struct Known(sys::CUfunction);
    // SAFETY: a function belongs to the context, which every thread may use.
    unsafe impl Send for Known {}
    // SAFETY: as above.
    unsafe impl Sync for Known {}
    static KNOWN: OnceCell<Known> = OnceCell::new();
    let gpu = Gpu::get()?;
    if let Some(known) = KNOWN.get() {
        return Ok(known.0);
    }
    let text = format!(
        "#define COUNT {MAX_COPIES}\n#define THREADS {THREADS}\n{}",
        include_str!("copies.cu")
    );
    let function = gpu.function("emlx_copies", text)?;
    Ok(KNOWN.get_or_init(|| Known(function)).0)
}

/// One launch of the kernel.
pub struct CopyLaunch {
    function: sys::CUfunction,
    grid: (u32, u32, u32),
    copies: Box<Copies>,
}

impl CopyLaunch {
    /// As many launches as the copies need.
    pub fn all(copies: &[Copy]) -> Result<Vec<CopyLaunch>> {
        let function = copier()?;
        let launches = copies.chunks(MAX_COPIES).map(|some| {
            let mut given = Box::new(Copies([Copy::default(); MAX_COPIES]));
            given.0[..some.len()].copy_from_slice(some);
            let longest = some.iter().map(|copy| copy.bytes).max().unwrap_or(0);
            let blocks = longest.div_ceil(PACK * u64::from(THREADS));
            CopyLaunch {
                function,
                grid: (blocks.clamp(1, MAX_BLOCKS) as u32, some.len() as u32, 1),
                copies: given,
            }
        });
        Ok(launches.collect())
    }

    /// Calls with the kernel, its grid, its threads and its arguments.
    pub fn with<T>(
        &self,
        call: impl FnOnce(sys::CUfunction, (u32, u32, u32), (u32, u32, u32), &mut [*mut c_void]) -> T,
    ) -> T {
        let copies = std::ptr::from_ref(&*self.copies)
            .cast_mut()
            .cast::<c_void>();
        call(self.function, self.grid, (THREADS, 1, 1), &mut [copies])
    }

    /// # Safety
    /// The stream is live, as is the memory until the copies are done.
    pub unsafe fn launch(&self, stream: sys::CUstream) -> Result<()> {
        self.with(|function, grid, threads, arguments| {
            driver::launch_kernel(function, grid, threads, 0, stream, arguments)
                .map_err(|error| failed("cuLaunchKernel", error))
        })
    }
}
