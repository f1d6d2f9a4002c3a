//! The place of the largest or smallest element. Called by reduce.rs.

use super::creation::int;
use super::{check, creation, Which};
use crate::base::{Device, Dtype, Error, Result};
use crate::cpu;
use crate::mlx::{self, Stream};
use mlx_rs::Array;

type Reduce = fn(&Array, &[i32], bool, &Stream) -> Result<Array>;

/// NaN wins, as in NumPy, which takes the first, and in Nx, which takes the last; MLX compares it away.
pub fn arg_reduce(
    is_max: bool,
    a: &Array,
    axis: Option<i32>,
    keepdims: bool,
    nan: Which,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    let rank = a.ndim();
    let (flat, axis) = match axis {
        Some(axis) => (mlx::share(a)?, check::axis(a, axis)? as i32),
        None => (mlx::reshape(a, &[-1], s)?, 0),
    };
    if flat.shape().get(axis as usize) == Some(&0) {
        return Err(Error::invalid(format!(
            "the axis to reduce of shape {:?} is empty",
            a.shape()
        )));
    }
    let keep = keepdims && rank > 0 && flat.ndim() == rank;
    let mut index = match cpu::orders(device, &flat) {
        true => cpu::arg_extreme(is_max, &flat, axis, keep, nan == Which::Last, s)?,
        false => composed(is_max, &flat, axis, keep, nan, s)?,
    };
    if keepdims && flat.ndim() != rank {
        index = mlx::reshape(&index, &vec![1; rank], s)?;
    }
    Ok(index)
}

/// MLX's place, or that of NaN where there is one.
pub fn composed(
    is_max: bool,
    a: &Array,
    axis: i32,
    keep: bool,
    nan: Which,
    s: &Stream,
) -> Result<Array> {
    let index = match is_max {
        true => mlx::argmax(a, axis, keep, s)?,
        false => mlx::argmin(a, axis, keep, s)?,
    };
    if !mlx::dtype(a).is_float() {
        return Ok(index);
    }
    let length = a.shape()[axis as usize];
    let mut line = vec![1; a.ndim()];
    line[axis as usize] = length;
    let places = creation::iota(&line, None, Dtype::S32, s)?;
    let (outside, pick): (_, Reduce) = match nan {
        Which::First => (length, mlx::min),
        Which::Last => (-1, mlx::max),
    };
    let outside = int(i64::from(outside), Dtype::S32)?;
    let place = mlx::where_(&mlx::isnan(a, s)?, &places, &outside, s)?;
    let place = pick(&place, &[axis], keep, s)?;
    let found = mlx::not_equal(&place, &outside, s)?;
    mlx::where_(&found, &mlx::astype(&place, Dtype::U32, s)?, &index, s)
}
