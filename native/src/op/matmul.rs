//! Matrix products and what is made of them: which of MLX, BLAS in f32, and the kernel of our own multiplies. Products
//! of integers are in integer_matmul.rs, those of many operands in einsum.rs. Called by [`Op::apply`] for operations
//! of [`Class::Product`](super::Class::Product).

use super::creation::constant;
use super::table::{family, others};
use super::{
    blocks, cast, check, einsum, gpu, indexing, integer_matmul, one, reduce, shape, Inputs, Number,
    Op, Outputs,
};
use crate::base::{Device, Dtype, Error, Result};
use crate::cpu;
use crate::mlx::{self, Stream};
use mlx_rs::Array;

family! { Product, takes(2):
    // Inputs: a, b.
    Matmul,
    /// Inputs: c, a, b; alpha·(a·b) + beta·c.
    Addmm { alpha: f32, beta: f32 } => takes(3),
    Tensordot { axes_a: Vec<i32>, axes_b: Vec<i32> },
    /// Inputs: any number of arrays.
    Einsum { subscripts: String } => takes(0).more(),
    Inner,
    Outer,
    Kron,
    Vecdot { axis: i32 },
    /// Inputs: a, b, lhs_indices or nil, rhs_indices or nil.
    GatherMm { sorted: bool } => optional(2),
    Cross { axis: i32 },
}

/// Builds an operation of the class.
pub fn apply(op: &Op, inputs: &Inputs, device: Device, s: &Stream) -> Result<Outputs> {
    match op {
        Op::Matmul => inputs.binary(s, |a, b, s| matmul(a, b, device, s)),
        Op::Addmm { alpha, beta } => {
            inputs.ternary(s, |a, b, c, s| addmm(a, b, c, *alpha, *beta, device, s))
        }
        Op::Tensordot { axes_a, axes_b } => {
            inputs.binary(s, |a, b, s| tensordot(a, b, axes_a, axes_b, device, s))
        }
        Op::Einsum { subscripts } => {
            let ([], operands) = inputs.and_more()?;
            einsum::einsum(subscripts, &operands, device, s).map(one)
        }
        Op::Inner => inputs.binary(s, |a, b, s| inner(a, b, device, s)),
        Op::Outer => inputs.binary(s, mlx::outer),
        Op::Kron => inputs.binary(s, mlx::kron),
        Op::Vecdot { axis } => inputs.binary(s, |a, b, s| vecdot(a, b, *axis, device, s)),
        Op::GatherMm { sorted } => {
            let ([a, b], [lhs, rhs]) = inputs.with_optional()?;
            gather_mm(a, b, lhs, rhs, *sorted, device, s).map(one)
        }
        Op::Cross { axis } => inputs.binary(s, |a, b, s| cross(a, b, *axis, s)),
        others!(Product) => Err(super::no_case(op)),
    }
}

/// Multiply-adds from which a 16-bit product that no kernel here takes is quicker through BLAS in f32, casts included
/// (`EMLX_KERNELS=mlx mix run bench/half_products.exs`: 17 µs both ways at 32 × 32 × 32, 112 against 24 at 64 × 64 × 64).
const HALF_PRODUCT_BREAK_EVEN: u64 = 32_768;

pub fn work(a: &Array, b: &Array) -> u64 {
    let rows = |array: &Array| match array.shape().last() {
        Some(0) | None => 1,
        Some(k) => array.size() as u64 / *k as u64,
    };
    let k = a.shape().last().copied().unwrap_or(1) as u64;
    let columns = b.shape().last().copied().unwrap_or(1) as u64;
    rows(a).saturating_mul(k).saturating_mul(columns)
}

/// 16-bit operands of a large product on the CPU, as f32; with the type to cast the product back to.
pub fn widened(
    operands: &[&Array],
    work: u64,
    device: Device,
    s: &Stream,
) -> Result<Option<(Vec<Array>, Dtype)>> {
    let first = mlx::dtype(operands[0]);
    let same = operands.iter().all(|array| mlx::dtype(array) == first);
    if device != Device::Cpu || !same || !first.is_half() || work < HALF_PRODUCT_BREAK_EVEN {
        return Ok(None);
    }
    let wide = operands
        .iter()
        .map(|array| mlx::astype(array, Dtype::F32, s))
        .collect::<Result<Vec<_>>>()?;
    Ok(Some((wide, first)))
}

pub fn is_integral(array: &Array) -> bool {
    let dtype = mlx::dtype(array);
    dtype.is_integer() || dtype == Dtype::Bool
}

pub fn matmul(a: &Array, b: &Array, device: Device, s: &Stream) -> Result<Array> {
    if is_integral(a) && is_integral(b) {
        return integer_matmul::integer_matmul(a, b, device, s);
    }
    if is_long(a, b, device) {
        let product = of_matrices(a, b, s, |a, b| long_matmul(a, b, device, s).map(Some))?;
        return product.ok_or_else(|| Error::invalid("there is no product"));
    }
    short_matmul(a, b, device, s)
}

fn short_matmul(a: &Array, b: &Array, device: Device, s: &Stream) -> Result<Array> {
    if is_own(a, b, device) {
        let is_small = work(a, b) < OWN_PRODUCT_BREAK_EVEN;
        if is_small {
            if let Some(product) = product_at_once(a, b, s)? {
                return Ok(product);
            }
        }
        // MLX has no kernel for products of 16 bits but a plain loop.
        let shape = match is_small && !mlx::dtype(a).is_half() {
            true => None,
            false => product_shape(a, b),
        };
        if let Some(shape) = shape {
            return own_product(a, b, &shape, cpu::product, s);
        }
    }
    match widened(&[a, b], work(a, b), device, s)? {
        Some((wide, dtype)) => mlx::astype(&mlx::matmul(&wide[0], &wide[1], s)?, dtype, s),
        None => mlx::matmul(a, b, s),
    }
}

/// A product by a kernel here.
pub fn own_product(
    a: &Array,
    b: &Array,
    shape: &[i32],
    product: fn(&Array, &Array, &[i32], &Stream) -> Result<Array>,
    s: &Stream,
) -> Result<Array> {
    if b.ndim() > 2 || a.ndim() == 2 {
        return product(a, b, shape, s);
    }
    // One matrix for all rows: as one product.
    let (terms, columns) = (b.shape()[0], b.shape()[1]);
    let rows = mlx::reshape(a, &[-1, terms], s)?;
    let flat = [rows.shape()[0], columns];
    mlx::reshape(&product(&rows, b, &flat, s)?, shape, s)
}

/// Terms of a product from which BLAS, which may add them up in a row, is not asked for all of them at once.
const LONG_PRODUCT: i32 = 2048;

/// Whether a product of floats on the CPU is one of so many terms that these are added up in blocks.
fn is_long(a: &Array, b: &Array, device: Device) -> bool {
    let is_float = |array: &Array| {
        let dtype = mlx::dtype(array);
        dtype.is_half() || blocks::takes(dtype)
    };
    let is_off = cpu::are_built() && !cpu::are_there();
    let terms = a.shape().last().copied().unwrap_or(0);
    // The terms of a vector, or of a matrix's columns.
    let below = b.shape().iter().nth_back(1).or(b.shape().last());
    device == Device::Cpu
        && !is_off
        && terms > LONG_PRODUCT
        && below == Some(&terms)
        && a.size() > 0
        && b.size() > 0
        && is_float(a)
        && is_float(b)
}

/// The product of arrays of one axis or more as that of matrices, if there is one.
fn of_matrices(
    a: &Array,
    b: &Array,
    s: &Stream,
    product: impl FnOnce(&Array, &Array) -> Result<Option<Array>>,
) -> Result<Option<Array>> {
    let mut dropped = Vec::new();
    let (mut left, mut right) = (mlx::share(a)?, mlx::share(b)?);
    if b.ndim() == 1 {
        right = mlx::expand_dims(b, &[1], s)?;
        dropped.push(-1);
    }
    if a.ndim() == 1 {
        left = mlx::expand_dims(a, &[0], s)?;
        dropped.push(-2);
    }
    let Some(product) = product(&left, &right)? else {
        return Ok(None);
    };
    match dropped[..] {
        [] => Ok(Some(product)),
        _ => mlx::squeeze(&product, &dropped, s).map(Some),
    }
}

/// A product whose terms are added up in blocks, by the kernel here or composed.
fn long_matmul(a: &Array, b: &Array, device: Device, s: &Stream) -> Result<Array> {
    let (a, b) = cast::promoted(a, b, s)?;
    if cpu::takes(device, &a) {
        if let Some(shape) = product_shape(&a, &b) {
            return own_product(&a, &b, &shape, cpu::product, s);
        }
    }
    let dtype = mlx::dtype(&a);
    let wide = if dtype.is_half() { Dtype::F32 } else { dtype };
    let (a, b) = (mlx::astype(&a, wide, s)?, mlx::astype(&b, wide, s)?);
    let product = |a: &Array, b: &Array| mlx::matmul(a, b, s);
    let sum = |parts: &Array| {
        let axis = parts.ndim() as i32 - 3;
        reduce::sum(parts, &[axis], false, device, s)
    };
    mlx::astype(&blocks::matmul(&a, &b, product, sum, s)?, dtype, s)
}

/// Multiply-adds from which a product of f32 is the kernel's here, and not BLAS's (`bench/cpu_kernels.exs`).
const OWN_PRODUCT_BREAK_EVEN: u64 = 64 * 64 * 64;

/// Whether the kernel here takes such operands and is quick with them.
fn is_own(a: &Array, b: &Array, device: Device) -> bool {
    cpu::takes(device, a) && cpu::has_vectors() && mlx::dtype(a) == mlx::dtype(b)
}

/// A small product of computed operands of one axis or more; else None.
fn product_at_once(a: &Array, b: &Array, s: &Stream) -> Result<Option<Array>> {
    if a.ndim() == 0 || b.ndim() == 0 {
        return Ok(None);
    }
    of_matrices(a, b, s, |a, b| match product_shape(a, b) {
        Some(shape) => cpu::product_at_once(a, b, &shape, s),
        None => Ok(None),
    })
}

/// The shape of a product of arrays of two axes and more that are not empty.
pub fn product_shape(a: &Array, b: &Array) -> Option<Vec<i32>> {
    let (left, right) = (a.shape(), b.shape());
    let (rank_a, rank_b) = (left.len(), right.len());
    if rank_a < 2 || rank_b < 2 || a.size() == 0 || b.size() == 0 {
        return None;
    }
    let ([rows, terms], [below, columns]) = (
        [left[rank_a - 2], left[rank_a - 1]],
        [right[rank_b - 2], right[rank_b - 1]],
    );
    if terms != below {
        return None;
    }
    let mut shape = shape::broadcast_shape(&left[..rank_a - 2], &right[..rank_b - 2])?;
    shape.extend([rows, columns]);
    Some(shape)
}

pub fn addmm(
    c: &Array,
    a: &Array,
    b: &Array,
    alpha: f32,
    beta: f32,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    if a.size() == 0 || b.size() == 0 {
        // MLX takes c to lie in rows where there is nothing to multiply.
        let product = mlx::matmul(a, b, s)?;
        let beta = constant(Number::Float(beta.into()), mlx::dtype(&product))?;
        return mlx::add(&product, &mlx::multiply(c, &beta, s)?, s);
    }
    if is_long(a, b, device) {
        let (a, b) = cast::promoted(a, b, s)?;
        let dtype = cast::promoted_type(mlx::dtype(&a), mlx::dtype(c), s)?;
        let wide = if dtype.is_half() { Dtype::F32 } else { dtype };
        let wider = |array: &Array| mlx::astype(array, wide, s);
        let scaled = |array: &Array, factor: f32| {
            let factor = constant(Number::Float(factor.into()), wide)?;
            mlx::multiply(array, &factor, s)
        };
        let product = matmul(&wider(&a)?, &wider(&b)?, device, s)?;
        let sum = mlx::add(&scaled(&product, alpha)?, &scaled(&wider(c)?, beta)?, s)?;
        return mlx::astype(&sum, dtype, s);
    }
    match widened(&[a, b, c], work(a, b), device, s)? {
        Some((wide, dtype)) => {
            let sum = mlx::addmm(&wide[2], &wide[0], &wide[1], alpha, beta, s)?;
            mlx::astype(&sum, dtype, s)
        }
        None => mlx::addmm(c, a, b, alpha, beta, s),
    }
}

/// The contracted axes moved together and flattened, so that one matrix product does it.
pub fn tensordot(
    a: &Array,
    b: &Array,
    axes_a: &[i32],
    axes_b: &[i32],
    device: Device,
    s: &Stream,
) -> Result<Array> {
    if axes_a.len() != axes_b.len() {
        return Err(Error::invalid(format!(
            "axes {axes_a:?} and {axes_b:?} differ in number"
        )));
    }
    let normal = |array: &Array, axes: &[i32]| -> Result<Vec<i32>> {
        axes.iter()
            .map(|axis| check::axis(array, *axis).map(|axis| axis as i32))
            .collect()
    };
    let (axes_a, axes_b) = (normal(a, axes_a)?, normal(b, axes_b)?);
    let free = |array: &Array, axes: &[i32]| -> Vec<i32> {
        (0..array.ndim() as i32)
            .filter(|axis| !axes.contains(axis))
            .collect()
    };
    let (free_a, free_b) = (free(a, &axes_a), free(b, &axes_b));
    let sizes = |array: &Array, axes: &[i32]| -> Vec<i32> {
        axes.iter()
            .map(|axis| array.shape()[*axis as usize])
            .collect()
    };
    if sizes(a, &axes_a) != sizes(b, &axes_b) {
        return Err(Error::invalid(format!(
            "axes {axes_a:?} of {:?} and {axes_b:?} of {:?} differ in size",
            a.shape(),
            b.shape()
        )));
    }
    let k = check::product(&sizes(a, &axes_a))?;
    let m = check::product(&sizes(a, &free_a))?;
    let n = check::product(&sizes(b, &free_b))?;
    let left = mlx::transpose(a, &[free_a.clone(), axes_a].concat(), s)?;
    let right = mlx::transpose(b, &[axes_b, free_b.clone()].concat(), s)?;
    let product = matmul(
        &mlx::reshape(&left, &[m, k], s)?,
        &mlx::reshape(&right, &[k, n], s)?,
        device,
        s,
    )?;
    let shape = [sizes(a, &free_a), sizes(b, &free_b)].concat();
    mlx::reshape(&product, &shape, s)
}

pub fn inner(a: &Array, b: &Array, device: Device, s: &Stream) -> Result<Array> {
    if a.ndim() == 0 || b.ndim() == 0 {
        return mlx::inner(a, b, s);
    }
    tensordot(a, b, &[-1], &[-1], device, s)
}

pub fn vecdot(a: &Array, b: &Array, axis: i32, device: Device, s: &Stream) -> Result<Array> {
    let summed = check::axis(a, axis)? as i32;
    check::axis(b, axis)?;
    let dtype = cast::promoted_type(mlx::dtype(a), mlx::dtype(b), s)?;
    let is_float = dtype.is_float() || dtype == Dtype::C64;
    if device == Device::Gpu && !dtype.is_half() || !is_float || a.shape() != b.shape() {
        return mlx::vecdot(a, b, axis, s);
    }
    let wide = if dtype.is_half() { Dtype::F32 } else { dtype };
    let (mut a, b) = (mlx::astype(a, wide, s)?, mlx::astype(b, wide, s)?);
    if wide == Dtype::C64 {
        a = mlx::conjugate(&a, s)?;
    }
    let sum = reduce::sum(&mlx::multiply(&a, &b, s)?, &[summed], false, device, s)?;
    mlx::astype(&sum, dtype, s)
}

/// Matrices picked by index: indices are clamped to the matrices that are there. MLX reads wherever they point.
pub fn matrix_indices(
    a: &Array,
    b: &Array,
    lhs: Option<&Array>,
    rhs: Option<&Array>,
    s: &Stream,
) -> Result<(Option<Array>, Option<Array>)> {
    let within = |array: &Array, indices: Option<&Array>| -> Result<Option<Array>> {
        let Some(indices) = indices else {
            return Ok(None);
        };
        check::matrix(array)?;
        let count = check::product(&array.shape()[..array.ndim() - 2])?;
        check::at_least("the number of matrices", count, 1)?;
        let clamped = indexing::clamp(indices, count, count - 1, s)?;
        mlx::astype(&clamped, Dtype::U32, s).map(Some)
    };
    Ok((within(a, lhs)?, within(b, rhs)?))
}

pub fn gather_mm(
    a: &Array,
    b: &Array,
    lhs: Option<&Array>,
    rhs: Option<&Array>,
    sorted: bool,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    check::matrix(a)?;
    check::matrix(b)?;
    let (lhs, rhs) = matrix_indices(a, b, lhs, rhs, s)?;
    let single = |array: &Array| mlx::dtype(array) == Dtype::F32;
    if device == Device::Gpu || (single(a) && single(b) && !is_long(a, b, device)) {
        return gpu::gather_mm(a, b, lhs.as_ref(), rhs.as_ref(), sorted, device, s);
    }
    // MLX's CPU form computes f32 only.
    let picked = |array: &Array, indices: &Option<Array>| -> Result<Array> {
        let rank = array.ndim();
        let flat = [&[-1], &array.shape()[rank - 2..]].concat();
        match indices {
            Some(indices) => mlx::take(&mlx::reshape(array, &flat, s)?, indices, 0, s),
            None => mlx::share(array),
        }
    };
    matmul(&picked(a, &lhs)?, &picked(b, &rhs)?, device, s)
}

/// The cross product, of arrays in rows for the reason that [`shape::split`] gives: MLX splits them.
pub fn cross(a: &Array, b: &Array, axis: i32, s: &Stream) -> Result<Array> {
    check::axis(a, axis)?;
    check::axis(b, axis)?;
    let (a, b) = (mlx::contiguous(a, false, s)?, mlx::contiguous(b, false, s)?);
    mlx::cross(&a, &b, axis, s)
}
