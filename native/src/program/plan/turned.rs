//! A product whose rows and columns are exchanged is the product of its exchanged operands the other way round. That
//! lies in rows, and kernels for products take operands as they lie. So gradients lie as the weights do that they
//! change. For the CPU: MLX's products on GPUs are as they are.

use super::{Code, Node, Pass, Scope, Target, Work};
use crate::base::Result;
use crate::op::Op;
use crate::program::engine::turned::TurnedProduct;
use crate::program::types::Types;
use std::sync::Arc;

pub struct Turned;

impl Pass for Turned {
    fn name(&self) -> &'static str {
        "turned"
    }

    fn is_off(&self, target: &Target) -> Option<&'static str> {
        target.lacks_kernels()
    }

    fn needs_types(&self, _: &Target) -> bool {
        true
    }

    fn run(&self, code: Code, scope: &Scope) -> Result<Code> {
        scope.rewritten(code, |code, types| turned(code, types, scope))
    }
}

fn turned(mut code: Code, types: &Types, scope: &Scope) -> Code {
    let mut uses = vec![0; code.values];
    let taken = code.nodes.iter().flat_map(|node| node.inputs.iter());
    for value in taken.flatten().chain(&code.outputs) {
        uses[*value as usize] += 1;
    }
    let mut maker = vec![None; code.values];
    let mut is_left = vec![false; code.nodes.len()];
    for i in 0..code.nodes.len() {
        let node = &code.nodes[i];
        let product = match node.inputs[..] {
            [Some(value)] if exchanges(node, value, types) && uses[value as usize] == 1 => {
                maker[value as usize]
            }
            _ => None,
        };
        for value in &node.outputs {
            maker[*value as usize] = Some(i);
        }
        let Some(product) = product.filter(|product| is_product(&code.nodes[*product], types))
        else {
            continue;
        };
        scope.took(|| format!("instruction {}: matmul, transpose", node.at));
        let inputs = code.nodes[product].inputs.iter().rev().copied().collect();
        code.nodes[i].inputs = inputs;
        code.nodes[i].work = Work::Segment(Arc::new(TurnedProduct));
        is_left[product] = true;
    }
    let mut is_left = is_left.into_iter();
    code.nodes.retain(|_| is_left.next() != Some(true));
    code
}

/// Whether a node exchanges the last two axes of a value, and no others.
fn exchanges(node: &Node, value: u32, types: &Types) -> bool {
    let rank = types.values[value as usize].0.len() as i32;
    let axis = |axis: i32| if axis < 0 { axis + rank } else { axis };
    match node.op() {
        Some(Op::Transpose { axes }) if rank >= 2 => {
            let wanted = (0..rank - 2).chain([rank - 1, rank - 2]);
            match axes.is_empty() {
                true => rank == 2,
                false => axes.iter().map(|own| axis(*own)).eq(wanted),
            }
        }
        Some(Op::Swapaxes { axis1, axis2 }) if rank >= 2 => {
            let axes = [axis(*axis1), axis(*axis2)];
            axes == [rank - 1, rank - 2] || axes == [rank - 2, rank - 1]
        }
        _ => false,
    }
}

/// Whether a node is a product of matrices.
fn is_product(node: &Node, types: &Types) -> bool {
    let is_matrix =
        |value: &Option<u32>| value.is_some_and(|value| types.values[value as usize].0.len() >= 2);
    matches!(node.op(), Some(Op::Matmul)) && node.inputs.iter().all(is_matrix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Device, Dtype, Signature};
    use crate::program::{Block, Instruction, Step};

    fn names(transposition: Op, outputs: &[u32], shapes: [&[i32]; 4]) -> Vec<String> {
        let op = |op: Op, inputs: &[u32]| {
            Instruction::new(Step::Op(op), inputs.iter().copied().map(Some), 1, None)
        };
        let instructions = vec![op(Op::Matmul, &[0, 1]), op(transposition, &[2])];
        let block = Block::new(2, instructions, outputs.to_vec()).expect("well-formed");
        let values = shapes.map(|shape| -> Signature { (shape.to_vec(), Dtype::F32) });
        let types = Types {
            values: values.to_vec(),
            inside: (0..2).map(|_| Vec::new()).collect(),
        };
        let target = Target::of_test(Device::Cpu);
        let scope = Scope::of_test(&target, &types, "turned");
        let mut code = Turned.run(Code::of(&block), &scope).expect("turned");
        code.settle().expect("well-formed");
        if code.nodes.len() == 1 {
            assert_eq!(code.nodes[0].inputs[..], [Some(1), Some(0)]);
        }
        code.nodes.iter().map(Node::name).collect()
    }

    #[test]
    fn an_exchanged_product_is_one_of_exchanged_operands() {
        let transpose = |axes: &[i32]| Op::Transpose {
            axes: axes.to_vec(),
        };
        let swap = |axis1, axis2| Op::Swapaxes { axis1, axis2 };
        let matrices: [&[i32]; 4] = [&[2, 3], &[3, 4], &[2, 4], &[4, 2]];
        for op in [transpose(&[1, 0]), transpose(&[]), swap(-1, 0)] {
            assert_eq!(names(op, &[3], matrices), ["turned matmul"]);
        }
        let stacks: [&[i32]; 4] = [&[5, 2, 3], &[5, 3, 4], &[5, 2, 4], &[5, 4, 2]];
        for op in [transpose(&[0, 2, 1]), swap(1, 2)] {
            assert_eq!(names(op, &[3], stacks), ["turned matmul"]);
        }
    }

    #[test]
    fn a_product_that_is_needed_as_it_is_stays() {
        let transpose = |axes: &[i32]| Op::Transpose {
            axes: axes.to_vec(),
        };
        let matrices: [&[i32]; 4] = [&[2, 3], &[3, 4], &[2, 4], &[4, 2]];
        let left = ["matmul", "transpose"];
        assert_eq!(names(transpose(&[1, 0]), &[3, 2], matrices), left);
        assert_eq!(names(transpose(&[0, 1]), &[3], matrices), left);
        let stacks: [&[i32]; 4] = [&[5, 2, 3], &[5, 3, 4], &[5, 2, 4], &[4, 2, 5]];
        assert_eq!(names(transpose(&[2, 1, 0]), &[3], stacks), left);
        let vectors: [&[i32]; 4] = [&[6, 2, 3], &[3], &[6, 2], &[2, 6]];
        assert_eq!(names(transpose(&[1, 0]), &[3], vectors), left);
    }
}
