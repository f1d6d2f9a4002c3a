//! Cholesky's factor of a positive definite matrix: the upper one, Uᵀ·U, block of rows after block of rows. The lower
//! one is the same turned.

use super::lu::{Own, BLOCK, WORTH_SHARING};
use super::real::Real;
use super::tile::{self, Strip, Triangle};
use crate::gemm::Matrix;
use crate::pool;
use crate::simd::{dispatch, Level, Simd};

/// From one row to the next of a block.
const STRIDE: usize = BLOCK + 32;

/// Factors a block on the diagonal, whose rows are `STRIDE` numbers apart. The first row whose pivot is not positive,
/// which is left.
#[inline(always)]
unsafe fn block_body<S: Simd, T: Real>(block: *mut T, size: usize, failed: &mut Option<usize>) {
    let width = T::width::<S>();
    for i in 0..size {
        let row = block.add(i * STRIDE);
        let pivot = *row.add(i);
        // NaN is not positive either.
        if pivot.partial_cmp(&T::ZERO) != Some(std::cmp::Ordering::Greater) {
            *failed = Some(i);
            return;
        }
        let root = pivot.sqrt();
        for j in (i..size).step_by(width) {
            T::store::<S>(row.add(j), T::row_div::<S>(T::load::<S>(row.add(j)), root));
        }
        *row.add(i) = root;
        for r in i + 1..size {
            let factor = -*row.add(r);
            let to = block.add(r * STRIDE);
            for j in (r..size).step_by(width) {
                let x = T::load::<S>(to.add(j));
                T::store::<S>(to.add(j), T::fma::<S>(factor, T::load::<S>(row.add(j)), x));
            }
        }
    }
}

dispatch! {
    fn factor_block<T: Real>(block: *mut T, size: usize, failed: &mut Option<usize>) = block_body
}

/// Factors a matrix in place, of which the upper triangle is read and written. The first row whose pivot is not
/// positive, which is left there, as are those below it.
///
/// # Safety
/// The matrix has room as [`tile::stride`] says, and the machine the level's instructions.
pub unsafe fn factor<T: Real>(level: Level, a: Own<T>) -> Option<usize> {
    let (width, size) = (tile::width::<T>(level), a.rows);
    let mut block = [T::ZERO; BLOCK * STRIDE];
    for begin in (0..size).step_by(BLOCK) {
        let count = BLOCK.min(size - begin);
        let corner = a.matrix().from(begin, begin);
        tile::copy(level, corner, (count, count), block.as_mut_ptr(), STRIDE);
        let mut failed = None;
        factor_block(level, block.as_mut_ptr(), count, &mut failed);
        let factored = Matrix {
            data: block.as_ptr(),
            row: STRIDE as isize,
            column: 1,
        };
        let (sizes, to) = ((count, count), a.at(begin, begin));
        tile::copy(level, factored, sizes, to, a.stride);
        if let Some(row) = failed {
            return Some(begin + row);
        }
        let end = begin + count;
        let strips = (size - end).div_ceil(width);
        let work = strips * width * count * count;
        pool::parallel(strips, work >= WORTH_SHARING, &|part| {
            let of = Triangle {
                a: factored.turned(),
                size: count,
                has_ones: false,
            };
            // SAFETY: a strip of this part's own.
            unsafe {
                let strip = a.strip(begin, end + part * width);
                tile::substitute(level, &of, strip, 0, 1);
            }
        });
        let work = strips * width * count * (size - end) / 2;
        // The longest strips first.
        pool::parallel(strips, work >= WORTH_SHARING, &|part| {
            let column = end + (strips - 1 - part) * width;
            let rows = (column + width).min(size) - end;
            // SAFETY: a strip of this part's own, and rows that nobody writes.
            unsafe {
                let left = a.matrix().from(begin, end).turned();
                let (from, to): (Strip<T>, _) = (a.strip(begin, column), a.strip(end, column));
                tile::subtract(level, left, from, to, rows, count);
            }
        });
    }
    None
}

/// The factor of a semidefinite matrix, for which [`factor`] failed: a column of zeros for each pivot that is 0 up to
/// rounding, and NaN of an indefinite matrix. `diagonal` is the matrix's, and `load` brings the matrix back.
///
/// The diagonal is enlarged by the possible rounding error. A pivot that should be 0 is then about as small as this
/// error, and its column is noise.
///
/// # Safety
/// As for [`factor`].
pub unsafe fn factor_semidefinite<T: Real>(level: Level, a: Own<T>, diagonal: &[T]) {
    let noise = T::of(a.rows as f64) * T::EPSILON;
    let mut largest = T::ZERO;
    for x in diagonal {
        if *x > largest {
            largest = *x;
        }
    }
    // The row and column of a diagonal element that is 0 are 0 in a semidefinite matrix.
    let least = match largest == T::ZERO {
        true => T::ONE,
        false => largest * noise * noise,
    };
    for (i, x) in diagonal.iter().enumerate() {
        *a.at(i, i) = match *x == T::ZERO {
            true => least,
            false => *x * (T::ONE + noise),
        };
    }
    let is_indefinite = factor(level, a).is_some();
    for (i, x) in diagonal.iter().enumerate() {
        let pivot = *a.at(i, i);
        let is_noise = pivot * pivot <= *x * (T::of(8.0) * noise);
        let row = std::slice::from_raw_parts_mut(a.at(i, i), a.columns - i);
        if is_indefinite {
            row.fill(T::NAN);
        } else if *x == T::ZERO || is_noise {
            row.fill(T::ZERO);
        }
    }
}
