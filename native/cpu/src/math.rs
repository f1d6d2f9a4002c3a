//! Elementary functions of vectors of f32, each within 2 units in the last place of the exact value (with FMA; 3 without) and
//! right for NaN, infinities, zeros' signs and subnormal numbers. The coefficients are minimax fits of our own, made by
//! iteratively reweighted least squares in f64.

use super::simd::Simd;

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

/// eˣ = 2ⁿ·eʳ, |r| ≤ ln 2 / 2, eʳ = 1 + r + r²·Q(r).
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // Beyond these the answer is 0 or infinity; the argument stays NaN where it is.
    let x = S::min(S::splat(89.0), x);
    let x = S::max(S::splat(-104.0), x);
    let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, the first with so few digits that its product with n is exact.
    let r = S::fma(n, S::splat(-0.693_359_4), x);
    let r = S::fma(n, S::splat(2.121_944_4e-4), r);
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
    S::scale(p, n)
}

/// 1 / (1 + e⁻ˣ), by way of e^-|x|, which loses nothing on either side.
#[inline(always)]
pub unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    let one = S::splat(1.0);
    let e = exp::<S>(S::neg(S::abs(x)));
    let above = S::select(S::less(x, S::splat(0.0)), e, one);
    S::div(above, S::add(one, e))
}

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

/// NaN where either is.
#[inline(always)]
pub unsafe fn maximum<S: Simd>(a: S::V, b: S::V) -> S::V {
    S::select(S::is_nan(a), a, S::max(a, b))
}

/// NaN where either is.
#[inline(always)]
pub unsafe fn minimum<S: Simd>(a: S::V, b: S::V) -> S::V {
    S::select(S::is_nan(a), a, S::min(a, b))
}

/// Squares and cubes by multiplication, within 1.5 units in the last place; other powers one by one, as the C library has them.
#[inline(always)]
pub unsafe fn power<S: Simd>(a: S::V, b: S::V) -> S::V {
    let (mut x, mut y, mut out) = ([0f32; 16], [0f32; 16], [0f32; 16]);
    S::store(x.as_mut_ptr(), a);
    S::store(y.as_mut_ptr(), b);
    for i in 0..S::LANES {
        let square = x[i] * x[i];
        out[i] = if y[i] == 2.0 { square } else { square * x[i] };
    }
    if y[..S::LANES].iter().any(|y| *y != 2.0 && *y != 3.0) {
        for i in 0..S::LANES {
            if y[i] != 2.0 && y[i] != 3.0 {
                out[i] = x[i].powf(y[i]);
            }
        }
    }
    S::load(out.as_ptr())
}
