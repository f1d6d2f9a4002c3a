//! Softmax, and the cross entropy of logits. Called by fused.rs.

use super::{blocks, check, double, folds, indexing, reduce};
use crate::base::{Device, Dtype, Result};
use crate::cpu;
use crate::mlx::{self, Stream};
use mlx_rs::Array;

pub fn softmax(
    a: &Array,
    axes: &[i32],
    precise: bool,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    let rank = a.ndim() as i32;
    if !mlx::dtype(a).is_float() && mlx::dtype(a) != Dtype::C64 {
        return softmax(&mlx::astype(a, Dtype::F32, s)?, axes, precise, device, s);
    }
    let adds_up = mlx::dtype(a).is_half() || blocks::takes(mlx::dtype(a));
    let is_off = device == Device::Cpu && cpu::are_built() && !cpu::are_there();
    if !adds_up || is_off || a.size() == 0 || axes.is_empty() {
        return double::softmax(a, axes, precise, s);
    }
    let axes: Vec<i32> = axes.iter().map(|axis| axis.rem_euclid(rank)).collect();
    let is_last = axes == [rank - 1];
    if device == Device::Gpu && is_last {
        return mlx::softmax(a, &axes, precise, s);
    }
    if device == Device::Gpu {
        if let Some(softmax) = folds::softmax(a, &axes, s)? {
            return Ok(softmax);
        }
    }
    if !cpu::takes(device, a) {
        return softmax_of_sums(a, &axes, device, s);
    }
    if is_last {
        return cpu::softmax(a, s);
    }
    // The axes moved to the end, as one, and back.
    let kept: Vec<i32> = (0..rank).filter(|axis| !axes.contains(axis)).collect();
    let order = [kept.as_slice(), &axes].concat();
    let front = mlx::transpose(a, &order, s)?;
    let lead = &front.shape()[..kept.len()];
    let rows = mlx::reshape(&front, &[lead, &[-1]].concat(), s)?;
    let softmax = mlx::reshape(&cpu::softmax(&rows, s)?, front.shape(), s)?;
    let back: Vec<i32> = (0..rank)
        .filter_map(|axis| order.iter().position(|from| *from == axis))
        .map(|place| place as i32)
        .collect();
    mlx::transpose(&softmax, &back, s)
}

fn softmax_of_sums(a: &Array, axes: &[i32], device: Device, s: &Stream) -> Result<Array> {
    let dtype = mlx::dtype(a);
    let wide = if dtype.is_half() { Dtype::F32 } else { dtype };
    let a = mlx::astype(a, wide, s)?;
    let top = mlx::max(&a, axes, true, s)?;
    let exps = mlx::exp(&mlx::subtract(&a, &top, s)?, s)?;
    let sum = reduce::sum(&exps, axes, true, device, s)?;
    mlx::astype(&mlx::divide(&exps, &sum, s)?, dtype, s)
}

/// MLX reads the logit that a target names, wherever that is; here targets are clamped to the classes.
pub fn cross_entropy(logits: &Array, targets: &Array, device: Device, s: &Stream) -> Result<Array> {
    check::not_empty("logits", logits)?;
    // On the CPU MLX computes 16-bit logits in their own width.
    if device == Device::Cpu && mlx::dtype(logits).is_half() {
        return cross_entropy(&mlx::astype(logits, Dtype::F32, s)?, targets, device, s);
    }
    let axis = check::filled_axis(logits, -1)?;
    if !mlx::dtype(targets).is_integer() {
        return mlx::cross_entropy(logits, targets, s);
    }
    let classes = logits.shape()[axis];
    let targets = indexing::clamp(targets, classes, classes - 1, s)?;
    if device == Device::Gpu || targets.shape() != &logits.shape()[..axis] {
        return mlx::cross_entropy(logits, &targets, s);
    }
    let axis = axis as i32;
    let all = reduce::logsumexp(logits, &[axis], false, device, s)?;
    let index = mlx::expand_dims(&targets, &[axis], s)?;
    let chosen = mlx::take_along_axis(logits, &index, axis, s)?;
    mlx::subtract(&all, &mlx::squeeze(&chosen, &[axis], s)?, s)
}
