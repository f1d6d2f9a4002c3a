//! Functions of two arrays, broadcast together. Logic, bits and the division of integers mean what NumPy and Nx have
//! them mean. Called by [`Op::apply`] for operations of [`Class::Binary`](super::Class::Binary).

use super::creation::{float, int};
use super::table::family;
use super::{cast, double, Binary, Inputs, Outputs};
use crate::base::{Dtype, Error, Result};
use crate::cpu::Pair;
use crate::mlx::{self, Stream};
use mlx_rs::Array;
use smallvec::smallvec;

family! { Binary, takes(2):
    // Inputs: a, b, broadcast.
    Add => simple(),
    Subtract => simple(),
    Multiply => simple(),
    Divide,
    FloorDivide,
    /// Quotient rounded toward zero, integers only.
    Quotient,
    /// Remainder with the sign of b (Python's).
    Remainder,
    /// Remainder with the sign of a (C's, Erlang's).
    Fmod,
    Power,
    Maximum => simple(),
    Minimum => simple(),
    Arctan2,
    Logaddexp,
    Equal => simple(),
    NotEqual => simple(),
    Less => simple(),
    LessEqual => simple(),
    Greater => simple(),
    GreaterEqual => simple(),
    LogicalAnd => simple(),
    LogicalOr => simple(),
    LogicalXor,
    BitwiseAnd,
    BitwiseOr,
    BitwiseXor,
    LeftShift,
    RightShift,
    /// Outputs: floor quotient, remainder.
    Divmod => outputs(2),
    Isclose { rtol: f64, atol: f64, equal_nan: bool },
}

impl Binary {
    /// The kernel of ours that computes it on the CPU.
    pub const fn kernel(self) -> Option<Pair> {
        Some(match self {
            Binary::Add => Pair::Add,
            Binary::Subtract => Pair::Subtract,
            Binary::Multiply => Pair::Multiply,
            Binary::Divide => Pair::Divide,
            Binary::Maximum => Pair::Maximum,
            Binary::Minimum => Pair::Minimum,
            Binary::Power => Pair::Power,
            Binary::Arctan2 => Pair::Atan2,
            Binary::Fmod => Pair::Fmod,
            Binary::Remainder => Pair::FloorMod,
            _ => return None,
        })
    }
}

/// Builds an operation of the class.
pub fn apply(op: Binary, inputs: &Inputs, s: &Stream) -> Result<Outputs> {
    match op {
        Binary::Add => inputs.binary(s, mlx::add),
        Binary::Subtract => inputs.binary(s, mlx::subtract),
        Binary::Multiply => inputs.binary(s, mlx::multiply),
        Binary::Divide => inputs.binary(s, mlx::divide),
        Binary::FloorDivide => inputs.binary(s, floor_divide),
        Binary::Quotient => inputs.binary(s, quotient),
        Binary::Remainder => inputs.binary(s, remainder),
        Binary::Fmod => inputs.binary(s, fmod),
        Binary::Power => inputs.binary(s, mlx::power),
        Binary::Maximum => inputs.binary(s, mlx::maximum),
        Binary::Minimum => inputs.binary(s, mlx::minimum),
        Binary::Arctan2 => inputs.binary(s, mlx::arctan2),
        Binary::Logaddexp => inputs.binary(s, double::logaddexp),
        Binary::Equal => inputs.binary(s, mlx::equal),
        Binary::NotEqual => inputs.binary(s, mlx::not_equal),
        Binary::Less => inputs.binary(s, mlx::less),
        Binary::LessEqual => inputs.binary(s, mlx::less_equal),
        Binary::Greater => inputs.binary(s, mlx::greater),
        Binary::GreaterEqual => inputs.binary(s, mlx::greater_equal),
        Binary::LogicalAnd => inputs.binary(s, logical_and),
        Binary::LogicalOr => inputs.binary(s, logical_or),
        Binary::LogicalXor => inputs.binary(s, logical_xor),
        Binary::BitwiseAnd => inputs.binary(s, mlx::bitwise_and),
        Binary::BitwiseOr => inputs.binary(s, mlx::bitwise_or),
        Binary::BitwiseXor => inputs.binary(s, bitwise_xor),
        Binary::LeftShift => inputs.binary(s, left_shift),
        Binary::RightShift => inputs.binary(s, right_shift),
        Binary::Divmod => {
            let [a, b] = inputs.exactly()?;
            Ok(smallvec![floor_divide(a, b, s)?, remainder(a, b, s)?,])
        }
        Binary::Isclose {
            rtol,
            atol,
            equal_nan,
        } => inputs.binary(s, |a, b, s| mlx::isclose(a, b, rtol, atol, equal_nan, s)),
    }
}

pub fn logical_xor(a: &Array, b: &Array, s: &Stream) -> Result<Array> {
    mlx::not_equal(&cast::truth(a, s)?, &cast::truth(b, s)?, s)
}

pub fn logical_and(a: &Array, b: &Array, s: &Stream) -> Result<Array> {
    mlx::logical_and(&cast::truth(a, s)?, &cast::truth(b, s)?, s)
}

pub fn logical_or(a: &Array, b: &Array, s: &Stream) -> Result<Array> {
    mlx::logical_or(&cast::truth(a, s)?, &cast::truth(b, s)?, s)
}

/// Of booleans MLX's CPU form gives the first operand where it writes the result over it.
pub fn bitwise_xor(a: &Array, b: &Array, s: &Stream) -> Result<Array> {
    if mlx::dtype(a) == Dtype::Bool && mlx::dtype(b) == Dtype::Bool {
        return mlx::not_equal(a, b, s);
    }
    mlx::bitwise_xor(a, b, s)
}

/// a - trunc(a / b)·b, exact for integers: |a| mod |b| with the sign of a.
pub fn fmod(a: &Array, b: &Array, s: &Stream) -> Result<Array> {
    let (a, b) = cast::promoted(a, b, s)?;
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
    let (a, b) = cast::promoted(a, b, s)?;
    let (a, b) = (cast::integral(&a, s)?, cast::integral(&b, s)?);
    let dtype = mlx::dtype(&a);
    if !dtype.is_integer() {
        return mlx::remainder(&a, &b, s);
    }
    let (safe, invalid) = safe_divisor(&b, dtype, s)?;
    let r = mlx::remainder(&a, &safe, s)?;
    mlx::where_(&invalid, &int(0, dtype)?, &r, s)
}

/// The divisor with 0 and -1 replaced by 1, and where it was either. The smallest integer over -1 traps as a division
/// by zero does.
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
    let (a, b) = cast::promoted(a, b, s)?;
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
    let (a, b) = cast::promoted(a, b, s)?;
    let dtype = mlx::dtype(&a);
    if !dtype.is_integer() && dtype != Dtype::Bool {
        return mlx::floor_divide(&a, &b, s);
    }
    let (a, b) = (cast::integral(&a, s)?, cast::integral(&b, s)?);
    let q = quotient(&a, &b, s)?;
    // One less where something remains and the signs differ, that is where the two kinds of remainder do.
    let lower = mlx::not_equal(&remainder(&a, &b, s)?, &fmod(&a, &b, s)?, s)?;
    mlx::subtract(&q, &mlx::astype(&lower, mlx::dtype(&q), s)?, s)
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
    let (a, b) = cast::promoted(a, b, s)?;
    let dtype = mlx::dtype(&a);
    if !dtype.is_integer() {
        return mlx::left_shift(&a, &b, s);
    }
    let (by, too_far) = shift_of(&b, dtype, s)?;
    mlx::where_(&too_far, &int(0, dtype)?, &mlx::left_shift(&a, &by, s)?, s)
}

pub fn right_shift(a: &Array, b: &Array, s: &Stream) -> Result<Array> {
    let (a, b) = cast::promoted(a, b, s)?;
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
