//! Powers and roots.

use super::logarithm::fraction;
use super::{exp2_parts, polynomial, wide_polynomial};
use crate::simd::Simd;

/// 2^(b·log2 |a|), the exponent in f64: its error grows with the size of the power. Squares and cubes are products,
/// within 1.5 units in the last place; where there is nothing else, nothing else is computed.
#[inline(always)]
pub unsafe fn power<S: Simd>(a: S::V, b: S::V) -> S::V {
    let square = S::mul(a, a);
    let is_square = S::equal(b, S::splat(2.0));
    let is_cube = S::equal(b, S::splat(3.0));
    let product = S::select(is_square, square, S::mul(square, a));
    let two_or_three = S::select(is_square, S::splat(3.0), b);
    if S::all(S::equal(two_or_three, S::splat(3.0))) {
        return product;
    }
    // Where f64 is not worth it, the C library's.
    let value = if S::HAS_FMA {
        general_power::<S>(a, b)
    } else {
        one_by_one::<S>(a, b)
    };
    let value = S::select(is_square, product, value);
    let value = S::select(is_cube, product, value);
    // Of NaN, too.
    let one = S::splat(1.0);
    let value = S::select(S::equal(a, one), one, value);
    S::select(S::equal(b, S::splat(0.0)), one, value)
}

#[inline(always)]
unsafe fn general_power<S: Simd>(a: S::V, b: S::V) -> S::V {
    let (zero, one, infinity) = (S::splat(0.0), S::splat(1.0), S::splat(f32::INFINITY));
    let size = S::abs(a);
    let (f, e) = fraction::<S>(size);
    let wide = S::widen(f);
    // log2(1 + f) / f.
    let p = wide_polynomial::<S, 13>(
        wide,
        [
            1.442_695_040_868_705_1,
            -0.721_347_520_868_760_6,
            0.480_898_361_395_47,
            -0.360_673_674_826_563_26,
            0.288_537_293_473_893_3,
            -0.240_453_165_684_439,
            0.206_175_359_347_192_53,
            -0.180_300_598_676_247_06,
            0.158_769_802_370_948_9,
            -0.143_156_494_261_144_05,
            0.144_748_469_326_899_91,
            -0.142_839_170_262_315_24,
            0.077_370_163_252_293_01,
        ],
    );
    let exponent = S::wide_mul(S::wide_fma(wide, p, S::widen(e)), S::widen(b));
    let (r, p, n) = exp2_parts::<S>(exponent);
    let value = S::scale(S::fma(r, p, one), n);
    // Of 0 and infinity, which have no logarithm: infinity where one of size and exponent is large and the other not
    // small.
    let is_zero = S::equal(size, zero);
    let is_infinite = S::equal(size, infinity);
    let rises = S::select(is_zero, S::neg(b), b);
    let limit = S::select(S::less(zero, rises), infinity, zero);
    let limit = S::select(S::is_nan(b), b, limit);
    let value = S::select(is_zero, limit, value);
    let value = S::select(is_infinite, limit, value);
    let value = S::select(S::equal(size, one), one, value);
    // Of negative numbers: the sign of odd powers, and nothing but whole powers, except of -0 and -∞.
    let half = S::mul(b, S::splat(0.5));
    let is_whole = S::equal(S::trunc(b), b);
    let is_even = S::equal(S::trunc(half), half);
    let sign = S::select(is_even, zero, S::select(is_whole, a, zero));
    let value = S::flip(value, sign);
    let undefined = S::select(is_whole, value, S::splat(f32::NAN));
    let undefined = S::select(S::less(S::neg(infinity), a), undefined, value);
    let value = S::select(S::less(a, zero), undefined, value);
    let value = S::select(S::is_nan(a), a, value);
    S::select(S::is_nan(b), b, value)
}

#[inline(always)]
unsafe fn one_by_one<S: Simd>(a: S::V, b: S::V) -> S::V {
    let (mut x, mut y) = ([0f32; 16], [0f32; 16]);
    S::store(x.as_mut_ptr(), a);
    S::store(y.as_mut_ptr(), b);
    for (x, y) in x.iter_mut().zip(y).take(S::LANES) {
        *x = x.powf(y);
    }
    S::load(x.as_ptr())
}

/// ∛m·2^(n/3), the root of m, which is between √½ and 2·√2, by a step of Newton's from P(m).
#[inline(always)]
pub unsafe fn cbrt<S: Simd>(x: S::V) -> S::V {
    let zero = S::splat(0.0);
    let size = S::abs(x);
    let (f, n) = fraction::<S>(size);
    let third = S::round(S::mul(n, S::splat(1.0 / 3.0)));
    let rest = S::fma(third, S::splat(-3.0), n);
    let m = S::add(f, S::splat(1.0));
    let root = polynomial::<S, 5>(
        m,
        [
            0.451_667_67,
            0.904_815_7,
            -0.535_626_53,
            0.216_935_07,
            -0.037_787_63,
        ],
    );
    // What a rest of 1 or -1 adds to it.
    let factor = S::select(S::less(zero, rest), S::splat(1.259_921), S::splat(1.0));
    let factor = S::select(S::less(rest, zero), S::splat(0.793_700_5), factor);
    let root = S::mul(root, factor);
    let m = S::scale(m, rest);
    // m - root³, with the square in two parts.
    let square = S::mul(root, root);
    let low = S::fused(root, root, S::neg(square));
    let error = S::fused(S::neg(square), root, m);
    let error = S::sub(error, S::mul(low, root));
    let step = S::div(error, S::mul(S::splat(3.0), square));
    let value = S::copysign(S::scale(S::add(root, step), third), x);
    let value = S::select(S::less(size, S::splat(f32::INFINITY)), value, x);
    S::select(S::equal(x, zero), x, value)
}
