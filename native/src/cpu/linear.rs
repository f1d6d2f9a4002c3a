//! Factorizations of f32 and f64, systems, and Fourier transforms.

use super::{are_there, node, Layout};
use crate::base::{Device, Dtype, Result};
use crate::mlx::{self, Outputs, Stream};
use emlx_cpu::{Fft, Form, Kernel, Linear};
use mlx_rs::Array;

/// Whether the functions below take this array on this device.
pub fn has_linear(device: Device, a: &Array) -> bool {
    let is_wide = matches!(mlx::dtype(a), Dtype::F32 | Dtype::F64);
    device == Device::Cpu && are_there() && a.size() > 0 && is_wide
}

fn kernel(linear: Linear, a: &Array) -> Result<Kernel> {
    let of = mlx::dtype(a).try_into()?;
    Ok(Kernel::Linear { linear, of })
}

/// What is computed of square matrices, to `shape`.
pub fn linear(linear: Linear, a: &Array, shape: &[i32], s: &Stream) -> Result<Array> {
    let kernel = kernel(linear, a)?;
    node::typed(kernel, Layout::Rows, &[a], shape, mlx::dtype(a), s)
}

/// A result of the matrices' shape.
pub fn factors(linear: Linear, a: &Array, s: &Stream) -> Result<Array> {
    self::linear(linear, a, a.shape(), s)
}

/// The signs of determinants and the logarithms of their magnitudes, of matrices of three axes or more.
pub fn log_determinant(a: &Array, s: &Stream) -> Result<Vec<Array>> {
    let kernel = kernel(Linear::LogDeterminant, a)?;
    let dtype = mlx::dtype(a);
    let outputs = Outputs {
        shape: &a.shape()[..a.ndim() - 2],
        dtypes: &[dtype, dtype],
        // The input is needed for both.
        takers: &[2],
    };
    Ok(node::several(kernel, &[a], outputs, s)?.into_vec())
}

/// x with a·x = b, of one type; b {…, n, m}, broadcast to `shape`.
pub fn solve(linear: Linear, a: &Array, b: &Array, shape: &[i32], s: &Stream) -> Result<Array> {
    let kernel = kernel(linear, a)?;
    node::typed(kernel, Layout::Rows, &[a, b], shape, mlx::dtype(a), s)
}

/// A transform of f32 or c64, as its form says.
pub fn fft(fft: Fft, a: &Array, s: &Stream) -> Result<Array> {
    let mut shape = a.shape().to_vec();
    shape[usize::from(fft.axis)] = fft.results();
    let dtype = match fft.form {
        Form::FromHalf => Dtype::F32,
        _ => Dtype::C64,
    };
    node::typed(Kernel::Fft(fft), Layout::Rows, &[a], &shape, dtype, s)
}
