//! Kernels of our own for CUDA, where MLX's take longer than copying does: layer_norm reads each row once and keeps it
//! in registers, the rotation turns several heads by one sine and cosine. Called by `norm.rs` and `rope.rs`; None
//! stands for cases that are left to MLX. `mix emlx.bench kernels` has the figures.

pub mod chain;
#[macro_use]
pub mod decode;
#[cfg(emlx_kernels)]
pub mod linalg;

use crate::base::{Dtype, Result};
use crate::mlx::{self, CudaKernel, Launch, Stream};
use mlx_rs::Array;
use smallvec::SmallVec;
use std::ffi::CStr;

/// Elements from which a kernel's time is more than that of launching it.
const MIN_SIZE: usize = 1 << 20;

const LAYER_NORM: CudaKernel = CudaKernel {
    // MLX keeps compiled kernels by their names, from version to version: another text, another name.
    name: c"emlx_layer_norm_merged",
    inputs: &[c"x", c"weight", c"bias", c"eps"],
    outputs: &[c"out"],
    in_rows: true,
    source: text!("", "layer_norm.cu"),
};

/// As MLX's, for rows of up to 16,384 elements in the type of the weight and the bias.
pub fn layer_norm(
    x: &Array,
    weight: Option<&Array>,
    bias: Option<&Array>,
    eps: f32,
    s: &Stream,
) -> Result<Option<Array>> {
    let dtype = mlx::dtype(x);
    let same = |other: Option<&Array>| other.is_none_or(|array| mlx::dtype(array) == dtype);
    let size = x.shape().last().copied().unwrap_or(0);
    let usable = cfg!(target_os = "linux") && same(weight) && same(bias);
    if !usable || x.size() < MIN_SIZE || !(64..=16_384).contains(&size) {
        return Ok(None);
    }
    let vec = width(size, dtype);
    // 32 bytes a thread take 40 registers, which leaves room for six blocks of 256 on a multiprocessor; 64 bytes where
    // blocks of more than 512 threads would leave room for one. Warps of as many elements each need no counts.
    let warps = match size * dtype.size() as i32 {
        bytes if bytes > 16_384 => (bytes + 2047) / 2048,
        bytes => (bytes + 1023) / 1024,
    };
    let even = |warps: &i32| size % (warps * 32 * vec) == 0;
    let threads = (warps..=(2 * warps).min(32)).find(even).unwrap_or(warps) * 32;
    let eps = mlx::from_bytes(&eps.to_ne_bytes(), &[], Dtype::F32)?;
    let constants = [
        (c"SIZE", size),
        (c"VEC", vec),
        (c"THREADS", threads),
        (c"WEIGHTED", i32::from(weight.is_some())),
        (c"BIASED", i32::from(bias.is_some())),
    ];
    // What is absent is not read.
    let inputs = [x, weight.unwrap_or(x), bias.unwrap_or(x), &eps];
    let rows = x.size() as i64 / i64::from(size);
    match i32::try_from(rows * i64::from(threads)) {
        Ok(_) => LAYER_NORM
            .call(
                &inputs,
                &constants,
                &[(x.shape(), 0)],
                Launch {
                    blocks: rows as i32,
                    threads,
                },
                s,
            )
            .map(first),
        Err(_) => Ok(None),
    }
}

/// The one output of a kernel that has one.
fn first(mut outputs: SmallVec<[Array; 2]>) -> Option<Array> {
    outputs.pop()
}

/// Elements that are read at once: 16 bytes at most, and a divisor of the size.
fn width(size: i32, dtype: Dtype) -> i32 {
    let mut vec = 16 / dtype.size() as i32;
    while size % vec != 0 {
        vec /= 2;
    }
    vec
}

const ROPE: CudaKernel = CudaKernel {
    name: c"emlx_rope",
    inputs: &[c"x", c"offset", c"freqs", c"params"],
    outputs: &[c"out"],
    in_rows: false,
    source: cr#"
  struct alignas(sizeof(T) * VEC) Pack { T v[VEC]; };
  constexpr int HALF = SIZE / 2, PARTS = HALF / VEC, GROUPS = (HEADS + GROUP - 1) / GROUP;
  size_t index = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= static_cast<size_t>(BATCH) * GROUPS * LENGTH * PARTS) return;
  const int first = (index % PARTS) * VEC;
  index /= PARTS;
  const int position = index % LENGTH;
  index /= LENGTH;
  const int from_head = (index % GROUPS) * GROUP;
  const int batch = index / GROUPS;
  const float place = params[0] * (position + offset[PER_ROW ? batch : 0]);
  float cosine[VEC], sine[VEC];
#pragma unroll
  for (int i = 0; i < VEC; i++) {
    const float inverse = OWN_FREQS ? 1.0f / freqs[first + i]
                                    : exp2f(-static_cast<float>(first + i) / HALF * params[1]);
    sincosf(place * inverse, &sine[i], &cosine[i]);
  }
  const int64_t step = x_strides[3];
  auto load = [&](const T* from) {
    Pack pack;
    if (step == 1 && reinterpret_cast<size_t>(from) % sizeof(Pack) == 0) {
      pack = *reinterpret_cast<const Pack*>(from);
    } else {
      for (int i = 0; i < VEC; i++) pack.v[i] = from[i * step];
    }
    return pack;
  };
  const T* from = x + batch * x_strides[0] + position * x_strides[2] + first * step;
  T* to = out + (static_cast<size_t>(batch) * HEADS * LENGTH + position) * SIZE + first;
#pragma unroll
  for (int h = 0; h < GROUP; h++) {
    const int head = from_head + h;
    if (head < HEADS) {
      const Pack a = load(from + head * x_strides[1]);
      const Pack b = load(from + head * x_strides[1] + HALF * step);
      Pack left, right;
#pragma unroll
      for (int i = 0; i < VEC; i++) {
        const float p = static_cast<float>(a.v[i]), q = static_cast<float>(b.v[i]);
        left.v[i] = static_cast<T>(p * cosine[i] - q * sine[i]);
        right.v[i] = static_cast<T>(p * sine[i] + q * cosine[i]);
      }
      T* row = to + static_cast<size_t>(head) * LENGTH * SIZE;
      *reinterpret_cast<Pack*>(row) = left;
      *reinterpret_cast<Pack*>(row + HALF) = right;
    }
  }
"#,
};

/// As MLX's of halves, over the whole last axis, for any strides of x {batch, heads, length, size}.
pub fn rope(
    x: &Array,
    base: Option<f32>,
    scale: f32,
    offset: &Array,
    freqs: Option<&Array>,
    s: &Stream,
) -> Result<Option<Array>> {
    const GROUP: i32 = 4;
    const THREADS: i32 = 256;
    let &[batch, heads, length, size] = x.shape() else {
        return Ok(None);
    };
    let has_freqs = match (base, freqs) {
        (Some(_), None) => false,
        (None, Some(freqs)) => freqs.ndim() == 1 && freqs.shape()[0] == size / 2,
        _ => return Ok(None),
    };
    if size % 16 != 0 || x.size() < MIN_SIZE || (freqs.is_some() && !has_freqs) {
        return Ok(None);
    }
    let dtype = mlx::dtype(x);
    let vec = width(size / 2, dtype);
    let groups = i64::from(heads.div_euclid(GROUP) + i32::from(heads % GROUP != 0));
    let items = i64::from(batch) * groups * i64::from(length) * i64::from(size / 2 / vec);
    let blocks = (items + i64::from(THREADS) - 1) / i64::from(THREADS);
    let Ok(blocks) = i32::try_from(blocks * i64::from(THREADS)).map(|all| all / THREADS) else {
        return Ok(None);
    };
    let params = [scale, base.unwrap_or(1.0).log2()];
    let params = params.map(f32::to_ne_bytes).concat();
    let params = mlx::from_bytes(&params, &[2], Dtype::F32)?;
    let offset = mlx::contiguous(&mlx::astype(offset, Dtype::S32, s)?, false, s)?;
    let freqs = match freqs {
        Some(freqs) => mlx::contiguous(&mlx::astype(freqs, Dtype::F32, s)?, false, s)?,
        None => mlx::share(&params)?,
    };
    let constants = [
        (c"BATCH", batch),
        (c"HEADS", heads),
        (c"LENGTH", length),
        (c"SIZE", size),
        (c"VEC", vec),
        (c"GROUP", GROUP),
        (c"PER_ROW", i32::from(offset.size() > 1)),
        (c"OWN_FREQS", i32::from(has_freqs)),
    ];
    let inputs = [x, &offset, &freqs, &params];
    let launch = Launch {
        blocks,
        threads: THREADS,
    };
    ROPE.call(&inputs, &constants, &[(x.shape(), 0)], launch, s)
        .map(first)
}
