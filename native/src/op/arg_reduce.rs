//! The place of the largest or smallest element. Called by reduce.rs.

use super::creation::int;
use super::{check, creation, Which};
use crate::base::{Dtype, Error, Result};
use crate::mlx::{self, Stream};
use mlx_rs::Array;

type ArgReduce = fn(&Array, i32, bool, &Stream) -> Result<Array>;

type Reduce = fn(&Array, &[i32], bool, &Stream) -> Result<Array>;

/// NaN wins, as in NumPy, which takes the first, and in Nx, which takes the last; MLX compares it away.
pub fn arg_reduce(
    a: &Array,
    axis: Option<i32>,
    keepdims: bool,
    nan: Which,
    reduce: ArgReduce,
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
    let mut index = reduce(&flat, axis, keep, s)?;
    if mlx::dtype(a).is_float() {
        let length = flat.shape()[axis as usize];
        let mut line = vec![1; flat.ndim()];
        line[axis as usize] = length;
        let places = creation::iota(&line, None, Dtype::S32, s)?;
        let (outside, pick): (_, Reduce) = match nan {
            Which::First => (length, mlx::min),
            Which::Last => (-1, mlx::max),
        };
        let outside = int(i64::from(outside), Dtype::S32)?;
        let place = mlx::where_(&mlx::isnan(&flat, s)?, &places, &outside, s)?;
        let place = pick(&place, &[axis], keep, s)?;
        let found = mlx::not_equal(&place, &outside, s)?;
        index = mlx::where_(&found, &mlx::astype(&place, Dtype::U32, s)?, &index, s)?;
    }
    if keepdims && flat.ndim() != rank {
        index = mlx::reshape(&index, &vec![1; rank], s)?;
    }
    Ok(index)
}
