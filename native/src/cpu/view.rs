//! What a kernel sees of an array.

use super::gemm::Matrix;
pub use crate::mlx::View;

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
