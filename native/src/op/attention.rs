//! Scaled dot-product attention. Called by fused.rs.

use super::{check, matmul, MaskMode};
use crate::base::{Device, Dtype, Error, Result};
use crate::cpu;
use crate::mlx::{self, Stream};
use mlx_rs::Array;

/// What attention gives of q, k and v {batch, length, heads, size}, laid out so, too. Nothing is moved: the kernels
/// read and write any strides.
pub fn by_length(
    qkv: [&Array; 3],
    attend: impl Fn(&Array, &Array, &Array) -> Result<Array>,
    s: &Stream,
) -> Result<Array> {
    check::heads(qkv, "batch, length, heads, size")?;
    let swapped = |x: &Array| mlx::transpose(x, &[0, 2, 1, 3], s);
    let [q, k, v] = qkv;
    swapped(&attend(&swapped(q)?, &swapped(k)?, &swapped(v)?)?)
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
        return cpu::attention(q, k, v, mask.as_ref(), kind, scale, s);
    }
    // MLX has no fused form on the CPU; what it composes there multiplies 16-bit matrices without BLAS.
    let work = (q.size() as u64).saturating_mul(key[2] as u64);
    match matmul::widened(&[q, k, v], work, device, s)? {
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
) -> Result<Option<(cpu::Mask, Option<Array>)>> {
    let dtype = mlx::dtype(q);
    let same = mlx::dtype(k) == dtype && mlx::dtype(v) == dtype;
    let filled = q.size() > 0 && v.size() > 0;
    if !cpu::takes(device, q) || !same || !filled || sinks.is_some() {
        return Ok(None);
    }
    let (queries, keys) = (q.shape()[2], k.shape()[2]);
    Ok(match mask {
        // MLX has it that queries before the first key see all.
        None if mode == "causal" => (queries <= keys).then_some((cpu::Mask::Causal, None)),
        None => Some((cpu::Mask::None, None)),
        Some(mask) => {
            let kind = match mlx::dtype(mask) {
                Dtype::Bool => cpu::Mask::Seen,
                other if other == dtype => cpu::Mask::Added,
                _ => return Ok(None),
            };
            let scores = [q.shape()[0], q.shape()[1], queries, keys];
            Some((kind, Some(mlx::broadcast_to(mask, &scores, s)?)))
        }
    })
}

/// Attention with a boolean mask on the GPU. MLX's kernels there do not agree on a query without any key: CUDA's add
/// minus infinity, which makes NaN of it. A finite number added has it see all keys equally, as on the CPU.
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
    // In f16 nothing is that low: such a query gets the mean of the values by itself. A sink takes all of its
    // attention anyway.
    if dtype != Dtype::F16 || sinks.is_some() || seen.ndim() == 0 {
        return Ok(out);
    }
    let any = mlx::any(seen, &[-1], true, s)?;
    let mean = mlx::mean(v, &[-2], true, s)?;
    let group = q.shape()[1] / k.shape()[1];
    let mean = mlx::repeat(&mean, group, 1, s)?;
    mlx::where_(&any, &out, &mean, s)
}
