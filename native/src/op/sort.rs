//! Sorting, partitions and searches in what is sorted.

use super::{check, gpu, Side};
use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::mlx::{self, Stream};
use mlx_rs::Array;

pub fn argsort(a: &Array, axis: i32, device: Device, s: &Stream) -> Result<Array> {
    let axis = check::axis(a, axis)?;
    if a.size() == 0 {
        return mlx::zeros(a.shape(), Dtype::U32, s);
    }
    gpu::sorted(a, axis, device, s, |a, axis| mlx::argsort(a, axis, s))
}

type Partition = fn(&Array, i32, i32, &Stream) -> Result<Array>;

pub fn partition(
    a: &Array,
    kth: i32,
    axis: i32,
    f: Partition,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    let axis = check::filled_axis(a, axis)?;
    let size = a.shape()[axis];
    if kth < -size || kth >= size {
        return Err(Error::invalid(format!(
            "kth {kth} is out of range for axis {axis} of shape {:?}",
            a.shape()
        )));
    }
    let kth = kth.rem_euclid(size);
    gpu::sorted(a, axis, device, s, |a, axis| f(a, kth, axis, s))
}

pub fn topk(a: &Array, k: i32, axis: i32, device: Device, s: &Stream) -> Result<Array> {
    let axis = check::filled_axis(a, axis)?;
    if k < 1 || k > a.shape()[axis] {
        return Err(Error::invalid(format!(
            "k must be within 1..{}, got {k}",
            a.shape()[axis]
        )));
    }
    gpu::sorted(a, axis, device, s, |a, axis| mlx::topk(a, k, axis, s))
}

pub fn searchsorted(sorted: &Array, values: &Array, side: Side, s: &Stream) -> Result<Array> {
    if sorted.ndim() != 1 {
        return Err(Error::invalid(format!(
            "the sorted array must have one axis, got shape {:?}",
            sorted.shape()
        )));
    }
    if sorted.size() == 0 {
        return mlx::zeros(values.shape(), Dtype::U32, s);
    }
    let side = match side {
        Side::Left => "left",
        Side::Right => "right",
    };
    mlx::searchsorted(sorted, values, side, s)
}
