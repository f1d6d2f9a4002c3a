//! Numbers added or written where indices say. What comes to one place is added up in f64 and rounded once, however
//! many numbers there are; of what is written to one place the last stays.

use super::element::Element;
use super::gather::of_size;
use super::indices::{self, Beyond, Range, BLOCK};
use super::moves;
use super::pool::{self, Shared, PART, WORTH_SHARING};
use super::simd::{dispatch, load_part, store_part, Level, Simd};
use super::slices;
use super::{Type, View};
use smallvec::SmallVec;

/// Numbers of an update beside each other from which threads share it.
const WIDE: usize = 256;

/// Elements of a slice from which slices are put in the order of where they go.
const ORDERED: usize = 32;

/// Parts of a result in which threads write single elements, at most: each reads all indices.
const MOST_PARTS: usize = 8;

/// An axis of the slices that are added: its size, and the elements between its places in the updates and in the
/// result.
type Axis = (usize, isize, isize);

/// Where a slice goes, and where it comes from.
type Pair = (isize, isize);

/// Work on a piece of a run: where it begins, how long it is, where it is in the run, and the pairs that go there.
type Work<'a> = dyn Fn(usize, usize, isize, &[Pair]) + Sync + 'a;

/// Where numbers go: index arrays of one shape, each for an axis of the result.
struct Places<'a> {
    indices: &'a [View],
    /// Their type.
    of: Type,
    /// Of each of them: the places along its axis that fit, and the elements between places.
    axes: SmallVec<[(Range, isize); 4]>,
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
            let (mut places, mut read) = ([OUTSIDE; BLOCK], [0; BLOCK]);
            for first in (0..count).step_by(BLOCK) {
                let length = BLOCK.min(count - first);
                let (places, read) = (&mut places[..length], &mut read[..length]);
                places.fill(0);
                for (index, (range, step)) in self.indices.iter().zip(&self.axes) {
                    let start = index.row(row) + first as isize * index.step();
                    indices::line(self.of, index, start, index.step(), range, read);
                    for (place, at) in places.iter_mut().zip(&*read) {
                        let fits = *at != indices::NONE && *place != OUTSIDE;
                        *place = if fits {
                            *place + *at as isize * step
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

    /// The same of slices of `size` elements that begin at multiples of it, and where those of each such slice of
    /// `count` begin.
    unsafe fn by_slice(&self, size: usize, count: usize) -> (Vec<usize>, Vec<Pair>) {
        let mut all = Vec::new();
        self.each(|from, to| all.push((to, from)));
        let mut starts = vec![0; count + 1];
        for (to, _) in &all {
            starts[*to as usize / size + 1] += 1;
        }
        for i in 0..count {
            starts[i + 1] += starts[i];
        }
        let (mut next, mut sorted) = (starts.clone(), vec![(0, 0); all.len()]);
        for pair in all {
            let next = &mut next[pair.0 as usize / size];
            sorted[*next] = pair;
            *next += 1;
        }
        (starts, sorted)
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

    /// Whether its elements lie beside each other in the updates and in the result.
    fn is_run(&self) -> bool {
        self.rows.len() == 1 && (self.row.1, self.row.2) == (1, 1)
    }
}

/// Slices that are runs of memory, of which the array consists, one after another.
struct Runs {
    size: usize,
    count: usize,
}

impl Runs {
    /// None where the slices are others, or few elements, or the array has the result's memory, where most of it stays.
    fn of(axes: &[u8], slice: &Slice, a: &View, out: &View) -> Option<Runs> {
        let mut next = 1;
        let mut sizes = out.shape().iter().zip(a.strides()).rev();
        let is_in_rows = a.strides() == out.strides()
            && sizes.all(|(size, step)| {
                let fits = *size == 1 || *step == next;
                next *= i64::from(*size);
                fits
            });
        let inner = &out.shape()[axes.len()..];
        let size: usize = inner.iter().map(|size| *size as usize).product();
        let is_leading = axes
            .iter()
            .enumerate()
            .all(|(i, axis)| i == usize::from(*axis));
        let is_whole = size == slice.size() && size >= ORDERED && slice.is_run();
        let fits = a.data != out.data && is_in_rows && is_leading && is_whole;
        fits.then(|| Runs {
            size,
            count: out.size() / size,
        })
    }

    /// Calls `work` with pieces of all runs, where each begins, how long it is, and the pairs that go to its run.
    unsafe fn each(&self, places: &Places, work: &Work) {
        let (starts, pairs) = places.by_slice(self.size, self.count);
        let (size, count) = (self.size, self.count);
        let (pieces, batch) = (size.div_ceil(PART), (PART / size).max(1));
        let is_worth = size * count >= WORTH_SHARING;
        pool::parallel(count.div_ceil(batch) * pieces, is_worth, &|part| {
            let (first, start) = (part / pieces * batch, part % pieces * PART);
            let length = PART.min(size - start);
            for run in first..count.min(first + batch) {
                let own = &pairs[starts[run]..starts[run + 1]];
                work(run * size + start, length, start as isize, own);
            }
        });
    }
}

#[inline(always)]
unsafe fn add_run_body<S: Simd, T: Element>(
    a: *const T,
    x: *const T,
    from: &[Pair],
    to: *mut T,
    count: usize,
) {
    macro_rules! sum {
        ($load:expr) => {{
            let a = $load(a);
            match from {
                // Of two numbers the sum of f32 is that of f64, rounded.
                [(_, from)] => S::add(a, $load(x.offset(*from))),
                _ => {
                    let mut sum = S::wide_splat(0.0);
                    for (_, from) in from {
                        sum = S::wide_add(sum, S::widen($load(x.offset(*from))));
                    }
                    S::narrow(S::wide_add(S::widen(a), sum))
                }
            }
        }};
    }
    let mut i = 0;
    while i + S::LANES <= count {
        let sum = sum!(|row: *const T| T::load::<S>(row.add(i)));
        T::store::<S>(to.add(i), sum);
        i += S::LANES;
    }
    if i < count {
        let sum = sum!(|row: *const T| load_part::<S, T>(row.add(i), count - i, 0.0));
        store_part::<S, T>(to.add(i), count - i, sum);
    }
}

dispatch! {
    /// Each of `count` numbers of `a`, plus those of `x` at all these places, added up in f64.
    ///
    /// # Safety
    /// So many are there, and `to` may be `a`.
    fn add_run<T: Element>(a: *const T, x: *const T, from: &[Pair], to: *mut T, count: usize) = add_run_body
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
                if (step, to_step) == (1, 1) {
                    let x = x.offset(*row_from).cast_const();
                    add_run::<T>(Level::best(), to, x, group, to, run);
                    continue;
                }
                let x = |from: isize| x.offset(from + row_from).cast_const();
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
        let length = out.shape()[axis];
        let range = Range {
            length,
            last: length - shape[lead + axis],
            beyond: Beyond::Nothing,
        };
        (range, out.strides()[axis] as isize)
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
    let (places, slice, is_apart) = parts(axes, of, updates, indices, out);
    if let Some(runs) = Runs::of(axes, &Slice::new(slice.clone()), a, out) {
        let (x, a, to) = (
            Shared(updates.data.cast::<T>()),
            Shared(a.data.cast::<T>()),
            Shared(out.data.cast::<T>()),
        );
        // What is added is added while what it is added to is copied.
        return runs.each(&places, &|at, count, start, own| {
            // SAFETY: within the arrays; a run of the result that is this call's alone.
            unsafe {
                let (a, x, to) = (a.at(at).cast_const(), x.offset(start), to.at(at));
                match own {
                    [] => std::ptr::copy_nonoverlapping(a, to, count),
                    _ => add_run::<T>(Level::best(), a, x, own, to, count),
                }
            }
        });
    }
    slices::copy_whole::<T>(a, out);
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
    let (places, slice, is_apart) = parts(axes, of, updates, indices, out);
    let slice = Slice::new(slice);
    let runs = Runs::of(axes, &slice, a, out);
    if a.data != out.data && runs.is_none() {
        moves::copy(bytes, a, out);
    }
    macro_rules! call {
        ($T:ty) => {
            match &runs {
                Some(runs) => put_runs::<$T>(runs, &places, [a, updates], out),
                None => put::<$T>(&places, &slice, is_apart, updates, out),
            }
        };
    }
    of_size!(bytes, call)
}

/// The array with the last of the runs that go to a place in its place.
unsafe fn put_runs<T: Copy>(runs: &Runs, places: &Places, inputs: [&View; 2], out: &View) {
    let [a, x] = inputs.map(|view| Shared(view.data.cast::<T>()));
    let to = Shared(out.data.cast::<T>());
    runs.each(places, &|at, count, start, own| {
        // SAFETY: within the arrays; a run of the result that is this call's alone.
        unsafe {
            let from = match own.last() {
                Some((_, from)) => x.offset(from + start),
                None => a.at(at),
            };
            std::ptr::copy_nonoverlapping(from.cast_const(), to.at(at), count);
        }
    });
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
    if slice.size() == 1 {
        return put_elements(places, x, to, updates.size(), out.size());
    }
    if !is_apart || slice.size() < ORDERED {
        return places.each(write);
    }
    by_place(&places.in_order(), slice.size(), &|group| {
        if let Some((place, from)) = group.last() {
            write(*from, *place);
        }
    });
}

/// `count` single elements. Each thread writes those that go to a part of the result.
unsafe fn put_elements<T: Copy>(
    places: &Places,
    x: Shared<T>,
    to: Shared<T>,
    count: usize,
    size: usize,
) {
    let is_worth = count >= WORTH_SHARING;
    let parts = match is_worth {
        true => pool::threads().min(MOST_PARTS),
        false => 1,
    };
    pool::parallel(parts, is_worth, &|part| {
        let own = (size * part / parts) as isize..(size * (part + 1) / parts) as isize;
        // SAFETY: within the arrays; places of the result that are this part's alone.
        unsafe {
            places.each(|from, place| {
                if parts == 1 || own.contains(&place) {
                    to.offset(place).write(x.offset(from).read());
                }
            });
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
    let length = out.shape()[axis];
    let range = Range {
        length,
        last: length - 1,
        beyond: Beyond::Nothing,
    };
    let mut own: SmallVec<[isize; 4]> = out.strides().iter().map(|step| *step as isize).collect();
    let step = std::mem::replace(&mut own[axis], 0);
    let places = Places {
        indices: std::slice::from_ref(index),
        of,
        axes: SmallVec::from_elem((range, step), 1),
        own,
        from: updates
            .strides()
            .iter()
            .map(|step| *step as isize)
            .collect(),
    };
    add::<T>(&places, SmallVec::new(), true, updates, out);
}
