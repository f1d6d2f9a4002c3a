//! Segments of operations on elements, one after another, as one kernel of our own, for the CPU or
//! generated for CUDA.

use super::{Given, Segment};
use crate::base::{Device, Result, Signature};
use crate::cpu::{self, Links};
use crate::mlx::{self, Stream};
use crate::op::{generated, Applied, Crossed};
use crate::program::ir::place;
use mlx_rs::Array;
use smallvec::{smallvec, SmallVec};

/// Links over a segment's inputs, and the shape and type of the last one's result.
#[derive(Debug)]
pub struct Chain {
    pub links: Links,
    /// The shape that each input is taken in, where that is not its own.
    pub shapes: SmallVec<[Option<Vec<i32>>; 4]>,
    pub signature: Signature,
    /// Whether several results are one array, one behind the other along its first axis.
    pub is_joined: bool,
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

    fn is_capturable(&self) -> bool {
        true
    }

    fn as_chain(&self) -> Option<&Chain> {
        Some(self)
    }

    fn build(&self, inputs: &Given, device: Device, stream: &Stream) -> Result<Applied> {
        let (shape, dtype) = &self.signature;
        let present = inputs.present();
        let reshaped = self.reshaped(&present, stream)?;
        let given = Chain::taken(&present, &reshaped);
        if device == Device::Gpu {
            return self.generated(&given, stream);
        }
        let links = self.links.clone();
        let outputs = match self.is_joined {
            true => {
                let array = cpu::joined_chain(links, &given, shape, *dtype, stream)?;
                smallvec![joined(&array, stream)?]
            }
            false => cpu::chain(links, &given, shape, stream)?,
        };
        Ok(Applied {
            outputs,
            crossed: Crossed::default(),
        })
    }
}

impl Chain {
    /// The inputs that are taken in another shape than their own.
    pub fn reshaped(
        &self,
        inputs: &[&Array],
        stream: &Stream,
    ) -> Result<SmallVec<[Option<Array>; 4]>> {
        let reshaped = inputs.iter().zip(&self.shapes);
        let reshaped = reshaped.map(|(array, shape)| match shape {
            None => Ok(None),
            Some(shape) => {
                let array = mlx::reshape(array, shape, stream)?;
                mlx::look(&array, stream);
                Ok(Some(array))
            }
        });
        reshaped.collect()
    }

    /// The inputs as the links take them.
    pub fn taken<'a>(
        inputs: &[&'a Array],
        reshaped: &'a [Option<Array>],
    ) -> SmallVec<[&'a Array; 4]> {
        let inputs = inputs.iter().zip(reshaped);
        let taken = inputs.map(|(array, reshaped)| reshaped.as_ref().unwrap_or(array));
        taken.collect()
    }

    /// By a kernel for CUDA.
    fn generated(&self, given: &[&Array], stream: &Stream) -> Result<Applied> {
        let (links, shape) = (self.links.clone(), &self.signature.0);
        Ok(Applied {
            outputs: generated::results(links, self.is_joined, given, shape, stream)?,
            crossed: Crossed::default(),
        })
    }
}

/// The results that lie along the first axis of an array, as one along the next.
fn joined(array: &Array, stream: &Stream) -> Result<Array> {
    let shape = array.shape();
    let shape = [&[shape[0] * shape[1]], &shape[2..]].concat();
    let joined = mlx::reshape(array, &shape, stream)?;
    mlx::look(&joined, stream);
    Ok(joined)
}
