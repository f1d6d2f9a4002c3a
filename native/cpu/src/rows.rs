//! Softmax and the two norms over rows whose elements lie next to each other. Each works through one row; `scratch`
//! holds a row in f32, so that 16-bit types are rounded once, at the end.

use super::element::Element;
use super::fold::{sums, Moments};
use super::math;
use super::simd::dispatch;
use super::simd::{load_part, store_part, Simd};

/// Every element of a row of `T`, or of two rows, to a row of `U`.
macro_rules! map {
    ($S:ident, $T:ty => $U:ty, $from:expr, $to:expr, $count:expr, |$x:ident, $i:ident, $rest:ident| $value:expr) => {{
        let (from, to, count): (*const $T, *mut $U, usize) = ($from, $to, $count);
        let mut $i = 0;
        while $i + $S::LANES <= count {
            let $rest = $S::LANES;
            let $x = <$T>::load::<$S>(from.add($i));
            <$U>::store::<$S>(to.add($i), $value);
            $i += $S::LANES;
        }
        if $i < count {
            let $rest = count - $i;
            let $x = load_part::<$S, $T>(from.add($i), $rest, 0.0);
            store_part::<$S, $U>(to.add($i), $rest, $value);
        }
    }};
}

/// The elements from `i` on of a row that may end within a vector.
#[inline(always)]
pub unsafe fn at<S: Simd, T: Element>(row: *const T, i: usize, rest: usize) -> S::V {
    if rest >= S::LANES {
        T::load::<S>(row.add(i))
    } else {
        load_part::<S, T>(row.add(i), rest, 0.0)
    }
}

/// The largest of a row, or NaN if one is NaN.
#[inline(always)]
pub unsafe fn largest<S: Simd>(row: *const f32, count: usize) -> f32 {
    let lowest = f32::NEG_INFINITY;
    let mut most = S::splat(lowest);
    let mut sum = S::splat(0.0);
    let zero = S::splat(0.0);
    let mut i = 0;
    while i < count {
        let x = if i + S::LANES <= count {
            S::load(row.add(i))
        } else {
            load_part::<S, f32>(row.add(i), count - i, lowest)
        };
        // x·0 is NaN of NaN (and of infinities, which is looked at below).
        sum = S::fma(x, zero, sum);
        most = S::max(x, most);
        i += S::LANES;
    }
    if S::sum(sum).is_nan() {
        let row = std::slice::from_raw_parts(row, count);
        if row.iter().any(|x| x.is_nan()) {
            return f32::NAN;
        }
    }
    S::largest(most)
}

/// e^(x - largest) in place. Returns the sum.
#[inline(always)]
pub unsafe fn exponents<S: Simd>(row: *mut f32, count: usize, largest: f32) -> f64 {
    let shift = S::splat(largest);
    let mut sum = S::wide_splat(0.0);
    let mut i = 0;
    while i + S::LANES <= count {
        let e = math::exp::<S>(S::sub(S::load(row.add(i)), shift));
        S::store(row.add(i), e);
        sum = S::wide_add(sum, S::widen(e));
        i += S::LANES;
    }
    let mut total = S::wide_sum(sum);
    if i < count {
        let x = load_part::<S, f32>(row.add(i), count - i, f32::NEG_INFINITY);
        let e = math::exp::<S>(S::sub(x, shift));
        store_part::<S, f32>(row.add(i), count - i, e);
        for j in i..count {
            total += f64::from(*row.add(j));
        }
    }
    total
}

#[inline(always)]
pub unsafe fn widen<S: Simd, T: Element>(from: *const T, to: *mut f32, count: usize) {
    map!(S, T => f32, from, to, count, |x, i, rest| { let _ = rest; x });
}

#[inline(always)]
pub unsafe fn narrow<S: Simd, T: Element>(from: *const f32, to: *mut T, count: usize) {
    map!(S, f32 => T, from, to, count, |x, i, rest| {
        let _ = rest;
        x
    });
}

#[inline(always)]
pub unsafe fn scaled<S: Simd, T: Element>(from: *const f32, to: *mut T, count: usize, factor: f32) {
    let factor = S::splat(factor);
    map!(S, f32 => T, from, to, count, |x, i, rest| {
        let _ = rest;
        S::mul(x, factor)
    });
}

#[inline(always)]
unsafe fn softmax_body<S: Simd, T: Element>(
    x: *const T,
    out: *mut T,
    count: usize,
    scratch: *mut f32,
) {
    widen::<S, T>(x, scratch, count);
    let top = largest::<S>(scratch, count);
    let sum = exponents::<S>(scratch, count, top);
    let factor = S::splat((1.0 / sum) as f32);
    map!(S, f32 => T, scratch, out, count, |e, i, rest| { let _ = rest; S::mul(e, factor) });
}

dispatch! {
    /// e^(x - max) / Σ e^(x - max). A row of minus infinities is NaN, as in MLX.
    ///
    /// # Safety
    /// `x`, `out` and `scratch` hold `count` elements.
    pub fn softmax<T: Element>(x: *const T, out: *mut T, count: usize, scratch: *mut f32) = softmax_body
}

fn inverse_root(square: f64, eps: f32) -> f32 {
    (1.0 / (square + f64::from(eps)).sqrt()) as f32
}

#[inline(always)]
unsafe fn rms_norm_body<S: Simd, T: Element>(
    x: *const T,
    weight: *const T,
    out: *mut T,
    count: usize,
    eps: f32,
    scratch: *mut f32,
) {
    widen::<S, T>(x, scratch, count);
    let squares = sums!(S, f32, scratch, count, 0.0, |x| [squares: S::mul(x, x)]);
    let factor = S::splat(inverse_root(squares / count as f64, eps));
    if weight.is_null() {
        map!(S, f32 => T, scratch, out, count, |x, i, rest| { let _ = rest; S::mul(x, factor) });
    } else {
        map!(S, f32 => T, scratch, out, count, |x, i, rest| {
            S::mul(S::mul(x, factor), at::<S, T>(weight, i, rest))
        });
    }
}

dispatch! {
    /// x / √(mean(x²) + eps) · weight, which may be null.
    ///
    /// # Safety
    /// All but null pointers hold `count` elements.
    pub fn rms_norm<T: Element>(
        x: *const T, weight: *const T, out: *mut T, count: usize, eps: f32, scratch: *mut f32,
    ) = rms_norm_body
}

#[inline(always)]
unsafe fn layer_norm_body<S: Simd, T: Element>(
    x: *const T,
    weight: *const T,
    bias: *const T,
    out: *mut T,
    count: usize,
    eps: f32,
    scratch: *mut f32,
) {
    widen::<S, T>(x, scratch, count);
    let moments = Moments::of_row::<S, f32>(scratch, count);
    // The mean is one number of f32 and what it is off by: the difference of x and the former is exact where they are
    // close.
    let centre = moments.mean() as f32;
    let rest = S::splat((moments.mean() - f64::from(centre)) as f32);
    let centre = S::splat(centre);
    let factor = S::splat(inverse_root(moments.squares() / count as f64, eps));
    map!(S, f32 => T, scratch, out, count, |x, i, rest_of_row| {
        let mut y = S::mul(S::sub(S::sub(x, centre), rest), factor);
        if !weight.is_null() {
            y = S::mul(y, at::<S, T>(weight, i, rest_of_row));
        }
        if !bias.is_null() {
            y = S::add(y, at::<S, T>(bias, i, rest_of_row));
        }
        y
    });
}

dispatch! {
    /// (x - mean) / √(variance + eps) · weight + bias, of which either may be null.
    ///
    /// # Safety
    /// All but null pointers hold `count` elements.
    pub fn layer_norm<T: Element>(
        x: *const T, weight: *const T, bias: *const T, out: *mut T, count: usize, eps: f32, scratch: *mut f32,
    ) = layer_norm_body
}
