//! Cumulative sums and products along an axis, kept in f64 and rounded for each number of the result.

use super::element::Element;
use super::fold::{Fold, Product, Sum};
use super::pool::{self, Shared};
use super::rows;
use super::simd::dispatch;
use super::simd::{load_part, store_part, Level, Simd};
use super::View;
use smallvec::SmallVec;
use std::ffi::CStr;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scan {
    Sum,
    Product,
    /// log Σ e^x
    LogSum,
}

impl Scan {
    pub fn name(self) -> &'static CStr {
        match self {
            Scan::Sum => c"cumsum",
            Scan::Product => c"cumprod",
            Scan::LogSum => c"logcumsumexp",
        }
    }
}

/// Numbers from which a second thread pays.
const WORTH_SHARING: usize = 16_384;
/// Numbers of a line that are brought beside each other at a time.
const BLOCK: usize = 512;
/// Numbers of a long line that a thread takes at a time, lines being long from four times as many, where there are few
/// of them.
const PIECE: usize = 32_768;
const FEW_LINES: usize = 8;
/// Columns that are scanned side by side, where as many lie beside each other.
const STRIP: usize = 256;
const FEWEST_COLUMNS: usize = 8;

/// What is asked for. Pairs of numbers are each scanned apart where `is_pair`.
pub struct How {
    pub scan: Scan,
    pub axis: usize,
    pub is_reverse: bool,
    pub is_inclusive: bool,
    pub is_pair: bool,
}

/// What is kept of the numbers before: one number whose logarithm is relative to the largest number for
/// [`Scan::LogSum`].
#[derive(Clone, Copy)]
struct State {
    value: f64,
    top: f64,
}

/// An axis that is not scanned: its size, and the elements between its places in the array and in the result.
type Kept = (usize, isize, isize);

struct Plan<T> {
    x: Shared<T>,
    out: Shared<T>,
    scan: Scan,
    is_inclusive: bool,
    kept: SmallVec<[Kept; 4]>,
    /// The axis that is scanned, from its first number on; steps are negative where it is scanned from the end.
    count: usize,
    step: isize,
    to_step: isize,
}

impl Scan {
    fn none(self) -> State {
        let value = match self {
            // So that -0.0 stays what it is.
            Scan::Sum => -0.0,
            Scan::Product => 1.0,
            Scan::LogSum => 0.0,
        };
        let top = f64::NEG_INFINITY;
        State { value, top }
    }
}

/// `count` numbers after those of `state`, in place.
#[inline(always)]
fn scan_block(scan: Scan, is_inclusive: bool, state: &mut State, block: &mut [f32]) {
    match scan {
        Scan::Sum => by_fours(is_inclusive, &mut state.value, block, |a, b| a + b),
        Scan::Product => by_fours(is_inclusive, &mut state.value, block, |a, b| a * b),
        Scan::LogSum => {
            for x in block {
                let next = with_exponential(*state, f64::from(*x));
                let shown = if is_inclusive { next } else { *state };
                *x = (shown.top + shown.value.ln()) as f32;
                *state = next;
            }
        }
    }
}

/// Four numbers are joined by themselves first, so that one operation in four waits for the one before.
#[inline(always)]
fn by_fours(
    is_inclusive: bool,
    state: &mut f64,
    block: &mut [f32],
    join: impl Fn(f64, f64) -> f64,
) {
    let mut fours = block.chunks_exact_mut(4);
    for four in &mut fours {
        let a = f64::from(four[0]);
        let b = join(a, f64::from(four[1]));
        let c = join(b, f64::from(four[2]));
        let all = join(c, f64::from(four[3]));
        let [a, b, c] = [a, b, c].map(|part| join(*state, part) as f32);
        let next = join(*state, all);
        let shown = match is_inclusive {
            true => [a, b, c, next as f32],
            false => [*state as f32, a, b, c],
        };
        four.copy_from_slice(&shown);
        *state = next;
    }
    for x in fours.into_remainder() {
        let next = join(*state, f64::from(*x));
        *x = if is_inclusive { next } else { *state } as f32;
        *state = next;
    }
}

/// A state of `Scan::LogSum` with one number more. Its logarithm is that of `value`, plus `top`.
#[inline(always)]
fn with_exponential(state: State, x: f64) -> State {
    let State { value, top } = state;
    if x == top || x == f64::NEG_INFINITY {
        // Infinities would be subtracted from each other.
        let more = if x == f64::NEG_INFINITY { 0.0 } else { 1.0 };
        State {
            value: value + more,
            top,
        }
    } else if x > top {
        State {
            value: value * (top - x).exp() + 1.0,
            top: x,
        }
    } else {
        State {
            value: value + (x - top).exp(),
            top,
        }
    }
}

impl<T: Element> Plan<T> {
    fn place(&self, mut line: usize) -> (isize, isize) {
        let (mut from, mut to) = (0, 0);
        for (size, step, to_step) in self.kept.iter().rev() {
            let at = (line % size) as isize;
            from += at * step;
            to += at * to_step;
            line /= size;
        }
        (from, to)
    }
}

/// The numbers `first` to `last` of a line, after those of `state`.
#[inline(always)]
unsafe fn line_body<S: Simd, T: Element>(
    plan: &Plan<T>,
    line: usize,
    (first, last): (usize, usize),
    state: &mut State,
) {
    let (from, to) = plan.place(line);
    let (x, out) = (plan.x.offset(from), plan.out.offset(to));
    let mut room = [0f32; BLOCK];
    let mut at = first;
    while at < last {
        let count = BLOCK.min(last - at);
        let block = &mut room[..count];
        let x = x.offset(at as isize * plan.step).cast_const();
        if plan.step == 1 {
            rows::widen::<S, T>(x, block.as_mut_ptr(), count);
        } else {
            for (i, to) in block.iter_mut().enumerate() {
                *to = x.offset(i as isize * plan.step).read().widen();
            }
        }
        scan_block(plan.scan, plan.is_inclusive, state, block);
        let out = out.offset(at as isize * plan.to_step);
        if plan.to_step == 1 {
            rows::narrow::<S, T>(block.as_ptr(), out, count);
        } else {
            for (i, value) in block.iter().enumerate() {
                let to = out.offset(i as isize * plan.to_step);
                to.write(T::narrow(*value));
            }
        }
        at += count;
    }
}

dispatch! {
    fn run_line<T: Element>(plan: &Plan<T>, line: usize, range: (usize, usize), state: &mut State) = line_body
}

/// What numbers `first` to `last` of a line come to, of sums and products.
#[inline(always)]
unsafe fn total_body<S: Simd, T: Element>(
    plan: &Plan<T>,
    line: usize,
    (first, last): (usize, usize),
    total: &mut f64,
) {
    let x = plan.x.offset(plan.place(line).0).cast_const();
    let mut room = [T::narrow(0.0); BLOCK];
    let mut at = first;
    while at < last {
        let count = BLOCK.min(last - at);
        let mut x = x.offset(at as isize * plan.step);
        if plan.step != 1 {
            for (i, to) in room.iter_mut().enumerate().take(count) {
                *to = x.offset(i as isize * plan.step).read();
            }
            x = room.as_ptr();
        }
        match plan.scan {
            Scan::Product => Product::row::<S, T>(total, 0, x, count),
            _ => Sum::row::<S, T>(total, 0, x, count),
        }
        at += count;
    }
}

dispatch! {
    fn run_total<T: Element>(plan: &Plan<T>, line: usize, range: (usize, usize), total: &mut f64) = total_body
}

fn join(scan: Scan, a: f64, b: f64) -> f64 {
    match scan {
        Scan::Product => a * b,
        _ => a + b,
    }
}

/// Up to [`STRIP`] lines side by side, of sums and products.
#[inline(always)]
unsafe fn columns_body<S: Simd, T: Element>(
    plan: &Plan<T>,
    (from, to): (isize, isize),
    columns: usize,
) {
    let (x, out) = (plan.x.offset(from), plan.out.offset(to));
    let mut states = [plan.scan.none().value; STRIP];
    let is_sum = plan.scan == Scan::Sum;
    for i in 0..plan.count as isize {
        let x = x.offset(i * plan.step).cast_const();
        let out = out.offset(i * plan.to_step);
        for column in (0..columns).step_by(S::LANES) {
            let rest = columns - column;
            let is_whole = rest >= S::LANES;
            let v = S::widen(match is_whole {
                true => T::load::<S>(x.add(column)),
                false => load_part::<S, T>(x.add(column), rest, 0.0),
            });
            let state = states.as_mut_ptr().add(column);
            let before = S::wide_load(state);
            let next = match is_sum {
                true => S::wide_add(before, v),
                false => S::wide_mul(before, v),
            };
            S::wide_store(state, next);
            let shown = S::narrow(if plan.is_inclusive { next } else { before });
            match is_whole {
                true => T::store::<S>(out.add(column), shown),
                false => store_part::<S, T>(out.add(column), rest, shown),
            }
        }
    }
}

dispatch! {
    fn run_columns<T: Element>(plan: &Plan<T>, place: (isize, isize), columns: usize) = columns_body
}

/// `x` scanned along an axis to `out`.
///
/// # Safety
/// The views are of live arrays of one shape, with elements, and `out` lies in rows.
pub unsafe fn run<T: Element>(level: Level, how: &How, x: &View, out: &View) {
    let How {
        scan,
        axis,
        is_reverse,
        is_inclusive,
        is_pair,
    } = *how;
    let wide = if is_pair { 2 } else { 1 };
    let mut kept: SmallVec<[Kept; 4]> = SmallVec::new();
    for (i, size) in x.shape().iter().enumerate() {
        if i != axis && *size > 1 {
            let (step, to) = (x.strides()[i] as isize, out.strides()[i] as isize);
            kept.push((*size as usize, step * wide, to * wide));
        }
    }
    if is_pair {
        kept.push((2, 1, 1));
    }
    let count = x.shape()[axis] as usize;
    let (step, to_step) = (
        x.strides()[axis] as isize * wide,
        out.strides()[axis] as isize * wide,
    );
    let last = if is_reverse { count as isize - 1 } else { 0 };
    let turn = if is_reverse { -1 } else { 1 };
    let mut plan = Plan {
        x: Shared(x.data.cast::<T>().offset(last * step)),
        out: Shared(out.data.cast::<T>().offset(last * to_step)),
        scan,
        is_inclusive,
        kept,
        count,
        step: step * turn,
        to_step: to_step * turn,
    };
    let lines: usize = plan.kept.iter().map(|(size, ..)| size).product();
    let share = lines * count >= WORTH_SHARING;
    if let (Some((columns, 1, 1)), true) = (plan.kept.last().copied(), scan != Scan::LogSum) {
        if columns >= FEWEST_COLUMNS {
            plan.kept.pop();
            let (plan, strips) = (&plan, columns.div_ceil(STRIP));
            return pool::parallel(lines / columns * strips, share, &|part| {
                let first = part % strips * STRIP;
                // SAFETY: within both arrays; columns that are this part's alone.
                unsafe {
                    let (from, to) = plan.place(part / strips);
                    let place = (from + first as isize, to + first as isize);
                    run_columns::<T>(level, plan, place, STRIP.min(columns - first))
                }
            });
        }
    }
    let plan = &plan;
    if scan != Scan::LogSum && count >= 4 * PIECE && lines <= FEW_LINES {
        return long_lines(level, plan, lines);
    }
    let together = (WORTH_SHARING / 4 / count).max(1);
    pool::parallel(lines.div_ceil(together), share, &|part| {
        for line in part * together..lines.min((part + 1) * together) {
            // SAFETY: within both arrays; a line that is this part's alone.
            unsafe { run_line::<T>(level, plan, line, (0, count), &mut scan.none()) }
        }
    });
}

/// Lines in pieces: what each piece comes to, and then each piece after what those before it come to.
unsafe fn long_lines<T: Element>(level: Level, plan: &Plan<T>, lines: usize) {
    let pieces = plan.count.div_ceil(PIECE);
    let range = |piece: usize| (piece * PIECE, plan.count.min((piece + 1) * PIECE));
    let mut before = vec![plan.scan.none().value; lines * pieces];
    let totals = Shared(before.as_mut_ptr());
    pool::parallel(lines * (pieces - 1), true, &|part| {
        let (line, piece) = (part / (pieces - 1), part % (pieces - 1));
        // SAFETY: within the array; a place that is this part's alone.
        unsafe {
            let to = totals.at(line * pieces + piece + 1);
            run_total::<T>(level, plan, line, range(piece), &mut *to);
        }
    });
    for line in before.chunks_mut(pieces) {
        for piece in 1..pieces {
            line[piece] = join(plan.scan, line[piece - 1], line[piece]);
        }
    }
    pool::parallel(lines * pieces, true, &|part| {
        let mut state = State {
            value: before[part],
            ..plan.scan.none()
        };
        let (line, piece) = (part / pieces, part % pieces);
        // SAFETY: within both arrays; a piece that is this part's alone.
        unsafe { run_line::<T>(level, plan, line, range(piece), &mut state) }
    });
}
