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

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of every type, some of them equal, in rows and turned; NaN among floats where asked for.
    fn arrays(s: &Stream, nan: bool) -> Vec<Array> {
        let shape = [6, 7, 5];
        let numbers = (0..6 * 7 * 5u32).map(|i| i.wrapping_mul(2_654_435_761) >> 26);
        let bytes: Vec<u8> = numbers.flat_map(u32::to_ne_bytes).collect();
        let mut arrays = Vec::new();
        for dtype in Dtype::all().filter(|dtype| *dtype != Dtype::C64) {
            let whole = mlx::from_bytes(&bytes, &shape, Dtype::U32).expect("numbers");
            let mut x = mlx::astype(&whole, dtype, s).expect("a cast");
            if nan && dtype.is_float() {
                let root = mlx::sqrt(&mlx::subtract(&x, &of(5.0, &x, s), s).expect("less"), s);
                x = root.expect("a root");
            } else if dtype.is_float() || dtype.is_signed_integer() {
                x = mlx::subtract(&x, &of(30.0, &x, s), s).expect("less");
            }
            arrays.push(mlx::transpose(&x, &[2, 0, 1], s).expect("turned"));
            arrays.push(x);
        }
        arrays
    }

    fn of(number: f64, like: &Array, s: &Stream) -> Array {
        let bytes = (number as f32).to_ne_bytes();
        let number = mlx::from_bytes(&bytes, &[], Dtype::F32).expect("a number");
        mlx::astype(&number, mlx::dtype(like), s).expect("a cast")
    }

    fn same(ours: Result<Array>, mlx: Result<Array>, x: &Array, what: &str, s: &Stream) {
        let (ours, mlx) = (ours.expect(what), mlx.expect(what));
        let case = format!("{what} of {} {:?}", mlx::dtype(x).name(), x.shape());
        assert_eq!(mlx::dtype(&ours), mlx::dtype(&mlx), "{case}");
        assert_eq!(ours.shape(), mlx.shape(), "{case}");
        let equal = mlx::array_equal(&ours, &mlx, true, s).expect("compared");
        mlx::async_eval(&[&equal], &mlx::graph_lock()).expect("submitted");
        s.synchronize().expect("computed");
        // SAFETY: computed.
        assert_eq!(
            unsafe { mlx::bytes(&equal) }.expect("in rows"),
            [1],
            "{case}"
        );
    }

    #[test]
    fn kernels_of_ours_say_what_those_of_mlx_say() {
        mlx::init();
        let s = Device::Cpu.stream().expect("the CPU is there");
        for x in arrays(s, true).iter().chain(&arrays(s, false)) {
            for (axes, keep) in [
                (&[0][..], false),
                (&[1, 2], true),
                (&[0, 1, 2], false),
                (&[1], true),
            ] {
                let same = |ours, mlx, what| same(ours, mlx, x, what, s);
                same(
                    extreme(true, x, axes, keep, s),
                    mlx::max(x, axes, keep, s),
                    "max",
                );
                same(
                    extreme(false, x, axes, keep, s),
                    mlx::min(x, axes, keep, s),
                    "min",
                );
                same(
                    truth(true, x, axes, keep, s),
                    mlx::all(x, axes, keep, s),
                    "all",
                );
                same(
                    truth(false, x, axes, keep, s),
                    mlx::any(x, axes, keep, s),
                    "any",
                );
                if mlx::dtype(x).is_float() {
                    continue;
                }
                let sum = mlx::sum(x, axes, keep, s).expect("a sum");
                let dtype = mlx::dtype(&sum);
                assert!(totals(x, dtype));
                same(total(false, x, axes, keep, dtype, s), Ok(sum), "sum");
                let product = mlx::prod(x, axes, keep, s).expect("a product");
                let dtype = mlx::dtype(&product);
                assert!(totals(x, dtype));
                same(total(true, x, axes, keep, dtype, s), Ok(product), "product");
            }
            for axis in 0..3usize {
                let same = |ours, mlx, what| same(ours, mlx, x, what, s);
                same(sort(x, axis, s), mlx::sort(x, axis as i32, s), "sort");
                same(
                    argsort(x, axis, s),
                    mlx::argsort(x, axis as i32, s),
                    "argsort",
                );
                let top = top(x, 3, axis, false, s).expect("the largest");
                let mlx = mlx::topk(x, 3, axis as i32, s).expect("the largest");
                same(
                    mlx::sort(&top, axis as i32, s),
                    mlx::sort(&mlx, axis as i32, s),
                    "top",
                );
            }
        }
        for x in arrays(s, false) {
            for axis in 0..3 {
                let same = |ours, mlx, what| same(ours, mlx, &x, what, s);
                let ours = |is_max| arg_extreme(is_max, &x, axis, axis == 1, true, s);
                same(ours(true), mlx::argmax(&x, axis, axis == 1, s), "argmax");
                same(ours(false), mlx::argmin(&x, axis, axis == 1, s), "argmin");
                let at = top(&x, 4, axis as usize, true, s).expect("places");
                let values = mlx::take_along_axis(&x, &at, axis, s);
                same(
                    top(&x, 4, axis as usize, false, s),
                    values,
                    "places of the top",
                );
            }
        }
    }
}
