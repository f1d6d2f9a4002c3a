//! A segment's graph by CUDA's driver, which is the one that libmlx has loaded.

use crate::base::{Device, Result};
pub use crate::mlx::captured::{Captured, State};
use crate::mlx::captured::{Capturing, Copy};
use crate::mlx::{self, Stream};
use crate::program::build::outputs_of_device;
use crate::program::engine::step_graph::{failed, Gpu};
use crate::program::plan::Code;
use cudarc::driver::{result as driver, sys};
use mlx_rs::Array;
use once_cell::sync::OnceCell;
use std::ffi::c_void;
use std::sync::Arc;

/// Copies of one launch. Their addresses are the kernel's argument, which may have 4 KiB.
const MAX_COPIES: usize = 128;
const THREADS: u32 = 256;
/// Bytes that a thread copies at once.
const PACK: u64 = 16;
/// Blocks that share a copy, at most.
const MAX_BLOCKS: u64 = 128;
/// The first driver with all that is called here: 12.3.
const MIN_DRIVER: u32 = 12030;

pub fn is_there() -> bool {
    let is_new = |driver: mlx::CudaDriver| driver.of_driver >= MIN_DRIVER;
    Device::Gpu.is_available()
        && mlx::unknown_version().is_none()
        && mlx::cuda_driver().is_some_and(is_new)
}

pub fn capture(code: &Arc<Code>, stream: &Stream, fixed: &[bool]) -> Captured {
    let launcher = Launcher {
        code: code.clone(),
        stream: stream.clone(),
    };
    Captured::new(Box::new(launcher), fixed)
}

struct Launcher {
    code: Arc<Code>,
    stream: Stream,
}

fn copier() -> Result<sys::CUfunction> {
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
    let function = gpu.function("emlx_copies", text())?;
    Ok(KNOWN.get_or_init(|| Known(function)).0)
}

#[repr(C)]
struct Copies([Copy; MAX_COPIES]);

fn text() -> String {
    format!(
        "#define COUNT {MAX_COPIES}\n#define THREADS {THREADS}\n{}",
        include_str!("copies.cu")
    )
}

impl Capturing for Launcher {
    fn build(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let inputs = inputs.iter().map(mlx::share).collect::<Result<Vec<_>>>()?;
        Device::Gpu.enter(&self.stream)?;
        outputs_of_device(&self.code, inputs, Device::Gpu, &self.stream)
    }

    unsafe fn instantiate(
        &self,
        graph: *mut c_void,
        from: &[*mut c_void],
        to: &[*mut c_void],
    ) -> Result<*mut c_void> {
        // Compiled now, not in a run.
        copier()?;
        let graph: sys::CUgraph = graph.cast();
        if !from.is_empty() {
            sys::cuGraphAddDependencies_v2(
                graph,
                from.as_ptr().cast(),
                to.as_ptr().cast(),
                std::ptr::null(),
                from.len(),
            )
            .result()
            .map_err(|error| failed("cuGraphAddDependencies", error))?;
        }
        let mut launches = std::ptr::null_mut();
        let made = sys::cuGraphInstantiateWithFlags(&mut launches, graph, 0).result();
        if made.is_err() && !from.is_empty() {
            // MLX adds them itself then.
            let _ = sys::cuGraphRemoveDependencies_v2(
                graph,
                from.as_ptr().cast(),
                to.as_ptr().cast(),
                std::ptr::null(),
                from.len(),
            );
        }
        made.map_err(|error| failed("cuGraphInstantiate", error))?;
        Ok(launches.cast())
    }

    unsafe fn launch(
        &self,
        launches: *mut c_void,
        stream: *mut c_void,
        copies: &[Copy],
    ) -> Result<()> {
        let stream: sys::CUstream = stream.cast();
        let function = copier()?;
        for some in copies.chunks(MAX_COPIES) {
            let mut given = Copies([Copy::default(); MAX_COPIES]);
            given.0[..some.len()].copy_from_slice(some);
            let longest = some.iter().map(|copy| copy.bytes).max().unwrap_or(0);
            let blocks = longest
                .div_ceil(PACK * u64::from(THREADS))
                .clamp(1, MAX_BLOCKS);
            let mut arguments = [std::ptr::from_mut(&mut given).cast::<c_void>()];
            driver::launch_kernel(
                function,
                (blocks as u32, some.len() as u32, 1),
                (THREADS, 1, 1),
                0,
                stream,
                &mut arguments,
            )
            .map_err(|error| failed("cuLaunchKernel", error))?;
        }
        driver::graph::launch(launches.cast(), stream)
            .map_err(|error| failed("cuGraphLaunch", error))
    }

    unsafe fn destroy(&self, launches: *mut c_void) {
        if Gpu::get().is_ok() {
            // One that is under way goes on to its end.
            let _ = driver::graph::exec_destroy(launches.cast());
        }
    }
}
