//! Casts between all types. A float that an integer has no room for becomes what x86's conversion makes of it, as in
//! C++ there: the smallest integer of 32 or 64 bits, of which a shorter one keeps the lowest bits.

use super::cell::{by_type, map, Cell};
use super::Argument;
use crate::simd::{dispatch, Level, Simd};
use crate::Type;

/// The whole number of `$x`, or the smallest where it does not fit. Rust's own conversion tests for more, which keeps
/// the compiler from making vectors of it.
macro_rules! whole {
    ($x:ident as $T:ty, $fits:expr) => {{
        let fits = $fits;
        // SAFETY: within the type.
        let whole = unsafe { if fits { $x } else { 0.0 }.to_int_unchecked::<$T>() };
        if fits {
            whole
        } else {
            <$T>::MIN
        }
    }};
}

#[inline(always)]
fn to_i32(x: f32) -> i32 {
    whole!(x as i32, (-2_147_483_648.0..2_147_483_648.0).contains(&x))
}

#[inline(always)]
fn wide_to_i32(x: f64) -> i32 {
    whole!(x as i32, (x > -2_147_483_649.0) & (x < 2_147_483_648.0))
}

#[inline(always)]
pub fn to_i64(x: f64) -> i64 {
    const END: f64 = 9_223_372_036_854_775_808.0;
    whole!(x as i64, (-END..END).contains(&x))
}

/// As two conversions to signed integers, of which the second takes what is beyond the first's.
pub fn to_u64(x: f64) -> u64 {
    const HALF: f64 = 9_223_372_036_854_775_808.0;
    if x >= HALF {
        to_i64(x - HALF) as u64 ^ (1 << 63)
    } else {
        to_i64(x) as u64
    }
}

/// The number as another type.
pub trait To<O> {
    fn to(self) -> O;
}

macro_rules! plain {
    ($($A:ty => $($O:ty)*;)*) => { $($(impl To<$O> for $A {
        #[inline(always)]
        fn to(self) -> $O { self as $O }
    })*)* };
}

plain! {
    u8 => u8 u16 u32 u64 i8 i16 i32 i64 f32 f64;
    u16 => u8 u16 u32 u64 i8 i16 i32 i64 f32 f64;
    u32 => u8 u16 u32 u64 i8 i16 i32 i64 f32 f64;
    u64 => u8 u16 u32 u64 i8 i16 i32 i64 f32 f64;
    i8 => u8 u16 u32 u64 i8 i16 i32 i64 f32 f64;
    i16 => u8 u16 u32 u64 i8 i16 i32 i64 f32 f64;
    i32 => u8 u16 u32 u64 i8 i16 i32 i64 f32 f64;
    i64 => u8 u16 u32 u64 i8 i16 i32 i64 f32 f64;
    f32 => f32 f64;
    f64 => f32 f64;
}

macro_rules! rounded {
    ($A:ty, $narrow:ident: $($O:ty)*) => { $(impl To<$O> for $A {
        #[inline(always)]
        fn to(self) -> $O { $narrow(self) as $O }
    })* };
}

rounded!(f32, to_i32: u8 u16 i8 i16 i32);
rounded!(f64, wide_to_i32: u8 u16 i8 i16 i32);

macro_rules! rounded_wide {
    ($($A:ty)*) => { $(
        impl To<i64> for $A {
            #[inline(always)]
            fn to(self) -> i64 { to_i64(self.into()) }
        }
        impl To<u32> for $A {
            #[inline(always)]
            fn to(self) -> u32 { to_i64(self.into()) as u32 }
        }
        impl To<u64> for $A {
            #[inline(always)]
            fn to(self) -> u64 { to_u64(self.into()) }
        }
    )* };
}

rounded_wide!(f32 f64);

#[inline(always)]
unsafe fn body<S: Simd, A: Cell<Wide: To<O::Wide>>, O: Cell>(
    a: Argument,
    to: *mut u8,
    count: usize,
) {
    map::<S, A, O>(a, to, count, |x| x.to());
}

dispatch!(fn run<A: Cell<Wide: To<O::Wide>>, O: Cell>(a: Argument, to: *mut u8, count: usize) = body);

/// To booleans: whether it is not zero.
#[inline(always)]
unsafe fn truth_body<S: Simd, A: Cell<Wide: PartialEq>>(a: Argument, to: *mut u8, count: usize) {
    map::<S, A, u8>(a, to, count, |x| u8::from(x != A::Wide::default()));
}

dispatch!(fn truth<A: Cell<Wide: PartialEq>>(a: Argument, to: *mut u8, count: usize) = truth_body);

pub unsafe fn cast(level: Level, from: Type, into: Type, a: Argument, to: *mut u8, count: usize) {
    if into == Type::Bool {
        macro_rules! call {
            ($A:ty) => {
                truth::<$A>(level, a, to, count)
            };
        }
        return by_type!(from, call: Bool U8 U16 U32 U64 S8 S16 S32 S64 F16 Bf16 F32 F64);
    }
    macro_rules! to {
        ($A:ty) => {{
            macro_rules! call {
                ($O:ty) => {
                    run::<$A, $O>(level, a, to, count)
                };
            }
            by_type!(into, call: U8 U16 U32 U64 S8 S16 S32 S64 F16 Bf16 F32 F64)
        }};
    }
    by_type!(from, to: Bool U8 U16 U32 U64 S8 S16 S32 S64 F16 Bf16 F32 F64)
}
