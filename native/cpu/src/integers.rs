//! Matrix products of integers and booleans, exact in the arithmetic of their type, which wraps round. Signs are of no
//! account there. Operands are packed into panels as in gemm.rs; numbers of 8 bits are added up in 16 bits, whose lower
//! half is what they come to. A product of booleans is whether any of its terms is true, which are counted.

use super::gemm::{is, room, WORTH_SHARING};
use super::panels::{block_cells, padded, tile_rows, Matrix};
use super::pool::{self, Shared};
use super::simd::whole::Whole;
use super::simd::{dispatch, Level, Simd};
use super::{product, Type, View};
use std::cell::RefCell;

/// Rows of a tile, at most.
const ROWS: usize = 12;
/// Vectors of a tile's row.
const VECTORS: usize = 2;
/// Numbers of a tile's row, at most.
const WIDEST: usize = VECTORS * 32;
/// Columns of a part, and rows of a band where there are too few parts for the threads.
const COLUMNS: usize = 256;
const BAND: usize = 96;
/// Rows up to which a product reads its right operand where it lies.
const FEW_ROWS: usize = 4;
/// Columns that such a product adds up at a time.
const WIDTH: usize = 256;
/// Numbers of packed rows that a thread keeps room for.
const MOST_KEPT: usize = 4 << 20;

/// What sums are kept in.
pub trait Sum: Copy + Default + Send + Sync + 'static {
    fn add(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn rooms(work: impl FnOnce(&mut Vec<Self>));
    fn part_rooms(work: impl FnOnce(&mut Vec<Self>, &mut Vec<Self>));
}

macro_rules! sums {
    ($($t:ty),+) => { $(
        impl Sum for $t {
            #[inline(always)]
            fn add(self, other: $t) -> $t {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn mul(self, other: $t) -> $t {
                self.wrapping_mul(other)
            }
            fn rooms(work: impl FnOnce(&mut Vec<$t>)) {
                thread_local! {
                    static ROWS: RefCell<Vec<$t>> = const { RefCell::new(Vec::new()) };
                }
                ROWS.with_borrow_mut(|rows| work(rows))
            }
            fn part_rooms(work: impl FnOnce(&mut Vec<$t>, &mut Vec<$t>)) {
                thread_local! {
                    static PANELS: RefCell<Vec<$t>> = const { RefCell::new(Vec::new()) };
                    static SUMS: RefCell<Vec<$t>> = const { RefCell::new(Vec::new()) };
                }
                PANELS.with_borrow_mut(|panels| SUMS.with_borrow_mut(|sums| work(panels, sums)))
            }
        }
    )+ };
}

sums!(u16, u32, u64);

/// A number of an operand.
pub trait Cell: Copy + Send + Sync + 'static {
    type Sum: Sum;
    fn widen(self) -> Self::Sum;
    fn narrow(sum: Self::Sum) -> Self;
}

macro_rules! cells {
    ($($t:ty => $sum:ty),+) => { $(
        impl Cell for $t {
            type Sum = $sum;
            #[inline(always)]
            fn widen(self) -> $sum {
                self.into()
            }
            #[inline(always)]
            fn narrow(sum: $sum) -> $t {
                sum as $t
            }
        }
    )+ };
}

cells!(u8 => u16, u16 => u16, u32 => u32, u64 => u64);

/// A boolean: a byte that is zero or not.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Truth(u8);

impl Cell for Truth {
    /// Of 32 bits, as terms are.
    type Sum = u32;
    #[inline(always)]
    fn widen(self) -> u32 {
        (self.0 != 0).into()
    }
    #[inline(always)]
    fn narrow(sum: u32) -> Truth {
        Truth((sum != 0).into())
    }
}

fn keeps_sums<T: Cell>() -> bool {
    is::<T, T::Sum>()
}

/// `a`'s rows in panels: for each term the panel's rows side by side.
#[inline(always)]
unsafe fn pack_rows_body<S: Simd, T: Cell>(
    a: Matrix<T>,
    rows: usize,
    terms: usize,
    to: *mut T::Sum,
) {
    let height = tile_rows(S::LANES);
    let mut to = to;
    for start in (0..rows).step_by(height) {
        let count = height.min(rows - start);
        let panel = a.from(start, 0);
        for k in 0..terms {
            for i in 0..count {
                to.add(k * count + i).write(panel.at(i, k).read().widen());
            }
        }
        to = to.add(count * terms);
    }
}

dispatch! {
    fn pack_rows<T: Cell>(a: Matrix<T>, rows: usize, terms: usize, to: *mut T::Sum) = pack_rows_body
}

/// `b`'s columns in panels: for each term the panel's columns side by side, zeros beyond the last.
#[inline(always)]
unsafe fn pack_columns<T: Cell>(
    b: Matrix<T>,
    terms: usize,
    columns: usize,
    width: usize,
    to: *mut T::Sum,
) {
    let zero = T::Sum::default();
    let mut to = to;
    for start in (0..columns).step_by(width) {
        let count = width.min(columns - start);
        let panel = b.from(0, start);
        if b.row == 1 && b.column != 1 {
            // Columns that lie in one piece are read as such.
            for j in 0..width {
                for k in 0..terms {
                    let x = if j < count {
                        panel.at(k, j).read().widen()
                    } else {
                        zero
                    };
                    to.add(k * width + j).write(x);
                }
            }
        } else {
            for k in 0..terms {
                let (from, to) = (panel.at(k, 0), to.add(k * width));
                if b.column == 1 {
                    (0..count).for_each(|j| to.add(j).write(from.add(j).read().widen()));
                } else {
                    (0..count).for_each(|j| to.add(j).write(panel.at(k, j).read().widen()));
                }
                (count..width).for_each(|j| to.add(j).write(zero));
            }
        }
        to = to.add(width * terms);
    }
}

/// One tile: `R` rows of a panel of `a` with a panel of `b`, to `c` or added to it.
#[inline(always)]
unsafe fn tile<S: Whole<N>, N: Copy, const R: usize>(
    terms: usize,
    a: *const N,
    b: *const N,
    c: *mut N,
    stride: usize,
    add: bool,
) {
    let mut sums = [[S::whole_splat(*a); VECTORS]; R];
    for (i, sum) in sums.iter_mut().enumerate() {
        let x = S::whole_splat(*a.add(i));
        for (v, sum) in sum.iter_mut().enumerate() {
            *sum = S::whole_mul(x, S::whole_load(b.add(v * S::COUNT)));
        }
    }
    let (mut a, mut b) = (a.add(R), b.add(VECTORS * S::COUNT));
    for _ in 1..terms {
        let mut row = [S::whole_load(b); VECTORS];
        for (v, x) in row.iter_mut().enumerate().skip(1) {
            *x = S::whole_load(b.add(v * S::COUNT));
        }
        for (i, sum) in sums.iter_mut().enumerate() {
            let x = S::whole_splat(*a.add(i));
            for (v, sum) in sum.iter_mut().enumerate() {
                *sum = S::whole_add(*sum, S::whole_mul(x, row[v]));
            }
        }
        a = a.add(R);
        b = b.add(VECTORS * S::COUNT);
    }
    for (i, sum) in sums.iter().enumerate() {
        for (v, sum) in sum.iter().enumerate() {
            let to = c.add(i * stride + v * S::COUNT);
            let sum = if add {
                S::whole_add(S::whole_load(to), *sum)
            } else {
                *sum
            };
            S::whole_store(to, sum);
        }
    }
}

/// Packed rows times packed columns, to `c` in rows of `stride`, or added to it.
#[inline(always)]
unsafe fn multiply<S: Whole<N>, N: Sum>(
    a: *const N,
    b: *const N,
    c: *mut N,
    stride: usize,
    (rows, terms, columns): (usize, usize, usize),
    add: bool,
) {
    let (height, width) = (tile_rows(S::LANES), VECTORS * S::COUNT);
    let mut edge = [N::default(); ROWS * WIDEST];
    for i in (0..rows).step_by(height) {
        let count = height.min(rows - i);
        let panel = a.add(i * terms);
        for j in (0..columns).step_by(width) {
            let b = b.add(j * terms);
            let whole = j + width <= columns;
            let (to, step, more) = if whole {
                (c.add(i * stride + j), stride, add)
            } else {
                (edge.as_mut_ptr(), width, false)
            };
            match count {
                1 => tile::<S, N, 1>(terms, panel, b, to, step, more),
                2 => tile::<S, N, 2>(terms, panel, b, to, step, more),
                3 => tile::<S, N, 3>(terms, panel, b, to, step, more),
                4 => tile::<S, N, 4>(terms, panel, b, to, step, more),
                5 => tile::<S, N, 5>(terms, panel, b, to, step, more),
                6 => tile::<S, N, 6>(terms, panel, b, to, step, more),
                7 => tile::<S, N, 7>(terms, panel, b, to, step, more),
                8 => tile::<S, N, 8>(terms, panel, b, to, step, more),
                9 => tile::<S, N, 9>(terms, panel, b, to, step, more),
                10 => tile::<S, N, 10>(terms, panel, b, to, step, more),
                11 => tile::<S, N, 11>(terms, panel, b, to, step, more),
                _ => tile::<S, N, 12>(terms, panel, b, to, step, more),
            }
            if !whole {
                for row in 0..count {
                    for column in j..columns {
                        let to = c.add((i + row) * stride + column);
                        let value = edge[row * width + column - j];
                        *to = if add { (*to).add(value) } else { value };
                    }
                }
            }
        }
    }
}

/// Some rows and columns of a result, all of their terms, on one thread.
pub struct Part<T: Cell> {
    /// Packed, block of terms after block of terms, each of `all_rows`; from the part's first row on.
    a: *const T::Sum,
    all_rows: usize,
    first: usize,
    b: Matrix<T>,
    out: *mut T,
    stride: usize,
    rows: usize,
    terms: usize,
    columns: usize,
}

#[inline(always)]
unsafe fn part_body<S: Whole<T::Sum>, T: Cell>(
    part: &Part<T>,
    panels: *mut T::Sum,
    sums: *mut T::Sum,
) {
    let (rows, columns) = (part.rows, part.columns);
    let (c, stride) = match keeps_sums::<T>() {
        true => (part.out.cast::<T::Sum>(), part.stride),
        false => (sums, columns),
    };
    let step = block_cells(part.terms);
    for k in (0..part.terms).step_by(step) {
        let terms = step.min(part.terms - k);
        pack_columns(
            part.b.from(k, 0),
            terms,
            columns,
            VECTORS * S::COUNT,
            panels,
        );
        let a = part.a.add(k * part.all_rows + part.first * terms);
        multiply::<S, T::Sum>(a, panels, c, stride, (rows, terms, columns), k > 0);
    }
    if !keeps_sums::<T>() {
        for i in 0..rows {
            let (from, to) = (c.add(i * stride), part.out.add(i * part.stride));
            (0..columns).for_each(|j| to.add(j).write(T::narrow(from.add(j).read())));
        }
    }
}

/// The product of few rows: the right operand is read where it lies, as `T`'s sums are added up in any order.
#[inline(always)]
unsafe fn few_body<S: Simd, T: Cell>(
    a: Matrix<T>,
    b: Matrix<T>,
    out: Matrix<T>,
    (rows, terms, columns): (usize, usize, usize),
) {
    for i in 0..rows {
        if b.row == 1 && a.column == 1 {
            for j in 0..columns {
                let (x, y) = (a.at(i, 0), b.at(0, j));
                let mut sum = T::Sum::default();
                for k in 0..terms {
                    sum = sum.add(x.add(k).read().widen().mul(y.add(k).read().widen()));
                }
                out.at(i, j).cast_mut().write(T::narrow(sum));
            }
            continue;
        }
        let mut sums = [T::Sum::default(); WIDTH];
        for first in (0..columns).step_by(WIDTH) {
            let sums = &mut sums[..WIDTH.min(columns - first)];
            sums.fill(T::Sum::default());
            for k in 0..terms {
                let (x, y) = (a.at(i, k).read().widen(), b.at(k, first));
                if b.column == 1 {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = sum.add(x.mul(y.add(j).read().widen()));
                    }
                } else {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = sum.add(x.mul(y.offset(j as isize * b.column).read().widen()));
                    }
                }
            }
            for (j, sum) in sums.iter().enumerate() {
                out.at(i, first + j).cast_mut().write(T::narrow(*sum));
            }
        }
    }
}

dispatch! {
    fn few<T: Cell>(
        a: Matrix<T>, b: Matrix<T>, out: Matrix<T>, sizes: (usize, usize, usize),
    ) = few_body
}

/// A type whose parts are compiled for each form of vectors.
pub trait Product: Cell {
    /// # Safety
    /// The part is of live arrays, there is room for its panels and sums, and the machine has the level's instructions.
    unsafe fn part(level: Level, part: &Part<Self>, panels: *mut Self::Sum, sums: *mut Self::Sum);
}

macro_rules! products {
    ($($t:ty, $body:ident, $run:ident;)+) => { $(
        #[inline(always)]
        unsafe fn $body<S: Whole<<$t as Cell>::Sum>>(
            part: &Part<$t>,
            panels: *mut <$t as Cell>::Sum,
            sums: *mut <$t as Cell>::Sum,
        ) {
            part_body::<S, $t>(part, panels, sums)
        }
        dispatch! {
            fn $run(
                part: &Part<$t>, panels: *mut <$t as Cell>::Sum, sums: *mut <$t as Cell>::Sum,
            ) = $body
        }
        impl Product for $t {
            unsafe fn part(
                level: Level,
                part: &Part<$t>,
                panels: *mut Self::Sum,
                sums: *mut Self::Sum,
            ) {
                $run(level, part, panels, sums)
            }
        }
    )+ };
}

products! {
    u8, part_of_8, run_8;
    u16, part_of_16, run_16;
    u32, part_of_32, run_32;
    u64, part_of_64, run_64;
    Truth, part_of_truth, run_truth;
}

/// `out` = a·b: `rows` × `terms` times `terms` × `columns`, to rows of `columns`.
unsafe fn product<T: Product>(
    level: Level,
    a: Matrix<T>,
    b: Matrix<T>,
    out: *mut T,
    (rows, terms, columns): (usize, usize, usize),
) {
    let result = Matrix {
        data: out.cast_const(),
        row: columns as isize,
        column: 1,
    };
    if rows <= FEW_ROWS {
        return few_rows(level, a, b, result, (rows, terms, columns));
    }
    if columns <= FEW_ROWS {
        // Rows for columns.
        let sizes = (columns, terms, rows);
        return few_rows(level, b.turned(), a.turned(), result.turned(), sizes);
    }
    let share = rows * terms * columns >= WORTH_SHARING;
    T::Sum::rooms(|packed| {
        let to = Shared(room(packed, rows * terms));
        let step = block_cells(terms);
        let blocks = terms.div_ceil(step);
        let bands = rows.div_ceil(BAND);
        pool::parallel(blocks * bands, share, &|part| {
            let (k, first) = (part / bands * step, part % bands * BAND);
            let (terms, count) = (step.min(terms - k), BAND.min(rows - first));
            // SAFETY: this part's own room.
            unsafe {
                let to = to.at(k * rows + first * terms);
                pack_rows::<T>(level, a.from(first, k), count, terms, to);
            }
        });
        // As many columns as can be share a packing of `b`.
        let parts = columns.div_ceil(COLUMNS);
        let size = padded(columns.div_ceil(parts), WIDEST);
        let parts = columns.div_ceil(size);
        let bands = rows
            .div_ceil(BAND)
            .min((2 * pool::threads()).div_ceil(parts));
        let band = padded(rows.div_ceil(bands), ROWS);
        let (packed_rows, out) = (Shared(to.at(0)), Shared(out));
        pool::parallel(parts * bands, share, &|part| {
            let (row, column) = (part % bands * band, part / bands * size);
            if row >= rows {
                return;
            }
            let (count, width) = (band.min(rows - row), size.min(columns - column));
            T::Sum::part_rooms(|panels, sums| {
                let panels = room(panels, padded(width, WIDEST) * step);
                let sums = room(sums, if keeps_sums::<T>() { 0 } else { count * width });
                // SAFETY: within the operands; rows and columns that are this part's alone.
                unsafe {
                    let part = Part {
                        a: packed_rows.at(0).cast_const(),
                        all_rows: rows,
                        first: row,
                        b: b.from(0, column),
                        out: out.at(row * columns + column),
                        stride: columns,
                        rows: count,
                        terms,
                        columns: width,
                    };
                    T::part(level, &part, panels, sums);
                }
            });
        });
        if packed.len() > MOST_KEPT {
            *packed = Vec::new();
        }
    })
}

/// [`product`] of few rows, to a result that lies in any way.
unsafe fn few_rows<T: Cell>(
    level: Level,
    a: Matrix<T>,
    b: Matrix<T>,
    out: Matrix<T>,
    (rows, terms, columns): (usize, usize, usize),
) {
    let share = rows * terms * columns > WORTH_SHARING / 4;
    let parts = match share {
        true => columns.div_ceil(16).min(4 * pool::threads()),
        false => 1,
    };
    let size = columns.div_ceil(parts).next_multiple_of(16);
    pool::parallel(columns.div_ceil(size), share, &|part| {
        let first = part * size;
        let count = size.min(columns - first);
        // SAFETY: columns that are this part's alone.
        unsafe {
            few::<T>(
                level,
                a,
                b.from(0, first),
                out.from(0, first),
                (rows, terms, count),
            );
        }
    });
}

/// Products of matrices of numbers of a type, broadcast over the axes before the last two.
///
/// # Safety
/// The views are of live arrays of at least two axes each, of integers or booleans of the type `of`, whose sizes fit.
pub unsafe fn run(level: Level, of: Type, a: &View, b: &View, out: &View) {
    macro_rules! run {
        ($t:ty) => {
            product::each::<$t>(a, b, out, &|a, b, to, sizes| {
                product::<$t>(level, a, b, to, sizes)
            })
        };
    }
    match of {
        Type::Bool => run!(Truth),
        Type::U8 | Type::S8 => run!(u8),
        Type::U16 | Type::S16 => run!(u16),
        Type::U32 | Type::S32 => run!(u32),
        Type::U64 | Type::S64 => run!(u64),
        Type::F16 | Type::Bf16 | Type::F32 | Type::F64 => {
            unreachable!("integer products of {of:?}")
        }
    }
}
