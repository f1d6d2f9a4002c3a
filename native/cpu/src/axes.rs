//! The axes of an array that is reduced, with the place of each result: what the reductions that add (`reduce`) and
//! those that compare (`extreme`) go through.

use smallvec::SmallVec;
use std::cmp::Reverse;

/// An axis: the elements from one of its places to the next, in the array and in the result.
#[derive(Clone, Copy)]
pub struct Axis {
    pub size: usize,
    pub step: isize,
    pub to: isize,
}

pub type Axes = SmallVec<[Axis; 4]>;

/// The axes from the longest step to the shortest, those that go on as one joined. Steps of 0 stand first.
pub fn in_order(mut axes: Axes) -> Axes {
    axes.sort_by_key(|axis| {
        let step = axis.step.unsigned_abs();
        Reverse(if step == 0 { usize::MAX } else { step })
    });
    let mut joined = Axes::new();
    for axis in axes {
        let size = axis.size as isize;
        match joined.last_mut() {
            Some(last) if last.step == axis.step * size && last.to == axis.to * size => {
                *last = Axis {
                    size: last.size * axis.size,
                    ..axis
                };
            }
            _ => joined.push(axis),
        }
    }
    joined
}

pub fn count(axes: &[Axis]) -> usize {
    axes.iter().map(|axis| axis.size).product()
}

/// Where a place in row-major order of the axes lies, in the array and in the result.
pub fn place(axes: &[Axis], mut number: usize) -> (isize, isize) {
    let (mut from, mut to) = (0, 0);
    for axis in axes.iter().rev() {
        let at = (number % axis.size) as isize;
        from += at * axis.step;
        to += at * axis.to;
        number /= axis.size;
    }
    (from, to)
}
