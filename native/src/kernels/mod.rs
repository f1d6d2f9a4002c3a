//! Kernels of our own for the CPU, where MLX's are slow: vectorised, on all cores, 16-bit floats in f32. Called by the table of
//! operations (op/), which asks [`takes`] first; on the GPU, on macOS (Accelerate) and for other types MLX's own run.
//!
//! Beside mlx.rs this is where `unsafe` is: raw pointers come from MLX, and vector instructions are unsafe where a machine may lack them.

#![allow(clippy::missing_safety_doc)]

mod attention;
mod binary;
pub mod element;
mod few;
mod gemm;
mod math;
mod node;
pub mod pool;
mod quantized;
mod rope;
mod rows;
pub mod simd;
#[cfg(test)]
mod tests;
mod unary;

use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::mlx::{self, Stream};
pub use attention::Mask;
pub use binary::Pair;
use element::Element;
use half::{bf16, f16};
use mlx_rs::Array;
pub use node::Functions;
use node::{Layout, View};
pub use rope::Rope;
use simd::Level;
use std::cell::RefCell;
use std::ffi::CStr;
pub use unary::Function;

/// What a node computes, with all that tells it from another. Each names its inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kernel {
    /// x
    Unary(Function),
    /// a and b, of one shape
    Binary(Pair),
    /// x; over the last axis.
    Softmax,
    /// x, and weight where there is one; over the last axis.
    RmsNorm { eps: f32 },
    /// x, then weight and bias where they are; over the last axis.
    LayerNorm { eps: f32, weight: bool, bias: bool },
    /// x, offset, and frequencies where they are given.
    Rope(Rope),
    /// q, k, v, and a mask where it is one of numbers or booleans.
    Attention { scale: f32, mask: Mask },
    /// a {…, n, k} and b {…, k, m}, broadcast over the axes before these.
    Product,
    /// x {n, k}, weights {m, k · bits / 32}, scales and biases {m, k / group}.
    QuantizedProduct { group: usize, bits: usize },
}

/// Elements from which a second thread pays: below, waking it takes longer than the work.
const WORTH_SHARING: usize = 32_768;
/// Elements in a part of shared work.
const PART: usize = 8_192;

/// Whether operations on this device, of this type, have kernels here.
pub fn takes(device: Device, x: &Array) -> bool {
    let dtype = mlx::dtype(x);
    cfg!(emlx_kernels)
        && device == Device::Cpu
        && (dtype == Dtype::F32 || dtype.is_half())
        && !is_switched_off()
}

/// Whether the machine has the vector instructions that products here are written for; without them BLAS is quicker.
pub fn has_vectors() -> bool {
    Level::best() != Level::Portable
}

/// For benchmarks that compare with MLX's own kernels (`bench/cpu_kernels.exs`).
fn is_switched_off() -> bool {
    static OFF: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *OFF.get_or_init(|| std::env::var_os("EMLX_KERNELS").is_some_and(|value| value == "mlx"))
}

pub fn unary(function: Function, x: &Array, s: &Stream) -> Result<Array> {
    node::new(
        Kernel::Unary(function),
        Layout::Elementwise,
        &[x],
        x.shape(),
        x,
        s,
    )
}

/// a and b broadcast to one shape, where they are floats of one type and many enough for threads to pay; else None.
pub fn binary(
    pair: Pair,
    a: &Array,
    b: &Array,
    device: Device,
    s: &Stream,
) -> Option<Result<Array>> {
    let (left, right) = (a.shape(), b.shape());
    let larger = if a.size() >= b.size() { a } else { b };
    let shape = larger.shape();
    let fits = |other: &[i32]| {
        let pairs = other.iter().rev().zip(shape.iter().rev());
        other.len() <= shape.len() && pairs.into_iter().all(|(n, m)| n == m || *n == 1)
    };
    let many = larger.size() >= WORTH_SHARING && shape.last().is_some_and(|n| *n >= 16);
    if !many || !takes(device, a) || mlx::dtype(a) != mlx::dtype(b) || !fits(left) || !fits(right) {
        return None;
    }
    let whole = |array: &Array| {
        if array.shape() == shape {
            mlx::share(array)
        } else {
            mlx::broadcast_to(array, shape, s)
        }
    };
    let build = || {
        let (a, b) = (whole(a)?, whole(b)?);
        // The one that may lend its memory comes first in the layout's eyes.
        node::new(
            Kernel::Binary(pair),
            Layout::Elementwise,
            &[&a, &b],
            shape,
            &a,
            s,
        )
    };
    Some(build())
}

/// Over the last axis, which is not empty.
pub fn softmax(x: &Array, s: &Stream) -> Result<Array> {
    node::new(Kernel::Softmax, Layout::LikeFirst, &[x], x.shape(), x, s)
}

pub fn rms_norm(x: &Array, weight: Option<&Array>, eps: f32, s: &Stream) -> Result<Array> {
    let inputs: Vec<&Array> = [Some(x), weight].into_iter().flatten().collect();
    node::new(
        Kernel::RmsNorm { eps },
        Layout::LikeFirst,
        &inputs,
        x.shape(),
        x,
        s,
    )
}

pub fn layer_norm(
    x: &Array,
    weight: Option<&Array>,
    bias: Option<&Array>,
    eps: f32,
    s: &Stream,
) -> Result<Array> {
    let inputs: Vec<&Array> = [Some(x), weight, bias].into_iter().flatten().collect();
    let kernel = Kernel::LayerNorm {
        eps,
        weight: weight.is_some(),
        bias: bias.is_some(),
    };
    node::new(kernel, Layout::LikeFirst, &inputs, x.shape(), x, s)
}

/// x is {batch, …, length, size}, offset an integer for all or for each batch row, frequencies {dims / 2}.
pub fn rope(
    x: &Array,
    rope: Rope,
    offset: &Array,
    frequencies: Option<&Array>,
    s: &Stream,
) -> Result<Array> {
    let offset = mlx::astype(offset, Dtype::S32, s)?;
    let frequencies = frequencies
        .map(|array| mlx::astype(array, Dtype::F32, s))
        .transpose()?;
    let inputs: Vec<&Array> = [Some(x), Some(&offset), frequencies.as_ref()]
        .into_iter()
        .flatten()
        .collect();
    node::new(
        Kernel::Rope(rope),
        Layout::LikeFirst,
        &inputs,
        x.shape(),
        x,
        s,
    )
}

/// All operands of one type; a mask of numbers too, and any mask of the scores' shape.
pub fn attention(
    q: &Array,
    k: &Array,
    v: &Array,
    mask: Option<&Array>,
    kind: Mask,
    scale: f32,
    s: &Stream,
) -> Result<Array> {
    let inputs: Vec<&Array> = [Some(q), Some(k), Some(v), mask]
        .into_iter()
        .flatten()
        .collect();
    let shape = [q.shape()[0], q.shape()[1], q.shape()[2], v.shape()[3]];
    let kernel = Kernel::Attention { scale, mask: kind };
    node::new(kernel, Layout::HeadsInside, &inputs, &shape, q, s)
}

/// a·b of at least two axes each and of one type, whose sizes have been checked.
pub fn product(a: &Array, b: &Array, shape: &[i32], s: &Stream) -> Result<Array> {
    node::new(Kernel::Product, Layout::Rows, &[a, b], shape, a, s)
}

/// x {n, k} times the rows of quantized weights, whose types and shapes have been checked.
pub fn quantized_product(
    inputs: &[&Array; 4],
    group: usize,
    bits: usize,
    s: &Stream,
) -> Result<Array> {
    let shape = [inputs[0].shape()[0], inputs[1].shape()[0]];
    let kernel = Kernel::QuantizedProduct { group, bits };
    node::new(kernel, Layout::Rows, inputs, &shape, inputs[0], s)
}

impl Kernel {
    fn name(&self) -> &'static CStr {
        match self {
            Kernel::Unary(function) => match function {
                Function::Exp => c"exp",
                Function::Sigmoid => c"sigmoid",
                Function::Tanh => c"tanh",
                Function::Erf => c"erf",
                Function::Sqrt => c"sqrt",
                Function::Rsqrt => c"rsqrt",
            },
            Kernel::Binary(pair) => match pair {
                Pair::Add => c"add",
                Pair::Subtract => c"subtract",
                Pair::Multiply => c"multiply",
                Pair::Divide => c"divide",
            },
            Kernel::Softmax => c"softmax",
            Kernel::RmsNorm { .. } => c"rms_norm",
            Kernel::LayerNorm { .. } => c"layer_norm",
            Kernel::Rope(_) => c"rope",
            Kernel::Attention { .. } => c"scaled_dot_product_attention",
            Kernel::Product => c"matmul",
            Kernel::QuantizedProduct { .. } => c"quantized_matmul",
        }
    }

    /// Computes, on MLX's thread of the stream.
    ///
    /// # Safety
    /// The views are those of live arrays as the functions above have given them to [`node::new`].
    unsafe fn run(&self, inputs: &[View], out: &View, dtype: Dtype) {
        if out.size() == 0 {
            return;
        }
        match dtype {
            Dtype::Bf16 => self.run_as::<bf16>(inputs, out),
            Dtype::F16 => self.run_as::<f16>(inputs, out),
            _ => self.run_as::<f32>(inputs, out),
        }
    }

    unsafe fn run_as<T: Element>(&self, inputs: &[View], out: &View) {
        let level = Level::best();
        match *self {
            Kernel::Rope(ref rope) => rope::run::<T>(level, rope, inputs, out),
            Kernel::Attention { scale, mask } => {
                attention::run::<T>(level, inputs, mask, scale, out)
            }
            Kernel::Product => run_product::<T>(level, &inputs[0], &inputs[1], out),
            Kernel::QuantizedProduct { group, bits } => {
                quantized::run::<T>(level, inputs, group, bits, out)
            }
            Kernel::Unary(function) => run_unary::<T>(level, function, &inputs[0], out),
            Kernel::Binary(pair) => run_binary::<T>(level, pair, &inputs[0], &inputs[1], out),
            Kernel::Softmax => by_rows::<T>(&inputs[0], &[], out, &|x, _, to, count, scratch| {
                rows::softmax::<T>(level, x, to, count, scratch)
            }),
            Kernel::RmsNorm { eps } => by_rows::<T>(
                &inputs[0],
                &inputs[1..],
                out,
                &|x, rest, to, count, scratch| {
                    let weight = rest.first().copied().unwrap_or(std::ptr::null());
                    rows::rms_norm::<T>(level, x, weight, to, count, eps, scratch)
                },
            ),
            Kernel::LayerNorm { eps, weight, bias } => by_rows::<T>(
                &inputs[0],
                &inputs[1..],
                out,
                &|x, rest, to, count, scratch| {
                    let null = std::ptr::null();
                    let of_weight = if weight { rest[0] } else { null };
                    let of_bias = if bias { rest[weight as usize] } else { null };
                    rows::layer_norm::<T>(level, x, of_weight, of_bias, to, count, eps, scratch)
                },
            ),
        }
    }
}

/// A pointer that threads may share, each for elements of its own.
struct Shared<T>(*mut T);

// SAFETY: the parts that threads write do not overlap.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    unsafe fn at(&self, i: usize) -> *mut T {
        self.0.add(i)
    }

    unsafe fn offset(&self, i: isize) -> *mut T {
        self.0.offset(i)
    }
}

unsafe fn run_unary<T: Element>(level: Level, function: Function, x: &View, out: &View) {
    let (from, to) = (Shared(x.data.cast::<T>()), Shared(out.data.cast::<T>()));
    if out.flat > 0 {
        let count = out.flat;
        return pool::parallel(count.div_ceil(PART), count >= WORTH_SHARING, &|i| {
            let (start, end) = (i * PART, count.min((i + 1) * PART));
            // SAFETY: within both arrays.
            unsafe { unary::apply(level, function, from.at(start), to.at(start), end - start) }
        });
    }
    // Laid out in some other way: copied into rows on the way.
    let (rows, count) = out.rows();
    let step = x.step();
    let parts = (rows * count).div_ceil(PART).min(rows);
    pool::parallel(parts, rows * count >= WORTH_SHARING, &|part| {
        for row in rows * part / parts..rows * (part + 1) / parts {
            // SAFETY: the view's own shape and strides.
            unsafe {
                let (start, to) = (x.row(row), to.at(row * count));
                let from = from.offset(start);
                if step == 1 {
                    unary::apply(level, function, from, to, count);
                } else {
                    for i in 0..count {
                        to.add(i).write(from.offset(i as isize * step).read());
                    }
                    unary::apply(level, function, to, to, count);
                }
            }
        }
    });
}

unsafe fn run_binary<T: Element>(level: Level, pair: Pair, a: &View, b: &View, out: &View) {
    let (left, right) = (Shared(a.data.cast::<T>()), Shared(b.data.cast::<T>()));
    let to = Shared(out.data.cast::<T>());
    if out.flat > 0 {
        let count = out.flat;
        return pool::parallel(count.div_ceil(PART), count >= WORTH_SHARING, &|i| {
            let (start, end) = (i * PART, count.min((i + 1) * PART));
            // SAFETY: within all arrays.
            unsafe {
                let (a, b, to) = (left.at(start), right.at(start), to.at(start));
                binary::apply(level, pair, a, false, b, false, to, end - start)
            }
        });
    }
    let (rows, count) = out.rows();
    let (a_step, b_step) = (a.step(), b.step());
    let parts = (rows * count).div_ceil(PART).min(rows);
    pool::parallel(parts, rows * count >= WORTH_SHARING, &|part| {
        let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
        for row in rows * part / parts..rows * (part + 1) / parts {
            // SAFETY: the views' own shapes and strides.
            unsafe {
                let mut a = left.offset(a.row(row)).cast_const();
                let mut b = right.offset(b.row(row)).cast_const();
                if !(0..=1).contains(&a_step) {
                    of_a = gather(a, a_step, count);
                    a = of_a.as_ptr();
                }
                if !(0..=1).contains(&b_step) {
                    of_b = gather(b, b_step, count);
                    b = of_b.as_ptr();
                }
                let to = to.at(row * count);
                binary::apply(level, pair, a, a_step == 0, b, b_step == 0, to, count);
            }
        }
        drop((of_a, of_b));
    });
}

/// A row, the vectors beside it, the row of the result, their length, and room for a row of f32.
type RowWork<'a, T> = dyn Fn(*const T, &[*const T], *mut T, usize, *mut f32) + Sync + 'a;

/// Calls `work` for each row of the first input with the vectors `rest`, the row of `out`, and room for a row of f32.
unsafe fn by_rows<T: Element>(x: &View, rest: &[View], out: &View, work: &RowWork<T>) {
    thread_local! {
        static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    let (rows, count) = x.rows();
    let step = x.step();
    // Vectors of one axis, made contiguous where they are not.
    let copies: Vec<Option<Vec<T>>> = rest
        .iter()
        .map(|vector| match vector.strides().last() {
            Some(1) | None => None,
            Some(step) => Some(gather::<T>(vector.data.cast(), *step as isize, count)),
        })
        .collect();
    let vectors: Vec<Shared<T>> = rest
        .iter()
        .zip(&copies)
        .map(|(vector, copy)| match copy {
            Some(copy) => Shared(copy.as_ptr().cast_mut()),
            None => Shared(vector.data.cast::<T>()),
        })
        .collect();
    let (from, to) = (Shared(x.data.cast::<T>()), Shared(out.data.cast::<T>()));
    let parts = (rows * count).div_ceil(PART).min(rows);
    pool::parallel(parts, rows * count >= WORTH_SHARING, &|part| {
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.len() < count {
                scratch.resize(count, 0.0);
            }
            let vectors: Vec<*const T> = vectors
                .iter()
                .map(|vector| vector.at(0).cast_const())
                .collect();
            for row in rows * part / parts..rows * (part + 1) / parts {
                // SAFETY: the view's own shape and strides, and a row that is this part's alone.
                unsafe {
                    let to = to.offset(out.row(row));
                    let mut x = from.offset(x.row(row)).cast_const();
                    if step != 1 {
                        // The row of the result serves as the place to copy to: each kernel reads a row before it writes it.
                        for i in 0..count {
                            to.add(i).write(x.offset(i as isize * step).read());
                        }
                        x = to;
                    }
                    work(x, &vectors, to, count, scratch.as_mut_ptr());
                }
            }
        })
    });
}

unsafe fn gather<T: Element>(from: *const T, step: isize, count: usize) -> Vec<T> {
    (0..count as isize)
        .map(|i| from.offset(i * step).read())
        .collect()
}

unsafe fn run_product<T: Element>(level: Level, a: &View, b: &View, out: &View) {
    let matrix = |view: &View, number: usize| {
        let (shape, strides) = (view.shape(), view.strides());
        let rank = shape.len();
        // The axes before the last two, of which those of size 1 are repeated.
        let mut offset = 0;
        let mut number = number;
        for axis in (0..out.shape().len() - 2).rev() {
            let size = out.shape()[axis] as usize;
            let own = (axis + rank).checked_sub(out.shape().len());
            if let Some(own) = own.filter(|own| shape[*own] != 1) {
                offset += (number % size) as isize * strides[own] as isize;
            }
            number /= size;
        }
        gemm::Matrix {
            data: view.data.cast::<T>().cast_const().offset(offset),
            row: strides[rank - 2] as isize,
            column: strides[rank - 1] as isize,
        }
    };
    let sizes = |view: &View, back: usize| view.shape()[view.shape().len() - back] as usize;
    let (rows, terms, columns) = (sizes(a, 2), sizes(a, 1), sizes(b, 1));
    let to = Shared(out.data.cast::<T>());
    let count = out.size() / (rows * columns);
    let one = |number: usize| {
        // SAFETY: within the views, and a matrix of the result that is this one's alone.
        unsafe {
            let to = to.at(number * rows * columns);
            let (a, b) = (matrix(a, number), matrix(b, number));
            gemm::product::<T>(level, a, b, to, (rows, terms, columns));
        }
    };
    // Many products go one to a thread, few of them are each shared out.
    if count >= 2 * pool::threads() {
        let work = count * rows * terms * columns;
        pool::parallel(count, work >= gemm::WORTH_SHARING, &one);
    } else {
        for number in 0..count {
            one(number);
        }
    }
}
