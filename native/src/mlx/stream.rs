//! Streams that any thread may build nodes for.

use super::device::device_handle;
use super::error::{check, take_error};
use super::graph_lock;
use super::Tape;
use crate::base::{Device, Result};
use mlx_sys as sys;
use std::cell::Cell;
use std::ffi::c_void;

/// A stream that any thread may build nodes for. Evaluation on it goes through [`graph_lock`].
#[derive(Debug)]
pub struct Stream(
    pub(in crate::mlx) sys::mlx_stream,
    Device,
    /// Where kernels that are computed on the spot are written to.
    pub(in crate::mlx) Option<Tape>,
);

// SAFETY: the wrapped object is an index and a device, never written after it is made.
unsafe impl Send for Stream {}
unsafe impl Sync for Stream {}

impl Clone for Stream {
    fn clone(&self) -> Self {
        // Streams live as long as the process (MLX has no call that ends one of several), so sharing the pointer is
        // sound.
        Stream(self.0, self.1, self.2.clone())
    }
}

impl Stream {
    pub fn new(device: Device) -> Result<Stream> {
        // MLX finds a stream's encoder in a map that is not locked, and a new stream can have it rebuilt.
        let _lock = graph_lock();
        let handle = device_handle(device);
        // SAFETY: the device handle is live for the call.
        let raw = unsafe { sys::mlx_stream_new_thread_unsafe(handle) };
        unsafe { sys::mlx_device_free(handle) };
        if raw.ctx.is_null() {
            return Err(take_error());
        }
        Ok(Stream(raw, device, None))
    }

    pub fn is_gpu(&self) -> bool {
        self.1 == Device::Gpu
    }

    pub fn is_same(&self, other: &Stream) -> bool {
        self.0.ctx == other.0.ctx
    }

    /// Makes this the calling thread's default on its device, for the nodes that MLX adds without asking (layer_norm's
    /// formula has one). A thread's own default stream could be used by that thread only.
    pub fn make_thread_default(&self, device: Device) -> Result<()> {
        thread_local! {
            static CURRENT: Cell<[*mut c_void; 2]> = const { Cell::new([std::ptr::null_mut(); 2]) };
        }
        let mut current = CURRENT.get();
        if current[device as usize] == self.0.ctx {
            return Ok(());
        }
        // SAFETY: the stream is live.
        check(unsafe { sys::mlx_set_default_stream(self.0) })?;
        current[device as usize] = self.0.ctx;
        CURRENT.set(current);
        Ok(())
    }

    /// Waits until everything submitted to a CPU stream is computed. MLX keeps the first failure of a CPU stream until
    /// somebody asks; this asks. Not for GPU streams, whose encoder another thread may be using.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is live.
        check(unsafe { sys::mlx_synchronize(self.0) })
    }
}
