//! Operations on elements, one after another, brought into one node for the CPU (native/cpu). Called where a program is
//! made, with the types of its values.

use super::types::Types;
use super::{Block, Instruction, Step};
use crate::cpu::{self, Link, Links, Operand, MAX_LINKS};
use crate::error::{Result, Signature};
use crate::mlx::Stream;
use crate::op::OfElements;
use mlx_rs::Array;
use smallvec::SmallVec;
use std::sync::Arc;

/// Links over an instruction's inputs, and the shape and type of what they give.
#[derive(Debug)]
pub struct Chain {
    links: Links,
    signature: Signature,
}

impl Chain {
    pub fn build(&self, inputs: &[Option<&Array>], stream: &Stream) -> Result<Array> {
        let inputs: SmallVec<[&Array; 6]> = inputs.iter().flatten().copied().collect();
        let (shape, dtype) = &self.signature;
        cpu::chain(self.links.clone(), &inputs, shape, *dtype, stream)
    }
}

/// The same block with chains of two links and more, in blocks inside it too. A chain stands in the place of its last link, and
/// nothing in those of the others, so that values keep their numbers.
pub fn chain(block: &Block, types: &Types) -> Result<Block> {
    let firsts = first_outputs(block);
    let ends = ends(block, types, &firsts);
    let mut links = vec![Vec::new(); ends.len()];
    for (i, end) in ends.iter().enumerate() {
        links[*end].push(i);
    }
    let instructions = block
        .instructions
        .iter()
        .enumerate()
        .map(|(i, instruction)| {
            let label = instruction.label.clone();
            let (step, inputs) = if ends[i] != i {
                (Step::Chained, SmallVec::new())
            } else if links[i].len() > 1 {
                let signature = types.values[firsts[i]].clone();
                linked(block, &links[i], &firsts, signature)
            } else {
                let step = inside(&instruction.step, &types.inside[i])?;
                (step, instruction.inputs.clone())
            };
            Ok(Instruction::new(step, inputs, instruction.outputs, label))
        })
        .collect::<Result<_>>()?;
    Block::new(block.inputs, instructions, block.outputs.clone())
}

/// The step with chains in its blocks.
fn inside(step: &Step, types: &[Types]) -> Result<Step> {
    let chained = |block: &Block, types: &Types| chain(block, types).map(Arc::new);
    Ok(match (step, types) {
        (Step::If { then, otherwise }, [of_then, of_otherwise]) => Step::If {
            then: chained(then, of_then)?,
            otherwise: chained(otherwise, of_otherwise)?,
        },
        (Step::While { condition, body }, [of_condition, of_body]) => Step::While {
            condition: chained(condition, of_condition)?,
            body: chained(body, of_body)?,
        },
        (step, _) => step.clone(),
    })
}

/// The number of each instruction's first output.
fn first_outputs(block: &Block) -> Vec<usize> {
    let mut next = block.inputs;
    let outputs = block.instructions.iter().map(|i| i.outputs);
    outputs
        .map(|outputs| {
            next += outputs;
            next - outputs
        })
        .collect()
}

/// For each instruction the one that its chain ends with: a link goes into the chain that alone takes what it gives.
fn ends(block: &Block, types: &Types, firsts: &[usize]) -> Vec<usize> {
    #[derive(Clone, Copy, PartialEq)]
    enum Taken {
        Never,
        By(usize),
        BySeveral,
    }
    let mut taken = vec![Taken::Never; types.values.len()];
    for value in &block.outputs {
        taken[*value as usize] = Taken::BySeveral;
    }
    let mut ends: Vec<usize> = (0..block.instructions.len()).collect();
    let mut lengths = vec![1; block.instructions.len()];
    let is_link: Vec<bool> = block
        .instructions
        .iter()
        .zip(firsts)
        .map(|(instruction, first)| is_link(instruction, types, *first))
        .collect();
    for (i, instruction) in block.instructions.iter().enumerate().rev() {
        match taken.get(firsts[i]) {
            Some(Taken::By(end)) if is_link[i] && is_link[*end] => {
                let same = types.values[firsts[i]] == types.values[firsts[*end]];
                if same && lengths[*end] < MAX_LINKS {
                    ends[i] = *end;
                    lengths[*end] += 1;
                }
            }
            _ => {}
        }
        for value in instruction.inputs.iter().flatten() {
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

/// Whether a kernel of ours computes the instruction, from numbers of the result's type and single whole numbers.
fn is_link(instruction: &Instruction, types: &Types, first: usize) -> bool {
    let Step::Op(op) = &instruction.step else {
        return false;
    };
    let (shape, dtype) = &types.values[first];
    let operands: SmallVec<[&Signature; 2]> = instruction
        .inputs
        .iter()
        .flatten()
        .map(|value| &types.values[*value as usize])
        .collect();
    let fits = |operand: &&Signature| cpu::goes_into(&operand.0, operand.1, shape, *dtype);
    op.of_elements().is_some()
        && cpu::has_type(*dtype)
        && operands.iter().all(fits)
        && match op.of_elements() {
            Some(OfElements::Unary(_)) => operands[0].1 == *dtype,
            _ => operands.iter().any(|operand| operand.1 == *dtype),
        }
}

/// The links of these instructions, and the values that they take from elsewhere.
fn linked(
    block: &Block,
    numbers: &[usize],
    firsts: &[usize],
    signature: Signature,
) -> (Step, SmallVec<[Option<u32>; 4]>) {
    let mut inputs: SmallVec<[Option<u32>; 4]> = SmallVec::new();
    let mut links = Links::new();
    for number in numbers {
        let mut operands = block.instructions[*number].inputs.iter().map(|value| {
            let made = |value: u32| {
                numbers
                    .iter()
                    .position(|link| firsts[*link] == value as usize)
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
        let of_elements = match &block.instructions[*number].step {
            Step::Op(op) => op.of_elements(),
            _ => None,
        };
        links.extend(match (of_elements, operands.next(), operands.next()) {
            (Some(OfElements::Unary(function)), Some(x), _) => Some(Link::Unary(function, x)),
            (Some(OfElements::Binary(pair)), Some(a), Some(b)) => Some(Link::Binary(pair, a, b)),
            _ => None,
        });
    }
    (Step::Chain(Arc::new(Chain { links, signature })), inputs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::op::Op;

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
        ends(&block, given, &first_outputs(&block))
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
        let chained = chain(&block, &types(&[whole; 5])).expect("chained");
        assert_eq!(chained.outputs, [4, 1]);
        assert!(matches!(chained.instructions[2].step, Step::Chained));
        assert_eq!(chained.instructions[3].inputs[..], [Some(2), Some(0)]);
        let Step::Chain(chain) = &chained.instructions[3].step else {
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
        assert_eq!(chain.links[..], links);
    }
}
