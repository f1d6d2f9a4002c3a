//! Numbers added or written where indices say. What comes to one place is added up in f64 and rounded once, however
//! many numbers there are; of what is written to one place the last stays.

use super::element::Element;
use super::gather::of_size;
use super::indices::{self, BLOCK};
use super::moves;
use super::pool::{self, Shared, PART, WORTH_SHARING};
use super::slices;
use super::{Type, View};
use smallvec::SmallVec;

/// Numbers of an update beside each other from which threads share it.
const WIDE: usize = 256;

/// Elements of a slice from which slices are put in the order of where they go.
const ORDERED: usize = 32;

/// An axis of the slices that are added: its size, and the elements between its places in the updates and in the
/// result.
type Axis = (usize, isize, isize);

/// Where a slice goes, and where it comes from.
type Pair = (isize, isize);

/// Where numbers go: index arrays of one shape, each for an axis of the result.
struct Places<'a> {
    indices: &'a [View],
    /// Their type.
    of: Type,
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
            let (mut places, mut read) = ([OUTSIDE; BLOCK], [0i64; BLOCK]);
            for first in (0..count).step_by(BLOCK) {
                let length = BLOCK.min(count - first);
                let (places, read) = (&mut places[..length], &mut read[..length]);
                places.fill(0);
                for (index, (size, last, step)) in self.indices.iter().zip(&self.axes) {
                    let start = index.row(row) + first as isize * index.step();
                    indices::line(self.of, index, start, index.step(), read);
                    for (place, at) in places.iter_mut().zip(&*read) {
                        let at = if *at < 0 { at + size } else { *at };
                        let fits = (0..=*last).contains(&at) && *place != OUTSIDE;
                        *place = if fits {
                            *place + at as isize * step
                        } else {
                            OUTSIDE
                        };
                    }
                }
                for (i, place) in places.iter().enumerate() {
                    let i = (first + i) as isize;
                    if *place != OUTSIDE {
                        work(from + i * from_step, own + i * own_step + place);
                    }
                }
            }
        }
    }

    /// The places in the order of where they go, those to one place in their own order.
    unsafe fn in_order(&self) -> Vec<Pair> {
        let mut all = Vec::new();
        self.each(|from, to| all.push((to, from)));
        all.sort_by_key(|(to, _)| *to);
        all
    }
}

/// No place of an array.
const OUTSIDE: isize = isize::MIN;

/// A slice's rows, of which each begins so many elements behind its first, and the axis along them.
struct Slice {
    rows: Vec<(isize, isize)>,
    row: Axis,
}

impl Slice {
    fn new(mut axes: SmallVec<[Axis; 4]>) -> Slice {
        axes.retain(|(size, ..)| *size > 1);
        let row = axes.pop().unwrap_or((1, 0, 0));
        let rows = (0..axes.iter().map(|(size, ..)| size).product())
            .map(|mut row: usize| {
                let (mut from, mut to) = (0, 0);
                for (size, step, to_step) in axes.iter().rev() {
                    let at = (row % size) as isize;
                    from += at * step;
                    to += at * to_step;
                    row /= size;
                }
                (from, to)
            })
            .collect();
        Slice { rows, row }
    }

    fn size(&self) -> usize {
        self.rows.len() * self.row.0
    }
}

/// Calls `work` with the places that go to one place, on several threads where the slices are large.
fn by_place(places: &[Pair], size: usize, work: &(dyn Fn(&[Pair]) + Sync)) {
    let groups: Vec<&[Pair]> = places.chunk_by(|a, b| a.0 == b.0).collect();
    let batch = (PART / size).max(1);
    let is_worth = places.len() * size >= WORTH_SHARING;
    pool::parallel(groups.len().div_ceil(batch), is_worth, &|part| {
        let end = groups.len().min((part + 1) * batch);
        groups[part * batch..end]
            .iter()
            .for_each(|group| work(group));
    });
}

/// [`add`] of slices that are large, and that either lie at one place or do not overlap.
unsafe fn add_by_place<T: Element>(places: &Places, slice: &Slice, updates: &View, out: &View) {
    let (x, to) = (
        Shared(updates.data.cast::<T>()),
        Shared(out.data.cast::<T>()),
    );
    let (run, step, to_step) = slice.row;
    by_place(&places.in_order(), slice.size(), &|group| {
        for (row_from, row_to) in &slice.rows {
            // SAFETY: within the arrays; a place of the result that is this group's alone.
            unsafe {
                let to = to.offset(group[0].0 + row_to);
                let x = |from: isize| x.offset(from + row_from).cast_const();
                if let ([(_, from)], 1, 1) = (group, step, to_step) {
                    let x = x(*from);
                    for i in 0..run {
                        // Of two numbers the sum of f32 is that of f64, rounded.
                        let sum = (*to.add(i)).widen() + (*x.add(i)).widen();
                        to.add(i).write(T::narrow(sum));
                    }
                    continue;
                }
                for first in (0..run).step_by(BLOCK) {
                    let mut sums = [0f64; BLOCK];
                    let sums = &mut sums[..BLOCK.min(run - first)];
                    for (_, from) in group {
                        let x = x(from + first as isize * step);
                        for (i, sum) in sums.iter_mut().enumerate() {
                            *sum += f64::from((*x.offset(i as isize * step)).widen());
                        }
                    }
                    for (i, sum) in sums.iter().enumerate() {
                        let to = to.offset((first + i) as isize * to_step);
                        let all = f64::from((*to).widen()) + sum;
                        to.write(T::narrow(all as f32));
                    }
                }
            }
        }
    });
}

/// Adds slices of `updates` to `out`, which already holds what they are added to. Where they are apart, those at
/// different places do not overlap.
unsafe fn add<T: Element>(
    places: &Places,
    slice: SmallVec<[Axis; 4]>,
    is_apart: bool,
    updates: &View,
    out: &View,
) {
    let slice = Slice::new(slice);
    if is_apart && slice.size() >= ORDERED {
        return add_by_place::<T>(places, &slice, updates, out);
    }
    let rows = &slice.rows;
    let (run, run_from, run_to) = slice.row;
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
                for (row_from, row_to) in rows {
                    let (x, sum) = (x.offset(from + row_from), sums.offset(place + row_to));
                    for i in run.clone() {
                        let i = i as isize;
                        *sum.offset(i * run_to) += f64::from((*x.offset(i * run_from)).widen());
                    }
                }
            });
            places.each(|_, place| {
                for (_, row_to) in rows {
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

/// Where slices go, and what they are: index arrays for each of `axes`, and the updates' axes behind those of the index
/// arrays'. And whether those at different places do not overlap.
unsafe fn parts<'a>(
    axes: &[u8],
    of: Type,
    updates: &View,
    indices: &'a [View],
    out: &View,
) -> (Places<'a>, SmallVec<[Axis; 4]>, bool) {
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
        of,
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
    // Along other axes than these, all slices begin at the first place.
    let mut indexed = axes.iter().map(|axis| shape[lead + usize::from(*axis)]);
    let is_apart = indexed.all(|size| size == 1);
    (places, slice.collect(), is_apart)
}

/// Slices added where an index array of the type `of` for each of `axes` says, a negative index counted from the end;
/// what does not fit is left out.
///
/// # Safety
/// The inputs are an array, updates of the index arrays' shape and then of as many axes as the array, each no longer
/// than the array's, and index arrays of one shape. `out` is of the array's shape, lies without gaps, and may have its
/// memory.
pub unsafe fn add_slices<T: Element>(axes: &[u8], of: Type, inputs: &[View], out: &View) {
    let [a, updates, indices @ ..] = inputs else {
        return;
    };
    slices::copy_whole::<T>(a, out);
    let (places, slice, is_apart) = parts(axes, of, updates, indices, out);
    add::<T>(&places, slice, is_apart, updates, out);
}

/// Slices of elements of `bytes` written over the array, likewise.
///
/// # Safety
/// As for [`add_slices`].
pub unsafe fn put_slices(axes: &[u8], of: Type, bytes: usize, inputs: &[View], out: &View) {
    let [a, updates, indices @ ..] = inputs else {
        return;
    };
    if a.data != out.data {
        moves::copy(bytes, a, out);
    }
    let (places, slice, is_apart) = parts(axes, of, updates, indices, out);
    let slice = Slice::new(slice);
    macro_rules! call {
        ($T:ty) => {
            put::<$T>(&places, &slice, is_apart, updates, out)
        };
    }
    of_size!(bytes, call)
}

unsafe fn put<T: Copy>(places: &Places, slice: &Slice, is_apart: bool, updates: &View, out: &View) {
    let (x, to) = (
        Shared(updates.data.cast::<T>()),
        Shared(out.data.cast::<T>()),
    );
    let (run, step, to_step) = slice.row;
    let write = |from: isize, place: isize| {
        for (row_from, row_to) in &slice.rows {
            // SAFETY: within the arrays; a place of the result that no other thread writes to.
            unsafe {
                let (from, to) = (x.offset(from + row_from), to.offset(place + row_to));
                moves::line(from, step, to, to_step, run);
            }
        }
    };
    if !is_apart || slice.size() < ORDERED {
        return places.each(write);
    }
    by_place(&places.in_order(), slice.size(), &|group| {
        if let Some((place, from)) = group.last() {
            write(*from, *place);
        }
    });
}

/// Numbers added where they lie themselves but for one axis, along which an index of the type `of` for each says where.
///
/// # Safety
/// The inputs are an array, updates of as many axes, no longer than the array's but for `axis`, and as many indices.
/// `out` is as for [`add_slices`].
pub unsafe fn add_along<T: Element>(axis: usize, of: Type, inputs: &[View], out: &View) {
    let [a, updates, index] = inputs else {
        return;
    };
    slices::copy_whole::<T>(a, out);
    let size = i64::from(out.shape()[axis]);
    let mut own: SmallVec<[isize; 4]> = out.strides().iter().map(|step| *step as isize).collect();
    let step = std::mem::replace(&mut own[axis], 0);
    let places = Places {
        indices: std::slice::from_ref(index),
        of,
        axes: SmallVec::from_elem((size, size - 1, step), 1),
        own,
        from: updates
            .strides()
            .iter()
            .map(|step| *step as isize)
            .collect(),
    };
    add::<T>(&places, SmallVec::new(), true, updates, out);
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
        unsafe {
            add_slices::<T>(
                &[0],
                Type::S64,
                &inputs,
                &View::of(out.as_mut_ptr(), &shape, &one),
            )
        };
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
            let mut wanted = a.data.clone();
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
                wanted[place as usize] = x as f32;
            });
            let out = vec![f32::NAN; size as usize];
            let mut inputs = vec![a.view(), updates.view()];
            // SAFETY: of arrays of the test's own, which outlive it.
            let index = |index: &Vec<i64>| unsafe { View::of(index.as_ptr(), &lead, &steps) };
            inputs.extend(indices.iter().map(index));
            // SAFETY: arrays that live, of the shapes that are asked for.
            unsafe {
                add_slices::<f32>(
                    &axes,
                    Type::S64,
                    &inputs,
                    &View::of(out.as_ptr(), &shape, &strides),
                )
            };
            let got: Vec<f64> = out.iter().map(|x| f64::from(*x)).collect();
            assert_eq!(got, want, "seed {seed}: {shape:?} {wide:?} {axes:?}");
            // SAFETY: as above.
            unsafe {
                put_slices(
                    &axes,
                    Type::S64,
                    4,
                    &inputs,
                    &View::of(out.as_ptr(), &shape, &strides),
                )
            };
            assert_eq!(out, wanted, "seed {seed}: {shape:?} {wide:?} {axes:?}");
        }
    }

    #[test]
    fn wide_slices_are_shared() {
        let (shape, strides) = ([4, 1000], [1000, 1]);
        let a = Scattered::in_rows(vec![1f32; 4000], &shape);
        let updates = Scattered::in_rows(vec![0.5f32; 300_000], &[300, 1, 1000]);
        let index: Vec<i64> = (0..300).map(|i| i % 3).collect();
        let (index_shape, index_strides) = ([300], [1]);
        let (out, last) = (vec![f32::NAN; 4000], vec![f32::NAN; 4000]);
        // SAFETY: of arrays of the test's own, which outlive it.
        let index = unsafe { View::of(index.as_ptr(), &index_shape, &index_strides) };
        let inputs = [a.view(), updates.view(), index];
        // SAFETY: arrays that live, of the shapes that are asked for.
        unsafe {
            add_slices::<f32>(
                &[0],
                Type::S64,
                &inputs,
                &View::of(out.as_ptr(), &shape, &strides),
            )
        };
        // SAFETY: likewise.
        unsafe {
            put_slices(
                &[0],
                Type::S64,
                4,
                &inputs,
                &View::of(last.as_ptr(), &shape, &strides),
            )
        };
        assert!(last[..3000].iter().all(|x| *x == 0.5) && last[3000..].iter().all(|x| *x == 1.0));
        assert!(out[..3000].iter().all(|x| *x == 51.0) && out[3000..].iter().all(|x| *x == 1.0));
    }
}
