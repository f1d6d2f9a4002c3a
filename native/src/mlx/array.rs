//! Arrays: making them from bytes, reading their bytes, copies and layouts.

use super::error::{one, take_error};
use super::ops::{bitwise_or, contiguous_of_axes, reshape, view};
use super::{GraphLock, Stream};
use crate::base::{Dtype, Result};
use mlx_rs::Array;
use mlx_sys as sys;
use std::ffi::{c_int, c_void};

/// Whether the elements of an array that has been submitted lie in row-major order without gaps.
pub fn is_in_rows(array: &Array) -> bool {
    let mut in_rows = false;
    // SAFETY: the array is live.
    unsafe { sys::_mlx_array_is_row_contiguous(&mut in_rows, array.as_ptr()) == 0 && in_rows }
}

/// Which handle of MLX's an array is, for as long as it lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity(*mut c_void);

// SAFETY: an address, used under the graph's lock by whoever knows that the array lives.
unsafe impl Send for Identity {}

impl Identity {
    pub fn of(array: &Array) -> Identity {
        Identity(array.as_ptr().ctx)
    }
}

/// Frees the buffer of an array that has been computed, if nothing else holds the array or its buffer. Returns whether
/// it did; then nothing may be computed from the array any more. On macOS nothing is freed this way.
///
/// # Safety
/// The array lives.
pub unsafe fn strip(array: Identity, _lock: &GraphLock) -> bool {
    #[cfg(emlx_kernels)]
    {
        extern "C" {
            fn emlx_strip(array: sys::mlx_array) -> bool;
        }
        let array = sys::mlx_array { ctx: array.0 };
        let mut available = false;
        sys::_mlx_array_is_available(&mut available, array) == 0 && available && emlx_strip(array)
    }
    #[cfg(not(emlx_kernels))]
    {
        let _ = array;
        false
    }
}

/// The array's bytes in row-major order, or None where they are laid out otherwise.
///
/// # Safety
/// The array has been computed, and the slice is not used after the array is gone.
pub unsafe fn bytes<'a>(array: &Array) -> Option<&'a [u8]> {
    let size = array.nbytes();
    if size == 0 {
        return Some(&[]);
    }
    if !is_in_rows(array) {
        return None;
    }
    let data = sys::mlx_array_data_uint8(array.as_ptr());
    if data.is_null() {
        return None;
    }
    Some(std::slice::from_raw_parts(data, size))
}

/// The same values in row-major order and in a buffer of their own. On CUDA, what the CPU is to read is moved to other
/// memory, whoever else computes from it: so it reads this.
pub fn copy_apart(array: &Array, s: &Stream) -> Result<Array> {
    let given = dtype(array);
    let bits = match given.size() {
        1 => Dtype::U8,
        2 => Dtype::U16,
        4 => Dtype::U32,
        _ => Dtype::U64,
    };
    let rows = contiguous(array, false, s)?;
    if array.size() == 0 {
        return Ok(rows);
    }
    // An operation that changes no bit: MLX's own copy and contiguous share the buffer.
    let zero = from_bytes(&[0; 8][..bits.size()], &[], bits)?;
    let apart = bitwise_or(&view(&rows, bits, s)?, &zero, s)?;
    view(&apart, given, s)
}

/// The elements in row-major order, or in column-major order where that is allowed and they lie so. A scalar is copied
/// as a vector of one: CUDA's copy of arrays without axes launches nothing where the scalar is part of a larger buffer.
pub fn contiguous(array: &Array, allow_col_major: bool, s: &Stream) -> Result<Array> {
    if array.ndim() > 0 || !s.is_gpu() {
        return contiguous_of_axes(array, allow_col_major, s);
    }
    let vector = contiguous_of_axes(&reshape(array, &[1], s)?, allow_col_major, s)?;
    reshape(&vector, &[], s)
}

/// Another handle of the same array.
pub fn share(array: &Array) -> Result<Array> {
    one(|res| unsafe { sys::mlx_array_set(res, array.as_ptr()) })
}

/// Copies a buffer in. The caller has checked that `data` holds what `shape` and `dtype` say.
pub fn from_bytes(data: &[u8], shape: &[i32], dtype: Dtype) -> Result<Array> {
    assert_eq!(
        data.len() as u128,
        shape.iter().map(|d| *d as u128).product::<u128>() * dtype.size() as u128
    );
    // The element type's alignment: MLX reads `data` through a pointer of that type.
    let aligned;
    let source = if (data.as_ptr() as usize).is_multiple_of(dtype.size()) {
        data.as_ptr()
    } else {
        aligned = align(data);
        aligned.as_ptr().cast()
    };
    // SAFETY: `source` holds the bytes of the shape, suitably aligned, and MLX copies them before the call returns.
    let raw = unsafe {
        sys::mlx_array_new_data(
            source.cast(),
            shape.as_ptr(),
            shape.len() as c_int,
            dtype.to_mlx(),
        )
    };
    if raw.ctx.is_null() {
        return Err(take_error());
    }
    // SAFETY: a fresh handle.
    Ok(unsafe { Array::from_ptr(raw) })
}

fn align(data: &[u8]) -> Vec<u64> {
    let mut words = vec![0u64; data.len().div_ceil(8)];
    // SAFETY: the vector has at least as many bytes as `data`.
    unsafe {
        std::ptr::copy_nonoverlapping(data.as_ptr(), words.as_mut_ptr().cast(), data.len());
    }
    words
}

pub fn dtype(array: &Array) -> Dtype {
    // SAFETY: the array is live.
    Dtype::from_mlx(unsafe { sys::mlx_array_dtype(array.as_ptr()) })
}

/// The strides of an array, in elements.
///
/// # Safety
/// The array has been submitted.
#[cfg(emlx_kernels)]
pub unsafe fn strides(array: &Array) -> Vec<i64> {
    let strides = sys::mlx_array_strides(array.as_ptr());
    if strides.is_null() {
        return Vec::new();
    }
    let strides = std::slice::from_raw_parts(strides, array.ndim());
    strides.iter().map(|stride| *stride as i64).collect()
}
