//! Reductions of sliding windows, and sums at the places of their largest or smallest elements: of integers, f32 and
//! f64. A row of windows is reduced with one row of the input after another, in vectors.

use super::pool::{self, Shared, PART, WORTH_SHARING};
use super::simd::{dispatch, Level, Simd};
use super::{Type, View};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::marker::PhantomData;

/// What becomes of a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Total {
    Sum,
    Product,
    Max,
    Min,
}

/// Sliding windows, one entry an axis of the array.
#[derive(Clone, Debug, PartialEq)]
pub struct Windows {
    pub sizes: SmallVec<[i32; 6]>,
    pub strides: SmallVec<[i32; 6]>,
    /// What precedes the array; less than 0 where that is cut off.
    pub low: SmallVec<[i32; 6]>,
    pub dilation: SmallVec<[i32; 6]>,
}

/// Which element of a window is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    pub is_max: bool,
    /// Of several that are equal, or NaN, the last.
    pub is_last: bool,
    /// Padding may be chosen, which leads nowhere. It has the number that sums begin with.
    pub is_padding_chosen: bool,
}

/// A number of a window.
trait Cell: Copy + PartialOrd + Send + Sync + 'static {
    const LEAST: Self;
    const MOST: Self;
    const ZERO: Self;
    const ONE: Self;
    /// What several of them are added up in.
    type Wide: Copy + Default + 'static;
    fn plus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    fn widen(self) -> Self::Wide;
    fn add(sum: Self::Wide, x: Self) -> Self::Wide;
    fn narrow(sum: Self::Wide) -> Self;
    fn with_sums(work: impl FnOnce(&mut Vec<Self::Wide>));
    fn with_rows(work: impl FnOnce(&mut Vec<Self>, &mut Vec<u32>));
    #[inline(always)]
    #[allow(clippy::eq_op)]
    fn is_nan(self) -> bool {
        self != self
    }
}

macro_rules! cells {
    ($($t:ty as $wide:ty, $least:expr, $most:expr, $one:expr, |$a:ident, $b:ident| $plus:expr, $times:expr, $add:expr;)+) => { $(
        impl Cell for $t {
            const LEAST: $t = $least;
            const MOST: $t = $most;
            const ZERO: $t = $one - $one;
            const ONE: $t = $one;
            type Wide = $wide;
            #[inline(always)]
            fn plus(self, other: $t) -> $t {
                let ($a, $b) = (self, other);
                $plus
            }
            #[inline(always)]
            fn times(self, other: $t) -> $t {
                let ($a, $b) = (self, other);
                $times
            }
            #[inline(always)]
            fn widen(self) -> $wide {
                self as $wide
            }
            #[inline(always)]
            fn add(sum: $wide, x: $t) -> $wide {
                let ($a, $b) = (sum, x as $wide);
                $add
            }
            #[inline(always)]
            fn narrow(sum: $wide) -> $t {
                sum as $t
            }
            fn with_sums(work: impl FnOnce(&mut Vec<$wide>)) {
                thread_local! {
                    static SUMS: RefCell<Vec<$wide>> = const { RefCell::new(Vec::new()) };
                }
                SUMS.with_borrow_mut(|sums| work(sums))
            }
            fn with_rows(work: impl FnOnce(&mut Vec<$t>, &mut Vec<u32>)) {
                thread_local! {
                    static ROW: RefCell<Vec<$t>> = const { RefCell::new(Vec::new()) };
                    static TAPS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
                }
                ROW.with_borrow_mut(|row| TAPS.with_borrow_mut(|taps| work(row, taps)))
            }
        }
    )+ };
}

macro_rules! whole_cells {
    ($($t:ty),+) => {
        cells! { $($t as $t, <$t>::MIN, <$t>::MAX, 1, |a, b|
            a.wrapping_add(b), a.wrapping_mul(b), a.wrapping_add(b);)+ }
    };
}

whole_cells!(u8, u16, u32, u64, i8, i16, i32, i64);
cells! {
    f32 as f64, f32::NEG_INFINITY, f32::INFINITY, 1.0, |a, b| a + b, a * b, a + b;
    f64 as f64, f64::NEG_INFINITY, f64::INFINITY, 1.0, |a, b| a + b, a * b, a + b;
}

/// How two numbers become one.
trait Join: 'static {
    type T: Cell;
    const NONE: Self::T;
    fn join(a: Self::T, b: Self::T) -> Self::T;
}

struct Sum<T>(PhantomData<T>);
struct Product<T>(PhantomData<T>);
struct Max<T>(PhantomData<T>);
struct Min<T>(PhantomData<T>);

impl<T: Cell> Join for Sum<T> {
    type T = T;
    const NONE: T = T::ZERO;
    #[inline(always)]
    fn join(a: T, b: T) -> T {
        a.plus(b)
    }
}

impl<T: Cell> Join for Product<T> {
    type T = T;
    const NONE: T = T::ONE;
    #[inline(always)]
    fn join(a: T, b: T) -> T {
        a.times(b)
    }
}

/// NaN where there is one.
impl<T: Cell> Join for Max<T> {
    type T = T;
    const NONE: T = T::LEAST;
    #[inline(always)]
    fn join(a: T, b: T) -> T {
        if a > b || a.is_nan() {
            a
        } else {
            b
        }
    }
}

impl<T: Cell> Join for Min<T> {
    type T = T;
    const NONE: T = T::MOST;
    #[inline(always)]
    fn join(a: T, b: T) -> T {
        if a < b || a.is_nan() {
            a
        } else {
            b
        }
    }
}

/// Joins each of a row with a number of the input; these lie `step` apart.
#[inline(always)]
unsafe fn join_body<S: Simd, J: Join>(
    row: *mut J::T,
    from: *const J::T,
    step: isize,
    count: usize,
) {
    match step {
        1 => (0..count).for_each(|i| row.add(i).write(J::join(*row.add(i), *from.add(i)))),
        2 => (0..count).for_each(|i| row.add(i).write(J::join(*row.add(i), *from.add(2 * i)))),
        _ => (0..count).for_each(|i| {
            let x = *from.offset(i as isize * step);
            row.add(i).write(J::join(*row.add(i), x))
        }),
    }
}

dispatch! {
    fn join<J: Join>(row: *mut J::T, from: *const J::T, step: isize, count: usize) = join_body
}

/// An axis: the windows along it, and how they lie.
#[derive(Clone, Copy)]
struct Axis {
    size: isize,
    /// Windows.
    count: usize,
    taps: usize,
    stride: isize,
    low: isize,
    dilation: isize,
    /// From one element of the input to the next.
    from: isize,
    /// From one window's result, or source, to the next.
    to: isize,
}

impl Axis {
    /// The element that a window meets with a tap, if it is the array's own.
    #[inline(always)]
    fn element(&self, window: usize, tap: usize) -> Option<isize> {
        let at = window as isize * self.stride + tap as isize * self.dilation - self.low;
        (0..self.size).contains(&at).then_some(at)
    }

    /// The windows whose element of a tap is the array's own.
    fn inside(&self, tap: usize) -> (usize, usize) {
        let shift = tap as isize * self.dilation - self.low;
        let first = (-shift)
            .max(0)
            .unsigned_abs()
            .div_ceil(self.stride as usize);
        let end = match self.size - shift {
            left if left <= 0 => 0,
            left => left.unsigned_abs().div_ceil(self.stride as usize),
        };
        let end = end.min(self.count);
        (first.min(end), end)
    }
}

type Axes = SmallVec<[Axis; 6]>;

/// The axes of windows over an array, whose results or sources are another.
fn axes_of(windows: &Windows, from: &View, to: &View) -> Axes {
    let one = |axis: usize| Axis {
        size: from.shape()[axis] as isize,
        count: to.shape()[axis] as usize,
        taps: windows.sizes[axis] as usize,
        stride: windows.strides[axis] as isize,
        low: windows.low[axis] as isize,
        dilation: windows.dilation[axis] as isize,
        from: from.strides()[axis] as isize,
        to: to.strides()[axis] as isize,
    };
    (0..from.shape().len()).map(one).collect()
}

/// The axis of the rows, from `first` on: the one whose elements lie closest.
fn row_axis(axes: &Axes, first: usize) -> usize {
    let step = |axis: &usize| match axes[*axis].count {
        1 => usize::MAX,
        _ => axes[*axis].from.unsigned_abs().max(1),
    };
    (first..axes.len())
        .rev()
        .min_by_key(step)
        .unwrap_or(axes.len() - 1)
}

/// The taps of a window in their order, each with a tap for every axis.
fn taps_of(axes: &Axes) -> Vec<SmallVec<[usize; 6]>> {
    let count = axes.iter().map(|axis| axis.taps).product();
    let tap = |mut number: usize| {
        let mut tap: SmallVec<[usize; 6]> = SmallVec::from_elem(0, axes.len());
        for (own, axis) in tap.iter_mut().zip(axes).rev() {
            *own = number % axis.taps;
            number /= axis.taps;
        }
        tap
    };
    (0..count).map(tap).collect()
}

/// Where the windows of a row begin, from its number among the rows of `axes` but for `row`, from axis `first` on.
fn windows_of(axes: &Axes, first: usize, row: usize, mut number: usize) -> SmallVec<[usize; 6]> {
    let mut at: SmallVec<[usize; 6]> = SmallVec::from_elem(0, axes.len());
    for axis in (first..axes.len()).rev() {
        if axis != row {
            at[axis] = number % axes[axis].count;
            number /= axes[axis].count;
        }
    }
    at
}

/// What a tap of a row of windows meets: the windows for which it is an element, and where the first of these is.
struct Met {
    first: usize,
    end: usize,
    from: isize,
}

/// None where it meets padding alone.
fn met(axes: &Axes, row: usize, at: &[usize], tap: &[usize]) -> Option<Met> {
    let mut from = 0;
    for (number, axis) in axes.iter().enumerate() {
        if number != row {
            from += axis.element(at[number], tap[number])? * axis.from;
        }
    }
    let axis = &axes[row];
    let (first, end) = axis.inside(tap[row]);
    if first >= end {
        return None;
    }
    let place = first as isize * axis.stride + tap[row] as isize * axis.dilation - axis.low;
    Some(Met {
        first,
        end,
        from: from + place * axis.from,
    })
}

fn room<T: Copy>(buffer: &mut Vec<T>, size: usize, fill: T) -> &mut [T] {
    buffer.clear();
    buffer.resize(size, fill);
    &mut buffer[..]
}

/// Windows of a row that are reduced at a time: what they read then stays in the first cache.
const BLOCK: usize = 1024;

unsafe fn reduce<J: Join>(level: Level, windows: &Windows, x: &View, out: &View) {
    let axes = axes_of(windows, x, out);
    let row = row_axis(&axes, 0);
    let taps = taps_of(&axes);
    let count = axes[row].count;
    let rows = out.size() / count;
    let step = axes[row].stride * axes[row].from;
    let (from, to) = (
        Shared(x.data.cast::<J::T>()),
        Shared(out.data.cast::<J::T>()),
    );
    let work = out.size() * taps.len();
    let parts = work.div_ceil(PART).clamp(1, rows);
    pool::parallel(parts, work >= 4 * WORTH_SHARING, &|part| {
        J::T::with_rows(|buffer, _| {
            for number in rows * part / parts..rows * (part + 1) / parts {
                let at = windows_of(&axes, 0, row, number);
                let place: isize = at
                    .iter()
                    .zip(&axes)
                    .map(|(at, axis)| *at as isize * axis.to)
                    .sum();
                // SAFETY: elements of the array, and a row that is this part's alone.
                unsafe {
                    let to = to.offset(place);
                    let is_direct = axes[row].to == 1;
                    let line = match is_direct {
                        true => std::slice::from_raw_parts_mut(to, count),
                        false => room(buffer, count, J::NONE),
                    };
                    line.fill(J::NONE);
                    for start in (0..count).step_by(BLOCK) {
                        for tap in &taps {
                            let Some(met) = met(&axes, row, &at, tap) else {
                                continue;
                            };
                            let first = met.first.max(start);
                            let end = met.end.min(start + BLOCK);
                            if first < end {
                                let line = line.as_mut_ptr().add(first);
                                let from = from.offset(met.from);
                                let from = from.offset((first - met.first) as isize * step);
                                join::<J>(level, line, from.cast_const(), step, end - first);
                            }
                        }
                    }
                    if !is_direct {
                        for (i, x) in line.iter().enumerate() {
                            to.offset(i as isize * axes[row].to).write(*x);
                        }
                    }
                }
            }
        })
    });
}

/// What no tap has been chosen for yet, and what padding has been.
const NO_TAP: u32 = u32::MAX;
const PADDING: u32 = u32::MAX - 1;

/// Which of two numbers is chosen, of the largest or the smallest.
trait Order: 'static {
    type T: Cell;
    fn is_before(a: Self::T, b: Self::T) -> bool;
}

impl<T: Cell> Order for Max<T> {
    type T = T;
    #[inline(always)]
    fn is_before(a: T, b: T) -> bool {
        a > b
    }
}

impl<T: Cell> Order for Min<T> {
    type T = T;
    #[inline(always)]
    fn is_before(a: T, b: T) -> bool {
        a < b
    }
}

#[inline(always)]
fn choose_one<O: Order>(best: &mut O::T, tap: &mut u32, x: O::T, own: u32, is_last: bool) {
    let better = match is_last {
        true => (!O::is_before(*best, x) & !best.is_nan()) | x.is_nan(),
        false => O::is_before(x, *best) | (x.is_nan() & !best.is_nan()),
    };
    let is_chosen = better | (*tap == NO_TAP);
    *best = if is_chosen { x } else { *best };
    *tap = if is_chosen { own } else { *tap };
}

#[inline(always)]
unsafe fn choose_body<S: Simd, O: Order>(
    best: &mut [O::T],
    taps: &mut [u32],
    from: *const O::T,
    step: isize,
    own: u32,
    is_last: bool,
) {
    macro_rules! all {
        ($is_last:literal, $step:expr) => {
            for (i, (best, tap)) in best.iter_mut().zip(taps).enumerate() {
                let x = *from.offset(i as isize * $step);
                choose_one::<O>(best, tap, x, own, $is_last);
            }
        };
    }
    match (is_last, step) {
        (true, 1) => all!(true, 1),
        (true, 2) => all!(true, 2),
        (true, step) => all!(true, step),
        (false, 1) => all!(false, 1),
        (false, 2) => all!(false, 2),
        (false, step) => all!(false, step),
    }
}

dispatch! {
    fn choose<O: Order>(
        best: &mut [O::T], taps: &mut [u32], from: *const O::T, step: isize, own: u32, is_last: bool,
    ) = choose_body
}

/// How the sums are made: the array's axes, those of the planes that have windows of their own, and the taps.
struct Scatter<'a, T: Cell> {
    level: Level,
    choice: Choice,
    /// With the sources' steps.
    axes: Axes,
    /// From one element of the result to the next.
    own: SmallVec<[isize; 6]>,
    planes: usize,
    row: usize,
    taps: Vec<SmallVec<[usize; 6]>>,
    /// Where each tap is, from a window's beginning on.
    places: Vec<isize>,
    x: Shared<T>,
    source: Shared<T>,
    out: Shared<T>,
    view: &'a View,
    init: T,
}

impl<T: Cell> Scatter<'_, T> {
    /// Calls `add` with each source of a plane and its place in the result.
    unsafe fn plane<O: Order<T = T>>(&self, plane: usize, mut add: impl FnMut(isize, T)) {
        let (axes, row) = (&self.axes, self.row);
        let count = axes[row].count;
        let inner = axes.iter().enumerate().skip(self.planes);
        let rows: usize = inner
            .filter(|(axis, _)| *axis != row)
            .map(|(_, axis)| axis.count)
            .product();
        let mut at_plane: SmallVec<[usize; 6]> = SmallVec::from_elem(0, axes.len());
        let mut rest = plane;
        for axis in (0..self.planes).rev() {
            at_plane[axis] = rest % axes[axis].count;
            rest /= axes[axis].count;
        }
        let step = axes[row].stride * axes[row].from;
        let own_step = axes[row].stride * self.own[row];
        T::with_rows(|best, chosen| {
            for number in 0..rows {
                let mut at = windows_of(axes, self.planes, row, number);
                at[..self.planes].copy_from_slice(&at_plane[..self.planes]);
                let (best, chosen) = (room(best, count, T::ZERO), room(chosen, count, NO_TAP));
                for (own, tap) in self.taps.iter().enumerate() {
                    let met = met(axes, row, &at, tap);
                    let (first, end) = met
                        .as_ref()
                        .map_or((count, count), |met| (met.first, met.end));
                    if self.choice.is_padding_chosen {
                        for i in (0..first).chain(end..count) {
                            let (best, chosen) = (&mut best[i], &mut chosen[i]);
                            choose_one::<O>(best, chosen, self.init, PADDING, self.choice.is_last);
                        }
                    }
                    let Some(met) = met else {
                        continue;
                    };
                    let from = self.x.offset(met.from).cast_const();
                    let (best, chosen) = (&mut best[first..end], &mut chosen[first..end]);
                    let (own, is_last) = (own as u32, self.choice.is_last);
                    choose::<O>(self.level, best, chosen, from, step, own, is_last);
                }
                let (mut from, mut to) = (0, 0);
                for (axis, at) in at.iter().enumerate() {
                    from += *at as isize * axes[axis].to;
                    to += (*at as isize * axes[axis].stride - axes[axis].low) * self.own[axis];
                }
                for tap in chosen {
                    if *tap < PADDING {
                        add(to + self.places[*tap as usize], *self.source.offset(from));
                    }
                    from += axes[row].to;
                    to += own_step;
                }
            }
        })
    }

    unsafe fn run<O: Order<T = T>>(&self) {
        let planes: usize = self.axes[..self.planes]
            .iter()
            .map(|axis| axis.count)
            .product();
        let size = self.view.size() / planes.max(1);
        let is_apart = self
            .axes
            .iter()
            .all(|axis| axis.stride >= axis.taps as isize);
        let work = self.axes.iter().map(|axis| axis.count).product::<usize>() * self.taps.len();
        pool::parallel(planes, work >= WORTH_SHARING, &|plane| {
            // SAFETY: the plane is this part's alone.
            unsafe {
                let out = self.out.at(plane * size);
                let start = (plane * size) as isize;
                if is_apart {
                    std::slice::from_raw_parts_mut(out, size).fill(self.init);
                    return self.plane::<O>(plane, |place, x| {
                        let to = out.offset(place - start);
                        to.write((*to).plus(x));
                    });
                }
                T::with_sums(|sums| {
                    let sums = room(sums, size, self.init.widen());
                    self.plane::<O>(plane, |place, x| {
                        let sum = &mut sums[(place - start) as usize];
                        *sum = T::add(*sum, x);
                    });
                    for (i, sum) in sums.iter().enumerate() {
                        out.add(i).write(T::narrow(*sum));
                    }
                });
            }
        });
    }
}

unsafe fn scatter_of<T: Cell>(
    level: Level,
    windows: &Windows,
    choice: Choice,
    [x, source, init]: [&View; 3],
    out: &View,
) {
    let axes = axes_of(windows, x, source);
    let own: SmallVec<[isize; 6]> = out.strides().iter().map(|step| *step as isize).collect();
    let is_alone = |axis: &&Axis| {
        axis.taps == 1 && axis.stride == 1 && axis.low == 0 && axis.count as isize == axis.size
    };
    // At least one axis is the planes' own.
    let planes = axes.iter().take_while(is_alone).count().min(axes.len() - 1);
    let taps = taps_of(&axes);
    let place = |tap: &SmallVec<[usize; 6]>| {
        let steps = tap.iter().zip(&axes).zip(&own);
        steps
            .map(|((tap, axis), own)| *tap as isize * axis.dilation * own)
            .sum()
    };
    let scatter = Scatter {
        level,
        choice,
        row: row_axis(&axes, planes),
        places: taps.iter().map(place).collect(),
        axes,
        own,
        planes,
        taps,
        x: Shared(x.data.cast::<T>()),
        source: Shared(source.data.cast::<T>()),
        out: Shared(out.data.cast::<T>()),
        view: out,
        init: init.data.cast::<T>().read(),
    };
    match choice.is_max {
        true => scatter.run::<Max<T>>(),
        false => scatter.run::<Min<T>>(),
    }
}

macro_rules! with_type {
    ($of:expr, |$T:ident| $work:expr) => {{
        macro_rules! with {
            ($t:ty) => {{
                type $T = $t;
                $work
            }};
        }
        match $of {
            Type::U8 => with!(u8),
            Type::U16 => with!(u16),
            Type::U32 => with!(u32),
            Type::U64 => with!(u64),
            Type::S8 => with!(i8),
            Type::S16 => with!(i16),
            Type::S32 => with!(i32),
            Type::S64 => with!(i64),
            Type::F32 => with!(f32),
            Type::F64 => with!(f64),
            Type::Bool | Type::F16 | Type::Bf16 => unreachable!("windows of {:?}", $of),
        }
    }};
}

/// The sum, product, maximum or minimum of each window.
///
/// # Safety
/// The views are of live arrays of one axis or more and of the type `of`, and the result lies in rows.
pub unsafe fn run(level: Level, of: Type, total: Total, windows: &Windows, x: &View, out: &View) {
    with_type!(of, |T| match total {
        Total::Sum => reduce::<Sum<T>>(level, windows, x, out),
        Total::Product => reduce::<Product<T>>(level, windows, x, out),
        Total::Max => reduce::<Max<T>>(level, windows, x, out),
        Total::Min => reduce::<Min<T>>(level, windows, x, out),
    })
}

/// A number everywhere, and each source added where its window's extreme is. The inputs are the array, the sources and
/// the number.
///
/// # Safety
/// As for [`run`]. There is a source for each window.
pub unsafe fn scatter(
    level: Level,
    of: Type,
    choice: Choice,
    windows: &Windows,
    inputs: &[View],
    out: &View,
) {
    let arrays = [&inputs[0], &inputs[1], &inputs[2]];
    with_type!(of, |T| scatter_of::<T>(level, windows, choice, arrays, out))
}
