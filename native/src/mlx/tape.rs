//! Kernels that were computed on the spot, to be computed again: the memory that they read and write stays where it is.

use super::release_all;
use super::Stream;
use crate::base::Result;
use emlx_cpu::{ElementType, Kernel, Prepared, View};
use mlx_rs::Array;
use mlx_sys as sys;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// What [`Stream::recording`] has kernels written to, in their order.
#[derive(Clone, Debug, Default)]
pub struct Tape(Arc<Mutex<Vec<Recorded>>>);

impl Tape {
    /// Adds a kernel that has computed `outs`.
    pub fn push(
        &self,
        kernel: Kernel,
        element: ElementType,
        inputs: &[&Array],
        outs: &[Array],
    ) -> Result<()> {
        let held = inputs.iter().copied().chain(outs).map(super::share);
        let held = held.collect::<Result<SmallVec<[Array; 4]>>>()?;
        let (inputs, outs) = held.split_at(inputs.len());
        let [inputs, outs] = [inputs, outs].map(|arrays| arrays.iter().map(view));
        // SAFETY: it has computed these arrays, which are held.
        let kernel = unsafe { Prepared::new(kernel, element, inputs.collect(), outs.collect()) };
        self.0.lock().push(Recorded { kernel, held });
        Ok(())
    }

    /// What has been written.
    pub fn take(&self) -> Vec<Recorded> {
        std::mem::take(&mut self.0.lock())
    }
}

/// A kernel and the memory that it reads and writes.
pub struct Recorded {
    kernel: Prepared,
    held: SmallVec<[Array; 4]>,
}

// SAFETY: the views are of the arrays that are held, which any thread may hold.
unsafe impl Send for Recorded {}

impl std::fmt::Debug for Recorded {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Recorded").finish_non_exhaustive()
    }
}

impl Recorded {
    /// Computes it again, from what its inputs hold now.
    ///
    /// # Safety
    /// Nobody else reads or writes the memory meanwhile.
    pub unsafe fn run(&self) {
        self.kernel.run()
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        release_all(std::mem::take(&mut self.held));
    }
}

/// How a computed array lies. The view lasts as long as the array.
fn view(array: &Array) -> View {
    extern "C" {
        fn emlx_view_of(array: sys::mlx_array, view: *mut View);
    }
    let mut view = MaybeUninit::uninit();
    // SAFETY: the array is live, and the view is written.
    unsafe {
        emlx_view_of(array.as_ptr(), view.as_mut_ptr());
        view.assume_init()
    }
}

impl Stream {
    /// This stream, and what computes kernels on the spot for it writes them to the tape.
    pub fn recording(&self, tape: &Tape) -> Stream {
        let mut stream = self.clone();
        stream.2 = Some(tape.clone());
        stream
    }

    pub fn tape(&self) -> Option<&Tape> {
        self.2.as_ref()
    }
}
