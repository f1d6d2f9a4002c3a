//! Convolutions, where MLX lacks a type, a padding or a dilation. Called by window.rs.

use super::{cast, check, gpu, shape, window};
use crate::base::{Device, Dtype, Error, Result};
use crate::cpu;
use crate::mlx::{self, Stream, Vector};
use mlx_rs::Array;

#[allow(clippy::too_many_arguments)]
pub fn conv(
    a: &Array,
    weight: &Array,
    stride: &[i32],
    padding_low: &[i32],
    padding_high: &[i32],
    kernel_dilation: &[i32],
    input_dilation: &[i32],
    groups: i32,
    flip: bool,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    let space = a.ndim().saturating_sub(2);
    let positive = |name: &str, values: &[i32]| -> Result<()> {
        if values.len() != space || values.iter().any(|v| *v < 1) {
            return Err(Error::invalid(format!(
                "{name} must be {space} positive integers, one an axis of space, got {values:?}"
            )));
        }
        Ok(())
    };
    if a.ndim() < 3 {
        return Err(Error::invalid(format!(
            "the input must have a batch axis, at least one axis of space and channels, got shape {:?}",
            a.shape()
        )));
    }
    positive("stride", stride)?;
    positive("kernel_dilation", kernel_dilation)?;
    positive("input_dilation", input_dilation)?;
    for (name, padding) in [("padding_low", padding_low), ("padding_high", padding_high)] {
        if padding.len() != space {
            return Err(Error::invalid(format!(
                "{name} must have {space} entries, got {padding:?}"
            )));
        }
    }
    if groups < 1 {
        return Err(Error::invalid(format!(
            "groups must be positive, got {groups}"
        )));
    }
    let own = cpu::Conv {
        stride: stride.into(),
        low: padding_low.into(),
        kernel_dilation: kernel_dilation.into(),
        input_dilation: input_dilation.into(),
        groups,
        is_flipped: flip,
    };
    if let Some(shape) = own_shape(&own, a, weight, padding_high, device) {
        let (a, weight) = cast::promoted(a, weight, s)?;
        return cpu::conv(own, &a, &weight, &shape, s);
    }
    let (a, weight) = match device {
        Device::Cpu => (mlx::share(a)?, mlx::share(weight)?),
        Device::Gpu => (gpu::packed(a, s)?, gpu::packed(weight, s)?),
    };
    let is_double = [&a, &weight]
        .iter()
        .any(|array| mlx::dtype(array) == Dtype::F64);
    let crops = padding_low
        .iter()
        .chain(padding_high)
        .any(|width| *width < 0);
    // MLX's choice of a cuDNN kernel, once made, does not look at the dilation of the input.
    let dilates_on_gpu = device == Device::Gpu && input_dilation.iter().any(|step| *step > 1);
    // MLX's CPU form for groups and dilation fills the border of the output, as wide as the padding, even where the
    // output is narrower.
    let overruns = weight.ndim() == a.ndim()
        && (0..space).any(|i| {
            let size = (i64::from(a.shape()[i + 1]) - 1) * i64::from(input_dilation[i]) + 1;
            let kernel = (i64::from(weight.shape()[i + 1]) - 1) * i64::from(kernel_dilation[i]) + 1;
            let padded = size + i64::from(padding_low[i]) + i64::from(padding_high[i]);
            let stride = i64::from(stride[i]);
            let output = (padded - kernel).div_euclid(stride) + 1;
            output > 0 && i64::from(padding_low[i]) > output * stride
        });
    let (none, one) = (vec![0; space], vec![1; space]);
    let (a, padding_low, padding_high, input_dilation) =
        if is_double || crops || dilates_on_gpu || overruns {
            // Padded apart: MLX also crops before it dilates, and a convolution is defined the other way round.
            let whole = |widths: Vec<i32>| [vec![0], widths, vec![0]].concat();
            let between = input_dilation.iter().map(|step| step - 1).collect();
            let padded = shape::pad_interior(
                &a,
                &mlx::zeros(&[], mlx::dtype(&a), s)?,
                &whole(padding_low.to_vec()),
                &whole(padding_high.to_vec()),
                &whole(between),
                s,
            )?;
            (padded, &none[..], &none[..], &one[..])
        } else {
            (a, padding_low, padding_high, input_dilation)
        };
    if is_double {
        return double_conv(&a, &weight, stride, kernel_dilation, groups, flip, s);
    }
    mlx::conv_general(
        &a,
        &weight,
        stride,
        padding_low,
        padding_high,
        kernel_dilation,
        input_dilation,
        groups,
        flip,
        s,
    )
}

/// Places of a dilated input that the kernel here computes apart from each other, at most.
const MOST_PIECES: i64 = 64;

/// The result's shape where the kernel here takes the convolution. Others, and those that fit nothing, are MLX's.
fn own_shape(
    conv: &cpu::Conv,
    a: &Array,
    weight: &Array,
    padding_high: &[i32],
    device: Device,
) -> Option<Vec<i32>> {
    let (rank, last) = (a.ndim(), a.ndim() - 1);
    let takes = cpu::takes(device, a) && cpu::takes(device, weight) && cpu::has_vectors();
    if !takes || rank > 5 || weight.ndim() != rank || a.size() == 0 || weight.size() == 0 {
        return None;
    }
    let (filters, inside) = (weight.shape()[0], weight.shape()[last]);
    let channels = i64::from(inside) * i64::from(conv.groups);
    if filters % conv.groups != 0 || channels != i64::from(a.shape()[last]) {
        return None;
    }
    let mut shape = vec![a.shape()[0]];
    let mut pieces = 1;
    for (i, high) in padding_high.iter().enumerate() {
        let reach = |size: i32, dilation: i32| (i64::from(size) - 1) * i64::from(dilation) + 1;
        let input = reach(a.shape()[i + 1], conv.input_dilation[i]);
        let kernel = reach(weight.shape()[i + 1], conv.kernel_dilation[i]);
        let room = input + i64::from(conv.low[i]) + i64::from(*high) - kernel;
        let places = room.div_euclid(i64::from(conv.stride[i])) + 1;
        if places < 1 {
            return None;
        }
        pieces *= places.min(i64::from(conv.input_dilation[i]));
        shape.push(i32::try_from(places).ok()?);
    }
    shape.push(filters);
    let fits = check::product(&shape).is_ok();
    (fits && pieces <= MOST_PIECES).then_some(shape)
}

/// A convolution of f64 as matrix products of its windows: MLX computes it in f32, or not at all.
fn double_conv(
    a: &Array,
    weight: &Array,
    stride: &[i32],
    kernel_dilation: &[i32],
    groups: i32,
    flip: bool,
    s: &Stream,
) -> Result<Array> {
    let rank = a.ndim();
    let (last, space) = (rank - 1, rank - 2);
    let fits = weight.ndim() == rank
        && weight.shape()[0] % groups == 0
        && weight.shape()[last] * groups == a.shape()[last];
    let reaches = |i: usize| (weight.shape()[i] - 1) * kernel_dilation[i - 1] < a.shape()[i];
    if !fits || weight.size() == 0 || !(1..=space).all(reaches) {
        return Err(Error::invalid(format!(
            "a weight of shape {:?} in {groups} groups does not fit the padded input {:?}",
            weight.shape(),
            a.shape()
        )));
    }
    let mut kernel = mlx::astype(weight, Dtype::F64, s)?;
    if flip {
        let axes: Vec<i32> = (1..=space as i32).collect();
        kernel = mlx::flip(&kernel, &axes, s)?;
    }
    let a = mlx::astype(a, Dtype::F64, s)?;
    let (inside, outside) = (weight.shape()[last], weight.shape()[0] / groups);
    let window = [&[1], &weight.shape()[1..]].concat();
    let strides = [&[1], stride, &[1]].concat();
    let dilation = [&[1], kernel_dilation, &[1]].concat();
    let terms: i32 = window.iter().product();
    let part = |array: &Array, axis: usize, from: i32, to: i32| {
        let mut start = vec![0; rank];
        let mut stop = array.shape().to_vec();
        (start[axis], stop[axis]) = (from, to);
        mlx::slice(array, &start, &stop, &vec![1; rank], s)
    };
    let mut products = Vec::with_capacity(groups as usize);
    for group in 0..groups {
        let input = part(&a, last, group * inside, (group + 1) * inside)?;
        let rows = part(&kernel, 0, group * outside, (group + 1) * outside)?;
        let windows = window::view(&input, &window, &strides, &dilation, s)?;
        let mut shape = windows.shape()[..=space].to_vec();
        let places = shape.iter().product();
        let columns = mlx::transpose(&mlx::reshape(&rows, &[outside, terms], s)?, &[1, 0], s)?;
        let windows = mlx::reshape(&windows, &[places, terms], s)?;
        shape.push(outside);
        products.push(mlx::reshape(
            &mlx::matmul(&windows, &columns, s)?,
            &shape,
            s,
        )?);
    }
    mlx::concatenate(&Vector::new(&products), last as i32, s)
}

/// The gradient of a convolution by its input: the strides dilate the input, the kernel is flipped.
#[allow(clippy::too_many_arguments)]
pub fn conv_transpose(
    a: &Array,
    weight: &Array,
    stride: &[i32],
    padding: &[i32],
    dilation: &[i32],
    output_padding: &[i32],
    groups: i32,
    device: Device,
    s: &Stream,
) -> Result<Array> {
    let space = a.ndim().saturating_sub(2);
    let lists = [stride, padding, dilation, output_padding];
    if weight.ndim() != a.ndim() || space == 0 || lists.iter().any(|list| list.len() != space) {
        return Err(Error::invalid(format!(
            "stride, padding, dilation and output_padding need one entry an axis of space: \
             the input has shape {:?}, the weight {:?}",
            a.shape(),
            weight.shape()
        )));
    }
    let kernel = &weight.shape()[1..=space];
    let low: Vec<i32> = (0..space)
        .map(|i| dilation[i] * (kernel[i] - 1) - padding[i])
        .collect();
    let high: Vec<i32> = (0..space).map(|i| low[i] + output_padding[i]).collect();
    conv(
        a,
        weight,
        &vec![1; space],
        &low,
        &high,
        dilation,
        stride,
        groups,
        true,
        device,
        s,
    )
}
