//! Operations: the table (table.rs), facts about them (traits.rs), and [`Op::apply`], which builds their nodes. An eager call
//! applies one; a program applies many. Nothing else in the crate knows what an operation does.

mod arg_reduce;
mod attention;
pub mod attributes;
mod binary;
mod blocks;
mod cast;
mod check;
mod conv;
mod creation;
mod cuda;
mod double;
mod einsum;
mod fft;
mod fused;
mod gpu;
mod indexing;
mod inputs;
mod integer_matmul;
mod linalg;
mod matmul;
mod norm;
mod quantized;
mod reduce;
mod rope;
mod scan;
mod shape;
mod slicing;
mod softmax;
mod sort;
mod table;
#[cfg(test)]
mod tests;
mod traits;
mod unary;
mod values;
mod window;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::kernels::{self, Reduction as Fold, Scan};
use crate::mlx::{self, Stream, Vector};
pub use cuda::decode;
pub use fused::Products;
pub use gpu::Crossed;
pub use inputs::Inputs;
use mlx_rs::Array;
use smallvec::{smallvec, SmallVec};
pub use table::Op;
pub use traits::{Class, OfElements, View};
pub use values::{MaskMode, NonFinite, Number, PadMode, QuantMode, Side, Which};
pub use window::Reduction;

/// What an operation gives: nearly always one array, which then needs no allocation.
pub type Outputs = SmallVec<[Array; 2]>;

/// The arrays that an operation made, and those among what they depend on that the CPU computes for the GPU.
pub struct Applied {
    pub outputs: Outputs,
    pub crossed: Crossed,
}

fn one(array: Array) -> Outputs {
    smallvec![array]
}

/// The axes asked for, or all of them.
fn axes_of(array: &Array, axes: &Option<Vec<i32>>) -> Result<Vec<i32>> {
    match axes {
        Some(axes) => check::axes(array, axes),
        None => Ok((0..array.ndim() as i32).collect()),
    }
}

impl Op {
    /// The node of a kernel of ours, for the types and sizes that it is for.
    fn by_elements(&self, inputs: &Inputs, device: Device, s: &Stream) -> Result<Option<Array>> {
        match self.of_elements() {
            Some(OfElements::Unary(function)) => {
                let [a] = inputs.exactly()?;
                kernels::unary(function, a, device, s)
            }
            Some(OfElements::Binary(pair)) => {
                let [a, b] = inputs.exactly()?;
                kernels::binary(pair, a, b, device, s)
            }
            None => Ok(None),
        }
    }

    /// Builds the operation's nodes. Nothing is computed.
    pub fn apply(&self, inputs: &Inputs, device: Device, stream: &Stream) -> Result<Applied> {
        let mut crossed = Crossed::default();
        let outputs = self.apply_within(inputs, device, stream, &mut crossed)?;
        Ok(Applied { outputs, crossed })
    }

    /// [`Op::apply`] as a part of another operation, which collects what crosses between devices.
    fn apply_within(
        &self,
        inputs: &Inputs,
        device: Device,
        stream: &Stream,
        crossed: &mut Crossed,
    ) -> Result<Outputs> {
        if device == Device::Cpu {
            return self.apply_on(inputs, device, stream, crossed);
        }
        if self.is_for_cpu_only() || gpu::lacks(self, inputs) {
            let copies = gpu::copies_for_cpu(inputs, stream)?;
            let arrays: Vec<Option<&Array>> = copies.iter().map(Option::as_ref).collect();
            let (inputs, cpu) = (Inputs(&arrays), Device::Cpu);
            let outputs = self.apply_on(&inputs, cpu, cpu.stream()?, crossed)?;
            crossed.add(&outputs)?;
            return Ok(outputs);
        }
        let arrays = gpu::as_its_kernels_take(self, inputs, stream)?;
        match arrays {
            None => self.apply_on(inputs, device, stream, crossed),
            Some(arrays) => {
                let arrays: Vec<Option<&Array>> = arrays.iter().map(Option::as_ref).collect();
                self.apply_on(&Inputs(&arrays), device, stream, crossed)
            }
        }
    }

    fn apply_on(
        &self,
        inputs: &Inputs,
        device: Device,
        s: &Stream,
        crossed: &mut Crossed,
    ) -> Result<Outputs> {
        if let Some(output) = self.by_elements(inputs, device, s)? {
            return Ok(one(output));
        }
        // Most operations are one call with the inputs first, then the attributes.
        macro_rules! unary {
            ($f:path $(, $arg:expr)*) => {{
                let [a] = inputs.exactly()?;
                $f(a, $($arg,)* s).map(one)
            }};
        }
        macro_rules! binary {
            ($f:path $(, $arg:expr)*) => {{
                let [a, b] = inputs.exactly()?;
                $f(a, b, $($arg,)* s).map(one)
            }};
        }
        macro_rules! ternary {
            ($f:path $(, $arg:expr)*) => {{
                let [a, b, c] = inputs.exactly()?;
                $f(a, b, c, $($arg,)* s).map(one)
            }};
        }
        macro_rules! reduce {
            ($f:path, $axes:expr $(, $arg:expr)*) => {{
                let [a] = inputs.exactly()?;
                $f(a, &axes_of(a, $axes)?, $($arg,)* s).map(one)
            }};
        }
        // A reduction that has a value for no elements at all.
        macro_rules! total {
            ($of_none:expr, $f:path, $axes:expr, $keepdims:expr) => {{
                let [a] = inputs.exactly()?;
                let axes = axes_of(a, $axes)?;
                let reduce = |a: &Array| $f(a, &axes, *$keepdims, s);
                reduce::total(a, &axes, *$keepdims, $of_none, s, reduce).map(one)
            }};
        }
        // One that adds up, or multiplies.
        macro_rules! fold {
            ($of_none:expr, $fold:expr, $axes:expr, $keepdims:expr) => {{
                let [a] = inputs.exactly()?;
                let axes = axes_of(a, $axes)?;
                let reduce = |a: &Array| reduce::reduce($fold, a, &axes, *$keepdims, device, s);
                reduce::total(a, &axes, *$keepdims, $of_none, s, reduce).map(one)
            }};
        }
        // One axis, which must be there.
        macro_rules! along {
            ($f:path, $axis:expr $(, $arg:expr)*) => {{
                let [a] = inputs.exactly()?;
                let axis = check::axis(a, $axis)? as i32;
                // MLX divides by the length of the axis.
                if a.size() == 0 {
                    return mlx::share(a).map(one);
                }
                cast::in_single(a, device, s, |a| $f(a, axis, $($arg,)* s)).map(one)
            }};
        }
        macro_rules! scan {
            ($scan:expr, $axis:expr, $reverse:expr, $inclusive:expr) => {{
                let [a] = inputs.exactly()?;
                let axis = check::axis(a, *$axis)? as i32;
                if a.size() == 0 {
                    return mlx::share(a).map(one);
                }
                scan::scan($scan, a, axis, *$reverse, *$inclusive, device, s).map(one)
            }};
        }
        // Matrices that are not empty.
        macro_rules! matrix {
            ($check:path, $f:path $(, $arg:expr)*) => {{
                let [a] = inputs.exactly()?;
                $check(a)?;
                $f(a, $($arg,)* s)
            }};
        }
        macro_rules! several {
            ($check:path, $f:path $(, $arg:expr)*) => {
                matrix!($check, $f $(, $arg)*).map(Outputs::from_vec)
            };
        }
        macro_rules! single {
            ($check:path, $f:path $(, $arg:expr)*) => {
                matrix!($check, $f $(, $arg)*).map(one)
            };
        }
        macro_rules! sliced {
            ($f:path, $start:expr, $stop:expr, $strides:expr) => {{
                let [a, update] = inputs.exactly()?;
                let (start, stop, strides) = check::slice(a, $start, $stop, $strides)?;
                $f(a, update, &start, &stop, &strides, s).map(one)
            }};
        }
        macro_rules! transform {
            ($f:path, $sizes:expr, $axes:expr, $norm:expr) => {{
                let [a] = inputs.exactly()?;
                let axes = fft::transform_axes(a, $sizes, $axes)?;
                let is_half = matches!(self, Op::Irfft { .. });
                let a = fft::fit_spectrum(a, $sizes, &axes, is_half, s)?;
                $f(&a, $sizes, &axes, *$norm, s).map(one)
            }};
        }
        macro_rules! scatter {
            ($f:path, $axes:expr) => {{
                let ([a, updates], indices) = inputs.and_more()?;
                indexing::scatter(a, updates, &indices, $axes, $f, s).map(one)
            }};
        }
        macro_rules! keyed {
            ($f:path $(, $arg:expr)*) => {{
                let [key] = inputs.exactly()?;
                check::key(key)?;
                $f($($arg,)* Some(key), s).map(one)
            }};
        }
        macro_rules! created {
            ($call:expr) => {{
                inputs.arity(0)?;
                $call.map(one)
            }};
        }

        match self {
            Op::Abs => unary!(mlx::abs),
            Op::Negative => unary!(gpu::negative, device),
            Op::Sign => unary!(mlx::sign),
            Op::Ceil => unary!(mlx::ceil),
            Op::Floor => unary!(mlx::floor),
            Op::Trunc => unary!(mlx::trunc),
            Op::Round { decimals } => unary!(double::round, *decimals),
            Op::Exp => unary!(double::either, double::exp, mlx::exp),
            Op::Expm1 => unary!(unary::expm1),
            Op::Log => unary!(mlx::log),
            Op::Log1p => unary!(mlx::log1p),
            Op::Log2 => unary!(mlx::log2),
            Op::Log10 => unary!(mlx::log10),
            Op::Sin => unary!(double::either, double::sin, mlx::sin),
            Op::Cos => unary!(double::either, double::cos, mlx::cos),
            Op::Tan => unary!(mlx::tan),
            Op::Arcsin => unary!(mlx::arcsin),
            Op::Arccos => unary!(mlx::arccos),
            Op::Arctan => unary!(mlx::arctan),
            Op::Sinh => unary!(mlx::sinh),
            Op::Cosh => unary!(mlx::cosh),
            Op::Tanh => unary!(mlx::tanh),
            Op::Arcsinh => unary!(mlx::arcsinh),
            Op::Arccosh => unary!(mlx::arccosh),
            Op::Arctanh => unary!(mlx::arctanh),
            Op::Erf => unary!(double::either, double::erf, mlx::erf),
            Op::Erfc => unary!(double::either, double::erfc, unary::erfc),
            Op::Erfinv => unary!(double::either, double::erfinv, mlx::erfinv),
            Op::Sqrt => unary!(mlx::sqrt),
            Op::Rsqrt => unary!(mlx::rsqrt),
            Op::Cbrt => unary!(unary::cbrt),
            Op::Square => unary!(mlx::square),
            Op::Reciprocal => unary!(mlx::reciprocal),
            Op::Sigmoid => unary!(double::either, double::sigmoid, unary::sigmoid),
            Op::Degrees => unary!(mlx::degrees),
            Op::Radians => unary!(mlx::radians),
            Op::LogicalNot => unary!(unary::logical_not),
            Op::BitwiseInvert => unary!(mlx::bitwise_invert),
            Op::PopulationCount => unary!(unary::population_count),
            Op::CountLeadingZeros => unary!(unary::count_leading_zeros),
            Op::Isnan => unary!(mlx::isnan),
            Op::Isinf => unary!(mlx::isinf),
            Op::Isposinf => unary!(mlx::isposinf),
            Op::Isneginf => unary!(mlx::isneginf),
            Op::Isfinite => unary!(mlx::isfinite),
            Op::Real => unary!(mlx::real),
            Op::Imag => unary!(mlx::imag),
            Op::Conjugate => unary!(mlx::conjugate),
            Op::Copy => unary!(mlx::copy),
            Op::NanToNum {
                nan,
                posinf,
                neginf,
            } => unary!(mlx::nan_to_num, *nan, *posinf, *neginf),
            Op::HadamardTransform { scale } => unary!(fft::hadamard_transform, *scale),

            Op::Add => binary!(mlx::add),
            Op::Subtract => binary!(mlx::subtract),
            Op::Multiply => binary!(mlx::multiply),
            Op::Divide => binary!(mlx::divide),
            Op::FloorDivide => binary!(binary::floor_divide),
            Op::Quotient => binary!(binary::quotient),
            Op::Remainder => binary!(binary::remainder),
            Op::Fmod => binary!(binary::fmod),
            Op::Power => binary!(mlx::power),
            Op::Maximum => binary!(mlx::maximum),
            Op::Minimum => binary!(mlx::minimum),
            Op::Arctan2 => binary!(mlx::arctan2),
            Op::Logaddexp => binary!(double::logaddexp),
            Op::Equal => binary!(mlx::equal),
            Op::NotEqual => binary!(mlx::not_equal),
            Op::Less => binary!(mlx::less),
            Op::LessEqual => binary!(mlx::less_equal),
            Op::Greater => binary!(mlx::greater),
            Op::GreaterEqual => binary!(mlx::greater_equal),
            Op::LogicalAnd => binary!(binary::logical_and),
            Op::LogicalOr => binary!(binary::logical_or),
            Op::LogicalXor => binary!(binary::logical_xor),
            Op::BitwiseAnd => binary!(mlx::bitwise_and),
            Op::BitwiseOr => binary!(mlx::bitwise_or),
            Op::BitwiseXor => binary!(binary::bitwise_xor),
            Op::LeftShift => binary!(binary::left_shift),
            Op::RightShift => binary!(binary::right_shift),
            Op::Divmod => {
                let [a, b] = inputs.exactly()?;
                Ok(smallvec![
                    binary::floor_divide(a, b, s)?,
                    binary::remainder(a, b, s)?,
                ])
            }
            Op::Isclose {
                rtol,
                atol,
                equal_nan,
            } => binary!(mlx::isclose, *rtol, *atol, *equal_nan),
            Op::Allclose {
                rtol,
                atol,
                equal_nan,
            } => binary!(mlx::allclose, *rtol, *atol, *equal_nan),
            Op::ArrayEqual { equal_nan } => binary!(mlx::array_equal, *equal_nan),

            Op::Astype { dtype } => unary!(cast::astype, *dtype),
            Op::View { dtype } => unary!(mlx::view, *dtype),
            Op::ToFp8 => unary!(cast::to_fp8),
            Op::FromFp8 { dtype } => unary!(mlx::from_fp8, *dtype),

            Op::Sum { axes, keepdims } => fold!(0.0, Fold::Sum, axes, keepdims),
            Op::Prod { axes, keepdims } => fold!(1.0, Fold::Product, axes, keepdims),
            Op::Max { axes, keepdims } => reduce!(mlx::max, axes, *keepdims),
            Op::Min { axes, keepdims } => reduce!(mlx::min, axes, *keepdims),
            Op::All { axes, keepdims } => total!(1.0, reduce::all, axes, keepdims),
            Op::Any { axes, keepdims } => total!(0.0, reduce::any, axes, keepdims),
            Op::Mean { axes, keepdims } => fold!(f64::NAN, Fold::Mean, axes, keepdims),
            Op::Median { axes, keepdims } => reduce!(gpu::median, axes, *keepdims, device),
            Op::Var {
                axes,
                keepdims,
                ddof,
            } => fold!(f64::NAN, Fold::Variance { ddof: *ddof }, axes, keepdims),
            Op::Std {
                axes,
                keepdims,
                ddof,
            } => fold!(f64::NAN, Fold::Deviation { ddof: *ddof }, axes, keepdims),
            Op::Logsumexp { axes, keepdims } => {
                let [a] = inputs.exactly()?;
                let axes = axes_of(a, axes)?;
                reduce::logsumexp(a, &axes, *keepdims, device, s).map(one)
            }
            Op::Softmax { axes, precise } => reduce!(softmax::softmax, axes, *precise, device),
            Op::Argmax {
                axis,
                keepdims,
                nan,
            } => unary!(arg_reduce::arg_reduce, *axis, *keepdims, *nan, mlx::argmax),
            Op::Argmin {
                axis,
                keepdims,
                nan,
            } => unary!(arg_reduce::arg_reduce, *axis, *keepdims, *nan, mlx::argmin),
            Op::Cumsum {
                axis,
                reverse,
                inclusive,
            } => scan!(Scan::Sum, axis, reverse, inclusive),
            Op::Cumprod {
                axis,
                reverse,
                inclusive,
            } => scan!(Scan::Product, axis, reverse, inclusive),
            Op::Cummax {
                axis,
                reverse,
                inclusive,
            } => along!(
                gpu::running,
                *axis,
                Reduction::Max,
                *reverse,
                *inclusive,
                device
            ),
            Op::Cummin {
                axis,
                reverse,
                inclusive,
            } => along!(
                gpu::running,
                *axis,
                Reduction::Min,
                *reverse,
                *inclusive,
                device
            ),
            Op::Logcumsumexp {
                axis,
                reverse,
                inclusive,
            } => scan!(Scan::LogSum, axis, reverse, inclusive),

            Op::Sort { axis } => along!(gpu::sort, *axis, device),
            Op::Argsort { axis } => unary!(sort::argsort, *axis, device),
            Op::Partition { kth, axis } => {
                unary!(sort::partition, *kth, *axis, mlx::partition, device)
            }
            Op::Argpartition { kth, axis } => {
                unary!(sort::partition, *kth, *axis, mlx::argpartition, device)
            }
            Op::Topk { k, axis } => unary!(sort::topk, *k, *axis, device),
            Op::Searchsorted { side } => binary!(sort::searchsorted, *side),

            Op::Reshape { shape } => unary!(shape::reshape, shape),
            Op::Flatten {
                start_axis,
                end_axis,
            } => unary!(mlx::flatten, *start_axis, *end_axis),
            Op::Unflatten { axis, shape } => unary!(shape::unflatten, *axis, shape),
            Op::Squeeze { axes } => {
                let [a] = inputs.exactly()?;
                mlx::squeeze(a, &check::axes(a, axes)?, s).map(one)
            }
            Op::ExpandDims { axes } => {
                let [a] = inputs.exactly()?;
                let axes = check::new_axes(axes, a.ndim() + axes.len())?;
                mlx::expand_dims(a, &axes, s).map(one)
            }
            Op::Transpose { axes } => {
                let [a] = inputs.exactly()?;
                check::length("axes", axes.len(), a.ndim())?;
                gpu::transpose(a, &check::axes(a, axes)?, device, s).map(one)
            }
            Op::Swapaxes { axis1, axis2 } => unary!(gpu::swapaxes, *axis1, *axis2, device),
            Op::Moveaxis {
                source,
                destination,
            } => unary!(gpu::moveaxis, *source, *destination, device),
            Op::BroadcastTo { shape } => unary!(mlx::broadcast_to, check::shape(shape)?),
            Op::Concatenate { axis } => {
                let ([], arrays) = inputs.and_more()?;
                // MLX gives one array back as it is, whatever the axis.
                if let [a] = arrays[..] {
                    check::axis(a, *axis)?;
                }
                mlx::concatenate(&Vector::new(arrays), *axis, s).map(one)
            }
            Op::Stack { axis } => {
                let ([], arrays) = inputs.and_more()?;
                mlx::stack(&Vector::new(arrays), *axis, s).map(one)
            }
            Op::Split { indices, axis } => {
                let [a] = inputs.exactly()?;
                shape::split(a, indices, *axis, s).map(Outputs::from_vec)
            }
            Op::Repeat { repeats, axis } => {
                let [a] = inputs.exactly()?;
                check::at_least("repeats", *repeats, 0)?;
                let axis = check::axis(a, *axis)? as i32;
                mlx::repeat(a, *repeats, axis, s).map(one)
            }
            Op::Tile { repetitions } => unary!(mlx::tile, check::shape(repetitions)?),
            Op::Flip { axes } => {
                let [a] = inputs.exactly()?;
                let flipped = mlx::flip(a, &check::axes(a, axes)?, s)?;
                gpu::without_negative_strides(flipped, true, device, s).map(one)
            }
            Op::Roll { shift, axes } => unary!(shape::roll, shift, axes),
            Op::Pad {
                axes,
                low,
                high,
                mode,
            } => binary!(shape::pad, axes, low, high, *mode),
            Op::PadInterior {
                low,
                high,
                interior,
            } => binary!(shape::pad_interior, low, high, interior),
            Op::AsStrided {
                shape,
                strides,
                offset,
            } => unary!(shape::as_strided, shape, strides, *offset),
            Op::Contiguous => unary!(mlx::contiguous, false),
            Op::Diag { k } => unary!(shape::diag, *k),
            Op::Diagonal {
                offset,
                axis1,
                axis2,
            } => unary!(shape::diagonal, *offset, *axis1, *axis2),
            Op::Tril { k } => unary!(shape::triangle, *k, mlx::tril),
            Op::Triu { k } => unary!(shape::triangle, *k, mlx::triu),
            Op::Trace {
                offset,
                axis1,
                axis2,
            } => {
                let [a] = inputs.exactly()?;
                let diagonal = shape::diagonal(a, *offset, *axis1, *axis2, s)?;
                let last = [diagonal.ndim() as i32 - 1];
                reduce::sum(&diagonal, &last, false, device, s).map(one)
            }

            Op::Slice {
                start,
                stop,
                strides,
            } => {
                let [a] = inputs.exactly()?;
                let (start, stop, strides) = check::slice(a, start, stop, strides)?;
                let slice = mlx::slice(a, &start, &stop, &strides, s)?;
                let turned = strides.iter().any(|stride| *stride < 0);
                gpu::without_negative_strides(slice, turned, device, s).map(one)
            }
            Op::SliceUpdate {
                start,
                stop,
                strides,
            } => sliced!(mlx::slice_update, start, stop, strides),
            Op::SliceUpdateAdd {
                start,
                stop,
                strides,
            } => sliced!(mlx::slice_update_add, start, stop, strides),
            Op::SliceUpdateMax {
                start,
                stop,
                strides,
            } => sliced!(mlx::slice_update_max, start, stop, strides),
            Op::SliceUpdateMin {
                start,
                stop,
                strides,
            } => sliced!(mlx::slice_update_min, start, stop, strides),
            Op::SliceUpdateProd {
                start,
                stop,
                strides,
            } => sliced!(mlx::slice_update_prod, start, stop, strides),
            Op::SliceDynamic { axes, sizes } => {
                binary!(slicing::slice_dynamic, axes, sizes, device)
            }
            Op::SliceUpdateDynamic { axes } => {
                ternary!(slicing::slice_update_dynamic, axes, device)
            }
            Op::Take { axis } => binary!(indexing::take, *axis),
            Op::TakeAlongAxis { axis } => binary!(indexing::take_along_axis, *axis),
            Op::PutAlongAxis { axis } => ternary!(indexing::put_along_axis, *axis),
            Op::ScatterAddAxis { axis } => ternary!(indexing::scatter_add_axis, *axis, device),
            Op::Gather { axes, slice_sizes } => {
                let ([a], indices) = inputs.and_more()?;
                indexing::gather(a, &indices, axes, slice_sizes, s).map(one)
            }
            Op::Scatter { axes } => scatter!(mlx::scatter, axes),
            Op::ScatterAdd { axes } => {
                let ([a, updates], indices) = inputs.and_more()?;
                indexing::scatter_add(a, updates, &indices, axes, device, s).map(one)
            }
            Op::ScatterMax { axes } => scatter!(mlx::scatter_max, axes),
            Op::ScatterMin { axes } => scatter!(mlx::scatter_min, axes),
            Op::ScatterProd { axes } => {
                let ([a, updates], indices) = inputs.and_more()?;
                indexing::scatter_prod(a, updates, &indices, axes, s).map(one)
            }
            Op::MaskedScatter => ternary!(indexing::masked_scatter),
            Op::Where => ternary!(mlx::where_),
            Op::Clip => {
                let ([a], [low, high]) = inputs.with_optional()?;
                mlx::clip(a, low, high, s).map(one)
            }

            Op::Matmul => binary!(matmul::matmul, device),
            Op::Addmm { alpha, beta } => ternary!(matmul::addmm, *alpha, *beta, device),
            Op::Tensordot { axes_a, axes_b } => binary!(matmul::tensordot, axes_a, axes_b, device),
            Op::Einsum { subscripts } => {
                let ([], operands) = inputs.and_more()?;
                einsum::einsum(subscripts, &operands, device, s).map(one)
            }
            Op::Inner => binary!(matmul::inner, device),
            Op::Outer => binary!(mlx::outer),
            Op::Kron => binary!(mlx::kron),
            Op::Vecdot { axis } => binary!(matmul::vecdot, *axis, device),
            Op::GatherMm { sorted } => {
                let ([a, b], [lhs, rhs]) = inputs.with_optional()?;
                matmul::gather_mm(a, b, lhs, rhs, *sorted, device, s).map(one)
            }

            Op::Conv {
                stride,
                padding_low,
                padding_high,
                kernel_dilation,
                input_dilation,
                groups,
                flip,
            } => binary!(
                conv::conv,
                stride,
                padding_low,
                padding_high,
                kernel_dilation,
                input_dilation,
                *groups,
                *flip,
                device
            ),
            Op::ConvTranspose {
                stride,
                padding,
                dilation,
                output_padding,
                groups,
            } => binary!(
                conv::conv_transpose,
                stride,
                padding,
                dilation,
                output_padding,
                *groups,
                device
            ),
            Op::WindowReduce {
                reduction,
                window,
                strides,
                padding_low,
                padding_high,
                dilation,
            } => unary!(
                window::reduce,
                *reduction,
                &window::Windows {
                    window,
                    strides,
                    padding_low,
                    padding_high,
                    dilation
                }
            ),
            Op::WindowScatter {
                reduction,
                window,
                strides,
                padding_low,
                padding_high,
            } => ternary!(
                window::scatter,
                *reduction,
                &window::Windows {
                    window,
                    strides,
                    padding_low,
                    padding_high,
                    dilation: &vec![1; window.len()],
                },
                device
            ),
            Op::WindowView {
                window,
                strides,
                dilation,
            } => unary!(window::view, window, strides, dilation),

            Op::Fft { sizes, axes, norm } => transform!(mlx::fft, sizes, axes, norm),
            Op::Ifft { sizes, axes, norm } => transform!(mlx::ifft, sizes, axes, norm),
            Op::Rfft { sizes, axes, norm } => transform!(mlx::rfft, sizes, axes, norm),
            Op::Irfft { sizes, axes, norm } => transform!(mlx::irfft, sizes, axes, norm),
            Op::Fftshift { axes } => unary!(fft::shift_spectrum, axes, mlx::fftshift),
            Op::Ifftshift { axes } => unary!(fft::shift_spectrum, axes, mlx::ifftshift),

            Op::Cholesky { upper } => single!(check::square, mlx::cholesky, *upper),
            Op::CholeskyInv { upper } => single!(check::square, mlx::cholesky_inv, *upper),
            Op::Qr => several!(check::matrix, mlx::qr),
            Op::Svd { compute_uv } => several!(check::matrix, linalg::svd, *compute_uv),
            Op::Eigh { upper } => several!(check::square, linalg::eigh, *upper),
            Op::Eigvalsh { upper } => several!(check::square, linalg::eigvalsh, *upper),
            Op::Eig => several!(check::square, linalg::eig),
            Op::Eigvals => several!(check::square, linalg::eigvals),
            Op::Lu => several!(check::matrix, linalg::lu),
            Op::LuFactor => several!(check::matrix, linalg::lu_factor),
            Op::Inv => single!(check::square, mlx::inv),
            Op::TriInv { upper } => single!(check::square, mlx::tri_inv, *upper),
            Op::Pinv => several!(check::matrix, linalg::pinv),
            Op::Det => several!(check::square, linalg::det),
            Op::Slogdet => several!(check::square, linalg::slogdet),
            Op::Solve => {
                let [a, b] = inputs.exactly()?;
                linalg::check_system(a, b)?;
                linalg::solve(a, b, s).map(one)
            }
            Op::SolveTriangular { upper } => {
                let [a, b] = inputs.exactly()?;
                linalg::check_system(a, b)?;
                linalg::solve_triangular(a, b, *upper, s).map(one)
            }
            Op::Cross { axis } => binary!(matmul::cross, *axis),

            Op::RandomKey { seed } => created!(mlx::random_key(*seed)),
            Op::RandomSplit { num } => {
                let [key] = inputs.exactly()?;
                check::key(key)?;
                check::at_least("num", *num, 1)?;
                mlx::random_split(key, *num, s).map(one)
            }
            Op::RandomBits { shape, width } => {
                if ![1, 2, 4].contains(width) {
                    return Err(Error::invalid(format!(
                        "width must be 1, 2 or 4, got {width}"
                    )));
                }
                keyed!(mlx::random_bits, check::shape(shape)?, *width)
            }
            Op::RandomUniform { shape, dtype } => {
                let [low, high, key] = inputs.exactly()?;
                check::key(key)?;
                check::shape(shape)?;
                mlx::random_uniform(low, high, shape, *dtype, Some(key), s).map(one)
            }
            Op::RandomNormal {
                shape,
                dtype,
                loc,
                scale,
            } => keyed!(
                mlx::random_normal,
                check::shape(shape)?,
                *dtype,
                *loc,
                *scale
            ),
            Op::RandomRandint { shape, dtype } => {
                let [low, high, key] = inputs.exactly()?;
                check::key(key)?;
                check::shape(shape)?;
                mlx::random_randint(low, high, shape, *dtype, Some(key), s).map(one)
            }
            Op::RandomBernoulli { shape } => {
                let [p, key] = inputs.exactly()?;
                check::key(key)?;
                check::shape(shape)?;
                mlx::random_bernoulli(p, shape, Some(key), s).map(one)
            }
            Op::RandomTruncatedNormal { shape, dtype } => {
                let [low, high, key] = inputs.exactly()?;
                check::key(key)?;
                check::shape(shape)?;
                mlx::random_truncated_normal(low, high, shape, *dtype, Some(key), s).map(one)
            }
            Op::RandomGumbel { shape, dtype } => {
                keyed!(mlx::random_gumbel, check::shape(shape)?, *dtype)
            }
            Op::RandomLaplace {
                shape,
                dtype,
                loc,
                scale,
            } => keyed!(
                mlx::random_laplace,
                check::shape(shape)?,
                *dtype,
                *loc,
                *scale
            ),
            Op::RandomCategorical { axis, shape } => {
                let [logits, key] = inputs.exactly()?;
                check::key(key)?;
                check::shape(shape)?;
                check::filled_axis(logits, *axis)?;
                mlx::random_categorical(logits, *axis, shape, Some(key), s).map(one)
            }
            Op::RandomPermutation { axis } => {
                let [a, key] = inputs.exactly()?;
                check::key(key)?;
                check::axis(a, *axis)?;
                // MLX divides by the length of the axis.
                if a.size() == 0 {
                    return mlx::share(a).map(one);
                }
                mlx::random_permutation(a, *axis, Some(key), s).map(one)
            }

            Op::Constant { value, dtype } => created!(creation::constant(*value, *dtype)),
            Op::Full { shape, dtype } => {
                let [value] = inputs.exactly()?;
                mlx::full(check::shape(shape)?, value, *dtype, s).map(one)
            }
            Op::Zeros { shape, dtype } => created!(mlx::zeros(check::shape(shape)?, *dtype, s)),
            Op::Ones { shape, dtype } => created!(mlx::ones(check::shape(shape)?, *dtype, s)),
            Op::Arange {
                start,
                stop,
                step,
                dtype,
            } => created!(creation::arange(*start, *stop, *step, *dtype, s)),
            Op::Linspace {
                start,
                stop,
                num,
                dtype,
            } => {
                check::at_least("num", *num, 0)?;
                created!(creation::linspace(*start, *stop, *num, *dtype, s))
            }
            Op::Iota { shape, axis, dtype } => {
                created!(creation::iota(check::shape(shape)?, *axis, *dtype, s))
            }
            Op::Eye { n, m, k, dtype } => {
                let k = check::matrix_size(*n, *m, *k, *dtype)?;
                created!(gpu::eye(*n, *m, k, *dtype, device, s))
            }
            Op::Tri { n, m, k, dtype } => {
                let k = check::matrix_size(*n, *m, *k, *dtype)?;
                created!(gpu::tri(*n, *m, k, *dtype, device, s))
            }

            Op::RmsNorm { eps } => {
                let ([x], [weight]) = inputs.with_optional()?;
                norm::rms_norm(x, weight, *eps, device, s).map(one)
            }
            Op::LayerNorm { eps } => {
                let ([x], [weight, bias]) = inputs.with_optional()?;
                norm::layer_norm(x, weight, bias, *eps, device, s).map(one)
            }
            Op::Rope {
                dims,
                traditional,
                base,
                scale,
            } => {
                let ([x, offset], [freqs]) = inputs.with_optional()?;
                rope::rope(
                    x,
                    *dims,
                    *traditional,
                    *base,
                    *scale,
                    offset,
                    freqs,
                    device,
                    s,
                )
                .map(one)
            }
            Op::Products { .. } | Op::QuantizedProducts { .. } => {
                let ([x], [weight, residual], matrices) = inputs.with_optional_and_more()?;
                let wanted = Products::of(self, x, weight, residual, &matrices)
                    .ok_or_else(|| Error::invalid("eps goes with the weight of a norm"))?;
                fused::products(wanted, device, s, crossed)
            }
            Op::RopeHeads { .. } => {
                let (arrays, [q_norm, k_norm, freqs]) = inputs.with_optional()?;
                let how = decode::Heads::of(self, q_norm, k_norm)
                    .ok_or_else(|| Error::invalid("eps goes with a weight for q and one for k"))?;
                fused::rope_heads(arrays, freqs, &how, device, s, crossed)
            }
            Op::CacheAttention { scale, shape } => {
                let (arrays, [mask]) = inputs.with_optional()?;
                fused::cache_attention(arrays, mask, *scale, shape, device, s, crossed).map(one)
            }
            Op::ScaledDotProductAttention { scale, mask: mode } => {
                let ([q, k, v], [mask, sinks]) = inputs.with_optional()?;
                attention::attention(q, k, v, mask, sinks, *scale, *mode, device, s).map(one)
            }
            Op::CrossEntropy => binary!(softmax::cross_entropy, device),

            Op::Quantize {
                group_size,
                bits,
                mode,
            } => {
                let ([w], [global_scale]) = inputs.with_optional()?;
                check::packing(*group_size, *bits)?;
                mlx::quantize(w, *group_size, *bits, mode.name(), global_scale, s)
                    .map(Outputs::from_vec)
            }
            Op::Dequantize {
                group_size,
                bits,
                mode,
                dtype,
            } => {
                let ([w, scales], [biases, global_scale]) = inputs.with_optional()?;
                check::packing(*group_size, *bits)?;
                mlx::dequantize(
                    w,
                    scales,
                    biases,
                    *group_size,
                    *bits,
                    mode.name(),
                    global_scale,
                    *dtype,
                    s,
                )
                .map(one)
            }
            Op::QuantizedMatmul {
                transpose,
                group_size,
                bits,
                mode,
            } => {
                let ([x, w, scales], [biases]) = inputs.with_optional()?;
                check::packing(*group_size, *bits)?;
                if *transpose && mode.name() == "affine" {
                    let (group, bits) = (*group_size, *bits);
                    let weights = [w, scales];
                    if let Some(own) =
                        quantized::quantized_product(x, weights, biases, group, bits, device, s)
                    {
                        return own.map(one);
                    }
                }
                gpu::of_rows(x, device, s, |x| {
                    quantized::quantized_in_single(
                        x,
                        scales,
                        biases,
                        device,
                        s,
                        |x, scales, biases| {
                            mlx::quantized_matmul(
                                x,
                                w,
                                scales,
                                biases,
                                *transpose,
                                *group_size,
                                *bits,
                                mode.name(),
                                s,
                            )
                        },
                    )
                })
                .map(one)
            }
            Op::Qqmm {
                group_size,
                bits,
                mode,
            } => {
                let ([x, w], [scales, scale_x, scale_w]) = inputs.with_optional()?;
                check::packing(*group_size, *bits)?;
                cast::in_single(x, device, s, |x| {
                    mlx::qqmm(
                        x,
                        w,
                        scales,
                        *group_size,
                        *bits,
                        mode.name(),
                        scale_x,
                        scale_w,
                        s,
                    )
                })
                .map(one)
            }
            Op::GatherQmm {
                transpose,
                group_size,
                bits,
                mode,
                sorted,
            } => {
                let ([x, w, scales], [biases, lhs, rhs]) = inputs.with_optional()?;
                check::packing(*group_size, *bits)?;
                let (lhs, rhs) = matmul::matrix_indices(x, w, lhs, rhs, s)?;
                quantized::quantized_in_single(x, scales, biases, device, s, |x, scales, biases| {
                    mlx::gather_qmm(
                        x,
                        w,
                        scales,
                        biases,
                        lhs.as_ref(),
                        rhs.as_ref(),
                        *transpose,
                        *group_size,
                        *bits,
                        mode.name(),
                        *sorted,
                        s,
                    )
                })
                .map(one)
            }
        }
    }
}
