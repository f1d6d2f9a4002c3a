//! MLX's numbers for element types.

use crate::base::Dtype;
use mlx_sys as sys;

impl Dtype {
    pub fn to_mlx(self) -> sys::mlx_dtype {
        match self {
            Dtype::Bool => sys::mlx_dtype__MLX_BOOL,
            Dtype::U8 => sys::mlx_dtype__MLX_UINT8,
            Dtype::U16 => sys::mlx_dtype__MLX_UINT16,
            Dtype::U32 => sys::mlx_dtype__MLX_UINT32,
            Dtype::U64 => sys::mlx_dtype__MLX_UINT64,
            Dtype::S8 => sys::mlx_dtype__MLX_INT8,
            Dtype::S16 => sys::mlx_dtype__MLX_INT16,
            Dtype::S32 => sys::mlx_dtype__MLX_INT32,
            Dtype::S64 => sys::mlx_dtype__MLX_INT64,
            Dtype::F16 => sys::mlx_dtype__MLX_FLOAT16,
            Dtype::Bf16 => sys::mlx_dtype__MLX_BFLOAT16,
            Dtype::F32 => sys::mlx_dtype__MLX_FLOAT32,
            Dtype::F64 => sys::mlx_dtype__MLX_FLOAT64,
            Dtype::C64 => sys::mlx_dtype__MLX_COMPLEX64,
        }
    }

    pub fn from_mlx(raw: sys::mlx_dtype) -> Dtype {
        Dtype::all()
            .find(|dtype| dtype.to_mlx() == raw)
            .unwrap_or(Dtype::Bool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_sizes_are_those_of_mlx() {
        for dtype in Dtype::all() {
            assert_eq!(Dtype::from_mlx(dtype.to_mlx()), dtype);
            // SAFETY: no preconditions.
            let size = unsafe { sys::mlx_dtype_size(dtype.to_mlx()) };
            assert_eq!(dtype.size(), size, "{}", dtype.name());
        }
    }
}
