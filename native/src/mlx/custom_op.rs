//! Nodes of MLX's graph that run a function of ours on the CPU: the Rust side of cpp/kernel.cpp.

use super::error::one;
use super::Stream;
use crate::base::{Dtype, Result};
use emlx_cpu::View;
use mlx_rs::Array;
use mlx_sys as sys;
use smallvec::SmallVec;
use std::ffi::{c_char, c_int, c_void};

pub type Run = unsafe extern "C" fn(
    *const c_void,
    *const View,
    usize,
    *const View,
    *mut c_char,
    usize,
) -> bool;

/// A kernel with what is done with it; laid out as `emlx_kernel`.
#[repr(C)]
pub struct Functions {
    pub kernel: *const c_void,
    pub name: *const c_char,
    pub run: Run,
    pub equal: unsafe extern "C" fn(*const c_void, *const c_void) -> bool,
    pub drop: unsafe extern "C" fn(*const c_void),
}

/// A node of numbers of `dtype` that runs a kernel of ours; it owns what `kernel` points to, also where this fails.
pub fn kernel_node(
    kernel: Functions,
    layout: i32,
    inputs: &[&Array],
    shape: &[i32],
    dtype: Dtype,
    s: &Stream,
) -> Result<Array> {
    #[cfg(emlx_kernels)]
    {
        extern "C" {
            fn emlx_kernel_node(
                res: *mut sys::mlx_array,
                kernel: Functions,
                layout: c_int,
                inputs: *const sys::mlx_array,
                count: usize,
                shape: *const c_int,
                rank: usize,
                dtype: sys::mlx_dtype,
                stream: sys::mlx_stream,
            ) -> c_int;
        }
        let handles: SmallVec<[sys::mlx_array; 4]> =
            inputs.iter().map(|array| array.as_ptr()).collect();
        // SAFETY: every pointer comes from a live reference and every length from its slice; exceptions are caught there.
        one(|res| unsafe {
            emlx_kernel_node(
                res,
                kernel,
                layout,
                handles.as_ptr(),
                handles.len(),
                shape.as_ptr(),
                shape.len(),
                dtype.to_mlx(),
                s.0,
            )
        })
    }
    #[cfg(not(emlx_kernels))]
    {
        let _ = (kernel, layout, inputs, shape, dtype, s);
        Err(crate::base::Error::invalid(
            "kernels of our own are not built here",
        ))
    }
}
