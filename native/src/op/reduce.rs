//! Reductions. They are kernels of ours on the CPU (native/cpu). Where these are not, those that add up are composed
//! of MLX's in blocks (blocks.rs), since MLX's CPU kernels keep one running total. 16-bit floats are added up in f32 at
//! least, on every device. Called by [`Op::apply`] for operations of [`Class::Reduction`](super::Class::Reduction).

use super::creation::{constant, float};
use super::cuda::chain as generated;
use super::elementwise::{in_one, step};
use super::table::family;
use super::{arg_reduce, blocks, cast, double, gpu, one, shape, Inputs, Number, Op, Outputs};
use crate::base::{Device, Dtype, Result};
use crate::cpu::{self, Operand, Reduction};
use crate::mlx::{self, Stream};
use mlx_rs::Array;
use smallvec::SmallVec;

family! { Reduction, takes(1):
    // Inputs: a.
    /// Inputs: a, b.
    Allclose { rtol: f64, atol: f64, equal_nan: bool } => takes(2),
    /// Inputs: a, b.
    ArrayEqual { equal_nan: bool } => takes(2),
    Sum { axes: Option<Vec<i32>>, keepdims: bool },
    Prod { axes: Option<Vec<i32>>, keepdims: bool },
    Max { axes: Option<Vec<i32>>, keepdims: bool },
    Min { axes: Option<Vec<i32>>, keepdims: bool },
    All { axes: Option<Vec<i32>>, keepdims: bool },
    Any { axes: Option<Vec<i32>>, keepdims: bool },
    Mean { axes: Option<Vec<i32>>, keepdims: bool },
    Median { axes: Option<Vec<i32>>, keepdims: bool },
    Var { axes: Option<Vec<i32>>, keepdims: bool, ddof: i32 },
    Std { axes: Option<Vec<i32>>, keepdims: bool, ddof: i32 },
    Logsumexp { axes: Option<Vec<i32>>, keepdims: bool },
    /// The first of equals; NaN, of which `nan` says which one, before all. `axis: nil` looks at the flattened array.
    Argmax { axis: Option<i32>, keepdims: bool, nan: Which },
    Argmin { axis: Option<i32>, keepdims: bool, nan: Which },
    Trace { offset: i32, axis1: i32, axis2: i32 },
}

/// What several elements become one by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reducing {
    Sum,
    Prod,
    Max,
    Min,
    All,
    Any,
    Mean,
    Median,
    Var { ddof: i32 },
    Std { ddof: i32 },
    Logsumexp,
}

/// A reduction over axes, or over all of them.
pub struct Over<'a> {
    pub reducing: Reducing,
    pub axes: &'a Option<Vec<i32>>,
    pub keepdims: bool,
}

impl Op {
    pub const fn reducing(&self) -> Option<Over<'_>> {
        let (reducing, axes, keepdims) = match self {
            Op::Sum { axes, keepdims } => (Reducing::Sum, axes, keepdims),
            Op::Prod { axes, keepdims } => (Reducing::Prod, axes, keepdims),
            Op::Max { axes, keepdims } => (Reducing::Max, axes, keepdims),
            Op::Min { axes, keepdims } => (Reducing::Min, axes, keepdims),
            Op::All { axes, keepdims } => (Reducing::All, axes, keepdims),
            Op::Any { axes, keepdims } => (Reducing::Any, axes, keepdims),
            Op::Mean { axes, keepdims } => (Reducing::Mean, axes, keepdims),
            Op::Median { axes, keepdims } => (Reducing::Median, axes, keepdims),
            Op::Var {
                axes,
                keepdims,
                ddof,
            } => (Reducing::Var { ddof: *ddof }, axes, keepdims),
            Op::Std {
                axes,
                keepdims,
                ddof,
            } => (Reducing::Std { ddof: *ddof }, axes, keepdims),
            Op::Logsumexp { axes, keepdims } => (Reducing::Logsumexp, axes, keepdims),
            _ => return None,
        };
        let keepdims = *keepdims;
        Some(Over {
            reducing,
            axes,
            keepdims,
        })
    }
}

impl Over<'_> {
    fn apply(&self, inputs: &Inputs, device: Device, s: &Stream) -> Result<Outputs> {
        let keepdims = self.keepdims;
        inputs.over(self.axes, |a, axes| {
            // A reduction of ours, with its value over no elements.
            let fold = |of_none, reduction| {
                let reduce = |a: &Array| reduce(reduction, a, axes, keepdims, device, s);
                total(a, axes, keepdims, of_none, s, reduce)
            };
            match self.reducing {
                Reducing::Sum => fold(0.0, Reduction::Sum),
                Reducing::Prod => fold(1.0, Reduction::Product),
                Reducing::Mean => fold(f64::NAN, Reduction::Mean),
                Reducing::Var { ddof } => fold(f64::NAN, Reduction::Variance { ddof }),
                Reducing::Std { ddof } => fold(f64::NAN, Reduction::Deviation { ddof }),
                Reducing::Max => extreme(true, a, axes, keepdims, device, s),
                Reducing::Min => extreme(false, a, axes, keepdims, device, s),
                Reducing::All => {
                    let all = |a: &Array| truth(true, a, axes, keepdims, device, s);
                    total(a, axes, keepdims, 1.0, s, all)
                }
                Reducing::Any => {
                    let any = |a: &Array| truth(false, a, axes, keepdims, device, s);
                    total(a, axes, keepdims, 0.0, s, any)
                }
                Reducing::Median => gpu::median(a, axes, keepdims, device, s),
                Reducing::Logsumexp => logsumexp(a, axes, keepdims, device, s),
            }
        })
    }
}

/// Builds an operation of the class.
pub fn apply(op: &Op, inputs: &Inputs, device: Device, s: &Stream) -> Result<Outputs> {
    if let Some(over) = op.reducing() {
        return over.apply(inputs, device, s);
    }
    match op {
        Op::Allclose {
            rtol,
            atol,
            equal_nan,
        } => inputs.binary(s, |a, b, s| {
            mlx::allclose(a, b, *rtol, *atol, *equal_nan, s)
        }),
        Op::ArrayEqual { equal_nan } => {
            inputs.binary(s, |a, b, s| mlx::array_equal(a, b, *equal_nan, s))
        }
        Op::Argmax {
            axis,
            keepdims,
            nan,
        } => inputs.unary(s, |a, s| {
            arg_reduce::arg_reduce(true, a, *axis, *keepdims, *nan, device, s)
        }),
        Op::Argmin {
            axis,
            keepdims,
            nan,
        } => inputs.unary(s, |a, s| {
            arg_reduce::arg_reduce(false, a, *axis, *keepdims, *nan, device, s)
        }),
        Op::Trace {
            offset,
            axis1,
            axis2,
        } => {
            let [a] = inputs.exactly()?;
            let diagonal = shape::diagonal(a, *offset, *axis1, *axis2, s)?;
            let last = [diagonal.ndim() as i32 - 1];
            sum(&diagonal, &last, false, device, s).map(one)
        }
        _ => Err(super::no_case(op)),
    }
}

/// The largest or the smallest, NaN where there is one.
pub fn extreme(
    is_max: bool,
    a: &Array,
    axes: &[i32],
    keepdims: bool,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    match is_max {
        _ if cpu::orders(device, a) => cpu::extreme(is_max, a, axes, keepdims, s),
        true => mlx::max(a, axes, keepdims, s),
        false => mlx::min(a, axes, keepdims, s),
    }
}

/// Whether all or any are other than zero.
pub fn truth(
    is_all: bool,
    a: &Array,
    axes: &[i32],
    keepdims: bool,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    let a = match mlx::dtype(a) {
        Dtype::C64 => &cast::truth(a, s)?,
        _ => a,
    };
    match is_all {
        _ if cpu::orders(device, a) => cpu::truth(is_all, a, axes, keepdims, s),
        true => mlx::all(a, axes, keepdims, s),
        false => mlx::any(a, axes, keepdims, s),
    }
}

/// A reduction whose value over no elements is `of_none`: MLX's may not end where an axis of a view is empty.
pub fn total(
    a: &Array,
    axes: &[i32],
    keepdims: bool,
    of_none: f64,
    s: &Stream,
    reduce: impl Fn(&Array) -> Result<Array>,
) -> Result<Array> {
    if a.size() > 0 {
        return reduce(a);
    }
    // One element stands for none: the shape and the type of the result are those of any reduction.
    let sizes = a.shape().iter().enumerate();
    let one: Vec<i32> = sizes
        .map(|(axis, size)| {
            if axes.contains(&(axis as i32)) {
                1
            } else {
                *size
            }
        })
        .collect();
    let one = mlx::zeros(&one, mlx::dtype(a), s)?;
    let dtype = mlx::dtype(&reduce(&mlx::zeros(&vec![1; a.ndim()], mlx::dtype(a), s)?)?);
    let shape = if keepdims {
        one.shape().to_vec()
    } else {
        mlx::squeeze(&one, axes, s)?.shape().to_vec()
    };
    mlx::full(&shape, &float(of_none, dtype)?, dtype, s)
}

/// Who computes a sum.
pub enum Way {
    /// A kernel of ours.
    Own,
    /// MLX in blocks, on f32 or complex numbers.
    Blocks,
    /// MLX, in f32 for 16-bit floats.
    Mlx,
}

pub fn way(dtype: Dtype, is_taken: bool, device: Device) -> Way {
    let adds_up = dtype.is_half() || blocks::takes(dtype);
    let is_off = cpu::are_built() && !cpu::are_there();
    match device {
        Device::Cpu if adds_up && !is_off => match is_taken && cpu::are_there() {
            true => Way::Own,
            false => Way::Blocks,
        },
        _ => Way::Mlx,
    }
}

/// In f32 for 16-bit floats, and rounded once.
pub fn in_single(
    a: &Array,
    s: &Stream,
    compute: impl Fn(&Array) -> Result<Array>,
) -> Result<Array> {
    let dtype = mlx::dtype(a);
    match dtype.is_half() {
        true => mlx::astype(&compute(&mlx::astype(a, Dtype::F32, s)?)?, dtype, s),
        false => compute(a),
    }
}

/// `a`, which has elements, over axes that are not negative.
pub fn reduce(
    reduction: Reduction,
    a: &Array,
    axes: &[i32],
    keepdims: bool,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    let dtype = mlx::dtype(a);
    let is_whole = !dtype.is_float() && dtype != Dtype::C64;
    if is_whole && !matches!(reduction, Reduction::Sum | Reduction::Product) {
        return of_integers(reduction, a, axes, keepdims, device, s);
    }
    if is_whole {
        return total_of_integers(reduction, a, axes, keepdims, device, s);
    }
    if dtype == Dtype::C64 {
        if let Some(ddof) = ddof(reduction) {
            return spread_of_complex(reduction, ddof, a, axes, keepdims, device, s);
        }
    }
    match way(dtype, cpu::reduces(reduction, dtype), device) {
        Way::Own => {
            let sizes = a.shape().iter().enumerate();
            let shape: SmallVec<[i32; 8]> = sizes
                .filter_map(|(axis, size)| match axes.contains(&(axis as i32)) {
                    true => keepdims.then_some(1),
                    false => Some(*size),
                })
                .collect();
            let axes = axes.iter().map(|axis| *axis as u8).collect();
            cpu::reduce(reduction, a, axes, &shape, s)
        }
        Way::Blocks => in_single(a, s, |a| in_blocks(reduction, a, axes, keepdims, s)),
        Way::Mlx => in_single(a, s, |a| match device {
            Device::Gpu => on_gpu(reduction, a, axes, keepdims, s),
            Device::Cpu => by_mlx(reduction, a, axes, keepdims, s),
        }),
    }
}

/// Wrapping round, in the type that MLX has the result in.
fn total_of_integers(
    reduction: Reduction,
    a: &Array,
    axes: &[i32],
    keepdims: bool,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    // Of which only the type is looked at where it is not the result.
    let by_mlx = by_mlx(reduction, a, axes, keepdims, s)?;
    let dtype = mlx::dtype(&by_mlx);
    if !cpu::orders(device, a) || !cpu::totals(a, dtype) {
        return Ok(by_mlx);
    }
    let is_product = reduction == Reduction::Product;
    cpu::total(is_product, a, axes, keepdims, dtype, s)
}

fn ddof(reduction: Reduction) -> Option<i32> {
    match reduction {
        Reduction::Variance { ddof } | Reduction::Deviation { ddof } => Some(ddof),
        _ => None,
    }
}

/// In f64 where there is one: MLX adds integers up in their own width.
fn of_integers(
    reduction: Reduction,
    a: &Array,
    axes: &[i32],
    keepdims: bool,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    match device {
        Device::Cpu => {
            let wide = mlx::astype(a, Dtype::F64, s)?;
            mlx::astype(&by_mlx(reduction, &wide, axes, keepdims, s)?, Dtype::F32, s)
        }
        Device::Gpu => on_gpu(
            reduction,
            &mlx::astype(a, Dtype::F32, s)?,
            axes,
            keepdims,
            s,
        ),
    }
}

/// The mean squared distance from the mean, which is the sum of the parts' variances.
fn spread_of_complex(
    reduction: Reduction,
    ddof: i32,
    a: &Array,
    axes: &[i32],
    keepdims: bool,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    let variance = |part: &Array| {
        let reduction = Reduction::Variance { ddof };
        reduce(reduction, part, axes, keepdims, device, s)
    };
    let [real, imaginary] = [mlx::real(a, s)?, mlx::imag(a, s)?];
    let both = mlx::add(&variance(&real)?, &variance(&imaginary)?, s)?;
    match reduction {
        Reduction::Deviation { .. } => mlx::sqrt(&both, s),
        _ => Ok(both),
    }
}

/// Elements of one sum from which a thread of CUDA's kernel for some of the axes adds up so many that it drifts.
const LONG_SUM: i64 = 1 << 13;

/// The inputs of operations in one kernel, and what the first operation gives.
const A: Operand = Operand::Input(0);
const B: Operand = Operand::Input(1);
const FIRST: Operand = Operand::Link(0);

/// CUDA's kernel for all elements of a buffer adds up as a tree; those for some axes, and for elements that are in the
/// buffer once and count several times, have each thread keep a running total.
fn on_gpu(
    reduction: Reduction,
    a: &Array,
    axes: &[i32],
    keepdims: bool,
    s: &Stream,
) -> Result<Array> {
    let sizes = axes.iter().map(|axis| i64::from(a.shape()[*axis as usize]));
    let count: i64 = sizes.product();
    let dtype = mlx::dtype(a);
    let is_tree = || axes.len() == a.ndim() && !mlx::may_repeat(a);
    let is_short = count < LONG_SUM || !blocks::takes(dtype) || is_tree();
    let is_spread = ddof(reduction).is_some() && blocks::takes(dtype);
    if is_short && !(is_spread && generated::unavailable().is_none()) {
        return by_mlx(reduction, a, axes, keepdims, s);
    }
    let total = |a: &Array| match is_short {
        true => mlx::sum(a, axes, true, s),
        false => sum_in_parts(a, axes, s),
    };
    let mean = |a: &Array| {
        let share = constant(Number::Float(1.0 / count as f64), dtype)?;
        mlx::multiply(&total(a)?, &share, s)
    };
    let variance = |ddof: i32| {
        let squares = [step(Op::Subtract, &[A, B]), step(Op::Square, &[FIRST])];
        let squares = total(&in_one(squares.into_iter().collect(), &[a, &mean(a)?], s)?)?;
        let free = (count as f64 - f64::from(ddof)).max(0.0);
        mlx::divide(&squares, &constant(Number::Float(free), dtype)?, s)
    };
    let reduced = match reduction {
        Reduction::Sum => total(a)?,
        Reduction::Mean => mean(a)?,
        Reduction::Variance { ddof } => variance(ddof)?,
        Reduction::Deviation { ddof } => mlx::sqrt(&variance(ddof)?, s)?,
        Reduction::LogSum => {
            let top = mlx::max(a, axes, true, s)?;
            let exps = [step(Op::Subtract, &[A, B]), step(Op::Exp, &[FIRST])];
            let sum = total(&in_one(exps.into_iter().collect(), &[a, &top], s)?)?;
            let steps = [
                step(Op::Log, &[A]),
                step(Op::Add, &[FIRST, B]),
                step(Op::Isinf, &[B]),
                step(Op::Where, &[Operand::Link(2), B, Operand::Link(1)]),
            ];
            in_one(steps.into_iter().collect(), &[&sum, &top], s)?
        }
        Reduction::Product => return by_mlx(reduction, a, axes, keepdims, s),
    };
    match keepdims {
        true => Ok(reduced),
        false => mlx::squeeze(&reduced, axes, s),
    }
}

/// A sum over some axes, which are kept: over parts of the longest one and all the others first, and then over these
/// parts.
fn sum_in_parts(a: &Array, axes: &[i32], s: &Stream) -> Result<Array> {
    let size = |axis: i32| a.shape()[axis as usize];
    let Some(longest) = axes.iter().copied().max_by_key(|axis| size(*axis)) else {
        return mlx::share(a);
    };
    let length = size(longest);
    let others: i64 = axes
        .iter()
        .map(|axis| i64::from(size(*axis)))
        .product::<i64>()
        / i64::from(length);
    // As many of the longest axis as make a part of about the square root of all.
    let all = others as f64 * f64::from(length);
    let part = ((all.sqrt() / others as f64) as i32).clamp(1, length);
    let whole = length / part * part;
    let cut = |from: i32, to: i32| {
        let (mut start, mut stop) = (vec![0; a.ndim()], a.shape().to_vec());
        (start[longest as usize], stop[longest as usize]) = (from, to);
        mlx::slice(a, &start, &stop, &vec![1; a.ndim()], s)
    };
    // The parts' own axis stands behind the axis of the parts.
    let parts = mlx::unflatten(&cut(0, whole)?, longest, &[whole / part, part], s)?;
    let inner: Vec<i32> = axes
        .iter()
        .map(|axis| if *axis >= longest { axis + 1 } else { *axis })
        .collect();
    let sums = mlx::squeeze(&mlx::sum(&parts, &inner, true, s)?, &[longest + 1], s)?;
    let sum = mlx::sum(&sums, &[longest], true, s)?;
    if whole == length {
        return Ok(sum);
    }
    mlx::add(&sum, &mlx::sum(&cut(whole, length)?, axes, true, s)?, s)
}

fn in_blocks(
    reduction: Reduction,
    a: &Array,
    axes: &[i32],
    keepdims: bool,
    s: &Stream,
) -> Result<Array> {
    match reduction {
        Reduction::Sum => blocks::sum(a, axes, keepdims, s),
        Reduction::Mean => blocks::mean(a, axes, keepdims, s),
        Reduction::Product => blocks::prod(a, axes, keepdims, s),
        Reduction::Variance { ddof } => blocks::var(a, axes, keepdims, ddof, s),
        Reduction::Deviation { ddof } => mlx::sqrt(&blocks::var(a, axes, keepdims, ddof, s)?, s),
        Reduction::LogSum => blocks::logsumexp(a, axes, keepdims, s),
    }
}

fn by_mlx(
    reduction: Reduction,
    a: &Array,
    axes: &[i32],
    keepdims: bool,
    s: &Stream,
) -> Result<Array> {
    match reduction {
        Reduction::Sum => mlx::sum(a, axes, keepdims, s),
        Reduction::Mean => mlx::mean(a, axes, keepdims, s),
        Reduction::Product => mlx::prod(a, axes, keepdims, s),
        Reduction::Variance { ddof } => mlx::var(a, axes, keepdims, ddof, s),
        Reduction::Deviation { ddof } => mlx::std(a, axes, keepdims, ddof, s),
        Reduction::LogSum => double::logsumexp(a, axes, keepdims, s),
    }
}

pub fn sum(a: &Array, axes: &[i32], keepdims: bool, device: Device, s: &Stream) -> Result<Array> {
    let reduce = |a: &Array| reduce(Reduction::Sum, a, axes, keepdims, device, s);
    total(a, axes, keepdims, 0.0, s, reduce)
}

pub fn logsumexp(
    a: &Array,
    axes: &[i32],
    keepdims: bool,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    if a.size() == 0 {
        // Which says so.
        return double::logsumexp(a, axes, keepdims, s);
    }
    let dtype = mlx::dtype(a);
    if dtype.is_float() || dtype == Dtype::C64 {
        return reduce(Reduction::LogSum, a, axes, keepdims, device, s);
    }
    let single = mlx::astype(a, Dtype::F32, s)?;
    reduce(Reduction::LogSum, &single, axes, keepdims, device, s)
}
