//! A slice of an array from where numbers say that are known only when it runs, and an array with such a slice written
//! over. A copy of a cache is as much memory as attention reads, so threads share it.

use super::element::Element;
use super::pool::{self, Shared, PART, WORTH_SHARING};
use super::View;

/// Where the slice begins in `whole`, in elements: within it along every axis, whatever `start` says.
unsafe fn offset(start: &View, axes: &[u8], is_wide: bool, slice: &View, whole: &View) -> isize {
    let mut offset = 0;
    for (i, axis) in axes.iter().enumerate() {
        let (at, axis) = (i as isize * start.step(), *axis as usize);
        let first = match is_wide {
            true => start.data.cast::<i64>().offset(at).read(),
            false => i64::from(start.data.cast::<i32>().offset(at).read()),
        };
        let last = i64::from(whole.shape()[axis] - slice.shape()[axis]);
        offset += first.clamp(0, last) as isize * whole.strides()[axis] as isize;
    }
    offset
}

/// As many elements as `slice` has, row by row: from `from` on in rows that begin at `from_row` and go by `step`, to
/// `to`.
unsafe fn copy<T: Element>(
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
/// `out` lies in rows and is no larger than the array along any axis, and `start` has a whole number for each of the
/// axes.
pub unsafe fn slice<T: Element>(axes: &[u8], is_wide: bool, inputs: &[View], out: &View) {
    let [a, start] = inputs else {
        return;
    };
    let (from, to) = (Shared(a.data.cast::<T>()), Shared(out.data.cast::<T>()));
    let first = offset(start, axes, is_wide, out, a);
    let from_row = |row| first + out.row_in(row, a);
    copy(out, (from, &from_row, a.step()), (to, &|row| out.row(row)));
}

/// `a` to `out`, unless this is `a`'s own memory.
///
/// # Safety
/// Both are of one shape, and `out` lies without gaps.
pub unsafe fn copy_whole<T: Element>(a: &View, out: &View) {
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
/// `a`'s memory, and `start` has a whole number for each of the axes.
pub unsafe fn update<T: Element>(axes: &[u8], is_wide: bool, inputs: &[View], out: &View) {
    let [a, update, start] = inputs else {
        return;
    };
    copy_whole::<T>(a, out);
    if update.size() > 0 {
        let first = offset(start, axes, is_wide, update, out);
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
