//! eˣ and what is made of it.

use super::polynomial;
use crate::simd::Simd;

/// n and r with x = n·ln 2 + r and |r| ≤ ln 2 / 2.
#[inline(always)]
unsafe fn reduce<S: Simd>(x: S::V) -> (S::V, S::V) {
    let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, the first with so few digits that its product with n is exact.
    let r = S::fma(n, S::splat(-0.693_359_4), x);
    (n, S::fma(n, S::splat(2.121_944_4e-4), r))
}

/// eˣ = p·2ⁿ, p = eʳ = 1 + r + r²·Q(r), for finite products that are half of eˣ, too.
#[inline(always)]
unsafe fn exp_parts<S: Simd>(x: S::V) -> (S::V, S::V) {
    // Beyond these the answer is 0 or infinity; the argument stays NaN where it is.
    let x = S::min(S::splat(90.0), x);
    let x = S::max(S::splat(-104.0), x);
    let (n, r) = reduce::<S>(x);
    let q = polynomial::<S, 5>(
        r,
        [
            0.499_999_94,
            0.166_665_15,
            0.041_668_456,
            0.008_369_419,
            0.001_381_314_5,
        ],
    );
    let p = S::add(S::fma(S::mul(r, r), q, r), S::splat(1.0));
    (p, n)
}

#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    let (p, n) = exp_parts::<S>(x);
    S::scale(p, n)
}

/// eˣ / 2, which is finite where sinh and cosh are.
#[inline(always)]
pub(super) unsafe fn half_exp<S: Simd>(x: S::V) -> S::V {
    let (p, n) = exp_parts::<S>(x);
    S::scale(p, S::sub(n, S::splat(1.0)))
}

/// eˣ - 1 = 2ⁿ·(eʳ - 1) + (2ⁿ - 1), all of it halved until the end: 2ⁿ may be infinite where the answer is not.
#[inline(always)]
pub unsafe fn expm1<S: Simd>(x: S::V) -> S::V {
    // Below -20 the answer is -1.
    let bounded = S::max(S::splat(-20.0), S::min(S::splat(89.0), x));
    let (n, r) = reduce::<S>(bounded);
    let q = polynomial::<S, 6>(
        r,
        [
            0.5,
            0.166_666_66,
            0.041_666_493,
            0.008_333_543,
            0.001_393_236_5,
            0.000_197_643_31,
        ],
    );
    let p = S::fma(S::mul(r, r), q, r);
    let half = S::scale(S::splat(0.5), n);
    let value = S::fma(p, half, S::sub(half, S::splat(0.5)));
    // Half of a subnormal number is not exact, and a zero's sign would be lost.
    let is_tiny = S::less(S::abs(x), S::splat(1e-20));
    S::select(is_tiny, x, S::add(value, value))
}

/// 1 / (1 + e⁻ˣ), by way of e^-|x|, which loses nothing on either side.
#[inline(always)]
pub unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    let one = S::splat(1.0);
    let e = exp::<S>(S::neg(S::abs(x)));
    let above = S::select(S::less(x, S::splat(0.0)), e, one);
    S::div(above, S::add(one, e))
}
