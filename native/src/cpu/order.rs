//! Operations that compare numbers, and reductions that are exact in any order, of every type but complex numbers.

use super::{are_there, node, Layout};
use crate::base::{Device, Dtype, Result};
use crate::mlx::{self, Stream};
use emlx_cpu::{Kernel, Type};
use mlx_rs::Array;
use smallvec::SmallVec;

/// Whether the functions below take this array on this device: one with elements, of numbers that have an order.
pub fn orders(device: Device, x: &Array) -> bool {
    device == Device::Cpu && are_there() && x.size() > 0 && mlx::dtype(x) != Dtype::C64
}

fn type_of(x: &Array) -> Result<Type> {
    mlx::dtype(x).try_into()
}

/// The axes for a kernel, and the shape of a reduction over them; they are not negative.
type Over = (SmallVec<[u8; 8]>, SmallVec<[i32; 8]>);

fn over(x: &Array, axes: &[i32], keepdims: bool) -> Over {
    let sizes = x.shape().iter().enumerate();
    let shape = sizes.filter_map(|(axis, size)| match axes.contains(&(axis as i32)) {
        true => keepdims.then_some(1),
        false => Some(*size),
    });
    (
        axes.iter().map(|axis| *axis as u8).collect(),
        shape.collect(),
    )
}

/// The largest or the smallest, NaN where there is one.
pub fn extreme(is_max: bool, x: &Array, axes: &[i32], keepdims: bool, s: &Stream) -> Result<Array> {
    let (axes, shape) = over(x, axes, keepdims);
    let of = type_of(x)?;
    let kernel = Kernel::Extreme { is_max, axes, of };
    node::typed(kernel, Layout::Rows, &[x], &shape, mlx::dtype(x), s)
}

/// Whether all or any are other than zero.
pub fn truth(is_all: bool, x: &Array, axes: &[i32], keepdims: bool, s: &Stream) -> Result<Array> {
    let (axes, shape) = over(x, axes, keepdims);
    let of = type_of(x)?;
    let kernel = Kernel::Truth { is_all, axes, of };
    node::typed(kernel, Layout::Rows, &[x], &shape, Dtype::Bool, s)
}

/// Whether [`total`] has a result of `dtype`: integers or booleans are added up, or multiplied, in as many bits.
pub fn totals(x: &Array, dtype: Dtype) -> bool {
    let own = mlx::dtype(x);
    (own.is_integer() || own == Dtype::Bool)
        && dtype.is_integer()
        && dtype.size() == own.size().max(4)
}

/// The sum or the product, which wraps round.
pub fn total(
    is_product: bool,
    x: &Array,
    axes: &[i32],
    keepdims: bool,
    dtype: Dtype,
    s: &Stream,
) -> Result<Array> {
    let (axes, shape) = over(x, axes, keepdims);
    let of = type_of(x)?;
    let kernel = Kernel::Total {
        is_product,
        axes,
        of,
    };
    node::typed(kernel, Layout::Rows, &[x], &shape, dtype, s)
}

/// The place along an axis of the first of the largest or the smallest, or of NaN: the first or the last of several.
pub fn arg_extreme(
    is_max: bool,
    x: &Array,
    axis: i32,
    keepdims: bool,
    is_last_nan: bool,
    s: &Stream,
) -> Result<Array> {
    let (_, shape) = over(x, &[axis], keepdims);
    let kernel = Kernel::ArgExtreme {
        is_max,
        axis: axis as u8,
        is_last_nan,
        of: type_of(x)?,
    };
    node::typed(kernel, Layout::Rows, &[x], &shape, Dtype::U32, s)
}

/// Ascending along an axis, NaN last.
pub fn sort(x: &Array, axis: usize, s: &Stream) -> Result<Array> {
    let (of, axis) = (type_of(x)?, axis as u8);
    let kernel = Kernel::Sort { axis, of };
    node::typed(kernel, Layout::Rows, &[x], x.shape(), mlx::dtype(x), s)
}

/// The places of that, which is stable.
pub fn argsort(x: &Array, axis: usize, s: &Stream) -> Result<Array> {
    let (of, axis) = (type_of(x)?, axis as u8);
    let kernel = Kernel::Argsort { axis, of };
    node::typed(kernel, Layout::Rows, &[x], x.shape(), Dtype::U32, s)
}

/// The k largest along an axis that has as many, or their places: descending, NaN first, the first of those that are
/// equal first.
pub fn top(x: &Array, k: i32, axis: usize, is_place: bool, s: &Stream) -> Result<Array> {
    let mut shape = x.shape().to_vec();
    shape[axis] = k;
    let dtype = match is_place {
        true => Dtype::U32,
        false => mlx::dtype(x),
    };
    let kernel = Kernel::TopK {
        k: k as u32,
        axis: axis as u8,
        is_place,
        of: type_of(x)?,
    };
    node::typed(kernel, Layout::Rows, &[x], &shape, dtype, s)
}
