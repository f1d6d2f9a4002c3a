//! Reductions of numbers of every type that are exact in whatever order they are done: the largest and the smallest,
//! whether all or any are other than zero, and sums and products of integers. The array is read once, wherever its
//! elements lie.

use super::axes::{count, in_order, place, Axes, Axis};
use super::keys::with_type;
use super::pool::{self, Shared, PART, WORTH_SHARING};
use super::simd::{dispatch, Level, Simd};
use super::{Type, View};
use half::{bf16, f16};
use std::marker::PhantomData;

/// What becomes of numbers. The order is of no account.
trait Fold: 'static {
    type Number: Copy;
    type State: Copy;
    type Out: Copy;
    const NONE: Self::State;
    fn join(state: Self::State, x: Self::Number) -> Self::State;
    fn merge(a: Self::State, b: Self::State) -> Self::State;
    fn out(state: Self::State) -> Self::Out;
}

/// The largest or the smallest; NaN where there is one.
struct Extreme<T, const MAX: bool>(PhantomData<T>);

macro_rules! extremes_of_integers {
    ($($t:ty),+) => { $(
        impl<const MAX: bool> Fold for Extreme<$t, MAX> {
            type Number = $t;
            type State = $t;
            type Out = $t;
            const NONE: $t = if MAX { <$t>::MIN } else { <$t>::MAX };
            #[inline(always)]
            fn join(a: $t, b: $t) -> $t {
                if MAX { a.max(b) } else { a.min(b) }
            }
            #[inline(always)]
            fn merge(a: $t, b: $t) -> $t {
                Self::join(a, b)
            }
            #[inline(always)]
            fn out(state: $t) -> $t {
                state
            }
        }
    )+ };
}

extremes_of_integers!(u8, u16, u32, u64, i8, i16, i32, i64);

macro_rules! extremes_of_floats {
    ($($t:ty as $whole:ty, $bits:ty),+) => { $(
        /// As whole numbers in the same order, where NaN is the furthest out. The compiler makes vectors of these.
        impl<const MAX: bool> Fold for Extreme<$t, MAX> {
            type Number = $t;
            type State = $whole;
            type Out = $t;
            const NONE: $whole = if MAX { <$whole>::MIN } else { <$whole>::MAX };
            #[inline(always)]
            fn join(state: $whole, x: $t) -> $whole {
                const INFINITY: $whole = <$t>::INFINITY.to_bits() as $whole;
                let bits = x.to_bits() as $whole;
                let whole = bits ^ ((bits >> (<$whole>::BITS - 1)) & <$whole>::MAX);
                let is_nan = bits & <$whole>::MAX > INFINITY;
                let nan = if MAX { <$whole>::MAX } else { <$whole>::MIN };
                Self::merge(state, if is_nan { nan } else { whole })
            }
            #[inline(always)]
            fn merge(a: $whole, b: $whole) -> $whole {
                if MAX { a.max(b) } else { a.min(b) }
            }
            #[inline(always)]
            fn out(state: $whole) -> $t {
                let bits = state ^ ((state >> (<$whole>::BITS - 1)) & <$whole>::MAX);
                <$t>::from_bits(bits as $bits)
            }
        }
    )+ };
}

extremes_of_floats!(
    f16 as i16,
    u16,
    bf16 as i16,
    u16,
    f32 as i32,
    u32,
    f64 as i64,
    u64
);

/// Whether all, or any, of what is as large as `T` are other than zero. Of floats the sign is left out.
struct Truth<T, const ALL: bool, const FLOAT: bool>(PhantomData<T>);

macro_rules! truths {
    ($($t:ty),+) => { $(
        impl<const ALL: bool, const FLOAT: bool> Fold for Truth<$t, ALL, FLOAT> {
            type Number = $t;
            /// The smallest number, or all bits together.
            type State = $t;
            type Out = u8;
            const NONE: $t = if ALL { <$t>::MAX } else { 0 };
            #[inline(always)]
            fn join(state: $t, x: $t) -> $t {
                Self::merge(state, if FLOAT { x & (<$t>::MAX >> 1) } else { x })
            }
            #[inline(always)]
            fn merge(a: $t, b: $t) -> $t {
                if ALL { a.min(b) } else { a | b }
            }
            #[inline(always)]
            fn out(state: $t) -> u8 {
                (state != 0).into()
            }
        }
    )+ };
}

truths!(u8, u16, u32, u64);

/// The sum or the product of integers, which wraps round. In 32 bits at least.
struct Total<T, const PRODUCT: bool>(PhantomData<T>);

macro_rules! totals {
    ($($t:ty => $wide:ty),+) => { $(
        impl<const PRODUCT: bool> Fold for Total<$t, PRODUCT> {
            type Number = $t;
            type State = $wide;
            type Out = $wide;
            const NONE: $wide = PRODUCT as $wide;
            #[inline(always)]
            fn join(state: $wide, x: $t) -> $wide {
                Self::merge(state, x as $wide)
            }
            #[inline(always)]
            fn merge(a: $wide, b: $wide) -> $wide {
                if PRODUCT { a.wrapping_mul(b) } else { a.wrapping_add(b) }
            }
            #[inline(always)]
            fn out(state: $wide) -> $wide {
                state
            }
        }
    )+ };
}

totals!(u8 => u32, u16 => u32, u32 => u32, u64 => u64, i8 => u32, i16 => u32, i32 => u32, i64 => u64);

/// Numbers beside each other from which a row is folded as one; fewer are columns.
const SHORTEST_ROW: usize = 16;
/// Columns of a strip.
const STRIP: usize = 1024;
/// Numbers that rows of few columns are taken together to.
const WIDE: usize = 128;
/// The fewest numbers of a row that are folded side by side, and numbers of a row from which more are.
const FEW_LANES: usize = 16;
const LANES_WORTH: usize = 256;

/// How the work is done: a unit is what becomes one result, or a strip of columns, each of which becomes a result. A
/// unit is folded in pieces where there are few units.
struct Plan<F: Fold> {
    x: Shared<F::Number>,
    out: Shared<F::Out>,
    /// Without the axis of columns.
    kept: Axes,
    reduced: Axes,
    columns: Option<Axis>,
    /// Columns of a strip, and strips beside each other.
    strip: usize,
    strips: usize,
    units: usize,
    /// The axis that is cut into pieces.
    cut: usize,
    pieces: usize,
}

impl<F: Fold> Plan<F> {
    unsafe fn new(x: &View, axes: &[u8], out: &View) -> Plan<F> {
        let (mut kept, mut reduced) = (Axes::new(), Axes::new());
        let (mut first, mut to) = (0, 1);
        for (number, (size, step)) in x.shape().iter().zip(x.strides()).enumerate().rev() {
            let (size, step) = (*size as usize, *step as isize);
            if !axes.contains(&(number as u8)) {
                kept.push(Axis { size, step, to });
                to *= size as isize;
            } else if size > 1 {
                first += (step * (size as isize - 1)).min(0);
                let step = step.abs();
                reduced.push(Axis { size, step, to: 0 });
            }
        }
        kept.retain(|axis| axis.size > 1);
        let mut plan = Plan {
            x: Shared(x.data.cast::<F::Number>().offset(first)),
            out: Shared(out.data.cast()),
            kept: in_order(kept),
            reduced: in_order(reduced),
            columns: None,
            strip: 1,
            strips: 1,
            units: 1,
            cut: 0,
            pieces: 1,
        };
        plan.choose(x.size());
        plan
    }

    /// Rows where what is reduced lies beside each other for long enough, or nothing is kept. Else columns.
    fn choose(&mut self, size: usize) {
        let row = self.reduced.last().filter(|axis| axis.step == 1);
        if row.is_none_or(|axis| axis.size < SHORTEST_ROW) {
            let beside = self.kept.last().is_some_and(|axis| axis.step == 1);
            let chosen = match beside {
                true => self.kept.len().checked_sub(1),
                false => (0..self.kept.len()).max_by_key(|i| self.kept[*i].size),
            };
            self.columns = chosen.map(|i| self.kept.remove(i));
        }
        if let Some(columns) = self.columns {
            self.strip = columns.size.min(STRIP);
            self.strips = columns.size.div_ceil(STRIP);
        }
        self.units = count(&self.kept) * self.strips;
        let longest = (0..self.reduced.len()).max_by_key(|i| self.reduced[*i].size);
        let (Some(cut), true) = (longest, size >= WORTH_SHARING) else {
            return;
        };
        let wanted = 2 * pool::threads();
        if self.units < wanted {
            let most = (size / self.units / PART).clamp(1, self.reduced[cut].size);
            (self.cut, self.pieces) = (cut, wanted.div_ceil(self.units).min(most));
        }
    }

    /// What is reduced in a piece, and where it begins.
    fn piece(&self, piece: usize) -> (isize, Axes) {
        let mut reduced = self.reduced.clone();
        if self.pieces == 1 {
            return (0, reduced);
        }
        let axis = &mut reduced[self.cut];
        let at = |piece: usize| axis.size * piece / self.pieces;
        let (first, end) = (at(piece), at(piece + 1));
        axis.size = end - first;
        (first as isize * axis.step, reduced)
    }

    /// Where a unit begins, in the array and in the result, and its columns.
    fn unit(&self, unit: usize) -> (isize, isize, usize) {
        let (from, to) = place(&self.kept, unit / self.strips);
        let Some(columns) = self.columns else {
            return (from, to, 1);
        };
        let first = unit % self.strips * STRIP;
        let at = first as isize;
        let count = self.strip.min(columns.size - first);
        (from + at * columns.step, to + at * columns.to, count)
    }

    /// # Safety
    /// Only one thread writes the unit's results.
    unsafe fn write(&self, to: isize, states: &[F::State]) {
        let step = self.columns.map_or(1, |columns| columns.to);
        for (i, state) in states.iter().enumerate() {
            self.out
                .offset(to + i as isize * step)
                .write(F::out(*state));
        }
    }
}

#[inline(always)]
fn join_all<F: Fold>(states: &mut [F::State], row: &[F::Number]) {
    for (state, x) in states.iter_mut().zip(row) {
        *state = F::join(*state, *x);
    }
}

/// Numbers beside each other, `N` side by side.
#[inline(always)]
fn fold_run<F: Fold, const N: usize>(numbers: &[F::Number]) -> F::State {
    let (wide, rest) = numbers.as_chunks::<N>();
    let (few, rest) = rest.as_chunks::<FEW_LANES>();
    let mut lanes = [F::NONE; N];
    for wide in wide {
        for (lane, x) in lanes.iter_mut().zip(wide) {
            *lane = F::join(*lane, *x);
        }
    }
    for few in few {
        for (lane, x) in lanes.iter_mut().zip(few) {
            *lane = F::join(*lane, *x);
        }
    }
    let mut state = F::NONE;
    for x in rest {
        state = F::join(state, *x);
    }
    // Loops of a constant length, of which the compiler makes vectors.
    macro_rules! halves {
        ($($half:literal)*) => { $(
            if N > $half {
                for i in 0..$half {
                    lanes[i] = F::merge(lanes[i], lanes[i + $half]);
                }
            }
        )* };
    }
    halves!(128 64 32 16 8 4 2 1);
    F::merge(state, lanes[0])
}

/// One result.
#[inline(always)]
unsafe fn fold_row<F: Fold>(from: *const F::Number, reduced: &[Axis]) -> F::State {
    let Some((row, outer)) = reduced.split_last() else {
        return F::join(F::NONE, *from);
    };
    let mut state = F::NONE;
    for number in 0..count(outer) {
        let from = from.offset(place(outer, number).0);
        if row.step != 1 {
            for i in 0..row.size as isize {
                state = F::join(state, *from.offset(i * row.step));
            }
            continue;
        }
        let numbers = std::slice::from_raw_parts(from, row.size);
        // Four of the largest vectors, or fewer numbers where there is little for these to do.
        let run = match size_of::<F::State>() {
            _ if row.size < LANES_WORTH => fold_run::<F, FEW_LANES>(numbers),
            1 => fold_run::<F, 256>(numbers),
            2 => fold_run::<F, 128>(numbers),
            _ => fold_run::<F, 64>(numbers),
        };
        state = F::merge(state, run);
    }
    state
}

/// Results of columns `step` apart.
#[inline(always)]
unsafe fn fold_columns<F: Fold>(
    from: *const F::Number,
    step: isize,
    reduced: &[Axis],
    states: &mut [F::State],
) {
    let columns = states.len();
    let group = WIDE / columns;
    if let (Some((rows, outer)), 2..) = (reduced.split_last(), group) {
        // Rows that follow one another as one of as many columns.
        if step == 1 && rows.step == columns as isize && rows.size >= 2 * group {
            let mut wide = [F::NONE; WIDE];
            let wide = &mut wide[..group * columns];
            for number in 0..count(outer) {
                let from = from.offset(place(outer, number).0);
                let numbers = std::slice::from_raw_parts(from, rows.size * columns);
                for row in numbers.chunks(wide.len()) {
                    join_all::<F>(wide, row);
                }
            }
            for row in wide.chunks(columns) {
                for (state, other) in states.iter_mut().zip(row) {
                    *state = F::merge(*state, *other);
                }
            }
            return;
        }
    }
    for number in 0..count(reduced) {
        let from = from.offset(place(reduced, number).0);
        if step == 1 {
            join_all::<F>(states, std::slice::from_raw_parts(from, columns));
        } else {
            for (i, state) in states.iter_mut().enumerate() {
                *state = F::join(*state, *from.offset(i as isize * step));
            }
        }
    }
}

/// Pieces of units, by number. `partial` has a strip of states for each piece where there are several of a unit.
#[inline(always)]
unsafe fn tasks_body<S: Simd, F: Fold>(
    plan: &Plan<F>,
    first: usize,
    end: usize,
    partial: &Shared<F::State>,
) {
    let mut states = vec![F::NONE; plan.strip];
    for task in first..end {
        let (from, to, count) = plan.unit(task / plan.pieces);
        let (offset, reduced) = plan.piece(task % plan.pieces);
        let from = plan.x.offset(from + offset);
        let states = &mut states[..count];
        match plan.columns {
            None => states[0] = fold_row::<F>(from, &reduced),
            Some(columns) => {
                states.fill(F::NONE);
                fold_columns::<F>(from, columns.step, &reduced, states);
            }
        }
        if plan.pieces == 1 {
            plan.write(to, states);
        } else {
            let to = partial.at(task * plan.strip);
            std::ptr::copy_nonoverlapping(states.as_ptr(), to, count);
        }
    }
}

dispatch! {
    fn run_tasks<F: Fold>(plan: &Plan<F>, first: usize, end: usize, partial: &Shared<F::State>) = tasks_body
}

/// # Safety
/// The views are of live arrays of the fold's types, `out` in rows.
unsafe fn run<F: Fold>(level: Level, x: &View, axes: &[u8], out: &View) {
    let plan = Plan::<F>::new(x, axes, out);
    let tasks = plan.units * plan.pieces;
    let mut states = match plan.pieces {
        1 => Vec::new(),
        _ => vec![F::NONE; tasks * plan.strip],
    };
    let partial = Shared(states.as_mut_ptr());
    let together = (PART * tasks / x.size().max(1)).max(1);
    let share = x.size() >= WORTH_SHARING;
    pool::parallel(tasks.div_ceil(together), share, &|part| {
        let (first, end) = (part * together, tasks.min((part + 1) * together));
        // SAFETY: within both arrays; units or pieces that are this part's alone.
        unsafe { run_tasks::<F>(level, &plan, first, end, &partial) }
    });
    if plan.pieces == 1 {
        return;
    }
    for (unit, pieces) in states.chunks_mut(plan.strip * plan.pieces).enumerate() {
        let (_, to, count) = plan.unit(unit);
        let (total, others) = pieces.split_at_mut(plan.strip);
        for other in others.chunks(plan.strip) {
            for (state, other) in total.iter_mut().zip(other) {
                *state = F::merge(*state, *other);
            }
        }
        plan.write(to, &total[..count]);
    }
}

/// The largest or the smallest over `axes`, NaN where there is one.
///
/// # Safety
/// The views are of live arrays of numbers `of` one type, `out` in rows and of x's shape but for the axes, x with
/// elements.
pub unsafe fn extreme(level: Level, of: Type, is_max: bool, axes: &[u8], x: &View, out: &View) {
    with_type!(of, T => match is_max {
        true => run::<Extreme<T, true>>(level, x, axes, out),
        false => run::<Extreme<T, false>>(level, x, axes, out),
    })
}

/// Whether all or any are other than zero, as bytes.
///
/// # Safety
/// As of [`extreme`].
pub unsafe fn truth(level: Level, of: Type, is_all: bool, axes: &[u8], x: &View, out: &View) {
    macro_rules! truth {
        ($t:ty, $float:literal) => {
            match is_all {
                true => run::<Truth<$t, true, $float>>(level, x, axes, out),
                false => run::<Truth<$t, false, $float>>(level, x, axes, out),
            }
        };
    }
    match (of.size(), of.is_float()) {
        (1, _) => truth!(u8, false),
        (2, false) => truth!(u16, false),
        (2, true) => truth!(u16, true),
        (4, false) => truth!(u32, false),
        (4, true) => truth!(u32, true),
        (_, false) => truth!(u64, false),
        (_, true) => truth!(u64, true),
    }
}

/// The sum or the product of integers or booleans, which wraps round: in 64 bits for types of 64 bits, in 32 for
/// others. Of floats there is none.
///
/// # Safety
/// As of [`extreme`], with `out` of that many bits.
pub unsafe fn total(level: Level, of: Type, is_product: bool, axes: &[u8], x: &View, out: &View) {
    macro_rules! total {
        ($t:ty) => {
            match is_product {
                true => run::<Total<$t, true>>(level, x, axes, out),
                false => run::<Total<$t, false>>(level, x, axes, out),
            }
        };
    }
    match of {
        Type::Bool | Type::U8 => total!(u8),
        Type::U16 => total!(u16),
        Type::U32 => total!(u32),
        Type::U64 => total!(u64),
        Type::S8 => total!(i8),
        Type::S16 => total!(i16),
        Type::S32 => total!(i32),
        Type::S64 => total!(i64),
        Type::F16 | Type::Bf16 | Type::F32 | Type::F64 => panic!("no sum of {of:?} in integers"),
    }
}
