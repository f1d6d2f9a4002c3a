//! Stretches of operations compiled by MLX into fewer kernels. Called where a program is made with `fuse`; its [`Fused`]
//! instructions are run by queues.

use super::{nodes_of_device, Block, Instruction, Step};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::mlx::{self, Compiled, Stream};
use mlx_rs::Array;
use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::ThreadId;

/// Queues whose compiled form is kept; MLX keeps one for each thread.
const MAX_THREADS: usize = 8;

/// Operations between two instructions of another kind, as a block, and what MLX made of it on each queue's thread.
#[derive(Debug)]
pub struct Fused {
    pub block: Arc<Block>,
    compiled: Mutex<Vec<(ThreadId, Arc<Compiled>)>>,
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("Compiled")
    }
}

impl Fused {
    fn new(block: Block) -> Fused {
        Fused {
            block: Arc::new(block),
            compiled: Mutex::new(Vec::new()),
        }
    }

    /// Builds the stretch's nodes, on a queue's thread. The first time on each thread and for each set of shapes it is traced.
    pub fn build(&self, inputs: &[&Array], device: Device, stream: &Stream) -> Result<Vec<Array>> {
        device.enter(stream)?;
        self.compiled(device, stream)?.call(inputs)
    }

    fn compiled(&self, device: Device, stream: &Stream) -> Result<Arc<Compiled>> {
        let thread = std::thread::current().id();
        let mut all = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, compiled)) = all.iter().find(|(owner, _)| *owner == thread) {
            return Ok(compiled.clone());
        }
        if device == Device::Cpu && !has_compiler() {
            return Err(Error::invalid(
                "fusing on the CPU takes the C++ compiler g++, which does not run here; install it, or make the program with \
                 fuse: false",
            ));
        }
        let (block, stream) = (self.block.clone(), stream.clone());
        let trace = move |inputs: &[Array]| {
            let placeholders = inputs.iter().map(mlx::share).collect::<Result<_>>()?;
            nodes_of_device(&block, placeholders, device, &stream)
        };
        let compiled = Arc::new(mlx::compile(Box::new(trace))?);
        if all.len() >= MAX_THREADS {
            all.remove(0);
        }
        all.push((thread, compiled.clone()));
        Ok(compiled)
    }
}

/// Whether the command that MLX compiles with runs. MLX asks the same once, and does without fusion where it does not.
fn has_compiler() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let mut command = Command::new("g++");
        command.arg("--version");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    })
}

/// The same block with its stretches of two operations and more fused, those of blocks inside included.
pub fn fuse(block: &Block) -> Result<Block> {
    with_stretches(
        block,
        &Stretches {
            pays: &|stretch| stretch.len() >= 2,
            is_part: &Instruction::is_op,
            step: &|block| Step::Fused(Arc::new(Fused::new(block))),
            inside: &|block| fuse(block).map(Arc::new),
        },
    )
}

/// How stretches of operations are brought into one instruction each.
pub struct Stretches<'a> {
    /// Whether these are to be.
    pub pays: &'a dyn Fn(&[Instruction]) -> bool,
    /// Whether an instruction may be in a stretch: an operation.
    pub is_part: &'a dyn Fn(&Instruction) -> bool,
    pub step: &'a dyn Fn(Block) -> Step,
    /// What becomes of a block inside an instruction.
    pub inside: &'a dyn Fn(&Arc<Block>) -> Result<Arc<Block>>,
}

/// The same block with its stretches as one instruction each.
pub fn with_stretches(block: &Block, how: &Stretches) -> Result<Block> {
    let mut fused = Fusing {
        how,
        numbers: (0..block.inputs as u32).map(Some).collect(),
        instructions: Vec::new(),
        known: block.inputs as u32,
        last_use: last_uses(block),
    };
    let mut value = block.inputs as u32;
    let mut rest = &block.instructions[..];
    while !rest.is_empty() {
        let parts = rest.iter().take_while(|part| (how.is_part)(part)).count();
        let (stretch, after) = rest.split_at(parts.max(1));
        let before = block.instructions.len() - rest.len();
        if parts > 0 && (how.pays)(stretch) {
            fused.stretch(stretch, before + parts, value)?;
        } else {
            for (i, instruction) in stretch.iter().enumerate() {
                fused.single(instruction, before + i)?;
            }
        }
        let outputs: usize = stretch.iter().map(|instruction| instruction.outputs).sum();
        value += outputs as u32;
        rest = after;
    }
    let outputs = block
        .outputs
        .iter()
        .map(|value| fused.number(*value))
        .collect::<Result<_>>()?;
    Block::new(block.inputs, fused.instructions, outputs)
}

/// For each value the number of the last instruction that takes it; outputs are taken at the end.
fn last_uses(block: &Block) -> Vec<usize> {
    let mut last_use = vec![0; block.known()];
    for (i, instruction) in block.instructions.iter().enumerate() {
        for value in instruction.inputs.iter().flatten() {
            last_use[*value as usize] = i;
        }
    }
    for value in &block.outputs {
        last_use[*value as usize] = block.instructions.len();
    }
    last_use
}

struct Fusing<'a> {
    how: &'a Stretches<'a>,
    /// The number that a value has now; None where it went into a stretch and does not come out.
    numbers: Vec<Option<u32>>,
    instructions: Vec<Instruction>,
    known: u32,
    last_use: Vec<usize>,
}

impl Fusing<'_> {
    fn number(&self, value: u32) -> Result<u32> {
        let number = self.numbers.get(value as usize).copied().flatten();
        number.ok_or_else(|| {
            Error::invalid(format!("value {value} does not come out of its stretch"))
        })
    }

    fn single(&mut self, instruction: &Instruction, number: usize) -> Result<()> {
        let step = match &instruction.step {
            Step::Op(_) | Step::Call { .. } => instruction.step.clone(),
            Step::If { then, otherwise } => Step::If {
                then: (self.how.inside)(then)?,
                otherwise: (self.how.inside)(otherwise)?,
            },
            Step::While { condition, body } => Step::While {
                condition: (self.how.inside)(condition)?,
                body: (self.how.inside)(body)?,
            },
            Step::Fused(_) | Step::Stretch(_) | Step::Chain(_) | Step::Chained => {
                return Err(Error::invalid("is fused already"))
            }
        };
        let inputs = instruction
            .inputs
            .iter()
            .map(|value| value.map(|value| self.number(value)).transpose())
            .collect::<Result<Vec<_>>>()?;
        let outputs = instruction.outputs as u32;
        let label = instruction.label.clone();
        let mut single = Instruction::new(step, inputs, instruction.outputs, label);
        single.number = Some(number);
        self.instructions.push(single);
        self.numbers
            .extend((self.known..self.known + outputs).map(Some));
        self.known += outputs;
        Ok(())
    }

    /// One instruction for those of a stretch, which ends before instruction `end` and whose first output is `first`.
    fn stretch(&mut self, stretch: &[Instruction], end: usize, first: u32) -> Result<()> {
        let mut taken: Vec<u32> = stretch
            .iter()
            .flat_map(|instruction| instruction.inputs.iter().flatten().copied())
            .filter(|value| *value < first)
            .collect();
        taken.sort_unstable();
        taken.dedup();
        let inside: HashMap<u32, u32> = taken.iter().copied().zip(0..).collect();
        let own = |value: u32| match inside.get(&value) {
            Some(number) => *number,
            None => value - first + taken.len() as u32,
        };
        let instructions = stretch
            .iter()
            .zip(end - stretch.len()..)
            .map(|(instruction, number)| {
                let Step::Op(op) = &instruction.step else {
                    return Err(Error::invalid("only operations are fused"));
                };
                let inputs = instruction.inputs.iter().map(|value| value.map(own));
                let label = instruction.label.clone();
                let step = Step::Op(op.clone());
                let mut own = Instruction::new(step, inputs, instruction.outputs, label);
                own.number = Some(number);
                Ok(own)
            })
            .collect::<Result<Vec<_>>>()?;
        let made: usize = stretch.iter().map(|instruction| instruction.outputs).sum();
        // What is needed afterwards comes out.
        let is_needed = |value: &u32| self.last_use[*value as usize] >= end;
        let needed: Vec<u32> = (first..first + made as u32).filter(is_needed).collect();
        let inputs = taken
            .iter()
            .map(|value| self.number(*value).map(Some))
            .collect::<Result<Vec<_>>>()?;
        let outputs = needed.iter().copied().map(own).collect();
        let block = Block::new(taken.len(), instructions, outputs)?;
        self.numbers.extend((0..made).map(|_| None));
        for value in &needed {
            self.numbers[*value as usize] = Some(self.known);
            self.known += 1;
        }
        let step = (self.how.step)(block);
        self.instructions
            .push(Instruction::new(step, inputs, needed.len(), None));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Op;

    fn op(op: Op, inputs: &[u32]) -> Instruction {
        Instruction::new(Step::Op(op), inputs.iter().copied().map(Some), 1, None)
    }

    #[test]
    fn stretches_keep_what_is_needed_after_them() {
        // 0, 1 | 2 = 0+1, 3 = 2*2, 4 = -1 | 5 = call(3) | 6 = 5+4 (alone) | outputs 6, 3
        let call = Step::Call {
            id: 0,
            outputs: vec![(vec![], crate::dtype::Dtype::F32)],
        };
        let instructions = vec![
            op(Op::Add, &[0, 1]),
            op(Op::Multiply, &[2, 2]),
            op(Op::Negative, &[1]),
            Instruction::new(call, [Some(3)], 1, None),
            op(Op::Add, &[5, 4]),
        ];
        let block = Block::new(2, instructions, vec![6, 3]).expect("well-formed");
        let fused = fuse(&block).expect("fused");
        assert_eq!(fused.instructions.len(), 3);
        assert_eq!(fused.instructions[0].outputs, 2);
        assert_eq!(fused.instructions[1].inputs[..], [Some(2)]);
        assert_eq!(fused.instructions[2].inputs[..], [Some(4), Some(3)]);
        assert_eq!(fused.outputs, [5, 2]);
        let Step::Fused(stretch) = &fused.instructions[0].step else {
            panic!("not fused")
        };
        assert_eq!(stretch.block.outputs, [3, 4]);
        assert_eq!(stretch.block.instructions[2].inputs[..], [Some(1)]);
    }

    #[test]
    fn a_closure_goes_with_its_program() {
        mlx::init();
        let block = Block::new(1, vec![op(Op::Abs, &[0]), op(Op::Square, &[1])], vec![2]);
        let fused = fuse(&block.expect("well-formed")).expect("fused");
        let Step::Fused(stretch) = &fused.instructions[0].step else {
            panic!("not fused")
        };
        let inner = stretch.block.clone();
        let stream = Device::Cpu.stream().expect("the CPU is there");
        let input = mlx::zeros(&[2], crate::dtype::Dtype::F32, stream).expect("zeros");
        for _ in 0..3 {
            stretch
                .build(&[&input], Device::Cpu, stream)
                .expect("built");
        }
        // This one, the stretch's, and the closure's.
        assert_eq!(Arc::strong_count(&inner), 3);
        drop(fused);
        assert_eq!(Arc::strong_count(&inner), 1);
    }
}
