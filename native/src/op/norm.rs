//! RMS and layer norms. Called by fused.rs.

use super::{cuda, reduce};
use crate::base::{Device, Dtype, Error, Result};
use crate::cpu;
use crate::mlx::{self, Stream};
use mlx_rs::Array;

/// MLX's norms and rotation compute in f32, which for f64 is not the formula's answer.
pub fn check_fused_type(x: &Array) -> Result<()> {
    let dtype = mlx::dtype(x);
    if dtype.is_half() || dtype == Dtype::F32 {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "takes f32, f16 or bf16, got {}; compose it from operations for other types",
        dtype.name()
    )))
}

fn check_last_axis(x: &Array, name: &str, vector: Option<&Array>) -> Result<()> {
    let size = x.shape().last().copied();
    match vector {
        Some(vector) if vector.ndim() != 1 || vector.shape().last().copied() != size => {
            Err(Error::invalid(format!(
                "x is {:?}, {name} is {:?}: {name} must have one axis, as long as the last of x",
                x.shape(),
                vector.shape()
            )))
        }
        _ => Ok(()),
    }
}

/// Whether the vectors of a norm have the type of what is normalised, so that its kernel reads one type.
fn same_type(x: &Array, vectors: &[Option<&Array>]) -> bool {
    let dtype = mlx::dtype(x);
    vectors
        .iter()
        .flatten()
        .all(|vector| mlx::dtype(vector) == dtype)
}

pub fn rms_norm(
    x: &Array,
    weight: Option<&Array>,
    eps: f64,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    check_fused_type(x)?;
    check_last_axis(x, "weight", weight)?;
    if cpu::takes(device, x) && x.ndim() > 0 && same_type(x, &[weight]) {
        return cpu::rms_norm(x, weight, eps as f32, s);
    }
    if device == Device::Gpu || x.size() == 0 || x.ndim() == 0 {
        return mlx::rms_norm(x, weight, eps as f32, s);
    }
    let wide = mlx::astype(x, Dtype::F32, s)?;
    let square = mean_of_rows(&mlx::square(&wide, s)?, device, s)?;
    let normal = mlx::multiply(&wide, &inverse_root(&square, eps, s)?, s)?;
    weighted(normal, x, weight, None, s)
}

/// Along the last axis, which is kept.
fn mean_of_rows(x: &Array, device: Device, s: &Stream) -> Result<Array> {
    let last = [x.ndim() as i32 - 1];
    reduce::reduce(cpu::Reduction::Mean, x, &last, true, device, s)
}

fn inverse_root(square: &Array, eps: f64, s: &Stream) -> Result<Array> {
    let eps = mlx::from_bytes(&(eps as f32).to_ne_bytes(), &[], Dtype::F32)?;
    mlx::rsqrt(&mlx::add(square, &eps, s)?, s)
}

/// What is normal, in f32, times weight plus bias, in the type that they and x have together.
fn weighted(
    mut normal: Array,
    x: &Array,
    weight: Option<&Array>,
    bias: Option<&Array>,
    s: &Stream,
) -> Result<Array> {
    if let Some(weight) = weight {
        normal = mlx::multiply(&normal, weight, s)?;
    }
    if let Some(bias) = bias {
        normal = mlx::add(&normal, bias, s)?;
    }
    match same_type(x, &[weight, bias]) {
        true => mlx::astype(&normal, mlx::dtype(x), s),
        false => Ok(normal),
    }
}

pub fn layer_norm(
    x: &Array,
    weight: Option<&Array>,
    bias: Option<&Array>,
    eps: f64,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    check_fused_type(x)?;
    check_last_axis(x, "weight", weight)?;
    check_last_axis(x, "bias", bias)?;
    if device == Device::Gpu {
        if let Some(normal) = cuda::layer_norm(x, weight, bias, eps as f32, s)? {
            return Ok(normal);
        }
        return mlx::layer_norm(x, weight, bias, eps as f32, s);
    }
    if cpu::takes(device, x) && x.ndim() > 0 && same_type(x, &[weight, bias]) {
        return cpu::layer_norm(x, weight, bias, eps as f32, s);
    }
    // What MLX composes on the CPU leaves one of its nodes on the calling thread's own stream, which no other thread
    // may evaluate.
    if x.ndim() == 0 {
        return Err(Error::invalid(
            "x must have at least one axis, got a scalar",
        ));
    }
    let wide = mlx::astype(x, Dtype::F32, s)?;
    if x.size() == 0 {
        return weighted(wide, x, weight, bias, s);
    }
    let centred = mlx::subtract(&wide, &mean_of_rows(&wide, device, s)?, s)?;
    // What the mean has lost in rounding.
    let centred = mlx::subtract(&centred, &mean_of_rows(&centred, device, s)?, s)?;
    let variance = mean_of_rows(&mlx::square(&centred, s)?, device, s)?;
    let normal = mlx::multiply(&centred, &inverse_root(&variance, eps, s)?, s)?;
    weighted(normal, x, weight, bias, s)
}
