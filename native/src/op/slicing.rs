//! Slices and their updates, at places that attributes or an array of starts name.
//! Called by [`Op::apply`] for operations of [`Class::Slice`](super::Class::Slice).

use super::creation::int;
use super::elementwise::{self, Steps};
use super::table::{family, others};
use super::{check, gpu, indexing, one, Inputs, Op, Outputs, SMALL};
use crate::base::{Device, Dtype, Error, Result};
use crate::cpu::{self, Operand};
use crate::mlx::{self, Stream};
use mlx_rs::Array;
use smallvec::SmallVec;

family! { Slice, takes(2):
    // Inputs: a, update.
    /// Inputs: a.
    Slice { start: Vec<i32>, stop: Vec<i32>, strides: Vec<i32> } => takes(1).view(View::Strided),
    SliceUpdate { start: Vec<i32>, stop: Vec<i32>, strides: Vec<i32> },
    SliceUpdateAdd { start: Vec<i32>, stop: Vec<i32>, strides: Vec<i32> },
    SliceUpdateMax { start: Vec<i32>, stop: Vec<i32>, strides: Vec<i32> },
    SliceUpdateMin { start: Vec<i32>, stop: Vec<i32>, strides: Vec<i32> },
    SliceUpdateProd { start: Vec<i32>, stop: Vec<i32>, strides: Vec<i32> },
    /// Inputs: a, start (one integer an axis); starts are clamped so that the slice fits.
    SliceDynamic { axes: Vec<i32>, sizes: Vec<i32> },
    /// Inputs: a, update, start; starts are clamped so that the update fits.
    SliceUpdateDynamic { axes: Vec<i32> } => takes(3),
}

/// Builds an operation of the class.
pub fn apply(op: &Op, inputs: &Inputs, device: Device, s: &Stream) -> Result<Outputs> {
    match op {
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
        } => update(
            inputs,
            [start, stop, strides],
            s,
            |a, update, start, stop, strides, s| match replaced_at_once(
                a, update, start, stop, strides, device, s,
            )? {
                Some(array) => Ok(array),
                None => mlx::slice_update(a, update, start, stop, strides, s),
            },
        ),
        Op::SliceUpdateAdd {
            start,
            stop,
            strides,
        } => update(inputs, [start, stop, strides], s, mlx::slice_update_add),
        Op::SliceUpdateMax {
            start,
            stop,
            strides,
        } => update(inputs, [start, stop, strides], s, mlx::slice_update_max),
        Op::SliceUpdateMin {
            start,
            stop,
            strides,
        } => update(inputs, [start, stop, strides], s, mlx::slice_update_min),
        Op::SliceUpdateProd {
            start,
            stop,
            strides,
        } => update(inputs, [start, stop, strides], s, mlx::slice_update_prod),
        Op::SliceDynamic { axes, sizes } => {
            inputs.binary(s, |a, b, s| slice_dynamic(a, b, axes, sizes, device, s))
        }
        Op::SliceUpdateDynamic { axes } => inputs.ternary(s, |a, b, c, s| {
            slice_update_dynamic(a, b, c, axes, device, s)
        }),
        others!(Slice) => Err(super::no_case(op)),
    }
}

fn update(
    inputs: &Inputs,
    [start, stop, strides]: [&[i32]; 3],
    s: &Stream,
    f: impl FnOnce(&Array, &Array, &[i32], &[i32], &[i32], &Stream) -> Result<Array>,
) -> Result<Outputs> {
    let [a, update] = inputs.exactly()?;
    let (start, stop, strides) = check::slice(a, start, stop, strides)?;
    f(a, update, &start, &stop, &strides, s).map(one)
}

/// A small array with a slice of neighbours replaced, by the kernel for starts that are arrays. Else None.
fn replaced_at_once(
    a: &Array,
    update: &Array,
    start: &[i32],
    stop: &[i32],
    strides: &[i32],
    device: Device,
    s: &Stream,
) -> Result<Option<Array>> {
    let sizes = start.iter().zip(stop).map(|(start, stop)| stop - start);
    let fits = mlx::dtype(a) == mlx::dtype(update)
        && strides.iter().all(|stride| *stride == 1)
        // Negative ones count from the end.
        && start.iter().all(|start| *start >= 0)
        && stop.iter().zip(a.shape()).all(|(stop, size)| stop <= size)
        && update.size() > 0
        && sizes.eq(update.shape().iter().copied());
    if !fits || a.ndim() == 0 || a.size() > SMALL || !cpu::slices(device) {
        return Ok(None);
    }
    let bytes: SmallVec<[u8; 32]> = start.iter().flat_map(|start| start.to_ne_bytes()).collect();
    let start = mlx::from_bytes(&bytes, &[start.len() as i32], Dtype::S32)?;
    let axes = (0..a.ndim()).map(|axis| axis as u8).collect();
    cpu::update(a, update, &start, axes, s).map(Some)
}

/// Starts clamped into 0..=length - size, one an axis.
fn check_starts(a: &Array, start: &Array, axes: &[i32], sizes: &[i32]) -> Result<Vec<i32>> {
    indexing::check_index_type(start)?;
    check::axes(a, axes)?;
    if start.ndim() != 1 || start.size() != axes.len() {
        return Err(Error::invalid(format!(
            "start must have shape [{}], one integer an axis, got {:?}",
            axes.len(),
            start.shape()
        )));
    }
    let mut limits = Vec::with_capacity(axes.len());
    for (axis, size) in axes.iter().zip(sizes) {
        let length = a.shape()[check::axis(a, *axis)?];
        if *size < 0 || *size > length {
            return Err(Error::invalid(format!(
                "a slice of {size} does not fit axis {axis} of shape {:?}",
                a.shape()
            )));
        }
        limits.push(length - size);
    }
    Ok(limits)
}

/// Starts as s32, clamped into 0..=limit.
fn clamp_starts(start: &Array, limits: &[i32], s: &Stream) -> Result<Array> {
    let bytes: Vec<u8> = limits
        .iter()
        .flat_map(|limit| i64::from(*limit).to_ne_bytes())
        .collect();
    let limits = mlx::from_bytes(&bytes, &[limits.len() as i32], Dtype::S64)?;
    let zero = int(0, Dtype::S64)?;
    // Those above the signed range stay large.
    let largest = int(i64::from(i32::MAX), Dtype::U64)?;
    let mut given: SmallVec<[&Array; 4]> = SmallVec::from_slice(&[start, &zero, &limits]);
    let [start, zero, limit, top] = [0, 1, 2, 3].map(Operand::Input);
    let mut steps = Steps::new();
    let wide = Op::Astype { dtype: Dtype::S64 };
    if mlx::dtype(given[0]) == Dtype::U64 {
        given.push(&largest);
        steps.push(elementwise::step(Op::Minimum, &[start, top]));
        steps.push(elementwise::step(wide, &[Operand::Link(0)]));
    } else {
        steps.push(elementwise::step(wide, &[start]));
    }
    let place = Operand::Link(steps.len() as u8 - 1);
    steps.push(elementwise::step(Op::Clip, &[place, zero, limit]));
    let within = Operand::Link(steps.len() as u8 - 1);
    steps.push(elementwise::step(
        Op::Astype { dtype: Dtype::S32 },
        &[within],
    ));
    elementwise::in_one(steps, &given, s)
}

/// Axes as the kernels for slices take them.
fn places(a: &Array, axes: &[i32]) -> Result<SmallVec<[u8; 8]>> {
    let axes = axes.iter().map(|axis| Ok(check::axis(a, *axis)? as u8));
    axes.collect()
}

pub fn slice_dynamic(
    a: &Array,
    start: &Array,
    axes: &[i32],
    sizes: &[i32],
    device: Device,
    s: &Stream,
) -> Result<Array> {
    check::lengths(&[("sizes", sizes.len())], axes.len())?;
    let limits = check_starts(a, start, axes, sizes)?;
    let mut whole = a.shape().to_vec();
    for (axis, size) in axes.iter().zip(sizes) {
        whole[check::axis(a, *axis)?] = *size;
    }
    if cpu::slices(device) {
        return cpu::slice(a, start, places(a, axes)?, &whole, s);
    }
    let start = clamp_starts(start, &limits, s)?;
    mlx::slice_dynamic(a, &start, axes, &whole, s)
}

pub fn slice_update_dynamic(
    a: &Array,
    update: &Array,
    start: &Array,
    axes: &[i32],
    device: Device,
    s: &Stream,
) -> Result<Array> {
    if update.ndim() != a.ndim() {
        return Err(Error::invalid(format!(
            "the update has shape {:?}, the array {:?}: ranks differ",
            update.shape(),
            a.shape()
        )));
    }
    let sizes = axes
        .iter()
        .map(|axis| Ok(update.shape()[check::axis(a, *axis)?]))
        .collect::<Result<Vec<i32>>>()?;
    let limits = check_starts(a, start, axes, &sizes)?;
    let update = mlx::astype(update, mlx::dtype(a), s)?;
    let mut sizes = update.shape().iter().zip(a.shape());
    if cpu::slices(device) && sizes.all(|(own, whole)| own <= whole) {
        return cpu::update(a, &update, start, places(a, axes)?, s);
    }
    let start = clamp_starts(start, &limits, s)?;
    // MLX's kernel for CUDA has a thread for each element of the array, however few are updated. That of scatter does
    // not have it, and takes no numbers of 64 bits.
    let is_narrow = mlx::dtype(a).size() <= 4;
    if s.is_gpu() && is_narrow && !axes.is_empty() && update.size() < a.size() / 2 {
        let starts = (0..axes.len() as i32).map(|i| {
            let one = mlx::slice(&start, &[i], &[i + 1], &[1], s)?;
            mlx::reshape(&one, &[], s)
        });
        let starts = starts.collect::<Result<Vec<_>>>()?;
        let axes = check::axes(a, axes)?;
        let starts = mlx::Vector::new(&starts);
        return mlx::scatter(a, &starts, &update, &axes, s);
    }
    mlx::slice_update_dynamic(a, &update, &start, axes, s)
}
