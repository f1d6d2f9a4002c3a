//! A program: its instructions, what it takes and gives, and the plans that run it.

use super::ir::{check_count, Block, Step};
use super::plan::{Plan, Target};
use super::types::Types;
use crate::base::{Device, Error, Result, Signature};
use crate::handle::array::Handle;
use crate::mlx;
use once_cell::sync::OnceCell;
use rustler::{Resource, ResourceArc};
use std::sync::Arc;

/// An input of a program, as every run checks it.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    pub name: String,
    pub shape: Vec<i32>,
    pub dtype: crate::base::Dtype,
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

/// How a program is to be run, as its maker says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Options {
    /// Whether segments are compiled by MLX.
    pub fuse: bool,
    /// Whether operations on few rows are merged; None is on the GPU.
    pub merge: Option<bool>,
    /// Steps after which a loop submits its next step before it is known that there is one; None is never.
    pub run_ahead: Option<usize>,
}

/// The top block's inputs are the program's inputs, then its constants.
pub struct Program {
    pub inputs: Inputs,
    pub constants: Vec<ResourceArc<Handle>>,
    pub body: Arc<Block>,
    pub output_names: Option<Vec<String>>,
    pub options: Options,
    /// Nothing but operations, as they are: it needs no queue to be replayed.
    pub is_straight: bool,
    pub can_fail_late: bool,
    /// The questions it may ask, each once.
    pub calls: Vec<u64>,
    /// Instructions, those of blocks inside included.
    pub size: usize,
    /// What runs on each device, once it was asked for.
    plans: [OnceCell<Result<Arc<Plan>>>; 2],
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
        options: Options,
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
        Ok(Program {
            inputs,
            constants,
            body: Arc::new(body),
            output_names,
            options,
            // MLX keeps what it compiles for each thread.
            is_straight: is_straight && !options.fuse,
            can_fail_late,
            calls,
            size,
            plans: Default::default(),
        })
    }

    /// The plan for a device, which is made the first time.
    pub fn plan(&self, device: Device) -> Result<&Arc<Plan>> {
        let plan = match device {
            Device::Cpu => &self.plans[0],
            Device::Gpu => &self.plans[1],
        };
        let make = || Plan::of(self, &Target::of(device, &self.options)).map(Arc::new);
        plan.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    /// Whether building its nodes, at about a microsecond each, would keep a scheduler for too long. What has a plan for one
    /// device may run on another, whose plan can have a node for each instruction.
    pub fn is_long(&self) -> bool {
        const NODES: usize = 256;
        let plans = self
            .plans
            .iter()
            .filter_map(|plan| plan.get()?.as_ref().ok());
        let nodes = plans.map(|plan| plan.body.nodes.len()).max();
        nodes.unwrap_or(self.size) > NODES || self.size > 4 * NODES
    }

    /// The types of all values. None where the inputs may have any, and where instructions do not fit: a run says so.
    pub(super) fn types(&self) -> Option<Types> {
        // Shapes and types are the same on every device, and the CPU needs no kernels for them.
        let stream = Device::Cpu.stream().ok()?;
        Types::of(self, Device::Cpu, stream).ok().flatten()
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

pub(super) fn check_names<'a>(
    what: &str,
    names: impl IntoIterator<Item = &'a String>,
) -> Result<()> {
    let mut seen = std::collections::HashSet::new();
    match names.into_iter().find(|name| !seen.insert(*name)) {
        Some(name) => Err(Error::invalid(format!("two {what} are named {name:?}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Op;
    use crate::program::ir::{Instruction, MAX_VALUES};

    fn instruction(step: Step, inputs: &[u32], outputs: usize) -> Instruction {
        Instruction::new(step, inputs.iter().copied().map(Some), outputs, None)
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
        let program = Program::new(Inputs::Any(1), vec![], body, None, Options::default());
        let error = program.err().expect("refused").to_string();
        assert!(error.contains("more than"), "{error}");
    }

    #[test]
    fn names_are_told_apart() {
        let input = |name: &str| Input {
            name: name.into(),
            shape: vec![],
            dtype: crate::base::Dtype::F32,
        };
        let body = || Block::new(2, vec![], vec![0, 1]).expect("well-formed");
        let inputs = Inputs::Named(vec![input("x"), input("x")]);
        let error = Program::new(inputs, vec![], body(), None, Options::default()).err();
        assert!(error.expect("refused").to_string().contains("named \"x\""));
        let names = Some(vec!["y".to_string()]);
        let error = Program::new(Inputs::Any(2), vec![], body(), names, Options::default()).err();
        assert!(error.expect("refused").to_string().contains("1 names"));
    }
}
