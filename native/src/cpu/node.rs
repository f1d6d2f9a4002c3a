//! Nodes of MLX's graph that run a [`Kernel`]: the Rust side of cpp/kernel.cpp.

use super::type_of;
use crate::base::{Dtype, Error, Result};
use crate::mlx::{self, Functions, Outputs, Stream, Tape};
use emlx_cpu::{ElementType, Kernel, Type, View};
use mlx_rs::Array;
use smallvec::SmallVec;
use std::ffi::{c_char, c_void};

impl TryFrom<Dtype> for ElementType {
    type Error = Error;

    /// What kernels take an array's numbers for: a complex one is a pair of f32.
    fn try_from(dtype: Dtype) -> Result<ElementType> {
        match dtype {
            Dtype::F16 => Ok(ElementType::F16),
            Dtype::Bf16 => Ok(ElementType::Bf16),
            Dtype::F32 | Dtype::C64 | Dtype::S32 | Dtype::U32 => Ok(ElementType::F32),
            _ => Err(Error::invalid(format!(
                "the CPU has no kernels of our own for {}",
                dtype.name()
            ))),
        }
    }
}

impl TryFrom<Dtype> for Type {
    type Error = Error;

    fn try_from(dtype: Dtype) -> Result<Type> {
        type_of(dtype).ok_or_else(|| Error::invalid("complex numbers have no order"))
    }
}

/// Elements of an array, and steps of a product, up to which a kernel whose inputs are computed runs on the calling
/// thread: its node would take longer.
const SMALL: usize = 4096;

/// Terms of a sum that count as one step.
const VECTOR: usize = 16;

/// The same where a loop is recorded: no scheduler waits, and a step with a single larger kernel would not be recorded.
/// Inputs may be of any size then, since steps read parts of large ones.
const SMALL_RECORDED: usize = 16 * SMALL;

fn is_small(kernel: &Kernel, inputs: &[&Array], shape: &[i32], is_recorded: bool) -> bool {
    let size: usize = shape.iter().map(|size| *size as usize).product();
    let terms = match kernel {
        Kernel::Product | Kernel::IntegerProduct { .. } | Kernel::Int8Product { .. } => {
            inputs[0].shape().last().map_or(1, |size| *size as usize)
        }
        Kernel::Conv(_) => inputs[1].size() / inputs[1].shape()[0].max(1) as usize,
        Kernel::WindowReduce { windows, .. } | Kernel::WindowScatter { windows, .. } => {
            windows.sizes.iter().map(|size| *size as usize).product()
        }
        Kernel::Attention { .. } | Kernel::QuantizedProduct { .. } => return false,
        // A failure belongs to the node.
        Kernel::Linear { linear, .. } if linear.may_fail() => return false,
        // The cube of a side, however many results there are.
        Kernel::Linear { .. } => {
            let side = inputs[0].shape().last().map_or(1, |size| *size as usize);
            inputs[0].size().saturating_mul(side) / size.max(1)
        }
        Kernel::Fft(fft) => VECTOR * (fft.size.max(1).ilog2() as usize + 1),
        _ => 1,
    };
    let steps = match kernel {
        _ if is_recorded => terms,
        Kernel::WindowScatter { .. } => terms,
        _ => terms.div_ceil(VECTOR),
    };
    let work = size.saturating_mul(steps);
    match is_recorded {
        true => size > 0 && size <= SMALL_RECORDED && work <= 16 * SMALL_RECORDED,
        false => size > 0 && work <= SMALL && inputs.iter().all(|array| array.size() <= SMALL),
    }
}

/// A kernel with the type it was asked for.
struct Owned {
    kernel: Kernel,
    element: ElementType,
}

impl Owned {
    /// Computes a small kernel whose inputs are computed on the calling thread. Else None.
    fn at_once(
        &self,
        inputs: &[&Array],
        outputs: Outputs,
        s: &Stream,
    ) -> Result<Option<SmallVec<[Array; 2]>>> {
        let is_recorded = s.tape().is_some_and(Tape::is_of_loop);
        if !is_small(&self.kernel, inputs, outputs.shape, is_recorded) || !mlx::has_tasks() {
            return Ok(None);
        }
        let functions = functions(self, self.kernel.name().as_ptr());
        let arrays = mlx::kernel_now(&functions, inputs, outputs, s)?;
        if let (Some(arrays), Some(tape)) = (&arrays, s.tape()) {
            tape.push(self.kernel.clone(), self.element, inputs, arrays)?;
        }
        Ok(arrays)
    }

    /// [`Owned::at_once`] with one result.
    fn one_at_once(
        &self,
        inputs: &[&Array],
        shape: &[i32],
        dtype: Dtype,
        s: &Stream,
    ) -> Result<Option<Array>> {
        let arrays = self.at_once(inputs, Outputs::one(shape, &[dtype]), s)?;
        Ok(arrays.and_then(|mut arrays| arrays.pop()))
    }
}

impl<'a> Outputs<'a> {
    fn one(shape: &'a [i32], dtype: &'a [Dtype; 1]) -> Outputs<'a> {
        Outputs {
            shape,
            dtypes: dtype,
            takers: &[],
        }
    }
}

/// What MLX's node does with a kernel.
fn functions(kernel: *const Owned, name: *const c_char) -> Functions {
    Functions {
        kernel: kernel.cast(),
        name,
        run,
        equal,
        drop: drop_kernel,
    }
}

/// A small kernel that has its types itself and whose inputs are computed, computed on the calling thread. Else None.
pub fn at_once(
    kernel: Kernel,
    inputs: &[&Array],
    shape: &[i32],
    dtype: Dtype,
    s: &Stream,
) -> Result<Option<Array>> {
    let element = ElementType::F32;
    Owned { kernel, element }.one_at_once(inputs, shape, dtype, s)
}

/// The same of a kernel that computes with numbers of `like`'s type, to a result of this type.
pub fn at_once_like(
    kernel: Kernel,
    inputs: &[&Array],
    shape: &[i32],
    like: &Array,
    s: &Stream,
) -> Result<Option<Array>> {
    let dtype = mlx::dtype(like);
    let element = dtype.try_into()?;
    Owned { kernel, element }.one_at_once(inputs, shape, dtype, s)
}

unsafe extern "C" fn run(
    kernel: *const c_void,
    inputs: *const View,
    count: usize,
    outs: *const View,
    out_count: usize,
    message: *mut c_char,
    size: usize,
) -> bool {
    // SAFETY: a box of ours; views that live through the call.
    let (owned, inputs, outs) = unsafe {
        (
            &*kernel.cast::<Owned>(),
            std::slice::from_raw_parts(inputs, count),
            std::slice::from_raw_parts(outs, out_count),
        )
    };
    let call = || unsafe { owned.kernel.run_all(owned.element, inputs, outs) };
    let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)) else {
        return true;
    };
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("the kernel panicked");
    let length = text.len().min(size.saturating_sub(1));
    // SAFETY: `size` bytes are the caller's, and the text ends before the last.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), message, length);
        message.add(length).write(0);
    }
    false
}

unsafe extern "C" fn equal(a: *const c_void, b: *const c_void) -> bool {
    // SAFETY: both are boxes of ours.
    let (a, b) = unsafe { (&*a.cast::<Owned>(), &*b.cast::<Owned>()) };
    a.kernel == b.kernel && a.element == b.element
}

unsafe extern "C" fn drop_kernel(kernel: *const c_void) {
    // SAFETY: made by `new`, dropped once, by the node.
    drop(unsafe { Box::from_raw(kernel.cast_mut().cast::<Owned>()) });
}

/// How a node lays its result out; the same in cpp/kernel.cpp.
#[derive(Clone, Copy)]
pub enum Layout {
    /// Row after row.
    Rows = 0,
    /// As all inputs of the results' shape, where they agree; else row after row. The kernel may be given the memory of
    /// some of them.
    Together = 1,
    /// As the first input, where its rows have no gaps; else row after row. The kernel may be given the first input's
    /// memory.
    LikeFirst = 2,
    /// {batch, heads, length, size} with the heads of one position beside each other, as what follows wants them.
    HeadsInside = 3,
    /// Row after row, or as the only input lies, if that is its elements in the result's shape. Then the kernel is not
    /// run.
    Reshaped = 4,
}

/// A node of `shape` and of the type of `like`, which is the type of all inputs that the kernel computes with.
pub fn new(
    kernel: Kernel,
    layout: Layout,
    inputs: &[&Array],
    shape: &[i32],
    like: &Array,
    s: &Stream,
) -> Result<Array> {
    let dtype = mlx::dtype(like);
    node(kernel, layout, inputs, shape, dtype, dtype.try_into()?, s)
}

/// A node of a kernel that has its types itself.
pub fn typed(
    kernel: Kernel,
    layout: Layout,
    inputs: &[&Array],
    shape: &[i32],
    dtype: Dtype,
    s: &Stream,
) -> Result<Array> {
    node(kernel, layout, inputs, shape, dtype, ElementType::F32, s)
}

fn node(
    kernel: Kernel,
    layout: Layout,
    inputs: &[&Array],
    shape: &[i32],
    dtype: Dtype,
    element: ElementType,
    s: &Stream,
) -> Result<Array> {
    let owned = Owned { kernel, element };
    let mut arrays = nodes(owned, layout, inputs, Outputs::one(shape, &[dtype]), s)?;
    arrays.pop().ok_or_else(no_result)
}

fn no_result() -> Error {
    Error::invalid("a kernel has no result")
}

/// The results of a kernel that has its types itself. They have one shape and each a type.
pub fn several(
    kernel: Kernel,
    inputs: &[&Array],
    outputs: Outputs,
    s: &Stream,
) -> Result<SmallVec<[Array; 2]>> {
    let element = ElementType::F32;
    nodes(
        Owned { kernel, element },
        Layout::Together,
        inputs,
        outputs,
        s,
    )
}

/// The results of a kernel that has its types itself and results of several shapes.
pub fn of_parts(
    kernel: Kernel,
    inputs: &[&Array],
    parts: &[mlx::Part],
    dtypes: &[Dtype],
    takers: &[u8],
    s: &Stream,
) -> Result<SmallVec<[Array; 2]>> {
    let name = kernel.name().as_ptr();
    let element = ElementType::F32;
    let owned = Box::into_raw(Box::new(Owned { kernel, element }));
    mlx::parts_node(functions(owned, name), inputs, parts, dtypes, takers, s)
}

fn nodes(
    owned: Owned,
    layout: Layout,
    inputs: &[&Array],
    outputs: Outputs,
    s: &Stream,
) -> Result<SmallVec<[Array; 2]>> {
    if let Some(arrays) = owned.at_once(inputs, outputs, s)? {
        return Ok(arrays);
    }
    let name = owned.kernel.name().as_ptr();
    let functions = functions(Box::into_raw(Box::new(owned)), name);
    mlx::kernel_node(functions, layout as i32, inputs, outputs, s)
}
