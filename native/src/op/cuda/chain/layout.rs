//! How a chain's arrays lie, as far as a kernel's text depends on it, and the arguments that have the rest.

use super::text::{self, results};
use crate::cpu::{Action, Links, Operand, Type};
use emlx_cpu::{Axes, View};
use smallvec::SmallVec;

/// Threads of a block.
pub const THREADS: usize = 256;

/// Blocks of a launch, at most: threads go on to further elements.
pub const MAX_BLOCKS: usize = 1 << 20;

/// Elements and places up to which indices have 32 bits, with room for a grid's step beyond them.
pub const MAX_NARROW: usize = 1 << 30;

/// Bytes beyond which arrays are read and written past the GPU's cache: it would keep nothing of them for the kernel
/// after this one.
const MAX_CACHED: usize = 64 << 20;

/// Bytes of a kernel's arguments, at most: CUDA's limit on every device.
pub const MAX_ARGUMENTS: usize = 4000;

/// Bytes that a thread reads at once.
pub const PACK_BYTES: usize = 16;

/// How an input lies beside the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// In the result's order, without gaps.
    Whole,
    /// One element for all.
    One,
    Strided,
}

/// What a kernel's text is made of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Structure {
    pub links: Links,
    /// Of each input.
    pub types: SmallVec<[Type; 4]>,
    pub kinds: SmallVec<[Kind; 4]>,
    /// Axes that strided inputs go along; 0 where none is strided.
    pub rank: usize,
    /// Whether several results are one array, one behind the other.
    pub is_joined: bool,
    /// Whether indices have 64 bits.
    pub is_wide: bool,
    /// Elements that a thread computes beside each other.
    pub pack: usize,
    /// Whether arrays are read and written past the cache.
    pub is_once: bool,
}

/// A structure with what one launch of its kernel is given.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    pub structure: Structure,
    pub arguments: SmallVec<[i32; 16]>,
    pub blocks: usize,
}

/// The types that links read their inputs as.
pub fn types(links: &Links, inputs: usize) -> SmallVec<[Type; 4]> {
    let mut types = SmallVec::from_elem(Type::U8, inputs);
    for link in links {
        for (place, operand) in link.operands().iter().enumerate() {
            if let Operand::Input(input) = *operand {
                types[usize::from(input)] = link.action.operand(place, link.from);
            }
        }
    }
    types
}

/// Elements that a thread computes beside each other: what it reads at once of the largest type, and fewer where each
/// takes long.
fn pack(links: &Links, types: &[Type], kinds: &[Kind]) -> usize {
    let wholes = types.iter().zip(kinds);
    let read = wholes.filter(|(_, kind)| **kind == Kind::Whole);
    let written = results(links).map(|(_, link)| link.to.size());
    let largest = read.map(|(of, _)| of.size()).chain(written).max();
    let is_long = |action| match action {
        Action::Unary(function) => !function.is_simple(),
        Action::Binary(pair) => !pair.is_simple(),
        Action::Division(_) => true,
        _ => false,
    };
    let long = links.iter().filter(|link| is_long(link.action)).count();
    let most = match (long, links.len()) {
        (_, 65..) => 2,
        (0, _) => 8,
        _ => 4,
    };
    (PACK_BYTES / largest.unwrap_or(1)).min(most)
}

impl Launch {
    /// `out` is how one result lies. None where a launch has no room for the arguments.
    pub fn new(links: &Links, is_joined: bool, inputs: &[View], out: &View) -> Option<Launch> {
        Launch::within((MAX_NARROW, MAX_CACHED), links, is_joined, inputs, out)
    }

    /// With indices of 32 bits up to so many elements, and within the cache up to so many bytes.
    pub fn within(
        (narrow, cached): (usize, usize),
        links: &Links,
        is_joined: bool,
        inputs: &[View],
        out: &View,
    ) -> Option<Launch> {
        let axes = Axes::new(inputs, out);
        let kind = |input| match input {
            _ if axes.is_one(input) => Kind::One,
            _ if axes.is_in_order(input) => Kind::Whole,
            _ => Kind::Strided,
        };
        let kinds: SmallVec<[Kind; 4]> = (0..inputs.len()).map(kind).collect();
        let types = types(links, inputs.len());
        let size: usize = axes.sizes.iter().product();
        let strided = || {
            kinds
                .iter()
                .enumerate()
                .filter(|(_, k)| **k == Kind::Strided)
        };
        let reach = |(input, _): (usize, &Kind)| -> usize {
            let steps = axes.steps[input].iter().zip(&axes.sizes);
            steps
                .map(|(step, size)| step.unsigned_abs() * (size - 1))
                .sum()
        };
        let results = results(links).count();
        let written = if is_joined { results * size } else { size };
        let is_wide = written.max(strided().map(reach).max().unwrap_or(0)) > narrow;
        let mut arguments = SmallVec::new();
        let mut add = |number: i64| {
            arguments.push(number as i32);
            if is_wide {
                arguments.push((number >> 32) as i32);
            }
        };
        add(size as i64);
        let rank = match strided().next() {
            Some(_) => axes.sizes.len(),
            None => 0,
        };
        if rank > 0 {
            axes.sizes.iter().for_each(|size| add(*size as i64));
        }
        for (input, _) in strided() {
            axes.steps[input].iter().for_each(|step| add(*step as i64));
        }
        let arrays = inputs.len() + results;
        if 8 * arrays + 4 * arguments.len() > MAX_ARGUMENTS {
            return None;
        }
        let pack = pack(links, &types, &kinds);
        let wholes = types.iter().zip(&kinds);
        let wholes = wholes.filter(|(_, kind)| **kind == Kind::Whole);
        let read: usize = wholes.map(|(of, _)| size * of.size()).sum();
        let written: usize = text::results(links)
            .map(|(_, link)| size * link.to.size())
            .sum();
        Some(Launch {
            structure: Structure {
                links: links.clone(),
                types,
                kinds,
                rank,
                is_joined,
                is_wide,
                pack,
                is_once: read + written > cached,
            },
            arguments,
            blocks: size.div_ceil(THREADS * pack).min(MAX_BLOCKS),
        })
    }
}
