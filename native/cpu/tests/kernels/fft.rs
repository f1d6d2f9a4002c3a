//! Fourier transforms against sums in f64: sizes of all kinds, any layout, lines that are cut and filled up.

use crate::support::{in_rows, Dice, Scattered};
use emlx_cpu::internals::fft;
use emlx_cpu::{Fft, Form, View};
use std::f64::consts::TAU;

type Pair = [f32; 2];

/// What a line becomes, before it is scaled.
fn transformed(line: &[[f64; 2]], fft: &Fft) -> Vec<[f64; 2]> {
    let n = fft.size as usize;
    let sign = match fft.form {
        Form::FromHalf => 1.0,
        _ if fft.is_inverse => 1.0,
        _ => -1.0,
    };
    let turns: Vec<(f64, f64)> = (0..n)
        .map(|i| (sign * TAU * i as f64 / n as f64).sin_cos())
        .collect();
    (0..fft.results() as usize)
        .map(|k| {
            let mut sum = [0.0; 2];
            for (i, x) in line.iter().enumerate() {
                let (sin, cos) = turns[i * k % n];
                sum[0] += x[0] * cos - x[1] * sin;
                sum[1] += x[0] * sin + x[1] * cos;
            }
            sum
        })
        .collect()
}

/// The numbers of a whole line: `given` is cut or filled up, and half a spectrum is completed.
fn whole(given: &[[f64; 2]], fft: &Fft) -> Vec<[f64; 2]> {
    let n = fft.size as usize;
    let at = |i: usize| given.get(i).copied().unwrap_or_default();
    if fft.form != Form::FromHalf {
        return (0..n).map(at).collect();
    }
    let is_real = |i: usize| i == 0 || 2 * i == n;
    (0..n)
        .map(|i| match i <= n / 2 {
            true if is_real(i) => [at(i)[0], 0.0],
            true => at(i),
            false => [at(n - i)[0], -at(n - i)[1]],
        })
        .collect()
}

fn check(dice: &mut Dice, form: Form, size: i32, shape: &[i32], axis: u8) {
    let fft = Fft {
        form,
        axis,
        size,
        is_inverse: form != Form::ToHalf && dice.below(2) == 0,
        scale: [1.0, 0.25][dice.below(2)],
        least: [None, Some(1e-10)][dice.below(2)],
    };
    let number = |dice: &mut Dice| dice.below(2001) as f32 / 1000.0 - 1.0;
    let is_real = matches!(form, Form::Real | Form::ToHalf);
    let reals = Scattered::<f32>::of(dice, shape, number);
    let pairs = Scattered::<Pair>::of(dice, shape, |dice| [number(dice), number(dice)]);
    let mut to = shape.to_vec();
    to[axis as usize] = fft.results();
    let strides = in_rows(&to);
    let count: usize = to.iter().map(|n| *n as usize).product();
    let out = vec![[f32::NAN; 2]; count];
    let has_pairs = form != Form::FromHalf;
    // SAFETY: as large as the shapes say.
    unsafe {
        let out = View::of(out.as_ptr(), &to, &strides);
        let x = if is_real { reals.view() } else { pairs.view() };
        fft::run(&fft, &x, &out);
    }
    let flat = out.as_flattened();
    let lines: i64 =
        shape.iter().map(|n| i64::from(*n)).product::<i64>() / i64::from(shape[axis as usize]);
    for line in 0..lines {
        let mut place = vec![0i64; shape.len()];
        let mut left = line;
        for i in (0..shape.len()).rev().filter(|i| *i != axis as usize) {
            place[i] = left % i64::from(shape[i]);
            left /= i64::from(shape[i]);
        }
        let given: Vec<[f64; 2]> = (0..i64::from(shape[axis as usize]))
            .map(|i| {
                place[axis as usize] = i;
                match is_real {
                    true => [f64::from(reals.at(&place)), 0.0],
                    false => pairs.at(&place).map(f64::from),
                }
            })
            .collect();
        let want = transformed(&whole(&given, &fft), &fft);
        for (k, want) in want.iter().enumerate() {
            place[axis as usize] = k as i64;
            let at: i64 = place.iter().zip(&strides).map(|(i, step)| i * step).sum();
            let have = match has_pairs {
                true => out[at as usize],
                false => [flat[at as usize], 0.0],
            };
            let parts = if has_pairs { 2 } else { 1 };
            for part in 0..parts {
                let want = want[part] * f64::from(fft.scale);
                let off = (f64::from(have[part]) - want).abs();
                assert!(
                    off <= 3e-6 * f64::from(size).sqrt(),
                    "{fft:?} of {shape:?}, line {line}, {k}: {have:?}, not {want}"
                );
            }
        }
    }
}

#[test]
fn transforms_of_any_size_and_layout() {
    let mut dice = Dice::new(11);
    let forms = [Form::Complex, Form::Real, Form::ToHalf, Form::FromHalf];
    for size in [
        1, 2, 3, 4, 5, 7, 8, 11, 16, 30, 37, 64, 97, 100, 127, 210, 256, 509,
    ] {
        for form in forms {
            let given = match form {
                Form::FromHalf => size / 2 + 1,
                _ => size,
            };
            for given in [given, given + 3, (given - 1).max(1)] {
                check(&mut dice, form, size, &[given], 0);
                check(&mut dice, form, size, &[3, given], 1);
                check(&mut dice, form, size, &[given, 11], 0);
                check(&mut dice, form, size, &[2, given, 3], 1);
            }
        }
    }
    for form in forms {
        check(&mut dice, form, 512, &[257, 40], 0);
        check(&mut dice, form, 510, &[40, 257], 1);
    }
}

#[test]
fn a_line_of_nan_stays_one_and_small_parts_become_zero() {
    let x = [[f32::NAN, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0 + 1e-6]];
    let mut out = [[[f32::NAN; 2]; 4]; 2];
    let fft = Fft {
        form: Form::Real,
        axis: 1,
        size: 4,
        is_inverse: false,
        scale: 1.0,
        least: Some(1e-5),
    };
    // SAFETY: as large as the shapes say.
    unsafe {
        let x = View::of(x.as_ptr().cast::<f32>(), &[2, 4], &[4, 1]);
        let out = View::of(out.as_mut_ptr().cast_const(), &[2, 4], &[4, 1]);
        fft::run(&fft, &x, &out);
    }
    assert!(out[0].iter().all(|x| x[0].is_nan()));
    assert_eq!(out[1][1..], [[0.0; 2]; 3]);
}
