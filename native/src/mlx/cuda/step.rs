//! A loop's step as one graph of CUDA's; cpp/captured_step.cpp says how.

use crate::base::{Dtype, Error, Result};
use crate::mlx::error::{one, take_error};
use crate::mlx::{GraphLock, Stream};
use mlx_rs::Array;
use mlx_sys as sys;
use std::ffi::{c_int, c_void};

/// A graph whose nodes have the edges of these pairs still to come. True if whoever is told has a graph of its own now.
type Take<'a> = dyn FnMut(*mut c_void, &[*mut c_void], &[*mut c_void]) -> bool + 'a;

/// As in cpp/captured_step.cpp.
#[repr(C)]
struct Taking {
    payload: *mut c_void,
    take: unsafe extern "C" fn(
        *mut c_void,
        *mut c_void,
        *const *mut c_void,
        *const *mut c_void,
        usize,
    ) -> bool,
}

extern "C" {
    fn emlx_step_part(
        res: *mut sys::mlx_array,
        whole: sys::mlx_array,
        offset: usize,
        shape: *const c_int,
        rank: usize,
        dtype: sys::mlx_dtype,
    ) -> c_int;
    fn emlx_step_capture(
        held: *mut *mut c_void,
        bytes: *mut usize,
        outs: *const sys::mlx_array,
        count: usize,
        fixed: *const sys::mlx_array,
        fixed_count: usize,
        whole: sys::mlx_array,
        stream: sys::mlx_stream,
        taking: Taking,
    ) -> c_int;
    fn emlx_step_free(held: *mut c_void);
    fn emlx_fixed_new(array: sys::mlx_array) -> *mut c_void;
    fn emlx_fixed_is(fixed: *const c_void, array: sys::mlx_array) -> bool;
    fn emlx_fixed_free(fixed: *mut c_void);
}

/// An array in a part of another one's memory, from a byte on.
///
/// # Safety
/// `whole` is CUDA's and computed, and lives as long as the part and whatever has taken its memory.
pub unsafe fn part(whole: &Array, offset: usize, shape: &[i32], dtype: Dtype) -> Result<Array> {
    let (data, rank) = (shape.as_ptr(), shape.len());
    one(|res| emlx_step_part(res, whole.as_ptr(), offset, data, rank, dtype.to_mlx()))
}

/// The memory that a step's kernels use, and the size of what is in no part of the loop's.
pub struct StepMemory {
    held: *mut c_void,
    pub bytes: usize,
}

// SAFETY: C++ counts references to each memory atomically.
unsafe impl Send for StepMemory {}

impl Drop for StepMemory {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { emlx_step_free(self.held) };
    }
}

unsafe extern "C" fn take(
    payload: *mut c_void,
    graph: *mut c_void,
    from: *const *mut c_void,
    to: *const *mut c_void,
    count: usize,
) -> bool {
    let list = |nodes| match count {
        0 => &[][..],
        _ => std::slice::from_raw_parts(nodes, count),
    };
    let take = &mut *payload.cast::<&mut Take>();
    let call = std::panic::AssertUnwindSafe(|| take(graph, list(from), list(to)));
    std::panic::catch_unwind(call).unwrap_or(false)
}

/// Evaluates arrays, hands the graph of their kernels to `taker`, and has MLX launch it once. None where it is not one
/// graph, or not taken. `fixed` are arrays whose memory stays with their owners; others may be parts of `whole`.
pub fn capture_step(
    outs: &[Array],
    fixed: &[&Array],
    whole: &Array,
    s: &Stream,
    taker: &mut Take,
    _lock: &GraphLock,
) -> Result<Option<StepMemory>> {
    let outs: Vec<sys::mlx_array> = outs.iter().map(Array::as_ptr).collect();
    let fixed: Vec<sys::mlx_array> = fixed.iter().map(|array| array.as_ptr()).collect();
    let mut taker: &mut Take = taker;
    let taking = Taking {
        payload: std::ptr::from_mut(&mut taker).cast(),
        take,
    };
    let (mut held, mut bytes) = (std::ptr::null_mut(), 0);
    // SAFETY: every list lives through the call and is as long as is said, as does the taker.
    let status = unsafe {
        emlx_step_capture(
            &mut held,
            &mut bytes,
            outs.as_ptr(),
            outs.len(),
            fixed.as_ptr(),
            fixed.len(),
            whole.as_ptr(),
            s.0,
            taking,
        )
    };
    match status {
        0 if held.is_null() => Err(Error::invalid("a step has no memory")),
        0 => Ok(Some(StepMemory { held, bytes })),
        2 => Ok(None),
        _ => Err(take_error()),
    }
}

/// An array that a graph reads where it lies, which holds nothing of it.
pub struct Fixed(*mut c_void);

// SAFETY: nothing is changed in it.
unsafe impl Send for Fixed {}

impl Fixed {
    /// The array is CUDA's, and has been submitted.
    pub fn of(array: &Array) -> Fixed {
        // SAFETY: the array is live.
        Fixed(unsafe { emlx_fixed_new(array.as_ptr()) })
    }

    /// Whether it is this one, in the same memory.
    pub fn is(&self, array: &Array) -> bool {
        // SAFETY: both are live.
        unsafe { emlx_fixed_is(self.0, array.as_ptr()) }
    }
}

impl Drop for Fixed {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { emlx_fixed_free(self.0) };
    }
}
