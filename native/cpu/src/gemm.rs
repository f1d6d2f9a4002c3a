//! Matrix products of rows, columns and types as they come: operands are packed into panels (panels.rs), whatever their
//! strides and type, and multiplied by a kernel that keeps a tile of the result in registers (Goto and van de Geijn,
//! 2008).

use super::element::Element;
#[cfg(target_arch = "x86_64")]
use super::panels::Pairs;
use super::panels::{self, block_cells, padded, Ahead, CellsOf, Packed, Singles, ROWS, VECTORS};
use super::pool::{self, Shared};
use super::simd::dispatch;
#[cfg(target_arch = "x86_64")]
use super::simd::Avx512;
use super::simd::{Level, Simd};
use super::{few, rows};
#[cfg(target_arch = "x86_64")]
use half::bf16;
use std::any::TypeId;
use std::cell::RefCell;

pub use super::panels::Matrix;

/// Terms whose products are added up in f32 where there are more; what these come to is added up in f64, so that the
/// error does not grow with the terms. A multiple of every block's terms.
const DEPTH: usize = 8 * panels::CELLS;
/// Columns of a block: its panels then stay in the second cache.
const COLUMNS: usize = 256;
/// Rows up to which the next block of the right operand is asked for while one is multiplied: with more, reading it is
/// little beside the arithmetic.
const AHEAD_ROWS: usize = 256;
/// The columns of a block up to so many rows, which leave room in the second cache for what is asked for.
const AHEAD_COLUMNS: usize = 128;
/// Parts for each thread then, where these have so many columns: a thread that begins late does fewer.
const PARTS: usize = 3;
const LEAST_COLUMNS: usize = 64;

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

    /// Columns from `first` on where they lie already.
    fn there(&self, first: usize) -> Option<Matrix<Self::T>> {
        let _ = first;
        None
    }
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

    fn there(&self, first: usize) -> Option<Matrix<T>> {
        Some(Matrix {
            data: self.data.wrapping_offset(first as isize * self.column),
            ..*self
        })
    }
}

/// How the left operand lies for the kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// In rows, as few.rs takes them; the right operand is read where it lies.
    Rows,
    /// Both operands in panels of such cells.
    Singles,
    #[cfg(target_arch = "x86_64")]
    Pairs,
}

impl Form {
    /// The panels that are quickest for operands of these types.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(clippy::extra_unused_type_parameters)
    )]
    fn of_panels<T: Element, B: Element>(level: Level) -> Form {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 if is::<T, bf16>() && is::<B, bf16>() => Form::Pairs,
            _ => Form::Singles,
        }
    }

    /// Terms of a cell.
    fn terms(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Form::Pairs => 2,
            Form::Rows | Form::Singles => 1,
        }
    }

    /// Whether what blocks come to is added up in f64: few.rs does that itself.
    fn is_deep(self, terms: usize) -> bool {
        self != Form::Rows && is_deep(terms)
    }
}

/// Some columns of the result, all of their terms, on one thread.
struct Part<T, B> {
    b: Matrix<B>,
    /// What this thread is likely to multiply next.
    next: Option<Matrix<B>>,
    /// Packed, block of cells after block of cells; or rows.
    a: *const f32,
    form: Form,
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

/// Rows that are finished at a time: a multiple of every tile's height.
const BAND: usize = 2 * ROWS;

#[inline(always)]
unsafe fn part_body<S: Simd, C: CellsOf<S, B>, T: Element, B: Element>(
    part: &Part<T, B>,
    room: [*mut f32; 2],
    wide: *mut f64,
) {
    let [panels, sums] = room;
    let (rows, columns) = (part.rows, part.columns);
    if part.form == Form::Rows {
        let (c, stride) = match part.is_direct() {
            true => (part.out.cast::<f32>(), part.stride),
            false => (sums, columns),
        };
        few::multiply::<S, B>(part.a, part.b, c, stride, (rows, part.terms, columns), wide);
        return finish::<S, T, B>(part, c, 0, rows);
    }
    let is_deep = part.form.is_deep(part.terms);
    let cells = part.terms.div_ceil(C::TERMS);
    let step = block_cells(cells);
    let blocks = DEPTH / (panels::CELLS * C::TERMS);
    for (block, k) in (0..cells).step_by(step).enumerate() {
        let count = step.min(cells - k);
        let first = k * C::TERMS;
        let terms = (count * C::TERMS).min(part.terms - first);
        panels::pack_columns::<S, C, B>(part.b.from(first, 0), terms, columns, panels);
        let (a, b) = (part.a.add(k * rows), Packed::whole(panels, count));
        let is_last = k + count == cells;
        let next = match is_last {
            true => part.next,
            false => Some(part.b.from(first + terms, 0)),
        };
        let mut ahead = match next {
            Some(next) if rows <= AHEAD_ROWS => {
                Ahead::of::<S, B>(next, (terms, columns), (rows, count))
            }
            _ => Ahead::NONE,
        };
        if is_deep {
            let add = block % blocks > 0;
            let a = Packed::whole(a, count);
            let sizes = (rows, count, columns);
            panels::multiply_ahead::<S, C>(a, b, sums, columns, sizes, add, &mut ahead);
            if is_last || block % blocks == blocks - 1 {
                add_wide::<S>(sums, wide, rows * columns, block >= blocks);
            }
            continue;
        }
        // Rows that the last block completes are finished while the cache has them.
        let band = if is_last { BAND } else { rows };
        for i in (0..rows).step_by(band) {
            let height = band.min(rows - i);
            let (c, stride) = match part.is_direct() {
                true => (part.out.add(i * part.stride).cast::<f32>(), part.stride),
                false if is_last && k == 0 => (sums, columns),
                false => (sums.add(i * columns), columns),
            };
            let a = Packed::whole(a.add(i * count), count);
            let sizes = (height, count, columns);
            panels::multiply_ahead::<S, C>(a, b, c, stride, sizes, k > 0, &mut ahead);
            if is_last {
                finish::<S, T, B>(part, c, i, height);
            }
        }
    }
    if is_deep {
        narrow_wide::<S>(wide, sums, rows * columns);
        finish::<S, T, B>(part, sums, 0, rows);
    }
}

/// Rows from `first` on, whose sums are complete, to the result.
#[inline(always)]
unsafe fn finish<S: Simd, T: Element, B>(
    part: &Part<T, B>,
    sums: *mut f32,
    first: usize,
    count: usize,
) {
    if part.is_direct() {
        return;
    }
    let columns = part.columns;
    for i in 0..count {
        let to = part.out.add((first + i) * part.stride);
        rows::narrow::<S, T>(sums.add(i * columns), to, columns);
    }
}

impl<T: 'static, B> Part<T, B> {
    /// Whether sums are added up where the result is.
    fn is_direct(&self) -> bool {
        is::<T, f32>() && !self.form.is_deep(self.terms)
    }
}

/// Whether there are so many terms that what blocks come to is added up in f64.
pub fn is_deep(terms: usize) -> bool {
    terms > DEPTH
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

#[inline(always)]
unsafe fn singles_body<S: Simd, T: Element, B: Element>(
    part: &Part<T, B>,
    room: [*mut f32; 2],
    wide: *mut f64,
) {
    part_body::<S, Singles, T, B>(part, room, wide)
}

#[inline(always)]
unsafe fn pack_singles_body<S: Simd, T: Element>(
    a: Matrix<T>,
    rows: usize,
    terms: usize,
    to: *mut f32,
) {
    panels::pack_rows::<S, Singles, T>(a, rows, terms, to)
}

dispatch! {
    fn run_singles<T: Element, B: Element>(part: &Part<T, B>, room: [*mut f32; 2], wide: *mut f64) = singles_body
}

dispatch! {
    fn pack_singles<T: Element>(a: Matrix<T>, rows: usize, terms: usize, to: *mut f32) = pack_singles_body
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn run_pairs(part: &Part<bf16, bf16>, room: [*mut f32; 2], wide: *mut f64) {
    part_body::<Avx512, Pairs, bf16, bf16>(part, room, wide)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn pack_pairs(a: Matrix<bf16>, rows: usize, terms: usize, to: *mut f32) {
    panels::pack_rows::<Avx512, Pairs, bf16>(a, rows, terms, to)
}

unsafe fn run_part<T: Element, B: Element>(
    level: Level,
    part: &Part<T, B>,
    room: [*mut f32; 2],
    wide: *mut f64,
) {
    match part.form {
        #[cfg(target_arch = "x86_64")]
        Form::Pairs => {
            // SAFETY: `Form::of_panels` has looked at the types and the level.
            let part = &*std::ptr::from_ref(part).cast::<Part<bf16, bf16>>();
            run_pairs(part, room, wide)
        }
        Form::Rows | Form::Singles => run_singles::<T, B>(level, part, room, wide),
    }
}

unsafe fn pack<T: Element>(
    level: Level,
    form: Form,
    a: Matrix<T>,
    rows: usize,
    terms: usize,
    to: *mut f32,
) {
    match form {
        #[cfg(target_arch = "x86_64")]
        Form::Pairs => {
            let a = Matrix {
                data: a.data.cast::<bf16>(),
                row: a.row,
                column: a.column,
            };
            pack_pairs(a, rows, terms, to)
        }
        Form::Rows | Form::Singles => pack_singles::<T>(level, a, rows, terms, to),
    }
}

/// Rows up to which a product reads `b` where it lies; with more, panels pay (`bench/cpu_kernels.exs`).
const FEW_ROWS: usize = 12;
/// Numbers of `b` in a part of a product of few rows.
const PART: usize = 32_768;
/// Columns of such a part, at least, where `b` lies row by row: shorter stretches of rows are read at half the speed.
const STRETCH: usize = 1024;

/// Whether two types are the same.
pub fn is<T: 'static, U: 'static>() -> bool {
    TypeId::of::<T>() == TypeId::of::<U>()
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
    (a, form): (*mut f32, Form),
    b: &B,
    out: *mut T,
    (rows, terms, columns): (usize, usize, usize),
    size: usize,
) {
    let (a, out) = (Shared(a), Shared(out));
    let share = rows * terms * columns >= WORTH_SHARING;
    let threads = if share { pool::threads() } else { 1 };
    pool::parallel(columns.div_ceil(size), share, &|part| {
        let first = part * size;
        // Threads take parts in turn.
        let next = first + threads * size;
        let count = size.min(columns - first);
        with_rooms(|[sums, made, panels], kept| {
            let is_deep = form.is_deep(terms);
            // Up to whole vectors.
            let size = rows * count + 16;
            let is_direct = is::<T, f32>() && !is_deep;
            let sums = room(sums, if is_direct { 0 } else { size });
            let block = block_cells(terms.div_ceil(form.terms()));
            let (wide_size, panels_size) = match form {
                Form::Rows => (few::wide_size(rows, terms, count), 0),
                _ if is_deep => (size, padded(count, VECTORS * 16) * block),
                _ => (0, padded(count, VECTORS * 16) * block),
            };
            let wide = room(kept, wide_size);
            let panels = room(panels, panels_size);
            // SAFETY: within the operands; columns that are this part's alone.
            unsafe {
                let part = Part {
                    b: b.columns(level, terms, first, count, made),
                    next: b.there(next).filter(|_| next < columns),
                    a: a.at(0).cast_const(),
                    form,
                    out: out.at(first),
                    stride: columns,
                    rows,
                    terms,
                    columns: count,
                };
                run_part::<T, B::T>(level, &part, [panels, sums], wide);
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
        let sizes = (rows, terms, columns);
        by_columns(level, (wide, Form::Rows), b, out, sizes, size);
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
    let form = Form::of_panels::<T, B::T>(level);
    PACKED_ROWS.with_borrow_mut(|packed| {
        let cells = terms.div_ceil(form.terms());
        let to = Shared(room(packed, rows * cells));
        let step = block_cells(cells);
        let blocks = cells.div_ceil(step);
        let share = rows * terms * columns >= WORTH_SHARING;
        // A multiple of every tile's height.
        let bands = rows.div_ceil(8 * ROWS).min(8);
        let band = padded(rows.div_ceil(bands.max(1)), ROWS);
        pool::parallel(blocks * bands, share, &|part| {
            let (k, first) = (part / bands * step, part % bands * band);
            if first >= rows {
                return;
            }
            let (count, from) = (step.min(cells - k), k * form.terms());
            let terms = (count * form.terms()).min(terms - from);
            let rows_here = band.min(rows - first);
            // SAFETY: this part's own room.
            unsafe {
                let to = to.at(k * rows + first * count);
                pack::<T>(level, form, a.from(first, from), rows_here, terms, to);
            }
        });
        // An even number of blocks on an even number of threads.
        let threads = pool::threads();
        // Panels of shorter columns have room for more.
        let (most, even) = match rows <= AHEAD_ROWS {
            true => (
                AHEAD_COLUMNS,
                (PARTS * threads).min(columns / LEAST_COLUMNS),
            ),
            false => (COLUMNS, 0),
        };
        let most = (most * panels::CELLS / step).min(2 * COLUMNS);
        let parts = columns.div_ceil(most).max(even).next_multiple_of(threads);
        let size = padded(columns.div_ceil(parts), VECTORS * 16);
        let sizes = (rows, terms, columns);
        by_columns(level, (to.at(0), form), b, out, sizes, size);
        if packed.len() > MOST_KEPT {
            *packed = Vec::new();
        }
    })
}
