//! Products with matrices of 8-bit integers, whose left operand is rounded to 8 bits while they are computed. Called by
//! quantized.rs.

use super::{gpu, matmul};
use crate::base::{Device, Dtype, Error, Result};
use crate::cpu;
use crate::mlx::{self, Stream};
use mlx_rs::Array;

/// A row whose numbers are all smaller becomes zeros, as in native/cpu/src/gemm8.rs.
const SMALLEST: f32 = 1.0e-30;

/// Columns, and terms of each, that are beside each other in a packed matrix.
const BESIDE: i32 = 16;
const QUAD: i32 = 4;

/// x {…, k} times the rows of w {n, k}, integers whose scales are {n}, plus bias {n}. Each row of x is rounded to
/// integers from -127 to 127, and its products are added up as integers. w may be packed, {⌈n / 16⌉, ⌈k / 4⌉, 16, 4},
/// which the CPU's kernel reads as it lies.
pub fn int8_matmul(
    x: &Array,
    w: &Array,
    scales: &Array,
    bias: Option<&Array>,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    check(x, w, scales, bias)?;
    if cpu::takes(device, x) && x.size() > 0 && w.size() > 0 {
        return cpu::int8_product(x, w, scales, bias, s);
    }
    composed(x, w, scales, bias, device, s)
}

fn check(x: &Array, w: &Array, scales: &Array, bias: Option<&Array>) -> Result<()> {
    let is_float = |array: &Array| mlx::dtype(array) == Dtype::F32 || mlx::dtype(array).is_half();
    let columns = match scales.shape() {
        [columns] => *columns,
        _ => w.shape().first().copied().unwrap_or(0),
    };
    let packed = |terms: i32| [packs(columns, BESIDE), packs(terms, QUAD), BESIDE, QUAD];
    let terms = match (x.shape().last(), w.shape()) {
        (Some(terms), [_, own]) if terms == own => *terms as usize,
        (Some(terms), shape) if shape == packed(*terms) => *terms as usize,
        _ => {
            return Err(Error::invalid(format!(
                "x is {:?}, w is {:?}, scales is {:?}: they must be {{…, k}}, {{n, k}} or packed {{⌈n / 16⌉, \
                 ⌈k / 4⌉, 16, 4}}, and {{n}}",
                x.shape(),
                w.shape(),
                scales.shape()
            )))
        }
    };
    let columns = if w.ndim() == 2 { w.shape()[0] } else { columns };
    if mlx::dtype(w) != Dtype::S8 {
        let name = mlx::dtype(w).name();
        return Err(Error::invalid(format!("w must be s8, got {name}")));
    }
    if terms > cpu::MAX_INT8_TERMS {
        return Err(Error::invalid(format!(
            "x is {:?}, w is {:?}: sums of {terms} products may not fit 32 bits, k is at most {}",
            x.shape(),
            w.shape(),
            cpu::MAX_INT8_TERMS
        )));
    }
    for (name, array) in [("x", Some(x)), ("scales", Some(scales)), ("bias", bias)] {
        let Some(array) = array else { continue };
        if !is_float(array) {
            let dtype = mlx::dtype(array).name();
            return Err(Error::invalid(format!(
                "{name} must be f32, f16 or bf16, got {dtype}"
            )));
        }
        if name != "x" && array.shape() != [columns] {
            return Err(Error::invalid(format!(
                "w is {:?}, {name} is {:?}: {name} must have one number for each row of w",
                w.shape(),
                array.shape()
            )));
        }
    }
    Ok(())
}

fn packs(count: i32, size: i32) -> i32 {
    count / size + i32::from(count % size > 0)
}

/// A packed matrix as {n, k}.
fn unpacked(w: &Array, n: i32, k: i32, device: Device, s: &Stream) -> Result<Array> {
    let [panels, quads, ..] = *w.shape() else {
        return Err(Error::invalid("a packed matrix has four axes"));
    };
    let rows = gpu::transpose(w, &[0, 2, 1, 3], device, s)?;
    let whole = mlx::reshape(&rows, &[panels * BESIDE, quads * QUAD], s)?;
    mlx::slice(&whole, &[0, 0], &[n, k], &[1, 1], s)
}

/// The same by operations of MLX, in f32.
fn composed(
    x: &Array,
    w: &Array,
    scales: &Array,
    bias: Option<&Array>,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    let number = |x: f32| mlx::from_bytes(&x.to_ne_bytes(), &[], Dtype::F32);
    let wide = |array: &Array| mlx::astype(array, Dtype::F32, s);
    let single = wide(x)?;
    let columns = scales.shape()[0];
    let product = match x.shape().last() {
        // Rows without numbers have no largest one.
        None | Some(0) => {
            let mut shape = x.shape().to_vec();
            shape.pop();
            shape.push(columns);
            mlx::zeros(&shape, Dtype::F32, s)?
        }
        _ => {
            let last = [x.ndim() as i32 - 1];
            let most = mlx::max(&mlx::abs(&single, s)?, &last, true, s)?;
            let factor = mlx::divide(&number(127.0)?, &most, s)?;
            let is_tiny = mlx::less(&most, &number(SMALLEST)?, s)?;
            let factor = mlx::where_(&is_tiny, &number(0.0)?, &factor, s)?;
            // NaN of a number that is not finite, which makes NaN of the row's products.
            let integers = mlx::round(&mlx::multiply(&single, &factor, s)?, 0, s)?;
            let w = match (w.ndim(), x.shape().last()) {
                (4, Some(k)) => unpacked(w, columns, *k, device, s)?,
                _ => mlx::share(w)?,
            };
            let w = gpu::transpose(&wide(&w)?, &[1, 0], device, s)?;
            let sums = matmul::matmul(&integers, &w, device, s)?;
            let of_rows = mlx::divide(&most, &number(127.0)?, s)?;
            mlx::multiply(&sums, &mlx::multiply(&of_rows, &wide(scales)?, s)?, s)?
        }
    };
    let product = match bias {
        Some(bias) => mlx::add(&product, &wide(bias)?, s)?,
        None => product,
    };
    mlx::astype(&product, mlx::dtype(x), s)
}
