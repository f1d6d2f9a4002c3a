//! Comparisons and tests, whose results are booleans.

use super::cell::{by_type, map, map_pairs, Cell};
use super::Argument;
use crate::simd::{dispatch, Level, Simd};
use std::ffi::CStr;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    /// Whether both are other than zero.
    And,
    /// Whether one of them is, or both are.
    Or,
    /// Whether one of them is.
    Xor,
}

impl Comparison {
    pub fn name(self) -> &'static CStr {
        match self {
            Comparison::Equal => c"equal",
            Comparison::NotEqual => c"not_equal",
            Comparison::Less => c"less",
            Comparison::LessEqual => c"less_equal",
            Comparison::Greater => c"greater",
            Comparison::GreaterEqual => c"greater_equal",
            Comparison::And => c"logical_and",
            Comparison::Or => c"logical_or",
            Comparison::Xor => c"logical_xor",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Test {
    Nan,
    Infinite,
    PositiveInfinity,
    NegativeInfinity,
    Finite,
}

impl Test {
    pub fn name(self) -> &'static CStr {
        match self {
            Test::Nan => c"isnan",
            Test::Infinite => c"isinf",
            Test::PositiveInfinity => c"isposinf",
            Test::NegativeInfinity => c"isneginf",
            Test::Finite => c"isfinite",
        }
    }
}

#[inline(always)]
unsafe fn compare_body<S: Simd, T: Cell<Wide: PartialOrd>>(
    comparison: Comparison,
    a: Argument,
    b: Argument,
    to: *mut u8,
    count: usize,
) {
    let zero = T::Wide::default();
    match comparison {
        Comparison::Equal => map_pairs::<S, T, u8>(a, b, to, count, |x, y| u8::from(x == y)),
        Comparison::NotEqual => map_pairs::<S, T, u8>(a, b, to, count, |x, y| u8::from(x != y)),
        Comparison::Less => map_pairs::<S, T, u8>(a, b, to, count, |x, y| u8::from(x < y)),
        Comparison::LessEqual => map_pairs::<S, T, u8>(a, b, to, count, |x, y| u8::from(x <= y)),
        Comparison::Greater => map_pairs::<S, T, u8>(b, a, to, count, |x, y| u8::from(x < y)),
        Comparison::GreaterEqual => map_pairs::<S, T, u8>(b, a, to, count, |x, y| u8::from(x <= y)),
        Comparison::And => {
            map_pairs::<S, T, u8>(a, b, to, count, |x, y| u8::from((x != zero) & (y != zero)))
        }
        Comparison::Or => {
            map_pairs::<S, T, u8>(a, b, to, count, |x, y| u8::from((x != zero) | (y != zero)))
        }
        Comparison::Xor => {
            map_pairs::<S, T, u8>(a, b, to, count, |x, y| u8::from((x != zero) ^ (y != zero)))
        }
    }
}

dispatch!(fn compare_as<T: Cell<Wide: PartialOrd>>(
    comparison: Comparison, a: Argument, b: Argument, to: *mut u8, count: usize,
) = compare_body);

pub unsafe fn compare(
    level: Level,
    comparison: Comparison,
    from: crate::Type,
    a: Argument,
    b: Argument,
    to: *mut u8,
    count: usize,
) {
    macro_rules! call {
        ($T:ty) => {
            compare_as::<$T>(level, comparison, a, b, to, count)
        };
    }
    by_type!(from, call: Bool U8 U16 U32 U64 S8 S16 S32 S64 F16 Bf16 F32 F64)
}

/// What a float is tested for.
pub trait Float: Copy + PartialOrd {
    const INFINITY: Self;
    const NEGATIVE_INFINITY: Self;
}

impl Float for f32 {
    const INFINITY: f32 = f32::INFINITY;
    const NEGATIVE_INFINITY: f32 = f32::NEG_INFINITY;
}

impl Float for f64 {
    const INFINITY: f64 = f64::INFINITY;
    const NEGATIVE_INFINITY: f64 = f64::NEG_INFINITY;
}

#[inline(always)]
#[allow(clippy::eq_op)]
unsafe fn test_body<S: Simd, T: Cell<Wide: Float>>(
    test: Test,
    a: Argument,
    to: *mut u8,
    count: usize,
) {
    let [low, high] = [T::Wide::NEGATIVE_INFINITY, T::Wide::INFINITY];
    match test {
        Test::Nan => map::<S, T, u8>(a, to, count, |x| u8::from(x != x)),
        Test::Infinite => map::<S, T, u8>(a, to, count, |x| u8::from((x == low) | (x == high))),
        Test::PositiveInfinity => map::<S, T, u8>(a, to, count, |x| u8::from(x == high)),
        Test::NegativeInfinity => map::<S, T, u8>(a, to, count, |x| u8::from(x == low)),
        Test::Finite => map::<S, T, u8>(a, to, count, |x| u8::from((x > low) & (x < high))),
    }
}

dispatch!(fn test_as<T: Cell<Wide: Float>>(test: Test, a: Argument, to: *mut u8, count: usize) = test_body);

pub unsafe fn test(
    level: Level,
    test: Test,
    from: crate::Type,
    a: Argument,
    to: *mut u8,
    count: usize,
) {
    macro_rules! call {
        ($T:ty) => {
            test_as::<$T>(level, test, a, to, count)
        };
    }
    by_type!(from, call: F16 Bf16 F32 F64)
}
