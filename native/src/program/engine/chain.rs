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

    fn build(&self, inputs: &Given, device: Device, stream: &Stream) -> Result<Applied> {
        let (shape, dtype) = &self.signature;
        let reshaped = inputs.present().into_iter().zip(&self.shapes);
        let reshaped = reshaped.map(|(array, shape)| match shape {
            None => Ok(None),
            Some(shape) => {
                let array = mlx::reshape(array, shape, stream)?;
                mlx::look(&array, stream);
                Ok(Some(array))
            }
        });
        let reshaped: SmallVec<[Option<Array>; 4]> = reshaped.collect::<Result<_>>()?;
        let given = inputs.present().into_iter().zip(&reshaped);
        let given: SmallVec<[&Array; 4]> = given
            .map(|(array, reshaped)| reshaped.as_ref().unwrap_or(array))
            .collect();
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
