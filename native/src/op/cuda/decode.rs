//! Kernels for a few rows, which is what a model is given for each token that it generates. There a kernel takes less time than launching it,
//! so each does what several operations of MLX's do, and reads matrices and caches as they lie. Called by `linear.rs`; None
//! stands for cases that are left to MLX. bench/README.md has the figures.

use super::first;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::mlx::{self, CudaKernel, Launch, Stream};
use crate::op::fused::Products;
use mlx_rs::Array;
use smallvec::SmallVec;
use std::ffi::CStr;

/// A kernel's text: a line, and a file.
macro_rules! text {
    ($line:literal, $file:literal) => {
        match CStr::from_bytes_with_nul(concat!($line, include_str!($file), "\0").as_bytes()) {
            Ok(text) => text,
            Err(_) => panic!("the text of a kernel has a NUL"),
        }
    };
}

/// Rows up to which the kernels pay.
pub const MAX_ROWS: i32 = 4;
/// Numbers of x that a block keeps as f32 in its 48 KiB of shared memory, beside what it sums up.
const MAX_SHARED: i32 = 8192;

fn is_small_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16)
}

fn bits(number: f32) -> i32 {
    i32::from_ne_bytes(number.to_ne_bytes())
}

const PRODUCT_INPUTS: &[&CStr] = &[c"x", c"norm", c"residual", c"w0", c"w1", c"w2"];

const PRODUCTS: [CudaKernel; 3] = [
    CudaKernel {
        name: c"emlx_product",
        inputs: PRODUCT_INPUTS,
        outputs: &[c"out0"],
        source: text!("  T* outs[] = {out0};\n", "products.cu"),
        in_rows: false,
    },
    CudaKernel {
        name: c"emlx_products_2",
        inputs: PRODUCT_INPUTS,
        outputs: &[c"out0", c"out1"],
        source: text!("  T* outs[] = {out0, out1};\n", "products.cu"),
        in_rows: false,
    },
    CudaKernel {
        name: c"emlx_products_3",
        inputs: PRODUCT_INPUTS,
        outputs: &[c"out0", c"out1", c"out2"],
        source: text!("  T* outs[] = {out0, out1, out2};\n", "products.cu"),
        in_rows: false,
    },
];

/// The rows of an array {1, …, rows, size}, and which axis they are along.
fn rows_of(array: &Array, size: i32) -> Option<(i32, i32)> {
    match array.shape() {
        [leading @ .., rows, last] if *last == size && leading.iter().all(|n| *n == 1) => {
            Some((*rows, leading.len() as i32))
        }
        _ => None,
    }
}

/// Products of x {1, …, rows, k}; what is added is {1, …, rows, n}.
pub fn products(wanted: Products, s: &Stream) -> Result<Option<SmallVec<[Array; 2]>>> {
    let Products {
        x,
        norm,
        residual,
        matrices,
        gated,
        shape,
    } = wanted;
    let dtype = mlx::dtype(x);
    let k = x.shape().last().copied().unwrap_or(0);
    let (Some((rows, axis)), 1..=3) = (rows_of(x, k), matrices.len()) else {
        return Ok(None);
    };
    let added = match residual {
        Some(added) => match rows_of(added, matrices[0].shape().last().copied().unwrap_or(0)) {
            Some((count, axis)) if count == rows => axis,
            _ => return Ok(None),
        },
        None => 0,
    };
    let mut all = matrices
        .iter()
        .copied()
        .chain(norm.map(|(weight, _)| weight))
        .chain(residual);
    let usable = cfg!(target_os = "linux")
        && is_small_float(dtype)
        && (1..=MAX_ROWS).contains(&rows)
        && k > 0
        && rows.saturating_mul(k) <= MAX_SHARED
        && all.all(|array| mlx::dtype(array) == dtype)
        && norm.is_none_or(|(weight, _)| weight.shape() == [k])
        && matrices
            .iter()
            .all(|matrix| matrix.ndim() == 2 && matrix.shape()[0] == k);
    if !usable {
        return Ok(None);
    }
    let columns: SmallVec<[i32; 3]> = matrices.iter().map(|matrix| matrix.shape()[1]).collect();
    let vec = 16 / dtype.size() as i32;
    let fits = |tile: i32| columns.iter().all(|n| *n > 0 && n % tile == 0);
    let total: i64 = columns.iter().map(|n| i64::from(*n)).sum();
    // As many blocks as the GPU has multiprocessors, if need be of narrower tiles.
    let wide = match (fits(4 * vec), fits(2 * vec)) {
        (true, _) if total >= 96 * 4 * i64::from(vec) => 4,
        (_, true) => 2,
        (true, false) => 4,
        _ => return Ok(None),
    };
    let tiles = |n: &i32| n / (wide * vec);
    let blocks: i32 = match gated {
        true => tiles(&columns[0]),
        false => columns.iter().map(tiles).sum(),
    };
    const THREADS: i32 = 512;
    let size = |i: usize| columns.get(i).copied().unwrap_or(0);
    let constants = [
        (c"K", k),
        (c"AXIS", axis),
        (c"ADDED", added),
        (c"N0", size(0)),
        (c"N1", size(1)),
        (c"N2", size(2)),
        (c"COUNT", matrices.len() as i32),
        (c"ROWS", rows),
        (c"NORM", i32::from(norm.is_some())),
        (c"EPS", bits(norm.map_or(0.0, |(_, eps)| eps as f32))),
        (c"RESIDUAL", i32::from(residual.is_some())),
        (c"GATED", i32::from(gated)),
        (c"WIDE", wide),
        (c"THREADS", THREADS),
    ];
    let matrix = |i: usize| matrices.get(i).copied().unwrap_or(matrices[0]);
    // What is absent is not read.
    let inputs = [
        x,
        norm.map_or(x, |(weight, _)| weight),
        residual.unwrap_or(x),
        matrix(0),
        matrix(1),
        matrix(2),
    ];
    let shapes: SmallVec<[[i32; 2]; 3]> = columns.iter().map(|n| [rows, *n]).collect();
    let count = if gated { 1 } else { shapes.len() };
    let outputs: SmallVec<[(&[i32], usize); 3]> = match shape {
        Some(shape) => std::iter::once((shape, 0)).collect(),
        None => shapes[..count].iter().map(|own| (&own[..], 0)).collect(),
    };
    let launch = Launch {
        blocks,
        threads: THREADS,
    };
    PRODUCTS[count - 1]
        .call(&inputs, &constants, &outputs, launch, s)
        .map(Some)
}

const ATTENTION: CudaKernel = CudaKernel {
    name: c"emlx_attention",
    inputs: &[c"q", c"k", c"v", c"mask"],
    outputs: &[c"out"],
    source: text!("", "attention.cu"),
    in_rows: false,
};

/// Attention of one query {batch, 1, heads, size} on keys and values {batch, length, kv_heads, size}, with a mask of booleans
/// {batch | 1, heads | 1, 1, length} or none; as they lie, with any strides. The result has the elements of {batch, 1, heads, size} in
/// `shape`.
pub fn attention(
    [q, k, v]: [&Array; 3],
    mask: Option<&Array>,
    scale: f32,
    shape: &[i32],
    s: &Stream,
) -> Result<Option<Array>> {
    const THREADS: i32 = 512;
    // Beyond, one block a head reads for too long.
    const MAX_KEYS: i32 = 8192;
    let (&[batch, 1, heads, size], &[_, length, kv_heads, _]) = (q.shape(), k.shape()) else {
        return Ok(None);
    };
    let dtype = mlx::dtype(q);
    let parts = size / (16 / dtype.size() as i32);
    let usable = cfg!(target_os = "linux")
        && is_small_float(dtype)
        && mlx::dtype(k) == dtype
        && mlx::dtype(v) == dtype
        && matches!(size, 64 | 128)
        && v.shape()[3] == size
        && parts <= 32
        && (1..=MAX_KEYS).contains(&length)
        && batch > 0
        && heads > 0
        && mask.is_none_or(|mask| {
            mlx::dtype(mask) == Dtype::Bool && mask.ndim() == 4 && mask.shape()[3] == length
        });
    let Some(blocks) = batch.checked_mul(heads).filter(|_| usable) else {
        return Ok(None);
    };
    let axis = |axis: usize| i32::from(mask.is_some_and(|mask| mask.shape()[axis] > 1));
    let constants = [
        (c"HEADS", heads),
        (c"KV_HEADS", kv_heads),
        (c"LENGTH", length),
        (c"SIZE", size),
        (c"MASKED", i32::from(mask.is_some())),
        (c"MASK_BATCH", axis(0)),
        (c"MASK_HEADS", axis(1)),
        (c"SCALE", bits(scale)),
        (c"THREADS", THREADS),
    ];
    let launch = Launch {
        blocks,
        threads: THREADS,
    };
    let absent;
    let mask = match mask {
        Some(mask) => mask,
        None => {
            absent = mlx::from_bytes(&[1], &[1, 1, 1, 1], Dtype::Bool)?;
            &absent
        }
    };
    ATTENTION
        .call(&[q, k, v, mask], &constants, &[(shape, 0)], launch, s)
        .map(first)
}

const HEADS: CudaKernel = CudaKernel {
    name: c"emlx_heads",
    inputs: &[c"q", c"k", c"v", c"q_norm", c"k_norm", c"offset", c"freqs"],
    outputs: &[c"out_q", c"out_k", c"out_v"],
    source: text!("", "heads.cu"),
    in_rows: false,
};

/// How heads are turned: `size` numbers each, by `freqs` or powers of `base`; those of keys and values come `repeat` times. `lead` are the
/// sizes of the results' axes before the heads.
pub struct Heads<'a> {
    pub lead: &'a [i32],
    pub size: i32,
    pub repeat: i32,
    pub norm: Option<(&'a Array, &'a Array, f64)>,
    pub base: Option<f32>,
    pub scale: f32,
}

/// Queries, keys and values {rows, heads * size}, the first two normed and turned, as {…, heads, size}.
pub fn heads(
    [q, k, v]: [&Array; 3],
    how: &Heads,
    offset: &Array,
    freqs: Option<&Array>,
    s: &Stream,
) -> Result<Option<SmallVec<[Array; 2]>>> {
    const THREADS: i32 = 128;
    let (&[rows, in_queries], &[_, in_keys]) = (q.shape(), k.shape()) else {
        return Ok(None);
    };
    let (dtype, size) = (mlx::dtype(q), how.size);
    let weights = how
        .norm
        .iter()
        .flat_map(|(q_norm, k_norm, _)| [*q_norm, *k_norm]);
    let usable = cfg!(target_os = "linux")
        && is_small_float(dtype)
        && [k, v]
            .into_iter()
            .chain(weights)
            .all(|array| mlx::dtype(array) == dtype)
        && matches!(size, 64 | 128 | 192 | 256)
        && (1..=MAX_ROWS).contains(&rows)
        && in_queries % size == 0
        && in_keys % size == 0
        && k.shape() == v.shape()
        && offset.shape() == [rows]
        && freqs.is_none_or(|freqs| freqs.shape() == [size / 2])
        && freqs.is_some() != how.base.is_some();
    if !usable {
        return Ok(None);
    }
    let (heads, kv_heads) = (in_queries / size, in_keys / size);
    let constants = [
        (c"HEADS", heads),
        (c"KV_HEADS", kv_heads),
        (c"REPEAT", how.repeat),
        (c"SIZE", size),
        (c"ROWS", rows),
        (c"NORM", i32::from(how.norm.is_some())),
        (c"EPS", bits(how.norm.map_or(0.0, |(_, _, eps)| eps as f32))),
        (c"SCALE", bits(how.scale)),
        (c"OWN_FREQS", i32::from(freqs.is_some())),
        (c"BASE", bits(how.base.unwrap_or(1.0).log2())),
        (c"THREADS", THREADS),
    ];
    let offset = mlx::astype(offset, Dtype::S32, s)?;
    let wide;
    let freqs = match freqs {
        Some(freqs) => {
            wide = mlx::astype(freqs, Dtype::F32, s)?;
            &wide
        }
        None => q,
    };
    // What is absent is not read.
    let (q_norm, k_norm) = how
        .norm
        .map_or((q, k), |(q_norm, k_norm, _)| (q_norm, k_norm));
    let inputs = [q, k, v, q_norm, k_norm, &offset, freqs];
    let queries = [how.lead, &[heads, size]].concat();
    let repeated = [how.lead, &[kv_heads * how.repeat, size]].concat();
    let outputs: [(&[i32], usize); 3] = [(&queries, 0), (&repeated, 1), (&repeated, 2)];
    let items = rows * (heads + 2 * kv_heads);
    let launch = Launch {
        blocks: (items + THREADS / 32 - 1) / (THREADS / 32),
        threads: THREADS,
    };
    HEADS
        .call(&inputs, &constants, &outputs, launch, s)
        .map(Some)
}
