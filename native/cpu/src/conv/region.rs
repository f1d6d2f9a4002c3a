//! The part of the input that a block needs, as f32, with zeros where there is padding.

use super::plan::{Piece, Plan, Ranges, SPACE};
use crate::element::Element;
use crate::moves::{join, Axes, Axis};
use crate::simd::{dispatch, Level, Simd};
use smallvec::SmallVec;
use std::cmp::Reverse;

#[inline(always)]
unsafe fn line<S: Simd, T: Element>(axis: Axis, from: *const T, to: *mut f32) {
    let Axis {
        size,
        from: step,
        to: to_step,
    } = axis;
    let whole = match (step, to_step) {
        (1, 1) => size / S::LANES * S::LANES,
        _ => 0,
    };
    for i in (0..whole).step_by(S::LANES) {
        S::store(to.add(i), T::load::<S>(from.add(i)));
    }
    let mut place = (
        from.offset(whole as isize * step),
        to.offset(whole as isize * to_step),
    );
    for _ in whole..size {
        place.1.write(place.0.read().widen());
        place = (
            place.0.wrapping_offset(step),
            place.1.wrapping_offset(to_step),
        );
    }
}

#[inline(always)]
unsafe fn copy_body<S: Simd, T: Element>(axes: &[Axis], from: *const T, to: *mut f32) {
    let one = Axis {
        size: 1,
        from: 1,
        to: 1,
    };
    let (inner, outer) = match axes.split_last() {
        Some((inner, outer)) => (*inner, outer),
        None => (one, axes),
    };
    let mut at: SmallVec<[usize; 8]> = SmallVec::from_elem(0, outer.len());
    let (mut from, mut to) = (from, to);
    loop {
        line::<S, T>(inner, from, to);
        let mut axis = outer.len();
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            let Axis {
                size,
                from: step,
                to: to_step,
            } = outer[axis];
            at[axis] += 1;
            (from, to) = (from.wrapping_offset(step), to.wrapping_offset(to_step));
            if at[axis] < size {
                break;
            }
            at[axis] = 0;
            from = from.wrapping_offset(-(size as isize * step));
            to = to.wrapping_offset(-(size as isize * to_step));
        }
    }
}

dispatch! {
    fn copy<T: Element>(axes: &[Axis], from: *const T, to: *mut f32) = copy_body
}

/// The axes from the longest step to the shortest, those that go on as one joined.
fn joined(mut axes: Axes) -> Axes {
    axes.sort_by_key(|axis| {
        let step = axis.from.unsigned_abs();
        Reverse((if step == 0 { usize::MAX } else { step }, axis.to))
    });
    join(axes)
}

/// The region of a block and a chunk of a unit.
///
/// # Safety
/// `from` is the input, and there is room for the piece's region.
pub unsafe fn fill<T: Element>(
    level: Level,
    plan: &Plan,
    piece: &Piece,
    unit: usize,
    (block, chunk): (&Ranges, &Ranges),
    from: *const T,
    to: *mut f32,
) {
    let (input, region) = (&plan.input, &piece.region);
    let channel = input.step[1 + SPACE];
    let group = plan.inside as isize * channel;
    let (_, columns) = plan.columns(unit);
    let mut start = unit as isize * plan.together as isize * group;
    start += block[0].start as isize * input.step[0];
    start += chunk[SPACE].start as isize * channel;
    let mut place = 0isize;
    let mut axes = Axes::new();
    axes.push(Axis {
        size: block[0].len(),
        from: input.step[0],
        to: region.step[0],
    });
    axes.push(Axis {
        size: chunk[SPACE].len(),
        from: channel,
        to: region.step[1 + SPACE],
    });
    if plan.is_lanewise {
        axes.push(Axis {
            size: columns / plan.outside,
            from: group,
            to: plan.outside as isize,
        });
        axes.push(Axis {
            size: plan.outside,
            from: 0,
            to: 1,
        });
    }
    let mut is_whole = true;
    for axis in 0..SPACE {
        let (steps, unit) = (&piece.steps[axis], piece.unit[axis].max(1) as isize);
        let (places, taps) = (&block[1 + axis], &chunk[axis]);
        let size = (places.len() - 1) * steps.advance + (taps.len() - 1) * steps.spacing;
        let size = size as isize / unit + 1;
        let first =
            steps.start + (places.start * steps.advance + taps.start * steps.spacing) as isize;
        // What is not padding.
        let end = (input.size[1 + axis] as isize - first + unit - 1).div_euclid(unit);
        let valid = (-first + unit - 1).div_euclid(unit).max(0)..end.min(size);
        is_whole &= valid == (0..size);
        if valid.is_empty() {
            std::slice::from_raw_parts_mut(to, piece.room).fill(0.0);
            return;
        }
        start += (first + valid.start * unit) * input.step[1 + axis];
        place += valid.start * region.step[1 + axis];
        axes.push(Axis {
            size: (valid.end - valid.start) as usize,
            from: unit * input.step[1 + axis],
            to: region.step[1 + axis],
        });
    }
    if !is_whole {
        std::slice::from_raw_parts_mut(to, piece.room).fill(0.0);
    }
    copy::<T>(level, &joined(axes), from.offset(start), to.offset(place));
}
