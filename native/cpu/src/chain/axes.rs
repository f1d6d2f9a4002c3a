//! How a chain's arrays lie beside its result.

use crate::View;
use smallvec::SmallVec;

/// Elements of a row from which it is worth a call of its own for each link. Blocks of shorter rows have several, for
/// which inputs that do not lie so are copied.
const LONG_ROW: usize = 64;

/// The axes that remain where those that no array needs are left out, the outermost first, in the order in which the
/// result lies.
pub struct Axes {
    pub sizes: SmallVec<[usize; 4]>,
    /// Of each input, in elements; 0 along axes that it is repeated over.
    pub steps: SmallVec<[SmallVec<[isize; 4]>; 4]>,
}

impl Axes {
    pub fn new(inputs: &[View], out: &View) -> Axes {
        let rank = out.shape().len();
        let mut order: SmallVec<[usize; 8]> =
            (0..rank).filter(|axis| out.shape()[*axis] != 1).collect();
        order.sort_by_key(|axis| std::cmp::Reverse(out.strides()[*axis]));
        let step = |input: &View, axis: usize| {
            let own = (axis + input.shape().len()).checked_sub(rank);
            match own.filter(|own| input.shape()[*own] != 1) {
                Some(own) => input.strides()[own] as isize,
                None => 0,
            }
        };
        let mut axes = Axes {
            sizes: SmallVec::new(),
            steps: inputs.iter().map(|_| SmallVec::new()).collect(),
        };
        for axis in order {
            let size = out.shape()[axis] as usize;
            let goes_on = !axes.sizes.is_empty()
                && inputs.iter().zip(&axes.steps).all(|(input, steps)| {
                    steps.last() == Some(&(step(input, axis) * size as isize))
                });
            if !goes_on {
                axes.sizes.push(1);
            }
            if let Some(last) = axes.sizes.last_mut() {
                *last *= size;
            }
            for (input, steps) in inputs.iter().zip(&mut axes.steps) {
                if goes_on {
                    steps.pop();
                }
                steps.push(step(input, axis));
            }
        }
        if axes.sizes.is_empty() {
            axes.sizes.push(1);
            axes.steps.iter_mut().for_each(|steps| steps.push(0));
        }
        axes
    }

    /// How long a row along the innermost axis is.
    pub fn count(&self) -> usize {
        self.sizes.last().copied().unwrap_or(1)
    }

    /// Whether blocks have several rows.
    pub fn is_short(&self) -> bool {
        self.sizes.len() > 1 && self.count() < LONG_ROW
    }

    /// Whether an input is one element for all.
    pub fn is_one(&self, input: usize) -> bool {
        self.steps[input].iter().all(|step| *step == 0)
    }

    /// Whether an input lies in the order of the result, without gaps.
    pub fn is_in_order(&self, input: usize) -> bool {
        let mut next = 1;
        for (size, step) in self.sizes.iter().zip(&self.steps[input]).rev() {
            if *step != next {
                return false;
            }
            next *= *size as isize;
        }
        true
    }

    /// `count` elements of an input beside each other, from number `at` on in the result's order.
    ///
    /// # Safety
    /// The input is of this type, lies at `from` as the axes say, and has the elements; there is room for them at `to`.
    pub unsafe fn spread<T: Copy>(
        &self,
        input: usize,
        from: *const T,
        at: usize,
        to: *mut T,
        count: usize,
    ) {
        let (steps, last) = (&self.steps[input], self.sizes.len() - 1);
        let (length, step) = (self.sizes[last], steps[last]);
        let mut places: SmallVec<[usize; 4]> = SmallVec::from_elem(0, last);
        let (mut row, mut column) = (at / length, at % length);
        let mut start = 0;
        for axis in (0..last).rev() {
            places[axis] = row % self.sizes[axis];
            start += places[axis] as isize * steps[axis];
            row /= self.sizes[axis];
        }
        let mut done = 0;
        loop {
            let piece = (length - column).min(count - done);
            let (from, to) = (from.offset(start + column as isize * step), to.add(done));
            match step {
                1 => std::ptr::copy_nonoverlapping(from, to, piece),
                0 => std::slice::from_raw_parts_mut(to, piece).fill(from.read()),
                _ => {
                    for i in 0..piece {
                        to.add(i).write(from.offset(i as isize * step).read());
                    }
                }
            }
            (done, column) = (done + piece, 0);
            if done == count {
                return;
            }
            // The next row.
            for axis in (0..last).rev() {
                places[axis] += 1;
                start += steps[axis];
                if places[axis] < self.sizes[axis] {
                    break;
                }
                start -= steps[axis] * self.sizes[axis] as isize;
                places[axis] = 0;
            }
        }
    }

    /// Where an input's row begins.
    pub fn offset(&self, input: usize, mut row: usize) -> isize {
        let outer = self.sizes.len() - 1;
        let mut offset = 0;
        for (size, step) in self.sizes[..outer]
            .iter()
            .zip(&self.steps[input][..outer])
            .rev()
        {
            offset += (row % size) as isize * step;
            row /= size;
        }
        offset
    }
}
