//! Indices of any integer type as places along an axis, of 32 bits, which is what the sizes of arrays have.

use super::simd::{dispatch, Level, Simd};
use super::{Type, View};

/// Indices that are read at a time.
pub const BLOCK: usize = 256;

/// No place.
pub const NONE: i32 = -1;

/// What an index means that is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Beyond {
    /// A negative one counts from the end, and what is beyond is the first or the last place.
    Nearest,
    /// What is beyond is the first or the last place. A negative one is the first.
    First,
    /// A negative one counts from the end, and what is beyond is [`NONE`].
    Nothing,
}

/// An axis, the last place at which what begins there fits, and what an index beyond means.
#[derive(Clone, Copy)]
pub struct Range {
    pub length: i32,
    pub last: i32,
    pub beyond: Beyond,
}

/// An index as a place.
trait Index: Copy {
    /// The nearest of the places, after `from_end` is added to a negative index.
    fn nearest(self, from_end: i32, last: i32) -> i32;
    /// [`NONE`] beyond the places.
    fn inside(self, from_end: i32, last: i32) -> i32;
}

macro_rules! narrow {
    ($($T:ty)*) => { $(impl Index for $T {
        #[inline(always)]
        fn nearest(self, from_end: i32, last: i32) -> i32 {
            let place = i32::from(self);
            (place + ((place >> 31) & from_end)).max(0).min(last)
        }
        #[inline(always)]
        fn inside(self, from_end: i32, last: i32) -> i32 {
            let place = i32::from(self);
            let place = place + ((place >> 31) & from_end);
            if place as u32 <= last as u32 { place } else { NONE }
        }
    })* };
}

narrow!(u8 u16 i8 i16 i32);

macro_rules! unsigned {
    ($($T:ty)*) => { $(impl Index for $T {
        #[inline(always)]
        fn nearest(self, _: i32, last: i32) -> i32 {
            self.min(last as $T) as i32
        }
        #[inline(always)]
        fn inside(self, _: i32, last: i32) -> i32 {
            if self <= last as $T { self as i32 } else { NONE }
        }
    })* };
}

unsigned!(u32 u64);

impl Index for i64 {
    #[inline(always)]
    fn nearest(self, from_end: i32, last: i32) -> i32 {
        (self + ((self >> 63) & i64::from(from_end)))
            .max(0)
            .min(i64::from(last)) as i32
    }
    #[inline(always)]
    fn inside(self, from_end: i32, last: i32) -> i32 {
        let place = self + ((self >> 63) & i64::from(from_end));
        if place as u64 <= last as u64 {
            place as i32
        } else {
            NONE
        }
    }
}

/// Each of `count` indices that lie `step` apart.
#[inline(always)]
unsafe fn each<I: Copy>(
    from: *const I,
    step: isize,
    to: *mut i32,
    count: usize,
    place: impl Fn(I) -> i32,
) {
    // A step that the compiler knows has vectors; two is that of pairs.
    match step {
        1 => (0..count).for_each(|i| to.add(i).write(place(from.add(i).read()))),
        2 => (0..count).for_each(|i| to.add(i).write(place(from.add(2 * i).read()))),
        _ => (0..count as isize)
            .for_each(|i| to.offset(i).write(place(from.offset(i * step).read()))),
    }
}

#[inline(always)]
unsafe fn line_body<S: Simd, I: Index>(
    range: &Range,
    from: *const I,
    step: isize,
    to: *mut i32,
    count: usize,
) {
    let (length, last) = (range.length, range.last);
    match range.beyond {
        Beyond::Nearest => each(from, step, to, count, |index| index.nearest(length, last)),
        Beyond::First => each(from, step, to, count, |index| index.nearest(0, last)),
        Beyond::Nothing => each(from, step, to, count, |index| index.inside(length, last)),
    }
}

dispatch!(fn line_of<I: Index>(
    range: &Range, from: *const I, step: isize, to: *mut i32, count: usize,
) = line_body);

/// The places of `to.len()` indices of the type `of` that lie `step` elements apart, the first of them `start` elements
/// behind the array's first.
///
/// # Safety
/// The array has them, and the range's last place is not negative.
pub unsafe fn line(
    of: Type,
    view: &View,
    start: isize,
    step: isize,
    range: &Range,
    to: &mut [i32],
) {
    line_in(Level::best(), of, view, start, step, range, to)
}

/// [`line`] in a form that the machine has.
///
/// # Safety
/// As there.
pub unsafe fn line_in(
    level: Level,
    of: Type,
    view: &View,
    start: isize,
    step: isize,
    range: &Range,
    to: &mut [i32],
) {
    macro_rules! read {
        ($T:ty) => {{
            let from = view.data.cast::<$T>().cast_const().offset(start);
            line_of::<$T>(level, range, from, step, to.as_mut_ptr(), to.len())
        }};
    }
    match of {
        Type::U8 => read!(u8),
        Type::U16 => read!(u16),
        Type::U32 => read!(u32),
        Type::U64 => read!(u64),
        Type::S8 => read!(i8),
        Type::S16 => read!(i16),
        Type::S32 => read!(i32),
        Type::S64 => read!(i64),
        other => unreachable!("indices of {other:?}"),
    }
}

/// The places of `to.len()` indices from number `first` of an array on, in row-major order.
///
/// # Safety
/// As for [`line`].
pub unsafe fn read(of: Type, view: &View, first: usize, range: &Range, to: &mut [i32]) {
    let (_, count) = view.rows();
    let mut done = 0;
    while done < to.len() {
        let (row, column) = ((first + done) / count, (first + done) % count);
        let length = (count - column).min(to.len() - done);
        let start = view.row(row) + column as isize * view.step();
        line(
            of,
            view,
            start,
            view.step(),
            range,
            &mut to[done..done + length],
        );
        done += length;
    }
}
