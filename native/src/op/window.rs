//! Sliding windows: a strided view of the padded array, reduced over the window's axes.

use super::compose::{self, constant};
use super::{check, Number, PadMode};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::mlx::{self, Stream, Vector};
use mlx_rs::Array;
use rustler::NifUnitEnum;

#[derive(Clone, Copy, Debug, PartialEq, NifUnitEnum)]
pub enum Reduction {
    Sum,
    Prod,
    Max,
    Min,
}

/// One entry an axis of the array.
pub struct Windows<'a> {
    pub window: &'a [i32],
    pub strides: &'a [i32],
    pub padding_low: &'a [i32],
    pub padding_high: &'a [i32],
    pub dilation: &'a [i32],
}

impl Windows<'_> {
    fn check(&self, a: &Array) -> Result<()> {
        let rank = a.ndim();
        let lists = [
            ("window", self.window),
            ("strides", self.strides),
            ("padding_low", self.padding_low),
            ("padding_high", self.padding_high),
            ("dilation", self.dilation),
        ];
        for (name, list) in lists {
            if list.len() != rank {
                return Err(Error::invalid(format!(
                    "{name} must have {rank} entries, one an axis of shape {:?}, got {list:?}",
                    a.shape()
                )));
            }
        }
        for (name, list) in [lists[0], lists[1], lists[4]] {
            if list.iter().any(|value| *value < 1) {
                return Err(Error::invalid(format!(
                    "{name} must be positive, got {list:?}"
                )));
            }
        }
        Ok(())
    }

    fn axes(&self) -> Vec<i32> {
        (0..self.window.len() as i32).collect()
    }

    fn padded(&self, a: &Array, value: &Array, s: &Stream) -> Result<Array> {
        if self
            .padding_low
            .iter()
            .chain(self.padding_high)
            .all(|width| *width == 0)
        {
            return mlx::share(a);
        }
        compose::pad(
            a,
            value,
            &self.axes(),
            self.padding_low,
            self.padding_high,
            PadMode::Constant,
            s,
        )
    }
}

/// The value that leaves every other as it is.
fn identity(reduction: Reduction, dtype: Dtype) -> Result<Array> {
    let bits = 8 * dtype.size() as u32;
    let (smallest, largest) = match dtype {
        Dtype::Bool => (Number::Int(0), Number::Int(1)),
        _ if dtype.is_unsigned_integer() => (Number::Int(0), Number::Uint(u64::MAX >> (64 - bits))),
        _ if dtype.is_signed_integer() => (
            Number::Int(i64::MIN >> (64 - bits)),
            Number::Int(i64::MAX >> (64 - bits)),
        ),
        _ => (
            Number::Float(f64::NEG_INFINITY),
            Number::Float(f64::INFINITY),
        ),
    };
    let value = match reduction {
        Reduction::Sum => Number::Int(0),
        Reduction::Prod => Number::Int(1),
        Reduction::Max => smallest,
        Reduction::Min => largest,
    };
    constant(value, dtype)
}

/// All windows of an array, without copying: output axes first, then the window's.
pub fn view(
    a: &Array,
    window: &[i32],
    strides: &[i32],
    dilation: &[i32],
    s: &Stream,
) -> Result<Array> {
    let none = vec![0; window.len()];
    Windows {
        window,
        strides,
        padding_low: &none,
        padding_high: &none,
        dilation,
    }
    .check(a)?;
    let rank = a.ndim();
    let mut element = vec![1i64; rank];
    for i in (0..rank.saturating_sub(1)).rev() {
        element[i] = element[i + 1] * i64::from(a.shape()[i + 1]);
    }
    let mut shape = Vec::with_capacity(2 * rank);
    let mut steps = Vec::with_capacity(2 * rank);
    for i in 0..rank {
        let reach = i64::from(window[i] - 1) * i64::from(dilation[i]) + 1;
        let room = i64::from(a.shape()[i]) - reach;
        let places = (room.div_euclid(i64::from(strides[i])) + 1).max(0);
        // Never more than the axis is long.
        shape.push(places as i32);
        steps.push(element[i] * i64::from(strides[i]));
    }
    for i in 0..rank {
        shape.push(window[i]);
        steps.push(element[i] * i64::from(dilation[i]));
    }
    if shape.contains(&0) {
        return mlx::zeros(&shape, mlx::dtype(a), s);
    }
    // MLX strides over a vector's memory as if its elements lay next to each other.
    let rows = mlx::contiguous(a, false, s)?;
    mlx::as_strided(&rows, &shape, &steps, 0, s)
}

pub fn reduce(a: &Array, reduction: Reduction, windows: &Windows, s: &Stream) -> Result<Array> {
    windows.check(a)?;
    let dtype = mlx::dtype(a);
    let rank = a.ndim() as i32;
    if rank == 0 {
        return mlx::share(a);
    }
    let padded = windows.padded(a, &identity(reduction, dtype)?, s)?;
    let all = view(
        &padded,
        windows.window,
        windows.strides,
        windows.dilation,
        s,
    )?;
    let axes: Vec<i32> = (rank..2 * rank).collect();
    let reduced = match reduction {
        Reduction::Sum => mlx::sum(&all, &axes, false, s),
        Reduction::Prod => mlx::prod(&all, &axes, false, s),
        Reduction::Max => mlx::max(&all, &axes, false, s),
        Reduction::Min => mlx::min(&all, &axes, false, s),
    }?;
    mlx::astype(&reduced, dtype, s)
}

/// `init` everywhere, plus each element of `source` at the place of its window's first maximum (minimum) in `a`.
pub fn scatter(
    a: &Array,
    source: &Array,
    init: &Array,
    reduction: Reduction,
    windows: &Windows,
    s: &Stream,
) -> Result<Array> {
    windows.check(a)?;
    let rank = a.ndim();
    let dtype = mlx::dtype(a);
    let pick = match reduction {
        Reduction::Max => mlx::argmax,
        Reduction::Min => mlx::argmin,
        _ => return Err(Error::invalid("scatters by :max or :min")),
    };
    let padded = windows.padded(a, &identity(reduction, dtype)?, s)?;
    let all = view(
        &padded,
        windows.window,
        windows.strides,
        windows.dilation,
        s,
    )?;
    let outputs = all.shape()[..rank].to_vec();
    if source.shape() != outputs {
        return Err(Error::invalid(format!(
            "source has shape {:?}, the windows of {:?} give {outputs:?}",
            source.shape(),
            a.shape()
        )));
    }
    let taps = check::product(windows.window)?;
    let count = check::product(&outputs)?;
    check::product(padded.shape())?;
    let flat = mlx::reshape(&all, &[count, taps], s)?;
    let chosen = mlx::reshape(&pick(&flat, 1, false, s)?, &[count, 1], s)?;
    // Each window's elements by their place in the padded array, chosen from by the same position.
    let places = compose::iota(padded.shape(), None, Dtype::S32, s)?;
    let places = view(
        &places,
        windows.window,
        windows.strides,
        windows.dilation,
        s,
    )?;
    let places = mlx::reshape(&places, &[count, taps], s)?;
    let place = mlx::take_along_axis(&places, &chosen, 1, s)?;
    let place = mlx::reshape(&place, &[count], s)?;

    let out_dtype = mlx::dtype(source);
    let init = mlx::astype(init, out_dtype, s)?;
    let canvas = mlx::full(&[padded.size() as i32], &init, out_dtype, s)?;
    let updates = mlx::reshape(source, &[count, 1], s)?;
    let summed = mlx::scatter_add(&canvas, &Vector::new([&place]), &updates, &[0], s)?;
    let summed = mlx::reshape(&summed, padded.shape(), s)?;
    let negative = |widths: &[i32]| widths.iter().map(|width| -width).collect::<Vec<_>>();
    compose::pad(
        &summed,
        &init,
        &windows.axes(),
        &negative(windows.padding_low),
        &negative(windows.padding_high),
        PadMode::Constant,
        s,
    )
}
