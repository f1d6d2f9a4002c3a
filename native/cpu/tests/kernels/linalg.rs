//! Factorizations in every form that the machine has, by their residuals in f64: sizes on either side of vectors, tiles
//! and blocks, all layouts, batches, matrices that are nearly singular or badly scaled.

use crate::support::{in_rows, Dice};
use emlx_cpu::internals::linalg::{run, Real};
use emlx_cpu::internals::simd::Level;
use emlx_cpu::{Linear, Type, View};
use std::panic::{catch_unwind, AssertUnwindSafe};

const SIZES: [usize; 16] = [1, 2, 3, 4, 5, 6, 7, 13, 16, 31, 32, 33, 65, 97, 130, 200];

fn number(dice: &mut Dice) -> f64 {
    dice.below(20_001) as f64 / 10_000.0 - 1.0
}

fn type_of<T: Real>() -> Type {
    match size_of::<T>() {
        4 => Type::F32,
        _ => Type::F64,
    }
}

/// Matrices in f64, and the same as `T` in some layout.
struct Given<T> {
    wide: Vec<f64>,
    data: Vec<T>,
    first: usize,
    shape: Vec<i32>,
    strides: Vec<i64>,
}

impl<T: Real> Given<T> {
    /// In rows, in columns, with gaps, or from the last element to the first.
    fn new(shape: &[usize], numbers: &[f64], layout: usize) -> Given<T> {
        let shape: Vec<i32> = shape.iter().map(|size| *size as i32).collect();
        let rank = shape.len();
        let mut strides = in_rows(&shape);
        match layout {
            1 => {
                strides[rank - 2] = 1;
                strides[rank - 1] = i64::from(shape[rank - 2]);
            }
            2 => strides.iter_mut().for_each(|step| *step *= 2),
            3 => strides.iter_mut().for_each(|step| *step = -*step),
            _ => {}
        }
        let ends = shape.iter().zip(&strides);
        let first: i64 = ends
            .map(|(size, step)| (i64::from(*size) - 1) * (-step).max(0))
            .sum();
        let mut data = vec![T::NAN; 2 * numbers.len() + 1];
        let mut wide = Vec::new();
        for (i, x) in numbers.iter().enumerate() {
            let (mut left, mut at) = (i as i64, first);
            for axis in (0..rank).rev() {
                at += left % i64::from(shape[axis]) * strides[axis];
                left /= i64::from(shape[axis]);
            }
            data[at as usize] = T::of(*x);
            wide.push(T::of(*x).into());
        }
        let first = first as usize;
        Given {
            wide,
            data,
            first,
            shape,
            strides,
        }
    }

    fn view(&self) -> View {
        // SAFETY: of arrays of the test's own, which outlive it.
        unsafe { View::of(&self.data[self.first], &self.shape, &self.strides) }
    }
}

fn compute<T: Real>(
    level: Level,
    linear: Linear,
    inputs: &[&Given<T>],
    shape: &[usize],
    results: usize,
) -> Vec<Vec<f64>> {
    let count: usize = shape.iter().product();
    let shape: Vec<i32> = shape.iter().map(|size| *size as i32).collect();
    let strides = in_rows(&shape);
    let mut outs = vec![vec![T::NAN; count]; results];
    let views: Vec<View> = inputs.iter().map(|given| given.view()).collect();
    // SAFETY: as large as the shapes say.
    unsafe {
        let to: Vec<View> = outs
            .iter_mut()
            .map(|out| View::of(out.as_mut_ptr().cast_const(), &shape, &strides))
            .collect();
        run(level, type_of::<T>(), linear, &views, &to);
    }
    let wide = |out: Vec<T>| out.into_iter().map(Into::into).collect();
    outs.into_iter().map(wide).collect()
}

/// Random matrices: as they come, with rows of very different sizes, or nearly singular.
fn general(dice: &mut Dice, batch: usize, n: usize, kind: usize) -> Vec<f64> {
    let mut a: Vec<f64> = (0..batch * n * n).map(|_| number(dice)).collect();
    for matrix in a.chunks_mut(n * n) {
        for i in 0..n {
            let scale = 10f64.powi(dice.below(9) as i32 - 4);
            for j in 0..n {
                match kind {
                    1 => matrix[i * n + j] *= scale,
                    2 if i > 0 => {
                        matrix[i * n + j] = matrix[(i - 1) * n + j] + 1e-3 * matrix[i * n + j]
                    }
                    _ => {}
                }
            }
        }
    }
    a
}

/// The largest element of a·x - b, relative to what its terms come to.
fn residual(a: &[f64], x: &[f64], b: &[f64], n: usize, columns: usize) -> f64 {
    let mut worst = 0f64;
    let row_size = |row: &[f64]| row.iter().map(|x| x.abs()).sum::<f64>();
    let most = (0..n)
        .map(|i| row_size(&a[i * n..][..n]))
        .fold(0.0, f64::max);
    for j in 0..columns {
        let size = (0..n).map(|k| x[k * columns + j].abs()).fold(0.0, f64::max);
        for i in 0..n {
            let sum: f64 = (0..n).map(|k| a[i * n + k] * x[k * columns + j]).sum();
            let off = (sum - b[i * columns + j]).abs();
            assert!(off.is_finite(), "{off}");
            worst = worst.max(off / (most * size + f64::MIN_POSITIVE));
        }
    }
    worst
}

fn levels_and_types(check: fn(Level), wide: fn(Level)) {
    for level in Level::all() {
        check(level);
        wide(level);
    }
}

fn systems<T: Real>(level: Level) {
    let mut dice = Dice::new(5);
    let eps: f64 = T::EPSILON.into();
    for n in SIZES.into_iter().chain([400]) {
        for kind in 0..3 {
            let batch = if n < 20 {
                [1, 2, 37][kind]
            } else {
                1 + kind % 2
            };
            let columns = [1, 3, 16, 19, 40][dice.below(5)];
            let layout = dice.below(4);
            let a = Given::<T>::new(&[batch, n, n], &general(&mut dice, batch, n, kind), layout);
            let b: Vec<f64> = (0..batch * n * columns)
                .map(|_| number(&mut dice))
                .collect();
            let b = Given::<T>::new(&[batch, n, columns], &b, dice.below(4));
            let linear = Linear::Solve {
                nan_if_singular: kind == 0,
            };
            let shape = [batch, n, columns];
            let x = compute(level, linear, &[&a, &b], &shape, 1).remove(0);
            let inverse = compute(level, Linear::Inverse, &[&a], &[batch, n, n], 1).remove(0);
            let identity: Vec<f64> = (0..n * n)
                .map(|i| if i / n == i % n { 1.0 } else { 0.0 })
                .collect();
            for i in 0..batch {
                let a = &a.wide[i * n * n..][..n * n];
                let (size, at) = (n * columns, i * n * columns);
                let off = residual(a, &x[at..][..size], &b.wide[at..][..size], n, columns);
                let allowed = 8.0 * eps * (n as f64).sqrt().max(2.0);
                assert!(
                    off <= allowed,
                    "{level:?} solve {n} × {columns} {kind} {layout}: {off}"
                );
                let off = residual(a, &inverse[i * n * n..][..n * n], &identity, n, n);
                assert!(off <= allowed, "{level:?} inv {n} {kind} {layout}: {off}");
            }
        }
    }
}

#[test]
fn systems_and_inverses_are_backward_stable() {
    levels_and_types(systems::<f32>, systems::<f64>);
}

fn triangles<T: Real>(level: Level) {
    let mut dice = Dice::new(6);
    let eps: f64 = T::EPSILON.into();
    for n in SIZES.into_iter().chain([385, 800]) {
        for upper in [false, true] {
            let batch = if n < 20 { 19 } else { 1 };
            let columns = [1, 2, 16, 17, 70][dice.below(5)];
            let mut a = general(&mut dice, batch, n, 0);
            let shape = [batch, n, n];
            for (i, x) in a.iter_mut().enumerate() {
                let (row, column) = (i / n % n, i % n);
                if row == column {
                    *x += x.signum();
                    *x = if *x == 0.0 { 1.0 } else { *x };
                } else if (row < column) != upper {
                    // The other triangle is not read.
                    *x = f64::NAN;
                } else {
                    *x *= 3.0 / n as f64;
                }
            }
            let given = Given::<T>::new(&shape, &a, dice.below(4));
            let b: Vec<f64> = (0..n * columns).map(|_| number(&mut dice)).collect();
            // One right side for all matrices.
            let b = Given::<T>::new(&[1, n, columns], &b, dice.below(4));
            let linear = Linear::Triangular { upper };
            let x = compute(level, linear, &[&given, &b], &[batch, n, columns], 1).remove(0);
            for i in 0..batch {
                let mut a = given.wide[i * n * n..][..n * n].to_vec();
                a.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = 0.0);
                let x = &x[i * n * columns..][..n * columns];
                let off = residual(&a, x, &b.wide, n, columns);
                let allowed = 4.0 * eps * (n as f64).sqrt().max(2.0);
                assert!(off <= allowed, "{level:?} {n} × {columns} {upper}: {off}");
            }
        }
    }
}

#[test]
fn triangular_systems_read_one_triangle() {
    levels_and_types(triangles::<f32>, triangles::<f64>);
}

fn definite(dice: &mut Dice, batch: usize, n: usize, ridge: f64) -> Vec<f64> {
    let a = general(dice, batch, n, 0);
    let mut out = vec![0.0; batch * n * n];
    for (a, out) in a.chunks(n * n).zip(out.chunks_mut(n * n)) {
        for i in 0..n {
            for j in 0..n {
                let sum: f64 = (0..n).map(|k| a[i * n + k] * a[j * n + k]).sum();
                out[i * n + j] = sum + if i == j { ridge } else { 0.0 };
            }
        }
    }
    out
}

fn cholesky<T: Real>(level: Level) {
    let mut dice = Dice::new(7);
    let eps: f64 = T::EPSILON.into();
    for n in SIZES {
        for upper in [false, true] {
            let batch = if n < 20 { 21 } else { 2 };
            let a = definite(&mut dice, batch, n, 0.1);
            let mut half = a.clone();
            for (i, x) in half.iter_mut().enumerate() {
                let (row, column) = (i / n % n, i % n);
                if row != column && (row > column) == upper {
                    *x = f64::NAN;
                }
            }
            let a = Given::<T>::new(&[batch, n, n], &a, 0);
            let half = Given::<T>::new(&[batch, n, n], &half, dice.below(4));
            let linear = Linear::Cholesky {
                upper,
                is_semidefinite: dice.below(2) == 0,
            };
            let factors = compute(level, linear, &[&half], &[batch, n, n], 1).remove(0);
            for (a, l) in a.wide.chunks(n * n).zip(factors.chunks(n * n)) {
                let at = |i: usize, j: usize| if upper { l[j * n + i] } else { l[i * n + j] };
                let most = (0..n).map(|i| a[i * n + i]).fold(0.0, f64::max);
                for i in 0..n {
                    for j in 0..n {
                        let sum: f64 = (0..n).map(|k| at(i, k) * at(j, k)).sum();
                        let off = (sum - a[i * n + j]).abs() / most;
                        assert!(
                            off <= 4.0 * eps * (n as f64).sqrt(),
                            "{level:?} {n} {upper} at {i}, {j}: off by {off}"
                        );
                        assert!(j <= i || at(i, j) == 0.0);
                    }
                }
            }
        }
    }
}

#[test]
fn cholesky_factors_multiply_to_their_matrix() {
    levels_and_types(cholesky::<f32>, cholesky::<f64>);
}

#[test]
fn a_semidefinite_matrix_has_columns_of_zeros_and_an_indefinite_one_is_nan() {
    let numbers = [
        4.0, 2.0, 2.0, 2.0, 1.0, 1.0, 2.0, 1.0, 3.0, //
        4.0, 0.0, 2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 1.0, //
        1.0, 2.0, 0.0, 2.0, 1.0, 0.0, 0.0, 0.0, 1.0,
    ];
    for level in Level::all() {
        let a = Given::<f32>::new(&[3, 3, 3], &numbers, 0);
        let linear = Linear::Cholesky {
            upper: false,
            is_semidefinite: true,
        };
        let l = compute(level, linear, &[&a], &[3, 3, 3], 1).remove(0);
        let near = |have: &[f64], want: [f64; 9]| {
            let mut pairs = have.iter().zip(want);
            assert!(pairs.all(|(a, b)| (a - b).abs() < 1e-5), "{have:?}");
        };
        near(
            &l[..9],
            [2.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 2f64.sqrt()],
        );
        near(&l[9..18], [2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
        for (i, x) in l[18..].iter().enumerate() {
            assert_eq!(x.is_nan(), i % 3 <= i / 3, "{:?}", &l[18..]);
        }
        let strict = Linear::Cholesky {
            upper: false,
            is_semidefinite: false,
        };
        let l = compute(level, strict, &[&a], &[3, 3, 3], 1).remove(0);
        assert!(l[18] == 1.0 && l[22] <= 0.0, "{:?}", &l[18..]);
    }
}

/// By elimination in f64.
fn determinant(a: &[f64], n: usize) -> (f64, f64) {
    let (mut a, mut sign, mut logarithm) = (a.to_vec(), 1f64, 0f64);
    for k in 0..n {
        let size = |i: &usize| a[i * n + k].abs();
        let best = (k..n)
            .max_by(|i, j| size(i).total_cmp(&size(j)))
            .unwrap_or(k);
        if best != k {
            sign = -sign;
            (0..n).for_each(|j| a.swap(k * n + j, best * n + j));
        }
        let pivot = a[k * n + k];
        sign *= pivot.signum();
        logarithm += pivot.abs().ln();
        for i in k + 1..n {
            let factor = a[i * n + k] / pivot;
            (k..n).for_each(|j| a[i * n + j] -= factor * a[k * n + j]);
        }
    }
    (sign, logarithm)
}

fn determinants<T: Real>(level: Level) {
    let mut dice = Dice::new(8);
    let eps: f64 = T::EPSILON.into();
    for n in SIZES {
        let batch = if n < 20 { 50 } else { 2 };
        let mut a = general(&mut dice, batch, n, 0);
        // Far from singular, but with rows that have to change places.
        for matrix in a.chunks_mut(n * n) {
            let by = dice.below(n);
            (0..n).for_each(|i| matrix[i * n + (i + by) % n] += (n as f64).sqrt() + 1.0);
        }
        let given = Given::<T>::new(&[batch, n, n], &a, dice.below(4));
        let values = compute(level, Linear::Determinant, &[&given], &[batch], 1).remove(0);
        let parts = compute(level, Linear::LogDeterminant, &[&given], &[batch], 2);
        for (i, a) in given.wide.chunks(n * n).enumerate() {
            let (sign, logarithm) = determinant(a, n);
            let allowed = 40.0 * eps * n as f64;
            assert_eq!(parts[0][i], sign, "{level:?} {n}");
            let off = (parts[1][i] - logarithm).abs();
            assert!(
                off <= allowed * logarithm.abs().max(1.0),
                "{level:?} {n}: {off}"
            );
            let want: f64 = T::of(sign * logarithm.exp()).into();
            let off = if want.is_infinite() {
                0.0
            } else {
                (values[i] / want - 1.0).abs()
            };
            assert!(off <= 2.0 * allowed, "{level:?} {n}: {} {want}", values[i]);
            assert_eq!(values[i].is_infinite(), want.is_infinite());
        }
    }
}

#[test]
fn determinants_have_their_sign_and_size() {
    levels_and_types(determinants::<f32>, determinants::<f64>);
}

#[test]
fn singular_matrices_and_nan_stay_with_their_matrix() {
    let numbers = [
        1.0,
        2.0,
        2.0,
        4.0,
        2.0,
        0.0,
        0.0,
        4.0,
        f64::NAN,
        1.0,
        1.0,
        1.0,
    ];
    for level in Level::all() {
        let a = Given::<f32>::new(&[3, 2, 2], &numbers, 0);
        let b = Given::<f32>::new(&[1, 2, 1], &[1.0, 1.0], 0);
        let values = compute(level, Linear::Determinant, &[&a], &[3], 1).remove(0);
        assert_eq!(values[..2], [0.0, 8.0]);
        assert!(values[2].is_nan());
        let parts = compute(level, Linear::LogDeterminant, &[&a], &[3], 2);
        assert_eq!((parts[0][0], parts[1][0]), (0.0, f64::NEG_INFINITY));
        assert!(parts[0][2].is_nan() && parts[1][2].is_nan());
        let safe = Linear::Solve {
            nan_if_singular: true,
        };
        let x = compute(level, safe, &[&a, &b], &[3, 2, 1], 1).remove(0);
        assert_eq!(x[2..4], [0.5, 0.25]);
        assert!([0, 1, 4, 5].iter().all(|i| x[*i].is_nan()), "{x:?}");
        let strict = Linear::Solve {
            nan_if_singular: false,
        };
        let triangular = Linear::Triangular { upper: true };
        let zero = Given::<f32>::new(&[2, 2, 2], &[1.0, 2.0, 0.0, 3.0, 1.0, 2.0, 0.0, 0.0], 0);
        for (linear, a, text) in [
            (strict, &a, "triangular inversion failed with error code 2"),
            (
                Linear::Inverse,
                &a,
                "LU factorization failed with error code 2",
            ),
            (
                triangular,
                &zero,
                "triangular inversion failed with error code 2",
            ),
        ] {
            let batch = a.shape[0] as usize;
            let call = || compute(level, linear, &[a, &b], &[batch, 2, 2], 1);
            let failure = catch_unwind(AssertUnwindSafe(call)).expect_err("is singular");
            assert_eq!(
                failure.downcast_ref::<String>().map(String::as_str),
                Some(text)
            );
        }
    }
}
