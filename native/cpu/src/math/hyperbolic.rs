//! Hyperbolic functions and their inverses.

use super::exponential::half_exp;
use super::logarithm::{ln_of, ln_of_pair};
use super::{exp, polynomial, two_sum};
use crate::simd::Simd;

/// x + x³·P(x²) near zero, 1 - 2 / (e^2|x| + 1) further out.
#[inline(always)]
pub unsafe fn tanh<S: Simd>(x: S::V) -> S::V {
    let size = S::abs(x);
    let square = S::mul(x, x);
    let p = polynomial::<S, 5>(
        square,
        [
            -0.333_332_8,
            0.133_314_42,
            -0.053_739_715,
            0.020_639_086,
            -0.005_704_985,
        ],
    );
    let near = S::fma(S::mul(x, square), p, x);
    let one = S::splat(1.0);
    let e = exp::<S>(S::add(size, size));
    let far = S::sub(one, S::div(S::splat(2.0), S::add(e, one)));
    // The sign also where rounding lost that of a zero.
    S::copysign(S::select(S::less(size, S::splat(0.625)), near, far), x)
}

/// x + x³·P(x²) below 1, (e^|x| - e^-|x|) / 2 beyond.
#[inline(always)]
pub unsafe fn sinh<S: Simd>(x: S::V) -> S::V {
    let size = S::abs(x);
    let square = S::mul(x, x);
    let p = polynomial::<S, 4>(
        square,
        [
            0.166_666_67,
            0.008_333_310_5,
            0.000_198_428_96,
            2.782_213_2e-6,
        ],
    );
    let near = S::fma(S::mul(x, square), p, x);
    let half = half_exp::<S>(size);
    let far = S::sub(half, S::div(S::splat(0.25), half));
    // The sign also where rounding lost that of a zero.
    S::copysign(S::select(S::less(size, S::splat(1.0)), near, far), x)
}

#[inline(always)]
pub unsafe fn cosh<S: Simd>(x: S::V) -> S::V {
    let half = half_exp::<S>(S::abs(x));
    S::add(half, S::div(S::splat(0.25), half))
}

/// From here on the square root in acosh and asinh is the argument itself.
const HUGE: f32 = 16_384.0;

/// √(high + low) in two parts, where low is less than high's last place.
#[inline(always)]
unsafe fn root_of_pair<S: Simd>(high: S::V, low: S::V) -> (S::V, S::V) {
    let root = S::sqrt(high);
    let rest = S::add(S::fused(S::neg(root), root, high), low);
    let low = S::div(rest, S::add(root, root));
    (root, S::select(S::equal(root, S::splat(0.0)), root, low))
}

/// x + x³·P(x²) below ½, ln(|x| + √(x² + 1)) beyond, of which the sum is in two parts.
#[inline(always)]
pub unsafe fn asinh<S: Simd>(x: S::V) -> S::V {
    let size = S::abs(x);
    let (one, huge) = (S::splat(1.0), S::splat(HUGE));
    let square = S::mul(x, x);
    let p = polynomial::<S, 5>(
        square,
        [
            -0.166_666_43,
            0.074_986_42,
            -0.044_383_317,
            0.028_163_496,
            -0.013_228_4,
        ],
    );
    let near = S::fma(S::mul(x, square), p, x);
    // The square is of a number that has one.
    let t = S::min(huge, size);
    let square = S::mul(t, t);
    let (sum, low) = two_sum::<S>(square, one);
    let low = S::add(low, S::fused(t, t, S::neg(square)));
    let (root, root_low) = root_of_pair::<S>(sum, low);
    let (u, low) = two_sum::<S>(root, t);
    let is_huge = S::less(huge, size);
    let u = S::select(is_huge, size, u);
    let low = S::select(is_huge, S::splat(0.0), S::add(low, root_low));
    let doubled = S::select(is_huge, one, S::splat(0.0));
    let far = ln_of_pair::<S>(u, low, doubled);
    let far = S::select(S::less(size, S::splat(f32::INFINITY)), far, size);
    S::copysign(S::select(S::less(size, S::splat(0.5)), near, far), x)
}

/// ln(1 + t + √(t² + 2t)) with t = x - 1, the sums in two parts.
#[inline(always)]
pub unsafe fn acosh<S: Simd>(x: S::V) -> S::V {
    let (one, huge) = (S::splat(1.0), S::splat(HUGE));
    let t = S::sub(S::min(huge, x), one);
    let square = S::mul(t, t);
    let (sum, low) = two_sum::<S>(square, S::add(t, t));
    let low = S::add(low, S::fused(t, t, S::neg(square)));
    let (root, root_low) = root_of_pair::<S>(sum, low);
    let (w, w_low) = two_sum::<S>(root, t);
    let (u, low) = two_sum::<S>(w, one);
    let is_huge = S::less(huge, x);
    let u = S::select(is_huge, x, u);
    let low = S::add(low, S::add(w_low, root_low));
    let low = S::select(is_huge, S::splat(0.0), low);
    let doubled = S::select(is_huge, one, S::splat(0.0));
    let value = ln_of_pair::<S>(u, low, doubled);
    let value = S::select(S::less(x, one), S::splat(f32::NAN), value);
    S::select(S::less(x, S::splat(f32::INFINITY)), value, x)
}

/// x + x³·P(x²) below ½, ln((1 + |x|) / (1 - |x|)) / 2 beyond.
#[inline(always)]
pub unsafe fn atanh<S: Simd>(x: S::V) -> S::V {
    let size = S::abs(x);
    let one = S::splat(1.0);
    let square = S::mul(x, x);
    let p = polynomial::<S, 6>(
        square,
        [
            0.333_333_02,
            0.200_024_53,
            0.142_237_86,
            0.118_163_86,
            0.051_604_36,
            0.176_378_5,
        ],
    );
    let near = S::fma(S::mul(x, square), p, x);
    let (m, n) = S::split(S::div(S::add(one, size), S::sub(one, size)));
    let far = S::mul(S::splat(0.5), ln_of::<S>(S::sub(m, one), n));
    let far = S::select(S::equal(size, one), S::splat(f32::INFINITY), far);
    let far = S::select(S::less(one, size), S::splat(f32::NAN), far);
    let value = S::copysign(S::select(S::less(size, S::splat(0.5)), near, far), x);
    S::select(S::is_nan(x), x, value)
}
