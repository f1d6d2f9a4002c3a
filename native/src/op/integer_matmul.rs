//! Exact matrix products of integers, which MLX does not have. Called by matmul.rs.

use super::{cast, matmul, shape};
use crate::base::{Device, Dtype, Error, Result};
use crate::cpu;
use crate::mlx::{self, Stream};
use mlx_rs::Array;

/// Multiply-adds up to which an integer product is one broadcast multiplication and a sum, rather than up to ten
/// products of limbs.
const INTEGER_PRODUCT_BREAK_EVEN: u64 = 4_096;

/// Products of integers, exact modulo the width of their type. On the CPU by a kernel of our own. Without it through
/// BLAS: operands are cut into 16-bit limbs, whose products summed over up to 2^20 terms are exact in f64.
pub fn integer_matmul(a: &Array, b: &Array, device: Device, s: &Stream) -> Result<Array> {
    let (a, b) = cast::promoted(a, b, s)?;
    let dtype = mlx::dtype(&a);
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
    let is_own = device == Device::Cpu && cpu::are_there();
    let own_shape = || matmul::product_shape(&left, &right);
    let product = if let Some(shape) = is_own.then(own_shape).flatten() {
        matmul::own_product(&left, &right, &shape, cpu::integer_product, s)?
    } else if device == Device::Gpu || matmul::work(&left, &right) < INTEGER_PRODUCT_BREAK_EVEN {
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

fn limb_matmul(a: &Array, b: &Array, k: i32, dtype: Dtype, s: &Stream) -> Result<Array> {
    const TERMS: i32 = 1 << 20;
    if k > TERMS {
        let parts = |array: &Array, axis| shape::split(array, &[TERMS], axis, s);
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
