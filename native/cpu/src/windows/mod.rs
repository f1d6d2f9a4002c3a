//! Reductions of sliding windows, and sums at the places of their largest or smallest elements: of integers, f32 and
//! f64. The windows along one axis are reduced side by side, in vectors.

mod choices;
mod totals;

use super::simd::Level;
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
pub trait Cell: Copy + PartialOrd + Send + Sync + 'static {
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
    ($(
        $t:ty as $wide:ty, $least:expr, $most:expr, $one:expr,
        |$a:ident, $b:ident| $plus:expr, $times:expr, $add:expr;
    )+) => { $(
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

/// What is done with the largest, or with the smallest.
pub struct Max<T>(PhantomData<T>);
pub struct Min<T>(PhantomData<T>);

/// An axis: the windows along it, and how they lie.
#[derive(Clone, Copy)]
pub struct Axis {
    pub size: isize,
    /// Windows.
    pub count: usize,
    pub taps: usize,
    pub stride: isize,
    pub low: isize,
    pub dilation: isize,
    /// From one element of the input to the next.
    pub from: isize,
    /// From one window's result, or source, to the next.
    pub to: isize,
}

impl Axis {
    /// The element that a window meets with a tap, if it is the array's own.
    #[inline(always)]
    pub fn element(&self, window: usize, tap: usize) -> Option<isize> {
        let at = window as isize * self.stride + tap as isize * self.dilation - self.low;
        (0..self.size).contains(&at).then_some(at)
    }

    /// The windows whose element of a tap is the array's own.
    pub fn inside(&self, tap: usize) -> (usize, usize) {
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

pub type Axes = SmallVec<[Axis; 6]>;

/// The axes of windows over an array, whose results or sources are another.
pub fn axes_of(windows: &Windows, from: &View, to: &View) -> Axes {
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
pub fn row_axis(axes: &Axes, first: usize) -> usize {
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
pub fn taps_of(axes: &Axes) -> Vec<SmallVec<[usize; 6]>> {
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
pub fn windows_of(
    axes: &Axes,
    first: usize,
    row: usize,
    mut number: usize,
) -> SmallVec<[usize; 6]> {
    let mut at: SmallVec<[usize; 6]> = SmallVec::from_elem(0, axes.len());
    for axis in (first..axes.len()).rev().filter(|axis| *axis != row) {
        at[axis] = number % axes[axis].count;
        number /= axes[axis].count;
    }
    at
}

/// Goes on to the next row's windows.
#[inline(always)]
pub fn advance(axes: &Axes, row: usize, at: &mut [usize]) {
    for axis in (0..axes.len()).rev().filter(|axis| *axis != row) {
        at[axis] += 1;
        if at[axis] < axes[axis].count {
            return;
        }
        at[axis] = 0;
    }
}

/// What a tap of a row of windows meets: the windows for which it is an element, and where the first of these is.
pub struct Met {
    pub first: usize,
    pub end: usize,
    pub from: isize,
}

/// None where it meets padding alone.
pub fn met(axes: &Axes, row: usize, at: &[usize], tap: &[usize]) -> Option<Met> {
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

pub fn room<T: Copy>(buffer: &mut Vec<T>, size: usize, fill: T) -> &mut [T] {
    buffer.clear();
    buffer.resize(size, fill);
    &mut buffer[..]
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
        Total::Sum => totals::reduce::<totals::Sum<T>>(level, windows, x, out),
        Total::Product => totals::reduce::<totals::Product<T>>(level, windows, x, out),
        Total::Max => totals::reduce::<Max<T>>(level, windows, x, out),
        Total::Min => totals::reduce::<Min<T>>(level, windows, x, out),
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
    with_type!(of, |T| choices::scatter::<T>(
        level, windows, choice, arrays, out
    ))
}
