//! What kernels there are, and how one is run. Names are written out, since nodes of MLX take C strings, which the crate
//! strum does not derive.

use super::by_rows::by_rows;
use super::element::{Element, ElementType};
use super::simd::Level;
use super::{arg_extreme, extreme, fft, gather, gemm8, linalg, moves, select_top, slices, sort};
use super::{
    attention, chain, conv, integers, masked, product, quantized, reduce, rope, rows, scan,
    scatter, windows,
};
use super::{
    Beyond, Choice, Conv, Fft, Linear, Links, Mask, Masked, Reduction, Rope, Scan, Type, View,
    WindowTotal, Windows,
};
use half::{bf16, f16};
use smallvec::SmallVec;
use std::ffi::CStr;
use std::sync::Arc;

/// One of several chains: how many of the inputs and results are its own.
#[derive(Clone, Debug, PartialEq)]
pub struct ChainPart {
    pub links: Links,
    pub inputs: usize,
    pub results: usize,
}

/// What a node computes, with all that tells it from another. Each names its inputs.
#[derive(Clone, Debug, PartialEq)]
pub enum Kernel {
    /// Arrays that broadcast to the result's shape.
    Chain(Links),
    /// Chains that do not depend on one another, each with its own inputs and results, of any shapes.
    Chains(Arc<[ChainPart]>),
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
    /// The same of integers of a type, which wrap round, or of booleans.
    IntegerProduct { of: Type },
    /// a {batch, space…, channels} and weights {output channels, space…, channels / groups}.
    Conv(Arc<Conv>),
    /// x, of the type `of`; a result for each window.
    WindowReduce {
        total: WindowTotal,
        windows: Arc<Windows>,
        of: Type,
    },
    /// x, a source for each window, and what the sums begin with; all of the type `of`.
    WindowScatter {
        choice: Choice,
        windows: Arc<Windows>,
        of: Type,
    },
    /// x {n, k}, weights {m, k · bits / 32}, scales and biases {m, k / group}.
    QuantizedProduct { group: usize, bits: usize },
    /// x {…, k}, integers of 8 bits {m, k} or packed {⌈m / 16⌉, ⌈k / 4⌉, 16, 4}, `scales` {m}, and a `bias` {m} where
    /// it has a type.
    Int8Product { scales: Type, bias: Option<Type> },
    /// a, what is written over a slice of it, and where the slice begins: an integer of the type `of` for each of these
    /// axes. Elements are of `bytes`.
    Update {
        axes: SmallVec<[u8; 8]>,
        of: Type,
        bytes: u8,
    },
    /// a, and where a slice of it begins, likewise.
    Slice {
        axes: SmallVec<[u8; 8]>,
        of: Type,
        bytes: u8,
    },
    /// a, and an index of the type `of` for each slice of `sizes` and each of these axes. Elements are of `bytes`.
    Gather {
        axes: SmallVec<[u8; 8]>,
        sizes: SmallVec<[i32; 8]>,
        of: Type,
        beyond: Beyond,
        bytes: u8,
    },
    /// a, and indices of the type `of`: for each place of the result where it is `each`, else in a row, for all places
    /// of the other axes. Elements are of `bytes`.
    Along {
        axis: u8,
        each: bool,
        of: Type,
        beyond: Beyond,
        bytes: u8,
    },
    /// a, updates, and an index of the type `of` for each update and each of these axes.
    ScatterAdd { axes: SmallVec<[u8; 8]>, of: Type },
    /// a, updates that are written over it, and indices likewise. Elements are of `bytes`.
    Scatter {
        axes: SmallVec<[u8; 8]>,
        of: Type,
        bytes: u8,
    },
    /// a, updates, and an index of the type `of` for each of these, which says where it goes along the axis.
    ScatterAddAlong { axis: u8, of: Type },
    /// x of as many elements as the result, in any shape; in the order of their rows. Elements are of `bytes`.
    Copy { bytes: u8 },
    /// Arrays along an axis, one after another. Elements are of `bytes`.
    Concatenate { axis: u8, bytes: u8 },
    /// a, so many times along each axis, or `each` of its elements. Elements are of `bytes`.
    Tile {
        times: SmallVec<[i32; 8]>,
        each: bool,
        bytes: u8,
    },
    /// a, and the value before it, between its elements, and behind it. Elements are of `bytes`.
    Pad {
        low: SmallVec<[i32; 8]>,
        interior: SmallVec<[i32; 8]>,
        bytes: u8,
    },
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
    /// x; the largest or the smallest over these axes, NaN where there is one.
    Extreme {
        is_max: bool,
        axes: SmallVec<[u8; 8]>,
        of: Type,
    },
    /// x; whether all or any over these axes are other than zero, as bytes.
    Truth {
        is_all: bool,
        axes: SmallVec<[u8; 8]>,
        of: Type,
    },
    /// x of integers or booleans; their sum or product over these axes, which wraps round: in 64 bits for types of 64
    /// bits, in 32 for others.
    Total {
        is_product: bool,
        axes: SmallVec<[u8; 8]>,
        of: Type,
    },
    /// x; the place along an axis of the first of the largest or the smallest, of NaN where there is one: of the first
    /// of several or of the last. Of u32.
    ArgExtreme {
        is_max: bool,
        axis: u8,
        is_last_nan: bool,
        of: Type,
    },
    /// x; the k largest along an axis, in descending order, or their places as u32: NaN first, and of those that are
    /// equal the first.
    TopK {
        k: u32,
        axis: u8,
        is_place: bool,
        of: Type,
    },
    /// x; sorted along an axis, NaN last, and what is equal in its order.
    Sort { axis: u8, of: Type },
    /// x; the places of that sort, as u32.
    Argsort { axis: u8, of: Type },
    /// Arrays that broadcast to the rows, or that have one number for each.
    Masked(Arc<Masked>),
    /// x, real or of complex numbers as pairs.
    Fft(Fft),
    /// Matrices of f32 or f64, and right sides where there are some.
    Linear { linear: Linear, of: Type },
}

impl Kernel {
    /// The operation that it computes.
    pub fn name(&self) -> &'static CStr {
        match self {
            Kernel::Chain(links) => match links[..] {
                [link] => link.action.name(),
                _ => c"chain",
            },
            Kernel::Chains(_) => c"chains",
            Kernel::Softmax => c"softmax",
            Kernel::RmsNorm { .. } => c"rms_norm",
            Kernel::LayerNorm { .. } => c"layer_norm",
            Kernel::Rope(_) => c"rope",
            Kernel::Attention { .. } => c"scaled_dot_product_attention",
            Kernel::Product | Kernel::IntegerProduct { .. } => c"matmul",
            Kernel::Conv(_) => c"conv",
            Kernel::WindowReduce { .. } => c"window_reduce",
            Kernel::WindowScatter { .. } => c"window_scatter",
            Kernel::QuantizedProduct { .. } => c"quantized_matmul",
            Kernel::Int8Product { .. } => c"int8_matmul",
            Kernel::Update { .. } => c"slice_update_dynamic",
            Kernel::Slice { .. } => c"slice_dynamic",
            Kernel::Gather { .. } => c"gather",
            Kernel::Along { .. } => c"take",
            Kernel::ScatterAdd { .. } => c"scatter_add",
            Kernel::Scatter { .. } => c"scatter",
            Kernel::ScatterAddAlong { .. } => c"scatter_add_axis",
            Kernel::Copy { .. } => c"reshape",
            Kernel::Concatenate { .. } => c"concatenate",
            Kernel::Tile { each: true, .. } => c"repeat",
            Kernel::Tile { .. } => c"tile",
            Kernel::Pad { .. } => c"pad",
            Kernel::Reduce { reduction, .. } => reduction.name(),
            Kernel::Scan { scan, .. } => scan.name(),
            Kernel::Extreme { is_max: true, .. } => c"max",
            Kernel::Extreme { .. } => c"min",
            Kernel::Truth { is_all: true, .. } => c"all",
            Kernel::Truth { .. } => c"any",
            Kernel::Total {
                is_product: true, ..
            } => c"prod",
            Kernel::Total { .. } => c"sum",
            Kernel::ArgExtreme { is_max: true, .. } => c"argmax",
            Kernel::ArgExtreme { .. } => c"argmin",
            Kernel::TopK { .. } => c"topk",
            Kernel::Sort { .. } => c"sort",
            Kernel::Argsort { .. } => c"argsort",
            Kernel::Masked(_) => c"masked",
            Kernel::Fft(fft) => fft.name(),
            Kernel::Linear { linear, .. } => linear.name(),
        }
    }

    /// Computes `out` from `inputs`, whose numbers are of type `element` or, where the kernel names one, of its own, on
    /// the calling thread and on the pool's. Panics where a part of the work does.
    ///
    /// # Safety
    /// The views are of live arrays, as many and of the shapes and types that the kernel names. Those of `inputs` do
    /// not change meanwhile, and nobody else reads or writes the elements of `out`, which is no view of anything else
    /// but, for kernels of elements or rows, of an input with the same strides.
    pub unsafe fn run(&self, element: ElementType, inputs: &[View], out: &View) {
        if out.size() == 0 || self.run_typed(inputs, out) {
            return;
        }
        match element {
            ElementType::F32 => self.run_as::<f32>(inputs, out),
            ElementType::F16 => self.run_as::<f16>(inputs, out),
            ElementType::Bf16 => self.run_as::<bf16>(inputs, out),
        }
    }

    /// [`Kernel::run`] of a kernel with one result or several, each of which has memory of its own.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn run_all(&self, element: ElementType, inputs: &[View], outs: &[View]) {
        match (self, outs) {
            // Each link says what types it takes.
            (Kernel::Chain(links), [first, ..]) => match first.size() {
                0 => {}
                _ => chain::run(Level::best(), links, inputs, outs),
            },
            (Kernel::Linear { linear, of }, outs) => {
                linalg::run(Level::best(), *of, *linear, inputs, outs)
            }
            (Kernel::Chains(parts), _) => run_chains(parts, inputs, outs),
            (_, [out]) => self.run(element, inputs, out),
            _ => {}
        }
    }

    /// The kernels that name the type of their numbers. False for others.
    unsafe fn run_typed(&self, inputs: &[View], out: &View) -> bool {
        let (level, x) = (Level::best(), &inputs[0]);
        match *self {
            Kernel::Extreme {
                is_max,
                ref axes,
                of,
            } => extreme::extreme(level, of, is_max, axes, x, out),
            Kernel::Truth {
                is_all,
                ref axes,
                of,
            } => extreme::truth(level, of, is_all, axes, x, out),
            Kernel::Total {
                is_product,
                ref axes,
                of,
            } => extreme::total(level, of, is_product, axes, x, out),
            Kernel::ArgExtreme {
                is_max,
                axis,
                is_last_nan,
                of,
            } => {
                let how = arg_extreme::How {
                    is_max,
                    axis: axis.into(),
                    is_last_nan,
                };
                arg_extreme::run(level, of, &how, x, out)
            }
            Kernel::TopK {
                k,
                axis,
                is_place,
                of,
            } => {
                let how = select_top::How {
                    k: k as usize,
                    axis: axis.into(),
                    is_place,
                };
                select_top::run(level, of, &how, x, out)
            }
            Kernel::Sort { axis, of } => sort::sort(of, axis.into(), x, out),
            Kernel::Update {
                ref axes,
                of,
                bytes,
            } => slices::update(axes, of, bytes.into(), inputs, out),
            Kernel::Slice {
                ref axes,
                of,
                bytes,
            } => slices::slice(axes, of, bytes.into(), inputs, out),
            Kernel::Gather {
                ref axes,
                ref sizes,
                of,
                beyond,
                bytes,
            } => {
                let bytes = bytes.into();
                let how = gather::How {
                    of,
                    beyond,
                    axes,
                    bytes,
                };
                gather::slices(&how, sizes, inputs, out)
            }
            Kernel::Along {
                axis,
                each,
                of,
                beyond,
                bytes,
            } => {
                let how = gather::How {
                    of,
                    beyond,
                    axes: &[axis],
                    bytes: bytes.into(),
                };
                gather::along(&how, each, inputs, out)
            }
            Kernel::Scatter {
                ref axes,
                of,
                bytes,
            } => scatter::put_slices(axes, of, bytes.into(), inputs, out),
            Kernel::Copy { bytes } => moves::reshape(bytes.into(), x, out),
            Kernel::Concatenate { axis, bytes } => {
                moves::concatenate(axis.into(), bytes.into(), inputs, out)
            }
            Kernel::Tile {
                ref times,
                each,
                bytes,
            } => moves::tile(times, each, bytes.into(), x, out),
            Kernel::Pad {
                ref low,
                ref interior,
                bytes,
            } => moves::pad(low, interior, bytes.into(), inputs, out),
            Kernel::Argsort { axis, of } => sort::argsort(of, axis.into(), x, out),
            Kernel::WindowReduce {
                total,
                windows: ref over,
                of,
            } => windows::run(level, of, total, over, x, out),
            Kernel::WindowScatter {
                choice,
                windows: ref over,
                of,
            } => windows::scatter(level, of, choice, over, inputs, out),
            Kernel::IntegerProduct { of } => integers::run(level, of, x, &inputs[1], out),
            Kernel::Masked(ref rows) => masked::run(level, rows, inputs, out),
            Kernel::Fft(ref fft) => fft::run(fft, x, out),
            Kernel::Linear { linear, of } => {
                linalg::run(level, of, linear, inputs, std::slice::from_ref(out))
            }
            _ => return false,
        }
        true
    }

    unsafe fn run_as<T: Element>(&self, inputs: &[View], out: &View) {
        let level = Level::best();
        match *self {
            Kernel::Rope(ref rope) => rope::run::<T>(level, rope, inputs, out),
            Kernel::Attention { scale, mask } => {
                attention::run::<T>(level, inputs, mask, scale, out)
            }
            Kernel::Product => product::run::<T>(level, &inputs[0], &inputs[1], out),
            Kernel::Conv(ref conv) => conv::run::<T>(level, conv, &inputs[0], &inputs[1], out),
            Kernel::QuantizedProduct { group, bits } => {
                quantized::run::<T>(level, inputs, group, bits, out)
            }
            Kernel::Int8Product { scales, bias } => gemm8::run::<T>(inputs, scales, bias, out),
            Kernel::ScatterAdd { ref axes, of } => scatter::add_slices::<T>(axes, of, inputs, out),
            Kernel::ScatterAddAlong { axis, of } => {
                scatter::add_along::<T>(axis.into(), of, inputs, out)
            }
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
            Kernel::Chain(ref links) => chain::run(level, links, inputs, std::slice::from_ref(out)),
            Kernel::Chains(_)
            | Kernel::Extreme { .. }
            | Kernel::Truth { .. }
            | Kernel::Total { .. }
            | Kernel::ArgExtreme { .. }
            | Kernel::TopK { .. }
            | Kernel::Sort { .. }
            | Kernel::Update { .. }
            | Kernel::Slice { .. }
            | Kernel::Argsort { .. }
            | Kernel::Masked(_)
            | Kernel::Fft(_)
            | Kernel::Linear { .. }
            | Kernel::IntegerProduct { .. }
            | Kernel::WindowReduce { .. }
            | Kernel::WindowScatter { .. }
            | Kernel::Gather { .. }
            | Kernel::Along { .. }
            | Kernel::Scatter { .. }
            | Kernel::Copy { .. }
            | Kernel::Concatenate { .. }
            | Kernel::Tile { .. }
            | Kernel::Pad { .. } => {}
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

/// # Safety
/// As for [`Kernel::run_all`].
unsafe fn run_chains(parts: &[ChainPart], inputs: &[View], outs: &[View]) {
    let (mut first, mut first_out) = (0, 0);
    let mut tasks: SmallVec<[chain::Task; 8]> = SmallVec::new();
    for part in parts {
        let (end, end_out) = (first + part.inputs, first_out + part.results);
        let (Some(inputs), Some(outs)) = (inputs.get(first..end), outs.get(first_out..end_out))
        else {
            return;
        };
        if outs.first().is_some_and(|out| out.size() > 0) {
            tasks.push(chain::Task {
                links: &part.links,
                inputs,
                outs,
            });
        }
        (first, first_out) = (end, end_out);
    }
    chain::run_all(Level::best(), &tasks);
}
