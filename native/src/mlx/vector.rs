//! Lists of arrays as MLX's C functions take and return them.

use super::error::{check, one};
use crate::base::Result;
use mlx_rs::Array;
use mlx_sys as sys;
use std::ffi::c_int;

/// A list of arrays as MLX takes it.
pub struct Vector(pub(super) sys::mlx_vector_array);

impl Vector {
    pub fn new<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Vector {
        let handles: Vec<sys::mlx_array> = arrays.into_iter().map(Array::as_ptr).collect();
        // SAFETY: mlx-c copies the handles' arrays.
        Vector(unsafe { sys::mlx_vector_array_new_data(handles.as_ptr(), handles.len()) })
    }

    pub(super) fn arrays(&self) -> Result<Vec<Array>> {
        // SAFETY: the vector is live until drop.
        let size = unsafe { sys::mlx_vector_array_size(self.0) };
        (0..size)
            .map(|i| one(|res| unsafe { sys::mlx_vector_array_get(res, self.0, i) }))
            .collect()
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { sys::mlx_vector_array_free(self.0) };
    }
}

/// Runs a call that fills in a list of arrays.
pub(super) fn many(call: impl FnOnce(*mut sys::mlx_vector_array) -> c_int) -> Result<Vec<Array>> {
    // SAFETY: no preconditions.
    let mut vector = Vector(unsafe { sys::mlx_vector_array_new() });
    check(call(&mut vector.0))?;
    vector.arrays()
}
