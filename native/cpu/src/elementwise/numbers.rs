//! Arithmetic of integers, booleans and f64. Integers wrap around.

use super::cell::{by_type, map, map_pairs, Cell};
use super::Argument;
use crate::simd::{dispatch, Level, Simd};
use crate::{Function, Pair, Type};
use std::ffi::CStr;

/// Of each bit; a shift by a negative number of bits or by as many as there are is a shift of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bits {
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRight,
}

impl Bits {
    pub fn name(self) -> &'static CStr {
        match self {
            Bits::And => c"bitwise_and",
            Bits::Or => c"bitwise_or",
            Bits::Xor => c"bitwise_xor",
            Bits::ShiftLeft => c"left_shift",
            Bits::ShiftRight => c"right_shift",
        }
    }
}

/// Of integers; by zero all are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Division {
    /// Rounded toward zero.
    Quotient,
    /// Rounded down.
    Floor,
    /// With the sign of the dividend.
    Fmod,
    /// With the sign of the divisor.
    Remainder,
}

impl Division {
    pub fn name(self) -> &'static CStr {
        match self {
            Division::Quotient => c"quotient",
            Division::Floor => c"floor_divide",
            Division::Fmod => c"fmod",
            Division::Remainder => c"remainder",
        }
    }
}

pub fn has_function(function: Function, of: Type) -> bool {
    match function {
        Function::Negative | Function::Abs | Function::Square => of != Type::Bool,
        Function::Sqrt => of == Type::F64,
        _ => false,
    }
}

pub fn has_pair(pair: Pair, of: Type) -> bool {
    match pair {
        Pair::Add | Pair::Subtract | Pair::Multiply | Pair::Maximum | Pair::Minimum => {
            of != Type::Bool
        }
        Pair::Divide => of == Type::F64,
        _ => false,
    }
}

/// Numbers that are added, multiplied and compared.
pub trait Number: Cell<Wide = Self> + PartialOrd {
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn negative(self) -> Self;
    fn magnitude(self) -> Self;
    /// NaN where either is.
    fn larger(self, other: Self) -> Self;
    fn smaller(self, other: Self) -> Self;
}

macro_rules! whole {
    ($magnitude:ident: $($T:ty)*) => { $(impl Number for $T {
        #[inline(always)]
        fn add(self, other: $T) -> $T { self.wrapping_add(other) }
        #[inline(always)]
        fn sub(self, other: $T) -> $T { self.wrapping_sub(other) }
        #[inline(always)]
        fn mul(self, other: $T) -> $T { self.wrapping_mul(other) }
        #[inline(always)]
        fn negative(self) -> $T { self.wrapping_neg() }
        #[inline(always)]
        fn magnitude(self) -> $T { whole!(@ $magnitude self) }
        #[inline(always)]
        fn larger(self, other: $T) -> $T { self.max(other) }
        #[inline(always)]
        fn smaller(self, other: $T) -> $T { self.min(other) }
    })* };
    (@ signed $x:ident) => { $x.wrapping_abs() };
    (@ unsigned $x:ident) => { $x };
}

whole!(signed: i8 i16 i32 i64);
whole!(unsigned: u8 u16 u32 u64);

impl Number for f64 {
    #[inline(always)]
    fn add(self, other: f64) -> f64 {
        self + other
    }
    #[inline(always)]
    fn sub(self, other: f64) -> f64 {
        self - other
    }
    #[inline(always)]
    fn mul(self, other: f64) -> f64 {
        self * other
    }
    #[inline(always)]
    fn negative(self) -> f64 {
        -self
    }
    #[inline(always)]
    fn magnitude(self) -> f64 {
        self.abs()
    }
    #[inline(always)]
    fn larger(self, other: f64) -> f64 {
        if self.is_nan() || self > other {
            self
        } else {
            other
        }
    }
    #[inline(always)]
    fn smaller(self, other: f64) -> f64 {
        if self.is_nan() || self < other {
            self
        } else {
            other
        }
    }
}

#[inline(always)]
unsafe fn pair_body<S: Simd, T: Number>(
    pair: Pair,
    a: Argument,
    b: Argument,
    to: *mut u8,
    count: usize,
) {
    match pair {
        Pair::Add => map_pairs::<S, T, T>(a, b, to, count, Number::add),
        Pair::Subtract => map_pairs::<S, T, T>(a, b, to, count, Number::sub),
        Pair::Multiply => map_pairs::<S, T, T>(a, b, to, count, Number::mul),
        Pair::Maximum => map_pairs::<S, T, T>(a, b, to, count, Number::larger),
        Pair::Minimum => map_pairs::<S, T, T>(a, b, to, count, Number::smaller),
        _ => unreachable!("no kernel for {pair:?}"),
    }
}

dispatch!(fn pair_as<T: Number>(
    pair: Pair, a: Argument, b: Argument, to: *mut u8, count: usize,
) = pair_body);

#[inline(always)]
unsafe fn quotient_body<S: Simd>(a: Argument, b: Argument, to: *mut u8, count: usize) {
    map_pairs::<S, f64, f64>(a, b, to, count, |x, y| x / y);
}

dispatch!(fn double_divide(a: Argument, b: Argument, to: *mut u8, count: usize) = quotient_body);

pub unsafe fn pair(
    level: Level,
    pair: Pair,
    of: Type,
    a: Argument,
    b: Argument,
    to: *mut u8,
    count: usize,
) {
    if pair == Pair::Divide {
        return double_divide(level, a, b, to, count);
    }
    macro_rules! call {
        ($T:ty) => {
            pair_as::<$T>(level, pair, a, b, to, count)
        };
    }
    by_type!(of, call: U8 U16 U32 U64 S8 S16 S32 S64 F64)
}

#[inline(always)]
unsafe fn function_body<S: Simd, T: Number>(
    function: Function,
    a: Argument,
    to: *mut u8,
    count: usize,
) {
    match function {
        Function::Negative => map::<S, T, T>(a, to, count, Number::negative),
        Function::Abs => map::<S, T, T>(a, to, count, Number::magnitude),
        Function::Square => map::<S, T, T>(a, to, count, |x| x.mul(x)),
        _ => unreachable!("no kernel for {function:?}"),
    }
}

dispatch!(fn function_as<T: Number>(
    function: Function, a: Argument, to: *mut u8, count: usize,
) = function_body);

#[inline(always)]
unsafe fn root_body<S: Simd>(a: Argument, to: *mut u8, count: usize) {
    map::<S, f64, f64>(a, to, count, f64::sqrt);
}

dispatch!(fn root(a: Argument, to: *mut u8, count: usize) = root_body);

pub unsafe fn function(
    level: Level,
    function: Function,
    of: Type,
    a: Argument,
    to: *mut u8,
    count: usize,
) {
    if function == Function::Sqrt {
        return root(level, a, to, count);
    }
    macro_rules! call {
        ($T:ty) => {
            function_as::<$T>(level, function, a, to, count)
        };
    }
    by_type!(of, call: U8 U16 U32 U64 S8 S16 S32 S64 F64)
}

/// Integers, and how they are divided.
pub trait Whole: Cell<Wide = Self> + Ord + Default {
    fn and(self, other: Self) -> Self;
    fn or(self, other: Self) -> Self;
    fn xor(self, other: Self) -> Self;
    fn not(self) -> Self;
    fn left(self, by: Self) -> Self;
    fn right(self, by: Self) -> Self;
    fn quotient(self, by: Self) -> Self;
    fn times(self, by: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    fn plus(self, other: Self) -> Self;
    fn one() -> Self;
}

macro_rules! divided {
    ($($T:ty, $U:ty, $float:ident, $sign:ident;)*) => { $(impl Whole for $T {
        #[inline(always)]
        fn and(self, other: $T) -> $T { self & other }
        #[inline(always)]
        fn or(self, other: $T) -> $T { self | other }
        #[inline(always)]
        fn xor(self, other: $T) -> $T { self ^ other }
        #[inline(always)]
        fn not(self) -> $T { !self }
        #[inline(always)]
        fn left(self, by: $T) -> $T {
            // A negative number of bits is a large one without its sign.
            if (by as $U) < <$T>::BITS as $U { self.wrapping_shl(by as u32) } else { 0 }
        }
        #[inline(always)]
        fn right(self, by: $T) -> $T {
            if (by as $U) < <$T>::BITS as $U {
                self.wrapping_shr(by as u32)
            } else {
                self >> (<$T>::BITS - 1) >> divided!(@last $sign)
            }
        }
        #[inline(always)]
        fn quotient(self, by: $T) -> $T { divided!(@quotient $float, $sign, $T, self, by) }
        #[inline(always)]
        fn times(self, by: $T) -> $T { self.wrapping_mul(by) }
        #[inline(always)]
        fn minus(self, other: $T) -> $T { self.wrapping_sub(other) }
        #[inline(always)]
        fn plus(self, other: $T) -> $T { self.wrapping_add(other) }
        #[inline(always)]
        fn one() -> $T { 1 }
    })* };
    // What is left after all bits but the sign's are gone.
    (@last signed) => { 0 };
    (@last unsigned) => { 1 };
    // Integers have no vectors of quotients. A float with more bits than both rounds to the nearest, and the nearest
    // to a fraction is never beyond the next integer.
    (@quotient none, $sign:ident, $T:ty, $a:ident, $b:ident) => {
        if $b == 0 { 0 } else { $a.wrapping_div($b) }
    };
    (@quotient $float:ident, unsigned, $T:ty, $a:ident, $b:ident) => {
        if $b == 0 { 0 } else { ($a as $float / $b as $float) as $T }
    };
    (@quotient $float:ident, signed, $T:ty, $a:ident, $b:ident) => {{
        let q = ($a as $float / $b as $float) as $T;
        // Of the smallest integer by -1 the quotient has no room.
        if $b == 0 { 0 } else if $b == -1 { $a.wrapping_neg() } else { q }
    }};
}

divided! {
    u8, u8, f32, unsigned;
    u16, u16, f32, unsigned;
    u32, u32, f64, unsigned;
    i8, u8, f32, signed;
    i16, u16, f32, signed;
    i32, u32, f64, signed;
    u64, u64, none, unsigned;
    i64, u64, none, signed;
}

fn fmod<T: Whole>(a: T, b: T) -> T {
    if b == T::default() {
        return b;
    }
    a.minus(a.quotient(b).times(b))
}

/// Whether a remainder of C's is not Python's: its sign is not the divisor's.
fn differs<T: Whole>(r: T, b: T) -> bool {
    r != T::default() && ((r < T::default()) != (b < T::default()))
}

#[inline(always)]
unsafe fn division_body<S: Simd, T: Whole>(
    division: Division,
    a: Argument,
    b: Argument,
    to: *mut u8,
    count: usize,
) {
    match division {
        Division::Quotient => map_pairs::<S, T, T>(a, b, to, count, Whole::quotient),
        Division::Floor => map_pairs::<S, T, T>(a, b, to, count, |x, y| {
            let q = x.quotient(y);
            let r = fmod(x, y);
            if differs(r, y) {
                q.minus(T::one())
            } else {
                q
            }
        }),
        Division::Fmod => map_pairs::<S, T, T>(a, b, to, count, fmod),
        Division::Remainder => map_pairs::<S, T, T>(a, b, to, count, |x, y| {
            let r = fmod(x, y);
            if differs(r, y) {
                r.plus(y)
            } else {
                r
            }
        }),
    }
}

dispatch!(fn division_as<T: Whole>(
    division: Division, a: Argument, b: Argument, to: *mut u8, count: usize,
) = division_body);

pub unsafe fn divide(
    level: Level,
    division: Division,
    of: Type,
    a: Argument,
    b: Argument,
    to: *mut u8,
    count: usize,
) {
    macro_rules! call {
        ($T:ty) => {
            division_as::<$T>(level, division, a, b, to, count)
        };
    }
    by_type!(of, call: U8 U16 U32 U64 S8 S16 S32 S64)
}

#[inline(always)]
unsafe fn bits_body<S: Simd, T: Whole>(
    bits: Bits,
    a: Argument,
    b: Argument,
    to: *mut u8,
    count: usize,
) {
    match bits {
        Bits::And => map_pairs::<S, T, T>(a, b, to, count, Whole::and),
        Bits::Or => map_pairs::<S, T, T>(a, b, to, count, Whole::or),
        Bits::Xor => map_pairs::<S, T, T>(a, b, to, count, Whole::xor),
        Bits::ShiftLeft => map_pairs::<S, T, T>(a, b, to, count, Whole::left),
        Bits::ShiftRight => map_pairs::<S, T, T>(a, b, to, count, Whole::right),
    }
}

dispatch!(fn bits_as<T: Whole>(
    bits: Bits, a: Argument, b: Argument, to: *mut u8, count: usize,
) = bits_body);

pub unsafe fn bits(
    level: Level,
    bits: Bits,
    of: Type,
    a: Argument,
    b: Argument,
    to: *mut u8,
    count: usize,
) {
    macro_rules! call {
        ($T:ty) => {
            bits_as::<$T>(level, bits, a, b, to, count)
        };
    }
    by_type!(of, call: Bool U8 U16 U32 U64 S8 S16 S32 S64)
}

#[inline(always)]
unsafe fn not_body<S: Simd, T: Whole>(mask: T, a: Argument, to: *mut u8, count: usize) {
    map::<S, T, T>(a, to, count, |x| x.xor(mask));
}

dispatch!(fn not_as<T: Whole>(mask: T, a: Argument, to: *mut u8, count: usize) = not_body);

pub unsafe fn not(level: Level, of: Type, a: Argument, to: *mut u8, count: usize) {
    if of == Type::Bool {
        return not_as::<u8>(level, 1, a, to, count);
    }
    macro_rules! call {
        ($T:ty) => {
            not_as::<$T>(level, <$T>::default().not(), a, to, count)
        };
    }
    by_type!(of, call: U8 U16 U32 U64 S8 S16 S32 S64)
}
