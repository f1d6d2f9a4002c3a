//! Nodes of MLX's graph that run a function of ours on the CPU: the Rust side of cpp/kernel.cpp.

use super::error::{check, one};
use super::{GraphLock, Stream};
use crate::base::{Dtype, Result};
use emlx_cpu::View;
use mlx_rs::Array;
use mlx_sys as sys;
use parking_lot::RwLockReadGuard;
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
        // SAFETY: every pointer comes from a live reference and every length from its slice; exceptions are caught
        // there.
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

/// The type that MLX promotes two types to.
pub fn promoted(a: Dtype, b: Dtype) -> Dtype {
    #[cfg(emlx_kernels)]
    {
        extern "C" {
            fn emlx_promoted(a: sys::mlx_dtype, b: sys::mlx_dtype) -> sys::mlx_dtype;
        }
        // SAFETY: of types that MLX has.
        Dtype::from_mlx(unsafe { emlx_promoted(a.to_mlx(), b.to_mlx()) })
    }
    #[cfg(not(emlx_kernels))]
    {
        let _ = b;
        a
    }
}

/// What has to be held while it is asked whether arrays are computed, so that nobody changes the graph and no stream's
/// failure is taken along.
pub struct Quiet(#[allow(dead_code)] Option<(RwLockReadGuard<'static, ()>, GraphLock)>);

impl Quiet {
    /// Schedulers must not wait; a loop is recorded on a queue's thread, which may.
    #[cfg(emlx_kernels)]
    fn of(s: &Stream) -> Option<Quiet> {
        match s.tape() {
            Some(tape) if tape.is_of_loop() => {
                Some(Quiet(Some((super::LATE.read(), super::graph_lock()))))
            }
            Some(_) => Some(Quiet::private()),
            None => Quiet::now(),
        }
    }

    /// Where nobody has to be waited for.
    pub fn now() -> Option<Quiet> {
        Some(Quiet(Some((
            super::LATE.try_read()?,
            super::try_graph_lock()?,
        ))))
    }

    /// Of arrays that no other thread has, and that nothing was submitted of.
    pub fn private() -> Quiet {
        Quiet(None)
    }
}

/// Computes a kernel of ours at once, on the calling thread. None where an input is not computed yet, and where the
/// graph is somebody else's at the moment, or a failure may be under way. What `kernel` points to stays the caller's.
pub fn kernel_now(
    kernel: &Functions,
    inputs: &[&Array],
    shape: &[i32],
    dtype: Dtype,
    s: &Stream,
) -> Result<Option<Array>> {
    #[cfg(emlx_kernels)]
    {
        extern "C" {
            fn emlx_kernel_now(
                res: *mut sys::mlx_array,
                kernel: *const Functions,
                inputs: *const sys::mlx_array,
                count: usize,
                shape: *const c_int,
                rank: usize,
                dtype: sys::mlx_dtype,
            ) -> c_int;
        }
        let Some(_quiet) = Quiet::of(s) else {
            return Ok(None);
        };
        let handles: SmallVec<[sys::mlx_array; 4]> =
            inputs.iter().map(|array| array.as_ptr()).collect();
        // SAFETY: every pointer comes from a live reference and every length from its slice; exceptions are caught
        // there. Nobody changes the graph meanwhile.
        let (status, raw) = unsafe {
            let mut raw = sys::mlx_array_new();
            let status = emlx_kernel_now(
                &mut raw,
                kernel,
                handles.as_ptr(),
                handles.len(),
                shape.as_ptr(),
                shape.len(),
                dtype.to_mlx(),
            );
            (status, raw)
        };
        match status {
            // SAFETY: a fresh handle.
            0 => Ok(Some(unsafe { Array::from_ptr(raw) })),
            2 => Ok(None),
            status => check(status).map(|()| None),
        }
    }
    #[cfg(not(emlx_kernels))]
    {
        let _ = (kernel, inputs, shape, dtype, s);
        Ok(None)
    }
}

/// Computes an array that is a view of a computed one, where the graph is not somebody else's at the moment. Whether it
/// is known to be computed now.
pub fn look(array: &Array, s: &Stream) -> bool {
    #[cfg(emlx_kernels)]
    {
        extern "C" {
            fn emlx_look(array: sys::mlx_array) -> bool;
        }
        // SAFETY: the array is live, and nobody changes the graph meanwhile.
        Quiet::of(s).is_some_and(|_quiet| unsafe { emlx_look(array.as_ptr()) })
    }
    #[cfg(not(emlx_kernels))]
    {
        let _ = (array, s);
        false
    }
}
