//! Evaluation: submitting graphs, waiting for arrays, and tasks of our own on a CPU stream's thread.

use super::error::check;
#[cfg(emlx_kernels)]
use super::error::take_error;
use super::memory::{active_memory, memory_figures, memory_limit};
#[cfg(not(emlx_kernels))]
use super::vector::many;
use super::vector::Vector;
use super::{GraphLock, Stream};
use crate::base::{Device, Error, Reason, Result};
use mlx_rs::Array;
use mlx_sys as sys;
use smallvec::SmallVec;
use std::ffi::{c_char, c_int, c_void, CStr};
#[cfg(emlx_kernels)]
use std::{mem::ManuallyDrop, time::Duration};

/// Submits the graphs of these arrays. Returns when they are submitted, not when they are computed.
pub fn async_eval(arrays: &[&Array], _lock: &GraphLock) -> Result<()> {
    let vector = Vector::new(arrays.iter().copied());
    // SAFETY: the vector is live; the lock is held.
    check(unsafe { sys::mlx_async_eval(vector.0) })
}

/// What is done on a CPU stream's thread; it is told of the stream's failure where that is asked for.
pub type Task = Box<dyn FnOnce(Result<()>) + Send>;

/// Whether tasks of ours can be put on the CPU's streams. Not beside CUDA, whose events the CPU's streams call too.
pub fn has_tasks() -> bool {
    cfg!(emlx_kernels) && !Device::Gpu.is_available()
}

/// Has a CPU stream's thread do `task` after all that was submitted to it before. With `ask` it asks for the first
/// failure since somebody asked last, as [`Stream::synchronize`] does. The thread must not wait there for the graph's
/// lock: who has that may wait for it.
pub fn then(stream: &Stream, ask: bool, task: Task) {
    #[cfg(emlx_kernels)]
    {
        extern "C" {
            fn emlx_stream_task(
                stream: sys::mlx_stream,
                ask: bool,
                run: unsafe extern "C" fn(*mut c_void, *const c_char),
                payload: *mut c_void,
            ) -> c_int;
        }

        unsafe extern "C" fn run(payload: *mut c_void, failure: *const c_char) {
            // SAFETY: the box of below, once; the text lives through the call.
            let (task, result) = unsafe {
                let result = match failure.is_null() {
                    true => Ok(()),
                    false => {
                        let text = CStr::from_ptr(failure).to_string_lossy().into_owned();
                        Err(Reason::of_mlx(text, memory_figures).into())
                    }
                };
                (*Box::from_raw(payload.cast::<Task>()), result)
            };
            // A panic is nobody's here, and must not go on through C++.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| task(result)));
        }

        let payload = Box::into_raw(Box::new(task));
        // SAFETY: the stream is live; the box is freed by whoever calls the task, which is one of the two.
        let status = unsafe { emlx_stream_task(stream.0, ask, run, payload.cast()) };
        if let Err(error) = check(status) {
            let task = unsafe { Box::from_raw(payload) };
            task(Err(error));
        }
    }
    #[cfg(not(emlx_kernels))]
    {
        let _ = ask;
        task(stream.synchronize());
    }
}

/// Whether a small graph of this many bytes can be submitted without MLX having the caller wait for other work.
pub fn takes_more(bytes: usize) -> bool {
    let room = || {
        let used = active_memory()?.saturating_add(bytes);
        Ok::<bool, Error>(used < memory_limit()?)
    };
    active_tasks() <= MAX_ACTIVE_TASKS / 3 && room().unwrap_or(false)
}

/// Groups of tasks that are under way on all streams. Whoever submits more than [`MAX_ACTIVE_TASKS`] waits in MLX.
pub fn active_tasks() -> usize {
    #[cfg(emlx_kernels)]
    {
        extern "C" {
            fn emlx_active_tasks() -> c_int;
        }
        // SAFETY: no preconditions.
        unsafe { emlx_active_tasks() }.max(0) as usize
    }
    #[cfg(not(emlx_kernels))]
    0
}

/// MLX's constant of that name.
pub const MAX_ACTIVE_TASKS: usize = 10;

/// Whether elements of an array may lie at one place in memory, as those of a broadcast array do. Also where that is
/// not known.
pub fn may_repeat(array: &Array) -> bool {
    #[cfg(emlx_kernels)]
    {
        extern "C" {
            fn emlx_may_repeat(array: sys::mlx_array) -> bool;
        }
        let Some(_lock) = super::try_graph_lock() else {
            return true;
        };
        // SAFETY: the array is live, and nobody changes the graph meanwhile.
        unsafe { emlx_may_repeat(array.as_ptr()) }
    }
    #[cfg(not(emlx_kernels))]
    {
        let _ = array;
        true
    }
}

/// Whether the matrices of an array lie one after another, in rows or in columns. False also where that is not known.
pub fn has_dense_matrices(array: &Array) -> bool {
    super::try_graph_lock().is_some_and(|lock| lie_densely(array, &lock))
}

/// The same where the lock is held.
pub fn lie_densely(array: &Array, _lock: &GraphLock) -> bool {
    #[cfg(emlx_kernels)]
    {
        extern "C" {
            fn emlx_has_dense_matrices(array: sys::mlx_array) -> bool;
        }
        // SAFETY: the array is live, and nobody changes the graph meanwhile.
        unsafe { emlx_has_dense_matrices(array.as_ptr()) }
    }
    #[cfg(not(emlx_kernels))]
    {
        let _ = array;
        false
    }
}

/// Whether computing these arrays takes at most `most` nodes of together at most `bytes`, all of them on one stream.
pub fn is_small(
    arrays: &[&Array],
    stream: &Stream,
    most: usize,
    bytes: usize,
    _lock: &GraphLock,
) -> bool {
    #[cfg(emlx_kernels)]
    {
        extern "C" {
            fn emlx_is_small(
                arrays: *const sys::mlx_array,
                count: usize,
                stream: sys::mlx_stream,
                most: usize,
                bytes: usize,
            ) -> bool;
        }
        let handles: SmallVec<[sys::mlx_array; 4]> =
            arrays.iter().map(|array| array.as_ptr()).collect();
        // SAFETY: the handles are live, and nobody changes the graph meanwhile.
        unsafe { emlx_is_small(handles.as_ptr(), handles.len(), stream.0, most, bytes) }
    }
    #[cfg(not(emlx_kernels))]
    {
        let _ = (arrays, stream, most, bytes);
        false
    }
}

/// Waits for one array. Only for an array that no other thread has a handle of.
pub fn wait(array: &Array) -> Result<()> {
    // SAFETY: the array is live and, by the caller's word, not shared.
    check(unsafe { sys::_mlx_array_wait(array.as_ptr()) })
}

/// What tells when some arrays are computed that have been submitted.
#[cfg(emlx_kernels)]
pub struct Waits(*mut c_void);

#[cfg(emlx_kernels)]
impl Waits {
    pub fn of(arrays: &[&Array], _lock: &GraphLock) -> Result<Waits> {
        extern "C" {
            fn emlx_waits(arrays: *const sys::mlx_array, count: usize) -> *mut c_void;
        }
        let handles: SmallVec<[sys::mlx_array; 4]> =
            arrays.iter().map(|array| array.as_ptr()).collect();
        // SAFETY: the handles are live, and the lock is held.
        let waits = unsafe { emlx_waits(handles.as_ptr(), handles.len()) };
        match waits.is_null() {
            true => Err(take_error()),
            false => Ok(Waits(waits)),
        }
    }

    /// Waits, and keeps looking for as long as `awake` before the thread sleeps.
    pub fn wait(self, awake: Duration) -> Result<()> {
        extern "C" {
            fn emlx_wait(waits: *mut c_void, awake: i64) -> c_int;
        }
        let waits = ManuallyDrop::new(self);
        let awake = i64::try_from(awake.as_micros()).unwrap_or(i64::MAX);
        // SAFETY: they are given away once.
        check(unsafe { emlx_wait(waits.0, awake) })
    }
}

#[cfg(emlx_kernels)]
impl Drop for Waits {
    fn drop(&mut self) {
        extern "C" {
            fn emlx_waits_drop(waits: *mut c_void);
        }
        // SAFETY: they are not used again.
        unsafe { emlx_waits_drop(self.0) }
    }
}

/// Whether the array's values can be read without waiting. Asking may update the array's state, hence the lock.
pub fn is_available(array: &Array, _lock: &GraphLock) -> bool {
    is_available_now(array)
}

/// The same where the caller has seen to it.
pub(in crate::mlx) fn is_available_now(array: &Array) -> bool {
    let mut available = false;
    // SAFETY: the array is live; the lock is held.
    let status = unsafe { sys::_mlx_array_is_available(&mut available, array.as_ptr()) };
    status == 0 && available
}

/// Arrays equal to `inputs` that are computed only after `dependencies`.
#[cfg(not(emlx_kernels))]
pub fn depends(inputs: &[&Array], dependencies: &[&Array]) -> Result<Vec<Array>> {
    let inputs = Vector::new(inputs.iter().copied());
    let dependencies = Vector::new(dependencies.iter().copied());
    many(|res| unsafe { sys::mlx_depends(res, inputs.0, dependencies.0) })
}
