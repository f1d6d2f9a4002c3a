//! What a kernel sees of an array.

use super::gemm::Matrix;
use std::ffi::c_void;
use std::mem::{offset_of, size_of};

/// An array's numbers, and how they lie. Laid out as `emlx_view` in native/cpp/kernel.cpp, which makes them of MLX's
/// arrays. Borrows nothing: whoever runs a kernel keeps alive what the pointers go to.
#[repr(C)]
pub struct View {
    pub(crate) data: *mut c_void,
    shape: *const i32,
    /// In elements.
    strides: *const i64,
    rank: usize,
}

const _: () = assert!(size_of::<View>() == 4 * size_of::<usize>());
const _: () = assert!(offset_of!(View, shape) == size_of::<usize>());
const _: () = assert!(offset_of!(View, strides) == 2 * size_of::<usize>());
const _: () = assert!(offset_of!(View, rank) == 3 * size_of::<usize>());

impl View {
    /// Of the array that begins at `data`; `strides` are in elements, one for each axis.
    ///
    /// # Safety
    /// Data, shape and strides outlive the view, and there are as many strides as axes.
    pub unsafe fn of<T>(data: *const T, shape: &[i32], strides: &[i64]) -> View {
        View {
            data: data.cast_mut().cast(),
            shape: shape.as_ptr(),
            strides: strides.as_ptr(),
            rank: shape.len(),
        }
    }

    /// The first element.
    pub fn data(&self) -> *mut u8 {
        self.data.cast()
    }

    pub fn shape(&self) -> &[i32] {
        if self.rank == 0 {
            return &[];
        }
        // SAFETY: of the array, which outlives the view.
        unsafe { std::slice::from_raw_parts(self.shape, self.rank) }
    }

    /// An array of two axes.
    pub(crate) fn matrix<T>(&self) -> Matrix<T> {
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
        // SAFETY: of the array, which outlives the view.
        unsafe { std::slice::from_raw_parts(self.strides, self.rank) }
    }

    pub fn size(&self) -> usize {
        self.shape().iter().map(|n| *n as usize).product()
    }

    /// The same array.
    pub(crate) fn again(&self) -> View {
        View { ..*self }
    }

    /// Number `i` along the first axis, of an array whose elements are of `bytes`.
    ///
    /// # Safety
    /// The array has an axis, and so many along it.
    pub(crate) unsafe fn part(&self, i: usize, bytes: usize) -> View {
        let offset = i as isize * self.strides()[0] as isize * bytes as isize;
        View {
            data: self.data.byte_offset(offset),
            shape: self.shape.add(1),
            strides: self.strides.add(1),
            rank: self.rank - 1,
        }
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

// SAFETY: a kernel's threads read what its caller keeps alive, and write parts that do not overlap.
unsafe impl Sync for View {}
