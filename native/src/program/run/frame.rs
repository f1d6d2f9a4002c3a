//! A block that is being replayed.

use super::values::{Slot, Values};
use crate::device::Device;
use crate::error::{Result, Signature};
use crate::handle::array::{refuse_deallocated, Handle};
use crate::handle::deallocate::{marked, was_marked_since};
use crate::mlx::{self, Stream};
use crate::op::{Applied, Crossed};
use crate::program::{build, Block, Instruction, Step};
use mlx_rs::Array;
use rustler::ResourceArc;
use smallvec::{smallvec, SmallVec};
use std::sync::Arc;

/// A block that is being replayed.
pub(super) struct Frame {
    pub(super) block: Arc<Block>,
    /// The instruction that comes next, or that waits for its outputs.
    pub(super) pc: usize,
    pub(super) values: Values,
    /// What the CPU has to have computed before the GPU is given what was built.
    pub(super) crossed: Crossed,
}

impl Frame {
    /// The block as it is run on the device.
    pub(super) fn new(block: &Arc<Block>, inputs: Values, device: Device) -> Frame {
        Frame {
            block: block.on(device).clone(),
            pc: 0,
            values: inputs,
            crossed: Crossed::default(),
        }
    }

    /// Builds operations up to the block's end or to an instruction of another kind. Nothing is computed.
    pub(super) fn build(&mut self, device: Device, stream: &Stream) -> Result<()> {
        // What was deallocated meanwhile nothing may be computed from.
        let mut spent = Vec::new();
        let before = marked();
        self.build_all(device, stream, &mut spent)?;
        match was_marked_since(before) {
            true => {
                let spent = spent.iter().map(|handle: &ResourceArc<Handle>| &**handle);
                refuse_deallocated(spent.chain(self.values.given()))
            }
            false => Ok(()),
        }
    }

    pub(super) fn build_all(
        &mut self,
        device: Device,
        stream: &Stream,
        spent: &mut Vec<ResourceArc<Handle>>,
    ) -> Result<()> {
        while let Some(instruction) = self.block.instructions.get(self.pc) {
            if matches!(instruction.step, Step::Chained) {
                self.values.0.push(Slot::Spent);
                self.pc += 1;
                continue;
            }
            let (Step::Op(_) | Step::Chain(_) | Step::Stretch(_)) = &instruction.step else {
                break;
            };
            let mut inputs: SmallVec<[Option<&Array>; 6]> = SmallVec::new();
            for value in &instruction.inputs {
                inputs.push(match value {
                    Some(value) => self.values.get(*value)?,
                    None => None,
                });
            }
            let applied = match &instruction.step {
                Step::Op(op) => build(op, &inputs, device, stream),
                Step::Chain(chain) => chain.build(&inputs, stream).map(|array| Applied {
                    outputs: smallvec![array],
                    crossed: Crossed::default(),
                }),
                // Its errors say where in it.
                Step::Stretch(stretch) => {
                    let numbers = instruction
                        .inputs
                        .iter()
                        .map(|value| self.values.number(*value));
                    let numbers: SmallVec<[Option<u64>; 64]> = numbers.collect();
                    let inputs: Vec<&Array> = inputs.iter().copied().flatten().collect();
                    stretch
                        .build(&inputs, &numbers, device, stream)
                        .map(|(outputs, crossed)| Applied {
                            outputs: outputs.into(),
                            crossed,
                        })
                }
                _ => break,
            };
            let outputs = applied
                .and_then(|applied| {
                    self.crossed.append(applied.crossed);
                    instruction.check_outputs(applied.outputs)
                })
                .map_err(|error| error.with_inputs(signatures(&inputs), Some(device)))?;
            drop(inputs);
            self.values.0.extend(outputs.into_iter().map(Slot::Owned));
            spent.extend(self.values.spend(&instruction.spent));
            self.pc += 1;
        }
        Ok(())
    }

    pub(super) fn instruction(&self) -> Option<&Instruction> {
        self.block.instructions.get(self.pc)
    }

    /// Goes on after an instruction that waited.
    pub(super) fn deliver(&mut self, mut outputs: Values) {
        self.values.0.append(&mut outputs.0);
        if let Some(instruction) = self.block.instructions.get(self.pc) {
            self.values.spend(&instruction.spent);
        }
        self.pc += 1;
    }

    pub(super) fn outputs(&mut self) -> Result<Values> {
        let outputs = &self.block.outputs;
        self.values.take(outputs.iter().copied(), outputs)
    }

    pub(super) fn place(&self) -> String {
        match self.instruction() {
            Some(instruction) => instruction.place(self.pc),
            None => "outputs".into(),
        }
    }
}

pub fn signatures(inputs: &[Option<&Array>]) -> Vec<Option<Signature>> {
    inputs
        .iter()
        .map(|input| input.map(|array| (array.shape().to_vec(), mlx::dtype(array))))
        .collect()
}
