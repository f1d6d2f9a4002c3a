//! Remainders of divisions, exact.

use crate::simd::Simd;

/// Below this the whole part of a quotient is right, or one too large.
const EXACT: f32 = 4_194_304.0;

/// What remains of |a| when the quotient's whole part is taken off is exact, and negative where that was one too large.
/// Where the quotient is so large that it may be wrong by more, the C library computes it.
#[inline(always)]
pub unsafe fn fmod<S: Simd>(a: S::V, b: S::V) -> S::V {
    let (x, y) = (S::abs(a), S::abs(b));
    let quotient = S::div(x, y);
    let rest = S::fused(S::neg(S::trunc(quotient)), y, x);
    let other = S::add(rest, y);
    let rest = S::select(S::less(rest, S::splat(0.0)), other, rest);
    let value = S::copysign(rest, a);
    // An infinite divisor leaves `a`, but its product with a quotient of 0 is NaN.
    let infinity = S::splat(f32::INFINITY);
    let quotient = S::select(S::less(y, infinity), quotient, infinity);
    if S::all(S::less(quotient, S::splat(EXACT))) {
        return value;
    }
    let (mut dividends, mut divisors, mut values) = ([0f32; 16], [1f32; 16], [0f32; 16]);
    S::store(dividends.as_mut_ptr(), a);
    S::store(divisors.as_mut_ptr(), b);
    S::store(values.as_mut_ptr(), value);
    of_large(&dividends, &divisors, &mut values);
    S::load(values.as_ptr())
}

#[cold]
#[inline(never)]
fn of_large(a: &[f32; 16], b: &[f32; 16], values: &mut [f32; 16]) {
    for ((a, b), value) in a.iter().zip(b).zip(values) {
        let is_right = (a / b).abs() < EXACT && b.is_finite();
        if !is_right {
            *value = a % b;
        }
    }
}

/// A zero has the divisor's sign, too.
#[inline(always)]
pub unsafe fn floor_mod<S: Simd>(a: S::V, b: S::V) -> S::V {
    let rest = fmod::<S>(a, b);
    let differs = S::is_signed(S::flip(rest, b));
    let value = S::select(differs, S::add(rest, b), rest);
    S::select(S::equal(rest, S::splat(0.0)), S::copysign(rest, b), value)
}
