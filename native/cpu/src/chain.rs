//! Functions of elements, one after another, in one pass: what one gives the next is a block that stays in a core's own cache.

use super::element::Element;
use super::pool::{self, Shared, PART, WORTH_SHARING};
use super::simd::Level;
use super::View;
use super::{binary, unary, Function, Pair};
use smallvec::SmallVec;
use std::cell::RefCell;

/// What a link takes: an array, or what a link before it gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operand {
    Input(u8),
    Link(u8),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Link {
    Unary(Function, Operand),
    Binary(Pair, Operand, Operand),
}

impl Link {
    pub fn operands(&self) -> impl Iterator<Item = Operand> {
        let (first, second) = match *self {
            Link::Unary(_, x) => (x, None),
            Link::Binary(_, a, b) => (a, Some(b)),
        };
        std::iter::once(first).chain(second)
    }
}

/// Each takes inputs and links before it; the last one's values are the chain's.
pub type Links = SmallVec<[Link; 4]>;

/// Links of a chain, at most.
pub const MAX_LINKS: usize = 16;

/// Elements of a block.
const BLOCK: usize = 1024;

/// The axes that remain where those that no array needs are left out, the outermost first, in the order in which the result lies.
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

/// The block that each link but the last writes to, and how many there are. A block is free again after its last use, for that link too.
fn places(links: &[Link]) -> ([usize; MAX_LINKS], usize) {
    let mut last_use = [0; MAX_LINKS];
    for (i, link) in links.iter().enumerate() {
        for operand in link.operands() {
            if let Operand::Link(number) = operand {
                last_use[number as usize] = i;
            }
        }
    }
    let (mut places, mut count) = ([0; MAX_LINKS], 0);
    for i in 0..links.len().saturating_sub(1) {
        let is_taken =
            |place: usize| (0..i).any(|link| places[link] == place && last_use[link] > i);
        let place = (0..count).find(|place| !is_taken(*place)).unwrap_or(count);
        places[i] = place;
        count = count.max(place + 1);
    }
    (places, count)
}

/// # Safety
/// `out` lies without gaps, the inputs broadcast to it, and all are of type `T`. `out` may be an input of its own layout.
pub unsafe fn run<T: Element>(level: Level, links: &[Link], inputs: &[View], out: &View) {
    thread_local! {
        static BLOCKS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    let axes = Axes::new(inputs, out);
    let count = axes.count();
    let (places, own) = places(links);
    let from: SmallVec<[Shared<T>; 4]> = inputs
        .iter()
        .map(|input| Shared(input.data.cast::<T>()))
        .collect();
    let to = Shared(out.data.cast::<T>());
    let size = out.size();
    pool::parallel(size.div_ceil(PART), size >= WORTH_SHARING, &|part| {
        BLOCKS.with_borrow_mut(|blocks| {
            let wanted = (own + inputs.len()) * BLOCK;
            if blocks.len() < wanted {
                blocks.resize(wanted, 0.0);
            }
            let blocks = blocks.as_mut_ptr();
            // SAFETY: a block of f32 holds as many of any type here.
            let block = |i: usize| unsafe { blocks.add(i * BLOCK).cast::<T>() };
            let mut at = part * PART;
            let end = size.min(at + PART);
            while at < end {
                let (row, column) = (at / count, at % count);
                let length = BLOCK.min(count - column).min(end - at);
                let operand = |operand: Operand| match operand {
                    Operand::Link(link) => (block(places[link as usize]).cast_const(), false),
                    Operand::Input(input) => {
                        let input = input as usize;
                        let step = axes.steps[input][axes.sizes.len() - 1];
                        let start = axes.offset(input, row) + column as isize * step;
                        // SAFETY: within the array; elements apart are put beside each other once more for each use.
                        unsafe {
                            let start = from[input].offset(start).cast_const();
                            if (0..=1).contains(&step) {
                                return (start, step == 0);
                            }
                            let beside = block(own + input);
                            for i in 0..length {
                                beside.add(i).write(start.offset(i as isize * step).read());
                            }
                            (beside.cast_const(), false)
                        }
                    }
                };
                for (i, link) in links.iter().enumerate() {
                    // SAFETY: the result's elements from `at` on, which are this part's alone.
                    unsafe {
                        let to = if i + 1 == links.len() {
                            to.at(at)
                        } else {
                            block(places[i])
                        };
                        match *link {
                            Link::Unary(function, x) => {
                                let (x, repeated) = operand(x);
                                if repeated {
                                    unary::apply(level, function, x, to, 1);
                                    let value = to.read();
                                    (1..length).for_each(|i| to.add(i).write(value));
                                } else {
                                    unary::apply(level, function, x, to, length);
                                }
                            }
                            Link::Binary(pair, a, b) => {
                                let ((a, one_a), (b, one_b)) = (operand(a), operand(b));
                                binary::apply(level, pair, a, one_a, b, one_b, to, length);
                            }
                        }
                    }
                }
                at += length;
            }
        })
    });
}
