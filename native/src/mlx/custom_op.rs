//! Nodes of MLX's graph that run a function of ours on the CPU: the Rust side of cpp/kernel.cpp.

#[cfg(emlx_kernels)]
use super::error::check;
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
    usize,
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

/// Outputs of a kernel: they have one shape.
#[derive(Clone, Copy)]
pub struct Outputs<'a> {
    pub shape: &'a [i32],
    pub dtypes: &'a [Dtype],
    /// For each input the number of the first output that may have its memory, where there are several.
    pub takers: &'a [u8],
}

/// Laid out as `emlx_arrays`.
#[cfg(emlx_kernels)]
#[repr(C)]
struct Arrays {
    inputs: *const sys::mlx_array,
    count: usize,
    takers: *const u8,
    shape: *const c_int,
    rank: usize,
    dtypes: *const sys::mlx_dtype,
    outputs: usize,
}

/// Calls a function of kernel.cpp with handles for the outputs, which it fills in and returns 0, and the arrays.
#[cfg(emlx_kernels)]
fn with_arrays(
    inputs: &[&Array],
    outputs: Outputs,
    call: impl FnOnce(*mut sys::mlx_array, *const Arrays) -> c_int,
) -> (c_int, SmallVec<[Array; 2]>) {
    let handles: SmallVec<[sys::mlx_array; 8]> =
        inputs.iter().map(|array| array.as_ptr()).collect();
    let dtypes: SmallVec<[sys::mlx_dtype; 4]> =
        outputs.dtypes.iter().map(|dtype| dtype.to_mlx()).collect();
    let arrays = Arrays {
        inputs: handles.as_ptr(),
        count: handles.len(),
        takers: match outputs.takers {
            [] => std::ptr::null(),
            takers => takers.as_ptr(),
        },
        shape: outputs.shape.as_ptr(),
        rank: outputs.shape.len(),
        dtypes: dtypes.as_ptr(),
        outputs: dtypes.len(),
    };
    let empty = sys::mlx_array {
        ctx: std::ptr::null_mut(),
    };
    let mut raw: SmallVec<[sys::mlx_array; 2]> = SmallVec::from_elem(empty, dtypes.len());
    let status = call(raw.as_mut_ptr(), &arrays);
    let made = raw.into_iter().filter(|raw| !raw.ctx.is_null());
    // SAFETY: fresh handles.
    let made = made.map(|raw| unsafe { Array::from_ptr(raw) }).collect();
    (status, made)
}

/// A node that runs a kernel of ours; it owns what `kernel` points to, also where this fails.
pub fn kernel_node(
    kernel: Functions,
    layout: i32,
    inputs: &[&Array],
    outputs: Outputs,
    s: &Stream,
) -> Result<SmallVec<[Array; 2]>> {
    #[cfg(emlx_kernels)]
    {
        extern "C" {
            fn emlx_kernel_node(
                res: *mut sys::mlx_array,
                kernel: Functions,
                layout: c_int,
                arrays: *const Arrays,
                stream: sys::mlx_stream,
            ) -> c_int;
        }
        // SAFETY: every pointer comes from a live reference and every length from its slice; exceptions are caught
        // there.
        let (status, made) = with_arrays(inputs, outputs, |res, arrays| unsafe {
            emlx_kernel_node(res, kernel, layout, arrays, s.0)
        });
        check(status).map(|()| made)
    }
    #[cfg(not(emlx_kernels))]
    {
        let _ = (kernel, layout, inputs, outputs, s);
        Err(crate::base::Error::invalid(
            "kernels of our own are not built here",
        ))
    }
}

/// What of a node's inputs and outputs belongs together.
pub struct Part<'a> {
    pub inputs: usize,
    pub outputs: usize,
    /// Of each of these outputs.
    pub shape: &'a [i32],
}

/// [`kernel_node`] with outputs of several shapes, one for each part. There are a type for each output and a taker for
/// each input, counted in its part.
pub fn parts_node(
    kernel: Functions,
    inputs: &[&Array],
    parts: &[Part],
    dtypes: &[Dtype],
    takers: &[u8],
    s: &Stream,
) -> Result<SmallVec<[Array; 2]>> {
    #[cfg(emlx_kernels)]
    {
        /// Laid out as `emlx_part`.
        #[repr(C)]
        struct RawPart {
            inputs: usize,
            outputs: usize,
            shape: *const c_int,
            rank: usize,
        }
        extern "C" {
            fn emlx_parts_node(
                res: *mut sys::mlx_array,
                kernel: Functions,
                parts: *const RawPart,
                part_count: usize,
                arrays: *const Arrays,
                stream: sys::mlx_stream,
            ) -> c_int;
        }
        let raw = parts.iter().map(|part| RawPart {
            inputs: part.inputs,
            outputs: part.outputs,
            shape: part.shape.as_ptr(),
            rank: part.shape.len(),
        });
        let raw: SmallVec<[RawPart; 8]> = raw.collect();
        let outputs = Outputs {
            shape: &[],
            dtypes,
            takers,
        };
        // SAFETY: as in `kernel_node`; the parts have the inputs and outputs that there are.
        let (status, made) = with_arrays(inputs, outputs, |res, arrays| unsafe {
            emlx_parts_node(res, kernel, raw.as_ptr(), raw.len(), arrays, s.0)
        });
        check(status).map(|()| made)
    }
    #[cfg(not(emlx_kernels))]
    {
        let _ = (kernel, inputs, parts, dtypes, takers, s);
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
    outputs: Outputs,
    s: &Stream,
) -> Result<Option<SmallVec<[Array; 2]>>> {
    #[cfg(emlx_kernels)]
    {
        extern "C" {
            fn emlx_kernel_now(
                res: *mut sys::mlx_array,
                kernel: *const Functions,
                arrays: *const Arrays,
            ) -> c_int;
        }
        let Some(_quiet) = Quiet::of(s) else {
            return Ok(None);
        };
        // SAFETY: every pointer comes from a live reference and every length from its slice; exceptions are caught
        // there. Nobody changes the graph meanwhile.
        let (status, made) = with_arrays(inputs, outputs, |res, arrays| unsafe {
            emlx_kernel_now(res, kernel, arrays)
        });
        match status {
            0 => Ok(Some(made)),
            2 => Ok(None),
            status => check(status).map(|()| None),
        }
    }
    #[cfg(not(emlx_kernels))]
    {
        let _ = (kernel, inputs, outputs, s);
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
