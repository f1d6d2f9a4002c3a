//! Matrix products of rows, columns and types as they come: operands are packed into panels of f32, whatever their
//! strides and type, and multiplied by a kernel that keeps a tile of the result in registers (Goto and van de Geijn,
//! 2008).

use super::element::Element;
use super::pool::{self, Shared};
use super::simd::dispatch;
use super::simd::{store_part, Level, Simd};
use super::{few, rows};
use std::cell::RefCell;

/// Rows of a tile, at most; with AVX-512 12 × 32 numbers fill 24 of the 32 registers.
const ROWS: usize = 12;
/// Vectors of a tile's row.
const VECTORS: usize = 2;
/// Terms of a block: a panel of `a` then stays in the first cache.
const TERMS: usize = 384;
/// Blocks whose products are added up in f32; what these come to is added up in f64, so that the error does not grow
/// with the terms.
const BLOCKS: usize = 8;
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

    /// Rows for columns.
    pub fn turned(&self) -> Matrix<T> {
        Matrix {
            data: self.data,
            row: self.column,
            column: self.row,
        }
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

/// A product's right operand: a matrix as it lies, or something that becomes one, some columns at a time
/// (quantized.rs).
pub trait Right: Sync {
    type T: Element;

    /// Whether columns lie in one piece, and whether rows do.
    fn pieces(&self) -> (bool, bool);

    /// Columns `first` to `first + count`, made in `room` where they are not there.
    ///
    /// # Safety
    /// The operand has `terms` rows and these columns, and the machine the level's instructions.
    unsafe fn columns(
        &self,
        level: Level,
        terms: usize,
        first: usize,
        count: usize,
        room: &mut Vec<f32>,
    ) -> Matrix<Self::T>;
}

impl<T: Element> Right for Matrix<T> {
    type T = T;

    fn pieces(&self) -> (bool, bool) {
        (self.row == 1, self.column == 1)
    }

    unsafe fn columns(
        &self,
        _level: Level,
        _terms: usize,
        first: usize,
        _count: usize,
        _room: &mut Vec<f32>,
    ) -> Matrix<T> {
        self.from(0, first)
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
            pack_panel::<S, T, ROWS>(panel, ROWS, terms, to);
        } else if count == ROWS / 2 {
            pack_panel::<S, T, { ROWS / 2 }>(panel, ROWS / 2, terms, to);
        } else {
            pack_panel::<S, T, 0>(panel, count, terms, to);
        }
        to = to.add(count * terms);
        start += count;
    }
}

/// With `N` other than 0 the count is known when this is compiled.
#[inline(always)]
unsafe fn pack_panel<S: Simd, T: Element, const N: usize>(
    a: Matrix<T>,
    count: usize,
    terms: usize,
    to: *mut f32,
) {
    let count = if N == 0 { count } else { N };
    // Rows that lie in one piece are turned a square of vectors at a time; what a vector has too much, the next one
    // overwrites.
    let turned = if N != 0 && N <= S::LANES && a.column == 1 {
        terms / S::LANES * S::LANES
    } else {
        0
    };
    for k in (0..turned).step_by(S::LANES) {
        let mut square = [S::splat(0.0); 16];
        for (i, x) in square.iter_mut().enumerate().take(N) {
            *x = T::load::<S>(a.at(i, k));
        }
        S::turn(&mut square);
        for (i, x) in square.iter().enumerate().take(S::LANES) {
            let to = to.add((k + i) * N);
            if (k + i) * N + S::LANES <= terms * N {
                S::store(to, *x);
            } else {
                store_part::<S, f32>(to, N, *x);
            }
        }
    }
    for k in turned..terms {
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
            // Columns that lie in one piece are turned a square of vectors at a time.
            let turned = if count == width && b.row == 1 {
                terms / S::LANES * S::LANES
            } else {
                0
            };
            for k in (0..turned).step_by(S::LANES) {
                for v in 0..VECTORS {
                    let mut square = [S::splat(0.0); 16];
                    for (j, x) in square.iter_mut().enumerate().take(S::LANES) {
                        *x = T::load::<S>(panel.at(k, v * S::LANES + j));
                    }
                    S::turn(&mut square);
                    for (i, x) in square.iter().enumerate().take(S::LANES) {
                        S::store(to.add((k + i) * width + v * S::LANES), *x);
                    }
                }
            }
            for k in turned..terms {
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

/// Rows or columns in panels of so many terms, of which those from `first` on are meant.
#[derive(Clone, Copy)]
pub struct Packed {
    pub data: *const f32,
    pub terms: usize,
    pub first: usize,
}

impl Packed {
    /// All terms.
    pub fn whole(data: *const f32, terms: usize) -> Packed {
        Packed {
            data,
            terms,
            first: 0,
        }
    }

    /// The panels of `width` from row or column `number` on.
    #[inline(always)]
    unsafe fn panel(&self, number: usize, width: usize) -> *const f32 {
        self.data.add(number * self.terms + self.first * width)
    }
}

/// Packed rows times packed columns, to `c` in rows of `stride`, or added to it.
#[inline(always)]
pub unsafe fn multiply<S: Simd>(
    a: Packed,
    b: Packed,
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
        let panel = a.panel(i, count);
        let mut j = 0;
        while j < columns {
            let b = b.panel(j, width);
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

/// Some columns of the result, all of their terms, on one thread.
struct Part<T, B> {
    b: Matrix<B>,
    /// Packed, block of terms after block of terms; or rows as few.rs takes them.
    a: *const f32,
    is_packed: bool,
    out: *mut T,
    stride: usize,
    rows: usize,
    terms: usize,
    columns: usize,
}

thread_local! {
    static PANELS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static SUMS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static WIDE: RefCell<Vec<f64>> = const { RefCell::new(Vec::new()) };
    static PACKED_ROWS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// What [`Right::columns`] makes.
    static MADE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// At least `size` numbers of a thread's own, whatever they held before.
pub fn room<N: Copy + Default>(buffer: &mut Vec<N>, size: usize) -> *mut N {
    if buffer.len() < size {
        buffer.resize(size, N::default());
    }
    buffer.as_mut_ptr()
}

/// Terms of each block, as even as can be.
fn block_terms(terms: usize) -> usize {
    terms.div_ceil(terms.div_ceil(TERMS).max(1)).max(1)
}

#[inline(always)]
unsafe fn part_body<S: Simd, T: Element, B: Element>(
    part: &Part<T, B>,
    panels: *mut f32,
    sums: *mut f32,
    wide: *mut f64,
) {
    let (rows, columns) = (part.rows, part.columns);
    let is_deep = part.is_packed && is_deep(part.terms);
    let (c, stride) = if is_f32::<T>() && !is_deep {
        (part.out.cast::<f32>(), part.stride)
    } else {
        (sums, columns)
    };
    if !part.is_packed {
        few::multiply::<S, B>(part.a, part.b, c, stride, (rows, part.terms, columns), wide);
    } else {
        let step = block_terms(part.terms);
        for (block, k) in (0..part.terms).step_by(step).enumerate() {
            let terms = step.min(part.terms - k);
            pack_columns::<S, B>(part.b.from(k, 0), terms, columns, panels);
            let a = Packed::whole(part.a.add(k * rows), terms);
            let b = Packed::whole(panels, terms);
            let add = match is_deep {
                true => block % BLOCKS > 0,
                false => k > 0,
            };
            multiply::<S>(a, b, c, stride, (rows, terms, columns), add);
            let is_last = k + terms == part.terms;
            if is_deep && (is_last || block % BLOCKS == BLOCKS - 1) {
                add_wide::<S>(c, wide, rows * columns, block >= BLOCKS);
            }
        }
        if is_deep {
            narrow_wide::<S>(wide, c, rows * columns);
        }
    }
    if !is_f32::<T>() || is_deep {
        for i in 0..rows {
            let to = part.out.add(i * part.stride);
            rows::narrow::<S, T>(c.add(i * stride), to, columns);
        }
    }
}

/// Whether there are so many terms that what blocks come to is added up in f64.
pub fn is_deep(terms: usize) -> bool {
    terms > BLOCKS * TERMS
}

/// Adds numbers to sums in f64, or begins these with them. Both have room for whole vectors.
#[inline(always)]
pub unsafe fn add_wide<S: Simd>(from: *const f32, to: *mut f64, count: usize, add: bool) {
    for i in (0..count).step_by(S::LANES) {
        let x = S::widen(S::load(from.add(i)));
        let sum = match add {
            true => S::wide_add(S::wide_load(to.add(i)), x),
            false => x,
        };
        S::wide_store(to.add(i), sum);
    }
}

/// Sums in f64 to f32. Both have room for whole vectors.
#[inline(always)]
pub unsafe fn narrow_wide<S: Simd>(from: *const f64, to: *mut f32, count: usize) {
    for i in (0..count).step_by(S::LANES) {
        S::store(to.add(i), S::narrow(S::wide_load(from.add(i))));
    }
}

dispatch! {
    fn run_part<T: Element, B: Element>(
        part: &Part<T, B>, panels: *mut f32, sums: *mut f32, wide: *mut f64,
    ) = part_body
}

dispatch! {
    fn pack<T: Element>(a: Matrix<T>, rows: usize, terms: usize, to: *mut f32) = pack_rows
}

/// Rows up to which a product reads `b` where it lies; with more, panels pay (`bench/cpu_kernels.exs`).
const FEW_ROWS: usize = 12;
/// Numbers of `b` in a part of a product of few rows.
const PART: usize = 32_768;
/// Columns of such a part, at least, where `b` lies row by row: shorter stretches of rows are read at half the speed.
const STRETCH: usize = 1024;

fn is_f32<T: 'static>() -> bool {
    std::any::TypeId::of::<T>() == std::any::TypeId::of::<f32>()
}

/// A thread's own rooms for sums, for columns that are made, and for panels; and for sums in f64.
fn with_rooms(work: impl FnOnce([&mut Vec<f32>; 3], &mut Vec<f64>)) {
    SUMS.with_borrow_mut(|sums| {
        MADE.with_borrow_mut(|made| {
            PANELS.with_borrow_mut(|panels| {
                WIDE.with_borrow_mut(|wide| work([sums, made, panels], wide))
            })
        })
    })
}

/// The product of `a`, as [`Part`] has it, with all of `b`'s columns, `size` of them in a part.
unsafe fn by_columns<T: Element, B: Right>(
    level: Level,
    (a, is_packed): (*mut f32, bool),
    b: &B,
    out: *mut T,
    (rows, terms, columns): (usize, usize, usize),
    size: usize,
) {
    let (a, out) = (Shared(a), Shared(out));
    let share = rows * terms * columns >= WORTH_SHARING;
    pool::parallel(columns.div_ceil(size), share, &|part| {
        let first = part * size;
        let count = size.min(columns - first);
        with_rooms(|[sums, made, panels], kept| {
            let is_deep = is_packed && is_deep(terms);
            // Up to whole vectors.
            let size = rows * count + 16;
            let sums = room(sums, if is_f32::<T>() && !is_deep { 0 } else { size });
            let wide_size = match is_packed {
                true if is_deep => size,
                true => 0,
                false => few::wide_size(rows, terms, count),
            };
            let wide = room(kept, wide_size);
            let width = padded(count, VECTORS * 16) * block_terms(terms);
            let panels = room(panels, if is_packed { width } else { 0 });
            // SAFETY: within the operands; columns that are this part's alone.
            unsafe {
                let part = Part {
                    b: b.columns(level, terms, first, count, made),
                    a: a.at(0).cast_const(),
                    is_packed,
                    out: out.at(first),
                    stride: columns,
                    rows,
                    terms,
                    columns: count,
                };
                run_part::<T, B::T>(level, &part, panels, sums, wide);
            }
            if kept.len() > MOST_KEPT / 2 {
                *kept = Vec::new();
            }
        })
    });
}

/// [`product_with`] of few rows.
unsafe fn few_rows<T: Element, B: Right>(
    level: Level,
    a: Matrix<T>,
    b: &B,
    out: *mut T,
    (rows, terms, columns): (usize, usize, usize),
) {
    PACKED_ROWS.with_borrow_mut(|packed| {
        let wide = room(packed, rows * few::row_size(terms));
        few::widen::<T>(level, a, rows, terms, wide);
        let least = if b.pieces().0 { 16 } else { STRETCH };
        let parts = columns
            .div_ceil(least)
            .min((terms * columns).div_ceil(PART))
            .max(pool::threads().min(columns.div_ceil(64)));
        let size = columns.div_ceil(parts).next_multiple_of(16);
        by_columns(level, (wide, false), b, out, (rows, terms, columns), size);
    })
}

/// Numbers of packed rows that a thread keeps room for, 64 MiB, and half as many sums in f64; beside a product of
/// more, asking for it anew is nothing.
const MOST_KEPT: usize = 16 << 20;

/// Multiply-adds from which a second thread pays.
pub const WORTH_SHARING: usize = 64 * 64 * 64;

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
    if rows > 1 && columns == 1 {
        // A vector from the right is one from the left of the matrix turned.
        return product(level, b.turned(), a.turned(), out, (1, terms, rows));
    }
    product_with(level, a, &b, out, (rows, terms, columns));
}

/// [`product`] with whatever can be a right operand.
///
/// # Safety
/// As there.
pub unsafe fn product_with<T: Element, B: Right>(
    level: Level,
    a: Matrix<T>,
    b: &B,
    out: *mut T,
    (rows, terms, columns): (usize, usize, usize),
) {
    if rows <= FEW_ROWS && b.pieces() != (false, false) {
        return few_rows(level, a, b, out, (rows, terms, columns));
    }
    PACKED_ROWS.with_borrow_mut(|packed| {
        let to = Shared(room(packed, rows * terms));
        let step = block_terms(terms);
        let blocks = terms.div_ceil(step);
        let share = rows * terms * columns >= WORTH_SHARING;
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
        // An even number of blocks on an even number of threads.
        let threads = pool::threads();
        let parts = columns.div_ceil(COLUMNS).next_multiple_of(threads);
        let size = padded(columns.div_ceil(parts), VECTORS * 16);
        by_columns(
            level,
            (to.at(0), true),
            b,
            out,
            (rows, terms, columns),
            size,
        );
        if packed.len() > MOST_KEPT {
            *packed = Vec::new();
        }
    })
}
