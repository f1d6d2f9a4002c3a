//! Which operations become rows.

use super::*;
use crate::base::{Device, Dtype, Signature};
use crate::program::{Block, Instruction, Step as Of};

fn op(op: Op, inputs: &[u32]) -> Instruction {
    Instruction::new(Of::Op(op), inputs.iter().copied().map(Some), 1, None)
}

fn sum(axes: &[i32], keepdims: bool, value: u32) -> Instruction {
    let axes = Some(axes.to_vec());
    op(Op::Sum { axes, keepdims }, &[value])
}

fn max(axes: &[i32], value: u32) -> Instruction {
    let (axes, keepdims) = (Some(axes.to_vec()), true);
    op(Op::Max { axes, keepdims }, &[value])
}

/// The code of instructions over values of these shapes and types.
fn run(instructions: Vec<Instruction>, outputs: &[u32], values: &[(&[i32], Dtype)]) -> Code {
    let values = values.iter();
    let values: Vec<Signature> = values.map(|(shape, d)| (shape.to_vec(), *d)).collect();
    let inside = values.iter().map(|_| Vec::new()).collect();
    let types = Types { values, inside };
    let inputs = types.values.len() - instructions.len();
    let block = Block::new(inputs, instructions, outputs.to_vec()).expect("well-formed");
    let target = Target::of_test(Device::Gpu);
    let scope = Scope::of_test(&target, &types, "rows");
    let mut code = RowsPass.run(Code::of(&block), &scope).expect("reduced");
    code.settle().expect("well-formed");
    code
}

fn names(code: &Code) -> Vec<String> {
    code.nodes.iter().map(Node::name).collect()
}

fn shown(code: &Code, i: usize) -> String {
    match &code.nodes[i].work {
        Work::Segment(segment) => format!("{segment:?}"),
        _ => panic!("no segment"),
    }
}

const F: Dtype = Dtype::F32;
const WHOLE: (&[i32], Dtype) = (&[300, 40], F);
const COLUMN: (&[i32], Dtype) = (&[300, 1], F);

/// 1 = max 0, 2 = 0 − 1, 3 = exp 2, 4 = Σ 3, 5 = 3 / 4
fn softmax() -> Vec<Instruction> {
    vec![
        max(&[1], 0),
        op(Op::Subtract, &[0, 1]),
        op(Op::Exp, &[2]),
        sum(&[1], true, 3),
        op(Op::Divide, &[3, 4]),
    ]
}

const OF_SOFTMAX: [(&[i32], Dtype); 6] = [WHOLE, COLUMN, WHOLE, WHOLE, COLUMN, WHOLE];

#[test]
fn a_softmax_is_one_kernel() {
    let code = run(softmax(), &[5], &OF_SOFTMAX);
    assert_eq!(names(&code), ["rows"]);
    assert_eq!(code.nodes[0].inputs[..], [Some(0)]);
    assert_eq!(code.nodes[0].outputs[..], [5]);
    // What is needed elsewhere too is another result, of elements or of folds.
    let code = run(softmax(), &[4, 5, 3], &OF_SOFTMAX);
    assert_eq!(names(&code), ["rows"]);
    assert_eq!(code.nodes[0].outputs[..], [3, 4, 5]);
}

#[test]
fn what_stands_before_a_fold_goes_with_it_if_nothing_else_needs_it() {
    // 2 = 0 · 1, 3 = Σ 2
    let square = || vec![op(Op::Multiply, &[0, 1]), sum(&[1], false, 2)];
    let types = [WHOLE, (&[40], F), WHOLE, (&[300], F)];
    assert_eq!(names(&run(square(), &[3], &types)), ["rows"]);
    assert_eq!(names(&run(square(), &[3, 2], &types)), ["multiply", "sum"]);
}

#[test]
fn a_variance_without_axes_of_one_is_one_kernel() {
    // 2 = Σ 0, 3 = 2 / 1, 4 = 3 as {300, 1}, 5 = 0 − 4, 6 = 5², 7 = Σ 6, 8 = 7 / 1, 9 = √8
    let reshape = Op::Reshape {
        shape: vec![300, 1],
    };
    let instructions = vec![
        sum(&[1], false, 0),
        op(Op::Divide, &[2, 1]),
        op(reshape, &[3]),
        op(Op::Subtract, &[0, 4]),
        op(Op::Square, &[5]),
        sum(&[1], false, 6),
        op(Op::Divide, &[7, 1]),
        op(Op::Sqrt, &[8]),
    ];
    let row: (&[i32], Dtype) = (&[300], F);
    let one: (&[i32], Dtype) = (&[], F);
    let types = [WHOLE, one, row, row, COLUMN, WHOLE, WHOLE, row, row, row];
    let code = run(instructions, &[9, 3], &types);
    assert_eq!(names(&code), ["rows"]);
    assert_eq!(code.nodes[0].inputs[..], [Some(0), Some(1)]);
    assert_eq!(code.nodes[0].outputs[..], [3, 9]);
}

#[test]
fn results_beside_other_axes_are_not_mistaken() {
    // {4, 4}: the sums of rows are taken for a row, not for a column.
    let square: (&[i32], Dtype) = (&[4, 4], F);
    let row: (&[i32], Dtype) = (&[4], F);
    let instructions = |axis| vec![sum(&[axis], false, 0), op(Op::Subtract, &[0, 1])];
    let types = [square, row, square];
    assert_eq!(
        names(&run(instructions(1), &[2], &types)),
        ["sum", "subtract"]
    );
    assert_eq!(names(&run(instructions(0), &[2], &types)), ["rows"]);
    // Nor do folds over other axes become one kernel.
    let both = vec![sum(&[1], true, 0), sum(&[0], true, 0)];
    let types = [WHOLE, COLUMN, (&[1, 40], F)];
    assert_eq!(names(&run(both, &[1, 2], &types)), ["sum", "sum"]);
}

#[test]
fn what_depends_on_rows_comes_after_them() {
    // 1 = Σ 0, 2 = sorted 1, 3 = 0 − 1, 4 = 3 + 5: the sorted sums are asked for before the last operation is there.
    let sorted = op(Op::Sort { axis: 0 }, &[1]);
    let instructions = vec![
        sum(&[1], true, 0),
        sorted,
        op(Op::Subtract, &[0, 1]),
        op(Op::Exp, &[3]),
    ];
    let types = [WHOLE, COLUMN, COLUMN, WHOLE, WHOLE];
    let code = run(instructions, &[2, 4], &types);
    assert_eq!(names(&code), ["rows", "sort"]);
    assert_eq!(code.nodes[0].outputs[..], [1, 4]);
    // What goes through another operation and comes back is not part of it.
    let sorted = op(Op::Sort { axis: 0 }, &[1]);
    let instructions = vec![
        sum(&[1], true, 0),
        sorted,
        op(Op::Subtract, &[0, 2]),
        op(Op::Exp, &[3]),
    ];
    let code = run(instructions, &[4], &types);
    assert_eq!(names(&code), ["sum", "sort", "subtract", "exp"]);
}

#[test]
fn calls_keep_their_order() {
    let call = |value| {
        let call = Of::Call {
            id: 0,
            outputs: vec![(vec![], F)],
        };
        Instruction::new(call, [Some(value)], 1, None)
    };
    let instructions = vec![sum(&[1], true, 0), call(1), op(Op::Subtract, &[0, 1])];
    let types = [WHOLE, COLUMN, (&[], F), WHOLE];
    let code = run(instructions, &[3], &types);
    assert_eq!(names(&code), ["sum", "call 0", "subtract"]);
}

#[test]
fn long_folds_to_few_results_take_what_two_launches_have() {
    let long: (&[i32], Dtype) = (&[4, 1 << 22], F);
    let few: (&[i32], Dtype) = (&[4, 1], F);
    let types = [long, few, long, long, few, long];
    let instructions = softmax().into_iter().take(4).collect();
    let code = run(instructions, &[4], &types[..5]);
    // Each reads elements that no cache has any more.
    assert_eq!(names(&code), ["max", "rows"]);
    // 3 = exp 0, 4 = Σ 3, 5 = 4 / 1, 6 = 5 + 2, with a number and with an array.
    let instructions = vec![
        op(Op::Exp, &[0]),
        sum(&[1], true, 3),
        op(Op::Divide, &[4, 1]),
        op(Op::Add, &[5, 2]),
    ];
    let types = [long, (&[], F), few, long, few, few, few];
    let code = run(instructions, &[6], &types);
    assert_eq!(names(&code), ["rows", "add"]);
    assert!(shown(&code, 0).contains("operations: 3"));
}

#[test]
fn rows_are_for_cuda_alone() {
    let cpu = Target::of_test(Device::Cpu);
    assert!(RowsPass.is_off(&cpu).is_some());
    let gpu = Target::of_test(Device::Gpu);
    assert_eq!(RowsPass.is_off(&gpu), None);
    let bare = Target {
        generated: Err("no compiler"),
        ..gpu.clone()
    };
    assert_eq!(RowsPass.is_off(&bare), Some("no compiler"));
    let fused = Target { fuse: true, ..gpu };
    assert!(RowsPass.is_off(&fused).is_some());
    // Types that the GPU does not have stay as they are, and what is empty.
    let of = |dtype, shape: &'static [i32]| {
        let types = [(shape, dtype), (shape, dtype), (&[3, 1][..], dtype)];
        let instructions = vec![op(Op::Square, &[0]), sum(&[1], true, 1)];
        names(&run(instructions, &[2], &types))
    };
    assert_eq!(of(Dtype::F32, &[3, 4]), ["rows"]);
    assert_eq!(of(Dtype::S32, &[3, 4]), ["rows"]);
    assert_eq!(of(Dtype::F64, &[3, 4]), ["square", "sum"]);
    assert_eq!(of(Dtype::C64, &[3, 4]), ["square", "sum"]);
    assert_eq!(of(Dtype::F32, &[3, 0]), ["square", "sum"]);
}
