//! Segments of operations on elements, one after another, as one kernel of our own for the CPU.

use super::{Given, Segment};
use crate::base::{Device, Result, Signature};
use crate::cpu::{self, Links};
use crate::mlx::Stream;
use crate::op::{Applied, Crossed};
use crate::program::ir::place;
use smallvec::smallvec;

/// Links over a segment's inputs, and the shape and type of what they give.
#[derive(Debug)]
pub struct Chain {
    pub links: Links,
    pub signature: Signature,
}

impl Segment for Chain {
    fn name(&self) -> &'static str {
        "chain"
    }

    fn place(&self, at: usize) -> String {
        place(at, self.name(), None)
    }

    fn operations(&self) -> usize {
        self.links.len()
    }

    fn build(&self, inputs: &Given, _: Device, stream: &Stream) -> Result<Applied> {
        let (shape, dtype) = &self.signature;
        let array = cpu::chain(self.links.clone(), &inputs.present(), shape, *dtype, stream)?;
        Ok(Applied {
            outputs: smallvec![array],
            crossed: Crossed::default(),
        })
    }
}
