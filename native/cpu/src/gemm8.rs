//! Products with matrices of 8-bit integers. Each row of the left operand is rounded to 8 bits with a scale of its own,
//! and multiplied exactly; sums are scaled, and a bias is added, in the last pass over a tile. Rows and columns are
//! packed into panels as those of gemm.rs are (panels.rs), in units of 32 bits ([`form::Integers`]). Of few rows, the right operand is read
//! where it lies.

mod few;
mod form;
mod quantize;

use super::element::Element;
use super::gemm::{self, room, Matrix};
use super::panels::{self, block_cells, Packed, Singles, ROWS as HEIGHT, VECTORS};
use super::pool::{self, Shared};
use super::simd::{store_part, Simd};
use super::{Type, View};
use few::{few, FEW_ROWS};
pub use form::Form;
use form::{in_form, Integers};
use half::{bf16, f16};
use quantize::quantize_panels;
pub use quantize::SMALLEST;
use std::cell::RefCell;

/// Terms up to which sums of products of 8-bit integers, each at most 127 · 128, stay within 32 bits.
pub const MAX_TERMS: usize = i32::MAX as usize / (127 * 128);

/// Columns of a part: a block of its panels then stays in the second cache.
const COLUMNS: usize = 128;
/// Columns of a panel, at most.
const WIDTH: usize = VECTORS * 16;
/// Numbers that are multiplied with each other from which a second thread pays, where they are packed.
const WORTH_SHARING: usize = 4 * gemm::WORTH_SHARING;
/// Bytes of quantized rows that a thread keeps room for.
const MOST_KEPT: usize = 64 << 20;

/// What a product is made of.
struct Product<'a> {
    form: Form,
    x: &'a View,
    w: Right,
    /// Of each column, with room for whole panels.
    scales: &'a [f32],
    biases: &'a [f32],
    rows: usize,
    terms: usize,
    columns: usize,
}

/// Terms beside each other, and columns beside each other, of a right operand that is packed.
pub const QUAD: usize = 4;
pub const BESIDE: usize = 16;

/// The right operand {columns, terms}; or packed, {⌈columns / 16⌉, ⌈terms / 4⌉, 16, 4} in rows, which are panels of
/// units for VPDPBUSD.
#[derive(Clone, Copy)]
struct Right {
    data: *const i8,
    /// From one column to the next, and from one term to the next, where it is not packed.
    steps: [isize; 2],
    is_packed: bool,
    /// From one packed panel to the next.
    panel: isize,
}

// SAFETY: only read.
unsafe impl Sync for Right {}

impl Right {
    /// Columns from `first` on, where it is not packed.
    fn columns(&self, first: usize) -> Matrix<i8> {
        Matrix {
            data: self.data.wrapping_offset(first as isize * self.steps[0]),
            row: self.steps[0],
            column: self.steps[1],
        }
    }
}

/// Room for rows that are quantized.
#[derive(Clone, Copy)]
struct LeftRoom {
    units: *mut i32,
    scales: *mut f32,
    excess: *mut i32,
}

/// Rows that are quantized: in panels, or one after another, in whole vectors.
#[derive(Clone, Copy)]
struct Left {
    units: *const i32,
    scales: *const f32,
    /// What the sums of each row have too much, because columns have an offset.
    excess: *const i32,
}

// SAFETY: only read while it is shared.
unsafe impl Sync for Left {}

/// Some columns of the result, on one thread.
struct Part<'a, T> {
    of: &'a Product<'a>,
    left: Left,
    first: usize,
    columns: usize,
    out: *mut T,
}

/// A thread's own rooms.
#[derive(Default)]
struct Rooms {
    /// A row in f32.
    row: Vec<f32>,
    /// Rows or columns as units, before they are packed.
    units: Vec<i32>,
    panels: Vec<i32>,
    /// What blocks of terms come to, tile after tile.
    sums: Vec<i32>,
}

thread_local! {
    static ROOMS: RefCell<Rooms> = RefCell::default();
    static LEFT: RefCell<(Vec<i32>, Vec<f32>, Vec<i32>)> = RefCell::default();
    static VECTORS_OF_COLUMNS: RefCell<[Vec<f32>; 2]> = RefCell::default();
}

/// A vector of units that are offsets alone.
#[inline(always)]
unsafe fn offsets<F: Integers>() -> F::I {
    F::splat(i32::from_ne_bytes([F::OFFSET as u8; 4]))
}

// ---- packed panels ----

/// A column's terms from `start` on as units, with zeros behind them.
#[inline(always)]
unsafe fn take<F: Integers>(
    w: &Right,
    column: usize,
    (start, terms): (usize, usize),
    to: *mut i32,
) {
    let units = terms.div_ceil(F::TERMS);
    let lanes = <F::S as Simd>::LANES;
    let whole = match w.steps[1] {
        1 => terms / (lanes * F::TERMS) * lanes,
        _ => 0,
    };
    for k in (0..whole).step_by(lanes) {
        let from = w.columns(column).data.add(start + k * F::TERMS);
        F::store(to.add(k), F::units(from));
    }
    for k in whole * F::TERMS..units * F::TERMS {
        let x = if k < terms {
            w.columns(column).at(0, start + k).read()
        } else {
            0
        };
        match F::TERMS {
            QUAD => to.cast::<i8>().add(k).write(x),
            _ => to.cast::<i16>().add(k).write(x.into()),
        }
    }
}

/// [`pack`] of columns that are packed already, for units of 16 bits. Columns and terms begin with a panel and a quad.
#[inline(always)]
unsafe fn widen<F: Integers>(
    w: &Right,
    (start, units): (usize, usize),
    (first, columns): (usize, usize),
    panels: *mut i32,
) {
    let lanes = <F::S as Simd>::LANES;
    let width = VECTORS * lanes;
    for j in (0..columns).step_by(BESIDE) {
        let panel = (first + j) / BESIDE * w.panel as usize;
        let from = w.data.add(panel + start * BESIDE).cast::<i32>();
        let to = panels.add(j / width * width * units + j % width);
        for unit in (0..units).step_by(2) {
            for v in (0..BESIDE).step_by(lanes) {
                let [low, high] = F::halves(F::load(from.add(unit / 2 * BESIDE + v)));
                F::store(to.add(unit * width + v), low);
                if unit + 1 < units {
                    F::store(to.add((unit + 1) * width + v), high);
                }
            }
        }
    }
}

/// Terms of some columns, from the first of each on, in panels.
#[inline(always)]
unsafe fn pack<F: Integers>(
    w: &Right,
    (start, terms): (usize, usize),
    (first, columns): (usize, usize),
    panels: *mut i32,
    taken: &mut Vec<i32>,
) {
    let units = terms.div_ceil(F::TERMS);
    if w.is_packed {
        return widen::<F>(w, (start, units), (first, columns), panels);
    }
    let data = w.columns(first).data.wrapping_add(start);
    let is_ready = F::TERMS == QUAD
        && w.steps[1] == 1
        && terms.is_multiple_of(QUAD)
        && w.steps[0] % QUAD as isize == 0
        && data.align_offset(QUAD) == 0;
    if is_ready {
        let columns_of_units = Matrix {
            data: data.cast::<f32>(),
            row: 1,
            column: w.steps[0] / QUAD as isize,
        };
        return panels::pack_columns::<F::S, Singles, f32>(
            columns_of_units,
            units,
            columns,
            panels.cast(),
        );
    }
    let width = VECTORS * F::S::LANES;
    let taken = room(taken, width * units);
    for from in (0..columns).step_by(width) {
        let count = width.min(columns - from);
        for j in 0..count {
            let to = taken.add(j * units);
            take::<F>(w, first + from + j, (start, terms), to);
        }
        let columns_of_units = Matrix {
            data: taken.cast::<f32>().cast_const(),
            row: 1,
            column: units as isize,
        };
        let to = panels.add(from * units).cast();
        panels::pack_columns::<F::S, Singles, f32>(columns_of_units, units, count, to);
    }
}

/// One tile: `R` rows of a left panel with a right panel, to `sums` in rows of a panel's width, or added to them. From
/// one vector of a right unit to the next it is `aside`, from one unit to the next `on`.
#[inline(always)]
unsafe fn tile<F: Integers, const R: usize>(
    units: usize,
    left: *const i32,
    right: *const i32,
    (aside, on): (usize, usize),
    sums: *mut i32,
    add: bool,
) {
    let lanes = <F::S as Simd>::LANES;
    let mut totals = [[F::splat(0); VECTORS]; R];
    let (mut left, mut right) = (left, right);
    for _ in 0..units {
        let mut row = [F::splat(0); VECTORS];
        for (v, x) in row.iter_mut().enumerate() {
            *x = F::unsigned(F::load(right.add(v * aside)));
        }
        for (i, total) in totals.iter_mut().enumerate() {
            let x = F::splat(*left.add(i));
            for (v, total) in total.iter_mut().enumerate() {
                *total = F::dot(*total, row[v], x);
            }
        }
        left = left.add(R);
        right = right.add(on);
    }
    for (i, total) in totals.iter().enumerate() {
        for (v, total) in total.iter().enumerate() {
            let to = sums.add((i * VECTORS + v) * lanes);
            let total = if add {
                F::add(F::load(to), *total)
            } else {
                *total
            };
            F::store(to, total);
        }
    }
}

/// [`tile`] of `count` rows.
#[inline(always)]
unsafe fn any_tile<F: Integers>(
    count: usize,
    units: usize,
    left: *const i32,
    right: *const i32,
    steps: (usize, usize),
    sums: *mut i32,
    add: bool,
) {
    match count {
        1 => tile::<F, 1>(units, left, right, steps, sums, add),
        2 => tile::<F, 2>(units, left, right, steps, sums, add),
        3 => tile::<F, 3>(units, left, right, steps, sums, add),
        4 => tile::<F, 4>(units, left, right, steps, sums, add),
        5 => tile::<F, 5>(units, left, right, steps, sums, add),
        6 => tile::<F, 6>(units, left, right, steps, sums, add),
        7 => tile::<F, 7>(units, left, right, steps, sums, add),
        8 => tile::<F, 8>(units, left, right, steps, sums, add),
        9 => tile::<F, 9>(units, left, right, steps, sums, add),
        10 => tile::<F, 10>(units, left, right, steps, sums, add),
        11 => tile::<F, 11>(units, left, right, steps, sums, add),
        _ => tile::<F, HEIGHT>(units, left, right, steps, sums, add),
    }
}

/// A tile's sums to the result: sum · (row's scale · column's scale) + bias.
#[inline(always)]
unsafe fn finish<F: Integers, T: Element>(
    part: &Part<T>,
    sums: *const i32,
    (i, count): (usize, usize),
    j: usize,
) {
    let lanes = <F::S as Simd>::LANES;
    for v in 0..VECTORS {
        let j = j + v * lanes;
        if j >= part.columns {
            return;
        }
        let scales = F::S::load(part.of.scales.as_ptr().add(part.first + j));
        let biases = F::S::load(part.of.biases.as_ptr().add(part.first + j));
        for row in 0..count {
            let excess = F::splat(*part.left.excess.add(i + row));
            let sum = F::sub(F::load(sums.add((row * VECTORS + v) * lanes)), excess);
            let scale = F::S::mul(F::S::splat(*part.left.scales.add(i + row)), scales);
            let x = F::S::add(F::S::mul(F::float(sum), scale), biases);
            let to = part.out.add((i + row) * part.of.columns + j);
            match part.columns - j {
                rest if rest < lanes => store_part::<F::S, T>(to, rest, x),
                _ => T::store::<F::S>(to, x),
            }
        }
    }
}

#[inline(always)]
unsafe fn part_body<F: Integers, T: Element>(part: &Part<T>, rooms: &mut Rooms) {
    let of = part.of;
    let lanes = <F::S as Simd>::LANES;
    let (height, width) = (panels::tile_rows(lanes), VECTORS * lanes);
    let (all, wide) = (
        of.terms.div_ceil(F::TERMS),
        part.columns.next_multiple_of(width),
    );
    // Whole quads.
    let step = block_cells(all);
    let step = step.next_multiple_of(QUAD / F::TERMS);
    // Columns that are packed already are read where they lie.
    let is_there = of.w.is_packed && F::TERMS == QUAD && lanes == BESIDE;
    let panels = room(&mut rooms.panels, if is_there { 0 } else { wide * step });
    let many = all > step;
    let sums = room(&mut rooms.sums, if many { of.rows * wide } else { 0 });
    let mut own = [0i32; HEIGHT * WIDTH];
    for unit in (0..all).step_by(step) {
        let units = step.min(all - unit);
        if !is_there {
            let (start, end) = (unit * F::TERMS, of.terms.min((unit + units) * F::TERMS));
            let columns = (part.first, part.columns);
            let terms = (start, end - start);
            pack::<F>(&of.w, terms, columns, panels, &mut rooms.units);
        }
        let is_last = unit + units == all;
        let packed = Packed {
            data: part.left.units.cast::<f32>(),
            cells: all,
            first: unit,
        };
        for i in (0..of.rows).step_by(height) {
            let count = height.min(of.rows - i);
            let left = packed.panel(i, count).cast::<i32>();
            for j in (0..wide).step_by(width) {
                let (right, steps) = match is_there {
                    true => {
                        let from = of.w.data.cast::<i32>().add((part.first + j) * all);
                        // The last panel may be the only one of two.
                        let is_single = part.first + j + lanes >= of.columns;
                        let aside = if is_single { 0 } else { all * lanes };
                        (from.add(unit * lanes), (aside, lanes))
                    }
                    false => (panels.add(j * units).cast_const(), (lanes, width)),
                };
                let sums = match many {
                    true => sums.add(i * wide + j * count),
                    false => own.as_mut_ptr(),
                };
                any_tile::<F>(count, units, left, right, steps, sums, unit > 0);
                if is_last {
                    finish::<F, T>(part, sums, (i, count), j);
                }
            }
        }
    }
}

in_form! {
    fn run_part<T: Element>(part: &Part<T>, rooms: &mut Rooms) = part_body
}

unsafe fn packed<T: Element>(of: &Product, out: *mut T) {
    let (rows, columns) = (of.rows, of.columns);
    let units = of.terms.div_ceil(of.form.terms());
    LEFT.with_borrow_mut(|(kept, scales, excess)| {
        let to = Shared(room(kept, rows * units));
        let scales = Shared(room(scales, rows));
        let excess = Shared(room(excess, rows));
        let band = (pool::PART / of.terms.max(1))
            .max(1)
            .next_multiple_of(HEIGHT);
        let share = rows * of.terms >= pool::WORTH_SHARING;
        pool::parallel(rows.div_ceil(band), share, &|number| {
            let first = number * band;
            let count = band.min(rows - first);
            ROOMS.with_borrow_mut(|rooms| {
                // SAFETY: this part's own rows.
                unsafe {
                    let left = LeftRoom {
                        units: to.at(first * units),
                        scales: scales.at(first),
                        excess: excess.at(first),
                    };
                    quantize_panels::<T>(of.form, of, first, count, left, rooms)
                }
            })
        });
        // SAFETY: filled above.
        let left = unsafe {
            Left {
                units: to.at(0),
                scales: scales.at(0),
                excess: excess.at(0),
            }
        };
        // An even number of parts on an even number of threads.
        let threads = pool::threads();
        let parts = columns.div_ceil(COLUMNS).next_multiple_of(threads);
        let size = columns.div_ceil(parts).next_multiple_of(WIDTH);
        by_columns(of, left, out, size, |part, rooms| {
            // SAFETY: within the operands, and columns that are this part's alone.
            unsafe { run_part::<T>(of.form, part, rooms) }
        });
        if kept.len() > MOST_KEPT / 4 {
            *kept = Vec::new();
        }
    })
}

/// Calls `work` with parts of `size` columns.
unsafe fn by_columns<T: Element>(
    of: &Product,
    left: Left,
    out: *mut T,
    size: usize,
    work: impl Fn(&Part<T>, &mut Rooms) + Sync,
) {
    let out = Shared(out);
    let share = of.rows * of.terms * of.columns >= WORTH_SHARING;
    pool::parallel(of.columns.div_ceil(size), share, &|number| {
        let first = number * size;
        let part = Part {
            of,
            left,
            first,
            columns: size.min(of.columns - first),
            // SAFETY: within the result.
            out: unsafe { out.at(first) },
        };
        ROOMS.with_borrow_mut(|rooms| work(&part, rooms));
        ROOMS.with_borrow_mut(|rooms| {
            if rooms.sums.len() > MOST_KEPT / 4 {
                rooms.sums = Vec::new();
            }
        });
    });
}

// ---- the kernel ----

/// A vector as f32, with zeros behind it up to whole panels.
unsafe fn widened(view: &View, of: Type, columns: usize, to: &mut Vec<f32>) {
    unsafe fn each<T: Element>(view: &View, columns: usize, to: &mut Vec<f32>) {
        let (from, step) = (view.data.cast::<T>(), view.step());
        to.extend((0..columns as isize).map(|j| from.offset(j * step).read().widen()));
    }
    to.clear();
    match of {
        Type::F16 => each::<f16>(view, columns, to),
        Type::Bf16 => each::<bf16>(view, columns, to),
        _ => each::<f32>(view, columns, to),
    }
    to.resize(columns.next_multiple_of(WIDTH), 0.0);
}

/// x is {…, terms}, of at most [`MAX_TERMS`]; then integers {columns, terms}, or packed as [`Right`] says, their
/// `scales` {columns}, and a `bias` {columns} where it has a type. `out` is {…, columns}.
///
/// # Safety
/// The views are of live arrays of these shapes and types.
pub unsafe fn run<T: Element>(inputs: &[View], scales: Type, bias: Option<Type>, out: &View) {
    run_in::<T>(Form::best(), inputs, scales, bias, out);
}

/// The right operand; a packed one that does not lie in rows becomes a copy in `copy`.
unsafe fn right(view: &View, copy: &mut Vec<i8>) -> Right {
    let (shape, strides) = (view.shape(), view.strides());
    let data = view.data.cast::<i8>().cast_const();
    if let [column, term] = *strides {
        return Right {
            data,
            steps: [column as isize, term as isize],
            is_packed: false,
            panel: 0,
        };
    }
    let [panel, quad, column, term] = [0, 1, 2, 3].map(|axis| strides[axis] as isize);
    if panel == BESIDE as isize * column && quad == QUAD as isize * term {
        // A matrix seen as a packed one, as by a transposition that is not copied.
        return Right {
            data,
            steps: [column, term],
            is_packed: false,
            panel: 0,
        };
    }
    let sizes = shape[1..].iter().map(|size| i64::from(*size));
    let mut below = 1;
    let mut in_rows = strides[3] == 1;
    for (size, stride) in sizes.rev().zip(strides[..3].iter().rev()) {
        below *= size;
        in_rows = in_rows && *stride == below;
    }
    if shape[0] == 1 {
        in_rows = strides[1..] == [64, 4, 1];
    }
    if !in_rows || data.align_offset(QUAD) != 0 {
        let places = |axis: usize| 0..i64::from(shape[axis]);
        for (a, b) in places(0).flat_map(|a| places(1).map(move |b| (a, b))) {
            for (c, d) in places(2).flat_map(|c| places(3).map(move |d| (c, d))) {
                let offset = a * strides[0] + b * strides[1] + c * strides[2] + d * strides[3];
                copy.push(data.offset(offset as isize).read());
            }
        }
    }
    Right {
        data: if copy.is_empty() { data } else { copy.as_ptr() },
        steps: [0, 0],
        is_packed: true,
        panel: shape[1] as isize * (QUAD * BESIDE) as isize,
    }
}

/// [`run`] in a form that the machine has.
///
/// # Safety
/// As there.
pub unsafe fn run_in<T: Element>(
    form: Form,
    inputs: &[View],
    scales: Type,
    bias: Option<Type>,
    out: &View,
) {
    let ((rows, terms), columns) = (inputs[0].rows(), inputs[2].shape()[0] as usize);
    let mut copy = Vec::new();
    VECTORS_OF_COLUMNS.with_borrow_mut(|[of_scales, biases]| {
        // SAFETY: as the caller says.
        unsafe {
            widened(&inputs[2], scales, columns, of_scales);
            match bias {
                Some(bias) => widened(&inputs[3], bias, columns, biases),
                None => {
                    biases.clear();
                    // Nothing is added to -0.0, either.
                    biases.resize(columns.next_multiple_of(WIDTH), -0.0);
                }
            }
            let product = Product {
                form,
                x: &inputs[0],
                w: right(&inputs[1], &mut copy),
                scales: of_scales,
                biases,
                rows,
                terms,
                columns,
            };
            let out = out.data.cast::<T>();
            let is_there = !product.w.is_packed && product.w.steps[1] == 1;
            if rows <= FEW_ROWS && is_there {
                few(&product, out);
            } else {
                packed(&product, out);
            }
        }
    })
}
