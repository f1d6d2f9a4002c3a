//! Functions of elements, one after another, in one pass: what one gives the next is a block that stays in a core's own
//! cache. A chain has one result, or several of one type, which then lie one after another along a first axis.

pub mod axes;
mod flat;
mod prepared;

use super::elementwise::{self, Action, Argument};
use super::pool::{self, Shared, PART, WORTH_SHARING};
use super::simd::Level;
use super::{Type, View};
use axes::Axes;
use flat::Flat;
pub use prepared::Prepared;
use smallvec::SmallVec;
use std::cell::RefCell;

/// What a link takes: an array, or what a link before it gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    Input(u8),
    Link(u8),
}

/// An action on elements of the type `from`, to elements of the type `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

/// For each of `count` inputs the number of the first result that may be written over it: no link after that result's
/// takes the input.
pub fn takers(links: &[Link], count: usize) -> SmallVec<[u8; 8]> {
    let mut first = SmallVec::from_elem(0, count);
    let mut result = 0;
    for (i, link) in links.iter().enumerate() {
        for operand in link.operands() {
            if let Operand::Input(input) = *operand {
                first[usize::from(input)] = result;
            }
        }
        if link.is_kept && i + 1 < links.len() {
            result += 1;
        }
    }
    first
}

/// Numbers of 64 bits that a block has room for, and bytes of the elements that it is used for, if there are more of
/// these. Some blocks stay in the first cache, and a link's call takes far less time than its work.
const BLOCK: usize = 2048;
const BLOCK_BYTES: usize = 4096;

/// Where a link writes to.
#[derive(Clone, Copy)]
enum Place {
    Block(u8),
    /// A result, by its number.
    Result(u8),
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
        places[i] = Place::Block(block as u8);
    }
    (places, owners.len())
}

/// The first of `count` elements in the places of all.
unsafe fn fill(size: usize, to: *mut u8, count: usize) {
    for i in 1..count {
        std::ptr::copy_nonoverlapping(to, to.add(i * size), size);
    }
}

/// A call that a chain's work consists of.
#[derive(Clone, Copy)]
enum Call {
    Apply {
        link: Link,
        arguments: [Argument; 3],
        to: *mut u8,
        count: usize,
    },
    /// Elements of an input beside each other, from number `at` on in the result's order.
    Spread {
        size: usize,
        input: usize,
        from: *const u8,
        at: usize,
        to: *mut u8,
        count: usize,
    },
    /// The first element in the places of all.
    Fill {
        size: usize,
        to: *mut u8,
        count: usize,
    },
}

impl Call {
    unsafe fn run(&self, level: Level, axes: &Axes) {
        match *self {
            Call::Apply {
                ref link,
                arguments,
                to,
                count,
            } => elementwise::apply(level, link.action, link.from, link.to, arguments, to, count),
            Call::Spread {
                size,
                input,
                from,
                at,
                to,
                count,
            } => match size {
                1 => axes.spread(input, from, at, to, count),
                2 => axes.spread::<u16>(input, from.cast(), at, to.cast(), count),
                4 => axes.spread::<u32>(input, from.cast(), at, to.cast(), count),
                _ => axes.spread::<u64>(input, from.cast(), at, to.cast(), count),
            },
            Call::Fill { size, to, count } => fill(size, to, count),
        }
    }
}

/// A chain and its arrays: which calls compute it.
struct Layout<'a> {
    links: &'a [Link],
    axes: Axes,
    is_single: [bool; MAX_LINKS],
    places: [Place; MAX_LINKS],
    /// How many blocks the links need, and those of the inputs after them.
    blocks: usize,
    /// Each input's elements, and the bytes of one.
    from: SmallVec<[(Shared<u8>, usize); 4]>,
    /// The same of each result.
    to: SmallVec<[(Shared<u8>, usize); 4]>,
    /// Elements of a result.
    size: usize,
    /// See [`Layout::flat`].
    flat: Option<Flat>,
}

/// Memory between the links of a chain.
#[derive(Clone, Copy)]
struct Scratch {
    /// A number for each link that has a single element.
    elements: *mut u64,
    /// Blocks, each of `block` numbers.
    blocks: *mut u64,
    block: usize,
    /// Elements that are computed at a time.
    length: usize,
}

impl Scratch {
    /// A block has room for as many elements of any type.
    unsafe fn block(&self, i: usize) -> *mut u8 {
        self.blocks.add(i * self.block).cast()
    }
}

impl<'a> Layout<'a> {
    unsafe fn new(links: &'a [Link], inputs: &[View], outs: &[View]) -> Layout<'a> {
        let is_single = singles(links, inputs);
        let (places, own) = places(links, &is_single);
        let mut from: SmallVec<[_; 4]> = inputs
            .iter()
            .map(|input| (Shared(input.data.cast::<u8>()), 1))
            .collect();
        for link in links {
            for (place, operand) in link.operands().iter().enumerate() {
                if let Operand::Input(input) = *operand {
                    from[input as usize].1 = link.action.operand(place, link.from).size();
                }
            }
        }
        let last = links.len().saturating_sub(1);
        let kept = links.iter().enumerate();
        let kept = kept.filter(|(i, link)| link.is_kept || *i == last);
        let sizes: SmallVec<[usize; 4]> = kept.map(|(_, link)| link.to.size()).collect();
        let is_joined = outs.len() < sizes.len();
        let one = |i: usize| match is_joined {
            true => outs[0].part(i, sizes[i]),
            false => outs[i].again(),
        };
        let to = sizes.iter().enumerate();
        let to = to.map(|(i, size)| (Shared(one(i).data.cast::<u8>()), *size));
        let first = one(0);
        let mut layout = Layout {
            links,
            axes: Axes::new(inputs, &first),
            is_single,
            places,
            blocks: own,
            from,
            to: to.collect(),
            size: first.size(),
            flat: None,
        };
        layout.flat = layout.flat();
        layout
    }

    /// Numbers of all blocks of `block` numbers each.
    fn numbers(&self, block: usize) -> usize {
        (self.blocks + self.from.len()) * block
    }

    /// Elements of all types that fit a block.
    fn length(&self) -> usize {
        let links = self.links.iter();
        let own = links.map(|link| link.from.size().max(link.to.size())).max();
        BLOCK.max(BLOCK_BYTES / own.unwrap_or(1))
    }

    /// Computes the links that have a single element.
    unsafe fn singles(&self, scratch: Scratch, mut call: impl FnMut(Call)) {
        let singles = self.links.iter().enumerate();
        for (i, link) in singles.filter(|(i, _)| self.is_single[*i]) {
            let arguments = link.operands.map(|operand| Argument {
                at: match operand {
                    Operand::Link(link) => scratch.elements.add(link as usize).cast_const().cast(),
                    Operand::Input(input) => self.from[input as usize].0.at(0).cast_const(),
                },
                is_one: true,
            });
            let to = scratch.elements.add(i).cast();
            call(Call::Apply {
                link: *link,
                arguments,
                to,
                count: 1,
            });
        }
    }

    /// Where a link writes its elements from `at` on.
    unsafe fn place(&self, link: usize, at: usize, scratch: Scratch) -> *mut u8 {
        match self.places[link] {
            Place::Block(i) => scratch.block(i.into()),
            Place::Result(i) => {
                let (data, size) = &self.to[usize::from(i)];
                data.at(at * size)
            }
        }
    }

    /// An input's elements from `at` on: where they are, or put beside each other, once more for each use. They are of
    /// one row unless rows are short.
    unsafe fn input(
        &self,
        input: usize,
        at: usize,
        count: usize,
        scratch: Scratch,
        call: &mut impl FnMut(Call),
    ) -> Argument {
        let (data, size) = &self.from[input];
        let axes = &self.axes;
        let (start, is_one, is_beside) = match axes.is_short() {
            true => {
                let is_one = axes.is_one(input);
                let start = if is_one { 0 } else { at as isize };
                (start, is_one, is_one || axes.is_in_order(input))
            }
            false => {
                let step = axes.steps[input][axes.sizes.len() - 1];
                let (row, column) = (at / axes.count(), at % axes.count());
                let start = axes.offset(input, row) + column as isize * step;
                (start, step == 0, matches!(step, 0 | 1))
            }
        };
        if is_beside {
            let at = data.offset(start * *size as isize).cast_const();
            return Argument { at, is_one };
        }
        let to = scratch.block(self.blocks + input);
        call(Call::Spread {
            size: *size,
            input,
            from: data.at(0).cast_const(),
            at,
            to,
            count,
        });
        let at = to.cast_const();
        Argument { at, is_one }
    }

    /// Computes the elements from `at` to `end` of all results.
    unsafe fn part(&self, mut at: usize, end: usize, scratch: Scratch, mut call: impl FnMut(Call)) {
        if let Some(flat) = &self.flat {
            return self.flat_part(flat, at, end, scratch, call);
        }
        let (count, is_short) = (self.axes.count(), self.axes.is_short());
        let links = self.links.iter().enumerate();
        while at < end {
            let row_end = match is_short {
                true => end,
                false => (at / count + 1) * count,
            };
            let length = scratch.length.min(row_end.min(end) - at);
            let mut is_one = self.is_single;
            for (i, link) in links.clone().filter(|(i, _)| !self.is_single[*i]) {
                let mut arguments = [Argument {
                    at: std::ptr::null(),
                    is_one: true,
                }; 3];
                for (argument, operand) in arguments.iter_mut().zip(link.operands()) {
                    *argument = match *operand {
                        Operand::Link(link) => Argument {
                            at: match self.is_single[link as usize] {
                                true => scratch.elements.add(link as usize).cast_const().cast(),
                                false => self.place(link as usize, at, scratch).cast_const(),
                            },
                            is_one: is_one[link as usize],
                        },
                        Operand::Input(input) => {
                            self.input(input as usize, at, length, scratch, &mut call)
                        }
                    };
                }
                let all_one = arguments.iter().all(|argument| argument.is_one);
                let to = self.place(i, at, scratch);
                call(Call::Apply {
                    link: *link,
                    arguments,
                    to,
                    count: if all_one { 1 } else { length },
                });
                if all_one && matches!(self.places[i], Place::Result(_)) {
                    call(Call::Fill {
                        size: link.to.size(),
                        to,
                        count: length,
                    });
                }
                is_one[i] = all_one;
            }
            at += length;
        }
    }
}

/// # Safety
/// There is a result for each link that is kept and for the last, or one array that has all of them along a first axis,
/// lies in rows, and is of one type. Results have one shape and lie alike, without gaps. The inputs broadcast to it, and
/// all are of the types that the links take and give. A result may be an input of its own layout and size of element, if
/// no link after the result's takes that input.
pub unsafe fn run(level: Level, links: &[Link], inputs: &[View], outs: &[View]) {
    let task = Task {
        links,
        inputs,
        outs,
    };
    run_all(level, &[task]);
}

/// A chain with its arrays.
pub struct Task<'a> {
    pub links: &'a [Link],
    pub inputs: &'a [View],
    pub outs: &'a [View],
}

/// A chain that is being computed.
struct Running<'a> {
    layout: Layout<'a>,
    /// Numbers of links that have a single element, of all chains: where its own begin.
    elements: usize,
    /// Parts of the chains before it.
    before: usize,
}

/// Several chains at once, whose work threads share.
///
/// # Safety
/// As for [`run`], for each; and no result of one is an array of another.
pub unsafe fn run_all(level: Level, tasks: &[Task]) {
    thread_local! {
        static BLOCKS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    }
    let links: usize = tasks.iter().map(|task| task.links.len()).sum();
    let mut elements = vec![0u64; links];
    let elements = Shared(elements.as_mut_ptr());
    let mut running: SmallVec<[Running; 1]> = SmallVec::with_capacity(tasks.len());
    let (mut parts, mut work, mut first) = (0, 0, 0);
    for task in tasks {
        let layout = Layout::new(task.links, task.inputs, task.outs);
        let scratch = Scratch {
            elements: elements.at(first),
            blocks: std::ptr::null_mut(),
            block: BLOCK,
            length: layout.length(),
        };
        layout.singles(scratch, |call| call.run(level, &layout.axes));
        // A long chain is worth a second thread from fewer elements on.
        work += layout.size * (3 + task.links.len()) / 4;
        let count = layout.size.div_ceil(PART);
        running.push(Running {
            layout,
            elements: first,
            before: parts,
        });
        parts += count;
        first += task.links.len();
    }
    pool::parallel(parts, work >= WORTH_SHARING, &|part| {
        let number = running.partition_point(|chain| chain.before <= part) - 1;
        let chain = &running[number];
        let layout = &chain.layout;
        BLOCKS.with_borrow_mut(|blocks| {
            let wanted = layout.numbers(BLOCK);
            if blocks.len() < wanted {
                blocks.resize(wanted, 0);
            }
            let at = (part - chain.before) * PART;
            // SAFETY: elements of the results that are this part's alone, and blocks that are this thread's.
            unsafe {
                let scratch = Scratch {
                    elements: elements.at(chain.elements),
                    blocks: blocks.as_mut_ptr(),
                    block: BLOCK,
                    length: layout.length(),
                };
                layout.part(at, layout.size.min(at + PART), scratch, |call| {
                    call.run(level, &layout.axes)
                });
            }
        })
    });
}
