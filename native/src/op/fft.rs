//! Fourier and Hadamard transforms, with the checks and the padding that MLX leaves to its caller.
//! Called by [`Op::apply`] for operations of [`Class::Spectrum`](super::Class::Spectrum).

use super::creation::{float, int};
use super::table::{family, others};
use super::{check, one, shape, Inputs, Op, Outputs, PadMode};
use crate::base::{Device, Dtype, Error, Result};
use crate::cpu::{self, Form};
use crate::mlx::{self, FftNorm, Stream};
use mlx_rs::Array;

family! { Spectrum, takes(1):
    // Inputs: a.
    HadamardTransform { scale: Option<f32> },
    /// Parts of numbers that are at most `eps` become 0.
    Fft { sizes: Vec<i32>, axes: Vec<i32>, norm: FftNorm, eps: Option<f32> },
    Ifft { sizes: Vec<i32>, axes: Vec<i32>, norm: FftNorm, eps: Option<f32> },
    Rfft { sizes: Vec<i32>, axes: Vec<i32>, norm: FftNorm },
    Irfft { sizes: Vec<i32>, axes: Vec<i32>, norm: FftNorm },
    Fftshift { axes: Vec<i32> },
    Ifftshift { axes: Vec<i32> },
}

/// Builds an operation of the class.
pub fn apply(op: &Op, inputs: &Inputs, device: Device, s: &Stream) -> Result<Outputs> {
    let of = |sizes, axes, norm| Transform {
        sizes,
        axes,
        norm,
        is_inverse: matches!(op, Op::Ifft { .. } | Op::Irfft { .. }),
        half: match op {
            Op::Rfft { .. } => Some(Form::ToHalf),
            Op::Irfft { .. } => Some(Form::FromHalf),
            _ => None,
        },
        least: None,
    };
    match op {
        Op::HadamardTransform { scale } => inputs.unary(s, |a, s| hadamard_transform(a, *scale, s)),
        Op::Fft {
            sizes,
            axes,
            norm,
            eps,
        }
        | Op::Ifft {
            sizes,
            axes,
            norm,
            eps,
        } => {
            let least = *eps;
            let transform = Transform {
                least,
                ..of(sizes, axes, *norm)
            };
            transform.apply(inputs, device, s)
        }
        Op::Rfft { sizes, axes, norm } | Op::Irfft { sizes, axes, norm } => {
            of(sizes, axes, *norm).apply(inputs, device, s)
        }
        Op::Fftshift { axes } => inputs.unary(s, |a, s| shift_spectrum(a, axes, mlx::fftshift, s)),
        Op::Ifftshift { axes } => {
            inputs.unary(s, |a, s| shift_spectrum(a, axes, mlx::ifftshift, s))
        }
        others!(Spectrum) => Err(super::no_case(op)),
    }
}

/// A Fourier transform of one array, which is cut or filled up to its sizes.
struct Transform<'a> {
    sizes: &'a [i32],
    axes: &'a [i32],
    norm: FftNorm,
    is_inverse: bool,
    /// Of real numbers or to real numbers, along the last of the axes.
    half: Option<Form>,
    /// Parts of complex results that are at most this become 0.
    least: Option<f32>,
}

impl Transform<'_> {
    fn apply(&self, inputs: &Inputs, device: Device, s: &Stream) -> Result<Outputs> {
        let [a] = inputs.exactly()?;
        let axes = transform_axes(a, self.sizes, self.axes)?;
        if let Some(output) = self.by_kernels(a, &axes, device, s)? {
            return Ok(one(output));
        }
        let (sizes, norm) = (self.sizes, self.norm);
        let is_from_half = self.half == Some(Form::FromHalf);
        let a = &fit_spectrum(a, sizes, &axes, is_from_half, s)?;
        let output = match (self.half, self.is_inverse, device) {
            (Some(Form::FromHalf), _, Device::Gpu) => irfft_of_half(a, sizes, &axes, norm, s),
            (Some(Form::FromHalf), _, Device::Cpu) => mlx::irfft(a, sizes, &axes, norm, s),
            (Some(_), ..) => mlx::rfft(a, sizes, &axes, norm, s),
            (None, true, _) => mlx::ifft(a, sizes, &axes, norm, s),
            (None, false, _) => mlx::fft(a, sizes, &axes, norm, s),
        }?;
        match self.least {
            Some(least) => without_small_parts(&output, least, s).map(one),
            None => Ok(one(output)),
        }
    }

    /// The transform by kernels here, an axis each; None where MLX computes it.
    fn by_kernels(
        &self,
        a: &Array,
        axes: &[i32],
        device: Device,
        s: &Stream,
    ) -> Result<Option<Array>> {
        let is_repeated = |(i, axis): (usize, &i32)| axes[..i].contains(axis);
        let is_complex = mlx::dtype(a) == Dtype::C64;
        if device != Device::Cpu
            || !cpu::are_there()
            || axes.is_empty()
            || axes.iter().enumerate().any(is_repeated)
            || (is_complex && self.half == Some(Form::ToHalf))
        {
            return Ok(None);
        }
        let is_from_half = self.half == Some(Form::FromHalf);
        // A kernel cuts and fills up lines itself. Of several axes one could grow before another one shrinks.
        let a = match axes.len() {
            1 => mlx::share(a)?,
            _ => fit_spectrum(a, self.sizes, axes, is_from_half, s)?,
        };
        let mut x = match is_complex {
            true => a,
            false if is_from_half => mlx::astype(&a, Dtype::C64, s)?,
            false => mlx::astype(&a, Dtype::F32, s)?,
        };
        let elements: f64 = self.sizes.iter().map(|size| f64::from(*size)).product();
        let scale = match (self.norm, self.is_inverse) {
            (FftNorm::Ortho, _) => 1.0 / elements.sqrt(),
            (FftNorm::Backward, false) | (FftNorm::Forward, true) => 1.0,
            (FftNorm::Backward, true) | (FftNorm::Forward, false) => 1.0 / elements,
        };
        let last = axes.len() - 1;
        // The axis of half a spectrum is the first to come from real numbers, and the last to become such.
        let order: Vec<usize> = match self.half {
            Some(Form::FromHalf) => (0..=last).collect(),
            _ => (0..=last).rev().collect(),
        };
        for (step, i) in order.iter().enumerate() {
            let is_last_step = step == last;
            let form = match (self.half, *i == last) {
                (Some(half), true) => half,
                _ if mlx::dtype(&x) == Dtype::C64 => Form::Complex,
                _ => Form::Real,
            };
            let fft = cpu::Fft {
                form,
                axis: axes[*i] as u8,
                size: self.sizes[*i],
                is_inverse: self.is_inverse,
                scale: if is_last_step { scale as f32 } else { 1.0 },
                least: self.least.filter(|_| is_last_step),
            };
            x = cpu::fft(fft, &x, s)?;
        }
        Ok(Some(x))
    }
}

/// Complex numbers whose parts are 0 where they are at most `least`.
fn without_small_parts(a: &Array, least: f32, s: &Stream) -> Result<Array> {
    let least = float(least.into(), Dtype::F32)?;
    let clean = |part: Array| -> Result<Array> {
        let is_small = mlx::less_equal(&mlx::abs(&part, s)?, &least, s)?;
        mlx::where_(&is_small, &float(0.0, Dtype::F32)?, &part, s)
    };
    // A view as pairs of f32 has both parts; a single number has no axis to be twice as long.
    let shape = a.shape();
    let pairs = mlx::view(&mlx::expand_dims(a, &[-1], s)?, Dtype::F32, s)?;
    let clean = mlx::view(&clean(pairs)?, Dtype::C64, s)?;
    mlx::reshape(&clean, shape, s)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mlx::FftNorm;

    #[test]
    fn kernels_transform_as_mlx_does() {
        mlx::init();
        let s = Device::Cpu.stream().expect("the CPU is there");
        let numbers = (0..6 * 7 * 10u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as f32);
        let bytes: Vec<u8> = numbers.flat_map(|x| (x / 4096.0).to_ne_bytes()).collect();
        let real = mlx::from_bytes(&bytes, &[6, 7, 10], Dtype::F32).expect("numbers");
        let pairs = mlx::view(&real, Dtype::C64, s).expect("pairs");
        let turned = mlx::transpose(&pairs, &[2, 0, 1], s).expect("turned");
        for a in [&real, &pairs, &turned] {
            for (axes, sizes) in [
                (&[2][..], &[5][..]),
                (&[0], &[9]),
                (&[1], &[4]),
                (&[0, 2], &[4, 8]),
                (&[2, 0, 1], &[3, 7, 6]),
            ] {
                for norm in [FftNorm::Backward, FftNorm::Ortho, FftNorm::Forward] {
                    for half in [None, Some(Form::ToHalf), Some(Form::FromHalf)] {
                        for is_inverse in [false, true] {
                            let is_inverse = match half {
                                Some(form) => form == Form::FromHalf,
                                None => is_inverse,
                            };
                            let transform = Transform {
                                sizes,
                                axes,
                                norm,
                                is_inverse,
                                half,
                                least: None,
                            };
                            compare(&transform, a, s);
                        }
                    }
                }
            }
        }
    }

    fn compare(of: &Transform, a: &Array, s: &Stream) {
        let ours = of.by_kernels(a, of.axes, Device::Cpu, s).expect("ours");
        let Some(ours) = ours else { return };
        let is_from_half = of.half == Some(Form::FromHalf);
        let a = fit_spectrum(a, of.sizes, of.axes, is_from_half, s).expect("fitted");
        let mlx = match (of.half, of.is_inverse) {
            (Some(Form::FromHalf), _) => mlx::irfft(&a, of.sizes, of.axes, of.norm, s),
            (Some(_), _) => mlx::rfft(&a, of.sizes, of.axes, of.norm, s),
            (None, true) => mlx::ifft(&a, of.sizes, of.axes, of.norm, s),
            (None, false) => mlx::fft(&a, of.sizes, of.axes, of.norm, s),
        };
        let mlx = mlx.expect("MLX's");
        assert_eq!(ours.shape(), mlx.shape());
        assert_eq!(mlx::dtype(&ours), mlx::dtype(&mlx));
        let off = mlx::abs(&mlx::subtract(&ours, &mlx, s).expect("a difference"), s);
        let limit = float(1e-3, Dtype::F32).expect("a number");
        let is_small = mlx::less_equal(&off.expect("magnitudes"), &limit, s).expect("compared");
        let axes: Vec<i32> = (0..is_small.ndim() as i32).collect();
        let all = mlx::all(&is_small, &axes, false, s).expect("all");
        mlx::async_eval(&[&all], &mlx::graph_lock()).expect("submitted");
        s.synchronize().expect("computed");
        // SAFETY: computed.
        let same = unsafe { mlx::bytes(&all) }.expect("in rows").to_vec();
        assert_eq!(same, [1], "{:?} {:?} {:?}", of.sizes, of.axes, of.half);
    }
}
