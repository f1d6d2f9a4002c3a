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

/// 0 of NaN and of zeros.
#[inline(always)]
pub unsafe fn sign<S: Simd>(x: S::V) -> S::V {
    let zero = S::splat(0.0);
    let below = S::select(S::less(x, zero), S::splat(-1.0), zero);
    S::select(S::less(zero, x), S::splat(1.0), below)
}
