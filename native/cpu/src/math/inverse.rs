//! Arc sine, arc cosine and arc tangent.

use super::polynomial;
use crate::simd::Simd;
use std::f32::consts::{FRAC_PI_2, FRAC_PI_4, PI};

/// π in two parts.
const PI_LOW: f32 = -8.742_278e-8;

/// (arcsin x - x) / x³ of x², for x up to ½.
#[inline(always)]
unsafe fn arcsine<S: Simd>(square: S::V) -> S::V {
    polynomial::<S, 5>(
        square,
        [
            0.166_667_52,
            0.074_953_094,
            0.045_469_15,
            0.024_184_778,
            0.042_158_306,
        ],
    )
}

/// Of a magnitude up to ½ that itself, beyond it √((1 - |x|) / 2), and the square of it: arcsin |x| is π/2 less twice
/// the arc sine of the root.
#[inline(always)]
unsafe fn halved<S: Simd>(size: S::V) -> (S::V, S::V, S::M) {
    let half = S::splat(0.5);
    let is_far = S::less(half, size);
    let square = S::fma(size, S::splat(-0.5), half);
    let square = S::select(is_far, square, S::mul(size, size));
    (S::select(is_far, S::sqrt(square), size), square, is_far)
}

#[inline(always)]
pub unsafe fn asin<S: Simd>(x: S::V) -> S::V {
    let (t, square, is_far) = halved::<S>(S::abs(x));
    let more = S::mul(S::mul(t, square), arcsine::<S>(square));
    let near = S::add(t, more);
    // Twice what remains, with the lower part of π/2, and what rounding the difference leaves out.
    let low = S::fma(S::splat(-2.0), more, S::splat(0.5 * PI_LOW));
    let far = S::fma(S::splat(-2.0), t, S::splat(FRAC_PI_2));
    let rest = S::fma(S::splat(-2.0), t, S::sub(S::splat(FRAC_PI_2), far));
    let far = S::add(far, S::add(low, rest));
    S::copysign(S::select(is_far, far, near), x)
}

#[inline(always)]
pub unsafe fn acos<S: Simd>(x: S::V) -> S::V {
    let (t, square, is_far) = halved::<S>(S::abs(x));
    let more = S::mul(S::mul(t, square), arcsine::<S>(square));
    let is_negative = S::is_signed(x);
    // π/2 - arcsin x.
    let near = S::copysign(S::add(t, more), x);
    let near = S::sub(S::splat(FRAC_PI_2), S::sub(near, S::splat(0.5 * PI_LOW)));
    // Twice the root's arc sine, or π less that.
    let twice = S::mul(S::splat(2.0), S::add(t, more));
    let other = S::sub(S::splat(PI), S::sub(twice, S::splat(PI_LOW)));
    let far = S::select(is_negative, other, twice);
    S::select(is_far, far, near)
}

/// Of t from 0 to 1, at both ends the nearest number.
#[inline(always)]
unsafe fn arctangent<S: Simd>(t: S::V) -> S::V {
    let square = S::mul(t, t);
    let p = polynomial::<S, 9>(
        square,
        [
            -0.333_333,
            0.199_985_31,
            -0.142_640_52,
            0.109_511_75,
            -0.084_004_75,
            0.057_906_546,
            -0.031_127_002,
            0.010_887_361,
            -0.001_787_547_6,
        ],
    );
    let is_one = S::equal(t, S::splat(1.0));
    S::select(is_one, S::splat(FRAC_PI_4), S::fma(S::mul(t, square), p, t))
}

#[inline(always)]
pub unsafe fn atan<S: Simd>(x: S::V) -> S::V {
    let size = S::abs(x);
    let one = S::splat(1.0);
    let is_far = S::less(one, size);
    let t = S::select(is_far, S::div(one, size), size);
    let near = arctangent::<S>(t);
    let far = S::sub(S::splat(FRAC_PI_2), S::sub(near, S::splat(0.5 * PI_LOW)));
    S::copysign(S::select(is_far, far, near), x)
}

/// The angle of the point (x, y), from the quotient of the smaller of the two by the larger.
#[inline(always)]
pub unsafe fn atan2<S: Simd>(y: S::V, x: S::V) -> S::V {
    let (height, width) = (S::abs(y), S::abs(x));
    let is_steep = S::less(width, height);
    let smaller = S::select(is_steep, width, height);
    let larger = S::select(is_steep, height, width);
    // 0 / 0 is 0 here, and ∞ / ∞ is 1.
    let t = S::div(smaller, larger);
    let t = S::select(S::equal(larger, S::splat(0.0)), larger, t);
    let is_infinite = S::equal(smaller, S::splat(f32::INFINITY));
    let t = S::select(is_infinite, S::splat(1.0), t);
    let angle = arctangent::<S>(t);
    let steep = S::sub(S::splat(FRAC_PI_2), S::sub(angle, S::splat(0.5 * PI_LOW)));
    let angle = S::select(is_steep, steep, angle);
    let left = S::sub(S::splat(PI), S::sub(angle, S::splat(PI_LOW)));
    let angle = S::select(S::is_signed(x), left, angle);
    let angle = S::copysign(angle, y);
    // The comparison above takes no notice of NaN.
    let sum = S::add(x, y);
    let angle = S::select(S::is_nan(x), sum, angle);
    S::select(S::is_nan(y), sum, angle)
}
