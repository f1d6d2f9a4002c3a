//! Sliding windows: reductions over them, their gradients, and all of them as an array. Convolutions are in conv.rs.
//! Called by [`Op::apply`] for operations of [`Class::Window`](super::Class::Window).

use super::creation::{self, constant};
use super::table::{family, others};
use super::{arg_reduce, check, conv, indexing, shape};
use super::{Inputs, Number, Op, Outputs, PadMode, Which};
use crate::base::{Device, Dtype, Error, Result};
use crate::cpu;
use crate::mlx::{self, Stream};
use mlx_rs::Array;
use rustler::NifUnitEnum;
use serde::{Deserialize, Serialize};

family! { Window, takes(2):
    // Layout: batch, space…, channels; weights: out, space…, in / groups.
    /// Inputs: a, weight.
    Conv {
        stride: Vec<i32>,
        padding_low: Vec<i32>,
        padding_high: Vec<i32>,
        kernel_dilation: Vec<i32>,
        input_dilation: Vec<i32>,
        groups: i32,
        flip: bool,
    },
    ConvTranspose { stride: Vec<i32>, padding: Vec<i32>, dilation: Vec<i32>, output_padding: Vec<i32>, groups: i32 },
    /// Inputs: a. One entry an axis of a.
    WindowReduce {
        reduction: Reduction,
        window: Vec<i32>,
        strides: Vec<i32>,
        padding_low: Vec<i32>,
        padding_high: Vec<i32>,
        dilation: Vec<i32>,
    } => takes(1),
    /// Inputs: a, source, init. Adds each source element at its window's first maximum (minimum), or the last where
    /// `ties` says so. Padding is never chosen, unless `pads_with_init`: then it is `init`, and a source whose window's
    /// extreme is padding is left out. nil is the first, and false.
    WindowScatter {
        reduction: Reduction,
        window: Vec<i32>,
        strides: Vec<i32>,
        padding_low: Vec<i32>,
        padding_high: Vec<i32>,
        ties: Option<Which>,
        pads_with_init: Option<bool>,
    } => takes(3).narrow_on_gpu(&[0, 2]),
    /// Inputs: a. All windows as an array: output axes, then window axes.
    WindowView { window: Vec<i32>, strides: Vec<i32>, dilation: Vec<i32> } => takes(1).view(View::Strided),
}

/// Builds an operation of the class.
pub fn apply(op: &Op, inputs: &Inputs, device: Device, s: &Stream) -> Result<Outputs> {
    match op {
        Op::Conv {
            stride,
            padding_low,
            padding_high,
            kernel_dilation,
            input_dilation,
            groups,
            flip,
        } => inputs.binary(s, |a, b, s| {
            conv::conv(
                a,
                b,
                stride,
                padding_low,
                padding_high,
                kernel_dilation,
                input_dilation,
                *groups,
                *flip,
                device,
                s,
            )
        }),
        Op::ConvTranspose {
            stride,
            padding,
            dilation,
            output_padding,
            groups,
        } => inputs.binary(s, |a, b, s| {
            conv::conv_transpose(
                a,
                b,
                stride,
                padding,
                dilation,
                output_padding,
                *groups,
                device,
                s,
            )
        }),
        Op::WindowReduce {
            reduction,
            window,
            strides,
            padding_low,
            padding_high,
            dilation,
        } => inputs.unary(s, |a, s| {
            reduce(
                a,
                *reduction,
                &Windows {
                    window,
                    strides,
                    padding_low,
                    padding_high,
                    dilation,
                },
                device,
                s,
            )
        }),
        Op::WindowScatter {
            reduction,
            window,
            strides,
            padding_low,
            padding_high,
            ties,
            pads_with_init,
        } => inputs.ternary(s, |a, b, c, s| {
            scatter(
                a,
                b,
                c,
                Choice {
                    reduction: *reduction,
                    is_last: *ties == Some(Which::Last),
                    pads_with_init: pads_with_init.unwrap_or(false),
                },
                &Windows {
                    window,
                    strides,
                    padding_low,
                    padding_high,
                    dilation: &vec![1; window.len()],
                },
                device,
                s,
            )
        }),
        Op::WindowView {
            window,
            strides,
            dilation,
        } => inputs.unary(s, |a, s| view(a, window, strides, dilation, s)),
        others!(Window) => Err(super::no_case(op)),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, NifUnitEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
    fn are_padded(&self) -> bool {
        let mut widths = self.padding_low.iter().chain(self.padding_high);
        widths.any(|width| *width > 0)
    }

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

    /// How many windows there are along each axis; None where there are too many.
    fn places(&self, a: &Array) -> Option<Vec<i32>> {
        let along = |i: usize| {
            let reach = (i64::from(self.window[i]) - 1) * i64::from(self.dilation[i]) + 1;
            let padding = i64::from(self.padding_low[i]) + i64::from(self.padding_high[i]);
            let room = i64::from(a.shape()[i]) + padding - reach;
            i32::try_from((room.div_euclid(i64::from(self.strides[i])) + 1).max(0)).ok()
        };
        let places: Vec<i32> = (0..a.ndim()).map(along).collect::<Option<_>>()?;
        check::product(&places).is_ok().then_some(places)
    }

    /// What the kernels here compute; None where they don't take the array, or where there are too many elements.
    fn own(&self, a: &Array, most: i32, device: Device) -> Option<(cpu::Windows, Vec<i32>)> {
        let taps = check::product(self.window).ok()?;
        let shape = self.places(a)?;
        let takes = cpu::has_windows(device, a) && taps <= most && !shape.contains(&0);
        let windows = || cpu::Windows {
            sizes: self.window.into(),
            strides: self.strides.into(),
            low: self.padding_low.into(),
            dilation: self.dilation.into(),
        };
        takes.then(|| (windows(), shape))
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
        shape::pad(
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
pub fn identity(reduction: Reduction, dtype: Dtype) -> Result<Array> {
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

/// All windows of an array: output axes first, then the window's. A copy, since MLX's reductions on the CPU write
/// outside their memory where a view's elements overlap.
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
    mlx::contiguous(&mlx::as_strided(&rows, &shape, &steps, 0, s)?, false, s)
}

type Combine = fn(&Array, &Array, &Stream) -> Result<Array>;

/// Elements of a window up to which it is reduced by the kernel here, element by element.
const OWN_WINDOW: i32 = 64;
/// The same where an element of it is chosen.
const OWN_CHOICE: i32 = 4096;

/// A window is reduced axis by axis where there is no kernel: 3 by 3 elements take 3 + 3 slices, not 9.
pub fn reduce(
    a: &Array,
    reduction: Reduction,
    windows: &Windows,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    windows.check(a)?;
    let dtype = mlx::dtype(a);
    let wide = match dtype.is_half() && device == Device::Cpu {
        true => mlx::astype(a, Dtype::F32, s)?,
        false => mlx::share(a)?,
    };
    if let Some((own, shape)) = windows.own(&wide, OWN_WINDOW, device) {
        let total = match reduction {
            Reduction::Sum => cpu::WindowTotal::Sum,
            Reduction::Prod => cpu::WindowTotal::Product,
            Reduction::Max => cpu::WindowTotal::Max,
            Reduction::Min => cpu::WindowTotal::Min,
        };
        let reduced = cpu::window_reduce(total, own, &wide, &shape, s)?;
        return mlx::astype(&reduced, dtype, s);
    }
    let combine: Combine = match reduction {
        Reduction::Sum => mlx::add,
        Reduction::Prod => mlx::multiply,
        Reduction::Max => mlx::maximum,
        Reduction::Min => mlx::minimum,
    };
    let padded = windows.padded(a, &identity(reduction, dtype)?, s)?;
    // Sums of 16-bit floats are not rounded at every element.
    let is_sum = matches!(reduction, Reduction::Sum | Reduction::Prod);
    let mut reduced = if is_sum && dtype.is_half() {
        mlx::astype(&padded, Dtype::F32, s)?
    } else {
        padded
    };
    for axis in 0..a.ndim() {
        let line = Line {
            axis,
            window: windows.window[axis],
            stride: windows.strides[axis],
            dilation: windows.dilation[axis],
        };
        reduced = line.reduce(&reduced, combine, s)?;
    }
    mlx::astype(&reduced, dtype, s)
}

/// Windows along one axis.
struct Line {
    axis: usize,
    window: i32,
    stride: i32,
    dilation: i32,
}

/// Windows up to this size are combined element by element, larger ones from halves.
const SMALL_WINDOW: i32 = 8;

impl Line {
    /// `count` elements from `start` on, `step` apart.
    fn take(&self, a: &Array, start: i64, count: i32, step: i32, s: &Stream) -> Result<Array> {
        let (mut from, mut to) = (vec![0; a.ndim()], a.shape().to_vec());
        let mut steps = vec![1; a.ndim()];
        from[self.axis] = start as i32;
        to[self.axis] = (start + i64::from(count - 1) * i64::from(step) + 1) as i32;
        steps[self.axis] = step;
        mlx::slice(a, &from, &to, &steps, s)
    }

    fn reduce(&self, a: &Array, combine: Combine, s: &Stream) -> Result<Array> {
        let length = i64::from(a.shape()[self.axis]);
        let dilation = i64::from(self.dilation);
        let room = length - (i64::from(self.window) - 1) * dilation - 1;
        if room < 0 || a.size() == 0 {
            let mut shape = a.shape().to_vec();
            shape[self.axis] = (room.div_euclid(i64::from(self.stride)) + 1).max(0) as i32;
            return mlx::zeros(&shape, mlx::dtype(a), s);
        }
        let count = (room / i64::from(self.stride)) as i32 + 1;
        let place = |block: &Array, offset: i64| self.take(block, offset, count, self.stride, s);
        if self.window <= SMALL_WINDOW {
            let mut total = place(a, 0)?;
            for i in 1..i64::from(self.window) {
                total = combine(&total, &place(a, i * dilation)?, s)?;
            }
            return Ok(total);
        }
        // Blocks of 1, 2, 4 … elements; a window is those whose sizes add up to its own, one after the other.
        let mut block = mlx::share(a)?;
        let mut total: Option<Array> = None;
        let (mut size, mut offset) = (1i64, 0i64);
        let window = i64::from(self.window);
        while size <= window {
            if window & size != 0 {
                let part = place(&block, offset)?;
                total = Some(match total {
                    None => part,
                    Some(before) => combine(&before, &part, s)?,
                });
                offset += size * dilation;
            }
            if 2 * size <= window {
                let left = i64::from(block.shape()[self.axis]) - size * dilation;
                let first = self.take(&block, 0, left as i32, 1, s)?;
                let second = self.take(&block, size * dilation, left as i32, 1, s)?;
                block = combine(&first, &second, s)?;
            }
            size *= 2;
        }
        total.ok_or_else(|| Error::invalid("a window has at least one element"))
    }
}

/// For each window (a row) which of its elements are its extreme or NaN and the array's own: padding may equal the
/// extreme, and is never chosen. None for complex numbers, which have no order.
fn own_extremes(
    a: &Array,
    flat: &Array,
    choice: &Choice,
    windows: &Windows,
    device: Device,
    s: &Stream,
) -> Result<Option<Array>> {
    if mlx::dtype(a) == Dtype::C64 {
        return Ok(None);
    }
    let ones = mlx::ones(a.shape(), Dtype::Bool, s)?;
    let own = windows.padded(&ones, &constant(Number::Int(0), Dtype::Bool)?, s)?;
    let own = view(&own, windows.window, windows.strides, windows.dilation, s)?;
    let own = choice.ordered(&own, flat.shape(), device, s)?;
    let extreme = match choice.reduction {
        Reduction::Max => mlx::max(flat, &[1], true, s)?,
        _ => mlx::min(flat, &[1], true, s)?,
    };
    let equal = mlx::equal(flat, &extreme, s)?;
    let extreme = mlx::logical_or(&equal, &mlx::isnan(flat, s)?, s)?;
    let both = mlx::logical_and(&own, &extreme, s)?;
    mlx::astype(&both, Dtype::U8, s).map(Some)
}

/// Which element of a window is chosen; see [`Op::WindowScatter`].
pub struct Choice {
    reduction: Reduction,
    is_last: bool,
    pads_with_init: bool,
}

impl Choice {
    /// Windows as rows, in which the element that is meant is the first of equals.
    fn ordered(&self, windows: &Array, shape: &[i32], device: Device, s: &Stream) -> Result<Array> {
        let rows = mlx::reshape(windows, shape, s)?;
        match self.is_last {
            true => shape::flip(&rows, &[1], device, s),
            false => Ok(rows),
        }
    }
}

/// [`scatter`] by the kernel here, if it takes the arrays.
fn own_scatter(
    [a, source, init]: [&Array; 3],
    choice: &Choice,
    windows: &Windows,
    device: Device,
    s: &Stream,
) -> Result<Option<Array>> {
    let dtype = mlx::dtype(source);
    if device != Device::Cpu || mlx::dtype(a) != dtype || init.size() != 1 {
        return Ok(None);
    }
    let init = mlx::reshape(&mlx::astype(init, dtype, s)?, &[], s)?;
    let wide = if dtype.is_half() { Dtype::F32 } else { dtype };
    let wider = |array: &Array| mlx::astype(array, wide, s);
    let (a, source, init) = (wider(a)?, wider(source)?, wider(&init)?);
    let Some((own, shape)) = windows.own(&a, OWN_CHOICE, device) else {
        return Ok(None);
    };
    if source.shape() != shape {
        return Ok(None);
    }
    let choice = cpu::Choice {
        is_max: choice.reduction == Reduction::Max,
        is_last: choice.is_last,
        is_padding_chosen: choice.pads_with_init,
    };
    let sums = cpu::window_scatter(choice, own, &[&a, &source, &init], s)?;
    mlx::astype(&sums, dtype, s).map(Some)
}

/// `init` everywhere, plus each element of `source` at the place of its window's maximum (minimum) in `a`.
pub fn scatter(
    a: &Array,
    source: &Array,
    init: &Array,
    choice: Choice,
    windows: &Windows,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    windows.check(a)?;
    let rank = a.ndim();
    let dtype = mlx::dtype(a);
    let reduction = choice.reduction;
    if !matches!(reduction, Reduction::Max | Reduction::Min) {
        return Err(Error::invalid("scatters by :max or :min"));
    }
    if let Some(sums) = own_scatter([a, source, init], &choice, windows, device, s)? {
        return Ok(sums);
    }
    let filled = match choice.pads_with_init {
        true => mlx::reshape(&mlx::astype(init, dtype, s)?, &[], s)?,
        false => identity(reduction, dtype)?,
    };
    let padded = windows.padded(a, &filled, s)?;
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
    let flat = choice.ordered(&all, &[count, taps], device, s)?;
    let candidates = if windows.are_padded() && !choice.pads_with_init {
        own_extremes(a, &flat, &choice, windows, device, s)?
    } else {
        None
    };
    let chosen = match candidates {
        Some(candidates) => mlx::argmax(&candidates, 1, false, s)?,
        None => {
            let is_max = reduction == Reduction::Max;
            arg_reduce::arg_reduce(is_max, &flat, Some(1), false, Which::First, device, s)?
        }
    };
    let chosen = mlx::reshape(&chosen, &[count, 1], s)?;
    // Each window's elements by their place in the padded array, chosen from by the same position.
    let places = creation::iota(padded.shape(), None, Dtype::S32, s)?;
    let places = view(
        &places,
        windows.window,
        windows.strides,
        windows.dilation,
        s,
    )?;
    let places = choice.ordered(&places, &[count, taps], device, s)?;
    let place = mlx::take_along_axis(&places, &chosen, 1, s)?;
    let place = mlx::reshape(&place, &[count], s)?;

    let out_dtype = mlx::dtype(source);
    let init = mlx::astype(init, out_dtype, s)?;
    let canvas = mlx::full(&[padded.size() as i32], &init, out_dtype, s)?;
    let summed = indexing::add_at(&canvas, source, &place, device, s)?;
    let summed = mlx::reshape(&summed, padded.shape(), s)?;
    let negative = |widths: &[i32]| widths.iter().map(|width| -width).collect::<Vec<_>>();
    shape::pad(
        &summed,
        &init,
        &windows.axes(),
        &negative(windows.padding_low),
        &negative(windows.padding_high),
        PadMode::Constant,
        s,
    )
}
