//! The same elements in another shape or at other places: reshaping, splitting, padding, diagonals, strided views.
//! Called by [`Op::apply`] for operations of [`Class::Shape`](super::Class::Shape).

use super::table::{family, others};
use super::{check, gpu, one, Inputs, Op, Outputs, PadMode};
use crate::base::{Device, Error, Result};
use crate::cpu;
use crate::mlx::{self, Stream, Vector};
use mlx_rs::Array;

family! { Shape, takes(1):
    // Inputs: a.
    /// The same bits read as another type; the last axis grows or shrinks with the size.
    View { dtype: Dtype } => view(View::Reshape).converts(),
    Reshape { shape: Vec<i32> } => view(View::Reshape).converts(),
    Flatten { start_axis: i32, end_axis: i32 } => view(View::Reshape).converts(),
    Unflatten { axis: i32, shape: Vec<i32> } => view(View::Reshape).converts(),
    Squeeze { axes: Vec<i32> } => view(View::Reshape).converts(),
    ExpandDims { axes: Vec<i32> } => view(View::Reshape).converts(),
    Transpose { axes: Vec<i32> } => view(View::Strided),
    Swapaxes { axis1: i32, axis2: i32 } => view(View::Strided),
    Moveaxis { source: i32, destination: i32 } => view(View::Strided),
    BroadcastTo { shape: Vec<i32> } => view(View::Strided).converts(),
    /// Inputs: any number of arrays.
    Concatenate { axis: i32 } => takes(0).more(),
    /// Inputs: any number of arrays.
    Stack { axis: i32 } => takes(0).more(),
    /// Outputs: one more than there are indices.
    Split { indices: Vec<i32>, axis: i32 } => view(View::Strided).any_outputs(),
    Repeat { repeats: i32, axis: i32 },
    Tile { repetitions: Vec<i32> },
    Flip { axes: Vec<i32> },
    Roll { shift: Vec<i32>, axes: Vec<i32> },
    /// Inputs: a, value. Negative widths crop.
    Pad { axes: Vec<i32>, low: Vec<i32>, high: Vec<i32>, mode: PadMode } => takes(2),
    /// Inputs: a, value. `interior[i]` values between neighbours.
    PadInterior { low: Vec<i32>, high: Vec<i32>, interior: Vec<i32> } => takes(2),
    AsStrided { shape: Vec<i32>, strides: Vec<i64>, offset: u64 } => view(View::Strided),
    Contiguous,
    Diag { k: i32 } => narrow_on_gpu(&[0]),
    Diagonal { offset: i32, axis1: i32, axis2: i32 } => view(View::Strided),
    Tril { k: i32 },
    Triu { k: i32 },
}

/// Builds an operation of the class.
pub fn apply(op: &Op, inputs: &Inputs, device: Device, s: &Stream) -> Result<Outputs> {
    match op {
        Op::View { dtype } => inputs.unary(s, |a, s| mlx::view(a, *dtype, s)),
        Op::Reshape { shape } => inputs.unary(s, |a, s| {
            in_rows_at_once(a, device, s, |a| reshape(a, shape, s))
        }),
        Op::Flatten {
            start_axis,
            end_axis,
        } => inputs.unary(s, |a, s| {
            in_rows_at_once(a, device, s, |a| mlx::flatten(a, *start_axis, *end_axis, s))
        }),
        Op::Unflatten { axis, shape } => inputs.unary(s, |a, s| unflatten(a, *axis, shape, s)),
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
        Op::Swapaxes { axis1, axis2 } => {
            inputs.unary(s, |a, s| gpu::swapaxes(a, *axis1, *axis2, device, s))
        }
        Op::Moveaxis {
            source,
            destination,
        } => inputs.unary(s, |a, s| gpu::moveaxis(a, *source, *destination, device, s)),
        Op::BroadcastTo { shape } => {
            inputs.unary(s, |a, s| mlx::broadcast_to(a, check::shape(shape)?, s))
        }
        Op::Concatenate { axis } => {
            let ([], arrays) = inputs.and_more()?;
            // MLX gives one array back as it is, whatever the axis.
            if let [a] = arrays[..] {
                check::axis(a, *axis)?;
            }
            concatenate(&arrays, *axis, s).map(one)
        }
        Op::Stack { axis } => {
            let ([], arrays) = inputs.and_more()?;
            stack(&arrays, *axis, s).map(one)
        }
        Op::Split { indices, axis } => {
            let [a] = inputs.exactly()?;
            split(a, indices, *axis, s).map(Outputs::from_vec)
        }
        Op::Repeat { repeats, axis } => {
            let [a] = inputs.exactly()?;
            check::at_least("repeats", *repeats, 0)?;
            let axis = check::axis(a, *axis)? as i32;
            let mut times = vec![1; a.ndim()];
            times[axis as usize] = *repeats;
            match own_tile(a, &times, true, s)? {
                Some(array) => Ok(one(array)),
                None => mlx::repeat(a, *repeats, axis, s).map(one),
            }
        }
        Op::Tile { repetitions } => inputs.unary(s, |a, s| tile(a, check::shape(repetitions)?, s)),
        Op::Flip { axes } => inputs.unary(s, |a, s| flip(a, axes, device, s)),
        Op::Roll { shift, axes } => inputs.unary(s, |a, s| roll(a, shift, axes, s)),
        Op::Pad {
            axes,
            low,
            high,
            mode,
        } => inputs.binary(s, |a, b, s| pad(a, b, axes, low, high, *mode, s)),
        Op::PadInterior {
            low,
            high,
            interior,
        } => inputs.binary(s, |a, b, s| pad_interior(a, b, low, high, interior, s)),
        Op::AsStrided {
            shape,
            strides,
            offset,
        } => inputs.unary(s, |a, s| as_strided(a, shape, strides, *offset, s)),
        Op::Contiguous => inputs.unary(s, |a, s| mlx::contiguous(a, false, s)),
        Op::Diag { k } => inputs.unary(s, |a, s| diag(a, *k, s)),
        Op::Diagonal {
            offset,
            axis1,
            axis2,
        } => inputs.unary(s, |a, s| diagonal(a, *offset, *axis1, *axis2, s)),
        Op::Tril { k } => inputs.unary(s, |a, s| triangle(a, *k, mlx::tril, s)),
        Op::Triu { k } => inputs.unary(s, |a, s| triangle(a, *k, mlx::triu, s)),
        others!(Shape) => Err(super::no_case(op)),
    }
}

/// An array with axes in the opposite direction.
pub fn flip(a: &Array, axes: &[i32], device: Device, s: &Stream) -> Result<Array> {
    let flipped = mlx::flip(a, &check::axes(a, axes)?, s)?;
    gpu::without_negative_strides(flipped, true, device, s)
}

pub fn split(a: &Array, indices: &[i32], axis: i32, s: &Stream) -> Result<Vec<Array>> {
    let axis = check::axis(a, axis)?;
    let length = a.shape()[axis];
    let ordered = indices.windows(2).all(|pair| pair[0] <= pair[1]);
    if !ordered || indices.iter().any(|&i| i < 0 || i > length) {
        return Err(Error::invalid(format!(
            "indices {indices:?} must be in order and within 0..{length}"
        )));
    }
    // By slices: MLX's own parts of a view with negative strides count as contiguous, and what is computed from them
    // reads memory that is not theirs.
    let mut edges = vec![0];
    edges.extend(indices);
    edges.push(length);
    let part = |edge: &[i32]| {
        let (mut start, mut stop) = (vec![0; a.ndim()], a.shape().to_vec());
        (start[axis], stop[axis]) = (edge[0], edge[1]);
        mlx::slice(a, &start, &stop, &vec![1; a.ndim()], s)
    };
    edges.windows(2).map(part).collect()
}

/// A view of an array, or, of a small computed one that lies otherwise, of its copy in rows, so that what follows can be
/// computed at once. On the CPU a large one is copied by a kernel of ours if it lies otherwise.
fn in_rows_at_once(
    a: &Array,
    device: Device,
    s: &Stream,
    view: impl Fn(&Array) -> Result<Array>,
) -> Result<Array> {
    let output = view(a)?;
    if device == Device::Cpu && mlx::has_tasks() && !mlx::look(&output, s) {
        if let Some(copy) = cpu::copy_at_once(a, s)? {
            return view(&copy);
        }
        if let Some(array) = cpu::reshape(a, output.shape(), s)? {
            return Ok(array);
        }
    }
    Ok(output)
}

/// The arrays along an axis. On the CPU by a kernel of ours where they are of one type.
fn concatenate(arrays: &[&Array], axis: i32, s: &Stream) -> Result<Array> {
    if let ([first, _, ..], true) = (arrays, cpu::moves(s)) {
        let (rank, dtype) = (first.ndim(), mlx::dtype(first));
        let own = check::axis(first, axis)?;
        let is_like_first = |array: &&Array| {
            let mut sizes = array.shape().iter().zip(first.shape()).enumerate();
            mlx::dtype(array) == dtype
                && array.ndim() == rank
                && sizes.all(|(i, (size, of_first))| i == own || size == of_first)
        };
        let sizes = arrays.iter().filter_map(|array| array.shape().get(own));
        let whole = i32::try_from(sizes.map(|size| i64::from(*size)).sum::<i64>());
        if let (Ok(whole), true) = (whole, arrays.iter().all(is_like_first)) {
            let mut shape = first.shape().to_vec();
            shape[own] = whole;
            if shape.iter().all(|size| *size > 0) {
                return cpu::concatenate(arrays, own, &shape, s);
            }
        }
    }
    mlx::concatenate(&Vector::new(arrays.iter().copied()), axis, s)
}

/// The arrays along a new axis.
fn stack(arrays: &[&Array], axis: i32, s: &Stream) -> Result<Array> {
    let is_of_one = arrays
        .windows(2)
        .all(|two| two[0].shape() == two[1].shape() && mlx::dtype(two[0]) == mlx::dtype(two[1]));
    if arrays.len() < 2 || !is_of_one || !cpu::moves(s) {
        return mlx::stack(&Vector::new(arrays.iter().copied()), axis, s);
    }
    let axes = check::new_axes(&[axis], arrays[0].ndim() + 1)?;
    let parts = arrays.iter().map(|array| mlx::expand_dims(array, &axes, s));
    let parts = parts.collect::<Result<Vec<_>>>()?;
    concatenate(&parts.iter().collect::<Vec<_>>(), axes[0], s)
}

/// The array so many times along each axis; more numbers than axes stand for axes before its own.
fn tile(a: &Array, times: &[i32], s: &Stream) -> Result<Array> {
    let (rank, own) = (a.ndim().max(times.len()), times.len());
    let mut all = vec![1; rank];
    all[rank - own..].copy_from_slice(times);
    let mut shape = vec![1; rank];
    shape[rank - a.ndim()..].copy_from_slice(a.shape());
    let wide = match rank == a.ndim() {
        true => mlx::share(a)?,
        false => mlx::reshape(a, &shape, s)?,
    };
    match own_tile(&wide, &all, false, s)? {
        Some(array) => Ok(array),
        None => mlx::tile(a, times, s),
    }
}

/// The kernel of ours that repeats arrays or, where `each`, elements. None where nothing or none of it is there.
fn own_tile(a: &Array, times: &[i32], each: bool, s: &Stream) -> Result<Option<Array>> {
    let mut sizes = a.shape().iter().zip(times);
    let has_room =
        sizes.all(|(size, times)| *size > 0 && *times > 0 && size.checked_mul(*times).is_some());
    if !has_room || times.iter().all(|times| *times == 1) || !cpu::moves(s) {
        return Ok(None);
    }
    cpu::tile(a, times, each, s).map(Some)
}

/// The kernel of ours that pads with values before, behind and between elements, none of which is negative. None where
/// there are no elements or nothing is to do.
fn own_pad(
    a: &Array,
    value: &Array,
    [low, high, interior]: [&[i32]; 3],
    s: &Stream,
) -> Result<Option<Array>> {
    if !cpu::moves(s) || a.size() == 0 || value.size() != 1 {
        return Ok(None);
    }
    let size = |(i, size): (usize, &i32)| {
        let (size, low, high) = (i64::from(*size), i64::from(low[i]), i64::from(high[i]));
        i32::try_from(size + (size - 1) * i64::from(interior[i]) + low + high)
    };
    let shape = a.shape().iter().enumerate().map(size);
    match shape.collect::<std::result::Result<Vec<_>, _>>() {
        Ok(shape) if shape != a.shape() => cpu::pad(a, value, low, interior, &shape, s).map(Some),
        _ => Ok(None),
    }
}

/// Padding on the given axes; a negative width crops.
pub fn pad(
    a: &Array,
    value: &Array,
    axes: &[i32],
    low: &[i32],
    high: &[i32],
    mode: PadMode,
    s: &Stream,
) -> Result<Array> {
    check::lengths(&[("low", low.len()), ("high", high.len())], axes.len())?;
    let axes = &check::axes(a, axes)?;
    // A scalar has no side to put anything on. MLX's CUDA form gives the value.
    if a.ndim() == 0 {
        return mlx::share(a);
    }
    let mut cropped = mlx::share(a)?;
    if low.iter().chain(high).any(|width| *width < 0) {
        let mut start = vec![0; a.ndim()];
        let mut stop = a.shape().to_vec();
        for (i, axis) in axes.iter().enumerate() {
            let axis = check::axis(a, *axis)?;
            start[axis] = (-low[i]).clamp(0, stop[axis]);
            stop[axis] = (stop[axis] + high[i].min(0)).max(start[axis]);
        }
        cropped = mlx::slice(&cropped, &start, &stop, &vec![1; a.ndim()], s)?;
    }
    // On all axes: MLX's edge mode takes no fewer.
    let all: Vec<i32> = (0..a.ndim() as i32).collect();
    let positive = |widths: &[i32]| {
        let mut whole = vec![0; a.ndim()];
        for (axis, width) in axes.iter().zip(widths) {
            whole[*axis as usize] = (*width).max(0);
        }
        whole
    };
    let (low, high) = (positive(low), positive(high));
    let value = mlx::astype(value, mlx::dtype(a), s)?;
    if mode == PadMode::Constant {
        let none = vec![0; a.ndim()];
        if let Some(array) = own_pad(&cropped, &value, [&low, &high, &none], s)? {
            return Ok(array);
        }
    }
    let mode = match mode {
        PadMode::Constant if cropped.size() == 0 => {
            // CUDA's form fills nothing in around no elements.
            let sizes = cropped.shape().iter().zip(low.iter().zip(&high));
            let shape: Vec<i32> = sizes.map(|(size, (low, high))| size + low + high).collect();
            return mlx::full(&shape, &value, mlx::dtype(a), s);
        }
        PadMode::Constant => "constant",
        PadMode::Edge => "edge",
    };
    mlx::pad(&cropped, &all, &low, &high, &value, mode, s)
}

/// Padding on every axis with `interior` values between neighbours, as XLA and Nx define it.
pub fn pad_interior(
    a: &Array,
    value: &Array,
    low: &[i32],
    high: &[i32],
    interior: &[i32],
    s: &Stream,
) -> Result<Array> {
    let rank = a.ndim();
    check::lengths(
        &[
            ("low", low.len()),
            ("high", high.len()),
            ("interior", interior.len()),
        ],
        rank,
    )?;
    if let Some(width) = interior.iter().find(|width| **width < 0) {
        return Err(Error::invalid(format!(
            "interior widths must not be negative, got {width}"
        )));
    }
    if rank == 0 {
        return mlx::share(a);
    }
    let axes: Vec<i32> = (0..rank as i32).collect();
    if interior.iter().all(|width| *width == 0) {
        return pad(a, value, &axes, low, high, PadMode::Constant, s);
    }
    let spread: Vec<i32> = a
        .shape()
        .iter()
        .zip(interior)
        .map(|(size, between)| (size + (size - 1) * between).max(0))
        .collect();
    let steps: Vec<i32> = interior.iter().map(|between| between + 1).collect();
    let value = mlx::astype(value, mlx::dtype(a), s)?;
    if low.iter().chain(high).all(|width| *width >= 0) {
        if let Some(array) = own_pad(a, &value, [low, high, interior], s)? {
            return Ok(array);
        }
    }
    let canvas = mlx::full(&spread, &value, mlx::dtype(a), s)?;
    let spread_out = if a.size() == 0 {
        canvas
    } else {
        mlx::slice_update(&canvas, a, &vec![0; rank], &spread, &steps, s)?
    };
    pad(&spread_out, &value, &axes, low, high, PadMode::Constant, s)
}

/// A view with any strides, checked to stay inside the array's own elements.
pub fn as_strided(
    a: &Array,
    shape: &[i32],
    strides: &[i64],
    offset: u64,
    s: &Stream,
) -> Result<Array> {
    check::lengths(&[("strides", strides.len())], shape.len())?;
    let (mut lowest, mut highest) = (offset as i128, offset as i128);
    for (size, stride) in shape.iter().zip(strides) {
        if *size < 0 {
            return Err(Error::invalid(format!(
                "shape {shape:?} has a negative size"
            )));
        }
        let reach = i128::from((*size).max(1) - 1) * i128::from(*stride);
        lowest += reach.min(0);
        highest += reach.max(0);
    }
    let empty = shape.contains(&0);
    if !empty && (lowest < 0 || highest >= a.size() as i128) {
        return Err(Error::invalid(format!(
            "shape {shape:?} with strides {strides:?} and offset {offset} reaches outside the {} elements",
            a.size()
        )));
    }
    if empty {
        return mlx::zeros(shape, mlx::dtype(a), s);
    }
    // MLX strides over a vector's memory as if its elements lay next to each other.
    let rows = mlx::contiguous(a, false, s)?;
    // A copy: MLX's reductions on the CPU write outside their memory where a view's elements overlap.
    let view = mlx::as_strided(&rows, shape, strides, offset as usize, s)?;
    mlx::contiguous(&view, false, s)
}

/// The shape that two shapes broadcast to.
pub fn broadcast_shape(a: &[i32], b: &[i32]) -> Option<Vec<i32>> {
    let rank = a.len().max(b.len());
    let size = |shape: &[i32], axis: usize| match (axis + shape.len()).checked_sub(rank) {
        Some(own) => shape[own],
        None => 1,
    };
    (0..rank)
        .map(|axis| match (size(a, axis), size(b, axis)) {
            (one, other) if one == other || other == 1 => Some(one),
            (1, other) => Some(other),
            _ => None,
        })
        .collect()
}

pub fn reshape(a: &Array, shape: &[i32], s: &Stream) -> Result<Array> {
    check::reshape(a.shape(), shape)?;
    mlx::reshape(a, shape, s)
}

pub fn unflatten(a: &Array, axis: i32, shape: &[i32], s: &Stream) -> Result<Array> {
    let axis = check::axis(a, axis)?;
    check::reshape(&a.shape()[axis..=axis], shape)?;
    mlx::unflatten(a, axis as i32, shape, s)
}

pub fn roll(a: &Array, shift: &[i32], axes: &[i32], s: &Stream) -> Result<Array> {
    check::length("shift", shift.len(), axes.len())?;
    let axes = check::axes(a, axes)?;
    if a.size() == 0 {
        return mlx::share(a);
    }
    let shift: Vec<i32> = shift
        .iter()
        .zip(&axes)
        .map(|(by, axis)| by % a.shape()[*axis as usize])
        .collect();
    mlx::roll(a, &shift, &axes, s)
}

pub fn diag(a: &Array, k: i32, s: &Stream) -> Result<Array> {
    if a.ndim() == 1 {
        let side = a.size() as u128 + u128::from(k.unsigned_abs());
        mlx::check_bytes(side * side * mlx::dtype(a).size() as u128)?;
        return mlx::diag(a, k, s);
    }
    diagonal(a, k, 0, 1, s)
}

/// The diagonal as the last axis; empty where the offset leads outside.
pub fn diagonal(a: &Array, offset: i32, axis1: i32, axis2: i32, s: &Stream) -> Result<Array> {
    let axes = check::axes(a, &[axis1, axis2])?;
    let (rows, columns) = (a.shape()[axes[0] as usize], a.shape()[axes[1] as usize]);
    if offset >= columns || offset <= -rows {
        let mut shape: Vec<i32> = a.shape().to_vec();
        shape.remove(axes[0].max(axes[1]) as usize);
        shape.remove(axes[0].min(axes[1]) as usize);
        shape.push(0);
        return mlx::zeros(&shape, mlx::dtype(a), s);
    }
    mlx::diagonal(a, offset, axes[0], axes[1], s)
}

type Triangle = fn(&Array, i32, &Stream) -> Result<Array>;

pub fn triangle(a: &Array, k: i32, keep: Triangle, s: &Stream) -> Result<Array> {
    if a.ndim() < 2 {
        return Err(Error::invalid(format!(
            "takes matrices {{…, rows, columns}}, got shape {:?}",
            a.shape()
        )));
    }
    let (rows, columns) = (a.shape()[a.ndim() - 2], a.shape()[a.ndim() - 1]);
    keep(a, k.clamp(-rows - 1, columns + 1), s)
}
