//! Elements and slices at places that are data: whole slices ([`slices`]), and elements along one axis ([`along`]).
//! An index of any integer type is brought into the array where it is beyond. Numbers are moved by their size alone.

use super::indices::{self, Beyond, Range, BLOCK};
use super::moves::line;
use super::pool::{self, Shared, WORTH_SHARING};
use super::{Type, View};
use smallvec::SmallVec;

/// Elements of a part of shared work, at least, and those that each come from somewhere else.
const PART: usize = 16_384;
const APART: usize = 4_096;

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

/// How slices or elements are taken at indices.
pub struct How<'a> {
    /// The type of the indices, and what they mean beyond the array.
    pub of: Type,
    pub beyond: Beyond,
    /// The axes that they go along.
    pub axes: &'a [u8],
    /// Bytes of an element.
    pub bytes: usize,
}

impl How<'_> {
    /// The places of an axis at which so many elements along it fit.
    fn range(&self, a: &View, axis: usize, size: i32) -> Range {
        let length = a.shape()[axis];
        Range {
            length,
            last: length - size,
            beyond: self.beyond,
        }
    }
}

/// Slices of `sizes` of the first input, which begin at an index for each axis: the other inputs, of one shape. `out`
/// {of the indices' shape, then `sizes`} lies in rows.
///
/// # Safety
/// As [`super::Kernel::run`]; each slice fits.
pub unsafe fn slices(how: &How, sizes: &[i32], inputs: &[View], out: &View) {
    macro_rules! call {
        ($T:ty) => {
            slices_of::<$T>(how, sizes, inputs, out)
        };
    }
    of_size!(how.bytes, call)
}

unsafe fn slices_of<T: Copy>(how: &How, sizes: &[i32], inputs: &[View], out: &View) {
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
    let part = (APART / size.max(1)).max(1);
    let is_worth = out.size() >= WORTH_SHARING || count >= 2 * APART;
    pool::parallel(count.div_ceil(part), is_worth, &|number| {
        let end = count.min((number + 1) * part);
        let (mut starts, mut read) = ([0isize; BLOCK], [0; BLOCK]);
        for first in (number * part..end).step_by(BLOCK) {
            let count = BLOCK.min(end - first);
            let (starts, read) = (&mut starts[..count], &mut read[..count]);
            starts.fill(0);
            for (axis, table) in how.axes.iter().zip(tables) {
                let axis = usize::from(*axis);
                let step = a.strides()[axis] as isize;
                let range = how.range(a, axis, sizes[axis]);
                // SAFETY: elements of the index array.
                unsafe { indices::read(how.of, table, first, &range, read) };
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
                        line(from.offset(*start + walk.offset), 1, to, 1, run);
                        to = to.add(run);
                        walk.next();
                    }
                }
            }
        }
    });
}

/// Elements along the axis: of the indices {count}, for all places of the other axes, or, where `each`, of one index for
/// each place of the result, of its shape. `out` lies in rows.
///
/// # Safety
/// As [`super::Kernel::run`]; the axis is not empty.
pub unsafe fn along(how: &How, each: bool, inputs: &[View], out: &View) {
    macro_rules! call {
        ($T:ty) => {
            match each {
                true => along_each::<$T>(how, inputs, out),
                false => along_all::<$T>(how, inputs, out),
            }
        };
    }
    of_size!(how.bytes, call)
}

/// What is done for a piece of a row of the result along its last axis: the row's number, the columns, and where the
/// row begins in two arrays.
type Work<'a> = dyn Fn(usize, std::ops::Range<usize>, isize, isize) + Sync + 'a;

/// Calls `work` with all rows, or pieces of long ones. The two arrays are of the result's shape but for these strides.
fn by_rows(out: &View, steps: [&[i64]; 2], work: &Work) {
    let last = out.shape().len() - 1;
    let row = out.shape()[last] as usize;
    let rows = out.size() / row.max(1);
    let (pieces, batch) = (row.div_ceil(PART), (PART / row.max(1)).max(1));
    let parts = match pieces {
        0 | 1 => rows.div_ceil(batch),
        _ => rows * pieces,
    };
    pool::parallel(parts, out.size() >= WORTH_SHARING, &|part| {
        let (first, end, columns) = match pieces {
            0 | 1 => (part * batch, rows.min((part + 1) * batch), 0..row),
            _ => {
                let (own, start) = (part / pieces, part % pieces * PART);
                (own, own + 1, start..row.min(start + PART))
            }
        };
        let shape = &out.shape()[..last];
        let [mut a, mut b] = steps.map(|steps| Walk::new(shape, &steps[..last], first));
        for number in first..end {
            work(number, columns.clone(), a.offset, b.offset);
            a.next();
            b.next();
        }
    });
}

unsafe fn along_all<T: Copy>(how: &How, inputs: &[View], out: &View) {
    let (a, index) = (&inputs[0], &inputs[1]);
    let (axis, last) = (usize::from(how.axes[0]), out.shape().len() - 1);
    let row = out.shape()[last] as usize;
    let step = a.strides()[axis] as isize;
    let mut read = vec![0; index.size()];
    indices::read(how.of, index, 0, &how.range(a, axis, 1), &mut read);
    let places: Vec<isize> = read.iter().map(|index| *index as isize * step).collect();
    let mut a_strides: SmallVec<[i64; 8]> = a.strides().into();
    a_strides[axis] = 0;
    let mut index_strides: SmallVec<[i64; 8]> = SmallVec::from_elem(0, last + 1);
    index_strides[axis] = 1;
    let across = a_strides[last] as isize;
    let (from, to) = (Shared(a.data.cast::<T>()), Shared(out.data.cast::<T>()));
    let steps = [&a_strides[..], &index_strides[..]];
    by_rows(out, steps, &|number, columns, start, place| {
        // SAFETY: within the arrays; the row is nobody else's.
        unsafe {
            let to = to.at(number * row + columns.start);
            if last != axis {
                let start = start + places[place as usize] + columns.start as isize * across;
                return line(from.offset(start), across, to, 1, columns.len());
            }
            let from = from.offset(start);
            for (i, offset) in places[columns].iter().enumerate() {
                to.add(i).write(from.offset(*offset).read());
            }
        }
    });
}

unsafe fn along_each<T: Copy>(how: &How, inputs: &[View], out: &View) {
    let (a, index) = (&inputs[0], &inputs[1]);
    let (axis, last) = (usize::from(how.axes[0]), out.shape().len() - 1);
    let row = out.shape()[last] as usize;
    let step = a.strides()[axis] as isize;
    let range = how.range(a, axis, 1);
    let mut a_strides: SmallVec<[i64; 8]> = a.strides().into();
    a_strides[axis] = 0;
    let (across, next) = (a_strides[last] as isize, index.strides()[last] as isize);
    let (from, to) = (Shared(a.data.cast::<T>()), Shared(out.data.cast::<T>()));
    let steps = [&a_strides[..], index.strides()];
    by_rows(out, steps, &|number, columns, start, place| {
        let mut read = [0; BLOCK];
        let end = columns.end;
        for first in columns.step_by(BLOCK) {
            let read = &mut read[..BLOCK.min(end - first)];
            // SAFETY: within the arrays; the row is nobody else's.
            unsafe {
                let place = place + first as isize * next;
                indices::line(how.of, index, place, next, &range, read);
                let from = from.offset(start + first as isize * across).cast_const();
                elements(from, across, step, read, to.at(number * row + first));
            }
        }
    });
}

/// An element for each place: `across` elements apart, and `step` elements for each place along another axis.
#[inline(always)]
unsafe fn elements<T: Copy>(
    from: *const T,
    across: isize,
    step: isize,
    places: &[i32],
    to: *mut T,
) {
    if (across, step) == (0, 1) {
        for (i, place) in places.iter().enumerate() {
            to.add(i).write(from.add(*place as usize).read());
        }
        return;
    }
    for (i, place) in places.iter().enumerate() {
        let offset = i as isize * across + *place as isize * step;
        to.add(i).write(from.offset(offset).read());
    }
}
