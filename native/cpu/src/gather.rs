//! Elements and slices at places that are data: whole slices ([`slices`]), and elements along one axis ([`along`]).
//! An index of any integer type counts from the end where it is negative, and is brought into the array where it is
//! beyond. Numbers are moved by their size alone.

use super::indices::{self, bring_within, BLOCK};
use super::moves::line;
use super::pool::{self, Shared, WORTH_SHARING};
use super::{Type, View};
use smallvec::SmallVec;

/// Elements of a part of shared work, at least.
const PART: usize = 16_384;

/// Calls a macro with an unsigned type of so many bytes.
macro_rules! of_size {
    ($size:expr, $call:ident) => {
        match $size {
            1 => $call!(u8),
            2 => $call!(u16),
            4 => $call!(u32),
            _ => $call!(u64),
        }
    };
}

pub(super) use of_size;

/// The offset of element number `at` of an array, and of those beyond it one after another.
struct Walk<'a> {
    shape: &'a [i32],
    strides: &'a [i64],
    place: SmallVec<[i32; 8]>,
    offset: isize,
}

impl<'a> Walk<'a> {
    fn new(shape: &'a [i32], strides: &'a [i64], mut at: usize) -> Walk<'a> {
        let mut place: SmallVec<[i32; 8]> = shape.iter().map(|_| 0).collect();
        let mut offset = 0;
        for axis in (0..shape.len()).rev() {
            let size = shape[axis] as usize;
            place[axis] = (at % size) as i32;
            offset += place[axis] as isize * strides[axis] as isize;
            at /= size;
        }
        Walk {
            shape,
            strides,
            place,
            offset,
        }
    }

    #[inline(always)]
    fn next(&mut self) {
        for axis in (0..self.shape.len()).rev() {
            let stride = self.strides[axis] as isize;
            self.place[axis] += 1;
            self.offset += stride;
            if self.place[axis] < self.shape[axis] {
                return;
            }
            self.offset -= stride * self.shape[axis] as isize;
            self.place[axis] = 0;
        }
    }
}

/// Slices of `sizes` of the first input, which begin at an index for each of `axes`: the other inputs, of one shape
/// and of the type `of`. `out` {of the indices' shape, then `sizes`} lies in rows; `bytes` are those of an element.
///
/// # Safety
/// As [`super::Kernel::run`]; each slice fits.
pub unsafe fn slices(
    axes: &[u8],
    sizes: &[i32],
    of: Type,
    bytes: usize,
    inputs: &[View],
    out: &View,
) {
    macro_rules! call {
        ($T:ty) => {
            slices_of::<$T>(axes, sizes, of, inputs, out)
        };
    }
    of_size!(bytes, call)
}

unsafe fn slices_of<T: Copy>(axes: &[u8], sizes: &[i32], of: Type, inputs: &[View], out: &View) {
    let (a, tables) = (&inputs[0], &inputs[1..]);
    let size: usize = sizes.iter().map(|size| *size as usize).product();
    let count = out.size() / size.max(1);
    // The axes at the end that lie in rows, and are taken whole but for the first: one run of memory.
    let (mut run, mut outer) = (1usize, sizes.len());
    while outer > 0 && (sizes[outer - 1] == 1 || a.strides()[outer - 1] == run as i64) {
        let is_whole = sizes[outer - 1] == a.shape()[outer - 1];
        run *= sizes[outer - 1] as usize;
        outer -= 1;
        if !is_whole {
            break;
        }
    }
    let runs = size / run.max(1);
    let from = Shared(a.data.cast::<T>());
    let to = Shared(out.data.cast::<T>());
    let part = (PART / size.max(1)).max(1);
    let is_worth = out.size() >= WORTH_SHARING;
    pool::parallel(count.div_ceil(part), is_worth, &|number| {
        let end = count.min((number + 1) * part);
        let (mut starts, mut read) = ([0isize; BLOCK], [0i64; BLOCK]);
        for first in (number * part..end).step_by(BLOCK) {
            let count = BLOCK.min(end - first);
            let (starts, read) = (&mut starts[..count], &mut read[..count]);
            starts.fill(0);
            for (axis, table) in axes.iter().zip(tables) {
                let axis = usize::from(*axis);
                let length = i64::from(a.shape()[axis]);
                let step = a.strides()[axis] as isize;
                // SAFETY: elements of the index array.
                unsafe { indices::read(of, table, first, read) };
                bring_within(read, length, length - i64::from(sizes[axis]));
                for (start, index) in starts.iter_mut().zip(&*read) {
                    *start += *index as isize * step;
                }
            }
            // SAFETY: the slices lie in the array, and this part of the result is nobody else's.
            unsafe {
                let mut to = to.at(first * size);
                if size == 1 {
                    for (i, start) in starts.iter().enumerate() {
                        to.add(i).write(from.offset(*start).read());
                    }
                    continue;
                }
                for start in starts {
                    let mut walk = Walk::new(&sizes[..outer], &a.strides()[..outer], 0);
                    for _ in 0..runs {
                        std::ptr::copy_nonoverlapping(from.offset(*start + walk.offset), to, run);
                        to = to.add(run);
                        walk.next();
                    }
                }
            }
        }
    });
}

/// Elements along an axis: of `indices` {count}, for all places of the other axes, or, where `each`, of one index for
/// each place of the result, of its shape. Indices are of the type `of`. `out` lies in rows.
///
/// # Safety
/// As [`super::Kernel::run`]; the axis is not empty.
pub unsafe fn along(axis: usize, each: bool, of: Type, bytes: usize, inputs: &[View], out: &View) {
    macro_rules! call {
        ($T:ty) => {
            along_of::<$T>(axis, each, of, inputs, out)
        };
    }
    of_size!(bytes, call)
}

unsafe fn along_of<T: Copy>(axis: usize, each: bool, of: Type, inputs: &[View], out: &View) {
    let (a, index) = (&inputs[0], &inputs[1]);
    let rank = out.shape().len();
    let length = i64::from(a.shape()[axis]);
    let step = a.strides()[axis] as isize;
    // Rows of the result along its last axis, and how a and the indices go along them.
    let last = rank - 1;
    let row = out.shape()[last] as usize;
    let rows = out.size() / row.max(1);
    // What is the same for all places of the other axes is read once.
    let mut same = vec![0; if each { 0 } else { index.size() }];
    indices::read(of, index, 0, &mut same);
    bring_within(&mut same, length, length - 1);
    let same: Vec<isize> = same.iter().map(|index| *index as isize * step).collect();
    let mut index_strides: SmallVec<[i64; 8]> = SmallVec::from_elem(0, rank);
    match each {
        true => index_strides.copy_from_slice(index.strides()),
        false => index_strides[axis] = 1,
    }
    let mut a_strides: SmallVec<[i64; 8]> = a.strides().into();
    a_strides[axis] = 0;
    let from = Shared(a.data.cast::<T>());
    let to = Shared(out.data.cast::<T>());
    let part = (PART / row.max(1)).max(1);
    pool::parallel(
        rows.div_ceil(part),
        out.size() >= WORTH_SHARING,
        &|number| {
            let (first, end) = (number * part, rows.min((number + 1) * part));
            let shape = &out.shape()[..last];
            let mut base = Walk::new(shape, &a_strides[..last], first);
            let mut places = Walk::new(shape, &index_strides[..last], first);
            let (across, next) = (a_strides[last] as isize, index_strides[last] as isize);
            let mut read = [0i64; BLOCK];
            for number in first..end {
                let (start, place) = (base.offset, places.offset);
                // SAFETY: within the arrays; the row is nobody else's.
                unsafe {
                    let (from, to) = (from.offset(start), to.at(number * row));
                    if !each && last != axis {
                        line(from.offset(same[place as usize]), across, to, 1, row);
                    } else if !each {
                        for (i, offset) in same.iter().enumerate() {
                            to.add(i).write(from.offset(*offset).read());
                        }
                    } else {
                        for i in (0..row).step_by(BLOCK) {
                            let read = &mut read[..BLOCK.min(row - i)];
                            indices::line(of, index, place + i as isize * next, next, read);
                            bring_within(read, length, length - 1);
                            for (own, index) in read.iter().enumerate() {
                                let offset = (i + own) as isize * across + *index as isize * step;
                                to.add(i + own).write(from.offset(offset).read());
                            }
                        }
                    }
                }
                base.next();
                places.next();
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{each_place, in_rows, Dice, Scattered};

    fn indices(dice: &mut Dice, shape: &[i32]) -> (Vec<i64>, Vec<i64>) {
        let size: i32 = shape.iter().product();
        let data = (0..size).map(|_| dice.below(12) as i64 - 6).collect();
        (data, in_rows(shape))
    }

    fn place(strides: &[i64], at: &[i64]) -> usize {
        strides.iter().zip(at).map(|(s, i)| s * i).sum::<i64>() as usize
    }

    #[test]
    fn slices_begin_where_their_indices_say() {
        let mut dice = Dice::new(3);
        for (shape, axes, sizes) in [
            (vec![5, 4, 3], vec![0u8], vec![1, 4, 3]),
            (vec![5, 4, 3], vec![0, 2], vec![1, 2, 1]),
            (vec![5, 4, 3], vec![1, 2, 0], vec![1, 1, 1]),
            (vec![7], vec![0], vec![3]),
            (vec![3, 8], vec![1], vec![3, 2]),
        ] {
            for _ in 0..20 {
                let a = Scattered::<f32>::new(&mut dice, &shape, |dice| dice.below(1000) as f32);
                let many = [2, 3];
                let tables: Vec<_> = axes.iter().map(|_| indices(&mut dice, &many)).collect();
                let mut out_shape = many.to_vec();
                out_shape.extend(&sizes);
                let strides = in_rows(&out_shape);
                let mut out = vec![0f32; out_shape.iter().product::<i32>() as usize];
                // SAFETY: of arrays that live on.
                unsafe {
                    let mut inputs = vec![a.view()];
                    inputs.extend(
                        tables
                            .iter()
                            .map(|(data, strides)| View::of(data.as_ptr(), &many, strides)),
                    );
                    let to = View::of(out.as_mut_ptr().cast_const(), &out_shape, &strides);
                    slices(&axes, &sizes, Type::S64, 4, &inputs, &to);
                }
                for at in each_place(&out_shape) {
                    let mut from = at[2..].to_vec();
                    for (axis, (table, strides)) in axes.iter().zip(&tables) {
                        let axis = usize::from(*axis);
                        let length = i64::from(shape[axis]);
                        let index = table[place(strides, &at[..2])];
                        let index = if index < 0 { index + length } else { index };
                        from[axis] += index.clamp(0, length - i64::from(sizes[axis]));
                    }
                    assert_eq!(out[place(&strides, &at)], a.at(&from), "{shape:?} {at:?}");
                }
            }
        }
    }

    #[test]
    fn elements_along_an_axis_are_those_of_their_indices() {
        let mut dice = Dice::new(4);
        for (shape, axis) in [
            (vec![5, 4, 3], 0),
            (vec![5, 4, 3], 1),
            (vec![5, 4, 3], 2),
            (vec![7], 0),
        ] {
            for each in [false, true] {
                for _ in 0..20 {
                    let a =
                        Scattered::<f32>::new(&mut dice, &shape, |dice| dice.below(1000) as f32);
                    let mut out_shape = shape.clone();
                    out_shape[axis] = 6;
                    let many = if each { out_shape.clone() } else { vec![6] };
                    let (table, table_strides) = indices(&mut dice, &many);
                    let strides = in_rows(&out_shape);
                    let mut out = vec![0f32; out_shape.iter().product::<i32>() as usize];
                    // SAFETY: of arrays that live on.
                    unsafe {
                        let inputs = [a.view(), View::of(table.as_ptr(), &many, &table_strides)];
                        let to = View::of(out.as_mut_ptr().cast_const(), &out_shape, &strides);
                        along(axis, each, Type::S64, 4, &inputs, &to);
                    }
                    for at in each_place(&out_shape) {
                        let which = if each {
                            place(&table_strides, &at)
                        } else {
                            at[axis] as usize
                        };
                        let length = i64::from(shape[axis]);
                        let index = table[which];
                        let index = if index < 0 { index + length } else { index };
                        let mut from = at.clone();
                        from[axis] = index.clamp(0, length - 1);
                        assert_eq!(out[place(&strides, &at)], a.at(&from), "{shape:?} {at:?}");
                    }
                }
            }
        }
    }
}
