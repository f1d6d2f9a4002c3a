//! Rows that a mask fills with one number but in few places, up to one number for each row, as one kernel of our own
//! for the CPU.

use super::{Given, Segment};
use crate::base::{Device, Result, Signature};
use crate::cpu;
use crate::mlx::Stream;
use crate::op::{Applied, Crossed};
use crate::program::ir::place;
use smallvec::smallvec;
use std::sync::Arc;

/// What is computed of the rows, and the shape and type of the result.
#[derive(Debug)]
pub struct MaskedRows {
    pub masked: Arc<cpu::Masked>,
    pub signature: Signature,
    /// How many operations of the program it has.
    pub operations: usize,
}

impl Segment for MaskedRows {
    fn name(&self) -> &'static str {
        "masked"
    }

    fn place(&self, at: usize) -> String {
        place(at, self.name(), None)
    }

    fn operations(&self) -> usize {
        self.operations
    }

    fn build(&self, inputs: &Given, _: Device, stream: &Stream) -> Result<Applied> {
        let (shape, dtype) = &self.signature;
        let masked = self.masked.clone();
        let array = cpu::masked(masked, &inputs.present(), shape, *dtype, stream)?;
        Ok(Applied {
            outputs: smallvec![array],
            crossed: Crossed::default(),
        })
    }
}
