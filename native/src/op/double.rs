//! Functions of f64 that MLX computes to the precision of f32 on the CPU, the only device that has f64: composed from
//! those that it computes exactly.

use super::creation::constant;
use super::Number;
use crate::base::{Dtype, Result};
use crate::mlx::{self, Stream};
use mlx_rs::Array;

/// MLX's function, or one of the functions below where the argument is f64.
pub fn either(
    a: &Array,
    double: fn(&Array, &Stream) -> Result<Array>,
    single: fn(&Array, &Stream) -> Result<Array>,
    s: &Stream,
) -> Result<Array> {
    if mlx::dtype(a) == Dtype::F64 {
        double(a, s)
    } else {
        single(a, s)
    }
}

fn scalar(value: f64) -> Result<Array> {
    constant(Number::Float(value), Dtype::F64)
}

/// A polynomial in x, the highest coefficient first.
fn polynomial(coefficients: &[f64], x: &Array, s: &Stream) -> Result<Array> {
    let mut value = scalar(coefficients[0])?;
    for c in &coefficients[1..] {
        value = mlx::add(&mlx::multiply(&value, x, s)?, &scalar(*c)?, s)?;
    }
    Ok(value)
}

/// expm1(|x|) + 1 loses nothing, and exp(-x) is its reciprocal.
pub fn exp(x: &Array, s: &Stream) -> Result<Array> {
    let one = scalar(1.0)?;
    let upwards = mlx::add(&mlx::expm1(&mlx::abs(x, s)?, s)?, &one, s)?;
    let negative = mlx::less(x, &scalar(0.0)?, s)?;
    mlx::where_(&negative, &mlx::reciprocal(&upwards, s)?, &upwards, s)
}

pub fn sigmoid(x: &Array, s: &Stream) -> Result<Array> {
    let one = scalar(1.0)?;
    mlx::reciprocal(&mlx::add(&exp(&mlx::negative(x, s)?, s)?, &one, s)?, s)
}

/// 2t / (1 + t²) with t = tan(x / 2).
pub fn sin(x: &Array, s: &Stream) -> Result<Array> {
    let t = half_angle(x, s)?;
    let one = scalar(1.0)?;
    mlx::divide(
        &mlx::add(&t, &t, s)?,
        &mlx::add(&one, &mlx::square(&t, s)?, s)?,
        s,
    )
}

/// (1 - t)(1 + t) / (1 + t²) with t = tan(x / 2).
pub fn cos(x: &Array, s: &Stream) -> Result<Array> {
    let t = half_angle(x, s)?;
    let one = scalar(1.0)?;
    let difference = mlx::multiply(&mlx::subtract(&one, &t, s)?, &mlx::add(&one, &t, s)?, s)?;
    mlx::divide(&difference, &mlx::add(&one, &mlx::square(&t, s)?, s)?, s)
}

fn half_angle(x: &Array, s: &Stream) -> Result<Array> {
    mlx::tan(&mlx::multiply(x, &scalar(0.5)?, s)?, s)
}

/// erf(x) / x as a polynomial in x², for |x| up to 1: the Chebyshev expansion, exact to 2e-16.
const ERF_NEAR: [f64; 13] = [
    5.957176147748911e-11,
    -1.1372848856791674e-9,
    1.4659775274047436e-8,
    -1.6350312701054695e-7,
    1.6461000484121368e-6,
    -1.4925595266831182e-5,
    0.0001205533111164271,
    -0.000854832698083379,
    0.0052239776248180145,
    -0.026866170645076792,
    0.11283791670954879,
    -0.3761263890318375,
    std::f64::consts::FRAC_2_SQRT_PI,
];

/// log(erfc(z)·exp(z²) / t) as a polynomial in 2t - 1, with t = 2 / (2 + z), for z from 0 on: the Chebyshev expansion.
const ERFC_FAR: [f64; 26] = [
    -1.1141466421901909e-9,
    -1.2776506237493277e-8,
    3.675878538183882e-8,
    7.746001345360312e-8,
    -3.086559820402206e-7,
    -4.1484920834124593e-8,
    1.3137199073509803e-6,
    -1.4094127307024207e-6,
    -2.994294118363313e-6,
    8.662494482986981e-6,
    1.6080205095439494e-7,
    -3.023780825572967e-5,
    3.1737328155349395e-5,
    7.141808767204543e-5,
    -0.00017430116360991256,
    -9.373894209180262e-5,
    0.0006736785371369921,
    -0.00014624628859718252,
    -0.0023458124784660516,
    0.0017589335075480397,
    0.00882493855611383,
    -0.00987268936410846,
    -0.046895610231160824,
    0.047343306841863754,
    0.6726432239776567,
    -0.6717940840566922,
];

fn erf_near(x: &Array, s: &Stream) -> Result<Array> {
    let ratio = polynomial(&ERF_NEAR, &mlx::square(x, s)?, s)?;
    mlx::multiply(x, &ratio, s)
}

/// For z from 0 on.
fn erfc_far(z: &Array, s: &Stream) -> Result<Array> {
    let two = scalar(2.0)?;
    let t = mlx::divide(&two, &mlx::add(&two, z, s)?, s)?;
    let u = mlx::subtract(&mlx::multiply(&two, &t, s)?, &scalar(1.0)?, s)?;
    let log = polynomial(&ERFC_FAR, &u, s)?;
    let exponent = mlx::subtract(&log, &mlx::square(z, s)?, s)?;
    mlx::multiply(&t, &exp(&exponent, s)?, s)
}

fn is_near(magnitude: &Array, s: &Stream) -> Result<Array> {
    mlx::less(magnitude, &scalar(1.0)?, s)
}

pub fn erf(x: &Array, s: &Stream) -> Result<Array> {
    let z = mlx::abs(x, s)?;
    let far = mlx::subtract(&scalar(1.0)?, &erfc_far(&z, s)?, s)?;
    let far = mlx::multiply(&far, &mlx::sign(x, s)?, s)?;
    // Beyond 1 the polynomial is not what it stands for, and may be infinite: where() takes none of it.
    mlx::where_(&is_near(&z, s)?, &erf_near(x, s)?, &far, s)
}

pub fn erfc(x: &Array, s: &Stream) -> Result<Array> {
    let z = mlx::abs(x, s)?;
    let tail = erfc_far(&z, s)?;
    let negative = mlx::less(x, &scalar(0.0)?, s)?;
    let mirrored = mlx::subtract(&scalar(2.0)?, &tail, s)?;
    let far = mlx::where_(&negative, &mirrored, &tail, s)?;
    let near = mlx::subtract(&scalar(1.0)?, &erf_near(x, s)?, s)?;
    mlx::where_(&is_near(&z, s)?, &near, &far, s)
}

/// Two Newton steps from MLX's value, whose error they square. Near 1 the residue is taken of erfc, which has not lost
/// it.
pub fn erfinv(y: &Array, s: &Stream) -> Result<Array> {
    let target = mlx::abs(y, s)?;
    let complement = mlx::subtract(&scalar(1.0)?, &target, s)?;
    let start = mlx::erfinv(&target, s)?;
    let slope = scalar(std::f64::consts::FRAC_2_SQRT_PI)?;
    let mut x = mlx::share(&start)?;
    for _ in 0..2 {
        let near = mlx::subtract(&erf_near(&x, s)?, &target, s)?;
        let far = mlx::subtract(&complement, &erfc_far(&x, s)?, s)?;
        let residue = mlx::where_(&is_near(&x, s)?, &near, &far, s)?;
        let density = exp(&mlx::negative(&mlx::square(&x, s)?, s)?, s)?;
        let step = mlx::divide(&residue, &mlx::multiply(&slope, &density, s)?, s)?;
        x = mlx::subtract(&x, &step, s)?;
    }
    // At 1 both are infinite, beyond it there is no value.
    let usable = mlx::isfinite(&x, s)?;
    let magnitude = mlx::where_(&usable, &x, &start, s)?;
    mlx::multiply(&mlx::sign(y, s)?, &magnitude, s)
}

/// max(a, b) + log1p(exp(-|a - b|)).
pub fn logaddexp(a: &Array, b: &Array, s: &Stream) -> Result<Array> {
    if mlx::dtype(a) != Dtype::F64 && mlx::dtype(b) != Dtype::F64 {
        return mlx::logaddexp(a, b, s);
    }
    let larger = mlx::maximum(a, b, s)?;
    let distance = mlx::abs(&mlx::subtract(a, b, s)?, s)?;
    let rest = mlx::log1p(&exp(&mlx::negative(&distance, s)?, s)?, s)?;
    let sum = mlx::add(&larger, &rest, s)?;
    // The distance of two equal infinities is not a number.
    let infinite = mlx::logical_and(&mlx::isinf(a, s)?, &mlx::equal(a, b, s)?, s)?;
    mlx::where_(&infinite, a, &sum, s)
}

/// Exponentials relative to the largest, which is finite or 0, and that.
fn relative_exp(a: &Array, axes: &[i32], s: &Stream) -> Result<(Array, Array)> {
    let largest = mlx::max(a, axes, true, s)?;
    let finite = mlx::isfinite(&largest, s)?;
    let largest = mlx::where_(&finite, &largest, &scalar(0.0)?, s)?;
    Ok((exp(&mlx::subtract(a, &largest, s)?, s)?, largest))
}

pub fn softmax(a: &Array, axes: &[i32], precise: bool, s: &Stream) -> Result<Array> {
    if mlx::dtype(a) != Dtype::F64 {
        return mlx::softmax(a, axes, precise, s);
    }
    let (exps, _) = relative_exp(a, axes, s)?;
    mlx::divide(&exps, &mlx::sum(&exps, axes, true, s)?, s)
}

pub fn logsumexp(a: &Array, axes: &[i32], keepdims: bool, s: &Stream) -> Result<Array> {
    if !mlx::dtype(a).is_float() && mlx::dtype(a) != Dtype::C64 {
        // MLX subtracts the largest first, which unsigned integers and booleans cannot.
        return mlx::logsumexp(&mlx::astype(a, Dtype::F32, s)?, axes, keepdims, s);
    }
    if mlx::dtype(a) != Dtype::F64 {
        return mlx::logsumexp(a, axes, keepdims, s);
    }
    let (exps, largest) = relative_exp(a, axes, s)?;
    let sum = mlx::add(&mlx::log(&mlx::sum(&exps, axes, true, s)?, s)?, &largest, s)?;
    if keepdims {
        Ok(sum)
    } else {
        mlx::squeeze(&sum, axes, s)
    }
}

/// To a number of decimals.
pub fn round(a: &Array, decimals: i32, s: &Stream) -> Result<Array> {
    if mlx::dtype(a) != Dtype::F64 || decimals == 0 {
        return mlx::round(a, decimals, s);
    }
    let scale = scalar(10f64.powi(decimals.abs()))?;
    if decimals > 0 {
        mlx::divide(&mlx::round(&mlx::multiply(a, &scale, s)?, 0, s)?, &scale, s)
    } else {
        mlx::multiply(&mlx::round(&mlx::divide(a, &scale, s)?, 0, s)?, &scale, s)
    }
}

/// sign · exp(log |det|).
pub fn det(a: &Array, s: &Stream) -> Result<Array> {
    if mlx::dtype(a) != Dtype::F64 {
        return mlx::det(a, s);
    }
    let parts = mlx::slogdet(a, s)?;
    mlx::multiply(&parts[0], &exp(&parts[1], s)?, s)
}

/// Each step adds what stands twice as far before, so that the number of steps is the logarithm of the length.
pub fn logcumsumexp(
    a: &Array,
    axis: i32,
    reverse: bool,
    inclusive: bool,
    s: &Stream,
) -> Result<Array> {
    if mlx::dtype(a) != Dtype::F64 {
        return mlx::logcumsumexp(a, axis, reverse, inclusive, s);
    }
    let length = a.shape()[axis as usize];
    let nothing = scalar(f64::NEG_INFINITY)?;
    let moved = |array: &Array, by: i32| -> Result<Array> {
        let mut stop = array.shape().to_vec();
        stop[axis as usize] = length - by;
        let kept = mlx::slice(array, &vec![0; stop.len()], &stop, &vec![1; stop.len()], s)?;
        mlx::pad(&kept, &[axis], &[by], &[0], &nothing, "constant", s)
    };
    let turn = |array: &Array| match reverse {
        true => mlx::flip(array, &[axis], s),
        false => mlx::share(array),
    };
    let mut sum = turn(a)?;
    let mut by = 1;
    while by < length {
        sum = logaddexp(&sum, &moved(&sum, by)?, s)?;
        by *= 2;
    }
    if !inclusive {
        sum = moved(&sum, 1)?;
    }
    turn(&sum)
}
