//! Elementary functions of vectors of f32, each within 2 units in the last place of the exact value (with FMA; 3
//! without) and right for NaN, infinities, zeros' signs and subnormal numbers. The coefficients are minimax fits of our
//! own, made by iteratively reweighted least squares in f64.

mod arithmetic;
mod error;
mod exponential;
mod hyperbolic;
mod inverse;
mod logarithm;
mod power;
mod remainder;
mod rounding;
mod trigonometric;

pub use arithmetic::*;
pub use error::*;
pub use exponential::*;
pub use hyperbolic::*;
pub use inverse::*;
pub use logarithm::*;
pub use power::*;
pub use remainder::*;
pub use rounding::*;
pub use trigonometric::*;

use crate::simd::Simd;

/// c[0] + c[1]·x + c[2]·x² + …
#[inline(always)]
unsafe fn polynomial<S: Simd, const N: usize>(x: S::V, c: [f32; N]) -> S::V {
    let mut value = S::splat(c[N - 1]);
    let mut i = N - 1;
    while i > 0 {
        i -= 1;
        value = S::fma(value, x, S::splat(c[i]));
    }
    value
}

/// a + b and what its rounding left out.
#[inline(always)]
unsafe fn two_sum<S: Simd>(a: S::V, b: S::V) -> (S::V, S::V) {
    let sum = S::add(a, b);
    let part = S::sub(sum, a);
    let low = S::add(S::sub(a, S::sub(sum, part)), S::sub(b, part));
    (sum, low)
}

/// c[0] + c[1]·x + c[2]·x² + …, the even powers beside the odd ones: one chain of so many would take as long as all
/// the rest.
#[inline(always)]
unsafe fn wide_polynomial<S: Simd, const N: usize>(x: S::Wide, c: [f64; N]) -> S::Wide {
    let square = S::wide_mul(x, x);
    let mut last = S::wide_splat(c[N - 1]);
    let mut other = S::wide_splat(c[N - 2]);
    let mut i = N - 2;
    while i > 0 {
        i -= 1;
        (last, other) = (other, S::wide_fma(last, square, S::wide_splat(c[i])));
    }
    // The chain that has c[0] is the one written last.
    S::wide_fma(last, x, other)
}

/// r, p and n with 2ᵗ = (1 + r·p)·2ⁿ. Where 2ᵗ is beyond f32, so is this; NaN stays.
#[inline(always)]
unsafe fn exp2_parts<S: Simd>(t: S::Wide) -> (S::V, S::V, S::V) {
    let n = S::min(S::splat(129.0), S::narrow(t));
    let n = S::round(S::max(S::splat(-151.0), n));
    let r = S::narrow(S::wide_sub(t, S::widen(n)));
    let r = S::max(S::splat(-1.0), S::min(S::splat(1.0), r));
    let p = polynomial::<S, 6>(
        r,
        [
            std::f32::consts::LN_2,
            0.240_226_48,
            0.055_503_59,
            0.009_618_505,
            0.001_339_145_9,
            0.000_153_278_34,
        ],
    );
    (r, p, n)
}
