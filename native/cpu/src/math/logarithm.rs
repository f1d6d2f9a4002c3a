//! Logarithms.

use super::polynomial;
use crate::simd::Simd;
use std::f32::consts::{LOG10_E, LOG2_E};

/// (ln(1 + f) - f) / f² for f from √½ - 1 to √2 - 1.
const LN: [f32; 9] = [
    -0.499_999_88,
    0.333_333_25,
    -0.250_016,
    0.200_019_61,
    -0.166_087_18,
    0.141_822_73,
    -0.132_463_44,
    0.129_014_18,
    -0.076_092_59,
];

/// ln 2 in two parts, the first with so few digits that its product with an exponent is exact.
const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);

/// log10 2 in two parts, likewise.
const LOG10_2: (f32, f32) = (0.301_025_4, 4.605_039e-6);

/// m - 1 and n with x = m · 2ⁿ, of subnormal numbers too.
#[inline(always)]
pub(super) unsafe fn fraction<S: Simd>(x: S::V) -> (S::V, S::V) {
    let is_small = S::less(x, S::splat(f32::MIN_POSITIVE));
    let (m, n) = S::split(S::select(is_small, S::mul(x, S::splat(8_388_608.0)), x));
    let n = S::sub(n, S::select(is_small, S::splat(23.0), S::splat(0.0)));
    (S::sub(m, S::splat(1.0)), n)
}

/// `value`, a logarithm of x, where there is a finite one.
#[inline(always)]
unsafe fn of_range<S: Simd>(value: S::V, x: S::V) -> S::V {
    let zero = S::splat(0.0);
    // Infinity and NaN stay.
    let value = S::select(S::less(x, S::splat(f32::INFINITY)), value, x);
    let value = S::select(S::less(x, zero), S::splat(f32::NAN), value);
    S::select(S::equal(x, zero), S::splat(f32::NEG_INFINITY), value)
}

/// ln((1 + f) · 2ⁿ).
#[inline(always)]
pub(super) unsafe fn ln_of<S: Simd>(f: S::V, n: S::V) -> S::V {
    let q = polynomial::<S, 9>(f, LN);
    let low = S::fma(n, S::splat(LN_2.1), S::mul(S::mul(f, f), q));
    S::fma(n, S::splat(LN_2.0), S::add(f, low))
}

/// ln(u + low), where u is normal and low less than its last place.
#[inline(always)]
pub(super) unsafe fn ln_of_pair<S: Simd>(u: S::V, low: S::V, doublings: S::V) -> S::V {
    let (m, n) = S::split(u);
    let shrink = S::scale(S::splat(1.0), S::sub(S::splat(0.0), n));
    let f = S::fused(low, shrink, S::sub(m, S::splat(1.0)));
    ln_of::<S>(f, S::add(n, doublings))
}

#[inline(always)]
pub unsafe fn log<S: Simd>(x: S::V) -> S::V {
    let (f, n) = fraction::<S>(x);
    of_range::<S>(ln_of::<S>(f, n), x)
}

/// The fraction of 1 + x is (2⁻ⁿ - 1) + x · 2⁻ⁿ, which is rounded once.
#[inline(always)]
pub unsafe fn log1p<S: Simd>(x: S::V) -> S::V {
    let one = S::splat(1.0);
    let u = S::add(x, one);
    let (_, n) = S::split(u);
    let shrink = S::scale(one, S::sub(S::splat(0.0), n));
    let f = S::fused(x, shrink, S::sub(shrink, one));
    let value = of_range::<S>(ln_of::<S>(f, n), u);
    S::select(S::equal(x, S::splat(0.0)), x, value)
}

#[inline(always)]
pub unsafe fn log2<S: Simd>(x: S::V) -> S::V {
    let (f, n) = fraction::<S>(x);
    let q = polynomial::<S, 9>(
        f,
        [
            -0.721_347_33,
            0.480_898_17,
            -0.360_698_43,
            0.288_573_77,
            -0.239_581_18,
            0.204_448_42,
            -0.191_191_46,
            0.187_219_75,
            -0.110_968_61,
        ],
    );
    // The first coefficient, 1 / ln 2, is in two parts.
    let low = S::mul(f, S::fma(f, q, S::splat(1.925_963e-8)));
    let value = S::add(n, S::fma(f, S::splat(LOG2_E), low));
    of_range::<S>(value, x)
}

#[inline(always)]
pub unsafe fn log10<S: Simd>(x: S::V) -> S::V {
    let (f, n) = fraction::<S>(x);
    let q = polynomial::<S, 9>(
        f,
        [
            -0.217_147_19,
            0.144_764_78,
            -0.108_580_84,
            0.086_868_71,
            -0.072_125_494,
            0.061_561_48,
            -0.057_536_103,
            0.056_242_32,
            -0.033_299_886,
        ],
    );
    // 1 / ln 10 is in two parts, as log10 2 is.
    let low = S::mul(f, S::fma(f, q, S::splat(-1.010_305e-8)));
    let low = S::fma(n, S::splat(LOG10_2.1), low);
    let value = S::fma(f, S::splat(LOG10_E), low);
    of_range::<S>(S::fma(n, S::splat(LOG10_2.0), value), x)
}
