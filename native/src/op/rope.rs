//! Rotary position embedding. Called by fused.rs.

use super::{cuda, gpu, norm};
use crate::base::{Device, Error, Result};
use crate::cpu;
use crate::mlx::{self, Stream};
use mlx_rs::Array;

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
    norm::check_fused_type(x)?;
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
    if cpu::takes(device, x) && fits && known && mlx::dtype(offset).is_integer() {
        let rope = cpu::Rope {
            dims: dims as usize,
            traditional,
            base: base.unwrap_or(1.0),
            scale,
        };
        return cpu::rope(x, rope, offset, freqs, s);
    }
    mlx::rope(x, dims, traditional, base, scale, offset, freqs, s)
}
