//! What a mask leaves of a row: the places where a selection does not choose the number that fills.

use super::Plan;
use crate::chain::{Operand, MAX_LINKS};
use crate::elementwise::{self, Argument};
use crate::gather::of_size;
use crate::simd::{dispatch, Simd};

/// Elements of a mask that are computed at a time.
const BLOCK: usize = 1024;

/// What the mask leaves of a piece of a row: places, and the numbers' bits.
#[derive(Default)]
pub struct Left {
    pub places: Vec<u32>,
    pub bits: Vec<u64>,
}

/// Adds the places of a block from `first` on where the mask leaves a number that is not `fill`.
#[inline(always)]
unsafe fn left_body<S: Simd, T: Bits>(
    mask: &[u8],
    is_filled: bool,
    numbers: *const T,
    step: isize,
    fill: T,
    first: usize,
    left: &mut Left,
) {
    const CHUNK: usize = 64;
    let is_left = |byte: &u8| (*byte != 0) != is_filled;
    for (i, chunk) in mask.chunks(CHUNK).enumerate() {
        if !chunk.iter().fold(false, |any, byte| any | is_left(byte)) {
            continue;
        }
        for (own, _) in chunk.iter().enumerate().filter(|(_, byte)| is_left(byte)) {
            let at = i * CHUNK + own;
            let x = *numbers.offset(at as isize * step);
            if x != fill {
                left.places.push((first + at) as u32);
                left.bits.push(x.into());
            }
        }
    }
}

trait Bits: Copy + PartialEq + Into<u64> + 'static {}
impl<T: Copy + PartialEq + Into<u64> + 'static> Bits for T {}

dispatch! {
    fn find_left<T: Bits>(
        mask: &[u8],
        is_filled: bool,
        numbers: *const T,
        step: isize,
        fill: T,
        first: usize,
        left: &mut Left,
    ) = left_body
}

/// The mask of a row from `first` to `end`, and what it leaves there. The choice itself is not computed: few numbers of
/// what it is made from are read.
pub unsafe fn search(plan: &Plan, row: usize, first: usize, end: usize, left: &mut Left) {
    let Some((choice, links)) = plan.masked.mask.split_last() else {
        return;
    };
    let last = plan.masked.shape.len() - 1;
    let mut room = vec![0u64; (links.len() + plan.inputs.len() + 1) * BLOCK];
    let room = room.as_mut_ptr();
    let block = |i: usize| room.add(i * BLOCK).cast::<u8>();
    let fill = plan.row(plan.masked.fill, row);
    let [mask, a, b] = [0, 1, 2].map(|i| choice.operands()[i]);
    let is_filled = a == Operand::Input(plan.masked.fill);
    let numbers = if is_filled { b } else { a };
    let mut at = first;
    while at < end {
        let length = BLOCK.min(end - at);
        let mut is_one = [false; MAX_LINKS];
        // Where an operand begins, and how far its elements are apart.
        let place = |operand: Operand, is_one: &[bool]| match operand {
            Operand::Link(link) => {
                let link = usize::from(link);
                (block(link).cast_const(), isize::from(!is_one[link]))
            }
            Operand::Input(number) => {
                let input = &plan.inputs[usize::from(number)];
                let step = input.steps[last];
                let bytes = at as isize * step * input.size as isize;
                (plan.row(number, row).offset(bytes), step)
            }
        };
        let beside = |operand: Operand, is_one: &[bool], size: usize| {
            let (from, step) = place(operand, is_one);
            match (operand, step) {
                (_, 0..=1) => (from, step),
                (Operand::Link(_), _) => (from, step),
                (Operand::Input(input), _) => {
                    let to = block(links.len() + usize::from(input));
                    beside_each_other(size, from, step, to, length);
                    (to.cast_const(), 1)
                }
            }
        };
        for (i, link) in links.iter().enumerate() {
            let mut arguments = [Argument {
                at: std::ptr::null(),
                is_one: true,
            }; 3];
            for (n, operand) in link.operands().iter().enumerate() {
                let size = link.action.operand(n, link.from).size();
                let (at, step) = beside(*operand, &is_one, size);
                arguments[n] = Argument {
                    at,
                    is_one: step == 0,
                };
            }
            is_one[i] = arguments.iter().all(|argument| argument.is_one);
            let count = if is_one[i] { 1 } else { length };
            let (level, action) = (plan.level, link.action);
            elementwise::apply(
                level,
                action,
                link.from,
                link.to,
                arguments,
                block(i),
                count,
            );
        }
        let (bytes, step) = beside(mask, &is_one, 1);
        let bytes = match step {
            0 => {
                let all = block(links.len() + plan.inputs.len());
                all.write_bytes(*bytes, length);
                all.cast_const()
            }
            _ => bytes,
        };
        let bytes = std::slice::from_raw_parts(bytes, length);
        let (from, step) = place(numbers, &is_one);
        macro_rules! call {
            ($T:ty) => {{
                let (level, fill) = (plan.level, *fill.cast::<$T>());
                find_left::<$T>(level, bytes, is_filled, from.cast(), step, fill, at, left)
            }};
        }
        of_size!(choice.to.size(), call);
        at += length;
    }
}

unsafe fn beside_each_other(size: usize, from: *const u8, step: isize, to: *mut u8, count: usize) {
    macro_rules! call {
        ($T:ty) => {{
            let (from, to) = (from.cast::<$T>(), to.cast::<$T>());
            (0..count).for_each(|i| to.add(i).write(from.offset(i as isize * step).read()))
        }};
    }
    of_size!(size, call)
}
