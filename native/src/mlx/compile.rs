//! Functions of arrays that MLX compiles (`mx.compile`).

use super::error::check;
use super::vector::{many, Vector};
use crate::base::{Error, Reason, Result};
use mlx_rs::Array;
use mlx_sys as sys;
use parking_lot::Mutex;
use std::ffi::{c_int, c_void};
use std::sync::Arc;

type Build = dyn Fn(&[Array]) -> Result<Vec<Array>> + Send + Sync;

/// A function of arrays that MLX traces once for each set of shapes, and whose elementwise parts it makes into kernels
/// of their own. Its cache belongs to the thread that made it: it is used there, and may be dropped anywhere.
pub struct Compiled {
    closure: sys::mlx_closure,
    failure: Arc<Mutex<Option<Error>>>,
}

// SAFETY: using it elsewhere is the callers' to avoid, and would trace once more; dropping takes it out of the thread's
// cache by way of a weak pointer and a lock of MLX's.

unsafe impl Send for Compiled {}
unsafe impl Sync for Compiled {}

struct Payload {
    build: Box<Build>,
    /// What the function failed of, since MLX has only a status for it.
    failure: Arc<Mutex<Option<Error>>>,
}

unsafe extern "C" fn call_payload(
    res: *mut sys::mlx_vector_array,
    inputs: sys::mlx_vector_array,
    payload: *mut c_void,
) -> c_int {
    // SAFETY: the payload that `compile` gave, which lives as long as the closure.
    let payload = unsafe { &*payload.cast::<Payload>() };
    let build = || {
        // Not ours to free.
        let inputs = std::mem::ManuallyDrop::new(Vector(inputs)).arrays()?;
        (payload.build)(&inputs)
    };
    let built = std::panic::catch_unwind(std::panic::AssertUnwindSafe(build));
    let failure = match built {
        Ok(Ok(outputs)) => {
            let handles: Vec<sys::mlx_array> = outputs.iter().map(Array::as_ptr).collect();
            // SAFETY: `res` is a live vector of the caller's; the handles' arrays are copied.
            return unsafe { sys::mlx_vector_array_set_data(res, handles.as_ptr(), handles.len()) };
        }
        Ok(Err(error)) => error,
        Err(_) => Reason::Panic("while a function was traced".into()).into(),
    };
    *payload.failure.lock() = Some(failure);
    1
}

unsafe extern "C" fn drop_payload(payload: *mut c_void) {
    // SAFETY: made by `compile` from a box, dropped once, by the closure.
    drop(unsafe { Box::from_raw(payload.cast::<Payload>()) });
}

/// Has a function traced and fused when it is first called. To be called on the thread that will call it.
pub fn compile(build: Box<Build>) -> Result<Compiled> {
    let failure = Arc::new(Mutex::new(None));
    let payload = Box::new(Payload {
        build,
        failure: failure.clone(),
    });
    // SAFETY: the payload goes to the closure, which drops it; the plain closure is freed here and lives on in the
    // compiled one.
    unsafe {
        let payload = Box::into_raw(payload).cast();
        let plain =
            sys::mlx_closure_new_func_payload(Some(call_payload), payload, Some(drop_payload));
        let mut closure = sys::mlx_closure_new();
        let status = sys::mlx_compile(&mut closure, plain, false);
        sys::mlx_closure_free(plain);
        let compiled = Compiled { closure, failure };
        check(status).map(|()| compiled)
    }
}

impl Compiled {
    pub fn call(&self, inputs: &[&Array]) -> Result<Vec<Array>> {
        let inputs = Vector::new(inputs.iter().copied());
        // SAFETY: both are live for the call.
        let outputs = many(|res| unsafe { sys::mlx_closure_apply(res, self.closure, inputs.0) });
        let mut failure = self.failure.lock();
        match failure.take() {
            Some(error) => Err(error),
            None => outputs,
        }
    }
}

impl Drop for Compiled {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { sys::mlx_closure_free(self.closure) };
    }
}
