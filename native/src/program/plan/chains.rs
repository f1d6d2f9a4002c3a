//! Operations on elements, one after another, become one kernel of our own, for the CPU or generated for CUDA: a link goes into the chain that
//! alone takes what it gives. Long chains that take the same values become one with several results.

use super::{Code, Node, Pass, Scope, Target, Work};
use crate::base::{Dtype, Result};
use crate::cpu::{self, Links, Operand, MAX_LINKS};
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

/// Links of chains with several results, at least: the results lie in one buffer, which lives as long as any of them.
const MIN_SHARED: usize = 32;

/// Results of a chain, at most.
const MAX_RESULTS: usize = 4;

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
        .map(|links| joint(&code, links, &is_kept))
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
fn joint(code: &Code, numbers: &[usize], is_kept: &[bool]) -> Option<usize> {
    let (last, inner) = numbers.split_last()?;
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
    let is_join = matches!(node.op(), Some(Op::Concatenate { axis: 0 }));
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
        let own = own.map(|node| links(node, types).map_or(0, |links| links.len()));
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

    /// Puts each node into the chain of those that take its value. Values of nodes that are `apart` bring no chains together.
    fn join(&mut self, apart: &[bool]) {
        for i in (0..self.code.nodes.len()).rev() {
            let Some(value) = first_output(&self.code.nodes[i]) else {
                continue;
            };
            if self.own[i] == 0 && !self.is_reshape[i] || self.is_output[value] {
                continue;
            }
            let takers = self.takers[value].iter();
            let mut ends: SmallVec<[usize; 4]> = takers.map(|taker| self.end(*taker)).collect();
            ends.sort_unstable();
            ends.dedup();
            let end = ends.last().and_then(|end| self.shape_of(*end));
            let (Some(own), Some(result)) = (self.shape_of(i), end) else {
                continue;
            };
            let Some(shape) = self.shape_for_takers(i, value) else {
                continue;
            };
            let is_alike = |end: &usize| {
                self.own[*end] > 0 && self.shape_of(*end).is_some_and(|s| s == result)
            };
            // A single element is computed once, beside those that take it.
            let is_link = &shape == result
                || ends.len() == 1 && size(own) == 1 && own.len() <= result.len()
                || size(result) <= SMALL && cpu::goes_into(&shape, result);
            let links: usize = ends.iter().map(|end| self.lengths[*end]).sum();
            let fits = links + self.own[i] <= MAX_LINKS;
            if !is_link || !fits || !ends.iter().all(is_alike) {
                continue;
            }
            if ends.len() > 1 && (apart[i] || !self.unite(&ends)) {
                continue;
            }
            let end = ends[ends.len() - 1];
            if ends.len() > 1 {
                self.shared.push(i);
            }
            self.next[i] = end;
            self.lengths[end] = links + self.own[i];
            self.shapes[i] = (&shape != own).then_some(shape);
        }
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
        let results: Vec<usize> = (0..=last)
            .filter(|i| self.is_kept[*i] || self.next[*i] == *i)
            .filter(|i| self.own[*i] > 0 && ends.contains(&self.end(*i)))
            .collect();
        let dtype = self.types.values[of(last)].1;
        let is_later = |i: &usize| *i > last;
        let fits = results.iter().all(|result| {
            let value = of(*result);
            let mut takers = self.takers[value].iter();
            !self.is_output[value]
                && self.types.values[value].1 == dtype
                && takers.all(|taker| is_later(taker) || ends.contains(&self.end(*taker)))
        });
        if !fits || results.len() > MAX_RESULTS {
            return false;
        }
        for result in results {
            self.is_kept[result] = self.takers[of(result)].iter().any(is_later);
        }
        self.is_kept[last] = true;
        for end in ends {
            self.next[*end] = last;
        }
        true
    }

    /// The nodes that brought chains together which are too short to have several results.
    fn short(&self) -> Vec<usize> {
        let shared = self.shared.iter().copied();
        shared
            .filter(|i| self.lengths[self.end(*i)] < MIN_SHARED)
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

/// Whether a node has the elements of its input, few, in another shape.
fn is_small_reshape(node: &Node, types: &Types) -> bool {
    let is_reshape = matches!(
        node.op(),
        Some(Op::Reshape { .. } | Op::Squeeze { .. } | Op::ExpandDims { .. })
    );
    let output = first_output(node).map(|value| &types.values[value]);
    is_reshape
        && output
            .is_some_and(|(shape, dtype)| size(shape) <= SMALL && cpu::type_of(*dtype).is_some())
}

/// The links of a node that a kernel of ours computes from operands that go into its result's shape.
fn links(node: &Node, types: &Types) -> Option<Links> {
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
                _ => shape.as_ref().filter(|_| size(own) != 1),
            };
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
        for link in links(node, types).unwrap_or_default() {
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
mod tests {
    use super::*;
    use crate::base::{Dtype, Signature};
    use crate::cpu::Link;
    use crate::program::{Block, Instruction, Step};

    fn op(op: Op, inputs: &[u32]) -> Instruction {
        Instruction::new(Step::Op(op), inputs.iter().copied().map(Some), 1, None)
    }

    fn types(values: &[(&[i32], Dtype)]) -> Types {
        let values = values.iter();
        let values: Vec<Signature> = values.map(|(shape, d)| (shape.to_vec(), *d)).collect();
        let inside = values.iter().map(|_| Vec::new()).collect();
        Types { values, inside }
    }

    fn ends_of(instructions: Vec<Instruction>, outputs: &[u32], given: &Types) -> Vec<usize> {
        let inputs = given.values.len() - instructions.len();
        let block = Block::new(inputs, instructions, outputs.to_vec()).expect("well-formed");
        ends(&Code::of(&block), given).ends
    }

    #[test]
    fn a_link_goes_where_alone_it_is_needed() {
        // 0, 1 | 2 = 0 + 1, 3 = exp 2, 4 = 3 · 2 | 5 = degrees 4 | 6 = |4|, 7 = 6 + 5
        let instructions = || {
            vec![
                op(Op::Add, &[0, 1]),
                op(Op::Exp, &[2]),
                op(Op::Multiply, &[3, 2]),
                op(Op::Degrees, &[4]),
                op(Op::Abs, &[4]),
                op(Op::Add, &[6, 5]),
            ]
        };
        let whole: (&[i32], Dtype) = (&[3, 20], Dtype::F32);
        let given = types(&[whole; 8]);
        assert_eq!(ends_of(instructions(), &[7], &given), [2, 2, 2, 3, 5, 5]);
        assert_eq!(ends_of(instructions(), &[7, 3], &given), [0, 1, 2, 3, 5, 5]);
        // A row goes into the result's shape, but is no link of its chain.
        let row: (&[i32], Dtype) = (&[20], Dtype::F32);
        let long: (&[i32], Dtype) = (&[300, 20], Dtype::F32);
        let given = types(&[row, row, row, row, long, long, long, long]);
        assert_eq!(ends_of(instructions(), &[7], &given), [0, 1, 2, 3, 5, 5]);
        // Of a few elements it is one.
        let given = types(&[row, row, row, row, whole, whole, whole, whole]);
        assert_eq!(ends_of(instructions(), &[7], &given), [2, 2, 2, 3, 5, 5]);
    }

    #[test]
    fn numbers_go_together_that_mlx_promotes_to_the_results_type() {
        let instructions = || vec![op(Op::Exp, &[0]), op(Op::Add, &[2, 1])];
        let whole: (&[i32], Dtype) = (&[3, 20], Dtype::Bf16);
        let ends = |other| ends_of(instructions(), &[3], &types(&[whole, other, whole, whole]));
        assert_eq!(ends((&[], Dtype::S64)), [1, 1]);
        assert_eq!(ends((&[20], Dtype::Bf16)), [1, 1]);
        assert_eq!(ends((&[20], Dtype::S64)), [1, 1]);
        assert_eq!(ends((&[], Dtype::F16)), [0, 1]);
    }

    #[test]
    fn long_chains_are_several() {
        let count = MAX_LINKS + 3;
        let instructions = (0..count as u32).map(|i| op(Op::Abs, &[i])).collect();
        let values: Vec<(&[i32], Dtype)> = vec![(&[20], Dtype::F16); count + 1];
        let ends = ends_of(instructions, &[count as u32], &types(&values));
        assert_eq!(ends[..3], [2, 2, 2]);
        assert!(ends[3..].iter().all(|end| *end == count - 1));
    }

    /// Two values that each round adds to one another, `rounds` times, and what is made of them at last.
    fn rounds<const N: usize>(rounds: usize, last: [Instruction; N]) -> Vec<Instruction> {
        let mut instructions = Vec::new();
        let (mut a, mut b, mut next) = (0, 1, 2);
        for _ in 0..rounds {
            instructions.extend([op(Op::Add, &[a, b]), op(Op::BitwiseXor, &[next, b])]);
            (a, b, next) = (next, next + 1, next + 2);
        }
        instructions.extend(last);
        instructions
    }

    fn run(instructions: Vec<Instruction>, outputs: &[u32], dtype: Dtype) -> Code {
        let values: Vec<(&[i32], Dtype)> = vec![(&[20], dtype); instructions.len() + 2];
        let types = types(&values);
        let block = Block::new(2, instructions, outputs.to_vec()).expect("well-formed");
        let target = Target::of_test(crate::base::Device::Cpu);
        let scope = Scope::of_test(&target, &types, "chains");
        let mut chained = Chains.run(Code::of(&block), &scope).expect("chained");
        chained.settle().expect("well-formed");
        chained
    }

    fn names(code: &Code) -> Vec<String> {
        code.nodes.iter().map(Node::name).collect()
    }

    #[test]
    fn long_chains_of_the_same_values_are_one_with_several_results() {
        // The results are 40 and 41.
        let sorted = |value| op(Op::Sort { axis: 0 }, &[value]);
        let code = run(rounds(20, [sorted(40), sorted(41)]), &[42, 43], Dtype::U32);
        assert_eq!(names(&code), ["chain", "sort", "sort"]);
        assert_eq!(code.nodes[0].outputs[..], [40, 41]);
        let Work::Segment(segment) = &code.nodes[0].work else {
            panic!("no chain")
        };
        assert_eq!(segment.operations(), 40);
        let is_alone = |code: &Code, value: u32| {
            let mut nodes = code.nodes.iter();
            nodes.any(|node| node.outputs[..] == [value])
        };
        // A result that the caller is given would keep the other one's memory.
        let code = run(rounds(20, [sorted(40)]), &[42, 41], Dtype::U32);
        assert!(is_alone(&code, 41));
        // Something takes the first result before there is the second.
        let last = [
            op(Op::Abs, &[40]),
            sorted(42),
            op(Op::BitwiseXor, &[41, 40]),
            sorted(44),
        ];
        let code = run(rounds(20, last), &[43, 45], Dtype::U32);
        assert!(is_alone(&code, 42) && is_alone(&code, 44));
    }

    #[test]
    fn short_chains_of_the_same_values_stay_apart() {
        let sorted = |value| op(Op::Sort { axis: 0 }, &[value]);
        let code = run(rounds(4, [sorted(8), sorted(9)]), &[10, 11], Dtype::U32);
        assert!(code.nodes.iter().all(|node| node.outputs.len() == 1));
    }

    #[test]
    fn results_that_are_concatenated_are_one_array() {
        let concatenated = |axis, values: &[u32]| op(Op::Concatenate { axis }, values);
        let code = run(rounds(20, [concatenated(0, &[40, 41])]), &[42], Dtype::U32);
        assert_eq!(names(&code), ["chain"]);
        assert_eq!(code.nodes[0].outputs[..], [42]);
        for values in [[41, 40], [40, 40]] {
            let code = run(rounds(20, [concatenated(0, &values)]), &[42], Dtype::U32);
            assert_eq!(names(&code).last().map(String::as_str), Some("concatenate"));
        }
    }

    #[test]
    fn a_single_element_is_a_link_beside_what_takes_it() {
        let instructions = || vec![op(Op::Exp, &[0]), op(Op::Add, &[2, 1])];
        let whole: (&[i32], Dtype) = (&[3, 20], Dtype::F32);
        let one: (&[i32], Dtype) = (&[], Dtype::F32);
        let given = types(&[one, whole, one, whole]);
        assert_eq!(ends_of(instructions(), &[3], &given), [1, 1]);
        assert_eq!(ends_of(instructions(), &[3, 2], &given), [0, 1]);
    }

    #[test]
    fn few_elements_are_chained_through_reshapes_and_broadcasts() {
        // 3 = 0 + 1 {2}, 4 = 3 as {2, 1}, 5 = 4 · 2 {2, 3}
        let reshape = Op::Reshape { shape: vec![2, 1] };
        let instructions = || {
            vec![
                op(Op::Add, &[0, 1]),
                op(reshape.clone(), &[3]),
                op(Op::Multiply, &[4, 2]),
            ]
        };
        let chained = |n: i32, outputs: &[u32]| {
            let column: (&[i32], Dtype) = (&[n], Dtype::F32);
            let one: (&[i32], Dtype) = (&[], Dtype::F32);
            let (reshaped, whole) = ([n, 1], [n, 3]);
            let (reshaped, whole) = ((&reshaped[..], Dtype::F32), (&whole[..], Dtype::F32));
            let types = types(&[column, one, whole, column, reshaped, whole]);
            let block = Block::new(3, instructions(), outputs.to_vec()).expect("well-formed");
            let target = Target::of_test(crate::base::Device::Cpu);
            let scope = Scope::of_test(&target, &types, "chains");
            Chains.run(Code::of(&block), &scope).expect("chained")
        };
        let code = chained(2, &[5]);
        assert_eq!(names(&code), ["chain"]);
        assert_eq!(code.nodes[0].inputs[..], [Some(0), Some(1), Some(2)]);
        // Many elements are computed once, and a value that is an output in its own shape.
        assert_eq!(names(&chained(1000, &[5])), ["add", "reshape", "multiply"]);
        assert_eq!(names(&chained(2, &[5, 3])), ["add", "chain"]);
    }

    #[test]
    fn values_keep_their_numbers() {
        let instructions = vec![
            op(Op::Exp, &[0]),
            op(Op::Degrees, &[1]),
            op(Op::Exp, &[2]),
            op(Op::Multiply, &[3, 0]),
        ];
        let block = Block::new(1, instructions, vec![4, 1]).expect("well-formed");
        let whole: (&[i32], Dtype) = (&[], Dtype::F32);
        let types = types(&[whole; 5]);
        let target = Target::of_test(crate::base::Device::Cpu);
        let scope = Scope::of_test(&target, &types, "chains");
        let chained = Chains.run(Code::of(&block), &scope).expect("chained");
        assert_eq!(chained.outputs, [4, 1]);
        assert_eq!(chained.nodes.len(), 3);
        assert_eq!(chained.nodes[2].inputs[..], [Some(2), Some(0)]);
        assert_eq!(chained.nodes[2].outputs[..], [4]);
        let Work::Segment(segment) = &chained.nodes[2].work else {
            panic!("no chain")
        };
        assert_eq!((segment.name(), segment.operations()), ("chain", 2));
        let shapes = vec![None; 4];
        let links = linked(
            &Code::of(&block),
            &[2, 3],
            &[false; 4],
            &shapes,
            None,
            &types,
        );
        let Work::Segment(segment) = links.work else {
            panic!("no chain")
        };
        let (function, pair) = (cpu::Function::Exp, cpu::Pair::Multiply);
        let link = |action, operands: &[Operand]| {
            Link::new(action, cpu::Type::F32, cpu::Type::F32, operands)
        };
        let links = [
            link(cpu::Action::Unary(function), &[Operand::Input(0)]),
            link(
                cpu::Action::Binary(pair),
                &[Operand::Link(0), Operand::Input(1)],
            ),
        ];
        assert_eq!(
            format!("{segment:?}")
                .matches(&format!("{links:?}"))
                .count(),
            1
        );
    }

    #[test]
    fn chains_are_for_cuda_too() {
        let instructions = vec![op(Op::Exp, &[0]), op(Op::Multiply, &[1, 0])];
        let block = Block::new(1, instructions, vec![2]).expect("well-formed");
        let whole: (&[i32], Dtype) = (&[3, 20], Dtype::Bf16);
        let types = types(&[whole; 3]);
        let chained = |target: &Target| {
            let scope = Scope::of_test(target, &types, "chains");
            names(&Chains.run(Code::of(&block), &scope).expect("chained"))
        };
        let gpu = Target::of_test(crate::base::Device::Gpu);
        assert_eq!(Chains.is_off(&gpu), None);
        assert_eq!(chained(&gpu), ["chain"]);
        let fused = Target {
            fuse: true,
            ..gpu.clone()
        };
        assert!(Chains.is_off(&fused).is_some());
        // Nor where nothing compiles them.
        let bare = Target {
            generated: Err("no compiler"),
            ..gpu
        };
        assert_eq!(Chains.is_off(&bare), Some("no compiler"));
    }
}
