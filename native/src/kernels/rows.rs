//! Softmax and the two norms over rows whose elements lie next to each other. Each works through one row; `scratch` holds a row
//! in f32, so that 16-bit types are rounded once, at the end.

use super::element::Element;
use super::math;
use super::simd::{load_part, store_part, Simd};
use crate::dispatch;

/// Σ f(x) over a row of f32, in 4 chains, so that additions do not wait for each other.
macro_rules! total {
    ($S:ident, $row:expr, $count:expr, $fill:expr, |$x:ident| $value:expr) => {{
        let (row, count) = ($row as *const f32, $count);
        let mut sums = [$S::splat(0.0); 4];
        let mut i = 0;
        while i + 4 * $S::LANES <= count {
            for (j, sum) in sums.iter_mut().enumerate() {
                let $x = $S::load(row.add(i + j * $S::LANES));
                *sum = $S::add(*sum, $value);
            }
            i += 4 * $S::LANES;
        }
        while i + $S::LANES <= count {
            let $x = $S::load(row.add(i));
            sums[0] = $S::add(sums[0], $value);
            i += $S::LANES;
        }
        if i < count {
            let $x = load_part::<$S, f32>(row.add(i), count - i, $fill);
            sums[1] = $S::add(sums[1], $value);
        }
        $S::sum($S::add(
            $S::add(sums[0], sums[1]),
            $S::add(sums[2], sums[3]),
        ))
    }};
}

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

/// e^(x - largest) in place; gives the sum.
#[inline(always)]
pub unsafe fn exponents<S: Simd>(row: *mut f32, count: usize, largest: f32) -> f32 {
    let shift = S::splat(largest);
    let mut sum = S::splat(0.0);
    let mut i = 0;
    while i + S::LANES <= count {
        let e = math::exp::<S>(S::sub(S::load(row.add(i)), shift));
        S::store(row.add(i), e);
        sum = S::add(sum, e);
        i += S::LANES;
    }
    let mut total = S::sum(sum);
    if i < count {
        let x = load_part::<S, f32>(row.add(i), count - i, f32::NEG_INFINITY);
        let e = math::exp::<S>(S::sub(x, shift));
        store_part::<S, f32>(row.add(i), count - i, e);
        for j in i..count {
            total += *row.add(j);
        }
    }
    total
}

#[inline(always)]
unsafe fn widen<S: Simd, T: Element>(from: *const T, to: *mut f32, count: usize) {
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
    let factor = S::splat(1.0 / sum);
    map!(S, f32 => T, scratch, out, count, |e, i, rest| { let _ = rest; S::mul(e, factor) });
}

dispatch! {
    /// e^(x - max) / Σ e^(x - max). A row of minus infinities is NaN, as in MLX.
    ///
    /// # Safety
    /// `x`, `out` and `scratch` hold `count` elements.
    pub fn softmax<T: Element>(x: *const T, out: *mut T, count: usize, scratch: *mut f32) = softmax_body
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
    let squares = total!(S, scratch, count, 0.0, |x| S::mul(x, x));
    let factor = S::splat(1.0 / (squares / count as f32 + eps).sqrt());
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
    let mean = total!(S, scratch, count, 0.0, |x| x) / count as f32;
    let centre = S::splat(mean);
    let variance = total!(S, scratch, count, mean, |x| {
        let d = S::sub(x, centre);
        S::mul(d, d)
    }) / count as f32;
    let factor = S::splat(1.0 / (variance + eps).sqrt());
    map!(S, f32 => T, scratch, out, count, |x, i, rest| {
        let mut y = S::mul(S::sub(x, centre), factor);
        if !weight.is_null() {
            y = S::mul(y, at::<S, T>(weight, i, rest));
        }
        if !bias.is_null() {
            y = S::add(y, at::<S, T>(bias, i, rest));
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
