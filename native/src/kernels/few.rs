//! Matrix products of few rows, where reading the other operand is most of the work: it is read once, where it lies, whatever its
//! type, and never rearranged. Rows of `a` are f32 with zeros up to whole vectors behind them. Called by gemm.rs, which chooses between
//! this and packed panels, and by attention.rs.

use super::element::Element;
use super::gemm::Matrix;
use super::simd::{load_part, store_part, Simd};
use crate::dispatch;

/// Rows of `a` that are multiplied with one reading of a vector of `b`.
const ROWS: usize = 4;
/// Columns that are summed side by side where `b` lies column by column.
const COLUMNS: usize = 4;
/// Terms that are added in one pass over the sums where `b` lies row by row: as many streams as the machine prefetches well.
const TERMS: usize = 8;
/// Columns of such a pass: the sums then stay in the first cache.
const WIDTH: usize = 1024;

/// How far apart the rows of `a` lie.
pub fn row_size(terms: usize) -> usize {
    terms.next_multiple_of(16)
}

/// Whether an operand lies so that it can be read in vectors.
pub fn fits<T>(b: Matrix<T>) -> bool {
    b.row == 1 || b.column == 1
}

/// `a` as f32, in rows of [`row_size`].
#[inline(always)]
pub unsafe fn widen_body<S: Simd, T: Element>(
    a: Matrix<T>,
    rows: usize,
    terms: usize,
    to: *mut f32,
) {
    let size = row_size(terms);
    for i in 0..rows {
        let to = to.add(i * size);
        let whole = if a.column == 1 {
            terms / S::LANES * S::LANES
        } else {
            0
        };
        for k in (0..whole).step_by(S::LANES) {
            S::store(to.add(k), T::load::<S>(a.at(i, k)));
        }
        for k in whole..terms {
            to.add(k).write(a.at(i, k).read().widen());
        }
        for k in terms..size {
            to.add(k).write(0.0);
        }
    }
}

dispatch! {
    pub fn widen<T: Element>(a: Matrix<T>, rows: usize, terms: usize, to: *mut f32) = widen_body
}

/// `rows` × `terms` of `a` times `terms` × `columns` of `b`, which [`fits`], to `c` in rows of `stride`.
#[inline(always)]
pub unsafe fn multiply<S: Simd, T: Element>(
    a: *const f32,
    b: Matrix<T>,
    c: *mut f32,
    stride: usize,
    (rows, terms, columns): (usize, usize, usize),
) {
    let size = row_size(terms);
    if b.row == 1 {
        let mut j = 0;
        while j < columns {
            // Rows come again for the same columns, which the first cache still has.
            let side = COLUMNS.min(columns - j);
            let mut i = 0;
            while i < rows {
                let count = ROWS.min(rows - i);
                let (a, c) = (a.add(i * size), c.add(i * stride + j));
                let b = b.from(0, j);
                match (count, side) {
                    (4, COLUMNS) => dots::<S, T, 4, COLUMNS>(a, b, c, stride, terms),
                    (3, COLUMNS) => dots::<S, T, 3, COLUMNS>(a, b, c, stride, terms),
                    (2, COLUMNS) => dots::<S, T, 2, COLUMNS>(a, b, c, stride, terms),
                    (_, COLUMNS) => dots::<S, T, 1, COLUMNS>(a, b, c, stride, terms),
                    _ => {
                        for i in 0..count {
                            for j in 0..side {
                                let (a, b) = (a.add(i * size), b.from(0, j));
                                dots::<S, T, 1, 1>(a, b, c.add(i * stride + j), stride, terms);
                            }
                        }
                    }
                }
                i += count;
            }
            j += side;
        }
        return;
    }
    let mut j = 0;
    while j < columns {
        let wide = WIDTH.min(columns - j);
        let mut k = 0;
        while k < terms {
            let deep = TERMS.min(terms - k);
            let mut i = 0;
            while i < rows {
                let count = ROWS.min(rows - i);
                let (a, c) = (a.add(i * size + k), c.add(i * stride + j));
                let b = b.from(k, j);
                match (count, deep) {
                    (4, TERMS) => sums::<S, T, 4, TERMS>(a, size, b, c, stride, wide, k > 0),
                    (3, TERMS) => sums::<S, T, 3, TERMS>(a, size, b, c, stride, wide, k > 0),
                    (2, TERMS) => sums::<S, T, 2, TERMS>(a, size, b, c, stride, wide, k > 0),
                    (_, TERMS) => sums::<S, T, 1, TERMS>(a, size, b, c, stride, wide, k > 0),
                    _ => {
                        for i in 0..count {
                            let (a, c) = (a.add(i * size), c.add(i * stride));
                            for t in 0..deep {
                                let (a, b) = (a.add(t), b.from(t, 0));
                                sums::<S, T, 1, 1>(a, size, b, c, stride, wide, k + t > 0);
                            }
                        }
                    }
                }
                i += count;
            }
            k += deep;
        }
        j += wide;
    }
}

/// `R` rows times `C` columns, each of which lies in one piece.
#[inline(always)]
unsafe fn dots<S: Simd, T: Element, const R: usize, const C: usize>(
    a: *const f32,
    b: Matrix<T>,
    c: *mut f32,
    stride: usize,
    terms: usize,
) {
    let size = row_size(terms);
    let mut sums = [[S::splat(0.0); C]; R];
    let whole = terms / S::LANES * S::LANES;
    let mut k = 0;
    while k < whole {
        let mut column = [S::splat(0.0); C];
        for (j, x) in column.iter_mut().enumerate() {
            *x = T::load::<S>(b.at(k, j));
            S::prefetch(
                b.data
                    .wrapping_offset(k as isize + (j + C) as isize * b.column),
            );
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            let x = S::load(a.add(i * size + k));
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = S::fma(x, column[j], *sum);
            }
        }
        k += S::LANES;
    }
    if k < terms {
        for j in 0..C {
            let column = load_part::<S, T>(b.at(k, j), terms - k, 0.0);
            for (i, sums) in sums.iter_mut().enumerate() {
                sums[j] = S::fma(S::load(a.add(i * size + k)), column, sums[j]);
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        for (j, sum) in sums.iter().enumerate() {
            c.add(i * stride + j).write(S::sum(*sum));
        }
    }
}

/// Adds `R` rows times `K` rows of `b` to `columns` sums, which begin with these if not `add`.
#[inline(always)]
unsafe fn sums<S: Simd, T: Element, const R: usize, const K: usize>(
    a: *const f32,
    size: usize,
    b: Matrix<T>,
    c: *mut f32,
    stride: usize,
    columns: usize,
    add: bool,
) {
    let mut factors = [[S::splat(0.0); R]; K];
    for (k, factors) in factors.iter_mut().enumerate() {
        for (i, factor) in factors.iter_mut().enumerate() {
            *factor = S::splat(*a.add(i * size + k));
        }
    }
    let whole = columns / S::LANES * S::LANES;
    let mut j = 0;
    while j < whole {
        let mut sums = [S::splat(0.0); R];
        if add {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = S::load(c.add(i * stride + j));
            }
        }
        for (k, factors) in factors.iter().enumerate() {
            let x = T::load::<S>(b.at(k, j));
            S::prefetch(
                b.data
                    .wrapping_offset((k + K) as isize * b.row + j as isize),
            );
            for (sum, factor) in sums.iter_mut().zip(factors) {
                *sum = S::fma(*factor, x, *sum);
            }
        }
        for (i, sum) in sums.iter().enumerate() {
            S::store(c.add(i * stride + j), *sum);
        }
        j += S::LANES;
    }
    if j < columns {
        let rest = columns - j;
        let mut sums = [S::splat(0.0); R];
        if add {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = load_part::<S, f32>(c.add(i * stride + j), rest, 0.0);
            }
        }
        for (k, factors) in factors.iter().enumerate() {
            let x = load_part::<S, T>(b.at(k, j), rest, 0.0);
            for (sum, factor) in sums.iter_mut().zip(factors) {
                *sum = S::fma(*factor, x, *sum);
            }
        }
        for (i, sum) in sums.iter().enumerate() {
            store_part::<S, f32>(c.add(i * stride + j), rest, *sum);
        }
    }
}
