//! Functions of each element of one array. What MLX lacks or has with other semantics is composed here.
//! Called by [`Op::apply`] for operations of [`Class::Unary`](super::Class::Unary).

use super::creation::{float, int};
use super::table::family;
use super::{cast, double, gpu, Inputs, Outputs, Unary};
use crate::base::{Device, Dtype, Error, Result};
use crate::cpu::Function;
use crate::mlx::{self, Stream, Vector};
use mlx_rs::Array;

family! { Unary, takes(1):
    // Inputs: a.
    Abs,
    Negative,
    Sign,
    Ceil,
    Floor,
    Trunc,
    Round { decimals: i32 },
    /// Halves away from zero.
    RoundAway,
    Exp,
    Expm1,
    Log,
    Log1p,
    Log2,
    Log10,
    Sin,
    Cos,
    Tan,
    Arcsin,
    Arccos,
    Arctan,
    Sinh,
    Cosh,
    Tanh,
    Arcsinh,
    Arccosh,
    Arctanh,
    Erf,
    Erfc,
    Erfinv,
    Sqrt,
    Rsqrt,
    Cbrt,
    Square,
    Reciprocal,
    Sigmoid,
    Degrees,
    Radians,
    LogicalNot => simple(),
    BitwiseInvert,
    PopulationCount,
    CountLeadingZeros,
    Isnan,
    Isinf,
    Isposinf,
    Isneginf,
    Isfinite,
    Real,
    Imag,
    Conjugate,
    Copy,
    NanToNum { nan: f32, posinf: Option<f32>, neginf: Option<f32> },
}

impl Unary {
    /// The kernel of ours that computes it on the CPU.
    pub const fn kernel(self) -> Option<Function> {
        Some(match self {
            Unary::Exp => Function::Exp,
            Unary::Sigmoid => Function::Sigmoid,
            Unary::Tanh => Function::Tanh,
            Unary::Erf => Function::Erf,
            Unary::Sqrt => Function::Sqrt,
            Unary::Rsqrt => Function::Rsqrt,
            Unary::Sign => Function::Sign,
            Unary::Negative => Function::Negative,
            Unary::Abs => Function::Abs,
            Unary::Square => Function::Square,
            Unary::Floor => Function::Floor,
            Unary::Ceil => Function::Ceil,
            Unary::Trunc => Function::Trunc,
            Unary::Round { decimals: 0 } => Function::Round,
            Unary::RoundAway => Function::RoundAway,
            Unary::Log => Function::Log,
            Unary::Log1p => Function::Log1p,
            Unary::Log2 => Function::Log2,
            Unary::Log10 => Function::Log10,
            Unary::Expm1 => Function::Expm1,
            Unary::Sin => Function::Sin,
            Unary::Cos => Function::Cos,
            Unary::Tan => Function::Tan,
            Unary::Arcsin => Function::Asin,
            Unary::Arccos => Function::Acos,
            Unary::Arctan => Function::Atan,
            Unary::Sinh => Function::Sinh,
            Unary::Cosh => Function::Cosh,
            Unary::Arcsinh => Function::Asinh,
            Unary::Arccosh => Function::Acosh,
            Unary::Arctanh => Function::Atanh,
            Unary::Cbrt => Function::Cbrt,
            Unary::Erfc => Function::Erfc,
            Unary::Erfinv => Function::Erfinv,
            Unary::Reciprocal => Function::Reciprocal,
            _ => return None,
        })
    }
}

/// Builds an operation of the class.
pub fn apply(op: Unary, inputs: &Inputs, device: Device, s: &Stream) -> Result<Outputs> {
    match op {
        Unary::Abs => inputs.unary(s, mlx::abs),
        Unary::Negative => inputs.unary(s, |a, s| gpu::negative(a, device, s)),
        Unary::Sign => inputs.unary(s, mlx::sign),
        Unary::Ceil => inputs.unary(s, mlx::ceil),
        Unary::Floor => inputs.unary(s, mlx::floor),
        Unary::Trunc => inputs.unary(s, mlx::trunc),
        Unary::Round { decimals } => inputs.unary(s, |a, s| double::round(a, decimals, s)),
        Unary::RoundAway => inputs.unary(s, round_away),
        Unary::Exp => inputs.unary(s, |a, s| double::either(a, double::exp, mlx::exp, s)),
        Unary::Expm1 => inputs.unary(s, expm1),
        Unary::Log => inputs.unary(s, mlx::log),
        Unary::Log1p => inputs.unary(s, mlx::log1p),
        Unary::Log2 => inputs.unary(s, mlx::log2),
        Unary::Log10 => inputs.unary(s, mlx::log10),
        Unary::Sin => inputs.unary(s, |a, s| double::either(a, double::sin, mlx::sin, s)),
        Unary::Cos => inputs.unary(s, |a, s| double::either(a, double::cos, mlx::cos, s)),
        Unary::Tan => inputs.unary(s, mlx::tan),
        Unary::Arcsin => inputs.unary(s, mlx::arcsin),
        Unary::Arccos => inputs.unary(s, mlx::arccos),
        Unary::Arctan => inputs.unary(s, mlx::arctan),
        Unary::Sinh => inputs.unary(s, mlx::sinh),
        Unary::Cosh => inputs.unary(s, mlx::cosh),
        Unary::Tanh => inputs.unary(s, mlx::tanh),
        Unary::Arcsinh => inputs.unary(s, mlx::arcsinh),
        Unary::Arccosh => inputs.unary(s, mlx::arccosh),
        Unary::Arctanh => inputs.unary(s, mlx::arctanh),
        Unary::Erf => inputs.unary(s, |a, s| double::either(a, double::erf, mlx::erf, s)),
        Unary::Erfc => inputs.unary(s, |a, s| double::either(a, double::erfc, erfc, s)),
        Unary::Erfinv => inputs.unary(s, |a, s| double::either(a, double::erfinv, mlx::erfinv, s)),
        Unary::Sqrt => inputs.unary(s, mlx::sqrt),
        Unary::Rsqrt => inputs.unary(s, mlx::rsqrt),
        Unary::Cbrt => inputs.unary(s, cbrt),
        Unary::Square => inputs.unary(s, mlx::square),
        Unary::Reciprocal => inputs.unary(s, mlx::reciprocal),
        Unary::Sigmoid => inputs.unary(s, |a, s| double::either(a, double::sigmoid, sigmoid, s)),
        Unary::Degrees => inputs.unary(s, mlx::degrees),
        Unary::Radians => inputs.unary(s, mlx::radians),
        Unary::LogicalNot => inputs.unary(s, logical_not),
        Unary::BitwiseInvert => inputs.unary(s, mlx::bitwise_invert),
        Unary::PopulationCount => inputs.unary(s, population_count),
        Unary::CountLeadingZeros => inputs.unary(s, count_leading_zeros),
        Unary::Isnan => inputs.unary(s, mlx::isnan),
        Unary::Isinf => inputs.unary(s, mlx::isinf),
        Unary::Isposinf => inputs.unary(s, mlx::isposinf),
        Unary::Isneginf => inputs.unary(s, mlx::isneginf),
        Unary::Isfinite => inputs.unary(s, mlx::isfinite),
        Unary::Real => inputs.unary(s, mlx::real),
        Unary::Imag => inputs.unary(s, mlx::imag),
        Unary::Conjugate => inputs.unary(s, mlx::conjugate),
        Unary::Copy => inputs.unary(s, mlx::copy),
        Unary::NanToNum {
            nan,
            posinf,
            neginf,
        } => inputs.unary(s, |a, s| mlx::nan_to_num(a, nan, posinf, neginf, s)),
    }
}

pub fn logical_not(a: &Array, s: &Stream) -> Result<Array> {
    mlx::logical_not(&cast::truth(a, s)?, s)
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
        return cbrt_of_complex(a, s);
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

/// The principal root, of which the parts are computed apart: of an infinite number one part may be 0, and a product of
/// complex numbers would make it NaN.
fn cbrt_of_complex(a: &Array, s: &Stream) -> Result<Array> {
    let radius = cbrt(&mlx::abs(a, s)?, s)?;
    let phase = mlx::arctan2(&mlx::imag(a, s)?, &mlx::real(a, s)?, s)?;
    let angle = mlx::divide(&phase, &float(3.0, Dtype::F32)?, s)?;
    let real = mlx::multiply(&radius, &mlx::cos(&angle, s)?, s)?;
    let imaginary = mlx::multiply(&radius, &mlx::sin(&angle, s)?, s)?;
    let is_real = mlx::equal(&angle, &float(0.0, Dtype::F32)?, s)?;
    let imaginary = mlx::where_(&is_real, &angle, &imaginary, s)?;
    let parts = mlx::stack(&Vector::new([&real, &imaginary]), a.ndim() as i32, s)?;
    mlx::squeeze(&mlx::view(&parts, Dtype::C64, s)?, &[a.ndim() as i32], s)
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

/// Rounds halves away from zero. Together with the largest number below 0.5, a half reaches the next integer by the
/// rounding of the sum, and a number just below a half does not.
pub fn round_away(a: &Array, s: &Stream) -> Result<Array> {
    let dtype = mlx::dtype(a);
    let bits = match dtype {
        Dtype::F16 => 12,
        Dtype::Bf16 => 9,
        Dtype::F32 => 25,
        Dtype::F64 => 54,
        Dtype::C64 => return Err(Error::invalid("takes real numbers, got c64")),
        _ => return mlx::share(a),
    };
    let below_half = 0.5 - 2f64.powi(-bits);
    let is_negative = mlx::less(a, &float(0.0, dtype)?, s)?;
    let (up, down) = (float(below_half, dtype)?, float(-below_half, dtype)?);
    let toward = mlx::where_(&is_negative, &down, &up, s)?;
    mlx::trunc(&mlx::add(a, &toward, s)?, s)
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
