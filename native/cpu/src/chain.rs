//! Functions of elements, one after another, in one pass: what one gives the next is a block that stays in a core's own
//! cache. A chain has one result, or several of one type, which then lie one after another along a first axis.

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
    /// Whether its values are a result of the chain, as the last link's are.
    pub is_kept: bool,
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
            is_kept: false,
        }
    }

    /// The link with other operands.
    pub fn over(&self, operands: &[Operand]) -> Link {
        Link {
            is_kept: self.is_kept,
            ..Link::new(self.action, self.from, self.to, operands)
        }
    }

    pub fn operands(&self) -> &[Operand] {
        &self.operands[..self.action.arity()]
    }
}

/// Each takes inputs and links before it; the last one's values are the chain's, and those of links that are kept.
pub type Links = SmallVec<[Link; 4]>;

/// Links of a chain, at most. Each may take two inputs besides a link before it, and a byte numbers the inputs.
pub const MAX_LINKS: usize = 124;

/// How many results a chain has.
pub fn results(links: &[Link]) -> usize {
    let inner = links.iter().rev().skip(1);
    1 + inner.filter(|link| link.is_kept).count()
}

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

    /// Puts the elements of inputs that are repeated along rows, or that do not lie in the result's order, beside each
    /// other, so that all of a small result is one row. What holds them is returned.
    unsafe fn lay_out(&mut self, inputs: &mut [Input]) -> SmallVec<[Vec<u64>; 4]> {
        let (size, count) = (self.sizes.iter().product::<usize>(), self.count());
        let last = self.sizes.len() - 1;
        let mut laid = SmallVec::new();
        for (i, input) in inputs.iter_mut().enumerate() {
            if self.steps[i].iter().all(|step| *step == 0) {
                self.steps[i] = SmallVec::from_elem(0, 1);
                continue;
            }
            let mut room = vec![0u64; (size * input.size).div_ceil(8)];
            let to = room.as_mut_ptr().cast::<u8>();
            for row in 0..size / count {
                let from = input.data.offset(self.offset(i, row) * input.size as isize);
                let to = to.add(row * count * input.size);
                gather(input.size, from, self.steps[i][last], to, count);
            }
            input.data = Shared(to);
            self.steps[i] = SmallVec::from_elem(1, 1);
            laid.push(room);
        }
        self.sizes = SmallVec::from_elem(size, 1);
        laid
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

/// Where a link writes to.
#[derive(Clone, Copy)]
enum Place {
    Block(usize),
    /// A result, by its number.
    Result(usize),
}

/// Whether each link is no result and has a single element, because all that it takes have one.
fn singles(links: &[Link], inputs: &[View]) -> [bool; MAX_LINKS] {
    let mut is_single = [false; MAX_LINKS];
    for (i, link) in links.iter().enumerate() {
        let mut operands = link.operands().iter();
        let is_result = link.is_kept || i + 1 == links.len();
        is_single[i] = !is_result
            && operands.all(|operand| match *operand {
                Operand::Link(link) => is_single[link as usize],
                Operand::Input(input) => inputs[input as usize].size() == 1,
            });
    }
    is_single
}

/// The elements of the links that have a single one, each in its link's place.
unsafe fn elements(
    level: Level,
    links: &[Link],
    inputs: &[View],
    is_single: &[bool],
) -> [u64; MAX_LINKS] {
    let mut elements = [0; MAX_LINKS];
    for (i, link) in links.iter().enumerate().filter(|(i, _)| is_single[*i]) {
        let arguments = link.operands.map(|operand| Argument {
            at: match operand {
                Operand::Link(link) => (&raw const elements[link as usize]).cast::<u8>(),
                Operand::Input(input) => inputs[input as usize].data.cast_const().cast::<u8>(),
            },
            is_one: true,
        });
        let to = (&raw mut elements[i]).cast::<u8>();
        elementwise::apply(level, link.action, link.from, link.to, arguments, to, 1);
    }
    elements
}

/// The place of each link of several elements, and how many blocks there are. A block is free again after its last use.
fn places(links: &[Link], is_single: &[bool]) -> ([Place; MAX_LINKS], usize) {
    let mut last_use = [0; MAX_LINKS];
    for (i, link) in links.iter().enumerate() {
        for operand in link.operands() {
            if let Operand::Link(number) = *operand {
                last_use[number as usize] = i;
            }
        }
    }
    let mut places = [Place::Block(0); MAX_LINKS];
    // The last link that writes to each block.
    let mut owners: SmallVec<[usize; 8]> = SmallVec::new();
    let mut results = 0;
    for (i, link) in links.iter().enumerate() {
        if is_single[i] {
            continue;
        }
        if link.is_kept || i + 1 == links.len() {
            places[i] = Place::Result(results);
            results += 1;
            continue;
        }
        // An action may write over operands whose elements are as large as its own.
        let is_over = |owner: &usize| match links[*owner].to.size() == link.to.size() {
            true => last_use[*owner] <= i,
            false => last_use[*owner] < i,
        };
        let block = owners.iter().position(is_over).unwrap_or(owners.len());
        match owners.get_mut(block) {
            Some(owner) => *owner = i,
            None => owners.push(i),
        }
        places[i] = Place::Block(block);
    }
    (places, owners.len())
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
/// `out` lies without gaps, the inputs broadcast to a result, and all are of the types that the links take and give.
/// `out` has one more axis, the first, if there are several results, and lies in rows then. Where there is one, `out` may
/// be an input of its own layout and size of element.
pub unsafe fn run(level: Level, links: &[Link], inputs: &[View], out: &View) {
    thread_local! {
        static BLOCKS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    }
    let first = usize::from(results(links) > 1);
    // SAFETY: of the same array.
    let one = unsafe { View::of(out.data, &out.shape()[first..], &out.strides()[first..]) };
    let mut axes = Axes::new(inputs, &one);
    let is_single = singles(links, inputs);
    let elements = elements(level, links, inputs, &is_single);
    let (places, own) = places(links, &is_single);
    let mut from: SmallVec<[Input; 4]> = inputs
        .iter()
        .map(|input| Input {
            data: Shared(input.data.cast::<u8>()),
            size: 1,
        })
        .collect();
    for link in links {
        for (place, operand) in link.operands().iter().enumerate() {
            if let Operand::Input(input) = *operand {
                from[input as usize].size = link.action.operand(place, link.from).size();
            }
        }
    }
    let is_small = axes.sizes.len() > 1 && one.size() <= BLOCK;
    // SAFETY: of the inputs' own shapes and strides.
    let _laid = is_small.then(|| unsafe { axes.lay_out(&mut from) });
    let (axes, count) = (&axes, axes.count());
    let to = Shared(out.data.cast::<u8>());
    let to_size = links.last().map_or(1, |link| link.to.size());
    let size = one.size();
    pool::parallel(size.div_ceil(PART), size >= WORTH_SHARING, &|part| {
        BLOCKS.with_borrow_mut(|blocks| {
            let wanted = (own + inputs.len()) * BLOCK;
            if blocks.len() < wanted {
                blocks.resize(wanted, 0);
            }
            let blocks = blocks.as_mut_ptr();
            // SAFETY: a block has room for as many elements of any type.
            let block = |i: usize| unsafe { blocks.add(i * BLOCK).cast::<u8>() };
            // SAFETY: the results' elements from `at` on, which are this part's alone.
            let place = |link: usize, at: usize| match places[link] {
                Place::Block(i) => block(i),
                Place::Result(i) => unsafe { to.at((i * size + at) * to_size) },
            };
            let mut at = part * PART;
            let end = size.min(at + PART);
            while at < end {
                let (row, column) = (at / count, at % count);
                let length = BLOCK.min(count - column).min(end - at);
                let mut is_one = is_single;
                for (i, link) in links.iter().enumerate().filter(|(i, _)| !is_single[*i]) {
                    let argument = |operand: Operand| match operand {
                        Operand::Link(link) => Argument {
                            at: match is_single[link as usize] {
                                true => (&raw const elements[link as usize]).cast(),
                                false => place(link as usize, at).cast_const(),
                            },
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
                    // SAFETY: as many elements as a block and the part have room for.
                    unsafe {
                        let to = place(i, at);
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
                        if all_one && matches!(places[i], Place::Result(_)) {
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
