//! Arrays made of attributes alone. Other families take from here the scalars that they compose with.
//! Called by [`Op::apply`] for operations of [`Class::Creation`](super::Class::Creation).

use super::table::{family, others};
use super::{binary, cast, check, gpu, one, Inputs, NonFinite, Number, Op, Outputs};
use crate::base::{Device, Dtype, Error, Result};
use crate::mlx::{self, Stream};
use half::{bf16, f16};
use mlx_rs::Array;

family! { Creation, takes(0):
    // Inputs: none.
    Constant { value: Number, dtype: Dtype },
    /// Inputs: value.
    Full { shape: Vec<i32>, dtype: Dtype } => takes(1),
    Zeros { shape: Vec<i32>, dtype: Dtype },
    Ones { shape: Vec<i32>, dtype: Dtype },
    Arange { start: f64, stop: f64, step: f64, dtype: Dtype },
    Linspace { start: f64, stop: f64, num: i32, dtype: Dtype },
    /// Counts along one axis; `axis: nil` counts the elements in row-major order.
    Iota { shape: Vec<i32>, axis: Option<i32>, dtype: Dtype },
    Eye { n: i32, m: i32, k: i32, dtype: Dtype },
    Tri { n: i32, m: i32, k: i32, dtype: Dtype },
}

/// Builds an operation of the class.
pub fn apply(op: &Op, inputs: &Inputs, device: Device, s: &Stream) -> Result<Outputs> {
    if !matches!(op, Op::Full { .. }) {
        inputs.arity(0)?;
    }
    match op {
        Op::Constant { value, dtype } => constant(*value, *dtype).map(one),
        Op::Full { shape, dtype } => {
            let [value] = inputs.exactly()?;
            mlx::full(check::shape(shape)?, value, *dtype, s).map(one)
        }
        Op::Zeros { shape, dtype } => mlx::zeros(check::shape(shape)?, *dtype, s).map(one),
        Op::Ones { shape, dtype } => mlx::ones(check::shape(shape)?, *dtype, s).map(one),
        Op::Arange {
            start,
            stop,
            step,
            dtype,
        } => arange(*start, *stop, *step, *dtype, s).map(one),
        Op::Linspace {
            start,
            stop,
            num,
            dtype,
        } => {
            check::at_least("num", *num, 0)?;
            linspace(*start, *stop, *num, *dtype, s).map(one)
        }
        Op::Iota { shape, axis, dtype } => iota(check::shape(shape)?, *axis, *dtype, s).map(one),
        Op::Eye { n, m, k, dtype } => {
            let k = check::matrix_size(*n, *m, *k, *dtype)?;
            gpu::eye(*n, *m, k, *dtype, device, s).map(one)
        }
        Op::Tri { n, m, k, dtype } => {
            let k = check::matrix_size(*n, *m, *k, *dtype)?;
            gpu::tri(*n, *m, k, *dtype, device, s).map(one)
        }
        others!(Creation) => Err(super::no_case(op)),
    }
}

/// A scalar from a number, without a detour through a type that could not hold it.
pub fn constant(value: Number, dtype: Dtype) -> Result<Array> {
    let (re, im) = match value {
        Number::Int(i) => (i as f64, 0.0),
        Number::Uint(u) => (u as f64, 0.0),
        Number::Float(f) => (f, 0.0),
        Number::Complex(pair) => pair,
        Number::NonFinite(NonFinite::Nan) => (f64::NAN, 0.0),
        Number::NonFinite(NonFinite::Infinity) => (f64::INFINITY, 0.0),
        Number::NonFinite(NonFinite::NegInfinity) => (f64::NEG_INFINITY, 0.0),
    };
    // Integers keep their bits: 64 of them do not fit a float. Two's complement wraps as the narrower types do.
    let bits: i64 = match value {
        Number::Int(i) => i,
        Number::Uint(u) => u as i64,
        _ => re as i64,
    };
    let bytes: Vec<u8> = match dtype {
        Dtype::Bool => vec![u8::from(re != 0.0 || im != 0.0)],
        Dtype::U8 | Dtype::S8 => vec![bits as u8],
        Dtype::U16 | Dtype::S16 => (bits as u16).to_ne_bytes().into(),
        Dtype::U32 | Dtype::S32 => (bits as u32).to_ne_bytes().into(),
        Dtype::U64 if matches!(value, Number::Float(_)) => (re as u64).to_ne_bytes().into(),
        Dtype::U64 | Dtype::S64 => bits.to_ne_bytes().into(),
        Dtype::F16 => f16::from_f64(re).to_ne_bytes().into(),
        Dtype::Bf16 => bf16::from_f64(re).to_ne_bytes().into(),
        Dtype::F32 => (re as f32).to_ne_bytes().into(),
        Dtype::F64 => re.to_ne_bytes().into(),
        Dtype::C64 => [re as f32, im as f32]
            .iter()
            .flat_map(|part| part.to_ne_bytes())
            .collect(),
    };
    mlx::from_bytes(&bytes, &[], dtype)
}

pub fn int(value: i64, dtype: Dtype) -> Result<Array> {
    constant(Number::Int(value), dtype)
}

pub fn float(value: f64, dtype: Dtype) -> Result<Array> {
    constant(Number::Float(value), dtype)
}

pub fn arange(start: f64, stop: f64, step: f64, dtype: Dtype, s: &Stream) -> Result<Array> {
    if !(start.is_finite() && stop.is_finite() && step.is_finite() && step != 0.0) {
        return Err(Error::invalid(format!(
            "start, stop and step must be finite and step not 0, got {start}, {stop}, {step}"
        )));
    }
    if (stop - start) / step > f64::from(i32::MAX) {
        return Err(Error::invalid("has more than 2147483647 elements"));
    }
    if dtype == Dtype::C64 {
        // CUDA counts in real numbers.
        let real = mlx::arange(start, stop, step, Dtype::F32, s)?;
        return mlx::astype(&real, dtype, s);
    }
    mlx::arange(start, stop, step, dtype, s)
}

/// As many numbers from start to stop. MLX computes them in f32 and cuts integers off, which leaves some of them one
/// short; between whole numbers they are quotients of integers here.
pub fn linspace(start: f64, stop: f64, num: i32, dtype: Dtype, s: &Stream) -> Result<Array> {
    let is_whole = |number: f64| number.fract() == 0.0 && number.abs() < f64::from(i32::MAX);
    if !dtype.is_integer() || num < 2 || !is_whole(start) || !is_whole(stop) {
        return mlx::linspace(start, stop, num, dtype, s);
    }
    let wide = |number: i64| int(number, Dtype::S64);
    let last = i64::from(num) - 1;
    let place = mlx::arange(0.0, f64::from(num), 1.0, Dtype::S64, s)?;
    let steps = mlx::multiply(&place, &wide(stop as i64 - start as i64)?, s)?;
    let scaled = mlx::add(&steps, &wide(start as i64 * last)?, s)?;
    mlx::astype(&binary::quotient(&scaled, &wide(last)?, s)?, dtype, s)
}

pub fn iota(shape: &[i32], axis: Option<i32>, dtype: Dtype, s: &Stream) -> Result<Array> {
    let count = |n: i32| {
        // MLX counts in neither bool nor complex numbers.
        let counting = match dtype {
            Dtype::Bool => Dtype::S32,
            Dtype::C64 => Dtype::F32,
            other => other,
        };
        let counted = arange(0.0, f64::from(n), 1.0, counting, s)?;
        mlx::astype(&counted, dtype, s)
    };
    let Some(axis) = axis else {
        return match check::product(shape) {
            Ok(size) => mlx::reshape(&count(size)?, shape, s),
            Err(_) => long_iota(shape, dtype, s),
        };
    };
    let rank = shape.len() as i32;
    if axis < -rank || axis >= rank {
        return Err(Error::invalid(format!(
            "axis {axis} is out of range for shape {shape:?}"
        )));
    }
    let axis = axis.rem_euclid(rank) as usize;
    let mut line = vec![1; shape.len()];
    line[axis] = shape[axis];
    let counted = mlx::reshape(&count(shape[axis])?, &line, s)?;
    mlx::broadcast_to(&counted, shape, s)
}

/// Counts more elements than one axis may have: the sum of counts along each axis. Integers wrap as their type does.
fn long_iota(shape: &[i32], dtype: Dtype, s: &Stream) -> Result<Array> {
    let counting = match dtype.is_integer() {
        true => dtype,
        false => Dtype::S64,
    };
    let mut total = int(0, counting)?;
    let mut step: i64 = 1;
    for (axis, size) in shape.iter().enumerate().rev() {
        let mut line = vec![1; shape.len()];
        line[axis] = *size;
        let count = arange(0.0, f64::from(*size), 1.0, Dtype::S64, s)?;
        let count = mlx::multiply(&count, &int(step, Dtype::S64)?, s)?;
        let count = mlx::reshape(&mlx::astype(&count, counting, s)?, &line, s)?;
        total = mlx::add(&total, &count, s)?;
        step = step.checked_mul(i64::from(*size)).ok_or_else(|| {
            Error::invalid(format!("shape {shape:?} has more than 2^63 - 1 elements"))
        })?;
    }
    cast::astype(&total, dtype, s)
}
