//! Operations on elements, one after another, become one kernel of our own, for the CPU or generated for CUDA: a link
//! goes into the chain that takes what it gives. Where something else needs its value too, it is another result of the
//! chain.

use super::{Code, Node, Pass, Scope, Target, Work};
use crate::base::{Dtype, Result};
use crate::cpu::{self, Action, Link, Links, Operand, Pair, MAX_LINKS};
use crate::op::{self, Op};
use crate::program::engine::chain::Chain;
use crate::program::types::Types;
use smallvec::SmallVec;
use std::sync::Arc;

pub struct Chains;

impl Pass for Chains {
    fn name(&self) -> &'static str {
        "chains"
    }

    fn is_off(&self, target: &Target) -> Option<&'static str> {
        match target.generated {
            Ok(()) => target.fuse.then_some("fuse: true has MLX compile them"),
            Err(reason) if !target.kernels => Some(reason),
            Err(_) => target.lacks_kernels(),
        }
    }

    fn needs_types(&self, _: &Target) -> bool {
        true
    }

    fn run(&self, code: Code, scope: &Scope) -> Result<Code> {
        scope.rewritten(code, |code, types| chained(code, types, scope))
    }
}

/// Links of a chain that is made of several, at least: it is computed where the last of them was, when caches may have
/// forgotten what the first takes.
const MIN_UNITED: usize = 32;

/// Results of a chain, at most.
const MAX_RESULTS: usize = 8;

/// Elements of a result up to which links may also have other shapes: those that are broadcast to the result's, and the
/// same elements in another shape. What is computed twice then takes less than a node.
const SMALL: usize = 1024;

fn size(shape: &[i32]) -> usize {
    shape.iter().map(|size| *size as usize).product()
}

/// Chains of two links and more stand in the place of their last link.
fn chained(code: Code, types: &Types, scope: &Scope) -> Code {
    let Chained {
        ends,
        is_kept,
        shapes,
    } = ends(&code, types);
    let mut links = vec![Vec::new(); ends.len()];
    for (i, end) in ends.iter().enumerate() {
        links[*end].push(i);
    }
    let joints: Vec<Option<usize>> = links
        .iter()
        .map(|links| joint(&code, links, &is_kept, types))
        .collect();
    let mut is_joint = vec![false; code.nodes.len()];
    joints.iter().flatten().for_each(|i| is_joint[*i] = true);
    let mut nodes = Vec::with_capacity(code.nodes.len());
    for (i, node) in code.nodes.iter().enumerate() {
        match links[i].len() {
            _ if is_joint[i] => {}
            0 => {}
            1 => nodes.push(node.clone()),
            _ => {
                scope.took(|| {
                    let names = links[i].iter().map(|link| code.nodes[*link].name());
                    let names = names.collect::<Vec<_>>().join(", ");
                    format!("instruction {}: {names}", node.at)
                });
                let joint = joints[i].map(|joint| &code.nodes[joint]);
                nodes.push(linked(&code, &links[i], &is_kept, &shapes, joint, types));
            }
        }
    }
    Code { nodes, ..code }
}

/// The concatenation that alone takes the results of a chain, as they lie.
fn joint(code: &Code, numbers: &[usize], is_kept: &[bool], types: &Types) -> Option<usize> {
    let (last, inner) = numbers.split_last()?;
    let last_value = code.nodes[*last].outputs.first().copied()?;
    let results = inner.iter().filter(|i| is_kept[**i]).chain([last]);
    let results: Vec<Option<u32>> = results
        .map(|i| code.nodes[*i].outputs.first().copied())
        .collect();
    if results.len() < 2 {
        return None;
    }
    let is_result = |value: &u32| results.contains(&Some(*value));
    let mut takers =
        code.nodes.iter().enumerate().filter(|(i, node)| {
            !numbers.contains(i) && node.inputs.iter().flatten().any(is_result)
        });
    let (i, node) = takers.next()?;
    let is_alone = takers.next().is_none() && !code.outputs.iter().any(is_result);
    let is_of_one_type = results.iter().flatten().all(|value| {
        let dtype = |value: u32| types.values[value as usize].1;
        dtype(*value) == dtype(last_value)
    });
    let is_join = is_of_one_type && matches!(node.op(), Some(Op::Concatenate { axis: 0 }));
    (is_alone && is_join && node.inputs[..] == results[..]).then_some(i)
}

fn first_output(node: &Node) -> Option<usize> {
    node.outputs.first().map(|value| *value as usize)
}

/// What becomes of the nodes.
struct Chained {
    /// For each node the one that its chain ends with.
    ends: Vec<usize>,
    /// Whether its value is a result of its chain beside that of the last node.
    is_kept: Vec<bool>,
    /// The shape in which its chain has its value, where that is not its own.
    shapes: Vec<Option<Vec<i32>>>,
}

fn ends(code: &Code, types: &Types) -> Chained {
    let mut apart = vec![false; code.nodes.len()];
    for _ in 0..4 {
        let mut groups = Groups::new(code, types);
        groups.join(&apart);
        match groups.short() {
            short if short.is_empty() => return groups.chained(),
            short => short.into_iter().for_each(|i| apart[i] = true),
        }
    }
    let mut groups = Groups::new(code, types);
    groups.join(&vec![true; code.nodes.len()]);
    groups.chained()
}

/// Chains while they are found, from the last node to the first.
struct Groups<'a> {
    code: &'a Code,
    types: &'a Types,
    /// Links of each node; 0 where it has no kernel of elements.
    own: Vec<usize>,
    /// Whether a node has the elements of its input, few, in another shape.
    is_reshape: Vec<bool>,
    shapes: Vec<Option<Vec<i32>>>,
    /// Links of the chain that ends with a node.
    lengths: Vec<usize>,
    /// A later node of the same chain, or itself.
    next: Vec<usize>,
    /// The nodes that take a value.
    takers: Vec<SmallVec<[usize; 4]>>,
    is_output: Vec<bool>,
    is_kept: Vec<bool>,
    /// The nodes whose value brought chains together.
    shared: Vec<usize>,
}

impl<'a> Groups<'a> {
    fn new(code: &'a Code, types: &'a Types) -> Groups<'a> {
        let count = code.nodes.len();
        let own = code.nodes.iter();
        let own = own.map(|node| links_or_product(node, types).map_or(0, |links| links.len()));
        let own: Vec<usize> = own.collect();
        let mut takers = vec![SmallVec::new(); code.values];
        for (i, node) in code.nodes.iter().enumerate() {
            for value in node.inputs.iter().flatten() {
                takers[*value as usize].push(i);
            }
        }
        let mut is_output = vec![false; code.values];
        for value in &code.outputs {
            is_output[*value as usize] = true;
        }
        Groups {
            code,
            types,
            lengths: own.clone(),
            own,
            is_reshape: code
                .nodes
                .iter()
                .map(|node| is_small_reshape(node, types))
                .collect(),
            shapes: vec![None; count],
            next: (0..count).collect(),
            takers,
            is_output,
            is_kept: vec![false; count],
            shared: Vec::new(),
        }
    }

    fn end(&self, mut node: usize) -> usize {
        while self.next[node] != node {
            node = self.next[node];
        }
        node
    }

    /// Puts each node into the chain of those that take its value. Values of nodes that are `apart` bring no chains
    /// together.
    fn join(&mut self, apart: &[bool]) {
        for i in (0..self.code.nodes.len()).rev() {
            let Some(value) = first_output(&self.code.nodes[i]) else {
                continue;
            };
            if self.own[i] == 0 && !self.is_reshape[i] {
                continue;
            }
            if self.is_output[value] || !self.join_alone(i, value, apart[i]) {
                self.join_kept(i, value);
            }
        }
    }

    /// Puts a node into the chain that alone takes its value, which may be made of several.
    fn join_alone(&mut self, i: usize, value: usize, is_apart: bool) -> bool {
        let takers = self.takers[value].iter();
        let mut ends: SmallVec<[usize; 4]> = takers.map(|taker| self.end(*taker)).collect();
        ends.sort_unstable();
        ends.dedup();
        let end = ends.last().and_then(|end| self.shape_of(*end));
        let (Some(own), Some(result)) = (self.shape_of(i), end) else {
            return false;
        };
        let Some(shape) = self.shape_for_takers(i, value) else {
            return false;
        };
        let is_alike =
            |end: &usize| self.own[*end] > 0 && self.shape_of(*end).is_some_and(|s| s == result);
        // A single element is computed once, beside those that take it.
        let is_link = &shape == result
            || ends.len() == 1 && size(own) == 1 && own.len() <= result.len()
            || size(result) <= SMALL && cpu::goes_into(&shape, result);
        let links: usize = ends.iter().map(|end| self.lengths[*end]).sum();
        let fits = links + self.own[i] <= MAX_LINKS;
        if !is_link || !fits || !ends.iter().all(is_alike) {
            return false;
        }
        if ends.len() > 1 {
            if is_apart || !self.unite(&ends) {
                return false;
            }
            self.shared.push(i);
        }
        let end = ends[ends.len() - 1];
        self.next[i] = end;
        self.lengths[end] = links + self.own[i];
        self.shapes[i] = (&shape != own).then_some(shape);
        true
    }

    /// Puts a node whose value is needed elsewhere too into the first chain that takes it, as another result.
    fn join_kept(&mut self, i: usize, value: usize) {
        let Some(own) = self.shape_of(i).filter(|_| self.own[i] > 0) else {
            return;
        };
        let takers = self.takers[value].iter();
        let ends = takers.map(|taker| self.end(*taker));
        let ends = ends.filter(|end| self.own[*end] > 0 && self.shape_of(*end) == Some(own));
        let Some(end) = ends.min() else {
            return;
        };
        let mut takers = self.takers[value].iter();
        // Those in the chain take the value as it is.
        let is_settled = takers.all(|taker| match self.end(*taker) == end {
            true => self.shapes[*taker].is_none() && self.own[*taker] > 0,
            false => self.end(*taker) > end,
        });
        let links = self.lengths[end] + self.own[i];
        if is_settled && links <= MAX_LINKS && self.results(&[end]).len() < MAX_RESULTS {
            self.next[i] = end;
            self.lengths[end] = links;
            self.is_kept[i] = true;
        }
    }

    /// The nodes whose values are results of the chains that end with these.
    fn results(&self, ends: &[usize]) -> Vec<usize> {
        let last = ends.iter().max().map_or(0, |last| last + 1);
        (0..last)
            .filter(|i| self.is_kept[*i] || self.next[*i] == *i)
            .filter(|i| self.own[*i] > 0 && ends.contains(&self.end(*i)))
            .collect()
    }

    fn shape_of(&self, node: usize) -> Option<&'a Vec<i32>> {
        first_output(&self.code.nodes[node]).map(|value| &self.types.values[value].0)
    }

    /// The shape in which all that take a node's value want it; None where they do not agree, or the node has no links
    /// in it.
    fn shape_for_takers(&self, i: usize, value: usize) -> Option<Vec<i32>> {
        let own = self.shape_of(i)?;
        let mut takers = self.takers[value].iter().map(|taker| {
            let of_taker = self.shape_of(*taker)?;
            match (&self.shapes[*taker], self.is_reshape[*taker]) {
                // What is no link of a chain takes the value as it is.
                _ if self.next[*taker] == *taker => Some(own),
                (shape, true) => Some(shape.as_ref().unwrap_or(of_taker)),
                (None, false) => Some(own),
                (Some(shape), false) if own == of_taker => Some(shape),
                (Some(_), false) => (size(own) == 1).then_some(own),
            }
        });
        let shape = takers.next()??;
        if takers.any(|other| other != Some(shape)) {
            return None;
        }
        let operands = self.code.nodes[i].inputs.iter().flatten();
        let mut operands = operands.map(|operand| &self.types.values[*operand as usize].0);
        let moves = |operand: &Vec<i32>| operand == own || size(operand) == 1;
        let fits = shape == own || self.is_reshape[i] || operands.all(moves);
        fits.then(|| shape.clone())
    }

    /// Makes one chain of several, if what takes their results comes after the last of them.
    fn unite(&mut self, ends: &[usize]) -> bool {
        let last = ends[ends.len() - 1];
        let of = |node: usize| first_output(&self.code.nodes[node]).unwrap_or(0);
        let results = self.results(ends);
        let is_later = |i: &usize| self.end(*i) > last;
        let fits = results.iter().all(|result| {
            let mut takers = self.takers[of(*result)].iter();
            takers.all(|taker| is_later(taker) || ends.contains(&self.end(*taker)))
        });
        if !fits || results.len() > MAX_RESULTS {
            return false;
        }
        let is_needed =
            |value: usize| self.is_output[value] || self.takers[value].iter().any(is_later);
        let kept: Vec<bool> = results.iter().map(|i| is_needed(of(*i))).collect();
        for (result, is_kept) in results.into_iter().zip(kept) {
            self.is_kept[result] = is_kept;
        }
        self.is_kept[last] = true;
        for end in ends {
            self.next[*end] = last;
        }
        true
    }

    /// The nodes that brought chains together which are too short for that.
    fn short(&self) -> Vec<usize> {
        let shared = self.shared.iter().copied();
        shared
            .filter(|i| self.lengths[self.end(*i)] < MIN_UNITED)
            .collect()
    }

    fn chained(self) -> Chained {
        Chained {
            ends: (0..self.next.len()).map(|i| self.end(i)).collect(),
            is_kept: self.is_kept,
            shapes: self.shapes,
        }
    }
}

/// A shape with its last two axes exchanged, one of which has one element.
fn turned(shape: &[i32]) -> Vec<i32> {
    let mut turned = shape.to_vec();
    let rank = turned.len();
    if rank >= 2 {
        turned.swap(rank - 1, rank - 2);
    }
    turned
}

/// Whether a node is a reduction along axes of one element each, as gradients of a single row are.
fn is_over_single_elements(node: &Node, types: &Types) -> bool {
    let (Some(Op::Sum { axes, .. } | Op::Max { axes, .. } | Op::Min { axes, .. }), [Some(input)]) =
        (node.op(), &node.inputs[..])
    else {
        return false;
    };
    let (shape, dtype) = &types.values[*input as usize];
    let output = first_output(node).map(|value| types.values[value].1);
    let rank = shape.len() as i32;
    let is_single = |axis: &i32| {
        let axis = if *axis < 0 { axis + rank } else { *axis };
        usize::try_from(axis).is_ok_and(|axis| shape.get(axis) == Some(&1))
    };
    let is_over = match axes {
        Some(axes) => axes.iter().all(is_single),
        None => shape.iter().all(|size| *size == 1),
    };
    is_over && output == Some(*dtype)
}

/// Whether a node has the elements of its input, few, in another shape.
fn is_small_reshape(node: &Node, types: &Types) -> bool {
    let is_reshape = matches!(
        node.op(),
        Some(Op::Reshape { .. } | Op::Squeeze { .. } | Op::ExpandDims { .. })
    );
    let output = first_output(node).map(|value| &types.values[value]);
    (is_reshape || is_over_single_elements(node, types))
        && output
            .is_some_and(|(shape, dtype)| size(shape) <= SMALL && cpu::type_of(*dtype).is_some())
}

/// The operands of a product of one term, whose elements are products of a column's and a row's; and whether their last
/// two axes are exchanged first.
fn outer(node: &Node, types: &Types) -> Option<bool> {
    let is_turned = match &node.work {
        Work::Op(Op::Matmul) => false,
        Work::Segment(segment) if segment.is_turned_product() => true,
        _ => return None,
    };
    let of = |value: &Option<u32>| value.map(|value| &types.values[value as usize]);
    let (a, left) = of(node.inputs.first()?)?;
    let (b, right) = of(node.inputs.get(1)?)?;
    let own = types.values[first_output(node)?].1;
    let terms = if is_turned { 2 } else { 1 };
    let is_outer = a.len() >= 2 && b.len() >= 2 && a[a.len() - terms] == 1;
    (is_outer && *left == own && *right == own).then_some(is_turned)
}

/// The links of a node that a kernel of ours computes from operands that go into its result's shape.
fn links_or_product(node: &Node, types: &Types) -> Option<Links> {
    if outer(node, types).is_some() {
        let own = cpu::type_of(types.values[first_output(node)?].1)?;
        let action = Action::Binary(Pair::Multiply);
        let operands = [Operand::Input(0), Operand::Input(1)];
        let link = Link::new(action, own, own, &operands);
        return action.takes(own, own).then(|| [link].into_iter().collect());
    }
    links(node, types)
}

/// The same of an operation on elements.
pub fn links(node: &Node, types: &Types) -> Option<Links> {
    let op = node.op()?;
    let (_, dtype) = &types.values[first_output(node)?];
    let of = |value: &Option<u32>| value.map(|value| &types.values[value as usize]);
    let given: SmallVec<[Option<Dtype>; 3]> = node
        .inputs
        .iter()
        .map(|value| of(value).map(|signature| signature.1))
        .collect();
    let links = op::links(op, &given)?;
    let is_of_its_type = links.last()?.to == cpu::type_of(*dtype)?;
    is_of_its_type.then_some(links)
}

/// The chain of these nodes, and the values that it takes from elsewhere.
fn linked(
    code: &Code,
    numbers: &[usize],
    is_kept: &[bool],
    shapes: &[Option<Vec<i32>>],
    joint: Option<&Node>,
    types: &Types,
) -> Node {
    // Values in the shape that the chain takes them in, where that is not their own.
    let mut inputs: SmallVec<[(u32, Option<Vec<i32>>); 4]> = SmallVec::new();
    let mut chain = Links::new();
    // What has a node's value.
    let mut made: SmallVec<[(u32, Operand); 8]> = SmallVec::new();
    let mut outputs: SmallVec<[u32; 2]> = SmallVec::new();
    for number in numbers {
        let node = &code.nodes[*number];
        let shape = &shapes[*number];
        let mut input = |value: u32| {
            if let Some((_, operand)) = made.iter().find(|(of, _)| *of == value) {
                return *operand;
            }
            let own = &types.values[value as usize].0;
            let wanted = match first_output(node) {
                Some(out) if is_small_reshape(node, types) => {
                    Some(shape.as_ref().unwrap_or(&types.values[out].0))
                }
                _ => shape
                    .as_ref()
                    .filter(|shape| size(own) != 1 || own.len() > shape.len()),
            };
            let turned = (outer(node, types) == Some(true)).then(|| turned(own));
            let wanted = turned.as_ref().or(wanted);
            let wanted = wanted.filter(|wanted| *wanted != own).cloned();
            let taken = (value, wanted);
            let known = inputs.iter().position(|input| *input == taken);
            let number = known.unwrap_or(inputs.len());
            if known.is_none() {
                inputs.push(taken);
            }
            Operand::Input(number as u8)
        };
        let is_last = Some(number) == numbers.last();
        let is_result = is_kept[*number] || is_last;
        let mut own: SmallVec<[Operand; 4]> = SmallVec::new();
        for link in links_or_product(node, types).unwrap_or_default() {
            let operand = |operand: &Operand| match *operand {
                Operand::Link(link) => own[link as usize],
                Operand::Input(number) => input(node.inputs[number as usize].unwrap_or_default()),
            };
            let operands: SmallVec<[Operand; 3]> = link.operands().iter().map(operand).collect();
            let link = link.over(&operands);
            own.push(match is_result {
                // A result is a link of its own.
                true => {
                    chain.push(link);
                    Operand::Link(chain.len() as u8 - 1)
                }
                false => cpu::push_link(&mut chain, link),
            });
        }
        if let (true, Some(link)) = (is_result, chain.last_mut()) {
            link.is_kept = !is_last;
            outputs.extend(node.outputs.first().copied());
        }
        // In the shape that the chain has it, a reshaped value is the value.
        let last = own.last().copied();
        let last = last.or_else(|| node.inputs.first().copied().flatten().map(input));
        made.extend(node.outputs.first().copied().zip(last));
    }
    let (inputs, shapes): (SmallVec<_>, SmallVec<_>) = inputs
        .into_iter()
        .map(|(value, shape)| (Some(value), shape))
        .unzip();
    let last = &code.nodes[numbers[numbers.len() - 1]];
    let signature = types.values[last.outputs[0] as usize].clone();
    Node {
        work: Work::Segment(Arc::new(Chain {
            links: cpu::needed_links(chain),
            shapes,
            signature,
            is_joined: joint.is_some(),
        })),
        inputs,
        outputs: joint.map_or(outputs, |joint| joint.outputs.clone()),
        ..last.clone()
    }
}

#[cfg(test)]
mod tests;
