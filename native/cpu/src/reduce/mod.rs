//! Reductions over any axes of an array that lies in any way: the array is read once and no other is made. Threads
//! share both the results and the numbers of each; fold.rs says what becomes of the numbers.

use super::axes::{count, in_order, place, Axes, Axis};
use super::element::Element;
use super::fold::{Fold, LogSum, Product, Spread, Sum, Tile, BLOCK, GROUP};
use super::pool::{self, Shared};
use super::rows::{narrow as narrow_row, widen as widen_row};
use super::simd::dispatch;
use super::simd::{load_part, Level, Simd};
use super::View;
use smallvec::SmallVec;
use std::ffi::CStr;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reduction {
    Sum,
    Mean,
    Product,
    Variance {
        ddof: i32,
    },
    Deviation {
        ddof: i32,
    },
    /// log Σ e^x
    LogSum,
}

impl Reduction {
    pub fn name(self) -> &'static CStr {
        match self {
            Reduction::Sum => c"sum",
            Reduction::Mean => c"mean",
            Reduction::Product => c"prod",
            Reduction::Variance { .. } => c"var",
            Reduction::Deviation { .. } => c"std",
            Reduction::LogSum => c"logsumexp",
        }
    }
}

/// Numbers that a thread folds into one state before it is joined with others: the same for every number of threads.
const PIECE: usize = 8 * BLOCK;
/// Numbers from which a second thread pays, and of a part of the work.
const WORTH_SHARING: usize = 65_536;
const PART: usize = 16_384;
/// Numbers beside each other from which they are folded as a row, be there as many rows as there may.
const LONG_ROW: usize = 64;
/// Numbers beside each other, or results, from which it is worth while to take them in vectors.
const SHORT_ROW: usize = 16;
/// The most columns of a strip.
const MOST_COLUMNS: usize = 512;

/// How the work is done: what becomes one result is a unit of a single row, or a unit is a strip of columns beside
/// each other, each of which becomes a result. A unit is folded piece by piece.
struct Plan<T> {
    x: Shared<T>,
    /// The last element that may be read.
    last: Shared<T>,
    out: Shared<T>,
    /// Without the axis of columns.
    kept: Axes,
    reduced: Axes,
    columns: Option<Axis>,
    /// Whether numbers are put beside each other before they are folded.
    copies: bool,
    /// Numbers of each result.
    count: usize,
    /// Columns of a strip, and strips beside each other.
    strip: usize,
    strips: usize,
    units: usize,
    /// Rows of few columns that lie beside each other are taken as one row of as many columns; so many are left over
    /// in the end.
    group: usize,
    left: usize,
    /// Numbers that a column or a row has then, those of a piece, and pieces.
    length: usize,
    piece: usize,
    pieces: usize,
}

impl<T: Element> Plan<T> {
    /// For an array of pairs of numbers where `is_pair`.
    fn new<F: Fold>(x: &View, axes: &[u8], is_pair: bool, out: &View) -> Plan<T> {
        let wide = if is_pair { 2 } else { 1 };
        let (mut kept, mut reduced) = (Axes::new(), Axes::new());
        let (mut first, mut last, mut to) = (0, wide - 1, wide);
        if is_pair {
            kept.push(Axis {
                size: 2,
                step: 1,
                to: 1,
            });
        }
        for (number, (size, step)) in x.shape().iter().zip(x.strides()).enumerate().rev() {
            let (size, step) = (*size as usize, *step as isize * wide);
            let reach = step * (size as isize - 1);
            let is_reduced = axes.contains(&(number as u8));
            last += reach.max(0);
            if is_reduced && size > 1 {
                // The order of what is folded is of no account.
                first += reach.min(0);
                let step = step.abs();
                reduced.push(Axis { size, step, to: 0 });
            } else if !is_reduced {
                kept.push(Axis { size, step, to });
                to *= size as isize;
            }
        }
        kept.retain(|axis| axis.size > 1);
        let (kept, reduced) = (in_order(kept), in_order(reduced));
        let data = x.data.cast::<T>();
        // SAFETY: elements of the array.
        let (x, last) = unsafe { (Shared(data.offset(first)), Shared(data.offset(last))) };
        let mut plan = Plan {
            x,
            last,
            out: Shared(out.data.cast::<T>()),
            count: count(&reduced),
            kept,
            reduced,
            columns: None,
            copies: false,
            strip: 1,
            strips: 1,
            units: 1,
            group: 1,
            left: 0,
            length: 1,
            piece: PIECE,
            pieces: 1,
        };
        plan.choose::<F>();
        plan.length = count(&plan.reduced);
        plan.pieces = plan.length.div_ceil(plan.piece).max(1);
        plan.units = plan.strips * count(&plan.kept);
        plan
    }

    /// Rows where what is folded lies beside each other, columns where what is kept does. Else columns where rows are
    /// short, and rows where they are not, of numbers that are copied.
    fn choose<F: Fold>(&mut self) {
        let lies = |axes: &Axes| axes.last().is_some_and(|axis| axis.step == 1);
        let (in_rows, in_columns) = (lies(&self.reduced), lies(&self.kept));
        let run = self.reduced.last().map_or(1, |axis| axis.size);
        let largest = (0..self.kept.len()).max_by_key(|i| self.kept[*i].size);
        let chosen = if in_columns {
            self.kept.len().checked_sub(1)
        } else {
            largest
        };
        let Some(chosen) = chosen else {
            self.copies = !in_rows;
            return;
        };
        let columns = self.kept[chosen];
        let is_narrow = columns.size < SHORT_ROW;
        let is_long = run >= LONG_ROW || run >= SHORT_ROW && (is_narrow || self.count >= LONG_ROW);
        if in_rows && is_long {
            return;
        }
        let beside = match self.reduced.last() {
            Some(axis) if in_columns && is_narrow && axis.step == columns.size as isize => {
                // The least number of rows that makes whole vectors.
                (1..=GROUP).find(|rows| (rows * columns.size).is_multiple_of(GROUP))
            }
            _ => None,
        };
        let beside = beside.filter(|rows| run >= 8 * rows);
        if beside.is_none() && (is_narrow || !in_columns) && self.count >= LONG_ROW {
            self.copies = !in_rows || run < SHORT_ROW;
            return;
        }
        self.kept.remove(chosen);
        self.copies = !in_columns || !F::READS_ONCE;
        self.group = beside.unwrap_or(1);
        if let (Some(axis), true) = (self.reduced.last_mut(), self.group > 1) {
            self.left = axis.size % self.group;
            axis.size /= self.group;
            axis.step *= self.group as isize;
        }
        let size = columns.size * self.group;
        self.columns = Some(Axis { size, ..columns });
        self.strip = size.min(if self.group > 1 { size } else { F::STRIP });
        self.strips = size.div_ceil(self.strip);
        self.piece = (PIECE / self.width()).next_multiple_of(8);
    }

    /// States of a unit.
    fn width(&self) -> usize {
        match self.columns {
            Some(_) => self.strip.next_multiple_of(GROUP),
            None => 1,
        }
    }

    /// Room for numbers that are copied.
    fn room(&self) -> Vec<f32> {
        Vec::with_capacity(if self.copies || self.left > 0 {
            BLOCK
        } else {
            0
        })
    }

    /// Of a unit: where its first number lies in the array and in the result, and its columns.
    fn unit(&self, unit: usize) -> (isize, isize, usize) {
        let (from, to) = place(&self.kept, unit / self.strips);
        match self.columns {
            None => (from, to, 1),
            Some(axis) => {
                let first = unit % self.strips * self.strip;
                let columns = self.strip.min(axis.size - first);
                let first = first as isize;
                (from + first * axis.step, to + first * axis.to, columns)
            }
        }
    }
}

/// Does `$work` for each run of numbers `$from` to `$to` of a column or a row: where it begins, the elements from one
/// number to the next, how many numbers were before it, and its length, which is at most `$most`.
macro_rules! runs {
    ($plan:expr, $from:expr, $to:expr, $most:expr, |$start:ident, $step:ident, $done:ident, $count:ident| $work:expr) => {{
        let reduced: &[Axis] = &$plan.reduced;
        let (outer, length, $step) = match reduced.split_last() {
            Some((last, outer)) => (outer, last.size, last.step),
            None => (reduced, 1, 0),
        };
        let (from, to): (usize, usize) = ($from, $to);
        let mut at = from;
        while at < to {
            let (row, column) = (at / length, at % length);
            let $count = (length - column).min(to - at).min($most);
            let $start = place(outer, row).0 + column as isize * $step;
            let $done = at - from;
            $work;
            at += $count;
        }
    }};
}

#[inline(always)]
unsafe fn row_body<S: Simd, T: Element, F: Fold>(
    state: &mut F::State,
    seen: usize,
    x: *const T,
    count: usize,
) {
    F::row::<S, T>(state, seen, x, count)
}

dispatch! {
    fn fold_row<T: Element, F: Fold>(state: &mut F::State, seen: usize, x: *const T, count: usize) = row_body
}

#[inline(always)]
unsafe fn columns_body<S: Simd, T: Element, F: Fold>(
    states: *mut F::State,
    seen: usize,
    tile: &Tile<T>,
) {
    F::columns::<S, T>(states, seen, tile)
}

dispatch! {
    fn fold_columns<T: Element, F: Fold>(states: *mut F::State, seen: usize, tile: &Tile<T>) = columns_body
}

dispatch! {
    fn narrow<T: Element>(from: *const f32, to: *mut T, count: usize) = narrow_row
}

/// Numbers that are put beside each other: `rows` times `columns`, `row` and `column` elements apart.
struct Apart<T> {
    x: *const T,
    row: isize,
    column: isize,
    rows: usize,
    columns: usize,
    /// The last element that may be read.
    last: *const T,
}

/// To rows of `width`, with zeros behind the columns.
#[inline(always)]
unsafe fn pack_body<S: Simd, T: Element>(from: &Apart<T>, to: *mut f32, width: usize) {
    let (rows, columns) = (from.rows, from.columns);
    let turned = if from.row == 1 {
        columns / S::LANES * S::LANES
    } else {
        0
    };
    // Where each column lies beside itself, squares are turned.
    for column in (0..turned).step_by(S::LANES) {
        let x = from.x.offset(column as isize * from.column);
        for row in (0..rows).step_by(S::LANES) {
            let mut square = [S::splat(0.0); 16];
            for (i, line) in square.iter_mut().enumerate().take(S::LANES) {
                let x = x.offset(i as isize * from.column).add(row);
                let is_whole = row + S::LANES <= rows || x.wrapping_add(S::LANES - 1) <= from.last;
                *line = match is_whole {
                    true => T::load::<S>(x),
                    false => load_part::<S, T>(x, rows - row, 0.0),
                };
            }
            S::turn(&mut square);
            for (i, line) in square.iter().enumerate().take(S::LANES.min(rows - row)) {
                S::store(to.add((row + i) * width + column), *line);
            }
        }
    }
    for row in 0..rows {
        let x = from.x.offset(row as isize * from.row);
        let to = to.add(row * width);
        if from.column == 1 {
            widen_row::<S, T>(x, to, columns);
        } else {
            for column in turned..columns {
                let x = x.offset(column as isize * from.column).read();
                to.add(column).write(x.widen());
            }
        }
        for column in columns..width {
            to.add(column).write(0.0);
        }
    }
}

dispatch! {
    fn pack<T: Element>(from: &Apart<T>, to: *mut f32, width: usize) = pack_body
}

/// Folds a piece of a unit into states that are [`Fold::NONE`]. `room` is as large as [`Plan::room`].
unsafe fn fold_piece<T: Element, F: Fold>(
    level: Level,
    plan: &Plan<T>,
    unit: usize,
    piece: usize,
    states: *mut F::State,
    room: *mut f32,
) {
    let (from, _, columns) = plan.unit(unit);
    let x = plan.x.offset(from).cast_const();
    let first = piece * plan.piece;
    let last = plan.length.min(first + plan.piece);
    let Some(axis) = plan.columns else {
        let state = &mut *states;
        if !plan.copies {
            runs!(plan, first, last, BLOCK, |start, step, done, count| {
                let _ = step;
                fold_row::<T, F>(level, state, done, x.offset(start), count)
            });
            return;
        }
        let (copy, mut held) = (room.cast::<T>(), 0);
        runs!(
            plan,
            first,
            last,
            BLOCK - held,
            |start, step, done, count| {
                for i in 0..count as isize {
                    let x = x.offset(start + i * step).read();
                    copy.add(held + i as usize).write(x);
                }
                held += count;
                if held == BLOCK || first + done + count == last {
                    fold_row::<T, F>(level, state, done + count - held, copy, held);
                    held = 0;
                }
            }
        );
        return;
    };
    if F::READS_ONCE && !plan.copies {
        runs!(plan, first, last, usize::MAX, |start, step, done, rows| {
            // Whole groups end at most so many elements behind the columns.
            let more = columns.next_multiple_of(GROUP) - columns;
            let whole_rows = match step {
                1.. => rows.saturating_sub(more.div_ceil(step as usize)),
                _ => 0,
            };
            let tile = Tile {
                x: x.offset(start),
                step,
                rows,
                columns,
                whole_rows,
            };
            fold_columns::<T, F>(level, states, done, &tile)
        });
        return;
    }
    // As many rows of the columns as there is room for.
    let width = columns.next_multiple_of(GROUP);
    let (most, mut held) = (BLOCK / width, 0);
    runs!(plan, first, last, most - held, |start, step, done, rows| {
        let from = Apart {
            x: x.offset(start),
            row: step,
            column: axis.step,
            rows,
            columns,
            last: plan.last.at(0),
        };
        pack(level, &from, room.add(held * width), width);
        held += rows;
        if held == most || first + done + rows == last {
            let tile = Tile {
                x: room.cast_const(),
                step: width as isize,
                rows: held,
                columns: width,
                whole_rows: held,
            };
            fold_columns::<f32, F>(level, states, done + rows - held, &tile);
            held = 0;
        }
    });
}

/// Adds the states of the next piece of a unit to those of all pieces before it.
unsafe fn join_pieces<T, F: Fold>(
    plan: &Plan<T>,
    piece: usize,
    states: *mut F::State,
    next: *const F::State,
) where
    T: Element,
{
    let seen = piece * plan.piece;
    let more = plan.piece.min(plan.length - seen);
    for i in 0..plan.width() {
        F::join(&mut *states.add(i), seen, &*next.add(i), more);
    }
}

/// Adds the columns of a group to those of its first row, and the rows that are left over.
unsafe fn join_group<T: Element, F: Fold>(
    level: Level,
    plan: &Plan<T>,
    unit: usize,
    states: *mut F::State,
    room: *mut f32,
) {
    let (Some(axis), Some((inner, outer))) = (plan.columns, plan.reduced.split_last()) else {
        return;
    };
    let columns = axis.size / plan.group;
    let x = plan.x.offset(plan.unit(unit).0).cast_const();
    for column in 0..columns {
        let state = &mut *states.add(column);
        for row in 1..plan.group {
            let other = &*states.add(row * columns + column);
            F::join(state, row * plan.length, other, plan.length);
        }
        if plan.left == 0 {
            continue;
        }
        let (copy, mut seen) = (room.cast::<T>(), plan.group * plan.length);
        for row in 0..count(outer) {
            let start = place(outer, row).0 + inner.size as isize * inner.step + column as isize;
            for i in 0..plan.left {
                copy.add(i).write(x.offset(start).add(i * columns).read());
            }
            fold_row::<T, F>(level, state, seen, copy, plan.left);
            seen += plan.left;
        }
    }
}

unsafe fn write<T: Element, F: Fold>(
    level: Level,
    plan: &Plan<T>,
    fold: F,
    unit: usize,
    states: *const F::State,
) {
    let (_, to, columns) = plan.unit(unit);
    let (columns, out) = (columns / plan.group, plan.out.offset(to));
    let result = |i: usize| fold.result(&*states.add(i), plan.count) as f32;
    let step = plan.columns.map_or(0, |axis| axis.to);
    if step == 1 {
        let mut results = [0f32; MOST_COLUMNS];
        for (i, to) in results.iter_mut().enumerate().take(columns) {
            *to = result(i);
        }
        return narrow::<T>(level, results.as_ptr(), out, columns);
    }
    for i in 0..columns {
        out.offset(i as isize * step).write(T::narrow(result(i)));
    }
}

/// What a unit's pieces came to, to the result.
unsafe fn finish<T: Element, F: Fold>(
    level: Level,
    plan: &Plan<T>,
    fold: F,
    unit: usize,
    states: *mut F::State,
    room: *mut f32,
) {
    if plan.group > 1 {
        join_group::<T, F>(level, plan, unit, states, room);
    }
    write(level, plan, fold, unit, states);
}

unsafe fn run_as<T: Element, F: Fold>(level: Level, fold: F, plan: &Plan<T>) {
    let (width, units, pieces) = (plan.width(), plan.units, plan.pieces);
    let size = units * plan.strip * plan.length;
    let share = size >= WORTH_SHARING;
    if pieces == 1 || !share || units >= 4 * pool::threads() {
        let together = (PART / (plan.strip * plan.length)).max(1);
        return pool::parallel(units.div_ceil(together), share, &|part| {
            let mut room = plan.room();
            let mut states = SmallVec::<[F::State; 2]>::from_elem(F::NONE, 2 * width);
            let (room, states) = (room.as_mut_ptr(), states.as_mut_ptr());
            for unit in part * together..units.min((part + 1) * together) {
                // SAFETY: the plan's own units, and rooms as large as they need.
                unsafe {
                    for piece in 0..pieces {
                        let own = if piece == 0 {
                            states
                        } else {
                            states.add(width)
                        };
                        (0..width).for_each(|i| own.add(i).write(F::NONE));
                        fold_piece::<T, F>(level, plan, unit, piece, own, room);
                        if piece > 0 {
                            join_pieces::<T, F>(plan, piece, states, own);
                        }
                    }
                    finish(level, plan, fold, unit, states, room);
                }
            }
        });
    }
    let mut states = vec![F::NONE; units * pieces * width];
    let all = Shared(states.as_mut_ptr());
    pool::parallel(units * pieces, share, &|part| {
        let mut room = plan.room();
        let (unit, piece) = (part / pieces, part % pieces);
        // SAFETY: the plan's own unit and piece, whose states are this part's alone.
        unsafe {
            let own = all.at(part * width);
            fold_piece::<T, F>(level, plan, unit, piece, own, room.as_mut_ptr())
        }
    });
    let mut room = plan.room();
    for unit in 0..units {
        let first = all.at(unit * pieces * width);
        for piece in 1..pieces {
            join_pieces::<T, F>(plan, piece, first, first.add(piece * width));
        }
        finish(level, plan, fold, unit, first, room.as_mut_ptr());
    }
}

/// `x` reduced over `axes` to `out`; of pairs of numbers, each apart, where `is_pair`.
///
/// # Safety
/// The views are of live arrays, `x` with elements; `out` lies in rows and has `x`'s axes but for `axes`, or these
/// with size 1.
pub unsafe fn run<T: Element>(
    level: Level,
    reduction: Reduction,
    axes: &[u8],
    is_pair: bool,
    x: &View,
    out: &View,
) {
    macro_rules! with {
        ($F:ty, $fold:expr) => {{
            let plan = Plan::<T>::new::<$F>(x, axes, is_pair, out);
            run_as::<T, $F>(level, $fold, &plan)
        }};
    }
    match reduction {
        Reduction::Sum => with!(Sum, Sum { is_mean: false }),
        Reduction::Mean => with!(Sum, Sum { is_mean: true }),
        Reduction::Product => with!(Product, Product),
        Reduction::Variance { ddof } => with!(
            Spread,
            Spread {
                ddof,
                is_root: false
            }
        ),
        Reduction::Deviation { ddof } => with!(
            Spread,
            Spread {
                ddof,
                is_root: true
            }
        ),
        Reduction::LogSum => with!(LogSum, LogSum),
    }
}
