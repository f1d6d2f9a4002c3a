//! Sums, products, roots and the larger of two, an instruction or two each.

use crate::simd::Simd;

#[inline(always)]
pub unsafe fn sqrt<S: Simd>(x: S::V) -> S::V {
    S::sqrt(x)
}

#[inline(always)]
pub unsafe fn rsqrt<S: Simd>(x: S::V) -> S::V {
    S::div(S::splat(1.0), S::sqrt(x))
}

#[inline(always)]
pub unsafe fn negative<S: Simd>(x: S::V) -> S::V {
    S::neg(x)
}

#[inline(always)]
pub unsafe fn abs<S: Simd>(x: S::V) -> S::V {
    S::abs(x)
}

#[inline(always)]
pub unsafe fn square<S: Simd>(x: S::V) -> S::V {
    S::mul(x, x)
}

#[inline(always)]
pub unsafe fn add<S: Simd>(a: S::V, b: S::V) -> S::V {
    S::add(a, b)
}

#[inline(always)]
pub unsafe fn subtract<S: Simd>(a: S::V, b: S::V) -> S::V {
    S::sub(a, b)
}

#[inline(always)]
pub unsafe fn multiply<S: Simd>(a: S::V, b: S::V) -> S::V {
    S::mul(a, b)
}

#[inline(always)]
pub unsafe fn divide<S: Simd>(a: S::V, b: S::V) -> S::V {
    S::div(a, b)
}

/// NaN where either is. `b`, which often is the same for all elements, is looked at once then.
#[inline(always)]
pub unsafe fn maximum<S: Simd>(a: S::V, b: S::V) -> S::V {
    S::select(S::is_nan(b), b, S::max(b, a))
}

/// Likewise.
#[inline(always)]
pub unsafe fn minimum<S: Simd>(a: S::V, b: S::V) -> S::V {
    S::select(S::is_nan(b), b, S::min(b, a))
}

#[inline(always)]
pub unsafe fn reciprocal<S: Simd>(x: S::V) -> S::V {
    S::div(S::splat(1.0), x)
}
