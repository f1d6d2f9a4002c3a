//! Lines along one axis of an array that lies in any way, and the lines of a result in rows that they become.

use super::View;
use smallvec::SmallVec;

/// An axis that is kept: its size, and the elements from one of its places to the next, in the array and in the result.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    pub size: usize,
    pub step: isize,
    pub to: isize,
}

/// All lines along an axis.
pub struct Lines {
    pub kept: SmallVec<[Kept; 6]>,
    /// Elements of a line, from one to the next, and the same of the result's.
    pub count: usize,
    pub step: isize,
    pub to_step: isize,
}

impl Lines {
    /// Each line of `x` becomes one of `to_count` elements of a result that lies in rows.
    pub fn new(x: &View, axis: usize, to_count: usize) -> Lines {
        let mut lines = Lines {
            kept: SmallVec::new(),
            count: x.shape()[axis] as usize,
            step: x.strides()[axis] as isize,
            to_step: 1,
        };
        let mut to = 1;
        for (i, (size, step)) in x.shape().iter().zip(x.strides()).enumerate().rev() {
            let (size, step) = (*size as usize, *step as isize);
            if i == axis {
                lines.to_step = to;
                to *= to_count as isize;
                continue;
            }
            if size > 1 {
                lines.kept.push(Kept { size, step, to });
            }
            to *= size as isize;
        }
        lines.kept.reverse();
        lines
    }

    /// How many lines there are.
    pub fn number(&self) -> usize {
        self.kept.iter().map(|axis| axis.size).product()
    }

    /// Where a line begins, in the array and in the result.
    pub fn place(&self, mut line: usize) -> (isize, isize) {
        let (mut from, mut to) = (0, 0);
        for axis in self.kept.iter().rev() {
            let at = (line % axis.size) as isize;
            from += at * axis.step;
            to += at * axis.to;
            line /= axis.size;
        }
        (from, to)
    }

    /// `count` elements of a line from `from` on, beside each other: where they are, or in `scratch`.
    ///
    /// # Safety
    /// They can be read.
    pub unsafe fn read<'a, T: Copy>(
        &self,
        from: *const T,
        count: usize,
        scratch: &'a mut Vec<T>,
    ) -> &'a [T] {
        if self.step == 1 {
            return std::slice::from_raw_parts(from, count);
        }
        scratch.clear();
        scratch.extend((0..count).map(|i| *from.offset(i as isize * self.step)));
        scratch
    }
}
