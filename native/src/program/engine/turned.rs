//! A product of matrices whose operands are taken with their last two axes exchanged.

use super::{Given, Segment};
use crate::base::{Device, Error, Result};
use crate::mlx::{self, Stream};
use crate::op::{self, Applied, Op};
use crate::program::ir::place;
use mlx_rs::Array;

#[derive(Debug)]
pub struct TurnedProduct;

impl Segment for TurnedProduct {
    fn name(&self) -> &'static str {
        "turned matmul"
    }

    fn place(&self, at: usize) -> String {
        place(at, self.name(), None)
    }

    fn operations(&self) -> usize {
        2
    }

    fn is_turned_product(&self) -> bool {
        true
    }

    fn build(&self, inputs: &Given, device: Device, stream: &Stream) -> Result<Applied> {
        let [Some(a), Some(b)] = inputs.arrays else {
            return Err(Error::invalid("a product has two operands"));
        };
        let turned = |array: &Array| -> Result<Array> {
            let rank = array.ndim() as i32;
            let axes: Vec<i32> = (0..rank - 2).chain([rank - 1, rank - 2]).collect();
            let turned = mlx::transpose(array, &axes, stream)?;
            mlx::look(&turned, stream);
            Ok(turned)
        };
        let (a, b) = (turned(a)?, turned(b)?);
        Op::Matmul.apply(&op::Inputs(&[Some(&a), Some(&b)]), device, stream)
    }
}
