//! Sums, products and scans composed of MLX's, whose CPU kernels keep one running total: blocks are reduced by
//! themselves, and then what they came to, so that the error grows with the logarithm of the length. For types and
//! platforms without a kernel of ours.

use super::creation::constant;
use super::gpu;
use super::Number;
use crate::base::{Device, Dtype, Result};
use crate::mlx::{self, Stream};
use mlx_rs::Array;

/// Numbers that are reduced in a row: MLX's running total of equal numbers is off by up to half a unit for each of
/// them.
const BLOCK: i32 = 32;
/// The fewest terms of a product that are added up in a row.
const TERMS: i64 = 1024;

type Reduce = fn(&Array, &[i32], bool, &Stream) -> Result<Array>;
type Scan = fn(&Array, i32, bool, bool, &Stream) -> Result<Array>;
type Join = fn(&Array, &Array, &Stream) -> Result<Array>;

fn number(value: f64, like: &Array) -> Result<Array> {
    constant(Number::Float(value), mlx::dtype(like))
}

/// The axes that are left, and the array as rows of what is reduced.
fn rows(a: &Array, axes: &[i32], s: &Stream) -> Result<(Vec<i32>, Array)> {
    let rank = a.ndim() as i32;
    let kept: Vec<i32> = (0..rank).filter(|axis| !axes.contains(axis)).collect();
    let sizes: Vec<i32> = kept.iter().map(|axis| a.shape()[*axis as usize]).collect();
    let count = sizes.iter().product::<i32>();
    let front = mlx::transpose(a, &[kept.as_slice(), axes].concat(), s)?;
    let size = if count == 0 {
        0
    } else {
        a.size() as i32 / count
    };
    Ok((sizes, mlx::reshape(&front, &[count, size], s)?))
}

/// Rows of `count` blocks, filled up with `none`.
fn blocks(rows: &Array, none: f64, s: &Stream) -> Result<Array> {
    let [count, size] = [rows.shape()[0], rows.shape()[1]];
    let whole = (size + BLOCK - 1) / BLOCK;
    let missing = whole * BLOCK - size;
    let filled = match missing {
        0 => mlx::share(rows)?,
        _ => mlx::pad(
            rows,
            &[1],
            &[0],
            &[missing],
            &number(none, rows)?,
            "constant",
            s,
        )?,
    };
    mlx::reshape(&filled, &[count, whole, BLOCK], s)
}

fn reduce_rows(rows: &Array, none: f64, reduce: Reduce, s: &Stream) -> Result<Array> {
    let mut rows = mlx::share(rows)?;
    while rows.shape()[1] > BLOCK {
        rows = reduce(&blocks(&rows, none, s)?, &[2], false, s)?;
    }
    reduce(&rows, &[1], true, s)
}

/// A value for each row, in the shape of the array's reduction.
fn shaped(values: &Array, a: &Array, axes: &[i32], keepdims: bool, s: &Stream) -> Result<Array> {
    let sizes = a.shape().iter().enumerate();
    let shape: Vec<i32> = sizes
        .filter_map(|(axis, size)| match axes.contains(&(axis as i32)) {
            true => keepdims.then_some(1),
            false => Some(*size),
        })
        .collect();
    mlx::reshape(values, &shape, s)
}

pub fn sum(a: &Array, axes: &[i32], keepdims: bool, s: &Stream) -> Result<Array> {
    let (_, rows) = rows(a, axes, s)?;
    shaped(&sum_rows(&rows, s)?, a, axes, keepdims, s)
}

fn sum_rows(rows: &Array, s: &Stream) -> Result<Array> {
    reduce_rows(rows, 0.0, mlx::sum, s)
}

pub fn prod(a: &Array, axes: &[i32], keepdims: bool, s: &Stream) -> Result<Array> {
    let (_, rows) = rows(a, axes, s)?;
    let products = reduce_rows(&rows, 1.0, mlx::prod, s)?;
    shaped(&products, a, axes, keepdims, s)
}

pub fn mean(a: &Array, axes: &[i32], keepdims: bool, s: &Stream) -> Result<Array> {
    let (_, rows) = rows(a, axes, s)?;
    shaped(&mean_of_rows(&rows, s)?, a, axes, keepdims, s)
}

fn mean_of_rows(rows: &Array, s: &Stream) -> Result<Array> {
    let count = number(f64::from(rows.shape()[1]), rows)?;
    mlx::divide(&sum_rows(rows, s)?, &count, s)
}

/// Of real numbers. What the mean has lost in rounding is taken out of the squares.
pub fn var(a: &Array, axes: &[i32], keepdims: bool, ddof: i32, s: &Stream) -> Result<Array> {
    let (_, rows) = rows(a, axes, s)?;
    let apart = mlx::subtract(&rows, &mean_of_rows(&rows, s)?, s)?;
    let off = mlx::square(&mean_of_rows(&apart, s)?, s)?;
    let squares = mlx::subtract(&mean_of_rows(&mlx::square(&apart, s)?, s)?, &off, s)?;
    let count = f64::from(rows.shape()[1]);
    let share = number(count / (count - f64::from(ddof)).max(0.0), &rows)?;
    let variance = mlx::multiply(&squares, &share, s)?;
    shaped(&variance, a, axes, keepdims, s)
}

pub fn logsumexp(a: &Array, axes: &[i32], keepdims: bool, s: &Stream) -> Result<Array> {
    let (_, rows) = rows(a, axes, s)?;
    let top = mlx::max(&rows, &[1], true, s)?;
    let exps = mlx::exp(&mlx::subtract(&rows, &top, s)?, s)?;
    let sum = mlx::add(&mlx::log(&sum_rows(&exps, s)?, s)?, &top, s)?;
    let sum = mlx::where_(&mlx::isinf(&top, s)?, &top, &sum, s)?;
    shaped(&sum, a, axes, keepdims, s)
}

/// A scan along an axis, which is not empty: blocks by themselves, each joined with what those before it came to.
pub fn scan(
    a: &Array,
    axis: i32,
    reverse: bool,
    inclusive: bool,
    (scan, join, none): (Scan, Join, f64),
    s: &Stream,
) -> Result<Array> {
    let length = a.shape()[axis as usize];
    if length <= BLOCK {
        return scan(a, axis, reverse, inclusive, s);
    }
    let turned = |array: &Array| match reverse {
        true => mlx::flip(array, &[axis], s),
        false => mlx::share(array),
    };
    let (sizes, rows) = rows(&turned(a)?, &[axis], s)?;
    let scanned = scan_rows(&rows, inclusive, (scan, join, none), s)?;
    let shape = [sizes.as_slice(), &[length]].concat();
    let scanned = mlx::reshape(&scanned, &shape, s)?;
    let back = gpu::moveaxis(&scanned, -1, axis, Device::Cpu, s)?;
    turned(&back)
}

fn scan_rows(rows: &Array, inclusive: bool, how: (Scan, Join, f64), s: &Stream) -> Result<Array> {
    let (scan, join, none) = how;
    let [count, size] = [rows.shape()[0], rows.shape()[1]];
    if size <= BLOCK {
        return scan(rows, 1, false, inclusive, s);
    }
    let blocks = blocks(rows, none, s)?;
    let whole = blocks.shape()[1];
    let own = scan(&blocks, 2, false, true, s)?;
    let totals = mlx::slice(
        &own,
        &[0, 0, BLOCK - 1],
        &[count, whole, BLOCK],
        &[1, 1, 1],
        s,
    )?;
    let before = scan_rows(&mlx::reshape(&totals, &[count, whole], s)?, false, how, s)?;
    let own = match inclusive {
        true => own,
        false => scan(&blocks, 2, false, false, s)?,
    };
    let all = join(&own, &mlx::reshape(&before, &[count, whole, 1], s)?, s)?;
    let flat = mlx::reshape(&all, &[count, whole * BLOCK], s)?;
    mlx::slice(&flat, &[0, 0], &[count, size], &[1, 1], s)
}

/// a·b of matrices {…, n, k} and {…, k, m}, the terms of each product in blocks, as many as there is no more memory in
/// what they come to than in the operands.
pub fn matmul(
    a: &Array,
    b: &Array,
    product: impl Fn(&Array, &Array) -> Result<Array>,
    sum: impl Fn(&Array) -> Result<Array>,
    s: &Stream,
) -> Result<Array> {
    let (rank_a, rank_b) = (a.ndim(), b.ndim());
    let [n, k] = [a.shape()[rank_a - 2], a.shape()[rank_a - 1]];
    let m = b.shape()[rank_b - 1];
    let (wide_n, wide_m) = (i64::from(n), i64::from(m));
    let least = wide_n * wide_m / (wide_n + wide_m).max(1);
    let block = least.clamp(TERMS, i64::from(k)) as i32;
    let whole = k / block * block;
    let part = |array: &Array, axis: usize, from: i32, to: i32| {
        let (mut start, mut stop) = (vec![0; array.ndim()], array.shape().to_vec());
        (start[axis], stop[axis]) = (from, to);
        mlx::slice(array, &start, &stop, &vec![1; array.ndim()], s)
    };
    let left = part(a, rank_a - 1, 0, whole)?;
    let left = mlx::unflatten(&left, -1, &[whole / block, block], s)?;
    let left = gpu::moveaxis(&left, -2, -3, Device::Cpu, s)?;
    let right = part(b, rank_b - 2, 0, whole)?;
    let right = mlx::unflatten(&right, -2, &[whole / block, block], s)?;
    let mut all = sum(&product(&left, &right)?)?;
    if whole < k {
        let rest = product(
            &part(a, rank_a - 1, whole, k)?,
            &part(b, rank_b - 2, whole, k)?,
        )?;
        all = mlx::add(&all, &rest, s)?;
    }
    Ok(all)
}

/// Whether numbers of a type are worth it: those of f64 and integers are right as they are.
pub fn takes(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::C64)
}

#[cfg(test)]
mod tests {
    use super::super::tests::bytes;
    use super::*;

    fn stream() -> &'static Stream {
        mlx::init();
        Device::Cpu.stream().expect("the CPU is there")
    }

    fn floats(array: &Array) -> Vec<f32> {
        let words = bytes(array);
        let words = words.chunks(4);
        words
            .map(|word| f32::from_ne_bytes(word.try_into().expect("four bytes")))
            .collect()
    }

    fn full(x: f64, shape: &[i32]) -> Array {
        let x = constant(Number::Float(x), Dtype::F32).expect("a scalar");
        mlx::full(shape, &x, Dtype::F32, stream()).expect("an array")
    }

    fn near(got: Result<Array>, shape: &[i32], want: f64, relative: f64) {
        let got = got.expect("built");
        assert_eq!(got.shape(), shape);
        for x in floats(&got) {
            let off = (f64::from(x) - want).abs();
            assert!(off <= relative * want.abs(), "{x}, not {want}");
        }
    }

    const TENTH: f64 = 0.1f32 as f64;

    #[test]
    fn a_million_numbers_are_reduced_over_any_axes() {
        let s = stream();
        let cases = [
            (&[1_000_000][..], &[0][..], &[][..], 1e6),
            (&[1_000_000, 3], &[0], &[3], 1e6),
            (&[2, 1_000_000], &[1], &[2], 1e6),
            (&[700, 3, 1_001], &[0, 2], &[3], 700_700.0),
        ];
        for (shape, axes, left, count) in cases {
            let x = full(0.1, shape);
            near(sum(&x, axes, false, s), left, count * TENTH, 1e-6);
            near(mean(&x, axes, false, s), left, TENTH, 1e-6);
            near(
                logsumexp(&x, axes, false, s),
                left,
                count.ln() + TENTH,
                1e-6,
            );
            // Each of the equal products rounds the same way, in whatever order they are multiplied.
            let factor = f64::from(1.000_001f32);
            let product = factor.powf(count);
            near(
                prod(&full(factor, shape), axes, false, s),
                left,
                product,
                1e-3,
            );
            let kept: Vec<i32> = (0..shape.len() as i32)
                .map(|axis| match axes.contains(&axis) {
                    true => 1,
                    false => shape[axis as usize],
                })
                .collect();
            near(sum(&x, axes, true, s), &kept, count * TENTH, 1e-6);
        }
    }

    #[test]
    fn variances_far_from_zero_are_right() {
        let s = stream();
        let numbers = mlx::arange(0.0, 1_025_000.0, 1.0, Dtype::S32, s).expect("numbers");
        let length = constant(Number::Int(41), Dtype::S32).expect("a scalar");
        let numbers = mlx::remainder(&numbers, &length, s).expect("below 41");
        let numbers = mlx::astype(&numbers, Dtype::F32, s).expect("as floats");
        let numbers = mlx::add(&numbers, &full(999_980.0, &[]), s).expect("far from 0");
        near(mean(&numbers, &[0], false, s), &[], 1e6, 1e-6);
        near(var(&numbers, &[0], false, 0, s), &[], 140.0, 1e-3);
        near(var(&numbers, &[0], true, 1, s), &[1], 140.0, 1e-3);
    }

    #[test]
    fn infinities_have_a_logarithm_of_their_sum() {
        let s = stream();
        let row = |x: f64| logsumexp(&full(x, &[3]), &[0], false, s);
        assert_eq!(
            floats(&row(f64::NEG_INFINITY).expect("built")),
            [f32::NEG_INFINITY]
        );
        assert_eq!(floats(&row(f64::INFINITY).expect("built")), [f32::INFINITY]);
    }

    fn cumsum(a: &Array, axis: i32, reverse: bool, inclusive: bool, s: &Stream) -> Result<Array> {
        mlx::cumsum(a, axis, reverse, inclusive, None, s)
    }

    #[test]
    fn scans_do_not_drift() {
        let s = stream();
        for (shape, axis) in [(&[200_001][..], 0), (&[200_001, 3], 0), (&[2, 200_001], 1)] {
            for (reverse, inclusive) in [(false, true), (true, true), (false, false), (true, false)]
            {
                let x = full(0.1, shape);
                let how: (Scan, Join, f64) = (cumsum, mlx::add, 0.0);
                let sums = scan(&x, axis, reverse, inclusive, how, s).expect("built");
                assert_eq!(sums.shape(), shape);
                let inner: i32 = shape[axis as usize + 1..].iter().product();
                for (n, got) in floats(&sums).iter().enumerate() {
                    let i = n / inner as usize % 200_001;
                    let before = if reverse { 200_000 - i } else { i };
                    let want = (before + usize::from(inclusive)) as f64 * TENTH;
                    let off = (f64::from(*got) - want).abs();
                    assert!(
                        off <= 1e-6 * want,
                        "{shape:?} {reverse} {inclusive} at {n}: {got}, not {want}"
                    );
                }
            }
        }
        let none: (Scan, Join, f64) = (mlx::logcumsumexp, mlx::logaddexp, f64::NEG_INFINITY);
        let sums = scan(&full(0.0, &[100_000]), 0, false, true, none, s).expect("built");
        let last = floats(&sums)[99_999];
        assert!((f64::from(last) - 100_000f64.ln()).abs() < 1e-4, "{last}");
    }

    #[test]
    fn products_of_many_terms_are_added_up_in_blocks() {
        let s = stream();
        let k = 300_001;
        let product = |a: &Array, b: &Array| mlx::matmul(a, b, s);
        let sum = |parts: &Array| sum(parts, &[parts.ndim() as i32 - 3], false, s);
        let cases: [(&[i32], &[i32], &[i32]); 3] = [
            (&[2, k], &[k, 3], &[2, 3]),
            (&[1, k], &[k, 1], &[1, 1]),
            (&[4, 2, k], &[k, 3], &[4, 2, 3]),
        ];
        for (a, b, shape) in cases {
            let got = matmul(&full(0.1, a), &full(1.0, b), product, sum, s);
            near(got, shape, f64::from(k) * TENTH, 5e-6);
        }
    }
}
