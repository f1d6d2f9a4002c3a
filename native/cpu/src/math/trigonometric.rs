//! Sine, cosine and tangent.

use super::polynomial;
use crate::simd::Simd;

/// From here on arguments are computed in f64, one by one.
const FAR: f32 = 1e5;

/// 1.5·2²³: a number added to it is rounded to a whole one, which is then in the lowest bits.
const WHOLE: f32 = 12_582_912.0;

/// What an argument is modulo π/2.
struct Reduced<S: Simd> {
    /// Between -π/4 and π/4, and what is to be added to it.
    r: S::V,
    low: S::V,
    /// r².
    square: S::V,
    /// How many quarter turns were taken off, in the lowest bits.
    quarters: S::V,
}

/// π/2 in three parts. The product with the first is so near the argument that the difference is exact where it is
/// rounded once.
#[inline(always)]
unsafe fn reduce<S: Simd>(x: S::V) -> Reduced<S> {
    let quarters = S::fma(x, S::splat(std::f32::consts::FRAC_2_PI), S::splat(WHOLE));
    let n = S::sub(quarters, S::splat(WHOLE));
    let first = S::fused(n, S::splat(-std::f32::consts::FRAC_PI_2), x);
    let r = S::fused(n, S::splat(4.371_139e-8), first);
    Reduced {
        r,
        low: S::mul(n, S::splat(1.715_124_5e-15)),
        square: S::mul(r, r),
        quarters,
    }
}

#[inline(always)]
unsafe fn sin_of<S: Simd>(x: &Reduced<S>) -> S::V {
    let p = polynomial::<S, 3>(x.square, [-0.166_666_54, 0.008_332_106, -0.000_195_078_76]);
    S::add(x.r, S::fma(S::mul(x.r, x.square), p, x.low))
}

#[inline(always)]
unsafe fn cos_of<S: Simd>(x: &Reduced<S>) -> S::V {
    let p = polynomial::<S, 4>(
        x.square,
        [-0.5, 0.041_666_646, -0.001_388_730_7, 2.443_188_2e-5],
    );
    S::fma(x.square, p, S::splat(1.0))
}

/// The sine of `x` with `quarters` quarter turns.
#[inline(always)]
unsafe fn turned<S: Simd>(x: &Reduced<S>, quarters: S::V) -> S::V {
    let is_odd = S::is_signed(S::shift_left::<31>(quarters));
    let value = S::select(is_odd, cos_of::<S>(x), sin_of::<S>(x));
    S::flip(value, S::shift_left::<30>(quarters))
}

/// `value` of arguments that are not far, `function` of the others.
#[inline(always)]
unsafe fn with_far<S: Simd>(x: S::V, value: S::V, function: fn(f64) -> f64) -> S::V {
    if S::all(S::less(S::abs(x), S::splat(FAR))) {
        return value;
    }
    let (mut from, mut to) = ([0f32; 16], [0f32; 16]);
    S::store(from.as_mut_ptr(), x);
    S::store(to.as_mut_ptr(), value);
    far(&from, &mut to, function);
    S::load(to.as_ptr())
}

#[cold]
#[inline(never)]
fn far(x: &[f32; 16], values: &mut [f32; 16], function: fn(f64) -> f64) {
    for (x, value) in x.iter().zip(values) {
        if x.abs() >= FAR {
            *value = function(f64::from(*x)) as f32;
        }
    }
}

/// `value`, or x where it is as good as that, a zero's sign included.
#[inline(always)]
unsafe fn or_tiny<S: Simd>(x: S::V, value: S::V) -> S::V {
    S::select(S::less(S::abs(x), S::splat(1e-4)), x, value)
}

#[inline(always)]
pub unsafe fn sin<S: Simd>(x: S::V) -> S::V {
    let reduced = reduce::<S>(x);
    let value = turned::<S>(&reduced, reduced.quarters);
    with_far::<S>(x, or_tiny::<S>(x, value), f64::sin)
}

#[inline(always)]
pub unsafe fn cos<S: Simd>(x: S::V) -> S::V {
    let reduced = reduce::<S>(x);
    let value = turned::<S>(&reduced, S::add(reduced.quarters, S::splat(1.0)));
    with_far::<S>(x, value, f64::cos)
}

/// r + r³·P(r²), or, past an eighth of a turn, -1 over it, of which the error is taken out.
#[inline(always)]
pub unsafe fn tan<S: Simd>(x: S::V) -> S::V {
    let reduced = reduce::<S>(x);
    let (r, square) = (reduced.r, reduced.square);
    let p = polynomial::<S, 7>(
        square,
        [
            0.333_333_5,
            0.133_326_66,
            0.054_060_508,
            0.021_275_94,
            0.010_858_02,
            5.546_463_2e-5,
            0.004_395_461_6,
        ],
    );
    let low = S::fma(reduced.low, square, reduced.low);
    let more = S::fma(S::mul(r, square), p, low);
    let tangent = S::add(r, more);
    let low = S::sub(more, S::sub(tangent, r));
    let inverse = S::div(S::splat(-1.0), tangent);
    let error = S::fma(low, inverse, S::fused(tangent, inverse, S::splat(1.0)));
    let inverse = S::fma(inverse, error, inverse);
    let is_odd = S::is_signed(S::shift_left::<31>(reduced.quarters));
    let value = S::select(is_odd, inverse, tangent);
    with_far::<S>(x, or_tiny::<S>(x, value), f64::tan)
}
