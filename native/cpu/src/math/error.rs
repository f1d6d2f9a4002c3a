//! The error function and its relatives.

use super::logarithm::ln_of;
use super::{exp, exp2_parts, polynomial, wide_polynomial};
use crate::simd::Simd;

/// x + x·P(x²) up to 1, 1 - e^(-|x|·Q(|x|)) beyond. From 4 on the answer is ±1.
#[inline(always)]
pub unsafe fn erf<S: Simd>(x: S::V) -> S::V {
    let size = S::abs(x);
    let p = polynomial::<S, 7>(
        S::mul(x, x),
        [
            0.128_379_17,
            -0.376_126_26,
            0.112_835_854,
            -0.026_853_813,
            0.005_188_327_7,
            -0.000_801_019_37,
            7.853_861_5e-5,
        ],
    );
    let near = S::fma(x, p, x);
    let t = S::min(S::splat(4.0), size);
    let q = polynomial::<S, 7>(
        t,
        [
            1.128_694_3,
            0.634_969_53,
            0.106_530_845,
            -0.024_010_051,
            0.003_757_468_7,
            -0.000_350_59,
            1.396_224_2e-5,
        ],
    );
    let one = S::splat(1.0);
    let far = S::sub(one, exp::<S>(S::neg(S::mul(t, q))));
    S::select(S::less(size, one), near, S::copysign(far, x))
}

/// e^(-x²)·t·P(t) with t = 1 / (1 + 0.35·x) for x from 0 on, where that is not 0; 2 less it for the opposite of x. In
/// f64, as an error of the exponent is one of the whole.
#[inline(always)]
pub unsafe fn erfc<S: Simd>(x: S::V) -> S::V {
    const RATE: f64 = 0.35;
    // From 11 on the answer is 0.
    let size = S::min(S::splat(11.0), S::abs(x));
    let wide = S::widen(size);
    let square = S::wide_mul(wide, wide);
    let (r, p, n) = exp2_parts::<S>(S::wide_mul(
        square,
        S::wide_splat(-std::f64::consts::LOG2_E),
    ));
    let one = S::splat(1.0);
    let t = S::widen(S::div(one, S::fma(size, S::splat(RATE as f32), one)));
    // A step of Newton's takes out what f32 could not hold.
    let divisor = S::wide_fma(wide, S::wide_splat(RATE), S::wide_splat(1.0));
    let error = S::wide_sub(S::wide_splat(2.0), S::wide_mul(divisor, t));
    let t = S::wide_mul(t, error);
    let scaled = wide_polynomial::<S, 11>(
        t,
        [
            0.197_446_475_963_321_96,
            0.197_943_008_104_894_8,
            0.180_342_888_405_496_75,
            0.191_929_873_906_721_03,
            0.006_429_930_995_168_199,
            0.405_149_765_239_830_93,
            -0.516_537_397_899_644_5,
            0.682_322_880_658_241_9,
            -0.486_927_980_245_195_57,
            0.162_563_657_275_260_15,
            -0.020_663_101_134_405_885,
        ],
    );
    let power = S::wide_fma(S::widen(r), S::widen(p), S::wide_splat(1.0));
    let value = S::narrow(S::wide_mul(S::wide_mul(t, scaled), power));
    let value = S::scale(value, n);
    S::select(
        S::less(x, S::splat(0.0)),
        S::sub(S::splat(2.0), value),
        value,
    )
}

/// x·(√π / 2 + w·Q(w)) of w = -ln(1 - x²) up to 5, x·P(√w) beyond, Q and P about the middle of where they are used.
#[inline(always)]
pub unsafe fn erfinv<S: Simd>(x: S::V) -> S::V {
    let one = S::splat(1.0);
    let (m, n) = S::split(S::fused(S::neg(x), x, one));
    let w = S::neg(ln_of::<S>(S::sub(m, one), n));
    let q = polynomial::<S, 9>(
        S::sub(w, S::splat(2.5)),
        [
            0.246_072_98,
            0.000_226_920_54,
            -0.001_761_737_3,
            0.000_203_599_63,
            5.908_694e-06,
            -4.348_293e-06,
            3.514_509_5e-07,
            4.556_368_8e-08,
            -8.702_404e-09,
        ],
    );
    // √π / 2 is in two parts.
    let more = S::mul(x, S::fma(w, q, S::splat(-2.662_32e-8)));
    // Of -0 the products have different signs.
    let near = S::copysign(S::fma(x, S::splat(0.886_226_95), more), x);
    let size = S::abs(x);
    // Where w is less than 5.
    let is_near = S::less(size, S::splat(0.9966));
    if S::all(is_near) {
        return near;
    }
    let root = S::sub(S::sqrt(w), S::splat(3.125));
    let p = polynomial::<S, 10>(
        root,
        [
            -0.041_679_867,
            1.003_718_7,
            0.007_048_971_5,
            -0.005_301_323,
            0.003_782_150_6,
            -0.002_520_087_2,
            0.001_309_670_4,
            -0.000_324_291_76,
            -0.000_173_112_33,
            0.000_129_728_01,
        ],
    );
    let far = S::fma(x, S::splat(3.0), S::mul(x, p));
    let infinity = S::copysign(S::splat(f32::INFINITY), x);
    let far = S::select(S::equal(size, one), infinity, far);
    let far = S::select(S::less(one, size), S::splat(f32::NAN), far);
    S::select(S::is_nan(x), x, S::select(is_near, near, far))
}
