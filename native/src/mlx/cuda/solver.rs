//! Nodes of MLX's graph that call libraries of CUDA's on their stream: the Rust side of cpp/solver.cpp.

use super::graph::guarded;
use crate::base::{Dtype, Result};
use crate::mlx::error::take_error;
use crate::mlx::Stream;
use mlx_rs::Array;
use mlx_sys as sys;
use smallvec::SmallVec;
use std::ffi::{c_char, c_int, c_void};

/// What a node does. The stream is CUDA's; null where the node is on the CPU. The graph's lock is held on CUDA.
pub trait Solving: Send + Sync {
    /// Bytes that the calls need beside inputs and outputs.
    fn scratch(&self, stream: *mut c_void) -> Result<usize>;
    /// Calls the library with the addresses of inputs, outputs and scratch memory.
    ///
    /// # Safety
    /// The memory is live until the stream has done what it is given, and as large as shapes and types say.
    unsafe fn run(
        &self,
        stream: *mut c_void,
        inputs: &[u64],
        outputs: &[u64],
        scratch: u64,
    ) -> Result<()>;
    /// How many inputs and outputs there are.
    fn counts(&self) -> (usize, usize);
}

type Payload = Box<dyn Solving>;

/// As in cpp/solver.cpp.
#[repr(C)]
struct Functions {
    payload: *const c_void,
    scratch:
        unsafe extern "C" fn(*const c_void, *mut c_void, *mut usize, *mut c_char, usize) -> bool,
    run: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        *const u64,
        *const u64,
        u64,
        *mut c_char,
        usize,
    ) -> bool,
    drop: unsafe extern "C" fn(*const c_void),
}

extern "C" {
    fn emlx_solver_nodes(
        res: *mut sys::mlx_array,
        functions: Functions,
        inputs: *const sys::mlx_array,
        count: usize,
        taken: usize,
        shapes: *const *const c_int,
        ranks: *const usize,
        dtypes: *const sys::mlx_dtype,
        output_count: usize,
        stream: sys::mlx_stream,
    ) -> c_int;
}

/// # Safety
/// The pointer is that of a live payload.
unsafe fn payload<'a>(payload: *const c_void) -> &'a Payload {
    &*payload.cast::<Payload>()
}

unsafe extern "C" fn scratch(
    own: *const c_void,
    stream: *mut c_void,
    bytes: *mut usize,
    message: *mut c_char,
    size: usize,
) -> bool {
    guarded(message, size, || {
        *bytes = payload(own).scratch(stream)?;
        Ok(())
    })
}

unsafe extern "C" fn run(
    own: *const c_void,
    stream: *mut c_void,
    inputs: *const u64,
    outputs: *const u64,
    scratch: u64,
    message: *mut c_char,
    size: usize,
) -> bool {
    guarded(message, size, || {
        let solving = payload(own);
        let (given, made) = solving.counts();
        let inputs = std::slice::from_raw_parts(inputs, given);
        let outputs = std::slice::from_raw_parts(outputs, made);
        solving.run(stream, inputs, outputs, scratch)
    })
}

unsafe extern "C" fn release(own: *const c_void) {
    drop(Box::from_raw(own.cast_mut().cast::<Payload>()));
}

/// Nodes of outputs of these shapes and types. Inputs are in rows and have elements; the first `taken` of them are
/// overwritten, in memory of the first outputs, which have their shapes and types.
pub fn nodes(
    solving: Payload,
    inputs: &[&Array],
    taken: usize,
    outputs: &[(SmallVec<[i32; 4]>, Dtype)],
    s: &Stream,
) -> Result<Vec<Array>> {
    assert_eq!(solving.counts(), (inputs.len(), outputs.len()));
    let functions = Functions {
        payload: Box::into_raw(Box::new(solving)).cast(),
        scratch,
        run,
        drop: release,
    };
    let handles: SmallVec<[sys::mlx_array; 2]> =
        inputs.iter().map(|array| array.as_ptr()).collect();
    let shapes: SmallVec<[*const c_int; 5]> =
        outputs.iter().map(|(shape, _)| shape.as_ptr()).collect();
    let ranks: SmallVec<[usize; 5]> = outputs.iter().map(|(shape, _)| shape.len()).collect();
    let dtypes: SmallVec<[sys::mlx_dtype; 5]> =
        outputs.iter().map(|(_, dtype)| dtype.to_mlx()).collect();
    let null = sys::mlx_array {
        ctx: std::ptr::null_mut(),
    };
    let mut made: SmallVec<[sys::mlx_array; 5]> = SmallVec::from_elem(null, outputs.len());
    // SAFETY: every pointer comes from a live reference and every length from its slice, there is room for as many
    // handles as there are outputs, and exceptions are caught there. Handles that were given are owned from here on.
    unsafe {
        let status = emlx_solver_nodes(
            made.as_mut_ptr(),
            functions,
            handles.as_ptr(),
            handles.len(),
            taken,
            shapes.as_ptr(),
            ranks.as_ptr(),
            dtypes.as_ptr(),
            dtypes.len(),
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
