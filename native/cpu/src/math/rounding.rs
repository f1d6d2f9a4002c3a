//! Rounding to whole numbers, and signs.

use crate::simd::Simd;

#[inline(always)]
pub unsafe fn floor<S: Simd>(x: S::V) -> S::V {
    S::floor(x)
}

#[inline(always)]
pub unsafe fn ceil<S: Simd>(x: S::V) -> S::V {
    S::ceil(x)
}

#[inline(always)]
pub unsafe fn trunc<S: Simd>(x: S::V) -> S::V {
    S::trunc(x)
}

/// Halves to the even one.
#[inline(always)]
pub unsafe fn round<S: Simd>(x: S::V) -> S::V {
    S::round(x)
}

/// Halves away from zero. What is added is the largest number below a half: with a half itself the sum of that number
/// would be rounded up to 1.
#[inline(always)]
pub unsafe fn round_away<S: Simd>(x: S::V) -> S::V {
    let below_half = S::copysign(S::splat(0.499_999_97), x);
    S::trunc(S::add(x, below_half))
}

/// NaN of NaN, and a zero of a zero, with its sign.
#[inline(always)]
pub unsafe fn sign<S: Simd>(x: S::V) -> S::V {
    let one = S::copysign(S::splat(1.0), x);
    S::select(S::less(S::splat(0.0), S::abs(x)), one, x)
}
