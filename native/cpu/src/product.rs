//! Products of matrices, broadcast over the axes before the last two.

use super::element::Element;
use super::gemm::{self, Matrix};
use super::pool::{self, Shared};
use super::simd::Level;
use super::View;

/// # Safety
/// The views are of live arrays of at least two axes each, whose sizes fit.
pub unsafe fn run<T: Element>(level: Level, a: &View, b: &View, out: &View) {
    each::<T>(a, b, out, &|a, b, to, sizes| {
        gemm::product::<T>(level, a, b, to, sizes)
    })
}

/// Computes a matrix in rows from two, of `rows` × `terms` and `terms` × `columns`.
pub type Multiply<'a, T> = &'a (dyn Fn(Matrix<T>, Matrix<T>, *mut T, (usize, usize, usize)) + Sync);

/// Calls `multiply` for each matrix of the result.
///
/// # Safety
/// As for [`run`].
pub unsafe fn each<T>(a: &View, b: &View, out: &View, multiply: Multiply<T>) {
    let matrix = |view: &View, number: usize| {
        let (shape, strides) = (view.shape(), view.strides());
        let rank = shape.len();
        // The axes before the last two, of which those of size 1 are repeated.
        let mut offset = 0;
        let mut number = number;
        for axis in (0..out.shape().len() - 2).rev() {
            let size = out.shape()[axis] as usize;
            let own = (axis + rank).checked_sub(out.shape().len());
            if let Some(own) = own.filter(|own| shape[*own] != 1) {
                offset += (number % size) as isize * strides[own] as isize;
            }
            number /= size;
        }
        Matrix {
            data: view.data.cast::<T>().cast_const().offset(offset),
            row: strides[rank - 2] as isize,
            column: strides[rank - 1] as isize,
        }
    };
    let sizes = |view: &View, back: usize| view.shape()[view.shape().len() - back] as usize;
    let (rows, terms, columns) = (sizes(a, 2), sizes(a, 1), sizes(b, 1));
    let to = Shared(out.data.cast::<T>());
    let count = out.size() / (rows * columns);
    let one = |number: usize| {
        // SAFETY: within the views, and a matrix of the result that is this one's alone.
        unsafe {
            let to = to.at(number * rows * columns);
            multiply(
                matrix(a, number),
                matrix(b, number),
                to,
                (rows, terms, columns),
            );
        }
    };
    // Many products go one to a thread, few of them are each shared out.
    if count >= 2 * pool::threads() {
        let work = count * rows * terms * columns;
        pool::parallel(count, work >= gemm::WORTH_SHARING, &one);
    } else {
        for number in 0..count {
            one(number);
        }
    }
}
