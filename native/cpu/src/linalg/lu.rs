//! Factors L·U of a matrix whose rows are exchanged, the largest pivot of each column first: blocks of columns, each
//! factored in a copy that has columns in one piece, then the columns behind it, strip by strip.

use super::real::Real;
use super::tile::{self, Strip, Triangle};
use crate::gemm::Matrix;
use crate::pool;
use crate::simd::{dispatch, Level, Simd};

/// Columns of a block: a multiple of every strip's width.
pub const BLOCK: usize = 32;
/// Products of numbers from which a second thread pays.
pub const WORTH_SHARING: usize = 128 * 1024;

/// Room for at least `size` numbers, whatever they were before.
pub fn at_least<T: Real>(room: &mut Vec<T>, size: usize) -> *mut T {
    if room.len() < size {
        room.resize(size, T::ZERO);
    }
    room.as_mut_ptr()
}

/// A matrix of a kernel's own, in rows of `stride` numbers, as [`tile::stride`] has them.
#[derive(Clone, Copy)]
pub struct Own<T> {
    pub data: *mut T,
    pub stride: usize,
    pub rows: usize,
    pub columns: usize,
}

// SAFETY: the parts that threads write do not overlap.
unsafe impl<T> Sync for Own<T> {}

impl<T> Own<T> {
    pub unsafe fn at(&self, i: usize, j: usize) -> *mut T {
        self.data.add(i * self.stride + j)
    }

    /// All rows from row `i` on, of the strip that begins with a column.
    pub unsafe fn strip(&self, i: usize, column: usize) -> Strip<T> {
        Strip {
            data: self.at(i, column),
            step: self.stride as isize,
        }
    }

    pub fn matrix(&self) -> Matrix<T> {
        Matrix {
            data: self.data,
            row: self.stride as isize,
            column: 1,
        }
    }
}

/// Columns of a block in one piece each, `stride` numbers apart.
#[derive(Clone, Copy)]
struct Panel<T> {
    data: *mut T,
    stride: usize,
    rows: usize,
    columns: usize,
}

/// Factors a panel. `exchanged` gets for each column the row that its row changed places with.
#[inline(always)]
unsafe fn panel_body<S: Simd, T: Real>(panel: &Panel<T>, exchanged: &mut [usize]) {
    let &Panel {
        data,
        stride,
        rows,
        columns,
    } = panel;
    let width = T::width::<S>();
    // The first rows of a column, which earlier columns change one after another, and room for whole rows of vectors.
    let mut top = [T::ZERO; BLOCK + 64];
    for (j, exchange) in exchanged.iter_mut().enumerate() {
        let column = data.add(j * stride);
        let first = columns.min(rows);
        std::ptr::copy_nonoverlapping(column, top.as_mut_ptr(), first);
        for p in 0..j.min(rows) {
            let factor = -top[p];
            let before = data.add(p * stride);
            for i in (p + 1..first).step_by(width) {
                let to = top.as_mut_ptr().add(i);
                let x = T::load::<S>(to);
                T::store::<S>(to, T::fma::<S>(factor, T::load::<S>(before.add(i)), x));
            }
        }
        std::ptr::copy_nonoverlapping(top.as_ptr(), column, first);
        let mut i = first;
        while i + 2 * width <= rows + width {
            subtract_columns::<S, T, 2>(panel, column, i, j, &top);
            i += 2 * width;
        }
        while i < rows {
            subtract_columns::<S, T, 1>(panel, column, i, j, &top);
            i += width;
        }
        if j >= rows {
            continue;
        }
        let pivot = j + T::largest_place::<S>(column.add(j), rows - j);
        *exchange = pivot;
        if pivot != j {
            for other in 0..columns {
                let column = data.add(other * stride);
                std::ptr::swap(column.add(j), column.add(pivot));
            }
        }
        let x = *column.add(j);
        if x == T::ZERO {
            continue;
        }
        // The reciprocal of a smaller number may be infinite.
        let is_small = x.abs() < T::SMALLEST;
        for i in (j + 1..rows).step_by(width) {
            let row = T::load::<S>(column.add(i));
            let row = match is_small {
                true => T::row_div::<S>(row, x),
                false => T::row_mul::<S>(row, T::ONE / x),
            };
            T::store::<S>(column.add(i), row);
        }
    }
}

/// `N` rows of vectors of a column, less what the `j` columns before it have there times their numbers in `top`.
#[inline(always)]
unsafe fn subtract_columns<S: Simd, T: Real, const N: usize>(
    panel: &Panel<T>,
    column: *mut T,
    i: usize,
    j: usize,
    top: &[T],
) {
    let width = T::width::<S>();
    let mut sums = [T::splat::<S>(T::ZERO); N];
    for p in 0..j {
        let before = panel.data.add(p * panel.stride + i);
        for (n, sum) in sums.iter_mut().enumerate() {
            *sum = T::fma::<S>(
                *top.get_unchecked(p),
                T::load::<S>(before.add(n * width)),
                *sum,
            );
        }
    }
    for (n, sum) in sums.iter().enumerate() {
        let to = column.add(i + n * width);
        T::store::<S>(to, T::row_sub::<S>(T::load::<S>(to), *sum));
    }
}

dispatch! {
    fn factor_panel<T: Real>(panel: &Panel<T>, exchanged: &mut [usize]) = panel_body
}

#[inline(always)]
unsafe fn exchange_body<S: Simd, T: Real>(strip: Strip<T>, exchanged: &[usize]) {
    for (i, other) in exchanged.iter().enumerate() {
        if i == *other {
            continue;
        }
        let (a, b) = (strip.row(i), strip.row(*other));
        let (x, y) = (T::load::<S>(a), T::load::<S>(b));
        T::store::<S>(a, y);
        T::store::<S>(b, x);
    }
}

dispatch! {
    fn exchange<T: Real>(strip: Strip<T>, exchanged: &[usize]) = exchange_body
}

/// The order that rows came to, and whether it takes an odd number of exchanges.
#[derive(Default)]
pub struct Order {
    pub rows: Vec<usize>,
    pub is_odd: bool,
}

/// Factors a matrix in place: L below the diagonal, without the ones on it, and U. Where `keeps_lower` is false, L's
/// rows are left where they were when their block was factored. `room` is for a block of columns.
///
/// # Safety
/// The matrix has room as [`tile::stride`] says, and the machine the level's instructions.
pub unsafe fn factor<T: Real>(
    level: Level,
    a: Own<T>,
    keeps_lower: bool,
    order: &mut Order,
    room: &mut Vec<T>,
) {
    let width = tile::width::<T>(level);
    order.rows.clear();
    order.rows.extend(0..a.rows);
    order.is_odd = false;
    let stride = tile::stride::<T>(a.rows + width, width);
    let room = at_least(room, stride * BLOCK.min(a.columns));
    let least = a.rows.min(a.columns);
    for begin in (0..least).step_by(BLOCK) {
        let panel = Panel {
            data: room,
            stride,
            rows: a.rows - begin,
            columns: BLOCK.min(least - begin),
        };
        let count = panel.columns;
        let corner = a.matrix().from(begin, begin).turned();
        tile::load(level, corner, (count, panel.rows), panel.data, stride);
        let mut exchanged = [0; BLOCK];
        let exchanged = &mut exchanged[..count];
        factor_panel(level, &panel, exchanged);
        let columns = Matrix {
            data: panel.data.cast_const(),
            row: stride as isize,
            column: 1,
        };
        let sizes = (panel.rows, count);
        tile::copy(level, columns.turned(), sizes, a.at(begin, begin), a.stride);
        for (i, other) in exchanged.iter().enumerate() {
            if i != *other {
                order.rows.swap(begin + i, begin + other);
                order.is_odd = !order.is_odd;
            }
        }
        let behind = (a.columns - begin - count).div_ceil(width);
        let before = if keeps_lower { begin / width } else { 0 };
        let exchanged = &*exchanged;
        let work = behind * width * count * (a.rows - begin);
        pool::parallel(behind + before, work >= WORTH_SHARING, &|part| {
            let is_behind = part < behind;
            let column = match is_behind {
                true => begin + count + part * width,
                false => (part - behind) * width,
            };
            // SAFETY: a strip of this part's own.
            unsafe {
                let strip = a.strip(begin, column);
                exchange(level, strip, exchanged);
                if is_behind {
                    let top = Triangle {
                        a: columns.turned(),
                        size: count,
                        has_ones: true,
                    };
                    tile::substitute(level, &top, strip, 0, 1);
                    let rows = a.rows - begin - count;
                    let below = top.a.from(count, 0);
                    tile::subtract(level, below, strip, strip.from(count), rows, count);
                }
            }
        });
    }
}
