//! Kernels that were computed on the spot, to be computed again: the memory that they read and write stays where it is.

use super::{dtype, release_all, Quiet, Stream};
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
pub struct Tape {
    kernels: Arc<Mutex<Vec<Recorded>>>,
    is_of_call: bool,
}

impl Tape {
    /// Of one operation on arrays that the calling thread alone has, which a scheduler records: it takes no lock, and
    /// computes what it would compute without.
    pub fn of_call() -> Tape {
        Tape {
            is_of_call: true,
            ..Tape::default()
        }
    }

    /// Whether a loop is recorded, by a queue's thread.
    pub fn is_of_loop(&self) -> bool {
        !self.is_of_call
    }

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
        self.kernels.lock().push(Recorded { kernel, held });
        Ok(())
    }

    /// What has been written.
    pub fn take(&self) -> Vec<Recorded> {
        std::mem::take(&mut self.kernels.lock())
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
    /// Bytes of what it writes.
    pub fn nbytes(&self) -> usize {
        self.held.last().map_or(0, Array::nbytes)
    }

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

/// Where the elements of a computed array are.
pub struct Elements {
    pub data: *const u8,
    /// Bytes between the first element and each one, in row-major order. None where they lie in rows.
    pub places: Option<Box<[u32]>>,
}

/// Where the elements of a small array are, for as long as it lives. None where it is not computed yet.
pub fn elements(array: &Array, _quiet: &Quiet) -> Option<Elements> {
    if !cfg!(emlx_kernels) || !super::eval::is_available_now(array) {
        return None;
    }
    if array.size() == 0 {
        let data = std::ptr::NonNull::dangling().as_ptr();
        return Some(Elements { data, places: None });
    }
    let view = view(array);
    let (shape, strides) = (view.shape(), view.strides());
    let mut expected = 1;
    let in_rows = shape.iter().zip(strides).rev().all(|(size, stride)| {
        let is_next = *size == 1 || *stride == expected;
        expected *= i64::from(*size);
        is_next
    });
    let data = view.data().cast_const();
    if in_rows {
        return Some(Elements { data, places: None });
    }
    let mut places = vec![0i64];
    for (size, stride) in shape.iter().zip(strides) {
        let steps = 0..i64::from(*size);
        places = places
            .iter()
            .flat_map(|place| steps.clone().map(move |step| place + step * stride))
            .collect();
    }
    // Strides of reversed axes are negative: the places are counted from the least.
    let least = places.iter().copied().min().unwrap_or(0);
    let size = dtype(array).size() as i64;
    let places = places
        .iter()
        .map(|place| u32::try_from((place - least) * size).ok());
    Some(Elements {
        // SAFETY: where an element of the array is.
        data: unsafe { data.offset((least * size) as isize) },
        places: Some(places.collect::<Option<_>>()?),
    })
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
