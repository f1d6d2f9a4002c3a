//! Which operations are merged, and which stay, on programs of a model's layer.

use super::*;
use crate::base::{Device, Dtype};
use crate::op::{AttentionLayout, MaskMode, QuantMode};
use crate::program::plan::{Notes, Target};
use crate::program::types::Types;
use crate::program::{Block, Input, Inputs, Instruction, Options, Program, Step};

/// A program that is being written.
struct Writer {
    inputs: Vec<Input>,
    instructions: Vec<Instruction>,
    known: u32,
}

impl Writer {
    fn new(inputs: &[&[i32]], dtype: Dtype) -> Writer {
        let inputs = inputs.iter().enumerate().map(|(i, shape)| Input {
            name: i.to_string(),
            shape: shape.to_vec(),
            dtype,
        });
        let inputs: Vec<Input> = inputs.collect();
        Writer {
            known: inputs.len() as u32,
            inputs,
            instructions: Vec::new(),
        }
    }

    fn op(&mut self, op: Op, inputs: &[u32]) -> u32 {
        self.optional(op, &inputs.iter().copied().map(Some).collect::<Vec<_>>())
    }

    fn optional(&mut self, op: Op, inputs: &[Option<u32>]) -> u32 {
        let instruction = Instruction::new(Step::Op(op), inputs.iter().copied(), 1, None);
        self.instructions.push(instruction);
        self.known += 1;
        self.known - 1
    }

    fn silu(&mut self, x: u32) -> u32 {
        let sigmoid = self.op(Op::Sigmoid, &[x]);
        self.op(Op::Multiply, &[x, sigmoid])
    }

    /// The merged code, and what the pass said.
    fn merged(self, outputs: &[u32]) -> (Code, Vec<String>) {
        crate::mlx::init();
        let block = Block::new(self.inputs.len(), self.instructions, outputs.to_vec());
        let inputs = Inputs::Named(self.inputs);
        let program = Program::new(
            inputs,
            vec![],
            block.expect("well-formed"),
            None,
            Options::default(),
        );
        let program = program.expect("a program");
        let stream = Device::Cpu.stream().expect("a stream");
        let types = Types::of(&program, Device::Cpu, stream).expect("fits");
        let types = types.expect("has types");
        let (target, notes) = (Target::of_test(Device::Gpu), Notes::on());
        let scope = Scope {
            target: &target,
            types: Some(&types),
            pass: "merge",
            place: String::new(),
            notes: &notes,
        };
        let mut code = Merge.run(Code::of(&program.body), &scope).expect("merged");
        code.settle().expect("well-formed");
        let notes = notes.into_vec().into_iter().map(|note| note.text);
        (code, notes.collect())
    }

    fn names(self, outputs: &[u32]) -> Vec<String> {
        self.merged(outputs)
            .0
            .nodes
            .iter()
            .map(Node::name)
            .collect()
    }
}

fn norm() -> Op {
    Op::RmsNorm { eps: 1e-6 }
}

fn reshape(shape: &[i32]) -> Op {
    Op::Reshape {
        shape: shape.to_vec(),
    }
}

#[test]
fn a_feed_forward_layer_is_two_products() {
    // x, the norm's weight, gate, up, down
    let shapes: [&[i32]; 5] = [&[1, 1, 8], &[8], &[8, 16], &[8, 16], &[16, 8]];
    let mut w = Writer::new(&shapes, Dtype::Bf16);
    let normed = w.op(norm(), &[0, 1]);
    let rows = w.op(reshape(&[1, 8]), &[normed]);
    let (gate, up) = (w.op(Op::Matmul, &[rows, 2]), w.op(Op::Matmul, &[rows, 3]));
    let silu = w.silu(gate);
    let product = w.op(Op::Multiply, &[silu, up]);
    let down = w.op(Op::Matmul, &[product, 4]);
    let down = w.op(reshape(&[1, 1, 8]), &[down]);
    let sum = w.op(Op::Add, &[0, down]);
    let (code, notes) = w.merged(&[sum]);
    assert_eq!(
        notes,
        [
            "instruction 6: products, 2 of one input, gated, with the norm before",
            "instruction 9: products, 1 of one input, with the sum after"
        ]
    );
    assert_eq!(code.nodes.len(), 2);
    // The norm takes x as it was before it was reshaped.
    let inputs = [Some(0), Some(1), None, Some(2), Some(3)];
    assert_eq!(code.nodes[0].inputs[..], inputs);
    assert_eq!(code.nodes[1].outputs[..], [sum]);
}

#[test]
fn products_of_one_input_go_together_by_three() {
    let shapes: [&[i32]; 5] = [&[2, 8], &[8, 4], &[8, 6], &[8, 8], &[8, 2]];
    let mut w = Writer::new(&shapes, Dtype::F32);
    let outputs: Vec<u32> = (1..5)
        .map(|matrix| w.op(Op::Matmul, &[0, matrix]))
        .collect();
    let (code, _) = w.merged(&outputs);
    let counts: Vec<usize> = code.nodes.iter().map(|node| node.outputs.len()).collect();
    assert_eq!(counts, [3, 1]);
    // A matrix that is made of the first product is not there before it.
    let mut w = Writer::new(&[&[1, 8], &[8, 8]], Dtype::F32);
    let first = w.op(Op::Matmul, &[0, 1]);
    let matrix = w.op(Op::Multiply, &[1, first]);
    let second = w.op(Op::Matmul, &[0, matrix]);
    assert_eq!(w.names(&[first, second]), ["matmul", "multiply", "matmul"]);
}

#[test]
fn what_something_else_uses_is_not_merged_away() {
    let shapes: [&[i32]; 3] = [&[1, 8], &[8, 16], &[8, 16]];
    let mut w = Writer::new(&shapes, Dtype::F32);
    let (gate, up) = (w.op(Op::Matmul, &[0, 1]), w.op(Op::Matmul, &[0, 2]));
    let silu = w.silu(gate);
    let product = w.op(Op::Multiply, &[silu, up]);
    // The gate's product is an output, too.
    let names = w.names(&[gate, product]);
    assert_eq!(names, ["products", "sigmoid", "multiply", "multiply"]);
}

#[test]
fn products_that_stay_have_a_reason() {
    let reason = |shapes: [&[i32]; 2], dtype| {
        let mut w = Writer::new(&shapes, dtype);
        let product = w.op(Op::Matmul, &[0, 1]);
        w.merged(&[product]).1.join(" ")
    };
    assert_eq!(
        reason([&[65, 8], &[8, 16]], Dtype::F32),
        "instruction 0: matmul: 65 rows are more than 64"
    );
    let batched = reason([&[2, 1, 8], &[2, 8, 16]], Dtype::F32);
    assert!(batched.contains("more axes"), "{batched}");
    let wide = reason([&[1, 8], &[8, 16]], Dtype::F64);
    assert!(wide.contains("is of f64"), "{wide}");
}

#[test]
fn quantized_products_go_together_if_they_are_packed_alike() {
    let merged = |bits: i32| {
        let words = 64 * bits / 32;
        let mut w = Writer::new(&[&[1, 64]], Dtype::F32);
        let mut matrices = Vec::new();
        for (shape, dtype) in [
            ([16, words], Dtype::U32),
            ([16, 2], Dtype::F32),
            ([16, 2], Dtype::F32),
        ] {
            w.inputs.push(Input {
                name: w.known.to_string(),
                shape: shape.to_vec(),
                dtype,
            });
            matrices.push(w.known);
            w.known += 1;
        }
        let op = || Op::QuantizedMatmul {
            transpose: true,
            group_size: Some(32),
            bits: Some(bits),
            mode: QuantMode::Affine,
        };
        let inputs = [0, matrices[0], matrices[1], matrices[2]];
        let outputs = [w.op(op(), &inputs), w.op(op(), &inputs)];
        w.names(&outputs)
    };
    assert_eq!(merged(4), ["quantized_products"]);
    assert_eq!(merged(8), ["quantized_products"]);
    assert_eq!(merged(2), ["quantized_matmul", "quantized_matmul"]);
}

/// Queries, keys and values of one position: normed, turned, and keys and values repeated. Two rows.
fn heads(offsets: &[i32]) -> Vec<String> {
    // x, w of q, k and v, the norm's weight, offsets, frequencies
    let shapes: [&[i32]; 7] = [&[2, 8], &[8, 64], &[8, 32], &[8, 32], &[16], offsets, &[8]];
    let mut w = Writer::new(&shapes, Dtype::F32);
    w.inputs[5].dtype = Dtype::S32;
    let turned = |w: &mut Writer, matrix: u32, heads: i32, repeat: i32| {
        let product = w.op(Op::Matmul, &[0, matrix]);
        let split = w.op(reshape(&[2, 1, heads, 16]), &[product]);
        let normed = w.op(norm(), &[split, 4]);
        let by_head = w.op(reshape(&[2, heads, 1, 16]), &[normed]);
        let rope = Op::Rope {
            dims: 16,
            traditional: false,
            base: None,
            scale: 1.0,
        };
        let turned = w.optional(rope, &[Some(by_head), Some(5), Some(6)]);
        repeated(w, turned, heads, repeat)
    };
    fn repeated(w: &mut Writer, value: u32, heads: i32, repeat: i32) -> u32 {
        if repeat == 1 {
            return w.op(reshape(&[2, 1, heads, 16]), &[value]);
        }
        let wide = w.op(reshape(&[2, 1, heads, 1, 16]), &[value]);
        let shape = vec![2, 1, heads, repeat, 16];
        let wide = w.op(Op::BroadcastTo { shape }, &[wide]);
        w.op(reshape(&[2, 1, heads * repeat, 16]), &[wide])
    }
    let q = turned(&mut w, 1, 4, 1);
    let k = turned(&mut w, 2, 2, 2);
    let v = w.op(Op::Matmul, &[0, 3]);
    let v = w.op(reshape(&[2, 1, 2, 16]), &[v]);
    let v = repeated(&mut w, v, 2, 2);
    w.names(&[q, k, v])
}

#[test]
fn norms_rotation_and_repetition_of_heads_are_one() {
    assert_eq!(heads(&[2]), ["products", "rope_heads"]);
    // One position for all rows is none for each.
    let names = heads(&[1]);
    assert!(!names.contains(&"rope_heads".to_string()), "{names:?}");
}

fn attention(queries: i32, mask: Option<Dtype>) -> Vec<String> {
    let (q, k): ([i32; 4], [i32; 4]) = ([2, queries, 4, 16], [2, 9, 4, 16]);
    let mut w = Writer::new(&[&q, &k, &k], Dtype::F32);
    if let Some(dtype) = mask {
        w.inputs.push(Input {
            name: "mask".into(),
            shape: vec![2, 1, 1, 9],
            dtype,
        });
        w.known += 1;
    }
    let op = Op::ScaledDotProductAttention {
        scale: 0.25,
        mask: mask.map_or(MaskMode::None, |_| MaskMode::Array),
        layout: Some(AttentionLayout::Bshd),
    };
    let output = w.optional(op, &[Some(0), Some(1), Some(2), mask.map(|_| 3), None]);
    let output = w.op(reshape(&[2, queries, 64]), &[output]);
    w.names(&[output])
}

#[test]
fn attention_of_one_position_reads_the_cache_as_it_lies() {
    assert_eq!(attention(1, None), ["cache_attention"]);
    assert_eq!(attention(1, Some(Dtype::Bool)), ["cache_attention"]);
    for (queries, mask) in [(2, None), (1, Some(Dtype::F32))] {
        let names = attention(queries, mask);
        assert!(
            names.contains(&"scaled_dot_product_attention".to_string()),
            "{names:?}"
        );
    }
}
