//! Elements moved to other places: arrays copied ([`copy`]), put beside each other ([`concatenate`]), repeated
//! ([`tile`]) and surrounded by one value ([`pad`]). Numbers are moved by their size alone.

use super::gather::of_size;
use super::pool::{self, Shared, PART, WORTH_SHARING};
use super::View;
use smallvec::SmallVec;
use std::cmp::Reverse;

/// Elements from which a row is copied by `memcpy`.
const LONG: usize = 16;

/// Elements of a row below which another axis takes its place.
const SHORT: usize = 8;

/// An axis: its size, and the elements between its places where they come from and where they go.
#[derive(Clone, Copy)]
pub struct Axis {
    pub size: usize,
    pub from: isize,
    pub to: isize,
}

pub type Axes = SmallVec<[Axis; 8]>;

/// Axes from the outermost, those that go on as one joined.
pub fn join(axes: impl IntoIterator<Item = Axis>) -> Axes {
    let mut all = Axes::new();
    for axis in axes.into_iter().filter(|axis| axis.size != 1) {
        let size = axis.size as isize;
        match all.last_mut() {
            Some(last) if last.from == axis.from * size && last.to == axis.to * size => {
                *last = Axis {
                    size: last.size * axis.size,
                    ..axis
                };
            }
            _ => all.push(axis),
        }
    }
    all
}

/// The same, with a long axis innermost.
fn joined(axes: impl Iterator<Item = Axis>) -> Axes {
    let mut all = join(axes);
    // The innermost axis is a loop without a step to another row.
    let count = all.len();
    if count > 1 && all[count - 1].size < SHORT && all[count - 2].size > all[count - 1].size {
        all.swap(count - 1, count - 2);
    }
    all
}

/// The axes of a shape, with the steps of two arrays.
fn axes_of<'a>(
    shape: &'a [i32],
    from: &'a [i64],
    to: &'a [i64],
) -> impl Iterator<Item = Axis> + 'a {
    shape
        .iter()
        .zip(from)
        .zip(to)
        .map(|((size, from), to)| Axis {
            size: *size as usize,
            from: *from as isize,
            to: *to as isize,
        })
}

/// Where a row begins, and those beyond it one after another.
struct Place<'a> {
    axes: &'a [Axis],
    at: SmallVec<[usize; 8]>,
    from: isize,
    to: isize,
}

impl<'a> Place<'a> {
    fn new(axes: &'a [Axis], mut row: usize) -> Place<'a> {
        let mut at = SmallVec::from_elem(0, axes.len());
        let (mut from, mut to) = (0, 0);
        for (own, axis) in at.iter_mut().zip(axes).rev() {
            *own = row % axis.size;
            from += *own as isize * axis.from;
            to += *own as isize * axis.to;
            row /= axis.size;
        }
        Place { axes, at, from, to }
    }

    #[inline(always)]
    fn next(&mut self) {
        for (at, axis) in self.at.iter_mut().zip(self.axes).rev() {
            *at += 1;
            self.from += axis.from;
            self.to += axis.to;
            if *at < axis.size {
                return;
            }
            *at = 0;
            self.from -= axis.size as isize * axis.from;
            self.to -= axis.size as isize * axis.to;
        }
    }
}

/// `count` elements that lie `step` apart, to places that lie `to_step` apart.
///
/// # Safety
/// They are within both arrays, which do not overlap.
#[inline(always)]
pub unsafe fn line<T: Copy>(from: *const T, step: isize, to: *mut T, to_step: isize, count: usize) {
    match (step, to_step) {
        (1, 1) if count >= LONG => std::ptr::copy_nonoverlapping(from, to, count),
        (0, 1) => std::slice::from_raw_parts_mut(to, count).fill(from.read()),
        (-1, 1) => (0..count).for_each(|i| to.add(i).write(from.sub(i).read())),
        (_, 1) => {
            (0..count).for_each(|i| to.add(i).write(from.offset(i as isize * step).read()));
        }
        _ => (0..count as isize)
            .for_each(|i| to.offset(i * to_step).write(from.offset(i * step).read())),
    }
}

/// Elements that go from the places of some axes to others, and how threads share them: parts of a long row, or several
/// short rows.
struct Move<T> {
    outer: Axes,
    row: Axis,
    rows: usize,
    from: Shared<T>,
    to: Shared<T>,
    pieces: usize,
    batch: usize,
}

impl<T: Copy> Move<T> {
    fn new(mut axes: Axes, from: *const T, to: *mut T) -> Move<T> {
        let one = Axis {
            size: 1,
            from: 1,
            to: 1,
        };
        let row = axes.pop().unwrap_or(one);
        Move {
            rows: axes.iter().map(|axis| axis.size).product(),
            outer: axes,
            row,
            from: Shared(from.cast_mut()),
            to: Shared(to),
            pieces: row.size.div_ceil(PART).max(1),
            batch: (PART / row.size.max(1)).max(1),
        }
    }

    fn size(&self) -> usize {
        self.rows * self.row.size
    }

    fn parts(&self) -> usize {
        match (self.size(), self.pieces) {
            (0, _) => 0,
            (_, 1) => self.rows.div_ceil(self.batch),
            (_, pieces) => self.rows * pieces,
        }
    }

    /// # Safety
    /// The places are within both arrays, and nobody else writes this part's.
    unsafe fn part(&self, part: usize) {
        let row = self.row;
        let (first, end, start) = match self.pieces {
            1 => (part * self.batch, self.rows.min((part + 1) * self.batch), 0),
            pieces => (part / pieces, part / pieces + 1, part % pieces * PART),
        };
        let count = PART.min(row.size - start);
        let (ahead, to_ahead) = (start as isize * row.from, start as isize * row.to);
        let mut place = Place::new(&self.outer, first);
        for _ in first..end {
            let (from, to) = (
                self.from.offset(place.from + ahead),
                self.to.offset(place.to + to_ahead),
            );
            line(from, row.from, to, row.to, count);
            place.next();
        }
    }
}

/// Moves that do not depend on each other, shared out as one.
unsafe fn moved<T: Copy>(moves: &[Move<T>]) {
    let parts: usize = moves.iter().map(Move::parts).sum();
    let size: usize = moves.iter().map(Move::size).sum();
    pool::parallel(parts, size >= WORTH_SHARING, &|mut part| {
        for own in moves {
            let parts = own.parts();
            if part < parts {
                // SAFETY: within the arrays; places of the result that are this part's alone.
                return unsafe { own.part(part) };
            }
            part -= parts;
        }
    });
}

/// # Safety
/// Both are of one shape and of elements of `bytes`, and do not overlap.
pub unsafe fn copy(bytes: usize, x: &View, out: &View) {
    // In the order in which the result lies.
    let mut axes: Axes = axes_of(x.shape(), x.strides(), out.strides()).collect();
    axes.sort_by_key(|axis| Reverse(axis.to.unsigned_abs()));
    let axes = joined(axes.into_iter());
    macro_rules! call {
        ($T:ty) => {
            moved::<$T>(&[Move::new(axes, x.data.cast(), out.data.cast())])
        };
    }
    of_size!(bytes, call)
}

/// The elements of `x` in the order of its rows, to an array of as many that lies in rows.
///
/// # Safety
/// Elements are of `bytes`, and the arrays do not overlap.
pub unsafe fn reshape(bytes: usize, x: &View, out: &View) {
    let mut strides: SmallVec<[i64; 8]> = SmallVec::from_elem(1, x.shape().len());
    for axis in (1..strides.len()).rev() {
        strides[axis - 1] = strides[axis] * i64::from(x.shape()[axis]);
    }
    // SAFETY: the same memory, of as many elements.
    let rows = unsafe { View::of(out.data, x.shape(), &strides) };
    copy(bytes, x, &rows);
}

/// The inputs one after another along an axis.
///
/// # Safety
/// As [`super::Kernel::run`]; the inputs are of `out`'s shape but for the axis, where their sizes are `out`'s together.
pub unsafe fn concatenate(axis: usize, bytes: usize, inputs: &[View], out: &View) {
    macro_rules! call {
        ($T:ty) => {{
            let mut start = 0;
            let moves = inputs.iter().map(|x| {
                let axes = joined(axes_of(x.shape(), x.strides(), out.strides()));
                let to = out.data.cast::<$T>();
                let to = to.wrapping_offset(start * out.strides()[axis] as isize);
                start += x.shape()[axis] as isize;
                Move::new(axes, x.data.cast(), to)
            });
            moved::<$T>(&moves.collect::<SmallVec<[Move<$T>; 2]>>())
        }};
    }
    of_size!(bytes, call)
}

/// The array so many times along each axis; where `each`, each of its elements so many times after another.
///
/// # Safety
/// As [`super::Kernel::run`]; `out` is so many times as large along each axis.
pub unsafe fn tile(times: &[i32], each: bool, bytes: usize, x: &View, out: &View) {
    let axes = axes_of(x.shape(), x.strides(), out.strides())
        .zip(times)
        .flat_map(|(axis, times)| {
            let (inner, count) = (axis.size as isize, *times as usize);
            let (own, again) = match each {
                true => (axis.to * count as isize, axis.to),
                false => (axis.to, axis.to * inner),
            };
            let again = Axis {
                size: count,
                from: 0,
                to: again,
            };
            let own = Axis { to: own, ..axis };
            if each {
                [own, again]
            } else {
                [again, own]
            }
        });
    let axes = joined(axes);
    macro_rules! call {
        ($T:ty) => {
            moved::<$T>(&[Move::new(axes, x.data.cast(), out.data.cast())])
        };
    }
    of_size!(bytes, call)
}

/// An array with so many values before it along each axis, so many between two neighbours, and as many behind it as
/// `out` has room for. The value is a scalar.
///
/// # Safety
/// As [`super::Kernel::run`]; the array has room in `out`.
pub unsafe fn pad(low: &[i32], interior: &[i32], bytes: usize, inputs: &[View], out: &View) {
    macro_rules! call {
        ($T:ty) => {
            padded::<$T>(low, interior, &inputs[0], &inputs[1], out)
        };
    }
    of_size!(bytes, call)
}

unsafe fn padded<T: Copy>(low: &[i32], interior: &[i32], x: &View, value: &View, out: &View) {
    let value = value.data.cast::<T>().cast_const();
    let to = out.data.cast::<T>();
    let steps = out.strides();
    let rank = steps.len();
    let axis = |axis: usize, size: i32| Axis {
        size: size as usize,
        from: 0,
        to: steps[axis] as isize,
    };
    let ahead = |axis: usize, places: i32| places as isize * steps[axis] as isize;
    let mut moves: SmallVec<[Move<T>; 8]> = SmallVec::new();
    let is_spread = interior.iter().any(|between| *between > 0);
    if is_spread || x.size() == 0 {
        let all = joined((0..rank).map(|i| axis(i, out.shape()[i])));
        // The array's elements go over these.
        moved(&[Move::new(all, value, to)]);
    } else {
        // What lies before and behind the array along an axis, within it along those before.
        let mut start = 0;
        for (i, before) in low.iter().enumerate() {
            let behind = before + x.shape()[i];
            for (first, count) in [(0, *before), (behind, out.shape()[i] - behind)] {
                let side = joined((0..rank).map(|j| {
                    let size = match j {
                        _ if j < i => x.shape()[j],
                        _ if j == i => count,
                        _ => out.shape()[j],
                    };
                    axis(j, size)
                }));
                let to = to.wrapping_offset(start + ahead(i, first));
                moves.push(Move::new(side, value, to));
            }
            start += ahead(i, *before);
        }
    }
    let start: isize = (0..rank).map(|i| ahead(i, low[i])).sum();
    let axes = axes_of(x.shape(), x.strides(), steps).zip(interior);
    let axes = joined(axes.map(|(axis, between)| Axis {
        to: axis.to * (*between as isize + 1),
        ..axis
    }));
    moves.push(Move::new(axes, x.data.cast(), to.wrapping_offset(start)));
    moved(&moves);
}
