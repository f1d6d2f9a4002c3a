//! Panels of matrix products: what they hold of the operands, and the tile of the result that is kept in registers.
//!
//! A panel has some rows of the left operand, or columns of the right one, in *cells* of 32 bits: for each cell of a
//! row those of all rows beside each other. What a cell holds is a [`Cells`]: one term as f32 ([`Singles`]), or two
//! terms as bf16 ([`Pairs`]). All kinds are blocked, packed and stored by the same code; a kind says how cells are read
//! and how vectors of them are multiplied.

use super::element::Element;
use super::simd::{store_part, Simd};

/// Rows of a tile, at most; with AVX-512 12 × 32 numbers fill 24 of the 32 registers.
pub const ROWS: usize = 12;
/// Vectors of a tile's row.
pub const VECTORS: usize = 2;
/// Cells of a block: a panel of `a` then stays in the first cache.
pub const CELLS: usize = 384;

/// Bytes that a cache keeps together.
const LINE: usize = 64;
/// Cells of a tile between which memory is asked for ([`Ahead`]): a processor has few requests under way.
const STRETCH: usize = 64;

/// An operand: element (i, j) lies `i·row + j·column` elements from `data`.
#[derive(Clone, Copy)]
pub struct Matrix<T> {
    pub data: *const T,
    pub row: isize,
    pub column: isize,
}

impl<T> Matrix<T> {
    /// For an operand that is not there.
    pub const NONE: Matrix<T> = Matrix {
        data: std::ptr::null(),
        row: 0,
        column: 0,
    };

    /// # Safety
    /// The element is in the matrix.
    #[inline(always)]
    pub unsafe fn at(&self, i: usize, j: usize) -> *const T {
        self.data
            .offset(i as isize * self.row + j as isize * self.column)
    }

    /// Rows for columns.
    pub fn turned(&self) -> Matrix<T> {
        Matrix {
            data: self.data,
            row: self.column,
            column: self.row,
        }
    }

    /// The part that begins at (i, j).
    ///
    /// # Safety
    /// It is in the matrix.
    #[inline(always)]
    pub unsafe fn from(&self, i: usize, j: usize) -> Matrix<T> {
        Matrix {
            data: self.at(i, j),
            ..*self
        }
    }
}

// SAFETY: operands are only read.
unsafe impl<T> Sync for Matrix<T> {}

/// What 32 bits of a panel hold, and how vectors of them are multiplied and added up. A panel's cells and a tile's sums
/// are declared as f32, and are moved as bits.
pub trait Cells<S: Simd>: 'static {
    /// Terms of a cell.
    const TERMS: usize;
    /// Each cell of `a` times the one of `b`, all their terms, added to `sum`.
    unsafe fn dot(a: S::V, b: S::V, sum: S::V) -> S::V;
    /// The sum of sums.
    unsafe fn add(a: S::V, b: S::V) -> S::V;
}

/// How a kind's cells are read from operands of `T`.
pub trait CellsOf<S: Simd, T>: Cells<S> {
    /// A cell of `count` terms, at most [`Cells::TERMS`], which lie `step` elements apart; zeros behind them.
    unsafe fn one(from: *const T, step: isize, count: usize) -> f32;
    /// `S::LANES` cells of a row: all their terms lie beside each other.
    unsafe fn along(from: *const T) -> S::V;
    /// A cell each of `S::LANES` rows that lie beside each other, whose terms lie `step` elements apart.
    unsafe fn across(from: *const T, step: isize) -> S::V;
}

/// A term as f32, of any type.
pub struct Singles;

impl<S: Simd> Cells<S> for Singles {
    const TERMS: usize = 1;

    #[inline(always)]
    unsafe fn dot(a: S::V, b: S::V, sum: S::V) -> S::V {
        S::fma(a, b, sum)
    }

    #[inline(always)]
    unsafe fn add(a: S::V, b: S::V) -> S::V {
        S::add(a, b)
    }
}

impl<S: Simd, T: Element> CellsOf<S, T> for Singles {
    #[inline(always)]
    unsafe fn one(from: *const T, _step: isize, _count: usize) -> f32 {
        from.read().widen()
    }

    #[inline(always)]
    unsafe fn along(from: *const T) -> S::V {
        T::load::<S>(from)
    }

    #[inline(always)]
    unsafe fn across(from: *const T, _step: isize) -> S::V {
        T::load::<S>(from)
    }
}

/// Two terms as bf16, the first in the lower half, added up in f32 by VDPBF16PS of AVX-512 BF16. Products of bf16 are
/// exact in f32, so sums differ from those of [`Singles`] by rounding alone: of each pair of terms one of the two is
/// added first. Subnormal operands and sums count as zero, whatever the thread's rounding mode says.
#[cfg(target_arch = "x86_64")]
pub struct Pairs;

#[cfg(target_arch = "x86_64")]
mod pairs {
    use super::{Cells, CellsOf, Pairs};
    use crate::simd::Avx512;
    use half::bf16;
    use std::arch::x86_64::*;
    use std::mem::transmute;

    // The machine has AVX-512 BF16 where these functions are called.
    impl Cells<Avx512> for Pairs {
        const TERMS: usize = 2;

        #[inline(always)]
        unsafe fn dot(a: __m512, b: __m512, sum: __m512) -> __m512 {
            _mm512_dpbf16_ps(
                sum,
                transmute::<__m512, __m512bh>(a),
                transmute::<__m512, __m512bh>(b),
            )
        }

        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            _mm512_add_ps(a, b)
        }
    }

    impl CellsOf<Avx512, bf16> for Pairs {
        #[inline(always)]
        unsafe fn one(from: *const bf16, step: isize, count: usize) -> f32 {
            let first = u32::from(from.read().to_bits());
            let second = match count {
                1 => 0,
                _ => u32::from(from.offset(step).read().to_bits()),
            };
            f32::from_bits(first | second << 16)
        }

        #[inline(always)]
        unsafe fn along(from: *const bf16) -> __m512 {
            _mm512_loadu_ps(from.cast())
        }

        #[inline(always)]
        unsafe fn across(from: *const bf16, step: isize) -> __m512 {
            let first = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            let second = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.offset(step).cast()));
            _mm512_castsi512_ps(_mm512_or_si512(first, _mm512_slli_epi32(second, 16)))
        }
    }
}

/// How tall the tiles are: fewer rows where there are fewer registers.
#[inline(always)]
pub fn tile_rows(lanes: usize) -> usize {
    if lanes == 16 {
        ROWS
    } else {
        ROWS / 2
    }
}

/// Room that `count` rows or columns, in panels of `width`, take.
pub fn padded(count: usize, width: usize) -> usize {
    count.div_ceil(width) * width
}

/// Cells of each block of a row of `cells`, as even as can be.
pub fn block_cells(cells: usize) -> usize {
    cells.div_ceil(cells.div_ceil(CELLS).max(1)).max(1)
}

/// `a`'s rows in panels. The last panel may have fewer rows.
#[inline(always)]
pub unsafe fn pack_rows<S: Simd, C: CellsOf<S, T>, T: Element>(
    a: Matrix<T>,
    rows: usize,
    terms: usize,
    to: *mut f32,
) {
    let height = tile_rows(S::LANES);
    let mut start = 0;
    let mut to = to;
    while start < rows {
        let count = height.min(rows - start);
        let panel = a.from(start, 0);
        if count == ROWS {
            pack_panel::<S, C, T, ROWS>(panel, ROWS, terms, to);
        } else if count == ROWS / 2 {
            pack_panel::<S, C, T, { ROWS / 2 }>(panel, ROWS / 2, terms, to);
        } else {
            pack_panel::<S, C, T, 0>(panel, count, terms, to);
        }
        to = to.add(count * terms.div_ceil(C::TERMS));
        start += count;
    }
}

/// With `N` other than 0 the count is known when this is compiled.
#[inline(always)]
unsafe fn pack_panel<S: Simd, C: CellsOf<S, T>, T: Element, const N: usize>(
    a: Matrix<T>,
    count: usize,
    terms: usize,
    to: *mut f32,
) {
    let count = if N == 0 { count } else { N };
    let cells = terms.div_ceil(C::TERMS);
    // Rows that lie in one piece are turned a square of vectors at a time; what a vector has too much, the next one
    // overwrites.
    let turned = if count <= S::LANES && a.column == 1 {
        terms / C::TERMS / S::LANES * S::LANES
    } else {
        0
    };
    for k in (0..turned).step_by(S::LANES) {
        let mut square = [S::splat(0.0); 16];
        for (i, x) in square.iter_mut().enumerate().take(count) {
            *x = C::along(a.at(i, k * C::TERMS));
            // The next panel's, which may come from another core's cache.
            let next = (i + count) as isize * a.row + (k * C::TERMS) as isize;
            S::prefetch(a.data.wrapping_offset(next));
        }
        S::turn(&mut square);
        for (i, x) in square.iter().enumerate().take(S::LANES) {
            let to = to.add((k + i) * count);
            if (k + i) * count + S::LANES <= cells * count {
                S::store(to, *x);
            } else {
                store_part::<S, f32>(to, count, *x);
            }
        }
    }
    for k in turned..cells {
        let there = C::TERMS.min(terms - k * C::TERMS);
        for i in 0..count {
            let cell = C::one(a.at(i, k * C::TERMS), a.column, there);
            to.add(k * count + i).write(cell);
        }
    }
}

/// `b`'s columns in panels, zeros beyond the last.
#[inline(always)]
pub unsafe fn pack_columns<S: Simd, C: CellsOf<S, T>, T: Element>(
    b: Matrix<T>,
    terms: usize,
    columns: usize,
    to: *mut f32,
) {
    let width = VECTORS * S::LANES;
    // Cells of which all terms are there, and all cells.
    let (whole, cells) = (terms / C::TERMS, terms.div_ceil(C::TERMS));
    let mut start = 0;
    let mut to = to;
    while start < columns {
        let count = width.min(columns - start);
        let panel = b.from(0, start);
        let mut done = 0;
        if count == width && b.column == 1 {
            for k in 0..whole {
                for v in 0..VECTORS {
                    let x = C::across(panel.at(k * C::TERMS, v * S::LANES), b.row);
                    S::store(to.add(k * width + v * S::LANES), x);
                }
            }
            done = whole;
        } else if count == width && b.row == 1 {
            // Columns that lie in one piece are turned a square of vectors at a time.
            done = whole / S::LANES * S::LANES;
            for k in (0..done).step_by(S::LANES) {
                for v in 0..VECTORS {
                    let mut square = [S::splat(0.0); 16];
                    for (j, x) in square.iter_mut().enumerate().take(S::LANES) {
                        let j = v * S::LANES + j;
                        *x = C::along(panel.at(k * C::TERMS, j));
                        let next = (k * C::TERMS) as isize + (j + width) as isize * b.column;
                        S::prefetch(panel.data.wrapping_offset(next));
                    }
                    S::turn(&mut square);
                    for (i, x) in square.iter().enumerate().take(S::LANES) {
                        S::store(to.add((k + i) * width + v * S::LANES), *x);
                    }
                }
            }
        }
        for k in done..cells {
            let there = C::TERMS.min(terms - k * C::TERMS);
            for j in 0..count {
                let cell = C::one(panel.at(k * C::TERMS, j), b.row, there);
                to.add(k * width + j).write(cell);
            }
            for j in count..width {
                to.add(k * width + j).write(0.0);
            }
        }
        to = to.add(width * cells);
        start += count;
    }
}

/// One tile: `R` rows of a panel of `a` with a panel of `b`, to `c` or added to it.
#[inline(always)]
unsafe fn tile<S: Simd, C: Cells<S>, const R: usize>(
    cells: usize,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    stride: usize,
    add: bool,
    ahead: &mut Ahead,
) {
    let mut sums = [[S::splat(0.0); VECTORS]; R];
    let (mut a, mut b) = (a, b);
    let mut left = cells;
    while left > 0 {
        let some = left.min(STRETCH);
        ahead.ask::<S>();
        for _ in 0..some {
            let mut row = [S::splat(0.0); VECTORS];
            for (v, x) in row.iter_mut().enumerate() {
                *x = S::load(b.add(v * S::LANES));
            }
            for (i, sum) in sums.iter_mut().enumerate() {
                let x = S::splat(*a.add(i));
                for (v, sum) in sum.iter_mut().enumerate() {
                    *sum = C::dot(x, row[v], *sum);
                }
            }
            a = a.add(R);
            b = b.add(VECTORS * S::LANES);
        }
        left -= some;
    }
    for (i, sum) in sums.iter().enumerate() {
        for (v, sum) in sum.iter().enumerate() {
            let to = c.add(i * stride + v * S::LANES);
            S::store(to, if add { C::add(S::load(to), *sum) } else { *sum });
        }
    }
}

/// Rows or columns in panels of so many cells, of which those from `first` on are meant.
#[derive(Clone, Copy)]
pub struct Packed {
    pub data: *const f32,
    pub cells: usize,
    pub first: usize,
}

impl Packed {
    /// All cells.
    pub fn whole(data: *const f32, cells: usize) -> Packed {
        Packed {
            data,
            cells,
            first: 0,
        }
    }

    /// The panels of `width` from row or column `number` on.
    #[inline(always)]
    pub unsafe fn panel(&self, number: usize, width: usize) -> *const f32 {
        self.data.add(number * self.cells + self.first * width)
    }
}

/// Memory that is read after a product, in pieces of one size. Asked for while the product's tiles are computed, it is
/// on its way when it is needed.
pub struct Ahead {
    /// The piece that is asked for, and how far it is.
    piece: *const u8,
    place: usize,
    /// Bytes of a piece, and to the next one.
    size: usize,
    step: isize,
    /// Lines that are left, and those of a stretch of cells.
    lines: usize,
    share: usize,
}

impl Ahead {
    /// Nothing.
    pub const NONE: Ahead = Ahead {
        piece: std::ptr::null(),
        place: 0,
        size: 0,
        step: 0,
        lines: 0,
        share: 0,
    };

    /// `terms` rows and `columns` columns of a right operand, while `rows` rows are multiplied with as many columns, of
    /// `cells` each; nothing of an operand that has neither rows nor columns in one piece.
    pub fn of<S: Simd, T>(
        b: Matrix<T>,
        (terms, columns): (usize, usize),
        (rows, cells): (usize, usize),
    ) -> Ahead {
        let bytes = std::mem::size_of::<T>();
        let (step, pieces, length) = match (b.row, b.column) {
            (1, step) => (step, columns, terms),
            (step, 1) => (step, terms, columns),
            _ => return Ahead::NONE,
        };
        let tiles = rows.div_ceil(tile_rows(S::LANES)) * columns.div_ceil(VECTORS * S::LANES);
        let stretches = tiles * cells.div_ceil(STRETCH);
        let lines = pieces * (length * bytes).div_ceil(LINE);
        Ahead {
            piece: b.data.cast(),
            place: 0,
            size: length * bytes,
            step: step * bytes as isize,
            lines,
            share: lines.div_ceil(stretches.max(1)),
        }
    }

    /// Asks for the share of a stretch.
    #[inline(always)]
    unsafe fn ask<S: Simd>(&mut self) {
        let count = self.share.min(self.lines);
        self.lines -= count;
        for _ in 0..count {
            S::prefetch_second(self.piece.wrapping_add(self.place));
            self.place += LINE;
            if self.place >= self.size {
                self.place = 0;
                self.piece = self.piece.wrapping_offset(self.step);
            }
        }
    }
}

/// Packed rows times packed columns, to `c` in rows of `stride`, or added to it.
#[inline(always)]
pub unsafe fn multiply<S: Simd, C: Cells<S>>(
    a: Packed,
    b: Packed,
    c: *mut f32,
    stride: usize,
    sizes: (usize, usize, usize),
    add: bool,
) {
    let mut nothing = Ahead::NONE;
    multiply_ahead::<S, C>(a, b, c, stride, sizes, add, &mut nothing)
}

/// [`multiply`] while memory is asked for.
#[inline(always)]
pub unsafe fn multiply_ahead<S: Simd, C: Cells<S>>(
    a: Packed,
    b: Packed,
    c: *mut f32,
    stride: usize,
    (rows, cells, columns): (usize, usize, usize),
    add: bool,
    ahead: &mut Ahead,
) {
    let (height, width) = (tile_rows(S::LANES), VECTORS * S::LANES);
    let mut edge = [0f32; ROWS * VECTORS * 16];
    let mut i = 0;
    while i < rows {
        let count = height.min(rows - i);
        let panel = a.panel(i, count);
        let mut j = 0;
        while j < columns {
            let b = b.panel(j, width);
            let whole = j + width <= columns;
            let (to, step, more) = if whole {
                (c.add(i * stride + j), stride, add)
            } else {
                // Sums of these columns, and whatever is beyond them.
                let there = columns - j;
                for row in 0..if add { count } else { 0 } {
                    let from = c.add((i + row) * stride + j);
                    let to = edge.as_mut_ptr().add(row * width);
                    std::ptr::copy_nonoverlapping(from, to, there);
                }
                (edge.as_mut_ptr(), width, add)
            };
            match count {
                1 => tile::<S, C, 1>(cells, panel, b, to, step, more, ahead),
                2 => tile::<S, C, 2>(cells, panel, b, to, step, more, ahead),
                3 => tile::<S, C, 3>(cells, panel, b, to, step, more, ahead),
                4 => tile::<S, C, 4>(cells, panel, b, to, step, more, ahead),
                5 => tile::<S, C, 5>(cells, panel, b, to, step, more, ahead),
                6 => tile::<S, C, 6>(cells, panel, b, to, step, more, ahead),
                7 => tile::<S, C, 7>(cells, panel, b, to, step, more, ahead),
                8 => tile::<S, C, 8>(cells, panel, b, to, step, more, ahead),
                9 => tile::<S, C, 9>(cells, panel, b, to, step, more, ahead),
                10 => tile::<S, C, 10>(cells, panel, b, to, step, more, ahead),
                11 => tile::<S, C, 11>(cells, panel, b, to, step, more, ahead),
                _ => tile::<S, C, 12>(cells, panel, b, to, step, more, ahead),
            }
            if !whole {
                for row in 0..count {
                    let from = edge.as_ptr().add(row * width);
                    let to = c.add((i + row) * stride + j);
                    std::ptr::copy_nonoverlapping(from, to, columns - j);
                }
            }
            j += width;
        }
        i += count;
    }
}
