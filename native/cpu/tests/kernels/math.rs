//! The functions in every form that the machine has, against f64.

use crate::support::Dice;
use emlx_cpu::internals::{binary, element::Element, simd::Level, unary};
use emlx_cpu::{Function, Pair};

extern "C" {
    fn erfc(x: f64) -> f64;
}

type Exact = fn(f64) -> f64;

/// Every so manieth pattern of bits is tried: 1009, or what `EMLX_TEST_STEP` says.
fn step() -> usize {
    let given = std::env::var("EMLX_TEST_STEP").ok();
    given.and_then(|step| step.parse().ok()).unwrap_or(1009)
}

fn sign(x: f64) -> f64 {
    match x == 0.0 || x.is_nan() {
        true => 0.0,
        false => x.signum(),
    }
}

fn complement(x: f64) -> f64 {
    // SAFETY: the C library's function takes any number.
    unsafe { erfc(x) }
}

/// By Newton's method on erfc, which loses nothing toward 1.
fn erfinv(x: f64) -> f64 {
    let size = x.abs();
    if x == 0.0 || x.is_nan() || size < 1e-12 {
        return x * std::f64::consts::PI.sqrt() / 2.0;
    }
    if size >= 1.0 {
        return if size == 1.0 {
            x * f64::INFINITY
        } else {
            f64::NAN
        };
    }
    let rest = 1.0 - size;
    let w = -(rest * (1.0 + size)).ln();
    let mut y = if w < 5.0 { 0.886 * size } else { w.sqrt() };
    if (0.5..0.9999).contains(&size) {
        y = 0.48 + (w - 0.28) * 0.27;
    }
    for _ in 0..20 {
        let error = if size < 0.5 {
            // 1 - erfc loses what the series does not.
            let (mut term, mut sum) = (y, y);
            for n in 1..30 {
                term *= -y * y / n as f64;
                sum += term / (2 * n + 1) as f64;
            }
            size - sum * std::f64::consts::FRAC_2_SQRT_PI
        } else {
            complement(y) - rest
        };
        let slope = std::f64::consts::FRAC_2_SQRT_PI * (-y * y).exp();
        // Halley's step.
        let step = error / slope;
        let next = y + step / (1.0 - y * step);
        if (next - y).abs() <= 1e-14 * y {
            y = next;
            break;
        }
        y = next;
    }
    y.copysign(x)
}

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

const SPECIAL: [f32; 24] = [
    0.0,
    -0.0,
    f32::NAN,
    -f32::NAN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::MIN_POSITIVE,
    1e-45,
    -1e-45,
    1e-40,
    -1e-40,
    f32::MAX,
    f32::MIN,
    0.5,
    -0.5,
    0.499_999_97,
    1.0,
    -1.0,
    1.5,
    -2.5,
    0.999_999_94,
    1.000_000_1,
    8_388_607.5,
    1e5,
];

fn check(functions: &[(Function, Exact, f64)]) {
    // Near 1, 0.5 and multiples of π/2 as well, where most goes wrong.
    let mut numbers: Vec<f32> = (0..=u32::MAX).step_by(step()).map(f32::from_bits).collect();
    numbers.extend(
        (-20_000..20_000).map(|i| f32::from_bits(0x3f80_0000u32.wrapping_add_signed(i * 61))),
    );
    numbers.extend((-20_000..20_000).map(|i| (i as f64 * std::f64::consts::FRAC_PI_2) as f32));
    numbers.extend((0..400_000).map(|i| (i - 200_000) as f32 * 5.3e-5));
    numbers.extend(SPECIAL);
    for (function, exact, limit) in functions {
        let want: Vec<f64> = numbers.iter().map(|x| exact(f64::from(*x))).collect();
        for level in Level::all() {
            let mut out = vec![0f32; numbers.len()];
            // SAFETY: both are as long.
            unsafe {
                unary::apply(
                    level,
                    *function,
                    numbers.as_ptr(),
                    out.as_mut_ptr(),
                    out.len(),
                )
            };
            let errors = out.iter().zip(&want).map(|(got, want)| ulps(*got, *want));
            let (place, worst) =
                errors.enumerate().fold(
                    (0, 0.0),
                    |best, (i, error)| {
                        if error > best.1 {
                            (i, error)
                        } else {
                            best
                        }
                    },
                );
            println!("{function:?} {level:?}: {worst:.3} at {:e}", numbers[place]);
            let limit = if level == Level::Portable {
                limit * 1.5
            } else {
                *limit
            };
            assert!(
                worst <= limit,
                "{level:?} {function:?} of {:e} is {:e}, not {:e}: off by {worst}",
                numbers[place],
                out[place],
                want[place]
            );
        }
    }
}

#[test]
fn rounding_is_exact() {
    check(&[
        (Function::Floor, f64::floor, 0.0),
        (Function::Ceil, f64::ceil, 0.0),
        (Function::Trunc, f64::trunc, 0.0),
        (Function::Round, f64::round_ties_even, 0.0),
        (Function::RoundAway, f64::round, 0.0),
        (Function::Sign, sign, 0.0),
        (Function::Reciprocal, |x| 1.0 / x, 0.5),
    ]);
}

#[test]
fn logarithms_are_within_two_units() {
    check(&[
        (Function::Log, f64::ln, 2.0),
        (Function::Log1p, f64::ln_1p, 2.0),
        (Function::Log2, f64::log2, 2.0),
        (Function::Log10, f64::log10, 2.0),
    ]);
}

#[test]
fn exponentials_and_hyperbolic_functions_are_within_two_units() {
    check(&[
        (Function::Exp, f64::exp, 2.0),
        (Function::Expm1, f64::exp_m1, 2.0),
        (Function::Sinh, f64::sinh, 2.0),
        (Function::Cosh, f64::cosh, 2.0),
        (Function::Tanh, f64::tanh, 2.0),
        (Function::Asinh, f64::asinh, 2.0),
        (Function::Acosh, f64::acosh, 2.0),
        (Function::Atanh, f64::atanh, 2.0),
    ]);
}

#[test]
fn trigonometric_functions_are_within_two_units() {
    check(&[
        (Function::Sin, f64::sin, 2.0),
        (Function::Cos, f64::cos, 2.0),
        (Function::Tan, f64::tan, 2.0),
        (Function::Asin, f64::asin, 2.0),
        (Function::Acos, f64::acos, 2.0),
        (Function::Atan, f64::atan, 2.0),
    ]);
}

#[test]
fn roots_and_error_functions_are_within_two_units() {
    check(&[
        (Function::Cbrt, f64::cbrt, 2.0),
        (Function::Erfc, complement, 2.0),
        (Function::Erfinv, erfinv, 2.0),
    ]);
}

fn floor_mod(a: f64, b: f64) -> f64 {
    let rest = a % b;
    if rest == 0.0 {
        rest.copysign(b)
    } else if (rest < 0.0) != (b < 0.0) {
        rest + b
    } else {
        rest
    }
}

/// Numbers of all sizes, of which many are whole or near 1.
fn operands(count: usize, seed: u64) -> Vec<f32> {
    let mut dice = Dice::new(seed);
    let mut numbers: Vec<f32> = (0..count)
        .map(|i| {
            let any = f32::from_bits(dice.below(1 << 32) as u32);
            let part = dice.below(1 << 24) as f32 / (1 << 24) as f32;
            match i % 4 {
                0 => any,
                1 => (part * 64.0).round() - 32.0,
                2 => part * 200.0 - 100.0,
                _ => 1.0 + (part - 0.5) * 0.01,
            }
        })
        .collect();
    // In an order of their own, so that kinds meet.
    for i in (1..numbers.len()).rev() {
        numbers.swap(i, dice.below(i + 1));
    }
    numbers
}

#[test]
fn pairs_are_within_two_units() {
    type Of = fn(f64, f64) -> f64;
    let pairs: [(Pair, Of, f64); 4] = [
        (Pair::Power, f64::powf, 2.0),
        (Pair::Atan2, f64::atan2, 2.0),
        (Pair::Fmod, |a, b| a % b, 0.0),
        (Pair::FloorMod, floor_mod, 0.5),
    ];
    let (mut a, mut b) = (operands(2_000_000, 1), operands(2_000_000, 2));
    for x in SPECIAL {
        a.extend([x; 26]);
        b.extend(SPECIAL);
        b.extend([2.0, 3.0]);
    }
    for (pair, exact, limit) in pairs {
        for level in Level::all() {
            let mut out = vec![0f32; a.len()];
            let (p, q, to) = (a.as_ptr(), b.as_ptr(), out.as_mut_ptr());
            // SAFETY: all are as long.
            unsafe { binary::apply(level, pair, p, false, q, false, to, a.len()) };
            let mut most = 0.0f64;
            for ((a, b), got) in a.iter().zip(&b).zip(&out) {
                let want = exact(f64::from(*a), f64::from(*b));
                let off = ulps(*got, want);
                let limit = if level == Level::Portable {
                    limit * 1.5
                } else {
                    limit
                };
                assert!(
                    off <= limit,
                    "{level:?} {pair:?} of {a:e} and {b:e} is {got:e}, not {want:e}: off by {off}"
                );
                most = most.max(off);
            }
            println!("{pair:?} {level:?}: {most:.3}");
        }
    }
}

/// What is computed in f32 block by block, in place, of lengths about a block's.
fn check_halves<T: Element + PartialEq + std::fmt::Debug>() {
    for count in [1, 7, 16, 255, 256, 257, 600] {
        let wide: Vec<f32> = (0..count).map(|i| 0.05 + i as f32 * 0.37).collect();
        let given: Vec<T> = wide.iter().map(|x| T::narrow(*x)).collect();
        let wide: Vec<f32> = given.iter().map(|x| x.widen()).collect();
        for level in Level::all() {
            for function in [Function::Log, Function::Sin] {
                let (mut of_f32, mut got) = (wide.clone(), given.clone());
                let (x, y) = (of_f32.as_mut_ptr(), got.as_mut_ptr());
                // SAFETY: each is as long, and written over itself.
                unsafe {
                    unary::apply(level, function, x, x, count);
                    unary::apply(level, function, y, y, count);
                }
                let want: Vec<T> = of_f32.iter().map(|x| T::narrow(*x)).collect();
                assert_eq!(got, want, "{level:?} {function:?} of {count}");
            }
            for (a_is_one, b_is_one) in [(false, false), (true, false), (false, true), (true, true)]
            {
                let (mut of_f32, mut got) = (wide.clone(), given.clone());
                let (x, y) = (of_f32.as_mut_ptr(), got.as_mut_ptr());
                let (a, b) = (wide.as_ptr(), given.as_ptr());
                // SAFETY: all are as long.
                unsafe {
                    binary::apply(level, Pair::Atan2, a, a_is_one, a, b_is_one, x, count);
                    binary::apply(level, Pair::Atan2, b, a_is_one, b, b_is_one, y, count);
                }
                let want: Vec<T> = of_f32.iter().map(|x| T::narrow(*x)).collect();
                assert_eq!(got, want, "{level:?} atan2 of {count}");
            }
        }
    }
}

#[test]
fn numbers_of_16_bits_are_computed_in_f32() {
    check_halves::<half::bf16>();
    check_halves::<half::f16>();
}

/// `cargo test --release -p emlx_cpu -- --ignored --nocapture times`
#[test]
#[ignore = "measures"]
fn times() {
    use Function::*;
    let functions = [
        Exp, Tanh, Erf, Floor, Ceil, Trunc, Round, RoundAway, Sign, Log, Log1p, Expm1, Sin, Cos,
        Tan, Sinh, Cosh, Asin, Acos, Atan, Asinh, Acosh, Atanh, Log2, Log10, Cbrt, Erfc, Erfinv,
        Reciprocal,
    ];
    const COUNT: usize = 1 << 20;
    let numbers = |from: f32, to: f32| -> Vec<f32> {
        (0..COUNT)
            .map(|i| from + (to - from) * (i as f32 * 0.618_034).fract())
            .collect()
    };
    let mut out = vec![0f32; COUNT];
    let mut best = |name: &str, work: &mut dyn FnMut(*mut f32)| {
        let mut times: Vec<_> = (0..15)
            .map(|_| {
                let start = std::time::Instant::now();
                work(out.as_mut_ptr());
                start.elapsed().as_micros()
            })
            .collect();
        times.sort();
        println!("{name}: {} µs, {} µs at best", times[7], times[0]);
    };
    for function in functions {
        let x = match function {
            Log | Log1p | Log2 | Log10 => numbers(0.01, 100.0),
            Acosh => numbers(1.0, 100.0),
            Asin | Acos | Atanh | Erfinv => numbers(-1.0, 1.0),
            _ => numbers(-8.0, 8.0),
        };
        for level in Level::all() {
            best(&format!("{function:?} {level:?}"), &mut |to| {
                // SAFETY: both are as long.
                unsafe { unary::apply(level, function, x.as_ptr(), to, COUNT) }
            });
        }
    }
    let (a, b) = (numbers(0.0, 50.0), numbers(-4.0, 4.1));
    for pair in [Pair::Power, Pair::Atan2, Pair::Fmod, Pair::FloorMod] {
        for level in Level::all() {
            best(&format!("{pair:?} {level:?}"), &mut |to| {
                // SAFETY: all are as long.
                unsafe {
                    binary::apply(level, pair, a.as_ptr(), false, b.as_ptr(), false, to, COUNT)
                }
            });
        }
    }
}
