//! A block that is being replayed.

use super::values::{Slot, Values};
use crate::base::{Device, Result, Signature};
use crate::handle::array::{refuse_deallocated, Handle};
use crate::handle::deallocate::{marked, was_marked_since};
use crate::mlx::{self, Stream};
use crate::op::Crossed;
use crate::program::build::{build, check_outputs};
use crate::program::engine::Given;
use crate::program::plan::{Code, Node, Work};
use mlx_rs::Array;
use rustler::ResourceArc;
use smallvec::SmallVec;
use std::sync::Arc;

/// A block that is being replayed.
pub(super) struct Frame {
    pub(super) code: Arc<Code>,
    /// The node that comes next, or that waits for its outputs.
    pub(super) pc: usize,
    pub(super) values: Values,
    /// What the CPU has to have computed before the GPU is given what was built.
    pub(super) crossed: Crossed,
}

impl Frame {
    pub(super) fn new(code: &Arc<Code>, mut inputs: Values) -> Frame {
        inputs.0.resize_with(code.values, || Slot::Spent);
        Frame {
            code: code.clone(),
            pc: 0,
            values: inputs,
            crossed: Crossed::default(),
        }
    }

    /// Builds operations up to the block's end or to a node of another kind. Nothing is computed.
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
        let code = self.code.clone();
        while let Some(node) = code.nodes.get(self.pc) {
            let (Work::Op(_) | Work::Segment(_)) = &node.work else {
                break;
            };
            let mut inputs: SmallVec<[Option<&Array>; 6]> = SmallVec::new();
            for value in &node.inputs {
                inputs.push(match value {
                    Some(value) => self.values.get(*value)?,
                    None => None,
                });
            }
            let applied = match &node.work {
                Work::Op(op) => build(op, &inputs, device, stream),
                Work::Segment(segment) => {
                    let given = Given {
                        arrays: &inputs,
                        number: &|i| self.values.number(node.inputs[i]),
                    };
                    segment.build(&given, device, stream)
                }
                _ => break,
            };
            let outputs = applied
                .and_then(|applied| {
                    self.crossed.append(applied.crossed);
                    check_outputs(applied.outputs, node.outputs.len())
                })
                .map_err(|error| error.with_inputs(signatures(&inputs), Some(device)))?;
            drop(inputs);
            let outputs = outputs.into_iter().map(Slot::Owned);
            self.values.set(&node.outputs, outputs);
            spent.extend(self.values.spend(&node.spent));
            self.pc += 1;
        }
        Ok(())
    }

    pub(super) fn node(&self) -> Option<&Node> {
        self.code.nodes.get(self.pc)
    }

    /// Goes on after a node that waited.
    pub(super) fn deliver(&mut self, mut outputs: Values) {
        let code = self.code.clone();
        if let Some(node) = code.nodes.get(self.pc) {
            self.values.set(&node.outputs, outputs.0.drain(..));
            self.values.spend(&node.spent);
        }
        self.pc += 1;
    }

    pub(super) fn outputs(&mut self) -> Result<Values> {
        let outputs = &self.code.outputs;
        self.values.take(outputs.iter().copied(), outputs)
    }

    pub(super) fn place(&self) -> String {
        match self.node() {
            Some(node) => node.place(),
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
