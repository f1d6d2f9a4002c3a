//! An array with a slice of it written over, from where numbers say that are known only when it runs. A copy of a cache is as much
//! memory as attention reads, so threads share it.

use super::element::Element;
use super::node::View;
use super::{pool, Shared, PART, WORTH_SHARING};

/// Where the slice begins in `out`, in elements: within it along every axis, whatever `start` says.
unsafe fn offset(start: &View, axes: &[u8], is_wide: bool, update: &View, out: &View) -> isize {
    let mut offset = 0;
    for (i, axis) in axes.iter().enumerate() {
        let (at, axis) = (i as isize * start.step(), *axis as usize);
        let first = match is_wide {
            true => start.data.cast::<i64>().offset(at).read(),
            false => i64::from(start.data.cast::<i32>().offset(at).read()),
        };
        let last = i64::from(out.shape()[axis] - update.shape()[axis]);
        offset += first.clamp(0, last) as isize * out.strides()[axis] as isize;
    }
    offset
}

/// `from`, row by row, to where `to`'s strides put its rows.
unsafe fn copy<T: Element>(from: &View, to: &Shared<T>, to_row: &(dyn Fn(usize) -> isize + Sync)) {
    let (rows, count) = from.rows();
    let (start, step) = (Shared(from.data.cast::<T>()), from.step());
    let parts = (rows * count).div_ceil(PART).min(rows);
    pool::parallel(parts, rows * count >= WORTH_SHARING, &|part| {
        for row in rows * part / parts..rows * (part + 1) / parts {
            // SAFETY: the views' own shapes and strides; rows that are this part's alone.
            unsafe {
                let from = start.offset(from.row(row));
                let to = to.offset(to_row(row));
                if step == 1 {
                    std::ptr::copy_nonoverlapping(from, to, count);
                } else {
                    (0..count).for_each(|i| to.add(i).write(from.offset(i as isize * step).read()));
                }
            }
        }
    });
}

/// # Safety
/// `update` is no larger than `out` along any axis, `out` is of `a`'s shape, lies without gaps, in rows, and may have `a`'s memory, and
/// `start` has a whole number for each of the axes.
pub unsafe fn run<T: Element>(axes: &[u8], is_wide: bool, inputs: &[View], out: &View) {
    let [a, update, start] = inputs else {
        return;
    };
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
        copy(a, &to, &|row| out.row(row));
    }
    if update.size() > 0 {
        let first = offset(start, axes, is_wide, update, out);
        copy(update, &to, &|row| first + update.row_in(row, out));
    }
}
