//! Gather, scatter, take and their kin. Indices that are out of range are clamped or dropped here: MLX reads and writes
//! wherever they point.
//! Called by [`Op::apply`] for operations of [`Class::Index`](super::Class::Index).

use super::creation::int;
use super::elementwise::{step, Steps};
use super::table::{family, others};
use super::{check, elementwise, gathers, one, shape, Inputs, Negative, Op, Outputs};
use crate::base::{Device, Dtype, Error, Result};
use crate::cpu::{self, Beyond, Operand};
use crate::mlx::{self, Stream, Vector};
use mlx_rs::Array;
use smallvec::SmallVec;

family! { Index, takes(2):
    /// Inputs: a, indices. Indices out of range are clamped, negative ones count from the end.
    Take { axis: i32 },
    /// The same; `negative: nil` counts from the end.
    TakeAlongAxis { axis: i32, negative: Option<Negative> },
    /// Inputs: a, indices, values.
    PutAlongAxis { axis: i32 } => takes(3),
    ScatterAddAxis { axis: i32 } => takes(3).narrow_on_gpu(&[0, 2]),
    /// Inputs: a, then one index array an axis of `axes`. Indices out of range are clamped.
    Gather { axes: Vec<i32>, slice_sizes: Vec<i32>, negative: Option<Negative> } => takes(1).more(),
    /// Inputs: a, updates, then one index array an axis of `axes`. Updates out of range are dropped.
    Scatter { axes: Vec<i32> } => more().narrow_on_gpu(&[0, 1]),
    ScatterAdd { axes: Vec<i32> } => more().narrow_on_gpu(&[0, 1]),
    ScatterMax { axes: Vec<i32> } => more().narrow_on_gpu(&[0, 1]),
    ScatterMin { axes: Vec<i32> } => more().narrow_on_gpu(&[0, 1]),
    ScatterProd { axes: Vec<i32> } => more().narrow_on_gpu(&[0, 1]),
    /// Inputs: a, mask, values.
    MaskedScatter => takes(3),
}

/// Builds an operation of the class.
pub fn apply(op: &Op, inputs: &Inputs, device: Device, s: &Stream) -> Result<Outputs> {
    match op {
        Op::Take { axis } => inputs.binary(s, |a, b, s| take(a, b, *axis, s)),
        Op::TakeAlongAxis { axis, negative } => {
            inputs.binary(s, |a, b, s| take_along_axis(a, b, *axis, *negative, s))
        }
        Op::PutAlongAxis { axis } => {
            inputs.ternary(s, |a, b, c, s| put_along_axis(a, b, c, *axis, s))
        }
        Op::ScatterAddAxis { axis } => {
            inputs.ternary(s, |a, b, c, s| scatter_add_axis(a, b, c, *axis, device, s))
        }
        Op::Gather {
            axes,
            slice_sizes,
            negative,
        } => {
            let ([a], indices) = inputs.and_more()?;
            gather(a, &indices, axes, slice_sizes, *negative, s).map(one)
        }
        Op::Scatter { axes } => {
            let ([a, updates], indices) = inputs.and_more()?;
            let own = own_scatter(a, updates, &indices, axes, s)?;
            match own {
                Some(array) => Ok(one(array)),
                None => scattered(inputs, axes, s, mlx::scatter),
            }
        }
        Op::ScatterAdd { axes } => {
            let ([a, updates], indices) = inputs.and_more()?;
            scatter_add(a, updates, &indices, axes, device, s).map(one)
        }
        Op::ScatterMax { axes } => scattered(inputs, axes, s, mlx::scatter_max),
        Op::ScatterMin { axes } => scattered(inputs, axes, s, mlx::scatter_min),
        Op::ScatterProd { axes } => {
            let ([a, updates], indices) = inputs.and_more()?;
            scatter_prod(a, updates, &indices, axes, s).map(one)
        }
        Op::MaskedScatter => inputs.ternary(s, masked_scatter),
        others!(Index) => Err(super::no_case(op)),
    }
}

fn scattered(inputs: &Inputs, axes: &[i32], s: &Stream, f: Scatter) -> Result<Outputs> {
    let ([a, updates], indices) = inputs.and_more()?;
    scatter(a, updates, &indices, axes, f, s).map(one)
}

pub fn check_index_type(index: &Array) -> Result<()> {
    let dtype = mlx::dtype(index);
    if dtype.is_integer() {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "indices must be integers, got {}",
        dtype.name()
    )))
}

/// An index as s64. Unsigned 64-bit ones above the signed range stay large.
pub fn signed_index(index: &Array, s: &Stream) -> Result<Array> {
    if mlx::dtype(index) != Dtype::U64 {
        return mlx::astype(index, Dtype::S64, s);
    }
    let top = int(i64::from(i32::MAX), Dtype::U64)?;
    mlx::astype(&mlx::minimum(index, &top, s)?, Dtype::S64, s)
}

/// Indices brought into 0..=last: negative ones count from the end, what is still outside is clamped. MLX reads
/// wherever an index points.
pub fn clamp(index: &Array, length: i32, last: i32, s: &Stream) -> Result<Array> {
    within(index, length, [0, last.max(0)], s)
}

/// Indices as s32 between two numbers, negative ones counted from the end first.
fn within(index: &Array, length: i32, bounds: [i32; 2], s: &Stream) -> Result<Array> {
    check_index_type(index)?;
    let inputs = [length, 0, bounds[0], bounds[1]].map(|number| int(number.into(), Dtype::S64));
    let [length, zero, low, high] = inputs;
    let (length, zero, low, high) = (length?, zero?, low?, high?);
    let top = int(i64::from(i32::MAX), Dtype::U64)?;
    let inputs = [index, &length, &zero, &low, &high, &top];
    elementwise::in_one(steps_within(mlx::dtype(index)), &inputs, s)
}

/// The operations for it, on the index, the length, 0, the bounds (s64), and the largest number that an unsigned index
/// is taken for (u64).
fn steps_within(dtype: Dtype) -> Steps {
    let [index, length, zero, low, high, top] = [0, 1, 2, 3, 4, 5].map(Operand::Input);
    let mut steps = Steps::new();
    let mut add = |op, operands: &[Operand]| {
        steps.push(step(op, operands));
        Operand::Link(steps.len() as u8 - 1)
    };
    let wide = || Op::Astype { dtype: Dtype::S64 };
    let mut place = match dtype {
        Dtype::S64 => index,
        Dtype::U64 => {
            let bounded = add(Op::Minimum, &[index, top]);
            add(wide(), &[bounded])
        }
        _ => add(wide(), &[index]),
    };
    if dtype.is_signed_integer() {
        let from_end = add(Op::Add, &[place, length]);
        let is_negative = add(Op::Less, &[place, zero]);
        place = add(Op::Where, &[is_negative, from_end, place]);
    }
    let place = add(Op::Clip, &[place, low, high]);
    add(Op::Astype { dtype: Dtype::S32 }, &[place]);
    steps
}

/// One index array an axis of `axes`, each clamped so that its slice fits.
pub fn gather(
    a: &Array,
    indices: &[&Array],
    axes: &[i32],
    slice_sizes: &[i32],
    negative: Option<Negative>,
    s: &Stream,
) -> Result<Array> {
    check::lengths(&[("axes", axes.len())], indices.len())?;
    let axes = &check::axes(a, axes)?;
    check::lengths(&[("slice_sizes", slice_sizes.len())], a.ndim())?;
    for (size, length) in slice_sizes.iter().zip(a.shape()) {
        if *size < 0 || size > length {
            return Err(Error::invalid(format!(
                "slice_sizes {slice_sizes:?} do not fit shape {:?}",
                a.shape()
            )));
        }
    }
    for (index, axis) in indices.iter().zip(axes) {
        let axis = check::axis(a, *axis)?;
        if a.shape()[axis] == 0 && index.size() > 0 {
            return Err(Error::invalid(format!(
                "axis {axis} of shape {:?} is empty",
                a.shape()
            )));
        }
    }
    let is_one_shape = indices
        .windows(2)
        .all(|two| two[0].shape() == two[1].shape());
    if is_one_shape && indices.iter().all(|index| has_own(a, index, s)) && !indices.is_empty() {
        let axes = axes.iter().map(|axis| *axis as u8).collect();
        let indices = own_indices(indices, s)?;
        return cpu::gather(a, &indices, axes, slice_sizes, beyond(negative), s);
    }
    let indices = indices.iter().map(|index| counted(index, negative, s));
    let indices = indices.collect::<Result<Vec<_>>>()?;
    let indices: &[&Array] = &indices.iter().collect::<Vec<_>>();
    if gathers::takes(a, indices, s) {
        let shapes: Vec<&[i32]> = indices.iter().map(|index| index.shape()).collect();
        if let Some(places) = gathers::gather(a.shape(), &shapes, axes, slice_sizes) {
            let (axes, sizes) = (axes.clone(), slice_sizes.to_vec());
            let stream = s.clone();
            let composed = move |arrays: &[Array]| {
                let indices: Vec<&Array> = arrays[1..].iter().collect();
                gather_by_mlx(&arrays[0], &indices, &axes, &sizes, &stream)
            };
            let composed = Box::new(composed);
            if let Some(array) = gathers::by_kernel(places, a, indices, composed, s)? {
                return Ok(array);
            }
        }
    }
    gather_by_mlx(a, indices, axes, slice_sizes, s)
}

fn gather_by_mlx(
    a: &Array,
    indices: &[&Array],
    axes: &[i32],
    slice_sizes: &[i32],
    s: &Stream,
) -> Result<Array> {
    let within = indices
        .iter()
        .zip(axes)
        .map(|(index, axis)| {
            let length = a.shape()[*axis as usize];
            clamp(index, length, length - slice_sizes[*axis as usize], s)
        })
        .collect::<Result<Vec<_>>>()?;
    mlx::gather(a, &Vector::new(&within), axes, slice_sizes, s)
}

/// What an index beyond an array means to the kernels of ours.
fn beyond(negative: Option<Negative>) -> Beyond {
    match negative {
        Some(Negative::First) => Beyond::First,
        _ => Beyond::Nearest,
    }
}

/// Indices of which a negative one counts from the end, for those that are to be the first place.
fn counted(index: &Array, negative: Option<Negative>, s: &Stream) -> Result<Array> {
    let dtype = mlx::dtype(index);
    match negative {
        Some(Negative::First) if dtype.is_signed_integer() => {
            mlx::maximum(index, &int(0, dtype)?, s)
        }
        _ => mlx::share(index),
    }
}

/// Whether the kernels of ours take elements of an array by an index.
fn has_own(a: &Array, index: &Array, s: &Stream) -> bool {
    cpu::moves(s) && a.size() > 0 && index.size() > 0
}

/// Indices of one type, as those kernels take them, which count from the end and clamp by themselves.
fn own_indices(indices: &[&Array], s: &Stream) -> Result<Vec<Array>> {
    for index in indices {
        check_index_type(index)?;
    }
    let mut types = indices
        .windows(2)
        .map(|two| (mlx::dtype(two[0]), mlx::dtype(two[1])));
    let is_one_type = types.all(|(a, b)| a == b);
    let own = |index: &&Array| match is_one_type {
        true => mlx::share(index),
        false => signed_index(index, s),
    };
    indices.iter().map(own).collect()
}

type Scatter = fn(&Array, &Vector, &Array, &[i32], &Stream) -> Result<Array>;

/// `compute` of the array and the updates in f32 where the array is of 16-bit floats, whose sums and products are
/// rounded once; on the GPU, which has no addition to memory of less than 32 bits, in s32 where it is of short
/// integers.
fn scatter_in_wide(
    a: &Array,
    updates: &Array,
    s: &Stream,
    compute: impl Fn(&Array, &Array) -> Result<Array>,
) -> Result<Array> {
    let dtype = mlx::dtype(a);
    let is_float = dtype.is_float() || dtype == Dtype::C64;
    let wider = match dtype {
        _ if dtype.is_half() => Dtype::F32,
        _ if s.is_gpu() && !is_float && dtype.size() < 4 => Dtype::S32,
        _ => return compute(a, updates),
    };
    // Updates of another type are rounded to the array's first, as they are without this.
    let wide = |array: &Array| mlx::astype(&mlx::astype(array, dtype, s)?, wider, s);
    mlx::astype(&compute(&wide(a)?, &wide(updates)?)?, dtype, s)
}

/// [`scatter`] that adds. On the CPU what comes to one place is added up in f64.
pub fn scatter_add(
    a: &Array,
    updates: &Array,
    indices: &[&Array],
    axes: &[i32],
    device: Device,
    s: &Stream,
) -> Result<Array> {
    if let Some(own) = own_scatter_add(a, updates, indices, axes, device, s)? {
        return Ok(own);
    }
    scatter_in_wide(a, updates, s, |a, updates| {
        scatter(a, updates, indices, axes, mlx::scatter_add, s)
    })
}

pub fn scatter_prod(
    a: &Array,
    updates: &Array,
    indices: &[&Array],
    axes: &[i32],
    s: &Stream,
) -> Result<Array> {
    scatter_in_wide(a, updates, s, |a, updates| {
        scatter(a, updates, indices, axes, mlx::scatter_prod, s)
    })
}

/// Updates of the array's type, index arrays of one shape and type, and their axes.
type ScatterParts = (Array, Vec<Array>, SmallVec<[u8; 8]>);

/// What the kernels that scatter take. None where the shapes do not fit, of which MLX says why.
fn scatter_parts(
    a: &Array,
    updates: &Array,
    indices: &[&Array],
    axes: &[i32],
    s: &Stream,
) -> Result<Option<ScatterParts>> {
    check::lengths(&[("axes", axes.len())], indices.len())?;
    let axes = check::axes(a, axes)?;
    let mut shape = Vec::new();
    for index in indices {
        match shape::broadcast_shape(&shape, index.shape()) {
            Some(both) => shape = both,
            None => return Ok(None),
        }
    }
    let own = updates.shape();
    let fits = own.len() == shape.len() + a.ndim()
        && own.starts_with(&shape)
        && own[shape.len()..]
            .iter()
            .zip(a.shape())
            .all(|(own, size)| own <= size);
    if !fits || indices.is_empty() {
        return Ok(None);
    }
    let indices = own_indices(indices, s)?
        .iter()
        .map(|index| mlx::broadcast_to(index, &shape, s))
        .collect::<Result<Vec<_>>>()?;
    let updates = mlx::astype(updates, mlx::dtype(a), s)?;
    let axes = axes.iter().map(|axis| *axis as u8).collect();
    Ok(Some((updates, indices, axes)))
}

/// The kernel of ours that writes slices. None as in [`scatter_parts`].
fn own_scatter(
    a: &Array,
    updates: &Array,
    indices: &[&Array],
    axes: &[i32],
    s: &Stream,
) -> Result<Option<Array>> {
    if !cpu::moves(s) || a.size() == 0 || updates.size() == 0 {
        return Ok(None);
    }
    match scatter_parts(a, updates, indices, axes, s)? {
        Some((updates, indices, axes)) => cpu::scatter(a, &updates, &indices, axes, s).map(Some),
        None => Ok(None),
    }
}

/// The kernel of ours that adds, for floats and complex numbers; None where it is not for them, or as in
/// [`scatter_parts`].
fn own_scatter_add(
    a: &Array,
    updates: &Array,
    indices: &[&Array],
    axes: &[i32],
    device: Device,
    s: &Stream,
) -> Result<Option<Array>> {
    let dtype = mlx::dtype(a);
    let is_pair = dtype == Dtype::C64;
    let takes = device == Device::Cpu && cpu::are_there();
    if !takes || !(cpu::has_type(dtype) || is_pair) || a.size() == 0 {
        return Ok(None);
    }
    let Some((updates, indices, axes)) = scatter_parts(a, updates, indices, axes, s)? else {
        return Ok(None);
    };
    if !is_pair {
        return cpu::scatter_add(a, &updates, &indices, axes, s).map(Some);
    }
    let (pairs, updates) = (as_pairs(a, s)?, as_pairs(&updates, s)?);
    let added = cpu::scatter_add(&pairs, &updates, &indices, axes, s)?;
    let added = mlx::view(&added, Dtype::C64, s)?;
    mlx::squeeze(&added, &[a.ndim() as i32], s).map(Some)
}

/// Complex numbers as their parts along one more axis.
fn as_pairs(a: &Array, s: &Stream) -> Result<Array> {
    mlx::view(&mlx::expand_dims(a, &[a.ndim() as i32], s)?, Dtype::F32, s)
}

/// `canvas` {n} with `updates` {count} added at `places` {count}, all of which are there.
pub fn add_at(
    canvas: &Array,
    updates: &Array,
    places: &Array,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    let updates = mlx::reshape(updates, &[updates.size() as i32, 1], s)?;
    if let Some(own) = own_scatter_add(canvas, &updates, &[places], &[0], device, s)? {
        return Ok(own);
    }
    scatter_in_wide(canvas, &updates, s, |canvas, updates| {
        mlx::scatter_add(canvas, &Vector::new([places]), updates, &[0], s)
    })
}

/// Scatters with negative indices counted from the end; an update with an index out of range is dropped. MLX writes
/// wherever an index points, so such updates go to a spare row behind the first axis, which is cut off again.
pub fn scatter(
    a: &Array,
    updates: &Array,
    indices: &[&Array],
    axes: &[i32],
    scatter: Scatter,
    s: &Stream,
) -> Result<Array> {
    check::lengths(&[("axes", axes.len())], indices.len())?;
    let axes = &check::axes(a, axes)?;
    let zero = int(0, Dtype::S32)?;
    let mut outside: Option<Array> = None;
    let mut within = Vec::with_capacity(indices.len());
    for (index, axis) in indices.iter().zip(axes) {
        let length = a.shape()[check::axis(a, *axis)?];
        // One more value on either side of the range tells what was outside.
        let shifted = clamp_signed(index, length, s)?;
        let low = mlx::less(&shifted, &zero, s)?;
        let high = mlx::greater_equal(&shifted, &int(i64::from(length), Dtype::S32)?, s)?;
        let out = mlx::logical_or(&low, &high, s)?;
        outside = Some(match outside {
            None => out,
            Some(before) => mlx::logical_or(&before, &out, s)?,
        });
        within.push(shifted);
    }
    let outside = outside.ok_or_else(|| Error::invalid("needs at least one axis"))?;
    let first = check::axis(a, axes[0])?;
    let spare = int(i64::from(a.shape()[first]), Dtype::S32)?;
    for (i, index) in within.iter_mut().enumerate() {
        let target = if i == 0 { &spare } else { &zero };
        *index = mlx::where_(&outside, target, index, s)?;
    }
    let filler = int(0, mlx::dtype(a))?;
    let room = mlx::pad(a, &[first as i32], &[0], &[1], &filler, "constant", s)?;
    let updates = mlx::astype(updates, mlx::dtype(a), s)?;
    let scattered = scatter(&room, &Vector::new(&within), &updates, axes, s)?;
    mlx::slice(
        &scattered,
        &vec![0; a.ndim()],
        a.shape(),
        &vec![1; a.ndim()],
        s,
    )
}

/// Indices as s32 with negative ones counted from the end; those out of range stay so, at -1 or `length`.
fn clamp_signed(index: &Array, length: i32, s: &Stream) -> Result<Array> {
    within(index, length, [-1, length], s)
}

fn on_axis(a: &Array, index: &Array, axis: i32, s: &Stream) -> Result<(usize, Array)> {
    let axis = check::axis(a, axis)?;
    let length = a.shape()[axis];
    if length == 0 && index.size() > 0 {
        return Err(Error::invalid(format!(
            "axis {axis} of shape {:?} is empty",
            a.shape()
        )));
    }
    Ok((axis, clamp(index, length, length - 1, s)?))
}

pub fn take(a: &Array, indices: &Array, axis: i32, s: &Stream) -> Result<Array> {
    if has_own(a, indices, s) {
        let axis = check::axis(a, axis)?;
        check_index_type(indices)?;
        let row = mlx::reshape(indices, &[-1], s)?;
        let taken = cpu::along(a, &row, axis, false, Beyond::Nearest, s)?;
        if indices.ndim() == 1 {
            return Ok(taken);
        }
        let (before, after) = (&a.shape()[..axis], &a.shape()[axis + 1..]);
        return mlx::reshape(&taken, &[before, indices.shape(), after].concat(), s);
    }
    if gathers::takes(a, &[indices], s) {
        let axis = check::axis(a, axis)?;
        let places = gathers::take(a.shape(), indices.shape(), axis);
        let stream = s.clone();
        let composed =
            move |arrays: &[Array]| take_by_mlx(&arrays[0], &arrays[1], axis as i32, &stream);
        if let Some(array) = gathers::by_kernel(places, a, &[indices], Box::new(composed), s)? {
            return Ok(array);
        }
    }
    take_by_mlx(a, indices, axis, s)
}

fn take_by_mlx(a: &Array, indices: &Array, axis: i32, s: &Stream) -> Result<Array> {
    let (axis, indices) = on_axis(a, indices, axis, s)?;
    mlx::take(a, &indices, axis as i32, s)
}

pub fn take_along_axis(
    a: &Array,
    indices: &Array,
    axis: i32,
    negative: Option<Negative>,
    s: &Stream,
) -> Result<Array> {
    let own = check::axis(a, axis)?;
    let mut sizes = indices.shape().iter().zip(a.shape()).enumerate();
    let is_of_its_shape =
        indices.ndim() == a.ndim() && sizes.all(|(i, (index, size))| i == own || index == size);
    if is_of_its_shape && has_own(a, indices, s) {
        check_index_type(indices)?;
        return cpu::along(a, indices, own, true, beyond(negative), s);
    }
    let indices = &counted(indices, negative, s)?;
    if gathers::takes(a, &[indices], s) {
        if let Some(places) = gathers::take_along(a.shape(), indices.shape(), own) {
            let stream = s.clone();
            let composed =
                move |arrays: &[Array]| take_along_by_mlx(&arrays[0], &arrays[1], axis, &stream);
            let composed = Box::new(composed);
            if let Some(array) = gathers::by_kernel(places, a, &[indices], composed, s)? {
                return Ok(array);
            }
        }
    }
    take_along_by_mlx(a, indices, axis, s)
}

fn take_along_by_mlx(a: &Array, indices: &Array, axis: i32, s: &Stream) -> Result<Array> {
    let (axis, indices) = on_axis(a, indices, axis, s)?;
    mlx::take_along_axis(a, &indices, axis as i32, s)
}

pub fn put_along_axis(
    a: &Array,
    indices: &Array,
    values: &Array,
    axis: i32,
    s: &Stream,
) -> Result<Array> {
    let (axis, indices) = on_axis(a, indices, axis, s)?;
    mlx::put_along_axis(a, &indices, values, axis as i32, s)
}

pub fn scatter_add_axis(
    a: &Array,
    indices: &Array,
    values: &Array,
    axis: i32,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    let (axis, indices) = on_axis(a, indices, axis, s)?;
    let shape = shape::broadcast_shape(indices.shape(), values.shape()).filter(|shape| {
        let sizes = shape.iter().zip(a.shape()).enumerate();
        let same = |(i, (own, size)): (usize, (&i32, &i32))| i == axis || *own == 1 || own == size;
        shape.len() == a.ndim() && indices.ndim() == a.ndim() && sizes.into_iter().all(same)
    });
    if let (true, Some(mut shape)) = (cpu::takes(device, a) && a.size() > 0, shape) {
        for (i, size) in a.shape().iter().enumerate().filter(|(i, _)| *i != axis) {
            shape[i] = *size;
        }
        let index = mlx::broadcast_to(&indices, &shape, s)?;
        let values = mlx::astype(values, mlx::dtype(a), s)?;
        let values = mlx::broadcast_to(&values, &shape, s)?;
        return cpu::scatter_add_along(a, &values, &index, axis as u8, s);
    }
    scatter_in_wide(a, values, s, |a, values| {
        mlx::scatter_add_axis(a, &indices, values, axis as i32, s)
    })
}

/// Values in order under the mask. MLX reads past their end where the mask is longer; here they begin anew.
pub fn masked_scatter(a: &Array, mask: &Array, values: &Array, s: &Stream) -> Result<Array> {
    if mlx::dtype(mask) != Dtype::Bool {
        return Err(Error::invalid(format!(
            "the mask must be bool, got {}",
            mlx::dtype(mask).name()
        )));
    }
    if a.ndim() > 0 && (a.size() == 0 || values.size() == 0) {
        return mlx::share(a);
    }
    let values = mlx::astype(values, mlx::dtype(a), s)?;
    let flat = mlx::reshape(&values, &[-1], s)?;
    // A mask of fewer axes is one of the leading ones.
    let mut shape = mask.shape().to_vec();
    shape.resize(a.ndim().max(shape.len()), 1);
    let mask = mlx::broadcast_to(&mlx::reshape(mask, &shape, s)?, a.shape(), s)?;
    let times = a.size().div_ceil(flat.size().max(1)) as i32;
    let enough = mlx::tile(&flat, &[times], s)?;
    // One place in the running count of the mask for each element that is replaced.
    let flags = mlx::astype(&mlx::reshape(&mask, &[-1], s)?, Dtype::S32, s)?;
    let place = mlx::cumsum(&flags, 0, false, false, None, s)?;
    let chosen = mlx::take(&enough, &place, 0, s)?;
    mlx::where_(&mask, &mlx::reshape(&chosen, a.shape(), s)?, a, s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_bring_indices_within_bounds_as_operations_do() {
        mlx::init();
        let stream = Device::Cpu.stream().expect("a stream");
        let numbers: [i64; 10] = [0, 1, 4, 5, 6, 100, -1, -5, -6, i64::MIN];
        let bounds = [[0, 4], [0, 2], [-1, 5]];
        let types = [Dtype::U8, Dtype::U64, Dtype::S8, Dtype::S32, Dtype::S64];
        for (dtype, bounds) in types
            .into_iter()
            .flat_map(|dtype| bounds.map(|b| (dtype, b)))
        {
            let size = dtype.size();
            let bytes = numbers
                .iter()
                .flat_map(|n| n.to_le_bytes()[..size].to_vec());
            let index = mlx::from_bytes(&bytes.collect::<Vec<_>>(), &[10], dtype);
            let index = index.expect("an array");
            let given = [
                dtype,
                Dtype::S64,
                Dtype::S64,
                Dtype::S64,
                Dtype::S64,
                Dtype::U64,
            ];
            let links = elementwise::links_of_steps(&steps_within(dtype), &given);
            let links = links.expect("of an integer");
            let whole = |n: i32| int(n.into(), Dtype::S64).expect("a number");
            let others = [5, 0, bounds[0], bounds[1]].map(whole);
            let top = int(i32::MAX.into(), Dtype::U64).expect("a number");
            let inputs = [&index, &others[0], &others[1], &others[2], &others[3], &top];
            let have = cpu::chain(links, &inputs, &[10], stream).expect("built");
            let arrays = [
                mlx::share(&have[0]).expect("shared"),
                within(&index, 5, bounds, stream).expect("built"),
            ];
            mlx::async_eval(&[&arrays[0], &arrays[1]], &mlx::graph_lock()).expect("submitted");
            let bytes = arrays.each_ref().map(|array| {
                mlx::wait(array).expect("computed");
                // SAFETY: computed.
                unsafe { mlx::bytes(array) }.expect("in rows").to_vec()
            });
            assert_eq!(bytes[0], bytes[1], "{dtype:?} {bounds:?}");
        }
    }
}
