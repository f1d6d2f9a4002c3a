//! What MLX's CUDA kernels lack or misread, so that operations mean the same on every device. Called by [`Op::apply`]
//! and by the operations themselves. Found by running the golden tests on an H200 with MLX 0.32.2.

use super::creation::int;
use super::{cast, check, shape, window, Inputs, Op, PadMode, Reduction};
use crate::base::{Device, Dtype, Error, Result};
use crate::mlx::{self, Stream, Vector};
use mlx_rs::Array;
use smallvec::SmallVec;

/// Results that the CPU computes for the GPU. They have to be computed before what builds on them is submitted: CUDA's
/// streams wait for the CPU inside a kernel, and while one runs, a call that the CPU's part makes, such as one for
/// memory, may wait for all kernels in turn.
#[derive(Default)]
pub struct Crossed(SmallVec<[Array; 1]>);

impl Crossed {
    /// Adds an operation's outputs.
    pub fn add(&mut self, outputs: &[Array]) -> Result<()> {
        for output in outputs.iter().filter(|output| output.size() > 0) {
            self.0.push(mlx::share(output)?);
        }
        Ok(())
    }

    /// Adds those of another operation.
    pub fn append(&mut self, mut others: Crossed) {
        self.0.append(&mut others.0);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The arrays, in the order in which they were made.
    pub fn take(&mut self) -> SmallVec<[Array; 1]> {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Crossed {
    fn drop(&mut self) {
        mlx::release_all(self.take().into_iter().collect());
    }
}

/// Operations that have to be done on the CPU for arrays of the GPU.
pub fn lacks(op: &Op, inputs: &Inputs) -> bool {
    let arrays = || inputs.0.iter().copied().flatten();
    // Many kernels end the process on arrays without elements.
    if arrays().any(|array| array.size() == 0) {
        return true;
    }
    let is = |position: usize, found: fn(Dtype) -> bool| {
        let array = inputs.0.get(position).copied().flatten();
        array.is_some_and(|array| found(mlx::dtype(array)))
    };
    let is_wide = |dtype| matches!(dtype, Dtype::S64 | Dtype::U64 | Dtype::C64);
    let narrow = op.traits().narrow_on_gpu;
    if narrow
        .iter()
        .any(|position| is(*position as usize, is_wide))
    {
        return true;
    }
    match op {
        Op::Arccosh | Op::Arcsinh | Op::Arctanh => is(0, |dtype| dtype == Dtype::C64),
        Op::GatherMm { .. } => [0, 1].iter().any(|at| is(*at, |dtype| !dtype.is_float())),
        // CUDA has no order of complex numbers.
        Op::Argmax { .. } | Op::Argmin { .. } => is(0, |dtype| dtype == Dtype::C64),
        // cuFFT takes no single element of a larger array, in rows or not.
        Op::Fft { sizes, .. }
        | Op::Ifft { sizes, .. }
        | Op::Rfft { sizes, .. }
        | Op::Irfft { sizes, .. } => sizes.iter().all(|size| *size == 1),
        // The kernel of one such matrix does not compile.
        Op::HadamardTransform { .. } => {
            arrays().any(|array| matches!(array.shape().last(), Some(12 | 20 | 28)))
        }
        _ => false,
    }
}

/// The inputs for the CPU.
pub fn copies_for_cpu(inputs: &Inputs, s: &Stream) -> Result<Vec<Option<Array>>> {
    let copy = |array: &Array| {
        if cfg!(target_os = "macos") {
            mlx::share(array)
        } else {
            mlx::copy_apart(array, s)
        }
    };
    let inputs = inputs.0.iter();
    inputs.map(|input| input.map(copy).transpose()).collect()
}

/// The inputs changed to what CUDA's kernels read rightly; None where they are as they are.
pub fn as_its_kernels_take(
    op: &Op,
    inputs: &Inputs,
    s: &Stream,
) -> Result<Option<Vec<Option<Array>>>> {
    let changed = |change: &dyn Fn(usize, &Array) -> Result<Array>| {
        let arrays = inputs.0.iter().enumerate();
        let arrays = arrays.map(|(i, input)| input.map(|array| change(i, array)).transpose());
        arrays.collect::<Result<Vec<_>>>().map(Some)
    };
    match op {
        // Matrices of quantized products go by their strides, also along axes of size 1.
        Op::QuantizedMatmul { .. } | Op::GatherQmm { .. } | Op::Qqmm { .. } => {
            changed(&|i, array| match i > 0 && has_axis_of_one(array) {
                true => packed(array, s),
                false => mlx::contiguous(array, false, s),
            })
        }
        _ if op.traits().row_major_on_gpu => changed(&|_, array| mlx::contiguous(array, false, s)),
        Op::Fft { .. } | Op::Ifft { .. } | Op::Rfft { .. } | Op::Irfft { .. } => {
            changed(&|_, array| mlx::contiguous(&number(array, s)?, false, s))
        }
        // Without a look at their stride, the matrices of one batch axis are taken to lie one after another.
        Op::GatherMm { .. } => {
            changed(&|i, array| match i < 2 && !mlx::has_dense_matrices(array) {
                true => mlx::contiguous(array, false, s),
                false => mlx::share(array),
            })
        }
        Op::ScaledDotProductAttention { .. } => {
            // The sinks are the last input. The result of cuDNN is laid out as the queries are, which must not repeat.
            let last = inputs.0.len().saturating_sub(1);
            let has_sinks = inputs.0.get(last).copied().flatten().is_some();
            let repeats = inputs
                .0
                .first()
                .copied()
                .flatten()
                .is_some_and(mlx::may_repeat);
            if !has_sinks && !repeats {
                return Ok(None);
            }
            changed(&|i, array| match i == last || i == 0 && repeats {
                true => mlx::contiguous(array, false, s),
                false => mlx::share(array),
            })
        }
        _ => {
            let any = |dtype: Dtype| {
                let mut arrays = inputs.0.iter().flatten();
                arrays.any(|array| mlx::dtype(array) == dtype)
            };
            if inputs.0.len() < 2 || !any(Dtype::C64) || !any(Dtype::Bool) {
                return Ok(None);
            }
            // Where a boolean chooses and is not counted with.
            let chooses = match op {
                Op::Where => Some(0),
                Op::MaskedScatter => Some(1),
                _ => None,
            };
            changed(&|i, array| match chooses == Some(i) {
                true => mlx::share(array),
                false => number(array, s),
            })
        }
    }
}

/// Whether one of the last two axes has size 1, where an array in rows may have any stride.
fn has_axis_of_one(array: &Array) -> bool {
    array.shape().iter().rev().take(2).any(|size| *size == 1)
}

/// In rows, with the strides that rows of this shape have, also along axes of size 1. cuDNN goes by them.
pub fn packed(array: &Array, s: &Stream) -> Result<Array> {
    let flat = mlx::reshape(&mlx::contiguous(array, false, s)?, &[-1], s)?;
    mlx::reshape(&flat, array.shape(), s)
}

/// Booleans as f32: a complex number made of one would have it as its imaginary part as well.
fn number(array: &Array, s: &Stream) -> Result<Array> {
    match mlx::dtype(array) {
        Dtype::Bool => mlx::astype(array, Dtype::F32, s),
        _ => mlx::share(array),
    }
}

/// A result whose strides may be negative, in rows. CUDA's norms and rotation give their results the strides of their
/// input, and would write before its memory.
pub fn without_negative_strides(
    result: Array,
    turned: bool,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    match turned && device == Device::Gpu {
        true => mlx::contiguous(&result, false, s),
        false => Ok(result),
    }
}

/// -a; of complex numbers by their parts, for CUDA's gives 0 for -0.
pub fn negative(a: &Array, device: Device, s: &Stream) -> Result<Array> {
    if device == Device::Cpu || mlx::dtype(a) != Dtype::C64 {
        return mlx::negative(a, s);
    }
    let flat = mlx::contiguous(&mlx::reshape(a, &[-1], s)?, false, s)?;
    let parts = mlx::negative(&mlx::view(&flat, Dtype::F32, s)?, s)?;
    mlx::reshape(&mlx::view(&parts, Dtype::C64, s)?, a.shape(), s)
}

/// Blocks that CUDA launches along a grid's second and third axis.
const MAX_GRID: i32 = 65_535;

/// The axes in another order. Where a copy of the result is one of a transposed matrix with more columns than MLX's
/// kernel for that launches blocks for, the copy is made here, some columns at a time.
pub fn transpose(a: &Array, axes: &[i32], device: Device, s: &Stream) -> Result<Array> {
    let turned = mlx::transpose(a, axes, s)?;
    if device == Device::Cpu || cfg!(target_os = "macos") {
        return Ok(turned);
    }
    // A tile is 16 threads wide, of up to 16 bytes or 8 elements each.
    let per_thread = (16 / mlx::dtype(a).size()).min(8) as i32;
    let most = MAX_GRID * 16 * per_thread;
    if a.size() <= most as usize {
        return Ok(turned);
    }
    // Axes of size 1 are anywhere. Two groups that change places make a transposed matrix.
    let order: Vec<usize> = axes
        .iter()
        .map(|axis| *axis as usize)
        .filter(|axis| a.shape()[*axis] != 1)
        .collect();
    let Some(cut) = order.windows(2).position(|pair| pair[0] > pair[1]) else {
        return Ok(turned);
    };
    let (first, second) = order.split_at(cut + 1);
    let rises = |group: &[usize]| group.windows(2).all(|pair| pair[0] < pair[1]);
    let size = |group: &[usize]| -> i64 {
        let sizes = group.iter().map(|axis| i64::from(a.shape()[*axis]));
        sizes.product()
    };
    let (rows, columns) = (size(second), size(first));
    if !rises(second) || second.last() > first.first() || rows <= i64::from(most) {
        return Ok(turned);
    }
    let (Ok(rows), Ok(columns)) = (i32::try_from(rows), i32::try_from(columns)) else {
        return Ok(turned);
    };
    let matrix = mlx::reshape(&mlx::contiguous(a, false, s)?, &[rows, columns], s)?;
    let parts = (0..rows).step_by(most as usize).map(|start| {
        let stop = start.saturating_add(most).min(rows);
        let part = mlx::slice(&matrix, &[start, 0], &[stop, columns], &[1, 1], s)?;
        mlx::contiguous(&mlx::transpose(&part, &[1, 0], s)?, false, s)
    });
    let parts = parts.collect::<Result<Vec<_>>>()?;
    let whole = mlx::concatenate(&Vector::new(&parts), 1, s)?;
    mlx::reshape(&whole, turned.shape(), s)
}

pub fn swapaxes(a: &Array, axis1: i32, axis2: i32, device: Device, s: &Stream) -> Result<Array> {
    let (axis1, axis2) = (check::axis(a, axis1)?, check::axis(a, axis2)?);
    let mut axes: Vec<i32> = (0..a.ndim() as i32).collect();
    axes.swap(axis1, axis2);
    transpose(a, &axes, device, s)
}

pub fn moveaxis(a: &Array, from: i32, to: i32, device: Device, s: &Stream) -> Result<Array> {
    let (from, to) = (check::axis(a, from)?, check::axis(a, to)?);
    let mut axes: Vec<i32> = (0..a.ndim() as i32).collect();
    let axis = axes.remove(from);
    axes.insert(to, axis);
    transpose(a, &axes, device, s)
}

/// What a scan comes to before each element, of what it comes to with it; `none` is at the beginning. CUDA's own
/// kernel for that writes results over elements that it has not read yet, where the input's memory becomes the
/// result's.
pub fn before_each(
    whole: &Array,
    axis: i32,
    reverse: bool,
    none: Reduction,
    s: &Stream,
) -> Result<Array> {
    if whole.size() == 0 {
        return mlx::share(whole);
    }
    let value = window::identity(none, mlx::dtype(whole))?;
    let (low, high) = if reverse { (-1, 1) } else { (1, -1) };
    let constant = PadMode::Constant;
    shape::pad(whole, &value, &[axis], &[low], &[high], constant, s)
}

/// What an inclusive scan along an axis of one element computes, else None. CUDA's scans compute how much they read
/// from the axis's stride, which of a single element may be any number: they read and write beyond the array.
pub fn alone(a: &Array, axis: i32, s: &Stream) -> Result<Option<Array>> {
    match (a.shape()[axis as usize], mlx::dtype(a)) {
        (1, Dtype::Bool) => mlx::astype(a, Dtype::S32, s).map(Some),
        (1, _) => mlx::share(a).map(Some),
        _ => Ok(None),
    }
}

/// The largest (smallest) number so far. CUDA's scans take an array with negative strides for one in rows.
pub fn running(
    a: &Array,
    axis: i32,
    reduction: Reduction,
    reverse: bool,
    inclusive: bool,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    let rows;
    let a = match device {
        Device::Gpu => {
            rows = mlx::contiguous(a, false, s)?;
            &rows
        }
        Device::Cpu => a,
    };
    // As in `alone`.
    if device == Device::Gpu && a.shape()[axis as usize] == 1 {
        return match inclusive {
            true => mlx::share(a),
            false => before_each(a, axis, reverse, reduction, s),
        };
    }
    let scan = |inclusive| match reduction {
        Reduction::Min => mlx::cummin(a, axis, reverse, inclusive, s),
        _ => mlx::cummax(a, axis, reverse, inclusive, s),
    };
    match inclusive || device == Device::Cpu {
        true => scan(inclusive),
        false => before_each(&scan(true)?, axis, reverse, reduction, s),
    }
}

/// Whether CUDA launches MLX's kernel for rotations, whose threads go along pairs, positions and groups of 4 heads.
fn launches(threads: [i64; 3]) -> bool {
    // As MLX shares out 2¹⁰ threads: to each axis in turn, as long as it has use for twice as many.
    let mut block = [1i64; 3];
    let mut left = 10;
    loop {
        let before = left;
        for (size, own) in threads.iter().zip(&mut block) {
            if left > 0 && *size >= 2 * *own {
                *own *= 2;
                left -= 1;
            }
        }
        if left == 0 || left == before {
            break;
        }
    }
    let blocks = |axis: usize| (threads[axis] + block[axis] - 1) / block[axis];
    block[2] <= 64 && blocks(1) <= i64::from(MAX_GRID) && blocks(2) <= i64::from(MAX_GRID)
}

/// Rotates x {batch, heads…, length, size} in halves of its batch or its heads until CUDA launches the kernel for
/// each. `rotate` takes a part and its offsets.
pub fn rotate_in_parts(
    x: &Array,
    offset: &Array,
    dims: i32,
    s: &Stream,
    rotate: &dyn Fn(&Array, &Array) -> Result<Array>,
) -> Result<Array> {
    let (shape, rank) = (x.shape(), x.ndim());
    let heads: i64 = shape[1..rank - 2].iter().map(|n| i64::from(*n)).product();
    let groups = i64::from(shape[0]) * ((heads + 3) / 4);
    let is_single = shape[0] == 1 && shape[rank - 2] == 1;
    let axis = shape[..rank - 2].iter().position(|size| *size > 1);
    let (Some(axis), false) = (axis, is_single) else {
        return rotate(x, offset);
    };
    if launches([i64::from(dims / 2), i64::from(shape[rank - 2]), groups]) {
        return rotate(x, offset);
    }
    let (size, half) = (shape[axis], shape[axis] / 2);
    let parts = [(0, half), (half, size)].map(|(start, stop)| {
        let (mut from, mut to) = (vec![0; rank], shape.to_vec());
        (from[axis], to[axis]) = (start, stop);
        let part = mlx::slice(x, &from, &to, &vec![1; rank], s)?;
        let offset = match axis == 0 && offset.size() > 1 {
            true => mlx::slice(offset, &[start], &[stop], &[1], s)?,
            false => mlx::share(offset)?,
        };
        rotate_in_parts(&part, &offset, dims, s, rotate)
    });
    let [first, second] = parts;
    mlx::concatenate(&Vector::new(&[first?, second?]), axis as i32, s)
}

/// Sorts along an axis, or does what is computed by sorting. `sort` takes rows and their axis; on CUDA as many rows at
/// a time as one launch takes.
pub fn sorted(
    a: &Array,
    axis: usize,
    device: Device,
    s: &Stream,
    sort: impl Fn(&Array, i32) -> Result<Array>,
) -> Result<Array> {
    let (rank, last) = (a.ndim(), a.ndim() - 1);
    let length = a.shape()[axis].max(1);
    let count = a.size() / length as usize;
    // Rows are blocks along the grid's second axis, and elements are counted by 32 bits.
    let most = MAX_GRID.min(i32::MAX / length);
    if device == Device::Cpu || count <= most as usize {
        return sort(a, axis as i32);
    }
    let count = i32::try_from(count).map_err(|_| {
        Error::invalid(format!(
            "has more than 2147483647 rows to sort in shape {:?}",
            a.shape()
        ))
    })?;
    // The axis comes last, and goes back afterwards.
    let to_last = |a: &Array| swapaxes(a, axis as i32, last as i32, device, s);
    let turned = to_last(a)?;
    let rows = mlx::contiguous(&mlx::reshape(&turned, &[count, length], s)?, false, s)?;
    let parts = (0..count).step_by(most as usize).map(|start| {
        let stop = start.saturating_add(most).min(count);
        let part = mlx::slice(&rows, &[start, 0], &[stop, length], &[1, 1], s)?;
        sort(&mlx::contiguous(&part, false, s)?, 1)
    });
    let parts = parts.collect::<Result<Vec<_>>>()?;
    let whole = mlx::concatenate(&Vector::new(&parts), 0, s)?;
    let mut shape = turned.shape().to_vec();
    shape[rank - 1] = whole.shape()[1];
    to_last(&mlx::reshape(&whole, &shape, s)?)
}

pub fn sort(a: &Array, axis: i32, device: Device, s: &Stream) -> Result<Array> {
    sorted(a, axis as usize, device, s, |a, axis| mlx::sort(a, axis, s))
}

/// The median. MLX sorts a view of the axes moved to the end, which CUDA's sort misreads.
pub fn median(
    a: &Array,
    axes: &[i32],
    keepdims: bool,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    if device == Device::Cpu {
        return mlx::median(a, axes, keepdims, s);
    }
    let kept: Vec<i32> = (0..a.ndim() as i32)
        .filter(|axis| !axes.contains(axis))
        .collect();
    let sizes: Vec<i32> = kept.iter().map(|axis| a.shape()[*axis as usize]).collect();
    let order = [kept.as_slice(), axes].concat();
    let lines = mlx::reshape(
        &transpose(a, &order, device, s)?,
        &[sizes.as_slice(), &[-1]].concat(),
        s,
    )?;
    let lines = mlx::contiguous(&lines, false, s)?;
    let median = sorted(&lines, sizes.len(), device, s, |lines, axis| {
        mlx::median(lines, &[axis], true, s)
    })?;
    let median = mlx::squeeze(&median, &[sizes.len() as i32], s)?;
    if !keepdims {
        return Ok(median);
    }
    let mut shape = a.shape().to_vec();
    axes.iter().for_each(|axis| shape[*axis as usize] = 1);
    mlx::reshape(&median, &shape, s)
}

/// MLX scatters ones, which CUDA cannot in 64-bit types.
pub fn eye(n: i32, m: i32, k: i32, dtype: Dtype, device: Device, s: &Stream) -> Result<Array> {
    match dtype {
        Dtype::S64 | Dtype::U64 | Dtype::C64 if device == Device::Gpu => {
            mlx::astype(&mlx::eye(n, m, k, Dtype::S32, s)?, dtype, s)
        }
        _ => mlx::eye(n, m, k, dtype, s),
    }
}

/// MLX makes it of booleans.
pub fn tri(n: i32, m: i32, k: i32, dtype: Dtype, device: Device, s: &Stream) -> Result<Array> {
    match dtype {
        Dtype::C64 if device == Device::Gpu => {
            cast::astype(&mlx::tri(n, m, k, Dtype::Bool, s)?, dtype, s)
        }
        _ => mlx::tri(n, m, k, dtype, s),
    }
}

/// Vectors as matrices of one row: CUDA's quantized products take no vectors.
pub fn of_rows(
    x: &Array,
    device: Device,
    s: &Stream,
    product: impl Fn(&Array) -> Result<Array>,
) -> Result<Array> {
    if device == Device::Cpu || x.ndim() != 1 {
        return product(x);
    }
    mlx::squeeze(&product(&mlx::expand_dims(x, &[0], s)?)?, &[0], s)
}

/// Whether CUDA's kernel for products with quantized matrices does not start: of f32 in groups of 128 (mode affine
/// alone has them) a block of more than 32 rows asks for more shared memory than it may have.
pub fn is_too_large(x: &Array, scales: &Array, group: Option<i32>, device: Device) -> bool {
    let rows = x.shape().iter().rev().nth(1).map_or(1, |rows| *rows);
    let is_single = [x, scales].iter().any(|a| mlx::dtype(a) == Dtype::F32);
    let is_cuda = device == Device::Gpu && !cfg!(target_os = "macos");
    is_cuda && group == Some(128) && is_single && rows > 32
}

/// Whether the rows of a quantized matrix (mode affine) are one group each. CUDA's kernel for Hopper, which takes no
/// others, gives numbers that differ from run to run.
pub fn has_one_group(x: &Array, group: Option<i32>, device: Device) -> bool {
    let terms = x.shape().last().copied().unwrap_or(0);
    device == Device::Gpu && !cfg!(target_os = "macos") && terms <= group.unwrap_or(64)
}

/// Rows of f32 that a block of CUDA's kernel for gathered products has shared memory for.
const GATHERED_ROWS: i32 = 64;

/// Products of gathered matrices. CUDA's kernel does not start for f32 of more than [`GATHERED_ROWS`] rows: these are
/// products of more matrices of fewer rows.
pub fn gather_mm(
    a: &Array,
    b: &Array,
    lhs: Option<&Array>,
    rhs: Option<&Array>,
    sorted: bool,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    let rows = a.shape().iter().rev().nth(1).copied().unwrap_or(1);
    let is_single = mlx::promoted(mlx::dtype(a), mlx::dtype(b)) == Dtype::F32;
    let is_cuda = device == Device::Gpu && !cfg!(target_os = "macos");
    let is_gathered = lhs.is_some() || rhs.is_some();
    match is_cuda && is_single && is_gathered && rows > GATHERED_ROWS {
        true => gather_in_parts(a, b, lhs, rhs, sorted, s),
        false => mlx::gather_mm(a, b, lhs, rhs, sorted, s),
    }
}

/// The matrices of `a` in parts of [`GATHERED_ROWS`] rows, each a matrix of its own.
pub fn gather_in_parts(
    a: &Array,
    b: &Array,
    lhs: Option<&Array>,
    rhs: Option<&Array>,
    sorted: bool,
    s: &Stream,
) -> Result<Array> {
    let ([.., rows, terms], [.., columns]) = (a.shape(), b.shape()) else {
        return Err(Error::invalid("takes matrices"));
    };
    let parts = (rows + GATHERED_ROWS - 1) / GATHERED_ROWS;
    let more = [parts * GATHERED_ROWS - rows];
    let zero = int(0, mlx::dtype(a))?;
    let padded = shape::pad(a, &zero, &[-2], &[0], &more, PadMode::Constant, s)?;
    let padded = mlx::reshape(&padded, &[-1, GATHERED_ROWS, *terms], s)?;
    let count = |array: &Array| -> Result<Array> {
        let batch = &array.shape()[..array.ndim() - 2];
        let count: i32 = batch.iter().product();
        let numbers = mlx::arange(0.0, count.into(), 1.0, Dtype::U32, s)?;
        mlx::reshape(&numbers, batch, s)
    };
    let indices = |array: &Array, given: Option<&Array>| match given {
        Some(indices) => mlx::expand_dims(indices, &[-1], s),
        None => mlx::expand_dims(&count(array)?, &[-1], s),
    };
    let first = mlx::multiply(&indices(a, lhs)?, &int(parts.into(), Dtype::U32)?, s)?;
    let part = mlx::arange(0.0, parts.into(), 1.0, Dtype::U32, s)?;
    let lhs = mlx::add(&first, &part, s)?;
    let out = mlx::gather_mm(&padded, b, Some(&lhs), Some(&indices(b, rhs)?), sorted, s)?;
    let batch = &out.shape()[..out.ndim() - 3];
    let whole = [batch, &[parts * GATHERED_ROWS, *columns]].concat();
    let start = vec![0; whole.len()];
    let mut stop = whole.clone();
    stop[batch.len()] = *rows;
    let out = mlx::reshape(&out, &whole, s)?;
    mlx::slice(&out, &start, &stop, &vec![1; whole.len()], s)
}
