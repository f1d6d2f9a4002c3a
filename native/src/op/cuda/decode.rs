//! Kernels for a few rows, which is what a model is given for each token that it generates. There a kernel takes less
//! time than launching it, so each does what several operations of MLX's do, and reads matrices and caches as they
//! lie. Called by `fused.rs`; None stands for cases that are left to MLX. bench/RESULTS.md has the figures.

use super::first;
use crate::base::{Dtype, Result};
use crate::mlx::{self, CudaKernel, Launch, Stream};
use crate::op::fused::Products;
use crate::op::Op;
use mlx_rs::Array;
use smallvec::{smallvec, SmallVec};
use std::ffi::CStr;

/// What a kernel is given: an array, or what stands for one in a loop's step (program/engine/step_graph).
pub trait Operand: Clone {
    fn shape(&self) -> &[i32];
    fn dtype(&self) -> Dtype;
}

impl Operand for &Array {
    fn shape(&self) -> &[i32] {
        Array::shape(self)
    }

    fn dtype(&self) -> Dtype {
        mlx::dtype(self)
    }
}

/// A kernel with all that its launch takes: `outputs` are shapes, each with the number of the input whose type it has.
pub struct Call<A> {
    pub kernel: &'static CudaKernel,
    pub inputs: SmallVec<[A; 7]>,
    pub constants: SmallVec<[(&'static CStr, i32); 20]>,
    pub outputs: SmallVec<[(SmallVec<[i32; 4]>, usize); 3]>,
    pub launch: Launch,
}

impl Call<&Array> {
    fn nodes(&self, s: &Stream) -> Result<SmallVec<[Array; 2]>> {
        let outputs = self.outputs.iter().map(|(shape, like)| (&shape[..], *like));
        let outputs: SmallVec<[(&[i32], usize); 3]> = outputs.collect();
        let launch = Launch { ..self.launch };
        self.kernel
            .call(&self.inputs, &self.constants, &outputs, launch, s)
    }
}

/// A kernel's text: a line, and files.
macro_rules! text {
    ($line:literal, $($file:literal),+) => {
        match CStr::from_bytes_with_nul(concat!($line, $(include_str!($file),)+ "\0").as_bytes()) {
            Ok(text) => text,
            Err(_) => panic!("the text of a kernel has a NUL"),
        }
    };
}

/// Rows up to which operations on them are merged.
pub const MAX_ROWS: i32 = 64;
/// Rows up to which products without tensor cores pay: of f32, and of quantized matrices. More go to MLX's kernels.
const MAX_FEW: [i32; 2] = [1, 4];
/// Rows up to which our own products by tensor cores pay, and columns from which they do for a single row. MLX's take
/// other rows as they come; for few, they are those for eight.
const MAX_TENSOR: i32 = 4;
const MANY_COLUMNS: i32 = 1 << 16;
/// Terms of a step of products by tensor cores.
const TERMS: i32 = 32;
/// Numbers of x that a block keeps as f32 in its 48 KiB of shared memory, beside what it sums up.
const MAX_SHARED: i32 = 8192;

fn is_small_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16)
}

fn bits(number: f32) -> i32 {
    i32::from_ne_bytes(number.to_ne_bytes())
}

/// The kernels of one, two and three products.
macro_rules! products {
    ($inputs:expr, $names:expr, $($file:literal),+) => {
        [
            CudaKernel {
                name: $names[0],
                inputs: $inputs,
                outputs: &[c"out0"],
                source: text!("  T* outs[] = {out0};\n", $($file),+),
                in_rows: false,
            },
            CudaKernel {
                name: $names[1],
                inputs: $inputs,
                outputs: &[c"out0", c"out1"],
                source: text!("  T* outs[] = {out0, out1};\n", $($file),+),
                in_rows: false,
            },
            CudaKernel {
                name: $names[2],
                inputs: $inputs,
                outputs: &[c"out0", c"out1", c"out2"],
                source: text!("  T* outs[] = {out0, out1, out2};\n", $($file),+),
                in_rows: false,
            },
        ]
    };
}

static PRODUCTS: [CudaKernel; 3] = products!(
    &[c"x", c"norm", c"residual", c"w0", c"w1", c"w2"],
    [c"emlx_product", c"emlx_products_2", c"emlx_products_3"],
    "tiles.cu",
    "few_rows.cu",
    "products.cu"
);

static TENSOR_PRODUCTS: [CudaKernel; 3] = products!(
    &[c"x", c"norm", c"residual", c"w0", c"w1", c"w2"],
    [
        c"emlx_tensor_product",
        c"emlx_tensor_products_2",
        c"emlx_tensor_products_3"
    ],
    "tiles.cu",
    "tensor_products.cu"
);

static QUANTIZED_PRODUCTS: [CudaKernel; 3] = products!(
    &[
        c"x",
        c"norm",
        c"residual",
        c"w0",
        c"scales0",
        c"biases0",
        c"w1",
        c"scales1",
        c"biases1",
        c"w2",
        c"scales2",
        c"biases2",
    ],
    [
        c"emlx_quantized_product",
        c"emlx_quantized_products_2",
        c"emlx_quantized_products_3",
    ],
    "tiles.cu",
    "few_rows.cu",
    "quantized_products.cu"
);

/// The rows of an array {…, size} all of whose other axes but one are 1, which axis they are along, and which one the
/// size is.
fn rows_of(array: &impl Operand, size: i32) -> Option<[i32; 3]> {
    let (last, leading) = array.shape().split_last()?;
    let mut long = leading.iter().enumerate().filter(|(_, n)| **n != 1);
    let (axis, rows) = long.next().unwrap_or((0, &1));
    let fits = *last == size && long.next().is_none() && !leading.is_empty();
    fits.then_some([*rows, axis as i32, leading.len() as i32])
}

/// Products of x {…, k} whose rows are along one axis; what is added is {…, n}, alike.
pub fn products(wanted: Products<&Array>, s: &Stream) -> Result<Option<SmallVec<[Array; 2]>>> {
    let call = call_of_products(&wanted);
    call.map(|call| call.nodes(s)).transpose()
}

/// None where MLX's operations are to be taken.
pub fn call_of_products<A: Operand>(wanted: &Products<A>) -> Option<Call<A>> {
    let Products {
        x,
        norm,
        residual,
        matrices,
        packing,
        gated,
        shape,
    } = wanted;
    let (gated, dtype) = (*gated, x.dtype());
    let k = x.shape().last().copied().unwrap_or(0);
    let columns = wanted.columns()?;
    let (Some([rows, axis, last]), 1..=3) = (rows_of(x, k), columns.len()) else {
        return None;
    };
    let added = match residual {
        Some(added) => match rows_of(added, columns[0]) {
            Some([count, axis, last]) if count == rows => [axis, last],
            _ => return None,
        },
        None => [0, 1],
    };
    let mut all = norm.iter().map(|(weight, _)| weight).chain(residual);
    let usable = cfg!(target_os = "linux")
        && is_small_float(dtype)
        && k > 0
        && all.all(|array| array.dtype() == dtype)
        && wanted.are_of(dtype)
        && norm
            .as_ref()
            .is_none_or(|(weight, _)| weight.shape() == [k]);
    if !usable {
        return None;
    }
    let blocks_of = |tile: i32| -> Option<i32> {
        let fits = columns.iter().all(|n| *n > 0 && n % tile == 0);
        let tiles = columns.iter().map(|n| n / tile);
        fits.then(|| match gated {
            true => columns[0] / tile,
            false => tiles.sum(),
        })
    };
    let few = MAX_FEW[usize::from(packing.is_some())];
    let is_few = (1..=few).contains(&rows) && rows.saturating_mul(k) <= MAX_SHARED;
    let pays = match rows {
        1 => columns.iter().any(|n| *n >= MANY_COLUMNS),
        _ => (2..=MAX_TENSOR).contains(&rows),
    };
    let tensor = match packing {
        None if pays && dtype.is_half() && k % TERMS == 0 => {
            tile_of_tensors(rows, gated, blocks_of)
        }
        _ => None,
    };
    let (kernels, own, blocks, threads) = match (packing, tensor) {
        (None, Some((wide, blocks))) => {
            let constants: SmallVec<[(&CStr, i32); 4]> = smallvec![
                (c"NT", wide),
                (c"TILE", wide * 8),
                (c"F16", i32::from(dtype == Dtype::F16)),
            ];
            (&TENSOR_PRODUCTS, constants, blocks, 256)
        }
        _ if !is_few => return None,
        (Some(packing), _) => {
            const THREADS: i32 = 256;
            // The widest tile that leaves each of the GPU's multiprocessors about one block.
            let (split, blocks) = [1, 2, 4, 8]
                .into_iter()
                .filter_map(|split| blocks_of(32 / split).map(|blocks| (split, blocks)))
                .find(|(split, blocks)| *blocks >= 120 || *split == 8)?;
            let constants = smallvec![
                (c"BITS", packing.bits),
                (c"GROUP", packing.group_size),
                (c"SPLIT", split),
                (c"TILE", 32 / split),
            ];
            (&QUANTIZED_PRODUCTS, constants, blocks, THREADS)
        }
        (None, None) => {
            const THREADS: i32 = 512;
            let vec = 16 / dtype.size() as i32;
            let total: i64 = columns.iter().map(|n| i64::from(*n)).sum();
            // As many blocks as the GPU has multiprocessors, if need be of narrower tiles.
            let (wide, blocks) = match (blocks_of(4 * vec), blocks_of(2 * vec)) {
                (Some(blocks), _) if total >= 96 * 4 * i64::from(vec) => (4, blocks),
                (_, Some(blocks)) => (2, blocks),
                (Some(blocks), None) => (4, blocks),
                _ => return None,
            };
            let constants = smallvec![(c"WIDE", wide), (c"TILE", wide * vec)];
            (&PRODUCTS, constants, blocks, THREADS)
        }
    };
    let size = |i: usize| columns.get(i).copied().unwrap_or(0);
    let eps = norm.as_ref().map_or(0.0, |(_, eps)| *eps as f32);
    let constants = [
        (c"K", k),
        (c"AXIS", axis),
        (c"LAST", last),
        (c"ADDED", added[0]),
        (c"ADDED_LAST", added[1]),
        (c"N0", size(0)),
        (c"N1", size(1)),
        (c"N2", size(2)),
        (c"COUNT", columns.len() as i32),
        (c"ROWS", rows),
        (c"NORM", i32::from(norm.is_some())),
        (c"EPS", bits(eps)),
        (c"RESIDUAL", i32::from(residual.is_some())),
        (c"GATED", i32::from(gated)),
        (c"THREADS", threads),
    ];
    let count = if gated { 1 } else { columns.len() };
    let outputs = match shape {
        Some(shape) => smallvec![(SmallVec::from_slice(shape), 0)],
        None => columns[..count]
            .iter()
            .map(|n| (smallvec![rows, *n], 0))
            .collect(),
    };
    // What is absent is not read.
    let mut inputs: SmallVec<[A; 7]> = smallvec![
        x.clone(),
        norm.as_ref().map_or(x, |(weight, _)| weight).clone(),
        residual.as_ref().unwrap_or(x).clone(),
    ];
    let each = wanted.each();
    for i in 0..3 {
        let first = if i < columns.len() { i * each } else { 0 };
        inputs.extend(matrices[first..first + each].iter().cloned());
    }
    Some(Call {
        kernel: &kernels[count - 1],
        inputs,
        constants: constants.into_iter().chain(own).collect(),
        outputs,
        launch: Launch { blocks, threads },
    })
}

/// Columns of a block of products by tensor cores, in eights, and the blocks: the widest that leave each of the GPU's
/// multiprocessors two blocks, or the narrowest.
fn tile_of_tensors(
    rows: i32,
    gated: bool,
    blocks_of: impl Fn(i32) -> Option<i32>,
) -> Option<(i32, i32)> {
    // Bands of 16 rows, times products, times tiles: what a thread has sums for.
    const MAX_SUMS: i32 = 16;
    let each = (rows + 15) / 16 * if gated { 2 } else { 1 };
    [8, 4, 2, 1]
        .into_iter()
        .filter(|wide| each * wide <= MAX_SUMS)
        .filter_map(|wide| blocks_of(wide * 8).map(|blocks| (wide, blocks)))
        .find(|(wide, blocks)| *blocks >= 256 || *wide == 1)
}

static ATTENTION: CudaKernel = CudaKernel {
    name: c"emlx_attention",
    inputs: &[c"q", c"k", c"v", c"mask"],
    outputs: &[c"out"],
    source: text!("", "attention.cu"),
    in_rows: false,
};

/// Attention of one query {batch, 1, heads, size} on keys and values {batch, length, kv_heads, size}, with a mask of
/// booleans {batch | 1, heads | 1, 1, length} or none; as they lie, with any strides. The result has the elements of
/// {batch, 1, heads, size} in `shape`.
pub fn attention(
    qkv: [&Array; 3],
    mask: Option<&Array>,
    scale: f32,
    shape: &[i32],
    s: &Stream,
) -> Result<Option<Array>> {
    match call_of_attention(qkv, mask, scale, shape) {
        Some(call) => call.nodes(s).map(first),
        None => Ok(None),
    }
}

/// None where MLX's operations are to be taken.
pub fn call_of_attention<A: Operand>(
    [q, k, v]: [A; 3],
    mask: Option<A>,
    scale: f32,
    shape: &[i32],
) -> Option<Call<A>> {
    const THREADS: i32 = 512;
    // Beyond, one block a head reads for too long.
    const MAX_KEYS: i32 = 8192;
    let (&[batch, 1, heads, size], &[_, length, kv_heads, _]) = (q.shape(), k.shape()) else {
        return None;
    };
    let dtype = q.dtype();
    let parts = size / (16 / dtype.size() as i32);
    let usable = cfg!(target_os = "linux")
        && is_small_float(dtype)
        && k.dtype() == dtype
        && v.dtype() == dtype
        && matches!(size, 64 | 128)
        && v.shape()[3] == size
        && parts <= 32
        && (1..=MAX_KEYS).contains(&length)
        && batch > 0
        && heads > 0
        && mask.as_ref().is_none_or(|mask| {
            mask.dtype() == Dtype::Bool && mask.shape().len() == 4 && mask.shape()[3] == length
        });
    let blocks = batch.checked_mul(heads).filter(|_| usable)?;
    let axis = |axis: usize| i32::from(mask.as_ref().is_some_and(|mask| mask.shape()[axis] > 1));
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
    // What is absent is not read.
    let mask = mask.unwrap_or(q.clone());
    Some(Call {
        kernel: &ATTENTION,
        inputs: smallvec![q, k, v, mask],
        constants: constants.into_iter().collect(),
        outputs: smallvec![(SmallVec::from_slice(shape), 0)],
        launch: Launch {
            blocks,
            threads: THREADS,
        },
    })
}

static HEADS: CudaKernel = CudaKernel {
    name: c"emlx_heads",
    inputs: &[c"q", c"k", c"v", c"q_norm", c"k_norm", c"offset", c"freqs"],
    outputs: &[c"out_q", c"out_k", c"out_v"],
    source: text!("", "heads.cu"),
    in_rows: false,
};

/// How heads are turned: `size` numbers each, by `freqs` or powers of `base`; those of keys and values come `repeat`
/// times. `lead` are the sizes of the results' axes before the heads.
pub struct Heads<'a, A> {
    pub lead: &'a [i32],
    pub size: i32,
    pub repeat: i32,
    pub norm: Option<(A, A, f64)>,
    pub base: Option<f32>,
    pub scale: f32,
}

impl<'a, A> Heads<'a, A> {
    /// What [`Op::RopeHeads`] says. None for another operation, and where eps and both weights do not come together.
    pub fn of(op: &'a Op, q_norm: Option<A>, k_norm: Option<A>) -> Option<Self> {
        let Op::RopeHeads {
            lead,
            size,
            repeat,
            eps,
            base,
            scale,
        } = op
        else {
            return None;
        };
        let norm = match (eps, q_norm, k_norm) {
            (Some(eps), Some(q_norm), Some(k_norm)) => Some((q_norm, k_norm, *eps)),
            (None, None, None) => None,
            _ => return None,
        };
        Some(Heads {
            lead,
            size: *size,
            repeat: *repeat,
            norm,
            base: *base,
            scale: *scale,
        })
    }
}

/// Queries, keys and values {rows, heads * size}, the first two normed and turned, as {…, heads, size}.
pub fn heads(
    qkv: [&Array; 3],
    how: &Heads<&Array>,
    offset: &Array,
    freqs: Option<&Array>,
    s: &Stream,
) -> Result<Option<SmallVec<[Array; 2]>>> {
    if !are_turned(&qkv, how, &offset, freqs.as_ref()) {
        return Ok(None);
    }
    let offset = mlx::astype(offset, Dtype::S32, s)?;
    let freqs = freqs.map(|freqs| mlx::astype(freqs, Dtype::F32, s));
    let freqs = freqs.transpose()?;
    let call = call_of_heads(qkv, how, &offset, freqs.as_ref());
    call.map(|call| call.nodes(s)).transpose()
}

/// Whether there is a kernel for these.
fn are_turned<A: Operand>(
    [q, k, v]: &[A; 3],
    how: &Heads<A>,
    offset: &A,
    freqs: Option<&A>,
) -> bool {
    let (&[rows, in_queries], &[_, in_keys]) = (q.shape(), k.shape()) else {
        return false;
    };
    let (dtype, size) = (q.dtype(), how.size);
    let weights = how
        .norm
        .iter()
        .flat_map(|(q_norm, k_norm, _)| [q_norm, k_norm]);
    cfg!(target_os = "linux")
        && is_small_float(dtype)
        && [k, v]
            .into_iter()
            .chain(weights)
            .all(|array| array.dtype() == dtype)
        && matches!(size, 64 | 128 | 192 | 256)
        && (1..=MAX_ROWS).contains(&rows)
        && in_queries % size == 0
        && in_keys % size == 0
        && k.shape() == v.shape()
        && offset.shape() == [rows]
        && freqs.is_none_or(|freqs| freqs.shape() == [size / 2])
        && freqs.is_some() != how.base.is_some()
}

/// `offset` is s32 and `freqs` f32. None where MLX's operations are to be taken.
pub fn call_of_heads<A: Operand>(
    [q, k, v]: [A; 3],
    how: &Heads<A>,
    offset: A,
    freqs: Option<A>,
) -> Option<Call<A>> {
    const THREADS: i32 = 128;
    let fit = offset.dtype() == Dtype::S32
        && freqs
            .as_ref()
            .is_none_or(|freqs| freqs.dtype() == Dtype::F32);
    let qkv = [q, k, v];
    if !fit || !are_turned(&qkv, how, &offset, freqs.as_ref()) {
        return None;
    }
    let [q, k, v] = qkv;
    let (rows, size) = (q.shape()[0], how.size);
    let (heads, kv_heads) = (q.shape()[1] / size, k.shape()[1] / size);
    let eps = how.norm.as_ref().map_or(0.0, |(_, _, eps)| *eps as f32);
    let constants = [
        (c"HEADS", heads),
        (c"KV_HEADS", kv_heads),
        (c"REPEAT", how.repeat),
        (c"SIZE", size),
        (c"ROWS", rows),
        (c"NORM", i32::from(how.norm.is_some())),
        (c"EPS", bits(eps)),
        (c"SCALE", bits(how.scale)),
        (c"OWN_FREQS", i32::from(freqs.is_some())),
        (c"BASE", bits(how.base.unwrap_or(1.0).log2())),
        (c"THREADS", THREADS),
    ];
    // What is absent is not read.
    let freqs = freqs.unwrap_or(q.clone());
    let (q_norm, k_norm) = match &how.norm {
        Some((q_norm, k_norm, _)) => (q_norm.clone(), k_norm.clone()),
        None => (q.clone(), k.clone()),
    };
    let shaped = |heads: i32| how.lead.iter().copied().chain([heads, size]).collect();
    let repeated: SmallVec<[i32; 4]> = shaped(kv_heads * how.repeat);
    let items = rows * (heads + 2 * kv_heads);
    Some(Call {
        kernel: &HEADS,
        inputs: smallvec![q, k, v, q_norm, k_norm, offset, freqs],
        constants: constants.into_iter().collect(),
        outputs: smallvec![(shaped(heads), 0), (repeated.clone(), 1), (repeated, 2)],
        launch: Launch {
            blocks: (items + THREADS / 32 - 1) / (THREADS / 32),
            threads: THREADS,
        },
    })
}
