//! Each kernel in every form that the machine has, against f64: the functions over the whole range of f32, the others
//! over sizes that fill vectors and panels and that do not.

use crate::support::noise;
use emlx_cpu::internals::{binary, element::Element, rows, simd::Level, unary};
use emlx_cpu::{Function, Pair};
use half::{bf16, f16};

/// How many units in the last place of the right answer `got` is off.
fn ulps(got: f32, want: f64) -> f64 {
    let rounded = want as f32;
    if want.is_nan() || rounded.is_infinite() || rounded == 0.0 {
        let same = got.to_bits() == rounded.to_bits() || (want.is_nan() && got.is_nan());
        return if same { 0.0 } else { f64::INFINITY };
    }
    let size = rounded.abs();
    let unit = f32::from_bits(size.to_bits() + 1) as f64 - size as f64;
    (got as f64 - want).abs() / unit
}

fn sigmoid(x: f64) -> f64 {
    if x < 0.0 {
        x.exp() / (1.0 + x.exp())
    } else {
        1.0 / (1.0 + (-x).exp())
    }
}

/// The integral's series near zero, its continued fraction further out.
fn erf(x: f64) -> f64 {
    if x.is_nan() || x == 0.0 {
        return x;
    }
    let size = x.abs();
    if size > 6.0 {
        return x.signum();
    }
    if size < 2.5 {
        let (mut term, mut sum) = (x, x);
        for n in 1..80 {
            term *= -x * x / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        return sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let mut fraction = 0.0;
    for n in (1..200).rev() {
        fraction = n as f64 / 2.0 / (size + fraction);
    }
    let rest = (-x * x).exp() / (size + fraction) * std::f64::consts::FRAC_2_SQRT_PI / 2.0;
    (1.0 - rest) * x.signum()
}

/// All pairs of what is special, for which MLX's and the C library's rules are told by f32's own.
#[test]
fn pairs_are_right_for_special_numbers_too() {
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.5,
        2.0,
        3.0,
        1e-40,
        f32::MAX,
        f32::INFINITY,
        -f32::INFINITY,
        f32::NAN,
    ];
    let (a, b): (Vec<f32>, Vec<f32>) = special
        .iter()
        .flat_map(|a| special.map(|b| (*a, b)))
        .unzip();
    let larger = |a: f32, b: f32| if b.is_nan() || b > a { b } else { a };
    let smaller = |a: f32, b: f32| if b.is_nan() || b < a { b } else { a };
    let power = |a: f32, b: f32| match b {
        3.0 => a * a * a,
        _ => a.powf(b),
    };
    type Exact<'a> = &'a dyn Fn(f32, f32) -> f32;
    let pairs: [(Pair, Exact); 7] = [
        (Pair::Add, &|a, b| a + b),
        (Pair::Subtract, &|a, b| a - b),
        (Pair::Multiply, &|a, b| a * b),
        (Pair::Divide, &|a, b| a / b),
        (Pair::Maximum, &larger),
        (Pair::Minimum, &smaller),
        (Pair::Power, &power),
    ];
    for level in Level::all() {
        for (pair, exact) in pairs {
            let mut out = vec![0f32; a.len()];
            // SAFETY: all are as long.
            unsafe {
                binary::apply(
                    level,
                    pair,
                    a.as_ptr(),
                    false,
                    b.as_ptr(),
                    false,
                    out.as_mut_ptr(),
                    a.len(),
                )
            };
            for ((a, b), got) in a.iter().zip(&b).zip(&out) {
                let want = exact(*a, *b);
                let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(
                    same,
                    "{level:?} {pair:?} of {a} and {b} is {got}, not {want}"
                );
            }
        }
    }
}

#[test]
fn functions_are_right_over_the_whole_range_of_f32() {
    type Exact = fn(f64) -> f64;
    let functions: [(Function, Exact); 9] = [
        (Function::Exp, f64::exp),
        (Function::Sigmoid, sigmoid),
        (Function::Tanh, f64::tanh),
        (Function::Erf, erf),
        (Function::Sqrt, f64::sqrt),
        (Function::Rsqrt, |x| 1.0 / x.sqrt()),
        (Function::Negative, |x| -x),
        (Function::Abs, f64::abs),
        (Function::Square, |x| x * x),
    ];
    // Every 65,521st pattern of bits, and what is special.
    let special = [
        0.0,
        -0.0,
        f32::NAN,
        -f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MIN_POSITIVE,
        1e-45,
        -1e-45,
        f32::MAX,
        f32::MIN,
        88.72283,
        88.72284,
        -87.33655,
        -103.97,
        -104.1,
        0.625,
        -0.625,
        1.0,
        -1.0,
        4.0,
    ];
    let spread = (0..u32::MAX / 65_521).map(|i| f32::from_bits(i * 65_521));
    let xs: Vec<f32> = spread.chain(special).collect();
    for level in Level::all() {
        let allowed = if level == Level::Portable { 3.0 } else { 2.2 };
        for (function, exact) in functions {
            let mut out = vec![0f32; xs.len()];
            // SAFETY: both hold as many.
            unsafe { unary::apply(level, function, xs.as_ptr(), out.as_mut_ptr(), xs.len()) };
            for (x, y) in xs.iter().zip(&out) {
                let off = ulps(*y, exact(*x as f64));
                assert!(
                    off <= allowed,
                    "{level:?} {function:?}({x:e}) is {y:e}, off by {off}"
                );
            }
        }
    }
}

fn halves_round_to_nearest<T: Element>(exact: fn(f32) -> f32) {
    let special = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        0.0,
        -0.0,
        1e-8,
        65_520.0,
        3e38,
    ];
    let xs: Vec<f32> = noise(1_000, 7)
        .into_iter()
        .map(|x| x * 30.0)
        .chain(special)
        .collect();
    let from: Vec<T> = xs.iter().map(|x| T::narrow(*x)).collect();
    for level in Level::all() {
        let mut out = vec![T::narrow(0.0); from.len()];
        // SAFETY: both hold as many.
        unsafe {
            unary::apply(
                level,
                Function::Sqrt,
                from.as_ptr(),
                out.as_mut_ptr(),
                from.len(),
            )
        };
        for (x, y) in from.iter().zip(&out) {
            let want = exact(x.widen().sqrt());
            let same = y.widen() == want || (y.widen().is_nan() && want.is_nan());
            assert!(
                same,
                "{level:?}: √{} is {}, expected {want}",
                x.widen(),
                y.widen()
            );
        }
    }
}

#[test]
fn sixteen_bit_floats_are_widened_and_rounded_once() {
    halves_round_to_nearest::<bf16>(|x| bf16::from_f32(x).to_f32());
    halves_round_to_nearest::<f16>(|x| f16::from_f32(x).to_f32());
}

#[test]
fn rows_of_any_length() {
    for level in Level::all() {
        for count in [1, 2, 7, 8, 15, 16, 17, 63, 64, 65, 200] {
            let (x, weight) = (noise(count, 1), noise(count, 2));
            let (mut out, mut scratch) = (vec![0f32; count], vec![0f32; count]);
            let wide: Vec<f64> = x.iter().map(|x| *x as f64).collect();
            let n = count as f64;
            let check = |name: &str, out: &[f32], want: &dyn Fn(usize) -> f64| {
                for (i, y) in out.iter().enumerate() {
                    let want = want(i);
                    let off = (*y as f64 - want).abs();
                    assert!(
                        off <= 2e-6 * want.abs().max(1.0),
                        "{level:?} {name} of {count} at {i}: {y}, expected {want}"
                    );
                }
            };
            // SAFETY: all hold `count`.
            unsafe {
                rows::softmax(
                    level,
                    x.as_ptr(),
                    out.as_mut_ptr(),
                    count,
                    scratch.as_mut_ptr(),
                )
            };
            let sum: f64 = wide.iter().map(|x| x.exp()).sum();
            check("softmax", &out, &|i| wide[i].exp() / sum);

            let squares = wide.iter().map(|x| x * x).sum::<f64>() / n;
            // SAFETY: all hold `count`.
            unsafe {
                rows::rms_norm(
                    level,
                    x.as_ptr(),
                    weight.as_ptr(),
                    out.as_mut_ptr(),
                    count,
                    1e-2,
                    scratch.as_mut_ptr(),
                );
            }
            check("rms_norm", &out, &|i| {
                wide[i] / (squares + 1e-2).sqrt() * weight[i] as f64
            });

            let mean = wide.iter().sum::<f64>() / n;
            let variance = wide.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
            let null = std::ptr::null();
            // SAFETY: all but the null pointer hold `count`.
            unsafe {
                rows::layer_norm(
                    level,
                    x.as_ptr(),
                    null,
                    weight.as_ptr(),
                    out.as_mut_ptr(),
                    count,
                    1e-2,
                    scratch.as_mut_ptr(),
                );
            }
            check("layer_norm", &out, &|i| {
                (wide[i] - mean) / (variance + 1e-2).sqrt() + weight[i] as f64
            });
        }
    }
}

#[test]
fn softmax_of_infinities_and_nan() {
    let infinity = f32::INFINITY;
    let cases: [([f32; 3], [f32; 3]); 3] = [
        ([-infinity, 0.0, 0.0], [0.0, 0.5, 0.5]),
        ([-infinity; 3], [f32::NAN; 3]),
        ([1.0, f32::NAN, 2.0], [f32::NAN; 3]),
    ];
    for level in Level::all() {
        for (x, want) in cases {
            let (mut out, mut scratch) = ([0f32; 3], [0f32; 3]);
            // SAFETY: all hold three.
            unsafe { rows::softmax(level, x.as_ptr(), out.as_mut_ptr(), 3, scratch.as_mut_ptr()) };
            let same = out
                .iter()
                .zip(&want)
                .all(|(a, b)| a == b || (a.is_nan() && b.is_nan()));
            assert!(same, "{level:?}: {x:?} gave {out:?}");
        }
    }
}

#[test]
fn long_rows_far_from_zero_are_normalized() {
    let count = 1_000_000;
    let x: Vec<f32> = (0..count)
        .map(|i| 1000.0 + if i % 2 == 0 { 0.1 } else { -0.1 })
        .collect();
    let (mut out, mut scratch) = (vec![0f32; count], vec![0f32; count]);
    let null = std::ptr::null();
    for level in Level::all() {
        let (to, room) = (out.as_mut_ptr(), scratch.as_mut_ptr());
        // SAFETY: all but the null pointers hold `count`.
        unsafe { rows::layer_norm(level, x.as_ptr(), null, null, to, count, 1e-6, room) };
        for (i, y) in out.iter().enumerate() {
            let want = if i % 2 == 0 { 1.0 } else { -1.0 };
            assert!((y - want).abs() < 1e-3, "{level:?} at {i}: {y}");
        }
        let tenths = vec![0.1f32; count];
        // SAFETY: both hold `count`.
        unsafe { rows::softmax(level, tenths.as_ptr(), to, count, room) };
        assert!(
            out.iter().all(|y| (y * count as f32 - 1.0).abs() < 1e-6),
            "{level:?}: {}",
            out[0]
        );
    }
}
