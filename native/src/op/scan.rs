//! Running reductions along an axis. Those that add up are kernels of ours on the CPU (native/cpu), or are
//! composed of MLX's in blocks (blocks.rs), as for reductions (reduce.rs). Called by [`Op::apply`] for operations of
//! [`Class::Scan`](super::Class::Scan).

use super::table::{family, others};
use super::{blocks, cast, double, gpu, reduce, window, Inputs, Op, Outputs};
use crate::base::{Device, Result};
use crate::cpu::{self, Scan};
use crate::mlx::{self, Stream};
use mlx_rs::Array;

family! { Scan, takes(1):
    // Inputs: a.
    Cumsum { axis: i32, reverse: bool, inclusive: bool },
    Cumprod { axis: i32, reverse: bool, inclusive: bool },
    Cummax { axis: i32, reverse: bool, inclusive: bool },
    Cummin { axis: i32, reverse: bool, inclusive: bool },
    Logcumsumexp { axis: i32, reverse: bool, inclusive: bool },
}

/// Builds an operation of the class.
pub fn apply(op: &Op, inputs: &Inputs, device: Device, s: &Stream) -> Result<Outputs> {
    let along = |how, axis, reverse, inclusive| {
        inputs.along(axis, |a, axis| {
            scan(how, a, axis, reverse, inclusive, device, s)
        })
    };
    match op {
        Op::Cumsum {
            axis,
            reverse,
            inclusive,
        } => along(Scan::Sum, *axis, *reverse, *inclusive),
        Op::Cumprod {
            axis,
            reverse,
            inclusive,
        } => along(Scan::Product, *axis, *reverse, *inclusive),
        Op::Cummax {
            axis,
            reverse,
            inclusive,
        } => inputs.along(*axis, |a, axis| {
            cast::in_single(a, device, s, |a| {
                gpu::running(
                    a,
                    axis,
                    window::Reduction::Max,
                    *reverse,
                    *inclusive,
                    device,
                    s,
                )
            })
        }),
        Op::Cummin {
            axis,
            reverse,
            inclusive,
        } => inputs.along(*axis, |a, axis| {
            cast::in_single(a, device, s, |a| {
                gpu::running(
                    a,
                    axis,
                    window::Reduction::Min,
                    *reverse,
                    *inclusive,
                    device,
                    s,
                )
            })
        }),
        Op::Logcumsumexp {
            axis,
            reverse,
            inclusive,
        } => along(Scan::LogSum, *axis, *reverse, *inclusive),
        others!(Scan) => Err(super::no_case(op)),
    }
}

/// Along an axis that is not negative, of an array that is not empty.
pub fn scan(
    scan: Scan,
    a: &Array,
    axis: i32,
    reverse: bool,
    inclusive: bool,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    let dtype = mlx::dtype(a);
    match reduce::way(dtype, cpu::scans(scan, dtype), device) {
        reduce::Way::Own => cpu::scan(scan, a, axis as u8, reverse, inclusive, s),
        reduce::Way::Blocks => reduce::in_single(a, s, |a| {
            scan_in_blocks(scan, a, axis, reverse, inclusive, s)
        }),
        reduce::Way::Mlx => reduce::in_single(a, s, |a| match device {
            Device::Gpu => scan_on_gpu(scan, a, axis, reverse, inclusive, s),
            Device::Cpu => scan_by_mlx(scan, a, axis, reverse, inclusive, s),
        }),
    }
}

/// Elements along an axis other than the last one from which CUDA's running totals drift. Along the last axis it adds
/// up as a tree.
const LONG_SCAN: i32 = 1 << 10;

fn scan_on_gpu(
    scan: Scan,
    a: &Array,
    axis: i32,
    reverse: bool,
    inclusive: bool,
    s: &Stream,
) -> Result<Array> {
    let last = a.ndim() as i32 - 1;
    if axis != last && a.shape()[axis as usize] >= LONG_SCAN && blocks::takes(mlx::dtype(a)) {
        let rows = gpu::moveaxis(a, axis, last, Device::Gpu, s)?;
        let scanned = scan_on_gpu(scan, &rows, last, reverse, inclusive, s)?;
        return gpu::moveaxis(&scanned, last, axis, Device::Gpu, s);
    }
    let none = match scan {
        Scan::Sum => window::Reduction::Sum,
        Scan::Product => window::Reduction::Prod,
        // Minus infinity.
        Scan::LogSum => window::Reduction::Max,
    };
    // MLX takes an array with negative strides for one in rows, and a matrix by columns for rows along another axis.
    let rows = mlx::contiguous(a, false, s)?;
    let whole = match gpu::alone(&rows, axis, s)? {
        Some(alone) => alone,
        None => scan_by_mlx(scan, &rows, axis, reverse, true, s)?,
    };
    match inclusive {
        true => Ok(whole),
        false => gpu::before_each(&whole, axis, reverse, none, s),
    }
}

fn scan_by_mlx(
    scan: Scan,
    a: &Array,
    axis: i32,
    reverse: bool,
    inclusive: bool,
    s: &Stream,
) -> Result<Array> {
    match scan {
        Scan::Sum => cumsum(a, axis, reverse, inclusive, s),
        Scan::Product => cumprod(a, axis, reverse, inclusive, s),
        Scan::LogSum => double::logcumsumexp(a, axis, reverse, inclusive, s),
    }
}

fn cumsum(a: &Array, axis: i32, reverse: bool, inclusive: bool, s: &Stream) -> Result<Array> {
    mlx::cumsum(a, axis, reverse, inclusive, None, s)
}

fn cumprod(a: &Array, axis: i32, reverse: bool, inclusive: bool, s: &Stream) -> Result<Array> {
    mlx::cumprod(a, axis, reverse, inclusive, None, s)
}

fn scan_in_blocks(
    scan: Scan,
    a: &Array,
    axis: i32,
    reverse: bool,
    inclusive: bool,
    s: &Stream,
) -> Result<Array> {
    let blocks = |how| blocks::scan(a, axis, reverse, inclusive, how, s);
    match scan {
        Scan::Sum => blocks((cumsum, mlx::add, 0.0)),
        Scan::Product => blocks((cumprod, mlx::multiply, 1.0)),
        Scan::LogSum => blocks((mlx::logcumsumexp, mlx::logaddexp, f64::NEG_INFINITY)),
    }
}
