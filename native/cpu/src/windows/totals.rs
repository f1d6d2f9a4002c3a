//! The sum, the product, the largest or the smallest of each window.

use super::{advance, axes_of, met, room, row_axis, taps_of, windows_of};
use super::{Axis, Cell, Max, Min, Windows};
use crate::pool::{self, Shared, PART, WORTH_SHARING};
use crate::simd::{dispatch, Level, Simd};
use crate::View;
use smallvec::SmallVec;
use std::marker::PhantomData;

/// How two numbers become one.
pub trait Join: 'static {
    type T: Cell;
    const NONE: Self::T;
    fn join(a: Self::T, b: Self::T) -> Self::T;
}

pub struct Sum<T>(PhantomData<T>);
pub struct Product<T>(PhantomData<T>);

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

/// Numbers that are joined at a time: so many stay in registers.
const LANES: usize = 32;

/// A row of windows, each joined of a number behind each of `from`.
#[inline(always)]
unsafe fn join_all_body<S: Simd, J: Join>(
    row: *mut J::T,
    from: &[*const J::T],
    step: isize,
    count: usize,
) {
    macro_rules! lanes {
        ($lanes:expr, $step:expr, $start:expr) => {{
            let mut joined = [J::NONE; $lanes];
            for from in from {
                let from = from.offset($start as isize * $step);
                for (i, x) in joined.iter_mut().enumerate() {
                    *x = J::join(*x, *from.offset(i as isize * $step));
                }
            }
            row.add($start)
                .cast::<[J::T; $lanes]>()
                .write_unaligned(joined);
        }};
    }
    macro_rules! all {
        ($step:expr) => {{
            let whole = count / LANES * LANES;
            for start in (0..whole).step_by(LANES) {
                lanes!(LANES, $step, start);
            }
            for start in whole..count {
                lanes!(1, $step, start);
            }
        }};
    }
    match step {
        1 => all!(1),
        2 => all!(2),
        _ => all!(step),
    }
}

dispatch! {
    fn join_all<J: Join>(
        row: *mut J::T, from: &[*const J::T], step: isize, count: usize,
    ) = join_all_body
}

/// # Safety
/// As for [`super::run`].
pub unsafe fn reduce<J: Join>(level: Level, windows: &Windows, x: &View, out: &View) {
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
    let offset = |tap: &SmallVec<[usize; 6]>| -> isize {
        let steps = tap.iter().zip(&axes);
        steps
            .map(|(tap, axis)| *tap as isize * axis.dilation * axis.from)
            .sum()
    };
    let offsets: Vec<isize> = taps.iter().map(offset).collect();
    // The windows along each axis whose elements are all the array's own.
    let whole = |axis: &Axis| {
        let (first, last) = (axis.inside(0), axis.inside(axis.taps - 1));
        (first.0.max(last.0), first.1.min(last.1))
    };
    let whole: SmallVec<[(usize, usize); 6]> = axes.iter().map(whole).collect();
    let work = out.size() * taps.len();
    let parts = work.div_ceil(PART).clamp(1, rows);
    pool::parallel(parts, work >= 4 * WORTH_SHARING, &|part| {
        J::T::with_rows(|buffer, _| {
            let mut places = Vec::with_capacity(taps.len());
            let mut at = windows_of(&axes, 0, row, rows * part / parts);
            for _ in rows * part / parts..rows * (part + 1) / parts {
                let (mut place, mut start) = (0, 0);
                for (at, axis) in at.iter().zip(&axes) {
                    place += *at as isize * axis.to;
                    start += (*at as isize * axis.stride - axis.low) * axis.from;
                }
                // SAFETY: elements of the array, and a row that is this part's alone.
                unsafe {
                    let to = to.offset(place);
                    let is_direct = axes[row].to == 1;
                    let line = match is_direct {
                        true => std::slice::from_raw_parts_mut(to, count),
                        false => room(buffer, count, J::NONE),
                    };
                    let mut inside = at.iter().zip(&whole).enumerate();
                    let is_whole = inside.all(|(axis, (at, (first, end)))| {
                        axis == row || (*first..*end).contains(at)
                    });
                    let (first, end) = if is_whole { whole[row] } else { (0, 0) };
                    if first < end {
                        let start = start + first as isize * step;
                        places.clear();
                        places.extend(
                            offsets
                                .iter()
                                .map(|offset| from.offset(start + offset).cast_const()),
                        );
                        join_all::<J>(
                            level,
                            line.as_mut_ptr().add(first),
                            &places,
                            step,
                            end - first,
                        );
                    }
                    for part in [0..first, end.max(first)..count] {
                        if part.is_empty() {
                            continue;
                        }
                        line[part.clone()].fill(J::NONE);
                        for tap in &taps {
                            let Some(met) = met(&axes, row, &at, tap) else {
                                continue;
                            };
                            let (first, end) = (met.first.max(part.start), met.end.min(part.end));
                            if first < end {
                                let from =
                                    from.offset(met.from + (first - met.first) as isize * step);
                                let line = line.as_mut_ptr().add(first);
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
                advance(&axes, row, &mut at);
            }
        })
    });
}
