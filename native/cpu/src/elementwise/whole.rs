//! Floats to integers with a result for each: the fraction is dropped, what is beyond the type wraps around, NaN is 0, and
//! an infinity the largest or the smallest integer.

use super::cast::{to_i64, to_u64};
use super::cell::{by_type, map_chunks, Cell};
use super::Argument;
use crate::simd::{dispatch, Level, Simd};
use crate::Type;

/// A float that is computed in.
pub trait Float: Copy + Into<f64> {
    /// Whether it and its like lie within an integer of 32 bits, or of 64.
    fn is_below(self, bits: u32) -> bool;
    /// # Safety
    /// It lies within the integer.
    unsafe fn i32(self) -> i32;
    /// # Safety
    /// It lies within the integer.
    unsafe fn i64(self) -> i64;
}

macro_rules! float {
    ($($T:ty)*) => { $(impl Float for $T {
        #[inline(always)]
        fn is_below(self, bits: u32) -> bool {
            self.abs() < if bits == 32 { 2_147_483_648.0 } else { 9_223_372_036_854_775_808.0 }
        }
        #[inline(always)]
        unsafe fn i32(self) -> i32 { self.to_int_unchecked() }
        #[inline(always)]
        unsafe fn i64(self) -> i64 { self.to_int_unchecked() }
    })* };
}

float!(f32 f64);

/// An integer that a float becomes.
pub trait Integer: Copy {
    /// The bits of the integer that the float is converted to first, of which this one keeps the lowest.
    const BITS: u32;
    fn of_i32(x: i32) -> Self;
    fn of_i64(x: i64) -> Self;
    /// Of any float.
    fn of(x: f64) -> Self;
}

macro_rules! integer {
    ($($T:ty, $bits:literal, $wide:expr;)*) => { $(impl Integer for $T {
        const BITS: u32 = $bits;
        #[inline(always)]
        fn of_i32(x: i32) -> $T { x as $T }
        #[inline(always)]
        fn of_i64(x: i64) -> $T { x as $T }
        fn of(x: f64) -> $T {
            match x {
                _ if x.is_nan() => 0,
                _ if x == f64::INFINITY => <$T>::MAX,
                _ if x == f64::NEG_INFINITY => <$T>::MIN,
                _ => $wide(x) as $T,
            }
        }
    })* };
}

/// Numbers above the signed range are converted directly.
fn wrapped_u64(x: f64) -> u64 {
    if x > 0.0 {
        to_u64(x)
    } else {
        to_i64(x) as u64
    }
}

integer! {
    u8, 32, to_i64;
    u16, 32, to_i64;
    u32, 64, to_i64;
    u64, 64, wrapped_u64;
    i8, 32, to_i64;
    i16, 32, to_i64;
    i32, 32, to_i64;
    i64, 64, to_i64;
}

#[inline(always)]
unsafe fn body<S: Simd, A: Cell<Wide: Float>, O: Cell<Wide: Integer>>(
    a: Argument,
    to: *mut u8,
    count: usize,
) {
    map_chunks::<S, A, O>(a, to, count, |x, out| {
        // Nearly all numbers are small, and those have vectors.
        let small = x
            .iter()
            .fold(true, |small, x| small & x.is_below(O::Wide::BITS));
        for (x, out) in x.iter().zip(out) {
            *out = match (small, O::Wide::BITS) {
                (true, 32) => O::Wide::of_i32(x.i32()),
                (true, _) => O::Wide::of_i64(x.i64()),
                (false, _) => O::Wide::of((*x).into()),
            };
        }
    });
}

dispatch!(fn run<A: Cell<Wide: Float>, O: Cell<Wide: Integer>>(
    a: Argument, to: *mut u8, count: usize,
) = body);

pub unsafe fn to_integer(
    level: Level,
    from: Type,
    into: Type,
    a: Argument,
    to: *mut u8,
    count: usize,
) {
    macro_rules! to {
        ($A:ty) => {{
            macro_rules! call {
                ($O:ty) => {
                    run::<$A, $O>(level, a, to, count)
                };
            }
            by_type!(into, call: U8 U16 U32 U64 S8 S16 S32 S64)
        }};
    }
    by_type!(from, to: F16 Bf16 F32 F64)
}
