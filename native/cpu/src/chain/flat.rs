//! Chains in blocks that do not end where rows do: what a link takes and gives is found once, and only the places of a
//! block's elements change from block to block.

use super::{Call, Layout, Link, Operand, Place, Scratch, BLOCK};
use crate::elementwise::Argument;
use smallvec::SmallVec;

/// Links for each input that has to be put beside each other first, from which blocks of several rows are worth that.
const LINKS_PER_SPREAD: usize = 3;

/// Where elements are of which a block's lie beside each other.
#[derive(Clone, Copy)]
enum Slot {
    /// A block, by its number.
    Block(u16),
    /// A single element of a link.
    Element(u8),
    /// An array, and the bytes from one element to the next.
    Array(*mut u8, usize),
}

impl Slot {
    unsafe fn at(self, at: usize, scratch: Scratch) -> *mut u8 {
        match self {
            Slot::Block(i) => scratch.block(i.into()),
            Slot::Element(i) => scratch.elements.add(i.into()).cast(),
            Slot::Array(data, step) => data.add(at * step),
        }
    }
}

/// A link whose operands and results lie so.
struct FlatLink {
    link: Link,
    operands: SmallVec<[(Slot, bool); 3]>,
    to: Slot,
    /// Whether its elements are alike.
    is_one: bool,
}

// SAFETY: the pointers are those of the chain's arrays, of which threads write parts that do not overlap.
unsafe impl Sync for FlatLink {}

/// Links in blocks that do not end where rows do.
pub struct Flat {
    /// Inputs that lie in another order than the results, or are repeated: a block of each is made first.
    spread: SmallVec<[usize; 4]>,
    links: Vec<FlatLink>,
}

impl Layout<'_> {
    /// Whether a link has one element for a whole row, which is computed once where rows have calls of their own.
    fn has_rows(&self) -> bool {
        let last = self.axes.sizes.len() - 1;
        let mut is_one = self.is_single;
        let links = self.links.iter().enumerate();
        let mut links = links.filter(|(i, _)| !self.is_single[*i]);
        links.any(|(i, link)| {
            is_one[i] = link.operands().iter().all(|operand| match *operand {
                Operand::Link(of) => is_one[usize::from(of)],
                Operand::Input(input) => self.axes.steps[usize::from(input)][last] == 0,
            });
            is_one[i]
        })
    }

    /// The links of several elements, if there is more than a block: then only the places of a block's elements change
    /// from block to block. None also where rows are long enough for calls of their own, and some inputs would have to
    /// be made for that.
    pub fn flat(&self) -> Option<Flat> {
        if self.size <= BLOCK {
            return None;
        }
        let inputs = 0..self.from.len();
        let is_spread = |input: &usize| !self.axes.is_one(*input) && !self.axes.is_in_order(*input);
        let spread: SmallVec<[usize; 4]> = inputs.filter(is_spread).collect();
        let is_worth_it = || {
            let is_short = 2 * self.axes.count() <= BLOCK && !self.has_rows();
            is_short && self.links.len() >= LINKS_PER_SPREAD * spread.len()
        };
        if !spread.is_empty() && !self.axes.is_short() && !is_worth_it() {
            return None;
        }
        let mut is_one = self.is_single;
        let links = self.links.iter().enumerate();
        let links = links.filter(|(i, _)| !self.is_single[*i]);
        let place = |i: usize| match self.places[i] {
            Place::Block(block) => Slot::Block(block.into()),
            Place::Result(result) => {
                let (data, size) = &self.to[usize::from(result)];
                Slot::Array(data.0, *size)
            }
        };
        let links = links.map(|(i, link)| {
            let operands = link.operands().iter().map(|operand| match *operand {
                Operand::Link(of) if self.is_single[usize::from(of)] => (Slot::Element(of), true),
                Operand::Link(of) => (place(of.into()), is_one[usize::from(of)]),
                Operand::Input(input) => {
                    let input = usize::from(input);
                    let (data, size) = &self.from[input];
                    match self.axes.is_one(input) {
                        true => (Slot::Array(data.0, 0), true),
                        false if spread.contains(&input) => {
                            (Slot::Block((self.blocks + input) as u16), false)
                        }
                        false => (Slot::Array(data.0, *size), false),
                    }
                }
            });
            let operands: SmallVec<[(Slot, bool); 3]> = operands.collect();
            is_one[i] = operands.iter().all(|(_, is_one)| *is_one);
            FlatLink {
                link: *link,
                operands,
                to: place(i),
                is_one: is_one[i],
            }
        });
        let links = links.collect();
        Some(Flat { spread, links })
    }

    /// [`Layout::part`] in blocks of several rows.
    pub unsafe fn flat_part(
        &self,
        flat: &Flat,
        mut at: usize,
        end: usize,
        scratch: Scratch,
        mut call: impl FnMut(Call),
    ) {
        while at < end {
            let length = scratch.length.min(end - at);
            for input in &flat.spread {
                let (data, size) = &self.from[*input];
                call(Call::Spread {
                    size: *size,
                    input: *input,
                    from: data.at(0).cast_const(),
                    at,
                    to: scratch.block(self.blocks + input),
                    count: length,
                });
            }
            for link in &flat.links {
                let mut arguments = [Argument {
                    at: std::ptr::null(),
                    is_one: true,
                }; 3];
                for (argument, (slot, is_one)) in arguments.iter_mut().zip(&link.operands) {
                    argument.at = slot.at(at, scratch).cast_const();
                    argument.is_one = *is_one;
                }
                let to = link.to.at(at, scratch);
                call(Call::Apply {
                    link: link.link,
                    arguments,
                    to,
                    count: if link.is_one { 1 } else { length },
                });
                if link.is_one && matches!(link.to, Slot::Array(..)) {
                    let size = link.link.to.size();
                    call(Call::Fill {
                        size,
                        to,
                        count: length,
                    });
                }
            }
            at += length;
        }
    }
}
