//! Kernels that work through one row after another, shared out between threads.

use super::element::Element;
use super::pool::{self, Shared, PART, WORTH_SHARING};
use super::View;
use std::cell::RefCell;

/// A row, the vectors beside it, the row of the result, their length, and room for a row of f32.
pub type RowWork<'a, T> = dyn Fn(*const T, &[*const T], *mut T, usize, *mut f32) + Sync + 'a;

/// Calls `work` for each row of the first input with the vectors `rest`, the row of `out`, and room for a row of f32.
pub unsafe fn by_rows<T: Element>(x: &View, rest: &[View], out: &View, work: &RowWork<T>) {
    thread_local! {
        static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    let (rows, count) = x.rows();
    let step = x.step();
    // Vectors of one axis, made contiguous where they are not.
    let copies: Vec<Option<Vec<T>>> = rest
        .iter()
        .map(|vector| match vector.strides().last() {
            Some(1) | None => None,
            Some(step) => Some(gather::<T>(vector.data.cast(), *step as isize, count)),
        })
        .collect();
    let vectors: Vec<Shared<T>> = rest
        .iter()
        .zip(&copies)
        .map(|(vector, copy)| match copy {
            Some(copy) => Shared(copy.as_ptr().cast_mut()),
            None => Shared(vector.data.cast::<T>()),
        })
        .collect();
    let (from, to) = (Shared(x.data.cast::<T>()), Shared(out.data.cast::<T>()));
    let parts = (rows * count).div_ceil(PART).min(rows);
    pool::parallel(parts, rows * count >= WORTH_SHARING, &|part| {
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.len() < count {
                scratch.resize(count, 0.0);
            }
            let vectors: Vec<*const T> = vectors
                .iter()
                .map(|vector| vector.at(0).cast_const())
                .collect();
            for row in rows * part / parts..rows * (part + 1) / parts {
                // SAFETY: the view's own shape and strides, and a row that is this part's alone.
                unsafe {
                    let to = to.offset(out.row(row));
                    let mut x = from.offset(x.row(row)).cast_const();
                    if step != 1 {
                        // The row of the result serves as the place to copy to: each kernel reads a row before it
                        // writes it.
                        for i in 0..count {
                            to.add(i).write(x.offset(i as isize * step).read());
                        }
                        x = to;
                    }
                    work(x, &vectors, to, count, scratch.as_mut_ptr());
                }
            }
        })
    });
}

unsafe fn gather<T: Element>(from: *const T, step: isize, count: usize) -> Vec<T> {
    (0..count as isize)
        .map(|i| from.offset(i * step).read())
        .collect()
}
