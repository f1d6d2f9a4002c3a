//! Matrix products of rows, columns and types as they come: operands are packed into panels of f32, whatever their strides and
//! type, and multiplied by a kernel that keeps a tile of the result in registers (Goto and van de Geijn, 2008).

use super::element::Element;
use super::pool;
use super::simd::{Level, Simd};
use super::Shared;
use crate::dispatch;
use std::cell::RefCell;

/// Rows of a tile, at most; with AVX-512 12 × 32 numbers fill 24 of the 32 registers.
const ROWS: usize = 12;
/// Vectors of a tile's row.
const VECTORS: usize = 2;
/// Terms of a block: a panel of `a` then stays in the first cache.
const TERMS: usize = 384;
/// Columns of a block: its panels then stay in the second cache.
const COLUMNS: usize = 256;

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

    #[inline(always)]
    pub unsafe fn at(&self, i: usize, j: usize) -> *const T {
        self.data
            .offset(i as isize * self.row + j as isize * self.column)
    }

    /// The part that begins at (i, j).
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

/// How tall the tiles are: fewer rows where there are fewer registers.
#[inline(always)]
fn tile_rows(lanes: usize) -> usize {
    if lanes == 16 {
        ROWS
    } else {
        ROWS / 2
    }
}

/// Room that `count` rows or columns, in panels of `width`, take.
fn padded(count: usize, width: usize) -> usize {
    count.div_ceil(width) * width
}

/// `a`'s rows in panels: for each term the panel's rows side by side. The last panel may have fewer rows.
#[inline(always)]
pub unsafe fn pack_rows<S: Simd, T: Element>(
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
            pack_panel::<T, ROWS>(panel, ROWS, terms, to);
        } else if count == ROWS / 2 {
            pack_panel::<T, { ROWS / 2 }>(panel, ROWS / 2, terms, to);
        } else {
            pack_panel::<T, 0>(panel, count, terms, to);
        }
        to = to.add(count * terms);
        start += count;
    }
}

/// With `N` other than 0 the count is known when this is compiled.
#[inline(always)]
unsafe fn pack_panel<T: Element, const N: usize>(
    a: Matrix<T>,
    count: usize,
    terms: usize,
    to: *mut f32,
) {
    let count = if N == 0 { count } else { N };
    for k in 0..terms {
        for i in 0..count {
            to.add(k * count + i).write(a.at(i, k).read().widen());
        }
    }
}

/// `b`'s columns in panels: for each term the panel's columns side by side, zeros beyond the last.
#[inline(always)]
pub unsafe fn pack_columns<S: Simd, T: Element>(
    b: Matrix<T>,
    terms: usize,
    columns: usize,
    to: *mut f32,
) {
    let width = VECTORS * S::LANES;
    let mut start = 0;
    let mut to = to;
    while start < columns {
        let count = width.min(columns - start);
        let panel = b.from(0, start);
        if count == width && b.column == 1 {
            for k in 0..terms {
                for v in 0..VECTORS {
                    let x = T::load::<S>(panel.at(k, v * S::LANES));
                    S::store(to.add(k * width + v * S::LANES), x);
                }
            }
        } else {
            for k in 0..terms {
                for j in 0..count {
                    to.add(k * width + j).write(panel.at(k, j).read().widen());
                }
                for j in count..width {
                    to.add(k * width + j).write(0.0);
                }
            }
        }
        to = to.add(width * terms);
        start += count;
    }
}

/// One tile: `R` rows of a panel of `a` with a panel of `b`, to `c` or added to it.
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize>(
    terms: usize,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    stride: usize,
    add: bool,
) {
    let mut sums = [[S::splat(0.0); VECTORS]; R];
    let (mut a, mut b) = (a, b);
    for _ in 0..terms {
        let mut row = [S::splat(0.0); VECTORS];
        for (v, x) in row.iter_mut().enumerate() {
            *x = S::load(b.add(v * S::LANES));
        }
        for (i, sum) in sums.iter_mut().enumerate() {
            let x = S::splat(*a.add(i));
            for (v, sum) in sum.iter_mut().enumerate() {
                *sum = S::fma(x, row[v], *sum);
            }
        }
        a = a.add(R);
        b = b.add(VECTORS * S::LANES);
    }
    for (i, sum) in sums.iter().enumerate() {
        for (v, sum) in sum.iter().enumerate() {
            let to = c.add(i * stride + v * S::LANES);
            S::store(to, if add { S::add(S::load(to), *sum) } else { *sum });
        }
    }
}

/// Packed rows times packed columns, to `c` in rows of `stride`, or added to it.
#[inline(always)]
pub unsafe fn multiply<S: Simd>(
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    stride: usize,
    (rows, terms, columns): (usize, usize, usize),
    add: bool,
) {
    let (height, width) = (tile_rows(S::LANES), VECTORS * S::LANES);
    let mut edge = [0f32; ROWS * VECTORS * 16];
    let mut i = 0;
    while i < rows {
        let count = height.min(rows - i);
        let panel = a.add(i * terms);
        let mut j = 0;
        while j < columns {
            let b = b.add(j * terms);
            let whole = j + width <= columns;
            let (to, step, more) = if whole {
                (c.add(i * stride + j), stride, add)
            } else {
                (edge.as_mut_ptr(), width, false)
            };
            match count {
                1 => tile::<S, 1>(terms, panel, b, to, step, more),
                2 => tile::<S, 2>(terms, panel, b, to, step, more),
                3 => tile::<S, 3>(terms, panel, b, to, step, more),
                4 => tile::<S, 4>(terms, panel, b, to, step, more),
                5 => tile::<S, 5>(terms, panel, b, to, step, more),
                6 => tile::<S, 6>(terms, panel, b, to, step, more),
                7 => tile::<S, 7>(terms, panel, b, to, step, more),
                8 => tile::<S, 8>(terms, panel, b, to, step, more),
                9 => tile::<S, 9>(terms, panel, b, to, step, more),
                10 => tile::<S, 10>(terms, panel, b, to, step, more),
                11 => tile::<S, 11>(terms, panel, b, to, step, more),
                _ => tile::<S, 12>(terms, panel, b, to, step, more),
            }
            if !whole {
                for row in 0..count {
                    for column in j..columns {
                        let to = c.add((i + row) * stride + column);
                        let value = edge[row * width + column - j];
                        *to = if add { *to + value } else { value };
                    }
                }
            }
            j += width;
        }
        i += count;
    }
}

/// A column block of the result, all of its terms, on one thread.
struct Block<'a, T> {
    b: Matrix<T>,
    /// Packed, block of terms after block of terms.
    a: &'a [f32],
    out: *mut T,
    stride: usize,
    rows: usize,
    terms: usize,
    columns: usize,
}

thread_local! {
    static PANELS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static SUMS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static PACKED_ROWS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// At least `size` numbers of a thread's own, whatever they held before.
pub fn room(buffer: &mut Vec<f32>, size: usize) -> *mut f32 {
    if buffer.len() < size {
        buffer.resize(size, 0.0);
    }
    buffer.as_mut_ptr()
}

/// Terms of each block, as even as can be.
fn block_terms(terms: usize) -> usize {
    terms.div_ceil(terms.div_ceil(TERMS).max(1)).max(1)
}

#[inline(always)]
unsafe fn block_body<S: Simd, T: Element>(block: &Block<T>, panels: *mut f32, sums: *mut f32) {
    let step = block_terms(block.terms);
    let direct = std::any::TypeId::of::<T>() == std::any::TypeId::of::<f32>();
    let (c, stride) = if direct {
        (block.out.cast::<f32>(), block.stride)
    } else {
        (sums, block.columns)
    };
    let mut k = 0;
    while k < block.terms {
        let terms = step.min(block.terms - k);
        pack_columns::<S, T>(block.b.from(k, 0), terms, block.columns, panels);
        let a = block.a.as_ptr().add(k * block.rows);
        multiply::<S>(
            a,
            panels,
            c,
            stride,
            (block.rows, terms, block.columns),
            k > 0,
        );
        k += terms;
    }
    if !direct {
        for i in 0..block.rows {
            super::rows::narrow::<S, T>(
                c.add(i * stride),
                block.out.add(i * block.stride),
                block.columns,
            );
        }
    }
}

dispatch! {
    fn run_block<T: Element>(block: &Block<T>, panels: *mut f32, sums: *mut f32) = block_body
}

dispatch! {
    fn pack<T: Element>(a: Matrix<T>, rows: usize, terms: usize, to: *mut f32) = pack_rows
}

/// `out` = a·b: `rows` × `terms` times `terms` × `columns`, to rows of `columns`.
///
/// # Safety
/// The operands and `out` are as large as that, and `out` is none of the operands.
pub unsafe fn product<T: Element>(
    level: Level,
    a: Matrix<T>,
    b: Matrix<T>,
    out: *mut T,
    (rows, terms, columns): (usize, usize, usize),
) {
    let width = VECTORS * 16;
    PACKED_ROWS.with_borrow_mut(|packed| {
        let to = Shared(room(packed, rows * terms));
        let step = block_terms(terms);
        let blocks = terms.div_ceil(step);
        let share = rows * terms * columns >= 64 * 64 * 64;
        // A multiple of every tile's height.
        let bands = rows.div_ceil(8 * ROWS).min(8);
        let band = padded(rows.div_ceil(bands.max(1)), ROWS);
        pool::parallel(blocks * bands, share, &|part| {
            let (k, first) = (part / bands * step, part % bands * band);
            if first >= rows {
                return;
            }
            let terms = step.min(terms - k);
            // SAFETY: this part's own room.
            unsafe {
                let to = to.at(k * rows + first * terms);
                pack::<T>(level, a.from(first, k), band.min(rows - first), terms, to);
            }
        });
        let a = std::slice::from_raw_parts(to.at(0), rows * terms);
        let out = Shared(out);
        // An even number of blocks on an even number of threads.
        let threads = pool::threads();
        let parts = columns.div_ceil(COLUMNS).next_multiple_of(threads);
        let size = padded(columns.div_ceil(parts), width);
        pool::parallel(columns.div_ceil(size), share, &|part| {
            let first = part * size;
            let count = size.min(columns - first);
            PANELS.with_borrow_mut(|panels| {
                SUMS.with_borrow_mut(|sums| {
                    let panels = room(panels, padded(count, width) * step);
                    let direct = std::any::TypeId::of::<T>() == std::any::TypeId::of::<f32>();
                    let sums = room(sums, if direct { 0 } else { rows * count });
                    // SAFETY: within the operands; columns that are this part's alone.
                    unsafe {
                        let block = Block {
                            b: b.from(0, first),
                            a,
                            out: out.at(first),
                            stride: columns,
                            rows,
                            terms,
                            columns: count,
                        };
                        run_block::<T>(level, &block, panels, sums);
                    }
                })
            })
        });
    })
}
