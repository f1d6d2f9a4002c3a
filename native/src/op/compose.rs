//! Operations that MLX does not have, or has with other semantics, composed from those it has.

use super::check;
use super::gpu;
use super::{NonFinite, Number, PadMode, Side, Which};
use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::kernels;
use crate::mlx::{self, Stream, Vector};
use half::{bf16, f16};
use mlx_rs::Array;
use smallvec::SmallVec;

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

fn int(value: i64, dtype: Dtype) -> Result<Array> {
    constant(Number::Int(value), dtype)
}

fn float(value: f64, dtype: Dtype) -> Result<Array> {
    constant(Number::Float(value), dtype)
}

/// The type that MLX promotes two types to.
pub fn promoted_type(left: Dtype, right: Dtype, s: &Stream) -> Result<Dtype> {
    if left == right {
        return Ok(left);
    }
    // MLX's own promotion, asked for by an operation on scalars of the two types.
    let both = mlx::maximum(&mlx::zeros(&[], left, s)?, &mlx::zeros(&[], right, s)?, s)?;
    Ok(mlx::dtype(&both))
}

/// Both arrays in the type that MLX promotes them to.
pub fn promoted(a: &Array, b: &Array, s: &Stream) -> Result<(Array, Array)> {
    let dtype = promoted_type(mlx::dtype(a), mlx::dtype(b), s)?;
    Ok((mlx::astype(a, dtype, s)?, mlx::astype(b, dtype, s)?))
}

pub fn logical_xor(a: &Array, b: &Array, s: &Stream) -> Result<Array> {
    mlx::not_equal(&truth(a, s)?, &truth(b, s)?, s)
}

/// Whether each element is not zero. MLX's change of type looks at the real part alone.
fn truth(a: &Array, s: &Stream) -> Result<Array> {
    match mlx::dtype(a) {
        Dtype::C64 => mlx::not_equal(a, &int(0, Dtype::C64)?, s),
        _ => mlx::astype(a, Dtype::Bool, s),
    }
}

pub fn astype(a: &Array, dtype: Dtype, s: &Stream) -> Result<Array> {
    match dtype {
        Dtype::Bool => truth(a, s),
        // On CUDA a boolean would be the imaginary part as well.
        Dtype::C64 if mlx::dtype(a) == Dtype::Bool => {
            mlx::astype(&mlx::astype(a, Dtype::F32, s)?, dtype, s)
        }
        _ => mlx::astype(a, dtype, s),
    }
}

pub fn all(a: &Array, axes: &[i32], keepdims: bool, s: &Stream) -> Result<Array> {
    match mlx::dtype(a) {
        Dtype::C64 => mlx::all(&truth(a, s)?, axes, keepdims, s),
        _ => mlx::all(a, axes, keepdims, s),
    }
}

pub fn any(a: &Array, axes: &[i32], keepdims: bool, s: &Stream) -> Result<Array> {
    match mlx::dtype(a) {
        Dtype::C64 => mlx::any(&truth(a, s)?, axes, keepdims, s),
        _ => mlx::any(a, axes, keepdims, s),
    }
}

pub fn logical_not(a: &Array, s: &Stream) -> Result<Array> {
    mlx::logical_not(&truth(a, s)?, s)
}

pub fn logical_and(a: &Array, b: &Array, s: &Stream) -> Result<Array> {
    mlx::logical_and(&truth(a, s)?, &truth(b, s)?, s)
}

pub fn logical_or(a: &Array, b: &Array, s: &Stream) -> Result<Array> {
    mlx::logical_or(&truth(a, s)?, &truth(b, s)?, s)
}

/// Of booleans MLX's CPU form gives the first operand where it writes the result over it.
pub fn bitwise_xor(a: &Array, b: &Array, s: &Stream) -> Result<Array> {
    if mlx::dtype(a) == Dtype::Bool && mlx::dtype(b) == Dtype::Bool {
        return mlx::not_equal(a, b, s);
    }
    mlx::bitwise_xor(a, b, s)
}

/// In f32 for 16-bit floats on the CPU, where MLX adds them up in their own width and so loses most of a long sum.
pub fn in_single(
    a: &Array,
    device: Device,
    s: &Stream,
    compute: impl Fn(&Array) -> Result<Array>,
) -> Result<Array> {
    let dtype = mlx::dtype(a);
    if device != Device::Cpu || !dtype.is_half() {
        return compute(a);
    }
    let out = compute(&mlx::astype(a, Dtype::F32, s)?)?;
    match mlx::dtype(&out) {
        Dtype::F32 => mlx::astype(&out, dtype, s),
        _ => Ok(out),
    }
}

/// A product with a quantized matrix, in f32 for 16-bit floats on the CPU as in [`in_single`].
pub fn quantized_in_single(
    x: &Array,
    scales: &Array,
    biases: Option<&Array>,
    device: Device,
    s: &Stream,
    product: impl Fn(&Array, &Array, Option<&Array>) -> Result<Array>,
) -> Result<Array> {
    if device != Device::Cpu || !mlx::dtype(x).is_half() {
        return product(x, scales, biases);
    }
    let single = |part: &Array| match mlx::dtype(part).is_half() {
        true => mlx::astype(part, Dtype::F32, s),
        // The scales of formats that are floats themselves.
        false => mlx::share(part),
    };
    let (scales, biases) = (single(scales)?, biases.map(single).transpose()?);
    in_single(x, device, s, |x| product(x, &scales, biases.as_ref()))
}

/// The magnitude of NaN in 8 bits: all ones.
const NAN_OF_8_BITS: Number = Number::Int(0x7f);

/// To 8-bit floats. MLX's kernel takes f64 for what it is not, and NaN for the largest number.
pub fn to_fp8(a: &Array, s: &Stream) -> Result<Array> {
    let bits = match mlx::dtype(a) {
        Dtype::F64 => mlx::to_fp8(&mlx::astype(a, Dtype::F32, s)?, s)?,
        _ => mlx::to_fp8(a, s)?,
    };
    let nan = constant(NAN_OF_8_BITS, Dtype::U8)?;
    mlx::where_(&mlx::isnan(a, s)?, &nan, &bits, s)
}

/// Of 8-bit floats. MLX's kernel on the CPU takes NaN for 480.
pub fn from_fp8(bits: &Array, dtype: Dtype, s: &Stream) -> Result<Array> {
    let values = mlx::from_fp8(bits, dtype, s)?;
    if s.is_gpu() {
        return Ok(values);
    }
    let nan_bits = constant(NAN_OF_8_BITS, Dtype::U8)?;
    let is_nan = mlx::equal(&mlx::bitwise_and(bits, &nan_bits, s)?, &nan_bits, s)?;
    let nan = constant(Number::Float(f64::NAN), dtype)?;
    mlx::where_(&is_nan, &nan, &values, s)
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

/// A reduction whose value over no elements is `of_none`: MLX's may not end where an axis of a view is empty.
pub fn total(
    a: &Array,
    axes: &[i32],
    keepdims: bool,
    of_none: f64,
    s: &Stream,
    reduce: impl Fn(&Array) -> Result<Array>,
) -> Result<Array> {
    if a.size() > 0 {
        return reduce(a);
    }
    // One element stands for none: the shape and the type of the result are those of any reduction.
    let sizes = a.shape().iter().enumerate();
    let one: Vec<i32> = sizes
        .map(|(axis, size)| {
            if axes.contains(&(axis as i32)) {
                1
            } else {
                *size
            }
        })
        .collect();
    let one = mlx::zeros(&one, mlx::dtype(a), s)?;
    let dtype = mlx::dtype(&reduce(&mlx::zeros(&vec![1; a.ndim()], mlx::dtype(a), s)?)?);
    let shape = if keepdims {
        one.shape().to_vec()
    } else {
        mlx::squeeze(&one, axes, s)?.shape().to_vec()
    };
    mlx::full(&shape, &float(of_none, dtype)?, dtype, s)
}

/// a - trunc(a / b)·b, exact for integers: |a| mod |b| with the sign of a.
pub fn fmod(a: &Array, b: &Array, s: &Stream) -> Result<Array> {
    let (a, b) = promoted(a, b, s)?;
    let dtype = mlx::dtype(&a);
    if dtype.is_unsigned_integer() || dtype == Dtype::Bool {
        return remainder(&a, &b, s);
    }
    if dtype == Dtype::C64 {
        return Err(Error::invalid("complex numbers have no remainder"));
    }
    if dtype.is_float() {
        // Of magnitudes the two are the same, and exact.
        let r = mlx::remainder(&mlx::abs(&a, s)?, &mlx::abs(&b, s)?, s)?;
        let negative = mlx::less(&a, &float(0.0, dtype)?, s)?;
        return mlx::where_(&negative, &mlx::negative(&r, s)?, &r, s);
    }
    // Python's remainder r has the sign of b. Where that is not the sign of a, C's is r - b.
    let r = remainder(&a, &b, s)?;
    let zero = int(0, dtype)?;
    let differs = logical_xor(&mlx::less(&a, &zero, s)?, &mlx::less(&b, &zero, s)?, s)?;
    let adjust = mlx::logical_and(&differs, &mlx::not_equal(&r, &zero, s)?, s)?;
    mlx::where_(&adjust, &mlx::subtract(&r, &b, s)?, &r, s)
}

/// Python's remainder. Integer division by zero traps on x86; it gives 0 here.
pub fn remainder(a: &Array, b: &Array, s: &Stream) -> Result<Array> {
    let (a, b) = promoted(a, b, s)?;
    let (a, b) = (integral(&a, s)?, integral(&b, s)?);
    let dtype = mlx::dtype(&a);
    if !dtype.is_integer() {
        return mlx::remainder(&a, &b, s);
    }
    let (safe, invalid) = safe_divisor(&b, dtype, s)?;
    let r = mlx::remainder(&a, &safe, s)?;
    mlx::where_(&invalid, &int(0, dtype)?, &r, s)
}

/// The divisor with 0 and -1 replaced by 1, and where it was either. The smallest integer over -1 traps as a division by zero does.
fn safe_divisor(b: &Array, dtype: Dtype, s: &Stream) -> Result<(Array, Array)> {
    let one = int(1, dtype)?;
    let mut invalid = mlx::equal(b, &int(0, dtype)?, s)?;
    if dtype.is_signed_integer() {
        invalid = mlx::logical_or(&invalid, &mlx::equal(b, &int(-1, dtype)?, s)?, s)?;
    }
    Ok((mlx::where_(&invalid, &one, b, s)?, invalid))
}

/// Integer quotient rounded toward zero; by zero it gives 0.
pub fn quotient(a: &Array, b: &Array, s: &Stream) -> Result<Array> {
    let (a, b) = promoted(a, b, s)?;
    let dtype = mlx::dtype(&a);
    if !dtype.is_integer() {
        return Err(Error::invalid(format!(
            "takes integers, got {}; divide and truncate instead",
            dtype.name()
        )));
    }
    let zero = int(0, dtype)?;
    let (safe, _) = safe_divisor(&b, dtype, s)?;
    // a - fmod(a, b) is a multiple of b, so that MLX's division, however it rounds, is exact.
    let multiple = mlx::subtract(&a, &fmod(&a, &safe, s)?, s)?;
    let mut q = mlx::floor_divide(&multiple, &safe, s)?;
    if dtype.is_signed_integer() {
        let minus_one = mlx::equal(&b, &int(-1, dtype)?, s)?;
        q = mlx::where_(&minus_one, &mlx::negative(&a, s)?, &q, s)?;
    }
    mlx::where_(&mlx::equal(&b, &zero, s)?, &zero, &q, s)
}

/// a / b rounded down; by zero it gives 0 for integers.
pub fn floor_divide(a: &Array, b: &Array, s: &Stream) -> Result<Array> {
    let (a, b) = promoted(a, b, s)?;
    let dtype = mlx::dtype(&a);
    if !dtype.is_integer() && dtype != Dtype::Bool {
        return mlx::floor_divide(&a, &b, s);
    }
    let (a, b) = (integral(&a, s)?, integral(&b, s)?);
    let q = quotient(&a, &b, s)?;
    // One less where something remains and the signs differ, that is where the two kinds of remainder do.
    let lower = mlx::not_equal(&remainder(&a, &b, s)?, &fmod(&a, &b, s)?, s)?;
    mlx::subtract(&q, &mlx::astype(&lower, mlx::dtype(&q), s)?, s)
}

/// Booleans as the integers that they are counted in.
fn integral(a: &Array, s: &Stream) -> Result<Array> {
    match mlx::dtype(a) {
        Dtype::Bool => mlx::astype(a, Dtype::S32, s),
        _ => mlx::share(a),
    }
}

/// The number of bits to shift by, and where that is the width or more (undefined in C, and so in MLX).
fn shift_of(b: &Array, dtype: Dtype, s: &Stream) -> Result<(Array, Array)> {
    let width = int(8 * dtype.size() as i64, dtype)?;
    let too_far = mlx::logical_or(
        &mlx::greater_equal(b, &width, s)?,
        &mlx::less(b, &int(0, dtype)?, s)?,
        s,
    )?;
    Ok((mlx::where_(&too_far, &int(0, dtype)?, b, s)?, too_far))
}

pub fn left_shift(a: &Array, b: &Array, s: &Stream) -> Result<Array> {
    let (a, b) = promoted(a, b, s)?;
    let dtype = mlx::dtype(&a);
    if !dtype.is_integer() {
        return mlx::left_shift(&a, &b, s);
    }
    let (by, too_far) = shift_of(&b, dtype, s)?;
    mlx::where_(&too_far, &int(0, dtype)?, &mlx::left_shift(&a, &by, s)?, s)
}

pub fn right_shift(a: &Array, b: &Array, s: &Stream) -> Result<Array> {
    let (a, b) = promoted(a, b, s)?;
    let dtype = mlx::dtype(&a);
    if !dtype.is_integer() {
        return mlx::right_shift(&a, &b, s);
    }
    let (by, too_far) = shift_of(&b, dtype, s)?;
    let zero = int(0, dtype)?;
    let gone = if dtype.is_signed_integer() {
        mlx::where_(&mlx::less(&a, &zero, s)?, &int(-1, dtype)?, &zero, s)?
    } else {
        zero
    };
    mlx::where_(&too_far, &gone, &mlx::right_shift(&a, &by, s)?, s)
}

/// exp(a) - 1, of complex numbers too.
pub fn expm1(a: &Array, s: &Stream) -> Result<Array> {
    match mlx::dtype(a) {
        Dtype::C64 => mlx::subtract(&mlx::exp(a, s)?, &int(1, Dtype::C64)?, s),
        _ => mlx::expm1(a, s),
    }
}

/// 1 / (1 + exp(-a)), of complex numbers too.
pub fn sigmoid(a: &Array, s: &Stream) -> Result<Array> {
    match mlx::dtype(a) {
        Dtype::C64 => {
            let one = int(1, Dtype::C64)?;
            let exp = mlx::exp(&mlx::negative(a, s)?, s)?;
            mlx::divide(&one, &mlx::add(&one, &exp, s)?, s)
        }
        _ => mlx::sigmoid(a, s),
    }
}

/// The real cube root, of negative numbers too; the principal one of complex numbers.
pub fn cbrt(a: &Array, s: &Stream) -> Result<Array> {
    let dtype = mlx::dtype(a);
    if dtype == Dtype::C64 {
        let third = mlx::divide(&mlx::log(a, s)?, &int(3, Dtype::C64)?, s)?;
        let root = mlx::exp(&third, s)?;
        let zero = mlx::equal(a, &int(0, Dtype::C64)?, s)?;
        return mlx::where_(&zero, a, &root, s);
    }
    let a = if dtype.is_float() {
        mlx::copy(a, s)?
    } else {
        mlx::astype(a, Dtype::F32, s)?
    };
    let dtype = mlx::dtype(&a);
    let magnitude = mlx::abs(&a, s)?;
    let third = float(1.0 / 3.0, dtype)?;
    let root = mlx::power(&magnitude, &third, s)?;
    // One Newton step takes the error of a rounded third out: y - (y - x/y²)/3.
    let squared = mlx::square(&root, s)?;
    let step = mlx::multiply(
        &mlx::subtract(&root, &mlx::divide(&magnitude, &squared, s)?, s)?,
        &third,
        s,
    )?;
    let finer = mlx::subtract(&root, &step, s)?;
    let usable = mlx::logical_and(
        &mlx::greater(&squared, &float(0.0, dtype)?, s)?,
        &mlx::isfinite(&squared, s)?,
        s,
    )?;
    let root = mlx::where_(&usable, &finer, &root, s)?;
    mlx::multiply(&mlx::sign(&a, s)?, &root, s)
}

/// 1 - erf(x) without the cancellation for large x: the rational Chebyshev form of Numerical Recipes in C
/// (2nd edition, section 6.2), whose relative error is below 1.2e-7 everywhere.
pub fn erfc(a: &Array, s: &Stream) -> Result<Array> {
    const COEFFICIENTS: [f64; 10] = [
        0.17087277,
        -0.82215223,
        1.48851587,
        -1.13520398,
        0.27886807,
        -0.18628806,
        0.09678418,
        0.37409196,
        1.00002368,
        -1.26551223,
    ];
    let given = mlx::dtype(a);
    let out = if given.is_float() { given } else { Dtype::F32 };
    if out == Dtype::F64 {
        return mlx::subtract(
            &float(1.0, out)?,
            &mlx::erf(&mlx::astype(a, out, s)?, s)?,
            s,
        );
    }
    let work = Dtype::F32;
    let x = mlx::astype(a, work, s)?;
    let z = mlx::abs(&x, s)?;
    let one = float(1.0, work)?;
    let half_z = mlx::multiply(&z, &float(0.5, work)?, s)?;
    let t = mlx::reciprocal(&mlx::add(&one, &half_z, s)?, s)?;
    let mut poly = float(COEFFICIENTS[0], work)?;
    for c in &COEFFICIENTS[1..] {
        poly = mlx::add(&mlx::multiply(&poly, &t, s)?, &float(*c, work)?, s)?;
    }
    let exponent = mlx::subtract(&poly, &mlx::square(&z, s)?, s)?;
    let tail = mlx::multiply(&t, &mlx::exp(&exponent, s)?, s)?;
    let negative = mlx::less(&x, &float(0.0, work)?, s)?;
    let mirrored = mlx::subtract(&float(2.0, work)?, &tail, s)?;
    let far = mlx::where_(&negative, &mirrored, &tail, s)?;
    // Near zero nothing cancels, and erf is the finer of the two.
    let near = mlx::subtract(&one, &mlx::erf(&x, s)?, s)?;
    let is_near = mlx::less(&z, &float(0.5, work)?, s)?;
    mlx::astype(&mlx::where_(&is_near, &near, &far, s)?, out, s)
}

/// Counts set bits by adding neighbours, then pairs, then nibbles (Hacker's Delight, section 5-1).
pub fn population_count(a: &Array, s: &Stream) -> Result<Array> {
    let given = mlx::dtype(a);
    if !given.is_integer() {
        return Err(Error::invalid(format!(
            "takes integers, got {}",
            given.name()
        )));
    }
    let dtype = given.unsigned_of_same_size();
    let mask = |byte: u8| int(i64::from_ne_bytes([byte; 8]), dtype);
    let shifted = |x: &Array, by: i64| mlx::right_shift(x, &int(by, dtype)?, s);
    let x = mlx::view(a, dtype, s)?;
    let pairs = mlx::bitwise_and(&shifted(&x, 1)?, &mask(0x55)?, s)?;
    let x = mlx::subtract(&x, &pairs, s)?;
    let low = mlx::bitwise_and(&x, &mask(0x33)?, s)?;
    let high = mlx::bitwise_and(&shifted(&x, 2)?, &mask(0x33)?, s)?;
    let x = mlx::add(&low, &high, s)?;
    let nibbles = mlx::add(&x, &shifted(&x, 4)?, s)?;
    let bytes = mlx::bitwise_and(&nibbles, &mask(0x0f)?, s)?;
    let sums = mlx::multiply(&bytes, &mask(0x01)?, s)?;
    let total = shifted(&sums, 8 * (dtype.size() as i64 - 1))?;
    mlx::astype(&total, given, s)
}

/// Width minus the bits that are set once the highest one is copied to all below it.
pub fn count_leading_zeros(a: &Array, s: &Stream) -> Result<Array> {
    let given = mlx::dtype(a);
    if !given.is_integer() {
        return Err(Error::invalid(format!(
            "takes integers, got {}",
            given.name()
        )));
    }
    let dtype = given.unsigned_of_same_size();
    let width = 8 * dtype.size() as i64;
    let mut x = mlx::view(a, dtype, s)?;
    let mut by = 1;
    while by < width {
        x = mlx::bitwise_or(&x, &mlx::right_shift(&x, &int(by, dtype)?, s)?, s)?;
        by *= 2;
    }
    let set = population_count(&x, s)?;
    mlx::astype(&mlx::subtract(&int(width, dtype)?, &set, s)?, given, s)
}

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
        let places = iota(&line, None, Dtype::S32, s)?;
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

pub fn split(a: &Array, indices: &[i32], axis: i32, s: &Stream) -> Result<Vec<Array>> {
    let axis = check::axis(a, axis)?;
    let length = a.shape()[axis];
    let ordered = indices.windows(2).all(|pair| pair[0] <= pair[1]);
    if !ordered || indices.iter().any(|&i| i < 0 || i > length) {
        return Err(Error::invalid(format!(
            "indices {indices:?} must be in order and within 0..{length}"
        )));
    }
    // By slices: MLX's own parts of a view with negative strides count as contiguous, and what is computed from them
    // reads memory that is not theirs.
    let mut edges = vec![0];
    edges.extend(indices);
    edges.push(length);
    let part = |edge: &[i32]| {
        let (mut start, mut stop) = (vec![0; a.ndim()], a.shape().to_vec());
        (start[axis], stop[axis]) = (edge[0], edge[1]);
        mlx::slice(a, &start, &stop, &vec![1; a.ndim()], s)
    };
    edges.windows(2).map(part).collect()
}

/// The cross product, of arrays in rows for the reason that [`split`] gives: MLX splits them.
pub fn cross(a: &Array, b: &Array, axis: i32, s: &Stream) -> Result<Array> {
    check::axis(a, axis)?;
    check::axis(b, axis)?;
    let (a, b) = (mlx::contiguous(a, false, s)?, mlx::contiguous(b, false, s)?);
    mlx::cross(&a, &b, axis, s)
}

/// Padding on the given axes; a negative width crops.
pub fn pad(
    a: &Array,
    value: &Array,
    axes: &[i32],
    low: &[i32],
    high: &[i32],
    mode: PadMode,
    s: &Stream,
) -> Result<Array> {
    check::lengths(&[("low", low.len()), ("high", high.len())], axes.len())?;
    let axes = &check::axes(a, axes)?;
    // A scalar has no side to put anything on. MLX's CUDA form gives the value.
    if a.ndim() == 0 {
        return mlx::share(a);
    }
    let mut cropped = mlx::share(a)?;
    if low.iter().chain(high).any(|width| *width < 0) {
        let mut start = vec![0; a.ndim()];
        let mut stop = a.shape().to_vec();
        for (i, axis) in axes.iter().enumerate() {
            let axis = check::axis(a, *axis)?;
            start[axis] = (-low[i]).clamp(0, stop[axis]);
            stop[axis] = (stop[axis] + high[i].min(0)).max(start[axis]);
        }
        cropped = mlx::slice(&cropped, &start, &stop, &vec![1; a.ndim()], s)?;
    }
    // On all axes: MLX's edge mode takes no fewer.
    let all: Vec<i32> = (0..a.ndim() as i32).collect();
    let positive = |widths: &[i32]| {
        let mut whole = vec![0; a.ndim()];
        for (axis, width) in axes.iter().zip(widths) {
            whole[*axis as usize] = (*width).max(0);
        }
        whole
    };
    let (low, high) = (positive(low), positive(high));
    let value = mlx::astype(value, mlx::dtype(a), s)?;
    let mode = match mode {
        PadMode::Constant if cropped.size() == 0 => {
            // CUDA's form fills nothing in around no elements.
            let sizes = cropped.shape().iter().zip(low.iter().zip(&high));
            let shape: Vec<i32> = sizes.map(|(size, (low, high))| size + low + high).collect();
            return mlx::full(&shape, &value, mlx::dtype(a), s);
        }
        PadMode::Constant => "constant",
        PadMode::Edge => "edge",
    };
    mlx::pad(&cropped, &all, &low, &high, &value, mode, s)
}

/// Padding on every axis with `interior` values between neighbours, as XLA and Nx define it.
pub fn pad_interior(
    a: &Array,
    value: &Array,
    low: &[i32],
    high: &[i32],
    interior: &[i32],
    s: &Stream,
) -> Result<Array> {
    let rank = a.ndim();
    check::lengths(
        &[
            ("low", low.len()),
            ("high", high.len()),
            ("interior", interior.len()),
        ],
        rank,
    )?;
    if let Some(width) = interior.iter().find(|width| **width < 0) {
        return Err(Error::invalid(format!(
            "interior widths must not be negative, got {width}"
        )));
    }
    if rank == 0 {
        return mlx::share(a);
    }
    let axes: Vec<i32> = (0..rank as i32).collect();
    if interior.iter().all(|width| *width == 0) {
        return pad(a, value, &axes, low, high, PadMode::Constant, s);
    }
    let spread: Vec<i32> = a
        .shape()
        .iter()
        .zip(interior)
        .map(|(size, between)| (size + (size - 1) * between).max(0))
        .collect();
    let steps: Vec<i32> = interior.iter().map(|between| between + 1).collect();
    let value = mlx::astype(value, mlx::dtype(a), s)?;
    let canvas = mlx::full(&spread, &value, mlx::dtype(a), s)?;
    let spread_out = if a.size() == 0 {
        canvas
    } else {
        mlx::slice_update(&canvas, a, &vec![0; rank], &spread, &steps, s)?
    };
    pad(&spread_out, &value, &axes, low, high, PadMode::Constant, s)
}

/// A view with any strides, checked to stay inside the array's own elements.
pub fn as_strided(
    a: &Array,
    shape: &[i32],
    strides: &[i64],
    offset: u64,
    s: &Stream,
) -> Result<Array> {
    check::lengths(&[("strides", strides.len())], shape.len())?;
    let (mut lowest, mut highest) = (offset as i128, offset as i128);
    for (size, stride) in shape.iter().zip(strides) {
        if *size < 0 {
            return Err(Error::invalid(format!(
                "shape {shape:?} has a negative size"
            )));
        }
        let reach = i128::from((*size).max(1) - 1) * i128::from(*stride);
        lowest += reach.min(0);
        highest += reach.max(0);
    }
    let empty = shape.contains(&0);
    if !empty && (lowest < 0 || highest >= a.size() as i128) {
        return Err(Error::invalid(format!(
            "shape {shape:?} with strides {strides:?} and offset {offset} reaches outside the {} elements",
            a.size()
        )));
    }
    if empty {
        return mlx::zeros(shape, mlx::dtype(a), s);
    }
    // MLX strides over a vector's memory as if its elements lay next to each other.
    let rows = mlx::contiguous(a, false, s)?;
    // A copy: MLX's reductions on the CPU write outside their memory where a view's elements overlap.
    let view = mlx::as_strided(&rows, shape, strides, offset as usize, s)?;
    mlx::contiguous(&view, false, s)
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

/// As many numbers from start to stop. MLX computes them in f32 and cuts integers off, which leaves some of them one short; between
/// whole numbers they are quotients of integers here.
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
    mlx::astype(&quotient(&scaled, &wide(last)?, s)?, dtype, s)
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
    astype(&total, dtype, s)
}

// ---- indices ----

fn check_index_type(index: &Array) -> Result<()> {
    let dtype = mlx::dtype(index);
    if dtype.is_integer() {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "indices must be integers, got {}",
        dtype.name()
    )))
}

/// Indices as s64, negative ones counted from the end.
fn counted_from_end(index: &Array, length: i32, s: &Stream) -> Result<Array> {
    check_index_type(index)?;
    let wide = signed_index(index, s)?;
    if !mlx::dtype(index).is_signed_integer() {
        return Ok(wide);
    }
    let from_end = mlx::add(&wide, &int(i64::from(length), Dtype::S64)?, s)?;
    let negative = mlx::less(&wide, &int(0, Dtype::S64)?, s)?;
    mlx::where_(&negative, &from_end, &wide, s)
}

/// An index as s64. Unsigned 64-bit ones above the signed range stay large.
fn signed_index(index: &Array, s: &Stream) -> Result<Array> {
    if mlx::dtype(index) != Dtype::U64 {
        return mlx::astype(index, Dtype::S64, s);
    }
    let top = int(i64::from(i32::MAX), Dtype::U64)?;
    mlx::astype(&mlx::minimum(index, &top, s)?, Dtype::S64, s)
}

/// Indices brought into 0..=last: negative ones count from the end, what is still outside is clamped. MLX reads wherever an
/// index points.
pub fn clamp(index: &Array, length: i32, last: i32, s: &Stream) -> Result<Array> {
    let wide = counted_from_end(index, length, s)?;
    let zero = int(0, Dtype::S64)?;
    let last = int(i64::from(last.max(0)), Dtype::S64)?;
    let within = mlx::clip(&wide, Some(&zero), Some(&last), s)?;
    mlx::astype(&within, Dtype::S32, s)
}

/// One index array an axis of `axes`, each clamped so that its slice fits.
pub fn gather(
    a: &Array,
    indices: &[&Array],
    axes: &[i32],
    slice_sizes: &[i32],
    s: &Stream,
) -> Result<Array> {
    check::lengths(&[("axes", axes.len())], indices.len())?;
    let axes = &check::axes(a, axes)?;
    check::lengths(&[("slice_sizes", slice_sizes.len())], a.ndim())?;
    for (size, length) in slice_sizes.iter().zip(a.shape()) {
        if *size < 0 || size > length {
            return Err(Error::invalid(format!(
                "slice_sizes {slice_sizes:?} do not fit shape {:?}",
                a.shape()
            )));
        }
    }
    let within = indices
        .iter()
        .zip(axes)
        .map(|(index, axis)| {
            let axis = check::axis(a, *axis)?;
            let length = a.shape()[axis];
            if length == 0 && index.size() > 0 {
                return Err(Error::invalid(format!(
                    "axis {axis} of shape {:?} is empty",
                    a.shape()
                )));
            }
            clamp(index, length, length - slice_sizes[axis], s)
        })
        .collect::<Result<Vec<_>>>()?;
    mlx::gather(a, &Vector::new(&within), axes, slice_sizes, s)
}

type Scatter = fn(&Array, &Vector, &Array, &[i32], &Stream) -> Result<Array>;

/// `compute` of the array and the updates in f32 where the array is of 16-bit floats, whose sums and products are
/// rounded once; on the GPU, which has no addition to memory of less than 32 bits, in s32 where it is of short integers.
fn scatter_in_wide(
    a: &Array,
    updates: &Array,
    s: &Stream,
    compute: impl Fn(&Array, &Array) -> Result<Array>,
) -> Result<Array> {
    let dtype = mlx::dtype(a);
    let is_float = dtype.is_float() || dtype == Dtype::C64;
    let wider = match dtype {
        _ if dtype.is_half() => Dtype::F32,
        _ if s.is_gpu() && !is_float && dtype.size() < 4 => Dtype::S32,
        _ => return compute(a, updates),
    };
    // Updates of another type are rounded to the array's first, as they are without this.
    let wide = |array: &Array| mlx::astype(&mlx::astype(array, dtype, s)?, wider, s);
    mlx::astype(&compute(&wide(a)?, &wide(updates)?)?, dtype, s)
}

/// [`scatter`] that adds. On the CPU what comes to one place is added up in f64.
pub fn scatter_add(
    a: &Array,
    updates: &Array,
    indices: &[&Array],
    axes: &[i32],
    device: Device,
    s: &Stream,
) -> Result<Array> {
    if let Some(own) = own_scatter_add(a, updates, indices, axes, device, s)? {
        return Ok(own);
    }
    scatter_in_wide(a, updates, s, |a, updates| {
        scatter(a, updates, indices, axes, mlx::scatter_add, s)
    })
}

pub fn scatter_prod(
    a: &Array,
    updates: &Array,
    indices: &[&Array],
    axes: &[i32],
    s: &Stream,
) -> Result<Array> {
    scatter_in_wide(a, updates, s, |a, updates| {
        scatter(a, updates, indices, axes, mlx::scatter_prod, s)
    })
}

/// The kernel of ours, for floats and complex numbers; None where it is not for them, or where the shapes do not fit,
/// of which MLX says why.
fn own_scatter_add(
    a: &Array,
    updates: &Array,
    indices: &[&Array],
    axes: &[i32],
    device: Device,
    s: &Stream,
) -> Result<Option<Array>> {
    let dtype = mlx::dtype(a);
    let is_pair = dtype == Dtype::C64;
    let takes = device == Device::Cpu && kernels::are_there();
    if !takes || !(kernels::has_type(dtype) || is_pair) || a.size() == 0 {
        return Ok(None);
    }
    check::lengths(&[("axes", axes.len())], indices.len())?;
    let axes = check::axes(a, axes)?;
    let mut shape = Vec::new();
    for index in indices {
        check_index_type(index)?;
        match broadcast_shape(&shape, index.shape()) {
            Some(both) => shape = both,
            None => return Ok(None),
        }
    }
    let own = updates.shape();
    let fits = own.len() == shape.len() + a.ndim()
        && own.starts_with(&shape)
        && own[shape.len()..]
            .iter()
            .zip(a.shape())
            .all(|(own, size)| own <= size);
    if !fits || indices.is_empty() {
        return Ok(None);
    }
    let indices = indices
        .iter()
        .map(|index| mlx::broadcast_to(&signed_index(index, s)?, &shape, s))
        .collect::<Result<Vec<_>>>()?;
    let updates = mlx::astype(updates, dtype, s)?;
    let axes = axes.iter().map(|axis| *axis as u8).collect();
    if !is_pair {
        return kernels::scatter_add(a, &updates, &indices, axes, s).map(Some);
    }
    let (pairs, updates) = (as_pairs(a, s)?, as_pairs(&updates, s)?);
    let added = kernels::scatter_add(&pairs, &updates, &indices, axes, s)?;
    let added = mlx::view(&added, Dtype::C64, s)?;
    mlx::squeeze(&added, &[a.ndim() as i32], s).map(Some)
}

/// Complex numbers as their parts along one more axis.
fn as_pairs(a: &Array, s: &Stream) -> Result<Array> {
    mlx::view(&mlx::expand_dims(a, &[a.ndim() as i32], s)?, Dtype::F32, s)
}

/// The shape that two shapes broadcast to.
pub fn broadcast_shape(a: &[i32], b: &[i32]) -> Option<Vec<i32>> {
    let rank = a.len().max(b.len());
    let size = |shape: &[i32], axis: usize| match (axis + shape.len()).checked_sub(rank) {
        Some(own) => shape[own],
        None => 1,
    };
    (0..rank)
        .map(|axis| match (size(a, axis), size(b, axis)) {
            (one, other) if one == other || other == 1 => Some(one),
            (1, other) => Some(other),
            _ => None,
        })
        .collect()
}

/// `canvas` {n} with `updates` {count} added at `places` {count}, all of which are there.
pub fn add_at(
    canvas: &Array,
    updates: &Array,
    places: &Array,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    let updates = mlx::reshape(updates, &[updates.size() as i32, 1], s)?;
    if let Some(own) = own_scatter_add(canvas, &updates, &[places], &[0], device, s)? {
        return Ok(own);
    }
    scatter_in_wide(canvas, &updates, s, |canvas, updates| {
        mlx::scatter_add(canvas, &Vector::new([places]), updates, &[0], s)
    })
}

/// Scatters with negative indices counted from the end; an update with an index out of range is dropped. MLX writes wherever
/// an index points, so such updates go to a spare row behind the first axis, which is cut off again.
pub fn scatter(
    a: &Array,
    updates: &Array,
    indices: &[&Array],
    axes: &[i32],
    scatter: Scatter,
    s: &Stream,
) -> Result<Array> {
    check::lengths(&[("axes", axes.len())], indices.len())?;
    let axes = &check::axes(a, axes)?;
    let zero = int(0, Dtype::S32)?;
    let mut outside: Option<Array> = None;
    let mut within = Vec::with_capacity(indices.len());
    for (index, axis) in indices.iter().zip(axes) {
        let length = a.shape()[check::axis(a, *axis)?];
        // One more value on either side of the range tells what was outside.
        let shifted = clamp_signed(index, length, s)?;
        let low = mlx::less(&shifted, &zero, s)?;
        let high = mlx::greater_equal(&shifted, &int(i64::from(length), Dtype::S32)?, s)?;
        let out = mlx::logical_or(&low, &high, s)?;
        outside = Some(match outside {
            None => out,
            Some(before) => mlx::logical_or(&before, &out, s)?,
        });
        within.push(shifted);
    }
    let outside = outside.ok_or_else(|| Error::invalid("needs at least one axis"))?;
    let first = check::axis(a, axes[0])?;
    let spare = int(i64::from(a.shape()[first]), Dtype::S32)?;
    for (i, index) in within.iter_mut().enumerate() {
        let target = if i == 0 { &spare } else { &zero };
        *index = mlx::where_(&outside, target, index, s)?;
    }
    let filler = int(0, mlx::dtype(a))?;
    let room = mlx::pad(a, &[first as i32], &[0], &[1], &filler, "constant", s)?;
    let updates = mlx::astype(updates, mlx::dtype(a), s)?;
    let scattered = scatter(&room, &Vector::new(&within), &updates, axes, s)?;
    mlx::slice(
        &scattered,
        &vec![0; a.ndim()],
        a.shape(),
        &vec![1; a.ndim()],
        s,
    )
}

/// Indices as s32 with negative ones counted from the end; those out of range stay so, at -1 or `length`.
fn clamp_signed(index: &Array, length: i32, s: &Stream) -> Result<Array> {
    let wide = counted_from_end(index, length, s)?;
    let low = int(-1, Dtype::S64)?;
    let high = int(i64::from(length), Dtype::S64)?;
    mlx::astype(
        &mlx::clip(&wide, Some(&low), Some(&high), s)?,
        Dtype::S32,
        s,
    )
}

fn on_axis(a: &Array, index: &Array, axis: i32, s: &Stream) -> Result<(usize, Array)> {
    let axis = check::axis(a, axis)?;
    let length = a.shape()[axis];
    if length == 0 && index.size() > 0 {
        return Err(Error::invalid(format!(
            "axis {axis} of shape {:?} is empty",
            a.shape()
        )));
    }
    Ok((axis, clamp(index, length, length - 1, s)?))
}

pub fn take(a: &Array, indices: &Array, axis: i32, s: &Stream) -> Result<Array> {
    let (axis, indices) = on_axis(a, indices, axis, s)?;
    mlx::take(a, &indices, axis as i32, s)
}

pub fn take_along_axis(a: &Array, indices: &Array, axis: i32, s: &Stream) -> Result<Array> {
    let (axis, indices) = on_axis(a, indices, axis, s)?;
    mlx::take_along_axis(a, &indices, axis as i32, s)
}

pub fn put_along_axis(
    a: &Array,
    indices: &Array,
    values: &Array,
    axis: i32,
    s: &Stream,
) -> Result<Array> {
    let (axis, indices) = on_axis(a, indices, axis, s)?;
    mlx::put_along_axis(a, &indices, values, axis as i32, s)
}

pub fn scatter_add_axis(
    a: &Array,
    indices: &Array,
    values: &Array,
    axis: i32,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    let (axis, indices) = on_axis(a, indices, axis, s)?;
    let shape = broadcast_shape(indices.shape(), values.shape()).filter(|shape| {
        let sizes = shape.iter().zip(a.shape()).enumerate();
        let same = |(i, (own, size)): (usize, (&i32, &i32))| i == axis || *own == 1 || own == size;
        shape.len() == a.ndim() && indices.ndim() == a.ndim() && sizes.into_iter().all(same)
    });
    if let (true, Some(mut shape)) = (kernels::takes(device, a) && a.size() > 0, shape) {
        for (i, size) in a.shape().iter().enumerate().filter(|(i, _)| *i != axis) {
            shape[i] = *size;
        }
        let index = mlx::broadcast_to(&mlx::astype(&indices, Dtype::S64, s)?, &shape, s)?;
        let values = mlx::astype(values, mlx::dtype(a), s)?;
        let values = mlx::broadcast_to(&values, &shape, s)?;
        return kernels::scatter_add_along(a, &values, &index, axis as u8, s);
    }
    scatter_in_wide(a, values, s, |a, values| {
        mlx::scatter_add_axis(a, &indices, values, axis as i32, s)
    })
}

/// Starts clamped into 0..=length - size, one an axis.
fn check_starts(a: &Array, start: &Array, axes: &[i32], sizes: &[i32]) -> Result<Vec<i32>> {
    check_index_type(start)?;
    check::axes(a, axes)?;
    if start.ndim() != 1 || start.size() != axes.len() {
        return Err(Error::invalid(format!(
            "start must have shape [{}], one integer an axis, got {:?}",
            axes.len(),
            start.shape()
        )));
    }
    let mut limits = Vec::with_capacity(axes.len());
    for (axis, size) in axes.iter().zip(sizes) {
        let length = a.shape()[check::axis(a, *axis)?];
        if *size < 0 || *size > length {
            return Err(Error::invalid(format!(
                "a slice of {size} does not fit axis {axis} of shape {:?}",
                a.shape()
            )));
        }
        limits.push(length - size);
    }
    Ok(limits)
}

fn clamp_starts(start: &Array, limits: &[i32], s: &Stream) -> Result<Array> {
    let bytes: Vec<u8> = limits
        .iter()
        .flat_map(|limit| limit.to_ne_bytes())
        .collect();
    let rank = limits.len() as i32;
    let limits = mlx::from_bytes(&bytes, &[rank], Dtype::S32)?;
    let wide = signed_index(start, s)?;
    let limits = mlx::astype(&limits, Dtype::S64, s)?;
    let within = mlx::clip(&wide, Some(&int(0, Dtype::S64)?), Some(&limits), s)?;
    mlx::astype(&within, Dtype::S32, s)
}

/// Where a slice begins, and along which axes, as the kernels for slices take it.
fn places(
    a: &Array,
    start: &Array,
    axes: &[i32],
    s: &Stream,
) -> Result<(Array, SmallVec<[u8; 8]>)> {
    let start = match mlx::dtype(start) {
        Dtype::S32 => mlx::share(start)?,
        _ => signed_index(start, s)?,
    };
    let axes = axes.iter().map(|axis| Ok(check::axis(a, *axis)? as u8));
    Ok((start, axes.collect::<Result<_>>()?))
}

pub fn slice_dynamic(
    a: &Array,
    start: &Array,
    axes: &[i32],
    sizes: &[i32],
    device: Device,
    s: &Stream,
) -> Result<Array> {
    check::lengths(&[("sizes", sizes.len())], axes.len())?;
    let limits = check_starts(a, start, axes, sizes)?;
    let mut whole = a.shape().to_vec();
    for (axis, size) in axes.iter().zip(sizes) {
        whole[check::axis(a, *axis)?] = *size;
    }
    if kernels::slices(device, mlx::dtype(a)) {
        let (start, axes) = places(a, start, axes, s)?;
        return kernels::slice(a, &start, axes, &whole, s);
    }
    let start = clamp_starts(start, &limits, s)?;
    mlx::slice_dynamic(a, &start, axes, &whole, s)
}

pub fn slice_update_dynamic(
    a: &Array,
    update: &Array,
    start: &Array,
    axes: &[i32],
    device: Device,
    s: &Stream,
) -> Result<Array> {
    if update.ndim() != a.ndim() {
        return Err(Error::invalid(format!(
            "the update has shape {:?}, the array {:?}: ranks differ",
            update.shape(),
            a.shape()
        )));
    }
    let sizes = axes
        .iter()
        .map(|axis| Ok(update.shape()[check::axis(a, *axis)?]))
        .collect::<Result<Vec<i32>>>()?;
    let limits = check_starts(a, start, axes, &sizes)?;
    let update = mlx::astype(update, mlx::dtype(a), s)?;
    let mut sizes = update.shape().iter().zip(a.shape());
    if kernels::slices(device, mlx::dtype(a)) && sizes.all(|(own, whole)| own <= whole) {
        let (start, axes) = places(a, start, axes, s)?;
        return kernels::update(a, &update, &start, axes, s);
    }
    let start = clamp_starts(start, &limits, s)?;
    mlx::slice_update_dynamic(a, &update, &start, axes, s)
}

// ---- shapes and order ----

pub fn reshape(a: &Array, shape: &[i32], s: &Stream) -> Result<Array> {
    check::reshape(a.shape(), shape)?;
    mlx::reshape(a, shape, s)
}

pub fn unflatten(a: &Array, axis: i32, shape: &[i32], s: &Stream) -> Result<Array> {
    let axis = check::axis(a, axis)?;
    check::reshape(&a.shape()[axis..=axis], shape)?;
    mlx::unflatten(a, axis as i32, shape, s)
}

pub fn roll(a: &Array, shift: &[i32], axes: &[i32], s: &Stream) -> Result<Array> {
    check::length("shift", shift.len(), axes.len())?;
    let axes = check::axes(a, axes)?;
    if a.size() == 0 {
        return mlx::share(a);
    }
    let shift: Vec<i32> = shift
        .iter()
        .zip(&axes)
        .map(|(by, axis)| by % a.shape()[*axis as usize])
        .collect();
    mlx::roll(a, &shift, &axes, s)
}

pub fn diag(a: &Array, k: i32, s: &Stream) -> Result<Array> {
    if a.ndim() == 1 {
        let side = a.size() as u128 + u128::from(k.unsigned_abs());
        mlx::check_bytes(side * side * mlx::dtype(a).size() as u128)?;
        return mlx::diag(a, k, s);
    }
    diagonal(a, k, 0, 1, s)
}

/// The diagonal as the last axis; empty where the offset leads outside.
pub fn diagonal(a: &Array, offset: i32, axis1: i32, axis2: i32, s: &Stream) -> Result<Array> {
    let axes = check::axes(a, &[axis1, axis2])?;
    let (rows, columns) = (a.shape()[axes[0] as usize], a.shape()[axes[1] as usize]);
    if offset >= columns || offset <= -rows {
        let mut shape: Vec<i32> = a.shape().to_vec();
        shape.remove(axes[0].max(axes[1]) as usize);
        shape.remove(axes[0].min(axes[1]) as usize);
        shape.push(0);
        return mlx::zeros(&shape, mlx::dtype(a), s);
    }
    mlx::diagonal(a, offset, axes[0], axes[1], s)
}

type Triangle = fn(&Array, i32, &Stream) -> Result<Array>;

pub fn triangle(a: &Array, k: i32, keep: Triangle, s: &Stream) -> Result<Array> {
    if a.ndim() < 2 {
        return Err(Error::invalid(format!(
            "takes matrices {{…, rows, columns}}, got shape {:?}",
            a.shape()
        )));
    }
    let (rows, columns) = (a.shape()[a.ndim() - 2], a.shape()[a.ndim() - 1]);
    keep(a, k.clamp(-rows - 1, columns + 1), s)
}

pub fn argsort(a: &Array, axis: i32, device: Device, s: &Stream) -> Result<Array> {
    let axis = check::axis(a, axis)?;
    if a.size() == 0 {
        return mlx::zeros(a.shape(), Dtype::U32, s);
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
    gpu::sorted(a, axis, device, s, |a, axis| mlx::topk(a, k, axis, s))
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

/// Values in order under the mask. MLX reads past their end where the mask is longer; here they begin anew.
pub fn masked_scatter(a: &Array, mask: &Array, values: &Array, s: &Stream) -> Result<Array> {
    if mlx::dtype(mask) != Dtype::Bool {
        return Err(Error::invalid(format!(
            "the mask must be bool, got {}",
            mlx::dtype(mask).name()
        )));
    }
    if a.ndim() > 0 && (a.size() == 0 || values.size() == 0) {
        return mlx::share(a);
    }
    let values = mlx::astype(values, mlx::dtype(a), s)?;
    let flat = mlx::reshape(&values, &[-1], s)?;
    // A mask of fewer axes is one of the leading ones.
    let mut shape = mask.shape().to_vec();
    shape.resize(a.ndim().max(shape.len()), 1);
    let mask = mlx::broadcast_to(&mlx::reshape(mask, &shape, s)?, a.shape(), s)?;
    let times = a.size().div_ceil(flat.size().max(1)) as i32;
    let enough = mlx::tile(&flat, &[times], s)?;
    // One place in the running count of the mask for each element that is replaced.
    let flags = mlx::astype(&mlx::reshape(&mask, &[-1], s)?, Dtype::S32, s)?;
    let place = mlx::cumsum(&flags, 0, false, false, None, s)?;
    let chosen = mlx::take(&enough, &place, 0, s)?;
    mlx::where_(&mask, &mlx::reshape(&chosen, a.shape(), s)?, a, s)
}

// ---- spectra ----

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

/// Axes cut or filled up with zeros to the sizes of a transform; MLX does it on a stream of its own choice. The last axis of
/// half a spectrum has half the size, plus one.
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
    pad(
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
