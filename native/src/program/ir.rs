//! What a program is made of, as it is written and saved: operations, branches, loops and calls over numbered values.

use crate::base::{Error, Result, Signature};
use crate::op::Op;
use smallvec::SmallVec;
use std::sync::Arc;

/// Most values a program may have, over all its blocks: what is allocated for a program follows its counts.
pub const MAX_VALUES: usize = 1 << 20;
/// How deep blocks may stand in one another.
pub const MAX_DEPTH: usize = 32;

/// What an instruction does.
#[derive(Clone, Debug)]
pub enum Step {
    Op(Op),
    /// Inputs: predicate, then what both branches take.
    If {
        then: Arc<Block>,
        otherwise: Arc<Block>,
    },
    /// Inputs: initial state (as many as there are outputs), then captured values. Both blocks take the state and the
    /// captured values; the condition gives one scalar, the body the new state.
    While {
        condition: Arc<Block>,
        body: Arc<Block>,
    },
    /// Asks the calling process, which gives arrays of these shapes and types.
    Call {
        id: u64,
        outputs: Vec<Signature>,
    },
}

impl Step {
    /// The Elixir name, for errors.
    pub fn name(&self) -> String {
        match self {
            Step::Op(op) => op.name().into(),
            Step::If { .. } => "if".into(),
            Step::While { .. } => "while".into(),
            Step::Call { id, .. } => format!("call {id}"),
        }
    }
}

/// One step on values by number; the outputs take the next free numbers.
#[derive(Debug)]
pub struct Instruction {
    pub step: Step,
    pub inputs: SmallVec<[Option<u32>; 4]>,
    pub outputs: usize,
    /// Where it comes from, for people.
    pub label: Option<String>,
    /// The values that nothing after it needs.
    pub(super) spent: Vec<u32>,
}

impl Instruction {
    pub fn new(
        step: Step,
        inputs: impl IntoIterator<Item = Option<u32>>,
        outputs: usize,
        label: Option<String>,
    ) -> Instruction {
        Instruction {
            step,
            inputs: inputs.into_iter().collect(),
            outputs,
            label,
            spent: Vec::new(),
        }
    }

    pub(super) fn is_op(&self) -> bool {
        matches!(self.step, Step::Op(_))
    }

    /// Where and what it is, for errors.
    pub(super) fn place(&self, at: usize) -> String {
        place(at, &self.step.name(), self.label.as_deref())
    }
}

/// `instruction 3, tensordot [dot]`.
pub(super) fn place(at: usize, name: &str, label: Option<&str>) -> String {
    match label {
        Some(label) => format!("instruction {at}, {name} [{label}]"),
        None => format!("instruction {at}, {name}"),
    }
}

/// Values are numbered: first the inputs, then every instruction's outputs in order.
#[derive(Debug)]
pub struct Block {
    pub inputs: usize,
    pub instructions: Vec<Instruction>,
    pub outputs: Vec<u32>,
}

impl Block {
    /// Checks the numbers, and finds out after which instruction each value is spent. Blocks inside are already
    /// checked.
    pub fn new(
        inputs: usize,
        mut instructions: Vec<Instruction>,
        outputs: Vec<u32>,
    ) -> Result<Block> {
        check_count(inputs)?;
        let mut known = inputs;
        let mut last_use = vec![0usize; inputs];
        for (i, instruction) in instructions.iter().enumerate() {
            let title = instruction.step.name();
            for value in instruction.inputs.iter().flatten() {
                let value = *value as usize;
                if value >= known {
                    return Err(Error::invalid(format!(
                        "instruction {i} ({title}) takes value {value}, but only {known} are known there"
                    )));
                }
                last_use[value] = i;
            }
            check_step(instruction)
                .map_err(|error| error.within(&format!("instruction {i}, {title}")))?;
            check_count(instruction.outputs)?;
            known += instruction.outputs;
            check_count(known)?;
            last_use.resize(known, i);
        }
        if let Some(value) = outputs.iter().find(|value| **value as usize >= known) {
            return Err(Error::invalid(format!(
                "output {value} is not one of the {known} values"
            )));
        }
        let mut is_output = vec![false; known];
        outputs
            .iter()
            .for_each(|value| is_output[*value as usize] = true);
        for (value, last) in last_use.iter().enumerate() {
            if !is_output[value] && *last < instructions.len() {
                instructions[*last].spent.push(value as u32);
            }
        }
        Ok(Block {
            inputs,
            instructions,
            outputs,
        })
    }

    /// The values by number.
    pub(super) fn known(&self) -> usize {
        let outputs = self
            .instructions
            .iter()
            .map(|instruction| instruction.outputs);
        self.inputs + outputs.sum::<usize>()
    }

    /// The values, those of blocks inside included.
    pub(super) fn values(&self) -> usize {
        let outputs = self.instructions.iter().map(|instruction| {
            let inside: usize = instruction.blocks().map(|block| block.values()).sum();
            instruction.outputs + inside
        });
        self.inputs + outputs.sum::<usize>()
    }

    pub(super) fn visit(&self, seen: &mut impl FnMut(&Instruction)) {
        for instruction in &self.instructions {
            seen(instruction);
            for block in instruction.blocks() {
                block.visit(seen);
            }
        }
    }
}

impl Instruction {
    pub(super) fn blocks(&self) -> impl Iterator<Item = &Arc<Block>> {
        let blocks: SmallVec<[&Arc<Block>; 2]> = match &self.step {
            Step::Op(_) | Step::Call { .. } => SmallVec::new(),
            Step::If { then, otherwise } => SmallVec::from_slice(&[then, otherwise]),
            Step::While { condition, body } => SmallVec::from_slice(&[condition, body]),
        };
        blocks.into_iter()
    }
}

pub(super) fn check_count(values: usize) -> Result<()> {
    if values <= MAX_VALUES {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{values} values are more than the {MAX_VALUES} that a program may have"
    )))
}

/// That the numbers of inputs and outputs are those of the blocks inside.
fn check_step(instruction: &Instruction) -> Result<()> {
    let (inputs, outputs) = (instruction.inputs.len(), instruction.outputs);
    let takes = |what: &str, block: &Block, inputs: usize, outputs: usize| {
        if block.inputs == inputs && block.outputs.len() == outputs {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the {what} block takes {} values and gives {}; it is to take {inputs} and give {outputs}",
            block.inputs,
            block.outputs.len()
        )))
    };
    if !instruction.is_op() && instruction.inputs.contains(&None) {
        return Err(Error::invalid("an input is nil"));
    }
    match &instruction.step {
        Step::Op(_) => Ok(()),
        Step::If { then, otherwise } => {
            if inputs == 0 {
                return Err(Error::invalid("has no predicate"));
            }
            takes("then", then, inputs - 1, outputs)?;
            takes("else", otherwise, inputs - 1, outputs)
        }
        Step::While { condition, body } => {
            if inputs < outputs {
                return Err(Error::invalid(format!(
                    "a state of {outputs} values needs as many inputs, got {inputs}"
                )));
            }
            takes("condition", condition, inputs, 1)?;
            takes("body", body, inputs, outputs)
        }
        Step::Call { outputs: given, .. } => {
            if given.len() == outputs {
                return Ok(());
            }
            Err(Error::invalid(format!(
                "has {outputs} outputs, and shapes for {}",
                given.len()
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(step: Step, inputs: &[u32], outputs: usize) -> Instruction {
        Instruction::new(step, inputs.iter().copied().map(Some), outputs, None)
    }

    fn refused(inputs: usize, instructions: Vec<Instruction>, outputs: Vec<u32>) -> String {
        let block = Block::new(inputs, instructions, outputs);
        block.expect_err("refused").to_string()
    }

    fn identity(count: u32) -> Arc<Block> {
        let outputs = (0..count).collect();
        Arc::new(Block::new(count as usize, Vec::new(), outputs).expect("well-formed"))
    }

    #[test]
    fn values_are_given_up_after_their_last_use() {
        let instructions = vec![
            instruction(Step::Op(Op::Add), &[0, 1], 1),
            instruction(Step::Op(Op::Multiply), &[2, 0], 1),
            instruction(Step::Op(Op::Abs), &[3], 1),
        ];
        let block = Block::new(2, instructions, vec![4, 2]).expect("well-formed");
        // Value 2 is an output, value 4 too; 1 goes after the first instruction, 0 after the second.
        let spent: Vec<&[u32]> = block.instructions.iter().map(|i| &i.spent[..]).collect();
        assert_eq!(spent, [&[1][..], &[0], &[3]]);
    }

    #[test]
    fn a_value_that_nothing_uses_is_given_up_at_once() {
        let instructions = vec![
            instruction(Step::Op(Op::Divmod), &[0, 0], 2),
            instruction(Step::Op(Op::Abs), &[2], 1),
        ];
        let block = Block::new(2, instructions, vec![4]).expect("well-formed");
        let spent: Vec<&[u32]> = block.instructions.iter().map(|i| &i.spent[..]).collect();
        assert_eq!(spent, [&[0, 1, 3][..], &[2]]);
    }

    #[test]
    fn values_from_the_future_are_refused() {
        let abs = || vec![instruction(Step::Op(Op::Abs), &[1], 1)];
        assert!(refused(1, abs(), vec![1]).contains("takes value 1"));
        assert!(refused(2, abs(), vec![3]).contains("output 3"));
    }

    #[test]
    fn counts_are_bounded() {
        assert!(refused(usize::MAX, vec![], vec![]).contains("more than"));
        let many = |outputs| vec![instruction(Step::Op(Op::Abs), &[0], outputs)];
        assert!(refused(1, many(usize::MAX), vec![]).contains("more than"));
        assert!(refused(1, many(MAX_VALUES), vec![]).contains("more than"));
        assert!(Block::new(1, many(MAX_VALUES - 1), vec![]).is_ok());
    }

    #[test]
    fn branches_take_and_give_what_their_instruction_says() {
        let branches = |inputs: &[u32], outputs| {
            let step = Step::If {
                then: identity(2),
                otherwise: identity(2),
            };
            vec![instruction(step, inputs, outputs)]
        };
        assert!(Block::new(3, branches(&[0, 1, 2], 2), vec![4]).is_ok());
        assert!(refused(3, branches(&[0, 1], 2), vec![]).contains("the then block takes 2"));
        assert!(refused(3, branches(&[0, 1, 2], 1), vec![]).contains("the then block takes 2"));
        assert!(refused(3, branches(&[], 2), vec![]).contains("no predicate"));
    }

    #[test]
    fn loops_take_and_give_their_state() {
        let loops = |condition, body, inputs: &[u32], outputs| {
            vec![instruction(
                Step::While { condition, body },
                inputs,
                outputs,
            )]
        };
        let first = || Arc::new(Block::new(2, vec![], vec![0]).expect("well-formed"));
        assert!(Block::new(2, loops(first(), first(), &[0, 1], 1), vec![2]).is_ok());
        let error = refused(2, loops(identity(2), first(), &[0, 1], 1), vec![]);
        assert!(error.contains("the condition block"), "{error}");
        let error = refused(2, loops(first(), identity(2), &[0, 1], 1), vec![]);
        assert!(error.contains("the body block"), "{error}");
        let error = refused(2, loops(first(), identity(2), &[0], 2), vec![]);
        assert!(error.contains("a state of 2"), "{error}");
    }
}
