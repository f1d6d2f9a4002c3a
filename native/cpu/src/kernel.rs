//! What kernels there are, and how one is run.

use super::by_rows::by_rows;
use super::element::{Element, ElementType};
use super::simd::Level;
use super::{attention, chain, product, quantized, reduce, rope, rows, scan, scatter, slices};
use super::{Links, Mask, Reduction, Rope, Scan, View};
use half::{bf16, f16};
use smallvec::SmallVec;
use std::ffi::CStr;

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
    /// a, what is written over a slice of it, and where the slice begins: a whole number for each of these axes, of 64
    /// bits or 32.
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

impl Kernel {
    /// The operation that it computes.
    pub fn name(&self) -> &'static CStr {
        match self {
            Kernel::Chain(links) => match links[..] {
                [link] => link.action.name(),
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

    /// Computes `out` from `inputs`, whose numbers are of type `element`, on the calling thread and on the pool's.
    /// Panics where a part of the work does.
    ///
    /// # Safety
    /// The views are of live arrays, as many and of the shapes and types that the kernel names. Those of `inputs` do
    /// not change meanwhile, and nobody else reads or writes the elements of `out`, which is no view of anything else
    /// but, for kernels of elements or rows, of an input with the same strides.
    pub unsafe fn run(&self, element: ElementType, inputs: &[View], out: &View) {
        if out.size() == 0 {
            return;
        }
        // Each link says what types it takes.
        if let Kernel::Chain(links) = self {
            return chain::run(Level::best(), links, inputs, out);
        }
        match element {
            ElementType::F32 => self.run_as::<f32>(inputs, out),
            ElementType::F16 => self.run_as::<f16>(inputs, out),
            ElementType::Bf16 => self.run_as::<bf16>(inputs, out),
        }
    }

    unsafe fn run_as<T: Element>(&self, inputs: &[View], out: &View) {
        let level = Level::best();
        match *self {
            Kernel::Rope(ref rope) => rope::run::<T>(level, rope, inputs, out),
            Kernel::Attention { scale, mask } => {
                attention::run::<T>(level, inputs, mask, scale, out)
            }
            Kernel::Product => product::run::<T>(level, &inputs[0], &inputs[1], out),
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
            Kernel::Chain(ref links) => chain::run(level, links, inputs, out),
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
