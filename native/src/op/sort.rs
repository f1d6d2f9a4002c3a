//! Sorting, partitions, and searches in what is sorted.
//! Called by [`Op::apply`] for operations of [`Class::Order`](super::Class::Order).

use super::table::{family, others};
use super::{cast, check, creation, gpu, shape, Inputs, Op, Outputs, Side};
use crate::base::{Device, Dtype, Error, Result};
use crate::cpu::{self, Beyond};
use crate::mlx::{self, Stream};
use mlx_rs::Array;
use smallvec::smallvec;

family! { Order, takes(1):
    // Inputs: a.
    Sort { axis: i32 } => row_major_on_gpu(),
    /// Stable.
    Argsort { axis: i32 } => row_major_on_gpu(),
    Partition { kth: i32, axis: i32 } => row_major_on_gpu(),
    Argpartition { kth: i32, axis: i32 } => row_major_on_gpu(),
    /// The k largest, in no order.
    Topk { k: i32, axis: i32 } => row_major_on_gpu(),
    /// Outputs: the k largest in descending order, and their places. NaN comes first, and of equals the first.
    TopK { k: i32, axis: i32 } => outputs(2).row_major_on_gpu(),
    /// Inputs: sorted (one axis), values.
    Searchsorted { side: Side } => takes(2),
}

/// Builds an operation of the class.
pub fn apply(op: &Op, inputs: &Inputs, device: Device, s: &Stream) -> Result<Outputs> {
    match op {
        Op::Sort { axis } => inputs.along(*axis, |a, axis| {
            if cpu::orders(device, a) {
                return cpu::sort(a, axis as usize, s);
            }
            cast::in_single(a, device, s, |a| gpu::sort(a, axis, device, s))
        }),
        Op::Argsort { axis } => inputs.unary(s, |a, s| argsort(a, *axis, device, s)),
        Op::Partition { kth, axis } => inputs.unary(s, |a, s| {
            partition(a, *kth, *axis, mlx::partition, device, s)
        }),
        Op::Argpartition { kth, axis } => inputs.unary(s, |a, s| {
            partition(a, *kth, *axis, mlx::argpartition, device, s)
        }),
        Op::Topk { k, axis } => inputs.unary(s, |a, s| topk(a, *k, *axis, device, s)),
        Op::TopK { k, axis } => {
            let [a] = inputs.exactly()?;
            top_k(a, *k, *axis, device, s)
        }
        Op::Searchsorted { side } => inputs.binary(s, |a, b, s| searchsorted(a, b, *side, s)),
        others!(Order) => Err(super::no_case(op)),
    }
}

pub fn argsort(a: &Array, axis: i32, device: Device, s: &Stream) -> Result<Array> {
    let axis = check::axis(a, axis)?;
    if a.size() == 0 {
        return mlx::zeros(a.shape(), Dtype::U32, s);
    }
    if cpu::orders(device, a) {
        return cpu::argsort(a, axis, s);
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
    if cpu::orders(device, a) {
        return cpu::top(a, k, axis, false, s);
    }
    gpu::sorted(a, axis, device, s, |a, axis| mlx::topk(a, k, axis, s))
}

/// The k largest along an axis, and their places. Without a kernel of ours these are the first k of a sort.
pub fn top_k(a: &Array, k: i32, axis: i32, device: Device, s: &Stream) -> Result<Outputs> {
    let axis = check::axis(a, axis)?;
    let size = a.shape()[axis];
    if k < 0 || k > size {
        return Err(Error::invalid(format!(
            "k must be within 0..{size} for axis {axis} of shape {:?}, got {k}",
            a.shape()
        )));
    }
    let mut shape = a.shape().to_vec();
    shape[axis] = k;
    if shape.contains(&0) {
        let values = mlx::zeros(&shape, mlx::dtype(a), s)?;
        return Ok(smallvec![values, mlx::zeros(&shape, Dtype::U32, s)?]);
    }
    if cpu::orders(device, a) {
        let places = cpu::top(a, k, axis, true, s)?;
        let values = cpu::along(a, &places, axis, true, Beyond::Nearest, s)?;
        return Ok(smallvec![values, places]);
    }
    // An ascending sort of the array from its end is stable from there.
    let turned = |a: &Array| shape::flip(a, &[axis as i32], device, s);
    let upwards = argsort(&turned(a)?, axis as i32, device, s)?;
    let start = vec![0; shape.len()];
    let steps = vec![1; shape.len()];
    let largest = mlx::slice(&turned(&upwards)?, &start, &shape, &steps, s)?;
    let last = creation::int(i64::from(size) - 1, Dtype::U32)?;
    let places = mlx::subtract(&last, &largest, s)?;
    let values = mlx::take_along_axis(a, &places, axis as i32, s)?;
    Ok(smallvec![values, places])
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
