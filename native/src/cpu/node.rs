//! Nodes of MLX's graph that run a [`Kernel`]: the Rust side of cpp/kernel.cpp.

use super::gemm::Matrix;
use super::Kernel;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::mlx::{self, Functions, Stream, View};
use mlx_rs::Array;
use std::ffi::{c_char, c_void};

impl View {
    /// Of an array of the test's own, which has to outlive it.
    #[cfg(test)]
    pub fn of<T>(data: *const T, shape: &[i32], strides: &[i64]) -> View {
        View {
            data: data.cast_mut().cast(),
            shape: shape.as_ptr(),
            strides: strides.as_ptr(),
            rank: shape.len(),
        }
    }

    pub fn shape(&self) -> &[i32] {
        if self.rank == 0 {
            return &[];
        }
        // SAFETY: MLX's own, alive while the kernel runs.
        unsafe { std::slice::from_raw_parts(self.shape, self.rank) }
    }

    /// An array of two axes.
    pub fn matrix<T>(&self) -> Matrix<T> {
        Matrix {
            data: self.data.cast(),
            row: self.strides()[0] as isize,
            column: self.strides()[1] as isize,
        }
    }

    /// In elements.
    pub fn strides(&self) -> &[i64] {
        if self.rank == 0 {
            return &[];
        }
        // SAFETY: MLX's own, alive while the kernel runs.
        unsafe { std::slice::from_raw_parts(self.strides, self.rank) }
    }

    pub fn size(&self) -> usize {
        self.shape().iter().map(|n| *n as usize).product()
    }

    /// From one element of a row to the next.
    pub fn step(&self) -> isize {
        self.strides().last().copied().unwrap_or(1) as isize
    }

    /// Rows along the last axis, and how long they are; a scalar is one row of one.
    pub fn rows(&self) -> (usize, usize) {
        let count = self.shape().last().copied().unwrap_or(1) as usize;
        (self.size() / count.max(1), count)
    }

    /// Where row number `row` begins, in elements.
    pub fn row(&self, row: usize) -> isize {
        self.row_in(row, self)
    }

    /// Where it begins in another array, of which this one's shape is the first part.
    pub fn row_in(&self, mut row: usize, other: &View) -> isize {
        let (shape, strides) = (self.shape(), other.strides());
        let mut offset = 0;
        for axis in (0..self.rank.saturating_sub(1)).rev() {
            let size = shape[axis] as usize;
            offset += (row % size) as isize * strides[axis] as isize;
            row /= size;
        }
        offset
    }
}

// SAFETY: a kernel's threads read what MLX keeps alive, and write parts that do not overlap.
unsafe impl Sync for View {}

/// A kernel with the type it was asked for.
struct Owned {
    kernel: Kernel,
    dtype: Dtype,
}

unsafe extern "C" fn run(
    kernel: *const c_void,
    inputs: *const View,
    count: usize,
    out: *const View,
    message: *mut c_char,
    size: usize,
) -> bool {
    // SAFETY: a box of ours; views that live through the call.
    let (owned, inputs, out) = unsafe {
        (
            &*kernel.cast::<Owned>(),
            std::slice::from_raw_parts(inputs, count),
            &*out,
        )
    };
    let call = || unsafe { owned.kernel.run(inputs, out, owned.dtype) };
    let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)) else {
        return true;
    };
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("the kernel panicked");
    let length = text.len().min(size.saturating_sub(1));
    // SAFETY: `size` bytes are the caller's, and the text ends before the last.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), message, length);
        message.add(length).write(0);
    }
    false
}

unsafe extern "C" fn equal(a: *const c_void, b: *const c_void) -> bool {
    // SAFETY: both are boxes of ours.
    let (a, b) = unsafe { (&*a.cast::<Owned>(), &*b.cast::<Owned>()) };
    a.kernel == b.kernel && a.dtype == b.dtype
}

unsafe extern "C" fn drop_kernel(kernel: *const c_void) {
    // SAFETY: made by `new`, dropped once, by the node.
    drop(unsafe { Box::from_raw(kernel.cast_mut().cast::<Owned>()) });
}

/// How a node lays its result out; the same in cpp/kernel.cpp.
#[derive(Clone, Copy)]
pub enum Layout {
    /// Row after row.
    Rows = 0,
    /// As all inputs of the result's shape, where they agree; else row after row. The kernel may be given the memory of one of them.
    Together = 1,
    /// As the first input, where its rows have no gaps; else row after row. The kernel may be given the first input's memory.
    LikeFirst = 2,
    /// {batch, heads, length, size} with the heads of one position beside each other, as what follows wants them.
    HeadsInside = 3,
}

/// A node of `shape` and of the type of `like`, which is the type of all inputs that the kernel computes with.
pub fn new(
    kernel: Kernel,
    layout: Layout,
    inputs: &[&Array],
    shape: &[i32],
    like: &Array,
    s: &Stream,
) -> Result<Array> {
    let name = kernel.name().as_ptr();
    let dtype = mlx::dtype(like);
    let kernel: *const Owned = Box::into_raw(Box::new(Owned { kernel, dtype }));
    let functions = Functions {
        kernel: kernel.cast(),
        name,
        run,
        equal,
        drop: drop_kernel,
    };
    mlx::kernel_node(functions, layout as i32, inputs, shape, like, s)
}
