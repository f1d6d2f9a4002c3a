//! Tiles of products that stay in registers, and what is made of them: updates of a matrix, and substitution.

use super::real::Real;
use crate::gemm::Matrix;
use crate::simd::{dispatch, Level, Simd};

/// Rows of numbers beside each other, as wide as [`Real::width`] says, one every `step` numbers.
#[derive(Clone, Copy)]
pub struct Strip<T> {
    pub data: *mut T,
    pub step: isize,
}

impl<T> Strip<T> {
    #[inline(always)]
    pub unsafe fn row(&self, i: usize) -> *mut T {
        self.data.offset(i as isize * self.step)
    }

    #[inline(always)]
    pub unsafe fn from(&self, i: usize) -> Strip<T> {
        Strip {
            data: self.row(i),
            step: self.step,
        }
    }
}

/// `R` rows of a strip, less what as many rows of `a` times `terms` rows of another come to.
#[inline(always)]
unsafe fn subtract_rows<S: Simd, T: Real, const R: usize>(
    a: Matrix<T>,
    b: Strip<T>,
    c: Strip<T>,
    terms: usize,
) {
    let mut sums = [T::splat::<S>(T::ZERO); R];
    let (mut from, mut row) = (a.data, b.data.cast_const());
    for _ in 0..terms {
        let x = T::load::<S>(row);
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = T::fma::<S>(*from.offset(i as isize * a.row), x, *sum);
        }
        from = from.offset(a.column);
        row = row.offset(b.step);
    }
    for (i, sum) in sums.iter().enumerate() {
        let to = c.row(i);
        T::store::<S>(to, T::row_sub::<S>(T::load::<S>(to), *sum));
    }
}

/// `c` -= a·b: `rows` × `terms` times `terms` rows of a strip.
#[inline(always)]
unsafe fn subtract_body<S: Simd, T: Real>(
    a: Matrix<T>,
    b: Strip<T>,
    c: Strip<T>,
    rows: usize,
    terms: usize,
) {
    let mut i = 0;
    while i < rows {
        let (a, c) = (a.from(i, 0), c.from(i));
        let left = rows - i;
        if const { S::LANES == 16 } && left >= 12 {
            subtract_rows::<S, T, 12>(a, b, c, terms);
            i += 12;
        } else if left >= 6 {
            subtract_rows::<S, T, 6>(a, b, c, terms);
            i += 6;
        } else if left >= 3 {
            subtract_rows::<S, T, 3>(a, b, c, terms);
            i += 3;
        } else {
            subtract_rows::<S, T, 1>(a, b, c, terms);
            i += 1;
        }
    }
}

dispatch! {
    /// `c` -= a·b: `rows` × `terms` times `terms` rows of a strip.
    pub fn subtract<T: Real>(a: Matrix<T>, b: Strip<T>, c: Strip<T>, rows: usize, terms: usize) = subtract_body
}

/// A triangle that is solved for: below its diagonal, and with it or with ones in its place.
#[derive(Clone, Copy)]
pub struct Triangle<T> {
    pub a: Matrix<T>,
    pub size: usize,
    pub has_ones: bool,
}

/// Rows of a triangle whose products with rows before them are subtracted at a time: so many rows of some strips stay
/// in the second cache.
const BLOCK: usize = 384;

/// Rows that are solved for at a time, after what those before them come to is subtracted.
const ROWS: usize = 12;

/// Solves for some rows of a strip.
#[inline(always)]
unsafe fn solve_rows_body<S: Simd, T: Real>(of: &Triangle<T>, x: Strip<T>, rows: usize) {
    for i in 0..rows {
        let mut sum = T::splat::<S>(T::ZERO);
        for k in 0..i {
            sum = T::fma::<S>(*of.a.at(i, k), T::load::<S>(x.row(k)), sum);
        }
        let to = x.row(i);
        let mut row = T::row_sub::<S>(T::load::<S>(to), sum);
        if !of.has_ones {
            row = T::row_div::<S>(row, *of.a.at(i, i));
        }
        T::store::<S>(to, row);
    }
}

dispatch! {
    fn solve_rows<T: Real>(of: &Triangle<T>, x: Strip<T>, rows: usize) = solve_rows_body
}

/// Solves a triangular system for `strips` strips, each `distance` numbers from the one before it, in place.
pub unsafe fn substitute<T: Real>(
    level: Level,
    of: &Triangle<T>,
    x: Strip<T>,
    distance: isize,
    strips: usize,
) {
    let strip = |number: usize| Strip {
        data: x.data.offset(number as isize * distance),
        step: x.step,
    };
    for begin in (0..of.size).step_by(BLOCK) {
        let rows = BLOCK.min(of.size - begin);
        for i in (0..rows).step_by(ROWS) {
            let first = begin + i;
            let count = ROWS.min(rows - i);
            for before in (0..begin).step_by(BLOCK) {
                let a = of.a.from(first, before);
                for number in 0..strips {
                    let x = strip(number);
                    subtract(level, a, x.from(before), x.from(first), count, BLOCK);
                }
            }
        }
        for i in (0..rows).step_by(ROWS) {
            let first = begin + i;
            let count = ROWS.min(rows - i);
            let diagonal = Triangle {
                a: of.a.from(first, first),
                ..*of
            };
            for number in 0..strips {
                let x = strip(number);
                let a = of.a.from(first, begin);
                subtract(level, a, x.from(begin), x.from(first), count, i);
                solve_rows(level, &diagonal, x.from(first), count);
            }
        }
    }
}

/// A matrix to rows of `stride` numbers.
#[inline(always)]
unsafe fn copy_body<S: Simd, T: Real>(
    from: Matrix<T>,
    (rows, columns): (usize, usize),
    to: *mut T,
    stride: usize,
) {
    let side = T::square::<S>();
    let turned = match from.row == 1 && from.column != 1 {
        true => (rows / side * side, columns / side * side),
        false => (0, 0),
    };
    for i in (0..turned.0).step_by(side) {
        for j in (0..turned.1).step_by(side) {
            T::turn::<S>(from.at(i, j), from.column, to.add(i * stride + j), stride);
        }
    }
    for i in 0..rows {
        let to = to.add(i * stride);
        if from.column == 1 {
            std::ptr::copy_nonoverlapping(from.at(i, 0), to, columns);
            continue;
        }
        let first = if i < turned.0 { turned.1 } else { 0 };
        for j in first..columns {
            *to.add(j) = *from.at(i, j);
        }
    }
}

dispatch! {
    /// A matrix to rows of `stride` numbers.
    pub fn copy<T: Real>(from: Matrix<T>, sizes: (usize, usize), to: *mut T, stride: usize) = copy_body
}

/// A matrix to rows of `stride` numbers, zeros behind each of them.
pub unsafe fn load<T: Real>(
    level: Level,
    from: Matrix<T>,
    sizes: (usize, usize),
    to: *mut T,
    stride: usize,
) {
    copy(level, from, sizes, to, stride);
    for i in 0..sizes.0 {
        let behind = to.add(i * stride + sizes.1);
        std::slice::from_raw_parts_mut(behind, stride - sizes.1).fill(T::ZERO);
    }
}

#[inline(always)]
unsafe fn width_body<S: Simd, T: Real>(to: &mut usize) {
    *to = T::width::<S>();
}

dispatch! {
    fn write_width<T: Real>(to: &mut usize) = width_body
}

/// Numbers of a row of a strip.
pub unsafe fn width<T: Real>(level: Level) -> usize {
    let mut width = 0;
    write_width::<T>(level, &mut width);
    width
}

/// From one row to the next of a matrix of a kernel's own, behind which a row of a strip has room: an odd number of
/// lines of the cache, so that rows do not compete for the same ones.
pub fn stride<T>(columns: usize, width: usize) -> usize {
    let line = 64 / size_of::<T>();
    ((columns + width).div_ceil(line) | 1) * line
}
