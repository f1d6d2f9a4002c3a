//! Products with quantized weights.

use super::cast;
use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernels;
use crate::mlx::{self, Stream};
use mlx_rs::Array;

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

/// A product with a quantized matrix, in f32 for 16-bit floats on the CPU as in [`in_single`].
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
