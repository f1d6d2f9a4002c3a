//! Functions of elements, one after another, in one pass: what one gives the next is a block that stays in a core's own
//! cache.

use super::elementwise::{self, Action, Argument};
use super::pool::{self, Shared, PART, WORTH_SHARING};
use super::simd::Level;
use super::{Type, View};
use smallvec::SmallVec;
use std::cell::RefCell;

/// What a link takes: an array, or what a link before it gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operand {
    Input(u8),
    Link(u8),
}

/// An action on elements of the type `from`, to elements of the type `to`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    pub action: Action,
    pub from: Type,
    pub to: Type,
    operands: [Operand; 3],
}

impl Link {
    /// One operand for each that the action takes; those beyond are left out.
    pub fn new(action: Action, from: Type, to: Type, operands: &[Operand]) -> Link {
        let first = operands.first().copied().unwrap_or(Operand::Input(0));
        let mut all = [first; 3];
        all.iter_mut()
            .zip(operands)
            .for_each(|(own, operand)| *own = *operand);
        Link {
            action,
            from,
            to,
            operands: all,
        }
    }

    pub fn operands(&self) -> &[Operand] {
        &self.operands[..self.action.arity()]
    }

    /// Whether a link takes an input, and as what type.
    fn takes(&self, input: usize) -> Option<Type> {
        let is_it = |operand: &Operand| *operand == Operand::Input(input as u8);
        let place = self.operands().iter().position(is_it)?;
        Some(self.action.operand(place, self.from))
    }
}

/// Each takes inputs and links before it; the last one's values are the chain's.
pub type Links = SmallVec<[Link; 4]>;

/// Links of a chain, at most.
pub const MAX_LINKS: usize = 24;

/// Elements of a block.
const BLOCK: usize = 1024;

/// The axes that remain where those that no array needs are left out, the outermost first, in the order in which the
/// result lies.
struct Axes {
    sizes: SmallVec<[usize; 4]>,
    /// Of each input, in elements; 0 along axes that it is repeated over.
    steps: SmallVec<[SmallVec<[isize; 4]>; 4]>,
}

impl Axes {
    fn new(inputs: &[View], out: &View) -> Axes {
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
    fn count(&self) -> usize {
        self.sizes.last().copied().unwrap_or(1)
    }

    /// Where an input's row begins.
    fn offset(&self, input: usize, mut row: usize) -> isize {
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

/// The block that each link but the last writes to, and how many there are. A block is free again after its last use.
fn places(links: &[Link]) -> ([usize; MAX_LINKS], usize) {
    let mut last_use = [0; MAX_LINKS];
    for (i, link) in links.iter().enumerate() {
        for operand in link.operands() {
            if let Operand::Link(number) = *operand {
                last_use[number as usize] = i;
            }
        }
    }
    let (mut places, mut count) = ([0; MAX_LINKS], 0);
    for i in 0..links.len().saturating_sub(1) {
        // An action may write over operands whose elements are as large as its own.
        let is_over = |link: usize| match links[link].to.size() == links[i].to.size() {
            true => last_use[link] <= i,
            false => last_use[link] < i,
        };
        let is_taken = |place: usize| (0..i).any(|link| places[link] == place && !is_over(link));
        let place = (0..count).find(|place| !is_taken(*place)).unwrap_or(count);
        places[i] = place;
        count = count.max(place + 1);
    }
    (places, count)
}

/// An input as the chain reads it.
struct Input {
    data: Shared<u8>,
    /// Bytes of an element.
    size: usize,
}

/// `count` elements of `size` bytes beside each other, of elements that lie `step` apart.
unsafe fn gather(size: usize, from: *const u8, step: isize, to: *mut u8, count: usize) {
    macro_rules! copy {
        ($T:ty) => {{
            let (from, to) = (from.cast::<$T>(), to.cast::<$T>());
            for i in 0..count {
                to.add(i).write(from.offset(i as isize * step).read());
            }
        }};
    }
    match size {
        1 => copy!(u8),
        2 => copy!(u16),
        4 => copy!(u32),
        _ => copy!(u64),
    }
}

/// The first of `count` elements in the places of all.
unsafe fn fill(size: usize, to: *mut u8, count: usize) {
    for i in 1..count {
        std::ptr::copy_nonoverlapping(to, to.add(i * size), size);
    }
}

/// # Safety
/// `out` lies without gaps, the inputs broadcast to it, and all are of the types that the links take and give. `out`
/// may be an input of its own layout and size of element.
pub unsafe fn run(level: Level, links: &[Link], inputs: &[View], out: &View) {
    thread_local! {
        static BLOCKS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    }
    let axes = Axes::new(inputs, out);
    let count = axes.count();
    let (places, own) = places(links);
    let from: SmallVec<[Input; 4]> = (0..inputs.len())
        .map(|i| Input {
            data: Shared(inputs[i].data.cast::<u8>()),
            size: links
                .iter()
                .find_map(|link| link.takes(i))
                .map_or(1, Type::size),
        })
        .collect();
    let to = Shared(out.data.cast::<u8>());
    let to_size = links.last().map_or(1, |link| link.to.size());
    let size = out.size();
    pool::parallel(size.div_ceil(PART), size >= WORTH_SHARING, &|part| {
        BLOCKS.with_borrow_mut(|blocks| {
            let wanted = (own + inputs.len()) * BLOCK;
            if blocks.len() < wanted {
                blocks.resize(wanted, 0);
            }
            let blocks = blocks.as_mut_ptr();
            // SAFETY: a block has room for as many elements of any type.
            let block = |i: usize| unsafe { blocks.add(i * BLOCK).cast::<u8>() };
            let mut at = part * PART;
            let end = size.min(at + PART);
            while at < end {
                let (row, column) = (at / count, at % count);
                let length = BLOCK.min(count - column).min(end - at);
                let mut is_one = [false; MAX_LINKS];
                for (i, link) in links.iter().enumerate() {
                    let argument = |operand: Operand| match operand {
                        Operand::Link(link) => Argument {
                            at: block(places[link as usize]),
                            is_one: is_one[link as usize],
                        },
                        Operand::Input(input) => {
                            let input = input as usize;
                            let Input { data, size } = &from[input];
                            let step = axes.steps[input][axes.sizes.len() - 1];
                            let start = axes.offset(input, row) + column as isize * step;
                            // SAFETY: within the array; elements apart are put beside each other once more for each
                            // use.
                            let at = unsafe {
                                let start = data.offset(start * *size as isize).cast_const();
                                if (0..=1).contains(&step) {
                                    start
                                } else {
                                    let beside = block(own + input);
                                    gather(*size, start, step, beside, length);
                                    beside.cast_const()
                                }
                            };
                            Argument {
                                at,
                                is_one: step == 0,
                            }
                        }
                    };
                    let mut arguments = link.operands.map(|_| Argument {
                        at: std::ptr::null(),
                        is_one: true,
                    });
                    for (own, operand) in arguments.iter_mut().zip(link.operands()) {
                        *own = argument(*operand);
                    }
                    let all_one = arguments.iter().all(|argument| argument.is_one);
                    let is_last = i + 1 == links.len();
                    // SAFETY: the result's elements from `at` on, which are this part's alone.
                    unsafe {
                        let to = match is_last {
                            true => to.at(at * to_size),
                            false => block(places[i]),
                        };
                        let count = if all_one { 1 } else { length };
                        elementwise::apply(
                            level,
                            link.action,
                            link.from,
                            link.to,
                            arguments,
                            to,
                            count,
                        );
                        if all_one && is_last {
                            fill(to_size, to, length);
                        }
                    }
                    is_one[i] = all_one;
                }
                at += length;
            }
        })
    });
}
