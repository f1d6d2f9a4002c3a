//! Kernels of our own for the CPU, where MLX's are slow: vectorised, on all cores, 16-bit floats in f32. Called by the table of
//! operations (op/), which asks [`takes`] first; on the GPU, on macOS (Accelerate) and for other types MLX's own run.
//!
//! Beside mlx.rs this is where `unsafe` is: raw pointers come from MLX, and vector instructions are unsafe where a machine may lack them.

#![allow(clippy::missing_safety_doc)]

mod attention;
mod binary;
mod chain;
pub mod element;
mod few;
mod fold;
mod gemm;
mod math;
mod node;
pub mod pool;
mod quantized;
mod reduce;
mod rope;
mod rows;
mod scan;
mod scatter;
pub mod simd;
mod slices;
#[cfg(test)]
mod tests;
mod unary;

use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::mlx::View;
use crate::mlx::{self, Stream};
pub use attention::Mask;
pub use binary::Pair;
pub use chain::{Link, Links, Operand, MAX_LINKS};
use element::Element;
use half::{bf16, f16};
use mlx_rs::Array;
use node::Layout;
pub use reduce::Reduction;
pub use rope::Rope;
pub use scan::Scan;
use simd::Level;
use smallvec::{smallvec, SmallVec};
use std::cell::RefCell;
use std::ffi::CStr;
pub use unary::Function;

/// What a node computes, with all that tells it from another. Each names its inputs.
#[derive(Clone, Debug, PartialEq)]
pub enum Kernel {
    /// Arrays that broadcast to the result's shape.
    Chain(Links),
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
    /// a, what is written over a slice of it, and where the slice begins: a whole number for each of these axes, of 64 bits or 32.
    Update {
        axes: SmallVec<[u8; 8]>,
        is_wide: bool,
    },
    /// a, and where a slice of it begins, likewise.
    Slice {
        axes: SmallVec<[u8; 8]>,
        is_wide: bool,
    },
    /// a, updates, and a whole number of 64 bits for each update and each of these axes.
    ScatterAdd { axes: SmallVec<[u8; 8]> },
    /// a, updates, and a whole number of 64 bits for each of these, which says where it goes along the axis.
    ScatterAddAlong { axis: u8 },
    /// x; over these axes. Of complex numbers as pairs.
    Reduce {
        reduction: Reduction,
        axes: SmallVec<[u8; 8]>,
        is_pair: bool,
    },
    /// x; along an axis. Of complex numbers as pairs.
    Scan {
        scan: Scan,
        axis: u8,
        is_reverse: bool,
        is_inclusive: bool,
        is_pair: bool,
    },
}

/// Elements from which a second thread pays: below, waking it takes longer than the work.
const WORTH_SHARING: usize = 32_768;
/// Elements in a part of shared work.
const PART: usize = 8_192;
/// Elements of a row from which operands that are repeated along rows are worth a kernel here.
const SHORTEST_ROW: i32 = 16;

/// Whether operations on this device, of this type, have kernels here.
pub fn takes(device: Device, x: &Array) -> bool {
    device == Device::Cpu && has_type(mlx::dtype(x)) && are_there()
}

/// Whether kernels here compute with numbers of this type.
pub fn has_type(dtype: Dtype) -> bool {
    dtype == Dtype::F32 || dtype.is_half()
}

/// Whether they are built here, and not switched off.
pub fn are_there() -> bool {
    are_built() && !is_switched_off()
}

/// Whether they are built here: not on macOS.
pub fn are_built() -> bool {
    cfg!(emlx_kernels)
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

/// Of every element of x, where it is of a type that kernels here take; what MLX does as well, only where threads pay. Else None.
pub fn unary(function: Function, x: &Array, device: Device, s: &Stream) -> Result<Option<Array>> {
    let is_simple = matches!(
        function,
        Function::Negative | Function::Abs | Function::Square
    );
    if !takes(device, x) || is_simple && x.size() < WORTH_SHARING {
        return Ok(None);
    }
    let link = Link::Unary(function, Operand::Input(0));
    chain(smallvec![link], &[x], x.shape(), mlx::dtype(x), s).map(Some)
}

/// a and b broadcast to one shape, where they are floats of one type or one of them is a whole number; what MLX does as well, only where
/// threads pay. Else None.
pub fn binary(
    pair: Pair,
    a: &Array,
    b: &Array,
    device: Device,
    s: &Stream,
) -> Result<Option<Array>> {
    let (larger, other) = if a.size() >= b.size() { (a, b) } else { (b, a) };
    let (shape, dtype) = (larger.shape(), mlx::dtype(larger));
    let is_worth = pair == Pair::Power || larger.size() >= WORTH_SHARING;
    if !is_worth
        || !takes(device, larger)
        || !goes_into(other.shape(), mlx::dtype(other), shape, dtype)
    {
        return Ok(None);
    }
    let link = Link::Binary(pair, Operand::Input(0), Operand::Input(1));
    chain(smallvec![link], &[a, b], shape, dtype, s).map(Some)
}

/// Whether a kernel of elements takes such an operand beside a result of `shape` and `dtype`: of that type, or a single whole number,
/// which takes on the type of the floats that it meets; repeated along rows only where these are worth it.
pub fn goes_into(own: &[i32], own_dtype: Dtype, shape: &[i32], dtype: Dtype) -> bool {
    let is_single = own.iter().all(|size| *size == 1);
    let is_long = shape.last().is_some_and(|n| *n >= SHORTEST_ROW);
    (own_dtype == dtype || is_single && is_whole(own_dtype))
        && (own == shape || is_repeated_to(own, shape) && (is_single || is_long))
}

/// Whether an array of `from`'s shape broadcasts to `shape`.
fn is_repeated_to(from: &[i32], shape: &[i32]) -> bool {
    let mut sizes = from.iter().rev().zip(shape.iter().rev());
    from.len() <= shape.len() && sizes.all(|(own, size)| own == size || *own == 1)
}

fn is_whole(dtype: Dtype) -> bool {
    dtype.is_integer() || dtype == Dtype::Bool
}

/// Links over arrays that broadcast to `shape`, of type `dtype` or single whole numbers.
pub fn chain(
    links: Links,
    inputs: &[&Array],
    shape: &[i32],
    dtype: Dtype,
    s: &Stream,
) -> Result<Array> {
    let mut like = None;
    let mut numbers: SmallVec<[Option<Array>; 4]> = SmallVec::new();
    for input in inputs {
        let own = mlx::dtype(input);
        if !is_repeated_to(input.shape(), shape) || own != dtype && !is_whole(own) {
            return Err(Error::invalid(format!(
                "a chain to {} of shape {shape:?} is given {} of shape {:?}",
                dtype.name(),
                own.name(),
                input.shape()
            )));
        }
        let is_same = own == dtype;
        like = like.or(is_same.then_some(*input));
        numbers.push(match is_same {
            true => None,
            false => Some(mlx::astype(input, dtype, s)?),
        });
    }
    let like = like.ok_or_else(|| Error::invalid("a chain is given no numbers of its type"))?;
    let inputs: SmallVec<[&Array; 4]> = inputs
        .iter()
        .zip(&numbers)
        .map(|(input, number)| number.as_ref().unwrap_or(input))
        .collect();
    node::new(
        Kernel::Chain(links),
        Layout::Together,
        &inputs,
        shape,
        like,
        s,
    )
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

/// Whether [`slice`] and [`update`] take arrays of this type on this device.
pub fn slices(device: Device, dtype: Dtype) -> bool {
    device == Device::Cpu && are_there() && (dtype.is_half() || dtype.size() == 4)
}

/// `a` with `update` in place of a slice, as far inside as it fits. Both are of one type, and `start` is of 32 or 64 bits with signs.
pub fn update(
    a: &Array,
    update: &Array,
    start: &Array,
    axes: SmallVec<[u8; 8]>,
    s: &Stream,
) -> Result<Array> {
    let is_wide = mlx::dtype(start) == Dtype::S64;
    let kernel = Kernel::Update { axes, is_wide };
    node::new(
        kernel,
        Layout::LikeFirst,
        &[a, update, start],
        a.shape(),
        a,
        s,
    )
}

/// The slice of `shape` that begins at `start`, as far inside as it fits.
pub fn slice(
    a: &Array,
    start: &Array,
    axes: SmallVec<[u8; 8]>,
    shape: &[i32],
    s: &Stream,
) -> Result<Array> {
    let is_wide = mlx::dtype(start) == Dtype::S64;
    let kernel = Kernel::Slice { axes, is_wide };
    node::new(kernel, Layout::Rows, &[a, start], shape, a, s)
}

/// `a` with slices of `updates` {of the index arrays' shape, then of an axis for each of a's} added where s64
/// `indices` of one shape say, one for each of `axes`. A negative index counts from the end, and what does not fit is
/// left out.
pub fn scatter_add(
    a: &Array,
    updates: &Array,
    indices: &[Array],
    axes: SmallVec<[u8; 8]>,
    s: &Stream,
) -> Result<Array> {
    let inputs: SmallVec<[&Array; 6]> = [a, updates].into_iter().chain(indices).collect();
    let kernel = Kernel::ScatterAdd { axes };
    node::new(kernel, Layout::LikeFirst, &inputs, a.shape(), a, s)
}

/// `a` with each of `updates`, of a's shape but for `axis`, added where it lies itself but for `axis`, along which its
/// s64 index says where.
pub fn scatter_add_along(
    a: &Array,
    updates: &Array,
    index: &Array,
    axis: u8,
    s: &Stream,
) -> Result<Array> {
    let kernel = Kernel::ScatterAddAlong { axis };
    let inputs = [a, updates, index];
    node::new(kernel, Layout::LikeFirst, &inputs, a.shape(), a, s)
}

/// Whether [`reduce`] takes numbers of a type: complex ones where their parts are each reduced by themselves.
pub fn reduces(reduction: Reduction, dtype: Dtype) -> bool {
    let is_apart = matches!(reduction, Reduction::Sum | Reduction::Mean);
    has_type(dtype) || dtype == Dtype::C64 && is_apart
}

/// `x`, which has elements and a type that [`reduces`], over `axes`, to `shape`.
pub fn reduce(
    reduction: Reduction,
    x: &Array,
    axes: SmallVec<[u8; 8]>,
    shape: &[i32],
    s: &Stream,
) -> Result<Array> {
    let kernel = Kernel::Reduce {
        reduction,
        axes,
        is_pair: mlx::dtype(x) == Dtype::C64,
    };
    node::new(kernel, Layout::Rows, &[x], shape, x, s)
}

/// Whether [`scan`] takes numbers of a type.
pub fn scans(scan: Scan, dtype: Dtype) -> bool {
    has_type(dtype) || dtype == Dtype::C64 && scan == Scan::Sum
}

/// `x`, which has elements and a type that [`scans`], along `axis`.
pub fn scan(
    scan: Scan,
    x: &Array,
    axis: u8,
    is_reverse: bool,
    is_inclusive: bool,
    s: &Stream,
) -> Result<Array> {
    let kernel = Kernel::Scan {
        scan,
        axis,
        is_reverse,
        is_inclusive,
        is_pair: mlx::dtype(x) == Dtype::C64,
    };
    node::new(kernel, Layout::Rows, &[x], x.shape(), x, s)
}

impl Kernel {
    fn name(&self) -> &'static CStr {
        match self {
            Kernel::Chain(links) => match links[..] {
                [Link::Unary(function, _)] => function.name(),
                [Link::Binary(pair, ..)] => pair.name(),
                _ => c"chain",
            },
            Kernel::Softmax => c"softmax",
            Kernel::RmsNorm { .. } => c"rms_norm",
            Kernel::LayerNorm { .. } => c"layer_norm",
            Kernel::Rope(_) => c"rope",
            Kernel::Attention { .. } => c"scaled_dot_product_attention",
            Kernel::Product => c"matmul",
            Kernel::QuantizedProduct { .. } => c"quantized_matmul",
            Kernel::Update { .. } => c"slice_update_dynamic",
            Kernel::Slice { .. } => c"slice_dynamic",
            Kernel::ScatterAdd { .. } => c"scatter_add",
            Kernel::ScatterAddAlong { .. } => c"scatter_add_axis",
            Kernel::Reduce { reduction, .. } => reduction.name(),
            Kernel::Scan { scan, .. } => scan.name(),
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
            // Or pairs of f32, or, where numbers are only moved, any type as large.
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
            Kernel::Update { ref axes, is_wide } => slices::update::<T>(axes, is_wide, inputs, out),
            Kernel::Slice { ref axes, is_wide } => slices::slice::<T>(axes, is_wide, inputs, out),
            Kernel::ScatterAdd { ref axes } => scatter::add_slices::<T>(axes, inputs, out),
            Kernel::ScatterAddAlong { axis } => scatter::add_along::<T>(axis.into(), inputs, out),
            Kernel::Reduce {
                reduction,
                ref axes,
                is_pair,
            } => reduce::run::<T>(level, reduction, axes, is_pair, &inputs[0], out),
            Kernel::Scan {
                scan,
                axis,
                is_reverse,
                is_inclusive,
                is_pair,
            } => {
                let how = scan::How {
                    scan,
                    axis: axis.into(),
                    is_reverse,
                    is_inclusive,
                    is_pair,
                };
                scan::run::<T>(level, &how, &inputs[0], out)
            }
            Kernel::Chain(ref links) => chain::run::<T>(level, links, inputs, out),
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
