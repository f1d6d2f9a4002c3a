//! Products, convolutions and the fused kernels, each with what MLX lacks on one device or in one type.

use super::{blocks, check, compose, cuda, double, gpu, reduce, window, MaskMode, Number};
use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::kernels;
use crate::mlx::{self, Stream, Vector};
use mlx_rs::Array;

/// Multiply-adds from which a 16-bit product on the CPU is quicker through BLAS in f32, casts included
/// (`bench/half_products.exs`: 17 µs both ways at 32 × 32 × 32, 112 against 24 at 64 × 64 × 64).
const HALF_PRODUCT_BREAK_EVEN: u64 = 32_768;

/// Multiply-adds up to which an integer product is one broadcast multiplication and a sum, rather than up to ten products of limbs.
const INTEGER_PRODUCT_BREAK_EVEN: u64 = 4_096;

fn work(a: &Array, b: &Array) -> u64 {
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
        return integer_matmul(a, b, device, s);
    }
    if is_long(a, b, device) {
        return of_matrices(a, b, s, |a, b| long_matmul(a, b, device, s));
    }
    short_matmul(a, b, device, s)
}

fn short_matmul(a: &Array, b: &Array, device: Device, s: &Stream) -> Result<Array> {
    if let Some(shape) = own_product_shape(a, b, device) {
        return own_product(a, b, &shape, s);
    }
    match widened(&[a, b], work(a, b), device, s)? {
        Some((wide, dtype)) => mlx::astype(&mlx::matmul(&wide[0], &wide[1], s)?, dtype, s),
        None => mlx::matmul(a, b, s),
    }
}

fn own_product(a: &Array, b: &Array, shape: &[i32], s: &Stream) -> Result<Array> {
    if b.ndim() > 2 || a.ndim() == 2 {
        return kernels::product(a, b, shape, s);
    }
    // One matrix for all rows: as one product.
    let (terms, columns) = (b.shape()[0], b.shape()[1]);
    let rows = mlx::reshape(a, &[-1, terms], s)?;
    let flat = [rows.shape()[0], columns];
    mlx::reshape(&kernels::product(&rows, b, &flat, s)?, shape, s)
}

/// Terms of a product from which BLAS, which may add them up in a row, is not asked for all of them at once.
const LONG_PRODUCT: i32 = 2048;

/// Whether a product of floats on the CPU is one of so many terms that these are added up in blocks.
fn is_long(a: &Array, b: &Array, device: Device) -> bool {
    let is_float = |array: &Array| {
        let dtype = mlx::dtype(array);
        dtype.is_half() || blocks::takes(dtype)
    };
    let is_off = kernels::are_built() && !kernels::are_there();
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

/// The product of arrays of one axis or more as that of matrices.
fn of_matrices(
    a: &Array,
    b: &Array,
    s: &Stream,
    product: impl FnOnce(&Array, &Array) -> Result<Array>,
) -> Result<Array> {
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
    let product = product(&left, &right)?;
    match dropped[..] {
        [] => Ok(product),
        _ => mlx::squeeze(&product, &dropped, s),
    }
}

/// A product whose terms are added up in blocks, by the kernel here or composed.
fn long_matmul(a: &Array, b: &Array, device: Device, s: &Stream) -> Result<Array> {
    let (a, b) = compose::promoted(a, b, s)?;
    if kernels::takes(device, &a) {
        if let Some(shape) = product_shape(&a, &b) {
            return own_product(&a, &b, &shape, s);
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

/// Multiply-adds from which a product is the kernel's here (`bench/cpu_kernels.exs`).
const OWN_PRODUCT_BREAK_EVEN: u64 = 64 * 64 * 64;

/// The shape of a product that the kernel here takes.
fn own_product_shape(a: &Array, b: &Array, device: Device) -> Option<Vec<i32>> {
    let fits = kernels::takes(device, a)
        && kernels::has_vectors()
        && mlx::dtype(a) == mlx::dtype(b)
        && work(a, b) >= OWN_PRODUCT_BREAK_EVEN;
    fits.then(|| product_shape(a, b)).flatten()
}

/// The shape of a product of arrays of two axes and more that are not empty.
fn product_shape(a: &Array, b: &Array) -> Option<Vec<i32>> {
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
    let mut shape = compose::broadcast_shape(&left[..rank_a - 2], &right[..rank_b - 2])?;
    shape.extend([rows, columns]);
    Some(shape)
}

/// A product with quantized weights where it has a kernel here: 4 or 8 bits, one matrix, all floats of one type.
pub fn quantized_product(
    x: &Array,
    [w, scales]: [&Array; 2],
    biases: Option<&Array>,
    group: Option<i32>,
    bits: Option<i32>,
    device: Device,
    s: &Stream,
) -> Option<Result<Array>> {
    let biases = biases?;
    let (group, bits) = (group.unwrap_or(64), bits.unwrap_or(4));
    let terms = *x.shape().last()?;
    let fits = kernels::takes(device, x)
        && kernels::has_vectors()
        && matches!(bits, 4 | 8)
        && matches!(group, 32 | 64 | 128)
        && x.size() > 0
        && w.size() > 0
        && mlx::dtype(w) == Dtype::U32
        && [scales, biases].map(mlx::dtype) == [mlx::dtype(x); 2]
        && terms % group == 0
        && w.ndim() == 2
        && i64::from(w.shape()[1]) * 32 == i64::from(terms) * i64::from(bits)
        && [scales, biases]
            .iter()
            .all(|a| a.shape() == [w.shape()[0], terms / group]);
    if !fits {
        return None;
    }
    let build = || {
        let rows = mlx::reshape(x, &[-1, terms], s)?;
        let inputs = [&rows, w, scales, biases];
        let product = kernels::quantized_product(&inputs, group as usize, bits as usize, s)?;
        let mut shape = x.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = w.shape()[0];
        }
        mlx::reshape(&product, &shape, s)
    };
    Some(build())
}

/// Products of integers, exact modulo the width of their type. On the CPU through BLAS: operands are cut into 16-bit limbs,
/// whose products summed over up to 2^20 terms are exact in f64.
fn integer_matmul(a: &Array, b: &Array, device: Device, s: &Stream) -> Result<Array> {
    let dtype = integer_result(a, b, s)?;
    let (a, b) = (mlx::astype(a, dtype, s)?, mlx::astype(b, dtype, s)?);
    let (rank_a, rank_b) = (a.ndim(), b.ndim());
    if rank_a == 0 || rank_b == 0 {
        return Err(Error::invalid("scalars have no matrix product"));
    }
    // Vectors become one row, or one column, which is dropped again below.
    let left = if rank_a == 1 {
        mlx::expand_dims(&a, &[0], s)?
    } else {
        a
    };
    let right = if rank_b == 1 {
        mlx::expand_dims(&b, &[1], s)?
    } else {
        b
    };
    let k = left.shape()[left.ndim() - 1];
    if k != right.shape()[right.ndim() - 2] {
        return Err(Error::invalid(format!(
            "the last axis of {:?} and the last but one of {:?} differ",
            left.shape(),
            right.shape()
        )));
    }
    let product = if device == Device::Gpu || work(&left, &right) < INTEGER_PRODUCT_BREAK_EVEN {
        let product = mlx::multiply(
            &mlx::expand_dims(&left, &[-1], s)?,
            &mlx::expand_dims(&right, &[-3], s)?,
            s,
        )?;
        mlx::astype(&mlx::sum(&product, &[-2], false, s)?, dtype, s)?
    } else {
        limb_matmul(&left, &right, k, dtype, s)?
    };
    let mut dropped = Vec::new();
    if rank_a == 1 {
        dropped.push(-2);
    }
    if rank_b == 1 {
        dropped.push(-1);
    }
    if dropped.is_empty() {
        Ok(product)
    } else {
        mlx::squeeze(&product, &dropped, s)
    }
}

fn integer_result(a: &Array, b: &Array, s: &Stream) -> Result<Dtype> {
    let probe = mlx::add(
        &mlx::zeros(&[], mlx::dtype(a), s)?,
        &mlx::zeros(&[], mlx::dtype(b), s)?,
        s,
    )?;
    Ok(mlx::dtype(&probe))
}

fn limb_matmul(a: &Array, b: &Array, k: i32, dtype: Dtype, s: &Stream) -> Result<Array> {
    const TERMS: i32 = 1 << 20;
    if k > TERMS {
        let parts = |array: &Array, axis| compose::split(array, &[TERMS], axis, s);
        let (left, right) = (parts(a, -1)?, parts(b, -2)?);
        let head = limb_matmul(&left[0], &right[0], TERMS, dtype, s)?;
        let tail = limb_matmul(&left[1], &right[1], k - TERMS, dtype, s)?;
        return mlx::add(&head, &tail, s);
    }
    let scalar = |value: u64| mlx::from_bytes(&value.to_ne_bytes(), &[], Dtype::U64);
    let limbs = dtype.size().div_ceil(2);
    let cut = |array: &Array| -> Result<Vec<Array>> {
        // Sign extension to 64 bits: the product's low bits do not depend on how an operand is read.
        let bits = mlx::astype(&mlx::astype(array, Dtype::S64, s)?, Dtype::U64, s)?;
        (0..limbs as u64)
            .map(|i| {
                let shifted = mlx::right_shift(&bits, &scalar(16 * i)?, s)?;
                let limb = mlx::bitwise_and(&shifted, &scalar(0xffff)?, s)?;
                mlx::astype(&limb, Dtype::F64, s)
            })
            .collect()
    };
    let (left, right) = (cut(a)?, cut(b)?);
    let mut total: Option<Array> = None;
    for (i, high) in left.iter().enumerate() {
        // Limbs further up are beyond the type's width.
        for (j, low) in right.iter().enumerate().take(limbs - i) {
            let product = mlx::matmul(high, low, s)?;
            let product = mlx::astype(&product, Dtype::U64, s)?;
            let shifted = mlx::left_shift(&product, &scalar(16 * (i + j) as u64)?, s)?;
            total = Some(match total {
                None => shifted,
                Some(sum) => mlx::add(&sum, &shifted, s)?,
            });
        }
    }
    let total = total.ok_or_else(|| Error::invalid("an integer type has at least one limb"))?;
    mlx::astype(&total, dtype, s)
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
        let beta = compose::constant(Number::Float(beta.into()), mlx::dtype(&product))?;
        return mlx::add(&product, &mlx::multiply(c, &beta, s)?, s);
    }
    if is_long(a, b, device) {
        let (a, b) = compose::promoted(a, b, s)?;
        let dtype = compose::promoted_type(mlx::dtype(&a), mlx::dtype(c), s)?;
        let wide = if dtype.is_half() { Dtype::F32 } else { dtype };
        let wider = |array: &Array| mlx::astype(array, wide, s);
        let scaled = |array: &Array, factor: f32| {
            let factor = compose::constant(Number::Float(factor.into()), wide)?;
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

#[allow(clippy::too_many_arguments)]
pub fn conv(
    a: &Array,
    weight: &Array,
    stride: &[i32],
    padding_low: &[i32],
    padding_high: &[i32],
    kernel_dilation: &[i32],
    input_dilation: &[i32],
    groups: i32,
    flip: bool,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    let space = a.ndim().saturating_sub(2);
    let positive = |name: &str, values: &[i32]| -> Result<()> {
        if values.len() != space || values.iter().any(|v| *v < 1) {
            return Err(Error::invalid(format!(
                "{name} must be {space} positive integers, one an axis of space, got {values:?}"
            )));
        }
        Ok(())
    };
    if a.ndim() < 3 {
        return Err(Error::invalid(format!(
            "the input must have a batch axis, at least one axis of space and channels, got shape {:?}",
            a.shape()
        )));
    }
    positive("stride", stride)?;
    positive("kernel_dilation", kernel_dilation)?;
    positive("input_dilation", input_dilation)?;
    for (name, padding) in [("padding_low", padding_low), ("padding_high", padding_high)] {
        if padding.len() != space {
            return Err(Error::invalid(format!(
                "{name} must have {space} entries, got {padding:?}"
            )));
        }
    }
    if groups < 1 {
        return Err(Error::invalid(format!(
            "groups must be positive, got {groups}"
        )));
    }
    let (a, weight) = match device {
        Device::Cpu => (mlx::share(a)?, mlx::share(weight)?),
        Device::Gpu => (gpu::packed(a, s)?, gpu::packed(weight, s)?),
    };
    let is_double = [&a, &weight]
        .iter()
        .any(|array| mlx::dtype(array) == Dtype::F64);
    let crops = padding_low
        .iter()
        .chain(padding_high)
        .any(|width| *width < 0);
    let dilates = input_dilation.iter().any(|step| *step > 1);
    // MLX's choice of a cuDNN kernel, once made, does not look at the dilation of the input.
    let crops_what_it_dilates = dilates && (crops || device == Device::Gpu);
    // MLX's CPU form for groups and dilation fills the border of the output, as wide as the padding, even where the output is narrower.
    let overruns = weight.ndim() == a.ndim()
        && (0..space).any(|i| {
            let size = (i64::from(a.shape()[i + 1]) - 1) * i64::from(input_dilation[i]) + 1;
            let kernel = (i64::from(weight.shape()[i + 1]) - 1) * i64::from(kernel_dilation[i]) + 1;
            let padded = size + i64::from(padding_low[i]) + i64::from(padding_high[i]);
            let stride = i64::from(stride[i]);
            let output = (padded - kernel).div_euclid(stride) + 1;
            output > 0 && i64::from(padding_low[i]) > output * stride
        });
    let (none, one) = (vec![0; space], vec![1; space]);
    let (a, padding_low, padding_high, input_dilation) =
        if is_double || crops_what_it_dilates || overruns {
            // Padded apart: MLX also crops before it dilates, and a convolution is defined the other way round.
            let whole = |widths: Vec<i32>| [vec![0], widths, vec![0]].concat();
            let between = input_dilation.iter().map(|step| step - 1).collect();
            let padded = compose::pad_interior(
                &a,
                &mlx::zeros(&[], mlx::dtype(&a), s)?,
                &whole(padding_low.to_vec()),
                &whole(padding_high.to_vec()),
                &whole(between),
                s,
            )?;
            (padded, &none[..], &none[..], &one[..])
        } else {
            (a, padding_low, padding_high, input_dilation)
        };
    if is_double {
        return double_conv(&a, &weight, stride, kernel_dilation, groups, flip, s);
    }
    mlx::conv_general(
        &a,
        &weight,
        stride,
        padding_low,
        padding_high,
        kernel_dilation,
        input_dilation,
        groups,
        flip,
        s,
    )
}

/// A convolution of f64 as matrix products of its windows: MLX computes it in f32, or not at all.
fn double_conv(
    a: &Array,
    weight: &Array,
    stride: &[i32],
    kernel_dilation: &[i32],
    groups: i32,
    flip: bool,
    s: &Stream,
) -> Result<Array> {
    let rank = a.ndim();
    let (last, space) = (rank - 1, rank - 2);
    let fits = weight.ndim() == rank
        && weight.shape()[0] % groups == 0
        && weight.shape()[last] * groups == a.shape()[last];
    let reaches = |i: usize| (weight.shape()[i] - 1) * kernel_dilation[i - 1] < a.shape()[i];
    if !fits || weight.size() == 0 || !(1..=space).all(reaches) {
        return Err(Error::invalid(format!(
            "a weight of shape {:?} in {groups} groups does not fit the padded input {:?}",
            weight.shape(),
            a.shape()
        )));
    }
    let mut kernel = mlx::astype(weight, Dtype::F64, s)?;
    if flip {
        let axes: Vec<i32> = (1..=space as i32).collect();
        kernel = mlx::flip(&kernel, &axes, s)?;
    }
    let a = mlx::astype(a, Dtype::F64, s)?;
    let (inside, outside) = (weight.shape()[last], weight.shape()[0] / groups);
    let window = [&[1], &weight.shape()[1..]].concat();
    let strides = [&[1], stride, &[1]].concat();
    let dilation = [&[1], kernel_dilation, &[1]].concat();
    let terms: i32 = window.iter().product();
    let part = |array: &Array, axis: usize, from: i32, to: i32| {
        let mut start = vec![0; rank];
        let mut stop = array.shape().to_vec();
        (start[axis], stop[axis]) = (from, to);
        mlx::slice(array, &start, &stop, &vec![1; rank], s)
    };
    let mut products = Vec::with_capacity(groups as usize);
    for group in 0..groups {
        let input = part(&a, last, group * inside, (group + 1) * inside)?;
        let rows = part(&kernel, 0, group * outside, (group + 1) * outside)?;
        let windows = window::view(&input, &window, &strides, &dilation, s)?;
        let mut shape = windows.shape()[..=space].to_vec();
        let places = shape.iter().product();
        let columns = mlx::transpose(&mlx::reshape(&rows, &[outside, terms], s)?, &[1, 0], s)?;
        let windows = mlx::reshape(&windows, &[places, terms], s)?;
        shape.push(outside);
        products.push(mlx::reshape(
            &mlx::matmul(&windows, &columns, s)?,
            &shape,
            s,
        )?);
    }
    mlx::concatenate(&Vector::new(&products), last as i32, s)
}

/// The gradient of a convolution by its input: the strides dilate the input, the kernel is flipped.
#[allow(clippy::too_many_arguments)]
pub fn conv_transpose(
    a: &Array,
    weight: &Array,
    stride: &[i32],
    padding: &[i32],
    dilation: &[i32],
    output_padding: &[i32],
    groups: i32,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    let space = a.ndim().saturating_sub(2);
    let lists = [stride, padding, dilation, output_padding];
    if weight.ndim() != a.ndim() || space == 0 || lists.iter().any(|list| list.len() != space) {
        return Err(Error::invalid(format!(
            "stride, padding, dilation and output_padding need one entry an axis of space: \
             the input has shape {:?}, the weight {:?}",
            a.shape(),
            weight.shape()
        )));
    }
    let kernel = &weight.shape()[1..=space];
    let low: Vec<i32> = (0..space)
        .map(|i| dilation[i] * (kernel[i] - 1) - padding[i])
        .collect();
    let high: Vec<i32> = (0..space).map(|i| low[i] + output_padding[i]).collect();
    conv(
        a,
        weight,
        &vec![1; space],
        &low,
        &high,
        dilation,
        stride,
        groups,
        true,
        device,
        s,
    )
}

pub fn vecdot(a: &Array, b: &Array, axis: i32, device: Device, s: &Stream) -> Result<Array> {
    let summed = check::axis(a, axis)? as i32;
    check::axis(b, axis)?;
    let dtype = compose::promoted_type(mlx::dtype(a), mlx::dtype(b), s)?;
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
        let clamped = compose::clamp(indices, count, count - 1, s)?;
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
        return mlx::gather_mm(a, b, lhs.as_ref(), rhs.as_ref(), sorted, s);
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

/// MLX gives the conjugates of a complex matrix's eigenvectors.
pub fn eig(a: &Array, s: &Stream) -> Result<Vec<Array>> {
    of_finite(a, a, s, |a| {
        let mut parts = mlx::eig(a, s)?;
        if mlx::dtype(a) == Dtype::C64 {
            parts[1] = mlx::conjugate(&parts[1], s)?;
        }
        Ok(parts)
    })
}

pub fn eigvals(a: &Array, s: &Stream) -> Result<Vec<Array>> {
    of_finite(a, a, s, |a| Ok(vec![mlx::eigvals(a, s)?]))
}

pub fn svd(a: &Array, compute_uv: bool, s: &Stream) -> Result<Vec<Array>> {
    of_finite(a, a, s, |a| mlx::svd(a, compute_uv, s))
}

pub fn pinv(a: &Array, s: &Stream) -> Result<Vec<Array>> {
    of_finite(a, a, s, |a| Ok(vec![mlx::pinv(a, s)?]))
}

pub fn eigh(a: &Array, upper: bool, s: &Stream) -> Result<Vec<Array>> {
    of_finite(a, &triangle(a, upper, s)?, s, |a| {
        mlx::eigh(a, uplo(upper), s)
    })
}

pub fn eigvalsh(a: &Array, upper: bool, s: &Stream) -> Result<Vec<Array>> {
    of_finite(a, &triangle(a, upper, s)?, s, |a| {
        Ok(vec![mlx::eigvalsh(a, uplo(upper), s)?])
    })
}

/// The part of a symmetric matrix that is read.
fn triangle(a: &Array, upper: bool, s: &Stream) -> Result<Array> {
    if upper {
        mlx::triu(a, 0, s)
    } else {
        mlx::tril(a, 0, s)
    }
}

fn uplo(upper: bool) -> &'static str {
    if upper {
        "U"
    } else {
        "L"
    }
}

/// Factors of the matrices that have no NaN and no infinity in `seen`, and NaN for the others. On those LAPACK ends the process or never
/// comes back, and with it the stream.
fn of_finite(
    a: &Array,
    seen: &Array,
    s: &Stream,
    factors: impl FnOnce(&Array) -> Result<Vec<Array>>,
) -> Result<Vec<Array>> {
    let ok = mlx::all(&mlx::isfinite(seen, s)?, &[-2, -1], true, s)?;
    let zero = mlx::zeros(&[], mlx::dtype(a), s)?;
    let finite = mlx::where_(&ok, a, &zero, s)?;
    let of_vectors = mlx::squeeze(&ok, &[-1], s)?;
    factors(&finite)?
        .iter()
        .map(|factor| {
            // Eigenvalues and singular values have an axis less.
            let ok = if factor.ndim() < a.ndim() {
                &of_vectors
            } else {
                &ok
            };
            let nan = compose::constant(super::Number::Float(f64::NAN), mlx::dtype(factor))?;
            mlx::where_(ok, factor, &nan, s)
        })
        .collect()
}

/// Factors and what is made of them, for a single matrix as for a batch of one. MLX says of a single matrix's factors that they have as many
/// elements as bytes and lie without gaps: with one row or column it would write beyond the memory of what it computes of them.
fn in_batch(
    a: &Array,
    s: &Stream,
    factors: impl FnOnce(&Array) -> Result<Vec<Array>>,
) -> Result<Vec<Array>> {
    if a.ndim() != 2 {
        return factors(a);
    }
    let parts = factors(&mlx::expand_dims(a, &[0], s)?)?;
    let single = parts.iter().map(|part| mlx::squeeze(part, &[0], s));
    single.collect()
}

pub fn lu(a: &Array, s: &Stream) -> Result<Vec<Array>> {
    in_batch(a, s, |a| mlx::lu(a, s))
}

/// The factors are copied, for what else is computed of them (see [`in_batch`]).
pub fn lu_factor(a: &Array, s: &Stream) -> Result<Vec<Array>> {
    let mut parts = mlx::lu_factor(a, s)?;
    if let Some(factors) = parts.first_mut() {
        *factors = mlx::contiguous(factors, false, s)?;
    }
    Ok(parts)
}

pub fn slogdet(a: &Array, s: &Stream) -> Result<Vec<Array>> {
    in_batch(a, s, |a| mlx::slogdet(a, s))
}

pub fn det(a: &Array, s: &Stream) -> Result<Vec<Array>> {
    in_batch(a, s, |a| Ok(vec![double::det(a, s)?]))
}

pub fn solve(a: &Array, b: &Array, s: &Stream) -> Result<Array> {
    if a.ndim() != 2 || b.ndim() > 2 {
        return mlx::solve(a, b, s);
    }
    let axes: &[i32] = if b.ndim() == 1 { &[0, -1] } else { &[0] };
    let (a, b) = (mlx::expand_dims(a, &[0], s)?, mlx::expand_dims(b, axes, s)?);
    mlx::squeeze(&mlx::solve(&a, &b, s)?, axes, s)
}

/// a·x = b: a is {…, n, n}, b {…, n} or {…, n, m}.
pub fn check_system(a: &Array, b: &Array) -> Result<()> {
    check::square(a)?;
    let n = a.shape()[a.ndim() - 1];
    let rows = match (a.ndim(), b.ndim()) {
        (_, 0) => None,
        (rank, other) if rank == other + 1 => b.shape().last(),
        (_, rank) if rank >= 2 => b.shape().get(rank - 2),
        _ => b.shape().last(),
    };
    if rows != Some(&n) {
        return Err(Error::invalid(format!(
            "a is {:?}, b is {:?}: b must have {n} rows",
            a.shape(),
            b.shape()
        )));
    }
    Ok(())
}

/// x with a·x = b for a triangular matrix, in f64: MLX multiplies by the inverse, which in f32 loses digits that substitution
/// keeps. Complex numbers a + bi, which MLX does not solve for, as the real matrix [[a, -b], [b, a]].
pub fn solve_triangular(a: &Array, b: &Array, upper: bool, s: &Stream) -> Result<Array> {
    let dtypes = (mlx::dtype(a), mlx::dtype(b));
    let wide = |array: &Array| mlx::astype(array, Dtype::F64, s);
    if dtypes.0 != Dtype::C64 && dtypes.1 != Dtype::C64 {
        let x = mlx::solve_triangular(&wide(a)?, &wide(b)?, upper, s)?;
        let either = |dtype| dtypes.0 == dtype || dtypes.1 == dtype;
        let dtype = if either(Dtype::F64) {
            Dtype::F64
        } else if dtypes.0 == dtypes.1 && dtypes.0.is_half() {
            dtypes.0
        } else {
            Dtype::F32
        };
        return mlx::astype(&x, dtype, s);
    }
    let parts = |array: &Array| -> Result<(Array, Array)> {
        let complex = mlx::astype(array, Dtype::C64, s)?;
        Ok((
            wide(&mlx::real(&complex, s)?)?,
            wide(&mlx::imag(&complex, s)?)?,
        ))
    };
    let join = |arrays: [&Array; 2], axis| mlx::concatenate(&Vector::new(arrays), axis, s);
    let (re, im) = parts(a)?;
    let top = join([&re, &mlx::negative(&im, s)?], -1)?;
    let bottom = join([&im, &re], -1)?;
    let (right_re, right_im) = parts(b)?;
    let is_vector = b.ndim() + 1 == a.ndim();
    let axis = if is_vector { -1 } else { -2 };
    let right = join([&right_re, &right_im], axis)?;
    let x = solve(&join([&top, &bottom], -2)?, &right, s)?;
    let n = a.shape()[a.ndim() - 1];
    let halves = compose::split(&x, &[n], axis, s)?;
    let single = |array: &Array| mlx::astype(array, Dtype::F32, s);
    let i = mlx::from_bytes(
        &[0.0f32, 1.0].map(f32::to_ne_bytes).concat(),
        &[],
        Dtype::C64,
    )?;
    mlx::add(
        &single(&halves[0])?,
        &mlx::multiply(&single(&halves[1])?, &i, s)?,
        s,
    )
}

// ---- fused kernels ----

/// MLX's norms and rotation compute in f32, which for f64 is not the formula's answer.
fn check_fused_type(x: &Array) -> Result<()> {
    let dtype = mlx::dtype(x);
    if dtype.is_half() || dtype == Dtype::F32 {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "takes f32, f16 or bf16, got {}; compose it from operations for other types",
        dtype.name()
    )))
}

fn check_last_axis(x: &Array, name: &str, vector: Option<&Array>) -> Result<()> {
    let size = x.shape().last().copied();
    match vector {
        Some(vector) if vector.ndim() != 1 || vector.shape().last().copied() != size => {
            Err(Error::invalid(format!(
                "x is {:?}, {name} is {:?}: {name} must have one axis, as long as the last of x",
                x.shape(),
                vector.shape()
            )))
        }
        _ => Ok(()),
    }
}

pub fn softmax(
    a: &Array,
    axes: &[i32],
    precise: bool,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    let rank = a.ndim() as i32;
    if !mlx::dtype(a).is_float() && mlx::dtype(a) != Dtype::C64 {
        return softmax(&mlx::astype(a, Dtype::F32, s)?, axes, precise, device, s);
    }
    let adds_up = mlx::dtype(a).is_half() || blocks::takes(mlx::dtype(a));
    let is_off = device == Device::Cpu && kernels::are_built() && !kernels::are_there();
    if !adds_up || is_off || a.size() == 0 || axes.is_empty() {
        return double::softmax(a, axes, precise, s);
    }
    let axes: Vec<i32> = axes.iter().map(|axis| axis.rem_euclid(rank)).collect();
    let is_last = axes == [rank - 1];
    if device == Device::Gpu && is_last {
        return mlx::softmax(a, &axes, precise, s);
    }
    if !kernels::takes(device, a) {
        return softmax_of_sums(a, &axes, device, s);
    }
    if is_last {
        return kernels::softmax(a, s);
    }
    // The axes moved to the end, as one, and back.
    let kept: Vec<i32> = (0..rank).filter(|axis| !axes.contains(axis)).collect();
    let order = [kept.as_slice(), &axes].concat();
    let front = mlx::transpose(a, &order, s)?;
    let lead = &front.shape()[..kept.len()];
    let rows = mlx::reshape(&front, &[lead, &[-1]].concat(), s)?;
    let softmax = mlx::reshape(&kernels::softmax(&rows, s)?, front.shape(), s)?;
    let back: Vec<i32> = (0..rank)
        .filter_map(|axis| order.iter().position(|from| *from == axis))
        .map(|place| place as i32)
        .collect();
    mlx::transpose(&softmax, &back, s)
}

fn softmax_of_sums(a: &Array, axes: &[i32], device: Device, s: &Stream) -> Result<Array> {
    let dtype = mlx::dtype(a);
    let wide = if dtype.is_half() { Dtype::F32 } else { dtype };
    let a = mlx::astype(a, wide, s)?;
    let top = mlx::max(&a, axes, true, s)?;
    let exps = mlx::exp(&mlx::subtract(&a, &top, s)?, s)?;
    let sum = reduce::sum(&exps, axes, true, device, s)?;
    mlx::astype(&mlx::divide(&exps, &sum, s)?, dtype, s)
}

/// Whether the vectors of a norm have the type of what is normalised, so that its kernel reads one type.
fn same_type(x: &Array, vectors: &[Option<&Array>]) -> bool {
    let dtype = mlx::dtype(x);
    vectors
        .iter()
        .flatten()
        .all(|vector| mlx::dtype(vector) == dtype)
}

pub fn rms_norm(
    x: &Array,
    weight: Option<&Array>,
    eps: f64,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    check_fused_type(x)?;
    check_last_axis(x, "weight", weight)?;
    if kernels::takes(device, x) && x.ndim() > 0 && same_type(x, &[weight]) {
        return kernels::rms_norm(x, weight, eps as f32, s);
    }
    if device == Device::Gpu || x.size() == 0 || x.ndim() == 0 {
        return mlx::rms_norm(x, weight, eps as f32, s);
    }
    let wide = mlx::astype(x, Dtype::F32, s)?;
    let square = mean_of_rows(&mlx::square(&wide, s)?, device, s)?;
    let normal = mlx::multiply(&wide, &inverse_root(&square, eps, s)?, s)?;
    weighted(normal, x, weight, None, s)
}

/// Along the last axis, which is kept.
fn mean_of_rows(x: &Array, device: Device, s: &Stream) -> Result<Array> {
    let last = [x.ndim() as i32 - 1];
    reduce::reduce(kernels::Reduction::Mean, x, &last, true, device, s)
}

fn inverse_root(square: &Array, eps: f64, s: &Stream) -> Result<Array> {
    let eps = mlx::from_bytes(&(eps as f32).to_ne_bytes(), &[], Dtype::F32)?;
    mlx::rsqrt(&mlx::add(square, &eps, s)?, s)
}

/// What is normal, in f32, times weight plus bias, in the type that they and x have together.
fn weighted(
    mut normal: Array,
    x: &Array,
    weight: Option<&Array>,
    bias: Option<&Array>,
    s: &Stream,
) -> Result<Array> {
    if let Some(weight) = weight {
        normal = mlx::multiply(&normal, weight, s)?;
    }
    if let Some(bias) = bias {
        normal = mlx::add(&normal, bias, s)?;
    }
    match same_type(x, &[weight, bias]) {
        true => mlx::astype(&normal, mlx::dtype(x), s),
        false => Ok(normal),
    }
}

pub fn layer_norm(
    x: &Array,
    weight: Option<&Array>,
    bias: Option<&Array>,
    eps: f64,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    check_fused_type(x)?;
    check_last_axis(x, "weight", weight)?;
    check_last_axis(x, "bias", bias)?;
    if device == Device::Gpu {
        if let Some(normal) = cuda::layer_norm(x, weight, bias, eps as f32, s)? {
            return Ok(normal);
        }
        return mlx::layer_norm(x, weight, bias, eps as f32, s);
    }
    if kernels::takes(device, x) && x.ndim() > 0 && same_type(x, &[weight, bias]) {
        return kernels::layer_norm(x, weight, bias, eps as f32, s);
    }
    // What MLX composes on the CPU leaves one of its nodes on the calling thread's own stream, which no other thread may
    // evaluate.
    if x.ndim() == 0 {
        return Err(Error::invalid(
            "x must have at least one axis, got a scalar",
        ));
    }
    let wide = mlx::astype(x, Dtype::F32, s)?;
    if x.size() == 0 {
        return weighted(wide, x, weight, bias, s);
    }
    let centred = mlx::subtract(&wide, &mean_of_rows(&wide, device, s)?, s)?;
    // What the mean has lost in rounding.
    let centred = mlx::subtract(&centred, &mean_of_rows(&centred, device, s)?, s)?;
    let variance = mean_of_rows(&mlx::square(&centred, s)?, device, s)?;
    let normal = mlx::multiply(&centred, &inverse_root(&variance, eps, s)?, s)?;
    weighted(normal, x, weight, bias, s)
}

#[allow(clippy::too_many_arguments)]
pub fn rope(
    x: &Array,
    dims: i32,
    traditional: bool,
    base: Option<f32>,
    scale: f32,
    offset: &Array,
    freqs: Option<&Array>,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    check_fused_type(x)?;
    // MLX reads these only after it has used them.
    if x.ndim() < 3 {
        return Err(Error::invalid(format!(
            "x must have at least 3 axes {{batch, …, length, size}}, got {:?}",
            x.shape()
        )));
    }
    let batch = x.shape()[0];
    let per_row = offset.ndim() == 1 && offset.shape()[0] == batch;
    if offset.ndim() > 1 || !(offset.size() == 1 || per_row) {
        return Err(Error::invalid(format!(
            "offset must be a scalar or hold one integer for each of the {batch} batch rows, got {:?}",
            offset.shape()
        )));
    }
    if device == Device::Gpu && cfg!(target_os = "linux") {
        if let (true, false) = (dims == x.shape()[x.ndim() - 1], traditional) {
            if let Some(turned) = cuda::rope(x, base, scale, offset, freqs, s)? {
                return Ok(turned);
            }
        }
        // MLX's kernel writes its result with the strides of x, which must not share elements.
        let rotate = |x: &Array, offset: &Array| {
            let rows = mlx::contiguous(x, false, s)?;
            mlx::rope(&rows, dims, traditional, base, scale, offset, freqs, s)
        };
        return gpu::rotate_in_parts(x, offset, dims, s, &rotate);
    }
    let size = x.shape()[x.ndim() - 1];
    let fits = dims >= 2 && dims % 2 == 0 && dims <= size && x.size() > 0;
    let halves = |freqs: &Array| freqs.ndim() == 1 && freqs.shape()[0] == dims / 2;
    let known = match freqs {
        Some(freqs) => base.is_none() && halves(freqs),
        None => base.is_some(),
    };
    if kernels::takes(device, x) && fits && known && mlx::dtype(offset).is_integer() {
        let rope = kernels::Rope {
            dims: dims as usize,
            traditional,
            base: base.unwrap_or(1.0),
            scale,
        };
        return kernels::rope(x, rope, offset, freqs, s);
    }
    mlx::rope(x, dims, traditional, base, scale, offset, freqs, s)
}

#[allow(clippy::too_many_arguments)]
pub fn attention(
    q: &Array,
    k: &Array,
    v: &Array,
    mask: Option<&Array>,
    sinks: Option<&Array>,
    scale: f32,
    mode: MaskMode,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    check::heads([q, k, v], "batch, heads, length, size")?;
    let (query, key, value) = (q.shape(), k.shape(), v.shape());
    for (name, array) in [("k", k), ("v", v)] {
        check::not_empty(name, array)?;
    }
    if key[1] == 0 || query[1] % key[1] != 0 {
        return Err(Error::invalid(format!(
            "q is {query:?}, k has {} heads: {} is not a multiple of {}",
            key[1], query[1], key[1]
        )));
    }
    if key[..3] != value[..3] || query[0] != key[0] || query[3] != key[3] {
        return Err(Error::invalid(format!(
            "q is {query:?}, k is {key:?}, v is {value:?}: batch must agree in all, \
             heads and length in k and v, size in q and k"
        )));
    }
    let mode = match (mode, mask) {
        (MaskMode::Array, Some(_)) => "array",
        (MaskMode::Causal, None) => "causal",
        (MaskMode::None, None) => "",
        _ => {
            return Err(Error::invalid(
                "a mask array goes with mask: :array, and only with it",
            ))
        }
    };
    if let Some(mask) = mask {
        let scores = [query[0], query[1], query[2], key[2]];
        let fits = mask.ndim() <= 4
            && mask
                .shape()
                .iter()
                .rev()
                .zip(scores.iter().rev())
                .all(|(have, want)| have == want || *have == 1);
        if !fits {
            return Err(Error::invalid(format!(
                "the mask has shape {:?}, which does not broadcast to {scores:?}",
                mask.shape()
            )));
        }
    }
    if let (Device::Gpu, Some(seen)) = (device, mask.filter(|m| mlx::dtype(m) == Dtype::Bool)) {
        return masked_attention(q, k, v, seen, sinks, scale, s);
    }
    if let Some((kind, mask)) = own_mask(q, k, v, mask, sinks, mode, device, s)? {
        return kernels::attention(q, k, v, mask.as_ref(), kind, scale, s);
    }
    // MLX has no fused form on the CPU; what it composes there multiplies 16-bit matrices without BLAS.
    let work = (q.size() as u64).saturating_mul(key[2] as u64);
    match widened(&[q, k, v], work, device, s)? {
        Some((wide, dtype)) => {
            let [q, k, v] = [&wide[0], &wide[1], &wide[2]];
            let out =
                mlx::scaled_dot_product_attention(q, k, v, scale, mode, mask, sinks, false, s)?;
            mlx::astype(&out, dtype, s)
        }
        None => mlx::scaled_dot_product_attention(q, k, v, scale, mode, mask, sinks, false, s),
    }
}

/// Whether attention has a kernel here, and then the mask as that takes it.
#[allow(clippy::too_many_arguments)]
fn own_mask(
    q: &Array,
    k: &Array,
    v: &Array,
    mask: Option<&Array>,
    sinks: Option<&Array>,
    mode: &str,
    device: Device,
    s: &Stream,
) -> Result<Option<(kernels::Mask, Option<Array>)>> {
    let dtype = mlx::dtype(q);
    let same = mlx::dtype(k) == dtype && mlx::dtype(v) == dtype;
    let filled = q.size() > 0 && v.size() > 0;
    if !kernels::takes(device, q) || !same || !filled || sinks.is_some() {
        return Ok(None);
    }
    let (queries, keys) = (q.shape()[2], k.shape()[2]);
    Ok(match mask {
        // MLX has it that queries before the first key see all.
        None if mode == "causal" => (queries <= keys).then_some((kernels::Mask::Causal, None)),
        None => Some((kernels::Mask::None, None)),
        Some(mask) => {
            let kind = match mlx::dtype(mask) {
                Dtype::Bool => kernels::Mask::Seen,
                other if other == dtype => kernels::Mask::Added,
                _ => return Ok(None),
            };
            let scores = [q.shape()[0], q.shape()[1], queries, keys];
            Some((kind, Some(mlx::broadcast_to(mask, &scores, s)?)))
        }
    })
}

/// Attention with a boolean mask on the GPU. MLX's kernels there do not agree on a query without any key: CUDA's add minus
/// infinity, which makes NaN of it. A finite number added has it see all keys equally, as on the CPU.
fn masked_attention(
    q: &Array,
    k: &Array,
    v: &Array,
    seen: &Array,
    sinks: Option<&Array>,
    scale: f32,
    s: &Stream,
) -> Result<Array> {
    let dtype = mlx::dtype(q);
    // So low that a score added to it makes no difference, and far enough from the lowest that nothing overflows.
    let lowest: f32 = if dtype == Dtype::F16 { -65504. } else { -1e30 };
    let number = |x: f32| {
        let number = mlx::from_bytes(&x.to_ne_bytes(), &[], Dtype::F32)?;
        mlx::astype(&number, dtype, s)
    };
    let mask = mlx::where_(seen, &number(0.)?, &number(lowest)?, s)?;
    let out =
        mlx::scaled_dot_product_attention(q, k, v, scale, "array", Some(&mask), sinks, false, s)?;
    // In f16 nothing is that low: such a query gets the mean of the values by itself. A sink takes all of its attention anyway.
    if dtype != Dtype::F16 || sinks.is_some() || seen.ndim() == 0 {
        return Ok(out);
    }
    let any = mlx::any(seen, &[-1], true, s)?;
    let mean = mlx::mean(v, &[-2], true, s)?;
    let group = q.shape()[1] / k.shape()[1];
    let mean = mlx::repeat(&mean, group, 1, s)?;
    mlx::where_(&any, &out, &mean, s)
}

/// MLX reads the logit that a target names, wherever that is; here targets are clamped to the classes.
pub fn cross_entropy(logits: &Array, targets: &Array, device: Device, s: &Stream) -> Result<Array> {
    check::not_empty("logits", logits)?;
    // On the CPU MLX computes 16-bit logits in their own width.
    if device == Device::Cpu && mlx::dtype(logits).is_half() {
        return cross_entropy(&mlx::astype(logits, Dtype::F32, s)?, targets, device, s);
    }
    let axis = check::filled_axis(logits, -1)?;
    if !mlx::dtype(targets).is_integer() {
        return mlx::cross_entropy(logits, targets, s);
    }
    let classes = logits.shape()[axis];
    let targets = compose::clamp(targets, classes, classes - 1, s)?;
    if device == Device::Gpu || targets.shape() != &logits.shape()[..axis] {
        return mlx::cross_entropy(logits, &targets, s);
    }
    let axis = axis as i32;
    let all = reduce::logsumexp(logits, &[axis], false, device, s)?;
    let index = mlx::expand_dims(&targets, &[axis], s)?;
    let chosen = mlx::take_along_axis(logits, &index, axis, s)?;
    mlx::subtract(&all, &mlx::squeeze(&chosen, &[axis], s)?, s)
}
