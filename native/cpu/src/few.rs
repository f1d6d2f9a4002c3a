//! Matrix products of few rows, where reading the other operand is most of the work: it is read once, where it lies,
//! whatever its type, and never rearranged. Rows of `a` are f32 with zeros up to whole vectors behind them. Called by
//! gemm.rs, which chooses between this and packed panels, and by attention.rs.

use super::element::Element;
use super::gemm::{self, Matrix};
use super::simd::dispatch;
use super::simd::{load_part, store_part, Simd};

/// Rows of `a` that are multiplied with one reading of a vector of `b`.
const ROWS: usize = 4;
/// Columns that are summed side by side where `b` lies column by column.
const COLUMNS: usize = 4;
/// Terms that are added in one pass over the sums where `b` lies row by row: as many streams as the machine prefetches
/// well.
const TERMS: usize = 8;
/// Columns of such a pass: the sums then stay in the first cache.
const WIDTH: usize = 1024;
/// Terms that are added up in f32, row by row and in lanes, where there are more than twice as many; what these come
/// to is added up in f64.
const DEPTH: usize = 256;
const DEPTH_OF_LANES: usize = 1024;

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

/// Sums in f64 that [`multiply`] needs room for.
pub fn wide_size(rows: usize, terms: usize, columns: usize) -> usize {
    match terms > 2 * DEPTH {
        true => rows * columns.min(WIDTH).next_multiple_of(16),
        false => 0,
    }
}

/// `rows` × `terms` of `a` times `terms` × `columns` of `b`, which [`fits`], to `c` in rows of `stride`. `wide` has
/// room for [`wide_size`] numbers.
#[inline(always)]
pub unsafe fn multiply<S: Simd, T: Element>(
    a: *const f32,
    b: Matrix<T>,
    c: *mut f32,
    stride: usize,
    (rows, terms, columns): (usize, usize, usize),
    wide: *mut f64,
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
    let is_deep = terms > 2 * DEPTH;
    let depth = if is_deep { DEPTH } else { terms };
    let mut j = 0;
    while j < columns {
        let width = WIDTH.min(columns - j);
        let step = width.next_multiple_of(16);
        for start in (0..terms).step_by(depth.max(1)) {
            let end = terms.min(start + depth);
            strip::<S, T>(a, size, b, c, stride, (rows, width), (j, start, end));
            for i in 0..if is_deep { rows } else { 0 } {
                add_row::<S>(c.add(i * stride + j), wide.add(i * step), width, start > 0);
            }
        }
        for i in 0..if is_deep { rows } else { 0 } {
            narrow_row::<S>(wide.add(i * step), c.add(i * stride + j), width);
        }
        j += width;
    }
}

/// Adds a row to sums in f64, or begins these with it.
#[inline(always)]
unsafe fn add_row<S: Simd>(from: *const f32, to: *mut f64, count: usize, add: bool) {
    let whole = count / S::LANES * S::LANES;
    gemm::add_wide::<S>(from, to, whole, add);
    if whole < count {
        let mut rest = [0f32; 16];
        S::store(
            rest.as_mut_ptr(),
            load_part::<S, f32>(from.add(whole), count - whole, 0.0),
        );
        gemm::add_wide::<S>(rest.as_ptr(), to.add(whole), S::LANES, add);
    }
}

#[inline(always)]
unsafe fn narrow_row<S: Simd>(from: *const f64, to: *mut f32, count: usize) {
    let whole = count / S::LANES * S::LANES;
    gemm::narrow_wide::<S>(from, to, whole);
    if whole < count {
        let rest = S::narrow(S::wide_load(from.add(whole)));
        store_part::<S, f32>(to.add(whole), count - whole, rest);
    }
}

/// Terms `start` to `end` of the products with `width` columns from `j` on, which lie row by row.
#[inline(always)]
unsafe fn strip<S: Simd, T: Element>(
    a: *const f32,
    size: usize,
    b: Matrix<T>,
    c: *mut f32,
    stride: usize,
    (rows, width): (usize, usize),
    (j, start, end): (usize, usize, usize),
) {
    let mut k = start;
    while k < end {
        let deep = TERMS.min(end - k);
        let mut i = 0;
        while i < rows {
            let count = ROWS.min(rows - i);
            let (a, c) = (a.add(i * size + k), c.add(i * stride + j));
            let (b, add) = (b.from(k, j), k > start);
            match (count, deep) {
                (4, TERMS) => sums::<S, T, 4, TERMS>(a, size, b, c, stride, width, add),
                (3, TERMS) => sums::<S, T, 3, TERMS>(a, size, b, c, stride, width, add),
                (2, TERMS) => sums::<S, T, 2, TERMS>(a, size, b, c, stride, width, add),
                (_, TERMS) => sums::<S, T, 1, TERMS>(a, size, b, c, stride, width, add),
                _ => {
                    for i in 0..count {
                        let (a, c) = (a.add(i * size), c.add(i * stride));
                        for t in 0..deep {
                            let (a, b) = (a.add(t), b.from(t, 0));
                            sums::<S, T, 1, 1>(a, size, b, c, stride, width, add || t > 0);
                        }
                    }
                }
            }
            i += count;
        }
        k += deep;
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
    let mut totals = [[0f64; C]; R];
    let whole = terms / S::LANES * S::LANES;
    let is_deep = terms > 2 * DEPTH_OF_LANES;
    let mut k = 0;
    while k < whole {
        let end = if is_deep {
            whole.min(k + DEPTH_OF_LANES)
        } else {
            whole
        };
        while k < end {
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
        if is_deep {
            for (sums, totals) in sums.iter_mut().zip(&mut totals) {
                for (sum, total) in sums.iter_mut().zip(totals) {
                    *total += f64::from(S::sum(*sum));
                    *sum = S::splat(0.0);
                }
            }
        }
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
            let mut sum = S::sum(*sum);
            if is_deep {
                sum = (totals[i][j] + f64::from(sum)) as f32;
            }
            c.add(i * stride + j).write(sum);
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
