//! Programs: operations over numbered values, with branches, loops and questions to the calling process, replayed on new inputs.
//! An eager call is the program of one operation. [`run`] replays them, [`types`] finds their shapes and
//! types, [`file`] saves and loads them, [`fuse`] has their stretches
//! compiled, [`chain`] brings operations on elements together, [`captured`] has CUDA launch them together, [`count`] counts
//! loops, [`graph`] has CUDA repeat them, [`describe`] shows them.

mod captured;
mod chain;
mod count;
pub mod describe;
pub mod evaluator;
pub mod file;
mod fuse;
mod graph;
pub mod run;
pub mod types;

use crate::cpu;
use crate::device::Device;
use crate::error::{Error, Result, Signature};
use crate::handle::array::{check_size, Handle};
use crate::mlx::{self, Stream};
use crate::op::{self, Applied, Crossed, Op};
use captured::Stretch;
pub use captured::{forget_all, graphs};
use chain::Chain;
pub use count::Whole;
use fuse::Fused;
use mlx_rs::Array;
use rustler::{Resource, ResourceArc};
use smallvec::SmallVec;
use std::sync::{Arc, OnceLock};
use types::Types;

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
    /// Inputs: initial state (as many as there are outputs), then captured values. Both blocks take the state and the captured
    /// values; the condition gives one scalar, the body the new state.
    While {
        condition: Arc<Block>,
        body: Arc<Block>,
    },
    /// Asks the calling process, which gives arrays of these shapes and types.
    Call {
        id: u64,
        outputs: Vec<Signature>,
    },
    /// Operations that MLX compiles together; only in what [`fuse`] makes.
    Fused(Arc<Fused>),
    /// Operations that CUDA launches together; only in what [`captured`] makes.
    Stretch(Arc<Stretch>),
    /// Operations in one node; only in what [`chain`] makes, as is the next.
    Chain(Arc<Chain>),
    /// What a chain further on does. Its value is not there.
    Chained,
}

impl Step {
    /// The Elixir name, for errors.
    pub fn name(&self) -> String {
        match self {
            Step::Op(op) => op.name().into(),
            Step::If { .. } => "if".into(),
            Step::While { .. } => "while".into(),
            Step::Call { id, .. } => format!("call {id}"),
            Step::Fused(_) => "fused".into(),
            Step::Stretch(_) => "captured".into(),
            Step::Chain(_) | Step::Chained => "chain".into(),
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
    /// Its place in the block that it was taken from, where that is another.
    number: Option<usize>,
    /// The values that nothing after it needs.
    spent: Vec<u32>,
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
            number: None,
            spent: Vec::new(),
        }
    }

    /// Takes what an operation gave if it is as many arrays as the instruction says.
    fn check_outputs(&self, outputs: op::Outputs) -> Result<op::Outputs> {
        if outputs.len() == self.outputs {
            return Ok(outputs);
        }
        Err(Error::invalid(format!(
            "has {} outputs, the program says {}",
            outputs.len(),
            self.outputs
        )))
    }

    fn is_op(&self) -> bool {
        matches!(self.step, Step::Op(_))
    }

    /// Where and what it is, for errors.
    fn place(&self, at: usize) -> String {
        match self.step {
            Step::Fused(_) => self.title(),
            // Its errors say where in it.
            Step::Stretch(_) => String::new(),
            _ => format!(
                "instruction {}, {}",
                self.number.unwrap_or(at),
                self.title()
            ),
        }
    }

    /// The name, and the label where there is one.
    fn title(&self) -> String {
        match &self.label {
            Some(label) => format!("{} [{label}]", self.step.name()),
            None => self.step.name(),
        }
    }
}

/// Values are numbered: first the inputs, then every instruction's outputs in order.
#[derive(Debug)]
pub struct Block {
    pub inputs: usize,
    pub instructions: Vec<Instruction>,
    pub outputs: Vec<u32>,
    /// What is run in its place on CUDA, once that was asked for.
    stretched: OnceLock<Option<Arc<Block>>>,
}

impl Block {
    /// Checks the numbers, and finds out after which instruction each value is spent. Blocks inside are already checked.
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
            stretched: OnceLock::new(),
        })
    }

    /// What is run on a device: on CUDA, stretches of operations are launched together.
    fn on(self: &Arc<Block>, device: Device) -> &Arc<Block> {
        if device == Device::Cpu || !captured::is_on() {
            return self;
        }
        let stretched = self.stretched.get_or_init(|| captured::stretched(self));
        stretched.as_ref().unwrap_or(self)
    }

    /// The values by number.
    fn known(&self) -> usize {
        let outputs = self
            .instructions
            .iter()
            .map(|instruction| instruction.outputs);
        self.inputs + outputs.sum::<usize>()
    }

    /// The values, those of blocks inside included.
    fn values(&self) -> usize {
        let outputs = self.instructions.iter().map(|instruction| {
            let inside: usize = instruction.blocks().map(|block| block.values()).sum();
            instruction.outputs + inside
        });
        self.inputs + outputs.sum::<usize>()
    }

    fn visit(&self, seen: &mut impl FnMut(&Instruction)) {
        for instruction in &self.instructions {
            seen(instruction);
            for block in instruction.blocks() {
                block.visit(seen);
            }
        }
    }
}

impl Instruction {
    fn blocks(&self) -> impl Iterator<Item = &Arc<Block>> {
        let blocks: SmallVec<[&Arc<Block>; 2]> = match &self.step {
            Step::Op(_)
            | Step::Call { .. }
            | Step::Fused(_)
            | Step::Stretch(_)
            | Step::Chain(_)
            | Step::Chained => SmallVec::new(),
            Step::If { then, otherwise } => SmallVec::from_slice(&[then, otherwise]),
            Step::While { condition, body } => SmallVec::from_slice(&[condition, body]),
        };
        blocks.into_iter()
    }
}

fn check_count(values: usize) -> Result<()> {
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
        Step::Op(_) | Step::Fused(_) | Step::Stretch(_) | Step::Chain(_) | Step::Chained => Ok(()),
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

/// An input of a program, as every run checks it.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    pub name: String,
    pub shape: Vec<i32>,
    pub dtype: crate::dtype::Dtype,
}

/// What a program takes.
pub enum Inputs {
    /// So many arrays of any shapes and types.
    Any(usize),
    Named(Vec<Input>),
}

impl Inputs {
    pub fn len(&self) -> usize {
        match self {
            Inputs::Any(count) => *count,
            Inputs::Named(inputs) => inputs.len(),
        }
    }
}

/// Shape and type as errors show them: `f32[2][3]`.
pub fn shown((shape, dtype): &Signature) -> String {
    let sizes: String = shape.iter().map(|size| format!("[{size}]")).collect();
    format!("{}{sizes}", dtype.name())
}

/// The top block's inputs are the program's inputs, then its constants.
pub struct Program {
    pub inputs: Inputs,
    pub constants: Vec<ResourceArc<Handle>>,
    pub body: Arc<Block>,
    pub output_names: Option<Vec<String>>,
    /// The body with its stretches compiled, where that is asked for.
    pub fused: Option<Arc<Block>>,
    /// The body with its chains, for the CPU, where types are known.
    chained: Option<Arc<Block>>,
    /// Nothing but operations, as they are: it needs no queue to be replayed.
    pub is_straight: bool,
    pub can_fail_late: bool,
    /// Steps after which a loop submits its next step before it is known that there is one; None is never.
    pub run_ahead: Option<usize>,
    /// The questions it may ask, each once.
    pub calls: Vec<u64>,
    /// Instructions, those of blocks inside included.
    pub size: usize,
}

#[rustler::resource_impl]
impl Resource for Program {}

impl std::panic::RefUnwindSafe for Program {}

impl Program {
    pub fn new(
        inputs: Inputs,
        constants: Vec<ResourceArc<Handle>>,
        body: Block,
        output_names: Option<Vec<String>>,
        fuse: bool,
    ) -> Result<Program> {
        let given = inputs.len() + constants.len();
        if body.inputs != given {
            return Err(Error::invalid(format!(
                "the program has {given} inputs and constants, its instructions count on {}",
                body.inputs
            )));
        }
        if let Inputs::Named(inputs) = &inputs {
            check_names("inputs", inputs.iter().map(|input| &input.name))?;
        }
        if let Some(names) = &output_names {
            if names.len() != body.outputs.len() {
                return Err(Error::invalid(format!(
                    "{} names for {} outputs",
                    names.len(),
                    body.outputs.len()
                )));
            }
            check_names("outputs", names)?;
        }
        check_count(body.values())?;
        let (mut size, mut is_straight, mut can_fail_late) = (0, true, false);
        let mut calls = Vec::new();
        body.visit(&mut |instruction| {
            size += 1;
            is_straight &= instruction.is_op();
            match &instruction.step {
                Step::Op(op) => can_fail_late |= op.can_fail_late(),
                Step::Call { id, .. } => calls.push(*id),
                _ => {}
            }
        });
        calls.sort_unstable();
        calls.dedup();
        let fused = match fuse {
            true => Some(Arc::new(fuse::fuse(&body)?)),
            false => None,
        };
        is_straight &= !fuse;
        let mut program = Program {
            inputs,
            constants,
            body: Arc::new(body),
            output_names,
            fused,
            chained: None,
            is_straight,
            can_fail_late,
            run_ahead: None,
            calls,
            size,
        };
        if cpu::are_there() && !fuse {
            // What does not fit is run as it is, and fails where it does not.
            if let Ok(Some(types)) = Types::of(&program, Device::Cpu, Device::Cpu.stream()?) {
                program.chained = Some(Arc::new(chain::chain(&program.body, &types)?));
            }
        }
        Ok(program)
    }

    pub fn running_ahead(self, run_ahead: Option<usize>) -> Program {
        Program { run_ahead, ..self }
    }

    /// What is replayed on this device.
    pub fn code(&self, device: Device) -> &Arc<Block> {
        let chained = self.chained.as_ref().filter(|_| device == Device::Cpu);
        self.fused.as_ref().or(chained).unwrap_or(&self.body)
    }

    /// Checks the arrays of a run.
    pub fn check_inputs(&self, arrays: &[ResourceArc<Handle>]) -> Result<()> {
        if arrays.len() != self.inputs.len() {
            return Err(Error::invalid(format!(
                "the program takes {} inputs, got {}",
                self.inputs.len(),
                arrays.len()
            )));
        }
        let Inputs::Named(inputs) = &self.inputs else {
            return Ok(());
        };
        for (input, array) in inputs.iter().zip(arrays) {
            let array = array.array();
            if array.shape() != input.shape || mlx::dtype(array) != input.dtype {
                let found = (array.shape().to_vec(), mlx::dtype(array));
                return Err(Error::invalid(format!(
                    "input {:?} is {}, the program takes {}",
                    input.name,
                    shown(&found),
                    shown(&(input.shape.clone(), input.dtype))
                )));
            }
        }
        Ok(())
    }
}

fn check_names<'a>(what: &str, names: impl IntoIterator<Item = &'a String>) -> Result<()> {
    let mut seen = std::collections::HashSet::new();
    match names.into_iter().find(|name| !seen.insert(*name)) {
        Some(name) => Err(Error::invalid(format!("two {what} are named {name:?}"))),
        None => Ok(()),
    }
}

/// Applies one operation and checks what came out.
pub fn build(
    op: &Op,
    inputs: &[Option<&Array>],
    device: Device,
    stream: &Stream,
) -> Result<Applied> {
    device.enter(stream)?;
    let mut applied = op.apply(&op::Inputs(inputs), device, stream)?;
    for output in &mut applied.outputs {
        check_size(output)?;
        // MLX's CUDA kernels end the process on many results without elements, and there is nothing to compute.
        if output.size() == 0 {
            *output = mlx::from_bytes(&[], output.shape(), mlx::dtype(output))?;
        }
    }
    Ok(applied)
}

/// The nodes of a block of operations, `inputs` being its first values, and what crosses between devices; `seen` is told of each
/// operation.
fn nodes(
    block: &Block,
    inputs: Vec<Array>,
    device: Device,
    stream: &Stream,
    mut seen: impl FnMut(&Op, &[Array]),
) -> Result<(Vec<Array>, Crossed)> {
    let mut values = inputs;
    let mut crossed = Crossed::default();
    for (i, instruction) in block.instructions.iter().enumerate() {
        let inputs: Vec<Option<&Array>> = instruction
            .inputs
            .iter()
            .map(|value| value.and_then(|value| values.get(value as usize)))
            .collect();
        let Step::Op(op) = &instruction.step else {
            return Err(Error::invalid("a stretch has operations alone"));
        };
        let outputs = build(op, &inputs, device, stream)
            .and_then(|applied| {
                crossed.append(applied.crossed);
                instruction.check_outputs(applied.outputs)
            })
            .map_err(|error| {
                let error = error.with_inputs(run::frame::signatures(&inputs), Some(device));
                error.within(&instruction.place(i))
            })?;
        seen(op, &outputs);
        values.extend(outputs);
    }
    let outputs = block.outputs.iter();
    let outputs = outputs.map(|value| mlx::share(&values[*value as usize]));
    Ok((outputs.collect::<Result<_>>()?, crossed))
}

/// [`nodes`] where all of them have to be the device's own.
fn nodes_of_device(
    block: &Block,
    inputs: Vec<Array>,
    device: Device,
    stream: &Stream,
) -> Result<Vec<Array>> {
    let (outputs, crossed) = nodes(block, inputs, device, stream, |_, _| {})?;
    match crossed.is_empty() {
        true => Ok(outputs),
        false => Err(Error::invalid(
            "an operation is computed on the CPU, and cannot be compiled or captured with those of the GPU",
        )),
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
    fn values_are_counted_over_all_blocks() {
        let half = MAX_VALUES as u32 / 2;
        let then = || {
            let many = vec![instruction(Step::Op(Op::Abs), &[], half as usize)];
            Arc::new(Block::new(0, many, vec![]).expect("well-formed"))
        };
        let step = Step::If {
            then: then(),
            otherwise: then(),
        };
        let body = Block::new(1, vec![instruction(step, &[0], 0)], vec![]).expect("well-formed");
        let program = Program::new(Inputs::Any(1), vec![], body, None, false);
        let error = program.err().expect("refused").to_string();
        assert!(error.contains("more than"), "{error}");
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

    #[test]
    fn names_are_told_apart() {
        let input = |name: &str| Input {
            name: name.into(),
            shape: vec![],
            dtype: crate::dtype::Dtype::F32,
        };
        let body = || Block::new(2, vec![], vec![0, 1]).expect("well-formed");
        let inputs = Inputs::Named(vec![input("x"), input("x")]);
        let error = Program::new(inputs, vec![], body(), None, false).err();
        assert!(error.expect("refused").to_string().contains("named \"x\""));
        let names = Some(vec!["y".to_string()]);
        let error = Program::new(Inputs::Any(2), vec![], body(), names, false).err();
        assert!(error.expect("refused").to_string().contains("1 names"));
    }
}
