//! A slice of an array from where numbers say that are known only when it runs, and an array with such a slice written
//! over. A copy of a cache is as much memory as attention reads, so threads share it.

use super::gather::of_size;
use super::indices::{self, Beyond, Range};
use super::pool::{self, Shared, PART, WORTH_SHARING};
use super::{Type, View};

/// Where the slice begins in `whole`, in elements: within it along every axis, whatever `start` says.
unsafe fn offset(start: &View, axes: &[u8], of: Type, slice: &View, whole: &View) -> isize {
    let mut offset = 0;
    for (i, axis) in axes.iter().enumerate() {
        let (axis, mut first) = (*axis as usize, [0]);
        let length = whole.shape()[axis];
        let range = Range {
            length,
            last: length - slice.shape()[axis],
            beyond: Beyond::First,
        };
        indices::line(of, start, i as isize * start.step(), 1, &range, &mut first);
        offset += first[0] as isize * whole.strides()[axis] as isize;
    }
    offset
}

/// As many elements as `slice` has, row by row: from `from` on in rows that begin at `from_row` and go by `step`, to
/// `to`.
unsafe fn copy<T: Copy>(
    slice: &View,
    (from, from_row, step): (Shared<T>, &Row, isize),
    (to, to_row): (Shared<T>, &Row),
) {
    let (rows, count) = slice.rows();
    let parts = (rows * count).div_ceil(PART).min(rows);
    pool::parallel(parts, rows * count >= WORTH_SHARING, &|part| {
        for row in rows * part / parts..rows * (part + 1) / parts {
            // SAFETY: within both; rows that are this part's alone.
            unsafe {
                let (from, to) = (from.offset(from_row(row)), to.offset(to_row(row)));
                if step == 1 {
                    std::ptr::copy_nonoverlapping(from, to, count);
                } else {
                    (0..count).for_each(|i| to.add(i).write(from.offset(i as isize * step).read()));
                }
            }
        }
    });
}

/// Where a row begins.
type Row<'a> = dyn Fn(usize) -> isize + Sync + 'a;

/// # Safety
/// `out` lies in rows and is no larger than the array along any axis, and `start` has an integer of the type `of` for
/// each of the axes. Elements are of `bytes`.
pub unsafe fn slice(axes: &[u8], of: Type, bytes: usize, inputs: &[View], out: &View) {
    let [a, start] = inputs else {
        return;
    };
    let first = offset(start, axes, of, out, a);
    let from_row = |row| first + out.row_in(row, a);
    macro_rules! call {
        ($T:ty) => {{
            let (from, to) = (Shared(a.data.cast::<$T>()), Shared(out.data.cast::<$T>()));
            copy(out, (from, &from_row, a.step()), (to, &|row| out.row(row)));
        }};
    }
    of_size!(bytes, call)
}

/// `a` to `out`, unless this is `a`'s own memory.
///
/// # Safety
/// Both are of one shape, and `out` lies without gaps.
pub unsafe fn copy_whole<T: Copy>(a: &View, out: &View) {
    let (from, to) = (Shared(a.data.cast::<T>()), Shared(out.data.cast::<T>()));
    if a.strides() == out.strides() && out.data != a.data {
        let size = out.size();
        pool::parallel(size.div_ceil(PART), size >= WORTH_SHARING, &|part| {
            let count = PART.min(size - part * PART);
            // SAFETY: within both, which lie alike without gaps.
            unsafe {
                let (from, to) = (from.at(part * PART), to.at(part * PART));
                std::ptr::copy_nonoverlapping(from, to, count);
            }
        });
    } else if out.data != a.data {
        copy(
            a,
            (from, &|row| a.row(row), a.step()),
            (to, &|row| out.row(row)),
        );
    }
}

/// # Safety
/// `update` is no larger than `out` along any axis, `out` is of `a`'s shape, lies without gaps, in rows, and may have
/// `a`'s memory, and `start` has an integer of the type `of` for each of the axes. Elements are of `bytes`.
pub unsafe fn update(axes: &[u8], of: Type, bytes: usize, inputs: &[View], out: &View) {
    macro_rules! call {
        ($T:ty) => {
            update_of::<$T>(axes, of, inputs, out)
        };
    }
    of_size!(bytes, call)
}

unsafe fn update_of<T: Copy>(axes: &[u8], of: Type, inputs: &[View], out: &View) {
    let [a, update, start] = inputs else {
        return;
    };
    copy_whole::<T>(a, out);
    if update.size() > 0 {
        let first = offset(start, axes, of, update, out);
        let to_row = |row| first + update.row_in(row, out);
        let (from, to) = (
            Shared(update.data.cast::<T>()),
            Shared(out.data.cast::<T>()),
        );
        copy(
            update,
            (from, &|row| update.row(row), update.step()),
            (to, &to_row),
        );
    }
}
