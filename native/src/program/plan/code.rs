//! Code: what runs in place of a block. Values keep the numbers that they have in the block, so that what is known of
//! the block's values, such as their types, is known of the code's too. Not every number has a value: an operation that
//! is merged with others leaves none.

use crate::base::{Error, Result, Signature};
use crate::op::Op;
use crate::program::engine::{LoopPlan, Segment};
use crate::program::ir::{place, Block, Instruction, Step};
use smallvec::SmallVec;
use std::sync::Arc;

/// Nodes over numbered values: first the inputs, then what the nodes give.
#[derive(Clone, Debug, Default)]
pub struct Code {
    pub inputs: usize,
    /// The numbers, of those without a value too.
    pub values: usize,
    pub nodes: Vec<Node>,
    pub outputs: Vec<u32>,
}

/// What runs as one.
#[derive(Clone, Debug)]
pub struct Node {
    pub work: Work,
    pub inputs: SmallVec<[Option<u32>; 4]>,
    pub outputs: SmallVec<[u32; 2]>,
    /// Where it comes from, for people.
    pub label: Option<String>,
    /// Its instruction in the block, or the first of several.
    pub at: usize,
    /// The values that nothing after it needs; known once the plan is complete.
    pub spent: SmallVec<[u32; 4]>,
}

#[derive(Clone, Debug)]
pub enum Work {
    /// MLX, node by node.
    Op(Op),
    /// Several operations, by an engine.
    Segment(Arc<dyn Segment>),
    If {
        then: Arc<Code>,
        otherwise: Arc<Code>,
    },
    While {
        condition: Arc<Code>,
        body: Arc<Code>,
        plan: Arc<LoopPlan>,
    },
    Call {
        id: u64,
        outputs: Vec<Signature>,
    },
}

impl Node {
    pub fn name(&self) -> String {
        match &self.work {
            Work::Op(op) => op.name().into(),
            Work::Segment(segment) => segment.name().into(),
            Work::If { .. } => "if".into(),
            Work::While { .. } => "while".into(),
            Work::Call { id, .. } => format!("call {id}"),
        }
    }

    /// Where and what it is, for errors. Segments whose errors say it themselves give nothing.
    pub fn place(&self) -> String {
        let label = self.label.as_deref();
        match &self.work {
            Work::Segment(segment) => segment.place(self.at),
            _ => place(self.at, &self.name(), label),
        }
    }

    pub fn op(&self) -> Option<&Op> {
        match &self.work {
            Work::Op(op) => Some(op),
            _ => None,
        }
    }

    /// Whether it may do more than give values: it asks the calling process.
    pub fn has_effect(&self) -> bool {
        match &self.work {
            Work::Op(_) | Work::Segment(_) => false,
            Work::Call { .. } => true,
            Work::If { then, otherwise } => then.has_effect() || otherwise.has_effect(),
            Work::While {
                condition, body, ..
            } => condition.has_effect() || body.has_effect(),
        }
    }
}

impl Code {
    /// The code that does what a block says, one node an instruction.
    pub fn of(block: &Block) -> Code {
        let mut next = block.inputs as u32;
        let nodes = block
            .instructions
            .iter()
            .enumerate()
            .map(|(at, instruction)| {
                let first = next;
                next += instruction.outputs as u32;
                Node::of(instruction, at, first..next)
            });
        Code {
            inputs: block.inputs,
            nodes: nodes.collect(),
            values: block.known(),
            outputs: block.outputs.clone(),
        }
    }

    /// Whether it may do more than give values.
    pub fn has_effect(&self) -> bool {
        self.nodes.iter().any(Node::has_effect)
    }

    /// Whether it has operations alone, and segments of them.
    pub fn is_plain(&self) -> bool {
        let is_plain = |node: &Node| matches!(node.work, Work::Op(_) | Work::Segment(_));
        self.nodes.iter().all(is_plain)
    }

    /// The code with the operations of segments that mean the same node by node in their places.
    pub fn expanded(self) -> Code {
        let mut values = self.values as u32;
        let mut nodes = Vec::with_capacity(self.nodes.len());
        for node in self.nodes {
            let inside = match &node.work {
                Work::Segment(segment) => segment.inside(),
                _ => None,
            };
            let Some(inside) = inside else {
                nodes.push(node);
                continue;
            };
            // What the segment gives has its numbers here; all else gets new ones.
            let mut numbers: Vec<Option<u32>> = vec![None; inside.values];
            for (number, input) in numbers.iter_mut().zip(&node.inputs) {
                *number = *input;
            }
            for (value, output) in inside.outputs.iter().zip(&node.outputs) {
                numbers[*value as usize].get_or_insert(*output);
            }
            let mut number = |value: u32| {
                *numbers[value as usize].get_or_insert_with(|| {
                    values += 1;
                    values - 1
                })
            };
            for own in &inside.nodes {
                nodes.push(Node {
                    inputs: own.inputs.iter().map(|v| v.map(&mut number)).collect(),
                    outputs: own.outputs.iter().map(|v| number(*v)).collect(),
                    ..own.clone()
                });
            }
        }
        Code {
            values: values as usize,
            nodes,
            ..self
        }
    }

    /// For each value the place of the last node that takes it; outputs are taken at the end.
    pub fn last_uses(&self) -> Vec<usize> {
        let mut last_use = vec![0; self.values];
        for (i, node) in self.nodes.iter().enumerate() {
            for value in node.outputs.iter().chain(node.inputs.iter().flatten()) {
                last_use[*value as usize] = i;
            }
        }
        for value in &self.outputs {
            last_use[*value as usize] = self.nodes.len();
        }
        last_use
    }

    /// Leaves out what no output needs.
    pub fn retain_needed(&mut self) {
        let mut is_needed = vec![false; self.values];
        for value in &self.outputs {
            is_needed[*value as usize] = true;
        }
        let mut nodes: Vec<Node> = std::mem::take(&mut self.nodes);
        nodes.reverse();
        nodes.retain(|node| {
            let mut outputs = node.outputs.iter();
            let is_kept = node.has_effect() || outputs.any(|value| is_needed[*value as usize]);
            if is_kept {
                for value in node.inputs.iter().flatten() {
                    is_needed[*value as usize] = true;
                }
            }
            is_kept
        });
        nodes.reverse();
        self.nodes = nodes;
    }

    /// Finds after which node each value is spent, here and in the blocks inside, and checks that what a node takes is
    /// there.
    pub fn settle(&mut self) -> Result<()> {
        let mut is_known = vec![false; self.values];
        is_known[..self.inputs].fill(true);
        for node in &mut self.nodes {
            for value in node.inputs.iter().flatten() {
                if !is_known.get(*value as usize).copied().unwrap_or(false) {
                    let error = Error::invalid(format!("takes value {value} before it is there"));
                    return Err(error.within(&node.place()));
                }
            }
            for value in &node.outputs {
                is_known[*value as usize] = true;
            }
            for code in node.work.blocks_mut() {
                Arc::make_mut(code).settle()?;
            }
        }
        let last_use = self.last_uses();
        for node in &mut self.nodes {
            node.spent.clear();
        }
        let count = self.nodes.len();
        for (value, last) in last_use.iter().enumerate() {
            if is_known[value] && *last < count {
                self.nodes[*last].spent.push(value as u32);
            }
        }
        Ok(())
    }
}

impl Node {
    fn of(instruction: &Instruction, at: usize, outputs: std::ops::Range<u32>) -> Node {
        let code = |block: &Arc<Block>| Arc::new(Code::of(block));
        let work = match &instruction.step {
            Step::Op(op) => Work::Op(op.clone()),
            Step::If { then, otherwise } => Work::If {
                then: code(then),
                otherwise: code(otherwise),
            },
            Step::While { condition, body } => Work::While {
                condition: code(condition),
                body: code(body),
                plan: Arc::default(),
            },
            Step::Call { id, outputs } => Work::Call {
                id: *id,
                outputs: outputs.clone(),
            },
        };
        Node {
            work,
            inputs: instruction.inputs.clone(),
            outputs: outputs.collect(),
            label: instruction.label.clone(),
            at,
            spent: SmallVec::new(),
        }
    }
}

impl Work {
    /// The code inside, in the order of the program's blocks.
    pub fn blocks(&self) -> SmallVec<[&Arc<Code>; 2]> {
        match self {
            Work::Op(_) | Work::Segment(_) | Work::Call { .. } => SmallVec::new(),
            Work::If { then, otherwise } => SmallVec::from_slice(&[then, otherwise]),
            Work::While {
                condition, body, ..
            } => SmallVec::from_slice(&[condition, body]),
        }
    }

    pub fn blocks_mut(&mut self) -> SmallVec<[&mut Arc<Code>; 2]> {
        match self {
            Work::Op(_) | Work::Segment(_) | Work::Call { .. } => SmallVec::new(),
            Work::If { then, otherwise } => SmallVec::from_buf([then, otherwise]),
            Work::While {
                condition, body, ..
            } => SmallVec::from_buf([condition, body]),
        }
    }

    /// What the blocks inside are called.
    pub fn block_names(&self) -> [&'static str; 2] {
        match self {
            Work::While { .. } => ["condition", "body"],
            _ => ["then", "else"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Device;
    use crate::mlx::Stream;
    use crate::op::Applied;
    use crate::program::engine::Given;

    fn op(op: Op, inputs: &[u32]) -> Instruction {
        Instruction::new(Step::Op(op), inputs.iter().copied().map(Some), 1, None)
    }

    fn code(inputs: usize, instructions: Vec<Instruction>, outputs: Vec<u32>) -> Code {
        Code::of(&Block::new(inputs, instructions, outputs).expect("well-formed"))
    }

    #[test]
    fn values_are_spent_after_their_last_use() {
        let instructions = vec![
            op(Op::Add, &[0, 1]),
            op(Op::Multiply, &[2, 0]),
            op(Op::Abs, &[3]),
        ];
        let mut code = code(2, instructions, vec![4, 2]);
        code.settle().expect("well-formed");
        let spent: Vec<&[u32]> = code.nodes.iter().map(|node| &node.spent[..]).collect();
        assert_eq!(spent, [&[1][..], &[0], &[3]]);
        // Without the product nothing needs value 3, and what takes it is refused.
        code.nodes.remove(1);
        let error = code.settle().expect_err("refused").to_string();
        assert!(error.contains("takes value 3"), "{error}");
    }

    /// A segment whose operations mean the same node by node.
    #[derive(Debug)]
    struct Together(Code);

    impl Segment for Together {
        fn name(&self) -> &'static str {
            "together"
        }
        fn place(&self, _: usize) -> String {
            String::new()
        }
        fn operations(&self) -> usize {
            self.0.nodes.len()
        }
        fn build(&self, _: &Given, _: Device, _: &Stream) -> Result<Applied> {
            unreachable!("is not run")
        }
        fn inside(&self) -> Option<&Code> {
            Some(&self.0)
        }
    }

    #[test]
    fn operations_of_a_segment_take_its_place() {
        // cos(a - b) and a - b of a segment whose inputs are exchanged.
        let inner = code(
            2,
            vec![op(Op::Subtract, &[1, 0]), op(Op::Cos, &[2])],
            vec![3, 2],
        );
        let mut outer = code(2, vec![op(Op::Abs, &[0]), op(Op::Add, &[2, 1])], vec![3]);
        outer.nodes[1].work = Work::Segment(Arc::new(Together(inner)));
        outer.nodes[1].outputs = SmallVec::from_slice(&[3, 4]);
        outer.values = 5;
        outer.outputs = vec![4, 3];
        let mut expanded = outer.expanded();
        expanded.settle().expect("well-formed");
        let names: Vec<String> = expanded.nodes.iter().map(Node::name).collect();
        assert_eq!(names, ["abs", "subtract", "cos"]);
        assert_eq!(expanded.nodes[1].inputs[..], [Some(1), Some(2)]);
        assert_eq!(expanded.nodes[1].outputs[..], [4]);
        assert_eq!(expanded.nodes[2].inputs[..], [Some(4)]);
        assert_eq!(expanded.outputs, [4, 3]);
    }

    #[test]
    fn what_no_output_needs_is_left_out() {
        let call = Step::Call {
            id: 0,
            outputs: vec![(vec![], crate::base::Dtype::F32)],
        };
        let instructions = vec![
            op(Op::Abs, &[0]),
            op(Op::Exp, &[1]),
            Instruction::new(call, [Some(0)], 1, None),
            op(Op::Square, &[0]),
        ];
        let mut code = code(1, instructions, vec![4]);
        code.retain_needed();
        let names: Vec<String> = code.nodes.iter().map(Node::name).collect();
        assert_eq!(names, ["call 0", "square"]);
        assert_eq!(code.nodes[1].outputs[..], [4]);
    }
}
