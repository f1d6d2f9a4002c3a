//! What MLX's CUDA kernels lack or misread, so that operations mean the same on every device. Called by [`Op::apply`] and by the
//! operations themselves. Found by running the golden tests on an H200 with MLX 0.32.2.

use super::{compose, Inputs, Op};
use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::mlx::{self, Stream};
use mlx_rs::Array;
use std::cell::RefCell;

thread_local! {
    static CROSSED: RefCell<Vec<Array>> = const { RefCell::new(Vec::new()) };
}

/// Keeps results that the CPU computes for the GPU, until the caller of `apply` takes them. They have to be computed before what
/// builds on them is submitted: CUDA's streams wait for the CPU inside a kernel, and while one runs, a call that the CPU's part
/// makes, such as one for memory, may wait for all kernels in turn.
pub fn cross(outputs: &[Array]) -> Result<()> {
    for output in outputs.iter().filter(|output| output.size() > 0) {
        let shared = mlx::share(output)?;
        CROSSED.with_borrow_mut(|crossed| crossed.push(shared));
    }
    Ok(())
}

/// How many of them are kept on this thread.
pub fn crossed() -> usize {
    CROSSED.with_borrow(Vec::len)
}

/// The results that were computed by the CPU for the GPU since the last call on this thread.
pub fn take_crossed() -> Vec<Array> {
    CROSSED.take()
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
        _ if op.traits().row_major_on_gpu => changed(&|_, array| mlx::contiguous(array, false, s)),
        Op::Fft { .. } | Op::Ifft { .. } | Op::Rfft { .. } | Op::Irfft { .. } => {
            changed(&|_, array| mlx::contiguous(&number(array, s)?, false, s))
        }
        Op::ScaledDotProductAttention { .. } => {
            // The sinks are the last input.
            let last = inputs.0.len().saturating_sub(1);
            if inputs.0.get(last).copied().flatten().is_none() {
                return Ok(None);
            }
            changed(&|i, array| match i == last {
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

/// A result whose strides may be negative, in rows. CUDA's norms and rotation give their results the strides of their input, and would
/// write before its memory.
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
        &mlx::transpose(a, &order, s)?,
        &[sizes.as_slice(), &[-1]].concat(),
        s,
    )?;
    let lines = mlx::contiguous(&lines, false, s)?;
    let median = mlx::median(&lines, &[sizes.len() as i32], false, s)?;
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
            compose::astype(&mlx::tri(n, m, k, Dtype::Bool, s)?, dtype, s)
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
