//! The CPU's kernels of our own (the crate `emlx_cpu`, native/cpu) as operations on MLX's arrays. Called by the table
//! of operations (op/), which asks [`takes`] first; on the GPU, on macOS (Accelerate) and for other types MLX's own
//! run.

mod chain;
mod linear;
mod node;
mod order;

use crate::base::{Device, Dtype, Result};
use crate::mlx::{self, Stream};
pub use chain::{chain, chain_of, chains, joined_chain, ChainOf};
use emlx_cpu::Kernel;
pub use emlx_cpu::{
    has_vectors, Action, Beyond, Bits, Choice, Comparison, Conv, Division, Fft, Form, Function,
    Linear, Link, Links, Mask, Masked, Operand, Pair, Reduction, Rope, Scan, Step as RowStep, Test,
    Total, Type, WindowTotal, Windows, MAX_INT8_TERMS, MAX_LINKS, MAX_STEPS, WORTH_SHARING,
};
pub use linear::{factors, fft, has_linear, linear, log_determinant, solve};
use mlx_rs::Array;
use node::Layout;
pub use order::{arg_extreme, argsort, extreme, orders, sort, top, total, totals, truth};
use smallvec::SmallVec;
use std::sync::Arc;

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

/// For benchmarks that compare with MLX's own kernels (`bench/cpu_kernels.exs`).
fn is_switched_off() -> bool {
    static OFF: once_cell::sync::OnceCell<bool> = once_cell::sync::OnceCell::new();
    *OFF.get_or_init(|| std::env::var_os("EMLX_KERNELS").is_some_and(|value| value == "mlx"))
}

/// The kernels' name of a type; None of complex numbers.
pub fn type_of(dtype: Dtype) -> Option<Type> {
    Some(match dtype {
        Dtype::Bool => Type::Bool,
        Dtype::U8 => Type::U8,
        Dtype::U16 => Type::U16,
        Dtype::U32 => Type::U32,
        Dtype::U64 => Type::U64,
        Dtype::S8 => Type::S8,
        Dtype::S16 => Type::S16,
        Dtype::S32 => Type::S32,
        Dtype::S64 => Type::S64,
        Dtype::F16 => Type::F16,
        Dtype::Bf16 => Type::Bf16,
        Dtype::F32 => Type::F32,
        Dtype::F64 => Type::F64,
        Dtype::C64 => return None,
    })
}

/// The type that the kernels call so.
pub fn dtype_of(kind: Type) -> Dtype {
    match kind {
        Type::Bool => Dtype::Bool,
        Type::U8 => Dtype::U8,
        Type::U16 => Dtype::U16,
        Type::U32 => Dtype::U32,
        Type::U64 => Dtype::U64,
        Type::S8 => Dtype::S8,
        Type::S16 => Dtype::S16,
        Type::S32 => Dtype::S32,
        Type::S64 => Dtype::S64,
        Type::F16 => Dtype::F16,
        Type::Bf16 => Dtype::Bf16,
        Type::F32 => Dtype::F32,
        Type::F64 => Dtype::F64,
    }
}

/// The shape that arrays broadcast to; None where they don't.
pub fn broadcast<'a>(shapes: impl Iterator<Item = &'a [i32]>) -> Option<SmallVec<[i32; 6]>> {
    let mut all: SmallVec<[i32; 6]> = SmallVec::new();
    for shape in shapes {
        while all.len() < shape.len() {
            all.insert(0, 1);
        }
        let skipped = all.len() - shape.len();
        for (size, own) in all[skipped..].iter_mut().zip(shape) {
            match (*size, *own) {
                (a, b) if a == b || b == 1 => {}
                (1, b) => *size = b,
                _ => return None,
            }
        }
    }
    Some(all)
}

/// Whether an array of `from`'s shape broadcasts to `shape`.
pub fn goes_into(from: &[i32], shape: &[i32]) -> bool {
    let mut sizes = from.iter().rev().zip(shape.iter().rev());
    from.len() <= shape.len() && sizes.all(|(own, size)| own == size || *own == 1)
}

/// Links with other numbers for their inputs.
pub fn renumbered(links: Links, number: impl Fn(usize) -> usize) -> Links {
    let operand = |operand: &Operand| match *operand {
        Operand::Input(input) => Operand::Input(number(input.into()) as u8),
        link => link,
    };
    links
        .iter()
        .map(|link| {
            let operands: SmallVec<[Operand; 3]> = link.operands().iter().map(operand).collect();
            link.over(&operands)
        })
        .collect()
}

/// Adds a link to a chain. Returns what has its value: a boolean is a byte that is 0 or 1, and one that goes through a
/// number is itself.
pub fn push_link(links: &mut Links, link: Link) -> Operand {
    let operand = link.operands()[0];
    let before = match operand {
        Operand::Link(number) => links.get(usize::from(number)),
        Operand::Input(_) => None,
    };
    if link.action == Action::Cast {
        let is_boolean = before.map_or(link.from, |before| before.to) == Type::Bool;
        if is_boolean && is_as_boolean(link.to) {
            return operand;
        }
        if let (Type::Bool, Some(before)) = (link.to, before) {
            if before.action == Action::Cast && before.from == Type::Bool {
                return before.operands()[0];
            }
        }
    }
    links.push(link);
    Operand::Link(links.len() as u8 - 1)
}

/// Whether a boolean's byte is the same number in a type.
pub fn is_as_boolean(of: Type) -> bool {
    matches!(of, Type::Bool | Type::U8 | Type::S8)
}

/// The links that the last one needs, and those that are kept.
pub fn needed_links(links: Links) -> Links {
    let mut is_needed: SmallVec<[bool; 8]> = links.iter().map(|link| link.is_kept).collect();
    if let Some(last) = is_needed.last_mut() {
        *last = true;
    }
    for (i, link) in links.iter().enumerate().rev() {
        if !is_needed[i] {
            continue;
        }
        for operand in link.operands() {
            if let Operand::Link(number) = operand {
                is_needed[usize::from(*number)] = true;
            }
        }
    }
    let number = |old: u8| {
        is_needed[..usize::from(old)]
            .iter()
            .filter(|is| **is)
            .count() as u8
    };
    let needed = links.iter().zip(&is_needed).filter(|(_, is)| **is);
    needed
        .map(|(link, _)| {
            let operand = |operand: &Operand| match *operand {
                Operand::Link(old) => Operand::Link(number(old)),
                input => input,
            };
            let operands: SmallVec<[Operand; 3]> = link.operands().iter().map(operand).collect();
            link.over(&operands)
        })
        .collect()
}

/// The same where it is small and the inputs are computed, by the caller; else None.
pub fn chain_at_once(
    links: Links,
    inputs: &[&Array],
    shape: &[i32],
    dtype: Dtype,
    s: &Stream,
) -> Result<Option<Array>> {
    node::at_once(Kernel::Chain(links), inputs, shape, dtype, s)
}

/// A small computed array once more, in rows and in memory of its own; else None.
pub fn copy_at_once(a: &Array, s: &Stream) -> Result<Option<Array>> {
    let dtype = mlx::dtype(a);
    let Some(of) = type_of(dtype) else {
        return Ok(None);
    };
    let links = [Link::new(Action::Cast, of, of, &[Operand::Input(0)])];
    chain_at_once(links.into_iter().collect(), &[a], a.shape(), dtype, s)
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

/// [`product`] where it is small and the operands are computed, by the caller; else None.
pub fn product_at_once(a: &Array, b: &Array, shape: &[i32], s: &Stream) -> Result<Option<Array>> {
    node::at_once_like(Kernel::Product, &[a, b], shape, a, s)
}

/// The same of integers or booleans, which are multiplied and added up in their type.
pub fn integer_product(a: &Array, b: &Array, shape: &[i32], s: &Stream) -> Result<Array> {
    let dtype = mlx::dtype(a);
    let of = dtype.try_into()?;
    let kernel = Kernel::IntegerProduct { of };
    node::typed(kernel, Layout::Rows, &[a, b], shape, dtype, s)
}

/// `a` {batch, space…, channels} convolved with `weight` {output channels, space…, channels / groups} of its type, to
/// `shape`, which have been checked.
pub fn conv(conv: Conv, a: &Array, weight: &Array, shape: &[i32], s: &Stream) -> Result<Array> {
    let kernel = Kernel::Conv(Arc::new(conv));
    node::new(kernel, Layout::Rows, &[a, weight], shape, a, s)
}

/// Whether [`window_reduce`] and [`window_scatter`] take this array on this device.
pub fn has_windows(device: Device, x: &Array) -> bool {
    let dtype = mlx::dtype(x);
    let is_wide = dtype == Dtype::F32 || dtype == Dtype::F64 || dtype.is_integer();
    device == Device::Cpu && are_there() && x.ndim() > 0 && x.size() > 0 && is_wide
}

/// The total of each window of an array that [`has_windows`], to `shape`, which has been checked.
pub fn window_reduce(
    total: WindowTotal,
    windows: Windows,
    x: &Array,
    shape: &[i32],
    s: &Stream,
) -> Result<Array> {
    let dtype = mlx::dtype(x);
    let kernel = Kernel::WindowReduce {
        total,
        windows: Arc::new(windows),
        of: dtype.try_into()?,
    };
    node::typed(kernel, Layout::Rows, &[x], shape, dtype, s)
}

/// A scalar everywhere, plus each source where its window of an array that [`has_windows`] has its extreme. All are of
/// one type, and there is a source for each window.
pub fn window_scatter(
    choice: Choice,
    windows: Windows,
    inputs: &[&Array; 3],
    s: &Stream,
) -> Result<Array> {
    let dtype = mlx::dtype(inputs[0]);
    let kernel = Kernel::WindowScatter {
        choice,
        windows: Arc::new(windows),
        of: dtype.try_into()?,
    };
    node::typed(kernel, Layout::Rows, inputs, inputs[0].shape(), dtype, s)
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

/// x {…, k} times the rows of integers of 8 bits {m, k}, or packed ones, whose types and shapes have been checked.
pub fn int8_product(
    x: &Array,
    w: &Array,
    scales: &Array,
    bias: Option<&Array>,
    s: &Stream,
) -> Result<Array> {
    let mut shape: SmallVec<[i32; 6]> = x.shape().into();
    if let Some(last) = shape.last_mut() {
        *last = scales.shape()[0];
    }
    let kernel = Kernel::Int8Product {
        scales: mlx::dtype(scales).try_into()?,
        bias: bias.map(|bias| mlx::dtype(bias).try_into()).transpose()?,
    };
    let inputs: SmallVec<[&Array; 4]> = [x, w, scales].into_iter().chain(bias).collect();
    node::new(kernel, Layout::Rows, &inputs, &shape, x, s)
}

/// Whether there are [`slice`] and [`update`] on this device.
pub fn slices(device: Device) -> bool {
    device == Device::Cpu && are_there()
}

/// `a` with `update` in place of a slice, as far inside as it fits. Both are of one type, and `start` has integers.
pub fn update(
    a: &Array,
    update: &Array,
    start: &Array,
    axes: SmallVec<[u8; 8]>,
    s: &Stream,
) -> Result<Array> {
    let (of, dtype) = (mlx::dtype(start).try_into()?, mlx::dtype(a));
    let bytes = dtype.size() as u8;
    let kernel = Kernel::Update { axes, of, bytes };
    let inputs = [a, update, start];
    node::typed(kernel, Layout::LikeFirst, &inputs, a.shape(), dtype, s)
}

/// The slice of `shape` that begins at `start`, as far inside as it fits.
pub fn slice(
    a: &Array,
    start: &Array,
    axes: SmallVec<[u8; 8]>,
    shape: &[i32],
    s: &Stream,
) -> Result<Array> {
    let (of, dtype) = (mlx::dtype(start).try_into()?, mlx::dtype(a));
    let bytes = dtype.size() as u8;
    let kernel = Kernel::Slice { axes, of, bytes };
    node::typed(kernel, Layout::Rows, &[a, start], shape, dtype, s)
}

/// The slices of `sizes` of `a` that begin at `indices` of one shape and type, one for each of `axes`: {of that shape,
/// then `sizes`}. Each is brought into the array as `beyond` says.
pub fn gather(
    a: &Array,
    indices: &[Array],
    axes: SmallVec<[u8; 8]>,
    sizes: &[i32],
    beyond: Beyond,
    s: &Stream,
) -> Result<Array> {
    let inputs: SmallVec<[&Array; 6]> = std::iter::once(a).chain(indices).collect();
    let shape: SmallVec<[i32; 8]> = [inputs[1].shape(), sizes].concat().into();
    let kernel = Kernel::Gather {
        axes,
        sizes: sizes.into(),
        of: mlx::dtype(inputs[1]).try_into()?,
        beyond,
        bytes: mlx::dtype(a).size() as u8,
    };
    node::typed(kernel, Layout::Rows, &inputs, &shape, mlx::dtype(a), s)
}

/// Elements of `a` along an axis at integers: {n} for all places of the other axes, or, where `each`, of a's shape but
/// for the axis. Each is brought into the array as `beyond` says.
pub fn along(
    a: &Array,
    index: &Array,
    axis: usize,
    each: bool,
    beyond: Beyond,
    s: &Stream,
) -> Result<Array> {
    let mut shape: SmallVec<[i32; 8]> = a.shape().into();
    shape[axis] = index.shape()[if each { axis } else { 0 }];
    let dtype = mlx::dtype(a);
    let kernel = Kernel::Along {
        axis: axis as u8,
        each,
        of: mlx::dtype(index).try_into()?,
        beyond,
        bytes: dtype.size() as u8,
    };
    node::typed(kernel, Layout::Rows, &[a, index], &shape, dtype, s)
}

/// `a` with slices of `updates` {of the index arrays' shape, then of an axis for each of a's} added where `indices` of
/// one shape and type say, one for each of `axes`. A negative index counts from the end, and what does not fit is left
/// out.
pub fn scatter_add(
    a: &Array,
    updates: &Array,
    indices: &[Array],
    axes: SmallVec<[u8; 8]>,
    s: &Stream,
) -> Result<Array> {
    let inputs: SmallVec<[&Array; 6]> = [a, updates].into_iter().chain(indices).collect();
    let of = mlx::dtype(inputs[2]).try_into()?;
    let kernel = Kernel::ScatterAdd { axes, of };
    node::new(kernel, Layout::LikeFirst, &inputs, a.shape(), a, s)
}

/// The same, written over what is there: of several at one place the last. Of elements of any type.
pub fn scatter(
    a: &Array,
    updates: &Array,
    indices: &[Array],
    axes: SmallVec<[u8; 8]>,
    s: &Stream,
) -> Result<Array> {
    let inputs: SmallVec<[&Array; 6]> = [a, updates].into_iter().chain(indices).collect();
    let dtype = mlx::dtype(a);
    let kernel = Kernel::Scatter {
        axes,
        of: mlx::dtype(inputs[2]).try_into()?,
        bytes: dtype.size() as u8,
    };
    node::typed(kernel, Layout::LikeFirst, &inputs, a.shape(), dtype, s)
}

/// `a` with each of `updates`, of a's shape but for `axis`, added where it lies itself but for `axis`, along which its
/// index says where.
pub fn scatter_add_along(
    a: &Array,
    updates: &Array,
    index: &Array,
    axis: u8,
    s: &Stream,
) -> Result<Array> {
    let of = mlx::dtype(index).try_into()?;
    let kernel = Kernel::ScatterAddAlong { axis, of };
    let inputs = [a, updates, index];
    node::new(kernel, Layout::LikeFirst, &inputs, a.shape(), a, s)
}

/// Whether kernels here move elements of arrays on a stream.
pub fn moves(s: &Stream) -> bool {
    !s.is_gpu() && are_there()
}

/// Arrays of one type and of `shape` but for the axis, one after another.
pub fn concatenate(arrays: &[&Array], axis: usize, shape: &[i32], s: &Stream) -> Result<Array> {
    let dtype = mlx::dtype(arrays[0]);
    let kernel = Kernel::Concatenate {
        axis: axis as u8,
        bytes: dtype.size() as u8,
    };
    node::typed(kernel, Layout::Rows, arrays, shape, dtype, s)
}

/// The array in another shape of as many elements: a view of it, or a copy if it lies otherwise. None where that is
/// left to MLX.
pub fn reshape(a: &Array, shape: &[i32], s: &Stream) -> Result<Option<Array>> {
    if a.size() < WORTH_SHARING || !moves(s) || !mlx::has_tasks() {
        return Ok(None);
    }
    let dtype = mlx::dtype(a);
    let kernel = Kernel::Copy {
        bytes: dtype.size() as u8,
    };
    node::typed(kernel, Layout::Reshaped, &[a], shape, dtype, s).map(Some)
}

/// The array so many times along each axis or, where `each`, each of its elements.
pub fn tile(a: &Array, times: &[i32], each: bool, s: &Stream) -> Result<Array> {
    let sizes = a.shape().iter().zip(times);
    let shape: SmallVec<[i32; 8]> = sizes.map(|(size, times)| size * times).collect();
    let dtype = mlx::dtype(a);
    let kernel = Kernel::Tile {
        times: times.into(),
        each,
        bytes: dtype.size() as u8,
    };
    node::typed(kernel, Layout::Rows, &[a], &shape, dtype, s)
}

/// The array with a scalar of its type before it, between its elements and behind it, so that it has `shape`.
pub fn pad(
    a: &Array,
    value: &Array,
    low: &[i32],
    interior: &[i32],
    shape: &[i32],
    s: &Stream,
) -> Result<Array> {
    let dtype = mlx::dtype(a);
    let kernel = Kernel::Pad {
        low: low.into(),
        interior: interior.into(),
        bytes: dtype.size() as u8,
    };
    node::typed(kernel, Layout::Rows, &[a, value], shape, dtype, s)
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

/// What is computed of rows that a mask fills but in few places: arrays that broadcast to them, and arrays with one
/// number for each row, to a result of `shape` with as many.
pub fn masked(
    masked: Arc<Masked>,
    inputs: &[&Array],
    shape: &[i32],
    dtype: Dtype,
    s: &Stream,
) -> Result<Array> {
    let kernel = Kernel::Masked(masked);
    node::typed(kernel, Layout::Rows, inputs, shape, dtype, s)
}
