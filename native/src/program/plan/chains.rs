//! Operations on elements, one after another, become one kernel of our own for the CPU: a link goes into the chain that alone takes
//! what it gives.

use super::{Code, Node, Pass, Scope, Target, Work};
use crate::base::{Result, Signature};
use crate::cpu::{self, Function, Link, Links, Operand, Pair, MAX_LINKS};
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
    let mut lengths = vec![1; code.nodes.len()];
    let is_link: Vec<bool> = code.nodes.iter().map(|node| is_link(node, types)).collect();
    for (i, node) in code.nodes.iter().enumerate().rev() {
        let first = first_output(node);
        match first.map(|first| taken[first]) {
            Some(Taken::By(end)) if is_link[i] && is_link[end] => {
                let of = |value: Option<usize>| value.map(|value| &types.values[value]);
                let same = of(first) == of(first_output(&code.nodes[end]));
                if same && lengths[end] < MAX_LINKS {
                    ends[i] = end;
                    lengths[end] += 1;
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

/// What a kernel of ours computes of every element by itself.
enum OfElements {
    Unary(Function),
    Binary(Pair),
}

fn of_elements(node: &Node) -> Option<OfElements> {
    let op = node.op()?;
    match (op.unary(), op.binary()) {
        (Some(op), _) => op.kernel().map(OfElements::Unary),
        (_, Some(op)) => op.kernel().map(OfElements::Binary),
        _ => None,
    }
}

/// Whether a kernel of ours computes the node, from numbers of the result's type and single whole numbers.
fn is_link(node: &Node, types: &Types) -> bool {
    let (Some(of_elements), Some(first)) = (of_elements(node), first_output(node)) else {
        return false;
    };
    let (shape, dtype) = &types.values[first];
    let operands: SmallVec<[&Signature; 2]> = node
        .inputs
        .iter()
        .flatten()
        .map(|value| &types.values[*value as usize])
        .collect();
    let fits = |operand: &&Signature| cpu::goes_into(&operand.0, operand.1, shape, *dtype);
    cpu::has_type(*dtype)
        && operands.iter().all(fits)
        && match of_elements {
            OfElements::Unary(_) => operands.first().is_some_and(|x| x.1 == *dtype),
            OfElements::Binary(_) => operands.iter().any(|operand| operand.1 == *dtype),
        }
}

/// The chain of these nodes, and the values that it takes from elsewhere.
fn linked(code: &Code, numbers: &[usize], types: &Types) -> Node {
    let mut inputs: SmallVec<[Option<u32>; 4]> = SmallVec::new();
    let mut links = Links::new();
    for number in numbers {
        let node = &code.nodes[*number];
        let mut operands = node.inputs.iter().map(|value| {
            let made = |value: u32| {
                let is_first = |link: &usize| code.nodes[*link].outputs.first() == Some(&value);
                numbers.iter().position(is_first)
            };
            match value.and_then(made) {
                Some(link) => Operand::Link(link as u8),
                None => {
                    let known = inputs.iter().position(|input| input == value);
                    if known.is_none() {
                        inputs.push(*value);
                    }
                    Operand::Input(known.unwrap_or(inputs.len() - 1) as u8)
                }
            }
        });
        links.extend(
            match (of_elements(node), operands.next(), operands.next()) {
                (Some(OfElements::Unary(function)), Some(x), _) => Some(Link::Unary(function, x)),
                (Some(OfElements::Binary(pair)), Some(a), Some(b)) => {
                    Some(Link::Binary(pair, a, b))
                }
                _ => None,
            },
        );
    }
    let last = &code.nodes[numbers[numbers.len() - 1]];
    let signature = types.values[last.outputs[0] as usize].clone();
    Node {
        work: Work::Segment(Arc::new(Chain { links, signature })),
        inputs,
        ..last.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Dtype;
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
        // 0, 1 | 2 = 0 + 1, 3 = exp 2, 4 = 3 · 2 | 5 = cos 4 | 6 = |4|, 7 = 6 + 5
        let instructions = || {
            vec![
                op(Op::Add, &[0, 1]),
                op(Op::Exp, &[2]),
                op(Op::Multiply, &[3, 2]),
                op(Op::Cos, &[4]),
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
    fn only_numbers_of_one_type_and_single_whole_ones_go_together() {
        let instructions = || vec![op(Op::Exp, &[0]), op(Op::Add, &[2, 1])];
        let whole: (&[i32], Dtype) = (&[3, 20], Dtype::Bf16);
        let ends = |other| ends_of(instructions(), &[3], &types(&[whole, other, whole, whole]));
        assert_eq!(ends((&[], Dtype::S64)), [1, 1]);
        assert_eq!(ends((&[20], Dtype::Bf16)), [1, 1]);
        assert_eq!(ends((&[20], Dtype::S64)), [0, 1]);
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
            op(Op::Cos, &[1]),
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
        let links = [
            Link::Unary(crate::cpu::Function::Exp, Operand::Input(0)),
            Link::Binary(
                crate::cpu::Pair::Multiply,
                Operand::Link(0),
                Operand::Input(1),
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
