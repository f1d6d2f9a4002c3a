//! Kernels in CUDA's C++ as nodes of MLX's graph: the Rust side of cpp/kernel.cpp.

use crate::base::{Error, Result};
use crate::mlx::Stream;
use mlx_rs::Array;
use mlx_sys as sys;
use smallvec::SmallVec;
use std::ffi::CStr;

/// A kernel in CUDA's C++, as `mx.fast.cuda_kernel` takes it: the body of a function in which its inputs, its outputs,
/// integer constants and the first input's type `T` have names. MLX compiles it when it first runs, once for each set
/// of types and constants.
pub struct CudaKernel {
    pub name: &'static CStr,
    pub inputs: &'static [&'static CStr],
    pub outputs: &'static [&'static CStr],
    pub source: &'static CStr,
    /// Whether inputs are copied into rows first; otherwise the source reads `<input>_strides`.
    pub in_rows: bool,
}

/// How a kernel is launched: `blocks` groups of `threads` threads.
pub struct Launch {
    pub blocks: i32,
    pub threads: i32,
}

impl CudaKernel {
    /// Outputs of these shapes, each of the type of the input with that number.
    pub fn call(
        &self,
        inputs: &[&Array],
        constants: &[(&CStr, i32)],
        outputs: &[(&[i32], usize)],
        launch: Launch,
        s: &Stream,
    ) -> Result<SmallVec<[Array; 2]>> {
        #[cfg(emlx_kernels)]
        {
            node::call(self, inputs, constants, outputs, launch, s)
        }
        #[cfg(not(emlx_kernels))]
        {
            let _ = (inputs, constants, outputs, launch.blocks, launch.threads, s);
            Err(Error::invalid("kernels of our own are not built here"))
        }
    }
}

/// Where an array lies on the GPU: None where there is no CUDA, or one of an MLX whose buffers are not known.
///
/// # Safety
/// The array is on the GPU and has been submitted.
#[cfg(emlx_kernels)]
pub unsafe fn device_address(array: &Array) -> Option<u64> {
    extern "C" {
        fn emlx_device_address(array: sys::mlx_array) -> u64;
    }
    let mut is_cuda = false;
    let there = sys::mlx_cuda_is_available(&mut is_cuda) == 0
        && is_cuda
        && crate::mlx::unknown_version().is_none();
    let address = if there {
        emlx_device_address(array.as_ptr())
    } else {
        0
    };
    (address != 0).then_some(address)
}

#[cfg(emlx_kernels)]
mod node {
    use super::*;
    use crate::mlx::error::take_error;
    use std::ffi::{c_char, c_int};

    /// As in cpp/kernel.cpp.
    #[repr(C)]
    struct Kernel {
        name: *const c_char,
        source: *const c_char,
        inputs: *const *const c_char,
        input_count: usize,
        outputs: *const *const c_char,
        output_count: usize,
        constants: *const *const c_char,
        values: *const c_int,
        constant_count: usize,
        in_rows: bool,
        blocks: c_int,
        threads: c_int,
    }

    /// As in cpp/kernel.cpp.
    #[repr(C)]
    struct Output {
        shape: *const c_int,
        rank: usize,
        like: usize,
    }

    extern "C" {
        fn emlx_cuda_node(
            res: *mut sys::mlx_array,
            kernel: *const Kernel,
            inputs: *const sys::mlx_array,
            outputs: *const Output,
            stream: sys::mlx_stream,
        ) -> c_int;
    }

    fn pointers<'a>(names: impl Iterator<Item = &'a CStr>) -> SmallVec<[*const c_char; 16]> {
        names.map(CStr::as_ptr).collect()
    }

    pub fn call(
        kernel: &CudaKernel,
        inputs: &[&Array],
        constants: &[(&CStr, i32)],
        outputs: &[(&[i32], usize)],
        launch: Launch,
        s: &Stream,
    ) -> Result<SmallVec<[Array; 2]>> {
        let fits = inputs.len() == kernel.inputs.len() && outputs.len() == kernel.outputs.len();
        if !fits || outputs.iter().any(|(_, like)| *like >= inputs.len()) {
            return Err(Error::invalid(
                "the kernel takes or gives another number of arrays",
            ));
        }
        let input_names = pointers(kernel.inputs.iter().copied());
        let output_names = pointers(kernel.outputs.iter().copied());
        let constant_names = pointers(constants.iter().map(|(name, _)| *name));
        let values: SmallVec<[c_int; 16]> = constants.iter().map(|(_, value)| *value).collect();
        let handles: SmallVec<[sys::mlx_array; 8]> =
            inputs.iter().map(|array| array.as_ptr()).collect();
        let shapes: SmallVec<[Output; 3]> = outputs
            .iter()
            .map(|(shape, like)| Output {
                shape: shape.as_ptr(),
                rank: shape.len(),
                like: *like,
            })
            .collect();
        let spec = Kernel {
            name: kernel.name.as_ptr(),
            source: kernel.source.as_ptr(),
            inputs: input_names.as_ptr(),
            input_count: input_names.len(),
            outputs: output_names.as_ptr(),
            output_count: output_names.len(),
            constants: constant_names.as_ptr(),
            values: values.as_ptr(),
            constant_count: values.len(),
            in_rows: kernel.in_rows,
            blocks: launch.blocks,
            threads: launch.threads,
        };
        // SAFETY: every pointer comes from something that lives through the call, every length is that of its list,
        // there is room for as many handles as there are outputs, and exceptions are caught there. Handles that were
        // given are owned from here on.
        unsafe {
            let mut made: SmallVec<[sys::mlx_array; 3]> = (0..outputs.len())
                .map(|_| sys::mlx_array {
                    ctx: std::ptr::null_mut(),
                })
                .collect();
            let status = emlx_cuda_node(
                made.as_mut_ptr(),
                &spec,
                handles.as_ptr(),
                shapes.as_ptr(),
                s.0,
            );
            if status != 0 {
                return Err(take_error());
            }
            Ok(made
                .into_iter()
                .map(|handle| Array::from_ptr(handle))
                .collect())
        }
    }
}
