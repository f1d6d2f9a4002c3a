//! Which operations become one chain.

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
fn a_link_goes_where_it_is_needed() {
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
    // A value that is an output too is another result of the chain.
    assert_eq!(ends_of(instructions(), &[7, 3], &given), [2, 2, 2, 3, 5, 5]);
    // A row goes into the result's shape, but is no link of its chain.
    let row: (&[i32], Dtype) = (&[20], Dtype::F32);
    let long: (&[i32], Dtype) = (&[300, 20], Dtype::F32);
    let given = types(&[row, row, row, row, long, long, long, long]);
    assert_eq!(ends_of(instructions(), &[7], &given), [1, 1, 2, 3, 5, 5]);
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
    // One of the results may be the caller's.
    let code = run(rounds(20, [sorted(40)]), &[42, 41], Dtype::U32);
    assert_eq!(names(&code), ["chain", "sort"]);
    assert_eq!(code.nodes[0].outputs[..], [40, 41]);
    // Something takes the first result before there is the second.
    let last = [
        op(Op::Abs, &[40]),
        sorted(42),
        op(Op::BitwiseXor, &[41, 40]),
        sorted(44),
    ];
    let code = run(rounds(20, last), &[43, 45], Dtype::U32);
    assert_eq!(names(&code), ["chain", "sort", "chain", "sort"]);
    assert!(code.nodes[0].outputs.ends_with(&[40, 42]));
}

#[test]
fn moments_and_a_weight_are_results_of_one_chain() {
    // 3 = 0 · 0, 4 = 1 + 0, 5 = 2 + 3, 6 = 4 / 5, and all but 3 and 6 are outputs.
    let instructions = || {
        vec![
            op(Op::Multiply, &[0, 0]),
            op(Op::Add, &[1, 0]),
            op(Op::Add, &[2, 3]),
            op(Op::Divide, &[4, 5]),
            op(Op::Sort { axis: 0 }, &[6]),
        ]
    };
    let chained = |instructions: Vec<Instruction>, outputs: &[u32]| {
        let types = types(&vec![(&[20][..], Dtype::F32); instructions.len() + 3]);
        let block = Block::new(3, instructions, outputs.to_vec()).expect("well-formed");
        let target = Target::of_test(crate::base::Device::Cpu);
        let scope = Scope::of_test(&target, &types, "chains");
        let mut code = Chains.run(Code::of(&block), &scope).expect("chained");
        code.settle().expect("well-formed");
        code
    };
    let code = chained(instructions(), &[7, 4, 5]);
    assert_eq!(names(&code), ["chain", "sort"]);
    assert_eq!(code.nodes[0].outputs[..], [4, 5, 6]);
    // What is taken as it is before the chain is not a result of it.
    let mut early = instructions();
    early.insert(2, op(Op::Sort { axis: 0 }, &[4]));
    early[3] = op(Op::Add, &[2, 3]);
    early[4] = op(Op::Divide, &[4, 6]);
    early[5] = op(Op::Sort { axis: 0 }, &[7]);
    assert_eq!(
        names(&chained(early, &[8, 5])),
        ["add", "sort", "chain", "sort"]
    );
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
    let link =
        |action, operands: &[Operand]| Link::new(action, cpu::Type::F32, cpu::Type::F32, operands);
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

#[test]
fn a_product_of_one_term_is_a_link() {
    // 3 = 0 · 1, 4 = 3 · 2, 5 = 4 + 2
    let chained = |a: &[i32], b: &[i32], whole: &[i32], turns: bool| {
        let mut instructions = vec![op(Op::Matmul, &[0, 1])];
        let mut values = vec![a, b, whole];
        let product = [whole[1], whole[0]];
        if turns {
            instructions.push(op(Op::Transpose { axes: vec![1, 0] }, &[3]));
            values.push(&product);
        }
        let given = instructions.len() as u32 + 2;
        instructions.push(op(Op::Multiply, &[given, 2]));
        instructions.push(op(Op::Add, &[given + 1, 2]));
        values.extend([whole; 3]);
        let values: Vec<(&[i32], Dtype)> = values.iter().map(|s| (*s, Dtype::F32)).collect();
        let types = types(&values);
        let block = Block::new(3, instructions, vec![given + 2]).expect("well-formed");
        let target = Target::of_test(crate::base::Device::Cpu);
        let scope = Scope::of_test(&target, &types, "turned");
        let mut code = super::super::turned::Turned
            .run(Code::of(&block), &scope)
            .expect("turned");
        code = Chains.run(code, &scope).expect("chained");
        code.settle().expect("well-formed");
        code
    };
    let code = chained(&[30, 1], &[1, 40], &[30, 40], false);
    assert_eq!(names(&code), ["chain"]);
    assert_eq!(code.nodes[0].inputs[..], [Some(0), Some(1), Some(2)]);
    let code = chained(&[30, 1], &[1, 40], &[40, 30], true);
    assert_eq!(names(&code), ["chain"]);
    let Work::Segment(segment) = &code.nodes[0].work else {
        panic!("no chain")
    };
    let chain = segment.as_chain().expect("a chain");
    let shapes = [Some(vec![40, 1]), Some(vec![1, 30]), None];
    assert_eq!(chain.shapes[..], shapes);
    // Of two terms it is a product.
    let code = chained(&[30, 2], &[2, 40], &[30, 40], false);
    assert_eq!(names(&code), ["matmul", "chain"]);
}

#[test]
fn a_sum_over_single_elements_is_a_reshape() {
    // 2 = 0 · 1, 3 = Σ 2, 4 = 3 + 3
    let sum = |axes: Option<Vec<i32>>| Op::Sum {
        axes,
        keepdims: false,
    };
    let chained = |given: &[i32], axes, whole: &[i32]| {
        let instructions = vec![
            op(Op::Multiply, &[0, 1]),
            op(sum(axes), &[2]),
            op(Op::Add, &[3, 3]),
        ];
        let values = [given, given, given, whole, whole].map(|s| (s, Dtype::F32));
        let types = types(&values);
        let block = Block::new(2, instructions, vec![4]).expect("well-formed");
        let target = Target::of_test(crate::base::Device::Cpu);
        let scope = Scope::of_test(&target, &types, "chains");
        Chains.run(Code::of(&block), &scope).expect("chained")
    };
    let code = chained(&[1, 20], Some(vec![0]), &[20]);
    assert_eq!(names(&code), ["chain"]);
    let wanted = |code: &Code| match &code.nodes[0].work {
        Work::Segment(segment) => segment.as_chain().map(|chain| chain.shapes.to_vec()),
        _ => None,
    };
    assert_eq!(wanted(&code), Some(vec![Some(vec![20]); 2]));
    // A single element of a higher rank is reshaped, too.
    let code = chained(&[1, 1], None, &[]);
    assert_eq!(names(&code), ["chain"]);
    assert_eq!(wanted(&code), Some(vec![Some(vec![]); 2]));
    let code = chained(&[2, 20], Some(vec![0]), &[20]);
    assert_eq!(names(&code), ["multiply", "sum", "add"]);
}
