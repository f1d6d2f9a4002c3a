//! Segments of reductions over the same axes of one shape, with the operations on elements before, between and behind
//! them, as one kernel that is generated for CUDA.

use super::{Given, Segment};
use crate::base::{Device, Error, Result};
use crate::mlx::{self, Stream};
use crate::op::generated::reduction::{self, Rows};
use crate::op::{Applied, Crossed, Outputs};
use crate::program::ir::place;
use mlx_rs::Array;
use smallvec::SmallVec;

/// Steps over a segment's inputs.
#[derive(Debug)]
pub struct Reduced {
    pub rows: Rows,
    /// The shape that elements are read in, and its axes that are folded.
    pub shape: Vec<i32>,
    pub axes: SmallVec<[u8; 4]>,
    /// The shape that each input is taken in, where that is not its own.
    pub inputs: SmallVec<[Option<Vec<i32>>; 4]>,
    /// That of each result.
    pub outputs: SmallVec<[Vec<i32>; 2]>,
    /// Operations of the program.
    pub operations: usize,
}

impl Segment for Reduced {
    fn name(&self) -> &'static str {
        "rows"
    }

    fn place(&self, at: usize) -> String {
        place(at, self.name(), None)
    }

    fn operations(&self) -> usize {
        self.operations
    }

    fn is_capturable(&self) -> bool {
        true
    }

    fn build(&self, inputs: &Given, device: Device, s: &Stream) -> Result<Applied> {
        if device != Device::Gpu {
            return Err(Error::invalid("rows are for CUDA"));
        }
        let given = inputs.present();
        let reshaped = given.iter().zip(&self.inputs);
        let reshaped = reshaped.map(|(array, shape)| match shape {
            None => mlx::share(array),
            Some(shape) => mlx::reshape(array, shape, s),
        });
        let reshaped: SmallVec<[Array; 4]> = reshaped.collect::<Result<_>>()?;
        let given: SmallVec<[&Array; 4]> = reshaped.iter().collect();
        let results = reduction::results(self.rows.clone(), &given, &self.shape, &self.axes, s)?;
        let results = results.iter().zip(&self.outputs);
        let outputs: Outputs = results
            .map(|(array, shape)| match array.shape() == &shape[..] {
                true => mlx::share(array),
                false => mlx::reshape(array, shape, s),
            })
            .collect::<Result<_>>()?;
        Ok(Applied {
            outputs,
            crossed: Crossed::default(),
        })
    }
}
