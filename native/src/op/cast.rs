//! Casts. Other families take from here what two types promote to, and computing in a wider type.
//! Called by [`Op::apply`] for operations of [`Class::Cast`](super::Class::Cast).

use super::creation::{constant, int};
use super::table::{family, others};
use super::{Inputs, Number, Op, Outputs};
use crate::base::{Device, Dtype, Error, Result};
use crate::mlx::{self, Stream};
use mlx_rs::Array;

family! { Cast, takes(1):
    // Inputs: a.
    Astype { dtype: Dtype } => converts().simple(),
    /// To an integer type. Floats beyond it wrap around, NaN is 0, and an infinity the largest or smallest integer.
    ToInteger { dtype: Dtype },
    /// To 8-bit floats (E4M3), as u8.
    ToFp8,
    FromFp8 { dtype: Dtype },
}

/// Builds an operation of the class.
pub fn apply(op: &Op, inputs: &Inputs, s: &Stream) -> Result<Outputs> {
    match op {
        Op::Astype { dtype } => inputs.unary(s, |a, s| astype(a, *dtype, s)),
        Op::ToInteger { dtype } => inputs.unary(s, |a, s| to_integer(a, *dtype, s)),
        Op::ToFp8 => inputs.unary(s, to_fp8),
        Op::FromFp8 { dtype } => inputs.unary(s, |a, s| from_fp8(a, *dtype, s)),
        others!(Cast) => Err(super::no_case(op)),
    }
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

/// Whether each element is not zero. MLX's change of type looks at the real part alone.
pub fn truth(a: &Array, s: &Stream) -> Result<Array> {
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

/// See [`Op::ToInteger`].
pub fn to_integer(a: &Array, dtype: Dtype, s: &Stream) -> Result<Array> {
    if !dtype.is_integer() {
        return Err(Error::invalid(format!(
            "dtype must be an integer type, got {}",
            dtype.name()
        )));
    }
    if mlx::dtype(a) == Dtype::C64 {
        return to_integer(&mlx::real(a, s)?, dtype, s);
    }
    if !mlx::dtype(a).is_float() {
        return astype(a, dtype, s);
    }
    let is_positive = mlx::greater(a, &int(0, Dtype::S32)?, s)?;
    // In C, the conversion of a float that an integer type cannot represent is undefined. From s64, integers wrap.
    let wrapped = mlx::astype(&mlx::astype(a, Dtype::S64, s)?, dtype, s)?;
    let wide = match dtype {
        // Numbers above the range of s64 have to be converted directly.
        Dtype::U64 => mlx::where_(&is_positive, &mlx::astype(a, dtype, s)?, &wrapped, s)?,
        _ => wrapped,
    };
    let bits = 8 * dtype.size() as u32;
    let (low, high) = match dtype.is_signed_integer() {
        true => (i64::MIN >> (64 - bits), u64::MAX >> (65 - bits)),
        false => (0, u64::MAX >> (64 - bits)),
    };
    let (low, high) = (int(low, dtype)?, constant(Number::Uint(high), dtype)?);
    let limit = mlx::where_(&is_positive, &high, &low, s)?;
    let limit = mlx::where_(&mlx::isnan(a, s)?, &int(0, dtype)?, &limit, s)?;
    mlx::where_(&mlx::isfinite(a, s)?, &wide, &limit, s)
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

/// Booleans as the integers that they are counted in.
pub fn integral(a: &Array, s: &Stream) -> Result<Array> {
    match mlx::dtype(a) {
        Dtype::Bool => mlx::astype(a, Dtype::S32, s),
        _ => mlx::share(a),
    }
}
