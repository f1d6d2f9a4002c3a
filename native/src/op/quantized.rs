//! Quantizing weights, and products with quantized weights.
//! Called by [`Op::apply`] for operations of [`Class::Quantized`](super::Class::Quantized).

use super::table::{family, others};
use super::{cast, check, fused, gpu, int8, matmul, one, Crossed, Inputs, Op, Outputs};
use crate::base::{Device, Dtype, Error, Result};
use crate::cpu;
use crate::mlx::{self, Stream};
use mlx_rs::Array;

family! { Quantized, takes(3):
    /// [`Op::Products`] with quantized matrices (mode affine), three inputs each: words {n, k · bits / 32}, scales and
    /// biases {n, k / group_size}.
    QuantizedProducts {
        eps: Option<f64>,
        gated: bool,
        shape: Option<Vec<i32>>,
        bits: i32,
        group_size: i32,
    } => takes(1).optional(2).more().any_outputs(),
    /// Inputs: w, global_scale or nil. Outputs: packed w, scales, and biases in mode affine.
    Quantize {
        group_size: Option<i32>,
        bits: Option<i32>,
        mode: QuantMode,
    } => takes(1).optional(1).any_outputs().row_major_on_gpu(),
    /// Inputs: w, scales, biases or nil, global_scale or nil.
    Dequantize {
        group_size: Option<i32>,
        bits: Option<i32>,
        mode: QuantMode,
        dtype: Option<Dtype>,
    } => takes(2).optional(2).row_major_on_gpu(),
    /// Inputs: x, w, scales, biases or nil.
    QuantizedMatmul {
        transpose: bool,
        group_size: Option<i32>,
        bits: Option<i32>,
        mode: QuantMode,
    } => optional(1).row_major_on_gpu(),
    /// Inputs: x {…, k} of floats, w {n, k} of s8 or packed {⌈n / 16⌉, ⌈k / 4⌉, 16, 4}, scales {n}, bias {n} or nil.
    /// Each row of x is rounded to integers of 8 bits; f32(sum) · (row's scale · scale) + bias, rounded to x's type.
    Int8Matmul => takes(3).optional(1),
    /// Inputs: x, w, scales or nil, global_scale_x or nil, global_scale_w or nil.
    Qqmm { group_size: Option<i32>, bits: Option<i32>, mode: QuantMode } => takes(2).optional(3).row_major_on_gpu(),
    /// Inputs: x, w, scales, biases or nil, lhs_indices or nil, rhs_indices or nil.
    GatherQmm {
        transpose: bool,
        group_size: Option<i32>,
        bits: Option<i32>,
        mode: QuantMode,
        sorted: bool,
    } => optional(3).row_major_on_gpu(),
}

/// Builds an operation of the class.
pub fn apply(
    op: &Op,
    inputs: &Inputs,
    device: Device,
    s: &Stream,
    crossed: &mut Crossed,
) -> Result<Outputs> {
    match op {
        Op::Quantize {
            group_size,
            bits,
            mode,
        } => {
            let ([w], [global_scale]) = inputs.with_optional()?;
            check::packing(*group_size, *bits)?;
            mlx::quantize(w, *group_size, *bits, mode.name(), global_scale, s)
                .map(Outputs::from_vec)
        }
        Op::Dequantize {
            group_size,
            bits,
            mode,
            dtype,
        } => {
            let ([w, scales], [biases, global_scale]) = inputs.with_optional()?;
            check::packing(*group_size, *bits)?;
            mlx::dequantize(
                w,
                scales,
                biases,
                *group_size,
                *bits,
                mode.name(),
                global_scale,
                *dtype,
                s,
            )
            .map(one)
        }
        Op::QuantizedMatmul {
            transpose,
            group_size,
            bits,
            mode,
        } => {
            let ([x, w, scales], [biases]) = inputs.with_optional()?;
            check::packing(*group_size, *bits)?;
            if *transpose && mode.name() == "affine" {
                let (group, bits) = (*group_size, *bits);
                let weights = [w, scales];
                if let Some(own) = quantized_product(x, weights, biases, group, bits, device, s) {
                    return own.map(one);
                }
            }
            gpu::of_rows(x, device, s, |x| {
                let is_affine = mode.name() == "affine";
                if gpu::is_too_large(x, scales, *group_size, device)
                    || is_affine && gpu::has_one_group(x, *group_size, device)
                {
                    let dtype = mlx::promoted(mlx::dtype(x), mlx::dtype(scales));
                    let w = whole(w, scales, biases, *group_size, *bits, *transpose, s)?;
                    let x = mlx::astype(x, Dtype::F32, s)?;
                    return mlx::astype(&mlx::matmul(&x, &w, s)?, dtype, s);
                }
                quantized_in_single(x, scales, biases, device, s, |x, scales, biases| {
                    mlx::quantized_matmul(
                        x,
                        w,
                        scales,
                        biases,
                        *transpose,
                        *group_size,
                        *bits,
                        mode.name(),
                        s,
                    )
                })
            })
            .map(one)
        }
        Op::Int8Matmul => {
            let ([x, w, scales], [bias]) = inputs.with_optional()?;
            int8::int8_matmul(x, w, scales, bias, device, s).map(one)
        }
        Op::Qqmm {
            group_size,
            bits,
            mode,
        } => {
            let ([x, w], [scales, scale_x, scale_w]) = inputs.with_optional()?;
            check::packing(*group_size, *bits)?;
            cast::in_single(x, device, s, |x| {
                mlx::qqmm(
                    x,
                    w,
                    scales,
                    *group_size,
                    *bits,
                    mode.name(),
                    scale_x,
                    scale_w,
                    s,
                )
            })
            .map(one)
        }
        Op::GatherQmm {
            transpose,
            group_size,
            bits,
            mode,
            sorted,
        } => {
            let ([x, w, scales], [biases, lhs, rhs]) = inputs.with_optional()?;
            check::packing(*group_size, *bits)?;
            let (lhs, rhs) = matmul::matrix_indices(x, w, lhs, rhs, s)?;
            if gpu::is_too_large(x, scales, *group_size, device) {
                let w = whole(w, scales, biases, *group_size, *bits, *transpose, s)?;
                let (lhs, rhs) = (lhs.as_ref(), rhs.as_ref());
                return gpu::gather_mm(x, &w, lhs, rhs, *sorted, device, s).map(one);
            }
            quantized_in_single(x, scales, biases, device, s, |x, scales, biases| {
                mlx::gather_qmm(
                    x,
                    w,
                    scales,
                    biases,
                    lhs.as_ref(),
                    rhs.as_ref(),
                    *transpose,
                    *group_size,
                    *bits,
                    mode.name(),
                    *sorted,
                    s,
                )
            })
            .map(one)
        }
        Op::QuantizedProducts { .. } => {
            let ([x], [weight, residual], matrices) = inputs.with_optional_and_more()?;
            let wanted = fused::Products::of(op, x, weight, residual, &matrices)
                .ok_or_else(|| Error::invalid("eps goes with the weight of a norm"))?;
            fused::products(wanted, device, s, crossed)
        }
        others!(Quantized) => Err(super::no_case(op)),
    }
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
    let fits = cpu::takes(device, x)
        && cpu::has_vectors()
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
        let product = cpu::quantized_product(&inputs, group as usize, bits as usize, s)?;
        let mut shape = x.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = w.shape()[0];
        }
        mlx::reshape(&product, &shape, s)
    };
    Some(build())
}

/// Matrices in mode affine as f32, with their last two axes exchanged where `transpose`.
fn whole(
    w: &Array,
    scales: &Array,
    biases: Option<&Array>,
    group: Option<i32>,
    bits: Option<i32>,
    transpose: bool,
    s: &Stream,
) -> Result<Array> {
    let dtype = Some(Dtype::F32);
    let w = mlx::dequantize(w, scales, biases, group, bits, "affine", None, dtype, s)?;
    if !transpose {
        return Ok(w);
    }
    let mut axes: Vec<i32> = (0..w.ndim() as i32).collect();
    let last = axes.len() - 1;
    axes.swap(last - 1, last);
    mlx::transpose(&w, &axes, s)
}

/// A product with a quantized matrix, in f32 for 16-bit floats on the CPU as in [`cast::in_single`].
pub fn quantized_in_single(
    x: &Array,
    scales: &Array,
    biases: Option<&Array>,
    device: Device,
    s: &Stream,
    product: impl Fn(&Array, &Array, Option<&Array>) -> Result<Array>,
) -> Result<Array> {
    if device != Device::Cpu || !mlx::dtype(x).is_half() {
        return product(x, scales, biases);
    }
    let single = |part: &Array| match mlx::dtype(part).is_half() {
        true => mlx::astype(part, Dtype::F32, s),
        // The scales of formats that are floats themselves.
        false => mlx::share(part),
    };
    let (scales, biases) = (single(scales)?, biases.map(single).transpose()?);
    cast::in_single(x, device, s, |x| product(x, &scales, biases.as_ref()))
}
