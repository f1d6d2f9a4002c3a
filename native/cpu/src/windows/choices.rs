//! Sums at the places of the windows' largest or smallest elements.

use super::{axes_of, met, room, row_axis, taps_of, windows_of};
use super::{Axes, Axis, Cell, Choice, Max, Min, Windows};
use crate::pool::{self, Shared, WORTH_SHARING};
use crate::simd::{dispatch, Level, Simd};
use crate::View;
use smallvec::SmallVec;

/// What no tap has been chosen for yet, and what padding has been.
const NO_TAP: u32 = u32::MAX;
const PADDING: u32 = u32::MAX - 1;

/// Which of two numbers is chosen, of the largest or the smallest.
pub trait Order: 'static {
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

/// # Safety
/// As for [`super::scatter`].
pub unsafe fn scatter<T: Cell>(
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
