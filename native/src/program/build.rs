//! Nodes of MLX's graph for operations, and for code that has operations alone.

use super::engine::Given;
use super::ir::place;
use super::plan::{Code, Node, Work};
use super::run::frame::signatures;
use crate::base::{Device, Dtype, Error, Result};
use crate::handle::array::check_size;
use crate::mlx::{self, Stream};
use crate::op::{self, Applied, Crossed, Op, Outputs};
use mlx_rs::Array;
use smallvec::SmallVec;

/// Applies one operation and checks what came out.
pub fn build(
    op: &Op,
    inputs: &[Option<&Array>],
    device: Device,
    stream: &Stream,
) -> Result<Applied> {
    device.enter(stream)?;
    checked(op.apply(&op::Inputs(inputs), device, stream)?)
}

/// The same of an operation whose result is cast.
pub fn build_and_cast(
    op: &Op,
    to: Dtype,
    inputs: &[Option<&Array>],
    device: Device,
    stream: &Stream,
) -> Result<Applied> {
    device.enter(stream)?;
    checked(op.apply_and_cast(to, &op::Inputs(inputs), device, stream)?)
}

fn checked(mut applied: Applied) -> Result<Applied> {
    for output in &mut applied.outputs {
        check_size(output)?;
        // MLX's CUDA kernels end the process on many results without elements, and there is nothing to compute.
        if output.size() == 0 {
            *output = mlx::from_bytes(&[], output.shape(), mlx::dtype(output))?;
        }
    }
    Ok(applied)
}

/// Takes what an operation gave if it is as many arrays as the program says.
pub fn check_outputs(outputs: Outputs, expected: usize) -> Result<Outputs> {
    if outputs.len() == expected {
        return Ok(outputs);
    }
    Err(Error::invalid(format!(
        "has {} outputs, the program says {expected}",
        outputs.len()
    )))
}

/// The values of code that has operations alone, by number, `inputs` being its first, and what crosses between devices;
/// `seen` is told of each node.
pub fn values(
    code: &Code,
    inputs: Vec<Array>,
    device: Device,
    stream: &Stream,
    mut seen: impl FnMut(&Node, &[Array]),
) -> Result<(Vec<Option<Array>>, Crossed)> {
    let mut values: Vec<Option<Array>> = inputs.into_iter().map(Some).collect();
    values.resize_with(code.values, || None);
    let mut crossed = Crossed::default();
    for node in &code.nodes {
        let outputs = node_of_operation(node, &values, device, stream, &mut crossed)?;
        seen(node, &outputs);
        for (value, output) in node.outputs.iter().zip(outputs) {
            values[*value as usize] = Some(output);
        }
    }
    Ok((values, crossed))
}

/// What an operation or a segment gives of these values, without what crosses between devices.
pub fn node(
    node: &Node,
    values: &[Option<Array>],
    device: Device,
    stream: &Stream,
) -> Result<Outputs> {
    node_of_operation(node, values, device, stream, &mut Crossed::default())
}

fn node_of_operation(
    node: &Node,
    values: &[Option<Array>],
    device: Device,
    stream: &Stream,
    crossed: &mut Crossed,
) -> Result<Outputs> {
    let inputs: SmallVec<[Option<&Array>; 6]> = node
        .inputs
        .iter()
        .map(|value| value.and_then(|value| values.get(value as usize)?.as_ref()))
        .collect();
    let applied = match &node.work {
        Work::Op(op) => build(op, &inputs, device, stream),
        Work::Segment(segment) => {
            let (arrays, number) = (&inputs[..], &|_| None);
            segment.build(&Given { arrays, number }, device, stream)
        }
        _ => return Err(Error::invalid("has branches, loops or calls")),
    };
    applied
        .and_then(|applied| {
            crossed.append(applied.crossed);
            check_outputs(applied.outputs, node.outputs.len())
        })
        .map_err(|error| {
            let error = error.with_inputs(signatures(&inputs), Some(device));
            error.within(&place(node.at, &node.name(), node.label.as_deref()))
        })
}

/// The outputs of such code.
pub fn outputs(
    code: &Code,
    inputs: Vec<Array>,
    device: Device,
    stream: &Stream,
    seen: impl FnMut(&Node, &[Array]),
) -> Result<(Vec<Array>, Crossed)> {
    let (values, crossed) = values(code, inputs, device, stream, seen)?;
    let outputs = code.outputs.iter().map(|value| {
        let array = values[*value as usize].as_ref();
        array.ok_or_else(|| Error::invalid(format!("there is no value {value}")))
    });
    let outputs = outputs.map(|array| mlx::share(array?));
    Ok((outputs.collect::<Result<_>>()?, crossed))
}

/// [`outputs`] where all of them have to be the device's own.
pub fn outputs_of_device(
    code: &Code,
    inputs: Vec<Array>,
    device: Device,
    stream: &Stream,
) -> Result<Vec<Array>> {
    let (outputs, crossed) = outputs(code, inputs, device, stream, |_, _| {})?;
    match crossed.is_empty() {
        true => Ok(outputs),
        false => Err(Error::invalid(
            "an operation is computed on the CPU, and cannot be compiled or captured with those of the GPU",
        )),
    }
}
