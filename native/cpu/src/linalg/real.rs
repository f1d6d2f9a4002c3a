//! The numbers that factorizations compute with: f32, and f64 in vectors of as many.

use crate::simd::Simd;
use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

/// f32 or f64, one by one and in rows: as many numbers beside each other as a tile of a product is wide.
#[allow(
    clippy::missing_safety_doc,
    reason = "each needs the processor's instructions, and pointers to the numbers of a row or a square"
)]
pub trait Real:
    Copy
    + Send
    + Sync
    + Debug
    + Default
    + PartialOrd
    + Into<f64>
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + 'static
{
    type Row<S: Simd>: Copy;
    const ZERO: Self;
    const ONE: Self;
    const NAN: Self;
    /// From 1 to the next number.
    const EPSILON: Self;
    /// The smallest number whose reciprocal is finite and as exact as others.
    const SMALLEST: Self;

    fn of(x: f64) -> Self;
    fn abs(self) -> Self;
    fn sqrt(self) -> Self;

    /// Numbers of a row.
    fn width<S: Simd>() -> usize;
    unsafe fn splat<S: Simd>(x: Self) -> Self::Row<S>;
    unsafe fn load<S: Simd>(from: *const Self) -> Self::Row<S>;
    unsafe fn store<S: Simd>(to: *mut Self, x: Self::Row<S>);
    unsafe fn row_sub<S: Simd>(a: Self::Row<S>, b: Self::Row<S>) -> Self::Row<S>;
    unsafe fn row_mul<S: Simd>(a: Self::Row<S>, b: Self) -> Self::Row<S>;
    unsafe fn row_div<S: Simd>(a: Self::Row<S>, b: Self) -> Self::Row<S>;
    /// a · b + c.
    unsafe fn fma<S: Simd>(a: Self, b: Self::Row<S>, c: Self::Row<S>) -> Self::Row<S>;
    /// Rows for columns, of a square of [`Real::square`] numbers a side.
    unsafe fn turn<S: Simd>(from: *const Self, step: isize, to: *mut Self, stride: usize);
    fn square<S: Simd>() -> usize;
    /// The place of the first number of the largest magnitude, NaN aside.
    unsafe fn largest_place<S: Simd>(from: *const Self, count: usize) -> usize;
}

impl Real for f32 {
    type Row<S: Simd> = [S::V; 2];
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    const NAN: f32 = f32::NAN;
    const EPSILON: f32 = f32::EPSILON;
    const SMALLEST: f32 = f32::MIN_POSITIVE;

    #[inline(always)]
    fn of(x: f64) -> f32 {
        x as f32
    }
    #[inline(always)]
    fn abs(self) -> f32 {
        f32::abs(self)
    }
    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn width<S: Simd>() -> usize {
        2 * S::LANES
    }
    #[inline(always)]
    unsafe fn splat<S: Simd>(x: f32) -> [S::V; 2] {
        [S::splat(x); 2]
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f32) -> [S::V; 2] {
        [S::load(from), S::load(from.add(S::LANES))]
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut f32, x: [S::V; 2]) {
        S::store(to, x[0]);
        S::store(to.add(S::LANES), x[1]);
    }
    #[inline(always)]
    unsafe fn row_sub<S: Simd>(a: [S::V; 2], b: [S::V; 2]) -> [S::V; 2] {
        [S::sub(a[0], b[0]), S::sub(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn row_mul<S: Simd>(a: [S::V; 2], b: f32) -> [S::V; 2] {
        let b = S::splat(b);
        [S::mul(a[0], b), S::mul(a[1], b)]
    }
    #[inline(always)]
    unsafe fn row_div<S: Simd>(a: [S::V; 2], b: f32) -> [S::V; 2] {
        let b = S::splat(b);
        [S::div(a[0], b), S::div(a[1], b)]
    }
    #[inline(always)]
    unsafe fn fma<S: Simd>(a: f32, b: [S::V; 2], c: [S::V; 2]) -> [S::V; 2] {
        let a = S::splat(a);
        [S::fma(a, b[0], c[0]), S::fma(a, b[1], c[1])]
    }
    #[inline(always)]
    unsafe fn turn<S: Simd>(from: *const f32, step: isize, to: *mut f32, stride: usize) {
        let mut square = [S::splat(0.0); 16];
        for (i, x) in square.iter_mut().enumerate().take(S::LANES) {
            *x = S::load(from.offset(i as isize * step));
        }
        S::turn(&mut square);
        for (i, x) in square.iter().enumerate().take(S::LANES) {
            S::store(to.add(i * stride), *x);
        }
    }
    #[inline(always)]
    fn square<S: Simd>() -> usize {
        S::LANES
    }
    #[inline(always)]
    unsafe fn largest_place<S: Simd>(from: *const f32, count: usize) -> usize {
        let whole = count / S::LANES * S::LANES;
        let mut most = S::splat(-1.0);
        for i in (0..whole).step_by(S::LANES) {
            // A NaN loses, being the first argument.
            most = S::max(S::abs(S::load(from.add(i))), most);
        }
        let mut largest = if whole > 0 { S::largest(most) } else { -1.0 };
        let mut place = None;
        for i in whole..count {
            let x = (*from.add(i)).abs();
            if x > largest {
                (largest, place) = (x, Some(i));
            }
        }
        if let Some(place) = place {
            return place;
        }
        let limit = S::splat(largest);
        for i in (0..whole).step_by(S::LANES) {
            if S::all(S::less(S::abs(S::load(from.add(i))), limit)) {
                continue;
            }
            let found = (i..i + S::LANES).find(|i| (*from.add(*i)).abs() == largest);
            if let Some(found) = found {
                return found;
            }
        }
        0
    }
}

impl Real for f64 {
    type Row<S: Simd> = S::Wide;
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const NAN: f64 = f64::NAN;
    const EPSILON: f64 = f64::EPSILON;
    const SMALLEST: f64 = f64::MIN_POSITIVE;

    #[inline(always)]
    fn of(x: f64) -> f64 {
        x
    }
    #[inline(always)]
    fn abs(self) -> f64 {
        f64::abs(self)
    }
    #[inline(always)]
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }
    #[inline(always)]
    fn width<S: Simd>() -> usize {
        S::LANES
    }
    #[inline(always)]
    unsafe fn splat<S: Simd>(x: f64) -> S::Wide {
        S::wide_splat(x)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f64) -> S::Wide {
        S::wide_load(from)
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut f64, x: S::Wide) {
        S::wide_store(to, x)
    }
    #[inline(always)]
    unsafe fn row_sub<S: Simd>(a: S::Wide, b: S::Wide) -> S::Wide {
        S::wide_sub(a, b)
    }
    #[inline(always)]
    unsafe fn row_mul<S: Simd>(a: S::Wide, b: f64) -> S::Wide {
        S::wide_mul(a, S::wide_splat(b))
    }
    #[inline(always)]
    unsafe fn row_div<S: Simd>(a: S::Wide, b: f64) -> S::Wide {
        S::wide_div(a, S::wide_splat(b))
    }
    #[inline(always)]
    unsafe fn fma<S: Simd>(a: f64, b: S::Wide, c: S::Wide) -> S::Wide {
        S::wide_fma(S::wide_splat(a), b, c)
    }
    #[inline(always)]
    unsafe fn turn<S: Simd>(from: *const f64, step: isize, to: *mut f64, stride: usize) {
        for i in 0..4 {
            for j in 0..4 {
                *to.add(j * stride + i) = *from.offset(i as isize * step + j as isize);
            }
        }
    }
    #[inline(always)]
    fn square<S: Simd>() -> usize {
        4
    }
    #[inline(always)]
    unsafe fn largest_place<S: Simd>(from: *const f64, count: usize) -> usize {
        let (mut largest, mut place) = (-1.0, 0);
        for i in 0..count {
            let x = (*from.add(i)).abs();
            if x > largest {
                (largest, place) = (x, i);
            }
        }
        place
    }
}
