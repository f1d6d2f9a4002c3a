//! Chains that do not depend on one another run as one, at the last one's place: an optimizer has one for each
//! parameter. Threads then share the work of all, and a bias costs no node of its own. Large chains stay alone, so that
//! what they take is in the caches still.

use super::{Code, Node, Pass, Scope, Target, Work};
use crate::base::Result;
use crate::program::engine::chains::{Chains, Member};
use crate::program::engine::Segment;
use crate::program::types::Types;
use smallvec::SmallVec;
use std::sync::Arc;

pub struct Together;

/// Elements of a chain from which it stays alone, and of all chains that are one.
const MAX_ELEMENTS: usize = 1 << 17;
const MAX_TOGETHER: usize = 1 << 20;
/// Chains that are one, at most.
const MAX_MEMBERS: usize = 64;
/// Elements up to which operations on computed arrays are computed where they are built (ADR 49).
const ON_THE_SPOT: usize = 4096;

impl Pass for Together {
    fn name(&self) -> &'static str {
        "together"
    }

    fn is_off(&self, target: &Target) -> Option<&'static str> {
        target.lacks_kernels()
    }

    fn needs_types(&self, _: &Target) -> bool {
        true
    }

    fn run(&self, code: Code, scope: &Scope) -> Result<Code> {
        scope.rewritten(code, |code, types| together(code, types, scope))
    }
}

/// Chains that are to be one.
struct Group {
    /// The places of its nodes, the last one first.
    members: Vec<usize>,
    elements: usize,
}

fn together(mut code: Code, types: &Types, scope: &Scope) -> Code {
    let groups = groups(&code, types);
    if groups.is_empty() {
        return code;
    }
    let mut joined: Vec<Option<Node>> = code.nodes.iter().map(|_| None).collect();
    let mut is_member = vec![false; code.nodes.len()];
    for group in groups {
        let members: Vec<usize> = group.members.iter().rev().copied().collect();
        let last = group.members[0];
        scope.took(|| {
            let places = members.iter().map(|i| code.nodes[*i].at.to_string());
            let places = places.collect::<Vec<_>>().join(", ");
            format!("instructions {places}: chains")
        });
        members.iter().for_each(|i| is_member[*i] = true);
        joined[last] = Some(joint(&code, &members, last));
    }
    let nodes = std::mem::take(&mut code.nodes);
    for (i, node) in nodes.into_iter().enumerate() {
        match joined[i].take() {
            Some(joint) => code.nodes.push(joint),
            None if is_member[i] => {}
            None => code.nodes.push(node),
        }
    }
    code
}

/// The groups of two chains and more.
fn groups(code: &Code, types: &Types) -> Vec<Group> {
    let small = |value: u32| elements(types, value) <= ON_THE_SPOT;
    // Values that may be computed where they are built, which others may then be, too.
    let mut is_early = vec![false; code.values];
    for (value, is_early) in is_early.iter_mut().enumerate().take(code.inputs) {
        *is_early = small(value as u32);
    }
    let mut first_use = vec![usize::MAX; code.values];
    for (i, node) in code.nodes.iter().enumerate() {
        let is_plain = matches!(node.work, Work::Op(_) | Work::Segment(_));
        let mut inputs = node.inputs.iter().flatten();
        let is_known = is_plain && inputs.all(|value| is_early[*value as usize]);
        for value in &node.outputs {
            is_early[*value as usize] = is_known && small(*value);
        }
        for value in node.inputs.iter().flatten() {
            let first = &mut first_use[*value as usize];
            *first = (*first).min(i);
        }
    }
    let mut groups: Vec<Group> = Vec::new();
    for (i, node) in code.nodes.iter().enumerate().rev() {
        let is_chain = chain(node).is_some_and(|segment| {
            segment
                .as_chain()
                .is_some_and(|chain| !chain.is_joined && chain.links.len() > 1)
        });
        let elements: usize = match node.outputs.first() {
            Some(value) => elements(types, *value),
            None => 0,
        };
        let is_early = node.outputs.iter().any(|value| is_early[*value as usize]);
        if !is_chain || is_early || elements == 0 || elements > MAX_ELEMENTS {
            continue;
        }
        let taken = node.outputs.iter().map(|value| first_use[*value as usize]);
        let taken = taken.min().unwrap_or(usize::MAX);
        // The nearest place that is not too late.
        let group = groups.iter_mut().rev().find(|group| {
            group.members[0] < taken
                && group.members.len() < MAX_MEMBERS
                && group.elements + elements <= MAX_TOGETHER
        });
        match group {
            Some(group) => {
                group.members.push(i);
                group.elements += elements;
            }
            None => groups.push(Group {
                members: vec![i],
                elements,
            }),
        }
    }
    groups.retain(|group| group.members.len() > 1);
    groups
}

fn elements(types: &Types, value: u32) -> usize {
    let shape = &types.values[value as usize].0;
    shape.iter().map(|size| *size as usize).product()
}

fn chain(node: &Node) -> Option<&Arc<dyn Segment>> {
    match &node.work {
        Work::Segment(segment) if segment.as_chain().is_some() => Some(segment),
        _ => None,
    }
}

/// One node for chains, in the place of the last.
fn joint(code: &Code, members: &[usize], last: usize) -> Node {
    let mut inputs: SmallVec<[Option<u32>; 4]> = SmallVec::new();
    let mut outputs: SmallVec<[u32; 2]> = SmallVec::new();
    let mut all = Vec::with_capacity(members.len());
    for node in members.iter().map(|i| &code.nodes[*i]) {
        let Some(segment) = chain(node) else { continue };
        let places = node.inputs.iter().map(|value| {
            let known = inputs.iter().position(|own| own == value);
            known.unwrap_or_else(|| {
                inputs.push(*value);
                inputs.len() - 1
            })
        });
        all.push(Member {
            segment: segment.clone(),
            inputs: places.collect(),
        });
        outputs.extend(node.outputs.iter().copied());
    }
    Node {
        work: Work::Segment(Arc::new(Chains { members: all })),
        inputs,
        outputs,
        ..code.nodes[last].clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Device, Dtype, Signature};
    use crate::op::Op;
    use crate::program::plan::chains::Chains as ChainsPass;
    use crate::program::{Block, Instruction, Step};

    fn op(op: Op, inputs: &[u32]) -> Instruction {
        Instruction::new(Step::Op(op), inputs.iter().copied().map(Some), 1, None)
    }

    fn run(instructions: Vec<Instruction>, outputs: &[u32], shapes: &[&[i32]]) -> Code {
        let values = shapes.iter();
        let values: Vec<Signature> = values.map(|shape| (shape.to_vec(), Dtype::F32)).collect();
        let inputs = values.len() - instructions.len();
        let types = Types {
            inside: instructions.iter().map(|_| Vec::new()).collect(),
            values,
        };
        let block = Block::new(inputs, instructions, outputs.to_vec()).expect("well-formed");
        let target = Target::of_test(Device::Cpu);
        let scope = Scope::of_test(&target, &types, "together");
        let code = ChainsPass.run(Code::of(&block), &scope).expect("chained");
        let mut code = Together.run(code, &scope).expect("together");
        code.settle().expect("well-formed");
        code
    }

    fn names(code: &Code) -> Vec<String> {
        code.nodes.iter().map(Node::name).collect()
    }

    /// A chain of each input: the square of its exponential.
    fn two_chains() -> Vec<Instruction> {
        vec![
            op(Op::Exp, &[0]),
            op(Op::Multiply, &[2, 2]),
            op(Op::Exp, &[1]),
            op(Op::Multiply, &[4, 4]),
        ]
    }

    const LONG: &[i32] = &[100, 100];
    const WIDE: &[i32] = &[3, 5000];

    #[test]
    fn chains_of_several_shapes_are_one() {
        let shapes = [LONG, WIDE, LONG, LONG, WIDE, WIDE];
        let code = run(two_chains(), &[3, 5], &shapes);
        assert_eq!(names(&code), ["chains"]);
        assert_eq!(code.nodes[0].inputs[..], [Some(0), Some(1)]);
        assert_eq!(code.nodes[0].outputs[..], [3, 5]);
    }

    #[test]
    fn what_is_needed_before_the_last_stays() {
        // The second chain takes what a sort makes of the first.
        let mut instructions = two_chains();
        instructions.insert(2, op(Op::Sort { axis: 1 }, &[3]));
        instructions[3] = op(Op::Exp, &[4]);
        instructions[4] = op(Op::Multiply, &[5, 1]);
        let code = run(instructions, &[6], &[LONG; 7]);
        assert_eq!(names(&code), ["chain", "sort", "chain"]);
    }

    #[test]
    fn large_chains_and_those_of_a_few_computed_elements_stay() {
        let large: &[i32] = &[1000, 1000];
        let small: &[i32] = &[10, 10];
        for (shape, other) in [(large, LONG), (small, LONG), (LONG, large)] {
            let shapes = [shape, other, shape, shape, other, other];
            let code = run(two_chains(), &[3, 5], &shapes);
            assert_eq!(names(&code), ["chain", "chain"]);
        }
    }
}
