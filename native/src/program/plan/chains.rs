//! Operations on elements, one after another, become one kernel of our own for the CPU: a link goes into the chain that
//! alone takes what it gives.

use super::{Code, Node, Pass, Scope, Target, Work};
use crate::base::{Dtype, Result};
use crate::cpu::{self, Link, Links, Operand, MAX_LINKS};
use crate::op;
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
        match target {
            Target { kernels: false, .. } => Some("its kernels are the CPU's, on Linux"),
            Target { fuse: true, .. } => Some("fuse: true has MLX compile them"),
            _ => None,
        }
    }

    fn needs_types(&self, _: &Target) -> bool {
        true
    }

    fn run(&self, code: Code, scope: &Scope) -> Result<Code> {
        match scope.types {
            Some(types) => Ok(chained(code, types, scope)),
            None => Ok(code),
        }
    }
}

/// Chains of two links and more stand in the place of their last link.
fn chained(code: Code, types: &Types, scope: &Scope) -> Code {
    let ends = ends(&code, types);
    let mut links = vec![Vec::new(); ends.len()];
    for (i, end) in ends.iter().enumerate() {
        links[*end].push(i);
    }
    let mut nodes = Vec::with_capacity(code.nodes.len());
    for (i, node) in code.nodes.iter().enumerate() {
        match links[i].len() {
            0 => {}
            1 => nodes.push(node.clone()),
            _ => {
                scope.took(|| {
                    let names = links[i].iter().map(|link| code.nodes[*link].name());
                    let names = names.collect::<Vec<_>>().join(", ");
                    format!("instruction {}: {names}", node.at)
                });
                nodes.push(linked(&code, &links[i], types));
            }
        }
    }
    Code { nodes, ..code }
}

fn first_output(node: &Node) -> Option<usize> {
    node.outputs.first().map(|value| *value as usize)
}

/// For each node the one that its chain ends with.
fn ends(code: &Code, types: &Types) -> Vec<usize> {
    #[derive(Clone, Copy, PartialEq)]
    enum Taken {
        Never,
        By(usize),
        BySeveral,
    }
    let mut taken = vec![Taken::Never; code.values];
    for value in &code.outputs {
        taken[*value as usize] = Taken::BySeveral;
    }
    let mut ends: Vec<usize> = (0..code.nodes.len()).collect();
    let mut lengths: Vec<usize> = code
        .nodes
        .iter()
        .map(|node| links(node, types).map_or(0, |links| links.len()))
        .collect();
    let own = lengths.clone();
    for (i, node) in code.nodes.iter().enumerate().rev() {
        let first = first_output(node);
        match first.map(|first| taken[first]) {
            Some(Taken::By(end)) if own[i] > 0 && own[end] > 0 => {
                let shape = |value: Option<usize>| value.map(|value| &types.values[value].0);
                let is_same = shape(first) == shape(first_output(&code.nodes[end]));
                if is_same && lengths[end] + own[i] <= MAX_LINKS {
                    ends[i] = end;
                    lengths[end] += own[i];
                }
            }
            _ => {}
        }
        for value in node.inputs.iter().flatten() {
            let taken = &mut taken[*value as usize];
            *taken = match *taken {
                Taken::Never => Taken::By(ends[i]),
                Taken::By(end) if end == ends[i] => Taken::By(end),
                _ => Taken::BySeveral,
            };
        }
    }
    ends
}

/// The links of a node that a kernel of ours computes from operands that go into its result's shape.
fn links(node: &Node, types: &Types) -> Option<Links> {
    let op = node.op()?;
    let (shape, dtype) = &types.values[first_output(node)?];
    let of = |value: &Option<u32>| value.map(|value| &types.values[value as usize]);
    let given: SmallVec<[Option<Dtype>; 3]> = node
        .inputs
        .iter()
        .map(|value| of(value).map(|signature| signature.1))
        .collect();
    let mut operands = node.inputs.iter().filter_map(of);
    let fits = operands.all(|operand| cpu::goes_into(&operand.0, shape));
    let links = op::links(op, &given).filter(|_| fits)?;
    let is_of_its_type = links.last()?.to == cpu::type_of(*dtype)?;
    is_of_its_type.then_some(links)
}

/// The chain of these nodes, and the values that it takes from elsewhere.
fn linked(code: &Code, numbers: &[usize], types: &Types) -> Node {
    let mut inputs: SmallVec<[Option<u32>; 4]> = SmallVec::new();
    let mut chain = Links::new();
    // The link that has a node's value.
    let mut made: SmallVec<[(u32, u8); 8]> = SmallVec::new();
    for number in numbers {
        let node = &code.nodes[*number];
        let first = chain.len() as u8;
        for link in links(node, types).unwrap_or_default() {
            let operand = |operand: &Operand| match *operand {
                Operand::Link(link) => Operand::Link(first + link),
                Operand::Input(input) => {
                    let value = node.inputs[input as usize];
                    match made.iter().find(|(of, _)| Some(*of) == value) {
                        Some((_, link)) => Operand::Link(*link),
                        None => {
                            let known = inputs.iter().position(|input| *input == value);
                            if known.is_none() {
                                inputs.push(value);
                            }
                            Operand::Input(known.unwrap_or(inputs.len() - 1) as u8)
                        }
                    }
                }
            };
            let operands: SmallVec<[Operand; 3]> = link.operands().iter().map(operand).collect();
            chain.push(Link::new(link.action, link.from, link.to, &operands));
        }
        let last = (chain.len() as u8).saturating_sub(1);
        made.extend(node.outputs.first().map(|value| (*value, last)));
    }
    let last = &code.nodes[numbers[numbers.len() - 1]];
    let signature = types.values[last.outputs[0] as usize].clone();
    Node {
        work: Work::Segment(Arc::new(Chain {
            links: chain,
            signature,
        })),
        inputs,
        ..last.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Dtype, Signature};
    use crate::op::Op;
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
        ends(&Code::of(&block), given)
    }

    #[test]
    fn a_link_goes_where_alone_it_is_needed() {
        // 0, 1 | 2 = 0 + 1, 3 = exp 2, 4 = 3 · 2 | 5 = sign 4 | 6 = |4|, 7 = 6 + 5
        let instructions = || {
            vec![
                op(Op::Add, &[0, 1]),
                op(Op::Exp, &[2]),
                op(Op::Multiply, &[3, 2]),
                op(Op::Sign, &[4]),
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
        let given = types(&[row, row, row, row, whole, whole, whole, whole]);
        assert_eq!(ends_of(instructions(), &[7], &given), [0, 1, 2, 3, 5, 5]);
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

    #[test]
    fn values_keep_their_numbers() {
        let instructions = vec![
            op(Op::Exp, &[0]),
            op(Op::Sign, &[1]),
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
        let links = linked(&Code::of(&block), &[2, 3], &types);
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
}
