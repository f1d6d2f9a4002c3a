//! A segment's graph by CUDA's driver, which is the one that libmlx has loaded.

use super::copies::{self, CopyLaunch};
use crate::base::{Device, Result};
pub use crate::mlx::captured::{Captured, State};
use crate::mlx::captured::{Capturing, Copy};
use crate::mlx::{self, Stream};
use crate::program::build::outputs_of_device;
use crate::program::engine::step_graph::{failed, Gpu};
use crate::program::plan::Code;
use cudarc::driver::{result as driver, sys};
use mlx_rs::Array;
use std::ffi::c_void;
use std::sync::Arc;

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

/// Adds edges to a graph of MLX's and calls. The edges stay unless that fails: MLX adds them itself then.
///
/// # Safety
/// The graph and the nodes are live.
pub unsafe fn with_edges<T>(
    graph: sys::CUgraph,
    from: &[*mut c_void],
    to: &[*mut c_void],
    call: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let (starts, ends, none) = (from.as_ptr().cast(), to.as_ptr().cast(), std::ptr::null());
    if !from.is_empty() {
        sys::cuGraphAddDependencies_v2(graph, starts, ends, none, from.len())
            .result()
            .map_err(|error| failed("cuGraphAddDependencies", error))?;
    }
    let made = call();
    if made.is_err() && !from.is_empty() {
        let _ = sys::cuGraphRemoveDependencies_v2(graph, starts, ends, none, from.len());
    }
    made
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
        copies::copier()?;
        let graph: sys::CUgraph = graph.cast();
        with_edges(graph, from, to, || {
            let mut launches = std::ptr::null_mut();
            sys::cuGraphInstantiateWithFlags(&mut launches, graph, 0)
                .result()
                .map_err(|error| failed("cuGraphInstantiate", error))?;
            Ok(launches.cast())
        })
    }

    unsafe fn launch(
        &self,
        launches: *mut c_void,
        stream: *mut c_void,
        copies: &[Copy],
    ) -> Result<()> {
        let stream: sys::CUstream = stream.cast();
        for launch in CopyLaunch::all(copies)? {
            launch.launch(stream)?;
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
