//! Fourier and Hadamard transforms, with the checks and the padding that MLX leaves to its caller.
//! Called by [`Op::apply`] for operations of [`Class::Spectrum`](super::Class::Spectrum).

use super::creation::int;
use super::table::{family, others};
use super::{check, one, shape, Inputs, Op, Outputs, PadMode};
use crate::base::{Device, Dtype, Error, Result};
use crate::mlx::{self, FftNorm, Stream};
use mlx_rs::Array;

family! { Spectrum, takes(1):
    // Inputs: a.
    HadamardTransform { scale: Option<f32> },
    Fft { sizes: Vec<i32>, axes: Vec<i32>, norm: FftNorm },
    Ifft { sizes: Vec<i32>, axes: Vec<i32>, norm: FftNorm },
    Rfft { sizes: Vec<i32>, axes: Vec<i32>, norm: FftNorm },
    Irfft { sizes: Vec<i32>, axes: Vec<i32>, norm: FftNorm },
    Fftshift { axes: Vec<i32> },
    Ifftshift { axes: Vec<i32> },
}

/// Builds an operation of the class.
pub fn apply(op: &Op, inputs: &Inputs, device: Device, s: &Stream) -> Result<Outputs> {
    let is_half = matches!(op, Op::Irfft { .. });
    match op {
        Op::HadamardTransform { scale } => inputs.unary(s, |a, s| hadamard_transform(a, *scale, s)),
        Op::Fft { sizes, axes, norm } => transform(inputs, sizes, axes, is_half, s, |a, axes| {
            mlx::fft(a, sizes, axes, *norm, s)
        }),
        Op::Ifft { sizes, axes, norm } => transform(inputs, sizes, axes, is_half, s, |a, axes| {
            mlx::ifft(a, sizes, axes, *norm, s)
        }),
        Op::Rfft { sizes, axes, norm } => transform(inputs, sizes, axes, is_half, s, |a, axes| {
            mlx::rfft(a, sizes, axes, *norm, s)
        }),
        Op::Irfft { sizes, axes, norm } => {
            transform(inputs, sizes, axes, is_half, s, |a, axes| match device {
                Device::Cpu => mlx::irfft(a, sizes, axes, *norm, s),
                Device::Gpu => irfft_of_half(a, sizes, axes, *norm, s),
            })
        }
        Op::Fftshift { axes } => inputs.unary(s, |a, s| shift_spectrum(a, axes, mlx::fftshift, s)),
        Op::Ifftshift { axes } => {
            inputs.unary(s, |a, s| shift_spectrum(a, axes, mlx::ifftshift, s))
        }
        others!(Spectrum) => Err(super::no_case(op)),
    }
}

/// The output of a Fourier transform of one array, cut or filled up to its sizes.
fn transform(
    inputs: &Inputs,
    sizes: &[i32],
    axes: &[i32],
    is_half: bool,
    s: &Stream,
    f: impl FnOnce(&Array, &[i32]) -> Result<Array>,
) -> Result<Outputs> {
    let [a] = inputs.exactly()?;
    let axes = transform_axes(a, sizes, axes)?;
    f(&fit_spectrum(a, sizes, &axes, is_half, s)?, &axes).map(one)
}

/// The Hadamard transform. MLX refuses f64 and complex numbers only when it computes.
pub fn hadamard_transform(a: &Array, scale: Option<f32>, s: &Stream) -> Result<Array> {
    let dtype = mlx::dtype(a);
    if matches!(dtype, Dtype::F64 | Dtype::C64) {
        return Err(Error::invalid(format!(
            "takes numbers of up to 32 bits, got {}; cast them to f32",
            dtype.name()
        )));
    }
    mlx::hadamard_transform(a, scale, s)
}

/// The real signal of half a spectrum. The first frequency, and of an even size the last, are real in the spectrum of
/// a real signal, and their imaginary parts count for nothing. cuFFT takes them to be zero, and at some sizes computes
/// with them.
pub fn irfft_of_half(
    a: &Array,
    sizes: &[i32],
    axes: &[i32],
    norm: FftNorm,
    s: &Stream,
) -> Result<Array> {
    let (Some((size, others)), Some((axis, other_axes))) = (sizes.split_last(), axes.split_last())
    else {
        return mlx::irfft(a, sizes, axes, norm, s);
    };
    let a = match others.is_empty() {
        true => mlx::share(a)?,
        false => mlx::ifft(a, others, other_axes, norm, s)?,
    };
    let count = a.shape()[*axis as usize];
    let places = mlx::arange(0.0, f64::from(count), 1.0, Dtype::S32, s)?;
    let mut is_real = mlx::equal(&places, &int(0, Dtype::S32)?, s)?;
    if size % 2 == 0 {
        let last = mlx::equal(&places, &int((count - 1).into(), Dtype::S32)?, s)?;
        is_real = mlx::logical_or(&is_real, &last, s)?;
    }
    let mut shape = vec![1; a.ndim()];
    shape[*axis as usize] = count;
    let is_real = mlx::reshape(&is_real, &shape, s)?;
    let a = mlx::where_(&is_real, &mlx::real(&a, s)?, &a, s)?;
    mlx::irfft(&a, &[*size], &[*axis], norm, s)
}

/// Sizes and axes of a Fourier transform that MLX can pad to.
pub fn transform_axes(a: &Array, sizes: &[i32], axes: &[i32]) -> Result<Vec<i32>> {
    check::length("sizes", sizes.len(), axes.len())?;
    let axes = check::axes(a, axes)?;
    check::not_empty("a", a)?;
    let mut elements = a.size() as u128;
    for (size, axis) in sizes.iter().zip(&axes) {
        check::at_least("sizes", *size, 1)?;
        elements = elements / a.shape()[*axis as usize] as u128 * *size as u128;
    }
    mlx::check_bytes(elements * Dtype::C64.size() as u128)?;
    Ok(axes)
}

/// Axes cut or filled up with zeros to the sizes of a transform; MLX does it on a stream of its own choice. The last
/// axis of half a spectrum has half the size, plus one.
pub fn fit_spectrum(
    a: &Array,
    sizes: &[i32],
    axes: &[i32],
    is_half: bool,
    s: &Stream,
) -> Result<Array> {
    let mut high: Vec<i32> = sizes
        .iter()
        .zip(axes)
        .map(|(size, axis)| size - a.shape()[*axis as usize])
        .collect();
    if let (true, Some(last), Some(axis)) = (is_half, high.last_mut(), axes.last()) {
        *last = sizes[sizes.len() - 1] / 2 + 1 - a.shape()[*axis as usize];
    }
    if high.iter().all(|width| *width == 0) {
        return mlx::share(a);
    }
    let zero = int(0, mlx::dtype(a))?;
    shape::pad(
        a,
        &zero,
        axes,
        &vec![0; axes.len()],
        &high,
        PadMode::Constant,
        s,
    )
}

type Shift = fn(&Array, &[i32], &Stream) -> Result<Array>;

pub fn shift_spectrum(a: &Array, axes: &[i32], shift: Shift, s: &Stream) -> Result<Array> {
    let axes = check::axes(a, axes)?;
    if a.size() == 0 {
        return mlx::share(a);
    }
    shift(a, &axes, s)
}
