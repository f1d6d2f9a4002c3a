//! Arrays made of attributes alone. Other families take from here the scalars that they compose with.
//! Called by [`Op::apply`] for operations of [`Class::Creation`](super::Class::Creation).

use super::table::{family, others};
use super::{binary, cast, check, gpu, one, Inputs, NonFinite, Number, Op, Outputs, SMALL};
use crate::base::{Device, Dtype, Error, Result};
use crate::mlx::{self, Stream};
use half::{bf16, f16};
use mlx_rs::Array;
use smallvec::SmallVec;

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
    if device == Device::Cpu && mlx::has_tasks() {
        if let Some(array) = at_once(op, inputs, s)? {
            return Ok(one(array));
        }
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

/// A small array of the CPU, computed. None where it is not small, or MLX makes it with numbers of its own.
fn at_once(op: &Op, inputs: &Inputs, s: &Stream) -> Result<Option<Array>> {
    let size = |shape: &[i32]| check::product(shape).ok().map(|size| size as usize);
    let is_small = |shape: &[i32]| size(shape).is_some_and(|size| (1..=SMALL).contains(&size));
    match op {
        Op::Full { shape, dtype } if is_small(check::shape(shape)?) => {
            let [value] = inputs.exactly()?;
            let given = [Some(value)];
            let cast = Op::Astype { dtype: *dtype }.apply(&Inputs(&given), Device::Cpu, s)?;
            let full = mlx::broadcast_to(&cast.outputs[0], shape, s)?;
            Ok(mlx::look(&full, s).then_some(full))
        }
        Op::Zeros { shape, dtype } | Op::Ones { shape, dtype }
            if is_small(check::shape(shape)?) =>
        {
            let number = i64::from(matches!(op, Op::Ones { .. }));
            let bytes = bytes_of(Number::Int(number), *dtype);
            let size = size(shape).unwrap_or(0);
            mlx::from_bytes(&bytes.repeat(size), shape, *dtype).map(Some)
        }
        Op::Iota { shape, axis, dtype } if is_small(check::shape(shape)?) => {
            let rank = shape.len() as i32;
            let (count, step) = match axis {
                // An axis out of range is an error, which `iota` returns.
                Some(axis) if *axis < -rank || *axis >= rank => return Ok(None),
                Some(axis) => {
                    let axis = axis.rem_euclid(rank) as usize;
                    (shape[axis], check::product(&shape[axis + 1..])?)
                }
                None => (i32::MAX, 1),
            };
            let numbers = (0..check::product(shape)?).map(|i| i / step % count);
            counted(numbers, *dtype)
                .map(|bytes| mlx::from_bytes(&bytes, shape, *dtype))
                .transpose()
        }
        Op::Eye { n, m, k, dtype } | Op::Tri { n, m, k, dtype }
            if is_small(check::shape(&[*n, *m])?) =>
        {
            let k = i64::from(check::matrix_size(*n, *m, *k, *dtype)?);
            let numbers = [0, 1].map(|number| bytes_of(Number::Int(number), *dtype));
            let mut bytes = Vec::with_capacity(numbers[0].len() * (*n * *m) as usize);
            for (row, column) in (0..i64::from(*n))
                .flat_map(|row| (0..i64::from(*m)).map(move |column| (row, column)))
            {
                let is_one = match op {
                    Op::Eye { .. } => column == row + k,
                    _ => column <= row + k,
                };
                bytes.extend_from_slice(&numbers[usize::from(is_one)]);
            }
            mlx::from_bytes(&bytes, &[*n, *m], *dtype).map(Some)
        }
        _ => Ok(None),
    }
}

/// The bytes of small counts, of the types that hold each of them.
fn counted(numbers: impl Iterator<Item = i32>, dtype: Dtype) -> Option<Vec<u8>> {
    macro_rules! counted {
        ($($dtype:ident $type:ty),*) => {
            Some(match dtype {
                $(Dtype::$dtype => numbers.flat_map(|n| (n as $type).to_ne_bytes()).collect(),)*
                _ => return None,
            })
        };
    }
    counted!(U8 u8, S8 i8, U16 u16, S16 i16, U32 u32, S32 i32, U64 u64, S64 i64, F32 f32, F64 f64)
}

/// A scalar from a number, without a detour through a type that could not hold it.
pub fn constant(value: Number, dtype: Dtype) -> Result<Array> {
    mlx::from_bytes(&bytes_of(value, dtype), &[], dtype)
}

fn bytes_of(value: Number, dtype: Dtype) -> SmallVec<[u8; 8]> {
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
    let mut bytes = SmallVec::new();
    match dtype {
        Dtype::Bool => bytes.push(u8::from(re != 0.0 || im != 0.0)),
        Dtype::U8 | Dtype::S8 => bytes.push(bits as u8),
        Dtype::U16 | Dtype::S16 => bytes.extend((bits as u16).to_ne_bytes()),
        Dtype::U32 | Dtype::S32 => bytes.extend((bits as u32).to_ne_bytes()),
        Dtype::U64 if matches!(value, Number::Float(_)) => bytes.extend((re as u64).to_ne_bytes()),
        Dtype::U64 | Dtype::S64 => bytes.extend(bits.to_ne_bytes()),
        Dtype::F16 => bytes.extend(f16::from_f64(re).to_ne_bytes()),
        Dtype::Bf16 => bytes.extend(bf16::from_f64(re).to_ne_bytes()),
        Dtype::F32 => bytes.extend((re as f32).to_ne_bytes()),
        Dtype::F64 => bytes.extend(re.to_ne_bytes()),
        Dtype::C64 => {
            bytes.extend((re as f32).to_ne_bytes());
            bytes.extend((im as f32).to_ne_bytes());
        }
    }
    bytes
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
