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

/// Links over a segment's inputs, and the shape and type of a result.
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
        let array = cpu::chain(self.links.clone(), &given, shape, *dtype, stream)?;
        let outputs = match (array.ndim() == shape.len(), self.is_joined) {
            (true, _) => smallvec![array],
            (false, true) => smallvec![joined(&array, stream)?],
            (false, false) => parts(&array, shape, stream)?,
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

/// The results that lie along the first axis of an array.
fn parts(array: &Array, shape: &[i32], stream: &Stream) -> Result<SmallVec<[Array; 2]>> {
    let steps = vec![1; array.ndim()];
    let part = |i: i32| {
        let start = [&[i], vec![0; shape.len()].as_slice()].concat();
        let stop = [&[i + 1], shape].concat();
        let part = mlx::slice(array, &start, &stop, &steps, stream)?;
        let part = mlx::reshape(&part, shape, stream)?;
        mlx::look(&part, stream);
        Ok(part)
    };
    (0..array.shape()[0]).map(part).collect()
}
