//! Numbers added where indices say. What comes to one place is added up in f64 and rounded once, however many numbers
//! there are.

use super::element::Element;
use super::pool::{self, Shared, WORTH_SHARING};
use super::slices;
use super::View;
use smallvec::SmallVec;

/// Numbers of an update beside each other from which threads share it.
const WIDE: usize = 256;

/// An axis of the slices that are added: its size, and the elements between its places in the updates and in the
/// result.
type Axis = (usize, isize, isize);

/// Where numbers go: index arrays of one shape, each for an axis of the result.
struct Places<'a> {
    indices: &'a [View],
    /// Of each of them: the size of its axis, the last place that fits there, and the elements between places.
    axes: SmallVec<[(i64, i64, isize); 4]>,
    /// The elements of the result between places of the index arrays, where these are places of the result too.
    own: SmallVec<[isize; 4]>,
    /// The elements of the updates between places of the index arrays.
    from: SmallVec<[isize; 4]>,
}

impl Places<'_> {
    /// Calls `work` with each place in the updates and in the result, of those that fit.
    #[inline(always)]
    unsafe fn each(&self, mut work: impl FnMut(isize, isize)) {
        let shape = self.indices.first().map_or(&[][..], View::shape);
        let (count, outer) = match shape.split_last() {
            Some((last, outer)) => (*last as usize, outer),
            None => (1, shape),
        };
        let rows: usize = outer.iter().map(|n| *n as usize).product();
        let step = |steps: &[isize]| steps.last().copied().unwrap_or(0);
        let (from_step, own_step) = (step(&self.from), step(&self.own));
        for row in 0..rows {
            let (mut from, mut own, mut rest) = (0, 0, row);
            for (axis, size) in outer.iter().enumerate().rev() {
                let at = (rest % *size as usize) as isize;
                from += at * self.from[axis];
                own += at * self.own[axis];
                rest /= *size as usize;
            }
            let starts: SmallVec<[*const i64; 4]> = self
                .indices
                .iter()
                .map(|index| index.data.cast::<i64>().offset(index.row(row)).cast_const())
                .collect();
            for i in 0..count as isize {
                let mut to = Some(own + i * own_step);
                for ((start, index), (size, last, step)) in
                    starts.iter().zip(self.indices).zip(&self.axes)
                {
                    let at = start.offset(i * index.step()).read();
                    let at = if at < 0 { at.saturating_add(*size) } else { at };
                    let fits = (0..=*last).contains(&at);
                    to = to.filter(|_| fits).map(|to| to + at as isize * step);
                }
                if let Some(to) = to {
                    work(from + i * from_step, to);
                }
            }
        }
    }
}

/// Adds slices of `updates` to `out`, which already holds what they are added to.
unsafe fn add<T: Element>(
    places: &Places,
    mut slice: SmallVec<[Axis; 4]>,
    updates: &View,
    out: &View,
) {
    slice.retain(|(size, ..)| *size > 1);
    let (run, run_from, run_to) = slice.pop().unwrap_or((1, 0, 0));
    // Where each row of a slice begins.
    let rows: Vec<(isize, isize)> = (0..slice.iter().map(|(size, ..)| size).product())
        .map(|mut row: usize| {
            let (mut from, mut to) = (0, 0);
            for (size, step, to_step) in slice.iter().rev() {
                let at = (row % size) as isize;
                from += at * step;
                to += at * to_step;
                row /= size;
            }
            (from, to)
        })
        .collect();
    // Zeros take no memory until they are written.
    let mut sums = vec![0f64; out.size()];
    let sums = Shared(sums.as_mut_ptr());
    let (x, to) = (
        Shared(updates.data.cast::<T>()),
        Shared(out.data.cast::<T>()),
    );
    let share = updates.size() >= WORTH_SHARING && run >= WIDE;
    let parts = if share { run / (WIDE / 2) } else { 1 };
    pool::parallel(parts, share, &|part| {
        let run = run * part / parts..run * (part + 1) / parts;
        // SAFETY: within the arrays; places of the result that are this part's alone.
        unsafe {
            places.each(|from, place| {
                for (row_from, row_to) in &rows {
                    let (x, sum) = (x.offset(from + row_from), sums.offset(place + row_to));
                    for i in run.clone() {
                        let i = i as isize;
                        *sum.offset(i * run_to) += f64::from((*x.offset(i * run_from)).widen());
                    }
                }
            });
            places.each(|_, place| {
                for (_, row_to) in &rows {
                    for i in run.clone() {
                        let at = place + row_to + i as isize * run_to;
                        let sum = &mut *sums.offset(at);
                        if *sum != 0.0 {
                            let to = to.offset(at);
                            let all = f64::from((*to).widen()) + *sum;
                            to.write(T::narrow(all as f32));
                            *sum = 0.0;
                        }
                    }
                }
            });
        }
    });
}

/// Slices added where an index array for each of `axes` says, a negative index counted from the end; what does not fit
/// is left out.
///
/// # Safety
/// The inputs are an array, updates of the index arrays' shape and then of as many axes as the array, each no longer
/// than the array's, and index arrays of i64 of one shape. `out` is of the array's shape, lies without gaps, and may
/// have its memory.
pub unsafe fn add_slices<T: Element>(axes: &[u8], inputs: &[View], out: &View) {
    let [a, updates, indices @ ..] = inputs else {
        return;
    };
    slices::copy_whole::<T>(a, out);
    let rank = out.shape().len();
    let (shape, steps) = (updates.shape(), updates.strides());
    let lead = shape.len() - rank;
    let axis = |axis: &u8| {
        let axis = usize::from(*axis);
        let size = i64::from(out.shape()[axis]);
        let last = size - i64::from(shape[lead + axis]);
        (size, last, out.strides()[axis] as isize)
    };
    let places = Places {
        indices,
        axes: axes.iter().map(axis).collect(),
        own: SmallVec::from_elem(0, lead),
        from: steps[..lead].iter().map(|step| *step as isize).collect(),
    };
    let slice = (0..rank).map(|axis| {
        let step = steps[lead + axis] as isize;
        (
            shape[lead + axis] as usize,
            step,
            out.strides()[axis] as isize,
        )
    });
    add::<T>(&places, slice.collect(), updates, out);
}

/// Numbers added where they lie themselves but for one axis, along which an index of each says where.
///
/// # Safety
/// The inputs are an array, updates of as many axes, no longer than the array's but for `axis`, and as many indices of
/// i64. `out` is as for [`add_slices`].
pub unsafe fn add_along<T: Element>(axis: usize, inputs: &[View], out: &View) {
    let [a, updates, index] = inputs else {
        return;
    };
    slices::copy_whole::<T>(a, out);
    let size = i64::from(out.shape()[axis]);
    let mut own: SmallVec<[isize; 4]> = out.strides().iter().map(|step| *step as isize).collect();
    let step = std::mem::replace(&mut own[axis], 0);
    let places = Places {
        indices: std::slice::from_ref(index),
        axes: SmallVec::from_elem((size, size - 1, step), 1),
        own,
        from: updates
            .strides()
            .iter()
            .map(|step| *step as isize)
            .collect(),
    };
    add::<T>(&places, SmallVec::new(), updates, out);
}

#[cfg(test)]
mod tests {
    use super::super::tests::{in_rows, Dice, Scattered};
    use super::*;
    use half::{bf16, f16};

    fn added<T: Element>(n: usize, x: f32, start: f32) -> f32 {
        let (shape, one) = ([3], [1i64]);
        let a = Scattered::in_rows(vec![T::narrow(start); 3], &shape);
        let updates = Scattered::in_rows(vec![T::narrow(x); n], &[n as i32, 1]);
        let (index, index_shape) = (vec![1i64; n], [n as i32]);
        let mut out = [T::narrow(f32::NAN); 3];
        let inputs = [
            a.view(),
            updates.view(),
            // SAFETY: of arrays of the test's own, which outlive it.
            unsafe { View::of(index.as_ptr(), &index_shape, &one) },
        ];
        // SAFETY: arrays that live, of the shapes that are asked for.
        unsafe { add_slices::<T>(&[0], &inputs, &View::of(out.as_mut_ptr(), &shape, &one)) };
        assert_eq!(out[0].widen(), start);
        out[1].widen()
    }

    #[test]
    fn many_numbers_at_one_place_are_rounded_once() {
        assert_eq!(added::<bf16>(1_000, 1.0, 0.0), 1_000.0);
        assert_eq!(added::<f16>(5_000, 1.0, 0.0), 5_000.0);
        assert!((added::<f32>(1_000_000, 0.1, 1.0) - 100_001.0).abs() < 0.01);
        assert!(added::<f32>(3, f32::NAN, 1.0).is_nan());
    }

    #[test]
    fn slices_go_where_indices_say_and_what_does_not_fit_is_left_out() {
        for seed in 0..200 {
            let mut dice = Dice::new(seed);
            let number = |dice: &mut Dice| dice.below(64) as f32 - 32.0;
            let rank = 1 + dice.below(3);
            let shape: Vec<i32> = (0..rank).map(|_| 1 + dice.below(9) as i32).collect();
            let axes: Vec<u8> = (0..rank as u8).filter(|_| dice.below(2) == 0).collect();
            let axes = if axes.is_empty() { vec![0] } else { axes };
            let lead: Vec<i32> = (0..dice.below(3))
                .map(|_| 1 + dice.below(20) as i32)
                .collect();
            let mut wide = lead.clone();
            for (axis, size) in shape.iter().enumerate() {
                let is_indexed = axes.contains(&(axis as u8));
                wide.push(if is_indexed {
                    1 + dice.below(2) as i32
                } else {
                    *size
                });
                let last = wide.len() - 1;
                wide[last] = wide[last].min(*size);
            }
            let size: i32 = shape.iter().product();
            let a = (0..size).map(|_| number(&mut dice)).collect();
            let a = Scattered::<f32>::in_rows(a, &shape);
            let updates = Scattered::<f32>::new(&mut dice, &wide, number);
            let count: i32 = lead.iter().product();
            let indices: Vec<Vec<i64>> = axes
                .iter()
                .map(|axis| {
                    let size = i64::from(shape[usize::from(*axis)]);
                    let place =
                        |dice: &mut Dice| dice.below(2 * size as usize + 2) as i64 - size - 1;
                    (0..count).map(|_| place(&mut dice)).collect()
                })
                .collect();
            let mut want: Vec<f64> = a.data.iter().map(|x| f64::from(*x)).collect();
            let (strides, steps) = (in_rows(&shape), in_rows(&lead));
            updates.each(|place, x| {
                let (lead, own) = place.split_at(lead.len());
                let n: usize = lead
                    .iter()
                    .zip(&steps)
                    .map(|(i, step)| i * *step as usize)
                    .sum();
                let mut at: Vec<i64> = own.iter().map(|i| *i as i64).collect();
                for (axis, index) in axes.iter().zip(&indices) {
                    let axis = usize::from(*axis);
                    let (size, slice) = (i64::from(shape[axis]), wide[lead.len() + axis]);
                    let start = if index[n] < 0 {
                        index[n] + size
                    } else {
                        index[n]
                    };
                    if start < 0 || start + i64::from(slice) > size {
                        return;
                    }
                    at[axis] += start;
                }
                let place: i64 = at.iter().zip(&strides).map(|(i, step)| i * step).sum();
                want[place as usize] += x;
            });
            let out = vec![f32::NAN; size as usize];
            let mut inputs = vec![a.view(), updates.view()];
            // SAFETY: of arrays of the test's own, which outlive it.
            let index = |index: &Vec<i64>| unsafe { View::of(index.as_ptr(), &lead, &steps) };
            inputs.extend(indices.iter().map(index));
            // SAFETY: arrays that live, of the shapes that are asked for.
            unsafe { add_slices::<f32>(&axes, &inputs, &View::of(out.as_ptr(), &shape, &strides)) };
            let got: Vec<f64> = out.iter().map(|x| f64::from(*x)).collect();
            assert_eq!(got, want, "seed {seed}: {shape:?} {wide:?} {axes:?}");
        }
    }

    #[test]
    fn wide_slices_are_shared() {
        let (shape, strides) = ([4, 1000], [1000, 1]);
        let a = Scattered::in_rows(vec![1f32; 4000], &shape);
        let updates = Scattered::in_rows(vec![0.5f32; 300_000], &[300, 1, 1000]);
        let index: Vec<i64> = (0..300).map(|i| i % 3).collect();
        let (index_shape, index_strides) = ([300], [1]);
        let out = vec![f32::NAN; 4000];
        // SAFETY: of arrays of the test's own, which outlive it.
        let index = unsafe { View::of(index.as_ptr(), &index_shape, &index_strides) };
        let inputs = [a.view(), updates.view(), index];
        // SAFETY: arrays that live, of the shapes that are asked for.
        unsafe { add_slices::<f32>(&[0], &inputs, &View::of(out.as_ptr(), &shape, &strides)) };
        assert!(out[..3000].iter().all(|x| *x == 51.0) && out[3000..].iter().all(|x| *x == 1.0));
    }
}
